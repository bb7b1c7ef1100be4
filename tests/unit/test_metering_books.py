"""Prices, books, budgets, retries, estimates and the breaker."""

from __future__ import annotations

import base64
import json
import zlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.gateway.journal import decode_lines, encode_line
from orchestra.gateway.pricing import load_prices
from orchestra.metering.books import ALL, Books, BudgetSet, BudgetsForgotten, Closed, Grown, Issued, Opened, Revoked, Who
from orchestra.metering.breaker import FAILURES_MAX, PAUSE_MS, Breaker
from orchestra.metering.estimates import Estimator, prompt_bytes
from orchestra.metering.headers import Report, Window
from orchestra.metering.prices import Entry, Period, Price, Prices, Table, Tier, cost_usd_micros
from orchestra.metering.retry import Verdict, group_pause_ms, pause_ms, verdict_of
from orchestra.metering.usage import Usage, mode_of

WHO = Who("try-1", "task-1", "agent-1", "plan-1")
DAY_MS = 86_400_000
CHEAP, DEAR = Price(3_000_000, 15_000_000, 300_000, 3_750_000, 6_000_000), Price(10_000_000, 50_000_000)
TABLE = Table(
    "2026-01-01",
    "test",
    (
        Entry("anthropic", "cheap", ("cheap.*",), (Period(CHEAP, tiers=(Tier(200_000, DEAR),)), Period(DEAR, from_day=20_000))),
        Entry("openai", "dear", ("dear",), (Period(DEAR),)),
    ),
)


def opened(number: int, cost: int, who: Who = WHO, ms: int = 0) -> Opened:
    return Opened(number, ms, who, "api", "main", "m", cost, Usage(input_tokens=10))


def closed(number: int, cost: int) -> Closed:
    return Closed(number, 5, 200, Usage(1, 2, 3, 4, 5), cost)


def test_a_price_has_a_day_a_size_and_an_override() -> None:
    prices = Prices(TABLE, {"own": Price(1, 2)})
    assert prices.quote("anthropic", "cheap-1", 100, 19_000).price == CHEAP
    assert prices.quote("anthropic", "cheap-1", 200_001, 19_000).price == DEAR
    assert prices.quote("anthropic", "cheap-1", 100, 20_000).price == DEAR
    assert prices.quote("openai", "own", 0, 0).price == Price(1, 2)


def test_an_unknown_model_costs_what_the_dearest_does_and_is_flagged() -> None:
    quote = Prices(TABLE, {}).quote("anthropic", "new", 0, 0)
    assert not quote.known
    assert (quote.price.input, quote.price.output, quote.price.cache_write_1h) == (10_000_000, 50_000_000, 10_000_000)


def test_cost_tells_the_kinds_apart_and_rounds_up() -> None:
    assert cost_usd_micros(CHEAP, Usage(1_000, 10_000, 100, 10, 50)) == 3_000 + 3_000 + 375 + 60 + 750
    assert cost_usd_micros(Price(1, 1), Usage(input_tokens=1)) == 1
    assert cost_usd_micros(Price(2, 2), Usage(10, 10, 10)) == 1, "what has no price of its own costs like input"


MODES = Table(
    "2026-01-01",
    "test",
    (
        Entry("anthropic", "quick", ("quick",), (Period(CHEAP),), rates={"fast": 6_000_000_000}, web_search=10_000),
        Entry("anthropic", "slow", ("slow",), (Period(CHEAP),)),
        Entry("openai", "o", ("o",), (Period(Price(1_100_000, 4_400_000)),), rates={"priority": 1_818_181_818, "flex": 500_000_000}),
    ),
    {"anthropic": {"us": 1_100_000_000}},
)


def test_a_mode_has_a_rate_on_all_prices() -> None:
    prices = Prices(MODES, {"own": Price(1_000, 2_000)})

    def price(provider: str, model: str, mode: str) -> tuple[int, int, int, bool]:
        quote = prices.quote(provider, model, 0, 0, mode=mode)
        return quote.price.input, quote.price.output, quote.price.cache_read, quote.known

    assert price("anthropic", "quick", "fast") == (18_000_000, 90_000_000, 1_800_000, True)
    assert price("anthropic", "quick", "fast+us") == (19_800_000, 99_000_000, 1_980_000, True)
    assert price("anthropic", "slow", "us") == (3_300_000, 16_500_000, 330_000, True)
    assert price("openai", "o", "priority") == (2_000_000, 8_000_000, -1, True)
    assert price("openai", "o", "flex") == (550_000, 2_200_000, -1, True)
    assert price("anthropic", "slow", "fast") == (18_000_000, 90_000_000, 1_800_000, False), (
        "not known of this model: the dearest, and flagged"
    )
    assert price("openai", "o", "new") == (2_000_000, 8_000_000, -1, False)
    assert price("anthropic", "own", "us") == (1_100, 2_200, -1, True)


