"""A ledger that misbehaves as real ones do: slow, full, silent about the outcome, out of date, damaged.

The contract below it is `MemoryLedger`'s. What this class keeps besides is what an honest ledger may never break: the chain of what was acknowledged.
"""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec

from orchestra.errors import LedgerFailed, LedgerUnknown
from orchestra.ledger import Append, Appended, Snapshot, StoredEvent, Tail
from orchestra.ledgers.memory import MemoryLedger
from orchestra.testing.world.options import Weather

FULL_MS = 20_000
"""Longest time a disk stays full."""
FAST_MS = 3
SLOW_MS = 2_000


class SimLedger:
    """One ledger on the control machine, shared by all coordinators of the run."""

    def __init__(self, dice: Random, weather: Weather, *, durable: bool) -> None:
        self.store = MemoryLedger()
        self.acked: list[bytes] = []
        """Chain hash of every acknowledged event, by sequence number minus one."""
        self.refused_terms = 0
        self.flips_found = 0
        self._dice = dice
        self._weather = weather
        self._durable = durable
        self._full_until_ms = 0
        self._stale_events = 0
        self._flipped: tuple[int, StoredEvent] | None = None
        self._late: Append | None = None

    # --- what a coordinator sees -------------------------------------------------------------------------------------

    def delay_ms(self) -> int:
        """Returns how long the next append takes."""
        slow = self._dice.random() < self._weather.rate("ledger-slow")
        return self._dice.randint(FAST_MS, SLOW_MS) if slow else self._dice.randint(1, FAST_MS)

    def append(self, request: Append, now_ms: int) -> Appended:
        """See `Ledger.append`."""
        if now_ms < self._full_until_ms:
            raise LedgerFailed("database or disk is full")
        if self._dice.random() < self._weather.rate("ledger-unknown"):
            self._append_unknown(request)
        if request.term < self.store_term():
            self.refused_terms += 1
        return self._append(request)

    def _append_unknown(self, request: Append) -> None:
        fate = self._dice.randrange(3)
        if fate == 0:
            self._append(request)
        elif fate == 1:
            self._late = request  # it is still on its way, and may arrive or not
        raise LedgerUnknown("no answer came")

    def _append(self, request: Append) -> Appended:
        appended = self.store.append(request)
        events = self.store._kept.events
        self.acked += [event.hash for event in events[len(self.acked) :]]
        return appended

    def arrive_late(self) -> None:
        """What was on its way arrives, unless others were faster."""
        late, self._late = self._late, None
        if late is not None and self._dice.random() < 0.5:
            try:
                self._append(late)
            except LedgerFailed:
                return

    def find(self, idempotency_id: str) -> Appended | None:
        """See `Ledger.find`; may be out of date."""
        if self._dice.random() < self._weather.rate("ledger-stale"):
            return None
        return self.store.find(idempotency_id)

    def read(self, after_seq: int = 0) -> Iterator[StoredEvent]:
        """See `Ledger.read`; the newest events may be missing."""
        events = list(self.store.read(after_seq))
        if events and self._dice.random() < self._weather.rate("ledger-stale"):
            events = events[: -self._dice.randint(1, min(5, len(events)))] or events
        return iter(events)

    def claim_term(self) -> int:
        """See `Ledger.claim_term`."""
        return self.store.claim_term()

    def store_term(self) -> int:
        """Returns the highest term claimed."""
        return self.store._kept.term

    def tail(self) -> Tail:
        """Returns where the ledger ends, in truth."""
        return self.store.tail()

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """See `Ledger.save_snapshot`."""
        self.store.save_snapshot(snapshot)

    def load_snapshot(self) -> Snapshot | None:
        """See `Ledger.load_snapshot`."""
        return self.store.load_snapshot()

    # --- what happens to it ------------------------------------------------------------------------------------------

    def fill(self, now_ms: int) -> None:
        """The disk is full for a while."""
        self._full_until_ms = now_ms + self._dice.randint(100, FULL_MS)

    def flip_bit(self) -> None:
        """Damages one stored event; whoever reads it must be refused."""
        events = self.store._kept.events
        if self._flipped is None and events:
            index = self._dice.randrange(len(events))
            event = events[index]
            bit = self._dice.randrange(len(event.body) * 8)
            body = bytearray(event.body)
            body[bit // 8] ^= 1 << bit % 8
            self._flipped = index, event
            events[index] = msgspec.structs.replace(event, body=bytes(body))

    @property
    def damaged(self) -> bool:
        """Whether a stored event has a flipped bit."""
        return self._flipped is not None

    def repair(self) -> None:
        """Somebody puts the backup in its place."""
        if self._flipped is not None:
            self.flips_found += 1
            index, event = self._flipped
            self.store._kept.events[index] = event
            self._flipped = None

    def lose_unsynced(self) -> None:
        """The machine loses power. A durable ledger has lost nothing."""
        events = self.store._kept.events
        if not self._durable and events:
            del events[-self._dice.randint(1, min(20, len(events))) :]
