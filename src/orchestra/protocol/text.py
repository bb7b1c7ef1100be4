"""Text from tasks and agents, made harmless to look at: nothing in it can move a cursor, set a title, write a clipboard or turn the reading direction."""

from __future__ import annotations

import re
from typing import Final

_CONTROLS: Final = re.compile(
    "["
    "\x00-\x08\x0b-\x1f\x7f-\x9f"  # C0 but tab and newline, DEL, C1
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that turn the direction
    "\ufeff\ufff9-\ufffb"
    "]"
)


def printable(text: str) -> str:
    """Returns the text with every control and direction character shown as a visible stand-in."""
    return _CONTROLS.sub(_stand_in, text)


def _stand_in(match: re.Match[str]) -> str:
    code = ord(match[0])
    return chr(0x2400 + code) if code < 0x20 else "\N{REPLACEMENT CHARACTER}"
