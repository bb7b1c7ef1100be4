"""The queue of ready tasks and the decision who gets what, made anew after every batch of events.

Order: priority first; within a priority the plan with the fewest running attempts (fairness); within a plan the longest remaining path, then
the order of submission. In a fleet of unequal agents a task may be passed over: it finishes sooner on a better agent that is still busy. A queued task can always be overtaken by a more urgent one; a running one is never touched.

The queue is derived from the state (`rebuild`) and follows it (`note`); entries that no longer hold are dropped when they come up. One decision costs
time in the number of free agents and of distinct needs (kind, node), not in the number of waiting tasks.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from typing import Final

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.fleet import suits
from orchestra.core.model import AgentStatus, Lifecycle, Strategy, TaskStatus
from orchestra.core.planning import in_order
from orchestra.core.state import AgentState, State, TaskState
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.scheduling.admission import Gate, model_of
from orchestra.scheduling.overlaps import overlap_of
from orchestra.scheduling.place import RULES, Moment, Outlook, affinity_key, is_uneven
from orchestra.scheduling.rank import estimate_ms, upward_ranks

Pool = tuple[str, NodeId | None, str, tuple[str, ...], tuple[str, ...], str, str]
"""What a task asks of an agent: kind, node, the key it has affinity to, tags, programs; its category, which decides whom it may borrow; and the
model it names, which decides whether the model API has room for it. Where the first of a key has to wait, so do the others."""
Entry = tuple[int, int, TaskId]
"""Negated rank, order of arrival, task."""

LENT_PERCENT_MAX: Final = 80
"""Share of the agents meant for one category that tasks of others may have at a time. The rest are kept for their own: a flood in one category
starves no other."""

ASSIGNING = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)


class Scheduler:
    """Ready tasks by pool, priority and plan."""

    def __init__(self) -> None:
        self._heaps: dict[Pool, dict[int, dict[PlanId | None, list[Entry]]]] = {}
        self._ranks: dict[TaskId, int] = {}
        self._arrivals = 0
        self._divided = False
        """Whether some agents are meant for one category only."""
        self._last: AgentId = AgentId(0)
        self.serialise_overlaps = True
        """Whether tasks that say they change the same files wait for each other."""
        self._behind: dict[TaskId, list[tuple[Pool, int, PlanId | None, Entry]]] = {}
        """Ready tasks that wait for one at work, by that one. They are in no heap, and cost nothing until it is over."""

    def rebuild(self, state: State) -> None:
        """Forgets everything and takes it from the state."""
        self._heaps.clear()
        self._ranks.clear()
        self._behind.clear()
        self._divided = any(agent.spec.category for agent in state.agents.values())
        for plan in state.plans.values():
            if plan.open:
                self._rank_plan(state, plan.id)
        for task in state.queued:
            self._push(state, state.tasks[task])

    def note(self, state: State, events: Iterable[e.Event]) -> None:
        """Takes in what just happened; `state` already includes it."""
        queued: list[TaskId] = []
        newly_divided = False
        moved: list[TaskId] = []
        for event in events:
            if isinstance(event, e.TaskQueued):
                queued.append(event.task)
            elif isinstance(event, e.TaskMoved):
                moved.append(event.task)
            elif isinstance(event, e.AgentAdded):
                newly_divided = newly_divided or (not self._divided and bool(event.agent.category))
            elif isinstance(event, e.PlanSubmitted | e.PlanReopened | e.PlanExtended):
                if event.plan is not None:
                    self._rank_plan(state, event.plan)
            elif isinstance(event, e.TaskSentBack) and (plan := state.tasks[event.task].spec.plan) is not None:
                self._rank_plan(state, plan)
            elif isinstance(event, e.TaskCompleted | e.TaskFailed | e.TaskCancelled):
                self._ranks.pop(event.task, None)
                self._let_go(event.task)
            elif isinstance(event, e.TaskRetryScheduled | e.WorkTouched | e.AttemptEnded):
                self._let_go(event.task)  # also of what it has changed no more
        if newly_divided or not set(moved) <= set(queued):
            self.rebuild(state)  # what is queued already has to be told apart by category too, or waits for another kind now
            return
        for task in queued:
            if task in state.queued:
                self._push(state, state.tasks[task])

    def rank_ms(self, state: State, task: TaskState) -> int:
        """Returns the length of the longest remaining path from the task on, in milliseconds."""
        return self._ranks.get(task.id) or estimate_ms(state, task.spec)

    def assignments(self, state: State, now_ms: int, gate: Gate | None = None) -> Iterator[c.Assign]:
        """Yields one order after the other. The caller folds each before it asks for the next."""
        if not state.queued or not may_assign(state):
            return
        skipped: list[tuple[Pool, int, PlanId | None, Entry]] = []
        held: set[Pool] = set()
        free = [agent for agent in state.agents.values() if is_free(state, agent)]
        outlook = self._outlook(state, now_ms) if free else None
        table = _Table(state, free, gate)
        while free:
            found = self._next(state, free, held)
            if found is None:
                break
            pool, priority, plan, entry = found
            task = state.tasks[entry[2]]
            overlap = overlap_of(state, task) if self.serialise_overlaps and task.spec.files else None
            if overlap is not None:
                self._behind.setdefault(overlap.task, []).append(found)
                continue
            ahead = outlook if _may_wait(task) and not (outlook is not None and outlook.exhausted) else None
            chosen = None if ahead is None else _first_to_finish(ahead, task, table)
            if chosen is None:
                chosen = self._place(task, table, now_ms)
            if chosen:
                self._last = chosen[-1]
                yield c.Assign(task.id, chosen)
                free = table.took(task, chosen)
                if outlook is not None and ahead is None:
                    for attempt in task.live_attempts():
                        outlook.begin(task, attempt)
            else:
                skipped.append(found)
                if ahead is None and not (gate is not None and gate.held_alone(task.spec)):
                    held.add(pool)  # it waits for more agents, for which what is free is kept, or for the one it is at home with
        for pool, priority, plan, entry in skipped:
            self._put(pool, priority, plan, entry)

    def _outlook(self, state: State, now_ms: int) -> Outlook | None:
        """Returns what to look ahead with, or None where all agents are equal: then who is free first is as good as anybody."""
        if not self._heaps or self._divided or not is_uneven(state):
            return None
        return Outlook(state, now_ms, lambda task: self.rank_ms(state, task))

    def _place(self, task: TaskState, table: _Table, now_ms: int) -> tuple[AgentId, ...]:
        """Returns as many agents as the task has replicas, or none."""
        able = table.able(task)
        chosen: list[AgentId] = []
        last = self._last
        while len(chosen) < task.spec.replicas and able:
            agent = RULES[task.spec.strategy](task, able, Moment(table.state, now_ms, last, table.used))
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
            if pool in held or not any(_fits(state, agent, pool) for agent in free):
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
        home = affinity_key(spec) if spec.strategy is Strategy.AFFINITY else ""
        pool = (spec.kind, spec.node, home, spec.tags, spec.programs, spec.category if self._divided else "", model_of(spec))
        self._put(pool, spec.priority, spec.plan, (-self.rank_ms(state, task), self._arrivals, task.id))

    def _put(self, pool: Pool, priority: int, plan: PlanId | None, entry: Entry) -> None:
        heappush(self._heaps.setdefault(pool, {}).setdefault(priority, {}).setdefault(plan, []), entry)

    def _let_go(self, task: TaskId) -> None:
        """A task is not at work any more, or on something else: those that waited for it are looked at again."""
        for waiting in self._behind.pop(task, ()):
            self._put(*waiting)

    def _rank_plan(self, state: State, plan: PlanId) -> None:
        specs = [state.tasks[task].spec for task in in_order(state, state.plans[plan]) if not state.tasks[task].over]
        self._ranks.update(upward_ranks(specs, lambda spec: estimate_ms(state, spec)))


def _may_wait(task: TaskState) -> bool:
    return task.spec.strategy is Strategy.PRIORITY and task.spec.replicas == 1


def _first_to_finish(outlook: Outlook, task: TaskState, table: _Table) -> tuple[AgentId, ...] | None:
    """Returns whom the outlook has for the task, nobody if waiting is better, or None if its choice may not take it: then others are asked."""
    agent = outlook.take(task)
    if agent is None:
        return ()
    return (agent.id,) if is_free(table.state, agent) and table.admits(agent, task) else None


class _Table:
    """Who is free in this round of assignments, and how much of it each task may have."""

    def __init__(self, state: State, free: list[AgentState], gate: Gate | None) -> None:
        self.state = state
        self._free = free
        self._gate = gate
        self.used: dict[NodeId, float] = {}
        self._share: dict[NodeId, float] = {}
        self._kept: dict[str, int] = {}
        if len(state.nodes) > 1:
            self._count_used()
        if any(agent.spec.category for agent in free):
            self._count_kept()

    def _count_used(self) -> None:
        for name, node in self.state.nodes.items():
            agents = self.state.agents_on(name)
            self._share[name] = 100 / (max(1, len(agents)) * max(1, node.spec.weight))
            self.used[name] = sum(agent.task is not None for agent in agents) * self._share[name]

    def _count_kept(self) -> None:
        up = [agent.spec.category for agent in self.state.agents.values() if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
        for category in dict.fromkeys(up):
            self._kept[category] = up.count(category) * (100 - LENT_PERCENT_MAX) // 100

    def able(self, task: TaskState) -> list[AgentState]:
        """Returns the free agents that may take the task now: those meant for its category; where there are none, those that can be lent."""
        found = [agent for agent in self._free if suits(self.state, agent.spec, task.spec) and self.admits(agent, task)]
        category = task.spec.category
        own = [agent for agent in found if agent.spec.category in ("", category)]
        if len(own) >= task.spec.replicas or not self._kept:
            return own
        free: dict[str, int] = {}
        for agent in self._free:
            free[agent.spec.category] = free.get(agent.spec.category, 0) + 1
        for agent in found:
            other = agent.spec.category
            if other not in ("", category) and free[other] > self._kept[other]:
                free[other] -= 1
                own.append(agent)
        return own

    def admits(self, agent: AgentState, task: TaskState) -> bool:
        """Tells whether the agent's node and the model API can carry the task."""
        return self._gate is None or not self._gate.refusal(agent.spec, task.spec)

    def took(self, task: TaskState, chosen: tuple[AgentId, ...]) -> list[AgentState]:
        """Takes note of an assignment that has been folded; returns who is free now."""
        on_trial = False
        for number in chosen:
            node = self.state.agents[number].spec.node
            on_trial = on_trial or self.state.nodes[node].breaker is not None
            if self._gate is not None:
                self._gate.took(node, task.spec)
            if node in self.used:
                self.used[node] += self._share[node]
        self._free = [agent for agent in self._free if agent.id not in chosen and (not on_trial or is_free(self.state, agent))]
        return self._free


def may_assign(state: State) -> bool:
    """Tells whether new attempts may start at all in this phase of the orchestra's life."""
    if state.lifecycle is Lifecycle.DRAINING and state.shutdown is not None:
        in_time = state.at_ms < state.shutdown.deadline_ms  # what is stopped for lack of time must not be started again
        return state.shutdown.drain and state.shutdown.graceful and in_time
    return state.lifecycle in ASSIGNING


def is_free(state: State, agent: AgentState) -> bool:
    """Tells whether the agent can be given a task this moment."""
    return agent.status is AgentStatus.IDLE and agent.task is None and state.nodes[agent.spec.node].usable


def _fits(state: State, agent: AgentState, pool: Pool) -> bool:
    kind, node, _, tags, programs, _, _ = pool
    if agent.spec.kind not in ("any", kind) or node not in (None, agent.spec.node):
        return False
    if not tags and not programs:
        return True
    there = state.nodes[agent.spec.node]
    return set(tags) <= set(there.spec.tags) and set(programs) <= set(there.programs)


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
