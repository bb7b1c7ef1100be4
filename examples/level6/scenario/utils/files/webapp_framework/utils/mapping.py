"""Nested mappings, as settings are."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def merge(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """Returns both; where they disagree `high` wins, mapping by mapping. Neither is changed."""
    both = dict(low)
    for key, value in high.items():
        old = both.get(key)
        both[key] = merge(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def pick(values: Mapping[str, Any], path: str, default: Any = None) -> Any:
    """Returns what lies at a path such as `database.path`, or the default."""
    found: Any = values
    for name in path.split("."):
        if not isinstance(found, Mapping) or name not in found:
            return default
        found = found[name]
    return found
