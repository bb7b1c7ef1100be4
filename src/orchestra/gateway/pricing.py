"""The price table that holds: the shipped one, and what a gateway's file puts before it."""

from __future__ import annotations

import importlib.resources

import msgspec

from orchestra.gateway.config import GatewayConfig
from orchestra.metering.prices import Prices, Table


def load_prices(config: GatewayConfig | None = None) -> Prices:
    """Returns the shipped table with what the configuration puts before it; without one, the shipped table."""
    text = importlib.resources.files("orchestra.gateway").joinpath("prices.json").read_bytes()
    table = msgspec.json.decode(text, type=Table)
    if config is None:
        return Prices(table, {})
    overrides = {name: part.price(f"prices.models.{name}") for name, part in config.prices.models.items()}
    unknown = None if config.prices.unknown is None else config.prices.unknown.price("prices.unknown")
    return Prices(table, overrides, unknown)
