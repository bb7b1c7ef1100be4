"""The only fold: what each event does to the state, live and on replay.

Rules of this file: total (every event of `AnyEvent` has an entry in `FOLDS`, a test sees to it), no decisions, no lookups outside the state.
The state is changed in place, because a million events have to be folded in seconds; nobody else changes it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from orchestra.core import events as e
from orchestra.core import transitions as t
from orchestra.core.kinds import KIND_FOLDS, note_end
from orchestra.core.merging import fold_work_conflicted, fold_work_let_go, fold_work_merged
from orchestra.core.model import OutcomeKind, TaskStatus
from orchestra.core.planning import fold_needs_added, fold_plan_extended
from orchestra.core.review import fold_review_refused, fold_sent_back
from orchestra.core.sessions import note_session
from orchestra.core.state import (
    AgentState,
    Answer,
    AttemptState,
    Breaker,
    NodeState,
    PlanState,
    Removed,
    Shutdown,
    State,
    Suspicion,
    TaskState,
    duration_key,
)
from orchestra.core.touched import fold_conflict_predicted, fold_work_touched, forget_touched, keep_touched
from orchestra.errors import InvariantBroken
from orchestra.ids import TaskId

ANSWERS_MAX: Final = 10_000
"""Answers kept for repeated command ids; the oldest go first. A parent that repeats a command does so within minutes."""

FOOTPRINT_DECAY_BITS: Final = 4
"""An attempt that used less takes a sixteenth off what is counted for its kind: one large one is remembered for some time, not for ever."""


def evolve(state: State, event: e.Event, seq: int, at_ms: int) -> None:
    """Folds one event into the state.

    Raises:
        InvariantBroken: The event cannot follow what came before it.
    """
    if seq != state.seq + 1:
        raise InvariantBroken(f"event {seq} cannot follow event {state.seq}")
    FOLDS[type(event)](state, event, at_ms)
    state.seq = seq
    state.at_ms = at_ms


# --- orchestra -------------------------------------------------------------------------------------------------------


def _coordinator_started(s: State, ev: e.CoordinatorStarted, at: int) -> None:
    s.term = ev.term


def _init_started(s: State, ev: e.InitStarted, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)
    s.name, s.phase, s.started_ms, s.reason, s.shutdown = ev.name, ev.phase, at, "", None


def _init_completed(s: State, ev: e.InitCompleted, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)


def _init_failed(s: State, ev: e.InitFailed, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)
    s.reason = ev.reason


def _work_began(s: State, ev: e.WorkBegan, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)


def _scale_started(s: State, ev: e.ScaleStarted, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)
    s.scale_target, s.scale_queue = ev.target, list(ev.additions)


def _scale_completed(s: State, ev: e.ScaleCompleted, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)


def _shutdown_started(s: State, ev: e.ShutdownStarted, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)
    s.shutdown = Shutdown(ev.drain, ev.graceful, ev.deadline_ms)
    s.scale_queue.clear()


def _terminated(s: State, ev: e.Terminated, at: int) -> None:
    s.lifecycle = t.move(t.LIFECYCLE, s.lifecycle, ev)
    s.shutdown = None
    s.agents.clear()
    s.kinds.clear()  # what failed may be another one after the next start
    for node in s.nodes.values():
        node.breaker, node.futile = None, 0


# --- nodes and agents ------------------------------------------------------------------------------------------------


def _node_added(s: State, ev: e.NodeAdded, at: int) -> None:
    known = s.nodes.get(ev.node.id)
    if known is None:
        before = s.removed.pop(ev.node.id, None)
        offset = before.journal_offset if before is not None and before.spec.machine == ev.node.machine else 0
        s.nodes[ev.node.id] = NodeState(ev.node, since_ms=at, journal_offset=offset)
    else:
        known.spec = ev.node


def _node_connected(s: State, ev: e.NodeConnected, at: int) -> None:
    node = s.nodes[ev.node]
    node.status = t.move(t.NODE, node.status, ev)
    node.boot, node.session, node.reason, node.since_ms = ev.boot, ev.session, "", at
    node.programs, node.breaker, node.futile = ev.programs, None, 0


def _node_lost(s: State, ev: e.NodeLost, at: int) -> None:
    node = s.nodes[ev.node]
    node.status = t.move(t.NODE, node.status, ev)
    node.reason = ev.reason
    if ev.still:
        return
    node.since_ms = at
    for agent in s.agents_on(ev.node):
        agent.status = t.move(t.AGENT, agent.status, ev)
        agent.since_ms, agent.suspicion = at, None


def _node_draining(s: State, ev: e.NodeDraining, at: int) -> None:
    s.nodes[ev.node].draining = True


def _node_resumed(s: State, ev: e.NodeResumed, at: int) -> None:
    s.nodes[ev.node].draining = False


def _node_removed(s: State, ev: e.NodeRemoved, at: int) -> None:
    gone = s.nodes.pop(ev.node)
    s.removed[ev.node] = Removed(gone.spec, gone.journal_offset)


def _breaker_tripped(s: State, ev: e.BreakerTripped, at: int) -> None:
    node = s.nodes[ev.node]
    since_ms, trips = (at, 0) if node.breaker is None else (node.breaker.since_ms, node.breaker.trips)
    node.breaker = Breaker(ev.cause, since_ms, ev.until_ms, trips + 1)
    node.futile = 0
    for agent in s.agents_on(ev.node):
        agent.falls = 0  # what fell with the machine is not to blame


def _breaker_probing(s: State, ev: e.BreakerProbing, at: int) -> None:
    node = s.nodes[ev.node]
    if node.breaker is not None:
        node.breaker = msgspec.structs.replace(node.breaker, probing=True, canary=ev.agent)
    if ev.agent is not None:
        s.agents[ev.agent].since_ms = at


def _breaker_reset(s: State, ev: e.BreakerReset, at: int) -> None:
    node = s.nodes[ev.node]
    node.breaker, node.futile = None, 0
    for agent in s.agents_on(ev.node):
        if agent.status is t.G.STARTING:
            agent.since_ms = at  # it begins to be awaited only now


def _journal_read(s: State, ev: e.JournalRead, at: int) -> None:
    s.nodes[ev.node].journal_offset = ev.offset


def _agent_added(s: State, ev: e.AgentAdded, at: int) -> None:
    known = s.agents.get(ev.agent.id)
    if known is None:
        s.agents[ev.agent.id] = AgentState(ev.agent, since_ms=at)
    else:
        known.spec = ev.agent
    if s.scale_queue and s.scale_queue[0].id == ev.agent.id:
        del s.scale_queue[0]


def _agent_ready(s: State, ev: e.AgentReady, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    if agent.status is t.G.IDLE and agent.task is not None:
        agent.status = t.G.BUSY  # found again with its attempt still in hand
    agent.worker, agent.since_ms, agent.reason, agent.suspicion = ev.worker, at, "", None
    s.nodes[agent.spec.node].futile = 0
    if agent.fallen == ev.worker:
        agent.fallen = None  # it was not dead after all; when it dies, that counts


def _agent_lost(s: State, ev: e.AgentLost, at: int) -> None:
    agent = s.agents[ev.agent]
    node = s.nodes[agent.spec.node]
    made_room = agent.status is t.G.STARTING and agent.worker is not None  # it was restarted: that is no fall
    if agent.status is t.G.STARTING and not made_room:
        node.futile += 1
    if not made_room:
        agent.falls, agent.fell_ms = agent.falls + (node.breaker is None), at  # what falls with the machine is not to blame
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.fallen = agent.worker or agent.fallen
    agent.worker, agent.since_ms, agent.reason, agent.suspicion = None, at, ev.reason, None


def _agent_suspected(s: State, ev: e.AgentSuspected, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.since_ms, agent.reason = at, ev.reason
    agent.suspicion = Suspicion(at, "", 0, ev.next_ms)


def _recovery_step_taken(s: State, ev: e.RecoveryStepTaken, at: int) -> None:
    agent = s.agents[ev.agent]
    if agent.suspicion is not None:
        doubt = agent.suspicion
        strikes, kills = doubt.strikes + (ev.step == "probe"), doubt.kills + (ev.step == "forced")
        agent.suspicion = Suspicion(doubt.since_ms, ev.step, strikes, ev.next_ms, kills)


def _agent_cleared(s: State, ev: e.AgentCleared, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    if agent.status is t.G.IDLE and agent.task is not None:
        agent.status = t.G.BUSY
    agent.since_ms, agent.reason, agent.suspicion = at, "", None


def _agent_suspended(s: State, ev: e.AgentSuspended, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.fallen = agent.worker or agent.fallen
    agent.worker, agent.since_ms, agent.reason, agent.suspicion = None, at, ev.reason, None


def _agent_replaced(s: State, ev: e.AgentReplaced, at: int) -> None:
    s.agents[ev.agent].replaced_by = ev.by


def _escalated(s: State, ev: e.Escalated, at: int) -> None:
    """Kept for those who read the ledger and for the parent; it changes nothing."""


def _agent_restarted(s: State, ev: e.AgentRestarted, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.since_ms, agent.falls, agent.reason, agent.suspicion = at, 0, "", None


def _agent_draining(s: State, ev: e.AgentDraining, at: int) -> None:
    agent = s.agents[ev.agent]
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.since_ms = at


def _agent_removed(s: State, ev: e.AgentRemoved, at: int) -> None:
    del s.agents[ev.agent]
    node = s.nodes[ev.node]
    if node.breaker is not None and node.breaker.canary == ev.agent:
        node.breaker = msgspec.structs.replace(node.breaker, canary=None)


# --- plans and tasks -------------------------------------------------------------------------------------------------


def _plan_submitted(s: State, ev: e.PlanSubmitted, at: int) -> None:
    s.plans[ev.plan] = PlanState(ev.plan, ev.name, ev.digest, at, source=ev.source, size=ev.tasks)


def _plan_closed(s: State, ev: e.PlanClosed, at: int) -> None:
    plan = s.plans[ev.plan]
    t.move(t.PLAN, plan.status, ev)
    plan.status, plan.closed_ms = ev.status, at


def _plan_reopened(s: State, ev: e.PlanReopened, at: int) -> None:
    plan = s.plans[ev.plan]
    plan.status = t.move(t.PLAN, plan.status, ev)
    plan.closed_ms = 0


def _task_submitted(s: State, ev: e.TaskSubmitted, at: int) -> None:
    spec = ev.spec
    task = s.tasks[spec.id] = TaskState(spec, at)
    for need in spec.needs:
        provider = s.tasks[need]
        provider.dependents.append(spec.id)
        if provider.status is not TaskStatus.COMPLETED:
            task.unmet += 1
    if spec.plan is not None:
        plan = s.plans[spec.plan]
        plan.tasks.append(spec.id)
        plan.open += 1


def _task_queued(s: State, ev: e.TaskQueued, at: int) -> None:
    task = s.tasks[ev.task]
    task.status = t.move(t.TASK, task.status, ev)
    task.queued_ms, task.round_start = at, len(task.attempts) + 1
    s.waiting.pop(ev.task, None)
    s.queued[ev.task] = None


def _task_retry_scheduled(s: State, ev: e.TaskRetryScheduled, at: int) -> None:
    task = s.tasks[ev.task]
    task.status = t.move(t.TASK, task.status, ev)
    task.ready_ms, task.reason, task.merging, task.failures = ev.ready_ms, ev.reason, 0, task.failures - ev.forgiven
    for index in (s.live, s.merging, s.touched):
        index.pop(ev.task, None)
    s.waiting[ev.task] = None


def _task_merging(s: State, ev: e.TaskMerging, at: int) -> None:
    task = s.tasks[ev.task]
    task.status = t.move(t.TASK, task.status, ev)
    task.merging = ev.attempt
    keep_touched(s, ev.task, ev.attempt)
    s.live.pop(ev.task, None)
    s.merging[ev.task] = None


def _close(s: State, task: TaskState, ev: e.Event, at: int) -> None:
    task.status = t.move(t.TASK, task.status, ev)
    task.ended_ms = at
    task.merging = 0
    for index in (s.queued, s.waiting, s.live, s.merging, s.touched):
        index.pop(task.id, None)
    if task.spec.plan is not None:
        s.plans[task.spec.plan].open -= 1


def _task_completed(s: State, ev: e.TaskCompleted, at: int) -> None:
    task = s.tasks[ev.task]
    _close(s, task, ev, at)
    task.primary, task.reason, task.feedback, task.conflict = ev.attempt, "", "", ""
    for attempt in task.attempts:
        attempt.planned = ()  # it has joined, or another one's has
    for dependent in task.dependents:
        s.tasks[dependent].unmet -= 1
    s.totals.completed += 1
    outcome = task.result()
    if outcome is not None:
        key, ms = duration_key(task.spec), outcome.duration_ms * 100 // (100 + task.spec.slower_percent)
        known = s.durations.get(key)
        s.durations[key] = ms if known is None else (known + ms) // 2
        s.totals.execution_ms += outcome.duration_ms


def _task_failed(s: State, ev: e.TaskFailed, at: int) -> None:
    task = s.tasks[ev.task]
    _close(s, task, ev, at)
    task.reason = ev.reason
    s.totals.failed += 1
    if task.spec.plan is not None:
        s.plans[task.spec.plan].failed += 1


def _task_cancel_requested(s: State, ev: e.TaskCancelRequested, at: int) -> None:
    s.tasks[ev.task].cancel_reason = ev.reason


def _task_cancelled(s: State, ev: e.TaskCancelled, at: int) -> None:
    task = s.tasks[ev.task]
    _close(s, task, ev, at)
    task.reason, task.blocked_by = ev.reason, ev.blocked_by
    s.totals.cancelled += 1
    if task.spec.plan is not None:
        s.plans[task.spec.plan].cancelled += 1


def _task_revived(s: State, ev: e.TaskRevived, at: int) -> None:
    task = s.tasks[ev.task]
    was_failed = task.status is TaskStatus.FAILED
    task.status = t.move(t.TASK, task.status, ev)
    task.failures = task.losses = task.deferrals = task.unable = task.ended_ms = task.conflicts = task.refusals = 0
    task.reason, task.cancel_reason, task.blocked_by = "", "", None
    if was_failed:
        s.totals.failed -= 1
    else:
        s.totals.cancelled -= 1
    if task.spec.plan is not None:
        plan = s.plans[task.spec.plan]
        plan.open += 1
        plan.failed -= was_failed
        plan.cancelled -= not was_failed


# --- attempts --------------------------------------------------------------------------------------------------------


def _attempt(s: State, task: TaskId, number: int) -> tuple[TaskState, AttemptState]:
    owner = s.tasks[task]
    attempt = owner.attempt(number)
    if attempt is None:
        raise InvariantBroken(f"task {task} has no attempt {number}")
    return owner, attempt


def _attempt_assigned(s: State, ev: e.AttemptAssigned, at: int) -> None:
    task, agent = s.tasks[ev.task], s.agents[ev.agent]
    if ev.attempt != len(task.attempts) + 1:
        raise InvariantBroken(f"attempt {ev.attempt} of {ev.task} cannot follow attempt {len(task.attempts)}")
    task.status = t.move(t.TASK, task.status, ev)
    agent.status = t.move(t.AGENT, agent.status, ev)
    agent.task, agent.attempt, agent.since_ms = ev.task, ev.attempt, at
    task.attempts.append(AttemptState(ev.attempt, ev.agent, agent.spec.node, at))
    node = s.nodes[agent.spec.node]
    if node.breaker is not None and node.breaker.canary is None:
        node.breaker = msgspec.structs.replace(node.breaker, canary=agent.id)  # one is enough for a trial
    s.totals.attempts += 1
    s.queued.pop(ev.task, None)
    s.live[ev.task] = None


def _attempt_started(s: State, ev: e.AttemptStarted, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.started_ms, attempt.pid, attempt.start, attempt.base, attempt.lost_sight_ms = at, ev.pid, ev.start, ev.base, 0
    task.started_ms = task.started_ms or at


def _attempt_waiting(s: State, ev: e.AttemptWaiting, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.waiting_ms = attempt.waiting_ms or at
    attempt.question, attempt.question_number = ev.question, ev.number


def _attempt_answered(s: State, ev: e.AttemptAnswered, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.question, attempt.question_number, attempt.waiting_ms = "", 0, 0
    attempt.waited_ms += ev.waited_ms


def _attempt_verifying(s: State, ev: e.AttemptVerifying, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.lost_sight_ms = 0


def _attempt_lost_sight(s: State, ev: e.AttemptLostSight, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.lost_sight_ms = at
    task.reason = ev.reason


def _attempt_sighted(s: State, ev: e.AttemptSighted, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.lost_sight_ms = 0
    task.reason = ""


def _attempt_stop_requested(s: State, ev: e.AttemptStopRequested, at: int) -> None:
    _, attempt = _attempt(s, ev.task, ev.attempt)
    attempt.stop_reason = ev.reason


def _attempt_ended(s: State, ev: e.AttemptEnded, at: int) -> None:
    task, attempt = _attempt(s, ev.task, ev.attempt)
    task.status = t.move(t.TASK, task.status, ev)
    attempt.status = t.move(t.ATTEMPT, attempt.status, ev)
    attempt.ended_ms, attempt.outcome, attempt.planned = at, ev.outcome, ev.planned
    attempt.question, attempt.question_number, attempt.waiting_ms = "", 0, 0
    kind = ev.outcome.kind
    if kind is OutcomeKind.LOST:
        task.losses += attempt.started_ms > 0
    elif kind is OutcomeKind.DEFERRED:
        task.deferrals += 1
    elif kind not in (OutcomeKind.DONE, OutcomeKind.STOPPED):
        task.failures += 1
    if kind is not OutcomeKind.DONE:
        forget_touched(s, ev.task, ev.attempt)
    note_end(s, task, attempt, ev.outcome)
    s.totals.usage = s.totals.usage.plus(ev.outcome.usage)
    if ev.outcome.rss_bytes_max:
        known = s.footprints.get(task.spec.kind, 0)
        s.footprints[task.spec.kind] = max(ev.outcome.rss_bytes_max, known - (known >> FOOTPRINT_DECAY_BITS))
    agent = s.agents.get(attempt.agent)
    if agent is not None and agent.task == ev.task and agent.attempt == ev.attempt:
        agent.status = t.move(t.AGENT, agent.status, ev)
        agent.task, agent.attempt, agent.since_ms = None, 0, at
        agent.busy_ms += at - attempt.assigned_ms
        note_session(agent, task.spec, attempt, ev.outcome)
        if kind is OutcomeKind.DONE:
            agent.completed += 1
        elif kind not in (OutcomeKind.STOPPED, OutcomeKind.DEFERRED):
            agent.failed += 1
        if kind is not OutcomeKind.LOST:
            agent.falls = 0


def _stale_result_recorded(s: State, ev: e.StaleResultRecorded, at: int) -> None:
    s.totals.stale += 1


def _api_noticed(s: State, ev: e.ApiNoticed, at: int) -> None:
    s.api_cursor = max(s.api_cursor, ev.cursor)


def _command_answered(s: State, ev: e.CommandAnswered, at: int) -> None:
    s.answers[ev.command] = Answer(ev.digest, ev.response)
    while len(s.answers) > ANSWERS_MAX:
        del s.answers[next(iter(s.answers))]


FOLDS: Final[dict[type[e.Event], Callable[[State, Any, int], None]]] = {
    e.CoordinatorStarted: _coordinator_started,
    e.InitStarted: _init_started,
    e.InitCompleted: _init_completed,
    e.InitFailed: _init_failed,
    e.WorkBegan: _work_began,
    e.ScaleStarted: _scale_started,
    e.ScaleCompleted: _scale_completed,
    e.ShutdownStarted: _shutdown_started,
    e.Terminated: _terminated,
    e.NodeAdded: _node_added,
    e.NodeConnected: _node_connected,
    e.NodeLost: _node_lost,
    e.NodeDraining: _node_draining,
    e.NodeResumed: _node_resumed,
    e.NodeRemoved: _node_removed,
    e.BreakerTripped: _breaker_tripped,
    e.BreakerProbing: _breaker_probing,
    e.BreakerReset: _breaker_reset,
    e.JournalRead: _journal_read,
    e.AgentAdded: _agent_added,
    e.AgentReady: _agent_ready,
    e.AgentLost: _agent_lost,
    e.AgentSuspected: _agent_suspected,
    e.RecoveryStepTaken: _recovery_step_taken,
    e.AgentCleared: _agent_cleared,
    e.AgentSuspended: _agent_suspended,
    e.AgentReplaced: _agent_replaced,
    e.Escalated: _escalated,
    e.AgentRestarted: _agent_restarted,
    e.AgentDraining: _agent_draining,
    e.AgentRemoved: _agent_removed,
    e.PlanSubmitted: _plan_submitted,
    e.PlanClosed: _plan_closed,
    e.PlanReopened: _plan_reopened,
    e.TaskSubmitted: _task_submitted,
    e.TaskQueued: _task_queued,
    e.TaskRetryScheduled: _task_retry_scheduled,
    e.TaskMerging: _task_merging,
    e.WorkMerged: fold_work_merged,
    e.WorkConflicted: fold_work_conflicted,
    e.WorkLetGo: fold_work_let_go,
    e.WorkTouched: fold_work_touched,
    e.ConflictPredicted: fold_conflict_predicted,
    e.TaskCompleted: _task_completed,
    e.TaskFailed: _task_failed,
    e.TaskCancelRequested: _task_cancel_requested,
    e.TaskCancelled: _task_cancelled,
    e.TaskRevived: _task_revived,
    e.PlanExtended: fold_plan_extended,
    e.NeedsAdded: fold_needs_added,
    e.ReviewRefused: fold_review_refused,
    e.TaskSentBack: fold_sent_back,
    e.AttemptAssigned: _attempt_assigned,
    e.AttemptStarted: _attempt_started,
    e.AttemptWaiting: _attempt_waiting,
    e.AttemptAnswered: _attempt_answered,
    e.AttemptVerifying: _attempt_verifying,
    e.AttemptLostSight: _attempt_lost_sight,
    e.AttemptSighted: _attempt_sighted,
    e.AttemptStopRequested: _attempt_stop_requested,
    e.AttemptEnded: _attempt_ended,
    e.StaleResultRecorded: _stale_result_recorded,
    e.ApiNoticed: _api_noticed,
    e.CommandAnswered: _command_answered,
    **KIND_FOLDS,
}
"""`Any` here stands for "the event class of the key"; Python's type system cannot say so."""
