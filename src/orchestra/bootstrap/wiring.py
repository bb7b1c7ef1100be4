"""From settings to the small option records of each part."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Final

from orchestra import __version__
from orchestra.app import AppOptions
from orchestra.core import commands as c
from orchestra.core.model import Limits, NodeSpec, TaskDefaults
from orchestra.edges.filerpc.service import FileRpcOptions
from orchestra.engine.driver import DriverOptions
from orchestra.engine.orders import OrderOptions
from orchestra.errors import SettingsInvalid
from orchestra.ids import NodeId
from orchestra.ledgers.sqlite import SqliteOptions
from orchestra.node import Node
from orchestra.nodes.tmux import TmuxOptions
from orchestra.nodes.tmux_node import NodeOptions, TmuxNode
from orchestra.nodes.transport import LocalTransport
from orchestra.root import Root
from orchestra.settings import Settings

LOCAL: Final = NodeId("local")
LOCAL_HOSTS: Final = ("", "local", "localhost", "127.0.0.1", "::1")
LOCAL_AGENTS_MAX: Final = 250
"""The largest fleet the scaling rules know; what the machine really carries is the user's choice of `agents.count`."""


def milliseconds(seconds: float) -> int:
    """Returns whole milliseconds."""
    return round(seconds * 1000)


def policy(settings: Settings) -> c.Policy:
    """Returns the core's limits."""
    limits = settings.limits
    return c.Policy(
        losses_max=limits.losses_max,
        falls_max=settings.recovery.max_recovery_attempts if settings.recovery.auto_recovery_enabled else 0,
        unknown_grace_ms=milliseconds(limits.unknown_grace_seconds),
        init_timeout_ms=milliseconds(limits.init_timeout_seconds),
        tasks_max=limits.tasks,
    )


def ledger_options(root: Root) -> SqliteOptions:
    """Returns where the second high-water mark of a root's ledger is; everybody who opens it must say the same."""
    return SqliteOptions(mark_copy=root.state / "ledger.mark")


def own_umask() -> int:
    """Returns this process's umask; the system only tells it to who sets it."""
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def order_options(settings: Settings) -> OrderOptions:
    """Returns what orders are made with."""
    return OrderOptions(
        grace_ms=milliseconds(settings.tasks.grace_seconds),
        umask=own_umask(),
        output_file_bytes=settings.limits.output_file_bytes,
        line_bytes=settings.limits.line_bytes,
        marker_prefix=settings.marker.prefix,
        marker_suffix=settings.marker.suffix,
        limits=Limits(memory_bytes=settings.limits.agent_memory_mb << 20),
    )


def driver_options(settings: Settings) -> DriverOptions:
    """Returns what node drivers work with."""
    return DriverOptions(sweep_ms=milliseconds(settings.monitoring.health_check_interval))


def rpc_options(settings: Settings) -> FileRpcOptions:
    """Returns the limits of the file interface."""
    return FileRpcOptions(settings.limits.request_bytes, settings.limits.requests_per_second)


def node_specs(settings: Settings) -> tuple[NodeSpec, ...]:
    """Returns the configured nodes, or this machine alone if none is.

    Raises:
        SettingsInvalid: A node is on another machine.
    """
    specs: list[NodeSpec] = []
    for name, node in settings.nodes.items():
        if node.host not in LOCAL_HOSTS:
            raise SettingsInvalid(
                f"node {name!r} is on another machine ({node.host}); this version drives nodes on this machine only",
                field=f"nodes.{name}.host",
                hint="leave `nodes` out to use this machine",
            )
        specs.append(NodeSpec(NodeId(name), max_agents=node.max_agents))
    return tuple(specs) or (NodeSpec(LOCAL, max_agents=LOCAL_AGENTS_MAX),)


def task_defaults(settings: Settings) -> TaskDefaults:
    """Returns what tasks get where nobody says otherwise."""
    tasks = settings.tasks
    return TaskDefaults(
        retries=tasks.retries,
        backoff_ms=milliseconds(tasks.retry_backoff_seconds),
        backoff_max_ms=milliseconds(tasks.retry_backoff_max_seconds),
        timeout_ms=milliseconds(tasks.timeout_seconds),
    )


def app_options(settings: Settings, root: Root) -> AppOptions:
    """Returns what the use cases take from the settings."""
    return AppOptions(
        name=settings.name,
        nodes=node_specs(settings),
        agents_default=settings.agents.count,
        kind_default=settings.agents.kind,
        version=__version__,
        root=str(root.path),
        task_defaults=task_defaults(settings),
    )


def make_node(spec: NodeSpec, root: Root, settings: Settings) -> Node:
    """Returns the adapter of one node."""
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    prefix = f"{settings.tmux.session_prefix}-{spec.id}-"
    options = NodeOptions(
        folder=str(root.nodes / spec.id),
        runtime=str(root.runtime_folder() / spec.id),
        session=prefix + stamp,
        session_prefix=prefix,
        tmux=TmuxOptions(history_lines=settings.tmux.history_lines, command_timeout_ms=milliseconds(settings.tmux.command_timeout_seconds)),
    )
    return TmuxNode(spec.id, LocalTransport(), options)
