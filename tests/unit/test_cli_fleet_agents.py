"""`orchestra agent` in a fleet of many sorts on many nodes: who is listed, and who is typed to."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner, Result

from orchestra.core.model import AgentStatus
from orchestra.edges.cli.agent import STATUSES, WITH_WINDOW
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.errors import NodeUnreachable
from orchestra.testing.fake_usecases import FakeWiring, make_agent, make_node
from orchestra.usecases import AgentsParams, AgentsReply, DoneReply, NodesReply, TypeParams

FLEET = (
    make_agent(1, node="mugen", category="coding", speciality="codegen", team="team-1", level=2),
    make_agent(2, node="mugen", category="business", speciality="devops", team="team-1", status="busy", task="demo/a", attempt=1),
    make_agent(3, node="majin", category="coding", speciality="review", team="team-2", kind="codex"),
    make_agent(4, node="majin", category="coding", speciality="codegen", team="team-2", status="offline"),
)


def make_wiring() -> FakeWiring:
    wiring = FakeWiring()

    def agents(params: object) -> AgentsReply:
        assert isinstance(params, AgentsParams)
        return AgentsReply(tuple(each for each in FLEET if not params.agents or each.agent in params.agents))

    wiring.fake.on("agents", agents)
    return wiring


def call(wiring: FakeWiring, *args: str) -> Result:
    return CliRunner().invoke(cli, ["agent", *args], obj=Session(wiring))


def test_statuses_are_those_there_are() -> None:
    assert set(STATUSES) == {status.value for status in AgentStatus}
    assert set(WITH_WINDOW) < set(STATUSES)


def test_columns_are_there_where_a_fleet_has_them() -> None:
    header, first, *_ = call(make_wiring(), "list").stdout.splitlines()
    assert header.split() == ["#", "name", "kind", "category", "speciality", "team", "node", "status", "done", "failed", "task", "what"]
    assert first.split()[:8] == ["1", "agent-001", "any", "coding", "codegen", "team-1", "mugen", "idle"]
    plain = FakeWiring()
    plain.fake.on("agents", AgentsReply((make_agent(),)))
    assert call(plain, "list").stdout.split()[:5] == ["#", "name", "kind", "node", "status"]


@pytest.mark.parametrize(
    "args,numbers",
    [
        (("--node", "majin"), [3, 4]),
        (("--category", "coding"), [1, 3, 4]),
        (("--status", "busy"), [2]),
        (("--team", "team-1", "--status", "idle"), [1]),
        (("2-4", "--node", "mugen"), [2]),
        (("--node", "nowhere"), []),
    ],
)
def test_list_chooses(args: tuple[str, ...], numbers: list[int]) -> None:
    told = json.loads(call(make_wiring(), "list", *args, "--json").stdout)["agents"]
    assert [each["agent"] for each in told] == numbers


def test_show_tells_the_sort_and_the_team() -> None:
    wiring = FakeWiring()
    wiring.fake.on("agents", AgentsReply(FLEET[:1]))
    lines = [line.split(maxsplit=1) for line in call(wiring, "show", "1").stdout.splitlines()]
    assert lines[4:7] == [["category", "coding"], ["speciality", "codegen"], ["team", "team-1, level 2"]]


@pytest.mark.parametrize(
    "args,asked",
    [
        (("--all",), [(1, 2), (3,)]),
        (("--node", "mugen"), [(1, 2)]),
        (("--agents", "1-3", "--category", "coding"), [(1,), (3,)]),
        (("--speciality", "devops"), [(2,)]),
        (("--team", "team-2"), [(3,)]),
        (("--kind", "codex"), [(3,)]),
    ],
)
def test_broadcast_types_to_those_that_fit_and_have_a_window(args: tuple[str, ...], asked: list[tuple[int, ...]]) -> None:
    wiring = make_wiring()
    assert call(wiring, "broadcast", "git pull", *args).exit_code == 0
    assert wiring.fake.asked("type_text") == [TypeParams(numbers, "git pull", True) for numbers in asked]


def test_broadcast_says_to_how_many_on_which_nodes_and_whom_it_left_out() -> None:
    result = call(make_wiring(), "broadcast", "y", "--all", "--no-enter")
    assert result.stdout == "typed to 3 agents: 2 on mugen, 1 on majin\n"
    assert result.stderr == "2 of them were idle, so nothing read it there: #1, #3\nnot typed to, as they have no window now: #4\n"
    wiring = make_wiring()
    told = json.loads(call(wiring, "broadcast", "y", "--all", "--no-enter", "--json").stdout)
    assert told == {"agents": [1, 2, 3], "nodes": {"mugen": 2, "majin": 1}, "idle": [1, 3], "left_out": [4]}
    assert {params.enter for params in wiring.fake.asked("type_text")} == {False}


def test_a_node_out_of_reach_holds_up_no_other() -> None:
    wiring = make_wiring()

    def type_text(params: object) -> object:
        assert isinstance(params, TypeParams)
        return DoneReply() if 3 in params.agents else NodeUnreachable("node mugen is not connected", hint="`orchestra status` says why")

    wiring.fake.on("type_text", type_text)
    result = call(wiring, "broadcast", "y", "--all", "--json")
    assert result.exit_code == 69
    assert json.loads(result.stdout) == {"agents": [3], "nodes": {"majin": 1}, "idle": [3], "left_out": [1, 2, 4]}
    assert json.loads(result.stderr)["error"]["message"] == "node mugen is not connected"


def test_a_broadcast_to_busy_agents_says_nothing_of_idle_ones() -> None:
    result = call(make_wiring(), "broadcast", "y", "--agents", "2")
    assert (result.stdout, result.stderr) == ("typed to 1 agent: 1 on mugen\n", "")


@pytest.mark.parametrize("name, hint", [("mugn", "did you mean 'mugen'?"), ("xyz", "there are mugen, majin")])
def test_a_node_that_is_not_there_is_named_by_broadcast(name: str, hint: str) -> None:
    wiring = make_wiring()
    wiring.fake.on("nodes", NodesReply((make_node(name="mugen"), make_node(name="majin"))))
    result = call(wiring, "broadcast", "y", "--node", name, "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["field"], error["hint"]) == (2, "node", hint)
    assert wiring.fake.asked("type_text") == []


@pytest.mark.parametrize("args", [(), ("--no-enter",), ("--all", "--node", "mugen"), ("--team", "team-9")])
def test_broadcast_wants_one_selector_that_fits_somebody(args: tuple[str, ...]) -> None:
    wiring = make_wiring()
    result = call(wiring, "broadcast", "y", *args, "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, error["field"]) == (2, "agents")
    assert error["hint"]
    assert wiring.fake.asked("type_text") == []
