"""Commands with a life of their own: those that wait, follow, become another program, or work on files beside the use cases."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner, Result

from orchestra.core import events as e
from orchestra.edges.cli.main import cli
from orchestra.edges.cli.session import Session
from orchestra.errors import FACES, CoordinatorUnreachable, IllegalMove
from orchestra.intake.request import InitParams
from orchestra.root import Root
from orchestra.testing.fake_usecases import (
    FakeWiring,
    make_attempt,
    make_detail,
    make_node,
    make_status,
    make_task,
    make_watch,
)
from orchestra.usecases import (
    InitReply,
    LogLine,
    LogsReply,
    ScaleReply,
    TaskParams,
)
from orchestra.views import HealthCheck, HealthView, TaskCounts


async def no_pause(seconds: float) -> None:
    return None


def call(wiring: FakeWiring, *args: str, stdin: str = "") -> Result:
    return CliRunner().invoke(cli, list(args), obj=Session(wiring, no_pause), input=stdin)


def plain(view: object) -> Any:
    return json.loads(msgspec.json.encode(view))


TASK = make_task("demo/a", "failed", reason="exit code 3")
HEALTH = HealthView("t", "healthy", (HealthCheck("one", True, "fine"),), (make_node(),), TaskCounts(0, 0, 1, 0), 1, 0, 9)


def test_up_starts_in_a_window_or_in_the_foreground() -> None:
    wiring = FakeWiring(running=False)
    wiring.fake.on("status", make_status("uninitialized"))
    assert call(wiring, "up", "--agents", "3", "--root", "/x").exit_code == 0
    assert call(wiring, "up", "--foreground", "--root", "/x").exit_code == 0
    assert wiring.log == ["start /x", "connect /x", "serve /x {'agent_count': 4}"]
    assert wiring.fake.asked("init") == [InitParams(agent_count=3)]


def test_up_without_one_agent_ready_ends_with_1() -> None:
    wiring = FakeWiring(running=False)
    wiring.fake.on("status", make_status("uninitialized")).on("init", InitReply("initialized", {}, {"total": 2, "local": 2}, 0, "critical"))
    result = call(wiring, "up")
    assert (result.exit_code, result.stdout) == (1, "up: 0 of 2 agents ready, critical\n")


def test_down_waits_until_nobody_answers() -> None:
    wiring = FakeWiring()
    wiring.fake.on("watch", make_watch(3), make_watch(4, e.Terminated()), CoordinatorUnreachable("gone"))
    assert call(wiring, "down").stdout == "down\n"
    assert [params.after_seq for params in wiring.fake.asked("watch")] == [-1, 3, 4]


def test_down_leaves_no_folder_with_nothing_but_dead_sockets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    place = Root(tmp_path / "root")
    control = place.runtime_folder() / "control.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(control))
        listener.listen()
        place.release_runtime()
        assert control.exists(), "somebody listens"
    (control.parent / "notes").touch()
    place.release_runtime()
    assert control.exists(), "somebody's file is beside it"
    (control.parent / "notes").unlink()
    wiring = FakeWiring()
    wiring.fake.on("watch", make_watch(3), make_watch(4, e.Terminated()), CoordinatorUnreachable("gone"))
    assert call(wiring, "down", "--root", str(place.path)).stdout == "down\n"
    assert not control.parent.exists()
    place.release_runtime()


def test_down_ends_a_coordinator_that_has_no_agents_and_leftovers_of_one_that_is_gone() -> None:
    wiring = FakeWiring()
    wiring.fake.on("watch", make_watch(3)).on("shutdown", IllegalMove("cannot shut down while the orchestra is uninitialized"))
    result = call(wiring, "down", "--root", "/x")
    assert (result.exit_code, result.stdout) == (0, "down: there were no agents\n")
    assert wiring.log[-1] == "abandon /x"
    assert not wiring.running
    assert call(wiring, "down").exit_code == 69
    wiring.leftovers = True
    assert call(wiring, "down").stdout == "down: ended what an orchestra without a coordinator had left\n"


def test_scale_shows_progress_until_it_is_done() -> None:
    def up(count: int) -> object:
        return make_status("scaling", agents=msgspec.structs.replace(make_status().agents, running=count))

    wiring = FakeWiring()
    wiring.fake.on("scale", ScaleReply("scaling", 2, 4, 1)).on("status", up(2), up(3), up(4))
    wiring.fake.on("watch", make_watch(1), make_watch(2, e.WorkBegan()), make_watch(3, e.WorkBegan()), make_watch(4, e.ScaleCompleted(4)))
    assert call(wiring, "scale", "4", "--wait").stdout.splitlines()[1:] == ["2/4", "3/4", "4/4"]


def test_health_and_doctor_tick_and_cross() -> None:
    wiring = FakeWiring()
    wiring.fake.on(
        "health", msgspec.structs.replace(HEALTH, checks=(HealthCheck("a", True, ""), HealthCheck("b", False, "gone", "mend it")))
    )
    result = call(wiring, "health")
    lines = ["✓ node local: 2 of 2 agents up, 0 busy", "✓ a", "✗ b: gone", "    mend it"]
    assert (result.exit_code, result.stdout.splitlines()[1:]) == (1, lines)
    wiring.checks = (HealthCheck("tmux", True, "3.4"), HealthCheck("agent kind claude", False, "missing: claude", "install claude"))
    assert call(wiring, "doctor").exit_code == 0
    wiring.checks = (HealthCheck("tmux", False, "not found", "install tmux"),)
    result = call(wiring, "doctor", "--json")
    assert result.exit_code == 1
    assert json.loads(result.stdout) == plain(wiring.checks)


def test_logs_are_read_to_their_end_in_pieces() -> None:
    pieces = [LogsReply("a", 2, (LogLine(1, "out", f"line {at}"),), at, at == 3) for at in (1, 2, 3)]
    wiring = FakeWiring()
    wiring.fake.on("logs", *pieces)
    assert call(wiring, "task", "logs", "a").stdout == "line 1\nline 2\nline 3\n"
    assert [(params.attempt, params.offset) for params in wiring.fake.asked("logs")] == [(0, 0), (2, 1), (2, 2)]


def test_logs_are_followed_over_attempts_until_the_task_is_over() -> None:
    wiring = FakeWiring()
    none, first = LogsReply("a", 0, (), 0, False), LogsReply("a", 1, (LogLine(1, "out", "try one"),), 8, True)
    second = LogsReply("a", 2, (LogLine(2, "out", "try two"),), 5, False)
    wiring.fake.on("logs", none, first, first, second, LogsReply("a", 2, (LogLine(3, "err", "done"),), 9, True))
    waiting = make_detail(make_task("a", "retry_wait"))
    wiring.fake.on("task", waiting, waiting, waiting, make_detail(make_task("a", "completed")))
    assert call(wiring, "task", "logs", "a", "-f").stdout == "try one\ntry two\ndone\n"
    assert wiring.fake.asked("logs")[-1].offset == 5


def test_attach_becomes_the_command_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    from orchestra.edges.cli import agent

    ran: list[list[str]] = []
    monkeypatch.setattr("os.execvp", lambda file, argv: ran.append(argv))
    monkeypatch.setenv("TMUX", "x")
    result = call(FakeWiring(), "agent", "attach", "1")
    assert (result.exit_code, ran) == (2, [])
    assert "tmux attach" in result.stderr
    assert call(FakeWiring(), "agent", "attach", "--print").stdout == "tmux attach\n"
    terminal = type("Terminal", (), {"isatty": lambda self: True})()
    monkeypatch.setattr("sys.stdin", terminal)
    monkeypatch.setattr("sys.stdout", terminal)
    agent.become(("tmux", "attach"))
    assert ran == [["tmux", "attach"]]


def test_the_coordinator_command_serves_or_supervises() -> None:
    wiring = FakeWiring()
    call(wiring, "--root", "/x", "coordinator", "--agents", "3")
    call(wiring, "--root", "/x", "coordinator", "--agents", "3", "--supervise")
    assert wiring.log == ["serve /x {'agent_count': 3}", "supervise -m orchestra --root /x coordinator --agents 3"]


def test_backup_and_restore(tmp_path: Path) -> None:
    archive = tmp_path / "b.db"
    archive.touch()
    wiring = FakeWiring(running=False)
    assert json.loads(call(wiring, "backup", "/b.db", "--json").stdout) == {"path": "/b.db", "events": 10}
    assert call(wiring, "restore", str(archive), "--force", "--root", "/x").exit_code == 0
    assert wiring.log == ["backup /b.db", f"restore {archive} /x True"]
    wiring.running = True
    assert call(wiring, "restore", str(archive)).exit_code == FACES["ledger_locked"].exit_code


def test_ledger_show_verify_export() -> None:
    wiring = FakeWiring()
    shown = [json.loads(line) for line in call(wiring, "ledger", "show", "--after", "5", "--json").stdout.splitlines()]
    assert [(line["seq"], line["event"]["type"]) for line in shown] == [(6, "WorkBegan"), (7, "Terminated")]
    assert call(wiring, "ledger", "verify").exit_code == 0
    wiring.care.problems = ("event 11 is damaged",)
    result = call(wiring, "ledger", "verify", "--json")
    assert result.exit_code == FACES["ledger_damaged"].exit_code
    assert json.loads(result.stdout)["problems"] == ["event 11 is damaged"]
    assert json.loads(call(wiring, "ledger", "export", "/o", "--json").stdout) == {"path": "/o", "events": 10}


def test_repair_says_what_is_lost_and_wants_it_accepted_and_confirmed() -> None:
    wiring = FakeWiring(running=False)
    assert "nothing to repair" in call(wiring, "ledger", "repair").stdout
    wiring.care.problems, wiring.care.lost_first = ("event 11 is damaged",), 11
    refused = call(wiring, "ledger", "repair", "--yes")
    assert refused.exit_code == FACES["ledger_damaged"].exit_code
    assert "seq 11 to 12" in refused.stderr
    assert call(wiring, "ledger", "repair", "--accept-data-loss").exit_code == 2
    assert wiring.care.repairs == []
    assert call(wiring, "ledger", "repair", "--accept-data-loss", "--yes").exit_code == 0
    assert wiring.care.repairs == [True]
    wiring.running = True
    assert call(wiring, "ledger", "repair", "--yes").exit_code == FACES["ledger_locked"].exit_code


def test_config_shows_origins_and_schemas() -> None:
    rows = json.loads(call(FakeWiring(), "config", "show", "--json").stdout)
    assert {"path": "agents.count", "value": "4", "origin": "default"}.items() <= next(
        row for row in rows if row["path"] == "agents.count"
    ).items()
    assert "agents.count" in call(FakeWiring(), "config", "show").stdout
    settings = json.loads(call(FakeWiring(), "config", "schema").stdout)
    assert list(settings["properties"]) == ["orchestra"]
    assert "origins" not in settings["$defs"]["Settings"]["properties"]
    assert json.loads(call(FakeWiring(), "config", "schema", "plan").stdout)["title"].startswith("Plan")


def test_details_show_attempts_checks_and_last_words() -> None:
    wiring = FakeWiring()
    wiring.fake.on("task", make_detail(TASK, make_attempt(tokens=10, cost_usd_micros=2_000_000)))
    output = call(wiring, "task", "show", "a").stdout
    for words in ("attempt 1 by agent #1 on local: failed", "exit code 3", "    | last words", "10 tokens, $2.00"):
        assert words in output
    assert wiring.fake.asked("task") == [TaskParams("a")]
