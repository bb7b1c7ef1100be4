"""Going through a whole SQLite ledger in whatever state it is: how far it is intact, and a new database made of that part."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import LedgerDamaged
from orchestra.ledger import event_crc
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers import sqlite_read as rows
from orchestra.ledgers.marks import EMPTY, Mark
from orchestra.ledgers.sqlite_read import AppendRow

_INTEGRITY: Final = "PRAGMA integrity_check(10)"
_MAX_SEQ: Final = "SELECT max(seq) FROM event"
_ALL_APPENDS: Final = "SELECT first_seq, last_seq, idempotency_id, crc FROM append_id ORDER BY first_seq"
REBUILD_BATCH: Final = 10_000
"""Events of one transaction while a database is made anew."""


class Scan(msgspec.Struct, frozen=True):
    """What a whole pass over a ledger found."""

    intact: Mark
    """The last event up to which everything is intact and no append is cut in half; `term` is the stored one, 0 if unreadable."""
    stored_seq: int
    """The last event that the database claims to hold."""
    problems: tuple[str, ...]


def scan_folder(folder: Path, paths: tuple[Path, ...]) -> tuple[Scan, dict[Path, Mark | None]]:
    """Scans the ledger in a folder and compares it with its marks at `paths`; damage is reported, not raised.

    Raises:
        LedgerFailed: There is no ledger, or a newer release wrote it.
    """
    marks = rows.read_marks(paths)
    if not (folder / fmt.DATABASE_NAME).exists() and any(marks.values()):
        return Scan(EMPTY, 0, (f"{folder / fmt.DATABASE_NAME} is gone",)), marks
    try:
        reader = rows.opened(folder)
    except LedgerDamaged as exc:
        return Scan(EMPTY, 0, (exc.message,)), marks
    try:
        return scan(reader, marks), marks
    finally:
        reader.close()


def scan(reader: sqlite3.Connection, marks: dict[Path, Mark | None]) -> Scan:
    """Scans one database and compares it with marks that were read before.

    Raises:
        LedgerFailed: A newer release wrote it, or SQLite cannot read now.
    """
    problems: list[str] = []
    try:
        with rows.one_view(reader):
            _note_version(reader, problems)
            stored = _stored_head(reader, problems)
            last = _last_intact(reader, stored.seq, problems)
            whole = _whole_appends(reader, last, problems)
            _note_marks(reader, msgspec.structs.replace(last, term=stored.term), marks, problems)
            _note_integrity(reader, problems)
            return Scan(msgspec.structs.replace(whole, term=stored.term), stored.seq, tuple(dict.fromkeys(problems)))
    except sqlite3.Error as exc:  # the view itself could not be opened
        failure = fmt.translated(exc, "scanning the ledger")
        if not isinstance(failure, LedgerDamaged):
            raise failure from exc
        return Scan(EMPTY, 0, (failure.message,))


def _note_version(reader: sqlite3.Connection, problems: list[str]) -> None:
    try:
        fmt.check_version(reader, writing=True)
    except LedgerDamaged as exc:
        problems.append(exc.message)
    except sqlite3.Error as exc:
        problems.append(f"reading the version: {exc}")


def _stored_head(reader: sqlite3.Connection, problems: list[str]) -> Mark:
    """Returns the end that the database claims, as far as it can be read."""
    try:
        return rows.head_of(reader)
    except LedgerDamaged as exc:
        problems.append(exc.message)
    try:
        (seq,) = reader.execute(_MAX_SEQ).fetchone()
    except sqlite3.Error:
        seq = 0
    return msgspec.structs.replace(EMPTY, seq=seq if isinstance(seq, int) else 0)


def _last_intact(reader: sqlite3.Connection, stored_seq: int, problems: list[str]) -> Mark:
    last = EMPTY
    while True:
        part = rows.read_slice(reader, last.seq, last.hash, rows.SLICE_EVENTS)
        if part.events:
            event = part.events[-1]
            last = Mark(event.seq, event.at_ms, 0, event.hash)
        if part.problem or not part.events:
            break
    if part.problem:
        problems.append(part.problem)
    elif last.seq < stored_seq:
        problems.append(f"events {last.seq + 1} to {stored_seq} are missing")
    return last


def _whole_appends(reader: sqlite3.Connection, last: Mark, problems: list[str]) -> Mark:
    """Returns the end of the last append that is there as a whole, and notes where the records of appends have gaps."""
    expected = 1
    for row in _readable_appends(reader, problems):
        if row.first_seq > expected:
            _note_gap(expected, min(row.first_seq - 1, last.seq), problems)
        if row.last_seq > last.seq:
            problems.append(f"of append {row.idempotency_id!r} (events {row.first_seq} to {row.last_seq}) a part is missing")
            before = min(row.first_seq - 1, last.seq)
            at_ms, digest = rows.link_of(reader, before)
            return Mark(before, at_ms, 0, digest)
        expected = row.last_seq + 1
    _note_gap(expected, last.seq, problems)
    return last


def _note_gap(first: int, last: int, problems: list[str]) -> None:
    if first <= last:
        problems.append(f"the records of the appends of events {first} to {last} are missing or damaged")


def _readable_appends(reader: sqlite3.Connection, problems: list[str]) -> Iterator[AppendRow]:
    """Yields the records that agree with their CRC, in order and without overlap, as far as SQLite can read."""
    last = 0
    try:
        for row in reader.execute(_ALL_APPENDS):
            found = rows.checked_append(row)
            if found is not None and last < found.first_seq <= found.last_seq:
                last = found.last_seq
                yield found
    except sqlite3.Error as exc:
        problems.append(f"reading the records of appends: {exc}")


def _note_marks(reader: sqlite3.Connection, head: Mark, marks: dict[Path, Mark | None], problems: list[str]) -> None:
    for path, mark in marks.items():
        if mark is None:
            continue
        try:
            rows.check_mark(reader, head, mark, path)
        except LedgerDamaged as exc:
            problems.append(exc.message)
    if head.seq and marks and not any(marks.values()):
        problems.append("no intact high-water mark is left")


def _note_integrity(reader: sqlite3.Connection, problems: list[str]) -> None:
    try:
        problems += [f"SQLite: {text}" for (text,) in reader.execute(_INTEGRITY) if text != "ok"]
    except sqlite3.Error as exc:
        problems.append(f"SQLite's integrity check: {exc}")


def rebuild(reader: sqlite3.Connection | None, target: Path, keep: Mark) -> None:
    """Makes a new database at `target` from the events up to `keep.seq`, with `keep.term`. Durable on return.

    Raises:
        LedgerDamaged: The part to keep is not intact.
        sqlite3.Error: SQLite could not write.
    """
    writer = fmt.open_writer(target)
    try:
        fmt.make_tables(writer, keep.term)
        if reader is not None and keep.seq:
            with rows.one_view(reader):
                _copy_events(reader, writer, keep.seq)
                _copy_appends(reader, writer, keep.seq)
        writer.execute(fmt.CHECKPOINT_WHOLLY).fetchall()
    finally:
        writer.close()


def _copy_events(reader: sqlite3.Connection, writer: sqlite3.Connection, last_seq: int) -> None:
    events = rows.read_checked(reader, 0, last_seq)
    while part := list(islice(events, REBUILD_BATCH)):
        writer.execute(fmt.BEGIN)
        writer.executemany(fmt.INSERT_EVENT, [(e.seq, e.at_ms, e.body, event_crc(e.seq, e.body), e.hash) for e in part])
        writer.execute(fmt.COMMIT)


def _copy_appends(reader: sqlite3.Connection, writer: sqlite3.Connection, last_seq: int) -> None:
    """Copies the records; where they are lost, a stand-in keeps every event covered."""
    expected = 1
    writer.execute(fmt.BEGIN)
    for row in _readable_appends(reader, []):
        if row.last_seq > last_seq:
            break
        if row.first_seq > expected:
            _insert_append(writer, expected, row.first_seq - 1, f"repaired-{expected}-{row.first_seq - 1}")
        _insert_append(writer, row.first_seq, row.last_seq, row.idempotency_id)
        expected = row.last_seq + 1
    if expected <= last_seq:
        _insert_append(writer, expected, last_seq, f"repaired-{expected}-{last_seq}")
    writer.execute(fmt.COMMIT)


def _insert_append(writer: sqlite3.Connection, first_seq: int, last_seq: int, idempotency_id: str) -> None:
    writer.execute(fmt.INSERT_APPEND, (first_seq, last_seq, idempotency_id, fmt.append_crc(first_seq, last_seq, idempotency_id)))
