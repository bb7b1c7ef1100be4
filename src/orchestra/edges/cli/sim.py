"""`orchestra sim`: the whole engine in a simulated world, by seed."""

from __future__ import annotations

from typing import Any

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.session import Session

EXIT_BROKEN = 70
"""As for any broken invariant: a bug of ours."""


def testing(module: str) -> Any:
    """Returns a module of `orchestra.testing`; loaded by name, because only the commands that try the orchestra out need any of it."""
    import importlib

    return importlib.import_module(f"orchestra.testing.{module}")


@click.command(
    "sim", cls=Command, example="orchestra sim --seed 7 --trace\norchestra sim --seeds 500\norchestra sim --hours 24 --agents 200"
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Seed of the first run.")
@click.option("--seeds", type=click.IntRange(1), default=1, show_default=True, help="How many seeds, one after the other.")
@click.option("--steps", type=click.IntRange(0), default=0, help="Steps a run may take at most.")
@click.option("--hours", type=click.FloatRange(0.0), default=0.0, help="Feed tasks for so many simulated hours.")
@click.option("--agents", type=click.IntRange(0, 200), default=0, help="Agents of the world; without it the seed decides.")
@click.option("--trace", is_flag=True, help="Show every event with its virtual time.")
@click.pass_context
def sim(context: click.Context, seed: int, seeds: int, steps: int, hours: float, agents: int, trace: bool) -> int:
    """Play seeds in a simulated world.

    The real core, scheduler, kernel and reconciliation run among simulated machines that fail. The same seed is the same run, event for event.
    """
    session = session_of(context)
    module = testing("world.campaign")
    options = module.options_for(hours, agents, steps)
    arguments = (
        (f" --hours {hours:g}" if hours else "") + (f" --agents {agents}" if agents else "") + (f" --steps {steps}" if steps else "")
    )
    results: list[Any] = []
    for result in module.play(seed, seeds, options, tracer_for(session) if trace else None):
        results.append(result)
        if not result.ok:
            session.render.note(f"seed {result.seed}: {result.problem}")
            session.render.note(f"revision {revision() or 'unknown'}; again: {module.reproduction(result.seed, options, arguments)}")
    totals = module.summary(results)

    def human() -> None:
        session.render.fields([(name, str(len(value)) if isinstance(value, list) else str(value)) for name, value in totals.items()])

    session.render.show({**totals, "revision": revision(), "last": results[-1]}, human)
    return EXIT_BROKEN if totals["failed"] else 0


def tracer_for(session: Session) -> Any:
    """Returns what writes a line for everything that happens."""

    def tell(ms: int, actor: str, what: tuple[object, ...]) -> None:
        session.render.data(f"{ms:>10} {actor:<14} {' '.join(str(each) for each in what)}")

    return tell


def revision() -> str:
    """Returns the git revision this was loaded from, or nothing."""
    import subprocess
    from pathlib import Path

    try:
        done = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            check=False,
            timeout=10,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()
