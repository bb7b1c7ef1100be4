"""Kind `shell`: which process a payload becomes, and what its end means."""

from __future__ import annotations

import pytest

from orchestra.agents.adapter import Context, Exit, Launch
from orchestra.agents.ending import SUMMARY_CHARACTERS_MAX
from orchestra.agents.shell import ADAPTER, LANGUAGES, VARIABLE_BYTES_MAX
from orchestra.core.model import OutcomeKind, Payload, TaskSpec
from orchestra.errors import BadInput
from orchestra.ids import TaskId

CONTEXT = Context(attempt=1, agent=1)


def make_spec(type_: str = "command", content: str = "echo hi", language: str = "", **more: object) -> TaskSpec:
    return TaskSpec(id=TaskId("t"), description="Say hi", payload=Payload(type_, content, language), **more)  # type: ignore[arg-type]


def launch(spec: TaskSpec) -> Launch:
    return ADAPTER.launch(spec, CONTEXT)


@pytest.mark.parametrize("type_", ["command", "analysis"])
def test_a_script_travels_as_a_file(type_: str) -> None:
    made = launch(make_spec(type_, "echo '$(rm -rf /)'; `x`"))
    assert made.argv == ("/bin/sh", "@attempt/command.sh")
    assert made.files == {"command.sh": "echo '$(rm -rf /)'; `x`"}
    assert (made.view, made.signals, made.success.codes) == ("lines", (), (0,))


@pytest.mark.parametrize(
    "language,program",
    [
        ("python", "python3"),
        ("sh", "/bin/sh"),
        ("bash", "bash"),
        ("javascript", "node"),
        ("node", "node"),
        ("ruby", "ruby"),
        ("Perl", "perl"),
    ],
)
def test_code_goes_to_its_interpreter(language: str, program: str) -> None:
    made = launch(make_spec("code", "1", language))
    assert made.argv[0] == program
    name = made.argv[1].removeprefix("@attempt/")
    assert made.files == {name: "1"}


@pytest.mark.parametrize("language", ["cobol", "", "python; rm"])
def test_an_unknown_language_is_refused_and_the_known_ones_named(language: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(make_spec("code", "1", language))
    assert caught.value.field == "payload.language"
    assert all(known in caught.value.hint for known in LANGUAGES)


def test_an_unknown_payload_type_is_refused() -> None:
    with pytest.raises(BadInput, match="poem") as caught:
        launch(make_spec("poem"))
    assert caught.value.field == "payload.type"


def test_an_empty_payload_is_refused() -> None:
    with pytest.raises(BadInput, match="nothing to run"):
        launch(make_spec(content=" \n"))


def test_description_and_requirements_are_in_the_environment() -> None:
    made = launch(make_spec(env={"A": "1", "ORCHESTRA_DESCRIPTION": "mine"}, requirements='{"a": 1}'))
    assert made.env == {"A": "1", "ORCHESTRA_DESCRIPTION": "Say hi", "ORCHESTRA_REQUIREMENTS": '{"a": 1}'}


@pytest.mark.parametrize("requirements", ['{"a": "\0"}', '"' + "é" * (VARIABLE_BYTES_MAX // 2) + '"'])
def test_what_no_environment_can_hold_is_refused(requirements: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(make_spec(requirements=requirements))
    assert caught.value.field == "requirements"


@pytest.mark.parametrize("asked,given", [("", "pane"), ("pane", "pane"), ("none", "null")])
def test_a_person_may_type_unless_the_task_says_none(asked: str, given: str) -> None:
    assert launch(make_spec(stdin=asked)).stdin == given


def test_zero_is_done_with_the_last_lines_as_summary() -> None:
    end = Exit("exit", code=0, tail=tuple(f"line {n}" for n in range(20)) + ("", "  "))
    assert ADAPTER.verdict(make_spec(), end).kind is OutcomeKind.DONE
    assert ADAPTER.verdict(make_spec(), end).summary.splitlines() == [f"line {n}" for n in range(15, 20)]


def test_all_that_was_kept_answers_an_analysis() -> None:
    end = Exit("exit", code=0, tail=tuple(f"line {n}" for n in range(20)))
    assert len(ADAPTER.verdict(make_spec("analysis"), end).summary.splitlines()) == 20


def test_a_summary_is_bounded() -> None:
    end = Exit("exit", code=0, tail=("x" * 500,) * 20)
    assert len(ADAPTER.verdict(make_spec("analysis"), end).summary) == SUMMARY_CHARACTERS_MAX


@pytest.mark.parametrize(
    "spec,code,kind",
    [
        (make_spec(), 127, OutcomeKind.REFUSED),
        (make_spec(), 126, OutcomeKind.REFUSED),
        (make_spec("analysis"), 127, OutcomeKind.REFUSED),
        (make_spec("code", "x", "bash"), 127, OutcomeKind.REFUSED),
        (make_spec("code", "x", "python"), 127, OutcomeKind.FAILED),
        (make_spec("code", "x", "gone"), 127, OutcomeKind.FAILED),
        (make_spec(), 1, OutcomeKind.FAILED),
        (make_spec(), None, OutcomeKind.FAILED),
    ],
)
def test_the_code_decides(spec: TaskSpec, code: int | None, kind: OutcomeKind) -> None:
    assert ADAPTER.verdict(spec, Exit("exit", code=code)).kind is kind


def test_a_missing_command_is_said() -> None:
    verdict = ADAPTER.verdict(make_spec(), Exit("exit", code=127, tail=("sh: 1: frobnicate: not found",)))
    assert verdict.reason == "command not found (exit code 127): sh: 1: frobnicate: not found"


def test_a_failure_is_said_in_words() -> None:
    assert ADAPTER.verdict(make_spec(), Exit("exit", code=3, tail=("no such table",))).reason == "exit code 3: no such table"
    assert ADAPTER.verdict(make_spec(), Exit("exit", signal=9)).reason == "ended by SIGKILL"


@pytest.mark.parametrize(
    "reason,kind",
    [
        ("timeout", OutcomeKind.TIMEOUT),
        ("memory", OutcomeKind.MEMORY),
        ("stopped", OutcomeKind.STOPPED),
        ("spawn", OutcomeKind.REFUSED),
    ],
)
def test_what_was_imposed_goes_before_the_code(reason: str, kind: OutcomeKind) -> None:
    assert ADAPTER.verdict(make_spec(), Exit(reason, code=0)).kind is kind


def test_a_plain_command_reports_nothing_while_it_runs() -> None:
    assert ADAPTER.signal({"type": "system"}) is None
