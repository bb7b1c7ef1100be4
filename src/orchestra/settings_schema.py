"""Every setting with its unit, default, range and reason. The sections up to `cost` are laid out as in published `orchestra.yaml` files."""

from __future__ import annotations

import re
from typing import Annotated, Final, Literal

import msgspec
from msgspec import Meta

from orchestra.ids import NAME

NAME_PATTERN: Final = f"^{NAME.pattern}(?!\\n)$"
SECRET: Final = re.compile(
    r"(?:^|_)(?:key|keys|token|secret|secrets|password|passwords|passphrase)(?:$|_)|(?:key|token|secret|password)$", re.IGNORECASE
)
MASK: Final = "********"
YEAR_SECONDS: Final = 31_536_000

Name = Annotated[str, Meta(pattern=NAME_PATTERN, extra={"says": "a plain name (letters, digits, '.', '_' or '-')"})]
OptionalName = Annotated[str, Meta(pattern=f"^(?:{NAME.pattern})?(?!\\n)$", extra={"says": "a plain name, or nothing"})]
StandIn = Annotated[str, Meta(pattern=f"^{NAME.pattern}={NAME.pattern}(?!\\n)$", extra={"says": "two agent kinds as KIND=OTHER"})]
Line = Annotated[str, Meta(max_length=255, pattern=r"^[^\u0000-\u001f]*(?!\n)$", extra={"says": "one line of text"})]
Host = Annotated[
    str,
    Meta(max_length=255, pattern=r"^(?:[A-Za-z0-9_\[:][^\s\u0000-\u001f]*)?(?!\n)$", extra={"says": "a host name or address, or nothing"}),
]
Place = Annotated[
    str, Meta(max_length=4096, pattern=r"^(?:/|~(?:/|$))[^\u0000-\u001f]*(?!\n)$", extra={"says": "a path that begins with / or ~/"})
]
OwnFolder = Annotated[
    str,
    Meta(
        max_length=4096,
        pattern=r"^(?:(?:/|~(?:/|$))[^\u0000-\u001f]*)?(?!\n)$",
        extra={"says": "a path that begins with / or ~/, or nothing"},
    ),
]
Seconds = Annotated[float, Meta(ge=0.001, le=YEAR_SECONDS)]
Wait = Annotated[float, Meta(ge=0, le=YEAR_SECONDS)]
Days = Annotated[float, Meta(ge=0, le=3650)]
Count = Annotated[int, Meta(ge=0, le=1_000_000_000)]
Positive = Annotated[int, Meta(ge=1, le=1_000_000_000)]
Dollars = Annotated[float, Meta(ge=0, le=10_000_000)]


def is_secret(name: str) -> bool:
    """Tells whether a setting of that name must not be shown."""
    return SECRET.search(name) is not None


class Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Base of every section: nothing unknown passes, and secrets are not shown."""

    def __repr__(self) -> str:
        shown = (f"{name}={MASK if is_secret(name) else repr(getattr(self, name))}" for name in self.__struct_fields__)
        return f"{type(self).__name__}({', '.join(shown)})"


class Node(Section, frozen=True, kw_only=True):
    host: Annotated[Host, Meta(description="Host to reach by SSH; empty is this machine.")] = ""
    ssh_user: Annotated[OptionalName, Meta(description="User to log in as; empty leaves it to the SSH configuration.")] = ""
    max_agents: Annotated[int, Meta(ge=1, le=10_000, description="Most agents it takes; about 100 windows a tmux session stay handy.")] = (
        100
    )
    port: Annotated[int, Meta(ge=0, le=65_535, description="Port of its SSH server; 0 leaves it to the SSH configuration.")] = 0
    zone: Annotated[OptionalName, Meta(description="Failure domain it belongs to, for example a region.")] = ""
    weight: Annotated[int, Meta(ge=1, le=10_000, description="Capability in percent of an ordinary machine.")] = 100
    tags: Annotated[tuple[Name, ...], Meta(max_length=100, description="What tasks may ask for under `tags`.")] = ()
    agent_memory_mb: Annotated[
        Count, Meta(description="MiB to count for one attempt there; 0 means as much as attempts of its kind have used.")
    ] = 0
    folder: Annotated[
        Line, Meta(description="Where its things are kept; ~/ is its home. Empty is ~/.local/state/orchestra, or the root on this machine.")
    ] = ""


class RateLimits(Section, frozen=True, kw_only=True):
    rpm: Annotated[Count, Meta(description="Requests a minute to each class of models; 0 goes by what the provider says.")] = 0
    tpm: Annotated[Count, Meta(description="Tokens a minute to each class of models; 0 goes by what the provider says.")] = 0


class ApiRetry(Section, frozen=True, kw_only=True):
    max_attempts: Annotated[int, Meta(ge=1, le=100, description="Tries of one API request; five ride out a short overload.")] = 5
    backoff_multiplier: Annotated[float, Meta(ge=1, le=100, description="Factor from one wait to the next.")] = 2.0


class Api(Section, frozen=True, kw_only=True):
    provider: Annotated[Name, Meta(description="Whose API the agents use when they do not say.")] = "anthropic"
    rate_limits: RateLimits = RateLimits()
    retry: ApiRetry = ApiRetry()


class Monitoring(Section, frozen=True, kw_only=True):
    health_check_interval: Annotated[Seconds, Meta(description="Seconds between sweeps of all agents; events are acted on at once.")] = 60.0
    state_snapshot_interval: Annotated[Seconds, Meta(description="Seconds between snapshots; bounds how much is replayed at a start.")] = (
        300.0
    )


class Recovery(Section, frozen=True, kw_only=True):
    auto_recovery_enabled: Annotated[bool, Meta(description="Whether fallen agents are started again.")] = True
    max_recovery_attempts: Annotated[int, Meta(ge=0, le=1000, description="Restarts of one agent before it is left alone.")] = 3
    escalation_threshold: Annotated[
        int, Meta(ge=1, le=1000, description="Failed checks in a row before an agent counts as unhealthy and is restarted.")
    ] = 3
    fence_seconds: Annotated[
        Wait, Meta(description="Seconds without a word of ours after which a machine stops what it runs; 0 lets it go on.")
    ] = 0.0


class Cost(Section, frozen=True, kw_only=True):
    tracking_enabled: Annotated[bool, Meta(description="Whether model cost is counted.")] = True
    daily_budget_usd: Annotated[Dollars, Meta(description="Dollars a day; what happens then says on_spent. 0 means none.")] = 100.0
    task_budget_usd: Annotated[
        Dollars, Meta(description="Dollars after which a task that does not say what it may cost waits for you; 0 means none.")
    ] = 10.0
    on_spent: Annotated[
        Literal["pause", "park", "stop"],
        Meta(description="When a budget is spent: pause waits for you, park lets critical tasks go on, stop ends what it is of."),
    ] = "pause"


class Gateway(Section, frozen=True, kw_only=True):
    mode: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="The proxy that holds keys, limits and budgets: auto starts it where there is a key for it, off leaves keys to the agents."
        ),
    ] = "auto"
    file: Annotated[
        Line, Meta(description="Its own file, from the root; empty makes one of the keys in the environment, api and cost.")
    ] = ""


class Ssh(Section, frozen=True, kw_only=True):
    config_file: Annotated[Line, Meta(description="Client configuration that is honoured; ~/ is your home. Empty is none.")] = (
        "~/.ssh/config"
    )
    connect_timeout_seconds: Annotated[Seconds, Meta(description="Seconds until a machine must have let us in.")] = 10.0
    keepalive_seconds: Annotated[
        Seconds, Meta(description="Seconds of silence before a machine is asked for a sign of life; it is lost after three times that.")
    ] = 5.0
    passphrase_command: Annotated[
        Line, Meta(description="Program with arguments (no shell) that prints the passphrase of your key; ssh-agent needs none.")
    ] = ""


class Admission(Section, frozen=True, kw_only=True):
    memory_reserve_percent: Annotated[int, Meta(ge=0, le=90, description="Share of a machine's memory that attempts are not given.")] = 5
    load_per_cpu_max: Annotated[
        float,
        Meta(ge=0, le=10_000, description="Load a core above which nothing more is started there; 0 means no limit. Agents mostly wait."),
    ] = 16.0
    disk_free_mb_min: Annotated[Count, Meta(description="MiB of disk that must be free for an attempt to start; 0 means no limit.")] = 64
    zone_running_max: Annotated[Count, Meta(description="Attempts at the same time in one zone; 0 means no limit.")] = 0


class Fallback(Section, frozen=True, kw_only=True):
    local_agents: Annotated[
        int, Meta(ge=0, le=10_000, description="Agents to start on this machine when every other one is lost; 0 means to wait for them.")
    ] = 0
    after_seconds: Annotated[Seconds, Meta(description="Seconds without any machine before that.")] = 60.0


class Provisioner(Section, frozen=True, kw_only=True):
    command: Annotated[
        Line, Meta(description="Program with arguments (no shell) that makes machines when a scaling needs more room; none if empty.")
    ] = ""
    timeout_seconds: Annotated[Seconds, Meta(description="Seconds it may take; starting a machine takes minutes.")] = 600.0


class Workspaces(Section, frozen=True, kw_only=True):
    verify_merges: Annotated[
        bool, Meta(description="Whether a task's checks are run again on a merge that brings together what was only verified apart.")
    ] = True
    serialise_overlaps: Annotated[
        bool,
        Meta(
            description="Whether isolated tasks of a plan wait for those that declare, or have changed, files that they declare; "
            "a conflict costs more than a wait."
        ),
    ] = True
    look_seconds: Annotated[
        Wait,
        Meta(
            description="Seconds between two looks at what running isolated attempts have changed so far; 0 means not to look. "
            "A look costs about what `git status` does."
        ),
    ] = 20.0
    keep_days: Annotated[
        Days,
        Meta(description="Days a workspace stays that nobody let go of; long enough to look at what failed before a weekend."),
    ] = 7.0
    disk_quota_mb: Annotated[
        Count, Meta(description="MiB that workspaces may take on a machine before the oldest that are not in use go; 0 means no limit.")
    ] = 20_480
    tidy_minutes: Annotated[
        Wait,
        Meta(description="Minutes between two looks for workspaces to let go of; 0 means only `orchestra workspace gc` does."),
    ] = 60.0
    refs_keep_days: Annotated[
        Days, Meta(description="Age in days from which `orchestra workspace gc --refs` forgets unmerged work; nothing else does.")
    ] = 30.0


class Agents(Section, frozen=True, kw_only=True):
    count: Annotated[
        int, Meta(ge=1, le=10_000, description="Agents when neither the plan nor the request says; few enough for a laptop.")
    ] = 4
    kind: Annotated[Name, Meta(description="Their kind; `any` takes tasks of every kind.")] = "any"
    reserve: Annotated[
        int, Meta(ge=0, le=10_000, description="Further agents that may be started in the place of ones that are out of order.")
    ] = 0


KindValue = str | bool | int | float | tuple[str, ...]
"""A setting of an agent kind. What it may be is the kind's business; it gets it as text."""


