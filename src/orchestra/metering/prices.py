"""What tokens cost. Prices are micro-dollars a million tokens, which is picodollars a token; a request's cost is whole micro-dollars, rounded up.

The table is data with the day it was made. A model that is not in it costs what the dearest model costs, and is flagged: never nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchestra.metering.usage import Usage

PER_MTOK: Final = 1_000_000


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """Micro-dollars a million tokens."""

    input: int
    output: int
    cache_read: int = -1
    """-1: like input."""
    cache_write_5m: int = -1
    cache_write_1h: int = -1
    """-1: like a write for five minutes."""


class Tier(msgspec.Struct, frozen=True):
    """Prices from a prompt size on."""

    above_tokens: int
    price: Price


class Period(msgspec.Struct, frozen=True, omit_defaults=True):
    """Prices from a day on."""

    price: Price
    from_day: int = 0
    """Days since 1970."""
    tiers: tuple[Tier, ...] = ()


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One model: every pattern is a regular expression that a whole name may match."""

    provider: str
    model: str
    patterns: tuple[str, ...]
    periods: tuple[Period, ...]


class Table(msgspec.Struct, frozen=True):
    """The table as it is stored."""

    made: str
    """Day it was taken from its source, as people write it."""
    source: str
    entries: tuple[Entry, ...]


class Quote(msgspec.Struct, frozen=True):
    """The price that holds for a request."""

    price: Price
    model: str
    """The table's name for it; empty if the model is not in the table."""

    @property
    def known(self) -> bool:
        """Whether the model is in the table."""
        return bool(self.model)


def cost_usd_micros(price: Price, usage: Usage) -> int:
    """Returns what that costs, rounded up to whole micro-dollars."""
    read = price.cache_read if price.cache_read >= 0 else price.input
    write = price.cache_write_5m if price.cache_write_5m >= 0 else price.input
    write_1h = price.cache_write_1h if price.cache_write_1h >= 0 else write
    pico = usage.input_tokens * price.input + usage.output_tokens * price.output + usage.cache_read_tokens * read
    pico += usage.cache_write_5m_tokens * write + usage.cache_write_1h_tokens * write_1h
    return -(-pico // PER_MTOK)


class Prices:
    """Finds prices.

    Args:
        table: The table that was shipped.
        overrides: Model name -> price, which goes before the table.
        unknown: Price of a model that is in neither; None is the dearest of the table.
    """

    def __init__(self, table: Table, overrides: Mapping[str, Price], unknown: Price | None = None) -> None:
        self.made = table.made
        self._overrides = dict(overrides)
        self._entries = [(entry, [re.compile(pattern) for pattern in entry.patterns]) for entry in table.entries]
        every = [tier.price for entry in table.entries for period in entry.periods for tier in (Tier(0, period.price), *period.tiers)]
        self._unknown = unknown or dearest(every)
        self._found: dict[tuple[str, str], Entry | None] = {}

    def quote(self, provider: str, model: str, prompt_tokens: int, day: int) -> Quote:
        """Returns the price of a model on a day (since 1970) for a prompt of this size."""
        if (override := self._overrides.get(model)) is not None:
            return Quote(override, model)
        entry = self._find(provider, model)
        if entry is None:
            return Quote(self._unknown, "")
        held = [period for period in entry.periods if period.from_day <= day] or list(entry.periods[:1])
        period = max(held, key=lambda each: each.from_day)
        tiers = [tier for tier in period.tiers if prompt_tokens > tier.above_tokens]
        price = max(tiers, key=lambda tier: tier.above_tokens).price if tiers else period.price
        return Quote(price, entry.model)

    def _find(self, provider: str, model: str) -> Entry | None:
        key = (provider, model)
        if key not in self._found:
            if len(self._found) > 10_000:
                self._found.clear()
            matches = (entry for entry, patterns in self._entries if any(pattern.fullmatch(model) for pattern in patterns))
            ranked = sorted(matches, key=lambda entry: entry.provider != provider)
            self._found[key] = ranked[0] if ranked else None
        return self._found[key]


def dearest(prices: Sequence[Price]) -> Price:
    """Returns the highest of each price."""
    return Price(
        input=max(price.input for price in prices),
        output=max(price.output for price in prices),
        cache_read=max(price.cache_read if price.cache_read >= 0 else price.input for price in prices),
        cache_write_5m=max(max(price.cache_write_5m, price.input) for price in prices),
        cache_write_1h=max(max(price.cache_write_1h, price.cache_write_5m, price.input) for price in prices),
    )
