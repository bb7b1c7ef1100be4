"""Kind `codex`: which process a task becomes, and what recorded runs of the real CLI mean."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, Context, Exit, Launch
from orchestra.agents.causes import FINAL, Cause
from orchestra.agents.codex import ADAPTER, SETTINGS
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from tests.unit.recorded import cause_in, judged, make_spec, recording, signals


def launch(spec: TaskSpec | None = None, *, settings: dict[str, str] | None = None, **more: Any) -> Launch:
    return ADAPTER.launch(spec or make_spec("codex"), Context(**{"attempt": 1, "agent": 7, "settings": settings or {}, **more}))


def config(**settings: str) -> dict[str, Any]:
    return tomllib.loads(launch(settings=settings).agent_files["codex/config.toml"])


# --- launch ----------------------------------------------------------------------------------------------------------


def test_the_prompt_is_a_file_and_not_an_argument() -> None:
    made = launch(make_spec("codex", "--yes $(id)"))
    assert (made.stdin, made.env["CODEX_HOME"]) == ("prompt", f"{AGENT_DIR}codex")
    assert "--yes $(id)" in made.files["prompt.txt"]
    assert made.argv == (
        *("codex", "exec", "--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox"),
        *("-o", f"{ATTEMPT_DIR}last.txt"),
    )


def test_it_calls_nobody_and_leaves_no_daemon() -> None:
    made = config()
    assert made["check_for_update_on_startup"] is False
    assert made["features"] == {"plugins": False, "daemon_auto_start": False, "shell_snapshot": False}
    assert made["shell_environment_policy"] == {
        "exclude": ["OPENAI_API_KEY", "CODEX_API_KEY", "CODEX_ACCESS_TOKEN", "ORCHESTRA_GATEWAY_TOKEN"]
    }
    assert made["analytics"] == {"enabled": False}
    assert "model_provider" not in made


def test_an_address_makes_a_provider_whose_key_is_a_variable() -> None:
    url = 'http://127.0.0.1:1/"v1\\'
    made = config(base_url=url, api_key_variable="MY_KEY", request_max_retries="2")
    provider = made["model_providers"][made["model_provider"]]
    assert (provider["base_url"], provider["env_key"], provider["request_max_retries"]) == (url, "MY_KEY", 2)
    assert "MY_KEY" in launch(settings={"base_url": url, "api_key_variable": "MY_KEY"}).env_pass
    assert provider["wire_api"] == "responses"


def test_a_sandbox_takes_the_place_of_the_bypass() -> None:
    made = launch(settings={"sandbox": "workspace-write"})
    assert "--dangerously-bypass-approvals-and-sandbox" not in made.argv
    assert 'sandbox_mode="workspace-write"' in made.argv
    assert 'approval_policy="never"' in made.argv


def test_in_a_shared_folder_it_is_confined_to_that_by_its_own_sandbox_or_by_ours() -> None:
    spec = make_spec("codex", workspace="/home/me/repo")
    made = launch(spec)
    assert 'sandbox_mode="workspace-write"' in made.argv
    assert "--dangerously-bypass-approvals-and-sandbox" in made.sandbox_argv
    for apart in (make_spec("codex"), make_spec("codex", workspace="/home/me/repo", isolated=True)):
        assert "--dangerously-bypass-approvals-and-sandbox" in launch(apart).argv
        assert launch(apart).sandbox_argv == ()
    for chosen in ("bypass", "workspace-write"):
        assert launch(spec, settings={"sandbox": chosen}).sandbox_argv == (), "what the settings say holds everywhere"


@pytest.mark.parametrize("workspace,policy", [("", "never"), ("/home/me/repo", "on-request")])
def test_where_somebody_can_answer_it_asks_for_more_than_the_shared_folder(workspace: str, policy: str) -> None:
    made = launch(make_spec("codex", workspace=workspace), settings={"mode": "interactive"})
    thread = json.loads(made.argv[-3])
    assert thread["approvalPolicy"] == policy
    assert launch(make_spec("codex", workspace=workspace), settings={"mode": "mcp"}).argv


def test_a_session_is_gone_on_with() -> None:
    assert launch(session="01a1fd3e").argv[-2:] == ("resume", "01a1fd3e")
    with pytest.raises(BadInput):
        launch(session="--last")


def test_a_task_may_name_its_model() -> None:
    made = launch(make_spec("codex", requirements='{"model": "gpt-5.5"}'), settings={"model": "other"})
    assert made.argv[made.argv.index("-m") + 1] == "gpt-5.5"


@pytest.mark.parametrize(
    "settings,field",
    [({"sandbox": "none"}, "sandbox"), ({"modle": "x"}, "modle"), ({"base_url": "x", "stream_max_retries": "x"}, "stream_max_retries")],
)
def test_a_setting_that_cannot_be_is_refused_by_its_name(settings: dict[str, str], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(settings=settings)
    assert caught.value.field == f"kinds.codex.{field}"


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0")))
def test_whatever_the_address_the_configuration_is_toml(url: str) -> None:
    made = config(base_url=f"x{url}x")
    assert made["model_providers"]["orchestra"]["base_url"] == f"x{url}x"


# --- verdict ---------------------------------------------------------------------------------------------------------

CAUSES = {
    "bad-request": Cause.REQUEST,
    "bad-key": Cause.AUTH,
    "no-key": Cause.AUTH,
    "limited": Cause.RATE_LIMITED,
    "no-quota": Cause.QUOTA,
    "unavailable": Cause.OVERLOADED,
    "cut": Cause.NETWORK,
    "no-session": Cause.SESSION,
    "bad-option": Cause.CONFIG,
    "killed": Cause.KILLED,
    "terminated": Cause.KILLED,
    "interrupted": Cause.KILLED,
}


@pytest.mark.parametrize("name,cause", CAUSES.items())
def test_every_bad_end_has_its_word(name: str, cause: Cause) -> None:
    verdict = judged(ADAPTER, name)
    assert cause_in(verdict.reason) is cause, verdict.reason
    assert verdict.kind is (OutcomeKind.REFUSED if cause in FINAL else OutcomeKind.FAILED)


@pytest.mark.parametrize("name", ["success", "say", "resumed", "limited-once"])
def test_a_good_end_is_done(name: str) -> None:
    verdict = judged(ADAPTER, name)
    assert (verdict.kind, verdict.reason) == (OutcomeKind.DONE, "")
    assert verdict.session
    assert verdict.summary


@pytest.mark.parametrize("changes", [{"code": 1}, {"code": None, "signal": 15}])
def test_a_completed_turn_alone_is_not_enough(changes: dict[str, Any]) -> None:
    assert judged(ADAPTER, "say", **changes).kind is OutcomeKind.FAILED


def test_exit_code_0_alone_is_not_enough() -> None:
    last = {name: line for name, line in recording("codex", "say").end.last.items() if name != "turn.completed"}
    assert judged(ADAPTER, "say", last=last).kind is OutcomeKind.FAILED
    assert judged(ADAPTER, "bad-request", code=0).kind is OutcomeKind.FAILED


@pytest.mark.parametrize("name,cause", [("limited-long", Cause.RATE_LIMITED), ("unreachable", Cause.NETWORK)])
def test_a_time_limit_says_what_it_waited_for_only_if_that_came_last(name: str, cause: Cause) -> None:
    verdict = judged(ADAPTER, name)
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.TIMEOUT, cause)
    later = (*recording("codex", name).end.tail, "something later")
    assert cause_in(judged(ADAPTER, name, tail=later).reason) is None


def test_a_complaint_after_its_records_is_a_crash_and_no_interruption() -> None:
    tail = (*recording("codex", "interrupted").end.tail, "Error: could not write last.txt")
    assert cause_in(judged(ADAPTER, "interrupted", tail=tail).reason) is Cause.CRASHED


@pytest.mark.parametrize(
    "ended,cause",
    [
        ({"exit_code": None, "exit_signal": 9}, Cause.KILLED),
        ({"exit_code": 0, "exit_signal": None}, Cause.KILLED),
        ({"exit_code": 101, "exit_signal": None}, Cause.CRASHED),
    ],
)
def test_a_server_that_went_was_killed_or_crashed(ended: dict[str, Any], cause: Cause) -> None:
    line = {"type": "turn.failed", "error": {"message": "codex app-server ended (connection lost)"}, **ended}
    verdict = judged(ADAPTER, "say", code=1, last={"turn.failed": line})
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.FAILED, cause)


def test_a_stop_keeps_the_session() -> None:
    verdict = judged(ADAPTER, "stopped")
    assert (verdict.kind, bool(verdict.session)) == (OutcomeKind.STOPPED, True)


def test_the_usage_is_the_sessions_and_says_so() -> None:
    assert judged(ADAPTER, "say").usage == Usage(0, 1000, 500)
    assert judged(ADAPTER, "resumed").usage == Usage(0, 2000, 1000)
    assert judged(ADAPTER, "resumed").usage_of_session


def test_cached_input_is_counted_apart() -> None:
    line = {"type": "turn.completed", "usage": {"input_tokens": 100, "cached_input_tokens": 90, "output_tokens": 1}}
    found = ADAPTER.signal(line)
    assert found is not None
    assert found.usage == Usage(0, 10, 1, 90)


def test_an_error_of_the_api_is_told_without_its_json() -> None:
    assert judged(ADAPTER, "bad-request").reason == "request: messages: made up to be malformed"


def test_a_warning_is_no_failure() -> None:
    """An item of type error is what the CLI says about a model it does not know."""
    last = {**recording("codex", "say").end.last, "item.completed": {"type": "item.completed", "item": {"type": "error", "message": "x"}}}
    assert judged(ADAPTER, "say", last=last).kind is OutcomeKind.DONE


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["item", "type", "message", "usage", "error"]), inner),
    max_leaves=6,
)


@given(
    st.dictionaries(
        st.sampled_from(["thread.started", "item.completed", "error", "turn.completed", "turn.failed"]),
        st.dictionaries(st.sampled_from(["item", "message", "error", "usage", "thread_id"]), json_values),
    )
)
def test_whatever_the_last_lines_are_there_is_a_verdict(last: dict[str, dict[str, Any]]) -> None:
    for reason in ("exit", "timeout", "stopped", "memory", "spawn", "fenced"):
        ADAPTER.verdict(make_spec("codex"), Exit(reason, 0, None, last=last))
    for kind, line in last.items():
        ADAPTER.signal({**line, "type": kind})


# --- signals ---------------------------------------------------------------------------------------------------------


def test_what_it_does_is_told_in_a_few_words() -> None:
    told = [signal.activity for signal in signals(ADAPTER, "success")]
    assert told == ["started", "$ 'echo hello > hello.txt'", "$ 'echo hello > hello.txt'", "I wrote hello.txt.", "done"]
    assert [signal.activity for signal in signals(ADAPTER, "cut")][1].startswith("API: Reconnecting... 1/1")


def test_changed_files_are_named() -> None:
    found = ADAPTER.signal({"type": "item.completed", "item": {"type": "file_change", "changes": [{"path": "a.py"}, {"path": "b.py"}]}})
    assert found is not None
    assert found.activity == "changed a.py, b.py"


def test_every_setting_is_in_the_guide() -> None:
    guide = (Path(__file__).resolve().parents[2] / "docs" / "guides" / "agents.md").read_text(encoding="utf-8")
    assert [name for name in SETTINGS if f"`{name}`" not in guide] == []
