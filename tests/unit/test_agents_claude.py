"""Kind `claude`: which process a task becomes, and what recorded runs of the real CLI mean."""

from __future__ import annotations

import copy
import re
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch
from orchestra.agents.causes import FINAL, Cause, of_message, of_status, reason
from orchestra.agents.claude import ADAPTER, KEYS, ROOT_HINT, SETTINGS, session_of
from orchestra.agents.ending import outcome
from orchestra.core.model import CheckResult, OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from orchestra.stage import returning as stage_returning
from tests.unit.recorded import cause_in, judged, make_spec, recording, signals


def launch(spec: TaskSpec | None = None, *, settings: dict[str, str] | None = None, **more: Any) -> Launch:
    return ADAPTER.launch(spec or make_spec("claude"), Context(**{"attempt": 1, "agent": 7, "settings": settings or {}, **more}))


def option(made: Launch, name: str) -> str | None:
    return made.argv[made.argv.index(name) + 1] if name in made.argv else None


# --- launch ----------------------------------------------------------------------------------------------------------


def test_the_prompt_is_a_file_and_not_an_argument() -> None:
    made = launch(make_spec("claude", "$(rm -rf /) --dangerous"))
    assert made.stdin == "prompt"
    assert "$(rm -rf /) --dangerous" in made.files["prompt.txt"]
    assert "rm -rf" not in " ".join(made.argv)


def test_the_prompt_says_by_what_it_is_judged() -> None:
    spec = make_spec("claude", "Mend it.", criteria=("Linter passes",), files=("src/a.py",))
    assert launch(spec).files["prompt.txt"] == (
        "A task\n\nMend it.\n\nThe work is done when:\n- Linter passes\n\nChange only these, relative to the working folder:\n- src/a.py\n"
    )


def test_the_prompt_says_what_is_required_and_not_how_the_agent_is_run() -> None:
    spec = make_spec(
        "claude",
        "Mend it.",
        requirements='{"language": "rust", "model": "opus", "target_path": "a/b/", "tests_required": true, "n": [1, "x"]}',
    )
    assert launch(spec).files["prompt.txt"] == (
        'A task\n\nMend it.\n\nWhat is required:\n- language: rust\n- target_path: a/b/\n- tests_required: true\n- n: [1,"x"]\n'
    )


@pytest.mark.parametrize("type_,said", [("command", "Run this shell script"), ("code", "Run this program")])
def test_a_script_is_told_as_one(type_: str, said: str) -> None:
    assert said in launch(make_spec("claude", "make", type_)).files["prompt.txt"]


