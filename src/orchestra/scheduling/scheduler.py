"""The queue of ready tasks and the decision who gets what, made anew after every batch of events.

Order: priority first; within a priority the plan with the fewest running attempts (fairness); within a plan the longest remaining path, then
the order of submission. In a fleet of unequal agents a task may be passed over: it finishes sooner on a better agent that is still busy. A queued task can always be overtaken by a more urgent one; a running one is never touched.

The queue is derived from the state (`rebuild`) and follows it (`note`); entries that no longer hold are dropped when they come up. One decision costs
time in the number of free agents and of distinct needs (kind, node), not in the number of waiting tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.decide import suits
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus, Strategy, TaskStatus
from orchestra.core.state import AgentState, State, TaskState
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.scheduling.place import RULES, Moment, Outlook, affinity_key, is_uneven
from orchestra.scheduling.rank import estimate_ms, upward_ranks

Pool = tuple[str, NodeId | None, str]
"""What a task asks of an agent: kind, node, and the key it has affinity to. Where the first of a key has to wait, so do the others."""
Entry = tuple[int, int, TaskId]
"""Negated rank, order of arrival, task."""

ASSIGNING = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)


class Scheduler:
    """Ready tasks by pool, priority and plan."""

    def __init__(self) -> None:
        self._heaps: dict[Pool, dict[int, dict[PlanId | None, list[Entry]]]] = {}
        self._ranks: dict[TaskId, int] = {}
        self._arrivals = 0
        self._last: AgentId = AgentId(0)

    def rebuild(self, state: State) -> None:
        """Forgets everything and takes it from the state."""
        self._heaps.clear()
        self._ranks.clear()
        for plan in state.plans.values():
            if plan.open:
                self._rank_plan(state, plan.id)
        for task in state.queued:
            self._push(state, state.tasks[task])

    def note(self, state: State, events: Iterable[e.Event]) -> None:
        """Takes in what just happened; `state` already includes it."""
        queued: list[TaskId] = []
        for event in events:
            if isinstance(event, e.TaskQueued):
                queued.append(event.task)
            elif isinstance(event, e.PlanSubmitted | e.PlanReopened):
                self._rank_plan(state, event.plan)
            elif isinstance(event, e.TaskCompleted | e.TaskFailed | e.TaskCancelled):
                self._ranks.pop(event.task, None)
        for task in queued:
            if task in state.queued:
                self._push(state, state.tasks[task])

    def rank_ms(self, state: State, task: TaskState) -> int:
        """Returns the length of the longest remaining path from the task on, in milliseconds."""
        return self._ranks.get(task.id) or estimate_ms(state, task.spec)

    def assignments(self, state: State, now_ms: int) -> Iterator[c.Assign]:
        """Yields one order after the other. The caller folds each before it asks for the next."""
        if not state.queued or not may_assign(state):
            return
        skipped: list[tuple[Pool, int, PlanId | None, Entry]] = []
        held: set[Pool] = set()
        free = [agent for agent in state.agents.values() if is_free(state, agent)]
        outlook = self._outlook(state, now_ms) if free else None
        while free:
            found = self._next(state, free, held)
            if found is None:
                break
            pool, priority, plan, entry = found
            task = state.tasks[entry[2]]
            ahead = outlook if _may_wait(task) and not (outlook is not None and outlook.exhausted) else None
            chosen = self._place(state, task, free, now_ms) if ahead is None else _first_to_finish(ahead, task)
            if chosen:
                self._last = chosen[-1]
                free = [agent for agent in free if agent.id not in chosen]
                yield c.Assign(task.id, chosen)
                if outlook is not None and ahead is None:
                    for attempt in task.live_attempts():
                        outlook.begin(task, attempt)
            else:
                skipped.append(found)
                if ahead is None:
                    held.add(pool)  # it waits for more agents, for which what is free is kept, or for the one it is at home with
        for pool, priority, plan, entry in skipped:
            self._put(pool, priority, plan, entry)

    def _outlook(self, state: State, now_ms: int) -> Outlook | None:
        """Returns what to look ahead with, or None where all agents are equal: then who is free first is as good as anybody."""
        if not self._heaps or not is_uneven(state):
            return None
        return Outlook(state, now_ms, lambda task: self.rank_ms(state, task))

    def _place(self, state: State, task: TaskState, free: list[AgentState], now_ms: int) -> tuple[AgentId, ...]:
        """Returns as many agents as the task has replicas, or none."""
        able = [agent for agent in free if suits(agent.spec.kind, agent.spec.node, task.spec)]
        chosen: list[AgentId] = []
        last = self._last
        while len(chosen) < task.spec.replicas and able:
            agent = RULES[task.spec.strategy](task, able, Moment(state, now_ms, last))
            if agent is None:
                return ()
            chosen.append(agent.id)
            able.remove(agent)
            last = agent.id
        return tuple(chosen) if len(chosen) == task.spec.replicas else ()

    def _next(self, state: State, free: list[AgentState], held: set[Pool]) -> tuple[Pool, int, PlanId | None, Entry] | None:
        """Takes the most urgent task that some free agent could run."""
        best: tuple[tuple[int, int, int, int], Pool, int, PlanId | None] | None = None
        running: dict[PlanId | None, int] | None = None
        for pool, priorities in list(self._heaps.items()):
            if not priorities:
                del self._heaps[pool]
            if pool in held or not any(_fits(agent, pool) for agent in free):
                continue
            for priority in sorted(priorities):
                plans = priorities[priority]
                self._prune(state, plans)
                if not plans:
                    del priorities[priority]
                    continue
                if running is None and len(plans) > 1:
                    running = _running_by_plan(state)
                for plan, heap in plans.items():
                    key = (priority, running.get(plan, 0) if running else 0, heap[0][0], heap[0][1])
                    if best is None or key < best[0]:
                        best = (key, pool, priority, plan)
                break
        if best is None:
            return None
        _, pool, priority, plan = best
        plans = self._heaps[pool][priority]
        entry = heappop(plans[plan])
        if not plans[plan]:
            del plans[plan]
        return pool, priority, plan, entry

    def _prune(self, state: State, plans: dict[PlanId | None, list[Entry]]) -> None:
        for plan in list(plans):
            heap = plans[plan]
            while heap and heap[0][2] not in state.queued:
                heappop(heap)
            if not heap:
                del plans[plan]

    def _push(self, state: State, task: TaskState) -> None:
        spec = task.spec
        self._arrivals += 1
        pool = (spec.kind, spec.node, affinity_key(spec) if spec.strategy is Strategy.AFFINITY else "")
        self._put(pool, spec.priority, spec.plan, (-self.rank_ms(state, task), self._arrivals, task.id))

    def _put(self, pool: Pool, priority: int, plan: PlanId | None, entry: Entry) -> None:
        heappush(self._heaps.setdefault(pool, {}).setdefault(priority, {}).setdefault(plan, []), entry)

    def _rank_plan(self, state: State, plan: PlanId) -> None:
        specs = [state.tasks[task].spec for task in state.plans[plan].tasks if not state.tasks[task].over]
        self._ranks.update(upward_ranks(specs, lambda spec: estimate_ms(state, spec)))


def _may_wait(task: TaskState) -> bool:
    return task.spec.strategy is Strategy.PRIORITY and task.spec.replicas == 1


def _first_to_finish(outlook: Outlook, task: TaskState) -> tuple[AgentId, ...]:
    agent = outlook.take(task)
    return () if agent is None else (agent.id,)


def may_assign(state: State) -> bool:
    """Tells whether new attempts may start at all in this phase of the orchestra's life."""
    if state.lifecycle is Lifecycle.DRAINING and state.shutdown is not None:
        in_time = state.at_ms < state.shutdown.deadline_ms  # what is stopped for lack of time must not be started again
        return state.shutdown.drain and state.shutdown.graceful and in_time
    return state.lifecycle in ASSIGNING


