"""From state to views: pure, one function a view."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from orchestra.core.graph import topological_order
from orchestra.core.model import TASK_LIVE, AgentStatus, Lifecycle, NodeStatus, Priority, Review, TaskStatus
from orchestra.core.planning import planned_by
from orchestra.core.state import AgentState, AttemptState, NodeState, PlanState, State, TaskState, duration_key
from orchestra.costviews import ProviderLoad, Settled
from orchestra.engine.board import Board
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.node import NodeFacts
from orchestra.quantity import show_bytes, show_ms
from orchestra.scheduling.admission import Gate
from orchestra.scheduling.explain import explain
from orchestra.scheduling.rank import critical_path, estimate_ms, upward_ranks
from orchestra.views import (
    REHEARSAL_NOTICE,
    AgentCounts,
    AgentView,
    ApiLimits,
    AttemptView,
    CheckView,
    FindingView,
    JudgementView,
    NodeView,
    PlanLine,
    PlanView,
    PredictedConflict,
    ReviewView,
    StatusView,
    TaskCounts,
    TaskDetail,
    TaskView,
)

RUNNING = (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.DRAINING)
IN_PROGRESS = (*TASK_LIVE, TaskStatus.MERGING)
CLOCK_OFFSET_MS_MAX = 2_000
DISK_FREE_BYTES_MIN = 256 << 20
"""Below this a fleet of agents fills a disk within moments; nothing is started below the setting admission.disk_free_mb_min."""
QUESTION_CHARACTERS = 200
"""Of a question in a warning; `task show` has all of it."""
UNMEASURED = "-"
"""Shown where a figure is not measured; an invented zero would be taken for one."""


class Lens(msgspec.Struct, frozen=True):
    """What views need besides the state."""

    now_ms: int
    board: Board
    attempt_folder: Callable[[NodeId, AttemptId], str]
    result_folder: Callable[[TaskId], str]
    rpm_limit: int = 0
    tpm_limit: int = 0
    rpm_used: int | None = None
    """None where nothing measures it."""
    tpm_used: int | None = None
    ledger_trouble: str = ""
    gate: Gate | None = None
    """What the nodes can carry now."""
    rehearsal: bool = False
    loads: tuple[ProviderLoad, ...] = ()
    """How far the limits of each model API are used; empty where no gateway keeps them."""
    settled: Settled | None = None
    """What the gateway settled in all; None where none counted."""
    serialised: bool = True
    """Tasks that say they change the same files wait for each other."""
    absent: str = ""
    """Said first if nobody is at work and what is seen is only the ledger."""
    notice: str = ""
    """Said beside the warnings: to be known, yet nothing that is wrong."""


def status_view(state: State, lens: Lens, agents: list[AgentState] | None = None, tasks: list[TaskState] | None = None) -> StatusView:
    """Returns the figures of the whole, or of some agents and tasks."""
    chosen = list(state.agents.values()) if agents is None else agents
    said = (REHEARSAL_NOTICE if lens.rehearsal else "", lens.absent, lens.notice)
    return StatusView(
        status=state.lifecycle.value,
        health=health_word(state, lens),
        agents=AgentCounts(
            total=len(chosen),
            running=sum(agent.status in RUNNING for agent in chosen),
            idle=sum(agent.status is AgentStatus.IDLE for agent in chosen),
            busy=sum(agent.task is not None for agent in chosen),
            error=sum(agent.status is AgentStatus.ERROR for agent in chosen),
        ),
        api_limits=ApiLimits(_used(lens.rpm_used, lens.rpm_limit), _used(lens.tpm_used, lens.tpm_limit)),
        tasks=task_counts(state) if tasks is None else count_tasks(tasks),
        uptime_seconds=uptime_ms(state, lens.now_ms) // 1000,
        warnings=(*filter(None, said), *_troubles(state, lens)),
    )


def _used(used: int | None, limit: int) -> str:
    return f"{UNMEASURED if used is None else used}/{limit or UNMEASURED}"


def uptime_ms(state: State, now_ms: int) -> int:
    """Returns how long the orchestra has been up since it was last initialised."""
    down = state.lifecycle in (Lifecycle.UNINITIALIZED, Lifecycle.TERMINATED, Lifecycle.FAILED)
    return 0 if down else max(0, now_ms - state.started_ms)


def health_word(state: State, lens: Lens) -> str:
    """Returns `critical` when nothing can go on, `degraded` when something is wrong, else `healthy`."""
    agents = list(state.agents.values())
    up = sum(agent.status in RUNNING for agent in agents)
    if state.lifecycle is Lifecycle.FAILED or lens.ledger_trouble or (agents and not up and state.lifecycle is not Lifecycle.INITIALIZING):
        return "critical"
    left_alone = lens.absent and state.lifecycle not in (Lifecycle.UNINITIALIZED, Lifecycle.TERMINATED)
    return "degraded" if left_alone or _troubles(state, lens) else "healthy"


def _troubles(state: State, lens: Lens) -> list[str]:
    found = [f"nothing can be made durable: {lens.ledger_trouble}"] if lens.ledger_trouble else []
    if state.lifecycle is Lifecycle.FAILED:
        found.append(f"the orchestra failed to start: {state.reason}")
    found += [
        f"node {node.spec.id} is out of sight: {node.reason}"
        for node in state.nodes.values()
        if node.status is NodeStatus.LOST and state.agents
    ]
    found += [
        f"nothing is started on node {node.spec.id}: {node.breaker.cause}" for node in state.nodes.values() if node.breaker is not None
    ]
    if lens.gate is not None:
        found += [f"work is held back: {why}" for why in lens.gate.api_troubles]
    silent = [agent for agent in state.agents.values() if agent.status is AgentStatus.SUSPECT]
    found += [f"agent #{agent.id} does not answer and is being looked after" for agent in silent[:10]]
    wrong = [agent for agent in state.agents.values() if agent.status is AgentStatus.ERROR and agent.replaced_by is None]
    found += [f"agent #{agent.id} is out of order: {agent.reason}" for agent in wrong[:10]]
    asking = [(name, attempt) for name, attempt in state.live_attempts() if attempt.question]
    found += [f"{name.task} waits for an answer: {attempt.question[:QUESTION_CHARACTERS]}" for name, attempt in asking[:10]]
    unknown = [task for task in state.live if state.tasks[task].status is TaskStatus.UNKNOWN]
    found += [f"lost sight of {task}: {state.tasks[task].reason}" for task in unknown[:10]]
    return found


def task_counts(state: State) -> TaskCounts:
    """Returns counts over all tasks, from running totals."""
    over = state.totals.completed + state.totals.failed + state.totals.cancelled
    live = len(state.live) + len(state.merging)
    return TaskCounts(len(state.tasks) - over - live, live, state.totals.completed, state.totals.failed, state.totals.cancelled)


def count_tasks(tasks: list[TaskState]) -> TaskCounts:
    """Returns counts over some tasks."""
    by = {status: sum(task.status is status for task in tasks) for status in TaskStatus}
    live = sum(by[status] for status in IN_PROGRESS)
    ended = by[TaskStatus.COMPLETED] + by[TaskStatus.FAILED] + by[TaskStatus.CANCELLED]
    return TaskCounts(len(tasks) - live - ended, live, by[TaskStatus.COMPLETED], by[TaskStatus.FAILED], by[TaskStatus.CANCELLED])


def node_view(state: State, node: NodeState, facts: NodeFacts | None) -> NodeView:
    """Returns one node."""
    agents = state.agents_on(node.spec.id)
    up = sum(agent.status in RUNNING for agent in agents)
    warnings = node_warnings(node, facts)
    word = (
        "lost"
        if node.status is NodeStatus.LOST
        else "draining"
        if node.draining
        else "degraded"
        if warnings or up < len(agents)
        else "healthy"
    )
    return NodeView(
        name=node.spec.id,
        status=word,
        agents_running=up,
        agents_total=len(agents),
        cpu_percent=0.0 if facts is None else facts.cpu_percent,
        memory_percent=0.0 if facts is None else facts.memory_percent,
        connected=node.status is NodeStatus.READY,
        session=node.session,
        reason=node.reason,
        host=node.spec.host,
        zone=node.spec.zone,
        tags=node.spec.tags,
        max_agents=node.spec.max_agents,
        agents_busy=sum(agent.task is not None for agent in agents),
        cpus=0 if facts is None else facts.cpus,
        load_1m=0.0 if facts is None else facts.load_1m,
        memory_bytes=0 if facts is None else facts.memory_bytes,
        memory_available_bytes=0 if facts is None else facts.memory_available_bytes,
        disk_free_bytes=0 if facts is None else facts.disk_free_bytes,
        warnings=warnings,
    )


def node_warnings(node: NodeState, facts: NodeFacts | None) -> tuple[str, ...]:
    """Returns what is wrong with a node although it is connected."""
    found = [f"nothing is started here: {node.breaker.cause}"] if node.breaker is not None else []
    if facts is not None and node.status is NodeStatus.READY:
        if abs(facts.clock_offset_ms) - facts.clock_error_ms > CLOCK_OFFSET_MS_MAX:
            found.append(f"its clock is off by {show_ms(abs(facts.clock_offset_ms))}")
        if facts.memory_bytes and facts.disk_free_bytes < DISK_FREE_BYTES_MIN:
            found.append(f"only {show_bytes(facts.disk_free_bytes)} of disk are free")
    return tuple(found)


def agent_view(state: State, agent: AgentState, lens: Lens) -> AgentView:
    """Returns one agent."""
    signal = lens.board.of(agent.task, agent.attempt) if agent.task is not None else None
    return AgentView(
        agent=agent.id,
        name=agent.spec.name or f"agent-{agent.id:03}",
        kind=agent.spec.kind,
        node=agent.spec.node,
        status=agent.status.value,
        task=agent.task,
        attempt=agent.attempt,
        since_ms=agent.since_ms,
        tasks_completed=agent.completed,
        tasks_failed=agent.failed,
        busy_ms=agent.busy_ms,
        pid=agent.worker.pid if agent.worker else 0,
        reason=agent.reason,
        activity=signal.activity if signal else "",
        progress=signal.progress if signal else None,
        question=_question_to(state, agent),
        category=agent.spec.category,
        level=agent.spec.level,
        speciality=agent.spec.speciality,
        team=agent.spec.team,
    )


def _question_to(state: State, agent: AgentState) -> str:
    attempt = state.tasks[agent.task].attempt(agent.attempt) if agent.task is not None else None
    return "" if attempt is None else attempt.question


def task_view(state: State, task: TaskState, lens: Lens, rank_ms: int = 0, expected_ms: int | None = None) -> TaskView:
    """Returns one task as a line; it is expected to take as long as its estimate says, unless told otherwise."""
    spec, live = task.spec, task.live_attempts()
    shown = live or ([task.attempts[task.primary - 1]] if task.primary else task.attempts[-1:])
    signal = lens.board.of(task.id, live[0].number) if live else None
    end = task.ended_ms or (lens.now_ms if live else 0)
    return TaskView(
        task=task.id,
        description=spec.description,
        status=task.status.value,
        kind=spec.kind,
        category=spec.category,
        priority=Priority(spec.priority).name.lower(),
        plan=spec.plan,
        needs=spec.needs,
        agents=tuple(attempt.agent for attempt in shown),
        attempts=len(task.attempts),
        failures=task.failures,
        queued_ms=task.queued_ms,
        started_ms=task.started_ms,
        ended_ms=task.ended_ms,
        duration_ms=max(0, end - task.started_ms) if task.started_ms and end else 0,
        estimate_ms=estimate_ms(state, spec) if expected_ms is None else expected_ms,
        rank_ms=rank_ms,
        reason=task.reason,
        activity=signal.activity if signal else "",
        progress=signal.progress if signal else None,
        question=next((attempt.question for attempt in live if attempt.question), ""),
        origin=spec.origin,
        reviews=spec.reviews,
        warnings=spec.warnings,
    )


def attempt_view(task: TaskState, attempt: AttemptState, lens: Lens) -> AttemptView:
    """Returns one attempt."""
    outcome = attempt.outcome
    checks = () if outcome is None else outcome.checks
    usage = None if outcome is None else outcome.usage
    return AttemptView(
        number=attempt.number,
        agent=attempt.agent,
        node=attempt.node,
        status=attempt.status.value,
        outcome="" if outcome is None else outcome.kind.value,
        reason="" if outcome is None else outcome.reason,
        code=None if outcome is None else outcome.code,
        signal=None if outcome is None else outcome.signal,
        assigned_ms=attempt.assigned_ms,
        started_ms=attempt.started_ms,
        ended_ms=attempt.ended_ms,
        duration_ms=0 if outcome is None else outcome.duration_ms,
        checks=tuple(CheckView(c.name, c.passed, c.code, c.reason, c.duration_ms, c.tail) for c in checks),
        tail=() if outcome is None else outcome.tail,
        tokens=0 if usage is None else usage.tokens_input + usage.tokens_output + usage.tokens_cache_read + usage.tokens_cache_write,
        cost_usd_micros=0 if usage is None else usage.cost_usd_micros,
        rss_bytes_max=0 if outcome is None else outcome.rss_bytes_max,
        folder=lens.attempt_folder(attempt.node, AttemptId(task.id, attempt.number)),
        question=attempt.question,
        waiting_ms=attempt.waiting_ms,
        waited_ms=attempt.waited_ms,
        review=None if outcome is None or outcome.review is None else review_view(outcome.review),
        base=attempt.base,
        kept=attempt.kept or "",
    )


def review_view(review: Review) -> ReviewView:
    """Returns what a review came to."""
    findings = tuple(FindingView(each.severity, each.file, each.line, each.text) for each in review.findings)
    return ReviewView("approve" if review.approved else "refuse", review.summary, findings)


def judged_of(state: State, task: TaskState) -> tuple[JudgementView, ...]:
    """Returns what agents think of a task's criteria. What they thought of work that was sent back since is no longer said."""
    found: list[JudgementView] = []
    for name in task.spec.gates:
        judge = state.tasks[name]
        outcome = judge.result() if judge.spec.reviews == task.id and judge.over else None
        if outcome is not None and outcome.review is not None:
            found += [JudgementView(j.criterion, j.met, j.evidence, name, judge.spec.kind) for j in outcome.review.judgements]
    return tuple(found)


