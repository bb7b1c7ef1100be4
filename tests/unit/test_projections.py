"""The documents other programs read: exactly the fields of their formats, in order, and only what JSON knows."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestra.core.model import (
    AgentSpec,
    AgentStatus,
    AttemptStatus,
    CheckResult,
    NodeSpec,
    Outcome,
    OutcomeKind,
    Payload,
    PlanStatus,
    Priority,
    TaskSpec,
    TaskStatus,
    Usage,
)
from orchestra.core.state import AgentState, AttemptState, NodeState, PlanState, State, TaskState, Totals
from orchestra.costviews import ProviderLoad, Settled
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.projections import (
    DAY_MS,
    IDLE_STATUS,
    QUEUE_STATUS,
    agent_status,
    heartbeat,
    orchestra_status,
    result,
    rfc3339,
    state_summary,
    task_queue,
)
from orchestra.views import AgentCounts, ApiLimits, NodeView, StatusView, TaskCounts

NOON = 1_762_948_800_000
"""2025-11-12 12:00:00 UTC."""
LOCAL = NodeId("mugen")


class Signal(msgspec.Struct, frozen=True):
    progress: float | None = None


class Board:
    def __init__(self, progress: float | None = None) -> None:
        self._progress = progress

    def of(self, task: TaskId, number: int) -> Signal:
        return Signal(self._progress)


def make_task(name: str = "p/a", status: TaskStatus = TaskStatus.PENDING, *, needs: tuple[str, ...] = (), **fields: Any) -> TaskState:
    spec = TaskSpec(
        TaskId(name),
        f"Does {name}",
        Payload("command", "true"),
        plan=PlanId("p"),
        priority=Priority.HIGH,
        needs=tuple(map(TaskId, needs)),
        estimate_ms=600_000,
    )
    return TaskState(spec, NOON, status, **fields)


def make_attempt(number: int = 1, agent: int = 1, outcome: Outcome | None = None) -> AttemptState:
    if outcome is None:
        return AttemptState(number, AgentId(agent), LOCAL, NOON, AttemptStatus.RUNNING, NOON + 5000)
    return AttemptState(number, AgentId(agent), LOCAL, NOON, AttemptStatus.ENDED, NOON + 5000, NOON + 60_000, outcome=outcome)


def make_agent(number: int = 1, name: str = "CCG-1", status: AgentStatus = AgentStatus.IDLE, **fields: Any) -> AgentState:
    return AgentState(AgentSpec(AgentId(number), LOCAL, name=name), status, NOON, **fields)


def make_state(*tasks: TaskState, agents: tuple[AgentState, ...] = ()) -> State:
    return State(
        seq=7,
        at_ms=NOON,
        name="sample",
        tasks={task.id: task for task in tasks},
        agents={agent.id: agent for agent in agents},
        nodes={LOCAL: NodeState(NodeSpec(LOCAL))},
        plans={
            PlanId("p"): PlanState(
                PlanId("p"), "p", "digest", NOON, status=PlanStatus.RUNNING, tasks=[task.id for task in tasks], open=len(tasks)
            )
        },
        totals=Totals(attempts=2, execution_ms=90_000, usage=Usage(3, 10, 20, 30, 40, 2_340_000)),
    )


def shape(value: object) -> object:
    """Returns the field names of a document, nested, in order."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return None


def read(value: object) -> Any:
    """Returns the document as a reader of its JSON gets it."""
    return msgspec.json.decode(msgspec.json.encode(value))


@pytest.mark.parametrize(
    "ms,text",
    [
        (0, "1970-01-01T00:00:00Z"),
        (NOON + 5999, "2025-11-12T12:00:05Z"),
        (-1, "1970-01-01T00:00:00Z"),
        (10**18, "9999-12-31T23:59:59Z"),
    ],
)
def test_stamps(ms: int, text: str) -> None:
    assert rfc3339(ms) == text


def test_heartbeat() -> None:
    assert heartbeat(NOON, 3600) == {"timestamp": "2025-11-12T12:00:00Z", "status": "alive", "uptime_seconds": 3600}