class Tasks(Section, frozen=True, kw_only=True):
    retries: Annotated[int, Meta(ge=0, le=100, description="How often a failed task is tried again.")] = 3
    retry_backoff_seconds: Annotated[Wait, Meta(description="Seconds before the first retry; doubles with each.")] = 60.0
    retry_backoff_max_seconds: Annotated[Wait, Meta(description="Longest wait in seconds before a retry.")] = 3600.0
    timeout_seconds: Annotated[Seconds, Meta(description="Seconds an attempt may run when its task does not say.")] = 3600.0
    grace_seconds: Annotated[Wait, Meta(description="Seconds from the request to stop to the kill; time to write files out.")] = 5.0
    affinity_sessions: Annotated[
        bool, Meta(description="A task goes on with its agent's session of the last one with the same `affinity`, which knows the matter.")
    ] = True
    workspace: Annotated[
        OwnFolder,
        Meta(description="Folder of submitted tasks that name none. Empty: where the orchestra was started, which is mostly the project."),
    ] = ""
    judge_criteria: Annotated[
        bool, Meta(description="Whether an agent judges criteria that no program can check; else they are refused.")
    ] = True
    review_rounds: Annotated[
        int, Meta(ge=0, le=100, description="How often a review may send a task back; what two rounds do not mend needs a person.")
    ] = 1


