"""Kind `rehearsal`: scenarios are checked strictly, and an end is done only if code, result and its error flag agree."""

from __future__ import annotations

import json
import signal as signals
from typing import Any

import pytest

from orchestra.agents.adapter import Context, Exit, Launch, Signal
from orchestra.agents.rehearsal import ADAPTER, CRASHES, STEPS
from orchestra.core.model import OutcomeKind, Payload, TaskSpec, Usage
from orchestra.errors import BadInput
from orchestra.ids import TaskId
from orchestra.stage import rehearsal as cli

GOOD = {"type": "result", "is_error": False, "result": "All written.", "session_id": "s1", "output_files": ["a.py", "../b", 3]}


def make_spec(scenario: Any = None, **more: Any) -> TaskSpec:
    requirements = json.dumps({} if scenario is None else {"scenario": scenario})
    return TaskSpec(
        **{"id": TaskId("p/t"), "description": "Do", "payload": Payload("analysis", "Please."), "requirements": requirements, **more}
    )


def launch(scenario: Any = None, context: Context | None = None, **more: Any) -> Launch:
    return ADAPTER.launch(make_spec(scenario, **more), context or Context(attempt=1, agent=1))


def verdict_of(result: dict[str, Any] | None, code: int | None = 0, **more: Any) -> Any:
    last = {**({"result": result} if result else {}), **more.pop("last", {})}
    return ADAPTER.verdict(make_spec(), Exit(more.pop("reason", "exit"), code=code, last=last, **more))


def test_it_knows_the_steps_the_cli_plays() -> None:
    assert list(STEPS) == list(cli.STEPS)


def test_the_launch() -> None:
    made = launch([{"say": "hi"}])
    assert made.argv[:6] == ("python3", "-I", "-S", "@stage/rehearsal.py", "--scenario", "@attempt/scenario.json")
    assert made.argv[6:8] == ("--prompt", "@attempt/prompt.txt")
    assert json.loads(made.files["scenario.json"]) == {"steps": [{"say": "hi"}]}
    assert made.files["prompt.txt"] == "Please."
    assert (made.view, made.signals, made.stdin) == ("json", ("system", "result"), "pane")
    assert (made.success.codes, made.success.signal_type, made.success.signal_fields) == ((0,), "result", {"is_error": False})
    assert launch(stdin="none").stdin == "null"


def test_the_seed_is_the_attempts_own() -> None:
    assert launch().argv == launch().argv
    assert launch().argv != launch(context=Context(attempt=2, agent=1)).argv


def test_a_session_is_gone_on_with() -> None:
    assert launch(context=Context(attempt=2, agent=1, session="s1")).argv[-2:] == ("--resume", "s1")
    assert "--resume" not in launch(context=Context(attempt=2, agent=1, session="--help")).argv


def test_without_a_scenario_the_declared_files_are_what_it_is_made_from() -> None:
    made = launch(files=("a.py", "b.md"), estimate_ms=9000)
    assert json.loads(made.files["scenario.json"]) == {"task": "Do", "files": ["a.py", "b.md"]}
    assert made.env["REHEARSAL_ESTIMATE_MS"] == "9000"


def test_speed_comes_from_the_task_the_settings_or_the_node() -> None:
    assert launch().env_pass == ("REHEARSAL_SPEED",)
    settings = Context(attempt=1, agent=1, settings={"speed": "4"})
    assert (launch(context=settings).env["REHEARSAL_SPEED"], launch(context=settings).env_pass) == ("4", ())
    assert launch(context=settings, env={"REHEARSAL_SPEED": "8"}).env["REHEARSAL_SPEED"] == "8"


