"""Limits where requests use something else than was guessed: what is settled counts as if it had been known when the request was sent."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.metering.bucket import Bucket
from orchestra.metering.estimates import Estimator
from orchestra.metering.formulas import FORMULAS, OUTPUT, TOKENS, reserve, settle
from orchestra.metering.group import Group
from orchestra.metering.lane import Ticket
from orchestra.metering.usage import ANSWERS_ENOUGH, Estimate, Usage
from tests.unit.test_metering_limits import MINUTE_MS, FillingJudge, Judge, lane_of

Draw = Callable[[random.Random], int]


def between(low: int, high: int) -> Draw:
    return lambda chance: chance.randrange(low, high)


@pytest.mark.parametrize(
    "kind,limit,agents,prompt,answer,output_max",
    [
        pytest.param("anthropic", {OUTPUT: 8_000}, 5, 30, between(4_000, 4_001), 8_000, id="few long answers"),
        pytest.param("anthropic", {OUTPUT: 8_000}, 5, 30, between(4_000, 4_001), 32_000, id="more allowed than the limit"),
        pytest.param("anthropic", {OUTPUT: 80_000}, 50, 30, between(100, 4_000), 32_000, id="long and short answers"),
        pytest.param("anthropic", {OUTPUT: 60_000}, 200, 100, between(200, 600), 8_000, id="many"),
        pytest.param("anthropic", {TOKENS: 1_000}, 5, 200, between(300, 301), 400, id="prompts and answers"),
        pytest.param("openai", {TOKENS: 1_000}, 5, 200, between(300, 301), 0, id="no length said"),
        pytest.param("openai", {TOKENS: 1_000}, 5, 300, between(200, 201), 250, id="more than the length said, with the prompt"),
        pytest.param("openai", {TOKENS: 60_000}, 200, 100, between(20, 600), 0, id="openai, long and short"),
        pytest.param("openai", {TOKENS: 60_000}, 200, 100, between(20, 60), 1_000, id="less than the length said"),
        pytest.param("gemini", {TOKENS: 60_000}, 200, 100, between(200, 600), 0, id="gemini"),
    ],
)
def test_answers_nobody_could_know(kind: str, limit: dict[str, int], agents: int, prompt: int, answer: Draw, output_max: int) -> None:
    """From the first request on, of which nothing is known: never over by more than one, and of the limit at least 95 % is used while all want more."""
    formula, lane, estimator, chance = FORMULAS[kind], lane_of(kind, limit), Estimator(), random.Random(1)
    ((name, most),) = limit.items()
    judge: Judge | FillingJudge = FillingJudge(most) if kind == "anthropic" else Judge(most)
    warm_ms, end_ms, now_ms, used, largest, sent = 2 * MINUTE_MS, 12 * MINUTE_MS, 0, 0, 0, 0
    ends: list[tuple[int, int, Ticket, object, Usage]] = []

    def ask(agent: str) -> Ticket:
        estimate = estimator.estimate(agent, "m", prompt * 4, output_max)
        recount = lambda: lane.group.charge_of(estimator.renewed(estimate, "m"))  # noqa: E731
        return Ticket(agent, 3, reserve(formula, estimate), estimate.weight, recount=recount)

    def go(ticket: Ticket, held: object) -> None:
        nonlocal sent, used, largest
        usage = Usage(prompt, output_tokens=answer(chance))
        took = settle(formula, ticket.charge, usage)[name]
        judge.count(now_ms, took)
        sent, used, largest = sent + 1, used + (took if now_ms >= warm_ms else 0), max(largest, took)
        heapq.heappush(ends, (now_ms + 5_000 + chance.randrange(8_000), sent, ticket, held, usage))

    for number in range(agents):
        ticket = ask(f"agent-{number}")
        if (held := lane.offer(ticket, 0)) is not None:
            go(ticket, held)
    while now_ms < end_ms:
        wait_ms = lane.ask_again_ms(now_ms)
        now_ms = min(ends[0][0] if ends else end_ms, now_ms + wait_ms if wait_ms else end_ms)
        while ends and ends[0][0] <= now_ms:
            _, _, ticket, reservation, usage = heapq.heappop(ends)
            lane.group.settle(reservation, usage, now_ms)  # type: ignore[arg-type]
            estimator.learn(ticket.flow, "m", prompt * 4, usage)
            lane.release(ticket)
            again = ask(ticket.flow)
            if (held := lane.offer(again, now_ms)) is not None:
                go(again, held)
        for ticket, held in lane.admit(now_ms):
            go(ticket, held)
    assert judge.over <= largest
    assert used >= 0.95 * most * (end_ms - warm_ms) / MINUTE_MS, f"{used * MINUTE_MS / most / (end_ms - warm_ms):.3f} of the limit used"


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 400), st.integers(0, 400), st.integers(0, 50_000)), max_size=50),
    st.booleans(),
)
def test_what_is_put_back_is_no_more_than_there_was(steps: list[tuple[int, int, int, int]], exact: bool) -> None:
    """Requests that reserve, and are settled later with less: no provider that knew from the start would have been asked for too much."""
    bucket = Bucket(400, MINUTE_MS, 6_000 if exact else MINUTE_MS, 0, exact=exact)
    judge: Judge | FillingJudge = Judge(400) if exact else FillingJudge(400)
    ends: list[tuple[int, int, int, object]] = []
    now_ms = 0

    def settle_until(at_ms: int) -> None:
        while ends and ends[0][0] <= at_ms:
            end_ms, _, difference, use = heapq.heappop(ends)
            bucket.correct(difference, use, end_ms)  # type: ignore[arg-type]

    for number, (pause_ms, reserved, used, takes_ms) in enumerate(steps):
        now_ms += pause_ms
        settle_until(now_ms)
        while (wait_ms := bucket.wait_ms(reserved, now_ms)) > 0:
            now_ms += wait_ms
            settle_until(now_ms)
        use = bucket.take(reserved, now_ms)
        judge.count(now_ms, min(used, reserved))
        heapq.heappush(ends, (now_ms + takes_ms, number, min(used, reserved) - reserved, use))
    assert judge.over <= (0.01 if exact else 1), "of a rounding, and of what grows back within a slot of time"


def test_what_goes_beyond_the_reservation_is_charged_at_every_provider() -> None:
    for formula in FORMULAS.values():
        held = reserve(formula, Estimate(100, 0, 50, 0))
        assert settle(formula, held, Usage(300, output_tokens=700))[TOKENS] == 1_000
    openai = FORMULAS["openai"]
    assert settle(openai, reserve(openai, Estimate(100, 0, 50, 4_096)), Usage(100, output_tokens=10))[TOKENS] == 4_096
    assert settle(openai, reserve(openai, Estimate(100, 0, 50, 0)), Usage(10, output_tokens=10))[TOKENS] == 100, (
        "the prompt as it was estimated"
    )


def test_until_answers_were_seen_more_is_reserved() -> None:
    group = Group(FORMULAS["anthropic"], {OUTPUT: 8_000}, 100, 0)
    estimator = Estimator()
    found = []
    for _ in range(ANSWERS_ENOUGH + 1):
        found.append(group.charge_of(estimator.estimate("a", "m", 400, 32_000))[OUTPUT])
        estimator.learn("b", "m", 400, Usage(1, output_tokens=100))
    assert found == [8_000, 4_000, 2_666, 2_000, 1_600, 1_333, 1_142, 1_000, 100]
    held = group.take(group.charge_of(estimator.estimate("a", "other", 400, 32_000)), 0)
    (view,) = group.view(0)
    assert (view.left, view.used, group.changes(0)) == (0, 256, []), "nobody is warned of a caution"
    group.settle(held, Usage(1, output_tokens=300), 0)
    (view,) = group.view(0)
    assert (view.left, view.used) == (7_700, 300)
    assert group.charge_of(estimator.estimate("a", "other", 400, 500))[OUTPUT] == 500, "never more than is allowed"
    assert Group(FORMULAS["anthropic"], {}, 100, 0).charge_of(estimator.estimate("a", "other", 400, 500))[OUTPUT] == 256


def test_a_refusal_charges_no_caution() -> None:
    group = Group(FORMULAS["openai"], {TOKENS: 10_000}, 100, 0)
    held = group.take(group.charge_of(Estimate(100, 0, 50, 0, answers=0)), 0)
    assert group.view(0)[0].left == 0
    group.settle_refused(held, 0)
    assert group.view(0)[0].left == 850, "of the thousand that may be used at once"


def test_answers_of_which_only_a_part_is_known_make_no_guess_smaller() -> None:
    estimator = Estimator()
    for tokens in (10, 900, 20):
        estimator.learn_assumed("m", tokens)
    guess = estimator.estimate("a", "m", 400, 0)
    assert (guess.output_tokens, guess.answers) == (900, 3)