def test_task_queue() -> None:
    running = make_task("p/b", TaskStatus.RUNNING, needs=("p/a",), attempts=[make_attempt(agent=2)])
    state = make_state(make_task(), running, agents=(make_agent(2, "CG-1"),))
    assert read(task_queue(state)) == {
        "tasks": [
            {
                "task_id": "p/a",
                "agent": None,
                "description": "Does p/a",
                "dependencies": [],
                "status": "PENDING",
                "priority": 2,
                "estimated_time": 600,
            },
            {
                "task_id": "p/b",
                "agent": "CG-1",
                "description": "Does p/b",
                "dependencies": ["p/a"],
                "status": "IN_PROGRESS",
                "priority": 2,
                "estimated_time": 600,
            },
        ]
    }


def test_every_status_has_a_word() -> None:
    assert set(QUEUE_STATUS) == set(TaskStatus)
    assert set(QUEUE_STATUS.values()) == {"PENDING", "IN_PROGRESS", "COMPLETED", "FAILED", "CANCELLED"}
    assert set(IDLE_STATUS) == set(AgentStatus)
    assert set(IDLE_STATUS.values()) == {"IDLE", "BUSY", "ERROR", "OFFLINE"}


def test_an_agent_at_work() -> None:
    task = make_task(status=TaskStatus.RUNNING, attempts=[make_attempt()], dependents=[TaskId("p/b")])
    state = make_state(task, make_task("p/b", unmet=1), agents=(make_agent(status=AgentStatus.BUSY, task=task.id, attempt=1),))
    assert read(agent_status(state, state.agents[AgentId(1)], Board(0.75))) == {
        "agent_id": "CCG-1",
        "task_id": "p/a",
        "status": "IN_PROGRESS",
        "progress": 0.75,
        "started_at": "2025-11-12T12:00:05Z",
        "updated_at": "2025-11-12T12:00:05Z",
        "output_files": [],
        "errors": [],
        "next_task": "p/b",
    }


@pytest.mark.parametrize(
    "kind,status,progress",
    [(OutcomeKind.DONE, "COMPLETED", 1.0), (OutcomeKind.TIMEOUT, "FAILED", None), (OutcomeKind.UNVERIFIED, "FAILED", None)],
)
def test_an_agent_whose_attempt_has_ended(kind: OutcomeKind, status: str, progress: float | None) -> None:
    outcome = Outcome(kind, "" if kind is OutcomeKind.DONE else "too slow", output_files=("a.py",))
    task = make_task(status=TaskStatus.COMPLETED, attempts=[make_attempt(outcome=outcome)])
    state = make_state(task, agents=(make_agent(status=AgentStatus.BUSY, task=task.id, attempt=1),))
    found = read(agent_status(state, state.agents[AgentId(1)], Board()))
    assert (found["status"], found["progress"], found["output_files"]) == (status, progress, ["a.py"])
    assert found["errors"] == ([] if kind is OutcomeKind.DONE else ["too slow"])


@pytest.mark.parametrize("status", list(AgentStatus))
def test_an_agent_without_a_task(status: AgentStatus) -> None:
    state = make_state(agents=(make_agent(name="", status=status, reason="fell too often" if status is AgentStatus.ERROR else ""),))
    found = read(agent_status(state, state.agents[AgentId(1)], Board()))
    fields = ["agent_id", "task_id", "status", "progress", "started_at", "updated_at", "output_files", "errors", "next_task"]
    assert list(found) == fields
    assert found["agent_id"] == "agent-001"
    assert found["status"] == IDLE_STATUS[status]
    assert found["errors"] == (["fell too often"] if status is AgentStatus.ERROR else [])


def test_a_told_progress_stays_in_bounds() -> None:
    task = make_task(status=TaskStatus.RUNNING, attempts=[make_attempt()])
    state = make_state(task, agents=(make_agent(status=AgentStatus.BUSY, task=task.id, attempt=1),))
    assert [agent_status(state, state.agents[AgentId(1)], Board(told))["progress"] for told in (None, -1.0, 0.5, 7.0)] == [
        None,
        0.0,
        0.5,
        1.0,
    ]


