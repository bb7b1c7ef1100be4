"""Words of a report: hostile text made harmless, long text cut, stamps and names for people."""

from __future__ import annotations

import posixpath
import re
from datetime import UTC, datetime
from typing import Final
from urllib.parse import quote

from orchestra.protocol.text import printable
from orchestra.views import ReportData, TaskDetail

TONES: Final = {
    "completed": ("good", "✓"),
    "failed": ("bad", "✗"),
    "cancelled": ("off", "⊘"),
    "running": ("live", "▶"),
    "assigned": ("live", "▶"),
    "waiting": ("warn", "?"),
    "verifying": ("live", "▶"),
    "retry_wait": ("warn", "↻"),
    "unknown": ("warn", "?"),
    "queued": ("wait", "·"),
    "pending": ("wait", "·"),
}
"""Status -> colour class and sign. The sign says the same as the colour, for eyes and printers that see none."""

STAMP_MAX_MS: Final = 253_402_300_799_000
_SGR: Final = re.compile("\x1b\\[[0-9;:]{0,40}m")
"""Colours and weights: they only decorate, so a log reads better without them than with stand-ins."""
_UNSEEN: Final = re.compile("[\xad\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ud800-\udfff\ufffe\uffff\U000e0000-\U000e007f]")
"""What no encoder takes, what breaks lines where none seems to be, and what hides text in text."""


def plain(text: str, most: int = 0) -> str:
    """Returns the text with nothing in it that acts on a reader's screen, cut to `most` characters if that is given."""
    return clip(_UNSEEN.sub("\N{REPLACEMENT CHARACTER}", printable(_SGR.sub("", text))), most)


def clip(text: str, most: int) -> str:
    """Returns the text, or its beginning and a mark if it is longer than `most` characters."""
    return text if most <= 0 or len(text) <= most else f"{text[: most - 1]}…"


def one_line(text: str, most: int = 0) -> str:
    """Returns the text as one harmless line."""
    return plain(" ".join(text.split()), most)


def last_lines(lines: tuple[str, ...], count: int, width: int) -> str:
    """Returns the end of a log, harmless, with at most so many lines of so many characters."""
    return "\n".join(one.replace("\n", " ") for one in (plain(line.rstrip("\r\n"), width) for line in lines[-count:]))


def short(task: str) -> str:
    """Returns the task's own name without its plan's."""
    return task.rpartition("/")[2]


def tone(status: str) -> str:
    """Returns the colour class of a status; of an unheard-of one, that of waiting."""
    return TONES.get(status, TONES["pending"])[0]


def sign(status: str) -> str:
    """Returns the sign of a status."""
    return TONES.get(status, TONES["pending"])[1]


def show_time(ms: int) -> str:
    """Returns a UTC stamp for people, or a dash for none."""
    if ms <= 0:
        return "-"
    return datetime.fromtimestamp(min(ms, STAMP_MAX_MS) // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def results_link(data: ReportData, detail: TaskDetail, folder: str) -> str:
    """Returns the way from the report's folder to the task's results, as a relative URL ending in a slash, or nothing if there is none."""
    if not detail.results:
        return ""
    target = posixpath.join(data.root, detail.results)
    relative = posixpath.relpath(target, folder) if target.startswith("/") == folder.startswith("/") else target
    return quote(relative if relative.startswith(("..", "/")) else f"./{relative}", safe="/.", errors="replace") + "/"


def report_folder(data: ReportData, folder: str) -> str:
    """Returns the folder the report will lie in: the one given, else the root's own folder for reports."""
    return folder or posixpath.join(data.root, "reports")
