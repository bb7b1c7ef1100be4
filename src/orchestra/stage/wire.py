"""The courier's standard output: frames, and the journal as frames. docs/node.md has their form."""

from __future__ import annotations

import os
from typing import Any

from .codec import dumps

FRAME_BYTES_MAX = 262144  # of journal in a frame
QUEUE_BYTES_MAX = 1048576  # waiting for a reader before the journal waits too


class Wire:
    """Frames that wait for the reader, in order."""

    def __init__(self, nonce: str) -> None:
        self.nonce = nonce
        self.outgoing: list[bytes | memoryview] = []
        self.outgoing_bytes = 0

    def send(self, kind: str, payload: bytes, offset: int = 0) -> None:
        """Queues a frame."""
        frame = b"#%s %s %d %d\n%s\n" % (self.nonce.encode(), kind.encode(), len(payload), offset, payload)
        self.outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def send_json(self, kind: str, value: dict[str, Any]) -> None:
        """Queues a frame of JSON."""
        self.send(kind, dumps(value))

    def reply(self, number: Any, reply: dict[str, Any]) -> None:
        """Answers a request."""
        self.send_json("reply", dict({"re": number}, **reply))

    def flush(self) -> None:
        """Writes what the reader takes now."""
        while self.outgoing:
            try:
                count = os.write(1, self.outgoing[0])
            except BlockingIOError:
                return
            self.outgoing_bytes -= count
            if count == len(self.outgoing[0]):
                del self.outgoing[0]
            else:
                self.outgoing[0] = memoryview(self.outgoing[0])[count:]


class Tail:
    """The journal on its way to the reader, once it was asked for."""

    def __init__(self, base: str, wire: Wire) -> None:
        self.base, self.wire = base, wire
        self.offset: int | None = None

    def pump(self) -> bool:
        """Sends what is new, as long as the reader keeps up. True if there is a new worker in it."""
        found = False
        while self.offset is not None and self.wire.outgoing_bytes < QUEUE_BYTES_MAX:
            try:
                fd = os.open(self.base + "/journal", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                break
            try:
                data = os.pread(fd, FRAME_BYTES_MAX, self.offset)
            finally:
                os.close(fd)
            end = data.rfind(b"\n") + 1
            if end:
                self.wire.send("journal", data[:end], self.offset)
                self.offset += end
                found = found or b'{"k":"ready"' in data
            if not end or len(data) < FRAME_BYTES_MAX:
                break
        return found