def test_state_summary() -> None:
    state = make_state(make_task(), make_task("p/b", TaskStatus.FAILED), agents=(make_agent(),))
    found = read(state_summary(state))
    assert found["tasks"] == {"total": 2, "failed": 1, "pending": 1}
    assert found["agents"] == {"total": 1, "idle": 1}
    assert found["plans"][0]["plan"] == "p"
    assert found["totals"] == {
        "attempts": 2,
        "stale": 0,
        "execution_seconds": 90,
        "api_requests": 3,
        "tokens_consumed": 100,
        "estimated_cost_dollars": 2.34,
    }


def make_status(rpm: str, tpm: str) -> StatusView:
    return StatusView("running", "degraded", AgentCounts(200, 195, 100, 95, 5), ApiLimits(rpm, tpm), TaskCounts(15, 23, 456, 3), 86_400)


def make_node(name: str, reason: str = "") -> NodeView:
    return NodeView(name, "degraded" if reason else "healthy", 98, 100, 65.2, 48.7, True, "session", reason)


def test_orchestra_status() -> None:
    tasks = [make_task(f"p/{index}", TaskStatus.COMPLETED, ended_ms=NOON) for index in range(3)]
    yesterday = make_task("p/old", TaskStatus.COMPLETED, ended_ms=NOON - DAY_MS)
    failed = make_task("p/bad", TaskStatus.FAILED, ended_ms=NOON - NOON % DAY_MS)
    state = make_state(*tasks, yesterday, failed)
    nodes = [make_node("mugen"), make_node("majin", "agent #105 does not answer")]
    found = read(orchestra_status(make_status("750/1000", "45000/60000"), nodes, state, NOON))
    assert found == {
        "timestamp": "2025-11-12T12:00:00Z",
        "overall_status": "degraded",
        "nodes": {
            "mugen": {
                "status": "healthy",
                "agents_running": 98,
                "agents_total": 100,
                "cpu_percent": 65.2,
                "memory_percent": 48.7,
                "ssh_connected": True,
            },
            "majin": {
                "status": "degraded",
                "agents_running": 98,
                "agents_total": 100,
                "cpu_percent": 65.2,
                "memory_percent": 48.7,
                "ssh_connected": True,
                "warnings": ["agent #105 does not answer"],
            },
        },
        "api_limits": {
            "anthropic": {
                "rpm_current": 750,
                "rpm_limit": 1000,
                "rpm_usage_percent": 75.0,
                "tpm_current": 45000,
                "tpm_limit": 60000,
                "tpm_usage_percent": 75.0,
            }
        },
        "tasks": {"queued": 15, "in_progress": 23, "completed_today": 3, "failed_today": 1},
        "uptime_seconds": 86400,
    }
    assert list(found) == ["timestamp", "overall_status", "nodes", "api_limits", "tasks", "uptime_seconds"]


@pytest.mark.parametrize(
    "text,figures",
    [
        ("-/1000", (None, 1000, None)),
        ("5/0", (5, None, None)),
        ("", (None, None, None)),
        ("x/y", (None, None, None)),
        ("0/10", (0, 10, 0.0)),
    ],
)
def test_what_is_not_measured_is_null(text: str, figures: tuple[int | None, int | None, float | None]) -> None:
    found = read(orchestra_status(make_status(text, text), [], make_state(), NOON))["api_limits"]["anthropic"]
    assert tuple(found.values()) == figures * 2


def make_done() -> TaskState:
    bad = Outcome(OutcomeKind.TIMEOUT, "no end after an hour", usage=Usage(requests=34, tokens_input=678, cost_usd_micros=340_000))
    done = Outcome(
        OutcomeKind.DONE,
        usage=Usage(requests=200, tokens_output=45_000, cost_usd_micros=2_000_000),
        output_files=("src/lib.rs",),
        metrics={"tests_passed": 42.0, "tests_failed": 0.0, "coverage_percent": 87.5, "linter_errors": 0.0},
    )
    attempts = [make_attempt(1, 5, bad), make_attempt(2, 1, done)]
    return make_task(
        "TASK-1", TaskStatus.COMPLETED, attempts=attempts, primary=2, failures=1, started_ms=NOON + 5000, ended_ms=NOON + 2_723_000
    )


