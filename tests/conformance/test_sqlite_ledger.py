"""The SQLite ledger is a ledger."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestra.ledger import Ledger
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import LedgerContract, SteadyClock


class TestSqliteLedger(LedgerContract):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path / "ledger"
        self.options = SqliteOptions(mark_copy=tmp_path / "state" / "tail.mark", checkpoint_pages=50)

    def make_ledger(self) -> Ledger:
        return SqliteLedger.open(self.folder, self.options, SteadyClock())

    def reopen(self, ledger: Ledger) -> Ledger:
        ledger.close()
        return self.make_ledger()
