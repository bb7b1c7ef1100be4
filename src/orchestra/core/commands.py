"""What can be asked of the core: requests of people and programs, orders of the scheduler, and reports of what was seen.

A request may be refused. A report cannot: it says what is so, and a report that comes late or twice changes nothing.
"""

from __future__ import annotations

import msgspec

from orchestra.core.model import AgentSpec, NodeSpec, Outcome, TaskSpec, Worker
from orchestra.ids import AgentId, NodeId, PlanId, TaskId


class Command(msgspec.Struct, frozen=True):
    """Base of everything `decide` takes."""


# --- requests --------------------------------------------------------------------------------------------------------


class TakeLead(Command, frozen=True):
    """The first command of every coordinator."""

    term: int
    pid: int
    host: str
    version: str


class Init(Command, frozen=True):
    """Set up the fleet. Nodes and agents known from an earlier run are kept as given here."""

    name: str
    nodes: tuple[NodeSpec, ...]
    agents: tuple[AgentSpec, ...]
    phase: int | None = None


class PlanHead(msgspec.Struct, frozen=True):
    """What is known of a plan besides its tasks."""

    id: PlanId
    name: str
    digest: str
    source: str = ""


class Submit(Command, frozen=True):
    """Accept these tasks, all or none. With a head they are a plan's."""

    tasks: tuple[TaskSpec, ...]
    plan: PlanHead | None = None


class CancelTask(Command, frozen=True):
    task: TaskId
    reason: str


class CancelPlan(Command, frozen=True):
    plan: PlanId
    reason: str


class RetryTask(Command, frozen=True):
    """Revive a task that failed or was cancelled, and whatever was cancelled because of it."""

    task: TaskId


class Scale(Command, frozen=True):
    """Bring the fleet to `target` agents. `additions` are the slots to add, if it grows."""

    target: int
    strategy: str
    additions: tuple[AgentSpec, ...] = ()


class AddNode(Command, frozen=True):
    """Take a machine into the fleet, or change what is known of one."""

    node: NodeSpec


class DrainNode(Command, frozen=True):
    """Let the node's agents finish and leave, and put nothing new there."""

    node: NodeId


class ResumeNode(Command, frozen=True):
    """Use a drained node again."""

    node: NodeId


class RemoveNode(Command, frozen=True):
    """Forget a node. `force` gives up what is still on it, if it is out of sight."""

    node: NodeId
    force: bool = False


class RestartAgent(Command, frozen=True):
    """Give the slot a new worker. An attempt in hand is stopped and queued again."""

    agent: AgentId


class ShutDown(Command, frozen=True):
    drain: bool
    graceful: bool
    timeout_ms: int


class AnswerCommand(Command, frozen=True):
    """Remember what a command id was answered."""

    command: str
    digest: str
    response: str


class Assign(Command, frozen=True):
    """The scheduler's order: start one attempt of the task on each of these agents."""

    task: TaskId
    agents: tuple[AgentId, ...]


# --- reports ---------------------------------------------------------------------------------------------------------


class NodeUp(Command, frozen=True):
    node: NodeId
    boot: str
    session: str
    programs: tuple[str, ...] = ()


class ProgramsSeen(Command, frozen=True):
    """What is installed on a node now, of what was looked for."""

    node: NodeId
    programs: tuple[str, ...]


class NodeDown(Command, frozen=True):
    node: NodeId
    reason: str


class NodeTroubled(Command, frozen=True):
    """The node could not do what every node can, for a reason of its own (its disk is full)."""

    node: NodeId
    cause: str


class JournalAt(Command, frozen=True):
    """All reports from the journal before `offset` are in this batch or an earlier one."""

    node: NodeId
    offset: int


class WorkerSeen(Command, frozen=True):
    agent: AgentId
    worker: Worker
    fallen: Worker | None = None
    """The last worker of the slot whose fall was known when this was seen."""


class WorkerFell(Command, frozen=True):
    """The worker is gone. `worker` is None if the slot never had one (its window could not be opened, or it is missing)."""

    agent: AgentId
    worker: Worker | None
    reason: str


class BeatMissed(Command, frozen=True):
    """The worker lives, and nothing is heard of it."""

    agent: AgentId
    worker: Worker | None
    reason: str


class BeatBack(Command, frozen=True):
    """The worker is heard again."""

    agent: AgentId
    worker: Worker | None


class AgentClosed(Command, frozen=True):
    """The slot's worker left because we asked it to."""

    agent: AgentId


