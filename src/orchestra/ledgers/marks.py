"""High-water marks: where the ledger ended, kept outside its database.

A database that loses committed events says nothing. The mark does: it is written after each commit, so it may lag behind the database
and never leads it, and a database that ends before its mark has lost something.

A mark file holds two slots in blocks of their own, written in turn, each with a CRC: a torn write leaves the other slot.
"""

from __future__ import annotations

import errno
import os
import struct
import zlib
from pathlib import Path
from typing import Final

import msgspec

from orchestra.ledger import GENESIS
from orchestra.ledgers.folder import write_atomically

_MAGIC: Final = b"MKT1"
_RECORD: Final = struct.Struct(">4s4xqqq32s")
_CRC: Final = struct.Struct(">I")
_SLOT_BYTES: Final = 4096
"""Distance of the slots: one block of every usual disk, so that no torn write touches both."""


class Mark(msgspec.Struct, frozen=True):
    """The end of a ledger at some moment."""

    seq: int
    at_ms: int
    """Ledger time of event `seq`."""
    term: int
    hash: bytes


EMPTY: Final = Mark(0, 0, 0, GENESIS)


def encode_mark(mark: Mark) -> bytes:
    """Returns the record of one slot, CRC included."""
    record = _RECORD.pack(_MAGIC, mark.seq, mark.at_ms, mark.term, mark.hash)
    return record + _CRC.pack(zlib.crc32(record))


def decode_mark(data: bytes) -> Mark | None:
    """Returns the mark in a slot, or None if the slot is empty or torn."""
    if len(data) < _RECORD.size + _CRC.size or _CRC.unpack_from(data, _RECORD.size)[0] != zlib.crc32(data[: _RECORD.size]):
        return None
    magic, seq, at_ms, term, digest = _RECORD.unpack_from(data)
    return Mark(seq, at_ms, term, digest) if magic == _MAGIC else None


def read_slots(path: Path) -> tuple[Mark | None, Mark | None]:
    """Returns both slots; (None, None) if there is no file."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None, None
    return decode_mark(data[:_SLOT_BYTES]), decode_mark(data[_SLOT_BYTES : 2 * _SLOT_BYTES])


def read_mark(path: Path) -> Mark | None:
    """Returns the newer intact slot, or None if there is no file or no intact slot."""
    marks = [mark for mark in read_slots(path) if mark is not None]
    return max(marks, key=lambda mark: (mark.seq, mark.term), default=None)


def reset_mark(path: Path, mark: Mark) -> None:
    """Writes a fresh mark file, durable on return. The only way to set a mark back."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    slot = encode_mark(mark).ljust(_SLOT_BYTES, b"\0")
    write_atomically(path, slot + slot)


class MarkFile:
    """A mark file open for writing after every append; a write costs a microsecond, an fsync is the caller's choice."""

    def __init__(self, path: Path) -> None:
        first, second = read_slots(path)
        keep_first = second is None or (first is not None and (first.seq, first.term) >= (second.seq, second.term))
        self._next = _SLOT_BYTES if keep_first else 0
        self._descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def write(self, mark: Mark) -> None:
        """Replaces the older slot.

        Raises:
            OSError: The mark could not be written. A full disk is no error: the mark lags, which is allowed, until the next write.
        """
        try:
            os.pwrite(self._descriptor, encode_mark(mark), self._next)
        except OSError as exc:
            if exc.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return
        self._next = _SLOT_BYTES - self._next

    def sync(self) -> None:
        """Makes the last write survive a power cut."""
        os.fsync(self._descriptor)

    def close(self) -> None:
        """Idempotent."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
