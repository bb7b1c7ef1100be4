"""`orchestra node`: list, add, drain, resume, remove; `check` and `trust` are in modules of their own."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli.fleet import trouble_of
from orchestra.edges.cli.grammar import Command, Group, session_of
from orchestra.edges.cli.node_check import check
from orchestra.edges.cli.node_trust import trust
from orchestra.edges.cli.render import Part, Renderer, status_word
from orchestra.errors import BadInput, CoordinatorUnreachable, NodeFailed, NotFound

if TYPE_CHECKING:
    from orchestra.edges.cli.session import Session
    from orchestra.settings import Settings
    from orchestra.settings_schema import Node as NodeSettings
    from orchestra.usecases import DrainReply, NodeAddParams, NodeReply, UseCases
    from orchestra.views import NodeView

UNKNOWN: Final = "-"
NEXT_TRY_S: Final = 15.0
"""A lost node is looked for every second at first, and then every few seconds; a login takes up to ten."""
LOOK_MS: Final = 1000
PLAIN: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")
YAML_WORDS: Final = frozenset({"true", "false", "yes", "no", "on", "off", "null", "y", "n"})
ADD_EXAMPLE: Final = (
    "orchestra node add majin --host 10.0.0.2 --max-agents 100\norchestra node add gpu1 --host gpu1 --user ai --zone eu --tag gpu"
)


@click.group("node", cls=Group, example="orchestra node list --watch\norchestra node check")
def node() -> None:
    """Add, check, drain and trust the machines of a fleet."""


node.add_command(check)
node.add_command(trust)


# --- list --------------------------------------------------------------------------------------------------------------


@node.command("list", cls=Command, example="orchestra node list\norchestra node list --watch --interval 5")
@click.option("--watch", is_flag=True, help="Show it again and again.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, metavar="SECONDS", help="Pause between two looks.  [default: 2]")
@click.pass_context
def list_nodes(context: click.Context, watch: bool, interval: float) -> None:
    """List the machines, what they do and what they have left.

    Without a running orchestra, what its ledger and the settings say. Configured nodes that are not used yet are listed too.
    """
    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    running = session.wiring.coordinator_running(session.root)

    async def look(use_cases: UseCases) -> None:
        while True:
            _show(session, await _views(use_cases, settings, running=running), clear=watch)
            if not watch:
                return
            await session.pause(interval)

    if not running:
        session.render.note("no orchestra is running; this is what its ledger and the settings say")
    try:
        session.ask(look)
    except CoordinatorUnreachable:
        if running or watch:
            raise
        _show(session, configured_views(settings), clear=False)


async def _views(use_cases: UseCases, settings: Settings, *, running: bool) -> tuple[NodeView, ...]:
    """Returns the nodes of the orchestra, then those that are configured only."""
    import msgspec

    from orchestra.usecases import Empty

    used = (await use_cases.nodes(Empty())).nodes
    if not running:  # the ledger knows what was; nobody looks at them now
        used = tuple(msgspec.structs.replace(each, status="unknown", connected=False, warnings=()) for each in used)
    names = {each.name for each in used}
    return (*used, *(each for each in configured_views(settings) if each.name not in names and (settings.nodes or not used)))


def configured_views(settings: Settings) -> tuple[NodeView, ...]:
    """Returns the configured nodes as nodes that are not used yet."""
    from orchestra.bootstrap.wiring import node_specs
    from orchestra.views import NodeView

    return tuple(
        NodeView(
            spec.id,
            "configured",
            agents_running=0,
            agents_total=0,
            cpu_percent=0.0,
            memory_percent=0.0,
            connected=False,
            session="",
            host=spec.host,
            zone=spec.zone,
            tags=spec.tags,
            max_agents=spec.max_agents,
        )
        for spec in node_specs(settings)
    )


def _show(session: Session, nodes: Sequence[NodeView], *, clear: bool) -> None:
    from orchestra.usecases import NodesReply

    def human() -> None:
        if clear and session.render.on_terminal:
            click.clear()
        show_nodes(session.render, nodes)

    session.render.show(NodesReply(tuple(nodes)), human)


def show_nodes(render: Renderer, nodes: Sequence[NodeView]) -> None:
    """Writes a table of nodes."""
    header = ["node", "status", "host", "zone", "busy/up/max", "load", "memory free", "disk free", ""]
    rows: list[list[Part]] = [
        [
            each.name,
            status_word(each.status),
            each.host or "this machine",
            each.zone or UNKNOWN,
            f"{each.agents_busy}/{each.agents_running}/{each.max_agents}",
            f"{each.load_1m:.1f} on {each.cpus}" if each.cpus else UNKNOWN,
            _amount(each.memory_available_bytes),
            _amount(each.disk_free_bytes),
            trouble_of(each),
        ]
        for each in nodes
    ]
    render.table(header, rows, right=("busy/up/max", "load", "memory free", "disk free"))


def _amount(count: int) -> str:
    from orchestra.quantity import show_bytes

    return show_bytes(count) if count > 0 else UNKNOWN


# --- add ---------------------------------------------------------------------------------------------------------------


@node.command("add", cls=Command, example=ADD_EXAMPLE)
@click.argument("name")
@click.option("--host", metavar="HOST", help="Name or address to reach by SSH, or an alias of ~/.ssh/config; a configured machine has one.")
@click.option("--user", "ssh_user", default="", metavar="USER", help="User to log in as; default is what ~/.ssh/config says.")
@click.option("--port", type=click.IntRange(1, 65_535), metavar="PORT", help="Port of its SSH server; default is what ~/.ssh/config says.")
@click.option("--max-agents", type=click.IntRange(1, 10_000), metavar="N", help="Most agents it takes.  [default: 100]")
@click.option("--zone", default="", metavar="ZONE", help="Failure domain it belongs to, for example a region.")
@click.option("--weight", type=click.IntRange(1, 10_000), metavar="PERCENT", help="Capability of an ordinary machine is 100.")
@click.option("--tag", "tags", multiple=True, metavar="TAG", help="What tasks may ask for; may be repeated.")
@click.option("--folder", default="", metavar="DIR", help="Where our things are kept there.  [default: ~/.local/state/orchestra]")
@click.option("--memory-mb", "agent_memory_mb", type=click.IntRange(0), metavar="M", help="MiB to count for one attempt there.")
@click.option("--no-wait", is_flag=True, help="Do not wait until it is connected.")
@click.pass_context
def add(context: click.Context, /, name: str, no_wait: bool, **given: Any) -> None:
    """Take a machine into the running orchestra.

    Returns when it is connected, or says why it is not. It is kept in the ledger; `orchestra scale` puts agents there. Of a machine in the
    settings nothing need be said; the options go before what they say.
    """
    from orchestra.usecases import NodeAddParams

    session = session_of(context)
    known = session.wiring.load_settings(session.root, session.flags).nodes
    said = {
        **(configured_fields(known[name]) if name in known else {}),
        **{key: value for key, value in given.items() if value not in (None, "", ())},
    }
    if name not in known and "host" not in said:
        raise _no_host(name, known)
    check_node(name, said)
    params = NodeAddParams(name=name, **{**said, "host": _host(said)})
    if not session.wiring.coordinator_running(session.root):
        if name in known and said == configured_fields(known[name]):
            raise CoordinatorUnreachable(
                f"no orchestra is running, and {name} is in the settings already", hint="start one: `orchestra up`"
            )
        yaml = node_yaml(name, said)
        session.render.show({"added": False, "yaml": yaml}, lambda: session.render.data(yaml.rstrip("\n")))
        file = session.root / "config" / "orchestra.yaml"
        raise CoordinatorUnreachable(
            "no orchestra is running that could take it in", hint=f"put the lines above into {file}, then start one: `orchestra up`"
        )
    session.ask(lambda use_cases: _add(session, use_cases, params, wait=not no_wait))


def configured_fields(configured: NodeSettings) -> dict[str, Any]:
    """Returns what the settings say of a machine, without what is so anyway."""
    usual = type(configured)()
    fields = ((key, getattr(configured, key)) for key in configured.__struct_fields__)
    return {key: value for key, value in fields if value != getattr(usual, key)}


def _no_host(name: str, known: Iterable[str]) -> BadInput:
    from orchestra.intake.shape import nearest

    close = nearest(name, known)
    hint = "say where it is: --host HOST" + (f"; or did you mean {close!r}, which is in the settings?" if close else "")
    return BadInput(f"{name[:80]!r} is not in the settings and has no host", field="host", hint=hint)


def check_node(name: str, said: dict[str, Any]) -> None:
    """Raises BadInput if the settings would not take such a node."""
    from orchestra.ids import check_name
    from orchestra.intake.document import show_path
    from orchestra.intake.shape import convert
    from orchestra.settings_schema import Node

    check_name(name, field="name")
    made = convert({key: list(value) if isinstance(value, tuple) else value for key, value in said.items()}, Node)
    if isinstance(made, list):
        raise BadInput(made[0].message, field=show_path(made[0].path), hint=made[0].hint)


def _host(said: dict[str, Any]) -> str:
    """The names of this machine mean no SSH, as in the settings, unless something is said about that SSH: it may lead elsewhere."""
    from orchestra.bootstrap.wiring import LOCAL_HOSTS

    host = said.get("host", "")
    return "" if host in LOCAL_HOSTS and not {"port", "ssh_user"} & set(said) else str(host)


def node_yaml(name: str, said: dict[str, Any]) -> str:
    """Returns the lines of a settings file that configure a node."""
    lines = ["orchestra:", "  nodes:", f"    {_scalar(name)}:"]
    for key, value in said.items():
        lines.append(f"      {key}: " + (f"[{', '.join(map(_scalar, value))}]" if isinstance(value, tuple) else _scalar(value)))
    return "\n".join(lines) + "\n"


def _scalar(value: object) -> str:
    import json

    if not isinstance(value, str) or (PLAIN.fullmatch(value) and value.lower() not in YAML_WORDS):
        return str(value)
    return json.dumps(value)


async def _add(session: Session, use_cases: UseCases, params: NodeAddParams, *, wait: bool) -> None:
    from orchestra.usecases import WatchParams

    seq = (await use_cases.watch(WatchParams(wait_ms=0))).seq
    reply = await use_cases.node_add(params)
    view = reply.node
    if wait and not view.connected:
        session.render.note(f"added {params.name}; waiting until it is connected (Ctrl-C leaves that to the orchestra)")
        view = await wait_connected(use_cases, params.name, seq, known=view.status == "lost")
    _tell(session, view, f"added {params.name}" + (": connected" if view.connected else ""))


async def wait_connected(use_cases: UseCases, name: str, seq: int, *, known: bool = False) -> NodeView:
    """Returns the node when it is connected.

    Args:
        use_cases: The orchestra.
        name: The node's name.
        seq: Events up to here are over.
        known: It was there before and lost, and what it was lost for may have been mended: it is given some time for the next try.

    Raises:
        NodeFailed: It could not be connected; the message has the reason.
    """
    import asyncio

    from orchestra.usecases import WatchParams

    deadline = asyncio.get_running_loop().time() + (NEXT_TRY_S if known else 0)
    while True:
        view = await view_of(use_cases, name)
        if view.connected:
            return view
        if view.status == "lost" and asyncio.get_running_loop().time() >= deadline:
            raise NodeFailed(
                f"node {name} is in the fleet but not connected: {view.reason}",
                hint=f"`orchestra node check {name}` looks at everything on the way; the orchestra goes on trying",
            )
        seq = (await use_cases.watch(WatchParams(seq, LOOK_MS))).seq


async def view_of(use_cases: UseCases, name: str) -> NodeView:
    """Returns one node.

    Raises:
        NotFound: There is none of that name.
    """
    from orchestra.usecases import Empty

    nodes = (await use_cases.nodes(Empty())).nodes
    for each in nodes:
        if each.name == name:
            return each
    raise NotFound(f"there is no node {name[:80]!r}", field="node", hint=f"there are {', '.join(each.name for each in nodes) or 'none'}")


def _tell(session: Session, view: NodeView, words: str) -> None:
    from orchestra.usecases import NodeReply

    def human() -> None:
        session.render.line(words)
        show_nodes(session.render, [view])

    session.render.show(NodeReply(view), human)


# --- drain, resume, remove ---------------------------------------------------------------------------------------------


@node.command("drain", cls=Command, example="orchestra node drain majin --wait\norchestra node drain majin --move")
@click.argument("name")
@click.option("--move", is_flag=True, help="Start as many agents on the other nodes.")
@click.option("--wait", is_flag=True, help="Show how many agents are left, and return when all are gone.")
@click.pass_context
def drain(context: click.Context, name: str, move: bool, wait: bool) -> None:
    """Let a machine's agents finish and leave.

    What they run is never stopped. Nothing new is started there until `orchestra node resume`.
    """
    from orchestra.usecases import NodeDrainParams, WatchParams

    session = session_of(context)

    async def empty(use_cases: UseCases) -> DrainReply:
        seq = (await use_cases.watch(WatchParams(wait_ms=0))).seq
        reply: DrainReply = await use_cases.node_drain(NodeDrainParams(name, move))
        if wait:
            await _show_leaving(session, use_cases, name, seq)
        return reply

    reply = session.ask(empty)
    moved = "; as many are started on other nodes" if reply.moved else ""
    what = f"{reply.leaving} agent{'s' * (reply.leaving != 1)}"
    words = f"drained {name}: {what} left it" if wait else f"draining {name}: {what} to leave"
    session.render.show(reply, lambda: session.render.line(words + moved))


async def _show_leaving(session: Session, use_cases: UseCases, name: str, seq: int) -> None:
    """Writes how many agents are left until there is none.

    Raises:
        NodeFailed: The node was lost meanwhile.
    """
    from orchestra.usecases import WatchParams

    while True:
        view = await view_of(use_cases, name)
        if not view.agents_total:
            return
        if view.status == "lost":
            raise NodeFailed(
                f"node {name} is lost with {view.agents_total} agents on it: {view.reason}",
                hint=f"mend it, or give them up with `orchestra node remove {name} --force`",
            )
        text = f"{name}: {view.agents_total} agent{'s' * (view.agents_total != 1)} left, {view.agents_busy} busy"
        session.render.progress(text, coarse=str(view.agents_total))
        seq = (await use_cases.watch(WatchParams(seq))).seq


@node.command("resume", cls=Command, example="orchestra node resume majin")
@click.argument("name")
@click.pass_context
def resume(context: click.Context, name: str) -> None:
    """Use a drained machine again."""
    from orchestra.usecases import NodeParams

    session = session_of(context)
    reply: NodeReply = session.ask(lambda use_cases: use_cases.node_resume(NodeParams(name)))
    _tell(session, reply.node, f"using {name} again")


@node.command("remove", cls=Command, example="orchestra node remove majin\norchestra node remove majin --force")
@click.argument("name")
@click.option("--force", is_flag=True, help="Also a lost machine that has agents; what they ran is tried again elsewhere.")
@click.pass_context
def remove(context: click.Context, name: str, force: bool) -> None:
    """Forget a machine.

    Drain it first. What of ours still runs there is ended.
    """
    from orchestra.usecases import NodeRemoveParams

    session = session_of(context)
    reply: NodeReply = session.ask(lambda use_cases: use_cases.node_remove(NodeRemoveParams(name, force)))
    configured = name in session.wiring.load_settings(session.root, session.flags).nodes

    def human() -> None:
        session.render.line(f"removed {name}")
        if configured:
            session.render.note("it is still in the settings: the next start of the orchestra uses it again")

    session.render.show(reply, human)
