"""A kind's own section of the settings: which names it has, and what may stand there."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Final

from orchestra.errors import BadInput

TRUE: Final = ("true", "yes", "on", "1")
FALSE: Final = ("false", "no", "off", "0", "")
VALUE_CHARACTERS_MAX: Final = 20_000


class KindSettings:
    """Reads one section. Values are texts, as they come from files and variables alike."""

    def __init__(self, kind: str, values: Mapping[str, str], known: Iterable[str]) -> None:
        """Takes the section in.

        Raises:
            BadInput: A name is not known, or a value cannot be handed to a program.
        """
        self._kind = kind
        self._values = values
        names = tuple(known)
        for name, value in values.items():
            if name not in names:
                near = difflib.get_close_matches(name, names, 1)
                hint = f"did you mean {near[0]!r}?" if near else f"known settings: {', '.join(names)}"
                raise BadInput(f"the kind {kind!r} has no setting {name[:40]!r}", field=self.field(name), hint=hint)
            if "\0" in value or len(value) > VALUE_CHARACTERS_MAX:
                raise BadInput("holds a NUL character or is too long", field=self.field(name))

    def field(self, name: str) -> str:
        """Returns the path of a setting as errors show it."""
        return f"kinds.{self._kind}.{name}"

    def text(self, name: str, default: str = "") -> str:
        """Returns a text without the blanks around it."""
        return self._values.get(name, default).strip()

    def word(self, name: str, default: str = "") -> str:
        """Returns a text that may stand on a command line where an option could."""
        return plain_word(self.text(name, default), field=self.field(name))

    def choice(self, name: str, default: str, choices: Iterable[str]) -> str:
        """Returns one of the given texts."""
        value, allowed = self.text(name, default), tuple(choices)
        if value not in allowed:
            raise BadInput(f"{value[:40]!r} is not known", field=self.field(name), hint=f"use one of: {', '.join(allowed)}")
        return value

    def number(self, name: str, default: int | None = None, *, most: int = 1_000_000) -> int | None:
        """Returns a whole number from 0 to `most`, or the default where there is none."""
        value = self.text(name)
        if not value:
            return default
        if not (value.isascii() and value.isdigit() and len(value) <= 9) or int(value) > most:
            raise BadInput(f"{value[:40]!r} is not a whole number from 0 to {most}", field=self.field(name))
        return int(value)

    def flag(self, name: str) -> bool:
        """Returns whether a switch is on; off if nothing is said."""
        value = self.text(name).lower()
        if value not in TRUE + FALSE:
            raise BadInput(f"{value[:40]!r} is neither true nor false", field=self.field(name))
        return value in TRUE

    def words(self, name: str) -> tuple[str, ...]:
        """Returns what is separated by commas."""
        return tuple(each.strip() for each in self.text(name).split(",") if each.strip())


def plain_word(value: str, *, field: str) -> str:
    """Returns the value, which must not look like an option.

    Raises:
        BadInput: It begins with a dash, or holds what no argument can.
    """
    if value.startswith("-") or "\0" in value:
        raise BadInput(f"{value[:40]!r} looks like an option of the command", field=field, hint="it must not begin with '-'")
    return value
