"""Requests of a parent: the published fields, what a task becomes, and how what does not fit is told."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.model import Payload, Priority, Strategy, TaskSpec
from orchestra.errors import BadInput
from orchestra.ids import TaskId
from orchestra.intake import request as r

PUBLISHED: dict[str, Any] = {
    "task_id": "TASK-a3f2c5d8-1234-5678-9abc-def012345678",
    "submitted_at": "2025-11-12T12:00:00Z",
    "submitted_by": "PARENT-ORCHESTRATOR-001",
    "category": "coding",
    "priority": "high",
    "description": "Implement user authentication module",
    "target_agents": {"strategy": "round-robin", "count": 2},
    "requirements": {"language": "rust", "framework": "axum", "target_path": "crates/miyabi-auth/", "tests_required": True},
    "constraints": {"max_execution_time_seconds": 3600, "max_cost_dollars": 5.0},
    "success_criteria": ["All tests pass", "Code coverage > 80%", "Linter passes"],
}
EVERY = [
    r.InitParams,
    r.SubmitTaskParams,
    r.SubmitBatchParams,
    r.StatusParams,
    r.ScaleParams,
    r.ShutdownParams,
    r.CancelParams,
    r.EstimateCostParams,
]


def spec(**fields: Any) -> TaskSpec:
    params = r.parse_params(r.SubmitTaskParams, fields)
    return r.to_spec(params, task_id=TaskId("T"), default_kind="claude", directory="/w")


def refusal(record: type[Any], raw: object) -> BadInput:
    with pytest.raises(BadInput) as caught:
        r.parse_params(record, raw)
    return caught.value


def test_the_published_task() -> None:
    made = spec(**PUBLISHED)
    assert (made.id, made.kind, made.workspace, made.submitted_by) == ("T", "claude", "/w", "PARENT-ORCHESTRATOR-001")
    assert (made.priority, made.strategy, made.replicas) == (Priority.HIGH, Strategy.ROUND_ROBIN, 2)
    assert (made.timeout_ms, made.cost_usd_micros_max, len(made.checks)) == (3_600_000, 5_000_000, 3)
    assert made.payload == Payload("analysis", "Implement user authentication module")
    assert json.loads(made.requirements)["framework"] == "axum"


def test_the_published_usage_example() -> None:
    made = spec(category="coding", description="Fix bug in auth module")
    assert made.payload == Payload("analysis", "Fix bug in auth module")
    assert (made.priority, made.replicas, made.retries) == (Priority.NORMAL, 1, 3)


def test_what_else_a_task_may_say() -> None:
    made = spec(
        description="d", payload={"type": "command", "content": "x"}, dependencies=["A", "P/B"], estimated_time=600,
        files=["a"], retries=1, retry_backoff_seconds=2,
    )  # fmt: skip
    assert (made.kind, made.needs, made.estimate_ms, made.files) == ("shell", ("A", "P/B"), 600_000, ("a",))
    assert (made.retries, made.backoff_ms) == (1, 2000)
    assert spec(description="d", payload={"type": "command", "content": "x"}, agent="codex").kind == "codex"
    placed = spec(description="d", payload={"type": "command", "content": "x"}, node="majin", tags=["gpu", "eu"], programs=["gcc"])
    assert (placed.node, placed.tags, placed.programs) == ("majin", ("gpu", "eu"), ("gcc",))
    assert (made.node, made.tags, made.programs) == (None, (), ())


@pytest.mark.parametrize(
    "words", ["Make it better", "fix", "Fix the bug", "do something with it", "asdf asdf", "   ", "改善", "!!! ??? ... ---"]
)
def test_a_vague_task_is_refused(words: str) -> None:
    with pytest.raises(BadInput) as caught:
        spec(description=words)
    assert caught.value.field == "description"
    assert "success_criteria" in caught.value.hint
    assert spec(description=words, success_criteria=["All tests pass"]).description == words
    assert spec(description=words, payload={"type": "command", "content": "x"}).description == words


@pytest.mark.parametrize(
    "words", ["Fix failing tests", "Add login page", "認証モジュールのバグを修正", "Исправить ошибку входа", "update src/app.py imports"]
)
def test_a_clear_task_is_taken(words: str) -> None:
    assert spec(description=words).payload.content == words


@pytest.mark.parametrize(
    "record,raw,field,message,hint",
    [
        (
            r.SubmitTaskParams,
            {"description": "x", "target_agents": {"count": 0}},
            "target_agents.count",
            "expected a whole number from 1 to 200",
            "",
        ),
        (
            r.SubmitTaskParams,
            {"description": "x", "target_agents": {"cuont": 1}},
            "target_agents.cuont",
            "there is no field",
            "did you mean 'count'",
        ),
        (r.SubmitTaskParams, {"description": "x", "needs": ["a"]}, "needs", "there is no field 'needs'", "did you mean 'dependencies'?"),
        (
            r.SubmitTaskParams,
            {"description": "x", "payload": {"type": "sql", "content": "y"}},
            "payload.type",
            "expected one of analysis, code, command",
            "",
        ),
        (r.SubmitTaskParams, {"description": "x", "task_id": "../../x"}, "task_id", "expected a plain name", ""),
        (r.SubmitTaskParams, {"description": "x", "dependencies": ["a/b/c"]}, "dependencies[0]", "expected a task id", ""),
        (r.SubmitTaskParams, {"description": "x", "requirements": {"a": float("nan")}}, "requirements.a", "nan is not a usable number", ""),
        (r.SubmitTaskParams, {}, "description", "the field 'description' is missing", ""),
        (r.SubmitTaskParams, [1], "", "expected a mapping, found a list", ""),
        (
            r.SubmitBatchParams,
            {"tasks": [{"description": "x"}, {"description": 3}]},
            "tasks[1].description",
            "expected text, found the number 3",
            "",
        ),
        (r.SubmitBatchParams, {"tasks": []}, "tasks", "expected 1 to 10000 entries, found 0", ""),
        (r.InitParams, {"phase": 4}, "phase", "expected a whole number from 1 to 3, found the number 4", ""),
        (r.InitParams, {"agent_count": "50-100"}, "agent_count", "expected a whole number from 1 to 10000, found the text '50-100'", ""),
        (r.InitParams, {"nodes": ["-oProxyCommand=x"]}, "nodes[0]", "expected a plain name", ""),
        (r.StatusParams, {"scope": "nodes"}, "scope", "expected one of agent, global, node, task", "did you mean 'node'?"),
        (r.StatusParams, {"target": {}}, "target", "expected text of 1 to 200 characters or a whole number", ""),
        (r.ScaleParams, {"target_count": True}, "target_count", "expected a whole number", ""),
        (r.ScaleParams, {"target_count": 10**30}, "target_count", "the number has more than 18 digits", ""),
        (r.ShutdownParams, {"graceful": "yes"}, "graceful", "expected true or false", ""),
        (r.ShutdownParams, {"timeout_seconds": -1}, "timeout_seconds", "expected a number from 0", ""),
        (r.CancelParams, {}, "task_id", "the field 'task_id' is missing", ""),
        (r.CancelParams, b'{"task_id": "a", "task_id": "b"}', "", "request.json:1:18: the key 'task_id' is given twice", ""),
        (r.CancelParams, b'{"task_id": "\xff"}', "", "the request is not UTF-8", ""),
        (r.CancelParams, b'{"task_id": ', "", "request.json:1:", ""),
        (r.CancelParams, b'{"a":' * 100_000, "", "request.json:1:", ""),
    ],
)
def test_what_does_not_fit(record: type[Any], raw: object, field: str, message: str, hint: str) -> None:
    error = refusal(record, raw)
    assert error.field == field
    assert error.message.startswith(message)
    assert error.hint.startswith(hint)


@pytest.mark.parametrize(
    "record,raw,made",
    [
        (r.InitParams, None, r.InitParams()),
        (r.InitParams, b"", r.InitParams()),
        (r.InitParams, {"phase": 1, "nodes": ["mugen", "majin"]}, r.InitParams(phase=1, nodes=("mugen", "majin"))),
        (r.StatusParams, b"{}", r.StatusParams(scope="global", target="all")),
        (r.StatusParams, {"scope": "agent", "target": 42}, r.StatusParams(scope="agent", target=42)),
        (r.ScaleParams, {"target_count": 50}, r.ScaleParams(target_count=50, strategy="gradual")),
        (r.ShutdownParams, {}, r.ShutdownParams(graceful=True, drain_tasks=True, timeout_seconds=300)),
        (r.CancelParams, {"task_id": "P/a", "reason": "no"}, r.CancelParams(task_id="P/a", reason="no")),
        (r.EstimateCostParams, {"task": "Implement feature X", "agents": 10, "estimated_tokens": 50_000}, None),
    ],
)
def test_what_fits(record: type[Any], raw: object, made: object) -> None:
    assert r.parse_params(record, raw) == (made or r.EstimateCostParams(task="Implement feature X", agents=10, estimated_tokens=50_000))


def test_dependencies_on_itself_or_twice() -> None:
    for needs in (["T"], ["A", "A"]):
        with pytest.raises(BadInput, match="dependenc"):
            spec(description="Fix bug in auth module", dependencies=needs)


ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)
NAMES = sorted({name for record in EVERY for name in record.__struct_fields__} | {"type", "content", "count", "run"})


@given(st.sampled_from(EVERY), st.dictionaries(st.sampled_from(NAMES), ANYTHING, max_size=4) | ANYTHING | st.binary(max_size=60))
def test_nothing_but_bad_input_escapes(record: type[Any], raw: object) -> None:
    with suppress(BadInput):
        assert isinstance(r.parse_params(record, raw), record)


@given(st.text(min_size=1, max_size=60), st.lists(st.text(min_size=1, max_size=20), max_size=2))
def test_no_text_of_a_task_escapes(description: str, criteria: list[str]) -> None:
    refused: BadInput | None = None
    try:
        spec(description=description, success_criteria=criteria)
    except BadInput as error:
        refused = error
    assert refused is None or refused.field.startswith(("description", "success_criteria"))