def test_searches_of_the_provider_are_charged_one_by_one() -> None:
    prices, usage = Prices(MODES, {"own": Price(0, 0, web_search=3)}), Usage(1_000, web_searches=3)
    found = [
        prices.quote(provider, model, 0, 0, searches=3) for provider, model in (("anthropic", "quick"), ("anthropic", "slow"), ("x", "own"))
    ]
    assert [cost_usd_micros(quote.price, usage) for quote in found] == [3_000 + 30_000, 3_000 + 30_000, 9]
    assert [quote.known for quote in found] == [True, False, True]


def test_the_shipped_table_knows_modes_and_searches() -> None:
    prices = load_prices()
    day = 20_770
    for provider, model, mode, times in (
        ("anthropic", "claude-opus-5-5", "fast", 2),
        ("openai", "gpt-5.5", "priority", 2.5),
        ("openai", "gpt-5.5", "flex", 0.5),
    ):
        plain, dear = prices.quote(provider, model, 0, day), prices.quote(provider, model, 0, day, mode=mode)
        assert (dear.known, dear.price.output) == (True, plain.price.output * times)
    assert prices.quote("anthropic", "claude-opus-4-5", 0, day, searches=1).price.web_search == 10_000


@pytest.mark.parametrize(
    "said,mode",
    [
        ({}, ""),
        ({"tier": "default", "speed": "standard", "place": "global"}, ""),
        ({"tier": "auto", "place": "not_available"}, ""),
        ({"tier": "standard", "speed": "fast", "place": "us"}, "fast+us"),
        ({"tier": "PRIORITY"}, "priority"),
        ({"tier": "SERVICE_TIER_FLEX"}, "flex"),
        ({"tier": "SERVICE_TIER_UNSPECIFIED"}, ""),
        ({"tier": "a+b"}, "other"),
        ({"tier": "x" * 100}, "other"),
        ({"tier": 7}, ""),
    ],
)
def test_what_is_said_of_a_mode(said: dict[str, object], mode: str) -> None:
    assert mode_of(said) == mode


def test_a_budget_bounds_settled_and_reserved_together() -> None:
    books = Books()
    books.apply(BudgetSet("task", "task-1", 100))
    books.apply(opened(1, 60))
    found = books.overspent(WHO, 41, 0)
    assert found is not None
    assert (found.scope, found.name, found.reserved_usd_micros) == ("task", "task-1", 60)
    assert books.overspent(WHO, 40, 0) is None
    books.apply(closed(1, 30))
    assert books.overspent(WHO, 70, 0) is None
    books.apply(opened(2, 70))
    books.apply(closed(2, 70))
    assert books.overspent(WHO, 0, 0) is not None, "a budget that is used up bears nothing more"
    assert books.overspent(Who("try-2", "other"), 1_000, 0) is None


def test_the_day_has_a_budget_that_begins_anew() -> None:
    books = Books(100)
    books.apply(opened(1, 100, ms=DAY_MS - 1))
    books.apply(closed(1, 100))
    assert books.overspent(WHO, 1, DAY_MS - 1) is not None
    assert books.overspent(WHO, 1, DAY_MS) is None


def test_four_fifths_and_all_of_a_budget_are_told_once() -> None:
    books = Books()
    books.apply(BudgetSet("agent", "agent-1", 100))
    books.apply(opened(1, 80))
    assert not books.warnings(WHO, 0), "what is only reserved is no reason"
    books.apply(closed(1, 80))
    assert [(percent, each.scope) for percent, each in books.warnings(WHO, 0)] == [(80, "agent")]
    assert not books.warnings(WHO, 0)
    books.apply(opened(2, 20))
    books.apply(closed(2, 20))
    assert [percent for percent, _ in books.warnings(WHO, 0)] == [100]
    assert not books.warnings(WHO, 0)
    books.apply(BudgetSet("agent", "agent-1", 50))
    assert [percent for percent, _ in books.warnings(WHO, 0)] == [100], "both are passed at once: the first is told"
    assert not books.warnings(WHO, 0)


def test_orphans_are_settled_by_what_they_had_used() -> None:
    """Not by the larger sum that was reserved so that they could go on; tokens and cost belong together."""
    books = Books()
    books.apply(opened(1, 10))
    books.apply(opened(2, 20))
    books.apply(Grown(1, 50, 77, Usage(3, 4, output_tokens=77), 33))
    orphan, other = books.orphans(9)
    assert (orphan.cost_usd_micros, orphan.usage, orphan.assumed) == (33, Usage(3, 4, output_tokens=77), True)
    assert (other.cost_usd_micros, other.usage) == (20, Usage(input_tokens=10)), "of which nothing was known yet"
    books.apply(orphan)
    assert (books.settled("task", "task-1"), books.reserved("task", "task-1")) == (33, 20)


