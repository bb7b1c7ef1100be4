"""Rate limit headers of the providers in one form. Sans-I/O; the wall time is handed in because some headers name a time of day.

A header that is malformed, negative, absurd or contradicts its neighbours is left out and named in `odd`; it never fails a response.
"""

from __future__ import annotations

import email.utils
import re
from collections.abc import Iterable
from typing import Final

from orchestra.metering.formulas import INPUT, OUTPUT, REQUESTS, TOKENS
from orchestra.metering.headers import Reading, Report, Window

_DIMENSIONS: Final = {"requests": REQUESTS, "tokens": TOKENS, "input-tokens": INPUT, "output-tokens": OUTPUT}
_ANTHROPIC: Final = re.compile(r"anthropic-ratelimit-(requests|tokens|input-tokens|output-tokens)-(limit|remaining|reset)")
_OPENAI: Final = re.compile(r"x-ratelimit-(limit|remaining|reset)-(requests|tokens)")
_UNIFIED: Final = re.compile(r"anthropic-ratelimit-unified-(?:([0-9a-z_]+)-)?(utilization|status|reset)")
_NUMBER: Final = re.compile(r"\d{1,12}")
_SECONDS: Final = re.compile(r"(\d{1,12})(?:\.(\d{1,9}))?")
_DURATION: Final = re.compile(r"(?:(\d{1,6})d)?(?:(\d{1,6})h)?(?:(\d{1,6})m(?!s))?(?:(\d{1,9}(?:\.\d{1,9})?)s)?(?:(\d{1,9})(?:\.\d+)?ms)?")
_RFC3339: Final = re.compile(r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.\d{1,9})?(?:[Zz]|([+-])(\d{2}):(\d{2}))")
DAYS_400_YEARS: Final = 146_097


def parse_limits(headers: Iterable[tuple[str, str]], wall_ms: int) -> Report:
    """Returns what the headers of a response say about limits."""
    numbers: dict[str, dict[str, str]] = {}
    unified: dict[str, dict[str, str]] = {}
    waits: list[int] = []
    should_retry: bool | None = None
    odd: list[str] = []
    for name, value in ((name.lower(), value.strip()) for name, value in headers):
        if found := _ANTHROPIC.fullmatch(name):
            numbers.setdefault(_DIMENSIONS[found[1]], {})[found[2]] = value
        elif found := _OPENAI.fullmatch(name):
            numbers.setdefault(_DIMENSIONS[found[2]], {})[found[1]] = value
        elif found := _UNIFIED.fullmatch(name):
            unified.setdefault(found[1] or "all", {})[found[2]] = value
        elif name in {"retry-after", "retry-after-ms"}:
            wait = _milliseconds(value) if name == "retry-after-ms" else parse_retry_after(value, wall_ms)
            (odd.append(name) if wait is None else waits.append(wait))
        elif name == "x-should-retry":
            should_retry = {"true": True, "false": False}.get(value.lower())
    readings = {name: reading for name, texts in numbers.items() if (reading := _reading(texts, wall_ms)) is not None}
    odd += sorted(set(numbers) - set(readings))
    windows = {name: window for name, texts in unified.items() if (window := _window(texts, wall_ms)) is not None}
    return Report(readings, windows, max(waits, default=None), should_retry, tuple(odd))


def _reading(texts: dict[str, str], wall_ms: int) -> Reading | None:
    limit, remaining = _number(texts.get("limit", "")), _number(texts.get("remaining", ""))
    if limit is None or limit == 0 or ("remaining" in texts and remaining is None):
        return None
    if remaining is not None and remaining > limit:
        return None
    return Reading(limit, remaining, _reset(texts.get("reset", ""), wall_ms))


def _number(text: str) -> int | None:
    return int(text) if _NUMBER.fullmatch(text) else None


def _milliseconds(text: str) -> int | None:
    found = _SECONDS.fullmatch(text)
    return None if found is None else int(found[1])


def parse_retry_after(text: str, wall_ms: int) -> int | None:
    """Returns milliseconds from seconds or an HTTP date; a date in the past is 0, what is neither or negative is None."""
    if found := _SECONDS.fullmatch(text):
        return int(found[1]) * 1000 + int(f"{found[2] or '0':0<3}"[:3])
    parts = email.utils.parsedate_tz(text) if len(text) < 64 else None
    if parts is None:
        return None
    try:
        return max(0, int(email.utils.mktime_tz(parts)) * 1000 - wall_ms)
    except (ValueError, OverflowError):
        return None


def _reset(text: str, wall_ms: int) -> int | None:
    if (duration := parse_duration(text)) is not None:
        return duration
    at_ms = parse_rfc3339(text)
    return None if at_ms is None or at_ms < wall_ms else at_ms - wall_ms


def parse_duration(text: str) -> int | None:
    """Returns milliseconds from `6m0s`, `1.5s`, `20ms` or plain seconds."""
    if _SECONDS.fullmatch(text):
        return _plain(text)
    found = _DURATION.fullmatch(text)
    if found is None or not text:
        return None
    days, hours, minutes = (int(part or 0) for part in found.groups()[:3])
    return ((days * 24 + hours) * 60 + minutes) * 60_000 + (_plain(found[4]) if found[4] else 0) + int(found[5] or 0)


def _plain(seconds: str) -> int:
    whole, _, part = seconds.partition(".")
    return int(whole) * 1000 + int(f"{part:0<3}"[:3])


def parse_rfc3339(text: str) -> int | None:
    """Returns milliseconds since 1970 of a time such as `2026-01-31T12:00:00Z`."""
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    year, month, day, hour, minute, second = (int(part) for part in found.groups()[:6])
    if not (1 <= month <= 12 and 1 <= day <= 31 and hour < 24 and minute < 60 and second < 61):
        return None
    shift = 0 if found[7] is None else (int(found[8]) * 60 + int(found[9])) * (1 if found[7] == "+" else -1)
    return (((days_since_1970(year, month, day) * 24 + hour) * 60 + minute - shift) * 60 + second) * 1000


def days_since_1970(year: int, month: int, day: int) -> int:
    """Returns the number of a day of the Gregorian calendar (Hinnant's days_from_civil)."""
    year -= month <= 2
    era = year // 400
    year_of_era = year - era * 400
    day_of_year = (153 * (month + (-3 if month > 2 else 9)) + 2) // 5 + day - 1
    return era * DAYS_400_YEARS + year_of_era * 365 + year_of_era // 4 - year_of_era // 100 + day_of_year - 719_468


def _window(texts: dict[str, str], wall_ms: int) -> Window | None:
    used = texts.get("utilization", "")
    status = texts.get("status", "").lower()
    reset = texts.get("reset", "")
    reset_ms = _reset(reset, wall_ms)
    if (seconds := _number(reset)) is not None:
        reset_ms = max(0, seconds * 1000 - wall_ms) if seconds > 10**9 else None
    share = _SECONDS.fullmatch(used)
    if share is None and status not in {"allowed", "allowed_warning", "rejected"}:
        return None
    return Window(0 if share is None else min(999, _plain(used) // 10), status == "rejected", reset_ms)
