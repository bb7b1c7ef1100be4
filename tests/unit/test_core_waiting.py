"""Attempts that wait for an answer: as a state, over a lost sight, and until whatever ends it."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import OutcomeKind
from orchestra.core.waiting import attempt_to_answer
from orchestra.errors import IllegalMove
from orchestra.ids import NodeId, TaskId
from orchestra.scheduling.explain import explain
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

TASK = TaskId("p/a")


def asks(question: str = "May it use Write?", number: int = 1, attempt: int = 1) -> c.AttemptAsks:
    return c.AttemptAsks(TASK, attempt, question, number)


def goes_on(attempt: int = 1) -> c.AttemptGoesOn:
    return c.AttemptGoesOn(TASK, attempt)


def bench_with(replicas: int = 1) -> Bench:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", replicas=replicas))
    for number in range(1, replicas + 1):
        bench.begin(TASK, number)
    return bench


def test_a_question_makes_the_task_wait_and_the_answer_ends_that() -> None:
    bench = bench_with()
    assert bench.do(asks()) == [e.AttemptWaiting(TASK, 1, "May it use Write?", 1)]
    assert bench.status(TASK) == "waiting"
    bench.now_ms += 2500
    assert "a question of agent #1, 2.5s old" in explain(bench.state, TASK, bench.now_ms)
    assert bench.do(asks()) == []
    assert bench.do(goes_on()) == [e.AttemptAnswered(TASK, 1, 2500)]
    assert (bench.status(TASK), bench.task(TASK).attempts[0].waited_ms) == ("running", 2500)
    assert bench.do(goes_on()) == []


def test_question_and_answer_may_come_in_one_turn() -> None:
    bench = bench_with()
    assert [type(event) for event in bench.do(asks(), goes_on(), asks("And now?", 2))] == [
        e.AttemptWaiting,
        e.AttemptAnswered,
        e.AttemptWaiting,
    ]
    assert bench.task(TASK).attempts[0].question == "And now?"


@pytest.mark.parametrize("kind", [OutcomeKind.DONE, OutcomeKind.TIMEOUT, OutcomeKind.LOST])
def test_an_end_ends_the_waiting_too(kind: OutcomeKind) -> None:
    bench = bench_with()
    bench.do(asks())
    bench.now_ms += 1000
    assert bench.finish(TASK, kind=kind)[0] == e.AttemptAnswered(TASK, 1, 1000)
    assert bench.task(TASK).attempts[0].question == ""
    assert bench.do(asks("late")) == []


def test_it_waits_still_when_it_comes_into_sight_again() -> None:
    bench = bench_with()
    bench.do(asks())
    since = bench.now_ms
    bench.now_ms += 1000
    bench.do(c.NodeDown(NODE, "cut"))
    assert bench.status(TASK) == "unknown"
    bench.do(c.NodeUp(NodeId(NODE), "boot", "session"))
    assert e.AttemptWaiting(TASK, 1, "May it use Write?", 1, again=True) in bench.do(c.AttemptSeen(TASK, 1))
    assert (bench.status(TASK), bench.task(TASK).attempts[0].waiting_ms) == ("waiting", since)


def test_an_answer_while_out_of_sight_is_not_forgotten() -> None:
    bench = bench_with()
    bench.do(asks())
    bench.do(c.NodeDown(NODE, "cut"))
    bench.do(c.NodeUp(NodeId(NODE), "boot", "session"), goes_on())
    bench.do(c.AttemptSeen(TASK, 1))
    assert bench.status(TASK) == "running"


def test_who_may_be_answered() -> None:
    bench = bench_with(replicas=2)
    with pytest.raises(IllegalMove, match="does not wait for an answer: it is running"):
        attempt_to_answer(bench.task(TASK))
    bench.do(asks("b", attempt=2))
    bench.now_ms += 1
    bench.do(asks("a", 5))
    assert attempt_to_answer(bench.task(TASK)).number == 2
    assert attempt_to_answer(bench.task(TASK), 5).number == 1
    with pytest.raises(IllegalMove, match="question 4 any more"):
        attempt_to_answer(bench.task(TASK), 4)
