"""Snapshots as files beside the database.

Not in the database: a state of megabytes would go through the write-ahead log, hold up appends and leave holes in the file that keeps the
truth. A lost snapshot costs a longer replay, nothing else.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from orchestra.ledger import Snapshot
from orchestra.ledgers.folder import write_atomically

_HEADER: Final = struct.Struct(">4s4xqq32s32s")
"""Magic, seq, format, chain hash, SHA-256 of the fields before and the body."""
_CHECKED: Final = struct.Struct(">4s4xqq32s")
_MAGIC: Final = b"SNP1"
_PATTERN: Final = "*.snapshot"


class SnapshotFolder:
    """Keeps the newest snapshots of one ledger."""

    def __init__(self, folder: Path, kept: int) -> None:
        self._folder = folder
        self._kept = kept

    def save(self, snapshot: Snapshot) -> None:
        """Writes one, then removes the oldest beyond the keep count.

        Raises:
            OSError: It was not written; the others are untouched.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        write_atomically(self._folder / f"{snapshot.seq:020d}.snapshot", encode_snapshot(snapshot))
        for path in self._newest_first()[self._kept :]:
            path.unlink(missing_ok=True)

    def load(self, hash_at: Callable[[int], bytes | None]) -> Snapshot | None:
        """Returns the newest intact snapshot whose hash is what `hash_at` says for its seq, or None."""
        for path in self._newest_first():
            try:
                snapshot = decode_snapshot(path.read_bytes())
            except OSError:
                continue
            if snapshot is not None and hash_at(snapshot.seq) == snapshot.hash:
                return snapshot
        return None

    def _newest_first(self) -> list[Path]:
        return sorted(self._folder.glob(_PATTERN), reverse=True)


def encode_snapshot(snapshot: Snapshot) -> bytes:
    """Returns the content of a snapshot file."""
    checked = _CHECKED.pack(_MAGIC, snapshot.seq, snapshot.format, snapshot.hash)
    return checked + hashlib.sha256(checked + snapshot.body).digest() + snapshot.body


def decode_snapshot(data: bytes) -> Snapshot | None:
    """Returns the snapshot in a file's content, or None if it is damaged."""
    if len(data) < _HEADER.size:
        return None
    magic, seq, number, chain, digest = _HEADER.unpack_from(data)
    body = data[_HEADER.size :]
    if magic != _MAGIC or digest != hashlib.sha256(data[: _CHECKED.size] + body).digest():
        return None
    return Snapshot(seq, chain, number, body)
