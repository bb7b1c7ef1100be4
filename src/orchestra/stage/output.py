"""Everything an attempt prints: cut into lines, logged, shown, and the asked JSON lines in the journal."""

from __future__ import annotations

import os

from .codec import dumps, loads, quoting
from .files import write_all
from .journal import now_ms

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .slot import Slot

    Piece = tuple[bytes, bool, bytes]  # of a line, whether more of it follows, the line if this ends it

SIGNAL_BYTES_MAX = 32768  # of one agent line in the journal
SIGNALS_MAX = 200  # agent lines of each type in the journal, an attempt: what one type says much of must not silence another
SIGNAL_LINE_BYTES_MAX = 1 << 20  # a JSON line up to this is understood, however small the pieces are in which it is logged
TAIL_LINES = 20
TAIL_CHARS = 500


class Splitter:
    """Bytes of one stream into lines. A line that is too long comes in pieces, and as a whole too if it may be a JSON record."""

    def __init__(self, line_bytes_max: int, keep_whole: bool) -> None:
        self.line_bytes_max = line_bytes_max
        self.keep_whole = keep_whole
        self.rest = b""
        self.whole: list[bytes] | None = None
        self.whole_bytes = 0

    def feed(self, data: bytes) -> list[Piece]:
        """(piece, whether more of the line follows, the line if this ends it, or nothing if that is not known)."""
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        found: list[Piece] = []
        for line in lines:
            last = line
            while len(last) > self.line_bytes_max:
                last = self._cut(last, found)
            found.append((last, False, self._end(last)))
        while len(self.rest) > self.line_bytes_max:
            self.rest = self._cut(self.rest, found)
        return found

    def end(self) -> list[Piece]:
        """What is left without a newline when the stream ends."""
        rest, self.rest = self.rest, b""
        return [(rest, False, self._end(rest))] if rest else []

    def _cut(self, line: bytes, found: list[Piece]) -> bytes:
        size = self.line_bytes_max
        while size > self.line_bytes_max - 4 and size > 1 and line[size] & 0xC0 == 0x80:
            size -= 1  # not within a character
        piece = line[:size]
        if self.whole is None:
            self.whole, self.whole_bytes = [], 0
            if not self.keep_whole or not piece.lstrip().startswith(b"{"):
                self.whole_bytes = SIGNAL_LINE_BYTES_MAX + 1
        self._keep(piece)
        found.append((piece, True, b""))
        return line[size:]

    def _keep(self, piece: bytes) -> None:
        self.whole_bytes += len(piece)
        if self.whole is not None:
            if self.whole_bytes <= SIGNAL_LINE_BYTES_MAX:
                self.whole.append(piece)
            else:
                self.whole.clear()

    def _end(self, line: bytes) -> bytes:
        if self.whole is None:
            return line
        self._keep(line)
        whole = b"".join(self.whole)
        self.whole = None
        return whole


