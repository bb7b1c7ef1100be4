"""What happened: the alphabet of the ledger, in the past tense.

An event is a fact with everything needed to fold it; nothing is looked up again. Changing the meaning or a field of one needs a new version
number in `orchestra.codec.events`, an upcaster, and a golden file.
"""

from __future__ import annotations

import msgspec

from orchestra.core.model import AgentSpec, NodeSpec, Outcome, PlanStatus, TaskSpec, Worker
from orchestra.ids import AgentId, NodeId, PlanId, TaskId


class Event(msgspec.Struct, frozen=True, omit_defaults=True, tag_field="type", tag=True):
    """Base of all events; the tag is the class name."""


# --- orchestra -------------------------------------------------------------------------------------------------------


class CoordinatorStarted(Event, frozen=True):
    """A coordinator took the lead. `term` is its fencing number."""

    term: int
    pid: int
    host: str
    version: str


class InitStarted(Event, frozen=True):
    name: str
    phase: int | None = None
    """1 to 3 if a preset was asked for."""


class InitCompleted(Event, frozen=True):
    agents: int


class InitFailed(Event, frozen=True):
    reason: str


class WorkBegan(Event, frozen=True):
    """The first task since the orchestra was ready."""


class ScaleStarted(Event, frozen=True):
    target: int
    strategy: str
    additions: tuple[AgentSpec, ...] = ()
    """Slots that are still to be added, a few at a time (`gradual`)."""


class ScaleCompleted(Event, frozen=True):
    agents: int


class ShutdownStarted(Event, frozen=True):
    drain: bool
    """Queued tasks are still worked off, else only running ones are waited for."""
    graceful: bool
    """Running attempts may finish, else they are stopped."""
    deadline_ms: int
    """Ledger time after which what still runs is stopped."""


class Terminated(Event, frozen=True):
    pass


# --- nodes and agents ------------------------------------------------------------------------------------------------


class NodeAdded(Event, frozen=True):
    node: NodeSpec


class NodeConnected(Event, frozen=True):
    node: NodeId
    boot: str
    session: str
    """Name of its tmux session."""
    programs: tuple[str, ...] = ()
    """Programs that are installed there, of those that were looked for."""
    rebooted: bool = False
    """The machine has been started anew since it was last seen."""


class NodeDraining(Event, frozen=True):
    """It gets no new work and no new agents; its agents leave as they become idle."""

    node: NodeId


class NodeResumed(Event, frozen=True):
    """It is drained no longer."""

    node: NodeId


class NodeRemoved(Event, frozen=True):
    node: NodeId


class BreakerTripped(Event, frozen=True):
    """Something is wrong with the node itself, not with its agents: nothing is started or ended there before `until_ms`, then one is tried."""

    node: NodeId
    cause: str
    until_ms: int


class BreakerProbing(Event, frozen=True):
    """One agent, or one attempt, is tried on the node."""

    node: NodeId
    agent: AgentId | None = None
    """The agent that is started; None where all have workers and the next attempt is the trial."""


class BreakerReset(Event, frozen=True):
    """The node works again."""

    node: NodeId


class NodeLost(Event, frozen=True):
    node: NodeId
    reason: str
    still: bool = False
    """It was lost already; what is known of the cause has changed."""


class ProgramsChanged(Event, frozen=True):
    """Other programs are installed on a node than when it was last looked at."""

    node: NodeId
    programs: tuple[str, ...]


class KindMissed(Event, frozen=True):
    """No agent in sight does tasks of this kind, and one may come back: tasks of it wait until the grace is over."""

    kind: str
    reason: str


class KindLost(Event, frozen=True):
    """Nobody can do tasks of this kind: another one takes those that are ready."""

    kind: str
    reason: str
    cause: str = ""
    """`programs`: what it needs is on no node; `failures`: its program or its login does not work."""
    other: str = ""
    """Who takes its tasks."""


class KindRecovered(Event, frozen=True):
    """Tasks of this kind are done by it again, those that have moved apart."""

    kind: str
    reason: str = ""
    was_lost: bool = False
    """False where it was only missed."""


class JournalRead(Event, frozen=True):
    """Everything in the node's journal before `offset` has been turned into the events of this and earlier appends."""

    node: NodeId
    offset: int


class AgentAdded(Event, frozen=True):
    agent: AgentSpec


class AgentReady(Event, frozen=True):
    agent: AgentId
    worker: Worker


class AgentLost(Event, frozen=True):
    """Its worker is gone; a new one is wanted."""

    agent: AgentId
    reason: str


