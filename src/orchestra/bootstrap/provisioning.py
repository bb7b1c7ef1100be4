"""New machines by a program of the user's: it is told what is missing and says which machines are there now.

It gets JSON on its standard input, `{"wanted_agents": 40, "nodes": {"mugen": {"host": ..., "max_agents": 100}}}`, and prints JSON in the layout of the
settings, `{"nodes": {"gamma": {"host": "10.0.0.7", "ssh_user": "ubuntu", "max_agents": 50}}}`. What it prints on its error output is shown if it fails.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final

import msgspec

from orchestra.bootstrap.wiring import milliseconds, node_specs, words
from orchestra.core.model import NodeSpec
from orchestra.errors import PortFailed, SettingsInvalid
from orchestra.fleetdesk import Wanted
from orchestra.nodes.transport import LocalTransport
from orchestra.settings import Settings, load

SHOWN_CHARACTERS: Final = 400
FIELD: Final = "provisioner.command"


def provisioner(settings: Settings) -> Callable[[Wanted], Awaitable[tuple[NodeSpec, ...]]] | None:
    """Returns what asks the configured program for machines, or None if none is configured."""
    argv = words(settings.provisioner.command, FIELD)
    if not argv:
        return None
    timeout_ms = milliseconds(settings.provisioner.timeout_seconds)

    async def provision(wanted: Wanted) -> tuple[NodeSpec, ...]:
        return await ask(argv, wanted, timeout_ms)

    return provision


async def ask(argv: Sequence[str], wanted: Wanted, timeout_ms: int) -> tuple[NodeSpec, ...]:
    """Runs the program and returns the machines it named.

    Raises:
        PortFailed: It failed, took too long, or named nothing that can be used. Nothing was added.
    """
    try:
        done = await LocalTransport().run(argv, stdin=json.dumps(_request(wanted)).encode(), timeout_ms=timeout_ms)
    except TimeoutError as late:
        raise PortFailed(
            f"{argv[0]} did not end within {timeout_ms // 1000} s", field=FIELD, hint="raise provisioner.timeout_seconds"
        ) from late
    said = (done.err or done.out).decode(errors="replace").strip()[-SHOWN_CHARACTERS:]
    if done.code != 0:
        raise PortFailed(f"{argv[0]} ended with code {done.code}: {said or 'it said nothing'}", field=FIELD, hint="run it by hand")
    specs = _nodes_of(done.out, argv[0])
    if not specs:
        raise PortFailed(f"{argv[0]} named no machine", field=FIELD, hint='it prints {"nodes": {NAME: {"host": ...}}}')
    return specs


def _request(wanted: Wanted) -> dict[str, Any]:
    nodes = {node.id: {"host": node.host, "max_agents": node.max_agents, "zone": node.zone} for node in wanted.nodes}
    return {"wanted_agents": wanted.agents, "nodes": nodes}


def _nodes_of(out: bytes, program: str) -> tuple[NodeSpec, ...]:
    try:
        answer = msgspec.json.decode(out, type=dict[str, Any])
        nodes = answer.get("nodes")
        if not isinstance(nodes, dict) or not nodes:
            return ()
        return node_specs(load(json.dumps({"orchestra": {"nodes": nodes}}), program, {}, {}))
    except (msgspec.DecodeError, msgspec.ValidationError) as problem:
        raise PortFailed(f"{program} printed no JSON: {problem}", field=FIELD, hint="its error output is the place for words") from problem
    except SettingsInvalid as problem:
        raise PortFailed(f"{program} named a machine that cannot be used: {problem}", field=FIELD) from problem
