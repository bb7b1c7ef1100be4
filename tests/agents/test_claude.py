"""Claude Code as it is: every way an attempt can end that its adapter tells apart."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestra.agents.adapter import Adapter, Context
from orchestra.agents.causes import Cause
from orchestra.agents.claude import ADAPTER as CLAUDE
from orchestra.agents.claude import session_of
from orchestra.core.model import OutcomeKind, TaskSpec
from tests.agents.support import AGENT, URL, Desk, Run, end_by_kill, installed, make_task
from tests.integration.stage_support import is_alive, wait_until
from tests.unit.recorded import cause_in

ADAPTER: Adapter = CLAUDE
SETTINGS = {"base_url": URL, "allow_root": "true", "max_retries": "1"}


@pytest.fixture(autouse=True)
def worker(stage: Desk) -> None:
    installed("claude")
    stage.worker()


def play(stage: Desk, word: str, name: str, settings: dict[str, str] | None = None, **more: Any) -> Run:
    spec = make_task("claude", word, **more)
    return finish(stage, spec, stage.hand_out(ADAPTER, spec, settings=SETTINGS | (settings or {})), name)


def finish(stage: Desk, spec: TaskSpec, values: dict[str, Any], name: str) -> Run:
    return stage.finished(ADAPTER, spec, values, name)


def test_a_file_is_written(stage: Desk) -> None:
    run = play(stage, "SCENE-CLAUDE-WRITE", "success")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "I wrote hello.txt.")
    assert (run.work / "hello.txt").read_text() == "hello\n"
    assert run.verdict.session == session_of(make_task("claude", ""), Context(1, AGENT))
    assert (run.verdict.usage.tokens_input, run.verdict.usage.tokens_output) == (2000, 1000)
    assert run.verdict.usage.cost_usd_micros > 0
    assert [signal.activity for signal in run.signals] == ["started", "Write hello.txt", "I wrote hello.txt.", "done"]


def test_its_files_are_in_the_agents_own_folder_and_the_key_in_none(stage: Desk) -> None:
    run = play(stage, "SCENE-SAY", "say")
    assert (stage.agent_folder() / "claude" / "projects").is_dir()
    assert run.lines[0]["messaging_socket_path"].startswith(str(stage.agent_folder()))
    assert not (stage.home / ".claude").exists()
    assert not (stage.home / ".claude.json").exists()
    texts = [path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()]
    assert [text for text in texts if b"dummy-key" in text] == []
    assert stage.net.requests("SCENE-SAY")[-1]["headers"]["x-api-key"] in ("dummy-key", "[REDACTED]")


@pytest.mark.parametrize(
    "word,name,cause",
    [
        ("SCENE-BAD-REQUEST", "bad-request", Cause.REQUEST),
        ("SCENE-BAD-KEY", "bad-key", Cause.AUTH),
        ("SCENE-LIMITED", "limited", Cause.RATE_LIMITED),
        ("SCENE-LIMITED-LONG", "limited-long", Cause.RATE_LIMITED),
        ("SCENE-NO-CREDIT", "no-credit", Cause.QUOTA),
        ("SCENE-OVERLOADED", "overloaded", Cause.OVERLOADED),
        ("SCENE-TOO-LONG", "too-long", Cause.REQUEST),
        ("SCENE-TOO-LARGE", "too-large", Cause.REQUEST),
        ("SCENE-CUT", "cut", Cause.NETWORK),
        ("SCENE-REFUSAL", "refusal", Cause.REFUSED),
    ],
)
def test_what_the_api_says_becomes_a_cause(stage: Desk, word: str, name: str, cause: Cause) -> None:
    run = play(stage, word, name)
    assert cause_in(run.verdict.reason) is cause, run.verdict.reason
    assert run.verdict.kind is (OutcomeKind.REFUSED if cause is Cause.AUTH else OutcomeKind.FAILED)
    assert run.end.code == 1
    assert run.verdict.session


def test_a_limit_that_passes_is_waited_for(stage: Desk) -> None:
    run = play(stage, "SCENE-LIMITED-ONCE", "limited-once")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Done after the wait.")
    assert run.signals[1].activity in ("rate limited, waits 1 s", "rate limited, waits 2 s")


def test_nobody_there_is_the_network(stage: Desk) -> None:
    run = play(stage, "SCENE-SAY", "unreachable", {"base_url": "http://127.0.0.1:9"})
    assert cause_in(run.verdict.reason) is Cause.NETWORK


def test_no_key_is_told_as_that(stage: Desk) -> None:
    spec = make_task("claude", "SCENE-SAY")
    run = finish(stage, spec, stage.hand_out(ADAPTER, spec, settings=SETTINGS, keys=False), "no-key")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.AUTH)


def test_the_limit_of_turns(stage: Desk) -> None:
    run = play(stage, "SCENE-CLAUDE-TURNS", "turns", {"max_turns": "2"})
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.TURNS)


def test_the_limit_of_cost_is_what_is_left_of_it(stage: Desk) -> None:
    """One reply costs 14,000 micro-dollars: that fits into what the task may cost, but not into what is left."""
    assert play(stage, "SCENE-SAY", "within-budget", cost_usd_micros_max=20_000).verdict.kind is OutcomeKind.DONE
    spec = make_task("claude", "SCENE-SAY", cost_usd_micros_max=20_000)
    values = stage.hand_out(ADAPTER, spec, attempt=2, settings=SETTINGS, cost_so_far_usd_micros=14_000)
    run = finish(stage, spec, values, "budget")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.BUDGET)
    assert run.verdict.usage.cost_usd_micros == 14_000


def test_a_tool_that_is_not_allowed(stage: Desk) -> None:
    run = play(stage, "SCENE-CLAUDE-DENIED", "denied", {"permission_mode": "default"})
    assert run.end.code == 0
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.DENIED)
    assert not (run.work / "hello.txt").exists()


GREETER = {"mcpServers": {"greeter": {"command": sys.executable, "args": ["-I", str(Path(__file__).with_name("mcp_server.py"))]}}}


@pytest.mark.parametrize("given", ["itself", "a path"])
def test_a_tool_of_an_mcp_server_is_called(stage: Desk, given: str) -> None:
    config = json.dumps(GREETER)
    path = stage.folder / "servers.json"
    path.write_text(config)
    run = play(stage, "SCENE-CLAUDE-MCP", "mcp", {"mcp_config": config if given == "itself" else str(path)})
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "I greeted."), run
    assert (run.work / "greeted.txt").read_text() == "orchestra\n"
    assert [each["status"] for each in run.end.last["system"]["mcp_servers"] if each["name"] == "greeter"] == ["connected"]
    assert "Good morning, orchestra, from a server of ours." in json.dumps(stage.net.requests("SCENE-CLAUDE-MCP")[-1]["body"])
    assert "mcp__greeter__greet" in [signal.activity.split()[0] for signal in run.signals]


def test_an_mcp_server_that_does_not_start_is_told_and_does_not_keep_it_from_working(stage: Desk) -> None:
    run = play(stage, "SCENE-SAY", "mcp-failed", {"mcp_config": '{"mcpServers": {"absent": {"command": "/no/such/program"}}}'})
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert run.signals[0].activity == "started, without MCP server absent"


def test_another_model_takes_over_from_one_that_is_overloaded(stage: Desk) -> None:
    run = play(stage, "SCENE-CLAUDE-FALLBACK", "fallback", {"fallback_model": "claude-haiku-4-5", "max_retries": "10"})
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Said by the other one."), run
    asked = [request["body"]["model"] for request in stage.net.requests("SCENE-CLAUDE-FALLBACK")]
    assert asked[0] == "claude-opus-5-5"
    assert asked[-1] == "claude-haiku-4-5"
    assert run.verdict.usage.tokens_input == 1000


def test_as_root_it_runs_only_where_that_is_said_to_be_fine(stage: Desk) -> None:
    run = play(stage, "SCENE-SAY", "root", {"allow_root": "false"})
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.CONFIG)
    assert "allow_root" in run.verdict.reason


def test_a_session_is_gone_on_with_and_only_what_is_new_counts(stage: Desk) -> None:
    first = play(stage, "SCENE-SAY", "say")
    spec = make_task("claude", "SCENE-SAY")
    values = stage.hand_out(ADAPTER, spec, attempt=2, settings=SETTINGS, session=first.verdict.session)
    second = finish(stage, spec, values, "resumed")
    assert second.verdict.session == first.verdict.session
    assert second.verdict.usage == first.verdict.usage
    assert second.end.last["result"]["total_cost_usd"] == pytest.approx(2 * first.end.last["result"]["total_cost_usd"])
    assert len(stage.net.requests("SCENE-SAY")[-1]["body"]["messages"]) > 2


def test_a_session_that_is_not_there(stage: Desk) -> None:
    spec = make_task("claude", "SCENE-SAY")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS, session="00000000-0000-4000-8000-000000000000")
    run = finish(stage, spec, values, "no-session")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.SESSION)


def test_stopped_it_leaves_no_tool_behind(stage: Desk) -> None:
    spec = make_task("claude", "SCENE-CLAUDE-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    tool = stage.tool_pid(values)
    stage.adopt(tool)
    stage.poke({"op": "stop", "task": spec.id, "attempt": 1, "grace_ms": 2000}, AGENT)
    run = finish(stage, spec, values, "stopped")
    assert (run.verdict.kind, run.verdict.session) == (OutcomeKind.STOPPED, session_of(spec, Context(1, AGENT)))
    assert not is_alive(tool)


def test_killed_it_leaves_no_tool_behind(stage: Desk) -> None:
    """Its tools have sessions of their own, so no process group has them; the worker finds them all the same."""
    spec = make_task("claude", "SCENE-CLAUDE-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    tool = stage.tool_pid(values)
    stage.adopt(tool)
    end_by_kill(stage.wait_record("started", values)["pid"])
    run = finish(stage, spec, values, "killed")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED)
    wait_until(lambda: not is_alive(tool), "the end of the tool")
    assert stage.left_of(values) == []


@pytest.mark.parametrize("number,name", [(signal.SIGINT, "interrupted-tool"), (signal.SIGTERM, "terminated"), (signal.SIGHUP, "hung-up")])
def test_a_signal_of_somebody_else_is_told_as_that(stage: Desk, number: signal.Signals, name: str) -> None:
    spec = make_task("claude", "SCENE-CLAUDE-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    tool = stage.tool_pid(values)
    stage.adopt(tool)
    os.kill(stage.wait_record("started", values)["pid"], number)
    run = finish(stage, spec, values, name)
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert number.name in run.verdict.reason
    assert run.verdict.session
    assert stage.left_of(values) == []


def test_ctrl_c_in_its_window_while_the_model_speaks_is_told_as_that(stage: Desk) -> None:
    """Whether Claude Code still comes to print a result then is a race: both ends are the same."""
    spec = make_task("claude", "SCENE-SLOW-TO-THE-END")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    wait_until(lambda: stage.net.requests("SCENE-SLOW-TO-THE-END"), "the request")
    stage.panes[0].type(b"\x03")
    run = finish(stage, spec, values, "interrupted-speech")
    assert (run.end.reason, run.end.code) == ("exit", 0)
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert "Ctrl-C" in run.verdict.reason
    assert stage.left_of(values) == []
