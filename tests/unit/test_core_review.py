"""Reviews: nobody builds on work before its review approves it, a refusal sends it back once with the findings, and the second is final."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import DropWork, KeepResult, MergeWork
from orchestra.core.model import Finding, Judgement, OutcomeKind, Review, TaskSpec
from orchestra.engine.earlier import known_of
from orchestra.engine.returns import ReturnOptions
from orchestra.errors import PlanInvalid
from orchestra.ids import TaskId
from orchestra.testing.builders import Bench, make_agents, make_task

APPROVED = Review(True, "good")
REFUSED = Review(False, "one thing is wrong", (Finding("major", "no test for the empty list", "a.py", 7),))


def review_of(reviewed: str, name: str = "r", *needs: str, **fields: Any) -> TaskSpec:
    return make_task(name, reviewed, *needs, returns="review", reviews=TaskId(f"p/{reviewed}"), **fields)


def submitted(*tasks: TaskSpec, agents: int = 2, **policy: Any) -> Bench:
    bench = Bench(make_agents(agents), c.Policy(**policy))
    bench.submit(*tasks)
    return bench


def does(bench: Bench, task: str, **fields: Any) -> list[e.Event]:
    """The task's live attempt begins and ends well."""
    name = f"p/{task}"
    number = bench.task(name).live_attempts()[0].number
    bench.begin(name, number)
    return bench.finish(name, number, **fields)


def test_nobody_builds_on_work_before_its_review_approves_it() -> None:
    bench = submitted(make_task("a"), review_of("a"), make_task("b", "a"), make_task("c", "b"))
    assert bench.task("p/b").spec.needs == (TaskId("p/a"), TaskId("p/r"))
    assert bench.task("p/c").spec.needs == (TaskId("p/b"),)
    does(bench, "a")
    assert (bench.status("p/r"), bench.status("p/b")) == ("assigned", "pending")
    does(bench, "r", review=APPROVED)
    assert (bench.status("p/r"), bench.status("p/b")) == ("completed", "assigned")


def test_a_refusal_sends_the_work_back_with_the_findings_and_the_review_is_made_again() -> None:
    bench = submitted(make_task("a", kind="claude", retries=0), review_of("a"), make_task("b", "a"))
    does(bench, "a")
    events = does(bench, "r", review=REFUSED)
    assert [type(event).__name__ for event in events][:4] == ["AttemptEnded", "ReviewRefused", "TaskSentBack", "TaskQueued"]
    assert (bench.status("p/a"), bench.status("p/r"), bench.status("p/b")) == ("assigned", "pending", "pending")
    assert any(isinstance(effect, KeepResult) and effect.task == "p/a" for effect in bench.effects)
    told = known_of(bench.state, TaskId("p/a"), ReturnOptions()).feedback
    assert "one thing is wrong" in told
    assert "major a.py:7: no test for the empty list" in told
    does(bench, "a")
    assert bench.status("p/r") == "assigned"
    assert "for a second time" in known_of(bench.state, TaskId("p/r"), ReturnOptions()).brief
    does(bench, "r", review=APPROVED)
    does(bench, "b")
    assert bench.plan().status.value == "completed"
    assert (bench.task("p/a").primary, bench.task("p/a").sent_back, bench.state.totals.completed) == (2, 1, 3)


def test_the_second_refusal_is_final_and_a_person_can_ask_for_another() -> None:
    bench = submitted(make_task("a"), review_of("a"), make_task("b", "a"))
    for _ in range(2):
        does(bench, "a")
        does(bench, "r", review=REFUSED)
    assert (bench.status("p/a"), bench.status("p/r"), bench.status("p/b")) == ("completed", "failed", "cancelled")
    assert bench.task("p/r").reason == "it refuses p/a, again: one thing is wrong"
    assert bench.plan().status.value == "failed"
    bench.do(c.RetryTask(TaskId("p/r")))
    does(bench, "r", review=REFUSED)
    assert bench.status("p/a") == "assigned"


def test_without_rounds_the_first_refusal_is_final() -> None:
    bench = submitted(make_task("a"), review_of("a"), review_rounds_max=0)
    does(bench, "a")
    does(bench, "r", review=REFUSED)
    assert bench.task("p/r").reason == "it refuses p/a, one thing is wrong"


def test_what_lies_between_the_work_and_its_review_is_done_again() -> None:
    bench = submitted(make_task("a"), make_task("test", "a"), review_of("a", "r", "test"), make_task("b", "test"), agents=3)
    assert bench.task("p/b").spec.needs == (TaskId("p/test"), TaskId("p/r"))
    does(bench, "a")
    does(bench, "test")
    does(bench, "r", review=REFUSED)
    assert [bench.status(f"p/{name}") for name in ("a", "test", "r", "b")] == ["assigned", "pending", "pending", "pending"]
    does(bench, "a")
    does(bench, "test")
    does(bench, "r", review=APPROVED)
    assert bench.status("p/b") == "assigned"


def test_a_repair_that_fails_ends_the_review_too() -> None:
    bench = submitted(make_task("a", retries=0), review_of("a"))
    does(bench, "a")
    does(bench, "r", review=REFUSED)
    bench.begin("p/a", 2)
    bench.finish("p/a", 2, OutcomeKind.FAILED)
    assert (bench.status("p/a"), bench.status("p/r")) == ("failed", "cancelled")
    assert bench.plan().status.value == "failed"


