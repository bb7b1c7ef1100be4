"""`orchestra roster`: which agents a roster makes on the configured nodes, shown before anything is started."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from orchestra.core.model import AgentSpec, NodeSpec
    from orchestra.edges.cli.render import Renderer
    from orchestra.intake.roster import Level, Roster
    from orchestra.settings import Settings

NODE: Final = "node"
TEAM: Final = "team"
SIDES: Final = (NODE, "category", "level", "speciality", "kind", TEAM)
LEVELS: Final = ("chief coordinator", "zone coordinator", "team lead", "specialist")
EXAMPLE: Final = (
    "orchestra roster phase3 --by category\norchestra roster --phase 3 --export > my.yaml\norchestra roster my.yaml --agents 40"
)


@click.command("roster", cls=Command, example=EXAMPLE)
@click.argument("roster", required=False, metavar="[PRESET|FILE]")
@click.option("--phase", type=click.IntRange(1, 3), metavar="N", help="The preset of a phase: 1, 2 or 3.")
@click.option("--agents", type=click.IntRange(1, 10_000), metavar="N", help="Agents in all; default is what the roster says.")
@click.option("--node", "nodes", multiple=True, metavar="NAME=MAX", help="Lay out on these nodes instead of the configured ones.")
@click.option("--by", "by", type=click.Choice(SIDES), help="Show this table only.")
@click.option("--list", "listed", is_flag=True, help="Show every agent.")
@click.option("--export", is_flag=True, help="Print the roster's file, as a start for one of your own.")
@click.pass_context
def roster(
    context: click.Context,
    roster: str | None,
    phase: int | None,
    agents: int | None,
    nodes: tuple[str, ...],
    by: str | None,
    listed: bool,
    export: bool,
) -> None:
    """Show which agents a fleet consists of.

    Needs no running orchestra and starts nothing. A PRESET is phase1, phase2, phase3 or plain, which is the default.
    """
    from orchestra.agents.registry import adapter_for
    from orchestra.core.model import ANY_KIND
    from orchestra.intake.roster import PHASES, PLAIN, lay_out, size_of

    if roster is not None and phase is not None:
        raise BadInput("--phase and a roster contradict each other", field="phase", hint="give one of them")
    if listed and by is not None:
        raise BadInput("--list and --by contradict each other", field="by", hint="give one of them")
    session = session_of(context)
    found, text = read_roster(PHASES[phase] if phase is not None else roster or PLAIN)
    if export:
        session.render.show({"roster": found.roster, "text": text}, lambda: session.render.data(text.rstrip("\n")))
        return
    settings = session.wiring.load_settings(session.root, session.flags)
    places = _nodes_of(settings, nodes)
    count = size_of(found, agents, settings.agents.count)
    fleet = lay_out(found, count, places, kind=settings.agents.kind)
    for wanted in dict.fromkeys(agent.kind for agent in fleet if agent.kind != ANY_KIND):
        adapter_for(wanted)
    value = _as_data(found, fleet, places, by, listed=listed)
    session.render.show(value, lambda: _show(session.render, found, fleet, places, by, listed=listed))


def read_roster(name: str) -> tuple[Roster, str]:
    """Returns the roster of a preset or a file, and its text.

    Raises:
        BadInput: It cannot be read, or cannot be laid out.
        NotFound: It is neither.
    """
    from orchestra.intake.roster import PRESETS, load_roster, preset_text

    path = Path(name)
    if name in PRESETS or not (path.exists() or path.suffix or len(path.parts) > 1):
        text, source = preset_text(name), f"{name}.yaml"
    else:
        try:
            text, source = path.read_text(encoding="utf-8"), name
        except OSError as exc:
            hint = f"name a YAML or JSON file, or one of {', '.join(PRESETS)}"
            raise BadInput(f"the roster {name} cannot be read: {exc.strerror}", field="roster", hint=hint) from exc
        except UnicodeDecodeError as exc:
            words = f"the roster {name} is not UTF-8: byte {exc.start} cannot be read"
            raise BadInput(words, field="roster", hint="save it as UTF-8") from exc
    return load_roster(text, source), text


def _nodes_of(settings: Settings, given: Sequence[str]) -> tuple[NodeSpec, ...]:
    from orchestra.bootstrap.wiring import node_specs
    from orchestra.core.model import NodeSpec
    from orchestra.ids import NAME, NodeId

    if not given:
        return node_specs(settings)
    found: dict[str, NodeSpec] = {}
    for text in given:
        name, mark, most = text.partition("=")
        if (
            not mark
            or not NAME.fullmatch(name)
            or not most.isascii()
            or not most.isdigit()
            or len(most) > 5
            or not 1 <= int(most) <= 10_000
        ):
            raise BadInput(f"{text[:80]!r} is not a node", field=NODE, hint="write NAME=MAX with 1 to 10000 agents, for example mugen=100")
        if name in found:
            raise BadInput(f"node {name!r} is given twice", field=NODE, hint="once is enough")
        found[name] = NodeSpec(NodeId(name), max_agents=int(most))
    return tuple(found.values())


def _value_of(agent: AgentSpec, side: str) -> str:
    return str(getattr(agent, side))


def _tables(roster: Roster, fleet: Sequence[AgentSpec], by: str | None) -> dict[str, dict[str, Counter[str]]]:
    """Returns for each side and value how many agents each node has: all sides that tell agents apart, or the one asked for.

    Values are in the order of the roster.
    """
    orders: dict[str, list[str]] = {
        "category": [*roster.categories],
        "level": [str(level) for level in range(len(LEVELS))],
        "speciality": [*roster.specialities],
    }
    found: dict[str, dict[str, Counter[str]]] = {}
    for side in SIDES[1:] if by is None else () if by == NODE else (by,):
        rows: dict[str, Counter[str]] = {}
        for agent in fleet:
            rows.setdefault(_value_of(agent, side), Counter())[agent.node] += 1
        if by is not None or len(rows) > 1:
            order = [value for value in orders.get(side, ()) if value in rows] or [*rows]
            found[side] = {value: rows[value] for value in order}
    return found


def _as_data(roster: Roster, fleet: Sequence[AgentSpec], nodes: Sequence[NodeSpec], by: str | None, *, listed: bool) -> dict[str, Any]:
    import msgspec

    load = Counter(agent.node for agent in fleet)
    return {
        "roster": roster.roster,
        "agents": len(fleet),
        "capacity": sum(node.max_agents for node in nodes),
        "reserve": roster.reserve,
        "nodes": {node.id: load[node.id] for node in nodes},
        "by": {
            side: {value: {"total": row.total(), **{node.id: row[node.id] for node in nodes}} for value, row in rows.items()}
            for side, rows in _tables(roster, fleet, by).items()
        },
        "levels": [msgspec.to_builtins(level) for level in roster.levels],
        **({"list": [_line_of(agent) for agent in fleet]} if listed else {}),
    }


def _line_of(agent: AgentSpec) -> dict[str, Any]:
    return {name: getattr(agent, name) for name in agent.__struct_fields__}


def _show(render: Renderer, roster: Roster, fleet: Sequence[AgentSpec], nodes: Sequence[NodeSpec], by: str | None, *, listed: bool) -> None:
    if listed:
        header = ["agent", "name", NODE, "level", TEAM, "category", "speciality", "kind"]
        render.table(header, [[f"#{agent.id}", *(_value_of(agent, side) for side in header[1:])] for agent in fleet], right=("agent",))
        return
    if by is None:
        teams = {agent.team for agent in fleet if agent.team}
        capacity = sum(node.max_agents for node in nodes)
        free = f", {roster.reserve} of which must stay free" if roster.reserve else ""
        render.fields(
            [
                ("roster", f"{roster.roster}: {roster.description}" if roster.description else roster.roster),
                ("agents", f"{len(fleet)}; the nodes take {capacity}{free}"),
                *([("teams", str(len(teams)))] if teams else []),
            ]
        )
        render.line()
    if by in (None, NODE):
        _show_nodes(render, fleet, nodes)
    for side, rows in _tables(roster, fleet, by).items():
        if side == TEAM and by is None:
            continue
        if by is None:
            render.line()
        names = [node.id for node in nodes]
        limits = {str(level.level): _limits_of(level) for level in roster.levels} if side == "level" else {}
        extra = ["limits"] if any(limits.values()) else []
        render.table(
            [side, *names, "total", *extra],
            [
                [_label_of(side, value), *(str(row[name]) for name in names), str(row.total()), *(limits.get(value, "") for _ in extra)]
                for value, row in rows.items()
            ],
            right=(*names, "total"),
        )


def _show_nodes(render: Renderer, fleet: Sequence[AgentSpec], nodes: Sequence[NodeSpec]) -> None:
    rows = []
    for node in nodes:
        numbers = [agent.id for agent in fleet if agent.node == node.id]
        rows.append([node.id, str(len(numbers)), f"#{numbers[0]}-#{numbers[-1]}" if numbers else "", str(node.max_agents)])
    rows.append(["total", str(len(fleet)), "", str(sum(node.max_agents for node in nodes))])
    render.table([NODE, "agents", "numbers", "takes"], rows, right=("agents", "takes"))


def _label_of(side: str, value: str) -> str:
    return f"{value} {LEVELS[int(value)]}" if side == "level" else value or "(none)"


def _limits_of(level: Level) -> str:
    from orchestra.intake.roster import Resources

    if not isinstance(level.limits, Resources):
        return ""
    limits = level.limits
    return f"{limits.cpus} to {limits.cpus_max} processors, {limits.memory_mb} to {limits.memory_mb_max} MiB"
