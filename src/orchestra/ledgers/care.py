"""Care of an SQLite ledger: verify, repair, back up, restore, export. What a person does, never the engine.

Nothing here loses an event in silence: a repair says first what it would cut, keeps the damaged files, and wants a word of consent;
a restore keeps what it replaces.
"""

from __future__ import annotations

import shutil
import sqlite3
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from orchestra.clock import Clock
from orchestra.errors import BadInput, LedgerFailed
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers import sqlite_read as rows
from orchestra.ledgers.archive import Manifest, backup, restore
from orchestra.ledgers.export import export
from orchestra.ledgers.folder import LOCK_NAME, FolderLock, fsync_file, fsync_folder, sibling
from orchestra.ledgers.marks import Mark, reset_mark
from orchestra.ledgers.sqlite import DEFAULTS, SqliteOptions
from orchestra.ledgers.sqlite_scan import Scan, rebuild, scan_folder

__all__ = ["Manifest", "RepairPlan", "VerifyReport", "backup", "export", "plan_repair", "repair", "restore", "verify"]


class VerifyReport(msgspec.Struct, frozen=True):
    """What a full pass over a ledger found."""

    events: int
    """Intact events from the first on."""
    hash: bytes
    """Chain hash of the last intact event."""
    at_ms: int
    """Ledger time of the last intact event, 0 if there is none."""
    stored_seq: int
    """The last event the database claims to hold."""
    mark_seq: int
    """The last event that a high-water mark has seen."""
    problems: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


class RepairPlan(msgspec.Struct, frozen=True):
    """What a repair would do, exactly; made for one state of the folder and valid for no other."""

    keep: Mark
    """The last event that stays. Its `term` is above every term the ledger or a mark has seen."""
    lost_first: int
    """First event that would be lost, 0 if none."""
    lost_last: int
    problems: tuple[str, ...]

    @property
    def lost_count(self) -> int:
        """Number of events that would be lost."""
        return self.lost_last - self.lost_first + 1 if self.lost_first else 0

    def __str__(self) -> str:
        if not self.problems:
            return f"the ledger is intact: {self.keep.seq} events"
        loss = (
            f"loses {self.lost_count} events, seq {self.lost_first} to {self.lost_last}"
            if self.lost_first
            else "loses no event that is known of"
        )
        last = datetime.fromtimestamp(self.keep.at_ms / 1000, UTC).isoformat(timespec="milliseconds") if self.keep.seq else "none"
        return f"repair keeps events up to {self.keep.seq} (last intact time {last}) and {loss}; found: {'; '.join(self.problems)}"


def verify(folder: Path, options: SqliteOptions = DEFAULTS) -> VerifyReport:
    """Checks every event, every record of an append, the marks and SQLite's own structures; works beside a running coordinator.

    Raises:
        LedgerFailed: There is no ledger, it cannot be read now, or a newer release wrote it. Damage is reported, not raised.
    """
    found, marks = scan_folder(folder, options.marks(folder))
    last = found.intact
    return VerifyReport(last.seq, last.hash, last.at_ms, found.stored_seq, _highest(marks), found.problems)


def plan_repair(folder: Path, options: SqliteOptions = DEFAULTS) -> RepairPlan:
    """Returns what `repair` would keep and lose. Changes nothing.

    Raises:
        LedgerFailed: As for `verify`.
    """
    found, marks = scan_folder(folder, options.marks(folder))
    return _plan(found, marks)


def repair(folder: Path, plan: RepairPlan, accept_data_loss: bool, *, clock: Clock, options: SqliteOptions = DEFAULTS) -> Path | None:
    """Carries the plan out: copies the damaged files aside, makes the database anew from the part to keep, sets the marks back.

    Returns:
        The sibling folder with the damaged files, or None if there was nothing to repair.

    Raises:
        BadInput: `accept_data_loss` is not given.
        LedgerLocked: A coordinator holds the folder.
        LedgerFailed: The folder is no longer as the plan saw it, or the repair failed; the copy stays.
    """
    if not plan.problems:
        return None
    if not accept_data_loss:
        raise BadInput(str(plan), hint="say so explicitly to accept it", field="accept_data_loss")
    lock = FolderLock.take(folder, clock.wall_ms())
    try:
        if plan_repair(folder, options) != plan:
            raise LedgerFailed("the ledger has changed since the repair was planned", hint="plan again")
        aside = sibling(folder, "damaged", clock.wall_ms())
        shutil.copytree(folder, aside, ignore=shutil.ignore_patterns(LOCK_NAME))
        _replace_database(folder, plan.keep)
        for path in options.marks(folder):
            reset_mark(path, plan.keep)
        return aside
    except sqlite3.Error as exc:
        raise fmt.translated(exc, "repairing") from exc
    except OSError as exc:
        raise LedgerFailed(f"repairing: {exc}", hint="the damaged files are unchanged or in the sibling folder") from exc
    finally:
        lock.release()


def _plan(found: Scan, marks: dict[Path, Mark | None]) -> RepairPlan:
    if not found.problems:
        return RepairPlan(found.intact, 0, 0, ())
    last = max(found.stored_seq, _highest(marks))
    term = max(found.intact.term, *(mark.term for mark in marks.values() if mark), 0) + 1
    keep = msgspec.structs.replace(found.intact, term=term)
    return RepairPlan(keep, keep.seq + 1 if last > keep.seq else 0, last if last > keep.seq else 0, found.problems)


def _highest(marks: dict[Path, Mark | None]) -> int:
    return max((mark.seq for mark in marks.values() if mark), default=0)


def _replace_database(folder: Path, keep: Mark) -> None:
    """Swaps the rebuilt database in. The old log goes first: SQLite would play it into the new file."""
    database = folder / fmt.DATABASE_NAME
    rebuilt = folder / f"{fmt.DATABASE_NAME}.rebuilt"
    for path in fmt.files_of(rebuilt):
        path.unlink(missing_ok=True)
    reader = rows.opened(folder) if keep.seq else None
    try:
        rebuild(reader, rebuilt, keep)
    finally:
        if reader is not None:
            reader.close()
    fsync_file(rebuilt)
    for path in fmt.files_of(database)[1:]:
        path.unlink(missing_ok=True)
    rebuilt.replace(database)
    fsync_folder(folder)
