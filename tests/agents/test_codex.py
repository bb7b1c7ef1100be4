"""Codex as it is: every way an attempt can end that its adapter tells apart."""

from __future__ import annotations

import os
import signal
from typing import Any

import msgspec
import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.causes import Cause
from orchestra.agents.codex import ADAPTER as CODEX
from orchestra.core.model import OutcomeKind, TaskSpec
from tests.agents.support import AGENT, URL, Desk, Run, end_by_kill, installed, make_task
from tests.integration.stage_support import is_alive, wait_until
from tests.unit.recorded import cause_in

ADAPTER: Adapter = CODEX
SETTINGS = {"base_url": f"{URL}/v1", "model": "gpt-5.5", "request_max_retries": "1", "stream_max_retries": "1"}


@pytest.fixture(autouse=True)
def worker(stage: Desk) -> None:
    installed("codex")
    stage.worker()


def play(stage: Desk, word: str, name: str, settings: dict[str, str] | None = None, **more: Any) -> Run:
    spec = make_task("codex", word, **more)
    return finish(stage, spec, stage.hand_out(ADAPTER, spec, settings=SETTINGS | (settings or {})), name)


def finish(stage: Desk, spec: TaskSpec, values: dict[str, Any], name: str) -> Run:
    return stage.finished(ADAPTER, spec, values, name)


def test_a_file_is_written(stage: Desk) -> None:
    run = play(stage, "SCENE-CODEX-WRITE", "success")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "I wrote hello.txt.")
    assert (run.work / "hello.txt").read_text() == "hello\n"
    assert (run.work.parent / "last.txt").read_text() == "I wrote hello.txt."
    assert (run.verdict.usage.tokens_input, run.verdict.usage.tokens_output) == (2000, 1000)
    activities = [signal.activity for signal in run.signals]
    assert activities[0] == "started"
    assert activities[1] == "$ 'echo hello > hello.txt'"
    assert activities[-2:] == ["I wrote hello.txt.", "done"]
    assert run.verdict.session == run.signals[0].session


def test_its_files_are_in_the_agents_own_folder_and_the_key_in_none(stage: Desk) -> None:
    play(stage, "SCENE-SAY", "say")
    assert (stage.agent_folder() / "codex" / "sessions").is_dir()
    assert not (stage.home / ".codex").exists()
    texts = [path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()]
    assert [text for text in texts if b"dummy-key" in text] == []


def test_its_tools_do_not_have_the_key(stage: Desk) -> None:
    run = play(stage, "SCENE-CODEX-KEYS", "keys")
    assert (run.work / "count.txt").read_text() == "0\n"


@pytest.mark.parametrize(
    "word,name,cause",
    [
        ("SCENE-BAD-REQUEST", "bad-request", Cause.REQUEST),
        ("SCENE-BAD-KEY", "bad-key", Cause.AUTH),
        ("SCENE-LIMITED", "limited", Cause.RATE_LIMITED),
        ("SCENE-NO-QUOTA", "no-quota", Cause.QUOTA),
        ("SCENE-UNAVAILABLE", "unavailable", Cause.OVERLOADED),
        ("SCENE-CUT", "cut", Cause.NETWORK),
    ],
)
def test_what_the_api_says_becomes_a_cause(stage: Desk, word: str, name: str, cause: Cause) -> None:
    run = play(stage, word, name)
    assert cause_in(run.verdict.reason) is cause, run.verdict.reason
    assert run.verdict.kind is (OutcomeKind.REFUSED if cause is Cause.AUTH else OutcomeKind.FAILED)
    assert run.end.code == 1
    assert run.verdict.session


def test_a_limit_that_passes_is_waited_for(stage: Desk) -> None:
    run = play(stage, "SCENE-CODEX-LIMITED-ONCE", "limited-once")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Done after the wait.")
    assert len(stage.net.requests("SCENE-CODEX-LIMITED-ONCE")) == 2


