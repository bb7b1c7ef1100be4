"""`current`: the attempt that a slot has in hand, and what runs of it, for a successor.

It is written over in place, which needs no new file and, once it was written, no room on the disk. Its second line is a checksum of the first, by which a
reader sees that it read in the middle of a writing, and reads again.
"""

from __future__ import annotations

import errno
import os
import zlib

from .codec import dumps, loads
from .files import read_file

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

READS_MAX = 10  # of a file that is always being written: a writing is one call of the system


def _checked(body: bytes) -> bytes:
    return b"%s\n%08x\n" % (body, zlib.crc32(body))


IDLE = _checked(b"{}")


class Current:
    """The file of one slot, held open by its worker."""

    def __init__(self, slot_path: str) -> None:
        self.path = slot_path + "/current"
        self.fd = -1

    def write(self, value: dict[str, Any]) -> None:
        """Replaces what is there; OSError if it cannot be. An empty value means that nothing is in hand."""
        if self.fd < 0:
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        data = _checked(dumps(value)) if value else IDLE
        if os.pwrite(self.fd, data, 0) != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), self.path)


def read_current(slot_path: str) -> dict[str, Any]:
    """What the slot has in hand; empty if nothing, or nothing that can be understood."""
    for _ in range(READS_MAX):
        data = read_file(slot_path + "/current")
        if not data:
            break
        body, _, rest = data.partition(b"\n")
        try:
            if int(rest[:8], 16) == zlib.crc32(body):
                value = loads(body)
                return value if isinstance(value, dict) else {}
        except ValueError:
            continue
    return {}
