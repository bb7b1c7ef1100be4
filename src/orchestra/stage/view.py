"""The pane: what a person sees of a slot. It may be dropped at any time, the log and the journal may not."""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

VIEW_LINES = 200  # shown in each period, the rest is counted
VIEW_PERIOD_S = 0.1
VIEW_CHARS = 2000
VIEW_QUEUE_BYTES = 65536  # waiting for a pane that does not read

SCREEN_RESET = "".join(
    "\x1b[" + one
    for one in ("?1049l", "?25h", "?1l", "?2004l", "?1000l", "?1002l", "?1003l", "?1004l", "?1006l", "?2026l", ">4;0m", "<u", "r", "0m")
)
"""Out of the other screen, the cursor shown, pasting, mouse, focus and keyboard as they are by default, all lines scrolling, no colour."""

_controls: dict[int, str] = {}


def _visible_controls() -> dict[int, str]:
    """Everything that moves a cursor, names a window, fills a clipboard or turns the writing direction, spelled out instead."""
    table = {code: "^" + chr(code ^ 64) for code in [*range(32), 127]}
    hidden = [*range(0x80, 0xA0), 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)]
    hidden += [0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]
    table.update({code: "<%04x>" % code for code in hidden})
    return table


def shown(text: str) -> str:
    """Text that is safe in a terminal, on one line, of a sane width. Of a line redrawn by carriage returns the last drawing is shown."""
    if text.isascii() and text.isprintable() and len(text) <= VIEW_CHARS:
        return text
    if not _controls:
        _controls.update(_visible_controls())
    text = text.rstrip("\r\n").rpartition("\r")[2]
    cut = text[:VIEW_CHARS].expandtabs().translate(_controls)[:VIEW_CHARS]
    return cut + "…" if len(text) > VIEW_CHARS else cut


class View:
    """The pane. Own words are always said; lines of the agent are shown as far as a person, and the terminal, can take them."""

    def __init__(self) -> None:
        self.fd, self.tty = self._open()
        self.gone = False  # the window is closed: what would be shown is forgotten
        self.queue = bytearray()
        self.due: float | None = None  # when the number of hidden lines is to be told
        self.shown = self.hidden = 0
        self.marker = ""
        self.cooked: list[Any] | None = None  # how the terminal was before a program had it for itself
        self.later: list[str] = []  # own words that wait until then

    @staticmethod
    def _open() -> tuple[int, bool]:
        """A description of our own for the terminal, as non-blocking is a property that all who share one would see."""
        if os.isatty(0) and os.isatty(1):
            try:
                return os.open(os.ttyname(1), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), True
            except OSError:
                pass
        os.set_blocking(1, False)
        return 1, False

    def say(self, text: str) -> None:
        """A line of the worker itself."""
        if self.cooked is not None:
            self.later.append(text)
            return
        self._put(shown(text) + "\n")

    def close_attempt(self, text: str) -> None:
        """How it ended, and the marker, alone on its line whatever a person has half typed."""
        self._tell_hidden()
        self._put("\n%s\n%s\n" % (shown(text), self.marker) if self.marker else "\n%s\n" % shown(text))
        self.marker = ""

    def lines(self, texts: list[str], source: str, as_json: bool) -> None:
        """Lines of the agent, at most so many a period."""
        if self.gone or self.cooked is not None:
            return
        if self.due is None:
            self.due, self.shown = time.monotonic() + VIEW_PERIOD_S, 0
        free = max(0, VIEW_LINES - self.shown)
        if len(self.queue) > VIEW_QUEUE_BYTES:
            free = 0
        self.hidden += max(0, len(texts) - free)
        taken = texts[:free]
        if as_json:
            from .telling import told

            taken = [part for text in taken for part in told(text)]
        self.shown += len(taken)
        for text in taken:
            line = shown(text)
            if self.marker and self.marker in line:
                line = line.replace(self.marker, "(marker)")  # only the end of the attempt prints it
            self._put("\x1b[2m%s\x1b[0m\n" % line if source != "out" else line + "\n")

    # a program that has the terminal for itself

    def begin_screen(self) -> bool:
        """What is typed goes to the program as it is, and what the program draws to the terminal. False where there is none."""
        if not self.tty or self.gone:
            return False
        import termios
        import tty

        try:
            self.cooked = termios.tcgetattr(self.fd)
            tty.setraw(self.fd)
        except (OSError, termios.error):
            self.gone = True
            return False
        return True

    def draw(self, data: bytes) -> None:
        """Bytes of the program. Only the end of the attempt prints the marker."""
        marker = self.marker.encode()
        self.queue += data.replace(marker, b"(marker)") if marker else data

    def end_screen(self) -> None:
        """The terminal as it was, whatever the program left it in."""
        if self.cooked is None:
            return
        import termios

        try:
            termios.tcsetattr(self.fd, termios.TCSANOW, self.cooked)
        except (OSError, termios.error):
            self.gone = True
        self.cooked = None
        self._put(SCREEN_RESET)
        later, self.later = self.later, []
        for text in later:
            self.say(text)

    def tick(self, moment: float) -> float | None:
        """Ends a period when its time is over; gives the end of the one that goes on."""
        if self.due is not None and moment >= self.due:
            self._tell_hidden()
        return self.due

    def _tell_hidden(self) -> None:
        if self.hidden:
            self._put("… %d lines more in output.jsonl\n" % self.hidden)
        self.due, self.hidden = None, 0

    def _put(self, text: str) -> None:
        if not self.gone and len(self.queue) < 16 * VIEW_QUEUE_BYTES:
            self.queue += text.encode("utf-8", "replace")

    def flush(self) -> None:
        """Writes what the terminal takes now."""
        while self.queue and not self.gone:
            try:
                count = os.write(self.fd, self.queue[:8192])
            except BlockingIOError:
                return
            except OSError:
                self.gone = True
                return
            del self.queue[:count]
        if self.gone:
            self.queue.clear()
