"""The gateway's books on disk: one append-only file of records, each a line with its CRC, and a fsync at most 50 ms after it was written.

A record is in the file before the request it speaks of is sent, so `kill -9` loses nothing; a power cut loses at most what was written in the last 50 ms.
The file begins with the whole state. It is replaced by a new one at every start and when it has grown; the new one is complete before it takes the name.
"""

from __future__ import annotations

import asyncio
import fcntl
import logging
import os
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.errors import PortFailed
from orchestra.files import ensure_private_dir, write_atomically
from orchestra.metering.books import Books, Record, State

log = logging.getLogger(__name__)

SYNC_MS: Final = 40
GROWN_BYTES: Final = 32 << 20
LANE_KEPT_MS: Final = 7 * 86_400_000
"""Limits that nobody met for a week are learned anew."""

_encoder: Final = msgspec.json.Encoder()
_decoder: Final = msgspec.json.Decoder(Record)


def encode_line(record: Record) -> bytes:
    """Returns a record as it stands in the file."""
    data = _encoder.encode(record)
    return b"%08x %b\n" % (zlib.crc32(data), data)


def decode_lines(data: bytes) -> Iterator[Record | None]:
    """Yields the records of a file; None for a line that is torn or damaged."""
    for line in data.split(b"\n"):
        if not line:
            continue
        try:
            intact = line[8:9] == b" " and int(line[:8], 16) == zlib.crc32(line[9:])
            yield _decoder.decode(line[9:]) if intact else None
        except (ValueError, msgspec.DecodeError):
            yield None


class Journal:
    """The one writer of the books."""

    def __init__(self, folder: Path, books: Books, clock: Clock) -> None:
        self.books = books
        self.spoilt = 0
        """Lines that could not be read at the start."""
        self._path = folder / "journal.jsonl"
        self._folder = folder
        self._clock = clock
        self._lock: int | None = None
        self._file: int | None = None
        self._bytes = 0
        self._anew_at = 0
        """Size at which the file is begun anew."""
        self.broken = ""
        """Why nothing can be written any more: after a failed fsync nobody knows what the disk has."""
        self._dirty = asyncio.Event()
        self._syncing: asyncio.Task[None] | None = None

    def open(self) -> int:
        """Reads the books; returns how many requests a dead gateway had left open. They are settled as assumed.

        Raises:
            PortFailed: Another gateway uses the folder, or it cannot be used.
        """
        try:
            return self._open()
        except BaseException:
            self._unlock()
            raise

    def _open(self) -> int:
        try:
            ensure_private_dir(self._folder)
            self._lock = os.open(self._folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._read(self._path.read_bytes() if self._path.exists() else b"")
        except BlockingIOError as exc:
            raise PortFailed(f"another gateway uses {self._folder}", hint="stop it, or give this one a folder of its own") from exc
        except OSError as exc:
            raise PortFailed(f"the folder {self._folder} cannot be used: {exc}", hint="check that it is ours and has room") from exc
        orphans = self.books.orphans(self._clock.wall_ms())
        for closed in orphans:
            self.books.apply(closed)
        self._forget_expired()
        self._begin_anew()
        return len(orphans)

    def _read(self, data: bytes) -> None:
        """Folds the file.

        Raises:
            PortFailed: Its first line, which holds everything up to the last start, is damaged: budgets would begin from nothing.
        """
        for number, record in enumerate(decode_lines(data)):
            if number == 0 and not isinstance(record, State):
                raise PortFailed(
                    f"the books in {self._path} are damaged at their head",
                    hint="put a copy in their place; or, if budgets may begin from nothing, move the file away",
                )
            if record is None:
                self.spoilt += 1
            else:
                self.books.apply(record)

    def _forget_expired(self) -> None:
        now_ms = self._clock.wall_ms()
        tokens = self.books.state.tokens
        for digest in [digest for digest, issued in tokens.items() if issued.expires_ms <= now_ms]:
            del tokens[digest]
        lanes, parked = self.books.state.lanes, self.books.state.parked
        for name in [name for name, lane in lanes.items() if lane.ms + LANE_KEPT_MS <= now_ms]:
            del lanes[name]
        for name in [name for name, each in parked.items() if each.until_ms <= now_ms]:
            del parked[name]

    def _begin_anew(self) -> None:
        line = encode_line(self.books.state)
        try:
            write_atomically(self._path, line, durable=True)
            fresh = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
        except OSError as exc:
            raise PortFailed(f"the books cannot be written: {exc}", hint="make room on the disk") from exc
        if self._file is not None:
            os.close(self._file)
        self._file, self._bytes, self._anew_at = fresh, len(line), len(line) + GROWN_BYTES

    @property
    def is_open(self) -> bool:
        """Whether it may be written."""
        return self._file is not None

    async def start(self) -> None:
        """Begins to sync."""
        self._syncing = asyncio.create_task(self._sync_for_ever(), name="journal-sync")

    def write(self, record: Record) -> None:
        """Writes a record and takes it into the books.

        Raises:
            PortFailed: It could not be written; the books do not have it either.
        """
        assert self._file is not None, "the journal is open"
        if self.broken:
            raise PortFailed(f"the books cannot be written: {self.broken}", hint="check the disk and start the gateway again")
        line = encode_line(record)
        try:
            written = os.write(self._file, line)
            if written != len(line):
                os.ftruncate(self._file, self._bytes)
                raise OSError(28, "no room")
        except OSError as exc:
            raise PortFailed(f"the books cannot be written: {exc.strerror}", hint="make room on the disk") from exc
        self._bytes += written
        self.books.apply(record)
        self._dirty.set()
        if self._bytes > self._anew_at:
            try:
                self._begin_anew()
            except PortFailed as error:
                self._anew_at = self._bytes + GROWN_BYTES
                log.error("journal-not-begun-anew: %s", error)

    async def _sync_for_ever(self) -> None:
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            try:
                await self._sync()
            except OSError as exc:
                self.broken = exc.strerror or "the disk failed"
                log.error("journal-sync-failed: %s", self.broken)
                return
            await asyncio.sleep(SYNC_MS / 1000)

    async def _sync(self) -> None:
        if self._file is not None:
            handle = os.dup(self._file)
            try:
                await asyncio.to_thread(os.fdatasync, handle)
            finally:
                os.close(handle)

    async def close(self) -> None:
        """Syncs and lets go of the folder. Idempotent."""
        if self._syncing is not None:
            self._syncing.cancel()
            await asyncio.gather(self._syncing, return_exceptions=True)
            self._syncing = None
        if self._file is not None:
            os.fdatasync(self._file)
            os.close(self._file)
            self._file = None
        self._unlock()

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None
