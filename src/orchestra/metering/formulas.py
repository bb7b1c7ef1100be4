"""How each provider counts a request against its limits, as data.

Sources: the rate limit pages of Anthropic, OpenAI and Google. Where a provider changes a rule, one line here changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from orchestra.metering.usage import Estimate, Usage

MINUTE_MS: Final = 60_000
DAY_MS: Final = 86_400_000

REQUESTS: Final = "requests"
INPUT: Final = "input_tokens"
OUTPUT: Final = "output_tokens"
TOKENS: Final = "tokens"
DAILY: Final = "requests_per_day"
DIMENSIONS: Final = (REQUESTS, INPUT, OUTPUT, TOKENS, DAILY)
KEPT: Final = "tokens_kept"
"""No dimension: of `tokens`, what the provider charges at the start and does not give back."""
EXTRA: Final = {OUTPUT: "output_tokens_extra", TOKENS: "tokens_extra"}
"""No dimensions: of these, what is reserved out of caution, beyond what the request is thought to take."""

Charge = dict[str, int]
"""Dimension -> how much of it a request takes."""


class Formula(msgspec.Struct, frozen=True):
    """The rules of one provider."""

    cache_reads_count: bool
    cache_writes_count: bool
    reserves_output_max: bool
    """The largest answer allowed, or the prompt if that is more, is charged at the start and stays charged; an answer that goes beyond is charged too."""
    failures_count: bool
    """A request that the provider refused still took its place."""
    burst_ms: Mapping[str, int]
    """Dimension -> how much of the limit may be used at once, as the time it takes to grow back."""
    exact_window: bool
    """The provider adds up the last minute, so no minute may hold more than the limit. Otherwise it fills a bucket."""


_SMOOTH: Final = {REQUESTS: 5_000, INPUT: MINUTE_MS, OUTPUT: MINUTE_MS, TOKENS: MINUTE_MS, DAILY: DAY_MS}
_EVEN: Final = {REQUESTS: 6_000, INPUT: 6_000, OUTPUT: 6_000, TOKENS: 6_000, DAILY: DAY_MS}

FORMULAS: Final[dict[str, Formula]] = {
    # "60 RPM may be enforced as 1 request per second"; tokens are a bucket of the size of the limit. Cache reads are free of ITPM.
    "anthropic": Formula(False, True, False, False, _SMOOTH, exact_window=False),
    # max(max_tokens, estimate) is taken at the start, unsuccessful requests count.
    "openai": Formula(True, True, True, True, _EVEN, exact_window=True),
    "gemini": Formula(True, True, False, True, _EVEN, exact_window=True),
}


def reserve(formula: Formula, estimate: Estimate) -> Charge:
    """Returns what a request takes when it is sent."""
    prompt = estimate.input_tokens + (estimate.cache_read_tokens if formula.cache_reads_count else 0)
    output = max(estimate.output_tokens, estimate.output_tokens_max) if formula.reserves_output_max else estimate.output_tokens
    kept = max(prompt, estimate.output_tokens_max) if formula.reserves_output_max else 0
    return {REQUESTS: 1, INPUT: prompt, OUTPUT: output, TOKENS: max(kept, prompt + estimate.output_tokens), DAILY: 1, KEPT: kept}


def settle(formula: Formula, reserved: Charge, usage: Usage) -> Charge:
    """Returns what a request that was answered took in the end."""
    prompt = usage.input_tokens
    prompt += usage.cache_read_tokens if formula.cache_reads_count else 0
    prompt += usage.cache_write_tokens if formula.cache_writes_count else 0
    return {**reserved, INPUT: prompt, OUTPUT: usage.output_tokens, TOKENS: max(reserved.get(KEPT, 0), prompt + usage.output_tokens)}


def refused(formula: Formula, reserved: Charge) -> Charge:
    """Returns what a request took that the provider refused: what it was thought to take, where that counts."""
    if not formula.failures_count:
        return {name: amount for name, amount in reserved.items() if name in {REQUESTS, DAILY}}
    return reserved | {name: reserved.get(name, 0) - reserved.get(extra, 0) for name, extra in EXTRA.items()}


_ANTHROPIC_NEW: Final = re.compile(r"claude-(opus|sonnet|haiku)-(\d{1,2})(?!\d)")
_ANTHROPIC_OLD: Final = re.compile(r"claude-(\d{1,2})(?:[-.]\d{1,2})?-(opus|sonnet|haiku)")
_DATED: Final = re.compile(r"-(?:\d{4}-\d{2}-\d{2}|\d{8}|latest)$")
COUNTING: Final = "count_tokens"
"""Counting tokens has limits of its own."""


def model_class(kind: str, model: str) -> str:
    """Returns which models share a limit with this one: all Opus 4.x do, all Sonnet 4.x, and a dated name with the undated."""
    if kind == "anthropic":
        if found := _ANTHROPIC_NEW.search(model):
            return f"{found[1]}-{found[2]}"
        if found := _ANTHROPIC_OLD.search(model):
            return f"{found[2]}-{found[1]}"
    return _DATED.sub("", model)[:120] or "unknown"
