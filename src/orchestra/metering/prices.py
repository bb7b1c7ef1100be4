"""What tokens cost. Prices are micro-dollars a million tokens, which is picodollars a token; a request's cost is whole micro-dollars, rounded up.

Modes that cost more or less (service tiers, speeds, places) are rates on those prices, and searches that a provider makes by itself are charged one by one.
The table is data with the day it was made. A model that is not in it costs what the dearest model costs, and is flagged: never nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchestra.metering.usage import Usage

PER_MTOK: Final = 1_000_000
WHOLE: Final = 1_000_000_000
"""A rate of one."""


class Price(msgspec.Struct, frozen=True, omit_defaults=True):
    """Micro-dollars a million tokens."""

    input: int
    output: int
    cache_read: int = -1
    """-1: like input."""
    cache_write_5m: int = -1
    cache_write_1h: int = -1
    """-1: like a write for five minutes."""
    web_search: int = -1
    """Micro-dollars for one search that the provider makes; -1: as `Entry` says."""


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
    rates: dict[str, int] = {}
    """Mode (`metering.usage.mode_of`) -> billionths of its prices."""
    web_search: int = -1
    """Micro-dollars for one search; -1 is not known."""


class Table(msgspec.Struct, frozen=True, omit_defaults=True):
    """The table as it is stored."""

    made: str
    """Day it was taken from its source, as people write it."""
    source: str
    entries: tuple[Entry, ...]
    rates: dict[str, dict[str, int]] = {}
    """Provider -> mode -> billionths, of every model of the provider."""


class Quote(msgspec.Struct, frozen=True):
    """The price that holds for a request."""

    price: Price
    model: str
    """The table's name for it; empty if the model is not in the table."""
    sure: bool = True
    """The price of its mode is in the table, and that of searches if there were any."""

    @property
    def known(self) -> bool:
        """Whether the price is known, or else the highest was taken."""
        return bool(self.model) and self.sure


def cost_usd_micros(price: Price, usage: Usage) -> int:
    """Returns what that costs, rounded up to whole micro-dollars."""
    read = price.cache_read if price.cache_read >= 0 else price.input
    write = price.cache_write_5m if price.cache_write_5m >= 0 else price.input
    write_1h = price.cache_write_1h if price.cache_write_1h >= 0 else write
    pico = usage.input_tokens * price.input + usage.output_tokens * price.output + usage.cache_read_tokens * read
    pico += usage.cache_write_5m_tokens * write + usage.cache_write_1h_tokens * write_1h
    return -(-pico // PER_MTOK) + usage.web_searches * max(0, price.web_search)


_SCALED: Final = ("input", "output", "cache_read", "cache_write_5m", "cache_write_1h")


def _at_rate(price: Price, rate: int) -> Price:
    amounts = {name: amount for name in _SCALED if (amount := getattr(price, name)) >= 0}
    return msgspec.structs.replace(price, **{name: (amount * rate + WHOLE // 2) // WHOLE for name, amount in amounts.items()})


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
        self._rates = table.rates
        self._rates_max = {
            provider: max([WHOLE, *(rate for entry in table.entries if entry.provider == provider for rate in entry.rates.values())])
            for provider in {entry.provider for entry in table.entries}
        }
        self._search_max = max((entry.web_search for entry in table.entries), default=-1)
        self._found: dict[tuple[str, str], Entry | None] = {}

    def quote(self, provider: str, model: str, prompt_tokens: int, day: int, *, mode: str = "", searches: int = 0) -> Quote:
        """Returns the price of a model on a day (since 1970) for a prompt of this size.

        Args:
            provider: Whose model it is.
            model: As the request names it.
            prompt_tokens: Of the whole prompt.
            day: On which it is asked.
            mode: In which it is worked on; one without a known price costs what the dearest one of the provider does, and is flagged.
            searches: How many the provider made for it; where their price is not known the same holds.
        """
        entry = self._find(provider, model)
        quote = self._standard(entry, model, prompt_tokens, day)
        if not mode and not searches:
            return quote
        price, sure = quote.price, True
        if mode:
            rates = [self._rate(provider, entry, each) for each in mode.split("+")]
            sure = None not in rates
            most = self._rates_max.get(provider) or max(self._rates_max.values(), default=WHOLE)
            for rate in rates:
                price = _at_rate(price, most if rate is None else rate)
        if searches and price.web_search < 0:
            known = entry.web_search if entry is not None else -1
            sure = sure and known >= 0
            price = msgspec.structs.replace(price, web_search=known if known >= 0 else self._search_max)
        return Quote(price, quote.model, sure)

    def _rate(self, provider: str, entry: Entry | None, mode: str) -> int | None:
        own = None if entry is None else entry.rates.get(mode)
        return own if own is not None else self._rates.get(provider, {}).get(mode)

    def _standard(self, entry: Entry | None, model: str, prompt_tokens: int, day: int) -> Quote:
        if (override := self._overrides.get(model)) is not None:
            return Quote(override, model)
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
