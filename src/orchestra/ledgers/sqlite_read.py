"""Reading the SQLite ledger: nothing leaves this file that contradicts its CRC, its hash or its place.

Rows come in slices, each a query of its own: no read transaction stays open between two, so a slow reader never holds the log back.
"""

from __future__ import annotations

import hashlib
import sqlite3
import struct
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import LedgerDamaged, LedgerFailed
from orchestra.ledger import GENESIS, Appended, StoredEvent
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers.marks import Mark, read_mark

SLICE_EVENTS: Final = 2000
"""Events of one query: beyond a thousand the speed no longer rises."""
_STAMP: Final = struct.Struct(">qq").pack
Row = tuple[int, int, bytes, int, bytes]


class Slice(msgspec.Struct, frozen=True):
    """Checked events and what is wrong with the row after them, or empty."""

    events: list[StoredEvent]
    problem: str


class AppendRow(msgspec.Struct, frozen=True):
    """One remembered append."""

    first_seq: int
    last_seq: int
    idempotency_id: str


def check_rows(rows: Iterable[Row], after_seq: int, previous: bytes) -> Slice:
    """Checks rows that should follow `after_seq`, whose chain hash is `previous`; stops at the first that does not.

    `ledger.chain_hash` and `ledger.event_crc`, written out: at a microsecond an event the calls would count.
    """
    events: list[StoredEvent] = []
    keep, sha256, crc32, stamp, expected = events.append, hashlib.sha256, zlib.crc32, _STAMP, after_seq
    for seq, at_ms, body, crc, digest in rows:
        expected += 1
        if seq != expected:
            return Slice(events, f"event {expected} is missing")
        try:
            previous = sha256(previous + stamp(seq, at_ms) + body).digest()
            if crc != crc32(body, seq & 0xFFFFFFFF) or digest != previous:
                return Slice(events, f"event {seq} contradicts its checks")
        except (TypeError, struct.error):
            return Slice(events, f"event {seq} has a field of a wrong type")
        keep(StoredEvent(seq, at_ms, body, previous))
    return Slice(events, "")


def read_slice(connection: sqlite3.Connection, after_seq: int, previous: bytes, count: int) -> Slice:
    """Returns up to `count` checked events after `after_seq`; fewer without a problem only at the end of the table.

    Rows are checked as they come, so what stands before a page that SQLite cannot read is still returned.
    """
    good: list[Row] = []
    try:
        for row in connection.execute(fmt.SELECT_EVENTS, (after_seq, count)):
            good.append(row)  # noqa: PERF402 - a list() would lose the rows before an error
    except sqlite3.Error as exc:
        if fmt.primary_code(exc) in fmt.NOTHING_WRITTEN:
            raise fmt.translated(exc, "reading events") from exc
        checked = check_rows(good, after_seq, previous)
        return checked if checked.problem else Slice(checked.events, f"after event {after_seq + len(good)}: {exc}")
    return check_rows(good, after_seq, previous)


def read_checked(connection: sqlite3.Connection, after_seq: int, last_seq: int) -> Iterator[StoredEvent]:
    """Yields the events after `after_seq` up to `last_seq`, all of them or an error.

    Raises:
        LedgerDamaged: An event contradicts its checks or is missing; those before it were yielded.
    """
    seq = after_seq
    previous = GENESIS if seq == 0 or seq >= last_seq else link_of(connection, seq)[1]
    while seq < last_seq:
        part = read_slice(connection, seq, previous, min(SLICE_EVENTS, last_seq - seq))
        yield from part.events
        if part.problem or not part.events:
            raise LedgerDamaged(part.problem or f"events {seq + 1} to {last_seq} are missing", hint=fmt.REPAIR_HINT)
        seq, previous = part.events[-1].seq, part.events[-1].hash


def link_of(connection: sqlite3.Connection, seq: int) -> tuple[int, bytes]:
    """Returns time and chain hash of an event as they are stored; 0 and the genesis for event 0.

    Raises:
        LedgerDamaged: The event is missing.
    """
    if seq == 0:
        return 0, GENESIS
    try:
        row = connection.execute(fmt.SELECT_LINK, (seq,)).fetchone()
    except sqlite3.Error as exc:
        raise fmt.translated(exc, f"reading event {seq}") from exc
    if row is None or not isinstance(row[0], int) or not isinstance(row[1], bytes):
        raise LedgerDamaged(f"event {seq} is missing or has a field of a wrong type", hint=fmt.REPAIR_HINT)
    return row[0], row[1]


def head_of(connection: sqlite3.Connection) -> Mark:
    """Returns where the database ends and its term, in the shape of a mark.

    Raises:
        LedgerDamaged: The term contradicts its CRC or a field has a wrong type.
    """
    try:
        row = connection.execute(fmt.SELECT_HEAD).fetchone()
    except sqlite3.Error as exc:
        raise fmt.translated(exc, "reading the end of the ledger") from exc
    match row:
        case (int() as term, int() as crc, None, None, None) if crc == fmt.term_crc(term):
            return Mark(0, 0, term, GENESIS)
        case (int() as term, int() as crc, int() as seq, int() as at_ms, bytes() as digest) if crc == fmt.term_crc(term):
            return Mark(seq, at_ms, term, digest)
    raise LedgerDamaged("the term or the last event contradicts its checks", hint=fmt.REPAIR_HINT)


