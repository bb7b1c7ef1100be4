"""`orchestra up` and `orchestra init`: start a coordinator where none runs, set up the agents, show how far that is, and say what is there."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

from orchestra.edges.cli.fleet import DOWN, wait_gone
from orchestra.edges.cli.grammar import EXIT_UNHEALTHY, Command, session_of
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from collections.abc import Sequence

    from orchestra.edges.cli.render import Part, Renderer
    from orchestra.edges.cli.session import Session
    from orchestra.intake.request import InitParams
    from orchestra.settings import Settings
    from orchestra.usecases import InitReply, UseCases
    from orchestra.views import NodeView

C = TypeVar("C", bound=Callable[..., Any])

PROGRESS_S: Final = 0.2
AGENTS_BACK_S: Final = 20.0
"""Longest that `up` waits for the agents of an orchestra that was up already when its coordinator or machine died."""


def fleet_options(command: C) -> C:
    """Adds the options that say which agents are wanted."""
    for option in (
        click.option("--nodes", metavar="NAME,...", help="Use these configured nodes only; default is all."),
        click.option("--roster", metavar="NAME|FILE", help="Agents as this preset or file says; `orchestra roster` shows it."),
        click.option("--phase", type=click.IntRange(1, 3), metavar="N", help="Agents as the preset of phase 1, 2 or 3 says."),
        click.option(
            "--agents", type=click.IntRange(1, 10_000), metavar="N", help="Agents in all; default is what the roster or the settings say."
        ),
    ):
        command = option(command)
    return command


@click.command("up", cls=Command, example="orchestra up --agents 10\norchestra up --phase 3 --nodes mugen,majin")
@fleet_options
@click.option("--bare", is_flag=True, help="Start no agents: a parent program says `orchestra.init`.")
@click.option("--foreground", is_flag=True, help="Stay in this terminal; Ctrl-C ends the orchestra.")
@click.pass_context
def up(
    context: click.Context, agents: int | None, phase: int | None, roster: str | None, nodes: str | None, bare: bool, foreground: bool
) -> int:
    """Start an orchestra and leave it running.

    Returns when every agent is ready. `orchestra agent attach` shows the windows, `orchestra down` ends it.
    """
    import asyncio

    if bare and any(each is not None for each in (agents, phase, roster, nodes)):
        raise BadInput("--bare starts no agents, and the other options say which", field="bare", hint="leave it out, or them")
    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    params = None if bare else init_params(settings, agents, phase, roster, nodes)
    if foreground:
        session.render.note(f"starting an orchestra for {session.root}; Ctrl-C lets running tasks finish, a second one stops them")
        return session.wiring.serve_forever(session.root, settings, params)
    reply = asyncio.run(start(session, settings, params))
    return show_bare(session) if reply is None else show_started(session.render, "up", reply)


@click.command("init", cls=Command, example="orchestra init --phase 3\norchestra init --roster my.yaml --agents 40 --nodes mugen")
@fleet_options
@click.pass_context
def init(context: click.Context, agents: int | None, phase: int | None, roster: str | None, nodes: str | None) -> int:
    """Set up the agents of an orchestra.

    Asks the running orchestra, or starts one as `orchestra up` does. Returns when every agent is ready.
    """
    import asyncio

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    params = init_params(settings, agents, phase, roster, nodes)
    if session.wiring.coordinator_running(session.root):
        reply = session.ask(lambda use_cases: initialise(session.render, use_cases, params))
    else:
        started = asyncio.run(start(session, settings, params))
        assert started is not None
        reply = started
    return show_started(session.render, "initialized", reply)


def init_params(settings: Settings, agents: int | None, phase: int | None, roster: str | None, nodes: str | None) -> InitParams:
    """Returns the request that the options mean.

    Raises:
        BadInput: They contradict each other, or name a file that is no roster.
        NotFound: There is no such roster.
    """
    from orchestra.edges.cli.roster import read_roster
    from orchestra.ids import check_name
    from orchestra.intake.request import InitParams
    from orchestra.intake.roster import PRESETS

    if phase is not None and roster is not None:
        raise BadInput("--phase and --roster contradict each other", field="phase", hint="give one of them")
    text = None if roster is None else read_roster(roster)[1]
    preset = roster if roster in PRESETS else None
    names = None if nodes is None else tuple(check_name(name.strip(), field="nodes") for name in nodes.split(","))
    count = settings.agents.count if agents is None and phase is None and roster is None else agents
    return InitParams(phase=phase, nodes=names, agent_count=count, roster=preset, roster_text=text if preset is None else None)


async def start(session: Session, settings: Settings, params: InitParams | None) -> InitReply | None:
    """Starts a coordinator in its window and sets up its agents; None if none are wanted. What comes to nothing leaves nothing behind."""
    import asyncio

    from orchestra.intake.request import StatusParams

    while True:
        await session.wiring.start_in_window(session.root, settings)
        async with session.wiring.connect(session.root) as use_cases:
            before = (await use_cases.status(StatusParams())).status
            if before == "draining":
                session.render.note("the orchestra of this root was ending; it is started again when it has")
                await wait_gone(use_cases, -1)
                await session.wiring.wait_window_gone(session.root)
                continue
            if params is None:
                return None
            if before not in DOWN:
                session.render.note("the orchestra of this root was up and goes on as it was; `orchestra scale` changes it")
                back = await wait_back(session, use_cases)
                if back.status not in DOWN:
                    return back  # else it had been interrupted in its start, which came to nothing: it is started anew
            try:
                return await initialise(session.render, use_cases, params)
            except BaseException:
                await asyncio.shield(session.wiring.abandon(session.root))
                raise


async def initialise(render: Renderer, use_cases: UseCases, params: InitParams) -> InitReply:
    """Sends the request, and shows how many agents are ready on each node until it is answered."""
    import asyncio

    from orchestra.usecases import Empty

    asked = asyncio.ensure_future(use_cases.init(params))
    try:
        while not (await asyncio.wait((asked,), timeout=PROGRESS_S))[0]:
            show_progress(render, (await use_cases.nodes(Empty())).nodes)
        return asked.result()
    finally:
        asked.cancel()
        await asyncio.gather(asked, return_exceptions=True)


async def wait_back(session: Session, use_cases: UseCases) -> InitReply:
    """Waits until the agents are back, for a while at most, and returns what there is."""
    import asyncio

    from orchestra.intake.request import StatusParams
    from orchestra.usecases import Empty, InitReply

    deadline = asyncio.get_running_loop().time() + AGENTS_BACK_S
    while True:
        status, nodes = await use_cases.status(StatusParams()), (await use_cases.nodes(Empty())).nodes
        back = status.agents.running == status.agents.total or status.status in DOWN
        if status.status != "initializing" and (back or asyncio.get_running_loop().time() > deadline):
            break
        show_progress(session.render, nodes)
        await session.pause(PROGRESS_S)
    used = [node for node in nodes if node.agents_total]
    manifest = {"total": status.agents.total, **{node.name: node.agents_total for node in used}}
    return InitReply(status.status, {node.name: node.session for node in used}, manifest, status.agents.running, status.health)


def show_progress(render: Renderer, nodes: Sequence[NodeView]) -> None:
    """Writes how many agents are ready on each node."""
    used = [node for node in nodes if node.agents_total]
    parts = [
        f"{node.name} {node.agents_running}/{node.agents_total}" + ("" if node.connected else f" ({waiting_for(node)})") for node in used
    ]
    tenths = [f"{node.name} {node.agents_running * 10 // node.agents_total} {node.connected} {node.reason}" for node in used]
    if parts:
        render.progress(f"agents ready: {', '.join(parts)}", coarse=" ".join(tenths))


def waiting_for(node: NodeView) -> str:
    """Returns why a node is not there yet."""
    return node.reason or "connecting"


def show_started(render: Renderer, verb: str, reply: InitReply) -> int:
    """Writes what there is now; returns the exit code."""
    total = reply.agent_manifest["total"]
    names = [name for name in reply.agent_manifest if name != "total"]

    def human() -> None:
        render.line(f"{verb}: {reply.agents_ready} of {total} agents ready, {reply.health}")
        if len(names) > 1:
            rows: list[list[Part]] = [[name, str(reply.agent_manifest[name]), reply.session_ids.get(name, "")] for name in names]
            render.table(["node", "agents", "session"], rows, right=("agents",))

    render.show(reply, human)
    for warning in reply.warnings:
        render.note(warning)
    for name in names:
        if not reply.session_ids.get(name):
            render.note(
                f"node {name} is not connected yet, and the orchestra goes on trying; `orchestra node check {name}` looks for the cause"
            )
    return 0 if reply.agents_ready or not total else EXIT_UNHEALTHY


def show_bare(session: Session) -> int:
    """Writes how an orchestra without agents is doing."""
    from orchestra.intake.request import StatusParams

    status = session.ask(lambda use_cases: use_cases.status(StatusParams()), ours=True)
    agents = status.agents
    session.render.show(status, lambda: session.render.line(f"up: {agents.running} of {agents.total} agents ready, {status.health}"))
    return 0
