"""`orchestra node`: what is asked, what is waited for, what is said without a coordinator, and whose key is trusted."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from orchestra.bootstrap.nodes import NodeCheck
from orchestra.core import events as e
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.node import node_yaml
from orchestra.edges.cli.session import Session
from orchestra.errors import FACES, Refused
from orchestra.nodes.probe import Finding
from orchestra.settings import Settings, load
from orchestra.settings_schema import Node
from orchestra.testing.fake_usecases import FakeWiring, make_node, make_offer, make_watch
from orchestra.usecases import DrainReply, NodeAddParams, NodeDrainParams, NodeParams, NodeRemoveParams, NodeReply, NodesReply

SHOWN = "SHA256:" + "A" * 43
OTHER = "SHA256:" + "B" * 43


async def no_pause(seconds: float) -> None:
    return None


def call(wiring: FakeWiring, *args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, ["node", *args, "--root", "/x"], obj=Session(wiring, no_pause), input=stdin)


def error_of(result: Result) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(result.stderr.splitlines()[-1])["error"]
    return found


def majin(**changes: Any) -> Any:
    return make_node(**{"name": "majin", "host": "10.0.0.2", "agents_running": 0, "agents_total": 0, "max_agents": 100, **changes})


# --- list ----------------------------------------------------------------------------------------------------------------


def test_list_shows_what_a_node_does_and_has_left() -> None:
    wiring = FakeWiring()
    view = majin(
        zone="eu", agents_busy=3, agents_running=90, cpus=8, load_1m=12.34, memory_available_bytes=3 << 30, disk_free_bytes=9 << 30
    )
    lost = make_node(name="far", host="far", status="lost", connected=False, reason="no route", agents_running=0)
    wiring.fake.on("nodes", NodesReply((view, lost)))
    lines = call(wiring, "list").stdout.splitlines()
    assert lines[0].split() == ["node", "status", "host", "zone", "busy/up/max", "load", "memory", "free", "disk", "free"]
    assert lines[1].split() == ["majin", "healthy", "10.0.0.2", "eu", "3/90/100", "12.3", "on", "8", "3.0", "GiB", "9.0", "GiB"]
    assert lines[2].split() == ["far", "lost", "far", "-", "0/0/0", "-", "-", "-", "no", "route"]
    told = json.loads(call(wiring, "list", "--json").stdout)
    assert [each["name"] for each in told["nodes"]] == ["majin", "far"]
    assert told["nodes"][0]["load_1m"] == 12.34


def test_list_names_configured_nodes_that_are_not_used_yet() -> None:
    wiring = FakeWiring()
    wiring.settings = Settings(nodes={"majin": Node(host="10.0.0.2"), "gpu": Node(host="gpu", zone="eu", max_agents=7)})
    wiring.fake.on("nodes", NodesReply((majin(),)))
    told = json.loads(call(wiring, "list", "--json").stdout)["nodes"]
    assert [(each["name"], each["status"], each["max_agents"]) for each in told] == [("majin", "healthy", 100), ("gpu", "configured", 7)]


def test_list_without_a_coordinator_says_so_and_invents_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wiring = FakeWiring(running=False)
    result = call(wiring, "list")
    assert result.stdout.splitlines()[1].split()[:4] == ["local", "configured", "this", "machine"]
    assert "no orchestra is running; this is what its ledger and the settings say" in result.stderr

    class Shelved(FakeWiring):
        """Its ledger can be read."""

        def coordinator_running(self, root: Path, /) -> bool:
            return False

    shelved = Shelved()
    shelved.fake.on("nodes", NodesReply((majin(agents_total=5),)))
    told = json.loads(call(shelved, "list", "--json").stdout)["nodes"]
    assert [(each["name"], each["status"], each["connected"]) for each in told] == [("majin", "unknown", False)]


def test_list_goes_on_while_it_is_watched() -> None:
    wiring = FakeWiring()
    wiring.fake.on("nodes", NodesReply((majin(),)), NodesReply((majin(status="draining"),)), Refused("enough"))
    result = call(wiring, "list", "--watch", "--json")
    assert [json.loads(line)["nodes"][0]["status"] for line in result.stdout.splitlines()] == ["healthy", "draining"]


# --- add -----------------------------------------------------------------------------------------------------------------


def test_add_asks_with_everything_that_was_said_and_waits_until_it_is_connected() -> None:
    wiring = FakeWiring()
    absent = majin(connected=False)
    wiring.fake.on("node_add", NodeReply(absent)).on("nodes", NodesReply((absent,)), NodesReply((majin(),)))
    wiring.fake.on("watch", make_watch(3), make_watch(4, e.WorkBegan()))
    options = ["--user", "ai", "--port", "2222", "--max-agents", "50", "--zone", "eu", "--weight", "200", "--tag", "gpu", "--tag", "eu"]
    result = call(wiring, "add", "majin", "--host", "10.0.0.2", *options, "--folder", "/srv/o", "--memory-mb", "512")
    assert result.exit_code == 0, result.output
    assert wiring.fake.asked("node_add") == [
        NodeAddParams("majin", "10.0.0.2", "ai", 50, 2222, "eu", 200, ("gpu", "eu"), 512, "/srv/o"),
    ]
    assert result.stdout.splitlines()[0] == "added majin: connected"
    assert "waiting until it is connected" in result.stderr
    assert [params.after_seq for params in wiring.fake.asked("watch")] == [-1, 3]


def test_add_says_why_it_is_not_connected() -> None:
    wiring = FakeWiring()
    reason = "the host key of 10.0.0.2:22 is not known: it shows ssh-ed25519 SHA256:x (orchestra node trust majin)"
    wiring.fake.on("node_add", NodeReply(majin(connected=False))).on("watch", make_watch(3), make_watch(4, e.WorkBegan()))
    wiring.fake.on("nodes", NodesReply((majin(connected=False),)), NodesReply((majin(connected=False, status="lost", reason=reason),)))
    result = call(wiring, "add", "majin", "--host", "10.0.0.2")
    assert result.exit_code == 69
    assert f"node majin is in the fleet but not connected: {reason}" in result.stderr
    assert "orchestra node check majin" in result.stderr


def test_a_lost_node_that_is_added_again_is_given_time_for_the_next_try() -> None:
    wiring = FakeWiring()
    lost = majin(connected=False, status="lost", reason="what was mended since")
    wiring.fake.on("node_add", NodeReply(lost)).on("nodes", NodesReply((lost,)), NodesReply((lost,)), NodesReply((majin(),)))
    wiring.fake.on("watch", make_watch(3))
    assert call(wiring, "add", "majin", "--host", "10.0.0.2").stdout.startswith("added majin: connected\n")


def test_add_need_not_wait() -> None:
    wiring = FakeWiring()
    wiring.fake.on("node_add", NodeReply(majin(connected=False))).on("watch", make_watch(3))
    result = call(wiring, "add", "majin", "--host", "10.0.0.2", "--no-wait", "--json")
    assert json.loads(result.stdout)["node"]["connected"] is False
    assert wiring.fake.asked("nodes") == []


@pytest.mark.parametrize("extra,host", [((), ""), (("--port", "2222"), "localhost"), (("--user", "ai"), "localhost")])
def test_the_names_of_this_machine_mean_no_ssh_unless_it_is_spoken_of(extra: tuple[str, ...], host: str) -> None:
    wiring = FakeWiring()
    wiring.fake.on("node_add", NodeReply(majin())).on("watch", make_watch(3))
    assert call(wiring, "add", "two", "--host", "localhost", *extra).exit_code == 0
    assert wiring.fake.asked("node_add")[0].host == host


def test_a_configured_machine_is_added_as_the_settings_say_and_the_options_go_first() -> None:
    wiring = FakeWiring()
    configured = Node(host="10.0.0.2", ssh_user="ai", port=2222, max_agents=50, zone="eu", tags=("gpu",), agent_memory_mb=512, folder="/o")
    wiring.settings = Settings(nodes={"majin": configured, "here": Node(max_agents=7)})
    wiring.fake.on("node_add", NodeReply(majin())).on("watch", make_watch(3))
    assert call(wiring, "add", "majin").exit_code == 0
    assert call(wiring, "add", "majin", "--host", "10.0.0.9", "--max-agents", "8", "--tag", "new").exit_code == 0
    assert call(wiring, "add", "here").exit_code == 0
    assert wiring.fake.asked("node_add") == [
        NodeAddParams("majin", "10.0.0.2", "ai", 50, 2222, "eu", 100, ("gpu",), 512, "/o"),
        NodeAddParams("majin", "10.0.0.9", "ai", 8, 2222, "eu", 100, ("new",), 512, "/o"),
        NodeAddParams("here", "", max_agents=7),
    ]
    error = error_of(call(wiring, "add", "majn", "--json"))
    assert (error["field"], "did you mean 'majin'" in error["hint"]) == ("host", True)


def test_without_a_coordinator_the_settings_to_write_are_printed() -> None:
    wiring = FakeWiring(running=False)
    result = call(wiring, "add", "majin", "--host", "10.0.0.2", "--tag", "gpu", "--zone", "no")
    assert result.exit_code == 69
    assert "put the lines above into /x/config/orchestra.yaml, then start one: `orchestra up`" in result.stderr
    found = load(result.stdout, "orchestra.yaml", {}, {}).nodes
    assert found == {"majin": Node(host="10.0.0.2", tags=("gpu",), zone="no")}
    told = call(wiring, "add", "majin", "--host", "10.0.0.2", "--json")
    assert load(json.loads(told.stdout)["yaml"], "", {}, {}).nodes["majin"].host == "10.0.0.2"
    assert error_of(told)["code"] == "coordinator_unreachable"


def test_without_a_coordinator_a_configured_machine_has_only_to_be_started() -> None:
    wiring = FakeWiring(running=False)
    wiring.settings = Settings(nodes={"majin": Node(host="10.0.0.2")})
    result = call(wiring, "add", "majin")
    assert (result.exit_code, result.stdout) == (69, "")
    assert "majin is in the settings already" in result.stderr
    changed = call(wiring, "add", "majin", "--zone", "eu")
    assert load(changed.stdout, "orchestra.yaml", {}, {}).nodes == {"majin": Node(host="10.0.0.2", zone="eu")}


@pytest.mark.parametrize("text", ["yes", "1", "1.5", "null", "~/a b", "a: b", '"quoted"', "#x", "-", "2026-01-01", "0x10", "ünï", "a\tb\\"])
def test_settings_to_write_mean_what_was_said(text: str) -> None:
    import yaml

    assert yaml.safe_load(node_yaml("n", {"folder": text, "tags": (text, "b"), "port": 22})) == {
        "orchestra": {"nodes": {"n": {"folder": text, "tags": [text, "b"], "port": 22}}}
    }


@pytest.mark.parametrize(
    "args,field",
    [
        (("../x", "--host", "h"), "name"),
        (("a", "--host", "-oProxyCommand=x"), "host"),
        (("a", "--host", "h", "--user", "a b"), "ssh_user"),
        (("a", "--host", "h", "--tag", "a b"), "tags[0]"),
        (("a", "--host", "h", "--zone", "a b"), "zone"),
        (("a", "--host", "h", "--port", "70000"), "port"),
        (("a", "--host", "h", "--max-agents", "0"), "max_agents"),
        (("a",), "host"),
    ],
)
def test_a_bad_node_is_refused_before_anybody_is_asked(args: tuple[str, ...], field: str) -> None:
    wiring = FakeWiring()
    result = call(wiring, "add", *args, "--json")
    assert result.exit_code == 2
    assert error_of(result)["field"] == field
    assert error_of(result)["hint"]
    assert wiring.fake.calls == []


# --- drain, resume, remove -----------------------------------------------------------------------------------------------


def test_drain_shows_how_many_are_left_until_all_are_gone() -> None:
    wiring = FakeWiring()
    wiring.fake.on("node_drain", DrainReply("majin", 2, 2)).on("watch", *(make_watch(seq, e.WorkBegan()) for seq in range(1, 5)))
    wiring.fake.on("nodes", *(NodesReply((majin(agents_total=count, status="draining"),)) for count in (2, 2, 1, 0)))
    result = call(wiring, "drain", "majin", "--move", "--wait")
    assert (result.exit_code, result.stdout) == (0, "drained majin: 2 agents left it; as many are started on other nodes\n")
    assert result.stderr.splitlines() == ["majin: 2 agents left, 0 busy", "majin: 1 agent left, 0 busy"]
    assert wiring.fake.asked("node_drain") == [NodeDrainParams("majin", True)]


def test_drain_does_not_wait_for_agents_of_a_lost_node() -> None:
    wiring = FakeWiring()
    wiring.fake.on("node_drain", DrainReply("majin", 2, 0)).on("watch", make_watch(1))
    wiring.fake.on("nodes", NodesReply((majin(agents_total=2, status="lost", reason="no route"),)))
    result = call(wiring, "drain", "majin", "--wait")
    assert result.exit_code == 69
    assert "node majin is lost with 2 agents on it: no route" in result.stderr
    assert "orchestra node remove majin --force" in result.stderr


def test_drain_resume_and_remove_ask_for_just_that() -> None:
    wiring = FakeWiring()
    wiring.settings = Settings(nodes={"majin": Node(host="h")})
    wiring.fake.on("watch", make_watch(1)).on("node_drain", DrainReply("majin", 1, 0))
    wiring.fake.on("node_resume", NodeReply(majin())).on("node_remove", NodeReply(majin()))
    assert call(wiring, "drain", "majin").stdout == "draining majin: 1 agent to leave\n"
    assert call(wiring, "resume", "majin").stdout.startswith("using majin again\n")
    removed = call(wiring, "remove", "majin", "--force")
    assert removed.stdout == "removed majin\n"
    assert "still in the settings" in removed.stderr
    assert wiring.fake.asked("node_drain") == [NodeDrainParams("majin", False)]
    assert wiring.fake.asked("node_resume") == [NodeParams("majin")]
    assert wiring.fake.asked("node_remove") == [NodeRemoveParams("majin", True)]


# --- check ---------------------------------------------------------------------------------------------------------------


def test_check_ticks_and_crosses_and_ends_with_1_where_a_node_cannot_be_used() -> None:
    wiring = FakeWiring(running=False)
    found = (
        Finding("reachable", True, "majin.example answers"),
        Finding("host key", False, "it is not known", "orchestra node trust majin", True),
    )
    wiring.node_checks["majin"] = NodeCheck("majin", "majin.example", False, found)
    result = call(wiring, "check")
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [
        "node mugen (mugen.example): usable",
        "  ✓ python: 3.12",
        "node majin (majin.example): not usable",
        "  ✓ reachable: majin.example answers",
        "  ✗ host key: it is not known",
        "      orchestra node trust majin",
    ]
    told = json.loads(call(wiring, "check", "--json").stdout)["nodes"]
    assert [(each["node"], each["usable"]) for each in told] == [("mugen", True), ("majin", False)]
    assert told[1]["findings"][1]["fatal"] is True


def test_check_looks_at_the_named_ones_and_a_wish_is_no_failure() -> None:
    wiring = FakeWiring(running=False)
    wish = Finding("disk", False, "0.5 GiB free", "free some space")
    wiring.node_checks["majin"] = NodeCheck("majin", "majin.example", True, (wish,))
    result = call(wiring, "check", "majin", "majin")
    assert (result.exit_code, wiring.log) == (0, ["check majin"])
    assert "  - disk: 0.5 GiB free\n      free some space\n" in result.stdout
    assert call(wiring, "check", "mugne").exit_code == 2
    assert error_of(call(wiring, "check", "mugne", "--json"))["hint"] == "did you mean 'mugen'?"


def test_doctor_looks_at_the_configured_machines_too() -> None:
    wiring = FakeWiring(running=False)
    runner = CliRunner()
    assert runner.invoke(cli, ["doctor"], obj=Session(wiring)).exit_code == 0
    assert wiring.log == [], "this machine alone has been looked at already"
    wiring.settings = Settings(nodes={"here": Node(), "majin": Node(host="majin.example")})
    wiring.node_checks["majin"] = NodeCheck("majin", "majin.example", False, (Finding("login", False, "refused", "add a key", True),))
    result = runner.invoke(cli, ["doctor"], obj=Session(wiring))
    assert (result.exit_code, wiring.log) == (1, ["check majin"])
    assert result.stdout.splitlines()[-3:] == ["node majin (majin.example): not usable", "  ✗ login: refused", "      add a key"]
    told = json.loads(runner.invoke(cli, ["doctor", "--json"], obj=Session(wiring)).stdout)
    assert told[-1] == {"name": "node majin: login", "ok": False, "detail": "refused", "remedy": "add a key"}


# --- trust ---------------------------------------------------------------------------------------------------------------


class Terminal:
    """Standard input of somebody who sits there."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, answer: bool) -> None:
        monkeypatch.setattr("sys.stdin", self)
        monkeypatch.setattr("click.confirm", self.confirm)
        self.answer = answer
        self.asked = ""

    def isatty(self) -> bool:
        return True

    def confirm(self, question: str, *, err: bool) -> bool:
        self.asked = question
        return self.answer


