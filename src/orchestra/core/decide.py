"""What follows from a command: a list of events, or a refusal. And what follows from an event (`follow`).

Rules of this file: nothing here changes the state; requests may raise `Refused`, reports never do. `decide` answers one command.
`follow` is asked after each event has been folded and names its immediate consequences (dependents queued, plan closed, retry scheduled), until
nothing follows any more; all of it lands in one append. Replay runs neither: the events are in the ledger.

The consequences of an event are asked for one at a time, and all that follows from one happens before the next is asked for. A rule with several
consequences is therefore a generator that looks at the state anew before each: a task that two failed needs block is cancelled once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core import kinds
from orchestra.core import transitions as t
from orchestra.core.fleet import (
    add_node,
    check_fits,
    check_runnable,
    drain_node,
    fleet_changes,
    remove_node,
    resume_node,
    scale,
    scale_on,
    suits,
)
from orchestra.core.gates import gated
from orchestra.core.graph import topological_order
from orchestra.core.merging import merge_conflicted, merge_done, merge_failed, merges_given_up, note_let_go, requeue_now
from orchestra.core.model import (
    AgentStatus,
    Lifecycle,
    NodeStatus,
    Outcome,
    OutcomeKind,
    PlanStatus,
    TaskSpec,
    TaskStatus,
)
from orchestra.core.planning import ended, in_order
from orchestra.core.recovery import (
    UP,
    after_agent_cleared,
    after_agent_lost,
    after_agent_suspected,
    after_agent_suspended,
    after_attempt_started,
    agent_closed,
    beat_back,
    beat_missed,
    lose_attempt,
    node_down,
    node_troubled,
    node_up,
    overdue,
    reset_by_agent,
    worker_fell,
    worker_seen,
)
from orchestra.core.review import settled
from orchestra.core.state import AttemptState, State, TaskState, better
from orchestra.core.touched import after_work_touched, note_touched
from orchestra.core.waiting import after_attempt_sighted, answered, attempt_asks, attempt_goes_on
from orchestra.errors import DuplicateId, IllegalMove, InvariantBroken, Refused
from orchestra.ids import AgentId, TaskId

Events = list[e.Event]
ACCEPTING: Final = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)
SETTLED: Final = (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.ERROR, AgentStatus.SUSPECT)
"""Slots that a start or a scaling does not wait for."""


def decide(state: State, command: c.Command, now_ms: int, policy: c.Policy) -> Iterable[e.Event]:
    """Returns the events that answer the command, to be folded as they are taken; empty if nothing changes.

    Raises:
        Refused: A request that is not possible now; nothing has changed.
    """
    return DECISIONS[type(command)](state, command, now_ms, policy)


def follow(state: State, event: e.Event, now_ms: int, policy: c.Policy) -> Iterable[e.Event]:
    """Returns the immediate consequences of an event that was just folded; see the rules above for how to take them."""
    rule = CONSEQUENCES.get(type(event))
    return () if rule is None else rule(state, event, now_ms, policy)


# --- orchestra -------------------------------------------------------------------------------------------------------


def _take_lead(s: State, cmd: c.TakeLead, now: int, policy: c.Policy) -> Events:
    lost: Events = [
        e.NodeLost(node.spec.id, "connecting again after a restart")  # said of lost ones too: nobody has looked for them meanwhile
        for node in s.nodes.values()
        if node.status is not NodeStatus.ADDED
    ]
    return [e.CoordinatorStarted(cmd.term, cmd.pid, cmd.host, cmd.version), *lost]


def _init(s: State, cmd: c.Init, now: int, policy: c.Policy) -> Events:
    _require(s, e.InitStarted, "initialise")
    check_fits(cmd.nodes, cmd.agents)
    nodes: Events = [e.NodeAdded(node) for node in cmd.nodes]
    used_again: Events = [e.NodeResumed(node.id) for node in cmd.nodes if node.id in s.nodes and s.nodes[node.id].draining]
    return [e.InitStarted(cmd.name, cmd.phase), *nodes, *used_again, *fleet_changes(s, cmd.agents)]


def _require(s: State, event: type[e.Event], verb: str) -> None:
    if not t.may(t.LIFECYCLE, s.lifecycle, event):
        raise IllegalMove(
            f"cannot {verb} while the orchestra is {s.lifecycle.value}",
            hint={
                Lifecycle.UNINITIALIZED: "start it first: `orchestra up`, or send `orchestra.init`",
                Lifecycle.TERMINATED: "start it first: `orchestra up`",
                Lifecycle.DRAINING: "wait until it has ended, then start it again",
            }.get(s.lifecycle, "see `orchestra status`"),
        )


def _scale(s: State, cmd: c.Scale, now: int, policy: c.Policy) -> Events:
    _require(s, e.ScaleStarted, "scale")
    return scale(s, cmd)


def _restart_agent(s: State, cmd: c.RestartAgent, now: int, policy: c.Policy) -> Events:
    agent = s.agent(cmd.agent)
    if agent.status is AgentStatus.DRAINING:
        raise IllegalMove(f"agent #{cmd.agent} is leaving", hint="scale up again for another one")
    stop: Events = []
    if agent.task is not None:
        stop = [e.AttemptStopRequested(agent.task, agent.attempt, f"agent #{agent.id} is restarted")]
    return [*stop, e.AgentRestarted(cmd.agent)]


def _shut_down(s: State, cmd: c.ShutDown, now: int, policy: c.Policy) -> Events:
    _require(s, e.ShutdownStarted, "shut down")
    events: Events = [e.ShutdownStarted(cmd.drain, cmd.graceful, now + cmd.timeout_ms)]
    return events if cmd.graceful else [*events, *_stop_all(s, "the orchestra was shut down")]


def _stop_all(s: State, reason: str) -> Events:
    return [
        e.AttemptStopRequested(attempt_id.task, attempt_id.number, reason)
        for attempt_id, attempt in s.live_attempts()
        if not attempt.stop_reason
    ]


def _answer_command(s: State, cmd: c.AnswerCommand, now: int, policy: c.Policy) -> Events:
    return [] if cmd.command in s.answers else [e.CommandAnswered(cmd.command, cmd.digest, cmd.response)]


# --- tasks -----------------------------------------------------------------------------------------------------------


def _submit(s: State, cmd: c.Submit, now: int, policy: c.Policy) -> Events:
    if s.lifecycle not in ACCEPTING:
        _require(s, e.WorkBegan, "take tasks")
    if len(s.tasks) + len(cmd.tasks) > policy.tasks_max:
        raise Refused(
            f"{len(cmd.tasks)} more tasks would pass the limit of {policy.tasks_max}", hint="raise limits.tasks or use another root"
        )
    if cmd.plan is not None and cmd.plan.id in s.plans:
        raise DuplicateId(f"there is a plan {cmd.plan.id!r} already", field="plan", hint="give the new one another name")
    new: dict[TaskId, TaskSpec] = {}
    for index, spec in enumerate(cmd.tasks):
        if spec.id in new or spec.id in s.tasks:
            raise DuplicateId(f"there is a task {spec.id!r} already", field=f"tasks[{index}].id", hint="task ids are used once")
        new[spec.id] = spec
    ordered = topological_order(gated(new, s.tasks), known=s.tasks)
    for spec in ordered:
        check_runnable(s, spec)
    head: Events = [] if cmd.plan is None else [e.PlanSubmitted(cmd.plan.id, cmd.plan.name, cmd.plan.digest, cmd.plan.source, len(new))]
    return [*head, *(e.TaskSubmitted(spec) for spec in ordered)]


def _cancel_task(s: State, cmd: c.CancelTask, now: int, policy: c.Policy) -> Events:
    task = s.task(cmd.task)
    if task.over:
        raise IllegalMove(f"task {cmd.task} is over: {task.status.value}", field="task_id")
    return _cancel(task, cmd.reason)


def _cancel(task: TaskState, reason: str) -> Events:
    if task.cancel_reason:
        return []
    live = task.live_attempts()
    if not live:
        return [e.TaskCancelled(task.id, reason)]
    stops = [e.AttemptStopRequested(task.id, attempt.number, reason) for attempt in live if not attempt.stop_reason]
    return [e.TaskCancelRequested(task.id, reason), *stops]


def _cancel_plan(s: State, cmd: c.CancelPlan, now: int, policy: c.Policy) -> Events:
    plan = s.plan(cmd.plan)
    if not plan.open:
        raise IllegalMove(f"plan {cmd.plan} is over: {plan.status.value}", field="plan")
    # From the end, so that no need is cancelled before those that wait for it (they would be reported as blocked).
    return [ev for task in reversed(in_order(s, plan)) if not s.tasks[task].over for ev in _cancel(s.tasks[task], cmd.reason)]


def _retry_task(s: State, cmd: c.RetryTask, now: int, policy: c.Policy) -> Events:
    task = s.task(cmd.task)
    if task.status not in (TaskStatus.FAILED, TaskStatus.CANCELLED):
        raise IllegalMove(f"task {cmd.task} is {task.status.value}", field="task_id", hint="only a failed or cancelled task can be retried")
    if s.lifecycle not in ACCEPTING:
        _require(s, e.WorkBegan, "retry")
    for need in task.spec.needs:
        if s.tasks[need].status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
            raise Refused(f"{cmd.task} waits for {need}, which did not complete", hint=f"retry {need} instead")
    revived = [task.id, *_blocked_behind(s, task.id)]
    plans = dict.fromkeys(
        plan for each in revived if (plan := s.tasks[each].spec.plan) is not None
    )  # what it blocked may be another plan's
    reopened = [e.PlanReopened(plan) for plan in plans if s.plans[plan].status is not PlanStatus.RUNNING]
    return [*reopened, *(e.TaskRevived(each) for each in reversed(revived))]


def _blocked_behind(s: State, root: TaskId) -> list[TaskId]:
    """Tasks that were cancelled because a need did not complete, and that nothing blocks any more once `root` and they are revived."""
    found: dict[TaskId, None] = {}
    stack = [root]
    while stack:
        for dependent in s.tasks[stack.pop()].dependents:
            task = s.tasks[dependent]
            if dependent in found or task.status is not TaskStatus.CANCELLED or task.blocked_by is None:
                continue
            dead = [need for need in task.spec.needs if s.tasks[need].status in (TaskStatus.FAILED, TaskStatus.CANCELLED)]
            if all(need == root or need in found for need in dead):
                found[dependent] = None
                stack.append(dependent)
    return list(found)


def _assign(s: State, cmd: c.Assign, now: int, policy: c.Policy) -> Events:
    task = s.task(cmd.task)
    if task.status is not TaskStatus.QUEUED:
        raise IllegalMove(f"task {cmd.task} is {task.status.value}, not queued")
    for agent_id in cmd.agents:
        agent = s.agent(agent_id)
        if agent.status is not AgentStatus.IDLE or agent.task is not None or not suits(s, agent.spec, task.spec):
            raise IllegalMove(f"agent #{agent_id} cannot take {cmd.task}")
    first = len(task.attempts) + 1
    return [e.AttemptAssigned(cmd.task, first + index, agent_id) for index, agent_id in enumerate(cmd.agents)]


# --- reports ---------------------------------------------------------------------------------------------------------


def _note_api(s: State, cmd: c.NoteApi, now: int, policy: c.Policy) -> Events:
    return [e.ApiNoticed(cmd.cursor, cmd.kind, cmd.facts)] if not cmd.cursor or cmd.cursor > s.api_cursor else []


def _journal_at(s: State, cmd: c.JournalAt, now: int, policy: c.Policy) -> Events:
    node = s.nodes.get(cmd.node)
    return [] if node is None or node.journal_offset == cmd.offset else [e.JournalRead(cmd.node, cmd.offset)]


def _current(s: State, task: TaskId, number: int) -> AttemptState | None:
    """The attempt if it is live: the fence every report passes."""
    owner = s.tasks.get(task)
    attempt = None if owner is None else owner.attempt(number)
    return attempt if attempt is not None and attempt.live else None


def _attempt_began(s: State, cmd: c.AttemptBegan, now: int, policy: c.Policy) -> Events:
    attempt = _current(s, cmd.task, cmd.attempt)
    if attempt is None or attempt.pid or not t.may(t.ATTEMPT, attempt.status, e.AttemptStarted):
        return []
    return [e.AttemptStarted(cmd.task, cmd.attempt, cmd.pid, cmd.start, cmd.base)]


def _attempt_checking(s: State, cmd: c.AttemptChecking, now: int, policy: c.Policy) -> Events:
    attempt = _current(s, cmd.task, cmd.attempt)
    if attempt is None or not t.may(t.ATTEMPT, attempt.status, e.AttemptVerifying):
        return []
    return [*answered(cmd, attempt, now), e.AttemptVerifying(cmd.task, cmd.attempt)]


def _attempt_seen(s: State, cmd: c.AttemptSeen, now: int, policy: c.Policy) -> Events:
    attempt = _current(s, cmd.task, cmd.attempt)
    if attempt is None or not t.may(t.ATTEMPT, attempt.status, e.AttemptSighted):
        return []
    return [e.AttemptSighted(cmd.task, cmd.attempt)]


def _attempt_finished(s: State, cmd: c.AttemptFinished, now: int, policy: c.Policy) -> Events:
    owner = s.tasks.get(cmd.task)
    attempt = None if owner is None else owner.attempt(cmd.attempt)
    if attempt is None:
        return []  # of a ledger that is not ours
    if attempt.live:
        return [*answered(cmd, attempt, now), ended(s, cmd, policy)]
    known = attempt.outcome
    same = known is not None and (known.kind, known.code, known.signal) == (cmd.outcome.kind, cmd.outcome.code, cmd.outcome.signal)
    return [] if same or cmd.outcome.kind is OutcomeKind.LOST else [e.StaleResultRecorded(cmd.task, cmd.attempt, cmd.outcome)]


def _tick(s: State, cmd: c.Tick, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from [e.TaskQueued(task) for task in s.waiting if s.tasks[task].ready_ms <= now]
    yield from _init_settled(s, now, policy)
    yield from scale_on(s, policy)
    yield from overdue(s, now, policy)
    yield from kinds.kinds_due(s, now, policy)
    given_up = list(_given_up(s, now, policy))  # what follows from those comes first: the next tick sees to a shutdown
    yield from given_up or _shutdown_overdue(s, now, policy)


def _given_up(s: State, now: int, policy: c.Policy) -> Iterable[e.Event]:
    for attempt_id, attempt in s.live_attempts():
        node = s.nodes[attempt.node]
        hidden, hidden_ms = (node.reason, node.since_ms) if node.status is NodeStatus.LOST else ("", 0)
        if not hidden and node.breaker is not None:
            hidden, hidden_ms = node.breaker.cause, node.breaker.since_ms
        since_ms = max(attempt.lost_sight_ms, hidden_ms)
        if attempt.lost_sight_ms and hidden and now - since_ms > policy.unknown_grace_ms:
            reason = f"node {attempt.node} was out of sight for {policy.unknown_grace_ms // 1000} s: {hidden}"
            yield e.AttemptEnded(attempt_id.task, attempt_id.number, Outcome(OutcomeKind.LOST, reason))
    yield from merges_given_up(s, now, policy)


def _init_settled(s: State, now: int, policy: c.Policy) -> Events:
    """The start is over when no agent is awaited any more, or its time is up."""
    if s.lifecycle is not Lifecycle.INITIALIZING:
        return []
    overdue = now - s.started_ms >= policy.init_timeout_ms
    if not overdue and any(agent.status in (AgentStatus.STARTING, AgentStatus.OFFLINE) for agent in s.agents.values()):
        return []
    ready = sum(agent.status in UP for agent in s.agents.values())
    if ready:
        return [e.InitCompleted(ready)]
    why = next(filter(None, (*(n.reason for n in s.nodes.values()), *(a.reason for a in s.agents.values()))), "no worker came up")
    return [e.InitFailed(f"no agent was ready within {policy.init_timeout_ms // 1000} s: {why}" if overdue else f"no agent came up: {why}")]


def _shutdown_overdue(s: State, now: int, policy: c.Policy) -> Events:
    if s.shutdown is None or now < s.shutdown.deadline_ms:
        return []
    if not s.live:
        return [e.Terminated()]
    if now - s.shutdown.deadline_ms <= policy.unknown_grace_ms:
        return _stop_all(s, "the shutdown's time was up")
    # Asked to stop and never heard of again. Closing the windows that follows ends what is left of it.
    lost = Outcome(OutcomeKind.LOST, f"it did not stop within {policy.unknown_grace_ms // 1000} s of the shutdown's end")
    return [e.AttemptEnded(attempt_id.task, attempt_id.number, lost) for attempt_id, _ in s.live_attempts()]


# --- consequences ----------------------------------------------------------------------------------------------------


def _after_task_submitted(s: State, ev: e.TaskSubmitted, now: int, policy: c.Policy) -> Events:
    return _queue_or_block(s, s.tasks[ev.spec.id])


def _after_task_sent_back(s: State, ev: e.TaskSentBack, now: int, policy: c.Policy) -> Events:
    return _queue_or_block(s, s.tasks[ev.task])


def _after_task_revived(s: State, ev: e.TaskRevived, now: int, policy: c.Policy) -> Events:
    return [] if s.tasks[ev.task].unmet else [e.TaskQueued(ev.task)]


def _queue_or_block(s: State, task: TaskState) -> Events:
    if not task.unmet:
        return [e.TaskQueued(task.id)]
    for need in task.spec.needs:
        if s.tasks[need].status in (TaskStatus.FAILED, TaskStatus.CANCELLED):
            return [_blocked(task.id, s.tasks[need])]
    return []


def _blocked(task: TaskId, need: TaskState) -> e.TaskCancelled:
    return e.TaskCancelled(task, f"its need {need.id} {need.status.value}", need.id)


def _after_task_queued(s: State, ev: e.TaskQueued, now: int, policy: c.Policy) -> Iterator[e.Event]:
    if s.lifecycle is Lifecycle.READY:
        yield e.WorkBegan()
    yield from kinds.after_queued(s, s.tasks[ev.task], policy)


def _after_task_completed(s: State, ev: e.TaskCompleted, now: int, policy: c.Policy) -> Iterator[e.Event]:
    task = s.tasks[ev.task]
    for each in task.dependents:
        if not s.tasks[each].unmet and s.tasks[each].status is TaskStatus.PENDING:
            yield e.TaskQueued(each)
    yield from _after_task_over(s, task)


def _after_task_failed(s: State, ev: e.TaskFailed | e.TaskCancelled, now: int, policy: c.Policy) -> Iterator[e.Event]:
    task = s.tasks[ev.task]
    for each in task.dependents:
        if s.tasks[each].status is TaskStatus.PENDING:
            yield _blocked(each, task)
    yield from _after_task_over(s, task)


def _after_task_over(s: State, task: TaskState) -> Iterator[e.Event]:
    if task.spec.plan is not None:
        plan = s.plans[task.spec.plan]
        if not plan.open and len(plan.tasks) == plan.size and plan.status is PlanStatus.RUNNING:
            yield e.PlanClosed(plan.id, plan.closing_status())
    yield from _maybe_terminated(s)


def _maybe_terminated(s: State) -> Events:
    """A shutdown is complete when nothing runs, and nothing will (or, without drain, whatever waits)."""
    if s.lifecycle is not Lifecycle.DRAINING or s.shutdown is None or s.live or (s.merging and s.shutdown.graceful):
        return []  # a merge may run checks for minutes; without grace it is left to the next start
    hope = any(agent.status not in (AgentStatus.ERROR, AgentStatus.DRAINING) for agent in s.agents.values())
    if s.shutdown.drain and s.shutdown.graceful and (s.queued or s.waiting) and hope:
        return []
    return [e.Terminated()]


def _after_attempt_ended(s: State, ev: e.AttemptEnded, now: int, policy: c.Policy) -> Iterator[e.Event]:
    task = s.tasks[ev.task]
    attempt = task.attempts[ev.attempt - 1]
    node = s.nodes.get(attempt.node)
    if node is not None and node.breaker is not None and node.breaker.probing and node.breaker.canary == attempt.agent:
        yield e.BreakerProbing(attempt.node)  # the trial ended before it had begun: the next attempt is the trial
    yield from kinds.after_attempt_of_kind(s, task, ev.outcome, policy)
    if not task.over and not task.live_attempts():
        yield from _settle(s, task, now, policy)
    agent = s.agents.get(attempt.agent)
    if agent is not None and agent.status is AgentStatus.DRAINING and agent.worker is None and agent.task is None:
        yield e.AgentRemoved(agent.id, agent.spec.node)


def _settle(s: State, task: TaskState, now: int, policy: c.Policy) -> Iterable[e.Event]:
    """All attempts of the round are over: completed, again, or given up."""
    best = task.attempts[task.round_start - 1]
    for attempt in task.attempts[task.round_start :]:
        best = attempt if better(attempt, best) else best
    outcome = best.outcome
    if outcome is None:
        raise InvariantBroken(f"attempt {task.id}#{best.number} ended without an outcome")
    if outcome.kind is OutcomeKind.DONE and not task.cancel_reason:
        return settled(s, task, best.number, policy)
    if task.cancel_reason:
        return [e.TaskCancelled(task.id, task.cancel_reason)]
    if outcome.kind is OutcomeKind.STOPPED:
        return [e.TaskRetryScheduled(task.id, now, best.stop_reason or outcome.reason), *requeue_now(s, task)]
    if outcome.kind is OutcomeKind.LOST:
        if task.losses > policy.losses_max:
            return [e.TaskFailed(task.id, f"its worker died {task.losses} times: {outcome.reason}")]
        return [e.TaskRetryScheduled(task.id, now + policy.lost_retry_ms, outcome.reason), *requeue_now(s, task)]
    if outcome.kind is OutcomeKind.DEFERRED and task.deferrals <= policy.deferrals_max:
        return [e.TaskRetryScheduled(task.id, now + policy.deferred_retry_ms, outcome.reason)]
    if (elsewhere := kinds.unable(s, task, outcome, now, policy)) is not None:
        return elsewhere
    if outcome.kind in (OutcomeKind.REFUSED, OutcomeKind.DEFERRED) or task.failures > task.spec.retries:
        return [e.TaskFailed(task.id, outcome.reason)]
    return [e.TaskRetryScheduled(task.id, now + backoff_ms(task.spec, task.failures), outcome.reason)]


def backoff_ms(spec: TaskSpec, failures: int) -> int:
    """Returns the wait before the retry that follows the given number of failures: doubling, capped."""
    return min(spec.backoff_ms << min(max(failures - 1, 0), 30), spec.backoff_max_ms)


def _after_retry_scheduled(s: State, ev: e.TaskRetryScheduled, now: int, policy: c.Policy) -> Events:
    return _maybe_terminated(s)


def _after_node_lost(s: State, ev: e.NodeLost, now: int, policy: c.Policy) -> Iterator[e.Event]:
    for agent in s.agents_on(ev.node):
        yield from lose_attempt(s, agent.id, ev.reason)
    yield from kinds.look_at_kinds(s, policy)


def _after_agent_ready(s: State, ev: e.AgentReady, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from kinds.look_again(s, policy)
    yield from reset_by_agent(s, ev.agent)
    yield from _after_agent_settled(s, ev.agent)


def _after_agent_suspended(s: State, ev: e.AgentSuspended, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from after_agent_suspended(s, ev, now, policy)
    yield from kinds.look_at_kinds(s, policy)
    yield from _after_agent_settled(s, ev.agent)


def _after_agent_settled(s: State, agent_id: AgentId) -> Events:
    starting = any(agent.status in (AgentStatus.STARTING, AgentStatus.OFFLINE) for agent in s.agents.values())
    if s.lifecycle is Lifecycle.INITIALIZING and not starting:
        ready = sum(agent.status in UP for agent in s.agents.values())
        return [e.InitCompleted(ready)] if ready else [e.InitFailed(f"no agent came up: {s.agents[agent_id].reason}")]
    return [*_maybe_scaled(s), *_maybe_terminated(s)]


def _after_init_completed(s: State, ev: e.InitCompleted, now: int, policy: c.Policy) -> Events:
    return [e.WorkBegan()] if s.queued else []


def _maybe_scaled(s: State) -> Events:
    if s.lifecycle is not Lifecycle.SCALING or s.scale_queue:
        return []
    settled = all(agent.status in SETTLED for agent in s.agents.values())
    return [e.ScaleCompleted(len(s.agents))] if settled else []


def _after_agent_draining(s: State, ev: e.AgentDraining, now: int, policy: c.Policy) -> Events:
    """Nobody is there who could be asked to leave, and nothing has to be accounted for."""
    agent = s.agents[ev.agent]
    return [e.AgentRemoved(agent.id, agent.spec.node)] if agent.worker is None and agent.task is None else []


def _after_scale_started(s: State, ev: e.ScaleStarted, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from scale_on(s, policy)
    if len(s.agents) == ev.target:
        yield from _maybe_scaled(s)


def _after_agent_removed(s: State, ev: e.AgentRemoved, now: int, policy: c.Policy) -> Events:
    return [*_maybe_scaled(s), *_maybe_terminated(s)]


def _after_shutdown_started(s: State, ev: e.ShutdownStarted, now: int, policy: c.Policy) -> Events:
    return _maybe_terminated(s)


Decision = Callable[[State, Any, int, c.Policy], Iterable[e.Event]]

DECISIONS: Final[dict[type[c.Command], Decision]] = {
    c.TakeLead: _take_lead,
    c.Init: _init,
    c.Submit: _submit,
    c.CancelTask: _cancel_task,
    c.CancelPlan: _cancel_plan,
    c.RetryTask: _retry_task,
    c.Scale: _scale,
    c.RestartAgent: _restart_agent,
    c.AddNode: add_node,
    c.DrainNode: drain_node,
    c.ResumeNode: resume_node,
    c.RemoveNode: remove_node,
    c.ShutDown: _shut_down,
    c.AnswerCommand: _answer_command,
    c.Assign: _assign,
    c.NodeUp: node_up,
    c.NodeDown: node_down,
    c.ProgramsSeen: kinds.programs_seen,
    c.NodeTroubled: node_troubled,
    c.JournalAt: _journal_at,
    c.BeatMissed: beat_missed,
    c.BeatBack: beat_back,
    c.WorkerSeen: worker_seen,
    c.WorkerFell: worker_fell,
    c.AgentClosed: agent_closed,
    c.AttemptBegan: _attempt_began,
    c.AttemptChecking: _attempt_checking,
    c.AttemptAsks: attempt_asks,
    c.AttemptGoesOn: attempt_goes_on,
    c.AttemptSeen: _attempt_seen,
    c.AttemptFinished: _attempt_finished,
    c.NoteApi: _note_api,
    c.MergeDone: merge_done,
    c.MergeConflicted: merge_conflicted,
    c.MergeFailed: merge_failed,
    c.NoteLetGo: note_let_go,
    c.NoteTouched: note_touched,
    c.Tick: _tick,
}

Consequence = Callable[[State, Any, int, c.Policy], Iterable[e.Event]]

CONSEQUENCES: Final[dict[type[e.Event], Consequence]] = {
    e.TaskSubmitted: _after_task_submitted,
    e.TaskRevived: _after_task_revived,
    e.TaskSentBack: _after_task_sent_back,
    e.TaskQueued: _after_task_queued,
    e.TaskCompleted: _after_task_completed,
    e.TaskFailed: _after_task_failed,
    e.TaskCancelled: _after_task_failed,
    e.TaskRetryScheduled: _after_retry_scheduled,
    e.AttemptEnded: _after_attempt_ended,
    e.WorkTouched: after_work_touched,
    e.AttemptStarted: after_attempt_started,
    e.AttemptSighted: after_attempt_sighted,
    e.AgentLost: after_agent_lost,
    e.AgentSuspected: after_agent_suspected,
    e.AgentCleared: after_agent_cleared,
    e.AgentReady: _after_agent_ready,
    e.AgentSuspended: _after_agent_suspended,
    e.AgentDraining: _after_agent_draining,
    e.AgentRemoved: _after_agent_removed,
    e.NodeLost: _after_node_lost,
    **kinds.CONSEQUENCES_OF_KINDS,
    e.InitCompleted: _after_init_completed,
    e.ScaleStarted: _after_scale_started,
    e.ShutdownStarted: _after_shutdown_started,
}
"""Events that are not here have no consequences inside the core."""
