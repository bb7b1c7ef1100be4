"""What tasks will cost, guessed from what such tasks cost before, and where nothing is known from prices and a stated assumption. Pure.

Rules:
- The past nearest to a task counts: attempts of the same task in earlier runs of its plan, else of its kind and category, else of its kind; `SAMPLES_MIN`
  of them at least. Low, likely and high are the 10th, 50th and 90th percentile of an attempt.
- Repetition is part of it: likely takes the mean number of attempts such tasks needed, high the 90th percentile, as far as the task's retries go.
- No guess is above the task's hard stop, since the gateway ends it there.
- A kind that never called a model costs nothing. An attempt that ended badly and of which nothing is known tells nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Final

import msgspec

from orchestra.core.model import OutcomeKind, TaskSpec
from orchestra.core.model import Usage as Said
from orchestra.core.state import State, TaskState, duration_key
from orchestra.ids import AttemptId
from orchestra.metering.prices import Quote, cost_usd_micros
from orchestra.metering.usage import Usage

SAMPLES_MIN: Final = 3
"""Fewer attempts say more about their accidents than about the next one."""
LOW_PERCENT, HIGH_PERCENT = 10, 90

MS_PER_REQUEST: Final = 10_000
"""ASSUMED: an agent asks its model every ten seconds of the time a task is expected to take; tools and answers fill the rest."""
REQUESTS_MIN, REQUESTS_MAX = 3, 400
PROMPT: Final = Usage(input_tokens=300, cache_read_tokens=27_000, cache_write_5m_tokens=2_700, output_tokens=400)
"""ASSUMED of a request in the middle of a session: a prompt of 30,000 tokens, nine tenths of it from the cache, and a tool call for an answer."""
ASSUMED_LOW_PERCENT, ASSUMED_HIGH_PERCENT = 30, 300
"""ASSUMED: a third to three times; sessions of the same kind differ that much."""
TRIES_ASSUMED_PERCENT: Final = 120
"""ASSUMED: one task in five is tried again."""
TOKENS_LOW_PERCENT, TOKENS_HIGH_PERCENT = 50, 200
"""ASSUMED, where the number of tokens is given and only their mixture is not known."""

NO_MODEL: Final = frozenset({"shell", "rehearsal"})
DEFAULT_MODELS: Final[dict[str, tuple[str, str]]] = {
    "claude": ("anthropic", "claude-opus-5-5"),
    "codex": ("openai", "gpt-6-sol"),
    "gemini": ("gemini", "gemini-3.1-pro-preview"),
}
"""Provider and model that a kind's program takes if nobody names one."""

Bounds = tuple[int, int, int]
"""Low, likely, high."""
QuoteOf = Callable[[TaskSpec], Quote]
"""The price that holds for a task."""


class Paid(msgspec.Struct, frozen=True):
    """What the gateway settled for an attempt."""

    tokens: int
    cost_usd_micros: int


class Sample(msgspec.Struct, frozen=True):
    """One attempt of the past."""

    cost_usd_micros: int
    tokens: int
    duration_ms: int


class Summary(msgspec.Struct, frozen=True):
    """What attempts that have something in common came to."""

    cost_usd_micros: Bounds
    tokens: Bounds
    duration_ms: Bounds
    tries_mean_percent: int
    tries_high: int


class Past(msgspec.Struct):
    """Attempts that have something in common, and how many each of their tasks needed."""

    samples: list[Sample] = []
    tries: list[int] = []
    known: Summary | None = None

    def summary(self) -> Summary:
        """Returns what they came to; worked out once, as a plan may have very many tasks of one kind."""
        if self.known is None:
            tries = self.tries or [1]
            self.known = Summary(
                cost_usd_micros=spread([each.cost_usd_micros for each in self.samples]),
                tokens=spread([each.tokens for each in self.samples]),
                duration_ms=spread([each.duration_ms for each in self.samples]),
                tries_mean_percent=sum(tries) * 100 // len(tries),
                tries_high=percentile(tries, HIGH_PERCENT),
            )
        return self.known


