"""`orchestra test`: a scenario, played with a real orchestra of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.errors import BadInput

EXAMPLE = "orchestra test --list\norchestra test api-rate-limit-stress --duration 600\norchestra test my-scenarios.yaml --json"
EXIT_UNMET = 1


def drills(module: str) -> Any:
    """Returns a module of the drills; loaded by name, because nothing but this command of the shipped program needs it."""
    import importlib

    return importlib.import_module(f"orchestra.testing.drills.{module}")


@click.command("test", cls=Command, example=EXAMPLE)
@click.argument("scenario", required=False, metavar="[SCENARIO|FILE]")
@click.option("--list", "listed", is_flag=True, help="Show the scenarios there are.")
@click.option("--agents", type=click.IntRange(1, 250), metavar="N", help="Agents; default is what the scenario says.")
@click.option(
    "--duration", type=click.FloatRange(1, 7 * 86_400), metavar="SECONDS", help="How long tasks come; default is what the scenario says."
)
@click.option("--seed", type=int, default=0, show_default=True, help="Decides which requests of a share are refused.")
@click.option(
    "--folder", type=click.Path(path_type=Path), metavar="DIR", help="Where it happens; default is a new folder in /tmp. It stays."
)
@click.pass_context
def test(
    context: click.Context, scenario: str | None, listed: bool, agents: int | None, duration: float | None, seed: int, folder: Path | None
) -> int:
    """Try out an orchestra on this machine under a scenario.

    Windows, agents, coordinator and gateway are real and have a root of their own; the model API is a script on loopback that fails as the scenario
    says. It needs no key and costs nothing. A FILE holds scenarios of your own, each is played in turn.

    Ends with 0 if every criterion was met, else with 1.
    """
    import asyncio
    import tempfile

    import msgspec

    session = session_of(context)
    known = drills("scenario")
    if listed or scenario is None:
        found = known.shipped()

        def table() -> None:
            rows = [
                (known.plain(each.name), str(each.agents), f"{each.duration_seconds:g} s", "; ".join(each.success_criteria))
                for each in found
            ]
            session.render.table(("scenario", "agents", "duration", "criteria"), rows)

        session.render.show({"scenarios": [msgspec.to_builtins(each) for each in found]}, table)
        return 0
    path = Path(scenario)
    if path.suffix in (".yaml", ".yml", ".json"):
        try:
            chosen = known.read_scenarios(path.read_text("utf-8"), str(path))
        except OSError as exc:
            raise BadInput(
                f"{path} cannot be read: {exc.strerror}", field="scenario", hint="check its name; `--list` shows those that are shipped"
            ) from exc
    else:
        chosen = (known.choose(known.shipped(), scenario),)
    sized = [known.resized(each, agents, duration) for each in chosen]
    place = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    if place.is_dir() and any(place.iterdir()):
        raise BadInput(f"{place} is not empty", field="folder", hint="name a new folder")
    unmet = 0
    results = []
    for each in sized:
        session.render.note(f"{each.name}: {each.agents} agents, {each.duration_seconds:g} s, a scripted API; all of it is in {place}")
        figures = asyncio.run(
            drills("play").play(each, place / known.plain(each.name), seed, lambda text: session.render.progress(text, coarse=text))
        )
        verdicts = known.judge(each, figures)
        unmet += sum(not verdict.met for verdict in verdicts)
        results.append({"scenario": each.name, "seed": seed, "folder": str(place), "verdicts": verdicts, "figures": figures})

    def human() -> None:
        for result in results:
            rows = [("met" if each.met else "NOT MET", each.criterion, each.measured) for each in result["verdicts"]]
            session.render.table(("", str(result["scenario"]), "measured"), rows)
            session.render.fields(
                [
                    (name.replace("_", " "), "-" if value is None else str(value))
                    for name, value in msgspec.to_builtins(result["figures"]).items()
                ]
            )

    session.render.show({"drills": results}, human)
    return EXIT_UNMET if unmet else 0
