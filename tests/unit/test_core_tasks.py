"""The life of tasks and attempts, told through the kernel; every commit also checks invariants and replay (`Bench`)."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import KeepResult, ReapAttempt, StartAttempt, StopAttempt
from orchestra.core.graph import topological_order
from orchestra.core.model import OutcomeKind, TaskSpec, Worker
from orchestra.errors import DuplicateId, IllegalMove, NotFound, PlanInvalid
from orchestra.ids import AgentId, TaskId
from orchestra.testing.builders import Bench, make_agents, make_task


def test_a_task_without_needs_goes_straight_to_an_agent() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    assert bench.status("p/a") == "assigned"
    assert any(isinstance(effect, StartAttempt) and effect.task == "p/a" for effect in bench.effects)
    bench.begin("p/a")
    assert bench.status("p/a") == "running"
    bench.do(c.AttemptChecking(TaskId("p/a"), 1))
    assert bench.status("p/a") == "verifying"
    bench.finish("p/a")
    assert bench.status("p/a") == "completed"
    assert any(isinstance(effect, KeepResult) for effect in bench.effects)


def test_a_diamond_runs_in_order_and_closes_its_plan() -> None:
    bench = Bench(make_agents(4))
    bench.submit(make_task("d", "b", "c"), make_task("b", "a"), make_task("c", "a"), make_task("a"))
    assert [bench.status(f"p/{name}") for name in "abcd"] == ["assigned", "pending", "pending", "pending"]
    bench.finish("p/a")
    assert [bench.status(f"p/{name}") for name in "bcd"] == ["assigned", "assigned", "pending"]
    bench.finish("p/b")
    assert bench.status("p/d") == "pending"
    bench.finish("p/c")
    bench.finish("p/d")
    assert bench.plan("p").status.value == "completed"


def test_unverified_work_meets_no_need() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", retries=0), make_task("b", "a"))
    bench.finish("p/a", kind=OutcomeKind.UNVERIFIED)
    assert bench.status("p/a") == "failed"
    assert bench.status("p/b") == "cancelled"
    assert bench.task("p/b").reason == "its need p/a failed"
    assert bench.plan("p").status.value == "failed"


def test_a_failure_is_retried_with_doubling_waits_and_then_given_up() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=3, backoff_ms=60_000, backoff_max_ms=200_000))
    waits = []
    for number in range(1, 4):
        bench.finish("p/a", number, OutcomeKind.FAILED)
        assert bench.status("p/a") == "retry_wait"
        waits.append(bench.task("p/a").ready_ms - bench.now_ms)
        bench.pass_time(waits[-1] - 1)
        assert bench.status("p/a") == "retry_wait"
        bench.pass_time(1)
        assert bench.status("p/a") == "assigned"
    assert waits == [60_000, 120_000, 200_000]
    bench.finish("p/a", 4, OutcomeKind.FAILED)
    assert bench.status("p/a") == "failed"
    assert bench.state.agents[AgentId(1)].status.value == "idle"


def test_what_cannot_be_started_is_not_retried() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.finish("p/a", kind=OutcomeKind.REFUSED)
    assert bench.status("p/a") == "failed"


def test_the_result_of_an_earlier_attempt_is_recorded_and_changes_nothing() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.finish("p/a", 1, OutcomeKind.LOST)
    assert bench.task("p/a").live_attempts()[0].number == 2
    events = bench.finish("p/a", 1, OutcomeKind.DONE)
    assert [type(event) for event in events] == [e.StaleResultRecorded]
    assert bench.status("p/a") == "assigned"
    bench.finish("p/a", 2)
    assert bench.task("p/a").primary == 2


def test_the_same_end_told_twice_is_told_once() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.finish("p/a", code=0)
    assert bench.finish("p/a", code=0) == []
    assert bench.state.totals.stale == 0


def test_a_fallen_worker_leaves_its_task_unknown_until_it_is_reaped() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.WorkerFell(AgentId(1), Worker(101, 1), "killed"))
    assert bench.status("p/a") == "unknown"
    assert any(isinstance(effect, ReapAttempt) for effect in bench.effects)
    bench.do(c.WorkerSeen(AgentId(1), Worker(200, 2)))
    assert bench.status("p/a") == "unknown", "the agent is up again but its attempt is not accounted for"
    bench.finish("p/a", 1, OutcomeKind.LOST)
    assert bench.status("p/a") == "assigned"
    assert bench.task("p/a").losses == 1


def test_a_task_that_kills_its_worker_again_and_again_is_given_up() -> None:
    bench = Bench(make_agents(1), c.Policy(losses_max=2))
    bench.submit(make_task("a"))
    for number in range(1, 4):
        bench.begin("p/a", number)
        bench.finish("p/a", number, OutcomeKind.LOST)
    assert bench.status("p/a") == "failed"
    assert "died 3 times" in bench.task("p/a").reason


def test_an_order_that_never_started_is_not_held_against_the_task() -> None:
    bench = Bench(make_agents(1), c.Policy(losses_max=0))
    bench.submit(make_task("a"))
    bench.finish("p/a", 1, OutcomeKind.LOST)
    assert bench.status("p/a") == "assigned"


def test_a_task_the_api_did_not_serve_goes_on_later_and_is_not_to_blame() -> None:
    bench = Bench(make_agents(1), c.Policy(deferrals_max=2))
    bench.submit(make_task("a", retries=0))
    for number in (1, 2):
        bench.begin("p/a", number)
        bench.finish("p/a", number, OutcomeKind.DEFERRED)
        assert bench.status("p/a") == "retry_wait"
        bench.pass_time(c.Policy().deferred_retry_ms)
        assert bench.status("p/a") == "assigned"
    assert (bench.task("p/a").failures, bench.task("p/a").deferrals) == (0, 2)
    bench.begin("p/a", 3)
    bench.finish("p/a", 3, OutcomeKind.DEFERRED)
    assert bench.status("p/a") == "failed", "nothing goes on for ever"


def test_what_the_gateway_tells_is_taken_in_once() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.NoteApi(7, "limit_warning", {"limit": "requests"}))
    assert bench.do(c.NoteApi(7, "limit_warning", {"limit": "requests"})) == []
    assert len(bench.do(c.NoteApi(0, "limit_alarm"))) == 1
    assert bench.state.api_cursor == 7


def test_cancelling_stops_what_runs_and_what_waits_for_it() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"), make_task("b", "a"))
    bench.begin("p/a")
    bench.do(c.CancelTask(TaskId("p/a"), "not needed"))
    assert bench.status("p/a") == "running"
    assert any(isinstance(effect, StopAttempt) for effect in bench.effects)
    bench.finish("p/a", kind=OutcomeKind.STOPPED)
    assert bench.status("p/a") == "cancelled"
    assert bench.status("p/b") == "cancelled"
    assert bench.plan("p").status.value == "cancelled"


def test_a_task_that_was_to_be_cancelled_but_succeeded_first_is_cancelled() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.do(c.CancelTask(TaskId("p/a"), "not needed"))
    bench.finish("p/a")
    assert bench.status("p/a") == "cancelled"


def test_retrying_revives_the_task_and_all_that_it_blocked() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=0), make_task("b", "a"), make_task("c", "b"))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    assert [bench.status(f"p/{name}") for name in "abc"] == ["failed", "cancelled", "cancelled"]
    bench.do(c.RetryTask(TaskId("p/a")))
    assert [bench.status(f"p/{name}") for name in "abc"] == ["assigned", "pending", "pending"]
    for number, name in ((2, "a"), (1, "b"), (1, "c")):
        bench.finish(f"p/{name}", number)
    assert bench.plan("p").status.value == "completed"


def test_what_is_blocked_cannot_be_retried_by_itself() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=0), make_task("b", "a"))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    with pytest.raises(Exception, match="waits for p/a"):
        bench.do(c.RetryTask(TaskId("p/b")))


def test_replicas_run_side_by_side_and_the_best_verified_one_wins() -> None:
    bench = Bench(make_agents(3))
    bench.submit(make_task("a", replicas=3))
    assert len(bench.task("p/a").live_attempts()) == 3
    for number in (1, 2, 3):
        bench.begin("p/a", number)
    bench.finish("p/a", 1, OutcomeKind.FAILED)
    bench.finish("p/a", 2, duration_ms=900)
    assert bench.status("p/a") == "running"
    bench.finish("p/a", 3, duration_ms=200)
    assert bench.status("p/a") == "completed"
    assert bench.task("p/a").primary == 3


def test_replicas_wait_until_enough_agents_are_free() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("x"), plan="p")
    bench.submit(make_task("a", plan="q", replicas=2), make_task("z", plan="q"), plan="q")
    assert bench.status("q/a") == "queued"
    bench.finish("p/x")
    assert len(bench.task("q/a").live_attempts()) == 2


@pytest.mark.parametrize(
    "tasks, message",
    [
        ([make_task("a", "b"), make_task("b", "c"), make_task("c", "a")], "cycle: p/a -> p/b -> p/c -> p/a"),
        ([make_task("a", "a")], "cycle: p/a -> p/a"),
        ([make_task("a", "ghost")], "needs 'p/ghost', which does not exist"),
        ([make_task("a", kind="claude")], "wants 1 agent\\(s\\)"),
        ([make_task("a", replicas=5)], "wants 5 agent\\(s\\)"),
    ],
)
def test_an_impossible_plan_is_refused_and_changes_nothing(tasks: list[TaskSpec], message: str) -> None:
    bench = Bench(make_agents(2, kind="shell"))
    before = bench.state.seq
    with pytest.raises(PlanInvalid, match=message):
        bench.submit(*tasks)
    assert bench.state.seq == before
    assert not bench.state.tasks


def test_ids_are_used_once() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    with pytest.raises(DuplicateId):
        bench.submit(make_task("a"), plan="p")
    with pytest.raises(DuplicateId):
        bench.submit(make_task("a", plan=None), make_task("a", plan=None), plan=None)


def test_requests_about_nothing_are_refused() -> None:
    bench = Bench(make_agents(1))
    for command in (c.CancelTask(TaskId("x"), ""), c.RetryTask(TaskId("x")), c.RestartAgent(AgentId(9))):
        with pytest.raises(NotFound):
            bench.do(command)
    bench.submit(make_task("a"))
    with pytest.raises(IllegalMove):
        bench.do(c.RetryTask(TaskId("p/a")))


def test_a_chain_of_a_hundred_thousand_needs_no_recursion() -> None:
    chain = [make_task("0"), *(make_task(str(n), str(n - 1)) for n in range(1, 100_000))]
    ordered = topological_order({spec.id: spec for spec in reversed(chain)})
    assert [spec.id for spec in ordered] == [spec.id for spec in chain]


def test_a_task_blocked_on_several_sides_is_cancelled_once() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=0), make_task("b", "a"), make_task("c", "a", "b"), make_task("d", "b", "c"))
    events = bench.finish("p/a", kind=OutcomeKind.FAILED)
    assert [event.task for event in events if isinstance(event, e.TaskCancelled)] == ["p/b", "p/c", "p/d"]
    assert sum(isinstance(event, e.PlanClosed) for event in events) == 1


def test_many_roots_begin_the_work_once() -> None:
    bench = Bench(make_agents(1))
    events = bench.submit(*(make_task(str(number)) for number in range(5)))
    assert sum(isinstance(event, e.WorkBegan) for event in events) == 1