ACCEPTED: list[Any] = [
    {"say": "x"},
    {"write": {"path": "a/b", "text": ""}},
    {"write": {"path": "a", "text": "", "keep": True}},
    {"append": {"path": "a", "text": "x"}},
    {"read": "a"},
    {"return": {"verdict": "approve"}},
    {"run": "echo"},
    {"run": ["echo", "a b"]},
    {"sleep": 0.5},
    {"progress": 1},
    {"progress": {"value": 0.2, "activity": "x"}},
    {"usage": {"input_tokens": 1, "cost_usd": 0.5}},
    {"fail": "x"},
    {"fail": {"message": "x", "attempts": 2}},
    {"exit": 3},
    {"exit": {"code": 0, "result": True}},
    "crash",
    {"crash": "SIGKILL"},
    "hang",
    "ignore_term",
    {"hang": None},
    {"flood": {"lines": 3}},
    {"flood": {"bytes": 3}},
    "binary",
    {"binary": {"bytes": 1}},
    {"long_line": {"bytes": 1}},
    "child",
    {"child": {"seconds": 1, "hold_output": True}},
    {"ask": "x"},
    "lie",
    {"lie": "x"},
    {"tool": {"name": "Grep", "input": {"a": 1}, "result": "x"}},
]


def test_every_step_has_an_accepted_example() -> None:
    assert {next(iter(step)) if isinstance(step, dict) else step for step in ACCEPTED} == set(STEPS)


@pytest.mark.parametrize("step", ACCEPTED, ids=str)
def test_a_right_step_is_taken(step: Any) -> None:
    assert json.loads(launch([step]).files["scenario.json"])["steps"] == [step]


@pytest.mark.parametrize(
    "step",
    [
        {"say": 1},
        "say",
        {"say": "x", "read": "y"},
        {},
        3,
        {"write": {"path": "a"}},
        {"write": {"path": "/a", "text": ""}},
        {"write": {"path": "a/../../b", "text": ""}},
        {"write": {"path": "a", "text": "", "mode": 7}},
        {"read": ""},
        {"run": []},
        {"run": " "},
        {"run": ["a", 1]},
        {"sleep": -1},
        {"sleep": True},
        {"sleep": "1"},
        {"progress": 1.5},
        {"progress": {}},
        {"usage": {"tokens": 1}},
        {"usage": {}},
        {"usage": {"input_tokens": 1.5}},
        {"usage": {"input_tokens": 10**400}},
        {"fail": {"attempts": -1}},
        {"exit": 256},
        {"crash": "SIGSTOP"},
        {"crash": 9},
        {"hang": 1},
        {"flood": {}},
        {"flood": {"lines": 1, "bytes": 1}},
        {"long_line": {"bytes": 2**40}},
        {"child": {"hold_output": "yes"}},
        {"tool": {"input": {}}},
    ],
    ids=lambda step: str(step)[:40],
)
def test_a_wrong_step_is_refused_with_its_place(step: Any) -> None:
    with pytest.raises(BadInput) as caught:
        launch([{"say": "first"}, step])
    assert caught.value.field.startswith("requirements.scenario[1]")


def test_an_unknown_step_is_named_with_the_known_ones() -> None:
    with pytest.raises(BadInput, match="'dance'") as caught:
        launch([{"dance": 1}])
    assert all(known in caught.value.hint for known in STEPS)


@pytest.mark.parametrize(
    "scenario,field",
    [
        ([], "requirements.scenario"),
        ("hang", "requirements.scenario"),
        ({}, "requirements.scenario.steps"),
        ({"steps": [{"say": "x"}], "speed": 2}, "requirements.scenario"),
        ({"steps": [{"say": "x"}], "model": 2}, "requirements.scenario.model"),
        ({"steps": [{"say": "x"}], "usage": {"input_tokens": -1}}, "requirements.scenario.usage.input_tokens"),
    ],
)
def test_a_wrong_scenario_is_refused_with_its_place(scenario: Any, field: str) -> None:
    with pytest.raises(BadInput) as caught:
        launch(scenario)
    assert caught.value.field == field


def test_a_whole_scenario_is_handed_on() -> None:
    scenario = {"steps": ["lie"], "model": "m", "usage": {"input_tokens": 5}}
    assert json.loads(launch(scenario).files["scenario.json"]) == scenario


def test_requirements_that_are_no_json_are_refused() -> None:
    with pytest.raises(BadInput, match="not JSON"):
        launch(requirements="{")


