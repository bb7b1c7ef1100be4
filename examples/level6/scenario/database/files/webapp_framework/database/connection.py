"""One connection, and transactions on it."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


class Database:
    """A SQLite database. Threads take turns."""

    def __init__(self, path: str = ":memory:") -> None:
        """Opens the file, or a database in memory."""
        self._connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        self._turn = threading.RLock()
        self._depth = 0

    def run(self, sql: str, values: Sequence[Any] = ()) -> list[dict[str, Any]]:
        """Runs one statement with its values bound and returns its rows."""
        with self._turn:
            return [dict(row) for row in self._connection.execute(sql, tuple(values)).fetchall()]

    @contextmanager
    def transaction(self) -> Iterator[Database]:
        """Does all of what is done inside, or nothing of it; inside another one it is part of that."""
        with self._turn:
            outermost = self._depth == 0
            self._depth += 1
            if outermost:
                self._connection.execute("BEGIN")
            try:
                yield self
                ending = "COMMIT"
            except BaseException:
                ending = "ROLLBACK"
                raise
            finally:
                self._depth -= 1
                if outermost:
                    self._connection.execute(ending)

    def close(self) -> None:
        """Lets go of the database."""
        self._connection.close()
