"""The courier's wire: JSON lines in, frames out. Sans-I/O; the format is in `docs/node.md`.

A frame is `#<nonce> <kind> <bytes> <offset>\\n<payload>\\n`. Everything before the first frame with our nonce is noise of a shell's start-up files
and is skipped; after it, anything between frames is a broken protocol.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestra.errors import ProtocolBroken

NOISE_BYTES_MAX: Final = 1 << 20
PAYLOAD_BYTES_MAX: Final = 64 << 20


class Frame(msgspec.Struct, frozen=True):
    """One message of the courier: `hello`, `reply`, `journal` or `notice`."""

    kind: str
    offset: int
    payload: bytes


class FrameParser:
    """Bytes to frames, in any chunking."""

    def __init__(self, nonce: str) -> None:
        self._header = re.compile(rb"#" + nonce.encode() + rb" ([a-z]+) (\d{1,9}) (\d{1,18})\n")
        self._mark = b"#" + nonce.encode() + b" "
        self._buffer = bytearray()
        self._synced = False

    def feed(self, data: bytes) -> list[Frame]:
        """Takes bytes; returns the frames that are now complete.

        Raises:
            ProtocolBroken: There is something between frames, or a limit is passed.
        """
        self._buffer += data
        frames: list[Frame] = []
        while (frame := self._next()) is not None:
            frames.append(frame)
        return frames

    def _next(self) -> Frame | None:
        if not self._synced and not self._skip_noise():
            return None
        match = self._header.match(self._buffer)
        if match is None:
            if len(self._buffer) > 200 or b"\n" in self._buffer:
                raise ProtocolBroken(f"the courier sent something that is no frame: {bytes(self._buffer[:120])!r}")
            return None
        size = int(match[2])
        if size > PAYLOAD_BYTES_MAX:
            raise ProtocolBroken(f"the courier announced a frame of {size} bytes; at most {PAYLOAD_BYTES_MAX} are taken")
        end = match.end() + size
        if len(self._buffer) <= end:
            return None
        frame = Frame(match[1].decode(), int(match[3]), bytes(self._buffer[match.end() : end]))
        del self._buffer[: end + 1]
        return frame

    def _skip_noise(self) -> bool:
        start = self._buffer.find(self._mark)
        if start < 0:
            if len(self._buffer) > NOISE_BYTES_MAX:
                raise ProtocolBroken("the courier's greeting did not come within 1 MB of other output")
            return False
        del self._buffer[:start]
        self._synced = True
        return True


_encoder: Final = msgspec.json.Encoder()


def request_line(number: int, op: str, fields: Mapping[str, Any]) -> bytes:
    """Returns one request as a line."""
    return _encoder.encode({"id": number, "op": op, **fields}) + b"\n"