@pytest.mark.parametrize("content,type_", [("  ", "analysis"), ("x", "picture")])
def test_nothing_to_do_and_unknown_payloads_are_refused(content: str, type_: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(make_spec("claude", content, type_))
    assert caught.value.field.startswith("payload.")


def test_it_keeps_its_things_in_the_agents_folder_and_calls_nobody_else() -> None:
    made = launch()
    assert (made.env["CLAUDE_CONFIG_DIR"], made.env["XDG_RUNTIME_DIR"]) == (f"{AGENT_DIR}claude", f"{AGENT_DIR}run")
    assert {name: made.env[name] for name in ("DISABLE_AUTOUPDATER", "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "DISABLE_TELEMETRY")} == {
        "DISABLE_AUTOUPDATER": "1",
        "CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC": "1",
        "DISABLE_TELEMETRY": "1",
    }
    assert msgspec.json.decode(made.agent_files["claude/.claude.json"])["hasCompletedOnboarding"] is True
    assert set(KEYS) <= set(made.env_pass)
    assert not set(KEYS) & set(made.env)


SHARED = {"workspace": "/home/me/repo"}


@pytest.mark.parametrize(
    "where,mode,wanted",
    [
        ({}, "headless", "bypassPermissions"),
        ({}, "interactive", "bypassPermissions"),
        ({**SHARED, "isolated": True}, "headless", "bypassPermissions"),
        (SHARED, "headless", "acceptEdits"),
        (SHARED, "interactive", "default"),
    ],
)
def test_by_default_it_may_use_every_tool_only_where_it_works_apart(where: dict[str, Any], mode: str, wanted: str) -> None:
    spec = make_spec("claude", **where)
    assert option(launch(spec, settings={"mode": mode}), "--permission-mode") == wanted
    assert option(launch(spec, settings={"mode": mode, "permission_mode": "plan"}), "--permission-mode") == "plan"


def test_it_skips_permissions_as_root_only_where_that_is_said_to_be_fine() -> None:
    assert "IS_SANDBOX" not in launch().env
    assert launch(settings={"allow_root": "true"}).env["IS_SANDBOX"] == "1"


def test_where_it_may_not_run_every_command_it_is_told_where_to_write_what_it_returns() -> None:
    made = launch(make_spec("claude", returns="plan", **SHARED), settings={"append_system_prompt": "Be brief."})
    assert option(made, "--add-dir") == f"{ATTEMPT_DIR}return"
    told = option(made, "--append-system-prompt") or ""
    assert told.startswith(f"{ATTEMPT_DIR}{stage_returning.FILE} is the path")
    assert told.endswith("\n\nBe brief.")
    window = launch(make_spec("claude", returns="plan", **SHARED), settings={"mode": "interactive"})
    assert "--add-dir" not in window.argv, "it would ask whether it is trusted, with no as the first answer"
    assert "--append-system-prompt" in window.argv
    assert option(launch(make_spec("claude", returns="plan")), "--append-system-prompt") is None


def test_settings_become_options() -> None:
    settings = {
        "model": "sonnet",
        "fallback_model": "haiku",
        "permission_mode": "acceptEdits",
        "max_turns": "12",
        "max_retries": "3",
        "allowed_tools": "Bash(git *),Edit",
        "base_url": "http://127.0.0.1:1",
        "mcp_config": '{"mcpServers": {}}',
    }
    made = launch(settings=settings)
    wanted = {"--model": "sonnet", "--fallback-model": "haiku", "--max-turns": "12", "--allowedTools": "Bash(git *),Edit"}
    assert {name: option(made, name) for name in wanted} == wanted
    assert (made.env["CLAUDE_CODE_MAX_RETRIES"], made.env["ANTHROPIC_BASE_URL"]) == ("3", "http://127.0.0.1:1")
    assert (option(made, "--mcp-config"), made.files["mcp.json"]) == (f"{ATTEMPT_DIR}mcp.json", '{"mcpServers": {}}')
    assert "--strict-mcp-config" in made.argv


@pytest.mark.parametrize(
    "settings,field",
    [
        ({"modle": "x"}, "kinds.claude.modle"),
        ({"permission_mode": "everything"}, "kinds.claude.permission_mode"),
        ({"max_turns": "many"}, "kinds.claude.max_turns"),
        ({"max_turns": "-1"}, "kinds.claude.max_turns"),
        ({"allow_root": "perhaps"}, "kinds.claude.allow_root"),
        ({"model": "--dangerously"}, "kinds.claude.model"),
        ({"append_system_prompt": "a\0b"}, "kinds.claude.append_system_prompt"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(settings: dict[str, str], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(settings=settings)
    assert caught.value.field == field


def test_an_unknown_setting_is_told_with_the_nearest() -> None:
    with pytest.raises(BadInput, match="did you mean 'model'"):
        launch(settings={"modell": "x"})


def test_a_task_may_name_its_model_but_no_option() -> None:
    assert option(launch(make_spec("claude", requirements='{"model": "opus"}'), settings={"model": "haiku"}), "--model") == "opus"
    with pytest.raises(BadInput) as caught:
        launch(make_spec("claude", requirements='{"model": "--add-dir=/"}'))
    assert caught.value.field == "requirements.model"


def test_a_session_has_a_name_of_its_own_that_is_the_same_again() -> None:
    assert option(launch(), "--session-id") == option(launch(), "--session-id")
    names = {session_of(make_spec("claude"), Context(attempt, agent)) for attempt in (1, 2) for agent in (1, 2)}
    assert len(names) == 4
    assert all(re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-8[0-9a-f]{3}-8[0-9a-f]{3}-[0-9a-f]{12}", name) for name in names)


def test_a_session_is_gone_on_with() -> None:
    made = launch(session="11111111-1111-4111-8111-111111111111")
    assert option(made, "--resume") == "11111111-1111-4111-8111-111111111111"
    assert "--session-id" not in made.argv
    with pytest.raises(BadInput):
        launch(session="--continue")


@pytest.mark.parametrize("so_far,left", [(0, "0.020000"), (19_999, "0.000001")])
def test_the_limit_of_cost_is_what_earlier_attempts_left(so_far: int, left: str) -> None:
    made = launch(make_spec("claude", cost_usd_micros_max=20_000), cost_so_far_usd_micros=so_far)
    assert option(made, "--max-budget-usd") == left


def test_nothing_is_started_when_the_cost_is_used_up() -> None:
    with pytest.raises(BadInput, match="earlier attempts used all of it"):
        launch(make_spec("claude", cost_usd_micros_max=20_000), cost_so_far_usd_micros=20_000)


# --- verdict ---------------------------------------------------------------------------------------------------------

CAUSES = {
    "bad-request": Cause.REQUEST,
    "bad-key": Cause.AUTH,
    "no-key": Cause.AUTH,
    "limited": Cause.RATE_LIMITED,
    "limited-long": Cause.RATE_LIMITED,
    "no-credit": Cause.QUOTA,
    "overloaded": Cause.OVERLOADED,
    "too-long": Cause.REQUEST,
    "too-large": Cause.REQUEST,
    "interrupted-tool": Cause.KILLED,
    "interrupted-speech": Cause.KILLED,
    "terminated": Cause.KILLED,
    "hung-up": Cause.KILLED,
    "cut": Cause.NETWORK,
    "unreachable": Cause.NETWORK,
    "refusal": Cause.REFUSED,
    "turns": Cause.TURNS,
    "budget": Cause.BUDGET,
    "denied": Cause.DENIED,
    "no-session": Cause.SESSION,
    "root": Cause.CONFIG,
    "killed": Cause.KILLED,
}


@pytest.mark.parametrize("name,cause", CAUSES.items())
def test_every_bad_end_has_its_word(name: str, cause: Cause) -> None:
    verdict = judged(ADAPTER, name)
    assert cause_in(verdict.reason) is cause, verdict.reason
    assert verdict.kind is (OutcomeKind.REFUSED if cause in FINAL else OutcomeKind.FAILED)


@pytest.mark.parametrize("name", ["success", "say", "resumed", "limited-once", "within-budget"])
def test_a_good_end_is_done(name: str) -> None:
    verdict = judged(ADAPTER, name)
    assert (verdict.kind, verdict.reason) == (OutcomeKind.DONE, "")
    assert verdict.session
    assert verdict.summary


@pytest.mark.parametrize("name", ["success", "say"])
@pytest.mark.parametrize("changes", [{"code": 1}, {"code": None, "signal": 9}, {"code": 143}])
def test_a_good_result_alone_is_not_enough(name: str, changes: dict[str, Any]) -> None:
    verdict = judged(ADAPTER, name, **changes)
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.FAILED, Cause.CRASHED if changes == {"code": 1} else Cause.KILLED)


@pytest.mark.parametrize("name", ["bad-request", "turns", "budget"])
def test_exit_code_0_alone_is_not_enough(name: str) -> None:
    """The API error's subtype is even `success`."""
    assert judged(ADAPTER, name, code=0).kind is not OutcomeKind.DONE


def test_no_result_is_not_done() -> None:
    last = {name: line for name, line in recording("claude", "success").end.last.items() if name != "result"}
    verdict = judged(ADAPTER, "success", last=last)
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED)  # as an interruption ends that is not told
    assert cause_in(judged(ADAPTER, "success", last=last, code=3).reason) is Cause.CRASHED
    assert verdict.usage.tokens_input == 1000  # of its last request, at least


def test_only_what_is_new_counts_in_a_resumed_session() -> None:
    assert judged(ADAPTER, "resumed").usage == judged(ADAPTER, "say").usage == Usage(1, 1000, 500, 0, 0, 14_000)
    assert recording("claude", "resumed").end.last["result"]["total_cost_usd"] == 0.028


def test_an_older_result_without_usage_by_model_is_read_as_well() -> None:
    end = copy.deepcopy(recording("claude", "say").end)
    del end.last["result"]["model_usage_since_last_result"]
    assert ADAPTER.verdict(make_spec("claude"), end).usage == Usage(1, 1000, 500, 0, 0, 14_000)


def test_what_a_limit_of_cost_used_counts_though_the_result_says_0() -> None:
    assert recording("claude", "budget").end.last["result"]["usage"]["input_tokens"] == 0
    assert judged(ADAPTER, "budget").usage == Usage(1, 1000, 500, 0, 0, 14_000)


def test_a_stop_and_a_limit_of_ours_are_told_as_such_and_keep_the_session() -> None:
    stopped = judged(ADAPTER, "stopped")
    assert (stopped.kind, bool(stopped.session)) == (OutcomeKind.STOPPED, True)
    assert judged(ADAPTER, "success", reason="memory").kind is OutcomeKind.MEMORY


def test_a_time_limit_says_what_it_waited_for_only_if_that_came_last() -> None:
    seen = recording("claude", "limited")
    retries = [line for line in seen.end.tail if '"api_retry"' in line]
    last = {name: line for name, line in seen.end.last.items() if name != "result"}
    waits = judged(ADAPTER, "limited", reason="timeout", last=last, tail=tuple(retries))
    assert (waits.kind, cause_in(waits.reason)) == (OutcomeKind.TIMEOUT, Cause.RATE_LIMITED)
    works = judged(ADAPTER, "limited", reason="timeout", last=last, tail=(*retries, "something later"))
    assert (works.kind, cause_in(works.reason)) == (OutcomeKind.TIMEOUT, None)


def test_giving_up_at_once_is_explained() -> None:
    assert "given up at once" in judged(ADAPTER, "limited-long").reason
    assert "given up at once" not in judged(ADAPTER, "limited").reason


@pytest.mark.parametrize("info,cause", [({"status": "rejected"}, Cause.QUOTA), ({"status": "allowed"}, Cause.RATE_LIMITED)])
def test_a_spent_window_is_told_from_a_passing_limit(info: dict[str, str], cause: Cause) -> None:
    last = {**recording("claude", "limited").end.last, "rate_limit_event": {"type": "rate_limit_event", "rate_limit_info": info}}
    assert cause_in(judged(ADAPTER, "limited", last=last).reason) is cause


def test_what_the_model_quotes_is_no_cause() -> None:
    end = copy.deepcopy(recording("claude", "success").end)
    end.last["result"]["result"] = "API Error: 429 rate limit; Not logged in"
    assert ADAPTER.verdict(make_spec("claude"), end).kind is OutcomeKind.DONE
    end.last["result"].update(is_error=True, terminal_reason="aborted_tools", subtype="error_during_execution")
    verdict = ADAPTER.verdict(make_spec("claude"), end)
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.FAILED, Cause.KILLED)
    end.last["result"].update(terminal_reason="malformed_tool_use_exhausted")
    assert cause_in(ADAPTER.verdict(make_spec("claude"), end).reason) is Cause.CRASHED


TERMINAL = {
    "aborted_streaming": Cause.KILLED,
    "aborted_tools": Cause.KILLED,
    "blocking_limit": Cause.REQUEST,
    "budget_exhausted": Cause.BUDGET,
    "hook_stopped": Cause.DENIED,
    "image_error": Cause.REQUEST,
    "malformed_tool_use_exhausted": Cause.CRASHED,
    "max_turns": Cause.TURNS,
    "model_error": Cause.CRASHED,
    "not_delivered": Cause.CRASHED,
    "prompt_too_long": Cause.REQUEST,
    "rapid_refill_breaker": Cause.REQUEST,
    "stop_hook_prevented": Cause.DENIED,
    "structured_output_retry_exhausted": Cause.CRASHED,
    "tool_deferred": Cause.DENIED,
    "tool_deferred_unavailable": Cause.DENIED,
    "turn_setup_failed": Cause.CRASHED,
    "one of a later version": Cause.CRASHED,
}


@pytest.mark.parametrize("terminal,cause", TERMINAL.items())
def test_every_way_a_result_can_fail_has_its_word(terminal: str, cause: Cause) -> None:
    end = copy.deepcopy(recording("claude", "success").end)
    end.last["result"].update(is_error=True, terminal_reason=terminal, subtype="error_during_execution", result="rate limit")
    verdict = ADAPTER.verdict(make_spec("claude"), end)
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.REFUSED if cause in FINAL else OutcomeKind.FAILED, cause)


@pytest.mark.parametrize(
    "ended,cause",
    [
        ({"exit_code": None, "exit_signal": 9}, Cause.KILLED),
        ({"exit_code": 143, "exit_signal": None}, Cause.KILLED),
        ({"exit_code": 0, "exit_signal": None}, Cause.KILLED),
        ({"exit_code": 1, "exit_signal": None}, Cause.CRASHED),
        ({}, Cause.CRASHED),
    ],
)
def test_one_that_was_closed_before_it_was_done_was_killed_or_crashed(ended: dict[str, Any], cause: Cause) -> None:
    end = copy.deepcopy(recording("claude", "success").end)
    end.last["result"].update(is_error=True, terminal_reason="closed", subtype="error_during_execution", **ended)
    assert cause_in(ADAPTER.verdict(make_spec("claude"), end).reason) is cause


def test_a_tool_that_quotes_a_complaint_about_root_is_not_the_cli() -> None:
    tail = ("it said: cannot be used with root",)
    verdict = judged(ADAPTER, "killed", code=1, signal=None, tail=tail)
    assert cause_in(verdict.reason) is Cause.CRASHED
    assert judged(ADAPTER, "root").reason == f"config: {ROOT_HINT}"[: len("config: ") + 300]


@pytest.mark.parametrize("said", ["error: unknown option '--x'", "Claude Code could not start: bubblewrap is required"])
def test_what_it_says_before_its_first_record_is_about_its_options(said: str) -> None:
    assert cause_in(judged(ADAPTER, "root", tail=(said,)).reason) is Cause.CONFIG
    assert cause_in(judged(ADAPTER, "killed", code=1, signal=None, tail=(said,)).reason) is Cause.CRASHED


def test_denied_tools_among_others_are_mentioned() -> None:
    end = copy.deepcopy(recording("claude", "denied").end)
    end.last["result"]["num_turns"] = 5
    verdict = ADAPTER.verdict(make_spec("claude"), end)
    assert verdict.kind is OutcomeKind.DONE
    assert verdict.summary.startswith(
        "[1 tool calls were not allowed: Write; to allow more, set kinds.claude.allowed_tools or permission_mode] "
    )
    shared = ADAPTER.verdict(make_spec("claude", **SHARED), end)
    assert "or have the task work in a worktree (isolation: worktree)" in shared.summary
    assert outcome(shared, end, ()).reason == ""
    unverified = outcome(shared, end, (CheckResult("tests", passed=False),))
    assert unverified.reason.startswith(
        "said done, but verification failed: tests (1 tool calls were not allowed: Write; to allow more, set"
    )


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
FIELDS = sorted(recording("claude", "denied").end.last["result"])


@given(st.dictionaries(st.sampled_from(FIELDS), json_values), st.sampled_from(["success", "denied", "limited", "budget"]))
def test_whatever_stands_in_a_result_there_is_a_verdict(changes: dict[str, Any], name: str) -> None:
    end = recording("claude", name).end
    last = {**end.last, "result": {**end.last["result"], **changes}}
    verdict = ADAPTER.verdict(make_spec("claude"), msgspec.structs.replace(end, last=last))
    assert isinstance(verdict.kind, OutcomeKind)
    ADAPTER.signal(last["result"])


@given(
    st.dictionaries(
        st.sampled_from(["system", "assistant", "result", "rate_limit_event"]), st.dictionaries(st.text(max_size=8), json_values)
    )
)
def test_whatever_the_last_lines_are_there_is_a_verdict(last: dict[str, dict[str, Any]]) -> None:
    for reason_ in ("exit", "timeout", "stopped", "memory", "spawn", "fenced"):
        ADAPTER.verdict(make_spec("claude"), Exit(reason_, 0, None, last=last))


# --- signals ---------------------------------------------------------------------------------------------------------


def test_what_it_does_is_told_in_a_few_words() -> None:
    assert [signal.activity for signal in signals(ADAPTER, "success")] == ["started", "Write hello.txt", "I wrote hello.txt.", "done"]
    assert [signal.activity for signal in signals(ADAPTER, "limited-once")][1] == "rate limited, waits 2 s"
    assert [signal.activity for signal in signals(ADAPTER, "overloaded")][1].startswith("API overloaded, waits")
    assert "not allowed: Write" in [signal.activity for signal in signals(ADAPTER, "denied")]


def test_the_last_signal_has_the_usage() -> None:
    assert signals(ADAPTER, "success")[-1].usage == judged(ADAPTER, "success").usage


def test_a_server_that_did_not_start_is_mentioned() -> None:
    line = {"type": "system", "subtype": "init", "mcp_servers": [{"name": "db", "status": "failed"}]}
    found = ADAPTER.signal(line)
    assert found is not None
    assert found.activity == "started, without MCP server db"


def test_a_sub_agent_is_told_as_one() -> None:
    line = {"type": "assistant", "parent_tool_use_id": "x", "message": {"content": [{"type": "text", "text": "Looking.\nMore."}]}}
    found = ADAPTER.signal(line)
    assert found is not None
    assert found.activity == "sub-agent: Looking."


# --- causes ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cause", Cause)
def test_a_word_is_found_again(cause: Cause) -> None:
    assert cause_in(reason(cause, "some\nmore: words")) is cause
    assert cause_in(reason(cause, "")) is cause


@pytest.mark.parametrize("text", ["", "exit code 3", "authority: none", "said rate-limited: no"])
def test_other_reasons_have_no_cause(text: str) -> None:
    assert cause_in(text) is None


@pytest.mark.parametrize(
    "status,cause",
    [(400, Cause.REQUEST), (401, Cause.AUTH), (402, Cause.QUOTA), (418, Cause.REQUEST), (429, Cause.RATE_LIMITED), (599, Cause.OVERLOADED)],
)
def test_a_status_has_a_cause(status: int, cause: Cause) -> None:
    assert of_status(status) is cause


@pytest.mark.parametrize("status", [None, 200, "429", True])
def test_what_is_no_status_has_none(status: object) -> None:
    assert of_status(status) is None


@pytest.mark.parametrize(
    "message,cause",
    [
        ("You've hit your usage limit. Upgrade to Plus", Cause.QUOTA),
        ('{"error": {"type": "insufficient_quota", "message": "429"}}', Cause.QUOTA),
        ('{"error": {"type": "invalid_request_error", "message": "You quoted: rate limit"}}', Cause.REQUEST),
        ("exceeded retry limit, last status: 429 Too Many Requests", Cause.RATE_LIMITED),
        ("unexpected status 503 Service Unavailable: unavailable", Cause.OVERLOADED),
        ("Reconnecting... waiting for network (Connection failed: error sending request)", Cause.NETWORK),
        ("{not JSON", None),
        ("it is what it is", None),
    ],
)
def test_a_message_has_a_cause(message: str, cause: Cause | None) -> None:
    assert of_message(message) is cause


def test_every_setting_is_in_the_guide() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "agents.md").read_text(encoding="utf-8")
    assert [name for name in SETTINGS if f"`{name}`" not in guide] == []