class AttemptBegan(Command, frozen=True):
    task: TaskId
    attempt: int
    pid: int
    start: int
    base: str = ""


class AttemptChecking(Command, frozen=True):
    task: TaskId
    attempt: int


class AttemptAsks(Command, frozen=True):
    """The agent waits for an answer."""

    task: TaskId
    attempt: int
    question: str
    number: int = 0


class AttemptGoesOn(Command, frozen=True):
    """The agent does something again; if it waited, that is over."""

    task: TaskId
    attempt: int


class AttemptSeen(Command, frozen=True):
    """The attempt was found alive."""

    task: TaskId
    attempt: int


class AttemptFinished(Command, frozen=True):
    task: TaskId
    attempt: int
    outcome: Outcome
    planned: tuple[TaskSpec, ...] = ()
    """The tasks of the plan it returned, under the ids they will have."""


class MergeDone(Command, frozen=True):
    """The attempt's work is in the plan's branch."""

    task: TaskId
    attempt: int
    branch: str
    commit: str
    files: int = 0


class MergeConflicted(Command, frozen=True):
    """The work does not go with what is in the plan's branch by now: they change the same lines, or fail these checks together."""

    task: TaskId
    attempt: int
    files: tuple[str, ...]
    text: str
    checks: tuple[str, ...] = ()


class MergeFailed(Command, frozen=True):
    """The work could not be merged, or is gone. `again`: another attempt may help."""

    task: TaskId
    attempt: int
    reason: str
    again: bool


class NoteApi(Command, frozen=True):
    """The gateway told something that a person or parent should know. `cursor` numbers what it tells."""

    cursor: int
    kind: str
    facts: dict[str, str | int] = {}


class NoteLetGo(Command, frozen=True):
    """An isolated attempt's place is gone. `kept`: where what was not merged is."""

    task: TaskId
    attempt: int
    kept: str = ""


class NoteTouched(Command, frozen=True):
    """An isolated attempt was looked at: this is what it has changed so far. `more`: and others."""

    task: TaskId
    attempt: int
    paths: tuple[str, ...]
    more: bool = False


class Tick(Command, frozen=True):
    """Time has passed; whatever was due is due."""


class Policy(msgspec.Struct, frozen=True):
    """The limits `decide` works with. Each is a setting; the reasons are in `orchestra.settings`."""

    losses_max: int = 5
    falls_max: int = 3
    unknown_grace_ms: int = 300_000
    init_timeout_ms: int = 60_000
    tasks_max: int = 200_000
    lost_retry_ms: int = 0
    deferred_retry_ms: int = 1_000
    """Before a deferred task is queued again; then it waits until the scheduler is told that the API serves it."""
    deferrals_max: int = 1_000
    """How often a task is deferred before that counts as a failure; nothing goes on for ever."""
    strikes_max: int = 3
    """Looks at a silent worker before it is asked to leave."""
    probe_ms: int = 2_000
    """Between two looks."""
    graceful_ms: int = 5_000
    """How long a silent worker that was asked to leave, and then one that was killed, may take to be gone."""
    start_timeout_ms: int = 60_000
    """How long a worker may take to come up."""
    outage_agents_min: int = 5
    """Fewer agents than these do not make an outage."""
    outage_window_ms: int = 5_000
    futile_starts_max: int = 10
    """Workers that fell in a row on one node before any came up."""
    breaker_first_ms: int = 1_000
    breaker_max_ms: int = 60_000
    reserve: int = 0
    """Slots that may be added in the place of suspended ones."""
    conflicts_max: int = 1
    """How often a task is given back to an agent because its work conflicts, before somebody has to look."""
    scale_step: int = 10
    """Slots that a gradual scaling starts at a time."""
    planned_tasks_max: int = 50
    """Tasks that one returned plan may add."""
    planning_depth_max: int = 2
    """How many tasks may plan one another in a row."""
    alternatives: dict[str, str] = {}
    """For a kind that is not to be had, the one that takes its tasks."""
    slower_percent: int = 50
    """What is added to the estimate of such a task."""
    kind_programs: dict[str, tuple[str, ...]] = {}
    """Programs that each kind needs on its node."""
    kind_failures_max: int = 2
    """Tasks in a row whose attempts fail because the kind cannot work, until it counts as lost; 0: never for that."""
    kind_retry_ms: int = 900_000
    """After which a kind that was lost by failures is tried again."""
    review_rounds_max: int = 1
    """How often a review may send a task back before its refusal is final."""
