"""Rosters: which agents a fleet consists of, said as quotas, and laid out on whatever nodes there are.

A roster is written for one size and holds for any: every number in it is a share, and shares become whole agents by the method of largest
remainders, where what is written first goes first among equals. The same is done for the fleet and then node by node with what is left, so
that the totals come out exactly and every node gets its part of everything. Nothing is random: the same roster, count and nodes give the
same agents.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from importlib import resources
from typing import Annotated, Final, NamedTuple, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestra.core.model import AgentSpec, Limits, NodeSpec
from orchestra.errors import BadInput, NotFound, PlanInvalid, Refused
from orchestra.ids import AgentId
from orchestra.intake import fields as f
from orchestra.intake.document import Document, parse, show_path
from orchestra.intake.planfile import SCHEMA_ID
from orchestra.intake.shape import PROBLEMS_MAX, Problem, convert, nearest

T = TypeVar("T")

PLAIN: Final = "plain"
PHASES: Final = {1: "phase1", 2: "phase2", 3: "phase3"}
PRESETS: Final = (*PHASES.values(), PLAIN)
LEAD: Final = 2
"""Level of the agents that each lead a team."""
SPECIALIST: Final = 3

Quota = Annotated[int, Meta(ge=0, le=1_000_000)]
Size = Annotated[int, Meta(ge=1, le=10_000)]


class Resources(f.Record, frozen=True, kw_only=True):
    """What an agent's processes may use: the base it is counted with, and the most it may grow to."""

    cpus: Annotated[int, Meta(ge=1, le=1024, description="Processors it is counted with.")]
    cpus_max: Annotated[int, Meta(ge=1, le=1024, description="Processors it may use at most.")]
    memory_mb: Annotated[int, Meta(ge=1, le=16_777_216, description="Memory in MiB it is counted with.")]
    memory_mb_max: Annotated[int, Meta(ge=1, le=16_777_216, description="Memory in MiB it may use at most.")]


class Level(f.Record, frozen=True, kw_only=True):
    """One rank of the hierarchy."""

    level: Annotated[
        int, Meta(ge=0, le=3, description="0 chief coordinator, 1 zone coordinator, 2 team lead, 3 specialist; escalation goes upwards.")
    ]
    count: Annotated[Quota, Meta(description="How many in a fleet of `agents`.")]
    name: Annotated[f.Name, Meta(description="Label of its agents, who are numbered; absent means their speciality.")] | UnsetType = UNSET
    weight: Annotated[int, Meta(ge=1, le=10_000, description="Capability in percent of an ordinary agent.")] = 100
    limits: Annotated[Resources, Meta(description="What its agents may use; absent means the settings alone decide.")] | UnsetType = UNSET


class Roster(f.Record, frozen=True, kw_only=True):
    """A fleet: how many agents, where, and of what sorts. Numbers are shares, so it holds for any count and any nodes."""

    roster: Annotated[f.Name, Meta(description="Name of the roster.")]
    description: Annotated[str, Meta(max_length=1000, description="What it is for.")] = ""
    agents: Annotated[Size, Meta(description="Agents in all unless the request says; absent leaves it to the settings.")] | UnsetType = (
        UNSET
    )
    agents_min: Annotated[Size, Meta(description="Fewest agents a request may ask for.")] = 1
    agents_max: Annotated[Size, Meta(description="Most agents a request may ask for.")] = 10_000
    nodes: (
        Annotated[
            tuple[Annotated[int, Meta(ge=1, le=1_000_000)], ...],
            Meta(
                min_length=1,
                max_length=1000,
                description="Shares of the nodes in the order of the settings; each further node counts like the last."
                " Absent means in proportion to max_agents and weight.",
            ),
        ]
        | UnsetType
    ) = UNSET
    categories: Annotated[dict[f.Category, Quota], Meta(description="Shares of the categories of tasks they are meant for.")] = (
        msgspec.field(default_factory=dict)
    )
    levels: Annotated[tuple[Level, ...], Meta(max_length=4, description="The hierarchy; absent means specialists only.")] = ()
    specialities: Annotated[dict[f.Name, Quota], Meta(max_length=1000, description="Shares of what they are best at.")] = msgspec.field(
        default_factory=dict
    )
    kinds: (
        Annotated[f.Name | dict[f.Name, Quota], Meta(description="Agent kind of all, or shares of kinds; absent means agents.kind.")]
        | UnsetType
    ) = UNSET
    team_size: Annotated[Size, Meta(description="Agents of a team, its lead included.")] | UnsetType = UNSET
    reserve: Annotated[int, Meta(ge=0, le=10_000, description="Places on the nodes that must stay free for replacements.")] = 0


