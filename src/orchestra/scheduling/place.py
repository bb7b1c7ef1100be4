"""Which free agent takes a task: five interchangeable rules, each a function of the free agents.

A rule gets the free agents that can run the task, in order of their numbers, and names one, or None to let the task wait for a better moment.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Final

import msgspec

from orchestra.core.decide import suits
from orchestra.core.model import AgentStatus, Strategy
from orchestra.core.state import AgentState, State, TaskState
from orchestra.ids import AgentId

AFFINITY_WAIT_MS: Final = 30_000
"""How long a task waits for the agent it belongs to before any other may take it; about what a coding agent needs to read a project anew."""


class Moment(msgspec.Struct, frozen=True):
    """What a rule may know besides the free agents."""

    state: State
    now_ms: int
    last: AgentId
    """The agent that was given the previous task; 0 at the start."""


Rule = Callable[[TaskState, Sequence[AgentState], Moment], AgentState | None]


def most_capable(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The highest weight; among equals one meant for the category, then the lowest number."""
    return min(free, key=lambda agent: (-agent.spec.weight, agent.spec.category not in ("", task.spec.category), agent.id))


def in_turn(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The next number after the last one used, going round."""
    return min(free, key=lambda agent: (agent.id <= moment.last, agent.id))


def least_loaded(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The one that has worked the least so far."""
    return min(free, key=lambda agent: (agent.busy_ms, agent.completed + agent.failed, agent.id))


def by_capability(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState:
    """The one furthest behind its share, shares being in proportion to weight."""
    return min(free, key=lambda agent: ((agent.completed + agent.failed + 1) * 100 // max(agent.spec.weight, 1), agent.id))


def at_home(task: TaskState, free: Sequence[AgentState], moment: Moment) -> AgentState | None:
    """The agent the key belongs to by rendezvous hashing over all able agents, free or not; another only after a wait.

    Rendezvous hashing (Thaler, Ravishankar 1998) moves only the keys of agents that come or go.
    """
    key = task.spec.affinity or str(task.spec.plan or task.id)
    able = [
        agent
        for agent in moment.state.agents.values()
        if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) and suits(agent.spec.kind, agent.spec.node, task.spec)
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
