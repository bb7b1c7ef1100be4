"""Interactive mode: what is started, what recorded runs of the real programs mean, and what the programs of the stage make of words and files."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from orchestra.agents.access import Access
from orchestra.agents.adapter import ATTEMPT_DIR, STAGE_DIR, Adapter, Context, Launch, Signal
from orchestra.agents.causes import Cause
from orchestra.agents.claude import ADAPTER as CLAUDE_ADAPTER
from orchestra.agents.codex import ADAPTER as CODEX_ADAPTER
from orchestra.core.model import OutcomeKind, Usage
from orchestra.errors import BadInput
from orchestra.stage import claude_terminal, codex_server
from orchestra.stage.telling import told
from orchestra.stage.transcript import Transcript
from tests.unit.recorded import cause_in, judged, make_spec, signals

CLAUDE: Adapter = CLAUDE_ADAPTER
CODEX: Adapter = CODEX_ADAPTER


def launch(adapter: Adapter, settings: dict[str, str] | None = None, session: str = "", **more: Any) -> Launch:
    context = Context(1, 7, session=session, settings={"mode": "interactive", **(settings or {})})
    return adapter.launch(make_spec(adapter.kind, "--yes $(id)", **more), context)


# --- launch ----------------------------------------------------------------------------------------------------------


def test_claude_runs_under_a_program_of_the_stage() -> None:
    made = launch(CLAUDE, session="s-1")
    at = made.argv.index(f"{STAGE_DIR}claude_terminal")
    assert made.argv[at + 1 : at + 3] == (ATTEMPT_DIR, "claude")
    assert "-p" not in made.argv
    assert made.argv[made.argv.index("--resume") + 1] == "s-1"
    assert (made.stdin, made.success.signal_type) == ("screen", "result")
    assert {"waiting", "answered"} <= set(made.signals)
    assert "--yes $(id)" in made.files["prompt.txt"]
    assert not [part for part in made.argv if "$(id)" in part]


def test_codex_runs_under_a_program_of_the_stage() -> None:
    made = launch(CODEX, {"sandbox": "workspace-write", "approval_policy": "untrusted", "model": "gpt-5.5"}, session="s-1")
    at = made.argv.index(f"{STAGE_DIR}codex_server")
    assert made.argv[at + 1] == f"{ATTEMPT_DIR}prompt.txt"
    assert json.loads(made.argv[at + 2]) == {
        "sandbox": "workspace-write",
        "approvalPolicy": "untrusted",
        "model": "gpt-5.5",
        "threadId": "s-1",
    }
    assert made.argv[at + 3 :] == ("codex", "app-server")
    assert made.stdin == "pane"
    assert "default_mode_request_user_input = true" in made.agent_files["codex/config.toml"]


def test_codex_as_an_mcp_server_runs_under_a_program_of_the_stage() -> None:
    made = launch(CODEX, {"mode": "mcp", "sandbox": "workspace-write", "model": "gpt-5.5"}, session="s-1")
    at = made.argv.index(f"{STAGE_DIR}codex_mcp")
    assert made.argv[at + 1] == f"{ATTEMPT_DIR}prompt.txt"
    assert json.loads(made.argv[at + 2]) == {"sandbox": "workspace-write", "approval-policy": "never", "model": "gpt-5.5"}
    assert made.argv[at + 3 :] == ("codex", "mcp-server")
    assert made.stdin == "null"
    assert not {"waiting", "answered"} & set(made.signals)
    assert "default_mode_request_user_input" not in made.agent_files["codex/config.toml"]


@pytest.mark.parametrize(
    "adapter,settings,more,field",
    [
        (CLAUDE, {"max_turns": "3"}, {}, "kinds.claude.max_turns"),
        (CLAUDE, {"fallback_model": "haiku"}, {}, "kinds.claude.fallback_model"),
        (CLAUDE, {}, {"cost_usd_micros_max": 1}, "constraints.max_cost_dollars"),
        (CLAUDE, {"mode": "tmux"}, {}, "kinds.claude.mode"),
        (CODEX, {"mode": "headless", "approval_policy": "untrusted"}, {}, "kinds.codex.approval_policy"),
        (CODEX, {"mode": "mcp", "approval_policy": "on-request"}, {}, "kinds.codex.approval_policy"),
        (CODEX, {"mode": "server"}, {}, "kinds.codex.mode"),
    ],
)
def test_what_would_not_be_heeded_is_refused(adapter: Adapter, settings: dict[str, str], more: dict[str, Any], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(adapter, settings, **more)
    assert caught.value.field == field


def test_a_limit_of_cost_is_left_to_the_gateway() -> None:
    access = Access("http://127.0.0.1:1", "token", ("anthropic",))
    made = CLAUDE.launch(make_spec("claude", cost_usd_micros_max=1), Context(1, 7, settings={"mode": "interactive"}, access=access))
    assert "--max-budget-usd" not in made.argv


# --- recorded runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "adapter,name,kind,cause",
    [
        (CLAUDE, "success", OutcomeKind.DONE, None),
        (CLAUDE, "permitted", OutcomeKind.DONE, None),
        (CLAUDE, "bad-request", OutcomeKind.FAILED, Cause.REQUEST),
        (CLAUDE, "bad-key", OutcomeKind.REFUSED, Cause.AUTH),
        (CLAUDE, "overloaded", OutcomeKind.FAILED, Cause.OVERLOADED),
        (CLAUDE, "limited", OutcomeKind.FAILED, Cause.RATE_LIMITED),
        (CLAUDE, "limited-long", OutcomeKind.FAILED, Cause.RATE_LIMITED),
        (CLAUDE, "no-credit", OutcomeKind.FAILED, Cause.QUOTA),
        (CLAUDE, "too-long", OutcomeKind.FAILED, Cause.REQUEST),
        (CLAUDE, "too-large", OutcomeKind.FAILED, Cause.REQUEST),
        (CLAUDE, "cut", OutcomeKind.FAILED, Cause.NETWORK),
        (CLAUDE, "unreachable", OutcomeKind.FAILED, Cause.NETWORK),
        (CLAUDE, "refusal", OutcomeKind.FAILED, Cause.REFUSED),
        (CLAUDE, "no-session", OutcomeKind.FAILED, Cause.SESSION),
        (CLAUDE, "stopped", OutcomeKind.STOPPED, None),
        (CLAUDE, "killed-cli-sigkill", OutcomeKind.FAILED, Cause.KILLED),
        (CLAUDE, "killed-cli-sigterm", OutcomeKind.FAILED, Cause.KILLED),
        (CLAUDE, "left", OutcomeKind.FAILED, Cause.KILLED),
        (CODEX, "success", OutcomeKind.DONE, None),
        (CODEX, "approval-no", OutcomeKind.DONE, None),
        (CODEX, "bad-request", OutcomeKind.FAILED, Cause.REQUEST),
        (CODEX, "bad-key", OutcomeKind.REFUSED, Cause.AUTH),
        (CODEX, "unavailable", OutcomeKind.FAILED, Cause.OVERLOADED),
        (CODEX, "limited", OutcomeKind.FAILED, Cause.RATE_LIMITED),
        (CODEX, "limited-long", OutcomeKind.TIMEOUT, Cause.RATE_LIMITED),
        (CODEX, "no-quota", OutcomeKind.FAILED, Cause.QUOTA),
        (CODEX, "cut", OutcomeKind.FAILED, Cause.NETWORK),
        (CODEX, "unreachable", OutcomeKind.TIMEOUT, Cause.NETWORK),
        (CODEX, "no-session", OutcomeKind.FAILED, Cause.SESSION),
        (CODEX, "stopped", OutcomeKind.STOPPED, None),
        (CODEX, "killed-cli-sigkill", OutcomeKind.FAILED, Cause.KILLED),
        (CODEX, "killed-cli-sigterm", OutcomeKind.FAILED, Cause.KILLED),
        (CODEX, "left", OutcomeKind.FAILED, Cause.KILLED),
    ],
)
def test_how_recorded_runs_ended(adapter: Adapter, name: str, kind: OutcomeKind, cause: Cause | None) -> None:
    verdict = judged(adapter, f"interactive-{name}")
    assert (verdict.kind, cause_in(verdict.reason)) == (kind, cause)


def test_a_turn_that_ran_into_its_time_limit_says_what_it_waited_for() -> None:
    told = '{"type": "error", "message": "Reconnecting... 1/1 (exceeded retry limit, last status: 429 Too Many Requests)"}'
    ended = '{"type": "turn.failed", "error": {"message": "interrupted"}}'
    found = judged(CODEX, "interactive-stopped", reason="timeout", tail=(told, ended))
    assert (found.kind, cause_in(found.reason)) == (OutcomeKind.TIMEOUT, Cause.RATE_LIMITED)
    assert cause_in(judged(CODEX, "interactive-stopped", reason="timeout", tail=(told, "something later", ended)).reason) is None


def test_claude_in_a_terminal_does_not_tell_whether_it_waited_for_a_limit() -> None:
    assert "given up at once" not in judged(CLAUDE, "interactive-limited").reason


def test_consumption_and_session_are_in_the_verdict() -> None:
    claude, codex = judged(CLAUDE, "interactive-success"), judged(CODEX, "interactive-success")
    assert claude.usage == Usage(2, 2000, 1000, cost_usd_micros=28_000)
    assert codex.usage == Usage(0, 2000, 1000)
    assert claude.session
    assert codex.session
    assert judged(CLAUDE, "interactive-stopped").usage.tokens_input == 1000


@pytest.mark.parametrize("adapter,name", [(CLAUDE, "permitted"), (CLAUDE, "asked"), (CODEX, "approval-yes"), (CODEX, "asked")])
def test_a_question_stands_until_it_is_answered(adapter: Adapter, name: str) -> None:
    found = signals(adapter, f"interactive-{name}")
    asked = [index for index, signal in enumerate(found) if signal.waiting_for]
    assert len(asked) == 1
    assert found[asked[0]].number == 1
    assert found[asked[0] + 1] == Signal("answered", session=found[asked[0]].session)


# --- words -----------------------------------------------------------------------------------------------------------


def permission(text: str) -> Any:
    said = {"tool_name": "Bash", "tool_input": {"command": "rm -rf  x"}}
    assert claude_terminal.question_of(said) == "May it use Bash? rm -rf x"
    return claude_terminal.reply_to(said, text)["hookSpecificOutput"]["decision"]


def test_a_permission_is_given_by_yes_alone() -> None:
    assert permission("Yes") == {"behavior": "allow"}
    assert permission("no") == {"behavior": "deny", "message": "refused"}
    assert permission("yes, but only once") == {"behavior": "deny", "message": "yes, but only once"}


def test_codex_is_answered_in_its_own_words() -> None:
    def reply(text: str, method: str = codex_server.APPROVALS[0], **params: Any) -> Any:
        return codex_server.answer_to({"method": method, "params": params}, text)

    assert [reply(text)["decision"] for text in ("yes", "always", "no", "rather not")] == [
        "accept",
        "acceptForSession",
        "decline",
        "decline",
    ]
    assert reply("blue", codex_server.QUESTIONS, questions=[{"id": "c"}]) == {"answers": {"c": {"answers": ["blue"]}}}
    assert reply("yes", codex_server.PERMISSIONS, permissions={"network": 1}) == {"permissions": {"network": 1}, "scope": "turn"}
    assert reply("no", codex_server.FORM) == {"action": "decline"}


def test_nothing_pasted_can_end_the_paste() -> None:
    assert claude_terminal.pasted("a\x1b[201~\rb") == b"\x1b[200~a[201~\rb\x1b[201~"
    assert claude_terminal.quoted("it's $(x)") == "'it'\\''s $(x)'"


def test_what_codex_does_is_readable_in_the_window() -> None:
    lines = [
        {"type": "item.started", "item": {"type": "command_execution", "command": "ls"}},
        {"type": "item.completed", "item": {"type": "command_execution", "exit_code": 0, "aggregated_output": "a\nb"}},
        {"type": "item.completed", "item": {"type": "file_change", "changes": [{"path": "a.py", "kind": "add"}]}},
        {"type": "item.completed", "item": {"type": "agent_message", "text": "Done.\nAll of it."}},
        {"type": "waiting", "ask": 1, "text": "May it?"},
    ]
    assert [part for line in lines for part in told(json.dumps(line))] == [
        "> ls",
        "< exit code 0 a b",
        "> add a.py",
        "Done.",
        "All of it.",
        "? May it?",
        "  (type the answer here, or: orchestra task answer)",
    ]


# --- how the prompt gets there ---------------------------------------------------------------------------------------


def test_a_prompt_that_nobody_confirms_is_pasted_again_and_then_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        session = claude_terminal.Session("/attempt", ["claude"], listener.fileno())
        typed: list[bytes] = []
        monkeypatch.setattr(session.terminal, "type", typed.append)
        moment = session.began
        session.deliver(moment)
        assert typed == [], "no session has begun"
        session.session = "s"
        session.on_drawn(b"\x1b[?20")
        session.on_drawn(b"04h")
        paste = claude_terminal.pasted("Read the task file /attempt/prompt.txt and do what it says.")
        for number in range(claude_terminal.TRIES):
            session.deliver(moment)
            session.deliver(moment)
            assert typed.pop() == (b"" if number == 0 else b"\x15") + paste
            moment += claude_terminal.PASTE_GAP_S
            session.deliver(moment)
            assert typed.pop() == b"\r"
            assert typed == []
            moment += claude_terminal.CONFIRM_S
        session.deliver(moment)
        assert session.result is not None
        assert session.result["terminal_reason"] == "not_delivered"
        session.terminal.listener.close()


def test_no_session_is_waited_for_so_long(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        session = claude_terminal.Session("/attempt", ["claude"], listener.fileno())
        session.on_drawn(b"\x1b[1mDo you trust\x1b[0m this folder?")
        session.deliver(session.began + claude_terminal.START_S + 1)
        assert session.result is not None
        assert session.result["result"].endswith("its window shows: Do you trust this folder?")
        session.terminal.listener.close()


def test_an_answer_to_a_hook_that_has_just_gone_is_dropped_with_its_question(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        session = claude_terminal.Session(str(tmp_path), ["claude"], listener.fileno())
        said: list[dict[str, Any]] = []
        monkeypatch.setattr(session, "say", lambda kind, **fields: said.append({"type": kind, **fields}))
        (tmp_path / "hooks").mkdir()
        os.mkfifo(tmp_path / "hooks" / "7.reply")
        hook = os.open(tmp_path / "hooks" / "7.reply", os.O_RDONLY | os.O_NONBLOCK)
        session.on_hook("7", {"hook_event_name": claude_terminal.ASKING, "tool_name": "Bash", "tool_input": {"command": "ls"}})
        session.look_questions(session.began)
        os.close(hook)
        session.on_answer(1, "yes")
        session.look_questions(session.began)
        assert [line["type"] for line in said] == ["waiting", "answered"]
        assert session.questions == []
        assert not (tmp_path / "hooks" / "7.reply").exists()
        session.terminal.listener.close()


def test_a_hook_that_never_comes_to_wait_is_given_up(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        session = claude_terminal.Session(str(tmp_path), ["claude"], listener.fileno())
        session.on_hook("7", {"hook_event_name": claude_terminal.ASKING, "tool_name": "Bash"})
        session.look_questions(session.questions[0].due + 1)
        assert session.questions == []
        session.terminal.listener.close()


# --- what a session consumed -----------------------------------------------------------------------------------------


def reply(name: str, tokens: int) -> dict[str, Any]:
    return {"type": "assistant", "message": {"id": name, "model": "m", "usage": {"input_tokens": tokens, "output_tokens": 1}}}


def account(tokens: int, cost: float) -> dict[str, Any]:
    return {"type": "cost-state", "modelUsage": {"m": {"inputTokens": tokens, "outputTokens": 2, "costUSD": cost}}}


@pytest.fixture
def session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CLAUDE_CONFIG_DIR", str(tmp_path))
    (tmp_path / "projects" / "-w").mkdir(parents=True)
    return tmp_path / "projects" / "-w" / "s.jsonl"


def add(path: Path, *lines: Any) -> None:
    with path.open("a") as out:
        out.writelines((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)


def test_only_what_is_new_counts_and_the_sessions_own_account_goes_first(session: Path) -> None:
    add(session, reply("one", 100), account(100, 0.5))
    transcript = Transcript("s")
    add(session, reply("two", 10), reply("two", 10), '{"type": "usage", torn')
    found = transcript.consumed()
    assert (found["num_turns"], found["model_usage_since_last_result"]["m"]["inputTokens"]) == (1, 10)
    add(session, account(110, 0.75))
    found = transcript.consumed()
    assert found["model_usage_since_last_result"]["m"]["inputTokens"] == 10
    assert found["model_usage_since_last_result"]["m"]["costUSD"] == 0.25


def test_a_session_that_follows_another_counts_with_it(session: Path) -> None:
    first = Transcript("s")
    add(session, reply("one", 100))
    second = Transcript("t", first)
    add(session.with_name("t.jsonl"), reply("two", 10))
    models = second.consumed()["model_usage_since_last_result"]
    assert sum(usage["inputTokens"] for usage in models.values()) == 110


def test_how_the_api_failed_is_what_the_sessions_file_says_of_this_attempt(session: Path) -> None:
    failed: dict[str, Any] = {"type": "assistant", "isApiErrorMessage": True, "message": {"id": "x", "stop_reason": "refusal", "usage": {}}}
    add(session, failed)
    transcript = Transcript("s")
    assert transcript.failure() == {}
    add(session, {**failed, "apiErrorStatus": 529}, {**failed, "apiError": "connection_failed", "message": {"id": "x", "usage": {}}})
    assert transcript.failure() == {"api_error": "connection_failed"}
    add(session, failed, reply("one", 1))
    assert transcript.failure() == {"stop_reason": "refusal"}


def test_what_is_added_to_the_sessions_file_is_told_once_and_in_whole_lines(session: Path) -> None:
    add(session, "before")
    transcript = Transcript("s")
    assert transcript.news(100) == b""
    add(session, "one", "two")
    with session.open("a") as out:
        out.write("half")
    assert transcript.news(100) == b"one\ntwo\n"
    assert transcript.news(100) == b""
    add(session, "", "three")
    assert transcript.news(6) == b"half\n"
    assert transcript.news(0) == b""
    assert transcript.news(100) == b"three\n"


def test_what_a_session_says_is_kept_with_the_attempt_up_to_a_limit(session: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claude_terminal, "SESSION_BYTES_MAX", 8)
    with socket.socket(socket.AF_UNIX) as listener:
        running = claude_terminal.Session(str(tmp_path), ["claude"], listener.fileno())
        running.transcript = Transcript("s")
        add(session, "one")
        running.keep()
        add(session, "two", "three")
        running.keep()
        running.keep()
        assert (tmp_path / "session.jsonl").read_text() == "one\ntwo\n"
        running.terminal.listener.close()
