"""The records that commands and events are made of: what a task is, what an attempt came to, what an agent is.

All are frozen and hold plain values only, so that one codec serves the ledger, the socket and the files.
"""

from __future__ import annotations

from enum import Enum, IntEnum

import msgspec

from orchestra.ids import AgentId, NodeId, PlanId, TaskId

RETRIES_DEFAULT = 3
TIMEOUT_DEFAULT_MS = 3_600_000
ESTIMATE_DEFAULT_MS = 60_000
BACKOFF_DEFAULT_MS = 60_000
BACKOFF_MAX_DEFAULT_MS = 3_600_000
CHECK_TIMEOUT_DEFAULT_MS = 600_000
REPLICAS_MAX = 200
ANY_KIND = "any"
"""Kind of an agent slot that takes tasks of every kind."""


class Priority(IntEnum):
    """Urgency of a task; the smaller number goes first."""

    CRITICAL = 1
    HIGH = 2
    NORMAL = 3
    LOW = 4


class Strategy(Enum):
    """How an agent is chosen among the free ones."""

    PRIORITY = "priority"
    ROUND_ROBIN = "round-robin"
    LOAD_BASED = "load-based"
    WEIGHTED = "weighted"
    AFFINITY = "affinity"


class Lifecycle(Enum):
    """State of the orchestra as a whole."""

    UNINITIALIZED = "uninitialized"
    INITIALIZING = "initializing"
    READY = "ready"
    RUNNING = "running"
    SCALING = "scaling"
    DRAINING = "draining"
    TERMINATED = "terminated"
    FAILED = "failed"


class NodeStatus(Enum):
    """What we know of a node. LOST is a statement about our sight, not about the node."""

    ADDED = "added"
    READY = "ready"
    LOST = "lost"


class AgentStatus(Enum):
    """State of an agent slot."""

    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    SUSPECT = "suspect"
    """Its worker is there and does not answer; it is being looked after and gets no new work."""
    ERROR = "error"
    """Its worker fell too often; it is left alone until it is restarted."""
    OFFLINE = "offline"
    """Its worker or node is out of sight."""
    DRAINING = "draining"
    """It finishes what it has and is then removed."""


class TaskStatus(Enum):
    """State of a task."""

    PENDING = "pending"
    QUEUED = "queued"
    ASSIGNED = "assigned"
    RUNNING = "running"
    WAITING = "waiting"
    """Its agent waits for an answer: a permission, or a question."""
    VERIFYING = "verifying"
    MERGING = "merging"
    """Verified; what it did is on its way into the plan's branch."""
    UNKNOWN = "unknown"
    """We lost sight of its attempt: neither dead nor done."""
    RETRY_WAIT = "retry_wait"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class AttemptStatus(Enum):
    """State of one execution."""

    ASSIGNED = "assigned"
    RUNNING = "running"
    WAITING = "waiting"
    VERIFYING = "verifying"
    UNKNOWN = "unknown"
    ENDED = "ended"


class PlanStatus(Enum):
    """State of a plan."""

    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


class OutcomeKind(Enum):
    """How an attempt ended, by whose doing."""

    DONE = "done"
    """The agent succeeded and every check passed."""
    UNVERIFIED = "unverified"
    """The agent said done, but a check failed."""
    FAILED = "failed"
    TIMEOUT = "timeout"
    MEMORY = "memory"
    REFUSED = "refused"
    """The order could not be carried out at all."""
    STOPPED = "stopped"
    """Ended on our order: cancelled, or superseded by a better replica."""
    LOST = "lost"
    """The worker died with it; whatever was left was ended."""
    DEFERRED = "deferred"
    """The model API could not serve it, or a budget that is not its own is spent: it goes on later, and is not to blame."""


TASK_TERMINAL = (TaskStatus.COMPLETED, TaskStatus.FAILED, TaskStatus.CANCELLED)
TASK_LIVE = (TaskStatus.ASSIGNED, TaskStatus.RUNNING, TaskStatus.WAITING, TaskStatus.VERIFYING, TaskStatus.UNKNOWN)


RETURNS_PLAN = "plan"
RETURNS_REVIEW = "review"
"""What a task may have to return besides its work, in a file that is read when it ends."""