@pytest.mark.parametrize(
    "word,name,settings,cause",
    [
        ("SCENE-LIMITED-LONG", "limited-long", {"request_max_retries": "0"}, Cause.RATE_LIMITED),
        ("SCENE-SAY", "unreachable", {"base_url": "http://127.0.0.1:9/v1"}, Cause.NETWORK),
    ],
)
def test_it_waits_without_end_and_the_time_limit_says_for_what(
    stage: Desk, word: str, name: str, settings: dict[str, str], cause: Cause
) -> None:
    run = play(stage, word, name, settings, timeout_ms=3000)
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.TIMEOUT, cause), run.verdict.reason


def test_no_key_is_told_as_that(stage: Desk) -> None:
    spec = make_task("codex", "SCENE-SAY")
    run = finish(stage, spec, stage.hand_out(ADAPTER, spec, settings=SETTINGS, keys=False), "no-key")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.AUTH)


def test_in_a_sandbox_that_only_reads_nothing_is_written(stage: Desk) -> None:
    run = play(stage, "SCENE-CODEX-DENIED", "denied", {"sandbox": "read-only"})
    assert run.verdict.kind is OutcomeKind.DONE
    assert not (run.work / "hello.txt").exists()


def test_a_session_is_gone_on_with_and_says_that_it_counts_all_of_it(stage: Desk) -> None:
    first = play(stage, "SCENE-SAY", "say")
    spec = make_task("codex", "SCENE-SAY")
    values = stage.hand_out(ADAPTER, spec, attempt=2, settings=SETTINGS, session=first.verdict.session)
    second = finish(stage, spec, values, "resumed")
    assert second.verdict.session == first.verdict.session
    assert second.verdict.usage_of_session
    assert second.verdict.usage == first.verdict.usage.plus(first.verdict.usage)


def test_a_session_that_is_not_there(stage: Desk) -> None:
    spec = make_task("codex", "SCENE-SAY")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS, session="01a1fd3e-0000-7890-b2ee-5ae7d0336145")
    run = finish(stage, spec, values, "no-session")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.SESSION)


def test_an_option_it_does_not_know_is_refused(stage: Desk) -> None:
    spec = make_task("codex", "SCENE-SAY")

    class Other:
        kind, programs, variables = "codex", CODEX.programs, CODEX.variables
        memory_bytes, signal, verdict = CODEX.memory_bytes, CODEX.signal, CODEX.verdict

        def launch(self, spec: TaskSpec, context: Any) -> Any:
            launch = CODEX.launch(spec, context)
            return msgspec.structs.replace(launch, argv=(*launch.argv, "--no-such-option"))

    run = finish(stage, spec, stage.hand_out(Other(), spec, settings=SETTINGS), "bad-option")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.CONFIG)


def test_stopped_it_leaves_no_tool_behind(stage: Desk) -> None:
    spec = make_task("codex", "SCENE-CODEX-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    tool = stage.tool_pid(values)
    stage.adopt(tool)
    stage.poke({"op": "stop", "task": spec.id, "attempt": 1, "grace_ms": 2000}, AGENT)
    run = finish(stage, spec, values, "stopped")
    assert run.verdict.kind is OutcomeKind.STOPPED
    assert run.verdict.session
    assert not is_alive(tool)


def test_killed_it_leaves_no_tool_behind(stage: Desk) -> None:
    spec = make_task("codex", "SCENE-CODEX-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    tool = stage.tool_pid(values)
    stage.adopt(tool)
    end_by_kill(stage.wait_record("started", values)["pid"])
    run = finish(stage, spec, values, "killed")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED)
    wait_until(lambda: not is_alive(tool), "the end of the tool")
    assert stage.left_of(values) == []


@pytest.mark.parametrize("number,name", [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "terminated")])
def test_a_signal_of_somebody_else_is_told_as_that(stage: Desk, number: signal.Signals, name: str) -> None:
    spec = make_task("codex", "SCENE-CODEX-WAIT")
    values = stage.hand_out(ADAPTER, spec, settings=SETTINGS)
    stage.adopt(stage.tool_pid(values))
    os.kill(stage.wait_record("started", values)["pid"], number)
    run = finish(stage, spec, values, name)
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert run.verdict.session
    assert stage.left_of(values) == []