def at_terminal(wiring: FakeWiring, *args: str) -> object:
    with pytest.raises(SystemExit) as ended:
        cli.main(["node", *args], obj=Session(wiring))
    return ended.value.code


def test_trust_shows_the_key_asks_and_adds_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wiring, terminal = FakeWiring(), Terminal(monkeypatch, answer=True)
    assert at_terminal(wiring, "trust", "majin") == 0
    said = capsys.readouterr()
    assert terminal.asked == "Is it the same?"
    assert f"fingerprint  {SHOWN}" in said.err
    assert "ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub" in said.err
    assert said.out == f"majin.example:22: ssh-ed25519 {SHOWN} is added to /home/me/.ssh/known_hosts\n"
    assert wiring.log == [f"trust majin {SHOWN} False"]


def test_who_says_no_trusts_nothing_and_is_told_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wiring, _ = FakeWiring(), Terminal(monkeypatch, answer=False)
    assert at_terminal(wiring, "trust", "majin") == FACES["refused"].exit_code
    assert wiring.log == []
    assert "the key of majin.example:22 is not trusted; nothing was changed" in capsys.readouterr().err


@pytest.mark.parametrize("args", [("--json",), ()])
def test_without_a_terminal_the_key_has_to_be_compared_before(args: tuple[str, ...]) -> None:
    wiring = FakeWiring()
    result = call(wiring, "trust", "majin", *args)
    assert (result.exit_code, wiring.log) == (2, [])
    assert SHOWN in result.stderr
    assert "--fingerprint" in result.stderr