class Log:
    """output.jsonl with one older generation. What a full disk refuses is counted and let go: the agent must not hang on it."""

    def __init__(self, path: str, file_bytes_max: int) -> None:
        self.path = path
        self.file_bytes_max = file_bytes_max
        self.size = 0
        self.older = 0
        self.dropped_bytes = 0
        self.fd = -1

    def append(self, data: bytes) -> bool:
        """False if the disk is full."""
        if self.size and self.size + len(data) > self.file_bytes_max:
            self._rotate()
        try:
            if self.fd < 0:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            write_all(self.fd, data)
        except OSError:
            self.dropped_bytes += len(data)
            if self.fd >= 0:
                os.ftruncate(self.fd, self.size)  # no half a line
            return False
        self.size += len(data)
        return True

    def _rotate(self) -> None:
        try:
            os.rename(self.path, self.path + ".1")
        except OSError:
            return
        self.close()
        self.dropped_bytes += self.older
        self.older, self.size = self.size, 0

    def close(self) -> None:
        """Closes the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def shrunk(record: dict[str, Any], bytes_max: int) -> dict[str, Any]:
    """A JSON record that fits: long texts are cut, then everything but plain values is left out, then only its type is left."""

    def cut(value: Any, chars: int) -> Any:
        if isinstance(value, str):
            return value if len(value) <= chars else value[:chars] + "…"
        if isinstance(value, dict):
            return {name: cut(part, chars) for name, part in value.items()}
        return [cut(part, chars) for part in value] if isinstance(value, list) else value

    if len(dumps(record)) <= bytes_max:
        return record
    for smaller in (
        lambda: cut(record, 2000),
        lambda: cut(record, 200),
        lambda: {name: cut(value, 100) for name, value in record.items() if not isinstance(value, (dict, list))},
    ):
        candidate: dict[str, Any] = smaller()
        if len(dumps(candidate)) <= bytes_max:
            return candidate
    return {"type": record.get("type")}


class Output:
    """Everything one attempt prints: into the log, into the pane, into the tail, and the asked JSON lines into the journal."""

    def __init__(self, slot: Slot, folder: str, spec: dict[str, Any]) -> None:
        options = spec["output"]
        self.slot = slot
        self.task, self.attempt = spec["task"], spec["attempt"]
        self.log = Log(folder + "/output.jsonl", options["file_bytes_max"])
        self.line_bytes_max = options["line_bytes_max"]
        self.as_json = options["view"] == "json"
        self.journalled = set(spec["signals"])
        expected = spec["success"]["signal"]
        self.types = self.journalled | ({expected["type"]} if expected else set())
        self.last: dict[str, Any] = {}
        self.signals = dict.fromkeys(self.journalled, 0)
        self.full = False
        self.lines = self.bytes = 0
        self.tail: list[str] = []

    def splitter(self) -> Splitter:
        """One for each stream."""
        return Splitter(self.line_bytes_max, bool(self.types))

    def take(self, source: str, found: list[Piece]) -> list[str]:
        """Logs and shows lines of a stream; gives them as text."""
        quote = quoting()
        head = '{"t":%d,"s":%s,"line":' % (now_ms(), quote(source))
        texts = [piece.decode("utf-8", "backslashreplace") for piece, _, _ in found]
        entries = [head + quote(text) + (',"part":true}\n' if part[1] else "}\n") for text, part in zip(texts, found)]
        step = 2000  # entries written at once, so that no write passes the size of a log file by much
        for at in range(0, len(entries), step):
            self._write("".join(entries[at : at + step]).encode("utf-8"))
        self.slot.view.lines(texts, source, self.as_json and source == "out")
        return texts

    def _write(self, data: bytes) -> None:
        if self.log.append(data):
            self.full = False
        elif not self.full:
            self.full = True
            self.slot.view.say("! the disk is full: output is not logged until there is room")

    def take_agent(self, source: str, found: list[Piece]) -> None:
        """Lines of the agent itself."""
        self.lines += sum(not more for _, more, _ in found)
        self.tail = (self.tail + [text[:TAIL_CHARS] for text in self.take(source, found)[-TAIL_LINES:]])[-TAIL_LINES:]
        if self.types and source == "out":
            for _, _, whole in found:
                if whole[:1] == b"{" and b'"type"' in whole:
                    self._take_record(whole)

    def _take_record(self, line: bytes) -> None:
        try:
            record = loads(line)
            kind = record.get("type")
            if not isinstance(kind, str) or kind not in self.types:
                return
            record = shrunk(record, SIGNAL_BYTES_MAX)
        except (ValueError, RecursionError):
            return
        self.last[kind] = record
        if type(record.get("ask")) is int:
            self.slot.asked = record["ask"]
        elif record.get("answered"):
            self.slot.asked = 0
        if kind in self.journalled and self.signals[kind] < SIGNALS_MAX:
            self.signals[kind] += 1
            self.slot.record("signal", task=self.task, attempt=self.attempt, line=record)
