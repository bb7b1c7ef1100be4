"""Takes secrets out of texts that are kept: the values somebody knows, and whatever has the form of a well-known key. Pure.

A masked text has as many lines as before, so that texts that belong together stay aligned. A secret is found although a line break was put into it: a known
value anywhere, a key of a known form where the rest of it is all there is in the next line.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

MASK: Final = "********"
VALUE_CHARACTERS_MIN: Final = 8
"""A shorter value is no key, and would be found in words that are none of its business."""
TOKEN: Final = "[A-Za-z0-9_-]"
BLOCK_CHARACTERS_MAX: Final = 50_000
KEY_LINES_MAX: Final = 400
"""Of a private key whose end is not there; a 16384-bit RSA key has 200."""

SECRET_NAME: Final = re.compile(
    r"(?i)(?:^|_)(?:(?:api|access|secret|private|signing|encryption)_?key|key|token|secret|passw(?:or)?d|passphrase|credentials?|pat)(?:_|$)|apikey|password"
)


def is_secret_name(name: str) -> bool:
    """Tells whether a variable of that name holds a secret."""
    return SECRET_NAME.search(name) is not None


def secret_values(environment: Mapping[str, str]) -> tuple[str, ...]:
    """Returns the values of the variables whose names say that they are secret."""
    return tuple(value for name, value in environment.items() if len(value) >= VALUE_CHARACTERS_MIN and is_secret_name(name))


def _key(prefix: str, length: int, characters: str = TOKEN) -> str:
    """Returns what finds a key in one line, or with its rest as the whole of the next."""
    rest = rf"\r?\n(?=\S*[0-9]){characters}{{8,}}(?=\s|$)"
    return rf"(?<![A-Za-z0-9]){prefix}(?:{characters}{{{length},}}(?:(?={rest}){rest})?|{characters}{{2,}}{rest})"


_KEYS: Final = re.compile(
    "|".join(
        (
            _key("sk-ant-", 8),
            _key("sk-", 16),
            _key("gh[pousr]_", 16, "[A-Za-z0-9]"),
            _key("github_pat_", 16, "[A-Za-z0-9_]"),
            _key("glpat-", 16),
            _key("npm_", 30, "[A-Za-z0-9]"),
            _key("xox[abeprs]-", 10),
            _key("AIza", 30),
            _key("A(?:KIA|SIA)", 16, "[0-9A-Z]"),
            _key("oat_", 16),
            _key("orc-", 20),
            rf"(?<![A-Za-z0-9])eyJ{TOKEN}{{10,4000}}\.eyJ{TOKEN}{{10,9000}}\.{TOKEN}{{10,}}",
        )
    ),
    re.MULTILINE,
)
"""Keys of Anthropic, OpenAI, GitHub, GitLab, npm, Slack, Google and Amazon, tokens of OAuth and of our gateway, and JSON web tokens."""
_BEARER: Final = re.compile(r"(?i)(\b(?:bearer|basic)\s+)([A-Za-z0-9._~+/=-]{12,})")
_LOGIN: Final = re.compile(r"(\b[a-z][a-z0-9+.-]{1,20}://[^\s/:@\"']{1,100}:)([^\s/@\"']{3,200})(?=@)")
_ASSIGNED: Final = re.compile(r"(?<![A-Za-z0-9_])([A-Z][A-Z0-9_]{1,60})(=[\"']?)([^\s\"'&;|$`]{8,})")
_MARK: Final = re.compile(r"-----(BEGIN|END) [A-Z0-9 ]{0,30}PRIVATE KEY(?: BLOCK)?-----")
_OPEN: Final = re.compile(rf"(-----BEGIN [A-Z0-9 ]{{0,30}}PRIVATE KEY(?: BLOCK)?-----)(?!{re.escape(MASK)})")
_BODY: Final = re.compile(r"\s*(?:[A-Za-z0-9+/=]+|[A-Za-z-]+: .*)?\s*")


class Masker:
    """Masks texts.

    Args:
        values: Secrets that are known. Those of fewer than eight characters are passed over.
    """

    def __init__(self, values: Iterable[str] = ()) -> None:
        known = {value for value in values if len(value) >= VALUE_CHARACTERS_MIN}
        known |= {msgspec.json.encode(value).decode()[1:-1] for value in known}
        flat = {"".join(value.splitlines()) for value in known}
        self._values = sorted((value for value in flat if len(value) >= VALUE_CHARACTERS_MIN), key=lambda value: (-len(value), value))

    def text(self, text: str) -> str:
        """Returns the text with `********` for each secret; as many lines as before."""
        for value in self._values:
            text = _without_value(text, value)
        text = _without_open_blocks(_without_blocks(text))
        text = _KEYS.sub(_key_or_word, text)
        text = _BEARER.sub(lambda found: found[1] + MASK, text)
        text = _LOGIN.sub(lambda found: found[1] + MASK, text)
        return _ASSIGNED.sub(lambda found: f"{found[1]}{found[2]}{MASK}" if is_secret_name(found[1]) else found[0], text)

    def plain(self, value: object) -> object:
        """Returns a tree of plain values with every text in it masked; names stay."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, dict):
            return {name: self.plain(each) for name, each in value.items()}
        return [self.plain(each) for each in value] if isinstance(value, list | tuple) else value


def _key_or_word(found: re.Match[str]) -> str:
    """What begins like a key of OpenAI's and has no digit in it is the name of something."""
    return found[0] if found[0].startswith("sk-") and not any(map(str.isdigit, found[0])) else _blank(found[0])


def _blank(text: str) -> str:
    return MASK + "\n" * text.count("\n")


def _without_value(text: str, value: str) -> str:
    """Masks a value, also where line breaks were put into it."""
    compact = text.replace("\n", "")
    at = compact.find(value)
    if at < 0:
        return text
    breaks: list[int] = []
    start = text.find("\n")
    while start >= 0:
        breaks.append(start - len(breaks))
        start = text.find("\n", start + 1)
    pieces, done = [], 0
    while at >= 0:
        begin = at + bisect_right(breaks, at)
        end = at + len(value) - 1
        end += bisect_right(breaks, end) + 1
        pieces += [text[done:begin], _blank(text[begin:end])]
        done, at = end, compact.find(value, at + len(value))
    return "".join((*pieces, text[done:]))


def _without_blocks(text: str) -> str:
    """Masks what is between the beginning and the end of a private key, in however many lines."""
    pieces, done, begun = [], 0, -1
    for found in _MARK.finditer(text):
        if found[1] == "BEGIN":
            begun = found.end()
        elif begun >= 0 and found.start() - begun <= BLOCK_CHARACTERS_MAX:
            pieces += [text[done:begun], _blank(text[begun : found.start()])]
            done, begun = found.start(), -1
    return "".join((*pieces, text[done:]))


def _without_open_blocks(text: str) -> str:
    """Masks the lines after the beginning of a private key whose end is not there."""
    if not _OPEN.search(text):
        return text
    lines = text.split("\n")
    left = 0
    for index, line in enumerate(lines):
        if found := _OPEN.search(line):
            lines[index] = line[: found.end()] + MASK
            left = KEY_LINES_MAX
        elif left and _BODY.fullmatch(line):
            lines[index] = MASK if line.strip() else line
            left -= 1
        else:
            left = 0
    return "\n".join(lines)
