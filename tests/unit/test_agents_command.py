"""Kind `command`: any CLI by a few lines of configuration."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.agents.adapter import Context, Exit, Launch
from orchestra.agents.causes import Cause
from orchestra.agents.command import ADAPTER, ARGUMENT_BYTES_MAX, Command, made
from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.errors import BadInput
from tests.unit.recorded import cause_in, make_spec, recording

SECTION = {
    "command": "mytool --quiet --file {prompt_file}",
    "resume": "--continue {session}",
    "env": "MYTOOL_HOME=@agent/mytool, CI=1",
    "env_pass": "MYTOOL_KEY",
    "success": "end:ok=true",
    "refused_codes": "3",
    "session": "end:session.id",
    "summary": "end:text",
    "error": "end:error.message",
    "activity": "step:what",
    "tokens_input": "end:usage.in",
    "cost_usd": "end:usage.cost",
    "memory_mb": "100",
}
TOOL = Command("mytool", SECTION)
GOOD = {"type": "end", "ok": True, "text": "Fine.", "session": {"id": "s1"}, "usage": {"in": 12, "cost": 0.5}}


def launch(values: dict[str, str], spec: TaskSpec | None = None, session: str = "") -> Launch:
    return Command("mytool", values).launch(spec or make_spec("mytool"), Context(1, 7, session))


def end(code: int | None = 0, last: dict[str, Any] | None = None, **more: Any) -> Exit:
    return Exit(**{"reason": "exit", "code": code, "last": {"end": GOOD} if last is None else last, **more})


def judge(ending: Exit) -> Any:
    return TOOL.verdict(make_spec("mytool"), ending)


def test_the_template_gets_the_prompts_file() -> None:
    made_ = launch(SECTION, make_spec("mytool", "$(id) --force"))
    assert made_.argv == ("mytool", "--quiet", "--file", "@attempt/prompt.txt")
    assert "$(id) --force" in made_.files["prompt.txt"]
    assert (made_.env, made_.env_pass) == ({"MYTOOL_HOME": "@agent/mytool", "CI": "1"}, ("MYTOOL_KEY",))
    assert (made_.signals, made_.success.signal_type, made_.success.signal_fields) == (("end", "step"), "end", {"ok": True})
    assert (TOOL.programs, TOOL.memory_bytes) == (("mytool",), 100 << 20)


def test_the_prompt_as_an_argument_stays_one_argument() -> None:
    made_ = launch({"command": "mytool {prompt}"}, make_spec("mytool", "a b; $(id)"))
    assert made_.argv == ("mytool", "A task\n\na b; $(id)\n")


def test_a_prompt_too_long_for_an_argument_is_refused() -> None:
    with pytest.raises(BadInput, match="too long"):
        launch({"command": "mytool {prompt}"}, make_spec("mytool", "x" * ARGUMENT_BYTES_MAX))


def test_a_session_is_gone_on_with() -> None:
    assert launch(SECTION, session="s1").argv[-2:] == ("--continue", "s1")
    with pytest.raises(BadInput):
        launch(SECTION, session="-x")


@pytest.mark.parametrize(
    "changes,field",
    [
        ({"command": ""}, "command"),
        ({"command": "mytool 'open"}, "command"),
        ({"command": "mytool --file={prompt_file}"}, "command"),
        ({"success_codes": "good"}, "success_codes"),
        ({"success": ":ok=true"}, "success"),
        ({"session": "no-colon"}, "session"),
        ({"stdin": "keyboard"}, "stdin"),
        ({"env": "JUST_A_NAME"}, "env"),
        ({"memory_mb": "much"}, "memory_mb"),
        ({"sumary": "x:y"}, "sumary"),
    ],
)
def test_a_section_that_cannot_be_is_refused_by_its_field(changes: dict[str, str], field: str) -> None:
    with pytest.raises(BadInput) as caught:
        Command("mytool", {**SECTION, **changes})
    assert caught.value.field == f"kinds.mytool.{field}"


def test_a_good_end_is_done_with_what_stands_at_the_places() -> None:
    verdict = judge(end())
    assert (verdict.kind, verdict.summary, verdict.session) == (OutcomeKind.DONE, "Fine.", "s1")
    assert verdict.usage == Usage(tokens_input=12, cost_usd_micros=500_000)


@pytest.mark.parametrize(
    "ending,said",
    [
        (end(1), "exit code 1"),
        (end(last={}), "exit code 0, but without a line of type 'end'"),
        (end(last={"end": {"ok": False}}), "exit code 0, but ok is not True in it"),
        (end(last={"end": {**GOOD, "error": {"message": "no\nluck"}}}), "no luck"),
    ],
)
def test_other_ends_are_failures_and_say_why(ending: Exit, said: str) -> None:
    verdict = judge(ending)
    assert (verdict.kind, verdict.reason) == (OutcomeKind.FAILED, said)


def test_codes_that_no_retry_mends_are_refused() -> None:
    verdict = judge(end(3))
    assert (verdict.kind, cause_in(verdict.reason)) == (OutcomeKind.REFUSED, Cause.CONFIG)


def test_a_kill_and_what_was_imposed() -> None:
    assert cause_in(judge(end(None, signal=9)).reason) is Cause.KILLED
    verdict = judge(end(reason="timeout"))
    assert (verdict.kind, verdict.session) == (OutcomeKind.TIMEOUT, "s1")


def test_figures_that_are_none_count_as_0() -> None:
    assert judge(end(last={"end": {**GOOD, "usage": {"in": "many", "cost": -1}}})).usage == Usage()
    assert judge(end(last={"end": {**GOOD, "usage": 7}})).usage == Usage()


def test_signals_have_what_stands_at_the_places() -> None:
    step = TOOL.signal({"type": "step", "what": "looks\naround"})
    assert step is not None
    assert (step.activity, step.usage) == ("looks around", None)
    last = TOOL.signal(GOOD)
    assert last is not None
    assert (last.session, last.usage) == ("s1", Usage(tokens_input=12, cost_usd_micros=500_000))
    assert TOOL.signal({"type": "other"}) is None


def test_without_places_the_last_lines_are_the_summary() -> None:
    plain = Command("plain", {"command": "plain {prompt_file}"})
    verdict = plain.verdict(make_spec("plain"), Exit("exit", 0, tail=("one", "", "two")))
    assert (verdict.kind, verdict.summary) == (OutcomeKind.DONE, "one\ntwo")


def test_a_task_may_bring_its_own() -> None:
    spec = make_spec("command", requirements='{"cli": {"command": "mytool {prompt_file}", "success_codes": "0, 4"}}')
    assert ADAPTER.launch(spec, Context(1, 7)).argv == ("mytool", "@attempt/prompt.txt")
    assert ADAPTER.verdict(spec, Exit("exit", 4)).kind is OutcomeKind.DONE
    assert ADAPTER.signal({"type": "end"}) is None


@pytest.mark.parametrize("requirements", ["{}", '{"cli": "mytool"}', '{"cli": {"command": 7}}', "no JSON"])
def test_a_task_that_brings_none_is_refused(requirements: str) -> None:
    spec = make_spec("command", requirements=requirements)
    with pytest.raises(BadInput) as caught:
        ADAPTER.launch(spec, Context(1, 7))
    assert caught.value.field.startswith("requirements")
    assert ADAPTER.verdict(spec, Exit("exit", 0)).kind is OutcomeKind.REFUSED


def test_sections_with_a_command_become_kinds() -> None:
    kinds = made({"mytool": SECTION, "claude": {"model": "opus"}})
    assert list(kinds) == ["mytool"]
    assert kinds["mytool"].kind == "mytool"


def test_codex_by_configuration_judges_as_its_adapter_does() -> None:
    """The example of the guide."""
    codex = Command(
        "codex-by-lines",
        {
            "command": "codex exec --json --skip-git-repo-check",
            "stdin": "prompt",
            "success": "turn.completed",
            "session": "thread.started:thread_id",
            "summary": "item.completed:item.text",
            "error": "turn.failed:error.message",
            "tokens_input": "turn.completed:usage.input_tokens",
            "tokens_output": "turn.completed:usage.output_tokens",
        },
    )
    good = codex.verdict(make_spec("codex-by-lines"), recording("codex", "success").end)
    assert (good.kind, good.summary, good.usage) == (OutcomeKind.DONE, "I wrote hello.txt.", Usage(0, 2000, 1000))
    bad = codex.verdict(make_spec("codex-by-lines"), recording("codex", "no-quota").end)
    assert (bad.kind, bad.reason) == (OutcomeKind.FAILED, "Quota exceeded. Check your plan and billing details.")
