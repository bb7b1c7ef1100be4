"""Path patterns: `/users/{id:int}` or `/files/{rest:path}`."""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote

FIELD = re.compile(r"\{(\w+)(?::(\w+))?\}")
SHAPES = {"text": "[^/]+", "int": "[0-9]+", "slug": "[a-z0-9-]+", "path": ".+"}


def compile_pattern(path: str) -> re.Pattern[str]:
    """Returns an expression that fits whole paths; each field is a named group.

    Raises:
        ValueError: A field has a shape that is not known, or a name comes twice.
    """
    parts, at, names = [], 0, set()
    for field in FIELD.finditer(path):
        name, shape = field[1], field[2] or "text"
        if shape not in SHAPES:
            raise ValueError(f"the field {name!r} has an unknown shape {shape!r}; known: {', '.join(SHAPES)}")
        if name in names:
            raise ValueError(f"the field {name!r} comes twice in {path!r}")
        names.add(name)
        parts.append(re.escape(path[at : field.start()]) + f"(?P<{name}>{SHAPES[shape]})")
        at = field.end()
    return re.compile("".join(parts) + re.escape(path[at:]))


def fill(path: str, **values: Any) -> str:
    """Returns the path with values in its fields, encoded.

    Raises:
        ValueError: A value is missing or does not fit its field.
    """

    def put(field: re.Match[str]) -> str:
        name, shape = field[1], field[2] or "text"
        text = str(values.get(name, ""))
        if not re.fullmatch(SHAPES[shape], text):
            raise ValueError(f"{text!r} does not fit the field {name!r} of {path!r}")
        return quote(text, safe="/" if shape == "path" else "")

    return FIELD.sub(put, path)