def test_result() -> None:
    assert read(result(make_done(), ".codex/results/TASK-1", {"diff.patch", "execution.log"})) == {
        "task_id": "TASK-1",
        "status": "completed",
        "started_at": "2025-11-12T12:00:05Z",
        "completed_at": "2025-11-12T12:45:23Z",
        "duration_seconds": 2718,
        "assigned_agents": [5, 1],
        "primary_agent": 1,
        "result": {
            "success": True,
            "output": {
                "files_created": ["src/lib.rs"],
                "tests_passed": 42,
                "tests_failed": 0,
                "coverage_percent": 87.5,
                "linter_errors": 0,
            },
            "artifacts": {
                "code_diff": ".codex/results/TASK-1/diff.patch",
                "test_report": None,
                "logs": ".codex/results/TASK-1/execution.log",
            },
        },
        "cost": {"api_requests": 234, "tokens_consumed": 45678, "estimated_cost_dollars": 2.34},
        "errors": [],
        "warnings": ["attempt 1 on agent #5 ended as timeout: no end after an hour"],
    }


def test_the_result_of_any_task_has_the_same_fields() -> None:
    complete = shape(result(make_done(), "x"))
    outcome = Outcome(
        OutcomeKind.UNVERIFIED, "a check failed", checks=(CheckResult("lint", False, 1, "exit code 1"), CheckResult("tests", True))
    )
    failed = make_task(status=TaskStatus.FAILED, attempts=[make_attempt(outcome=outcome)], reason="out of retries")
    for task in (make_task(), failed, make_task(status=TaskStatus.CANCELLED, cancel_reason="asked to")):
        assert shape(result(task, "x")) == complete
    found = read(result(failed, "x"))
    assert found["errors"] == ["out of retries", "a check failed", "check lint: exit code 1"]
    assert found["warnings"] == []
    assert (found["result"]["success"], found["primary_agent"]) == (False, None)


def test_a_task_that_never_ran_claims_nothing() -> None:
    found = read(result(make_task(status=TaskStatus.CANCELLED, cancel_reason="asked to"), "x"))
    assert found["result"]["artifacts"] == {"code_diff": None, "test_report": None, "logs": None}
    assert found["result"]["output"] == {
        "files_created": [],
        "tests_passed": None,
        "tests_failed": None,
        "coverage_percent": None,
        "linter_errors": None,
    }
    assert (found["started_at"], found["completed_at"], found["duration_seconds"], found["errors"]) == (None, None, None, ["asked to"])


def test_the_same_state_gives_the_same_bytes() -> None:
    state = make_state(*(make_task(f"p/{index}", status) for index, status in enumerate(TaskStatus)), agents=(make_agent(),))
    documents = [(task_queue(state), state_summary(state)) for _ in range(2)]
    assert msgspec.json.encode(documents[0]) == msgspec.json.encode(documents[1])


def test_what_the_gateway_settled_goes_before_what_programs_said() -> None:
    settled = Settled(requests=9, input_tokens=1, cache_write_tokens=2, cache_read_tokens=3, output_tokens=4, cost_usd_micros=1_500_000)
    cost = {"api_requests": 9, "tokens_consumed": 10, "estimated_cost_dollars": 1.5}
    assert read(result(make_done(), "r", settled=settled))["cost"] == cost
    totals = read(state_summary(make_state(), settled))["totals"]
    assert {name: totals[name] for name in cost} == cost


def test_limits_are_those_of_each_api_where_a_gateway_keeps_them() -> None:
    loads = [ProviderLoad("anthropic", 60, 100, 90, 1000), ProviderLoad("local")]
    found = read(orchestra_status(make_status("60/100", "90/1000"), [], make_state(), NOON, loads=loads))["api_limits"]
    assert list(found["anthropic"].values()) == [60, 100, 60.0, 90, 1000, 9.0]
    assert list(found["local"].values()) == [None] * 6
