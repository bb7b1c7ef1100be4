"""Where the parts of a JSON text stand. Python's reader does not say, so the text is walked again, and only when a message needs it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

Plain = Any
"""None, bool, int, float, str, list or dict of such; what JSON can say."""

_JSON_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*"|[^\s,:"\[\]{}]+|[\[\]{}]')
_PENDING: Final = object()


class Spot(NamedTuple):
    """A place in a text, both counted from 1."""

    line: int
    column: int


def _json_tokens(text: str) -> Iterator[tuple[str, Spot]]:
    """Yields every token but commas and colons, in order."""
    line, line_start, last = 1, 0, 0
    for match in _JSON_TOKEN.finditer(text):
        breaks = text.count("\n", last, match.start())
        if breaks:
            line += breaks
            line_start = text.rfind("\n", 0, match.start()) + 1
        last = match.start()
        yield match.group(), Spot(line, match.start() - line_start + 1)


def json_spots(text: str, top: Plain) -> dict[int, dict[str | int, Spot]]:
    """Returns the places of all values. Walks text and value side by side: a parsed object keeps the order of its keys."""
    spots: dict[int, dict[str | int, Spot]] = {}
    stack: list[tuple[Plain, Iterator[str | int], dict[str | int, Spot]]] = []
    value = top
    for token, spot in _json_tokens(text):
        if token in ("}", "]"):
            stack.pop()
            continue
        if token in ("{", "["):
            if stack and isinstance(stack[-1][0], list):
                value = _json_step(stack[-1], spot)
            keys: Iterator[str | int] = iter(list(value)) if isinstance(value, dict) else iter(range(len(value)))
            stack.append((value, keys, spots.setdefault(id(value), {})))
            value = _PENDING
        elif stack and isinstance(stack[-1][0], dict) and value is _PENDING:
            value = _json_step(stack[-1], spot)
            continue
        elif stack and isinstance(stack[-1][0], list):
            _json_step(stack[-1], spot)
        value = _PENDING
    return spots


def _json_step(frame: tuple[Plain, Iterator[str | int], dict[str | int, Spot]], spot: Spot) -> Plain:
    container, keys, spots = frame
    key = next(keys)
    spots[key] = spot
    return container[key]


def json_twin(text: str, key: str) -> Spot:
    """Returns where a key stands for the second time in one object, or the top."""
    stack: list[set[str] | None] = []
    previous = ""
    for token, spot in _json_tokens(text):
        if token in ("{", "["):
            stack.append(set() if token == "{" else None)
        elif token in ("}", "]"):
            stack.pop()
        elif stack and stack[-1] is not None and token[0] == '"' and previous != "key":
            name = json.loads(token)
            if name == key and key in stack[-1]:
                return spot
            stack[-1].add(name)
            previous = "key"
            continue
        previous = ""
    return Spot(1, 1)