def test_who_comes_later_waits_for_the_review_too() -> None:
    bench = submitted(make_task("a"), review_of("a"))
    does(bench, "a")
    bench.do(c.Submit((make_task("late", plan=None, needs=(TaskId("p/a"),)),)))
    assert bench.task("late").spec.needs == (TaskId("p/a"), TaskId("p/r"))


def test_a_review_that_says_nothing_is_no_success() -> None:
    bench = submitted(make_task("a"), review_of("a"))
    does(bench, "a")
    does(bench, "r")
    assert bench.status("p/r") == "retry_wait"
    assert "nothing was returned" in bench.task("p/r").reason


def test_what_a_review_changed_is_never_merged_and_repaired_work_is_merged_again() -> None:
    bench = submitted(make_task("a", isolated=True), review_of("a", isolated=True))
    does(bench, "a")
    bench.do(c.MergeDone(TaskId("p/a"), 1, "refs/heads/b", "abc", 1))
    bench.effects.clear()
    does(bench, "r", review=REFUSED)
    assert [effect for effect in bench.effects if isinstance(effect, DropWork | MergeWork)] == [
        DropWork(bench.effects[0].seq, TaskId("p/r"), 1)
    ]
    does(bench, "a")
    assert bench.status("p/a") == "merging"
    bench.do(c.MergeDone(TaskId("p/a"), 2, "refs/heads/b", "def", 1))
    does(bench, "r", review=APPROVED)
    assert (bench.status("p/r"), bench.task("p/a").commit) == ("completed", "def")


def test_a_new_coordinator_remembers_that_the_work_was_sent_back() -> None:
    bench = submitted(make_task("a"), review_of("a"))
    does(bench, "a")
    does(bench, "r", review=REFUSED)
    bench.take_over()
    assert (bench.task("p/r").refusals, bench.task("p/r").unmet) == (1, 1)
    assert "no test for the empty list" in bench.task("p/a").feedback


def test_of_several_reviewers_side_by_side_the_best_counts_and_a_cancelled_review_sends_nothing_back() -> None:
    bench = submitted(make_task("a"), review_of("a"))
    does(bench, "a")
    bench.begin("p/r")
    bench.do(c.CancelTask(TaskId("p/r"), "enough"))
    bench.finish("p/r", review=REFUSED)
    assert (bench.status("p/a"), bench.status("p/r")) == ("completed", "cancelled")


def test_unmet_criteria_are_findings_too() -> None:
    bench = submitted(make_task("a"), review_of("a", judges=("It is readable",)))
    does(bench, "a")
    does(bench, "r", review=Review(False, "no", (), (Judgement("It is readable", False, "one-letter names"),)))
    assert "not met: It is readable (one-letter names)" in bench.task("p/a").feedback


@pytest.mark.parametrize(
    "tasks, said",
    [
        ((make_task("a"), review_of("a"), review_of("a", "r2")), "both review"),
        ((make_task("a"), make_task("r", "a", reviews=TaskId("p/ghost"), returns="review")), "not in the plan"),
    ],
)
def test_reviews_that_cannot_be_are_refused(tasks: tuple[TaskSpec, ...], said: str) -> None:
    bench = Bench(make_agents(1))
    with pytest.raises(PlanInvalid, match=said):
        bench.submit(*tasks)


def test_reviews_of_two_tasks_that_need_both_are_made_one_after_the_other() -> None:
    bench = submitted(make_task("a"), make_task("b"), review_of("a", "r", "b"), review_of("b", "s", "a"), agents=3)
    does(bench, "a")
    does(bench, "b")
    assert (bench.status("p/r"), bench.status("p/s")) == ("assigned", "pending")
    does(bench, "r", review=APPROVED)
    does(bench, "s", review=REFUSED)
    assert [bench.status(f"p/{name}") for name in "abrs"] == ["completed", "assigned", "pending", "pending"]
    does(bench, "b")
    does(bench, "r", review=APPROVED)
    does(bench, "s", review=APPROVED)
    assert bench.plan().status.value == "completed"


def test_a_review_of_a_review() -> None:
    bench = submitted(make_task("a"), review_of("a"), review_of("r", "second"), make_task("b", "a"), agents=3)
    does(bench, "a")
    does(bench, "r", review=APPROVED)
    assert bench.status("p/second") == "assigned"
    does(bench, "second", review=REFUSED)
    assert (bench.status("p/a"), bench.status("p/r"), bench.status("p/second")) == ("completed", "assigned", "pending")
    does(bench, "r", review=APPROVED)
    does(bench, "second", review=APPROVED)
    does(bench, "b")
    assert bench.plan().status.value == "completed"


def test_who_builds_on_a_review_that_may_be_sent_back_itself_waits_for_that_one_too() -> None:
    """Review r of a needs b, which s reviews: a refusal by s sends r back as well."""
    bench = submitted(make_task("a"), make_task("b"), review_of("b", "s", "r"), review_of("a", "r", "b"), make_task("c", "a"), agents=3)
    assert set(bench.task("p/c").spec.needs) == {"p/a", "p/r", "p/s"}
    bench.do(c.Submit((make_task("late", plan=None, needs=(TaskId("p/a"),)),)))
    assert set(bench.task("late").spec.needs) == {"p/a", "p/r", "p/s"}
