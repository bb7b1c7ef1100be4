"""`orchestra agent`: list, show, attach, capture, send, broadcast, restart."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import click

from orchestra.edges.cli.grammar import AgentNumbers, Command, Group, session_of
from orchestra.edges.cli.render import Face, Part, Renderer, Styled, one_line, status_word
from orchestra.errors import BadInput, NotFound, OrchestraError

if TYPE_CHECKING:
    from orchestra.usecases import AttachReply, DoneReply, UseCases
    from orchestra.views import AgentView

NUMBERS: Final = AgentNumbers()
STATUSES: Final = ("starting", "idle", "busy", "suspect", "draining", "offline", "error")
WITH_WINDOW: Final = ("idle", "busy", "suspect", "draining")
"""What can be typed to: the others have no worker now."""
LEFT_OUT_SHOWN: Final = 10
SORTS: Final = ("category", "speciality", "team")
"""What only some fleets tell agents apart by."""


@click.group("agent", cls=Group, example="orchestra agent attach 7")
def agent() -> None:
    """Look at agents, and type to them."""


@agent.command("list", cls=Command, example="orchestra agent list 1-20\norchestra agent list --node majin --status idle")
@click.argument("agents", type=NUMBERS, required=False, default=())
@click.option("--node", metavar="NAME", help="Only those on this node.")
@click.option("--category", metavar="NAME", help="Only those meant for this category of tasks.")
@click.option("--status", type=click.Choice(STATUSES), help="Only those that are so.")
@click.option("--team", metavar="NAME", help="Only those of this team.")
@click.pass_context
def list_agents(context: click.Context, /, agents: tuple[int, ...], **only: str | None) -> None:
    """List agents; AGENTS such as 1,3,5-9 chooses some."""
    from orchestra.usecases import AgentsParams, AgentsReply

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.agents(AgentsParams(agents)))
    chosen = AgentsReply(tuple(select(reply.agents, only)))
    session.render.show(chosen, lambda: show_agents(session.render, chosen.agents))


def select(agents: Sequence[AgentView], only: Mapping[str, str | None]) -> Iterator[AgentView]:
    """Yields the agents that are everything that is asked for."""
    wanted = {name: value for name, value in only.items() if value is not None}
    return (each for each in agents if all(getattr(each, name) == value for name, value in wanted.items()))


def show_agents(render: Renderer, agents: Sequence[AgentView]) -> None:
    """Writes a table of agents, with columns for what tells them apart."""
    sorts = [name for name in SORTS if any(getattr(each, name) for each in agents)]
    header = ["#", "name", "kind", *sorts, "node", "status", "done", "failed", "task", "what"]
    rows: list[list[Part]] = [
        [
            str(a.agent),
            a.name,
            a.kind,
            *(str(getattr(a, name)) for name in sorts),
            a.node,
            status_word(a.status),
            str(a.tasks_completed),
            str(a.tasks_failed),
            a.task or "",
            doing(a),
        ]
        for a in agents
    ]
    render.table(header, rows, right=("#", "done", "failed"))


def doing(view: AgentView) -> str:
    """Returns what an agent is doing, or why it does nothing."""
    if view.question:
        return f"waits for an answer: {one_line(view.question)}"
    percent = "" if view.progress is None else f"{view.progress:.0%} "
    return percent + view.activity or view.reason


@agent.command("show", cls=Command, example="orchestra agent show 7")
@click.argument("number", type=click.IntRange(1))
@click.pass_context
def show(context: click.Context, number: int) -> None:
    """Show one agent."""
    from orchestra.quantity import show_ms
    from orchestra.usecases import AgentsParams

    session = session_of(context)
    view = session.ask(lambda use_cases: use_cases.agents(AgentsParams((number,)))).agents[0]

    def human() -> None:
        rows: list[tuple[str, Part]] = [
            ("agent", Styled(f"#{view.agent} {view.name}", "bold")),
            ("status", status_word(view.status)),
            ("kind", view.kind),
            ("node", view.node),
            ("category", view.category),
            ("speciality", view.speciality),
            ("team", f"{view.team}, level {view.level}" if view.team else ""),
            ("task", f"{view.task}, attempt {view.attempt}" if view.task else "none"),
            ("doing", doing(view)),
            ("tasks", f"{view.tasks_completed} completed, {view.tasks_failed} failed, busy for {show_ms(view.busy_ms)}"),
            ("pid", str(view.pid) if view.pid else "none"),
        ]
        session.render.fields((name, value) for name, value in rows if value)

    session.render.show(view, human)


@agent.command("attach", cls=Command, example="orchestra agent attach 7")
@click.argument("number", type=click.IntRange(1), required=False)
@click.option("--print", "only_print", is_flag=True, help="Print the command instead of running it.")
@click.pass_context
def attach(context: click.Context, number: int | None, only_print: bool) -> None:
    """Show an agent's window in this terminal, or all windows.

    Detach with the tmux prefix and d; what runs goes on.
    """
    from orchestra.usecases import AttachParams

    session = session_of(context)
    reply: AttachReply = session.ask(lambda use_cases: use_cases.attach(AttachParams(number)))
    if session.face is Face.JSON:
        session.render.json(reply)
    elif only_print:
        session.render.data(shlex.join(reply.argv))
    else:
        become(reply.argv)


def become(argv: Sequence[str]) -> None:
    """Turns this process into the command.

    Raises:
        BadInput: There is no terminal to show it in, or the command is not there.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput("this is not a terminal", hint=f"run this in one: {shlex.join(argv)}")
    os.environ.pop("TMUX", None)  # tmux refuses to show one server's windows inside another's unless it does not know
    try:
        os.execvp(argv[0], list(argv))
    except OSError as exc:
        raise BadInput(f"{argv[0]} cannot be run: {exc.strerror}", hint="`orchestra doctor` looks for what is missing") from exc


