"""The SQLite ledger on disk: file names, schema, versions, connections and the one gate that translates SQLite's errors.

Rules of this file:
- One read-write connection a ledger, and it alone checkpoints: SQLite before 3.51.3 can corrupt a database when one connection writes
  while another checkpoints. Everybody else opens `mode=ro`.
- Nobody opens the database file by other means while a connection is open in the process: closing such a descriptor drops SQLite's locks.
- A change of the schema raises `SCHEMA_VERSION`; `MIN_READER_VERSION` rises only if an older release would misread the new one.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from pathlib import Path
from typing import Final

from orchestra.errors import LedgerDamaged, LedgerFailed

DATABASE_NAME: Final = "ledger.db"
MARK_NAME: Final = "tail.mark"
SNAPSHOTS_NAME: Final = "snapshots"
LOG_SUFFIXES: Final = ("-wal", "-shm")

APPLICATION_ID: Final = 0x4D794F4C
"""`MyOL`, in the header of the database: tells ours from any other."""
SCHEMA_VERSION: Final = 1
MIN_READER_VERSION: Final = 1

REPAIR_HINT: Final = "`orchestra ledger repair` shows what is lost and, if you accept that, cuts the ledger there"

CREATE_TABLES: Final = (
    "CREATE TABLE event (seq INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, body BLOB NOT NULL, crc INTEGER NOT NULL, hash BLOB NOT NULL) STRICT",
    "CREATE TABLE append_id (first_seq INTEGER PRIMARY KEY, last_seq INTEGER NOT NULL, idempotency_id TEXT NOT NULL UNIQUE, "
    "crc INTEGER NOT NULL) STRICT",
    "CREATE TABLE term (id INTEGER PRIMARY KEY CHECK (id = 1), term INTEGER NOT NULL, crc INTEGER NOT NULL) STRICT",
    "CREATE TABLE about (id INTEGER PRIMARY KEY CHECK (id = 1), min_reader_version INTEGER NOT NULL) STRICT",
)
INSERT_TERM: Final = "INSERT INTO term (id, term, crc) VALUES (1, ?, ?)"
INSERT_ABOUT: Final = "INSERT INTO about (id, min_reader_version) VALUES (1, ?)"
MARK_VERSION: Final = (f"PRAGMA application_id = {APPLICATION_ID}", f"PRAGMA user_version = {SCHEMA_VERSION}")

BUSY_TIMEOUT_MS: Final = 5000
"""Wait for a foreign program (a person's `sqlite3`, say) that holds the database."""

BEGIN_READING: Final = "BEGIN"
BEGIN: Final = "BEGIN IMMEDIATE"
COMMIT: Final = "COMMIT"
ROLLBACK: Final = "ROLLBACK"
CHECKPOINT_QUIETLY: Final = "PRAGMA wal_checkpoint(PASSIVE)"
CHECKPOINT_WHOLLY: Final = "PRAGMA wal_checkpoint(TRUNCATE)"

INSERT_EVENT: Final = "INSERT INTO event (seq, at_ms, body, crc, hash) VALUES (?, ?, ?, ?, ?)"
INSERT_APPEND: Final = "INSERT INTO append_id (first_seq, last_seq, idempotency_id, crc) VALUES (?, ?, ?, ?)"
UPDATE_TERM: Final = "UPDATE term SET term = ?, crc = ?"
SELECT_HEAD: Final = (
    "SELECT t.term, t.crc, e.seq, e.at_ms, e.hash FROM term t LEFT JOIN event e ON e.seq = (SELECT max(seq) FROM event) WHERE t.id = 1"
)
"""Everything an append is judged by, in one step."""
SELECT_EVENTS: Final = "SELECT seq, at_ms, body, crc, hash FROM event WHERE seq > ? ORDER BY seq LIMIT ?"
SELECT_LINK: Final = "SELECT at_ms, hash FROM event WHERE seq = ?"
SELECT_APPEND: Final = "SELECT first_seq, last_seq, idempotency_id, crc FROM append_id WHERE idempotency_id = ?"
SELECT_APPENDS: Final = (
    "SELECT first_seq, last_seq, idempotency_id, crc FROM append_id "
    "WHERE first_seq >= coalesce((SELECT max(first_seq) FROM append_id WHERE first_seq <= ?), 0) ORDER BY first_seq"
)
"""From the append that holds the given event on."""

WRITER_PRAGMAS: Final = (
    "PRAGMA synchronous = FULL",  # NORMAL loses acknowledged commits on a power cut
    "PRAGMA fullfsync = ON",  # macOS: fsync alone does not reach the platter; nothing elsewhere
    "PRAGMA checkpoint_fullfsync = ON",
    "PRAGMA wal_autocheckpoint = 0",  # SQLite swallows the errors of its automatic checkpoint
    "PRAGMA journal_size_limit = 67108864",
)
COMMON_PRAGMAS: Final = (
    "PRAGMA cell_size_check = ON",
    "PRAGMA trusted_schema = OFF",
    "PRAGMA mmap_size = 0",  # a disk error in mapped memory kills the process
    "PRAGMA cache_size = -16000",
)

NOTHING_WRITTEN: Final = frozenset(
    {
        sqlite3.SQLITE_FULL,
        sqlite3.SQLITE_BUSY,
        sqlite3.SQLITE_LOCKED,
        sqlite3.SQLITE_READONLY,
        sqlite3.SQLITE_CANTOPEN,
        sqlite3.SQLITE_PERM,
        sqlite3.SQLITE_NOMEM,
        sqlite3.SQLITE_INTERRUPT,
    }
)
"""After these SQLite has rolled back and the connection works on."""


def files_of(database: Path) -> tuple[Path, ...]:
    """Returns the database file and those that SQLite keeps beside it."""
    return (database, *(database.with_name(database.name + suffix) for suffix in LOG_SUFFIXES))


def primary_code(error: sqlite3.Error) -> int:
    """Returns SQLite's result code without its extension, -1 if the error is not SQLite's own."""
    code: int = getattr(error, "sqlite_errorcode", -1)
    return code & 0xFF if code >= 0 else -1


def translated(error: sqlite3.Error, doing: str) -> LedgerFailed:
    """Returns the package's error for one that came up while nothing was at stake (reading, opening, or after a rollback)."""
    code = primary_code(error)
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    said = f"{doing}: {error} ({name})"
    if code == sqlite3.SQLITE_FULL:
        return LedgerFailed(said, hint="the disk is full; writing goes on when there is space")
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return LedgerFailed(said, hint="another program has the database open for writing")
    if code in NOTHING_WRITTEN:
        return LedgerFailed(said, hint="check the folder's owner, mode and mount")
    if code == sqlite3.SQLITE_IOERR:
        return LedgerFailed(said, hint="the disk reports errors; check it, then open the ledger again")
    # The statements are constants, so a missing table or a broken constraint is damage as well.
    return LedgerDamaged(said, hint=REPAIR_HINT)


def append_crc(first_seq: int, last_seq: int, idempotency_id: str) -> int:
    """Returns the CRC-32 stored beside an idempotency id."""
    return zlib.crc32(struct.pack(">qq", first_seq, last_seq) + idempotency_id.encode())


def term_crc(term: int) -> int:
    """Returns the CRC-32 stored beside the term."""
    return zlib.crc32(struct.pack(">q", term))


def open_reader(database: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> sqlite3.Connection:
    """Returns a connection that cannot write.

    Raises:
        sqlite3.Error: There is no such file, or it is no database.
    """
    return _connect(f"{database.absolute().as_uri()}?mode=ro", busy_timeout_ms)


def open_writer(database: Path, busy_timeout_ms: int = BUSY_TIMEOUT_MS) -> sqlite3.Connection:
    """Returns the read-write connection; makes the file if there is none.

    Raises:
        LedgerFailed: The file system cannot keep a write-ahead log.
        sqlite3.Error: SQLite refused otherwise.
    """
    connection = _connect(database.absolute().as_uri(), busy_timeout_ms)
    try:
        (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode != "wal":
            raise LedgerFailed(f"{database}: no write-ahead log possible here (journal mode {mode})", hint="use a local disk")
        for pragma in WRITER_PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def _connect(uri: str, busy_timeout_ms: int) -> sqlite3.Connection:
    connection = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=busy_timeout_ms / 1000, check_same_thread=False)
    try:
        for pragma in COMMON_PRAGMAS:
            connection.execute(pragma).fetchall()
    except BaseException:
        connection.close()
        raise
    return connection


def make_tables(writer: sqlite3.Connection, term: int = 0) -> None:
    """Makes an empty ledger in an empty database, all of it or nothing.

    Raises:
        sqlite3.Error: SQLite refused.
    """
    writer.execute(BEGIN)
    for statement in CREATE_TABLES:
        writer.execute(statement)
    writer.execute(INSERT_TERM, (term, term_crc(term)))
    writer.execute(INSERT_ABOUT, (MIN_READER_VERSION,))
    for statement in MARK_VERSION:
        writer.execute(statement)
    writer.execute(COMMIT)


def is_blank(connection: sqlite3.Connection) -> bool:
    """Returns whether the database holds nothing at all, as after a crash while it was made."""
    (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    return tables == 0 and _number(connection, "PRAGMA application_id") == 0


def check_version(connection: sqlite3.Connection, *, writing: bool) -> None:
    """Refuses a database that is not a ledger or that this release must not touch.

    Raises:
        LedgerDamaged: It has not our mark.
        LedgerFailed: It was written by a newer release.
    """
    if _number(connection, "PRAGMA application_id") != APPLICATION_ID:
        raise LedgerDamaged("the database is not a ledger (application id)", hint="check the path")
    version = _number(connection, "PRAGMA user_version")
    if version == SCHEMA_VERSION:
        return
    if version < SCHEMA_VERSION:
        raise LedgerFailed(
            f"the ledger has schema {version}, older than any this release reads", hint="export it with the release that made it"
        )
    needed = _number(connection, "SELECT min_reader_version FROM about WHERE id = 1")
    if writing or needed > SCHEMA_VERSION:
        raise LedgerFailed(
            f"the ledger has schema {version} and wants a reader of at least {needed}; this release knows {SCHEMA_VERSION}",
            hint="use the newer release" + ("" if needed > SCHEMA_VERSION else "; reading is possible"),
        )


def _number(connection: sqlite3.Connection, query: str) -> int:
    row = connection.execute(query).fetchone()
    if row is None or not isinstance(row[0], int):
        raise LedgerDamaged(f"the database does not answer {query}", hint=REPAIR_HINT)
    return row[0]
