"""The one renderer: human, JSON and quiet. Whatever a task or agent said passes `clean` before it reaches a terminal.

JSON keeps every character, but those that a terminal would act on are written as escapes, so that looking at it is harmless too.
"""

from __future__ import annotations

import os
import re
import shutil
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from enum import Enum
from typing import Any, Final, NamedTuple, TextIO

from orchestra.errors import OrchestraError, PlanInvalid
from orchestra.protocol.text import printable

_UNSAFE_IN_JSON: Final = re.compile("[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ufff9-\ufffb]")
_BREAKS: Final = re.compile("[\n\t\u2028\u2029]+")
_SURROGATES: Final = re.compile("[\ud800-\udfff]")
ELLIPSIS: Final = "…"
COLUMN_GAP: Final = "  "
WIDTH_FALLBACK: Final = 100
CLEAR_LINE: Final = "\r\x1b[K"

COLOURS: Final = {"green": 32, "red": 31, "yellow": 33, "cyan": 36, "dim": 2, "bold": 1}
STATUS_COLOURS: Final = {
    **dict.fromkeys(("completed", "healthy", "ready", "done", "ok"), "green"),
    **dict.fromkeys(("running", "busy", "assigned", "verifying", "scaling"), "cyan"),
    "waiting": "yellow",
    **dict.fromkeys(("failed", "critical", "error", "lost", "timeout", "memory"), "red"),
    **dict.fromkeys(("degraded", "retry_wait", "unknown", "cancelled", "offline", "draining", "unverified", "stopped"), "yellow"),
}


class Face(Enum):
    """How results are shown."""

    HUMAN = "human"
    JSON = "json"
    QUIET = "quiet"


class Styled(NamedTuple):
    """Text with a colour or weight of `COLOURS`; shown plain where there is no colour."""

    text: str
    style: str


Part = str | Styled


def clean(text: str) -> str:
    """Returns text that cannot act on a terminal: line breaks and tabs stay, other control and direction characters are shown as stand-ins."""
    return _SURROGATES.sub("\N{REPLACEMENT CHARACTER}", printable(text))


def one_line(text: str) -> str:
    """Returns clean text without line breaks."""
    return _BREAKS.sub(" ", clean(text)).strip()