class AgentSuspected(Event, frozen=True):
    """Its worker is there and does not answer."""

    agent: AgentId
    reason: str
    next_ms: int
    """Ledger time of the next step."""


class RecoveryStepTaken(Event, frozen=True):
    """A rung of the ladder: `probe`, `graceful` (asked to leave), `forced` (killed)."""

    agent: AgentId
    step: str
    next_ms: int


class AgentCleared(Event, frozen=True):
    """It answers again."""

    agent: AgentId


class AgentSuspended(Event, frozen=True):
    """Its worker fell too often in a row, or could not be ended."""

    agent: AgentId
    reason: str


class AgentReplaced(Event, frozen=True):
    """Another slot, from the reserve, does the work of a suspended one."""

    agent: AgentId
    by: AgentId


class Escalated(Event, frozen=True):
    """The orchestra has done what it can: somebody has to look."""

    agent: AgentId
    reason: str


class AgentRestarted(Event, frozen=True):
    """Somebody asked for a new worker."""

    agent: AgentId


class AgentDraining(Event, frozen=True):
    agent: AgentId


class AgentRemoved(Event, frozen=True):
    agent: AgentId
    node: NodeId


# --- plans and tasks -------------------------------------------------------------------------------------------------


class PlanSubmitted(Event, frozen=True):
    plan: PlanId
    name: str
    digest: str
    """SHA-256 of the plan's content; tells on resume whether it is the same plan."""
    source: str = ""
    tasks: int = 0


class PlanClosed(Event, frozen=True):
    """All its tasks are over."""

    plan: PlanId
    status: PlanStatus


class PlanReopened(Event, frozen=True):
    """A task of it was revived."""

    plan: PlanId


class TaskSubmitted(Event, frozen=True):
    spec: TaskSpec


class TaskQueued(Event, frozen=True):
    """Every need is met (and any wait is over)."""

    task: TaskId


class TaskRetryScheduled(Event, frozen=True):
    task: TaskId
    ready_ms: int
    """Ledger time at which it is queued again."""
    reason: str
    forgiven: int = 0
    """Attempts of this round that count as no failures of the task: their kind cannot work."""


class TaskMoved(Event, frozen=True):
    """Another kind of agent does it from now on, as its own is not to be had."""

    task: TaskId
    was: str
    kind: str
    estimate_ms: int
    warning: str
    without_model: bool = False
    """Its wish for a model is dropped: the other kind does not know it."""
    slower_percent: int = 0


class TaskMerging(Event, frozen=True):
    """Its attempt is verified; what it did comes into the plan's branch next."""

    task: TaskId
    attempt: int


class WorkMerged(Event, frozen=True):
    task: TaskId
    attempt: int
    branch: str
    commit: str
    files: int = 0
    """Files it created, changed or deleted."""


class WorkConflicted(Event, frozen=True):
    """The plan's branch has moved on in a way that its work does not go with."""

    task: TaskId
    attempt: int
    files: tuple[str, ...]
    text: str
    """Both sides, for the next attempt."""
    checks: tuple[str, ...] = ()
    """Where no line conflicts: the checks that passed on its work alone and fail on both together."""


class WorkLetGo(Event, frozen=True):
    """The place where an isolated attempt worked is gone; what it held is merged or kept."""

    task: TaskId
    attempt: int
    kept: str = ""
    """Ref (of a copy: folder) that holds what was not merged; empty: there was nothing."""


class WorkTouched(Event, frozen=True):
    """An isolated attempt that runs has changed other files than were known of. All of them, each time."""

    task: TaskId
    attempt: int
    paths: tuple[str, ...]
    """Relative to its task's folder."""
    more: bool = False
    """There are others, which are not named."""


class ConflictPredicted(Event, frozen=True):
    """Two attempts of different tasks have changed the same files, and neither is merged."""

    task: TaskId
    attempt: int
    other: TaskId
    other_attempt: int
    paths: tuple[str, ...]
    """Relative to the folder of `task`."""


class TaskCompleted(Event, frozen=True):
    task: TaskId
    attempt: int
    """The attempt whose result counts."""


class TaskFailed(Event, frozen=True):
    task: TaskId
    reason: str


class TaskCancelRequested(Event, frozen=True):
    """Its attempts are being stopped."""

    task: TaskId
    reason: str


class TaskCancelled(Event, frozen=True):
    task: TaskId
    reason: str
    blocked_by: TaskId | None = None
    """The need that failed, if that is why."""


class TaskRevived(Event, frozen=True):
    task: TaskId


