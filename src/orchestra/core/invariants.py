"""What must hold after every event, whatever happened. The names are used in tests, in the simulated world and in bug reports.

Rules of this file: a check reads, raises `InvariantBroken` with the invariant's name, and costs time in the size of the state; production does not run
it, every test does.
"""

from __future__ import annotations

from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus, OutcomeKind, TaskStatus
from orchestra.core.state import State, TaskState
from orchestra.errors import InvariantBroken

HEARD = (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.SUSPECT)
"""Slots that have a worker, on a node that is in sight."""
DOUBTED = (AgentStatus.SUSPECT, AgentStatus.DRAINING, AgentStatus.STARTING)
"""Slots whose worker may be silent: one that works, one that leaves, one that is to make room for another."""


def check_invariants(state: State) -> None:
    """Checks all of them.

    Raises:
        InvariantBroken: One does not hold; the message begins with its name.
    """
    for task in state.tasks.values():
        check_one(task)
        check_needs(state, task)
        check_indexes(state, task)
    check_capacity(state)
    check_plans(state)
    check_agents(state)
    check_nodes(state)


def check_one(task: TaskState) -> None:
    """INV-ONE: attempt numbers are dense, at most one success counts, and a completed task has exactly that."""
    _require(
        [attempt.number for attempt in task.attempts] == list(range(1, len(task.attempts) + 1)), "INV-FENCE", task.id, "attempts not dense"
    )
    for attempt in task.attempts:
        _require(attempt.live == (attempt.outcome is None), "INV-ONE", task.id, f"attempt {attempt.number} ended without outcome or twice")
    if task.status is TaskStatus.COMPLETED:
        winner = task.attempt(task.primary)
        good = winner is not None and winner.outcome is not None and winner.outcome.kind is OutcomeKind.DONE
        _require(good, "INV-ONE", task.id, "completed without a verified attempt")
        passed = winner is not None and winner.outcome is not None and all(check.passed for check in winner.outcome.checks)
        _require(passed, "INV-ONE", task.id, "completed with a failed check")
    else:
        _require(task.primary == 0, "INV-ONE", task.id, "has a primary attempt and is not completed")
    if task.over:
        _require(not task.live_attempts(), "INV-ONE", task.id, "is over and has a live attempt")


def check_needs(state: State, task: TaskState) -> None:
    """INV-DAG: nothing was started before all its needs were completed. What a review opened again may have been, before that."""
    unmet = sum(state.tasks[need].status is not TaskStatus.COMPLETED for need in task.spec.needs)
    _require(task.unmet == unmet, "INV-DAG", task.id, f"counts {task.unmet} unmet needs, has {unmet}")
    waits_again = task.status in (TaskStatus.PENDING, TaskStatus.CANCELLED) and (task.sent_back or task.spec.reviews is not None)
    if (task.attempts and not waits_again) or task.status is TaskStatus.QUEUED:
        _require(unmet == 0, "INV-DAG", task.id, "was queued or started with unmet needs")


def check_indexes(state: State, task: TaskState) -> None:
    """INV-PROJ: the indexes say the same as the tasks."""
    live = bool(task.live_attempts())
    _require((task.id in state.queued) == (task.status is TaskStatus.QUEUED), "INV-PROJ", task.id, "queued index differs")
    _require((task.id in state.waiting) == (task.status is TaskStatus.RETRY_WAIT), "INV-PROJ", task.id, "waiting index differs")
    _require((task.id in state.live) == live, "INV-PROJ", task.id, "live index differs")
    merging = task.status is TaskStatus.MERGING
    _require(task.id not in state.touched or live or merging, "INV-PROJ", task.id, "something is known to be changed that is over")
    _require((task.id in state.merging) == merging == bool(task.merging), "INV-PROJ", task.id, "merging index differs")


def check_capacity(state: State) -> None:
    """INV-CAP: an agent has at most one attempt, and both sides say so; a node has no more agents than it takes."""
    for agent in state.agents.values():
        if agent.task is None:
            _require(agent.status is not AgentStatus.BUSY, "INV-CAP", f"agent {agent.id}", "busy with nothing")
            continue
        attempt = state.tasks[agent.task].attempt(agent.attempt)
        _require(
            attempt is not None and attempt.live and attempt.agent == agent.id,
            "INV-CAP",
            f"agent {agent.id}",
            "has an attempt that is not its own",
        )
    for attempt_id, attempt in state.live_attempts():
        holder = state.agents.get(attempt.agent)
        fits = holder is not None and holder.task == attempt_id.task and holder.attempt == attempt_id.number
        _require(fits, "INV-CAP", str(attempt_id), "is live on an agent that does not have it")
    for node in state.nodes.values():
        _require(len(state.agents_on(node.spec.id)) <= node.spec.max_agents, "INV-CAP", node.spec.id, "has more agents than it takes")


def check_plans(state: State) -> None:
    """INV-PROJ: a plan's counts are those of its tasks."""
    for plan in state.plans.values():
        tasks = [state.tasks[task] for task in plan.tasks]
        _require(plan.open == sum(not task.over for task in tasks), "INV-PROJ", plan.id, "open count differs")
        _require(plan.failed == sum(task.status is TaskStatus.FAILED for task in tasks), "INV-PROJ", plan.id, "failed count differs")


def check_agents(state: State) -> None:
    """INV-AGENT: a slot is where its status says: with a node, a worker, a doubt about it, something to stay for."""
    for agent in state.agents.values():
        where, node = f"agent {agent.id}", state.nodes.get(agent.spec.node)
        _require(node is not None, "INV-AGENT", where, f"is on node {agent.spec.node}, which is gone")
        if agent.status in HEARD:
            _require(agent.worker is not None, "INV-AGENT", where, f"is {agent.status.value} without a worker")
            ready = node is not None and node.status is NodeStatus.READY
            _require(ready, "INV-AGENT", where, f"is {agent.status.value} on a node that is out of sight")
        if agent.suspicion is None:
            _require(agent.status is not AgentStatus.SUSPECT, "INV-AGENT", where, "is suspect of nothing")
        else:
            _require(agent.status in DOUBTED, "INV-AGENT", where, f"is {agent.status.value} and under suspicion")
            _require(agent.worker is not None, "INV-AGENT", where, "has no worker that could be under suspicion")
        if agent.status is AgentStatus.DRAINING:
            _require(agent.worker is not None or agent.task is not None, "INV-AGENT", where, "leaves and has nothing left to wait for")


def check_nodes(state: State) -> None:
    """INV-NODE: a tripped breaker tries one that is there, and what is still to be added waits only while the fleet is scaled."""
    for node in state.nodes.values():
        breaker = node.breaker
        if breaker is None or breaker.canary is None:
            continue
        tried = state.agents.get(breaker.canary)
        _require(breaker.probing, "INV-NODE", node.spec.id, f"has agent {breaker.canary} on trial before its time")
        _require(
            tried is not None and tried.spec.node == node.spec.id, "INV-NODE", node.spec.id, f"tries agent {breaker.canary}, which is gone"
        )
    if state.lifecycle is not Lifecycle.SCALING:
        _require(not state.scale_queue, "INV-NODE", "the fleet", f"has slots to add while it is {state.lifecycle.value}")
    for spec in state.scale_queue:
        _require(spec.id not in state.agents, "INV-NODE", f"agent {spec.id}", "is there and has still to be added")


def _require(holds: bool, name: str, where: str, what: str) -> None:
    if not holds:
        raise InvariantBroken(f"{name}: {where}: {what}")
