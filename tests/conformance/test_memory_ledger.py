"""The in-memory ledger is a ledger."""

from __future__ import annotations

from orchestra.ledger import Ledger
from orchestra.ledgers.memory import MemoryLedger
from orchestra.testing.conformance.ledger import LedgerContract


class TestMemoryLedger(LedgerContract):
    def make_ledger(self) -> Ledger:
        return MemoryLedger()

    def reopen(self, ledger: Ledger) -> Ledger:
        assert isinstance(ledger, MemoryLedger)
        return ledger.reopened()
