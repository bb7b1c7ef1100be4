"""What the orchestra shows: read-only records for people and programs, cut from the state at one moment.

These are the `--json` contract and the results of the socket API. Times are UTC milliseconds, durations milliseconds, money micro-dollars, unless a
name says otherwise; the records of the parent interface (`StatusView` and what it holds) keep that interface's own field names.
"""

from __future__ import annotations

from typing import Final

import msgspec

REHEARSAL: Final = "REHEARSAL"
"""Stands wherever something is shown of an orchestra whose agents ask no model."""
REHEARSAL_NOTICE: Final = f"{REHEARSAL}: no model is asked, what the agents do is recorded; commands and checks are run"


class View(msgspec.Struct, frozen=True):
    """Base of all views."""


class AgentCounts(View, frozen=True):
    total: int
    running: int
    """Slots with a live worker."""
    idle: int
    busy: int
    error: int
    """Out of order. One that is only out of sight, as its node is lost, is neither running nor in error."""


class TaskCounts(View, frozen=True):
    queued: int
    """Accepted and not running: waiting for needs, for an agent, or for a retry."""
    in_progress: int
    completed: int
    failed: int
    cancelled: int = 0


class ApiLimits(View, frozen=True):
    rpm_usage: str
    tpm_usage: str


class StatusView(View, frozen=True):
    """Answer to `status`."""

    status: str
    health: str
    """`healthy`, `degraded` or `critical`."""
    agents: AgentCounts
    api_limits: ApiLimits
    tasks: TaskCounts
    uptime_seconds: int
    warnings: tuple[str, ...] = ()


class NodeView(View, frozen=True):
    name: str
    status: str
    """`healthy`, `degraded`, `draining` or `lost`."""
    agents_running: int
    agents_total: int
    cpu_percent: float
    memory_percent: float
    connected: bool
    session: str
    reason: str = ""
    host: str = ""
    """Empty for this machine."""
    zone: str = ""
    tags: tuple[str, ...] = ()
    max_agents: int = 0
    agents_busy: int = 0
    cpus: int = 0
    load_1m: float = 0.0
    memory_bytes: int = 0
    memory_available_bytes: int = 0
    disk_free_bytes: int = 0
    warnings: tuple[str, ...] = ()


class AgentView(View, frozen=True):
    agent: int
    name: str
    kind: str
    node: str
    status: str
    task: str | None
    attempt: int
    since_ms: int
    tasks_completed: int
    tasks_failed: int
    busy_ms: int
    pid: int
    reason: str = ""
    activity: str = ""
    progress: float | None = None
    question: str = ""
    """What its attempt waits to be answered, or empty."""
    category: str = ""
    level: int = 3
    speciality: str = ""
    team: str = ""


class CheckView(View, frozen=True):
    name: str
    passed: bool
    code: int | None
    reason: str
    duration_ms: int
    tail: tuple[str, ...]


class FindingView(View, frozen=True):
    severity: str
    file: str
    line: int
    text: str


class JudgementView(View, frozen=True):
    """A criterion that no program could check, and what an agent thinks of it."""

    criterion: str
    met: bool
    evidence: str
    by: str
    """The task that judged it."""
    kind: str
    """Agent kind of that task."""


class ReviewView(View, frozen=True):
    verdict: str
    """`approve` or `refuse`."""
    summary: str
    findings: tuple[FindingView, ...] = ()


class AttemptView(View, frozen=True):
    number: int
    agent: int
    node: str
    status: str
    outcome: str
    reason: str
    code: int | None
    signal: int | None
    assigned_ms: int
    started_ms: int
    ended_ms: int
    duration_ms: int
    checks: tuple[CheckView, ...]
    tail: tuple[str, ...]
    tokens: int
    cost_usd_micros: int
    rss_bytes_max: int
    folder: str
    """Where the attempt's files are on its node."""
    settled: bool = False
    """`tokens` and the cost are what the gateway settled; else what the agent's program said."""
    question: str = ""
    """What it waits to be answered, or empty."""
    waiting_ms: int = 0
    """Since when it waits."""
    waited_ms: int = 0
    """How long it has waited for answers before, in all."""
    review: ReviewView | None = None
    """What it returned, of a task that reviews another."""
    base: str = ""
    """The commit that an isolated attempt in a repository began from."""
    kept: str = ""
    """Ref (of a copy: folder) with what an isolated attempt did that was not merged; empty: there was nothing, or it still has its place."""


