"""The orchestra as a whole: `down`, `status`, `health`, `doctor`, `scale`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestra.edges.cli.grammar import EXIT_UNHEALTHY, Command, session_of
from orchestra.edges.cli.render import Face, Part, Renderer, mark, status_word

if TYPE_CHECKING:
    from orchestra.usecases import UseCases
    from orchestra.views import HealthCheck, NodeView, StatusView

OPTIONAL_CHECKS: Final = ("agent kind ", "ssh program", "sandbox")
"""Checks whose names begin so tell what could be used; an orchestra runs without."""
DOWN: Final = ("uninitialized", "terminated", "failed")
"""Where there are no agents at work, and an `init` starts some."""
SHUTDOWN_SECONDS: Final = 300.0


@click.command("down", cls=Command, example="orchestra down --drain")
@click.option("--drain", is_flag=True, help="Work off what is queued first.")
@click.option("--now", is_flag=True, help="Stop running tasks; they go on at the next start.")
@click.option(
    "--timeout",
    type=click.FloatRange(0),
    default=SHUTDOWN_SECONDS,
    metavar="SECONDS",
    help="Longest wait for running tasks.  [default: 300]",
)
@click.option("--no-wait", is_flag=True, help="Return once the end has begun.")
@click.pass_context
def down(context: click.Context, drain: bool, now: bool, timeout: float, no_wait: bool) -> None:
    """End the orchestra.

    Running tasks finish; what is queued stays for the next start.
    """
    import asyncio

    from orchestra.errors import BadInput, CoordinatorUnreachable, IllegalMove
    from orchestra.intake.request import ShutdownParams
    from orchestra.root import Root
    from orchestra.usecases import ShutdownReply, WatchParams

    if drain and now:
        raise BadInput("--drain and --now contradict each other", hint="give one of them")
    session = session_of(context)

    async def end(use_cases: UseCases) -> ShutdownReply:
        seen = await use_cases.watch(WatchParams(wait_ms=0))
        reply = await use_cases.shutdown(ShutdownParams(graceful=not now, drain_tasks=drain, timeout_seconds=timeout))
        if not no_wait:
            if reply.pending_tasks:
                session.render.note(f"waiting for {reply.pending_tasks} tasks; Ctrl-C leaves them to finish")
            await wait_gone(use_cases, seen.seq)
            await session.wiring.wait_window_gone(session.root)
            Root(session.root).release_runtime()
        return reply

    try:
        reply = session.ask(end)
    except IllegalMove:  # it has no agents, and only its coordinator is there to end
        asyncio.run(session.wiring.abandon(session.root))
        if session.wiring.coordinator_running(session.root):
            raise
        session.render.show({"status": "terminated"}, lambda: session.render.line("down: there were no agents"))
        return
    except CoordinatorUnreachable:
        if not asyncio.run(session.wiring.end_leftovers(session.root, session.wiring.load_settings(session.root, session.flags))):
            raise
        session.render.line("down: ended what an orchestra without a coordinator had left")
        return
    session.render.show(reply, lambda: session.render.line("the end has begun" if no_wait else "down"))


async def wait_gone(use_cases: UseCases, seq: int) -> None:
    """Returns when the coordinator answers no more."""
    from orchestra.errors import CoordinatorUnreachable
    from orchestra.usecases import WatchParams

    try:
        while True:
            seq = (await use_cases.watch(WatchParams(seq))).seq
    except CoordinatorUnreachable:
        return


@click.command("status", cls=Command, example="orchestra status --watch\norchestra status --scope node --target local --json")
@click.option("--scope", type=click.Choice(["global", "node", "agent", "task"]), default="global", help="Of what.  [default: global]")
@click.option("--target", metavar="NAME", help="Which node, agent or task.")
@click.option("--watch", is_flag=True, help="Show it again and again.")
@click.option("--interval", type=click.FloatRange(0.1), default=2.0, metavar="SECONDS", help="Pause between two looks.  [default: 2]")
@click.pass_context
def status(context: click.Context, scope: str, target: str | None, watch: bool, interval: float) -> None:
    """Show how the orchestra is doing."""
    from orchestra.errors import BadInput
    from orchestra.intake.request import StatusParams, parse_params

    if (scope == "global") != (target is None):
        raise BadInput(
            f"--scope {scope} and --target go together", field="target", hint="name the node, agent or task: --scope agent --target 7"
        )
    params = parse_params(StatusParams, {"scope": scope, **({} if target is None else {"target": target})})
    session = session_of(context)

    async def look(use_cases: UseCases) -> None:
        while True:
            await show_status(session.render, use_cases, params, clear=watch)
            if not watch:
                return
            await session.pause(interval)

    session.ask(look)


async def show_status(render: Renderer, use_cases: UseCases, params: object, *, clear: bool) -> None:
    """Shows the figures, and of the whole orchestra also its nodes and plans."""
    from orchestra.intake.request import StatusParams
    from orchestra.usecases import Empty

    assert isinstance(params, StatusParams)
    view = await use_cases.status(params)
    if render.face is not Face.HUMAN:
        render.show(view, lambda: None)
        return
    whole = params.scope == "global"
    nodes = (await use_cases.nodes(Empty())).nodes if whole else ()
    plans = (await use_cases.plans(Empty())).plans if whole else ()
    if clear and render.on_terminal:
        click.clear()
    figures(render, view)
    if len(nodes) > 1:
        render.line()
        header = ["node", "status", "busy", "agents", "cpu", "memory", ""]
        rows: list[list[Part]] = [
            [
                n.name,
                status_word(n.status),
                str(n.agents_busy),
                f"{n.agents_running}/{n.agents_total}",
                f"{n.cpu_percent:.0f}%",
                f"{n.memory_percent:.0f}%",
                trouble_of(n),
            ]
            for n in nodes
        ]
        render.table(header, rows, right=("busy", "agents", "cpu", "memory"))
    if plans:
        render.line()
        lines: list[list[Part]] = [[p.plan, status_word(p.status), str(p.tasks), str(p.open), str(p.failed)] for p in plans[-10:]]
        render.table(["plan", "status", "tasks", "open", "failed"], lines, right=("tasks", "open", "failed"))


def trouble_of(node: NodeView) -> str:
    """Returns what is wrong with a node, in one line."""
    return "; ".join(each for each in ("" if node.connected else node.reason, *node.warnings) if each)


def figures(render: Renderer, view: StatusView) -> None:
    """Writes the figures of a status."""
    from orchestra.quantity import show_ms

    agents, tasks = view.agents, view.tasks
    cancelled = f", {tasks.cancelled} cancelled" if tasks.cancelled else ""
    render.fields(
        [
            ("status", status_word(view.status)),
            ("health", status_word(view.health)),
            ("agents", f"{agents.running} of {agents.total} up: {agents.busy} busy, {agents.idle} idle, {agents.error} in error"),
            (
                "tasks",
                f"{tasks.queued} queued, {tasks.in_progress} in progress, {tasks.completed} completed, {tasks.failed} failed{cancelled}",
            ),
            ("api", f"requests/min {view.api_limits.rpm_usage}, tokens/min {view.api_limits.tpm_usage}"),
            ("uptime", show_ms(view.uptime_seconds * 1000)),
            *[("warning", warning) for warning in view.warnings],
        ]
    )


@click.command("health", cls=Command, example="orchestra health")
@click.pass_context
def health(context: click.Context) -> int:
    """Check every part of the running orchestra.

    Ends with 1 if a check failed.
    """
    from orchestra.usecases import Empty

    session = session_of(context)
    view = session.ask(lambda use_cases: use_cases.health(Empty()))

    def human() -> None:
        session.render.fields([("health", status_word(view.overall_status))])
        for node in view.nodes:
            figure = f"{node.agents_running} of {node.agents_total} agents up, {node.agents_busy} busy"
            trouble = trouble_of(node)
            session.render.line(mark(node.connected and not trouble), f" node {node.name}: {figure}" + (f"; {trouble}" if trouble else ""))
            if not node.connected and node.host:
                session.render.line(f"    `orchestra node check {node.name}` looks at everything on the way to it")
        told = {f"node {node.name} connected" for node in view.nodes}
        show_checks(session.render, tuple(check for check in view.checks if check.name not in told))

    session.render.show(view, human)
    return 0 if all(check.ok for check in view.checks) else EXIT_UNHEALTHY


@click.command("doctor", cls=Command, example="orchestra doctor")
@click.pass_context
def doctor(context: click.Context) -> int:
    """Check every machine for what an orchestra needs.

    This one, and all configured nodes by SSH.

    Ends with 1 if something needed is missing. Agent kinds that are not installed are only told.
    """
    import asyncio

    from orchestra.bootstrap.wiring import node_specs
    from orchestra.edges.cli.node_check import as_checks, show_node_check

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    checks = session.wiring.doctor(session.root, settings)
    specs = [spec for spec in node_specs(settings) if spec.remote]
    nodes = asyncio.run(session.wiring.check_nodes(session.root, settings, specs)) if specs else ()

    def human() -> None:
        show_checks(session.render, checks)
        for node in nodes:
            show_node_check(session.render, node)

    session.render.show((*checks, *(check for node in nodes for check in as_checks(node))), human)
    here = all(check.ok or check.name.startswith(OPTIONAL_CHECKS) for check in checks)
    return 0 if here and all(node.usable for node in nodes) else EXIT_UNHEALTHY


def show_checks(render: Renderer, checks: tuple[HealthCheck, ...]) -> None:
    """Writes a ticked or crossed line for each check, and what to do about the crossed ones."""
    for check in checks:
        sign = mark(check.ok, optional=check.name.startswith(OPTIONAL_CHECKS))
        render.line(sign, f" {check.name}", f": {check.detail}" if check.detail else "")
        if check.remedy and not check.ok:
            render.line(f"    {check.remedy}")


@click.command("scale", cls=Command, example="orchestra scale 50 --wait")
@click.argument("count", type=click.IntRange(0))
@click.option("--strategy", type=click.Choice(["gradual", "immediate"]), default="gradual", help="All at once or not.  [default: gradual]")
@click.option("--wait", is_flag=True, help="Show progress and return when it is done.")
@click.pass_context
def scale(context: click.Context, count: int, strategy: str, wait: bool) -> None:
    """Change the number of agents.

    COUNT is how many there shall be in all. Running tasks are never touched.
    """
    from orchestra.intake.request import ScaleParams, parse_params
    from orchestra.usecases import ScaleReply, WatchParams

    session = session_of(context)
    params = parse_params(ScaleParams, {"target_count": count, "strategy": strategy})

    async def change(use_cases: UseCases) -> ScaleReply:
        seq = (await use_cases.watch(WatchParams(wait_ms=0))).seq
        reply = await use_cases.scale(params)
        session.render.show(reply, lambda: session.render.line(f"scaling from {reply.current_count} to {reply.target_count} agents"))
        if wait:
            await show_scaling(session.render, use_cases, seq, count)
        return reply

    session.ask(change)


async def show_scaling(render: Renderer, use_cases: UseCases, seq: int, target: int) -> None:
    """Writes `30/50` whenever it changes, until the scaling is over."""
    import msgspec

    from orchestra.intake.request import StatusParams
    from orchestra.usecases import WatchParams

    shown = -1
    while True:
        reply = await use_cases.watch(WatchParams(seq))
        seq = reply.seq
        view = await use_cases.status(StatusParams())
        if view.agents.running != shown:
            shown = view.agents.running
            progress = f"{shown}/{target}"
            render.show({"type": "scaling", "progress": progress}, lambda text=progress: render.line(text))  # type: ignore[misc]
        over = ("ScaleCompleted", "ShutdownStarted", "Terminated")
        kinds = {msgspec.json.decode(each.event)["type"] for each in reply.events}
        if not kinds.isdisjoint(over) or view.status not in ("scaling", "running", "ready"):
            return
