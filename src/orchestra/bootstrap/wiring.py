"""From settings to the small option records of each part."""

from __future__ import annotations

import hashlib
import os
import shlex
import socket
import sys
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from orchestra import __version__
from orchestra.agents.access import keys_of
from orchestra.agents.registry import adapters
from orchestra.core import commands as c
from orchestra.core.model import Limits, NodeSpec, TaskDefaults
from orchestra.edges.filerpc.service import FileRpcOptions
from orchestra.engine.driver import DriverOptions
from orchestra.engine.orders import OrderOptions, SandboxOptions
from orchestra.engine.returns import ReturnOptions
from orchestra.errors import SettingsInvalid
from orchestra.fallback import FallbackOptions
from orchestra.ids import AttemptId, NodeId
from orchestra.intake import check_scripts
from orchestra.keeper import KeeperOptions
from orchestra.ledgers.sqlite import SqliteOptions
from orchestra.node import Node
from orchestra.nodes.tmux import TmuxOptions
from orchestra.nodes.tmux_node import NodeOptions, TmuxNode
from orchestra.nodes.transport import PASS_ENVIRONMENT, LocalTransport, Transport
from orchestra.protocol.masking import secret_values
from orchestra.quantity import usd_micros
from orchestra.root import RUNTIME_FOLDERS, Root
from orchestra.scheduling.admission import AdmissionOptions
from orchestra.scheduling.routing import RouteOptions
from orchestra.settings import Settings
from orchestra.settings_schema import KindValue
from orchestra.spacedesk import SpaceOptions
from orchestra.views import REHEARSAL
from orchestra.workbench import AppOptions
from orchestra.workspace import Workspaces
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import WorkspaceOptions
from orchestra.workspaces.remote import RemoteWorkspaces, Site

if TYPE_CHECKING:
    from orchestra.nodes.ssh import SshOptions, SshTarget

FENCE_LOOK_SECONDS: Final = 2.0
"""A worker looks at its lease each second, and the last renewal may have been on its way for as long."""
DAY_MS: Final = 86_400_000
CATEGORIES: Final = ("planning", "review", "coding", "business", "research", "support")
LOCAL: Final = NodeId("local")
LOCAL_HOSTS: Final = ("", "local", "localhost", "127.0.0.1", "::1")
TOOLS: Final = frozenset(
    {"git", "node", "npm", "python3", "uv", "cargo", "go", "java", "make", "gcc", "pytest", "docker", "rsync", "jq", "curl", "bwrap"}
)
PORT_FIRST: Final = 20_000
PORTS: Final = 12_000
PORT_STEP: Final = 3_571
PORTS_TRIED: Final = 3
LOCAL_AGENTS_MAX: Final = 250
"""The largest fleet the scaling rules know; what the machine really carries is the user's choice of `agents.count`."""


def programs_asked() -> tuple[str, ...]:
    """Returns the programs that nodes are asked for: those of the agent kinds, and what tasks often name under `programs`. One that is named by its path is
    not looked for."""
    named = {program for adapter in adapters().values() for program in adapter.programs if "/" not in program}
    return tuple(sorted(named | TOOLS))


def variables_passed(settings: Settings, gateway_apis: Collection[str] = ()) -> tuple[str, ...]:
    """Returns the variables of a node's login that reach its windows: those of every login, and those the agent kinds need. A worker gives an attempt only
    what its kind names. Keys of an API of which a gateway holds the keys stay outside."""
    own = {name for values in kind_settings(settings).values() if (name := values.get("api_key_variable", "").strip())}
    needed = (own if "openai" not in gateway_apis else set()) | {name for adapter in adapters().values() for name in adapter.variables}
    return (*PASS_ENVIRONMENT, *sorted(needed - set(PASS_ENVIRONMENT) - keys_of(gateway_apis)))


def milliseconds(seconds: float) -> int:
    """Returns whole milliseconds."""
    return round(seconds * 1000)