def find_append(connection: sqlite3.Connection, idempotency_id: str) -> Appended | None:
    """Returns the outcome of an append, or None if there is none of that id.

    Raises:
        LedgerDamaged: The row contradicts its CRC.
    """
    try:
        row = connection.execute(fmt.SELECT_APPEND, (idempotency_id,)).fetchone()
    except sqlite3.Error as exc:
        raise fmt.translated(exc, "looking an append up") from exc
    if row is None:
        return None
    found = checked_append(row)
    if found is None or found.idempotency_id != idempotency_id:
        raise LedgerDamaged(f"the record of append {idempotency_id!r} contradicts its checks", hint=fmt.REPAIR_HINT)
    last = next(read_checked(connection, found.last_seq - 1, found.last_seq))
    return Appended(found.first_seq, found.last_seq, last.hash)


def checked_append(row: tuple[object, ...]) -> AppendRow | None:
    """Returns the row of an append, or None if it contradicts its CRC."""
    match row:
        case (int() as first, int() as last, str() as name, int() as crc) if crc == fmt.append_crc(first, last, name):
            return AppendRow(first, last, name)
    return None


def appends_from(connection: sqlite3.Connection, seq: int) -> Iterator[AppendRow]:
    """Yields the appends from the one that holds event `seq` on; each begins where the one before ends.

    Raises:
        LedgerDamaged: A row contradicts its CRC or there is a gap.
    """
    expected = 0
    try:
        for row in connection.execute(fmt.SELECT_APPENDS, (seq,)):
            found = checked_append(row)
            if found is None or (expected or min(found.first_seq, seq)) != found.first_seq or found.last_seq < found.first_seq:
                raise LedgerDamaged(
                    f"the record of an append after event {(expected or seq) - 1} is missing or damaged", hint=fmt.REPAIR_HINT
                )
            expected = found.last_seq + 1
            yield found
    except sqlite3.Error as exc:
        raise fmt.translated(exc, "reading the records of appends") from exc


def check_recent(connection: sqlite3.Connection, head: Mark, count: int) -> None:
    """Checks the last `count` events and the appends that hold them, looked up both ways.

    Raises:
        LedgerDamaged: Something contradicts its checks.
    """
    after = max(head.seq - count, 0)
    for _ in read_checked(connection, after, head.seq):
        pass
    last = after
    for found in appends_from(connection, after + 1):
        last = found.last_seq
        if find_append(connection, found.idempotency_id) is None:
            raise LedgerDamaged(f"the index does not find append {found.idempotency_id!r}", hint=fmt.REPAIR_HINT)
    if last != head.seq:
        raise LedgerDamaged(f"the records of appends end at event {last}, the events at {head.seq}", hint=fmt.REPAIR_HINT)


def check_marks(connection: sqlite3.Connection, head: Mark, marks: dict[Path, Mark | None]) -> None:
    """Compares the database with its marks.

    Raises:
        LedgerDamaged: The database has lost something, or no mark is left that could tell.
    """
    for path, mark in marks.items():
        if mark is not None:
            check_mark(connection, head, mark, path)
    if head.seq and not any(marks.values()):
        named = " or ".join(map(str, marks))
        raise LedgerDamaged(f"no intact high-water mark in {named}: nobody can tell whether events are missing", hint=fmt.REPAIR_HINT)


def check_mark(connection: sqlite3.Connection, head: Mark, mark: Mark, path: Path) -> None:
    """Compares the database with one mark.

    Raises:
        LedgerDamaged: The database has lost something; the message says what.
    """
    if head.seq < mark.seq:
        missing = mark.seq - head.seq
        raise LedgerDamaged(
            f"{missing} event{'s are' if missing > 1 else ' is'} missing, seq {head.seq + 1} to {mark.seq}: "
            f"the database ends at {head.seq}, the high-water mark in {path} says {mark.seq}",
            hint=fmt.REPAIR_HINT,
        )
    if link_of(connection, mark.seq)[1] != mark.hash:
        raise LedgerDamaged(f"event {mark.seq} is not the one that the high-water mark in {path} saw", hint=fmt.REPAIR_HINT)
    if head.term < mark.term:
        raise LedgerDamaged(f"term {mark.term} was claimed by the mark in {path}, the database knows {head.term}", hint=fmt.REPAIR_HINT)


def read_marks(paths: Iterable[Path]) -> dict[Path, Mark | None]:
    """Returns the marks that are there and intact, None for the others. Read them before the database: they never lead it.

    Raises:
        LedgerFailed: A mark file exists and cannot be read.
    """
    try:
        return {path: read_mark(path) for path in paths}
    except OSError as exc:
        raise LedgerFailed(f"reading the high-water mark: {exc}", hint="check owner and mode") from exc


@contextmanager
def one_view(connection: sqlite3.Connection) -> Iterator[None]:
    """Keeps the body's queries on one state of the database, whatever is appended meanwhile."""
    connection.execute(fmt.BEGIN_READING)
    try:
        yield
    finally:
        with suppress(sqlite3.Error):
            connection.execute(fmt.ROLLBACK)


def opened(folder: Path, busy_timeout_ms: int = fmt.BUSY_TIMEOUT_MS) -> sqlite3.Connection:
    """Returns a read-only connection to the ledger in a folder, whatever state that is in.

    Raises:
        LedgerFailed: There is none, or SQLite cannot open it.
    """
    database = folder / fmt.DATABASE_NAME
    if not database.exists():
        raise LedgerFailed(f"there is no ledger in {folder}", hint="`orchestra init` makes one")
    try:
        return fmt.open_reader(database, busy_timeout_ms)
    except sqlite3.Error as exc:
        raise fmt.translated(exc, f"opening {database}") from exc
