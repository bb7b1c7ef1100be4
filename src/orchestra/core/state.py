"""What the orchestra knows: the fold of its ledger.

Only `evolve` changes these records. Everything is a plain value in insertion order, so that two folds of the same ledger are equal byte for
byte and a snapshot is the encoded state. `queued`, `waiting` and `live` are indexes over `tasks`, kept here because they follow from the
same events.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator

import msgspec

from orchestra.core.model import (
    TASK_TERMINAL,
    AgentSpec,
    AgentStatus,
    AttemptStatus,
    Lifecycle,
    NodeSpec,
    NodeStatus,
    Outcome,
    OutcomeKind,
    PlanStatus,
    TaskSpec,
    TaskStatus,
    Usage,
    Worker,
)
from orchestra.errors import NotFound
from orchestra.ids import AgentId, AttemptId, NodeId, PlanId, TaskId

STATE_FORMAT = 12
"""Version of the snapshot's encoding; raise it when a record here changes, and old snapshots are passed over."""


class AttemptState(msgspec.Struct, omit_defaults=True):
    """One execution of a task."""

    number: int
    agent: AgentId
    node: NodeId
    assigned_ms: int
    status: AttemptStatus = AttemptStatus.ASSIGNED
    started_ms: int = 0
    ended_ms: int = 0
    lost_sight_ms: int = 0
    pid: int = 0
    start: int = 0
    base: str = ""
    """The commit that an isolated one began from: what it did is what differs from that."""
    stop_reason: str = ""
    question: str = ""
    """What it waits to be answered, or empty."""
    question_number: int = 0
    waiting_ms: int = 0
    """Ledger time since which it waits."""
    waited_ms: int = 0
    """How long it has waited before, in all."""
    outcome: Outcome | None = None
    kept: str | None = None
    """Of an isolated attempt whose place is gone: where what was not merged is, empty if there was nothing."""
    planned: tuple[TaskSpec, ...] = ()
    """The tasks of the plan it returned, until its task is over."""

    @property
    def live(self) -> bool:
        return self.status is not AttemptStatus.ENDED


class TaskState(msgspec.Struct, omit_defaults=True):
    """One task and all its attempts."""

    spec: TaskSpec
    submitted_ms: int
    status: TaskStatus = TaskStatus.PENDING
    unmet: int = 0
    """Needs that have not COMPLETED."""
    dependents: list[TaskId] = []
    attempts: list[AttemptState] = []
    round_start: int = 1
    """Number of the first attempt since it was last queued."""
    failures: int = 0
    losses: int = 0
    deferrals: int = 0
    unable: int = 0
    """Attempts in a row that ended because its kind cannot work."""
    moves: int = 0
    """How often another kind took it."""
    queued_ms: int = 0
    ready_ms: int = 0
    started_ms: int = 0
    ended_ms: int = 0
    primary: int = 0
    """The attempt whose result counts; 0 while there is none."""
    reason: str = ""
    blocked_by: TaskId | None = None
    cancel_reason: str = ""
    merging: int = 0
    """The attempt whose work is being merged; 0 while none is."""
    commit: str = ""
    """Where the plan's branch was after its work had been merged."""
    branch: str = ""
    """That branch by its short name; empty where nothing was merged."""
    conflicts: int = 0
    feedback: str = ""
    """What a review found wanting in its work; until it is completed again."""
    conflict: str = ""
    """Both sides of its last conflict; until it is completed."""
    refusals: int = 0
    """How often it, a review, sent the reviewed work back."""
    sent_back: int = 0
    """How often it was completed and had to be done again."""

    @property
    def id(self) -> TaskId:
        return self.spec.id

    @property
    def over(self) -> bool:
        return self.status in TASK_TERMINAL

    def live_attempts(self) -> list[AttemptState]:
        """Returns the attempts that have not ended, oldest first."""
        return [attempt for attempt in self.attempts if attempt.live]

    def attempt(self, number: int) -> AttemptState | None:
        """Returns the attempt with that number, or None. Numbers are dense from 1."""
        return self.attempts[number - 1] if 0 < number <= len(self.attempts) else None

    def result(self) -> Outcome | None:
        """Returns the outcome that counts: the primary attempt's, else the last one that ended."""
        if self.primary:
            return self.attempts[self.primary - 1].outcome
        return next((attempt.outcome for attempt in reversed(self.attempts) if attempt.outcome), None)


class Touched(msgspec.Struct, omit_defaults=True):
    """What an isolated attempt has changed so far, as it was last looked at. Paths are relative to its task's folder."""

    paths: tuple[str, ...] = ()
    more: bool = False
    """It changed others too: more than are kept."""
    shared: dict[str, tuple[str, ...]] = {}
    """Those that another attempt has changed as well, by that attempt; told once."""


class Suspicion(msgspec.Struct, frozen=True):
    """A worker that does not answer, and how far it has been looked after."""

    since_ms: int
    step: str
    """`probe`, `graceful` or `forced`; empty before the first look."""
    strikes: int
    next_ms: int
    """Ledger time of the next step."""
    kills: int = 0
    """How often it was tried to end it; a link that stalls at that moment must not decide."""