def task_detail(state: State, task: TaskState, lens: Lens) -> TaskDetail:
    """Returns everything about one task."""
    touched = state.touched.get(task.id, {})
    return TaskDetail(
        task=task_view(state, task, lens),
        explain=explain(state, task.id, lens.now_ms, lens.gate, serialised=lens.serialised),
        attempts=tuple(attempt_view(task, attempt, lens) for attempt in task.attempts),
        primary_attempt=task.primary,
        success_criteria=task.spec.criteria,
        retries=task.spec.retries,
        files=task.spec.files,
        results=lens.result_folder(task.id),
        replicas=task.spec.replicas,
        workspace=task.spec.workspace,
        isolated=task.spec.isolated,
        branch=task.branch,
        commit=task.commit,
        planned=planned_by(state, task),
        reviewed_by=tuple(gate for gate in task.spec.gates if state.tasks[gate].spec.reviews is not None),
        sent_back=task.sent_back,
        judged=judged_of(state, task),
        touched=tuple(sorted({path for known in touched.values() for path in known.paths})),
        conflicts_predicted=tuple(
            PredictedConflict(number, other, paths) for number, known in touched.items() for other, paths in known.shared.items()
        ),
    )


def plan_view(state: State, plan: PlanState, lens: Lens) -> PlanView:
    """Returns a plan with all its tasks, in topological order."""
    specs = {task: state.tasks[task].spec for task in plan.tasks}
    ordered = topological_order(specs, known=state.tasks)
    expected = _expected(state, plan)
    ranks = upward_ranks(ordered, lambda spec: expected[spec.id])
    return PlanView(
        plan=plan.id,
        name=plan.name,
        status=plan.status.value,
        source=plan.source,
        submitted_ms=plan.submitted_ms,
        closed_ms=plan.closed_ms,
        now_ms=lens.now_ms,
        tasks=tuple(task_view(state, state.tasks[spec.id], lens, ranks[spec.id], expected[spec.id]) for spec in ordered),
        critical_path=tuple(critical_path(specs, ranks)),
    )


def _expected(state: State, plan: PlanState) -> dict[TaskId, int]:
    """Returns how long each task is expected to take.

    A task that was never measured takes as much longer or shorter than its author says as those of the plan that are completed did.
    """
    specs = [state.tasks[task].spec for task in plan.tasks]
    done = [spec for spec in specs if state.tasks[spec.id].status is TaskStatus.COMPLETED and spec.estimate_ms]
    said = sum(spec.estimate_ms for spec in done)
    took = sum(estimate_ms(state, spec) for spec in done)
    return {
        spec.id: spec.estimate_ms * took // said if said and duration_key(spec) not in state.durations else estimate_ms(state, spec)
        for spec in specs
    }


def plan_line(plan: PlanState) -> PlanLine:
    """Returns a plan as a line."""
    return PlanLine(plan.id, plan.name, plan.status.value, len(plan.tasks), plan.open, plan.failed, plan.submitted_ms, plan.closed_ms)
