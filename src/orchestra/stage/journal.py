"""The node's journal and the claims on attempts: what several processes write and each must find whole.

A record is one write with O_APPEND, framed so that a torn one spoils no other; docs/node.md has the form.
"""

from __future__ import annotations

import os
import time
import zlib

from .codec import dumps
from .files import unlink_quietly, write_new

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

RECORD_BYTES_MAX = 65536  # of a record, its frame included


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


def append_record(base: str, frame: bytes) -> bool:
    """Appends a framed record and rings the bell. False if the disk took none or only a part of it."""
    try:
        fd = os.open(base + "/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        whole = os.write(fd, frame) == len(frame)
    except OSError:
        whole = False
    finally:
        os.close(fd)
    try:
        fd = os.open(base + "/bell", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return whole  # nobody listens; the journal is there for whoever comes
    try:
        os.write(fd, b"!")
    except OSError:
        pass  # the FIFO is full: it rings already
    finally:
        os.close(fd)
    return whole


def claim_attempt(folder: str, identity: dict[str, Any]) -> bool:
    """True for the first who asks, ever. The claim appears with its content in it, so that no reader finds it empty."""
    draft = "%s/claim.%d.tmp" % (folder, os.getpid())
    write_new(draft, dumps(identity))
    try:
        os.link(draft, folder + "/claim")
    except FileExistsError:
        return False
    finally:
        unlink_quietly(draft)
    return True
