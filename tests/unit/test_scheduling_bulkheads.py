"""A flood in one category, one plan or one node leaves room for the others."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Strategy
from orchestra.engine.kernel import Kernel
from orchestra.ids import AgentId, NodeId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

B = NodeId("b")


def flood(bench: Bench, count: int, plan: str = "flood", **fields: Any) -> None:
    bench.submit(*(make_task(str(number), plan=plan, **fields) for number in range(count)), plan=plan)


def taken(bench: Bench) -> Counter[str]:
    """Counts the agents at work by the category they are meant for."""
    return Counter(bench.agent(attempt.agent).spec.category for _, attempt in bench.state.live_attempts())


def mixed(coding: int, review: int) -> tuple[AgentSpec, ...]:
    return (*make_agents(coding, category="coding"), *make_agents(review, first=coding + 1, category="review"))


# --- categories ------------------------------------------------------------------------------------------------------


def test_a_flood_of_one_category_gets_no_more_than_four_fifths_of_anothers_agents() -> None:
    bench = Bench(mixed(10, 10))
    flood(bench, 40, category="coding")
    assert taken(bench) == {"coding": 10, "review": 8}
    flood(bench, 4, "late", category="review")
    assert [bench.status(f"late/{number}") for number in range(4)] == ["assigned", "assigned", "queued", "queued"]


def test_what_is_kept_stays_kept_when_lent_agents_become_free() -> None:
    bench = Bench(mixed(5, 5))
    flood(bench, 40, category="coding")
    for _ in range(3):
        lent = next(i for i, attempt in bench.state.live_attempts() if bench.agent(attempt.agent).spec.category == "review")
        bench.finish(lent.task, lent.number)
    assert taken(bench) == {"coding": 5, "review": 4}


def test_own_agents_come_before_lent_ones() -> None:
    bench = Bench(mixed(5, 5))
    flood(bench, 3, category="review")
    assert taken(bench) == {"review": 3}


def test_a_category_uses_all_of_its_own() -> None:
    bench = Bench(mixed(5, 5))
    flood(bench, 5, category="review")
    assert taken(bench) == {"review": 5}


def test_agents_for_all_categories_are_kept_for_nobody() -> None:
    bench = Bench((*make_agents(5), *make_agents(5, first=6, category="review")))
    flood(bench, 40, category="coding")
    assert taken(bench) == {"": 5, "review": 4}


def test_what_cannot_be_lent_holds_up_nobody_elses_tasks() -> None:
    bench = Bench(mixed(0, 5))
    flood(bench, 40, category="coding")
    flood(bench, 1, "late", category="review")
    assert (taken(bench)["review"], bench.status("late/0")) == (5, "assigned")


def test_tasks_that_waited_before_the_fleet_was_divided_are_told_apart_too() -> None:
    bench = Bench(make_agents(1))
    flood(bench, 10, category="coding")
    flood(bench, 2, "late", category="review")
    bench.do(c.Scale(6, "immediate", make_agents(5, first=2, category="review")))
    bench.come_up(*range(2, 7))
    assert taken(bench) == {"": 1, "review": 5}
    assert "assigned" in [bench.status(f"late/{number}") for number in range(2)], "one agent was kept for them"


def test_replicas_may_be_partly_lent() -> None:
    bench = Bench(mixed(1, 5))
    bench.submit(make_task("a", category="coding", replicas=5))
    assert taken(bench) == {"coding": 1, "review": 4}
    bench.submit(make_task("b", plan="q", category="coding", replicas=2), plan="q")
    assert bench.status("q/b") == "queued"


@pytest.mark.parametrize("strategy", list(Strategy))
def test_every_rule_respects_what_is_kept(strategy: Strategy) -> None:
    bench = Bench(mixed(5, 5))
    flood(bench, 40, category="coding", strategy=strategy)
    bench.now_ms += 60_000
    bench.do(c.Tick())
    assert taken(bench)["review"] == 4


# --- plans, nodes ----------------------------------------------------------------------------------------------------


def test_work_is_spread_by_the_share_of_each_node_that_is_free() -> None:
    bench = Bench((*make_agents(6), *make_agents(3, "b", first=7)), nodes=(NodeSpec(NODE), NodeSpec(B)))
    flood(bench, 6)
    assert Counter(attempt.node for _, attempt in bench.state.live_attempts()) == {NODE: 4, B: 2}


def test_a_stronger_node_gets_more() -> None:
    bench = Bench((*make_agents(8), *make_agents(8, "b", first=9)), nodes=(NodeSpec(NODE), NodeSpec(B, weight=300)))
    flood(bench, 8)
    assert Counter(attempt.node for _, attempt in bench.state.live_attempts()) == {NODE: 2, B: 6}


def test_an_agent_meant_for_the_category_goes_before_a_freer_node() -> None:
    fleet = (*make_agents(2, category="coding"), *make_agents(2, "b", first=3))
    bench = Bench(fleet, nodes=(NodeSpec(NODE), NodeSpec(B)))
    flood(bench, 4, category="review")
    assert Counter(attempt.node for _, attempt in bench.state.live_attempts()) == {NODE: 2, B: 2}


def test_a_flood_in_one_plan_leaves_half_to_another() -> None:
    bench = Bench(mixed(4, 4))
    flood(bench, 40, category="coding")
    flood(bench, 40, "other", category="coding")
    for _ in range(8):
        oldest = next(attempt_id for attempt_id, _ in bench.state.live_attempts())
        bench.finish(oldest.task)
    plans = Counter(str(attempt_id.task).partition("/")[0] for attempt_id, _ in bench.state.live_attempts())
    assert plans["flood"] == plans["other"]


def test_the_same_is_decided_after_a_restart() -> None:
    bench = Bench(mixed(5, 5))
    flood(bench, 40, category="coding")
    flood(bench, 5, "late", category="review")
    twin = Kernel.restore(bench.policy, None, bench.ledger.read())
    done = next(attempt_id for attempt_id, _ in bench.state.live_attempts())
    end = c.AttemptFinished(done.task, done.number, Outcome(OutcomeKind.DONE))
    bench.do(end)
    twin.take(end, bench.now_ms)
    twin.schedule(bench.now_ms)
    assert sorted(str(i) for i, _ in twin.state.live_attempts()) == sorted(str(i) for i, _ in bench.state.live_attempts())


def test_an_agent_added_to_a_fleet_is_lent_like_the_others() -> None:
    bench = Bench(mixed(1, 4))
    bench.do(c.Scale(6, "immediate", (AgentSpec(AgentId(6), NODE, category="review"),)))
    bench.come_up(6)
    flood(bench, 40, category="coding")
    assert taken(bench) == {"coding": 1, "review": 4}
