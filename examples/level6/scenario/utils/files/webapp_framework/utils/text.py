"""Words for addresses and for people."""

from __future__ import annotations

import re
import unicodedata


def slug(text: str) -> str:
    """Returns a text as it may stand in an address: lower case letters, digits and dashes."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def shorten(text: str, most: int) -> str:
    """Returns a text of at most so many characters; what was cut ends in an ellipsis."""
    if most < 1:
        raise ValueError("a text has room for at least one character")
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def plural(count: int, one: str, many: str = "") -> str:
    """Returns a number with its word: `1 file`, `2 files`."""
    return f"{count} {one if count == 1 else many or one + 's'}"
