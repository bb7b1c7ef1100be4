"""A ledger that lives in the process: the same contract, for tests and dry runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Final

from orchestra.errors import LedgerConflict, LedgerDamaged, LedgerFailed
from orchestra.ledger import GENESIS, Append, Appended, Snapshot, StoredEvent, Tail, chain_hash, chained
from orchestra.ledgers.appends import check_append, check_follows

SNAPSHOTS_KEPT: Final = 3
"""As many as the SQLite adapter keeps: one may be damaged and one half a release too new."""


class _Kept:
    """What outlives a handle."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.events: list[StoredEvent] = []
        self.outcomes: dict[str, Appended] = {}
        self.snapshots: dict[int, Snapshot] = {}
        self.term = 0

    def tail(self) -> Tail:
        return Tail(self.events[-1].seq, self.events[-1].hash) if self.events else Tail(0, GENESIS)


class MemoryLedger:
    """One handle on events kept in memory. Safe to call from several threads."""

    def __init__(self) -> None:
        self._kept = _Kept()
        self._closed = False

    def reopened(self) -> MemoryLedger:
        """Closes this handle and returns a new one on the same events, as a restart would."""
        self.close()
        again = MemoryLedger()
        again._kept = self._kept
        return again

    def append(self, request: Append) -> Appended:
        """See `Ledger.append`."""
        kept = self._open()
        check_append(request)
        with kept.lock:
            earlier = kept.outcomes.get(request.idempotency_id)
            if earlier is not None:
                return earlier
            tail = kept.tail()
            if request.term < kept.term:
                raise LedgerConflict(f"term {request.term} is stale: the ledger has seen {kept.term}")
            if request.expected_seq != tail.seq:
                raise LedgerConflict(f"expected the ledger to end at {request.expected_seq}, it ends at {tail.seq}")
            check_follows(request, kept.events[-1].at_ms if kept.events else 0)
            events = chained(request.events, tail)
            outcome = Appended(tail.seq + 1, events[-1].seq, events[-1].hash)
            kept.events.extend(events)
            kept.outcomes[request.idempotency_id] = outcome
            kept.term = request.term
            return outcome

    def find(self, idempotency_id: str) -> Appended | None:
        """See `Ledger.find`."""
        return self._open().outcomes.get(idempotency_id)

    def tail(self) -> Tail:
        """See `Ledger.tail`."""
        kept = self._open()
        with kept.lock:
            return kept.tail()

    def read(self, after_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """See `Ledger.read`."""
        kept = self._open()
        with kept.lock:
            start = max(after_seq, 0)
            events = kept.events[start : None if limit is None else start + max(limit, 0)]
            previous = kept.events[start - 1].hash if 0 < start <= len(kept.events) else GENESIS
        for seq, event in enumerate(events, start + 1):
            if event.seq != seq or event.hash != chain_hash(previous, seq, event.at_ms, event.body):
                raise LedgerDamaged(f"event {seq} contradicts its hash")
            previous = event.hash
            yield event

    def claim_term(self) -> int:
        """See `Ledger.claim_term`."""
        kept = self._open()
        with kept.lock:
            kept.term += 1
            return kept.term

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See `Ledger.save_snapshot`."""
        kept = self._open()
        with kept.lock:
            kept.snapshots[snapshot.seq] = snapshot
            for seq in sorted(kept.snapshots)[:-SNAPSHOTS_KEPT]:
                del kept.snapshots[seq]

    def load_snapshot(self) -> Snapshot | None:
        """See `Ledger.load_snapshot`."""
        kept = self._open()
        with kept.lock:
            for seq in sorted(kept.snapshots, reverse=True):
                if seq <= len(kept.events) and kept.snapshots[seq].hash == (kept.events[seq - 1].hash if seq else GENESIS):
                    return kept.snapshots[seq]
        return None

    def close(self) -> None:
        """See `Ledger.close`."""
        self._closed = True

    def _open(self) -> _Kept:
        if self._closed:
            raise LedgerFailed("the ledger is closed")
        return self._kept
