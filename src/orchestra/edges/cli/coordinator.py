"""The hidden command that a coordinator's own window runs."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from orchestra.edges.cli.grammar import Command, session_of


@click.command("coordinator", cls=Command, example="orchestra coordinator --agents 4", hidden=True)
@click.option("--agents", type=click.IntRange(1), metavar="N", help="Set up this many agents; without it, wait to be initialised.")
@click.option("--supervise", is_flag=True, help="Run it as a child and start it again when it dies.")
@click.option("--keys", type=click.Path(path_type=Path), metavar="PIPE", help="With --supervise: where keys for the gateway are offered.")
@click.pass_context
def coordinator(context: click.Context, agents: int | None, supervise: bool, keys: Path | None) -> int:
    """Run the coordinator in this terminal."""
    from orchestra.intake.request import InitParams

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    if not supervise:
        return session.wiring.serve_forever(session.root, settings, None if agents is None else InitParams(agent_count=agents))
    argv = [sys.executable, "-m", "orchestra", "--root", str(session.root), "coordinator"]
    argv += ["--agents", str(agents)] if agents is not None else []
    for path, value in session.flags.items():
        argv += ["--set", f"{path}={value}"]
    return session.wiring.supervise(session.root, settings, argv, keys)