class _Sort(NamedTuple):
    """What an agent is besides its rank."""

    category: str
    speciality: str
    kind: str


# --- reading -------------------------------------------------------------------------------------------------------------


def load_roster(text: str, source: str) -> Roster:
    """Returns the roster that the text, YAML or JSON, describes.

    Raises:
        PlanInvalid: It cannot be laid out. `problems` names up to twenty reasons, each with line and column; `field` is the first one's.
    """
    document = parse(text, source=source)
    if not isinstance(document.value, dict):
        raise _refusal(
            document, [Problem((), "a roster is a mapping with the field roster", "`orchestra roster phase3 --export` shows one")]
        )
    roster = convert(document.value, Roster)
    if isinstance(roster, list):
        raise _refusal(document, roster)
    problems = list(_problems(roster))
    if problems:
        raise _refusal(document, problems)
    return roster


def preset_text(name: str) -> str:
    """Returns the file of a preset as it is.

    Raises:
        NotFound: There is no such preset.
    """
    if name not in PRESETS:
        close = nearest(name, PRESETS)
        hint = f"did you mean {close!r}?" if close else f"there are {', '.join(PRESETS)}"
        raise NotFound(f"there is no roster {name[:80]!r}", field="roster", hint=hint)
    return resources.files("orchestra").joinpath("rosters", f"{name}.yaml").read_text("utf-8")


@cache
def preset(name: str) -> Roster:
    """Returns one of `PRESETS`.

    Raises:
        NotFound: There is no such preset.
    """
    return load_roster(preset_text(name), f"{name}.yaml")


def chosen_roster(phase: int | None, name: str | None, text: str | None) -> Roster:
    """Returns the roster meant by a phase, the name of a preset or the text of a file; by none of them, the plain one.

    Raises:
        BadInput: Two of them are given, or the text is no roster.
        NotFound: There is no such preset.
    """
    given = [field for field, value in (("phase", phase), ("roster", name), ("roster_text", text)) if value is not None]
    if len(given) > 1:
        raise BadInput(f"{' and '.join(given)} contradict each other", field=given[1], hint="give one of them")
    if text is not None:
        return load_roster(text, "roster_text")
    return preset(PHASES[phase] if phase is not None else name or PLAIN)


def roster_schema() -> dict[str, object]:
    """Returns the JSON Schema (draft 2020-12) of roster files, for editors. It says less than `load_roster` checks, never more."""
    schema = msgspec.json.schema(Roster)
    return {"$schema": SCHEMA_ID, "title": "Roster of Miyabi Orchestra", **schema}


def _refusal(document: Document, problems: list[Problem]) -> PlanInvalid:
    shown = problems[:PROBLEMS_MAX]
    lines = tuple(
        f"{document.where(p.path)}: {show_path(p.path) + ': ' if p.path else ''}{p.message}" + (f" ({p.hint})" if p.hint else "")
        for p in shown
    )
    first = shown[0]
    more = f" [and {len(shown) - 1} more]" if len(shown) > 1 else ""
    return PlanInvalid(f"{document.where(first.path)}: {first.message}{more}", hint=first.hint, field=show_path(first.path), problems=lines)


def _problems(roster: Roster) -> Iterator[Problem]:
    """Yields what the fields say against each other."""
    if roster.agents_min > roster.agents_max:
        yield Problem(("agents_min",), f"{roster.agents_min} is more than agents_max, {roster.agents_max}", "lower it, or raise agents_max")
    elif not isinstance(roster.agents, UnsetType) and not roster.agents_min <= roster.agents <= roster.agents_max:
        yield Problem(
            ("agents",), f"{roster.agents} is not from agents_min to agents_max", f"write {roster.agents_min} to {roster.agents_max}"
        )
    for field in ("categories", "specialities", "kinds"):
        quotas = getattr(roster, field)
        if isinstance(quotas, dict) and (quotas or field == "kinds") and not any(quotas.values()):
            yield Problem((field,), "no share is above 0", "give at least one of them a share, or leave the field out")
    yield from _level_problems(roster)


