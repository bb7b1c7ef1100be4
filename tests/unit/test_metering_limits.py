"""Buckets, lanes and the ramp in virtual time. The judge counts on its own, from what was let go and when."""

from __future__ import annotations

import heapq
from collections import Counter, deque

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from orchestra.metering.bucket import PARTS, Bucket
from orchestra.metering.formulas import FORMULAS, REQUESTS, TOKENS, model_class, reserve, settle
from orchestra.metering.group import Group
from orchestra.metering.headers import Reading, Report
from orchestra.metering.lane import Crowd, Lane, Ticket
from orchestra.metering.marks import LimitMark
from orchestra.metering.usage import Estimate, Usage

MINUTE_MS = 60_000


class Judge:
    """Adds up any sixty seconds, as a provider does that counts windows."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.over = 0
        self._window: deque[tuple[int, int]] = deque()
        self._sum = 0

    def count(self, now_ms: int, amount: int) -> None:
        self._window.append((now_ms, amount))
        self._sum += amount
        while self._window[0][0] <= now_ms - MINUTE_MS:
            self._sum -= self._window.popleft()[1]
        self.over = max(self.over, self._sum - self.limit)


class FillingJudge:
    """A bucket that fills continuously, as Anthropic describes its own."""

    def __init__(self, limit: int) -> None:
        self._limit, self._level, self._at_ms, self.over = limit, float(limit), 0, 0.0

    def count(self, now_ms: int, amount: int) -> None:
        self._level = min(self._limit, self._level + self._limit * (now_ms - self._at_ms) / MINUTE_MS) - amount
        self._at_ms = now_ms
        self.over = max(self.over, -self._level)


def jain(values: list[int]) -> float:
    return sum(values) ** 2 / (len(values) * sum(each * each for each in values))


def lane_of(kind: str, limits: dict[str, int], *, per_flow: int = 8) -> Lane:
    return Lane(Group(FORMULAS[kind], limits, 10_000, 0), Crowd(per_flow), waiting_max=10_000)


def test_five_at_once_on_a_hundred_tokens_a_minute() -> None:
    """One passes at once, the others when there is room; none is lost."""
    for kind in FORMULAS:
        lane = lane_of(kind, {TOKENS: 100})
        tickets = [Ticket(f"agent-{n}", 3, reserve(FORMULAS[kind], Estimate(60, 0, 40, 0)), 100) for n in range(5)]
        passed = [(0, ticket, held) for ticket in tickets if (held := lane.offer(ticket, 0)) is not None]
        assert len(passed) == 1, kind
        now_ms = 0
        while len(passed) < 5:
            now_ms += lane.ask_again_ms(now_ms) or 1
            passed += [(now_ms, ticket, held) for ticket, held in lane.admit(now_ms)]
        judge = FillingJudge(100) if kind == "anthropic" else Judge(100)
        for at_ms, ticket, held in passed:
            judge.count(at_ms, ticket.charge[TOKENS])
            lane.group.settle(held, Usage(60, 0, 0, 0, 40), at_ms)
            lane.release(ticket)
        assert judge.over <= 0, kind
        assert {id(ticket) for _, ticket, _ in passed} == {id(ticket) for ticket in tickets}


@pytest.mark.parametrize("kind", ["openai", "anthropic"])
@pytest.mark.parametrize("sizes", [(60,), (20, 300), (40, 60, 2_000)])
def test_two_hundred_agents_on_one_limit(kind: str, sizes: tuple[int, ...]) -> None:
    """1,000 requests and 60,000 tokens a minute, always saturated: never over, nearly all used, and fair among agents."""
    formula = FORMULAS[kind]
    lane = lane_of(kind, {REQUESTS: 1_000, TOKENS: 60_000})
    make: type[Judge] | type[FillingJudge] = FillingJudge if kind == "anthropic" else Judge
    requests, tokens = make(1_000), make(60_000)
    served: Counter[str] = Counter()
    shares: Counter[str] = Counter()
    """Of the limit that a request takes most of."""
    count: Counter[str] = Counter()
    sent = 0
    ends: list[tuple[int, int, Ticket, object]] = []
    warm_ms, end_ms, now_ms = 2 * MINUTE_MS, (42 if max(sizes) > 1_000 else 12) * MINUTE_MS, 0

    def ask(agent: int) -> Ticket:
        size = sizes[agent % len(sizes)]
        return Ticket(f"agent-{agent}", 3, reserve(formula, Estimate(size, 0, 0, 0)), size)

    def go(ticket: Ticket, held: object) -> None:
        nonlocal sent
        sent += 1
        requests.count(now_ms, 1)
        tokens.count(now_ms, ticket.charge[TOKENS])
        if now_ms >= warm_ms:
            served[ticket.flow] += ticket.charge[TOKENS]
            count[ticket.flow] += 1
            shares[ticket.flow] += lane.group.cost(ticket.charge)
        heapq.heappush(ends, (now_ms + 2_000 + (sent * 7919) % 3_000, sent, ticket, held))

    for agent in range(200):
        for _ in range(2):
            ticket = ask(agent)
            if (held := lane.offer(ticket, 0)) is not None:
                go(ticket, held)
    while now_ms < end_ms:
        wait_ms = lane.ask_again_ms(now_ms)
        now_ms = min(ends[0][0] if ends else end_ms, now_ms + wait_ms if wait_ms else end_ms)
        while ends and ends[0][0] <= now_ms:
            _, _, ticket, reservation = heapq.heappop(ends)
            lane.group.settle(reservation, Usage(input_tokens=ticket.charge["input_tokens"]), now_ms)  # type: ignore[arg-type]
            lane.release(ticket)
            again = ask(int(ticket.flow.partition("-")[2]))
            if (held := lane.offer(again, now_ms)) is not None:
                go(again, held)
        for ticket, held in lane.admit(now_ms):
            go(ticket, held)
    assert requests.over <= 1
    assert tokens.over <= max(sizes)
    minutes = (end_ms - warm_ms) / MINUTE_MS
    used = max(sum(served.values()) / (60_000 * minutes), sum(count.values()) / (1_000 * minutes))
    assert used >= 0.95, f"{used:.3f} of the limit used"
    assert jain([shares[f"agent-{agent}"] for agent in range(200)]) >= 0.9


def test_priority_gives_a_larger_share_and_nobody_starves() -> None:
    lane = lane_of("openai", {TOKENS: 6_000})
    served: Counter[int] = Counter()
    for agent in range(4):
        for _ in range(500):
            lane.offer(Ticket(f"agent-{agent}", 1 if agent < 2 else 4, {TOKENS: 50}, 50), 0)
    for now_ms in range(0, 5 * MINUTE_MS, 100):
        for ticket, held in lane.admit(now_ms):
            served[ticket.priority] += 1
            lane.group.settle(held, Usage(input_tokens=50), now_ms)
            lane.release(ticket)
    assert served[1] > 4 * served[4] > 0


def test_a_flow_at_its_cap_holds_up_nobody() -> None:
    lane = lane_of("openai", {REQUESTS: 1_000}, per_flow=1)
    first = Ticket("a", 3, {REQUESTS: 1}, 1)
    assert lane.offer(first, 0) is not None
    assert lane.offer(Ticket("a", 0, {REQUESTS: 1}, 1), 0) is None
    assert lane.offer(Ticket("b", 4, {REQUESTS: 1}, 1), 0) is None
    assert [ticket.flow for ticket, _ in lane.admit(0)] == ["b"]
    lane.release(first)
    assert [ticket.flow for ticket, _ in lane.admit(0)] == ["a"]


def test_a_request_larger_than_the_limit_waits_for_a_full_bucket_and_goes() -> None:
    bucket = Bucket(100, MINUTE_MS, MINUTE_MS, 0, exact=False)
    bucket.take(50, 0)
    assert bucket.wait_ms(1_000, 0) == 30_000
    bucket.take(1_000, 30_000)
    assert bucket.left == -900
    assert bucket.wait_ms(1, 30_000) == 540_600


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 20_000), st.integers(1, 400)), max_size=60), st.booleans())
def test_a_bucket_that_waits_as_told_is_never_over(steps: list[tuple[int, int]], exact: bool) -> None:
    bucket = Bucket(400, MINUTE_MS, 6_000 if exact else MINUTE_MS, 0, exact=exact)
    judge: Judge | FillingJudge = Judge(400) if exact else FillingJudge(400)
    now_ms = 0
    for pause_ms, amount in steps:
        now_ms += pause_ms
        while (wait_ms := bucket.wait_ms(amount, now_ms)) > 0:
            now_ms += wait_ms
        bucket.take(amount, now_ms)
        judge.count(now_ms, amount)
    assert judge.over <= 0.01, "of a rounding"


def test_cache_reads_are_free_at_anthropic_and_not_at_openai() -> None:
    usage = Usage(input_tokens=10, cache_read_tokens=1_000, cache_write_5m_tokens=100, output_tokens=5)
    estimate = Estimate(10, 1_000, 5, 4_096)
    anthropic, openai = FORMULAS["anthropic"], FORMULAS["openai"]
    assert settle(anthropic, reserve(anthropic, estimate), usage)["input_tokens"] == 110
    assert reserve(openai, estimate)["tokens"] == 4_096
    assert settle(openai, reserve(openai, estimate), usage)["tokens"] == 4_096, "what the provider charged at the start stays charged"


def test_limits_are_learned_from_headers_and_others_are_noticed() -> None:
    group = Group(FORMULAS["anthropic"], {}, 10, 0)
    assert group.wait_ms({REQUESTS: 1}, 0) == 0
    held = group.take({REQUESTS: 1}, 0)
    group.learn(Report({REQUESTS: Reading(60, 0, 60_000)}), held, 0)
    assert group.wait_ms({REQUESTS: 1}, 0) == 1_000, "one a second"
    group = Group(FORMULAS["anthropic"], {"input_tokens": 1_000_000}, 10, 0)
    held = group.take({"input_tokens": 1_000}, 0)
    group.take({"input_tokens": 5_000}, 0)
    group.learn(Report({"input_tokens": Reading(1_000_000, 500_000, 30_000)}), held, 0)
    (view,) = group.view(0)
    assert view.left == 495_000, "what was sent since is not in the provider's count"
    assert view.foreign > 400_000
    group.learn(Report({"input_tokens": Reading(9_000_000, 8_000_000, 0)}), held, 0)
    assert group.view(0)[0].limit == 1_000_000, "a configured limit is not raised"


def test_too_many_halves_the_ramp_and_success_widens_it() -> None:
    group = Group(FORMULAS["anthropic"], {REQUESTS: 10_000}, 64, 0)
    held = [group.take({REQUESTS: 1}, 0) for _ in range(64)]
    group.close_until(7_000, 0)
    assert group.wait_ms({REQUESTS: 1}, 0) == 7_000
    assert group.ramp.allowed == 32
    group.close_until(7_000, 10)
    assert group.ramp.allowed == 32, "sixty refusals at once are one"
    for each in held:
        group.settle_refused(each, 7_000)
    for _ in range(32):
        group.went_well()
    assert group.ramp.allowed == 40, "a quarter more for a round"
    for _ in range(5_000):
        group.went_well()
    assert group.ramp.allowed == 64


def test_a_warning_comes_once_and_ends_once() -> None:
    group = Group(FORMULAS["openai"], {REQUESTS: 100}, 500, 0)
    for n in range(70):
        group.take({REQUESTS: 1}, n)
    assert [near for _, near in group.changes(100)] == [True]
    assert group.changes(200) == []
    assert [near for _, near in group.changes(70_000)] == [False]


@pytest.mark.parametrize(
    "kind,model,shared",
    [
        ("anthropic", "claude-opus-4-5-20251101", "opus-4"),
        ("anthropic", "claude-opus-4-1", "opus-4"),
        ("anthropic", "claude-sonnet-4-20250514", "sonnet-4"),
        ("anthropic", "claude-3-5-haiku-latest", "haiku-3"),
        ("openai", "gpt-5.5-2026-04-23", "gpt-5.5"),
        ("openai", "", "unknown"),
    ],
)
def test_models_that_share_a_limit(kind: str, model: str, shared: str) -> None:
    assert model_class(kind, model) == shared


# --- over the life of a process -------------------------------------------------------------------------------------------


@given(
    st.sampled_from(["anthropic", "openai"]),
    st.lists(st.tuples(st.integers(0, 20_000), st.integers(0, 40), st.integers(-20, 20)), max_size=60),
    st.integers(0, 90_000),
    st.integers(1, 100),
)
def test_a_limit_that_is_taken_up_again_is_never_wider_and_hardly_narrower(
    kind: str, uses: list[tuple[int, int, int]], away_ms: int, amount: int
) -> None:
    formula, limit = FORMULAS[kind], 100

    def fresh() -> Bucket:
        return Bucket(limit, MINUTE_MS, formula.burst_ms[TOKENS], 0, exact=formula.exact_window)

    before, now_ms = fresh(), 0
    for pause_ms, taken, corrected in uses:
        now_ms += pause_ms
        before.correct(max(corrected, -taken), before.take(taken, now_ms), now_ms)
    mark = msgspec.json.decode(msgspec.json.encode(before.mark(0, now_ms)), type=LimitMark)
    assert len(mark.uses) <= PARTS + 1
    after = fresh()
    after.recall(mark, away_ms, now_ms + away_ms)
    wait_ms = before.wait_ms(amount, now_ms + away_ms)
    again_ms = after.wait_ms(amount, now_ms + away_ms)
    assert wait_ms <= again_ms <= wait_ms + MINUTE_MS // PARTS + MINUTE_MS // limit + 1
    assert before.used(now_ms + away_ms) <= after.used(now_ms + away_ms) <= limit + sum(taken for _, taken, _ in uses) * 2


def test_what_was_learned_holds_again_unless_the_configuration_says_otherwise() -> None:
    def group(limits: dict[str, int]) -> Group:
        return Group(FORMULAS["anthropic"], limits, 10, 0)

    def limits(found: Group) -> dict[str, tuple[int, bool]]:
        return {view.name: (view.limit, view.learned) for view in found.view(0)}

    before = group({REQUESTS: 100})
    report = Report({REQUESTS: Reading(80, 79), TOKENS: Reading(5_000, 4_000)})
    before.learn(report, before.take({REQUESTS: 1, TOKENS: 10}, 0), 0)
    marks = before.marks(0)
    for configured, expected in (
        ({REQUESTS: 100}, {REQUESTS: (80, False), TOKENS: (5_000, True)}),
        ({REQUESTS: 200}, {REQUESTS: (200, False), TOKENS: (5_000, True)}),
        ({TOKENS: 1_000}, {TOKENS: (1_000, False)}),
        ({}, {TOKENS: (5_000, True)}),
    ):
        after = group(configured)
        after.recall(marks, 0, 0)
        assert limits(after) == expected
        assert after.wait_ms({TOKENS: 5_000}, 0) > 0, "what was used of it counts"
