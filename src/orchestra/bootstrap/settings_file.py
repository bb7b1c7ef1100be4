"""Whether the settings file still says what the orchestra was started with: it is read at the start alone, and who changes it is to know."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import msgspec

from orchestra.errors import SettingsInvalid
from orchestra.intake.document import show_path
from orchestra.settings import FLAG, Settings, load

NAMED_MAX: Final = 3
_KNOWN_OTHERWISE: Final = "nodes."
"""Nodes come and go while an orchestra runs: `orchestra node list` shows which of them are configured only."""

_Stamp = tuple[int, int, int] | None


class SettingsFile:
    """The file as it was at the start, against what it says now.

    Args:
        file: Its path; it need not exist.
        running: What holds. What came from the environment or a flag goes before the file, so a change of it there changes nothing.
    """

    def __init__(self, file: Path, running: Settings) -> None:
        self._file = file
        self._running = running
        self._stamp = self._look()
        self._notice = ""

    def notice(self) -> str:
        """Returns what is to be said of a change, or nothing. Costs one look at the file's inode if there was none."""
        stamp = self._look()
        if stamp != self._stamp:
            self._stamp = stamp
            self._notice = self._compared()
        return self._notice

    def _look(self) -> _Stamp:
        try:
            facts = self._file.stat()
        except OSError:
            return None
        return facts.st_ino, facts.st_size, facts.st_mtime_ns

    def _compared(self) -> str:
        try:
            text = self._file.read_text(encoding="utf-8") if self._stamp is not None else None
            now = load(text, str(self._file), {}, {})
        except SettingsInvalid as error:
            return f"{self._file.name} was changed and would be refused at the next start: {error}"
        except (OSError, UnicodeDecodeError) as error:
            return f"{self._file.name} was changed and cannot be read: {error}"
        here, there = _values(self._running), _values(now)
        changed = [path for path in there | here if self._counts(path) and here.get(path) != there.get(path)]
        if not changed:
            return ""
        more = f" and {len(changed) - NAMED_MAX} more" if len(changed) > NAMED_MAX else ""
        return f"{self._file.name} was changed after the start, and holds from the next one: {', '.join(changed[:NAMED_MAX])}{more}"

    def _counts(self, path: str) -> bool:
        origin = self._running.origin(path)
        return origin != FLAG and not origin.startswith("env ") and not path.startswith(_KNOWN_OTHERWISE)


def _values(settings: Settings) -> dict[str, Any]:
    """Returns every setting by its path, as it is: what people are shown of a secret is the same for all secrets."""
    found: dict[str, Any] = {}

    def walk(tree: dict[str, Any], above: tuple[str, ...]) -> None:
        for name, value in tree.items():
            if isinstance(value, dict):
                walk(value, (*above, name))
            else:
                found[show_path((*above, name))] = value

    tree = msgspec.to_builtins(settings)
    del tree["origins"]
    walk(tree, ())
    return found