def policy(settings: Settings) -> c.Policy:
    """Returns the core's limits."""
    limits = settings.limits
    fence, stopping = settings.recovery.fence_seconds, settings.tasks.grace_seconds + FENCE_LOOK_SECONDS
    if fence and fence + stopping >= limits.unknown_grace_seconds:
        raise SettingsInvalid(
            f"a machine that is cut off has stopped its work after {fence + stopping:g} s (the fence, {FENCE_LOOK_SECONDS:g} s until it looks, and "
            f"tasks.grace_seconds), but that work is given away after {limits.unknown_grace_seconds:g} s",
            field="recovery.fence_seconds",
            hint="make the fence shorter, or limits.unknown_grace_seconds longer",
        )
    return c.Policy(
        losses_max=limits.losses_max,
        falls_max=settings.recovery.max_recovery_attempts if settings.recovery.auto_recovery_enabled else 0,
        unknown_grace_ms=milliseconds(limits.unknown_grace_seconds),
        init_timeout_ms=milliseconds(limits.init_timeout_seconds),
        tasks_max=limits.tasks,
        strikes_max=settings.recovery.escalation_threshold,
        reserve=settings.agents.reserve,
        planned_tasks_max=settings.planning.tasks_max,
        planning_depth_max=settings.planning.depth_max,
        review_rounds_max=settings.tasks.review_rounds,
        alternatives=(routes := route_options(settings)).alternatives,
        slower_percent=routes.slower_percent,
        kind_programs={name: adapter.programs for name, adapter in adapters().items()},
        kind_failures_max=settings.routing.failures_max,
        kind_retry_ms=milliseconds(settings.routing.retry_minutes * 60),
    )


def ledger_options(root: Root) -> SqliteOptions:
    """Returns where the second high-water mark of a root's ledger is; everybody who opens it must say the same."""
    return SqliteOptions(mark_copy=root.state / "ledger.mark")


def own_umask() -> int:
    """Returns this process's umask; the system only tells it to who sets it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def sandbox_options(settings: Settings, root: Root) -> SandboxOptions:
    """Returns what attempts run in. What the coordinator keeps is not for them to see: ledger, queue, results of others, sockets."""
    own = [*(str(root.path / name) for name in (*RUNTIME_FOLDERS, "config")), str(root.runtime_folder())]
    if settings.gateway.file:
        own.append(str(root.path / Path(settings.gateway.file).expanduser()))
    sandbox = settings.sandbox
    return SandboxOptions(sandbox.mode, sandbox.hide, tuple(own), sandbox.readable, sandbox.writable)


def order_options(
    settings: Settings,
    root: Root,
    gateway_kinds: Mapping[str, tuple[str, ...]] | None = None,
    gateway_logins: Mapping[str, str] | None = None,
) -> OrderOptions:
    """Returns what orders are made with."""
    return OrderOptions(
        grace_ms=milliseconds(settings.tasks.grace_seconds),
        umask=own_umask(),
        output_file_bytes=settings.limits.output_file_bytes,
        line_bytes=settings.limits.line_bytes,
        marker_prefix=settings.marker.prefix,
        marker_suffix=settings.marker.suffix,
        limits=Limits(memory_bytes=settings.limits.agent_memory_mb << 20),
        kinds=kind_settings(settings),
        gateway_kinds=gateway_kinds or {},
        gateway_logins=gateway_logins or {},
        checks={
            check_scripts.TESTS_NAME: settings.verification.tests_command,
            check_scripts.COVERAGE_NAME: settings.verification.coverage_command,
            check_scripts.LINTER_NAME: settings.verification.linter_command,
            check_scripts.BUILD_NAME: settings.verification.build_command,
        },
        affinity_sessions=settings.tasks.affinity_sessions,
        fence=settings.recovery.fence_seconds > 0,
        rehearsal=settings.rehearsal,
        sandbox=sandbox_options(settings, root),
        returns=return_options(settings),
    )


def keeper_options(settings: Settings, keys: Mapping[str, str]) -> KeeperOptions:
    """Returns how results are kept: bounded, and without what the environment here holds as a secret, or held before `keys` were taken out of it."""
    kinds = (value for values in kind_settings(settings).values() for value in secret_values(values))
    limits = settings.limits
    return KeeperOptions(
        limits.attempts_keep, limits.result_file_bytes, (*secret_values({**os.environ, **keys}), *kinds), settings.rehearsal
    )


def return_options(settings: Settings) -> ReturnOptions:
    """Returns what returned plans are held to."""
    return ReturnOptions(settings.planning.tasks_max, settings.planning.kinds, task_defaults(settings), route_options(settings))


def kind_settings(settings: Settings) -> dict[str, dict[str, str]]:
    """Returns the settings of each agent kind as the texts that kinds read."""
    return {kind: {name: _as_text(value) for name, value in values.items()} for kind, values in settings.kinds.items()}


def models_of(settings: Settings) -> dict[str, str]:
    """Returns the model that the settings name for each kind for which they name one."""
    return {kind: model for kind, values in kind_settings(settings).items() if (model := values.get("model", "").strip())}


def _as_text(value: KindValue) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(value) if isinstance(value, tuple) else str(value)


def driver_options(settings: Settings) -> DriverOptions:
    """Returns what node drivers work with."""
    return DriverOptions(
        sweep_ms=milliseconds(settings.monitoring.health_check_interval),
        fence_ms=milliseconds(settings.recovery.fence_seconds),
    )


def rpc_options(settings: Settings) -> FileRpcOptions:
    """Returns the limits of the file interface."""
    return FileRpcOptions(settings.limits.request_bytes, settings.limits.requests_per_second)


def node_specs(settings: Settings) -> tuple[NodeSpec, ...]:
    """Returns the configured nodes, or this machine alone if none is."""
    specs = [
        NodeSpec(
            NodeId(name),
            host="" if node.host in LOCAL_HOSTS and not (node.port or node.ssh_user) else node.host,
            ssh_user=node.ssh_user,
            max_agents=node.max_agents,
            port=node.port,
            zone=node.zone,
            weight=node.weight,
            tags=node.tags,
            agent_memory_bytes=node.agent_memory_mb << 20,
            folder=node.folder,
        )
        for name, node in settings.nodes.items()
    ]
    return tuple(specs) or (NodeSpec(LOCAL, max_agents=LOCAL_AGENTS_MAX),)


def ssh_target(spec: NodeSpec) -> SshTarget:
    """Returns where a node is reached."""
    from orchestra.nodes.ssh import SshTarget  # here and below: loading SSH takes an eighth of a second, for which a local fleet has no use

    return SshTarget(spec.host, spec.ssh_user, spec.port, spec.id)


def ssh_options(settings: Settings) -> SshOptions:
    """Returns how nodes are reached."""
    from orchestra.nodes.ssh import SshOptions

    ssh = settings.ssh
    return SshOptions(
        config_file=ssh.config_file,
        connect_timeout_ms=milliseconds(ssh.connect_timeout_seconds),
        keepalive_ms=milliseconds(ssh.keepalive_seconds),
        passphrase_command=words(ssh.passphrase_command, "ssh.passphrase_command"),
    )


def words(command: str, field: str) -> tuple[str, ...]:
    """Returns a program and its arguments, written as on a command line; no shell sees them.

    Raises:
        SettingsInvalid: A quote is not closed.
    """
    try:
        return tuple(shlex.split(command))
    except ValueError as problem:
        raise SettingsInvalid(f"{command!r} cannot be read as a program and its arguments: {problem}", field=field) from problem


def make_transport(spec: NodeSpec, settings: Settings, root: Root | None = None) -> Transport:
    """Returns what starts programs on a node; of an orchestra's root if attempts there are to reach its gateway."""
    if not spec.remote:
        return LocalTransport()
    from orchestra.nodes.ssh import SshTransport

    options = ssh_options(settings)
    if root is not None:
        options = msgspec.structs.replace(options, exposed_ports=exposed_ports(remote_key(root), spec.id))
    return SshTransport(ssh_target(spec), options)


