"""Server-sent events, read beside the stream as it passes: any chunking, any line ending, bounded memory. Sans-I/O.

The bytes that are forwarded never come from here; what this does not understand is passed over.
"""

from __future__ import annotations

from typing import Final, NamedTuple

EVENT_BYTES_MAX: Final = 4 << 20
"""Of one event that is kept whole. The last event of a Responses stream repeats the whole answer."""
TAIL_BYTES: Final = 64 << 10
"""What is kept of a larger one: usage stands at its end."""
_BOM: Final = b"\xef\xbb\xbf"


class SseEvent(NamedTuple):
    """One event."""

    name: str
    data: bytes
    clipped: bool = False
    """Only the end of the data is here."""


class SseParser:
    """Bytes to events."""

    def __init__(self) -> None:
        self._rest = bytearray()
        self._started = False
        self._after_return = False
        """The last byte ended a line; a line feed that follows belongs to it."""
        self._name = ""
        self._data = bytearray()
        self._has_data = False
        self._clipped = False
        self._long_line = False
        """The line that is being read was too long, and its beginning is gone already."""

    def feed(self, chunk: bytes) -> list[SseEvent]:
        """Takes bytes; returns the events that are now complete."""
        if self._after_return and chunk.startswith(b"\n"):
            chunk = chunk[1:]
        self._after_return = chunk.endswith(b"\r") if chunk else self._after_return
        if b"\r" in chunk:
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, rest = chunk.split(b"\n")
        events: list[SseEvent] = []
        if lines and self._rest:
            lines[0], self._rest = bytes(self._rest) + lines[0], bytearray()
        if lines and not self._started:
            lines[0], self._started = lines[0].removeprefix(_BOM), True
        for line in lines:
            if (event := self._line(line)) is not None:
                events.append(event)
            self._long_line = False
        self._keep(rest)
        return events

    def _keep(self, rest: bytes) -> None:
        self._rest += rest
        if len(self._rest) > EVENT_BYTES_MAX:
            self._long_line = self._clipped = self._has_data = True
            del self._rest[:-TAIL_BYTES]

    def _line(self, line: bytes) -> SseEvent | None:
        if self._long_line:
            self._data = bytearray(line[-TAIL_BYTES:])
            return None
        if not line:
            return self._end()
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            if self._has_data:
                self._data += b"\n"
            self._data += value
            self._has_data = True
            if len(self._data) > EVENT_BYTES_MAX:
                self._clipped = True
                del self._data[:-TAIL_BYTES]
        elif field == b"event":
            self._name = value[:120].decode("utf-8", "replace")
        return None

    def _end(self) -> SseEvent | None:
        event = SseEvent(self._name, bytes(self._data), self._clipped) if self._has_data else None
        self._name, self._has_data, self._clipped = "", False, False
        if self._data:
            self._data = bytearray()
        return event
