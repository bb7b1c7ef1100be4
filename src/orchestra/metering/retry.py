"""When a request is sent again, and what a refusal means. The gateway is the only one in the chain that retries."""

from __future__ import annotations

from enum import Enum
from typing import Final

from orchestra.metering.headers import Report

TRIES_MAX: Final = 5
FIRST_PAUSE_MS: Final = 1_000
PAUSE_MS_MAX: Final = 60_000
RETRY_AFTER_MS_MAX: Final = 3_600_000
"""A wish of more than an hour is cut to one: then it is asked again."""
GROUP_PAUSE_MS_MAX: Final = 10_000
"""Between probes of a group that the provider refuses without saying for how long: only one request goes then, and the rest wait for its answer."""
RETRYABLE: Final = frozenset({408, 409, 429, 500, 502, 503, 504, 520, 521, 522, 523, 524, 529})
UPSTREAM_FAILED: Final = RETRYABLE - {408, 409, 429}

_SPENT_MARKS: Final = (
    b"insufficient_quota",
    b"billing_hard_limit",
    b"billing_error",
    b"credit balance is too low",
    b"spend limit",
    b"spending limit",
    b"usage limit",
    b"usage_limit_reached",
    b"exceeded your current quota",
    b"PerDay",
)
"""Words of the providers for a quota that waiting a minute does not bring back."""

_KEY_MARKS: Final = (b"has been disabled", b"API key not valid", b"API_KEY_INVALID", b"account is not active", b"account_deactivated")
"""Words for a key or organisation that no longer counts, in answers that are not 401."""


class Verdict(Enum):
    """What the answer of a provider means for those who wait."""

    FINE = "fine"
    """An answer, or an error that is the request's own fault."""
    PACE = "pace"
    """Too fast: the same account takes it later."""
    SPENT = "spent"
    """The account has nothing left until its window or quota comes back."""
    KEY = "key"
    """The key is not taken."""
    TROUBLE = "trouble"
    """The provider's own trouble."""


def verdict_of(status: int, report: Report, body: bytes) -> Verdict:
    """Returns what a response means. Where the provider says that it is worth another try, it is: an error that would else be the request's own is trouble.

    Args:
        status: HTTP status.
        report: What its headers said about limits.
        body: The beginning of an error's body.
    """
    if status < 400:
        return Verdict.FINE
    spent = any(mark in body for mark in _SPENT_MARKS) or any(window.rejected for window in report.windows.values())
    if status == 402 or (status in {400, 403, 429} and spent):
        return Verdict.SPENT
    if status == 401 or (status in {400, 403} and any(mark in body for mark in _KEY_MARKS)):
        return Verdict.KEY
    if status == 429:
        return Verdict.PACE
    return Verdict.TROUBLE if status in RETRYABLE or report.should_retry else Verdict.FINE


def group_pause_ms(refusals: int, retry_after_ms: int | None, jitter: float, multiplier: float = 2.0) -> int:
    """Returns how long nobody sends to a group that was refused: as told, and longer each time but never long beyond what was told.

    Args:
        refusals: In a row, from 1.
        retry_after_ms: What the provider asked for, if it did.
        jitter: 0 to 1, by chance.
    """
    own = min(GROUP_PAUSE_MS_MAX, pause_ms(refusals, None, jitter, multiplier))
    return own if retry_after_ms is None else max(own, pause_ms(1, retry_after_ms, jitter))


def pause_ms(failures: int, retry_after_ms: int | None, jitter: float, multiplier: float = 2.0) -> int:
    """Returns how long to wait before the next try.

    Args:
        failures: How many tries failed; from 1.
        retry_after_ms: What the provider asked for, if it did. It is a floor: an earlier try would fail.
        jitter: 0 to 1, by chance, so that many who failed together do not come back together.
        multiplier: From one wait to the next.
    """
    step = round(min(PAUSE_MS_MAX, FIRST_PAUSE_MS * multiplier ** min(max(failures - 1, 0), 100)))
    if retry_after_ms is None:
        return round(step * (0.5 + jitter / 2))
    return min(RETRY_AFTER_MS_MAX, retry_after_ms) + round(FIRST_PAUSE_MS * jitter / 4)