class Forecast(msgspec.Struct, frozen=True):
    """What a task is thought to take, all its attempts together."""

    cost_usd_micros: Bounds
    tokens: Bounds
    duration_ms: Bounds
    basis: str
    samples: int = 0
    quote: Quote | None = None


def percentile(values: Sequence[int], percent: int) -> int:
    """Returns the value below which that share of the values lies, by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def spread(values: Sequence[int]) -> Bounds:
    """Returns low, median and high."""
    return percentile(values, LOW_PERCENT), percentile(values, 50), percentile(values, HIGH_PERCENT)


class History:
    """The attempts an orchestra has made, sorted by what they have in common."""

    def __init__(self, state: State, paid: Callable[[AttemptId], Paid | None], quote: QuoteOf) -> None:
        self._pasts: dict[tuple[str, ...], Past] = {}
        for task in state.tasks.values():
            samples = list(_samples(task, paid, quote))
            for key in _keys(task.spec):
                past = self._pasts.setdefault(key, Past())
                past.samples += samples
                if task.over and task.attempts:
                    past.tries.append(max(1, -(-len(task.attempts) // task.spec.replicas)))

    def nearest(self, spec: TaskSpec) -> tuple[Past, str] | None:
        """Returns what is nearest to a task, and what it is in words; None if there is too little."""
        key, kind_and_category, kind = _keys(spec)
        words = ((key, "this task"), (kind_and_category, f"kind {spec.kind} in category {spec.category}"), (kind, f"kind {spec.kind}"))
        for wanted, what in words:
            past = self._pasts.get(wanted)
            if past is not None and len(past.samples) >= SAMPLES_MIN:
                return past, what
        return None

    def busiest_kind(self) -> str:
        """Returns the kind most attempts were of that used a model; empty if none did."""
        used = {
            key[1]: sum(each.tokens > 0 for each in past.samples) for key, past in self._pasts.items() if key[0] == "kind" and len(key) == 2
        }
        kind = max(used, key=lambda each: used[each], default="")
        return kind if used.get(kind) else ""


def _keys(spec: TaskSpec) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return ("task", duration_key(spec), spec.kind), ("kind", spec.kind, spec.category), ("kind", spec.kind)


def _samples(task: TaskState, paid: Callable[[AttemptId], Paid | None], quote: QuoteOf) -> Iterator[Sample]:
    for attempt in task.attempts:
        outcome = attempt.outcome
        if outcome is None:
            continue
        known, said = paid(AttemptId(task.id, attempt.number)), outcome.usage
        if known is None and said == Said() and outcome.kind is not OutcomeKind.DONE:
            continue
        if known is not None:
            yield Sample(known.cost_usd_micros, known.tokens, outcome.duration_ms)
            continue
        tokens = said.tokens_input + said.tokens_output + said.tokens_cache_read + said.tokens_cache_write
        cost = said.cost_usd_micros or (cost_usd_micros(quote(task.spec).price, usage_of(said)) if tokens else 0)
        yield Sample(cost, tokens, outcome.duration_ms)


def usage_of(said: Said) -> Usage:
    """Returns what a program said in the kinds that prices know; it does not tell how long its cache lasts, so the usual time is taken."""
    return Usage(said.tokens_input, said.tokens_cache_read, said.tokens_cache_write, 0, said.tokens_output)


def forecast(spec: TaskSpec, history: History, quote: QuoteOf, expected_ms: int) -> Forecast:
    """Returns what a task is thought to take.

    Args:
        spec: The task.
        history: What is known of the past.
        quote: Prices.
        expected_ms: How long it is expected to take where nothing of the past says so.
    """
    found = history.nearest(spec)
    if found is None:
        return _assumed(spec, quote, expected_ms)
    past, what = found
    known, most = past.summary(), spec.retries + 1
    mean_percent = min(most * 100, known.tries_mean_percent)
    percents = (100, mean_percent, max(min(most, known.tries_high) * 100, mean_percent))
    return Forecast(
        cost_usd_micros=_stopped(spec, _times(known.cost_usd_micros, percents, spec.replicas)),
        tokens=_times(known.tokens, percents, spec.replicas),
        duration_ms=_times(known.duration_ms, percents, 1),
        basis=f"{len(past.samples)} attempts of {what}",
        samples=len(past.samples),
    )


def _assumed(spec: TaskSpec, quote: QuoteOf, expected_ms: int) -> Forecast:
    most = (spec.retries + 1) * 100
    percents = (100, min(TRIES_ASSUMED_PERCENT, most), min(200, most))
    time_ms = expected_ms if spec.kind in NO_MODEL else spec.estimate_ms  # a measure there may be is of another kind that did this task
    durations = _times((time_ms, time_ms, time_ms), percents, 1)
    if spec.kind in NO_MODEL:
        return Forecast((0, 0, 0), (0, 0, 0), durations, f"kind {spec.kind} calls no model")
    requests = min(REQUESTS_MAX, max(REQUESTS_MIN, -(-time_ms // MS_PER_REQUEST)))
    found = quote(spec)
    likely, tokens = cost_usd_micros(found.price, PROMPT) * requests, (PROMPT.prompt_tokens + PROMPT.output_tokens) * requests
    return Forecast(
        cost_usd_micros=_stopped(spec, _times(_assumed_range(likely), percents, spec.replicas)),
        tokens=_times(_assumed_range(tokens), percents, spec.replicas),
        duration_ms=durations,
        basis=f"{requests} requests assumed, at the price of {found.model or 'the dearest model'}",
        quote=found,
    )


def _assumed_range(likely: int) -> Bounds:
    return likely * ASSUMED_LOW_PERCENT // 100, likely, likely * ASSUMED_HIGH_PERCENT // 100


def _times(values: Bounds, percents: Bounds, count: int) -> Bounds:
    low, likely, high = (value * percent * count // 100 for value, percent in zip(values, percents, strict=True))
    return min(low, likely), likely, max(likely, high)


def _stopped(spec: TaskSpec, values: Bounds) -> Bounds:
    stop = spec.cost_usd_micros_max
    low, likely, high = (min(value, stop) if stop else value for value in values)
    return low, likely, high


def added(values: Iterable[Bounds]) -> Bounds:
    """Returns the sum, bound by bound: a bad day is bad for all tasks, so the bounds of the sum are the sums of the bounds."""
    found = list(values)
    return sum(each[0] for each in found), sum(each[1] for each in found), sum(each[2] for each in found)


def of_tokens(tokens: int, kind: str, history: Past | None, quote: Quote) -> Forecast:
    """Returns what so many tokens of one agent cost and how long they take, by the mixture of the past or the one assumed."""
    known = [each for each in ([] if history is None else history.samples) if each.tokens]
    if len(known) >= SAMPLES_MIN:
        cost = spread([-(-each.cost_usd_micros * tokens // each.tokens) for each in known])
        duration = spread([each.duration_ms * tokens // each.tokens for each in known])
        return Forecast(cost, (tokens, tokens, tokens), duration, f"the mixture of {len(known)} attempts of kind {kind}", len(known))
    whole = PROMPT.prompt_tokens + PROMPT.output_tokens
    likely = -(-cost_usd_micros(quote.price, PROMPT) * tokens // whole)
    bounds = likely * TOKENS_LOW_PERCENT // 100, likely, likely * TOKENS_HIGH_PERCENT // 100
    took = MS_PER_REQUEST * tokens // whole
    basis = f"an assumed mixture, at the price of {quote.model or 'the dearest model'}"
    return Forecast(bounds, (tokens, tokens, tokens), (took, took, took), basis, quote=quote)
