"""What the gateway settled beside what the agents' programs said: rows, differences and totals."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core.model import OutcomeKind, Usage
from orchestra.costviews import CostRow, LimitView, ProviderLoad, Settled
from orchestra.ids import PlanId
from orchestra.spending import (
    BY,
    Fact,
    attempts_of,
    cost_rows,
    day_of,
    facts_of,
    gathered,
    limit_rows,
    provider_loads,
    read_settled,
    total_of,
    with_settled,
)
from orchestra.testing.builders import Bench, make_agents, make_task
from orchestra.testing.fake_usecases import make_attempt, make_detail
from orchestra.testing.fake_usecases import make_task as make_line

NOON = 1_762_948_800_000
"""2025-11-12, twelve o'clock UTC."""


def fact(name: str, cost: int = 0, *, agent: str = "1", plan: str = "p", tokens: int = 0) -> Fact:
    task = name.partition("#")[0]
    return Fact(name, task, agent, plan, "2025-11-12", Usage(requests=bool(tokens or cost), tokens_input=tokens, cost_usd_micros=cost))


def paid(cost: int, requests: int = 1, **more: int) -> Settled:
    return Settled(requests=requests, input_tokens=10 * requests, cost_usd_micros=cost, **more)


def by_name(rows: list[CostRow]) -> dict[str, CostRow]:
    return {row.name: row for row in rows}


def test_a_difference_is_that_of_the_attempts_that_both_sides_know() -> None:
    facts = [fact("p/a#1", 900), fact("p/a#2"), fact("p/a#3", 500), fact("p/b#1", 70)]
    attempts = {"p/a#1": paid(1_000), "p/a#2": paid(4_000), "p/b#1": paid(70)}
    scope = {"p/a": paid(5_000, 2), "p/b": paid(70)}
    rows = by_name(cost_rows("task", facts, scope, attempts, None))
    a = rows["p/a"]
    assert (a.settled_usd_micros, a.said_usd_micros, a.difference_usd_micros) == (5_000, 1_400, 100)
    assert (a.compared_attempts, a.unsaid_attempts, a.uncounted_attempts) == (1, 1, 1)
    assert (rows["p/b"].difference_usd_micros, rows["p/b"].compared_attempts) == (0, 1)


def test_a_program_that_names_no_cost_makes_no_difference() -> None:
    rows = cost_rows("task", [fact("p/a#1", tokens=100)], {"p/a": paid(9)}, {"p/a#1": paid(9)}, None)
    assert (rows[0].said_usd_micros, rows[0].difference_usd_micros, rows[0].unsaid_attempts) == (None, None, 1)


def test_without_a_gateway_the_figures_are_the_programs_own() -> None:
    rows = cost_rows("task", [fact("p/a#1", 900, tokens=77), fact("p/idle#1")], None, None, None)
    assert [(row.name, row.input_tokens, row.settled_usd_micros, row.said_usd_micros) for row in rows] == [("p/a", 77, None, 900)]
    total = total_of(rows, counted=False)
    assert (total.settled_usd_micros, total.said_usd_micros, total.difference_usd_micros) == (None, 900, None)


def test_the_rows_add_up_to_the_whole() -> None:
    scope = {"p/a": paid(10, assumed_requests=1), "p/b": paid(20, unpriced_requests=1)}
    rows = cost_rows("task", [], scope, {}, paid(50, 5))
    assert [(row.name, row.settled_usd_micros, row.requests) for row in rows] == [("p/b", 20, 1), ("p/a", 10, 1), ("", 20, 3)]
    total = total_of(rows, counted=True)
    assert (total.name, total.settled_usd_micros, total.requests, total.assumed_requests, total.unpriced_requests) == ("total", 50, 5, 1, 1)


def test_nothing_at_all() -> None:
    assert cost_rows("task", [], {}, {}, Settled()) == []
    assert total_of([], counted=True).settled_usd_micros == 0
    assert total_of([], counted=False).settled_usd_micros is None


def test_agents_stand_in_the_order_of_their_numbers_and_days_of_time() -> None:
    agents = cost_rows("agent", [], {"10": paid(1), "2": paid(5), "1": paid(3)}, {}, None)
    assert [row.name for row in agents] == ["1", "2", "10"]
    days = cost_rows("day", [], {"2026-01-02": paid(1), "2025-12-31": paid(5)}, {}, None)
    assert [row.name for row in days] == ["2025-12-31", "2026-01-02"]


