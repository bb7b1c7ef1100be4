"""The embedded ledger: one SQLite database, power-safe, with checks of its own because SQLite drops and alters bytes without an error.

How an append goes: one transaction judges it (id known? term stale? tail as expected?), writes the events and the id, and commits with an
fsync; then the high-water marks outside the database move on. What the database says is always asked anew inside the transaction, so even
a second writer that came past the lock cannot break the sequence.

How failures go:
- Full disk, locked by another program, read-only mount: SQLite rolls back, nothing was written, the handle works on (`LedgerFailed`).
- An I/O error: the kernel may have thrown the pages away and may report the next fsync as a success, so the handle is broken from then
  on. The append is unknown (`LedgerUnknown`) until the ledger has been opened again, which copies the whole log into the database anew.
- A connection that failed is closed while the read-only one is still open, because the last one to close would checkpoint.

How opening goes: lock; read the marks; look at the database through a read-only connection, which changes nothing; only when the tail,
the recent events and the marks agree is it opened for writing.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.errors import LedgerConflict, LedgerDamaged, LedgerFailed, LedgerUnknown
from orchestra.ledger import Append, Appended, Snapshot, StoredEvent, Tail, chained, event_crc
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers import sqlite_read as rows
from orchestra.ledgers.appends import check_append, check_follows
from orchestra.ledgers.folder import FolderLock, fsync_folder, refuse_network_folder
from orchestra.ledgers.marks import EMPTY, Mark, MarkFile, read_mark, reset_mark
from orchestra.ledgers.snapshots import SnapshotFolder

PAGE_BYTES: Final = 4096
PAGES_AN_APPEND: Final = 4
"""Pages that even the smallest append writes to the log: leaf of the events, of the ids, of their index, and now and then a parent."""


class SqliteOptions(msgspec.Struct, frozen=True, kw_only=True):
    """How a ledger folder is opened."""

    mark_copy: Path | None = None
    """A second high-water mark outside the folder; only it notices that the whole folder was set back."""
    recent_events_checked: int = 1000
    """Events at the end whose checks are verified at open: 10 ms at most."""
    mark_sync_interval_ms: int = 1000
    """Least time between two fsyncs of the marks; after a power cut a mark may lag by so much."""
    checkpoint_pages: int = 2000
    """Log pages (4 KiB) after which they are copied into the database: about 6 ms every 8 MB."""
    busy_timeout_ms: int = fmt.BUSY_TIMEOUT_MS
    snapshots_kept: int = 3
    """One may be damaged and one of a format that an older release does not read."""

    def marks(self, folder: Path) -> tuple[Path, ...]:
        """Returns where the high-water marks of a ledger folder lie."""
        return (folder / fmt.MARK_NAME,) if self.mark_copy is None else (folder / fmt.MARK_NAME, self.mark_copy)


DEFAULTS: Final = SqliteOptions()


class SqliteLedger:
    """One open ledger folder (`Ledger`). Made by `open` or `open_readonly`; safe to call from several threads."""

    def __init__(self, folder: Path, options: SqliteOptions, reader: sqlite3.Connection, head: Mark) -> None:
        self._folder = folder
        self._options = options
        self._reader = reader
        self._head = head
        self._guard = threading.RLock()
        self._snapshots = SnapshotFolder(folder / fmt.SNAPSHOTS_NAME, options.snapshots_kept)
        self._writer: sqlite3.Connection | None = None
        self._clock: Clock | None = None
        self._lock: FolderLock | None = None
        self._marks: list[MarkFile] = []
        self._marks_synced_ms = 0
        self._log_pages = 0
        self._broken = ""
        self._uncertain = False
        self._closed = False

    @classmethod
    def open(cls, folder: Path, options: SqliteOptions, clock: Clock) -> SqliteLedger:
        """Opens a folder for writing, making the ledger if there is none.

        Raises:
            LedgerLocked: Another coordinator holds the folder; the message says who.
            LedgerDamaged: Stored bytes contradict their checks, or events are missing that a mark has seen.
            LedgerFailed: The folder cannot hold a ledger, or a newer release wrote it.
        """
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            refuse_network_folder(folder)
            lock = FolderLock.take(folder, clock.wall_ms())
        except OSError as exc:
            raise LedgerFailed(f"opening the ledger in {folder}: {exc}", hint="check the folder's owner, mode and mount") from exc
        try:
            _make_if_missing(folder, options)
            ledger = cls.open_readonly(folder, options)
        except BaseException:
            lock.release()
            raise
        ledger._lock = lock
        try:
            ledger._start_writing(clock)
        except BaseException:
            ledger.close()
            raise
        return ledger

    @classmethod
    def open_readonly(cls, folder: Path, options: SqliteOptions = DEFAULTS) -> SqliteLedger:
        """Opens a folder for reading, with the same checks; needs no lock and sees what a running coordinator appends.

        Raises:
            LedgerDamaged: As for `open`.
            LedgerFailed: There is no ledger, or a newer release wrote it.
        """
        marks = rows.read_marks(options.marks(folder))
        reader = rows.opened(folder, options.busy_timeout_ms)
        try:
            with rows.one_view(reader):
                fmt.check_version(reader, writing=False)
                head = rows.head_of(reader)
                rows.check_marks(reader, head, marks)
                rows.check_recent(reader, head, options.recent_events_checked)
        except sqlite3.Error as exc:
            reader.close()
            raise fmt.translated(exc, f"opening the ledger in {folder}") from exc
        except BaseException:
            reader.close()
            raise
        return cls(folder, options, reader, head)

    def append(self, request: Append) -> Appended:
        """See `Ledger.append`. One transaction, one fsync.

        Raises:
            BadInput: The events are malformed or older than the ledger's last.
        """
        check_append(request)
        with self._guard:
            with self._transaction("appending") as writer:
                earlier = rows.find_append(writer, request.idempotency_id)
                if earlier is not None:
                    return earlier
                self._head = self._head_checked(writer)
                self._judge(request)
                events = chained(request.events, Tail(self._head.seq, self._head.hash))
                first, last = events[0].seq, events[-1]
                writer.executemany(
                    fmt.INSERT_EVENT,
                    [(event.seq, event.at_ms, event.body, event_crc(event.seq, event.body), event.hash) for event in events],
                )
                crc = fmt.append_crc(first, last.seq, request.idempotency_id)
                writer.execute(fmt.INSERT_APPEND, (first, last.seq, request.idempotency_id, crc))
                if request.term > self._head.term:
                    writer.execute(fmt.UPDATE_TERM, (request.term, fmt.term_crc(request.term)))
            self._head = Mark(last.seq, last.at_ms, max(request.term, self._head.term), last.hash)
            self._move_marks()
            self._log_pages += PAGES_AN_APPEND + sum(len(event.body) + 64 for event in events) // PAGE_BYTES
            self._checkpoint_if_due()
            return Appended(first, last.seq, last.hash)

    def find(self, idempotency_id: str) -> Appended | None:
        """See `Ledger.find`.

        Raises:
            LedgerUnknown: An append of this handle ended unknown; open the ledger again and ask then.
        """
        with self._guard:
            self._check_open()
            found = rows.find_append(self._reader, idempotency_id)
            if found is None and self._uncertain:
                raise LedgerUnknown(self._broken, hint="open the ledger again, then look the append up")
            return found

    def tail(self) -> Tail:
        """See `Ledger.tail`."""
        with self._guard:
            self._check_open()
            if self._uncertain:
                raise LedgerUnknown(self._broken, hint="open the ledger again, then ask for its end")
            if self._writer is None:
                self._head = rows.head_of(self._reader)
            return Tail(self._head.seq, self._head.hash)

    def read(self, after_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """See `Ledger.read`. Yields what the ledger held when the first event was asked for."""
        after = max(after_seq, 0)
        with self._guard:
            self._check_open()
            last = self._head.seq if self._writer is not None else rows.head_of(self._reader).seq
        for event in rows.read_checked(self._reader, after, last if limit is None else min(last, after + max(limit, 0))):
            yield event
            if self._closed:
                raise LedgerFailed("the ledger was closed while it was read")

    def claim_term(self) -> int:
        """See `Ledger.claim_term`."""
        with self._guard:
            with self._transaction("claiming a term") as writer:
                self._head = self._head_checked(writer)
                term = self._head.term + 1
                writer.execute(fmt.UPDATE_TERM, (term, fmt.term_crc(term)))
            self._head = msgspec.structs.replace(self._head, term=term)
            self._log_pages += PAGES_AN_APPEND
            self._move_marks()
            return term

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See `Ledger.save_snapshot`.

        Raises:
            LedgerFailed: It was not written; the ledger itself is untouched.
        """
        with self._guard:
            self._check_writable()
            try:
                self._snapshots.save(snapshot)
            except OSError as exc:
                raise LedgerFailed(f"saving a snapshot: {exc}", hint="the ledger is untouched; free some space") from exc

    def load_snapshot(self) -> Snapshot | None:
        """See `Ledger.load_snapshot`."""
        with self._guard:
            self._check_open()
            return self._snapshots.load(self._hash_at)

    def close(self) -> None:
        """See `Ledger.close`."""
        with self._guard:
            if self._closed:
                return
            self._closed = True
            if self._writer is not None and not self._broken:
                # What cannot be copied now stays in the log, which is durable, and is copied at the next open.
                with suppress(sqlite3.Error):
                    self._writer.execute(fmt.CHECKPOINT_WHOLLY).fetchall()
                with suppress(OSError):
                    self._sync_marks()
            if self._writer is not None:
                self._writer.close()
            self._reader.close()
            for mark in self._marks:
                mark.close()
            if self._lock is not None:
                self._lock.release()

    def _start_writing(self, clock: Clock) -> None:
        try:
            self._writer = fmt.open_writer(self._folder / fmt.DATABASE_NAME, self._options.busy_timeout_ms)
            fmt.check_version(self._writer, writing=True)
            # An earlier fsync of the log may have failed; copying it writes every page anew and syncs the database.
            self._writer.execute(fmt.CHECKPOINT_WHOLLY).fetchall()
        except sqlite3.Error as exc:
            raise fmt.translated(exc, f"opening the ledger in {self._folder} for writing") from exc
        try:
            for path in self._options.marks(self._folder):
                if read_mark(path) is None:
                    reset_mark(path, self._head)
                self._marks.append(MarkFile(path))
                self._marks[-1].write(self._head)
        except OSError as exc:
            raise LedgerFailed(f"opening the high-water marks: {exc}", hint="check owner, mode and space") from exc
        self._clock = clock
        self._marks_synced_ms = clock.steady_ms()

    @contextmanager
    def _transaction(self, doing: str) -> Iterator[sqlite3.Connection]:
        """Commits what the body wrote, or nothing; translates what SQLite says about it."""
        writer = self._check_writable()
        try:
            writer.execute(fmt.BEGIN)
            yield writer
            writer.execute(fmt.COMMIT)
        except sqlite3.Error as exc:
            raise self._after_failure(writer, exc, doing) from exc
        except BaseException:
            self._roll_back(writer)
            raise

    def _after_failure(self, writer: sqlite3.Connection, exc: sqlite3.Error, doing: str) -> LedgerFailed:
        if fmt.primary_code(exc) == sqlite3.SQLITE_IOERR:
            self._broken = f"{doing}: {exc}; the disk failed, the outcome is unknown"
            self._uncertain = True
            return LedgerUnknown(self._broken, hint="open the ledger again, then look the append up by its id")
        self._roll_back(writer)
        if fmt.primary_code(exc) not in fmt.NOTHING_WRITTEN:
            self._broken = self._broken or f"{doing}: {exc}"
        return fmt.translated(exc, doing)

    def _roll_back(self, writer: sqlite3.Connection) -> None:
        if not writer.in_transaction:
            return
        try:
            writer.execute(fmt.ROLLBACK)
        except sqlite3.Error as exc:
            self._broken = f"rolling back: {exc}"

    def _head_checked(self, writer: sqlite3.Connection) -> Mark:
        """Returns where the database ends, having checked that it still continues what this handle knows."""
        head = rows.head_of(writer)
        if head.seq == self._head.seq and head.hash == self._head.hash:
            return head
        for _ in rows.read_checked(writer, min(self._head.seq, head.seq), head.seq):
            pass
        if head.seq < self._head.seq or rows.link_of(writer, self._head.seq)[1] != self._head.hash:
            self._broken = f"the database no longer holds event {self._head.seq} as it was written"
            raise LedgerDamaged(self._broken, hint=fmt.REPAIR_HINT)
        return head

    def _judge(self, request: Append) -> None:
        if request.term < self._head.term:
            raise LedgerConflict(f"term {request.term} is stale: the ledger has seen {self._head.term}")
        if request.expected_seq != self._head.seq:
            raise LedgerConflict(f"expected the ledger to end at {request.expected_seq}, it ends at {self._head.seq}")
        check_follows(request, self._head.at_ms)

    def _move_marks(self) -> None:
        """Follows a commit. A mark that cannot be written breaks the handle for the NEXT append: this one is durable."""
        try:
            for mark in self._marks:
                mark.write(self._head)
            if self._clock is not None and self._clock.steady_ms() - self._marks_synced_ms >= self._options.mark_sync_interval_ms:
                self._sync_marks()
                self._marks_synced_ms = self._clock.steady_ms()
        except OSError as exc:
            self._broken = f"writing the high-water mark: {exc}"

    def _sync_marks(self) -> None:
        for mark in self._marks:
            mark.sync()

    def _checkpoint_if_due(self) -> None:
        """Copies the log into the database. Its failure takes nothing back: what was appended is durable in the log."""
        if self._log_pages < self._options.checkpoint_pages or self._writer is None:
            return
        self._log_pages = 0
        try:
            self._writer.execute(fmt.CHECKPOINT_QUIETLY).fetchall()
        except sqlite3.Error as exc:
            if fmt.primary_code(exc) not in fmt.NOTHING_WRITTEN:
                self._broken = f"copying the log into the database: {exc}"

    def _hash_at(self, seq: int) -> bytes | None:
        try:
            return rows.link_of(self._reader, seq)[1]
        except LedgerDamaged:
            return None

    def _check_open(self) -> None:
        if self._closed:
            raise LedgerFailed("the ledger is closed")

    def _check_writable(self) -> sqlite3.Connection:
        self._check_open()
        if self._writer is None:
            raise LedgerFailed("the ledger was opened for reading only")
        if self._broken:
            raise LedgerFailed(f"nothing more is written through this handle: {self._broken}", hint="open the ledger again")
        return self._writer


def _make_if_missing(folder: Path, options: SqliteOptions) -> None:
    """Makes an empty database, unless a mark says that there has been one. The marks follow when it is opened for writing."""
    database = folder / fmt.DATABASE_NAME
    seen = max((mark for mark in rows.read_marks(options.marks(folder)).values() if mark), key=lambda mark: mark.seq, default=EMPTY)
    if not database.exists() and seen != EMPTY:
        raise LedgerDamaged(f"{database} is gone; its high-water mark says that it held {seen.seq} events", hint=fmt.REPAIR_HINT)
    try:
        if database.exists() and (seen != EMPTY or not _is_blank(database, options)):
            return
        writer = fmt.open_writer(database, options.busy_timeout_ms)
        try:
            fmt.make_tables(writer)
        finally:
            writer.close()
        fsync_folder(folder)
    except sqlite3.Error as exc:
        raise fmt.translated(exc, f"making {database}") from exc
    except OSError as exc:
        raise LedgerFailed(f"making {database}: {exc}", hint="check the folder's owner, mode and space") from exc


def _is_blank(database: Path, options: SqliteOptions) -> bool:
    reader = fmt.open_reader(database, options.busy_timeout_ms)
    try:
        return fmt.is_blank(reader)
    finally:
        reader.close()
