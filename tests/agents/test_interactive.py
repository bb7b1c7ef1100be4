"""Claude Code in its terminal and Codex as a server, as they are: what they ask, how they are answered, and how they end."""

from __future__ import annotations

import itertools
import json
import os
import signal
from typing import Any

import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.causes import Cause
from orchestra.agents.claude import ADAPTER as CLAUDE_ADAPTER
from orchestra.agents.codex import ADAPTER as CODEX_ADAPTER
from orchestra.core.model import OutcomeKind, TaskSpec
from tests.agents.support import AGENT, URL, Desk, Run, installed, make_task
from tests.integration.stage_support import is_alive, wait_until
from tests.unit.recorded import cause_in

CLAUDE: Adapter = CLAUDE_ADAPTER
CODEX: Adapter = CODEX_ADAPTER
SETTINGS = {
    "claude": {"mode": "interactive", "base_url": URL, "allow_root": "true", "max_retries": "1"},
    "codex": {"mode": "interactive", "base_url": f"{URL}/v1", "model": "gpt-5.5", "request_max_retries": "1", "stream_max_retries": "1"},
}


@pytest.fixture(autouse=True)
def worker(stage: Desk) -> None:
    installed("claude")
    installed("codex")
    stage.worker()


def begin(
    stage: Desk, adapter: Adapter, word: str, settings: dict[str, str] | None = None, *, timeout_ms: int = 0, **more: Any
) -> tuple[TaskSpec, dict[str, Any]]:
    """The prompt file's path is what Claude Code reads first: the scene's name is in it."""
    limits = {"timeout_ms": timeout_ms} if timeout_ms else {}
    spec = make_task(adapter.kind, word, word, **limits)
    return spec, stage.hand_out(adapter, spec, settings=SETTINGS[adapter.kind] | (settings or {}), **more)


def finish(stage: Desk, adapter: Adapter, begun: tuple[TaskSpec, dict[str, Any]], name: str) -> Run:
    return stage.finished(adapter, *begun, f"interactive-{name}")


def wait_asked(stage: Desk, values: dict[str, Any], number: int = 1) -> str:
    def found() -> str | None:
        for pane in stage.panes:
            pane.pull()
        lines = [record["line"] for record in stage.records("signal") if record["task"] == values["task"]]
        return next((line["text"] for line in lines if line.get("ask") == number), None)

    return str(wait_until(found, lambda: f"question {number}; the pane shows {stage.panes[0].text[-3000:]!r}"))


def answer(stage: Desk, values: dict[str, Any], text: str, number: int = 1) -> None:
    stage.poke({"op": "answer", "task": values["task"], "attempt": values["attempt"], "number": number, "text": text}, AGENT)


def test_claude_writes_a_file_while_its_screen_is_in_the_window(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WRITE")
    run = finish(stage, CLAUDE, begun, "success")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "I wrote hello.txt."), run
    assert (run.work / "hello.txt").read_text() == "hello\n"
    usage = run.verdict.usage
    assert (usage.requests, usage.tokens_input, usage.tokens_output) == (2, 2000, 1000)
    assert usage.cost_usd_micros > 0
    assert [signal.activity for signal in run.signals][:2] == ["started", f"Write {run.work}/hello.txt"]
    shown = stage.panes[0].pull()
    assert b"bypass permissions" in shown.replace(b"\x1b[1C", b" ")
    assert begun[1]["marker"].encode() in shown
    prompts = [
        json.dumps(request["body"])
        for request in stage.net.requests("SCENE-CLAUDE-WRITE")
        if "Read the task file" in json.dumps(request["body"])
    ]
    assert prompts
    assert all("pasted_content id" not in prompt for prompt in prompts)
    texts = [path.read_bytes() for path in stage.folder.rglob("*") if path.is_file()]
    assert [text for text in texts if b"dummy-key" in text] == []