def exposed_ports(key: str, node: NodeId) -> tuple[int, ...]:
    """Returns the ports at which an orchestra's gateway is reached on a node: always the same ones, below those that systems give out by themselves."""
    number = int(hashlib.sha256(f"{key}:{node}".encode()).hexdigest()[:8], 16)
    return tuple(PORT_FIRST + (number + index * PORT_STEP) % PORTS for index in range(PORTS_TRIED))


def node_folder(spec: NodeSpec, root: Root) -> str:
    """Returns where a node's things are; on another machine a place that no other orchestra uses, not even one with the same root elsewhere."""
    if spec.folder:
        return spec.folder
    return f"~/.local/state/orchestra/{remote_key(root)}/{spec.id}" if spec.remote else str(root.nodes / spec.id)


def remote_key(root: Root) -> str:
    """Returns what tells this orchestra from others on a machine that several use."""
    return hashlib.sha256(f"{socket.gethostname()}:{root.key}".encode()).hexdigest()[:12]


def attempt_place(spec: NodeSpec | None, root: Root, attempt: AttemptId) -> str:
    """Returns where an attempt's files are, for people."""
    if spec is None or not spec.remote:
        return root.attempt_folder(NodeId("") if spec is None else spec.id, attempt)
    return f"{spec.host}:{node_folder(spec, root)}/attempts/{attempt.task}/{attempt.number}"


def admission_options(settings: Settings) -> AdmissionOptions:
    """Returns how much nodes are asked to carry."""
    admission = settings.admission
    return AdmissionOptions(
        memory_reserve_percent=admission.memory_reserve_percent,
        load_per_cpu_max=admission.load_per_cpu_max,
        disk_free_bytes_min=admission.disk_free_mb_min << 20,
        footprints={name: adapter.memory_bytes for name, adapter in adapters().items()},
        zone_running_max=admission.zone_running_max,
    )


def fallback_options(settings: Settings) -> FallbackOptions:
    """Returns what happens when every other machine is lost."""
    fallback = settings.fallback
    return FallbackOptions(fallback.local_agents, milliseconds(fallback.after_seconds), settings.agents.kind)