@agent.command("capture", cls=Command, example="orchestra agent capture 1,3,5-9 --lines 20")
@click.argument("agents", type=NUMBERS, required=False, default=())
@click.option("--lines", type=click.IntRange(1), metavar="N", help="Also that many lines of what scrolled away.")
@click.pass_context
def capture(context: click.Context, agents: tuple[int, ...], lines: int | None) -> None:
    """Print what windows show now; AGENTS such as 1,3,5-9 chooses some."""
    from orchestra.usecases import AgentsParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.screens(AgentsParams(agents, lines)))

    def human() -> None:
        for number, screen in reply.screens.items():
            if len(reply.screens) > 1:
                session.render.line(Styled(f"--- agent #{number} ---", "bold"))
            session.render.data(screen.rstrip())

    session.render.show(reply, human)


@agent.command("send", cls=Command, example='orchestra agent send 7 "git status"\norchestra agent send 1-4 y --no-enter')
@click.argument("agents", type=NUMBERS)
@click.argument("text")
@click.option("--no-enter", is_flag=True, help="Do not press Enter after it.")
@click.pass_context
def send(context: click.Context, agents: tuple[int, ...], text: str, no_enter: bool) -> None:
    """Type TEXT into windows, as a person would."""
    from orchestra.usecases import TypeParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.type_text(TypeParams(agents, text, not no_enter)))
    session.render.show(reply, lambda: session.render.line(f"typed to {len(agents)} agent{'s' * (len(agents) != 1)}"))


@agent.command(
    "broadcast",
    cls=Command,
    example='orchestra agent broadcast "stop after this file and sum up" --kind claude\n'
    "orchestra agent broadcast y --agents 1-20,35 --no-enter",
)
@click.argument("text")
@click.option("--agents", type=NUMBERS, default=(), metavar="N,...", help="Those with these numbers, for example 1-20,35.")
@click.option("--node", metavar="NAME", help="Those on this node.")
@click.option("--category", metavar="NAME", help="Those meant for this category of tasks.")
@click.option("--speciality", metavar="NAME", help="Those that are best at this.")
@click.option("--team", metavar="NAME", help="Those of this team.")
@click.option("--kind", metavar="NAME", help="Those of this kind.")
@click.option("--all", "everyone", is_flag=True, help="All of them.")
@click.option("--no-enter", is_flag=True, help="Do not press Enter after it.")
@click.pass_context
def broadcast(context: click.Context, /, text: str, agents: tuple[int, ...], everyone: bool, no_enter: bool, **only: str | None) -> None:
    """Type TEXT into the windows of many agents.

    Of several options, agents must fit all. Those that have no window now are left out, and told. So are those that are idle: nothing runs
    in their windows that would read it.
    """
    from orchestra.usecases import AgentsParams

    chosen = bool(agents) or any(value is not None for value in only.values())
    if chosen == everyone:
        words = "--all contradicts the other options" if everyone else "nothing says which agents"
        raise BadInput(
            words, field="agents", hint="name some by --agents, --node, --category, --speciality, --team or --kind, or say --all"
        )
    session = session_of(context)

    async def tell(use_cases: UseCases) -> Told:
        found = tuple(select((await use_cases.agents(AgentsParams(agents))).agents, only))
        if not found:
            await check_node(use_cases, only["node"])
            raise NotFound("no agent fits that", field="agents", hint="`orchestra agent list` shows them")
        return await type_to(use_cases, found, text, enter=not no_enter)

    told = session.ask(tell)
    value = {"agents": told.agents, "nodes": told.nodes, "idle": told.idle, "left_out": told.left_out}
    session.render.show(value, lambda: show_told(session.render, told))
    if told.error is not None:
        raise told.error


