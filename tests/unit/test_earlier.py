"""What the next attempt is told of those before it: nothing that is still to be repaired is forgotten on the way."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core import commands as c
from orchestra.core.model import CheckResult, Finding, OutcomeKind, Payload, Review
from orchestra.engine.earlier import FEEDBACK_CHARACTERS_MAX, earlier_of, together
from orchestra.ids import AttemptId, TaskId
from orchestra.testing.builders import Bench, make_agents, make_task
from orchestra.workspace import Repair

A = TaskId("p/a")
BROKEN = (CheckResult("tests", False, 1, tail=("2 failed",)), CheckResult("lint", True, 0, tail=("all clean",)))


def bench(*ends: OutcomeKind, **fields: Any) -> Bench:
    """A task after attempts that ended so, each with the next one under way."""
    found = Bench(make_agents(2), c.Policy(conflicts_max=5))
    found.submit(make_task("a", **{"retries": 9, "backoff_ms": 1, **fields}))
    for number, kind in enumerate(ends, 1):
        ends_so(found, number, kind)
    return found


def ends_so(found: Bench, number: int, kind: OutcomeKind, **fields: Any) -> None:
    found.begin("p/a", number)
    checks = BROKEN if kind is OutcomeKind.UNVERIFIED else ()
    found.finish("p/a", number, kind, checks=fields.pop("checks", checks), **fields)
    found.pass_time(3_600_000)


def told(found: Bench) -> str:
    assert found.task("p/a").live_attempts(), "the next attempt is there already when its order is made"
    return earlier_of(found.task("p/a")).feedback


@pytest.mark.parametrize(
    "after",
    [
        (),
        (OutcomeKind.LOST,),
        (OutcomeKind.TIMEOUT,),
        (OutcomeKind.MEMORY,),
        (OutcomeKind.FAILED,),
        (OutcomeKind.DEFERRED,),
        (OutcomeKind.TIMEOUT, OutcomeKind.LOST, OutcomeKind.FAILED),
    ],
)
def test_what_a_check_said_is_told_until_an_attempt_passes_it(after: tuple[OutcomeKind, ...]) -> None:
    found = bench(OutcomeKind.UNVERIFIED, *after)
    assert "The check 'tests' ended with:\n    2 failed" in told(found)
    assert "all clean" not in told(found)


def test_of_two_failures_the_last_one_counts() -> None:
    found = bench(OutcomeKind.UNVERIFIED)
    ends_so(found, 2, OutcomeKind.UNVERIFIED, checks=(CheckResult("tests", False, 1, tail=("1 failed",)),))
    assert "1 failed" in told(found)
    assert "2 failed" not in told(found)


def test_why_the_last_attempt_ended_is_told_where_its_agent_had_a_part_in_it() -> None:
    assert told(bench(OutcomeKind.FAILED)) == "An earlier attempt at this did not succeed: was failed"
    assert told(bench(OutcomeKind.TIMEOUT)).endswith("was timeout")
    assert told(bench(OutcomeKind.UNVERIFIED, OutcomeKind.FAILED)).endswith(
        "A later one, which was to repair that, did not succeed either: was failed"
    )
    assert told(bench(OutcomeKind.LOST)) == ""
    assert told(bench(OutcomeKind.FAILED, OutcomeKind.LOST)) == ""


def test_a_check_that_was_passed_since_is_not_told_again() -> None:
    found = bench(OutcomeKind.UNVERIFIED, OutcomeKind.DONE, isolated=True)
    found.do(c.MergeConflicted(A, 2, ("f.py",), "both sides"))
    assert told(found) == "both sides"
    ends_so(found, 3, OutcomeKind.LOST)
    assert told(found) == "both sides"
    ends_so(found, 4, OutcomeKind.UNVERIFIED)
    assert told(found).startswith("both sides\n\nAn earlier attempt")
    assert "2 failed" in told(found)


def test_a_conflict_of_the_repair_does_not_push_out_what_the_review_found() -> None:
    review = make_task("r", "a", returns="review", reviews=A, isolated=True)
    found = Bench(make_agents(2), c.Policy(conflicts_max=5))
    found.submit(make_task("a", isolated=True), review)
    ends_so(found, 1, OutcomeKind.DONE)
    found.do(c.MergeDone(A, 1, "b", "c0ffee", 1))
    found.begin("p/r")
    found.finish("p/r", review=Review(False, "wanting", (Finding("major", "no test for the empty list", "a.py", 7),)))
    assert "no test for the empty list" in told(found)
    ends_so(found, 2, OutcomeKind.DONE)
    for sides in ("both sides", "both sides, later"):
        number = len(found.task("p/a").attempts)
        if found.task("p/a").merging != number:
            ends_so(found, number, OutcomeKind.DONE)
        found.do(c.MergeConflicted(A, number, ("f.py",), sides))
        assert "no test for the empty list" in told(found)
        assert told(found).endswith(f"\n\n{sides}"), "of two conflicts the last one counts"
    ends_so(found, 4, OutcomeKind.DONE)
    found.do(c.MergeDone(A, 4, "b", "c0ffee", 1))
    assert earlier_of(found.task("p/a")).feedback == "", "what is merged is repaired"


def test_nobody_is_told_of_those_that_try_beside_it() -> None:
    found = bench(replicas=2, retries=1)
    found.begin("p/a", 1)
    found.finish("p/a", 1, OutcomeKind.UNVERIFIED, checks=BROKEN)
    assert told(found) == ""


def test_what_is_told_has_a_limit_and_the_short_is_kept_whole() -> None:
    assert together(["", "one", "", "two"], 100) == "one\n\ntwo"
    parts = ["short", "a" * 80_000, "b" * 90_000]
    found = together(parts, FEEDBACK_CHARACTERS_MAX)
    assert len(found) <= FEEDBACK_CHARACTERS_MAX
    assert found.startswith("short\n\naaa")
    assert found.count("[the rest is left out]") == 2
    assert found.count("b") > 30_000
    assert together([], 100) == ""


def test_only_work_of_agents_on_a_task_of_its_own_place_is_gone_on_with() -> None:
    prompt = Payload("analysis", "write a poem")
    found = bench(isolated=True, payload=prompt)
    found.do(c.AttemptBegan(A, 1, 4711, 1, "c0ffee"))
    ends_so(found, 1, OutcomeKind.UNVERIFIED)
    assert earlier_of(found.task("p/a")).repairs == Repair(AttemptId(A, 1), "c0ffee")
    found.do(c.NoteLetGo(A, 1, "refs/orchestra/salvage/p/a.1"))
    ends_so(found, 2, OutcomeKind.LOST)
    assert earlier_of(found.task("p/a")).repairs == Repair(AttemptId(A, 1), "c0ffee", "refs/orchestra/salvage/p/a.1")
    for fields in ({"isolated": True}, {"payload": prompt}):
        assert earlier_of(bench(OutcomeKind.UNVERIFIED, **fields).task("p/a")).repairs is None, (
            "a command is run anew, and a shared folder is as it is"
        )
    for kind in (OutcomeKind.FAILED, OutcomeKind.LOST, OutcomeKind.TIMEOUT):
        assert earlier_of(bench(kind, isolated=True, payload=prompt).task("p/a")).repairs is None
    for attempts in (1, 2):
        found = bench(*[OutcomeKind.UNVERIFIED] * (attempts - 1), OutcomeKind.DONE, isolated=True, payload=prompt)
        found.do(c.MergeConflicted(A, attempts, ("f.py",), "both sides"))
        assert earlier_of(found.task("p/a")).repairs is None, "it begins on top of the others' work"