def test_claude_asks_for_permission_and_is_answered(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WRITE", {"permission_mode": "default"})
    assert "Write" in wait_asked(stage, begun[1])
    answer(stage, begun[1], "yes", number=7)  # of a question that is not asked
    answer(stage, begun[1], "yes")
    run = finish(stage, CLAUDE, begun, "permitted")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert (run.work / "hello.txt").exists()
    assert [bool(signal.waiting_for) for signal in run.signals if signal.activity in ("waiting for an answer", "answered")] == [True, False]


def test_claude_may_read_what_it_is_to_do_without_asking(stage: Desk) -> None:
    run = finish(stage, CLAUDE, begin(stage, CLAUDE, "SCENE-CLAUDE-READ", {"permission_mode": "default"}), "read")
    assert run.verdict.summary == "I know what to do."
    assert not [signal for signal in run.signals if signal.waiting_for]


def test_claude_is_refused_something_and_told_why(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WRITE", {"permission_mode": "default"})
    wait_asked(stage, begun[1])
    answer(stage, begun[1], "Choose another name for it.")
    run = finish(stage, CLAUDE, begun, "refused")
    assert not (run.work / "hello.txt").exists()
    assert any("Choose another name for it." in json.dumps(request["body"]) for request in stage.net.requests("SCENE-CLAUDE-WRITE"))


def test_claude_asks_a_question_that_is_answered_in_its_window(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-ASK")
    assert wait_asked(stage, begun[1]) == "Which colour? (red / blue)"

    asked = itertools.count()

    def pressed() -> bool:
        """Claude Code passes over a key that comes in the first moments of a dialog, and takes several at once for text: one in fifty rounds."""
        if b"navigate" in stage.panes[0].pull() and next(asked) % 50 == 0:
            stage.panes[0].type(b"2")
        return any("answered" in record["line"] for record in stage.records("signal"))

    wait_until(pressed, lambda: f"the answer to be taken; the pane shows {stage.panes[0].text[-3000:]!r}")
    run = finish(stage, CLAUDE, begun, "asked")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert any("blue" in json.dumps(request["body"]["messages"][-1:]) for request in stage.net.requests("SCENE-CLAUDE-ASK"))


def test_claude_is_interrupted_in_its_window_and_told_what_to_do(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WAIT")
    tool = stage.tool_pid(begun[1])
    stage.panes[0].type(b"\x1b")
    assert "interrupted" in wait_asked(stage, begun[1])
    answer(stage, begun[1], "SCENE-SAY: never mind.")
    run = finish(stage, CLAUDE, begun, "interrupted")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Said."), run
    assert not is_alive(tool)


@pytest.mark.parametrize(
    "word,cause",
    [
        ("SCENE-BAD-REQUEST", Cause.REQUEST),
        ("SCENE-TOO-LONG", Cause.REQUEST),
        ("SCENE-TOO-LARGE", Cause.REQUEST),
        ("SCENE-BAD-KEY", Cause.AUTH),
        ("SCENE-OVERLOADED", Cause.OVERLOADED),
        ("SCENE-LIMITED", Cause.RATE_LIMITED),
        ("SCENE-LIMITED-LONG", Cause.RATE_LIMITED),
        ("SCENE-NO-CREDIT", Cause.QUOTA),
        ("SCENE-CUT", Cause.NETWORK),
        ("SCENE-REFUSAL", Cause.REFUSED),
    ],
)
def test_what_the_api_says_to_claude_becomes_a_cause(stage: Desk, word: str, cause: Cause) -> None:
    begun = begin(stage, CLAUDE, word)
    run = finish(stage, CLAUDE, begun, word.lower()[6:])
    assert cause_in(run.verdict.reason) is cause, run
    assert run.verdict.kind is (OutcomeKind.REFUSED if cause is Cause.AUTH else OutcomeKind.FAILED)
    assert run.end.code == 1
    assert run.verdict.session
    assert stage.left_of(begun[1]) == []


@pytest.mark.parametrize("adapter,settings", [(CLAUDE, {"base_url": "http://127.0.0.1:9"}), (CODEX, {"base_url": "http://127.0.0.1:9/v1"})])
def test_nobody_there_is_the_network(stage: Desk, adapter: Adapter, settings: dict[str, str]) -> None:
    """Codex waits for it without end: its time limit says what it waited for."""
    begun = begin(stage, adapter, "SCENE-SAY", settings, timeout_ms=20_000 if adapter is CLAUDE else 4000)
    run = finish(stage, adapter, begun, "unreachable")
    assert cause_in(run.verdict.reason) is Cause.NETWORK, run
    assert run.verdict.kind is (OutcomeKind.FAILED if adapter is CLAUDE else OutcomeKind.TIMEOUT)
    assert stage.left_of(begun[1]) == []


@pytest.mark.parametrize("adapter,word", [(CLAUDE, "SCENE-CLAUDE-PASSING"), (CODEX, "SCENE-CODEX-PASSING")])
def test_a_limit_that_passes_is_waited_for(stage: Desk, adapter: Adapter, word: str) -> None:
    begun = begin(stage, adapter, word)
    run = finish(stage, adapter, begun, "limited-once")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Done after the wait."), run
    assert len(stage.net.requests(word)) == 2
    assert stage.left_of(begun[1]) == []


def test_claude_is_stopped_and_nothing_is_left(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WAIT")
    tool = stage.tool_pid(begun[1])
    stage.poke({"op": "stop", "task": begun[1]["task"], "attempt": 1, "grace_ms": 3000}, AGENT)
    run = finish(stage, CLAUDE, begun, "stopped")
    assert run.verdict.kind is OutcomeKind.STOPPED
    assert run.verdict.usage.tokens_input == 1000
    assert not is_alive(tool)


def test_a_session_of_claude_is_resumed_and_only_the_new_part_counts(stage: Desk) -> None:
    first = finish(stage, CLAUDE, begin(stage, CLAUDE, "SCENE-SAY"), "say")
    again = finish(stage, CLAUDE, begin(stage, CLAUDE, "SCENE-SAY", attempt=2, session=first.verdict.session), "resumed")
    assert again.verdict.session == first.verdict.session
    assert (again.verdict.usage.tokens_input, again.verdict.usage.cost_usd_micros) == (1000, first.verdict.usage.cost_usd_micros)
    for run in (first, again):
        kept = (run.work.parent / "session.jsonl").read_text()
        assert kept.count('"text":"Said."') == 1, "each attempt has its own part of the session"
    unknown = "00000000-0000-4000-8000-000000000000"
    lost = finish(stage, CLAUDE, begin(stage, CLAUDE, "SCENE-SAY", attempt=3, session=unknown), "no-session")
    assert cause_in(lost.verdict.reason) is Cause.SESSION, lost


def test_codex_runs_a_command(stage: Desk) -> None:
    run = finish(stage, CODEX, begin(stage, CODEX, "SCENE-CODEX-WRITE"), "success")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "I wrote hello.txt."), run
    assert (run.work / "hello.txt").read_text() == "hello\n"
    assert (run.verdict.usage.tokens_input, run.verdict.usage.tokens_output) == (2000, 1000)
    assert "$ 'echo hello > hello.txt'" in [signal.activity for signal in run.signals]


@pytest.mark.parametrize("reply,written", [("yes", True), ("no", False)])
def test_codex_asks_for_approval_and_is_answered(stage: Desk, reply: str, written: bool) -> None:
    begun = begin(stage, CODEX, "SCENE-CODEX-WRITE", {"approval_policy": "untrusted"})
    assert wait_asked(stage, begun[1]).startswith("May it run: /bin/bash -lc 'echo hello > hello.txt'")
    answer(stage, begun[1], "yes", number=9)
    answer(stage, begun[1], reply)
    run = finish(stage, CODEX, begun, f"approval-{reply}")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert (run.work / "hello.txt").exists() is written


def test_codex_asks_a_question_that_is_answered_in_its_window(stage: Desk) -> None:
    begun = begin(stage, CODEX, "SCENE-CODEX-ASK")
    assert wait_asked(stage, begun[1]) == "Which colour? (red / blue)"
    stage.panes[0].type(b"green\n")
    run = finish(stage, CODEX, begun, "asked")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert any("green" in json.dumps(request["body"]) for request in stage.net.requests("SCENE-CODEX-ASK"))


@pytest.mark.parametrize(
    "word,cause",
    [
        ("SCENE-BAD-REQUEST", Cause.REQUEST),
        ("SCENE-TOO-LARGE", Cause.REQUEST),
        ("SCENE-BAD-KEY", Cause.AUTH),
        ("SCENE-UNAVAILABLE", Cause.OVERLOADED),
        ("SCENE-LIMITED", Cause.RATE_LIMITED),
        ("SCENE-NO-QUOTA", Cause.QUOTA),
        ("SCENE-CUT", Cause.NETWORK),
    ],
)
def test_what_the_api_says_to_codex_becomes_a_cause(stage: Desk, word: str, cause: Cause) -> None:
    begun = begin(stage, CODEX, word)
    run = finish(stage, CODEX, begun, word.lower()[6:])
    assert cause_in(run.verdict.reason) is cause, run
    assert run.verdict.kind is (OutcomeKind.REFUSED if cause is Cause.AUTH else OutcomeKind.FAILED)
    assert run.end.code == 1
    assert run.verdict.session
    assert stage.left_of(begun[1]) == []


def test_codex_waits_as_long_as_the_api_says_and_its_time_limit_says_for_what(stage: Desk) -> None:
    begun = begin(stage, CODEX, "SCENE-LIMITED-LONG", {"request_max_retries": "0"}, timeout_ms=4000)
    run = finish(stage, CODEX, begun, "limited-long")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.TIMEOUT, Cause.RATE_LIMITED), run
    assert stage.left_of(begun[1]) == []


def test_codex_is_stopped_and_nothing_is_left(stage: Desk) -> None:
    begun = begin(stage, CODEX, "SCENE-CODEX-WAIT")
    tool = stage.tool_pid(begun[1])
    stage.poke({"op": "stop", "task": begun[1]["task"], "attempt": 1, "grace_ms": 3000}, AGENT)
    run = finish(stage, CODEX, begun, "stopped")
    assert run.verdict.kind is OutcomeKind.STOPPED
    assert not is_alive(tool)


def test_a_thread_of_codex_is_resumed(stage: Desk) -> None:
    first = finish(stage, CODEX, begin(stage, CODEX, "SCENE-SAY"), "say")
    again = finish(stage, CODEX, begin(stage, CODEX, "SCENE-SAY", attempt=2, session=first.verdict.session), "resumed")
    assert again.verdict.session == first.verdict.session
    assert again.verdict.usage.tokens_input == 2000  # of the whole session
    unknown = "00000000-0000-7000-8000-000000000000"
    lost = finish(stage, CODEX, begin(stage, CODEX, "SCENE-SAY", attempt=3, session=unknown), "no-session")
    assert cause_in(lost.verdict.reason) is Cause.SESSION, lost


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.parametrize("adapter,word", [(CLAUDE, "SCENE-CLAUDE-WAIT"), (CODEX, "SCENE-CODEX-WAIT")])
@pytest.mark.parametrize("whom", ["cli", "ours"])
def test_killed_by_somebody_else_it_says_so_and_nothing_is_left(
    stage: Desk, adapter: Adapter, word: str, whom: str, number: signal.Signals
) -> None:
    """The CLI itself, and the program of the stage that drives it."""
    begun = begin(stage, adapter, word)
    values = begun[1]
    stage.adopt(stage.tool_pid(values))
    os.kill(stage.driven_pid(values) if whom == "cli" else stage.wait_record("started", values)["pid"], number)
    run = finish(stage, adapter, begun, f"killed-{whom}-{number.name.lower()}")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert run.verdict.session
    assert stage.left_of(values) == []


def test_a_person_who_leaves_claude_in_its_window_is_told_as_that(stage: Desk) -> None:
    begun = begin(stage, CLAUDE, "SCENE-CLAUDE-WAIT")
    stage.adopt(stage.tool_pid(begun[1]))
    pressed = itertools.count()

    def over() -> bool:
        """Two presses within a second or so end it; what it draws between them is heard meanwhile."""
        stage.panes[0].pull()
        if next(pressed) % 20 == 0:
            stage.panes[0].type(b"\x03")
        return any(record["task"] == begun[1]["task"] for record in stage.records("done"))

    wait_until(over, lambda: f"the end; the pane shows {stage.panes[0].text[-3000:]!r}")
    run = finish(stage, CLAUDE, begun, "left")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert stage.left_of(begun[1]) == []


def test_ctrl_c_in_the_window_of_codex_is_told_as_that(stage: Desk) -> None:
    begun = begin(stage, CODEX, "SCENE-CODEX-WAIT")
    stage.adopt(stage.tool_pid(begun[1]))
    stage.panes[0].type(b"\x03")
    run = finish(stage, CODEX, begun, "left")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED), run
    assert stage.left_of(begun[1]) == []