def _level_problems(roster: Roster) -> Iterator[Problem]:
    seen: set[int] = set()
    for index, level in enumerate(roster.levels):
        if level.level in seen:
            yield Problem(("levels", index, "level"), f"level {level.level} is given twice", "write one entry a level")
        seen.add(level.level)
        if not isinstance(level.limits, UnsetType):
            for field in ("cpus", "memory_mb"):
                base, most = getattr(level.limits, field), getattr(level.limits, f"{field}_max")
                if base > most:
                    yield Problem(("levels", index, "limits", field), f"{base} is more than {field}_max, {most}", f"raise {field}_max")
    total = sum(level.count for level in roster.levels)
    if roster.levels and not total:
        yield Problem(("levels",), "no level has an agent", "give at least one of them a count")
    elif roster.levels and not isinstance(roster.agents, UnsetType) and total != roster.agents:
        yield Problem(("levels",), f"the levels add up to {total}, but agents is {roster.agents}", "change a count, or agents")
    elif not isinstance(roster.team_size, UnsetType):
        teams = -(-total // roster.team_size)
        for index, level in enumerate(roster.levels):
            if level.level == LEAD and level.count != teams:
                words = f"{total} agents in teams of {roster.team_size} are {teams} teams, but there are {level.count} leads"
                yield Problem(("levels", index, "count"), words, f"write {teams}, or change team_size")


# --- laying out ----------------------------------------------------------------------------------------------------------


def size_of(roster: Roster, wanted: int | None, default: int) -> int:
    """Returns how many agents there shall be: as many as are asked for, else as the roster says, else the default.

    Raises:
        BadInput: The roster is not meant for so many or so few.
    """
    count = f.given(roster.agents, default) if wanted is None else wanted
    if not roster.agents_min <= count <= roster.agents_max:
        raise BadInput(
            f"roster {roster.roster} is meant for {roster.agents_min} to {roster.agents_max} agents, not {count}",
            field="agent_count",
            hint="ask for a number in that range, or use another roster",
        )
    return count


def lay_out(roster: Roster, count: int, nodes: Sequence[NodeSpec], *, kind: str) -> list[AgentSpec]:
    """Returns the agents, numbered from 1 and filled node after node; on a node the higher ranks come first.

    Args:
        roster: What sorts there are.
        count: Agents in all; see `size_of`.
        nodes: In the order in which they are filled.
        kind: Agent kind where the roster does not say.

    Raises:
        Refused: They do not fit on the nodes.
    """
    sizes = places(count, nodes, f.given(roster.nodes, ()), reserve=roster.reserve)
    levels = roster.levels or (Level(level=SPECIALIST, count=1),)
    ranks = _deal([level.count for level in levels], sizes)
    order = sorted(range(len(levels)), key=lambda index: levels[index].level)
    seats = [[levels[index] for index in order for _ in range(row[index])] for row in ranks]
    teams = _teams(seats, roster)
    sorts = _sorts(roster, sizes, kind)
    agents: list[AgentSpec] = []
    for node, *columns in zip(nodes, seats, sorts, teams, strict=True):
        for level, sort, team in zip(*columns, strict=True):
            number = len(agents) + 1
            label = f.given(level.name, sort.speciality)
            agents.append(
                AgentSpec(
                    id=AgentId(number),
                    node=node.id,
                    kind=sort.kind,
                    name=f"{label}-{number}" if label else "",
                    weight=level.weight,
                    category=sort.category,
                    level=level.level,
                    speciality=sort.speciality,
                    team=f"team-{team}" if team else "",
                    limits=_limits(level),
                )
            )
    return agents


def _limits(level: Level) -> Limits:
    """What the agent's processes really run under: the most that its level may use."""
    if isinstance(level.limits, UnsetType):
        return Limits()
    return Limits(memory_bytes=level.limits.memory_mb_max << 20, cpus=level.limits.cpus_max)


def places(count: int, nodes: Sequence[NodeSpec], shares: Sequence[int] = (), *, reserve: int = 0) -> list[int]:
    """Returns how many of `count` agents each node gets: in proportion to `shares`, else to what it takes and its weight.

    No node gets more than it takes; what is too much for one goes to those with room.

    Args:
        count: Agents in all.
        nodes: Where they go.
        shares: By position; each further node counts like the last. Empty for none.
        reserve: Places that have to stay free.

    Raises:
        Refused: They do not fit.
    """
    capacity = sum(node.max_agents for node in nodes)
    if count + reserve > capacity:
        names = ", ".join(f"{node.id} {node.max_agents}" for node in nodes)
        beside = f" beside a reserve of {reserve}" if reserve else ""
        raise Refused(
            f"{count} agents do not fit{beside}: the nodes take {capacity} ({names})",
            field="agent_count",
            hint="raise max_agents or add a node",
        )
    if shares:
        wishes = [shares[min(index, len(shares) - 1)] for index in range(len(nodes))]
    else:
        wishes = [max(1, node.max_agents * node.weight) for node in nodes]
    found = [0] * len(nodes)
    while (left := count - sum(found)) > 0:  # each round ends it or fills a node
        roomy = [wish if have < node.max_agents else 0 for wish, have, node in zip(wishes, found, nodes, strict=True)]
        parts = apportion(left, roomy)
        found = [min(node.max_agents, have + part) for node, have, part in zip(nodes, found, parts, strict=True)]
    return found


def apportion(count: int, quotas: Sequence[int]) -> list[int]:
    """Returns `count` divided in proportion to the quotas, by largest remainders; among equal ones the first goes first.

    The parts add up to `count`, each is its exact share rounded up or down, and a quota of 0 gets nothing.
    """
    total = sum(quotas)
    if not total:
        return [0] * len(quotas)
    parts = [count * quota // total for quota in quotas]
    by_remainder = sorted(range(len(quotas)), key=lambda index: (-(count * quotas[index] % total), index))
    for index in by_remainder[: count - sum(parts)]:
        parts[index] += 1
    return parts


def _deal(quotas: Sequence[int], sizes: Sequence[int]) -> list[list[int]]:
    """Returns for each node how many of each quota it gets: the columns add up to the fleet's parts, the rows to the sizes."""
    rest = apportion(sum(sizes), quotas)
    rows = []
    for size in sizes:
        row = apportion(size, rest)
        rest = [have - part for have, part in zip(rest, row, strict=True)]
        rows.append(row)
    return rows


def _sorts(roster: Roster, sizes: Sequence[int], kind: str) -> list[list[_Sort]]:
    """Returns the sorts of each node's agents, well mixed.

    Categories, specialities and kinds are laid side by side in the order written, so that what is written in the same place meets.
    """
    kinds: str | Mapping[str, int] = kind if isinstance(roster.kinds, UnsetType) else roster.kinds
    columns: list[Mapping[str, int]] = [
        {str(name): share for name, share in roster.categories.items()} or {"": 1},
        roster.specialities or {"": 1},
        {kinds: 1} if isinstance(kinds, str) else kinds,
    ]
    sides = [[_unrolled(shares, row) for row in _deal(list(shares.values()), sizes)] for shares in columns]
    return [_mixed([_Sort(*each) for each in zip(*node, strict=True)]) for node in zip(*sides, strict=True)]


def _unrolled(names: Iterable[str], row: Sequence[int]) -> list[str]:
    return [name for name, count in zip(names, row, strict=True) for _ in range(count)]


def _mixed(sorts: Sequence[_Sort]) -> list[_Sort]:
    """Returns the same sorts so that any stretch of neighbours has some of all: categories spread evenly, and within each what is in it."""
    within: dict[str, list[_Sort]] = {}
    for sort in sorts:
        within.setdefault(sort.category, []).append(sort)
    turns = {category: iter(_spread(found)) for category, found in within.items()}
    return [next(turns[category]) for category in _spread([sort.category for sort in sorts])]


def _spread(values: Sequence[T]) -> list[T]:
    """Returns the same values, equal ones as far apart as they can be."""
    spread = [
        (Fraction(2 * each + 1, 2 * count), order, value)
        for order, (value, count) in enumerate(Counter(values).items())
        for each in range(count)
    ]
    return [value for _, _, value in sorted(spread, key=lambda each: each[:2])]


def _teams(seats: Sequence[Sequence[Level]], roster: Roster) -> list[list[int]]:
    """Returns the number of each seat's team; 0 is none.

    Where there are leads, each has one team of its node. A node too small for a lead belongs to the last team before it. Without a rank of
    leads, `team_size` alone makes the teams.
    """
    leads = [sum(level.level == LEAD for level in node) for node in seats]
    if not any(level.level == LEAD for level in roster.levels):
        leads = [0 if isinstance(roster.team_size, UnsetType) else -(-len(node) // roster.team_size) for node in seats]
    found: list[list[int]] = []
    made = 0
    for node, teams in zip(seats, leads, strict=True):
        if teams:
            found.append([made + each for each in _teams_of(node, teams)])
        else:
            found.append([max(made, 1) if any(leads) else 0] * len(node))
        made += teams
    return found


def _teams_of(node: Sequence[Level], teams: int) -> list[int]:
    """Returns the teams of one node's seats, 1 to `teams` and all about as large: a lead each, the coordinators in turn, then neighbours."""
    room = apportion(len(node), [1] * teams)
    leads = coordinators = filling = 0
    found = []
    for level in node:  # in the order of ranks
        if level.level < LEAD:
            team = coordinators % teams
            coordinators += 1
        elif level.level == LEAD:
            team = leads
            leads += 1
        else:
            while not room[filling]:
                filling += 1
            team = filling
        room[team] -= 1
        found.append(team + 1)
    return found
