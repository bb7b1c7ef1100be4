"""Backup and restore of an SQLite ledger: one `.tar.gz` that says what is in it and is checked on both ways."""

from __future__ import annotations

import gzip
import hashlib
import os
import shutil
import sqlite3
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import IO, Final

import msgspec

from orchestra.clock import Clock
from orchestra.errors import BadInput, LedgerDamaged, LedgerFailed
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers import sqlite_read as rows
from orchestra.ledgers.folder import LOCK_NAME, FolderLock, fsync_file, fsync_folder, sibling
from orchestra.ledgers.marks import Mark, read_mark, reset_mark
from orchestra.ledgers.sqlite import DEFAULTS, SqliteOptions
from orchestra.ledgers.sqlite_scan import scan, scan_folder

MANIFEST_NAME: Final = "manifest.json"
MANIFEST_BYTES_MAX: Final = 1 << 20
MEMBERS: Final = (MANIFEST_NAME, fmt.DATABASE_NAME, fmt.MARK_NAME)
"""The only names an archive may hold; the manifest comes first."""
FORMAT: Final = 1
_CHUNK_BYTES: Final = 1 << 20


class FileSum(msgspec.Struct, frozen=True):
    """What a file of the archive has to be."""

    bytes: int
    sha256: str


class Manifest(msgspec.Struct, frozen=True):
    """First member of an archive."""

    format: int
    schema: int
    seq: int
    at_ms: int
    term: int
    hash: str
    """Chain hash of event `seq`, hexadecimal."""
    files: dict[str, FileSum]


def backup(folder: Path, target: Path, options: SqliteOptions = DEFAULTS) -> Manifest:
    """Writes an archive of the ledger as it is at one moment; works beside a running coordinator.

    The copy is verified from the first event to the last before the archive appears under its name.

    Raises:
        LedgerDamaged: The ledger is not intact; an archive of it would be worthless.
        LedgerFailed: There is no ledger, or `target` cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".backup-", dir=target.absolute().parent) as name:
            staging = Path(name)
            head = _copy_database(folder, staging / fmt.DATABASE_NAME, options)
            reset_mark(staging / fmt.MARK_NAME, head)
            files = {each: _sum_of(staging / each) for each in MEMBERS[1:]}
            manifest = Manifest(FORMAT, fmt.SCHEMA_VERSION, head.seq, head.at_ms, head.term, head.hash.hex(), files)
            (staging / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
            _pack(staging, staging / "archive")
            (staging / "archive").replace(target)
        fsync_folder(target.absolute().parent)
        return manifest
    except sqlite3.Error as exc:
        raise fmt.translated(exc, f"backing {folder} up") from exc
    except OSError as exc:
        raise LedgerFailed(f"writing {target}: {exc}", hint="check the path and the space") from exc


def restore(archive: Path, folder: Path, *, force: bool, clock: Clock, options: SqliteOptions = DEFAULTS) -> Path | None:
    """Makes `folder` the ledger of an archive and sets the marks to it; the ledger goes on with a term above all it and the marks know.

    Returns:
        The sibling folder that holds what was replaced, or None if there was nothing.

    Raises:
        BadInput: The folder is not empty and `force` is not given, or the archive is not one of ours or is damaged.
        LedgerLocked: A coordinator holds the folder.
        LedgerFailed: The folder cannot be written.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = FolderLock.take(folder, clock.wall_ms())
        try:
            if _content_of(folder) and not force:
                raise BadInput(
                    f"{folder} is not empty", hint="restore elsewhere, or force it: what is there is kept beside it", field="folder"
                )
            with tempfile.TemporaryDirectory(prefix=".restore-", dir=folder.absolute().parent) as name:
                staging = Path(name)
                head = _unpacked(archive, staging)
                aside = _move_aside(folder, clock.wall_ms())
                head = _raise_term(staging, head, (*options.marks(folder), *(() if aside is None else (aside / fmt.MARK_NAME,))))
                (staging / fmt.DATABASE_NAME).replace(folder / fmt.DATABASE_NAME)
            for path in options.marks(folder):
                reset_mark(path, head)
            return aside
        finally:
            lock.release()
    except OSError as exc:
        raise LedgerFailed(f"restoring {folder}: {exc}", hint="check owner, mode and space") from exc


def _copy_database(folder: Path, copy: Path, options: SqliteOptions) -> Mark:
    """Copies the database at one moment, verifies the copy against itself and the marks, and returns its end."""
    marks = rows.read_marks(options.marks(folder))
    reader = rows.opened(folder)
    writer = sqlite3.connect(copy, isolation_level=None)
    try:
        fmt.check_version(reader, writing=True)
        reader.backup(writer)
        writer.execute("PRAGMA journal_mode = DELETE").fetchall()  # the copy is one file, without a log beside it
        found = scan(writer, marks)
    finally:
        writer.close()
        reader.close()
    if found.problems:
        raise LedgerDamaged(f"the ledger in {folder} is not intact: {found.problems[0]}", hint=fmt.REPAIR_HINT)
    fsync_file(copy)
    return found.intact