def width_of(text: str) -> int:
    """Returns how many terminal columns a clean line takes."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 2 if unicodedata.east_asian_width(char) in "WF" else 1 for char in text)


def cut(text: str, width: int) -> str:
    """Returns the line, shortened to `width` columns."""
    if width_of(text) <= width:
        return text
    kept, used = "", 0
    for char in text:
        used += width_of(char)
        if used >= width:
            break
        kept += char
    return (kept + ELLIPSIS)[: max(width, 0)]


def status_word(word: str) -> Styled:
    """Returns a status in its colour."""
    return Styled(word, STATUS_COLOURS.get(word, ""))


def mark(good: bool, *, optional: bool = False) -> Styled:
    """Returns the tick or cross of a check."""
    return Styled("✓", "green") if good else Styled("-", "yellow") if optional else Styled("✗", "red")


def json_line(value: object) -> str:
    """Returns one line of JSON that means `value` and is harmless on a terminal."""
    import msgspec

    return _UNSAFE_IN_JSON.sub(lambda found: f"\\u{ord(found[0]):04x}", msgspec.json.encode(value).decode())


class Renderer:
    """Writes results to `out` and everything about them to `err`."""

    def __init__(self, face: Face, out: TextIO, err: TextIO, *, verbose: bool = False) -> None:
        self.face = face
        self.verbose = verbose
        self._out = out
        self._err = err
        self._progress = ""
        self._drawn = False
        """A line of progress stands on the terminal, to be written over."""
        for stream in (out, err):
            reconfigure = getattr(stream, "reconfigure", None)
            if reconfigure is not None:
                reconfigure(errors="replace")

    @property
    def on_terminal(self) -> bool:
        """Whether a person sees the output as it is written."""
        return self._out.isatty()

    @property
    def width(self) -> int:
        """Columns of the terminal; a generous line where there is none."""
        return shutil.get_terminal_size((WIDTH_FALLBACK, 24)).columns if self.on_terminal else 0

    def show(self, value: object, human: Callable[[], None]) -> None:
        """Shows one result: `value` itself as JSON, or what `human` writes."""
        if self.face is Face.JSON:
            self.json(value)
        elif self.face is Face.HUMAN:
            human()

    def json(self, value: object) -> None:
        """Writes one line of JSON."""
        self._write(self._out, json_line(value) + "\n")

    def line(self, *parts: Part) -> None:
        """Writes one line of the human face."""
        if self.face is Face.HUMAN:
            self._write(self._out, self._painted(self._out, parts) + "\n")

    def data(self, text: str) -> None:
        """Writes what was asked for and nothing round it: output, screens, paths. In quiet too."""
        self._write(self._out, clean(text) + "\n")

    def note(self, *parts: Part) -> None:
        """Writes a remark beside the result."""
        if self.face is Face.HUMAN:
            self._write(self._err, self._painted(self._err, parts) + "\n")

    def progress(self, text: str, *, coarse: str) -> None:
        """Shows how far something is: one line that is written over on a terminal, elsewhere a line whenever `coarse` is another."""
        if self.face is not Face.HUMAN:
            return
        if self._err.isatty():
            self._write(self._err, cut(one_line(text), shutil.get_terminal_size((WIDTH_FALLBACK, 24)).columns - 1))
            self._drawn = True
        elif coarse != self._progress:
            self.note(text)
        self._progress = coarse

    def fields(self, rows: Iterable[tuple[str, Part]]) -> None:
        """Writes `name  value` lines, aligned."""
        found = [(name, value) for name, value in rows]
        widest = max((len(name) for name, _ in found), default=0)
        for name, value in found:
            self.line(Styled(name.ljust(widest), "dim"), COLUMN_GAP, value)

    def table(self, header: Sequence[str], rows: Sequence[Sequence[Part]], *, right: Sequence[str] = ()) -> None:
        """Writes aligned columns; the last is cut at the terminal's edge."""
        texts = [[one_line(_text(cell)) for cell in row] for row in rows]
        widths = [max([width_of(name), *(width_of(row[index]) for row in texts)]) for index, name in enumerate(header)]
        self.line(Styled(self._row(header, widths, header, right), "dim"))
        for row, plain in zip(rows, texts, strict=True):
            line = self._row(plain, widths, header, right)
            self.line(*self._coloured(line, row, widths))

    def _row(self, cells: Sequence[str], widths: Sequence[int], header: Sequence[str], right: Sequence[str]) -> str:
        padded = []
        for cell, width, name in zip(cells, widths, header, strict=True):
            blank = " " * (width - width_of(cell))
            padded.append(blank + cell if name in right else cell + blank)
        line = COLUMN_GAP.join(padded).rstrip()
        return cut(line, self.width) if self.width else line

    def _coloured(self, line: str, row: Sequence[Part], widths: Sequence[int]) -> list[Part]:
        """Splits an aligned line so that styled cells get their colour; only where every character before them is one column wide."""
        parts: list[Part] = []
        done = start = 0
        for cell, width in zip(row, widths, strict=True):
            if isinstance(cell, Styled) and cell.style and line[:start].isascii():
                parts += [line[done:start], Styled(line[start : start + width], cell.style)]
                done = start + width
            start += width + len(COLUMN_GAP)
        return [*parts, line[done:]]

    def error(self, error: OrchestraError) -> None:
        """Shows what went wrong and what to do about it, on stderr."""
        problems = error.problems if isinstance(error, PlanInvalid) else ()
        more = problems[1:]
        if self.face is Face.JSON:
            body: dict[str, Any] = {"code": error.code, "message": error.message, "hint": error.hint, "field": error.field}
            if more:
                body["problems"] = list(problems)
            self._write(self._err, json_line({"error": body}) + "\n")
            return
        where = f"{error.field}: " if error.field else ""
        self._write(self._err, self._painted(self._err, [Styled("error:", "red"), f" {where}{error.message}"]) + "\n")
        for problem in more:
            self._write(self._err, self._painted(self._err, [Styled("also:", "red"), f" {problem}"]) + "\n")
        if error.hint:
            self._write(self._err, self._painted(self._err, [Styled("hint:", "cyan"), f" {error.hint}"]) + "\n")
        cause = error.__cause__
        while self.verbose and cause is not None:
            self._write(self._err, self._painted(self._err, [f"caused by: {type(cause).__name__}: {cause}"]) + "\n")
            cause = cause.__cause__

    def _painted(self, stream: TextIO, parts: Iterable[Part]) -> str:
        colour = stream.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        done = []
        for part in parts:
            text = clean(_text(part))
            code = COLOURS.get(part.style) if isinstance(part, Styled) else None
            done.append(f"\x1b[{code}m{text}\x1b[0m" if colour and code is not None and text else text)
        return "".join(done)

    def _write(self, stream: TextIO, text: str) -> None:
        if self._drawn:
            self._drawn = False
            self._err.write(CLEAR_LINE)
            self._err.flush()
        stream.write(text)
        stream.flush()


def _text(part: Part) -> str:
    return part.text if isinstance(part, Styled) else part
