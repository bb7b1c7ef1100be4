"""A ledger folder with some history, and ways to look at it and to spoil it; shared by the tests of its faults and of its care."""

from __future__ import annotations

import random
import sqlite3
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Final

from orchestra.ledger import Appended, StoredEvent
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import SteadyClock, make_append

CLOCK: Final = SteadyClock()
PLAIN: Final = SqliteOptions()


class Live:
    """A ledger with some history, still open, so that its log has not been copied into the database."""

    def __init__(self, folder: Path, options: SqliteOptions = PLAIN, appends: int = 60) -> None:
        self.folder = folder
        self.options = options
        self.ledger = SqliteLedger.open(folder, options, CLOCK)
        self.term = self.ledger.claim_term()
        self.outcomes: dict[str, Appended] = {}
        self.extend(appends)

    def extend(self, appends: int) -> None:
        for number in range(len(self.outcomes), len(self.outcomes) + appends):
            seq = self.ledger.tail().seq
            bodies = [b'{"n":%d,"part":%d,"text":"%s"}' % (number, part, b"abc" * (number % 40)) for part in range(1 + number % 5)]
            self.outcomes[f"append-{number}"] = self.ledger.append(make_append(f"append-{number}", seq, *bodies, term=self.term))

    @property
    def events(self) -> list[StoredEvent]:
        return list(self.ledger.read())

    def copy(self, target: Path) -> Path:
        """Copies the folder as a crash would leave it; by another process, because SQLite's locks hang on this one's descriptors."""
        subprocess.run(["cp", "-r", str(self.folder), str(target)], check=True)
        (target / (fmt.DATABASE_NAME + "-shm")).unlink(missing_ok=True)
        return target


def rows_sqlite_sees(folder: Path) -> int | None:
    """Returns how many events SQLite by itself believes in, None if it no longer finds the table."""
    with closing(sqlite3.connect(folder / fmt.DATABASE_NAME)) as connection:
        if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
            return None
        count: int = connection.execute("SELECT count(*) FROM event").fetchone()[0]
        return count


def execute(folder: Path, *statements: str) -> None:
    with closing(sqlite3.connect(folder / fmt.DATABASE_NAME, isolation_level=None)) as connection:
        for statement in statements:
            connection.execute(statement)


def events_in(folder: Path, options: SqliteOptions = PLAIN) -> list[StoredEvent]:
    with closing(SqliteLedger.open(folder, options, CLOCK)) as ledger:
        return list(ledger.read())


def flip_bit(path: Path, chance: random.Random) -> None:
    data = bytearray(path.read_bytes())
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    path.write_bytes(data)
