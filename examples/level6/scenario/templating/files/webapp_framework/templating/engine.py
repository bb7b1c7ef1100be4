"""Templates: `{{ user.name }}`, `{% for item in items %}...{% end %}`, `{% if shown %}...{% else %}...{% end %}`; blocks may be nested."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from webapp_framework.core import Response
from webapp_framework.http import is_error
from webapp_framework.templating.escape import escaped

TOKEN = re.compile(r"(\{\{.*?\}\}|\{%.*?%\})", re.DOTALL)
FOR = re.compile(r"for (\w+) in ([\w.]+)")
IF = re.compile(r"if (not )?([\w.]+)")

Part = Callable[[Mapping[str, Any]], str]


class TemplateError(ValueError):
    """The template is not one, or names something that is not there."""


class Template:
    """A template that was read once and is filled often."""

    def __init__(self, source: str) -> None:
        """Reads a template.

        Raises:
            TemplateError: A block is unknown, not opened or not closed.
        """
        parts, _, rest = _read(TOKEN.split(source), 0, nested=False)
        self._parts = parts
        assert not rest

    def render(self, **values: Any) -> str:
        """Returns the text with values in its holes."""
        return _join(self._parts, values)


def render(source: str, **values: Any) -> str:
    """Returns a template's text with values in its holes."""
    return Template(source).render(**values)


def page(source: str, status: int = 200, **values: Any) -> Response:
    """Returns a filled template as a page; one that tells of an error is not to be kept by anybody."""
    response = Response.of_html(render(source, **values), status)
    return response.with_header("Cache-Control", "no-store") if is_error(status) else response


def look_up(path: str, values: Mapping[str, Any]) -> Any:
    """Returns what a name such as `user.name` stands for. Names that begin with an underscore are nobody's business.

    Raises:
        TemplateError: There is no such value.
    """
    found: Any = values
    for name in path.split("."):
        try:
            found = found[name] if isinstance(found, Mapping) else getattr(found, "" if name.startswith("_") else name)
        except (KeyError, AttributeError) as error:
            raise TemplateError(f"there is no {path!r}") from error
    return found


def _join(parts: Sequence[Part], values: Mapping[str, Any]) -> str:
    return "".join(part(values) for part in parts)


def _read(tokens: Sequence[str], at: int, nested: bool) -> tuple[list[Part], int, str]:
    """Returns the parts up to the end of the block, where that is, and what ended it."""
    parts: list[Part] = []
    while at < len(tokens):
        token = tokens[at]
        at += 1
        if token.startswith("{{"):
            parts.append(_hole(token[2:-2].strip()))
        elif token.startswith("{%"):
            words = token[2:-2].strip()
            if words in ("end", "else"):
                if not nested:
                    raise TemplateError(f"{words!r} ends nothing")
                return parts, at, words
            part, at = _block(words, tokens, at)
            parts.append(part)
        elif token:
            parts.append(_text(token))
    if nested:
        raise TemplateError("a block is not closed")
    return parts, at, ""


def _text(text: str) -> Part:
    return lambda values: text


def _hole(path: str) -> Part:
    if not re.fullmatch(r"[\w.]+", path):
        raise TemplateError(f"{path!r} is not a name")
    return lambda values: escaped(look_up(path, values))


def _block(words: str, tokens: Sequence[str], at: int) -> tuple[Part, int]:
    loop, test = FOR.fullmatch(words), IF.fullmatch(words)
    if not loop and not test:
        raise TemplateError(f"{words!r} is not a block")
    body, at, ended_by = _read(tokens, at, nested=True)
    other: list[Part] = []
    if ended_by == "else":
        other, at, ended_by = _read(tokens, at, nested=True)
        if ended_by == "else":
            raise TemplateError("a block has two of 'else'")
    if loop:
        return _loop(loop[1], loop[2], body, other), at
    assert test
    return _choice(test[2], bool(test[1]), body, other), at


def _loop(name: str, path: str, body: list[Part], other: list[Part]) -> Part:
    def run(values: Mapping[str, Any]) -> str:
        items = list(look_up(path, values))
        return "".join(_join(body, {**values, name: item}) for item in items) if items else _join(other, values)

    return run


def _choice(path: str, turned: bool, body: list[Part], other: list[Part]) -> Part:
    def run(values: Mapping[str, Any]) -> str:
        return _join(body if bool(look_up(path, values)) is not turned else other, values)

    return run
