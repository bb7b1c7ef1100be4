"""Makes `src/orchestra/gateway/prices.json` from the data of genai-prices, which has to be installed where this runs.

    python scripts/update_prices.py 2026-11-21

The package itself stays out of the program: what it would bring along to read this table is larger than the gateway.
"""

from __future__ import annotations

import datetime
import importlib
import importlib.metadata
import json
import re
import sys
from pathlib import Path
from typing import Any

PROVIDERS = ("anthropic", "openai", "google", "deepseek", "mistral", "x-ai", "zai", "moonshotai")
TARGET = Path(__file__).resolve().parents[1] / "src" / "orchestra" / "gateway" / "prices.json"
RATES = {"anthropic": {"us": 1_100_000_000, "priority": 1_000_000_000}}
"""Billionths of the standard price, of every model of a provider: Anthropic's page on data residency (1.1 for inference in the US, which models before Opus 4.6 refuse), and its
page on service tiers (what was committed to beforehand costs no more than the standard). Read in November 2026."""
FIELDS = {
    "input": "input_mtok",
    "output": "output_mtok",
    "cache_read": "cache_read_mtok",
    "cache_write_5m": "cache_write_mtok",
    "cache_write_1h": "cache_write_1h_mtok",
}


def patterns_of(clause: Any) -> list[str]:
    """Returns regular expressions for whole names, any of which may match."""
    kind = type(clause).__name__
    if kind == "ClauseOr":
        return [pattern for each in clause.or_ for pattern in patterns_of(each)]
    if kind == "ClauseEquals":
        return [re.escape(clause.equals)]
    if kind == "ClauseStartsWith":
        return [re.escape(clause.starts_with) + ".*"]
    if kind == "ClauseEndsWith":
        return [".*" + re.escape(clause.ends_with)]
    if kind == "ClauseContains":
        return [".*" + re.escape(clause.contains) + ".*"]
    if kind == "ClauseRegex":
        return [f"(?=.*?(?:{clause.regex.lstrip('^')})).*" if not clause.regex.startswith("^") else f"(?:{clause.regex[1:]}).*"]
    if kind == "ClauseAnd":
        return ["".join(f"(?={'|'.join(f'(?:{each})$' for each in patterns_of(part))})" for part in clause.and_) + ".*"]
    raise SystemExit(f"unknown clause {kind}")


def amount(value: Any, tier: int) -> int | None:
    """Returns micro-dollars a million tokens; of a tiered price the tier from `tier` tokens on, 0 the base."""
    if value is None:
        return None
    if hasattr(value, "base"):
        found = [each.price for each in value.tiers if each.start <= tier]
        value = found[-1] if found else value.base
    return round(value * 1_000_000)


def price_of(prices: Any, tier: int) -> dict[str, int] | None:
    """Returns a price as the table holds it; None if the model is not paid by input and output tokens."""
    found = {name: amount(getattr(prices, field, None), tier) for name, field in FIELDS.items()}
    if found["input"] is None or found["output"] is None:
        return None
    return {name: value for name, value in found.items() if value is not None}


def period_of(prices: Any, from_day: int) -> dict[str, Any] | None:
    """Returns the prices from a day on."""
    base = price_of(prices, 0)
    if base is None:
        return None
    starts = sorted({each.start for field in FIELDS.values() for each in getattr(getattr(prices, field, None), "tiers", ())})
    period: dict[str, Any] = {"price": base}
    if from_day:
        period["from_day"] = from_day
    if starts:
        period["tiers"] = [{"above_tokens": start, "price": price_of(prices, start)} for start in starts]
    return period


def periods_of(model: Any) -> list[dict[str, Any]]:
    """Returns all periods of a model. Prices that hold at certain hours only are left out; the dearer ones stay."""
    if not isinstance(model.prices, list):
        period = period_of(model.prices, 0)
        return [] if period is None else [period]
    found = []
    for conditional in model.prices:
        start = getattr(conditional.constraint, "start_date", None)
        if conditional.constraint is not None and start is None:
            continue
        period = period_of(conditional.prices, (start - datetime.date(1970, 1, 1)).days if start else 0)
        found += [] if period is None else [period]
    return found


def rates_of(model: Any) -> dict[str, int]:
    """Returns by how much each service tier, speed and the batch API differ from the standard price, in billionths; of the prices of a variant the dearest."""
    found: dict[str, int] = {}
    for variant in model.price_variants or ():
        (name,) = variant.when.values()
        start = getattr(variant.constraint, "start_date", None)
        held = price_of(standard_at(model, start), 0)
        price = price_of_variant(variant.prices)
        ratios = [price[field] * 1_000_000_000 / held[field] for field in price if held and held.get(field)]
        if ratios:
            found[name] = max(found.get(name, 0), round(max(ratios)))
    return {name: rate for name, rate in found.items() if name not in {"default", "web"}}


def standard_at(model: Any, day: datetime.date | None) -> Any:
    """Returns the standard prices that hold on a day; the present ones for none."""
    if not isinstance(model.prices, list):
        return model.prices
    day = day or datetime.date.fromisoformat(sys.argv[1])
    starts = [(getattr(each.constraint, "start_date", None) or datetime.date.min, each.prices) for each in model.prices]
    return max((each for each in starts if each[0] <= day), key=lambda each: each[0])[1]


def price_of_variant(prices: Any) -> dict[str, int]:
    """Returns what a variant says; it names only the prices that differ."""
    found = {name: amount(getattr(prices, field, None), 0) for name, field in FIELDS.items()}
    return {name: value for name, value in found.items() if value is not None}


def web_search_of(model: Any) -> int:
    """Returns micro-dollars for one search of the provider's own in the web, -1 if there is no price."""
    prices = [each.prices for each in model.prices] if isinstance(model.prices, list) else [model.prices]
    found = [value for each in prices if (value := amount(getattr(each, "web_searches_kcount", None), 0)) is not None]
    return max(found) // 1000 if found else -1


def entry_of(provider: str, model: Any, periods: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns one model as the table holds it."""
    entry = {"provider": provider, "model": model.id, "patterns": patterns_of(model.match), "periods": periods}
    if rates := rates_of(model):
        entry["rates"] = rates
    if (web_search := web_search_of(model)) >= 0:
        entry["web_search"] = web_search
    return entry


def main() -> None:
    """Writes the table."""
    data = importlib.import_module("genai_prices.data")
    entries = []
    for provider in data.providers:
        if provider.id not in PROVIDERS:
            continue
        for model in provider.models:
            periods = periods_of(model)
            if periods:
                name = "gemini" if provider.id == "google" else provider.id
                entries.append(entry_of(name, model, periods))
    source = f"genai-prices {importlib.metadata.version('genai-prices')} (MIT)"
    lines = ",\n".join(json.dumps(entry, separators=(",", ":")) for entry in entries)
    rates = json.dumps(RATES, separators=(",", ":"))
    TARGET.write_text(f'{{"made":"{sys.argv[1]}","source":"{source}","rates":{rates},"entries":[\n{lines}\n]}}\n', encoding="utf-8")


if __name__ == "__main__":
    main()