def is_free(state: State, agent: AgentState) -> bool:
    """Tells whether the agent can be given a task this moment."""
    return agent.status is AgentStatus.IDLE and agent.task is None and state.nodes[agent.spec.node].status is NodeStatus.READY


def _fits(agent: AgentState, pool: Pool) -> bool:
    kind, node, _ = pool
    return agent.spec.kind in ("any", kind) and node in (None, agent.spec.node)


def _running_by_plan(state: State) -> dict[PlanId | None, int]:
    count: dict[PlanId | None, int] = {}
    for task in state.live:
        plan = state.tasks[task].spec.plan
        count[plan] = count.get(plan, 0) + 1
    return count


def work_by_priority(state: State) -> dict[int, int]:
    """Returns the milliseconds of work in all tasks that are queued or run, by priority. Costs time in their number."""
    work: dict[int, int] = {}
    for each in (*state.queued, *state.live):
        spec = state.tasks[each].spec
        work[spec.priority] = work.get(spec.priority, 0) + estimate_ms(state, spec)
    return work


def eta_ms(state: State, scheduler: Scheduler, task: TaskState, work_ahead: Mapping[int, int] | None = None) -> int:
    """Returns a rough number of milliseconds until the task is over: its needs' and the queue's work over the agents, plus its own time.

    `work_ahead` is what `work_by_priority` says; who asks for many tasks of one moment works it out once.
    """
    agents = max(1, sum(agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) for agent in state.agents.values()))
    own = estimate_ms(state, task.spec)
    by_priority = work_by_priority(state) if work_ahead is None else work_ahead
    work = sum(ms for priority, ms in by_priority.items() if priority <= task.spec.priority)
    work -= own if task.id in state.queued or task.id in state.live else 0
    before = sum(
        estimate_ms(state, state.tasks[need].spec) for need in task.spec.needs if state.tasks[need].status is not TaskStatus.COMPLETED
    )
    return own + max(work // agents, before)
