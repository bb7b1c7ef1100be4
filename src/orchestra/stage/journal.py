"""The node's journal: what several processes append to and each must find whole.

A record is one write with O_APPEND, framed so that a torn one spoils no other; docs/node.md has the form.
"""

from __future__ import annotations

import os
import time
import zlib

from .codec import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORD_BYTES_MAX = 65536  # of a record, its frame included
BELL_LOOK_S = 1.0  # between two looks whether the bell that is open is still the one that hangs there


def now_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1000000


def agent_value(name: str) -> int | str:
    """An agent id as records carry it: a number where it is one."""
    return int(name) if name.isdigit() else name


def framed_bytes(body: bytes) -> bytes:
    """A record's JSON as it stands in the journal."""
    return b"\n%08x %s\n" % (zlib.crc32(body), body)


def framed(record: dict[str, Any]) -> bytes:
    """A record as it stands in the journal."""
    return framed_bytes(dumps(record))


class Journal:
    """The journal and the bell of a node, for one who writes. Both are held open, and opened anew when somebody has put others in their place."""

    def __init__(self, base: str) -> None:
        self.path = base + "/journal"
        self.bell_path = base + "/bell"
        self.fd = self.bell = -1
        self.identity = self.bell_identity = (0, 0)
        self.bell_due = 0.0

    def append(self, frames: bytes) -> bool:
        """Appends framed records and rings the bell. False if the disk took none or only a part of them."""
        try:
            if self.fd < 0 or _identity(self.path) != self.identity:
                self._open()
            whole = os.write(self.fd, frames) == len(frames)
        except OSError:
            whole = False
        self._ring()
        return whole

    def _open(self) -> None:
        self.fd = _close(self.fd)
        self.fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        self.identity = _identity_of(os.fstat(self.fd))

    def _ring(self) -> None:
        """Twice if need be: the bell may be that of a courier that is gone."""
        moment = time.monotonic()
        if moment >= self.bell_due:
            self.bell_due = moment + BELL_LOOK_S
            if self.bell >= 0 and _identity(self.bell_path) != self.bell_identity:
                self.bell = _close(self.bell)
        for _ in range(2):
            try:
                if self.bell < 0:
                    self.bell = os.open(self.bell_path, os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
                    self.bell_identity = _identity_of(os.fstat(self.bell))
                os.write(self.bell, b"!")
            except BlockingIOError:
                return  # the FIFO is full: it rings already
            except OSError:
                if self.bell < 0:
                    return  # nobody listens; the journal is there for whoever comes
                self.bell = _close(self.bell)
            else:
                return


def _identity_of(facts: os.stat_result) -> tuple[int, int]:
    return facts.st_ino, facts.st_dev


def _identity(path: str) -> tuple[int, int]:
    try:
        return _identity_of(os.stat(path))
    except OSError:
        return (0, 0)


def _close(fd: int) -> int:
    """-1, and nothing is open any more."""
    if fd >= 0:
        os.close(fd)
    return -1
