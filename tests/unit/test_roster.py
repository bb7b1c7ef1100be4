"""Rosters: the reference fleets come out to the last agent, any other size adds up, and a bad file is told with its place."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, cast

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestra.agents.registry import adapter_for
from orchestra.answers import spread
from orchestra.app import App
from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.model import STANDARD, AgentSpec, NodeSpec, Worker
from orchestra.engine.board import Board
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, NotFound, OrchestraError, PlanInvalid, Refused
from orchestra.fleetdesk import Wanted
from orchestra.ids import NodeId
from orchestra.intake.planfile import AgentGroup
from orchestra.intake.request import InitParams, ScaleParams
from orchestra.intake.roster import (
    LEAD,
    PRESETS,
    Resources,
    Roster,
    apportion,
    chosen_roster,
    lay_out,
    load_roster,
    places,
    preset,
    preset_text,
    roster_schema,
    size_of,
)
from orchestra.ledgers.memory import MemoryLedger
from orchestra.usecases import InitReply, NodeAddParams
from orchestra.viewing import Lens
from orchestra.workbench import AppOptions, Workbench

ROOT = Path(__file__).resolve().parents[2]
CATEGORIES = {"coding": 35, "business": 25, "research": 20, "support": 20}
SPECIALITIES = {
    "codegen": 40,
    "review": 20,
    "test": 25,
    "devops": 15,
    "documentation": 15,
    "security": 10,
    "research": 20,
    "design": 15,
    "integration": 15,
    "support": 25,
}


def make_nodes(*most: int) -> tuple[NodeSpec, ...]:
    return tuple(NodeSpec(NodeId(f"n{index}"), max_agents=count) for index, count in enumerate(most, 1))


REFERENCE = (NodeSpec(NodeId("mugen"), max_agents=100), NodeSpec(NodeId("majin"), max_agents=100))


def fleet(name: str, count: int | None = None, nodes: Sequence[NodeSpec] = REFERENCE) -> list[AgentSpec]:
    roster = preset(name)
    return lay_out(roster, size_of(roster, count, 4), nodes, kind="any")


def counted(agents: Iterable[AgentSpec], field: str) -> dict[Any, int]:
    return dict(Counter(getattr(agent, field) for agent in agents))


# --- the reference fleets ------------------------------------------------------------------------------------------------


def test_phase_3_fills_mugen_with_1_to_100_and_majin_with_101_to_200() -> None:
    agents = fleet("phase3")
    assert [agent.id for agent in agents] == list(range(1, 201))
    assert [agent.node for agent in agents] == ["mugen"] * 100 + ["majin"] * 100


def test_each_reference_node_has_the_same_categories() -> None:
    agents = fleet("phase3")
    for node in ("mugen", "majin"):
        assert counted((agent for agent in agents if agent.node == node), "category") == CATEGORIES


def test_the_200_have_the_hierarchy_and_the_specialities_of_the_reference() -> None:
    agents = fleet("phase3")
    assert counted(agents, "level") == {0: 3, 1: 4, 2: 20, 3: 173}
    assert counted(agents, "speciality") == SPECIALITIES
    assert len({agent.node for agent in agents if agent.level == 0}) == 2, "the loss of one node must not take every chief"


def test_the_200_are_20_teams_of_10_on_one_node_with_a_lead_each() -> None:
    agents = fleet("phase3")
    assert set(counted(agents, "team").values()) == {10}
    assert counted((agent for agent in agents if agent.level == LEAD), "team") == {f"team-{number}": 1 for number in range(1, 21)}
    assert len({(agent.team, agent.node) for agent in agents}) == 20


def test_higher_ranks_come_first_on_each_node_and_names_are_unique() -> None:
    agents = fleet("phase3")
    for node in REFERENCE:
        levels = [agent.level for agent in agents if agent.node == node.id]
        assert levels == sorted(levels)
    assert len({agent.name for agent in agents}) == 200
    assert [agents[index].name for index in (0, 2, 4)] == ["chief-1", "zone-3", "lead-5"]
    assert agents[199].name == f"{agents[199].speciality}-200"


def test_every_team_has_some_of_all() -> None:
    agents = fleet("phase3")
    for team in {agent.team for agent in agents}:
        assert len({agent.category for agent in agents if agent.team == team}) == 4
        assert len({agent.speciality for agent in agents if agent.team == team}) >= 5


def test_on_four_zones_each_has_50_agents_and_a_coordinator() -> None:
    agents = fleet("phase3", nodes=make_nodes(50, 50, 50, 50))
    assert counted(agents, "node") == {"n1": 50, "n2": 50, "n3": 50, "n4": 50}
    assert counted((agent for agent in agents if agent.level == 1), "node") == {"n1": 1, "n2": 1, "n3": 1, "n4": 1}
    assert counted((agent for agent in agents if agent.level == LEAD), "node") == {"n1": 5, "n2": 5, "n3": 5, "n4": 5}
    assert len({agent.node for agent in agents if agent.level == 0}) == 3


def test_phase_1_is_12_and_6() -> None:
    agents = fleet("phase1")
    assert counted(agents, "node") == {"mugen": 12, "majin": 6}
    assert counted(agents, "category") == {"coding": 6, "business": 4, "research": 4, "support": 4}
    assert counted(agents, "team") == {"team-1": 6, "team-2": 6, "team-3": 6}
    assert counted((agent for agent in agents if agent.level == LEAD), "team") == {"team-1": 1, "team-2": 1, "team-3": 1}


def test_phase_2_is_50_and_goes_to_100() -> None:
    assert counted(fleet("phase2"), "node") == {"mugen": 33, "majin": 17}
    assert counted(fleet("phase2", 100), "level") == {0: 2, 1: 2, 2: 10, 3: 86}
    for count in (49, 101):
        with pytest.raises(BadInput, match=f"meant for 50 to 100 agents, not {count}") as refusal:
            fleet("phase2", count)
        assert (refusal.value.field, bool(refusal.value.hint)) == ("agent_count", True)


@pytest.mark.parametrize(
    "name,level,limits",
    [("phase3", 0, (4, 8, 8, 16)), ("phase3", 1, (4, 8, 8, 16)), ("phase3", 2, (2, 4, 4, 8)), ("phase3", 3, (1, 2, 2, 4))],
)
def test_the_levels_have_the_limits_of_the_reference(name: str, level: int, limits: tuple[int, int, int, int]) -> None:
    found = next(each for each in preset(name).levels if each.level == level).limits
    assert found == Resources(cpus=limits[0], cpus_max=limits[1], memory_mb=limits[2] * 1024, memory_mb_max=limits[3] * 1024)


def test_a_plain_fleet_is_as_it_was_before_there_were_rosters() -> None:
    nodes = make_nodes(6, 3)
    assert fleet("plain", 5, nodes) == spread((AgentGroup(count=5),), nodes)
    assert fleet("plain", None, nodes)[3] == AgentSpec(id=cast("Any", 4), node=NodeId("n2"))


# --- any size, any nodes -------------------------------------------------------------------------------------------------

QUOTAS = st.lists(st.integers(0, 300), min_size=1, max_size=8)
NODES = st.lists(st.tuples(st.integers(0, 120), st.integers(1, 400)), min_size=1, max_size=6).map(
    lambda found: tuple(NodeSpec(NodeId(f"n{at}"), max_agents=most, weight=weight) for at, (most, weight) in enumerate(found, 1))
)


@given(st.integers(0, 2000), QUOTAS)
def test_parts_add_up_and_are_the_exact_share_rounded(count: int, quotas: list[int]) -> None:
    parts, total = apportion(count, quotas), sum(quotas)
    assert sum(parts) == (count if total else 0)
    for part, quota in zip(parts, quotas, strict=True):
        assert not total or count * quota // total <= part <= -(-count * quota // total)


def test_among_equal_remainders_the_first_goes_first() -> None:
    assert apportion(3, [1, 1]) == [2, 1]
    assert apportion(5, [1, 0, 1, 1]) == [2, 0, 2, 1]


@given(NODES, st.lists(st.integers(1, 50), max_size=4), st.data())
def test_no_node_gets_more_than_it_takes(nodes: tuple[NodeSpec, ...], shares: list[int], data: st.DataObject) -> None:
    capacity = sum(node.max_agents for node in nodes)
    count = data.draw(st.integers(0, capacity))
    found = places(count, nodes, shares)
    assert sum(found) == count
    assert all(0 <= part <= node.max_agents for part, node in zip(found, nodes, strict=True))
    with pytest.raises(Refused) as refusal:
        places(capacity + 1, nodes, shares)
    assert refusal.value.field == "agent_count"


def test_what_is_too_much_for_a_node_goes_to_those_with_room() -> None:
    assert places(18, make_nodes(10, 100), (12, 6)) == [10, 8]
    assert places(30, make_nodes(5, 100, 100), (1, 1)) == [5, 13, 12]


def test_weight_counts_where_no_shares_are_given_and_a_further_node_counts_like_the_last() -> None:
    strong = NodeSpec(NodeId("strong"), max_agents=100, weight=300)
    assert places(40, (strong, *make_nodes(100))) == [30, 10]
    assert places(40, (strong, *make_nodes(100)), (1, 1)) == [20, 20]
    assert places(28, make_nodes(100, 100, 100), (14, 7)) == [14, 7, 7]
    assert counted(spread((AgentGroup(count=40),), (strong, *make_nodes(100))), "node") == {"strong": 30, "n1": 10}


def test_a_reserve_stays_free() -> None:
    roster = load_roster("{roster: a, reserve: 5}", "r.yaml")
    assert len(lay_out(roster, 15, make_nodes(20), kind="any")) == 15
    with pytest.raises(Refused, match=r"16 agents do not fit beside a reserve of 5: the nodes take 20 \(n1 20\)") as refusal:
        lay_out(roster, 16, make_nodes(20), kind="any")
    assert (refusal.value.field, refusal.value.hint) == ("agent_count", "raise max_agents or add a node")


@given(st.sampled_from(PRESETS), st.integers(1, 260), st.integers(1, 6))
def test_every_size_adds_up_and_comes_out_the_same_again(name: str, count: int, nodes: int) -> None:
    roster, places_ = preset(name), make_nodes(*[-(-count // nodes) + 3] * nodes)
    agents = lay_out(roster, count, places_, kind="shell")
    assert agents == lay_out(roster, count, places_, kind="shell")
    assert [agent.id for agent in agents] == list(range(1, count + 1))
    assert [agent.node for agent in agents] == sorted(agent.node for agent in agents)
    assert {agent.kind for agent in agents} == {"shell"}
    expected = {
        level.level: part for level, part in zip(roster.levels, apportion(count, [level.count for level in roster.levels]), strict=True)
    }
    assert counted(agents, "level") == ({level: part for level, part in expected.items() if part} or {3: count})
    for field in ("categories", "specialities"):
        shares = getattr(roster, field)
        parts = dict(zip(shares, apportion(count, list(shares.values())), strict=True))
        single = {"categories": "category", "specialities": "speciality"}[field]
        assert counted(agents, single) == ({key: part for key, part in parts.items() if part} or {"": count})


@given(st.sampled_from(["phase1", "phase2", "phase3"]), st.integers(1, 260), st.integers(1, 6))
def test_every_team_has_one_lead_and_leads_and_teams_belong_to_one_node(name: str, count: int, nodes: int) -> None:
    agents = lay_out(preset(name), count, make_nodes(*[-(-count // nodes) + 3] * nodes), kind="any")
    leads = [agent for agent in agents if agent.level == LEAD]
    teams = {agent.team for agent in agents}
    assert teams == {agent.team for agent in leads} or (not leads and teams == {""})
    assert len(teams - {""}) == len(leads)
    for node in {agent.node for agent in leads}:
        of_leads = [agent.team for agent in leads if agent.node == node]
        sizes = Counter(agent.team for agent in agents if agent.node == node)
        assert set(sizes) == set(of_leads)
        assert max(sizes.values()) - min(sizes.values()) <= 1


def test_a_node_too_small_for_a_lead_belongs_to_the_last_team_before_it() -> None:
    agents = lay_out(preset("phase3"), 22, make_nodes(10, 10, 2), kind="any")
    assert counted((agent for agent in agents if agent.level == LEAD), "node") == {"n1": 1, "n2": 1}
    assert {agent.team for agent in agents if agent.node == "n3"} == {"team-2"}


def test_teams_without_a_rank_of_leads_follow_from_their_size() -> None:
    agents = lay_out(load_roster("{roster: a, team_size: 4}", "r.yaml"), 15, make_nodes(9, 6), kind="any")
    assert counted(agents, "team") == {"team-1": 3, "team-2": 3, "team-3": 3, "team-4": 3, "team-5": 3}


def test_kinds_meet_the_specialities_written_in_the_same_place() -> None:
    text = "{roster: a, kinds: {codex: 9, claude: 6}, specialities: {codegen: 9, review: 4, documentation: 2}}"
    agents = lay_out(load_roster(text, "r.yaml"), 15, make_nodes(20), kind="shell")
    assert Counter((agent.kind, agent.speciality) for agent in agents) == {
        ("codex", "codegen"): 9,
        ("claude", "review"): 4,
        ("claude", "documentation"): 2,
    }
    assert counted(lay_out(load_roster("{roster: a, kinds: any}", "r.yaml"), 2, make_nodes(2), kind="shell"), "kind") == {"any": 2}


def test_a_level_gives_its_agents_name_and_weight() -> None:
    text = "{roster: a, levels: [{level: 3, count: 3}, {level: 2, count: 1, name: boss, weight: 150}]}"
    agents = lay_out(load_roster(text, "r.yaml"), 4, make_nodes(4), kind="any")
    assert [(agent.level, agent.name, agent.weight) for agent in agents] == [(2, "boss-1", 150), *[(3, "", 100)] * 3]


# --- files ---------------------------------------------------------------------------------------------------------------

LEVELS = "levels: [{level: 2, count: 2}, {level: 3, count: 18}]\n"


@pytest.mark.parametrize(
    "text,place,field,words,hint",
    [
        ("- a\n", "1:1", "", "a roster is a mapping", "--export"),
        ("description: x\n", "1:1", "roster", "'roster' is missing", ""),
        ("roster: a\nteamsize: 3\n", "2:1", "teamsize", "there is no field 'teamsize'", "'team_size'"),
        ("roster: a\nkind: claude\n", "2:1", "kind", "there is no field 'kind'", "'kinds'"),
        ("roster: a\ncategories: {code: 3}\n", "2:14", "categories.code", "one of business, coding", ""),
        ("roster: a\ncategories:\n  coding: -1\n", "3:3", "categories.coding", "from 0 to 1000000", ""),
        ("roster: a\ncategories: {coding: 0}\n", "2:1", "categories", "no share is above 0", "leave the field out"),
        ("roster: a\nkinds: {}\n", "2:1", "kinds", "no share is above 0", "leave the field out"),
        ("roster: a\nnodes: []\n", "2:1", "nodes", "expected 1 to 1000 entries", ""),
        ("roster: a\nagents: 0\n", "2:1", "agents", "from 1 to 10000", ""),
        ("roster: a\nagents: 30\nagents_max: 20\n", "2:1", "agents", "not from agents_min to agents_max", "write 1 to 20"),
        ("roster: a\nagents_min: 30\nagents_max: 20\n", "2:1", "agents_min", "30 is more than agents_max, 20", "lower it"),
        ("roster: a\nlevels:\n  - {level: 4, count: 1}\n", "3:6", "levels[0].level", "from 0 to 3", ""),
        ("roster: a\nlevels: [{level: 3, count: 1},\n {level: 3, count: 2}]\n", "3:3", "levels[1].level", "given twice", "one entry"),
        ("roster: a\nlevels: [{level: 3, count: 0}]\n", "2:1", "levels", "no level has an agent", "a count"),
        ("roster: a\nagents: 21\n" + LEVELS, "3:1", "levels", "add up to 20, but agents is 21", "change a count"),
        ("roster: a\nteam_size: 5\n" + LEVELS, "3:21", "levels[0].count", "4 teams, but there are 2 leads", "write 4"),
        (
            "roster: a\nlevels:\n  - level: 3\n    count: 1\n    limits: {cpus: 4, cpus_max: 2, memory_mb: 1, memory_mb_max: 1}\n",
            *("5:14", "levels[0].limits.cpus", "4 is more than cpus_max, 2", "raise cpus_max"),
        ),
        ("roster: a\n  b: c\n", "2:4", "", "this is not YAML", ""),
    ],
)
def test_a_bad_roster_is_told_with_line_field_and_remedy(text: str, place: str, field: str, words: str, hint: str) -> None:
    with pytest.raises(PlanInvalid) as refusal:
        load_roster(text, "r.yaml")
    assert refusal.value.message.startswith(f"r.yaml:{place}: ")
    assert words in refusal.value.message
    assert refusal.value.field == field
    assert hint in refusal.value.hint


def test_all_that_is_wrong_is_told_at_once() -> None:
    with pytest.raises(PlanInvalid) as refusal:
        load_roster("roster: a\ncategories: {coding: 0}\nspecialities: {x: 0}\nagents_min: 3\nagents_max: 2\n", "r.yaml")
    assert [problem.split(":")[1] for problem in refusal.value.problems] == ["4", "2", "3"]
    assert "[and 2 more]" in refusal.value.message


FIELDS = ["roster", "agents", "agents_max", "nodes", "categories", "levels", "specialities", "kinds", "team_size", "reserve"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-3, 300) | st.floats() | st.sampled_from(["a", "coding", "any", ""]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["coding", "a", "level", "count", "limits"]), inner, max_size=4)
    ),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=5))
def test_whatever_a_file_says_it_is_laid_out_or_refused(fields: dict[str, object]) -> None:
    error: OrchestraError | None = None
    try:
        roster = load_roster(json.dumps({"roster": "a", **fields}), "r.yaml")
        assert len(lay_out(roster, 7, make_nodes(4, 4), kind="any")) == 7
    except (PlanInvalid, Refused) as refusal:
        error = refusal
    assert not isinstance(error, PlanInvalid) or error.message.startswith("r.yaml:1:")
    assert not isinstance(error, Refused) or "beside a reserve of" in error.message


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_a_file_that_its_own_schema_takes(name: str) -> None:
    jsonschema.Draft202012Validator(roster_schema()).validate(yaml.safe_load(preset_text(name)))
    assert preset(name).roster == name
    assert preset(name).description


def test_every_file_in_the_folder_is_a_preset() -> None:
    assert {path.stem for path in (ROOT / "src/orchestra/rosters").iterdir()} == set(PRESETS)


def test_the_schema_in_the_docs_is_the_one_of_the_code() -> None:
    jsonschema.Draft202012Validator.check_schema(roster_schema())
    written = (ROOT / "docs/schema/roster.schema.json").read_text(encoding="utf-8")
    assert written == json.dumps(roster_schema(), indent=2, ensure_ascii=False) + "\n"


def test_the_roster_in_the_guide_is_sound() -> None:
    guide = (ROOT / "docs/guides/roster.md").read_text(encoding="utf-8")
    roster = load_roster(guide.partition("```yaml\n")[2].partition("```")[0], "guide.yaml")
    assert len(lay_out(roster, size_of(roster, None, 4), make_nodes(10, 10), kind="any")) == 15


# --- orchestra.init ------------------------------------------------------------------------------------------------------


def test_a_phase_a_preset_or_a_text_is_chosen_and_only_one_of_them() -> None:
    assert chosen_roster(3, None, None) is preset("phase3")
    assert chosen_roster(None, "phase1", None) is preset("phase1")
    assert chosen_roster(None, None, "roster: mine") == Roster(roster="mine")
    assert chosen_roster(None, None, None) is preset("plain")
    with pytest.raises(BadInput, match="phase and roster_text contradict each other") as refusal:
        chosen_roster(1, None, "roster: mine")
    assert refusal.value.field == "roster_text"
    with pytest.raises(NotFound) as unknown:
        chosen_roster(None, "phase4", None)
    assert (unknown.value.field, unknown.value.hint) == ("roster", "did you mean 'phase3'?")


@asynccontextmanager
async def coordinator(nodes: Sequence[NodeSpec]) -> AsyncIterator[App]:
    """The real use cases on a real loop; nodes come up as soon as they are driven."""
    ledger = MemoryLedger()
    loop = Loop(Kernel(c.Policy()), ledger, SystemClock(), term=ledger.claim_term())
    coming: list[asyncio.Task[None]] = []

    async def come_up(spec: NodeSpec) -> None:
        here = await loop.ask(lambda state: [agent.id for agent in state.agents_on(spec.id)])
        await loop.report([c.NodeUp(spec.id, "boot", f"session-{spec.id}"), *(c.WorkerSeen(each, Worker(each, 1)) for each in here)])

    def add_driver(spec: NodeSpec) -> NodeDriver:
        coming.append(asyncio.create_task(come_up(spec)))
        return cast("NodeDriver", None)

    bench = Workbench(
        loop=loop,
        lens=lambda: Lens(0, Board(), lambda node, attempt: "", str),
        find_adapter=adapter_for,
        drivers={},
        add_driver=add_driver,
        remove_driver=cast("Any", None),
        provision=None,
        write_report=lambda data: (Path(), Path()),
        backup=cast("Any", None),
    )
    running = asyncio.create_task(loop.run())
    try:
        yield App(bench, AppOptions("test", tuple(nodes), 4, "shell", "0", "/nowhere", STANDARD))
        await asyncio.gather(*coming)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def init(params: InitParams, nodes: Sequence[NodeSpec] = REFERENCE) -> tuple[InitReply, list[AgentSpec]]:
    async with coordinator(nodes) as app:
        reply = await app.init(params)
        return reply, await app._loop.ask(lambda state: [agent.spec for agent in state.agents.values()])


@pytest.mark.parametrize(
    "params,manifest",
    [
        (InitParams(), {"total": 4, "mugen": 2, "majin": 2}),
        (InitParams(agent_count=7), {"total": 7, "mugen": 4, "majin": 3}),
        (InitParams(phase=1), {"total": 18, "mugen": 12, "majin": 6}),
        (InitParams(phase=1, agent_count=6), {"total": 6, "mugen": 4, "majin": 2}),
        (InitParams(phase=1, nodes=("majin",)), {"total": 18, "majin": 18}),
        (InitParams(phase=2), {"total": 50, "mugen": 33, "majin": 17}),
        (InitParams(phase=2, agent_count=75), {"total": 75, "mugen": 50, "majin": 25}),
        (InitParams(phase=3), {"total": 200, "mugen": 100, "majin": 100}),
        (InitParams(roster="phase1"), {"total": 18, "mugen": 12, "majin": 6}),
        (InitParams(roster_text="{roster: mine, agents: 4, nodes: [3, 1]}"), {"total": 4, "mugen": 3, "majin": 1}),
        (InitParams(phase=3, agents=(AgentGroup(count=2),)), {"total": 2, "mugen": 1, "majin": 1}),
    ],
)
async def test_init_lays_the_roster_out(params: InitParams, manifest: dict[str, int]) -> None:
    reply, agents = await init(params)
    assert reply.agent_manifest == manifest
    assert reply.agents_ready == manifest["total"]
    assert reply.session_ids == {node: f"session-{node}" for node in manifest if node != "total"}
    assert counted(agents, "node") == {node: count for node, count in manifest.items() if node != "total"}


async def test_the_agents_of_a_phase_are_what_its_roster_says_in_the_ledger_too() -> None:
    _, agents = await init(InitParams(phase=3))
    assert agents == lay_out(preset("phase3"), 200, REFERENCE, kind="shell")


@pytest.mark.parametrize(
    "params,error,field",
    [
        (InitParams(phase=2, agent_count=20), BadInput, "agent_count"),
        (InitParams(phase=3, agent_count=201), Refused, "agent_count"),
        (InitParams(phase=1, roster="plain"), BadInput, "roster"),
        (InitParams(roster="nope"), NotFound, "roster"),
        (InitParams(roster="plain", agents=(AgentGroup(count=1),)), BadInput, "agents"),
        (InitParams(roster_text="roster: [1]"), PlanInvalid, "roster"),
        (InitParams(roster_text="{roster: a, kinds: nosuch}"), OrchestraError, "agent"),
    ],
)
async def test_a_refused_init_changes_nothing(params: InitParams, error: type[OrchestraError], field: str) -> None:
    async with coordinator(REFERENCE) as app:
        with pytest.raises(error) as refusal:
            await app.init(params)
        assert refusal.value.field == field
        assert await app._loop.ask(lambda state: (state.seq, len(state.agents))) == (0, 0)


async def test_a_misspelt_node_is_told_its_neighbour() -> None:
    for name, hint in (("mugn", "did you mean 'mugen'?"), ("x", "configured nodes: mugen, majin")):
        with pytest.raises(NotFound, match="there is no node") as refusal:
            await init(InitParams(nodes=(name,)))
        assert (refusal.value.field, refusal.value.hint) == ("nodes[0]", hint)


# --- machines of an earlier start ------------------------------------------------------------------------------------


FAR = NodeSpec(NodeId("mugen"), host="10.0.0.1", max_agents=4)


async def test_a_machine_that_is_no_longer_in_the_settings_is_not_used_and_told() -> None:
    async with coordinator((FAR,)) as app:
        await app._loop.request(c.AddNode(NodeSpec(NodeId("majin"), host="10.0.0.2")))
        async with asyncio.timeout(20):  # one that used it would wait for its agents
            reply = await app.init(InitParams(agent_count=2))
        assert reply.agent_manifest == {"total": 2, "mugen": 2}
        assert reply.warnings == ("majin is no longer in the settings; `orchestra node remove majin` forgets it",)
        with pytest.raises(Refused, match="the nodes take 4 "):
            await app.scale(ScaleParams(target_count=5))
        await app._loop.request(c.RemoveNode(NodeId("majin"), force=False))
        assert await app._loop.ask(lambda state: list(state.nodes)) == ["mugen"]


async def test_a_machine_that_went_from_the_settings_is_used_again_when_it_is_added() -> None:
    async with coordinator((FAR,)) as app:
        await app._loop.request(c.AddNode(NodeSpec(NodeId("majin"), host="10.0.0.2")))
        await app.init(InitParams(agent_count=2))
        app._bench.drivers[NodeId("majin")] = cast("NodeDriver", None)  # as a coordinator has that was started with it
        await app.node_add(NodeAddParams("majin", "10.0.0.2", max_agents=4))
        assert await app._loop.ask(lambda state: state.node(NodeId("majin")).draining) is False
        assert await app._loop.ask(app._forgotten) == ()
        assert (await app.scale(ScaleParams(target_count=5))).target_count == 5


async def test_a_machine_that_is_named_again_is_used_again() -> None:
    async with coordinator((FAR,)) as app:
        await app._loop.request(c.AddNode(FAR))
        await app._loop.request(c.DrainNode(FAR.id))
        reply = await app.init(InitParams(agent_count=2))
        assert (reply.agent_manifest, reply.warnings) == ({"total": 2, "mugen": 2}, ())


async def test_machines_that_were_added_or_provided_stay_without_the_settings() -> None:
    async with coordinator((FAR,)) as app:
        await app.node_add(NodeAddParams("gamma", "10.0.0.7", max_agents=4))
        reply = await app.init(InitParams(agent_count=4))
        assert (reply.agent_manifest, reply.warnings) == ({"total": 4, "mugen": 2, "gamma": 2}, ())

        async def provide(wanted: Wanted) -> tuple[NodeSpec, ...]:
            return (NodeSpec(NodeId("made"), host="10.0.0.8", max_agents=wanted.agents),)

        app._desk._provision = provide
        await app.scale(ScaleParams(target_count=9))
        assert await app._loop.ask(lambda state: {name: node.spec.added for name, node in state.nodes.items()}) == {
            "gamma": True,
            "mugen": False,
            "made": True,
        }
        assert await app._loop.ask(app._forgotten) == ()