@pytest.mark.parametrize(
    "result,code,kind,reason",
    [
        (GOOD, 0, OutcomeKind.DONE, ""),
        (GOOD, 3, OutcomeKind.FAILED, "said done, but exit code 3"),
        (GOOD, None, OutcomeKind.FAILED, "said done, but exit code None"),
        ({**GOOD, "is_error": True, "result": "no quota"}, 0, OutcomeKind.FAILED, "no quota"),
        ({**GOOD, "is_error": True, "result": "no quota"}, 1, OutcomeKind.FAILED, "no quota"),
        ({"type": "result"}, 0, OutcomeKind.FAILED, "its result says it failed"),
        (None, 0, OutcomeKind.FAILED, "ended without a result: exit code 0"),
        (None, 2, OutcomeKind.FAILED, "ended without a result: exit code 2"),
    ],
)
def test_the_table_of_ends(result: dict[str, Any] | None, code: int | None, kind: OutcomeKind, reason: str) -> None:
    verdict = verdict_of(result, code)
    assert (verdict.kind, verdict.reason) == (kind, reason)


def test_a_signal_after_a_good_result_is_no_success() -> None:
    assert verdict_of(GOOD, None, signal=9).reason == "said done, but ended by SIGKILL"


def test_a_done_verdict_carries_what_the_result_says() -> None:
    verdict = verdict_of({**GOOD, "num_turns": 3, "total_cost_usd": 0.0123, "usage": {"input_tokens": 7, "output_tokens": 8}})
    assert verdict.usage == Usage(requests=3, tokens_input=7, tokens_output=8, cost_usd_micros=12300)
    assert (verdict.session, verdict.summary, verdict.output_files) == ("s1", "All written.", ("a.py",))


def test_what_was_consumed_counts_however_it_ended() -> None:
    last = {"system": {"type": "system", "session_id": "s1", "total_cost_usd": 0.5, "usage": {"input_tokens": 9}}}
    for reason, kind in [("timeout", OutcomeKind.TIMEOUT), ("stopped", OutcomeKind.STOPPED), ("exit", OutcomeKind.FAILED)]:
        verdict = verdict_of(None, None, reason=reason, last=last)
        assert (verdict.kind, verdict.usage.cost_usd_micros, verdict.usage.tokens_input, verdict.session) == (kind, 500_000, 9, "s1")


def test_a_good_result_does_not_undo_what_was_imposed() -> None:
    assert verdict_of(GOOD, 0, reason="timeout").kind is OutcomeKind.TIMEOUT


@pytest.mark.parametrize("figure", [-1, True, "7", 1.5, float("nan"), float("inf"), 10**30, None, [], {}])
def test_what_is_no_figure_counts_as_nothing(figure: Any) -> None:
    cost = figure if figure != 1.5 else "1.5"
    assert verdict_of({**GOOD, "num_turns": figure, "total_cost_usd": cost, "usage": {"input_tokens": figure}}).usage == Usage()


@pytest.mark.parametrize(
    "line,signal",
    [
        ({"type": "system", "subtype": "init", "session_id": "s"}, Signal("started", session="s")),
        ({"type": "system", "subtype": "progress", "progress": 0.5, "activity": "a"}, Signal("a", 0.5, Usage())),
        ({"type": "system", "subtype": "progress", "progress": 7}, Signal("", None, Usage())),
        ({"type": "system", "subtype": "usage", "usage": {"input_tokens": 3}}, Signal(usage=Usage(tokens_input=3))),
        ({"type": "system", "subtype": "question", "question": "Go?"}, Signal("waiting for an answer", waiting_for="Go?")),
        ({"type": "system", "subtype": "question"}, Signal("waiting for an answer", waiting_for="an answer")),
        ({"type": "system", "subtype": "answer"}, Signal("answered")),
        ({"type": "result", "is_error": False}, Signal("done", 1.0, Usage())),
        ({"type": "result", "is_error": True}, Signal("failed", None, Usage())),
        ({"type": "system", "subtype": "other"}, None),
        ({"type": "assistant"}, None),
        ({}, None),
    ],
)
def test_signals(line: dict[str, Any], signal: Signal | None) -> None:
    assert ADAPTER.signal(line) == signal


def test_crashes_are_signals_the_cli_knows() -> None:
    assert all(hasattr(signals, name) for name in CRASHES)
