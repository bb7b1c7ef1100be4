"""Kinds `opencode`, `gemini`, `aider` and `mini-swe-agent`: which process a task becomes, and what recorded runs of the real CLIs mean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestra.agents.adapter import AGENT_DIR, Adapter, Context, Exit
from orchestra.agents.aider import ADAPTER as AIDER
from orchestra.agents.causes import Cause
from orchestra.agents.command import ARGUMENT_BYTES_MAX
from orchestra.agents.gemini import ADAPTER as GEMINI
from orchestra.agents.mini import ADAPTER as MINI
from orchestra.agents.opencode import ADAPTER as OPENCODE
from orchestra.agents.registry import adapters
from orchestra.core.model import OutcomeKind, Usage
from orchestra.errors import BadInput
from tests.unit.recorded import cause_in, judged, make_spec, recording, signals

ALL: list[Adapter] = [OPENCODE, GEMINI, AIDER, MINI]


def context(**settings: str) -> Context:
    return Context(1, 7, settings=settings)


def each(adapter: Adapter) -> str:
    return adapter.kind


def test_all_are_installed() -> None:
    assert {"claude", "codex", "command", *(adapter.kind for adapter in ALL)} <= set(adapters())
    assert all(adapters()[adapter.kind] is adapter for adapter in ALL)


@pytest.mark.parametrize("adapter", ALL, ids=each)
def test_a_file_that_was_written_is_done(adapter: Adapter) -> None:
    verdict = judged(adapter, "success")
    assert (verdict.kind, verdict.reason) == (OutcomeKind.DONE, "")
    assert verdict.summary


@pytest.mark.parametrize("adapter", ALL, ids=each)
def test_a_refused_key_is_told_as_that(adapter: Adapter) -> None:
    """Aider exits with 0 all the same."""
    verdict = judged(adapter, "bad-key")
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.REFUSED, Cause.AUTH), verdict.reason


@pytest.mark.parametrize("adapter", ALL, ids=each)
@pytest.mark.parametrize("changes", [{"code": 1}, {"code": None, "signal": 9}])
def test_a_bad_exit_is_no_success(adapter: Adapter, changes: dict[str, Any]) -> None:
    assert judged(adapter, "success", **changes).kind is OutcomeKind.FAILED


@pytest.mark.parametrize("adapter", [OPENCODE, GEMINI, AIDER], ids=each)
def test_exit_code_0_alone_is_no_success(adapter: Adapter) -> None:
    assert adapter.verdict(make_spec(adapter.kind), Exit("exit", 0)).kind is OutcomeKind.FAILED


@pytest.mark.parametrize("adapter", ALL, ids=each)
def test_what_was_imposed_is_told_as_that(adapter: Adapter) -> None:
    assert judged(adapter, "success", reason="timeout").kind is OutcomeKind.TIMEOUT
    assert judged(adapter, "success", reason="stopped").kind is OutcomeKind.STOPPED


@pytest.mark.parametrize("adapter", ALL, ids=each)
def test_what_it_keeps_is_in_the_agents_folder(adapter: Adapter) -> None:
    made = adapter.launch(make_spec(adapter.kind), context(model="m"))
    assert any(value.startswith(AGENT_DIR) for value in made.env.values())
    assert not any("KEY" in name for name in made.env)


@pytest.mark.parametrize("adapter", ALL, ids=each)
def test_no_option_comes_in_by_a_value(adapter: Adapter) -> None:
    with pytest.raises(BadInput):
        adapter.launch(make_spec(adapter.kind, requirements='{"model": "--x"}'), context())
    with pytest.raises(BadInput):
        adapter.launch(make_spec(adapter.kind), context(modle="x"))


@pytest.mark.parametrize("adapter", [OPENCODE, GEMINI], ids=each)
def test_whatever_the_last_lines_are_there_is_a_verdict(adapter: Adapter) -> None:
    types = [*recording(adapter.kind, "success").end.last, "error"]
    odds: list[Any] = [None, 7, "text", [], {}, {"part": 3, "error": "x", "stats": []}]
    for odd in odds:
        line: dict[str, Any] = {"type": "x", "part": odd, "error": odd, "stats": odd, "status": odd, "content": odd, "session_id": odd}
        adapter.verdict(make_spec(adapter.kind), Exit("exit", 0, last=dict.fromkeys(types, line)))
        for kind in types:
            adapter.signal({**line, "type": kind})


def test_opencode_names_its_provider_and_takes_the_key_from_the_environment() -> None:
    made = OPENCODE.launch(make_spec("opencode"), context(model="big", base_url="http://127.0.0.1:1/v1", api_key_variable="MY_KEY"))
    config = msgspec.json.decode(made.agent_files["opencode/config/opencode/opencode.json"])
    assert made.argv == ("opencode", "run", "--format", "json", "-m", "orchestra/big")
    assert config["provider"]["orchestra"]["options"] == {"baseURL": "http://127.0.0.1:1/v1", "apiKey": "{env:MY_KEY}"}
    assert "MY_KEY" in made.env_pass
    assert made.stdin == "prompt"


def test_opencode_tells_what_it_does() -> None:
    told = [signal.activity for signal in signals(OPENCODE, "success") if signal.activity]
    assert told[0].startswith("write ")
    assert told[-1] == "I wrote hello.txt."
    assert judged(OPENCODE, "success").usage == Usage(1, 1000, 500)


def test_opencode_that_ends_after_a_tool_call_is_not_done() -> None:
    last = recording("opencode", "success").end.last
    step = {**last["step_finish"], "part": {**last["step_finish"]["part"], "reason": "tool-calls"}}
    assert judged(OPENCODE, "success", last={**last, "step_finish": step}).kind is OutcomeKind.FAILED


def test_gemini_tells_what_it_does() -> None:
    assert [signal.activity for signal in signals(GEMINI, "success")] == ["started", "write_file", "I wrote hello.txt.", "done"]
    made = GEMINI.launch(make_spec("gemini"), context(base_url="http://127.0.0.1:1", approval_mode="auto_edit"))
    assert made.env["GOOGLE_GEMINI_BASE_URL"] == "http://127.0.0.1:1"
    assert made.argv[-2:] == ("--approval-mode", "auto_edit")


@pytest.mark.parametrize("where,mode", [({}, "yolo"), ({"workspace": "/r"}, "auto_edit"), ({"workspace": "/r", "isolated": True}, "yolo")])
def test_gemini_may_do_everything_only_where_it_works_apart(where: dict[str, Any], mode: str) -> None:
    assert GEMINI.launch(make_spec("gemini", **where), context()).argv[-1] == mode


def test_aider_edits_the_tasks_files_and_touches_no_git() -> None:
    made = AIDER.launch(make_spec("aider", files=("a.py", "docs/")), context(model="m"))
    assert made.argv[-1] == "a.py"
    assert "--no-git" in made.argv
    assert "--no-auto-commits" in made.argv
    assert "--no-git" not in AIDER.launch(make_spec("aider"), context(git="true")).argv
    with pytest.raises(BadInput):
        AIDER.launch(make_spec("aider", files=("--yes",)), context())


@pytest.mark.parametrize(
    "line,usage",
    [
        ("Tokens: 670 sent, 10 received.", Usage(1, 670, 10)),
        (
            "Tokens: 2.3k sent, 1.1k cache hit, 120 received. Cost: $0.01 message, $0.02 session.",
            Usage(1, 2300, 120, cost_usd_micros=10_000),
        ),
    ],
)
def test_aider_counts_its_tokens(line: str, usage: Usage) -> None:
    assert AIDER.verdict(make_spec("aider"), Exit("exit", 0, tail=("Here.", line, "Applied edit to a.py"))).usage == usage


def test_an_error_that_is_quoted_is_none() -> None:
    tail = ("The log says litellm.AuthenticationError: no", "Tokens: 670 sent, 10 received.")
    assert AIDER.verdict(make_spec("aider"), Exit("exit", 0, tail=tail)).kind is OutcomeKind.DONE


def test_mini_gets_its_task_as_one_argument_with_a_limit_of_cost() -> None:
    made = MINI.launch(make_spec("mini-swe-agent", "-x $(id)", cost_usd_micros_max=1_500_000), context(model="m"))
    assert "--task=A task\n\n-x $(id)\n" in made.argv
    assert made.argv[made.argv.index("--cost-limit") + 1] == "1.500000"
    with pytest.raises(BadInput):
        MINI.launch(make_spec("mini-swe-agent", "x" * ARGUMENT_BYTES_MAX), context())
    with pytest.raises(BadInput):
        MINI.launch(make_spec("mini-swe-agent", cost_usd_micros_max=5), Context(2, 7, cost_so_far_usd_micros=5))