class PredictedConflict(View, frozen=True):
    """Another task has changed the same files, and the work of neither is merged."""

    attempt: int
    """Of this task."""
    other: str
    """The other attempt, as `task#number`."""
    paths: tuple[str, ...]


class TaskView(View, frozen=True):
    """One line of a task list."""

    task: str
    description: str
    status: str
    kind: str
    category: str
    priority: str
    plan: str | None
    needs: tuple[str, ...]
    agents: tuple[int, ...]
    attempts: int
    failures: int
    queued_ms: int
    started_ms: int
    ended_ms: int
    duration_ms: int
    estimate_ms: int
    rank_ms: int
    """Length of the longest remaining path from here on."""
    reason: str = ""
    activity: str = ""
    progress: float | None = None
    question: str = ""
    """What it waits to be answered, or empty."""
    origin: str | None = None
    """The task that planned it."""
    reviews: str | None = None
    """The task whose work it judges."""
    warnings: tuple[str, ...] = ()
    """What was decided otherwise than it was written."""


class TaskDetail(View, frozen=True):
    """Everything about one task."""

    task: TaskView
    explain: str
    attempts: tuple[AttemptView, ...]
    primary_attempt: int
    success_criteria: tuple[str, ...]
    retries: int
    files: tuple[str, ...]
    results: str
    """Folder with result.json, execution.log and what else `orchestra task artifacts` lists."""
    replicas: int = 1
    """Agents that try it side by side."""
    workspace: str = ""
    """The folder it works on; empty: each attempt has a private one."""
    isolated: bool = False
    """Each attempt has a worktree or copy of that folder."""
    branch: str = ""
    """The branch that its work was merged into; empty while nothing is merged."""
    commit: str = ""
    """Where that was then."""
    planned: tuple[str, ...] = ()
    """The tasks it planned."""
    reviewed_by: tuple[str, ...] = ()
    """Reviews whose approval others wait for before they build on it."""
    sent_back: int = 0
    """How often it was completed and had to be done again."""
    judged: tuple[JudgementView, ...] = ()
    """What agents think of those of its criteria that no program can check; said of its latest work."""
    touched: tuple[str, ...] = ()
    """What its attempts have changed so far, as they were last looked at; until their work is merged."""
    conflicts_predicted: tuple[PredictedConflict, ...] = ()


class PlanView(View, frozen=True):
    """One plan at one moment, all its tasks included, in topological order."""

    plan: str
    name: str
    status: str
    source: str
    submitted_ms: int
    closed_ms: int
    now_ms: int
    tasks: tuple[TaskView, ...]
    critical_path: tuple[str, ...]
    """The longest path by estimated (or measured) time, first task first."""


class PlanLine(View, frozen=True):
    plan: str
    name: str
    status: str
    tasks: int
    open: int
    failed: int
    submitted_ms: int
    closed_ms: int


class HealthCheck(View, frozen=True):
    name: str
    ok: bool
    detail: str
    remedy: str = ""


class HealthView(View, frozen=True):
    """Answer to `health`, and the content of the health status file."""

    timestamp: str
    overall_status: str
    checks: tuple[HealthCheck, ...]
    nodes: tuple[NodeView, ...]
    tasks: TaskCounts
    completed_today: int
    failed_today: int
    uptime_seconds: int


class EventView(View, frozen=True):
    """One event for watchers: the ledger's number, the time, and the event as JSON."""

    seq: int
    at_ms: int
    event: msgspec.Raw


class ReportData(View, frozen=True):
    """Everything a run report shows."""

    orchestra: str
    plan: PlanView
    details: tuple[TaskDetail, ...]
    agents: tuple[AgentView, ...]
    made_ms: int
    version: str
    root: str
    rehearsal: bool = False
