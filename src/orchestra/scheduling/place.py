"""Which free agent takes a task: five interchangeable rules, each a function of the free agents.

A rule gets the free agents that can run the task, in order of their numbers, and names one, or None to let the task wait for a better moment.

In a fleet of unequal agents the rule `priority` also looks ahead (`Outlook`): a slow agent that is free may be worse than a fast one that soon will be.
"""

from __future__ import annotations

import zlib
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from heapq import heappop, heappush
from typing import Final

import msgspec

from orchestra.core.fleet import suits
from orchestra.core.model import RETURNS_REVIEW, AgentStatus, Strategy, TaskSpec, TaskStatus, speciality_of
from orchestra.core.state import AgentState, AttemptState, State, TaskState
from orchestra.ids import AgentId, NodeId, TaskId
from orchestra.scheduling.rank import estimate_ms

AFFINITY_WAIT_MS: Final = 30_000
"""How long a task waits for the agent it belongs to before any other may take it; about what a coding agent needs to read a project anew."""

LOOKS_MAX: Final = 50_000
"""Pairs of task and agent that one outlook compares, about 20 ms; tasks beyond that go to the best free agent at once."""


class Moment(msgspec.Struct, frozen=True):
    """What a rule may know besides the free agents."""

    state: State
    now_ms: int
    last: AgentId
    """The agent that was given the previous task; 0 at the start."""
    used: Mapping[NodeId, float] = {}
    """Share of each node's capacity that is in use, where there is more than one node."""


Rule = Callable[[TaskState, Sequence[AgentState], Moment], AgentState | None]