class PlanExtended(Event, frozen=True):
    """What the task planned joins the plan it belongs to: so many tasks follow."""

    task: TaskId
    attempt: int
    tasks: int
    last: tuple[TaskId, ...] = ()
    """Those of them that none of the others needs."""
    plan: PlanId | None = None


class NeedsAdded(Event, frozen=True):
    """The task waits for these too: what it needs has planned them."""

    task: TaskId
    needs: tuple[TaskId, ...]


class ReviewRefused(Event, frozen=True):
    """The review found the work wanting; it is made again when that has been repaired."""

    task: TaskId
    attempt: int
    reviewed: TaskId


class TaskSentBack(Event, frozen=True):
    """What was completed is to be done again: a review refused it, or something it rests on."""

    task: TaskId
    by: TaskId
    feedback: str = ""
    """The findings, for the next attempt; empty for what only rests on the refused work."""


# --- attempts --------------------------------------------------------------------------------------------------------


class AttemptAssigned(Event, frozen=True):
    task: TaskId
    attempt: int
    agent: AgentId


class AttemptStarted(Event, frozen=True):
    task: TaskId
    attempt: int
    pid: int
    start: int
    base: str = ""
    """The commit that an isolated one began from."""


class AttemptWaiting(Event, frozen=True):
    """Its agent goes on only when it is answered."""

    task: TaskId
    attempt: int
    question: str
    number: int = 0
    """Which question of the attempt it is; an answer names it. 0 where they are not counted."""
    again: bool = False
    """It is known already: the attempt was out of sight meanwhile."""


class AttemptAnswered(Event, frozen=True):
    """It goes on, whoever answered, or is over."""

    task: TaskId
    attempt: int
    waited_ms: int


class AttemptVerifying(Event, frozen=True):
    task: TaskId
    attempt: int


class AttemptLostSight(Event, frozen=True):
    task: TaskId
    attempt: int
    reason: str


class AttemptSighted(Event, frozen=True):
    task: TaskId
    attempt: int


class AttemptStopRequested(Event, frozen=True):
    """Written before the stop is sent, so that a death on purpose is never taken for a failure."""

    task: TaskId
    attempt: int
    reason: str


class AttemptEnded(Event, frozen=True):
    task: TaskId
    attempt: int
    outcome: Outcome
    planned: tuple[TaskSpec, ...] = ()
    """The tasks of the plan it returned; they join when it is the attempt that counts."""


class StaleResultRecorded(Event, frozen=True):
    """A result came for an attempt that is not current any more. Kept as evidence; changes nothing."""

    task: TaskId
    attempt: int
    outcome: Outcome


class ApiNoticed(Event, frozen=True):
    """What the gateway told of limits, budgets, keys and the model APIs. Changes nothing but how far it was read."""

    cursor: int
    kind: str
    facts: dict[str, str | int] = {}


class CommandAnswered(Event, frozen=True):
    """A request from outside was answered; the same id gets the same answer for ever."""

    command: str
    digest: str
    response: str
    """JSON."""


AnyEvent = (
    CoordinatorStarted
    | InitStarted
    | InitCompleted
    | InitFailed
    | WorkBegan
    | ScaleStarted
    | ScaleCompleted
    | ShutdownStarted
    | Terminated
    | NodeAdded
    | NodeConnected
    | NodeLost
    | NodeDraining
    | NodeResumed
    | NodeRemoved
    | BreakerTripped
    | BreakerProbing
    | BreakerReset
    | ProgramsChanged
    | KindMissed
    | KindLost
    | KindRecovered
    | JournalRead
    | AgentAdded
    | AgentReady
    | AgentLost
    | AgentSuspected
    | RecoveryStepTaken
    | AgentCleared
    | AgentSuspended
    | AgentReplaced
    | Escalated
    | AgentRestarted
    | AgentDraining
    | AgentRemoved
    | PlanSubmitted
    | PlanClosed
    | PlanReopened
    | TaskSubmitted
    | TaskQueued
    | TaskRetryScheduled
    | TaskMoved
    | TaskMerging
    | WorkMerged
    | WorkConflicted
    | WorkLetGo
    | WorkTouched
    | ConflictPredicted
    | TaskCompleted
    | TaskFailed
    | TaskCancelRequested
    | TaskCancelled
    | TaskRevived
    | PlanExtended
    | NeedsAdded
    | ReviewRefused
    | TaskSentBack
    | AttemptAssigned
    | AttemptStarted
    | AttemptWaiting
    | AttemptAnswered
    | AttemptVerifying
    | AttemptLostSight
    | AttemptSighted
    | AttemptStopRequested
    | AttemptEnded
    | StaleResultRecorded
    | ApiNoticed
    | CommandAnswered
)