def test_models_are_not_told_apart_by_programs() -> None:
    rows = by_name(cost_rows("model", [fact("p/a#1", 900)], {"opus": paid(1_000)}, {"p/a#1": paid(1_000)}, paid(1_000)))
    assert (rows["opus"].said_usd_micros, rows["opus"].settled_usd_micros) == (None, 1_000)
    assert (rows[""].said_usd_micros, rows[""].settled_usd_micros) == (900, 0)


def test_facts_of_a_state() -> None:
    bench = Bench(make_agents(2))
    bench.now_ms = NOON
    bench.submit(make_task("a"), make_task("b"))
    bench.submit(make_task("lone", plan=None), plan=None)
    bench.finish("p/a", usage=Usage(requests=2, cost_usd_micros=7))
    facts = {each.attempt: each for each in facts_of(bench.state)}
    assert list(facts) == ["p/a#1", "p/b#1", "lone#1"]
    assert facts["p/a#1"] == Fact("p/a#1", "p/a", "1", "p", "2025-11-12", Usage(requests=2, cost_usd_micros=7))
    assert (facts["lone#1"].plan, facts["p/b#1"].said) == ("", Usage())
    assert [each.attempt for each in facts_of(bench.state, PlanId("p"))] == ["p/a#1", "p/b#1"]
    assert [facts["p/a#1"].name_in(by) for by in BY] == ["p/a", "1", "", "2025-11-12", "p", "p/a#1"]
    assert day_of(NOON) == "2025-11-12"


def test_attempts_gathered_by_agent() -> None:
    facts = [fact("p/a#1"), fact("p/a#2", agent="2"), fact("p/b#1"), fact("p/c#1")]
    found = gathered(facts, "agent", {"p/a#1": paid(1), "p/a#2": paid(2), "p/b#1": paid(4)})
    assert {name: each.cost_usd_micros for name, each in found.items()} == {"1": 5, "2": 2}


def test_an_answer_of_a_later_gateway_is_read_too() -> None:
    row = {"requests": 1, "input_tokens": 2, "cost_usd_micros": 3, "something_new": 4}
    assert read_settled({"usage": {"a": row}}) == {"a": Settled(requests=1, input_tokens=2, cost_usd_micros=3)}


def make_lane(upstream: str, model_class: str, *limits: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    views = [
        {"name": name, "limit": most, "left": most - used, "used": used, "used_percent": used * 100 // most, "foreign": 4, "learned": True}
        for name, most, used in limits
    ]
    lane = {"waiting": 0, "in_flight": 0, "concurrency": 8, "closed_ms": 0, "parked_ms": 0}
    return {"upstream": upstream, "account": "main", "model_class": model_class, **lane, "limits": views, **more}


def test_limits_are_a_row_each_and_a_lane_without_one_too() -> None:
    rows = limit_rows({"lanes": [make_lane("a", "opus-5", ("requests", 50, 10), parked_ms=9), make_lane("b", "x")]})
    assert rows[0] == LimitView("a", "main", "opus-5", "requests", 50, 10, 40, 20, True, 0, 0, 8, 9, 4)
    assert (rows[1].name, rows[1].limit, rows[1].used_percent) == ("", None, None)


def test_the_load_of_an_upstream_is_that_of_its_tightest_place() -> None:
    lanes = [
        make_lane("a", "opus-5", ("requests", 50, 10), ("input_tokens", 1000, 100), ("output_tokens", 100, 90)),
        make_lane("a", "haiku-5", ("requests", 100, 60), ("requests_per_day", 10, 10)),
        make_lane("b", "x"),
    ]
    assert provider_loads(limit_rows({"lanes": lanes})) == (ProviderLoad("a", 60, 100, 90, 100), ProviderLoad("b"))


@pytest.mark.parametrize("kind", [OutcomeKind.FAILED, OutcomeKind.DONE])
def test_a_failed_attempt_is_paid_for_too(kind: OutcomeKind) -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.finish("p/a", kind=kind, usage=Usage(cost_usd_micros=7))
    assert cost_rows("task", facts_of(bench.state), None, None, None)[0].said_usd_micros == 7


def test_a_task_shows_what_was_settled_for_its_attempts_where_anything_was() -> None:
    detail = make_detail(make_line("p/a"), *(make_attempt(number=number, tokens=7, cost_usd_micros=5) for number in (1, 2, 3)))
    shown = with_settled(detail, {"p/a#1": paid(900), "p/a#2": Settled(), "p/b#3": paid(1)}).attempts
    assert [(each.tokens, each.cost_usd_micros, each.settled) for each in shown] == [(10, 900, True), (7, 5, False), (7, 5, False)]
    assert with_settled(detail, {}) == detail
    assert [str(each) for each in attempts_of([detail])] == ["p/a#1", "p/a#2", "p/a#3"]
