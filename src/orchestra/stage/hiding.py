"""Keeps the values of this machine's key-like variables out of what is read from here: they are nobody's business elsewhere, and nobody else knows them."""

from __future__ import annotations

import json
import os
import re

VALUE_BYTES_MIN = 8  # a shorter value is no key, and would be found in words that are none of its business
NAME = re.compile(
    r"(?i)(?:^|_)(?:(?:api|access|secret|private|signing|encryption)_?key|key|token|secret|passw(?:or)?d|passphrase|credentials?|pat)(?:_|$)|apikey|password"
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping


def secrets_of(environment: Mapping[str, str]) -> list[bytes]:
    """The values, and how JSON writes them; longest first."""
    found = set()
    for name, value in environment.items():
        if NAME.search(name):
            for text in (value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]):
                found.add(text.encode("utf-8", "surrogateescape"))
    return sorted((value for value in found if len(value) >= VALUE_BYTES_MIN), key=lambda value: (-len(value), value))


def read_hidden(fd: int, offset: int, length: int, secrets: list[bytes]) -> bytes:
    """A part of a file with asterisks for each byte of a secret, also of one that begins before the part or ends after it."""
    around = len(secrets[0]) if secrets else 0
    before = min(offset, around)
    data = os.pread(fd, before + length + around, offset - before)
    for value in secrets:
        data = data.replace(value, b"*" * len(value))
    return data[before : before + length]