def _pack(staging: Path, archive: Path) -> None:
    with archive.open("wb") as file:
        with (
            gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as squeezed,
            tarfile.open(fileobj=squeezed, mode="w") as tar,
        ):
            for name in MEMBERS:
                member = tarfile.TarInfo(name)
                member.size = (staging / name).stat().st_size
                member.mode = 0o600
                with (staging / name).open("rb") as content:
                    tar.addfile(member, content)
        file.flush()
        os.fsync(file.fileno())


def _unpacked(archive: Path, staging: Path) -> Mark:
    """Unpacks into `staging`, checks everything there is to check and returns the end of the ledger."""
    try:
        with tarfile.open(archive, "r:gz") as tar:
            manifest = _read_manifest(tar)
            for name in MEMBERS[1:]:
                _unpack_member(tar, name, manifest.files[name], staging / name)
            if (extra := tar.next()) is not None:
                raise BadInput(f"{archive}: unexpected member {extra.name!r}", hint="this is not a ledger backup", field="archive")
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as exc:
        raise BadInput(f"{archive}: {exc}", hint="the archive is damaged or not a ledger backup", field="archive") from exc
    except FileNotFoundError as exc:
        raise BadInput(f"{archive}: no such file", field="archive") from exc
    try:
        found, _ = scan_folder(staging, (staging / fmt.MARK_NAME,))
    except LedgerFailed as exc:
        raise BadInput(f"{archive}: {exc.message}", hint=exc.hint, field="archive") from exc
    if found.problems or (found.intact.seq, found.intact.hash.hex()) != (manifest.seq, manifest.hash):
        raise BadInput(f"{archive}: {'; '.join(found.problems) or 'the chain is not the one in the manifest'}", field="archive")
    return found.intact


def _read_manifest(tar: tarfile.TarFile) -> Manifest:
    content = _next_member(tar, MANIFEST_NAME, MANIFEST_BYTES_MAX).read()
    try:
        manifest = msgspec.json.decode(content, type=Manifest)
    except msgspec.DecodeError as exc:
        raise BadInput(f"the archive's manifest: {exc}", field="archive") from exc
    if manifest.format != FORMAT or set(manifest.files) != set(MEMBERS[1:]):
        raise BadInput(f"the archive has format {manifest.format}, this release reads {FORMAT}", field="archive")
    return manifest


def _unpack_member(tar: tarfile.TarFile, name: str, expected: FileSum, target: Path) -> None:
    source, digest = _next_member(tar, name, expected.bytes), hashlib.sha256()
    with target.open("xb") as file:
        os.fchmod(file.fileno(), 0o600)
        while chunk := source.read(_CHUNK_BYTES):
            digest.update(chunk)
            file.write(chunk)
        file.flush()
        os.fsync(file.fileno())
    if target.stat().st_size != expected.bytes or digest.hexdigest() != expected.sha256:
        raise BadInput(f"{name} in the archive is not what the manifest says", field="archive")


def _next_member(tar: tarfile.TarFile, name: str, bytes_max: int) -> IO[bytes]:
    """Returns the next member's content if it is the plain file that has to come here; nothing else in an archive is ever written."""
    member = tar.next()
    if member is None or member.name != name or not member.isreg() or member.size > bytes_max:
        raise BadInput(f"the archive holds {member.name if member else 'nothing'!r} where {name} should be", field="archive")
    content = tar.extractfile(member)
    if content is None:
        raise BadInput(f"{name} in the archive has no content", field="archive")
    return content


def _raise_term(staging: Path, head: Mark, known_marks: tuple[Path, ...]) -> Mark:
    """Lifts the term above every one that a mark has seen, so that a leader of before the restore stays fenced off."""
    terms = [mark.term for mark in map(read_mark, known_marks) if mark is not None]
    head = msgspec.structs.replace(head, term=max([head.term, *terms]) + 1)
    database = staging / fmt.DATABASE_NAME
    try:
        writer = fmt.open_writer(database)
        try:
            writer.execute(fmt.UPDATE_TERM, (head.term, fmt.term_crc(head.term)))
            writer.execute(fmt.CHECKPOINT_WHOLLY).fetchall()
        finally:
            writer.close()
    except sqlite3.Error as exc:
        raise fmt.translated(exc, "restoring the term") from exc
    fsync_file(database)
    return head


def _content_of(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != LOCK_NAME)


def _move_aside(folder: Path, now_ms: int) -> Path | None:
    content = _content_of(folder)
    if not content:
        return None
    aside = sibling(folder, "replaced", now_ms)
    aside.mkdir(mode=0o700)
    for path in content:
        shutil.move(path, aside / path.name)
    return aside


def _sum_of(path: Path) -> FileSum:
    with path.open("rb") as file:
        return FileSum(path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest())