class Payload(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent is given to do: `command` is a shell script, `code` a program with a language, `analysis` a prompt."""

    type: str
    content: str
    language: str = ""


class Check(msgspec.Struct, frozen=True, omit_defaults=True):
    """A success criterion in a form that can be run. Passed means: exit code 0 before the timeout."""

    name: str
    argv: tuple[str, ...]
    timeout_ms: int = CHECK_TIMEOUT_DEFAULT_MS


class Limits(msgspec.Struct, frozen=True, omit_defaults=True):
    """Resource limits an agent's processes really run under; 0 means none."""

    memory_bytes: int = 0
    cpu_seconds: int = 0
    open_files: int = 0
    processes: int = 0
    nice: int = 0
    cpus: int = 0
    """Processors the whole tree may use at the same time, where a control group can be made."""


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an attempt consumed of a model API, as the agent reported it."""

    requests: int = 0
    tokens_input: int = 0
    tokens_output: int = 0
    tokens_cache_read: int = 0
    tokens_cache_write: int = 0
    cost_usd_micros: int = 0

    def plus(self, other: Usage) -> Usage:
        """Returns the sum, field by field."""
        return Usage(
            self.requests + other.requests,
            self.tokens_input + other.tokens_input,
            self.tokens_output + other.tokens_output,
            self.tokens_cache_read + other.tokens_cache_read,
            self.tokens_cache_write + other.tokens_cache_write,
            self.cost_usd_micros + other.cost_usd_micros,
        )

    def minus(self, other: Usage) -> Usage:
        """Returns what is left when `other` is taken off, field by field and never below zero."""
        return Usage(*(max(0, getattr(self, name) - getattr(other, name)) for name in self.__struct_fields__))


class TaskDefaults(msgspec.Struct, frozen=True):
    """What a task gets where neither it nor its plan says otherwise; the settings under `tasks`."""

    retries: int = RETRIES_DEFAULT
    backoff_ms: int = BACKOFF_DEFAULT_MS
    backoff_max_ms: int = BACKOFF_MAX_DEFAULT_MS
    timeout_ms: int = TIMEOUT_DEFAULT_MS
    kinds: dict[str, str] = {}
    """Agent kind of prompts that name none, by category; `planning` and `review` are categories here."""
    specialists: dict[str, str] = {}
    """Agent kind of those that are best at something, by speciality; for what `kinds` leaves open."""
    judge: bool = True
    """Criteria that no program can check are given to an agent, instead of being refused."""
    strict: bool = False
    """They are refused, whatever anybody else says."""
    lacking: dict[str, str] = {}
    """Agent kinds that are not to be had in this fleet, and so judge nothing, and why."""


STANDARD = TaskDefaults()

SPECIALITIES = {"coding": "codegen", "research": "research", "support": "support"}
"""What a task of a category is given to, of agents that are best at something, where it does not say."""


def speciality_of(said: str, category: str, returns: str) -> str:
    """Returns what agents that are to do a task should be best at, or nothing: what it says, else `review` for a review, else by its category."""
    if said or returns == RETURNS_PLAN:
        return said
    return "review" if returns == RETURNS_REVIEW else SPECIALITIES.get(category, "")


class TaskSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """Everything a task was submitted with. Durations in milliseconds, money in micro-dollars."""

    id: TaskId
    description: str
    payload: Payload
    kind: str = "shell"
    """Agent kind that has to run it."""
    plan: PlanId | None = None
    category: str = "coding"
    priority: Priority = Priority.NORMAL
    strategy: Strategy = Strategy.PRIORITY
    replicas: int = 1
    """How many attempts run in parallel; the best verified one wins."""
    needs: tuple[TaskId, ...] = ()
    retries: int = RETRIES_DEFAULT
    backoff_ms: int = BACKOFF_DEFAULT_MS
    """Wait before retry n is `2**(n-1)` times this, at most `backoff_max_ms`."""
    backoff_max_ms: int = BACKOFF_MAX_DEFAULT_MS
    estimate_ms: int = ESTIMATE_DEFAULT_MS
    timeout_ms: int = TIMEOUT_DEFAULT_MS
    cost_usd_micros_max: int = 0
    """Hard stop of the task's model cost; 0 means none."""
    criteria: tuple[str, ...] = ()
    """The success criteria as they were written."""
    checks: tuple[Check, ...] = ()
    """The same in a form that is executed."""
    requirements: str = "{}"
    """JSON object, as submitted; handed to the agent."""
    files: tuple[str, ...] = ()
    """Paths the task says it may touch, relative to the workspace."""
    workspace: str = ""
    """Absolute folder the task runs in; empty means a private folder of the attempt."""
    workspace_here: bool = False
    """The folder was named as seen from the plan file, on this machine; on another one the task runs in a folder of the node's own instead, which
    tasks with the same workspace share there."""
    isolated: bool = False
    """Each attempt works in a worktree (or copy) of the workspace, and verified work is merged into the plan's branch."""
    stdin: str = ""
    """`pane`, `none`, or empty for what the kind prefers."""
    affinity: str = ""
    """Tasks with the same key prefer the same agent."""
    node: NodeId | None = None
    """Pins the task to one node."""
    tags: tuple[str, ...] = ()
    """Tags its node must have."""
    programs: tuple[str, ...] = ()
    """Programs that must be installed on its node."""
    env: dict[str, str] = {}
    limits: Limits = Limits()
    submitted_by: str = ""
    sandbox: str = ""
    """`on`, `off`, or empty for what the settings and the kind say."""
    returns: str = ""
    """What it has to return besides its work: `plan`, `review`, or nothing."""
    strict: bool = False
    """Criteria of what it plans that no program can check are refused, whatever the plan and the settings say."""
    reviews: TaskId | None = None
    """The task whose work it judges."""
    judges: tuple[str, ...] = ()
    """Criteria of that task that no program can check, for it to judge one by one."""
    gates: tuple[TaskId, ...] = ()
    """Whoever needs it waits for these too: reviews that may still send it back, and what it planned."""
    origin: TaskId | None = None
    """The task that planned it."""
    depth: int = 0
    """How many tasks planned one another until this one; 0 for what people and programs submitted."""
    warnings: tuple[str, ...] = ()
    """What was decided otherwise than it was written, for people."""
    agent_fixed: bool = False
    """It is done by its kind or not at all: no other kind takes it."""
    slower_percent: int = 0
    """How much longer than measured before it is expected to take, as another kind than its own does it."""
    speciality: str = ""
    """What agents that are to do it should be best at; empty for what follows from its category, or that it reviews."""


class AgentSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One slot of the fleet."""

    id: AgentId
    node: NodeId
    kind: str = ANY_KIND
    name: str = ""
    """Label a person knows it by (`CCG-1`), or empty."""
    weight: int = 100
    """Capability in percent of an ordinary agent; the most capable free agent gets the longest remaining path."""
    category: str = ""
    """Category it is meant for; empty for all."""
    level: int = 3
    """Place in the hierarchy: 0 chief coordinator, 1 zone coordinator, 2 team lead, 3 specialist. Escalation goes upwards."""
    speciality: str = ""
    """What it is best at (`codegen`, `review`), or empty."""
    team: str = ""
    """Team it belongs to, or empty."""
    limits: Limits = Limits()
    """What its attempts run under where the task names no limit of its own."""


class NodeSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One machine of the fleet; `host` is empty for this machine."""

    id: NodeId
    host: str = ""
    ssh_user: str = ""
    max_agents: int = 200
    port: int = 0
    """Port of its SSH server; 0 leaves it to the SSH configuration."""
    zone: str = ""
    """Failure domain it belongs to, or empty."""
    weight: int = 100
    """Capability in percent of an ordinary machine; agents are laid out in proportion to it and to `max_agents`."""
    tags: tuple[str, ...] = ()
    """What tasks may ask for (`gpu`, `eu`)."""
    agent_memory_bytes: int = 0
    """Memory to count for an attempt before it was measured; 0 leaves it to what attempts of the same kind have used."""
    folder: str = ""
    """Where its things are kept; empty for the usual place."""
    added: bool = False
    """It was taken into a running orchestra, by a person or the provisioner: it stays although the settings do not name it."""

    @property
    def remote(self) -> bool:
        """Tells whether it is reached by SSH."""
        return bool(self.host)

    @property
    def machine(self) -> tuple[str, int, str, str]:
        """What decides which machine, and which place there, it is."""
        return self.host, self.port, self.ssh_user, self.folder


class Worker(msgspec.Struct, frozen=True):
    """Identity of a worker process: pid and kernel start time tell it from any later process with its pid."""

    pid: int
    start: int


class CheckResult(msgspec.Struct, frozen=True, omit_defaults=True):
    """What running one check came to."""

    name: str
    passed: bool
    code: int | None = None
    reason: str = ""
    duration_ms: int = 0
    tail: tuple[str, ...] = ()

    @property
    def how(self) -> str:
        """How it failed, in words."""
        return f"exit code {self.code}" if self.reason in ("", "exit") else self.reason


class Finding(msgspec.Struct, frozen=True, omit_defaults=True):
    """One thing a review found."""

    severity: str
    text: str
    file: str = ""
    line: int = 0


class Judgement(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an agent thinks of one criterion that no program can check."""

    criterion: str
    met: bool
    evidence: str = ""


class Review(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a review came to."""

    approved: bool
    summary: str
    findings: tuple[Finding, ...] = ()
    judgements: tuple[Judgement, ...] = ()


class Outcome(msgspec.Struct, frozen=True, omit_defaults=True):
    """How an attempt ended and what it left, as far as the ledger keeps it. Logs stay in the attempt's folder."""

    kind: OutcomeKind
    reason: str = ""
    """One sentence for people, empty when done."""
    code: int | None = None
    signal: int | None = None
    duration_ms: int = 0
    checks: tuple[CheckResult, ...] = ()
    tail: tuple[str, ...] = ()
    """Last lines of the output; kept only where it did not end well."""
    usage: Usage = Usage()
    rss_bytes_max: int = 0
    cpu_ms: int = 0
    session: str = ""
    """The agent CLI's own session id, for resuming."""
    summary: str = ""
    """Final words of the agent, bounded."""
    output_files: tuple[str, ...] = ()
    metrics: dict[str, float] = {}
    """Figures read from the checks: tests_passed, tests_failed, coverage_percent, linter_errors."""
    review: Review | None = None
    """What a task that reviews another returned."""
    kind_unable: bool = False
    """The end says that its kind cannot work there at all: its program cannot be started, or its login is refused."""