async def check_node(use_cases: UseCases, name: str | None) -> None:
    """Raises NotFound if a node is named that is not there."""
    from orchestra.intake.shape import nearest
    from orchestra.usecases import Empty

    known = [] if name is None else [node.name for node in (await use_cases.nodes(Empty())).nodes]
    if name is not None and name not in known:
        close = nearest(name, known)
        hint = f"did you mean {close!r}?" if close else f"there are {', '.join(known)}"
        raise NotFound(f"there is no node {name[:80]!r}", field="node", hint=hint)


class Told(NamedTuple):
    """Who was typed to."""

    agents: tuple[int, ...]
    nodes: dict[str, int]
    """How many on each."""
    idle: tuple[int, ...]
    """Of those that were typed to: no attempt ran in their windows, so nothing read it."""
    left_out: tuple[int, ...]
    """They have no window now, or their node could not be reached."""
    error: OrchestraError | None
    """Of the first node that could not be reached."""


async def type_to(use_cases: UseCases, agents: Sequence[AgentView], text: str, *, enter: bool) -> Told:
    """Types to agents, on all nodes at the same time; what fails on one node holds up none of the others."""
    import asyncio

    from orchestra.usecases import TypeParams

    by_node: dict[str, list[int]] = {}
    for each in agents:
        if each.status in WITH_WINDOW:
            by_node.setdefault(each.node, []).append(each.agent)
    sent = [use_cases.type_text(TypeParams(tuple(numbers), text, enter)) for numbers in by_node.values()]
    results = dict(zip(by_node, await asyncio.gather(*sent, return_exceptions=True), strict=True))
    errors = [each for each in results.values() if isinstance(each, BaseException)]
    for error in errors:
        if not isinstance(error, OrchestraError):
            raise error
    reached = {node: numbers for node, numbers in by_node.items() if not isinstance(results[node], BaseException)}
    typed = tuple(sorted(number for numbers in reached.values() for number in numbers))
    idle = tuple(sorted({each.agent for each in agents if each.task is None} & set(typed)))
    missed = tuple(sorted({each.agent for each in agents} - set(typed)))
    first = next((error for error in errors if isinstance(error, OrchestraError)), None)
    return Told(typed, {node: len(numbers) for node, numbers in reached.items()}, idle, missed, first)


def show_told(render: Renderer, told: Told) -> None:
    """Writes to how many agents something was typed, and whom it did not reach."""
    where = ", ".join(f"{count} on {node}" for node, count in told.nodes.items())
    render.line(f"typed to {len(told.agents)} agent{'s' * (len(told.agents) != 1)}" + (f": {where}" if where else ""))
    if told.idle:
        render.note(
            f"{len(told.idle)} of them {'was' if len(told.idle) == 1 else 'were'} idle, so nothing read it there: {some(told.idle)}"
        )
    if told.left_out:
        render.note(f"not typed to, as they have no window now: {some(told.left_out)}")


def some(agents: Sequence[int]) -> str:
    """Returns the first agents by number, and how many there are besides."""
    more = f" and {len(agents) - LEFT_OUT_SHOWN} more" if len(agents) > LEFT_OUT_SHOWN else ""
    return ", ".join(f"#{number}" for number in agents[:LEFT_OUT_SHOWN]) + more


@agent.command("restart", cls=Command, example="orchestra agent restart 7")
@click.argument("agents", type=NUMBERS)
@click.pass_context
def restart(context: click.Context, agents: tuple[int, ...]) -> None:
    """Give agents a new worker; what one is running is stopped and tried again."""
    from orchestra.usecases import AgentParams
    from orchestra.usecases import DoneReply as Done

    session = session_of(context)

    async def renew(use_cases: UseCases) -> DoneReply:
        for number in agents:
            await use_cases.restart_agent(AgentParams(number))
        return Done()

    reply = session.ask(renew)
    session.render.show(reply, lambda: session.render.line(f"restarting {', '.join(f'#{number}' for number in agents)}"))
