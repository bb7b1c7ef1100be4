"""`orchestra test`: a scenario, played with a real orchestra of its own."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.sim import testing
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from orchestra.edges.cli.render import Renderer

EXAMPLE = "orchestra test --list\norchestra test api-rate-limit-stress --duration 600\norchestra test my-scenarios.yaml --json"
EXIT_UNMET: Final = 1


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

    session = session_of(context)
    known = testing("drills.scenario")
    if listed or scenario is None:
        show_shipped(session.render, known)
        return 0
    sized = [known.resized(each, agents, duration) for each in chosen(known, scenario)]
    place = folder.absolute() if folder else Path(tempfile.mkdtemp(prefix="drill-", dir="/tmp"))
    if place.is_dir() and any(place.iterdir()):
        raise BadInput(f"{place} is not empty", field="folder", hint="name a new folder")

    def tell(text: str) -> None:
        session.render.progress(text, coarse=text)

    results = []
    for each in sized:
        session.render.note(f"{each.name}: {each.agents} agents, {each.duration_seconds:g} s, a scripted API; all of it is in {place}")
        figures = asyncio.run(testing("drills.play").play(each, place / known.plain(each.name), seed, tell))
        results.append(
            {"scenario": each.name, "seed": seed, "folder": str(place), "verdicts": known.judge(each, figures), "figures": figures}
        )
    session.render.show({"drills": results}, lambda: show_results(session.render, results))
    return EXIT_UNMET if any(not verdict.met for result in results for verdict in result["verdicts"]) else 0


def chosen(known: Any, scenario: str) -> Any:
    """Returns the scenarios of a file, or the shipped one of that name."""
    path = Path(scenario)
    if path.suffix not in (".yaml", ".yml", ".json"):
        return (known.choose(known.shipped(), scenario),)
    try:
        return known.read_scenarios(path.read_text("utf-8"), str(path))
    except OSError as exc:
        raise BadInput(
            f"{path} cannot be read: {exc.strerror}", field="scenario", hint="check its name; `--list` shows those that are shipped"
        ) from exc


def show_shipped(render: Renderer, known: Any) -> None:
    import msgspec

    found = known.shipped()
    rows = [(known.plain(each.name), str(each.agents), f"{each.duration_seconds:g} s", "; ".join(each.success_criteria)) for each in found]
    header = ("scenario", "agents", "duration", "criteria")
    render.show({"scenarios": [msgspec.to_builtins(each) for each in found]}, lambda: render.table(header, rows))


def show_results(render: Renderer, results: list[dict[str, Any]]) -> None:
    import msgspec

    for result in results:
        rows = [("met" if each.met else "NOT MET", each.criterion, each.measured) for each in result["verdicts"]]
        render.table(("", str(result["scenario"]), "measured"), rows)
        figures = msgspec.to_builtins(result["figures"])
        render.fields([(name.replace("_", " "), "-" if value is None else str(value)) for name, value in figures.items()])
