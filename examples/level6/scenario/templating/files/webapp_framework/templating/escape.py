"""What keeps a value from becoming markup."""

from __future__ import annotations

from html import escape
from typing import Any


class Safe(str):
    """Text that is markup already."""


def escaped(value: Any) -> str:
    """Returns a value as it may stand in a page; nothing for None."""
    if isinstance(value, Safe):
        return str(value)
    return "" if value is None else escape(str(value))