def task_defaults(settings: Settings) -> TaskDefaults:
    """Returns what tasks get where nobody says otherwise."""
    tasks = settings.tasks
    return TaskDefaults(
        retries=tasks.retries,
        backoff_ms=milliseconds(tasks.retry_backoff_seconds),
        backoff_max_ms=milliseconds(tasks.retry_backoff_max_seconds),
        timeout_ms=milliseconds(tasks.timeout_seconds),
        kinds={name: kind for name in CATEGORIES if (kind := getattr(settings.routing, name))},
        judge=tasks.judge_criteria,
    )


def gateway_file(settings: Settings, root: Root) -> Path:
    """Returns the gateway's own file that the settings name; a relative path counts from the root."""
    return root.path / Path(settings.gateway.file).expanduser()


def route_options(settings: Settings) -> RouteOptions:
    """Returns who stands in for whom."""
    if settings.rehearsal:
        return RouteOptions()  # a recorded agent plays every kind, installed or not
    pairs = (pair.partition("=") for pair in settings.routing.alternatives)
    return RouteOptions({kind: other for kind, _, other in pairs}, settings.routing.slower_percent)


def app_options(settings: Settings, root: Root) -> AppOptions:
    """Returns what the use cases take from the settings."""
    cost = settings.cost
    daily = usd_micros(cost.daily_budget_usd, field="cost.daily_budget_usd") if cost.tracking_enabled else 0
    return AppOptions(
        name=settings.name,
        nodes=node_specs(settings),
        agents_default=settings.agents.count,
        kind_default=settings.agents.kind,
        version=__version__,
        root=str(root.path),
        task_defaults=task_defaults(settings),
        rehearsal=settings.rehearsal,
        models=models_of(settings),
        day_budget_usd_micros=daily or -1,
        gateway_file=str(gateway_file(settings, root)) if settings.gateway.file else "",
        spaces=space_options(settings),
        routes=route_options(settings),
        directory=started_in(settings),
    )


def started_in(settings: Settings) -> str:
    """Returns the folder that submitted tasks work in where nobody names one: that of the settings, else where this process was started. Nothing where that is
    `/`, as for services, which does not mean the whole machine; or where its name cannot be written down.
    """
    if settings.tasks.workspace:
        return str(Path(settings.tasks.workspace).expanduser())
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return ""
    return here if here != "/" and here.isprintable() else ""


def space_options(settings: Settings) -> SpaceOptions:
    """Returns how long workspaces are kept."""
    own = settings.workspaces
    return SpaceOptions(
        keep_ms=round(own.keep_days * DAY_MS),
        quota_bytes=own.disk_quota_mb << 20,
        refs_keep_ms=round(own.refs_keep_days * DAY_MS),
        tidy_ms=milliseconds(own.tidy_minutes * 60),
    )


def make_workspaces(spec: NodeSpec, root: Root, transport: Transport) -> Workspaces:
    """Returns the workspaces on a node. They lie outside every checkout, also where the root lies in one."""
    if not spec.remote:
        return Site(transport, workspace_options(spec.id, root, sys.executable)).spaces()
    home = Site(LocalTransport(), workspace_options(LOCAL, root, sys.executable))
    return RemoteWorkspaces(home, Site(transport, workspace_options(spec.id, root)))


def workspace_options(node: NodeId, root: Root, python: str = "python3") -> WorkspaceOptions:
    """Returns where workspaces lie on a machine, and whose they are. `python3` itself may be a shim that costs a tenth of a second a start."""
    machine = MachineOptions(folder=f"~/.local/state/orchestra/{remote_key(root)}/{node}/work", python=python)
    return WorkspaceOptions(machine=machine, owner=root.key)


def make_node(spec: NodeSpec, root: Root, settings: Settings, transport: Transport, gateway_apis: Collection[str] = ()) -> Node:
    """Returns the adapter of one node."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    prefix = f"{f'{REHEARSAL}-' if settings.rehearsal else ''}{settings.tmux.session_prefix}-{spec.id}-"
    options = NodeOptions(
        folder=node_folder(spec, root),
        runtime=f"/tmp/orchestra-{{uid}}-{remote_key(root)}/{spec.id}" if spec.remote else str(root.runtime_folder() / spec.id),
        session=prefix + stamp,
        session_prefix=prefix,
        tmux=TmuxOptions(
            history_lines=settings.tmux.history_lines,
            command_timeout_ms=milliseconds(settings.tmux.command_timeout_seconds),
            pass_environment=variables_passed(settings, gateway_apis),
        ),
        programs=programs_asked(),
    )
    return TmuxNode(spec.id, transport, options)