class Routing(Section, frozen=True, kw_only=True):
    planning: Annotated[
        OptionalName, Meta(description="Agent kind of tasks that return a plan; of prompts that name none, as all of these.")
    ] = "claude"
    review: Annotated[OptionalName, Meta(description="Agent kind of reviews, and of what judges criteria.")] = "claude"
    coding: Annotated[OptionalName, Meta(description="Agent kind of the category coding: one implements, another one reviews.")] = "codex"
    business: Annotated[OptionalName, Meta(description="Agent kind of the category business.")] = "claude"
    research: Annotated[OptionalName, Meta(description="Agent kind of the category research.")] = "claude"
    support: Annotated[OptionalName, Meta(description="Agent kind of the category support.")] = "claude"
    alternatives: Annotated[
        tuple[StandIn, ...],
        Meta(max_length=100, description="KIND=OTHER: who takes the tasks of a kind that no node has; without, they are refused or wait."),
    ] = ("codex=claude",)
    slower_percent: Annotated[int, Meta(ge=0, le=1000, description="Added to the estimate of tasks that another kind takes.")] = 50
    failures_max: Annotated[
        int,
        Meta(
            ge=0,
            le=10,
            description="Tasks in a row that fail as the kind's program or login does not work, until others go elsewhere. 0: never.",
        ),
    ] = 2
    retry_minutes: Annotated[
        float, Meta(gt=0, le=10_080, description="After which a kind whose login failed is tried again; somebody has to mend it meanwhile.")
    ] = 15


class Planning(Section, frozen=True, kw_only=True):
    tasks_max: Annotated[
        int, Meta(ge=1, le=10_000, description="Tasks one returned plan may add; more are a mistake rather than a plan.")
    ] = 50
    depth_max: Annotated[
        int, Meta(ge=1, le=10, description="How many tasks may plan one another in a row; an agent that plans planners never ends.")
    ] = 2
    kinds: Annotated[tuple[Name, ...], Meta(max_length=100, description="Agent kinds that planned tasks may have; none means all.")] = ()


class Sandbox(Section, frozen=True, kw_only=True):
    mode: Annotated[
        Literal["auto", "on", "off"],
        Meta(
            description="Where attempts run in a sandbox. auto: those of coding agents, on machines that can; on: all, and where one cannot the attempt "
            "is refused; off: none."
        ),
    ] = "auto"
    hide: Annotated[tuple[Place, ...], Meta(max_length=1000, description="Further folders and files that are not to be seen in it.")] = ()
    readable: Annotated[
        tuple[Place, ...], Meta(max_length=1000, description="Folders and files that are to be seen though it would hide them.")
    ] = ()
    writable: Annotated[
        tuple[Place, ...], Meta(max_length=1000, description="Further folders that can be written in it, for example a cache.")
    ] = ()


