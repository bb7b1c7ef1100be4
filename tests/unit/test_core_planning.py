"""A task that returns a plan: its tasks join in the append that completes it, whole or not at all, and whoever needs it waits for them."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import Outcome, OutcomeKind, TaskSpec
from orchestra.errors import PlanInvalid
from orchestra.ids import TaskId
from orchestra.testing.builders import Bench, make_agents, make_task

PLAN = TaskId("p/plan")


def planner(name: str = "plan", *needs: str, **fields: Any) -> TaskSpec:
    return make_task(name, *needs, returns="plan", **fields)


def added(name: str, *needs: str, parent: str = "plan", **fields: Any) -> TaskSpec:
    own = tuple(f"{parent}.{need}" for need in needs) or (parent,)
    return make_task(f"{parent}.{name}", *own, origin=TaskId(f"p/{parent}"), depth=fields.pop("depth", 1), **fields)


def begun(*tasks: TaskSpec, **policy: Any) -> Bench:
    bench = Bench(make_agents(2), c.Policy(**policy))
    bench.submit(*(tasks or (planner(), make_task("after", "plan"))))
    bench.begin("p/plan")
    return bench


def ends(bench: Bench, *planned: TaskSpec, task: str = "p/plan", number: int = 1) -> list[e.Event]:
    return bench.do(c.AttemptFinished(TaskId(task), number, Outcome(OutcomeKind.DONE), planned))


def finish_all(bench: Bench) -> None:
    while bench.state.live:
        name = next(iter(bench.state.live))
        number = bench.state.tasks[name].live_attempts()[0].number
        bench.begin(name, number)
        bench.finish(name, number)


def test_its_tasks_join_with_its_completion_and_what_needs_it_waits_for_the_last_of_them() -> None:
    bench = begun()
    before = bench.ledger.tail().seq
    events = ends(bench, added("a"), added("b", "a"))
    assert [type(event).__name__ for event in events][:6] == [
        *("AttemptEnded", "PlanExtended", "TaskSubmitted", "TaskSubmitted", "NeedsAdded", "TaskCompleted")
    ]
    assert bench.ledger.tail().seq == before + len(events)
    assert (bench.status("p/plan"), bench.status("p/plan.a"), bench.status("p/after")) == ("completed", "assigned", "pending")
    assert bench.task("p/after").spec.needs == (PLAN, TaskId("p/plan.b"))
    assert (bench.plan().size, bench.plan().open) == (4, 3)
    finish_all(bench)
    assert (bench.status("p/after"), bench.plan().status.value) == ("completed", "completed")


def test_the_longest_path_goes_through_what_was_planned() -> None:
    bench = begun()
    ends(bench, added("short"), added("long", estimate_ms=900_000), added("end", "long"))
    rank = bench.kernel.scheduler.rank_ms
    assert rank(bench.state, bench.task("p/plan.long")) > 900_000 + rank(bench.state, bench.task("p/after"))


def test_a_plan_with_nothing_behind_it_closes_only_when_what_was_planned_is_over() -> None:
    bench = begun(planner())
    ends(bench, added("a"))
    assert bench.plan().status.value == "running"
    finish_all(bench)
    assert bench.plan().status.value == "completed"


@pytest.mark.parametrize(
    "planned, said",
    [
        ((), "nothing was returned"),
        ((added("a"), added("b"), added("c")), "at most 2 may be added"),
        ((make_task("after", "plan"),), "there is a task 'p/after' already"),
        ((make_task("AFTER", "plan"),), "there is a task 'p/AFTER' already"),
        ((added("a", kind="claude"), added("b")), "agent(s) of kind 'claude'"),
        ((added("a", node="nowhere"),), "there is no node 'nowhere'"),
        ((added("a", returns="plan", depth=2),), "may not plan: 2 in a row"),
        ((added("a", "b"), added("b", "a")), "cycle"),
    ],
)
def test_a_plan_that_cannot_join_is_a_failed_check_and_adds_nothing(planned: tuple[TaskSpec, ...], said: str) -> None:
    bench = Bench(make_agents(2, kind="shell"), c.Policy(planned_tasks_max=2))
    bench.submit(planner(), make_task("after", "plan"))
    bench.begin("p/plan")
    ends(bench, *planned)
    outcome = bench.task("p/plan").attempts[0].outcome
    assert outcome is not None
    assert outcome.kind is OutcomeKind.UNVERIFIED
    assert said in outcome.reason
    assert not outcome.checks[-1].passed
    assert (bench.status("p/plan"), len(bench.state.tasks)) == ("retry_wait", 2)
    bench.pass_time(1000)
    bench.begin("p/plan", 2)
    ends(bench, added("a"), number=2)
    assert bench.status("p/plan") == "completed"


def test_a_failed_attempt_adds_nothing_whatever_it_returned() -> None:
    bench = begun()
    bench.do(c.AttemptFinished(PLAN, 1, Outcome(OutcomeKind.FAILED, "exit code 1"), (added("a"),)))
    assert (bench.status("p/plan"), len(bench.state.tasks)) == ("retry_wait", 2)


def test_the_result_of_an_earlier_attempt_adds_nothing() -> None:
    bench = begun()
    bench.do(c.AttemptFinished(PLAN, 1, Outcome(OutcomeKind.LOST, "its worker died")))
    ends(bench, added("a"))
    assert len(bench.state.tasks) == 2


def test_of_several_attempts_side_by_side_only_the_best_plan_joins() -> None:
    bench = begun(planner(replicas=2))
    bench.begin("p/plan", 2)
    ends(bench, added("a"), number=1)
    assert len(bench.state.tasks) == 1
    ends(bench, added("b"), number=2)
    assert set(bench.state.tasks) == {"p/plan", "p/plan.a"}
    assert not any(attempt.planned for attempt in bench.task("p/plan").attempts)


def test_work_of_a_planner_is_merged_before_its_tasks_join() -> None:
    bench = begun(planner(isolated=True))
    ends(bench, added("a", isolated=True))
    assert (bench.status("p/plan"), len(bench.state.tasks)) == ("merging", 1)
    bench.take_over()
    bench.do(c.MergeDone(PLAN, 1, "refs/heads/b", "abc", 1))
    assert (bench.status("p/plan"), set(bench.state.tasks)) == ("completed", {"p/plan", "p/plan.a"})


def test_a_place_taken_while_its_work_was_merged_fails_it() -> None:
    bench = begun(planner(isolated=True))
    ends(bench, added("a"))
    bench.do(c.Submit((make_task("plan.a", plan=None, id=TaskId("p/plan.a")),)))
    bench.do(c.MergeDone(PLAN, 1, "refs/heads/b", "abc", 1))
    assert (bench.status("p/plan"), len(bench.state.tasks)) == ("failed", 2)
    assert "its plan cannot join: there is a task 'p/plan.a' already" in bench.task("p/plan").reason


def test_a_planned_task_may_plan_up_to_the_limit() -> None:
    bench = begun()
    ends(bench, added("sub", returns="plan"))
    bench.begin("p/plan.sub")
    ends(bench, added("leaf", parent="plan.sub", depth=2), task="p/plan.sub")
    assert bench.status("p/plan.sub.leaf") == "assigned"
    assert bench.task("p/after").spec.needs == (PLAN, TaskId("p/plan.sub"), TaskId("p/plan.sub.leaf"))
    finish_all(bench)
    assert bench.plan().status.value == "completed"


def test_who_comes_later_and_needs_the_planner_waits_for_what_it_planned() -> None:
    bench = begun(planner())
    ends(bench, added("a"))
    bench.do(c.Submit((make_task("late", plan=None, needs=(PLAN,)),)))
    assert bench.task("late").spec.needs == (PLAN, TaskId("p/plan.a"))
    assert bench.status("late") == "pending"


def test_a_task_alone_plans_tasks_alone() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("plan", plan=None, returns="plan"), plan=None)
    bench.begin("plan")
    bench.do(c.AttemptFinished(TaskId("plan"), 1, Outcome(OutcomeKind.DONE), (make_task("plan.a", plan=None, needs=(TaskId("plan"),)),)))
    assert bench.status("plan.a") == "assigned"


def test_a_plan_that_grew_can_be_cancelled_and_what_failed_in_it_retried() -> None:
    bench = begun()
    ends(bench, added("a"), added("b", "a"))
    bench.begin("p/plan.a")
    bench.do(c.AttemptFinished(TaskId("p/plan.a"), 1, Outcome(OutcomeKind.REFUSED, "no")))
    assert (bench.status("p/plan.b"), bench.status("p/after")) == ("cancelled", "cancelled")
    bench.do(c.RetryTask(TaskId("p/plan.a")))
    assert bench.status("p/after") == "pending"
    bench.do(c.CancelPlan(bench.plan().id, "enough"))
    bench.finish("p/plan.a", 2, OutcomeKind.STOPPED)
    assert bench.plan().status.value == "cancelled"
    assert bench.task("p/after").blocked_by is None


def test_a_new_coordinator_goes_on_with_what_was_planned() -> None:
    bench = begun()
    ends(bench, added("a"), added("b", "a"))
    bench.take_over()
    assert bench.state.tasks[TaskId("p/plan.b")].spec.origin == PLAN
    bench.do(c.NodeUp(bench.node().spec.id, "boot", "session"))
    assert bench.status("p/plan.a") in ("unknown", "assigned")


def test_a_planner_is_not_reviewed() -> None:
    bench = Bench(make_agents(1))
    with pytest.raises(PlanInvalid, match="plans, and would be sent back"):
        bench.submit(planner(), make_task("r", "plan", returns="review", reviews=PLAN))