class Breaker(msgspec.Struct, frozen=True):
    """A node on which nothing is started for now."""

    cause: str
    since_ms: int
    until_ms: int
    trips: int
    """How often in a row; the pause doubles."""
    probing: bool = False
    """One is being tried."""
    canary: AgentId | None = None
    """The agent that is tried; None while the trial is an attempt that has not been assigned yet."""


class SessionState(msgspec.Struct, frozen=True, omit_defaults=True):
    """A session of an agent's CLI, as far as another task may go on with it."""

    kind: str
    node: NodeId
    workspace: str
    """The folder of its task; empty if it had none."""
    affinity: str
    """Of the tasks it is for; empty if none may go on with it."""
    usage: Usage
    """What it has consumed, over all the attempts in it."""
    isolated: bool = False
    """It worked in a checkout or copy of that folder, each attempt in one of its own."""


class AgentState(msgspec.Struct, omit_defaults=True):
    """One slot."""

    spec: AgentSpec
    status: AgentStatus = AgentStatus.STARTING
    since_ms: int = 0
    worker: Worker | None = None
    fallen: Worker | None = None
    """The last worker whose fall was counted; word of it may come by several ways."""
    task: TaskId | None = None
    attempt: int = 0
    falls: int = 0
    """Workers lost in a row without a finished attempt between."""
    fell_ms: int = 0
    """When the last one was lost."""
    suspicion: Suspicion | None = None
    replaced_by: AgentId | None = None
    completed: int = 0
    failed: int = 0
    busy_ms: int = 0
    reason: str = ""
    sessions: dict[str, SessionState] = {}
    """By the CLI's id, the one used last at the end."""

    @property
    def id(self) -> AgentId:
        return self.spec.id


class NodeState(msgspec.Struct, omit_defaults=True):
    """One machine."""

    spec: NodeSpec
    status: NodeStatus = NodeStatus.ADDED
    boot: str = ""
    session: str = ""
    journal_offset: int = 0
    since_ms: int = 0
    reason: str = ""
    draining: bool = False
    programs: tuple[str, ...] = ()
    breaker: Breaker | None = None
    futile: int = 0
    """Workers that fell in a row before any came up."""

    @property
    def read_from(self) -> int:
        """Where reading its journal goes on. What stands in one that this ledger has never seen is nobody's news: then at its end, which is -1."""
        return self.journal_offset if self.boot or self.journal_offset else -1

    @property
    def usable(self) -> bool:
        """Tells whether new work may be put there. While its breaker is being tried, that is one attempt."""
        trial = self.breaker is None or (self.breaker.probing and self.breaker.canary is None)
        return self.status is NodeStatus.READY and not self.draining and trial


class KindState(msgspec.Struct, omit_defaults=True):
    """A kind of agents that is in trouble; one that is not has no record."""

    struck: dict[NodeId, tuple[TaskId, ...]] = {}
    """Tasks whose attempts ended because it cannot work, by node, since the last one that succeeded."""
    missed_ms: int = 0
    """Since when no agent in sight does its tasks; 0 otherwise."""
    lost_ms: int = 0
    """Since when nobody can; 0 otherwise."""
    cause: str = ""
    """Of its loss: `programs` or `failures`."""
    other: str = ""
    """Who takes the tasks of a lost one."""
    reason: str = ""


class Removed(msgspec.Struct, frozen=True):
    """A node that was removed, and how far its journal had been read."""

    spec: NodeSpec
    journal_offset: int


class PlanState(msgspec.Struct, omit_defaults=True):
    """One submitted plan."""

    id: PlanId
    name: str
    digest: str
    submitted_ms: int
    source: str = ""
    size: int = 0
    """Tasks it was submitted with, and that joined it; fewer are in `tasks` while they are being taken in."""
    joined: int = 0
    """Tasks that were planned by others of its tasks. They stand at the end of `tasks`, also where earlier ones need them."""
    status: PlanStatus = PlanStatus.RUNNING
    tasks: list[TaskId] = []
    open: int = 0
    """Tasks that are not over."""
    failed: int = 0
    cancelled: int = 0
    closed_ms: int = 0

    def closing_status(self) -> PlanStatus:
        """Returns what the plan has come to once all its tasks are over."""
        if self.failed:
            return PlanStatus.FAILED
        return PlanStatus.CANCELLED if self.cancelled else PlanStatus.COMPLETED


class Answer(msgspec.Struct, frozen=True):
    """What a command id was answered, and the digest of what it asked."""

    digest: str
    response: str


class Shutdown(msgspec.Struct, frozen=True):
    """A shutdown in progress."""

    drain: bool
    graceful: bool
    deadline_ms: int


class Totals(msgspec.Struct, omit_defaults=True):
    """Running counts, so that a status of a million tasks costs nothing."""

    completed: int = 0
    failed: int = 0
    cancelled: int = 0
    attempts: int = 0
    stale: int = 0
    execution_ms: int = 0
    usage: Usage = Usage()


