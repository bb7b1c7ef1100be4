"""`orchestra init` and `orchestra up`: one way to agents, progress on it, and nothing left behind by what was refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.errors import CoordinatorUnreachable, IllegalMove, PortFailed, Refused
from orchestra.intake.request import InitParams
from orchestra.intake.roster import preset_text
from orchestra.settings import Settings
from orchestra.settings_schema import Agents
from orchestra.testing.fake_usecases import FakeWiring, make_node, make_status, make_watch
from orchestra.usecases import InitReply, NodesReply
from orchestra.views import AgentCounts

REPLY = InitReply("initialized", {"mugen": "s-mugen", "majin": "s-majin"}, {"total": 200, "mugen": 100, "majin": 100}, 200, "healthy")


async def no_pause(seconds: float) -> None:
    return None


def call(wiring: FakeWiring, *args: str) -> Result:
    return CliRunner().invoke(cli, [*args, "--root", "/x"], obj=Session(wiring, no_pause))


def make_wiring(*, running: bool = False, status: str = "uninitialized") -> FakeWiring:
    wiring = FakeWiring(running=running)
    wiring.fake.on("status", make_status(status)).on("init", REPLY)
    return wiring


@pytest.mark.parametrize("verb,word", [("up", "up"), ("init", "initialized")])
def test_both_start_a_coordinator_where_none_runs_and_show_what_is_there(verb: str, word: str) -> None:
    wiring = make_wiring()
    result = call(wiring, verb, "--phase", "3")
    assert (result.exit_code, wiring.log) == (0, ["start /x", "connect /x"])
    assert result.stdout.splitlines()[0] == f"{word}: 200 of 200 agents ready, healthy"
    assert [line.split() for line in result.stdout.splitlines()[2:]] == [["mugen", "100", "s-mugen"], ["majin", "100", "s-majin"]]
    told = json.loads(call(make_wiring(), verb, "--json").stdout)
    assert told == {
        "status": "initialized",
        "session_ids": {"mugen": "s-mugen", "majin": "s-majin"},
        "agent_manifest": {"total": 200, "mugen": 100, "majin": 100},
        "agents_ready": 200,
        "health": "healthy",
    }


def test_a_node_that_has_not_come_is_named() -> None:
    wiring = make_wiring()
    wiring.fake.on("init", InitReply("initialized", {"mugen": "s", "majin": ""}, {"total": 4, "mugen": 3, "majin": 1}, 3, "degraded"))
    result = call(wiring, "init")
    assert result.exit_code == 0
    assert "node majin is not connected yet" in result.stderr
    assert "orchestra node check majin" in result.stderr
    assert "node mugen" not in result.stderr


def test_a_machine_that_is_not_used_any_more_is_told() -> None:
    wiring = make_wiring()
    wiring.fake.on("init", msgspec.structs.replace(REPLY, warnings=("gamma is no longer in the settings",)))
    assert "gamma is no longer in the settings" in call(wiring, "init").stderr
    assert json.loads(call(wiring, "init", "--json").stdout)["warnings"] == ["gamma is no longer in the settings"]


def test_init_asks_the_running_orchestra() -> None:
    wiring = make_wiring(running=True)
    assert call(wiring, "init", "--agents", "7").exit_code == 0
    assert wiring.log == ["connect /x"]
    wiring.fake.on("init", IllegalMove("cannot initialise while the orchestra is running"))
    assert call(wiring, "init").exit_code == 2
    assert wiring.log == ["connect /x"] * 2, "what somebody else started is left alone"


@pytest.mark.parametrize("verb", ["up", "init"])
def test_the_request_is_what_the_options_say(verb: str, tmp_path: Path) -> None:
    file = tmp_path / "my.yaml"
    file.write_text(preset_text("phase1"))
    wiring = make_wiring()
    wiring.settings = Settings(agents=Agents(count=6))
    for args in (
        (),
        ("--agents", "9"),
        ("--phase", "1"),
        ("--roster", "phase2", "--agents", "60"),
        ("--roster", str(file), "--nodes", "a, b,a"),
    ):
        wiring.running = False
        assert call(wiring, verb, *args).exit_code == 0
    assert wiring.fake.asked("init") == [
        InitParams(agent_count=6),
        InitParams(agent_count=9),
        InitParams(phase=1),
        InitParams(roster="phase2", agent_count=60),
        InitParams(roster_text=preset_text("phase1"), nodes=("a", "b", "a")),
    ]


def test_in_the_foreground_the_request_is_the_same() -> None:
    wiring = make_wiring()
    assert call(wiring, "up", "--foreground", "--phase", "2", "--nodes", "a").exit_code == 0
    assert call(wiring, "up", "--foreground", "--bare").exit_code == 0
    assert wiring.log == ["serve /x {'phase': 2, 'nodes': ('a',)}", "serve /x {}"]


def test_progress_names_every_node_and_why_it_is_not_there() -> None:
    wiring = make_wiring()

    async def slow(params: object) -> InitReply:
        await wiring.fake.wait_asked("nodes", 3)
        return REPLY

    def at(up: int, **changes: Any) -> NodesReply:
        there = make_node(name="mugen", agents_running=up, agents_total=100)
        return NodesReply((there, make_node(**{"name": "majin", "agents_running": 0, "agents_total": 100, "connected": False, **changes})))

    wiring.fake.on("init", slow).on("nodes", at(40), at(41), at(41, reason="no route"))
    result = call(wiring, "up")
    assert result.stderr.splitlines()[:2] == [
        "agents ready: mugen 40/100, majin 0/100 (connecting)",
        "agents ready: mugen 41/100, majin 0/100 (no route)",
    ]
    assert call(make_wiring(), "up", "--quiet").output == ""


@pytest.mark.parametrize(
    "error,code",
    [(Refused("they do not fit", field="agent_count"), 2), (PortFailed("a node did not come"), 69), (KeyboardInterrupt(), 130)],
)
@pytest.mark.parametrize("verb", ["up", "init"])
def test_a_refused_init_leaves_no_coordinator_behind(verb: str, error: BaseException, code: int) -> None:
    wiring = make_wiring()
    wiring.fake.on("init", error)
    assert call(wiring, verb).exit_code == code
    assert wiring.log == ["start /x", "connect /x", "abandon /x"]
    assert not wiring.running


def test_an_orchestra_that_was_up_goes_on_and_its_agents_are_waited_for() -> None:
    wiring = make_wiring(status="running")
    wiring.fake.on("status", *(make_status("running", agents=AgentCounts(2, up, up, 0, 0)) for up in (0, 0, 1, 2)))
    wiring.fake.on("nodes", NodesReply((make_node(),)))
    result = call(wiring, "up", "--agents", "9")
    assert (result.exit_code, wiring.fake.asked("init")) == (0, [])
    assert result.stdout == "up: 2 of 2 agents ready, healthy\n"
    assert "goes on as it was" in result.stderr
    assert wiring.log == ["start /x", "connect /x"], "it is never ended for that"


def test_an_orchestra_that_was_ending_is_started_again_when_it_has() -> None:
    wiring = make_wiring()
    wiring.fake.on("status", make_status("draining"), make_status("terminated")).on("watch", make_watch(1), CoordinatorUnreachable("gone"))
    assert call(wiring, "up").exit_code == 0
    assert wiring.log == ["start /x", "connect /x", "window gone /x", "start /x", "connect /x"]


def test_bare_starts_no_agents() -> None:
    wiring = make_wiring()
    wiring.fake.on("status", make_status("uninitialized", agents=AgentCounts(0, 0, 0, 0, 0)))
    result = call(wiring, "up", "--bare")
    assert (result.exit_code, result.stdout) == (0, "up: 0 of 0 agents ready, healthy\n")
    assert wiring.fake.asked("init") == []


@pytest.mark.parametrize(
    "args,field",
    [
        (("up", "--bare", "--agents", "3"), "bare"),
        (("up", "--bare", "--nodes", "a"), "bare"),
        (("up", "--phase", "1", "--roster", "plain"), "phase"),
        (("init", "--phase", "4"), "phase"),
        (("init", "--roster", "phase9"), "roster"),
        (("init", "--roster", "nowhere.yaml"), "roster"),
        (("init", "--nodes", "a,,b"), "nodes"),
        (("init", "--agents", "0"), "agents"),
    ],
)
def test_bad_options_start_nothing(args: tuple[str, ...], field: str) -> None:
    wiring = make_wiring()
    result = call(wiring, *args, "--json")
    error = json.loads(result.stderr)["error"]
    assert (result.exit_code, wiring.log, wiring.fake.calls) == (2, [], [])
    assert error["field"] == field
    assert error["hint"]