def test_books_of_earlier_versions_are_read() -> None:
    """They know of a request that went on only how much was reserved and how many tokens came."""
    begun = b'{"k":"opened","id":1,"ms":0,"who":{"attempt":"a","task":"task-1"},"upstream":"api","account":"main","model":"m",'
    books = Books()
    for line in (
        begun + b'"reserved_usd_micros":10,"usage":{"input_tokens":5}}',
        b'{"k":"grown","id":1,"reserved_usd_micros":50,"output_tokens":77}',
    ):
        (record,) = decode_lines(b"%08x %b\n" % (zlib.crc32(line), line))
        assert record is not None
        books.apply(record)
    (orphan,) = books.orphans(9)
    assert (orphan.cost_usd_micros, orphan.usage) == (50, Usage(5, output_tokens=77))


RECORDS = st.one_of(
    st.builds(opened, st.integers(1, 6), st.integers(0, 1000)),
    st.builds(Grown, st.integers(1, 6), st.integers(0, 2000), st.integers(0, 99)),
    st.builds(Grown, st.integers(1, 6), st.integers(0, 2000), st.just(9), st.builds(Usage, st.integers(0, 9)), st.integers(-1, 2000)),
    st.builds(closed, st.integers(1, 6), st.integers(0, 1000)),
    st.builds(BudgetSet, st.sampled_from(["task", "day"]), st.just("x"), st.integers(-1, 5)),
    st.builds(BudgetsForgotten, st.sampled_from(["task", "plan"]), st.just(("x", "y"))),
    st.builds(Revoked, st.just("d")),
    st.just(Issued("d", WHO, 5)),
)


@given(st.lists(RECORDS, max_size=40), st.integers(0, 40))
def test_books_are_the_same_after_a_restart_at_any_record(records: list[object], cut: int) -> None:
    """Through the journal's own lines, with the state at the head of the file at any point; and nothing reserved is ever lost or left."""
    live, again = Books(), Books()
    for record in records:
        live.apply(record)  # type: ignore[arg-type]
    first = Books()
    for record in records[:cut]:
        first.apply(record)  # type: ignore[arg-type]
    lines = encode_line(first.state) + b"".join(encode_line(record) for record in records[cut:])  # type: ignore[arg-type]
    for line in decode_lines(lines + b"0000 torn"):
        if line is not None:
            again.apply(line)
    assert encode_line(again.state) == encode_line(live.state)
    assert live.reserved(ALL, "") == sum(each.reserved_usd_micros for each in live.state.open.values())


@pytest.mark.parametrize(
    "status,body,verdict",
    [
        (200, b"", Verdict.FINE),
        (400, b"bad", Verdict.FINE),
        (400, b'{"error":{"message":"Your credit balance is too low"}}', Verdict.SPENT),
        (401, b"", Verdict.KEY),
        (403, b'{"error":{"type":"permission_error","message":"This organization has been disabled."}}', Verdict.KEY),
        (403, b'{"error":{"type":"permission_error","message":"not this model"}}', Verdict.FINE),
        (404, b"", Verdict.FINE),
        (429, b"rate_limit_error", Verdict.PACE),
        (429, b'{"error":{"code":"insufficient_quota"}}', Verdict.SPENT),
        (500, b"", Verdict.TROUBLE),
        (529, b"", Verdict.TROUBLE),
    ],
)
def test_what_a_refusal_means(status: int, body: bytes, verdict: Verdict) -> None:
    assert verdict_of(status, Report(), body) is verdict


def test_a_spent_window_is_told_by_its_header() -> None:
    assert verdict_of(429, Report(windows={"5h": Window(100, True, 1_000)}), b"") is Verdict.SPENT


@pytest.mark.parametrize("failures,low,high", [(1, 500, 1_000), (2, 1_000, 2_000), (3, 2_000, 4_000), (9, 30_000, 60_000)])
def test_pauses_double_with_jitter(failures: int, low: int, high: int) -> None:
    assert (pause_ms(failures, None, 0.0), pause_ms(failures, None, 1.0)) == (low, high)


def test_a_group_waits_as_told_and_never_long_beyond() -> None:
    assert group_pause_ms(1, 7_000, 0.0) == 7_000
    assert group_pause_ms(20, 7_000, 1.0) == 10_000
    assert group_pause_ms(20, 45_000, 0.0) == 45_000
    assert group_pause_ms(20, None, 1.0) == 10_000


