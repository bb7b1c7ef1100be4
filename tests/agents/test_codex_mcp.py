"""The last Codex with an MCP server, as it is, and a newer one, which is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.causes import Cause
from orchestra.agents.codex import ADAPTER
from orchestra.core.model import OutcomeKind, TaskSpec
from tests.agents.support import AGENT, URL, Desk, Run, installed, make_task
from tests.integration.stage_support import is_alive
from tests.unit.recorded import cause_in

CODEX: Adapter = ADAPTER
SETTINGS = {"mode": "mcp", "base_url": f"{URL}/v1", "model": "gpt-5.5", "request_max_retries": "1", "stream_max_retries": "1"}


@pytest.fixture
def old(stage: Desk) -> Desk:
    """A worker that finds the old program first."""
    stage.worker(env={"PATH": f"{Path(installed('codex-mcp')).resolve().parent}:/usr/bin:/bin"})
    return stage


def begin(stage: Desk, word: str, settings: dict[str, str] | None = None, **more: Any) -> tuple[TaskSpec, dict[str, Any]]:
    spec = make_task("codex", word)
    return spec, stage.hand_out(CODEX, spec, settings=SETTINGS | (settings or {}), **more)


def finish(stage: Desk, begun: tuple[TaskSpec, dict[str, Any]], name: str) -> Run:
    return stage.finished(CODEX, *begun, f"mcp-{name}")


def test_a_command_is_run(old: Desk) -> None:
    run = finish(old, begin(old, "SCENE-CODEX-WRITE"), "success")
    assert (run.verdict.kind, run.verdict.summary, run.verdict.session) == (OutcomeKind.DONE, "I wrote hello.txt.", ""), (
        run.verdict,
        run.end,
    )
    assert (run.work / "hello.txt").read_text() == "hello\n"
    assert (run.verdict.usage.tokens_input, run.verdict.usage.tokens_output) == (2000, 1000)
    activities = [signal.activity for signal in run.signals]
    assert activities[0] == "started"
    assert "$ 'echo hello > hello.txt'" in activities
    texts = [path.read_bytes() for path in old.folder.rglob("*") if path.is_file()]
    assert [text for text in texts if b"dummy-key" in text] == []


def test_a_changed_file_is_told(old: Desk) -> None:
    run = finish(old, begin(old, "SCENE-CODEX-PATCH"), "patch")
    assert run.verdict.kind is OutcomeKind.DONE, (run.verdict, run.end)
    assert (run.work / "hello.txt").read_text() == "hello\n"
    assert [signal.activity for signal in run.signals if "changed" in signal.activity][-1].endswith("hello.txt")


def test_a_sandbox_of_its_own_keeps_it_from_writing(old: Desk) -> None:
    run = finish(old, begin(old, "SCENE-CODEX-WRITE", {"sandbox": "read-only"}), "read-only")
    assert run.verdict.kind is OutcomeKind.DONE, (run.verdict, run.end)
    assert not (run.work / "hello.txt").exists()


@pytest.mark.parametrize(
    "word,cause", [("SCENE-BAD-KEY", Cause.AUTH), ("SCENE-BAD-REQUEST", Cause.REQUEST), ("SCENE-UNAVAILABLE", Cause.OVERLOADED)]
)
def test_what_the_api_says_becomes_a_cause(old: Desk, word: str, cause: Cause) -> None:
    run = finish(old, begin(old, word), word.lower()[6:])
    assert cause_in(run.verdict.reason) is cause, (run.verdict, run.end)


def test_it_is_stopped_and_nothing_is_left(old: Desk) -> None:
    begun = begin(old, "SCENE-CODEX-WAIT")
    tool = old.tool_pid(begun[1])
    old.poke({"op": "stop", "task": begun[1]["task"], "attempt": 1, "grace_ms": 5000}, AGENT)
    run = finish(old, begun, "stopped")
    assert run.verdict.kind is OutcomeKind.STOPPED
    assert run.verdict.usage.tokens_input == 1000
    assert not is_alive(tool)


def test_an_earlier_session_is_not_gone_on_with(old: Desk) -> None:
    run = finish(old, begin(old, "SCENE-SAY", session="00000000-0000-7000-8000-000000000000"), "session")
    assert (run.verdict.kind, run.verdict.summary) == (OutcomeKind.DONE, "Said."), (run.verdict, run.end)


def test_a_newer_program_is_refused_with_the_remedy(stage: Desk) -> None:
    installed("codex")
    stage.worker()
    run = finish(stage, begin(stage, "SCENE-SAY-TOO-NEW"), "too-new")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.CONFIG), (run.verdict, run.end)
    assert "codex 0.169.0 has no MCP server" in run.verdict.reason
    assert "set kinds.codex.mode to interactive" in run.verdict.reason
    assert stage.net.requests("SCENE-SAY-TOO-NEW") == []