@pytest.mark.parametrize("args", [("--yes",), ("--fingerprint", SHOWN), ("--fingerprint", SHOWN + "=")])
def test_with_a_fingerprint_or_yes_nothing_is_asked(args: tuple[str, ...]) -> None:
    wiring = FakeWiring()
    told = json.loads(call(wiring, "trust", "majin", *args, "--json").stdout)
    assert (told["added"], told["replaced"], told["kind"], told["fingerprint"]) == (True, False, "ssh-ed25519", SHOWN)


def test_another_fingerprint_is_refused() -> None:
    wiring = FakeWiring()
    for state in ("new", "known"):
        wiring.offer = make_offer(state=state)
        told = call(wiring, "trust", "majin", "--fingerprint", OTHER, "--json")
        assert told.exit_code == 69
        assert (error_of(told)["code"], error_of(told)["field"]) == ("host_key_refused", "fingerprint")
    assert call(wiring, "trust", "majin", "--fingerprint", "MD5:aa:bb").exit_code == 2
    assert wiring.log == []


def test_a_known_key_is_told_and_not_asked_for() -> None:
    wiring = FakeWiring()
    wiring.offer = make_offer(state="known")
    result = call(wiring, "trust", "majin")
    assert (result.exit_code, result.stdout) == (0, f"majin.example:22: ssh-ed25519 {SHOWN} is known already\n")


def test_a_changed_key_is_refused_and_only_replaced_when_asked_for() -> None:
    wiring = FakeWiring()
    wiring.offer = make_offer(state="changed", detail="the host key of majin.example:22 has CHANGED")
    refused = call(wiring, "trust", "majin", "--yes")
    assert refused.exit_code == 69
    assert "has CHANGED" in refused.stderr
    asked = call(wiring, "trust", "majin", "--replace")
    assert asked.exit_code == 2, "replacing wants the comparison as well"
    assert "another key: the host key of majin.example:22 has CHANGED" in asked.stderr
    told = json.loads(call(wiring, "trust", "majin", "--replace", "--fingerprint", SHOWN, "--json").stdout)
    assert (told["added"], told["replaced"]) == (True, True)
    assert wiring.log == [f"trust majin {SHOWN} False", f"trust majin {SHOWN} True"]
