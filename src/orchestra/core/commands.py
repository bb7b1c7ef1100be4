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


class NodeDown(Command, frozen=True):
    node: NodeId
    reason: str


class JournalAt(Command, frozen=True):
    """All reports from the journal before `offset` are in this batch or an earlier one."""

    node: NodeId
    offset: int


class WorkerSeen(Command, frozen=True):
    agent: AgentId
    worker: Worker


class WorkerFell(Command, frozen=True):
    """The worker is gone. `worker` is None if the slot never had one (its window could not be opened, or it is missing)."""

    agent: AgentId
    worker: Worker | None
    reason: str


class AgentClosed(Command, frozen=True):
    """The slot's worker left because we asked it to."""

    agent: AgentId


class AttemptBegan(Command, frozen=True):
    task: TaskId
    attempt: int
    pid: int
    start: int


class AttemptChecking(Command, frozen=True):
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