def test_a_wish_is_a_floor_and_bounded() -> None:
    assert pause_ms(1, 7_000, 0.0) == 7_000
    assert pause_ms(1, 10**12, 0.0) == 3_600_000


def test_the_next_request_of_a_conversation_is_guessed_from_the_last() -> None:
    estimator = Estimator()
    assert estimator.estimate("a", "m", 4_000, 50).input_tokens == 1_000
    assert estimator.estimate("a", "m", 4_000, 50).output_tokens == 50
    estimator.learn("a", "m", 4_000, Usage(100, 0, 1_900, 0, 500))
    guess = estimator.estimate("a", "m", 4_400, 0)
    assert (guess.cache_read_tokens, guess.input_tokens, guess.output_tokens) == (1_900, 300, 500)
    assert estimator.estimate("b", "m", 4_000, 0).cache_read_tokens == 0


PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + bytes(range(256)) * 1_000).decode()
PDF = base64.b64encode(b"%PDF-1.7\n" + bytes(range(256)) * 8_000).decode()
MEDIA = [
    pytest.param(
        "anthropic", {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": PNG}}, 4_784, id="anthropic"
    ),
    pytest.param("openai", {"type": "input_image", "image_url": f"data:image/png;base64,{PNG}"}, 14_400, id="responses"),
    pytest.param("openai", {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PNG}"}}, 14_400, id="chat"),
    pytest.param("gemini", {"inlineData": {"mimeType": "image/png", "data": PNG}}, 2_240, id="gemini"),
    pytest.param(
        "anthropic",
        {"type": "document", "source": {"data": PDF, "type": "base64", "media_type": "application/pdf"}},
        460_000,
        id="PDF, anthropic",
    ),
    pytest.param("openai", {"type": "input_file", "file_data": f"data:application/pdf;base64,{PDF}"}, 460_000, id="PDF, openai"),
    pytest.param("gemini", {"inline_data": {"mime_type": "application/pdf", "data": PDF}}, 560_000, id="PDF, gemini"),
]


@pytest.mark.parametrize("kind,part,tokens", MEDIA)
@pytest.mark.parametrize("before", [0, 1, 8_959, 50_000])
def test_pictures_and_documents_are_not_estimated_as_text(kind: str, part: dict[str, Any], tokens: int, before: int) -> None:
    """Wherever they stand in the request, one or several, and in a tool's result."""
    one, two = ([{"type": "text", "text": "word " * (before // 5)}, *[part] * n] for n in (1, 2))
    size = len(PNG if PNG in str(part) else PDF)
    for parts, count in ((one, 1), (two, 2), ([{"type": "tool_result", "content": one}], 1)):
        text = json.dumps({"model": "m", "messages": [{"content": parts}]}).encode()
        assert abs(prompt_bytes(text, kind) - (len(text) - count * (size - 4 * tokens))) < 40 * count, "but for the beginning of a data URL"


@pytest.mark.parametrize("kind", ["anthropic", "openai", "gemini"])
@pytest.mark.parametrize(
    "text",
    [
        pytest.param({"type": "text", "text": f"data:image/png;base64,{PNG}"}, id="text that looks like one"),
        pytest.param({"media_type": "image/png", "data": "word " * 20_000}, id="only called one"),
        pytest.param({"media_type": "audio/wav", "data": PNG}, id="something else"),
        pytest.param({"data": "A" * 300_000}, id="something else in base64"),
        pytest.param({"data": PNG[:8_000]}, id="a small one"),
        pytest.param({"text": "word " * 20_000}, id="text"),
        pytest.param(PNG, id="nothing but one"),
    ],
)
def test_all_else_is_estimated_as_text(kind: str, text: object) -> None:
    body = json.dumps(text).encode()
    assert prompt_bytes(body, kind) == len(body)
    assert prompt_bytes(body[:-1], kind) == len(body) - 1, "cut off"
    assert prompt_bytes(body[1:], kind) == len(body) - 1


def test_the_breaker_opens_probes_and_closes() -> None:
    breaker = Breaker()
    assert [breaker.failed(0) for _ in range(FAILURES_MAX)][-1]
    assert breaker.wait_ms(0) == PAUSE_MS
    assert breaker.wait_ms(PAUSE_MS) == 0
    assert breaker.started()
    assert breaker.wait_ms(PAUSE_MS) > 0, "one probe at a time"
    breaker.failed(PAUSE_MS, probe=True)
    assert breaker.wait_ms(PAUSE_MS) == 2 * PAUSE_MS
    breaker.started()
    assert breaker.succeeded()
    assert breaker.wait_ms(PAUSE_MS) == 0
    breaker.failed(0)
    assert not breaker.succeeded(), "it was not open"