class Limits(Section, frozen=True, kw_only=True):
    tasks: Annotated[Positive, Meta(description="Tasks the orchestra holds, ended ones included; bounds memory and snapshots.")] = 200_000
    request_bytes: Annotated[int, Meta(ge=1024, le=1_073_741_824, description="Bytes of one request; larger ones are refused unread.")] = (
        1_048_576
    )
    requests_per_second: Annotated[Positive, Meta(description="Requests a second from one caller; a loop gone wild is slowed.")] = 50
    losses_max: Annotated[
        int, Meta(ge=1, le=1000, description="Times a task may lose its worker before it fails; it may be the cause.")
    ] = 5
    unknown_grace_seconds: Annotated[Wait, Meta(description="Seconds an attempt out of sight is waited for before another starts.")] = 300.0
    init_timeout_seconds: Annotated[Seconds, Meta(description="Seconds until nodes must have answered at the start.")] = 60.0
    output_file_bytes: Annotated[Positive, Meta(description="Bytes kept of one attempt's output; the rest is dropped and marked.")] = (
        16_777_216
    )
    line_bytes: Annotated[int, Meta(ge=256, le=16_777_216, description="Bytes of one output line; longer ones are cut into several.")] = (
        65_536
    )
    agent_memory_mb: Annotated[Count, Meta(description="MiB a process of an agent may use unless its task says; 0 means no limit.")] = 0
    result_file_bytes: Annotated[
        int,
        Meta(
            ge=1024,
            le=1_073_741_824,
            description="Bytes of output and of test results kept with a task's results, fetched from its node; people read no more.",
        ),
    ] = 4_194_304
    attempts_keep: Annotated[
        Count, Meta(description="Folders of attempts kept on the nodes, newest tasks first; 0 keeps all. Results stay.")
    ] = 10_000


class Verification(Section, frozen=True, kw_only=True):
    tests_command: Annotated[
        Line, Meta(description="Shell command for `All tests pass`; empty finds the project's own runners by its files.")
    ] = ""
    coverage_command: Annotated[
        Line, Meta(description="Shell command for `Code coverage > N%`; the last percentage of a total it prints counts.")
    ] = ""
    linter_command: Annotated[
        Line, Meta(description="Shell command for `Linter passes`; empty finds the linter by the project's files.")
    ] = ""
    build_command: Annotated[Line, Meta(description="Shell command for `Builds`; empty finds the build tool by the project's files.")] = ""


class Tmux(Section, frozen=True, kw_only=True):
    history_lines: Annotated[
        int, Meta(ge=0, le=1_000_000, description="Lines a window remembers, as tmux itself has it; logs hold the rest.")
    ] = 2000
    command_timeout_seconds: Annotated[Seconds, Meta(description="Seconds until tmux must have answered; a wedged server never does.")] = (
        5.0
    )
    session_prefix: Annotated[Name, Meta(description="Start of the session names, which go on with node and time.")] = "miyabi-orchestra"


class Marker(Section, frozen=True, kw_only=True):
    prefix: Annotated[Line, Meta(min_length=1, description="What stands before the id in the line that ends an attempt's output.")] = (
        "---END-OF-OUTPUT-"
    )
    suffix: Annotated[Line, Meta(description="What stands after it.")] = "---"


class Sections(Section, frozen=True, kw_only=True):
    """What may stand under `orchestra:` in the file."""

    name: Annotated[Name, Meta(description="Name of this orchestra, for people.")] = "miyabi-orchestra"
    version: Annotated[Line, Meta(description="Version of the file's layout, as its author counts.")] = "2.0.0"
    nodes: Annotated[dict[Name, Node], Meta(max_length=1000, description="The machines; none means this one only.")] = msgspec.field(
        default_factory=dict
    )
    api: Api = Api()
    monitoring: Monitoring = Monitoring()
    recovery: Recovery = Recovery()
    gateway: Gateway = Gateway()
    ssh: Ssh = Ssh()
    admission: Admission = Admission()
    fallback: Fallback = Fallback()
    provisioner: Provisioner = Provisioner()
    cost: Cost = Cost()
    workspaces: Workspaces = Workspaces()
    agents: Agents = Agents()
    kinds: Annotated[dict[Name, dict[Name, KindValue]], Meta(max_length=1000, description="Settings of agent kinds, by kind and name.")] = (
        msgspec.field(default_factory=dict)
    )
    tasks: Tasks = Tasks()
    sandbox: Sandbox = Sandbox()
    planning: Planning = Planning()
    routing: Routing = Routing()
    limits: Limits = Limits()
    verification: Verification = Verification()
    tmux: Tmux = Tmux()
    marker: Marker = Marker()
    rehearsal: Annotated[
        bool, Meta(description="Whether what the agents do is recorded and no model is asked; every screen, report and result says so.")
    ] = False
    heartbeat_seconds: Annotated[Seconds, Meta(description="Seconds between heartbeats of the orchestra to its parent.")] = 60.0