def most_capable(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The highest weight; among equals one meant for the category, then one that is best at such work or else at nothing in particular, then one on
    the node with the most free capacity, then the lowest number."""
    category, used, best = task.spec.category, moment.used, wanted_speciality(task.spec)
    return min(
        free,
        key=lambda a: (-a.spec.weight, a.spec.category not in ("", category), distance(a, best), used.get(a.spec.node, 0.0), a.id),
    )


def wanted_speciality(spec: TaskSpec) -> str:
    """Returns what agents should be best at that do the task, or nothing."""
    return speciality_of(spec.speciality, spec.category, RETURNS_REVIEW if spec.reviews is not None else spec.returns)


def distance(agent: AgentState, speciality: str) -> int:
    """Returns 0 for an agent that is best at it, 1 for one that is best at nothing in particular, 2 for one that is kept for other work if possible."""
    return 0 if agent.spec.speciality == speciality else 2 if agent.spec.speciality else 1


def in_turn(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The next number after the last one used, going round."""
    return min(free, key=lambda agent: (agent.id <= moment.last, agent.id))


def least_loaded(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The one that has worked the least so far."""
    return min(free, key=lambda agent: (agent.busy_ms, agent.completed + agent.failed, agent.id))


def by_capability(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The one furthest behind its share, shares being in proportion to weight."""
    return min(free, key=lambda agent: ((agent.completed + agent.failed + 1) * 100 // max(agent.spec.weight, 1), agent.id))


def affinity_key(spec: TaskSpec) -> str:
    """Returns what the task is at home with: its key, else its plan. Empty if it belongs nowhere."""
    return spec.affinity or str(spec.plan or "")


def at_home(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState | None:
    """The agent the key belongs to by rendezvous hashing over all able agents, free or not; another only after a wait.

    Rendezvous hashing (Thaler, Ravishankar 1998) moves only the keys of agents that come or go.
    """
    key = affinity_key(task.spec)
    if not key:
        return most_capable(task, free, moment)
    able = [
        agent
        for agent in moment.state.agents.values()
        if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) and suits(moment.state, agent.spec, task.spec)
    ]
    home = max(able or free, key=lambda agent: _score(key, agent.id))
    if home in free:
        return home
    overdue = moment.now_ms - task.queued_ms >= AFFINITY_WAIT_MS
    return max(free, key=lambda agent: _score(key, agent.id)) if overdue else None


def _score(key: str, agent: AgentId) -> tuple[int, int]:
    return zlib.crc32(f"{key}|{agent}".encode()), agent


RULES: Final[Mapping[Strategy, Rule]] = {
    Strategy.PRIORITY: most_capable,
    Strategy.ROUND_ROBIN: in_turn,
    Strategy.LOAD_BASED: least_loaded,
    Strategy.WEIGHTED: by_capability,
    Strategy.AFFINITY: at_home,
}


class Outlook:
    """When each agent will be free, as far as can be foreseen, and who would finish a task first.

    The tasks are asked for in order of urgency, and each books the agent that would finish it first, now or later; what is not ready yet but will be,
    as all it needs runs or is booked, books before those that are less urgent. A booking lasts for one round of decisions: the next makes its own.

    Source: Topcuoglu, Hariri, Wu (2002), "HEFT", with insertion and without communication costs, made anew at each decision from what really happened.
    """

    def __init__(self, state: State, now_ms: int, rank: Callable[[TaskState], int]) -> None:
        self._state, self._now, self._rank = state, now_ms, rank
        up = [agent for agent in state.agents.values() if _is_up(state, agent)]
        self._agents = sorted(up, key=lambda agent: (-agent.spec.weight, agent.id))
        self._taken: dict[AgentId, list[tuple[int, int]]] = {agent.id: [] for agent in self._agents}
        self._ends: dict[TaskId, int] = {}
        self._unmet: dict[TaskId, int] = {}
        self._coming: list[tuple[int, int, int, TaskId]] = []
        self._left = LOOKS_MAX
        self._nearest = {agent.spec.speciality for agent in self._agents}
        for attempt_id, attempt in state.live_attempts():
            self.begin(state.tasks[attempt_id.task], attempt)

    @property
    def exhausted(self) -> bool:
        """Whether it has looked at as much as it may."""
        return self._left <= 0

    def begin(self, task: TaskState, attempt: AttemptState) -> None:
        """Takes in an attempt that runs, or was assigned just now."""
        agent = self._state.agents.get(attempt.agent)
        end = self._now if agent is None else self._expected_end(task, attempt, agent)
        if attempt.agent in self._taken:
            self._taken[attempt.agent].append((self._now, end))
        if task.id not in self._ends:
            self._ends[task.id] = end
            self._foresee(task)

    def take(self, task: TaskState) -> AgentState | None:
        """Returns the agent that should begin the ready task now, or None if it finishes sooner by waiting for a busy one."""
        urgency = (task.spec.priority, -self._rank(task))
        while self._coming and self._coming[0][:2] < urgency and not self.exhausted:
            self._book(self._state.tasks[heappop(self._coming)[3]])
        agent, start = self._book(task)
        return agent if agent is not None and start <= self._now and agent.task is None else None

    def _book(self, task: TaskState) -> tuple[AgentState | None, int]:
        """Books the agent that would finish the task first; of several the most capable, then one that is best at such work, then the lowest number."""
        earliest = max((self._ends.get(need, self._now) for need in task.spec.needs), default=self._now)
        work = estimate_ms(self._state, task.spec)
        best: tuple[int, int, AgentState, int] | None = None
        speciality = wanted_speciality(task.spec)
        nearest = 0 if speciality in self._nearest else 1 if "" in self._nearest else 2
        for agent in self._agents:
            duration = _duration_ms(work, agent)
            if best is not None and (earliest + duration, nearest) >= best[:2]:
                break  # the others are no faster: none of them can be sooner
            self._left -= 1
            if suits(self._state, agent.spec, task.spec):
                start = _gap(self._taken[agent.id], earliest, duration)
                far = distance(agent, speciality)
                if best is None or (start + duration, far) < best[:2]:
                    best = (start + duration, far, agent, start)
        if best is None:
            return None, self._now
        end, _, agent, start = best
        insort(self._taken[agent.id], (start, end))
        self._ends[task.id] = end
        self._foresee(task)
        return agent, start

    def _foresee(self, task: TaskState) -> None:
        """Finds what becomes ready by the end of this task."""
        for name in task.dependents:
            dependent = self._state.tasks[name]
            if dependent.status is TaskStatus.PENDING and dependent.spec.strategy is Strategy.PRIORITY and dependent.spec.replicas == 1:
                self._unmet[name] = self._unmet.get(name, dependent.unmet) - 1
                if not self._unmet[name]:
                    heappush(self._coming, (dependent.spec.priority, -self._rank(dependent), len(self._unmet), name))

    def _expected_end(self, task: TaskState, attempt: AttemptState, agent: AgentState) -> int:
        """Of what is late as much again is expected as it is late already, so that nobody waits for ever for a hung agent."""
        end = (attempt.started_ms or attempt.assigned_ms) + _duration_ms(estimate_ms(self._state, task.spec), agent)
        return end if end > self._now else self._now + max(1, self._now - end)


def is_uneven(state: State) -> bool:
    """Tells whether some agents are more capable than others, so that it matters who takes what."""
    weights = {agent.spec.weight for agent in state.agents.values()}
    return len(weights) > 1


def _is_up(state: State, agent: AgentState) -> bool:
    return agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) and state.nodes[agent.spec.node].usable


def _duration_ms(work_ms: int, agent: AgentState) -> int:
    return max(1, work_ms * 100 // max(agent.spec.weight, 1))


def _gap(taken: Sequence[tuple[int, int]], earliest: int, duration: int) -> int:
    """Returns the first moment from `earliest` on at which there is room between what is taken, which is in order of time."""
    start = earliest
    for begin, end in taken:
        if begin >= start + duration:
            break
        start = max(start, end)
    return start
