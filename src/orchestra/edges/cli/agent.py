"""`orchestra agent`: list, show, attach, capture, send, restart."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import click

from orchestra.edges.cli.grammar import AgentNumbers, Command, Group, session_of
from orchestra.edges.cli.render import Face, Part, Renderer, Styled, status_word
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from orchestra.usecases import AttachReply, DoneReply, UseCases
    from orchestra.views import AgentView

NUMBERS: Final = AgentNumbers()


@click.group("agent", cls=Group, example="orchestra agent attach 7")
def agent() -> None:
    """Look at agents, and type to them."""


@agent.command("list", cls=Command, example="orchestra agent list 1-20")
@click.argument("agents", type=NUMBERS, required=False, default=())
@click.pass_context
def list_agents(context: click.Context, agents: tuple[int, ...]) -> None:
    """List agents; AGENTS such as 1,3,5-9 chooses some."""
    from orchestra.usecases import AgentsParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.agents(AgentsParams(agents)))
    session.render.show(reply, lambda: show_agents(session.render, reply.agents))


def show_agents(render: Renderer, agents: Sequence[AgentView]) -> None:
    """Writes a table of agents."""
    header = ["#", "name", "kind", "node", "status", "done", "failed", "task", "what"]
    rows: list[list[Part]] = [
        [str(a.agent), a.name, a.kind, a.node, status_word(a.status), str(a.tasks_completed), str(a.tasks_failed), a.task or "", doing(a)]
        for a in agents
    ]
    render.table(header, rows, right=("#", "done", "failed"))


def doing(view: AgentView) -> str:
    """Returns what an agent is doing, or why it does nothing."""
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
