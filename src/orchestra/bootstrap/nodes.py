"""The machines of a fleet as seen from here, without a coordinator: can each be logged in to, is everything there, whose key does it show."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Final

import msgspec

from orchestra.agents.registry import adapters
from orchestra.bootstrap.coordinator import restore_kernel
from orchestra.bootstrap.wiring import ledger_options, make_transport, node_folder, node_specs, policy, programs_asked, ssh_options
from orchestra.core.model import Lifecycle, NodeSpec
from orchestra.errors import HostKeyRefused, LoginRefused, NodeFailed, NodeUnreachable, NotFound
from orchestra.intake.shape import nearest
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.nodes.probe import Finding, NodeProbe, findings, probe
from orchestra.nodes.transport import Transport
from orchestra.root import Root
from orchestra.settings import Settings

LOOKS_MAX: Final = 32
"""Machines looked at at the same time: each is a login, and most of the time is waiting."""
LOGIN_TIMEOUT_MS: Final = 20_000
VERSION_TIMEOUT_MS: Final = 20_000
"""Some are programs in Python that load for seconds."""
VERSION_CHARACTERS: Final = 60
ANY_KIND: Final = "any"


# --- which machines ----------------------------------------------------------------------------------------------------


def known_nodes(root: Path, settings: Settings) -> tuple[NodeSpec, ...]:
    """Returns the configured nodes and those that the orchestra of this root has taken in besides; for one that both know, what it uses holds.

    Raises:
        LedgerDamaged: Its ledger cannot be read.
    """
    taken = {spec.id: spec for spec in _taken(Root(root), settings)}
    if taken and not settings.nodes:
        return tuple(taken.values())  # this machine alone is meant only where there is no other
    return tuple(({spec.id: spec for spec in node_specs(settings)} | taken).values())


def _taken(place: Root, settings: Settings) -> tuple[NodeSpec, ...]:
    """The nodes of an orchestra that has not ended."""
    if not (place.ledger / "ledger.db").exists():
        return ()
    ledger = SqliteLedger.open_readonly(place.ledger, ledger_options(place))
    try:
        state = restore_kernel(ledger, policy(settings)).state
    finally:
        ledger.close()
    return () if state.lifecycle is Lifecycle.TERMINATED else tuple(node.spec for node in state.nodes.values())


def choose_nodes(specs: Sequence[NodeSpec], names: Iterable[str]) -> tuple[NodeSpec, ...]:
    """Returns the named ones, each once; all if none is named.

    Raises:
        NotFound: There is no node of that name.
    """
    known = {str(spec.id): spec for spec in specs}
    wanted = tuple(dict.fromkeys(names))
    for name in wanted:
        if name not in known:
            raise unknown_node(name, known)
    return tuple(known[name] for name in wanted) or tuple(specs)


def unknown_node(name: str, known: Mapping[str, NodeSpec], more: str = "") -> NotFound:
    close = nearest(name, known)
    return NotFound(
        f"there is no node {name[:80]!r}",
        field="node",
        hint=(f"did you mean {close!r}?" if close else f"there are {', '.join(known)}") + more,
    )


# --- is everything there -----------------------------------------------------------------------------------------------


class NodeCheck(msgspec.Struct, frozen=True):
    """What a look at one machine found."""

    node: str
    host: str
    """Empty for this machine."""
    usable: bool
    """Agents can be started there."""
    findings: tuple[Finding, ...]


async def check_nodes(root: Path, settings: Settings, specs: Sequence[NodeSpec]) -> tuple[NodeCheck, ...]:
    """Looks at machines, all at the same time; changes nothing there.

    Raises:
        SettingsInvalid: What is set about SSH cannot be used.
    """
    ssh_options(settings)
    places = asyncio.Semaphore(LOOKS_MAX)

    async def look(spec: NodeSpec) -> NodeCheck:
        async with places:
            return await _check_node(spec, Root(root), settings)

    async with asyncio.TaskGroup() as group:
        looks = [group.create_task(look(spec)) for spec in specs]
    return tuple(each.result() for each in looks)


async def _check_node(spec: NodeSpec, place: Root, settings: Settings) -> NodeCheck:
    transport = make_transport(spec, settings)
    try:
        seen = await probe(transport, spec.id, node_folder(spec, place), programs_asked())
    except NodeFailed as error:
        found = way_in(spec, error)
    else:
        found = (*way_in(spec, None), *findings(seen), kinds_finding(seen, settings.agents.kind))
    finally:
        await transport.close()
    return NodeCheck(spec.id, spec.host, not any(each.fatal for each in found), found)


# --- which kinds of agents -----------------------------------------------------------------------------------------------


class NodeKinds(msgspec.Struct, frozen=True):
    """The programs of agent kinds on one machine."""

    node: str
    problem: str
    """Why nothing is known of it, or empty."""
    programs: dict[str, str]
    """Paths of those that are there."""
    versions: dict[str, str]
    """What they say of themselves, as far as they were asked; empty where one said nothing in time."""


async def kinds_on(root: Path, settings: Settings, specs: Sequence[NodeSpec], *, versions: bool) -> tuple[NodeKinds, ...]:
    """Looks for the programs of all agent kinds on machines, all at the same time; `versions`: asks each program for its own.

    Raises:
        SettingsInvalid: What is set about SSH cannot be used.
    """
    ssh_options(settings)
    places = asyncio.Semaphore(LOOKS_MAX)
    wanted = sorted({program for adapter in adapters().values() for program in adapter.programs})

    async def look(spec: NodeSpec) -> NodeKinds:
        async with places:
            transport = make_transport(spec, settings)
            try:
                seen = await probe(transport, spec.id, node_folder(spec, Root(root)), wanted)
                said = [await _version(transport, path) for path in seen.programs.values()] if versions else []
            except NodeFailed as error:
                return NodeKinds(spec.id, error.message, {}, {})
            finally:
                await transport.close()
            return NodeKinds(spec.id, "", seen.programs, dict(zip(seen.programs, said, strict=False)))

    async with asyncio.TaskGroup() as group:
        looks = [group.create_task(look(spec)) for spec in specs]
    return tuple(each.result() for each in looks)


async def _version(transport: Transport, path: str) -> str:
    try:
        done = await transport.run([path, "--version"], timeout_ms=VERSION_TIMEOUT_MS)
    except TimeoutError:
        return ""
    lines = done.out.decode(errors="replace").split("\n")
    return "" if done.code else next((line.strip()[:VERSION_CHARACTERS] for line in lines if line.strip()), "")


def way_in(spec: NodeSpec, error: NodeFailed | None) -> tuple[Finding, ...]:
    """Returns the steps to a machine: those that were made, and the one that was not."""
    steps: list[tuple[str, str, type[NodeFailed]]] = []
    if spec.remote:
        who = f" as {spec.ssh_user}" if spec.ssh_user else ""
        steps = [
            ("reachable", f"{spec.host} answers", NodeUnreachable),
            ("host key", "it shows the key that is known", HostKeyRefused),
            ("login", f"it lets us in{who}", LoginRefused),
        ]
    failed = {HostKeyRefused: 1, LoginRefused: 2, NodeUnreachable: 0}
    at = len(steps) if error is None else next((step for kind, step in failed.items() if isinstance(error, kind)), len(steps))
    made = tuple(Finding(name, True, detail) for name, detail, _ in steps[:at])
    if error is None:
        return made
    name = steps[at][0] if at < len(steps) else "python"
    return (*made, Finding(name, False, error.message, error.hint, fatal=True))


def kinds_finding(seen: NodeProbe, wanted: str) -> Finding:
    """Says which kinds of agents have their programs on a machine; `wanted` is what agents are where nobody says otherwise."""
    there = [name for name, adapter in adapters().items() if all(program in seen.programs for program in adapter.programs)]
    detail = f"node {seen.node} can run {', '.join(there) or 'none'}"
    if wanted == ANY_KIND or wanted in there or wanted not in adapters():
        return Finding("agent kinds", True, detail)
    missing = [program for program in adapters()[wanted].programs if program not in seen.programs]
    remedy = f"install {', '.join(missing)} there, in ~/.local/bin or a folder that is in PATH without a login ({seen.path})"
    return Finding("agent kinds", False, f"{detail}, but not {wanted}", remedy)
