"""What tasks will cost: from what such tasks cost before, else from prices and the stated assumption."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.core.state import State
from orchestra.ids import AttemptId
from orchestra.metering.forecast import (
    ASSUMED_HIGH_PERCENT,
    ASSUMED_LOW_PERCENT,
    PROMPT,
    Forecast,
    History,
    Paid,
    Past,
    Sample,
    added,
    forecast,
    of_tokens,
    percentile,
    spread,
)
from orchestra.metering.prices import Price, Quote, cost_usd_micros
from orchestra.testing.builders import Bench, make_agents, make_task

PRICE = Price(input=3_000_000, output=15_000_000, cache_read=300_000, cache_write_5m=3_750_000)
REQUEST_USD_MICROS = cost_usd_micros(PRICE, PROMPT)
NOTHING = State()


def quote(spec: TaskSpec) -> Quote:
    return Quote(PRICE, "sonnet")


def history(state: State, paid: Mapping[str, Paid] | None = None) -> History:
    return History(state, lambda attempt: (paid or {}).get(str(attempt)), quote)


def guess(spec: TaskSpec, past: History, expected_ms: int = 60_000) -> Forecast:
    return forecast(spec, past, quote, expected_ms)


def claude(name: str, plan: str = "p", **fields: Any) -> TaskSpec:
    return make_task(name, plan=plan, kind="claude", **fields)


def ran(costs: Mapping[str, list[int]], *, plan: str = "p", duration_ms: int = 1000, **fields: Any) -> Bench:
    """A world in which tasks of a plan were done, each with so many attempts of those costs; the last one is done, those before failed."""
    bench = Bench(make_agents(1))
    for run, (name, each) in enumerate(costs.items(), 1):
        head = f"{plan}.{run}" if run > 1 else plan
        bench.submit(claude(name, head, retries=9, **fields), plan=head)
        for number, cost in enumerate(each, 1):
            kind = OutcomeKind.DONE if number == len(each) else OutcomeKind.FAILED
            usage = Usage(requests=1, tokens_input=cost * 10, cost_usd_micros=cost)
            bench.finish(f"{head}/{name}", number, kind, usage=usage, duration_ms=duration_ms)
            bench.pass_time(3_600_000)
    return bench


def test_percentiles_are_values_that_were_seen() -> None:
    values = [50, 10, 40, 20, 30]
    assert (percentile(values, 10), percentile(values, 50), percentile(values, 90), percentile(values, 100)) == (10, 30, 50, 50)
    assert spread(list(range(1, 101))) == (10, 50, 90)
    assert spread([7]) == (7, 7, 7)


def test_the_same_task_of_earlier_runs_goes_first() -> None:
    bench = Bench(make_agents(1))
    for run in range(1, 4):
        plan = "p" if run == 1 else f"p.{run}"
        bench.submit(claude("build", plan), claude("other", plan), plan=plan)
        bench.finish(f"{plan}/build", usage=Usage(tokens_input=1, cost_usd_micros=run * 100))
        bench.finish(f"{plan}/other", usage=Usage(tokens_input=1, cost_usd_micros=900_000))
    found = guess(claude("build", "p.9"), history(bench.state))
    assert (found.cost_usd_micros, found.samples, found.basis) == ((100, 200, 300), 3, "3 attempts of this task")


def test_else_those_of_its_kind_and_category_else_of_its_kind() -> None:
    state = ran({"a": [10], "b": [20], "c": [30]}).state
    same = guess(claude("new", "q"), history(state))
    assert (same.cost_usd_micros, same.basis) == ((10, 20, 30), "3 attempts of kind claude in category coding")
    other = guess(claude("new", "q", category="research"), history(state))
    assert (other.cost_usd_micros, other.basis) == ((10, 20, 30), "3 attempts of kind claude")


def test_too_little_of_the_past_is_none() -> None:
    found = guess(claude("new", "q"), history(ran({"a": [10], "b": [20]}).state))
    assert (found.samples, found.quote) == (0, quote(claude("x")))


def test_what_the_gateway_settled_goes_before_what_programs_say() -> None:
    state = ran({"a": [10], "b": [20], "c": [30]}).state
    settled = {f"{plan}/{name}#1": Paid(5, 1_000) for plan, name in (("p", "a"), ("p.2", "b"), ("p.3", "c"))}
    found = guess(claude("new", "q"), history(state, settled))
    assert (found.cost_usd_micros, found.tokens) == ((1_000, 1_000, 1_000), (5, 5, 5))


def test_tokens_of_a_program_that_names_no_cost_are_priced() -> None:
    bench = Bench(make_agents(1))
    for name in "abc":
        bench.submit(claude(name, f"p{name}"), plan=f"p{name}")
        bench.finish(f"p{name}/{name}", usage=Usage(tokens_input=1_000_000))
    assert guess(claude("new", "q"), history(bench.state)).cost_usd_micros == (3_000_000,) * 3


def test_repetition_counts_as_far_as_retries_go() -> None:
    past = history(ran({"a": [10], "b": [10, 10, 10], "c": [10, 10]}).state)
    assert guess(claude("new", "q", retries=5), past).cost_usd_micros == (10, 20, 30)
    assert guess(claude("new", "q", retries=1), past).cost_usd_micros == (10, 20, 20)
    assert guess(claude("new", "q", retries=0), past).cost_usd_micros == (10, 10, 10)


def test_replicas_all_cost_and_run_at_the_same_time() -> None:
    past = history(ran({"a": [10], "b": [20], "c": [30]}, duration_ms=5_000).state)
    found = guess(claude("new", "q", replicas=4), past)
    assert (found.cost_usd_micros, found.duration_ms) == ((40, 80, 120), (5_000, 5_000, 5_000))


def test_no_guess_is_above_the_hard_stop() -> None:
    past = history(ran({"a": [10], "b": [20], "c": [30]}).state)
    assert guess(claude("new", "q", cost_usd_micros_max=15), past).cost_usd_micros == (10, 15, 15)
    assert guess(claude("new", cost_usd_micros_max=15), history(NOTHING)).cost_usd_micros == (15, 15, 15)


def test_an_attempt_of_which_nothing_is_known_tells_nothing() -> None:
    bench = Bench(make_agents(1))
    for name in "abcd":
        bench.submit(claude(name, f"p{name}", retries=0), plan=f"p{name}")
        bench.finish(f"p{name}/{name}", kind=OutcomeKind.LOST)
    assert guess(claude("new", "q"), history(bench.state)).samples == 0


def test_a_kind_that_never_called_a_model_costs_nothing() -> None:
    bench = Bench(make_agents(1))
    for name in "abc":
        bench.submit(make_task(name, plan=f"p{name}", kind="mine"), plan=f"p{name}")
        bench.finish(f"p{name}/{name}")
    assert guess(make_task("new", plan="q", kind="mine"), history(bench.state)).cost_usd_micros == (0, 0, 0)
    shell = guess(make_task("new"), history(NOTHING))
    assert (shell.cost_usd_micros, shell.tokens, shell.basis) == ((0, 0, 0), (0, 0, 0), "kind shell calls no model")


@pytest.mark.parametrize("expected_ms,requests", [(60_000, 6), (1_000, 3), (0, 3), (61_000, 7), (86_400_000, 400)])
def test_where_nothing_is_known_the_time_says_how_many_requests_are_assumed(expected_ms: int, requests: int) -> None:
    found = guess(claude("new", retries=0, estimate_ms=expected_ms), history(NOTHING), 7)
    likely = REQUEST_USD_MICROS * requests
    assert found.cost_usd_micros == (likely * ASSUMED_LOW_PERCENT // 100, likely, likely * ASSUMED_HIGH_PERCENT // 100)
    assert found.basis == f"{requests} requests assumed, at the price of sonnet"
    assert found.tokens[1] == 30_400 * requests


def test_retries_are_assumed_too() -> None:
    once, again = guess(claude("a", retries=0), history(NOTHING)), guess(claude("a", retries=3), history(NOTHING))
    assert again.cost_usd_micros[0] == once.cost_usd_micros[0]
    assert again.cost_usd_micros[1] == once.cost_usd_micros[1] * 120 // 100
    assert again.cost_usd_micros[2] == once.cost_usd_micros[2] * 2


def test_a_sum_of_ranges() -> None:
    assert added([(1, 2, 3), (10, 20, 30)]) == (11, 22, 33)
    assert added([]) == (0, 0, 0)


def test_tokens_that_are_given_cost_what_the_mixture_of_the_past_does() -> None:
    past = Past([Sample(1_000, 1_000, 100), Sample(2_000, 1_000, 200), Sample(3_000, 1_000, 300), Sample(0, 0, 5)])
    found = of_tokens(50_000, "claude", past, quote(claude("a")))
    assert (found.cost_usd_micros, found.duration_ms) == ((50_000, 100_000, 150_000), (5_000, 10_000, 15_000))
    assert found.basis == "the mixture of 3 attempts of kind claude"


def test_tokens_that_are_given_where_nothing_is_known() -> None:
    found = of_tokens(304_000, "claude", None, quote(claude("a")))
    assert found.cost_usd_micros == (REQUEST_USD_MICROS * 5, REQUEST_USD_MICROS * 10, REQUEST_USD_MICROS * 20)
    assert found.duration_ms == (100_000,) * 3
    assert of_tokens(0, "claude", None, quote(claude("a"))).cost_usd_micros == (0, 0, 0)


def test_the_kind_that_does_most_with_a_model() -> None:
    bench = ran({"a": [10], "b": [20]})
    for name in "wxyz":
        bench.submit(make_task(name, plan=f"p{name}"), plan=f"p{name}")
        bench.finish(f"p{name}/{name}")
    assert history(bench.state).busiest_kind() == "claude"
    assert history(NOTHING).busiest_kind() == ""


def test_names_of_attempts_are_those_the_gateway_knows() -> None:
    asked: list[AttemptId] = []
    History(ran({"a": [1]}).state, asked.append, quote)
    assert [str(each) for each in asked] == ["p/a#1"]
