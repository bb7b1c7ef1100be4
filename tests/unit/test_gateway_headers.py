"""Rate limit headers as providers send them, and as they should not."""

from __future__ import annotations

import calendar
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.metering.headers import Reading, Window
from orchestra.protocol.http_limits import days_since_1970, parse_duration, parse_limits, parse_retry_after, parse_rfc3339

NOW_MS = 1_790_000_000_000


def test_anthropic() -> None:
    reset = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(NOW_MS / 1000 + 30))
    report = parse_limits(
        [
            ("anthropic-ratelimit-input-tokens-limit", "450000"),
            ("Anthropic-RateLimit-Input-Tokens-Remaining", "449000"),
            ("anthropic-ratelimit-input-tokens-reset", reset),
            ("retry-after", "7"),
            ("x-should-retry", "true"),
        ],
        NOW_MS,
    )
    assert report.readings == {"input_tokens": Reading(450_000, 449_000, 30_000)}
    assert (report.retry_after_ms, report.should_retry, report.odd) == (7_000, True, ())


def test_a_subscription() -> None:
    names = {"5h-utilization": "0.71", "5h-status": "allowed_warning", "5h-reset": str(NOW_MS // 1000 + 60), "7d-status": "rejected"}
    report = parse_limits([(f"anthropic-ratelimit-unified-{name}", value) for name, value in names.items()], NOW_MS)
    assert report.windows == {"5h": Window(71, False, 60_000), "7d": Window(0, True, None)}


def test_openai() -> None:
    names = {
        "limit-requests": "500",
        "remaining-requests": "499",
        "reset-requests": "120ms",
        "limit-tokens": "30000",
        "reset-tokens": "6m0s",
    }
    report = parse_limits([(f"x-ratelimit-{name}", value) for name, value in names.items()], NOW_MS)
    assert report.readings == {"requests": Reading(500, 499, 120), "tokens": Reading(30_000, None, 360_000)}


@pytest.mark.parametrize(
    "limit,remaining,reset",
    [
        ("-1", "-1", ""),
        ("0", "0", "0"),
        ("100", "-1", "1s"),
        ("100", "200", "1s"),
        ("abc", "1", "1s"),
        ("1e9", "1", ""),
        ("", "5", ""),
        ("9" * 40, "1", ""),
    ],
)
def test_what_cannot_be_is_not_believed(limit: str, remaining: str, reset: str) -> None:
    names = {"limit": limit, "remaining": remaining, "reset": reset}
    report = parse_limits([(f"x-ratelimit-{name}-tokens", value) for name, value in names.items()], NOW_MS)
    assert report.readings == {}
    assert report.odd == ("tokens",)


def test_a_reset_in_the_past_is_left_out() -> None:
    names = {"limit": "10", "remaining": "3", "reset": "2001-01-01T00:00:00Z"}
    report = parse_limits([(f"anthropic-ratelimit-requests-{name}", value) for name, value in names.items()], NOW_MS)
    assert report.readings == {"requests": Reading(10, 3, None)}


@pytest.mark.parametrize(
    "text,wait_ms",
    [
        ("7", 7_000),
        ("0", 0),
        ("1.5", 1_500),
        ("1000000000", 1_000_000_000_000),
        ("-5", None),
        ("", None),
        ("soon", None),
        ("nan", None),
        ("1e9", None),
        (time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(NOW_MS / 1000 + 9)), 9_000),
        (time.strftime("%a, %d %b %Y %H:%M:%S GMT", time.gmtime(NOW_MS / 1000 - 9)), 0),
        ("Wed, 99 Foo 2099 99:99:99 GMT", None),
    ],
)
def test_retry_after(text: str, wait_ms: int | None) -> None:
    assert parse_retry_after(text, NOW_MS) == wait_ms


def test_of_two_wishes_the_longer_holds() -> None:
    assert parse_limits([("retry-after", "3"), ("retry-after-ms", "2500"), ("Retry-After", "-1")], NOW_MS).retry_after_ms == 3_000


@pytest.mark.parametrize(
    "text,duration_ms",
    [
        ("6m0s", 360_000),
        ("1s", 1_000),
        ("20ms", 20),
        ("1h2m3.5s", 3_723_500),
        ("2d", 172_800_000),
        ("30", 30_000),
        ("", None),
        ("5 s", None),
    ],
)
def test_durations(text: str, duration_ms: int | None) -> None:
    assert parse_duration(text) == duration_ms


@given(st.integers(0, 4_102_444_799))
def test_times_agree_with_the_library(seconds: int) -> None:
    parts = time.gmtime(seconds)
    assert days_since_1970(*parts[:3]) == seconds // 86_400
    assert parse_rfc3339(time.strftime("%Y-%m-%dT%H:%M:%SZ", parts)) == calendar.timegm(parts) * 1000
    assert parse_rfc3339(time.strftime("%Y-%m-%dT%H:%M:%S+01:30", parts)) == (seconds - 5_400) * 1000


@given(st.lists(st.tuples(st.sampled_from(["retry-after", "x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens"]), st.text(max_size=40))))
def test_no_header_is_a_failure(headers: list[tuple[str, str]]) -> None:
    parse_limits(headers, NOW_MS)