class State(msgspec.Struct, omit_defaults=True):
    """Everything, folded."""

    seq: int = 0
    at_ms: int = 0
    """Ledger time of the last event."""
    term: int = 0
    name: str = ""
    lifecycle: Lifecycle = Lifecycle.UNINITIALIZED
    phase: int | None = None
    started_ms: int = 0
    """Ledger time the orchestra was last initialised at."""
    reason: str = ""
    scale_target: int = 0
    scale_queue: list[AgentSpec] = []
    """Slots that a gradual scaling has still to add."""
    shutdown: Shutdown | None = None
    nodes: dict[NodeId, NodeState] = {}
    removed: dict[NodeId, Removed] = {}
    """Nodes that were removed; should one come back, what its journal said before is old news."""
    agents: dict[AgentId, AgentState] = {}
    plans: dict[PlanId, PlanState] = {}
    tasks: dict[TaskId, TaskState] = {}
    queued: dict[TaskId, None] = {}
    waiting: dict[TaskId, None] = {}
    live: dict[TaskId, None] = {}
    merging: dict[TaskId, None] = {}
    touched: dict[TaskId, dict[int, Touched]] = {}
    """By attempt, of isolated tasks whose work is not merged yet."""
    answers: dict[str, Answer] = {}
    kinds: dict[str, KindState] = {}
    """Kinds of agents that are in trouble."""
    footprints: dict[str, int] = {}
    """Memory in bytes that attempts of each kind have used at most, falling slowly, for the admission of further ones."""
    durations: dict[str, int] = {}
    """Measured execution time in milliseconds, smoothed, by `plan name/task name`."""
    totals: Totals = msgspec.field(default_factory=Totals)
    api_cursor: int = 0
    """How far what the gateway tells has been read."""

    def node(self, node: NodeId) -> NodeState:
        """Returns the node. Raises NotFound."""
        found = self.nodes.get(node)
        if found is None:
            hint = neighbour_hint(node, self.nodes, "`orchestra node list` lists them")
            raise NotFound(f"there is no node {node!r}", field="node", hint=hint)
        return found

    def agent(self, agent: AgentId) -> AgentState:
        """Returns the agent. Raises NotFound."""
        found = self.agents.get(agent)
        if found is None:
            raise NotFound(f"there is no agent #{agent}", field="agent", hint="`orchestra agent list` lists them")
        return found

    def task(self, task: TaskId) -> TaskState:
        """Returns the task. Raises NotFound."""
        found = self.tasks.get(task)
        if found is None:
            hint = neighbour_hint(task, self.tasks, "`orchestra task list` lists them")
            raise NotFound(f"there is no task {task!r}", field="task_id", hint=hint)
        return found

    def plan(self, plan: PlanId) -> PlanState:
        """Returns the plan. Raises NotFound."""
        found = self.plans.get(plan)
        if found is None:
            raise NotFound(f"there is no plan {plan!r}", field="plan", hint="`orchestra status` lists them")
        return found

    def live_attempts(self) -> Iterator[tuple[AttemptId, AttemptState]]:
        """Yields every attempt that has not ended."""
        for task in self.live:
            for attempt in self.tasks[task].live_attempts():
                yield AttemptId(task, attempt.number), attempt

    def agents_on(self, node: NodeId) -> list[AgentState]:
        """Returns the slots of one node, by number."""
        return [agent for agent in self.agents.values() if agent.spec.node == node]


def neighbour_hint(name: str, known: Iterable[str], otherwise: str) -> str:
    """Returns what to say of a name that is not known: the one most like it that is, or `otherwise`."""
    near = difflib.get_close_matches(name, list(known), 1)
    return f"did you mean {near[0]!r}?" if near else otherwise


def duration_key(spec: TaskSpec) -> str:
    """Returns the key measured times are kept under: stable over runs of the same plan, so that they teach the next one."""
    return spec.id.rpartition("/")[2] if spec.plan is None else f"{plan_name(spec.plan)}/{spec.id.rpartition('/')[2]}"


def plan_name(plan: PlanId) -> str:
    """Returns the name a plan id was made from: `level6.3` is the third run of `level6`."""
    head, dot, tail = plan.rpartition(".")
    return head if dot and tail.isdigit() else plan


def better(a: AttemptState, b: AttemptState) -> bool:
    """Tells whether replica `a` beats `b`.

    The rule: verified beats unverified; then the most checks passed, the fewest failed tests, the lower cost, the shorter run, the lower number.
    """
    return _merit(a) < _merit(b)


def _merit(attempt: AttemptState) -> tuple[bool, int, float, int, int, int]:
    outcome = attempt.outcome
    if outcome is None:
        return (True, 0, 0.0, 0, 0, attempt.number)
    passed = sum(check.passed for check in outcome.checks)
    failed_tests = outcome.metrics.get("tests_failed", 0.0)
    return (
        outcome.kind is not OutcomeKind.DONE,
        -passed,
        failed_tests,
        outcome.usage.cost_usd_micros,
        outcome.duration_ms,
        attempt.number,
    )
