"""PORT: the append-only log of events, the single source of truth.

An append names the sequence number it expects to follow and carries an idempotency id. It has three outcomes, never two:
it is durable (`Appended`), somebody else was first (`LedgerConflict`), or nobody knows (`LedgerUnknown`). After an unknown outcome the
caller reads back by idempotency id (`find`) and then decides; it never repeats blindly.

Events are bytes here: the ledger does not know what they mean. It numbers them from 1 without gaps and guards each with a CRC and a
hash chain of its own (`chain_hash`), because the stores underneath drop or alter bytes without an error.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import Final, Protocol

import msgspec

GENESIS: Final = b"\0" * 32
"""Hash that the first event is chained to."""


class StoredEvent(msgspec.Struct, frozen=True, gc=False):
    """One event as the ledger holds it."""

    seq: int
    at_ms: int
    """Ledger time in milliseconds since 1970; never decreases from one event to the next."""
    body: bytes
    """The event, encoded by `orchestra.codec`, version included."""
    hash: bytes
    """32 bytes, chained to the event before (`chain_hash`)."""


class NewEvent(msgspec.Struct, frozen=True, gc=False):
    """One event to append."""

    at_ms: int
    body: bytes


class Append(msgspec.Struct, frozen=True):
    """What `Ledger.append` is asked to do, all of it or nothing."""

    events: tuple[NewEvent, ...]
    expected_seq: int
    """Sequence number of the last event the caller has seen; 0 for an empty ledger."""
    idempotency_id: str
    """Names this append for ever. Asking again with the same id appends nothing and returns the first outcome."""
    term: int
    """Fencing number of the caller's leadership; below the highest the ledger has seen the append is refused."""


class Appended(msgspec.Struct, frozen=True):
    """The append is durable."""

    first_seq: int
    last_seq: int
    hash: bytes
    """Hash of the last event, for the high-water mark."""


class Snapshot(msgspec.Struct, frozen=True):
    """A folded state that stands for all events up to and including `seq`."""

    seq: int
    hash: bytes
    """Chain hash of event `seq`; a snapshot whose hash is not the ledger's is not used."""
    format: int
    """Version of the state's encoding; an unknown one is not used."""
    body: bytes


class Tail(msgspec.Struct, frozen=True):
    """Where the ledger ends: the last sequence number (0 if empty) and its chain hash."""

    seq: int
    hash: bytes


class Ledger(Protocol):
    """One open ledger. Methods block; the engine calls them from the one thread that owns the ledger."""

    def append(self, request: Append) -> Appended:
        """Makes the events durable, or raises.

        Raises:
            LedgerConflict: `expected_seq` is not the tail or `term` is stale. Nothing was written.
            LedgerUnknown: The outcome is not known; see `find`.
            LedgerFailed: Nothing was written (disk full, say) and the ledger is usable again later.
        """
        ...

    def find(self, idempotency_id: str) -> Appended | None:
        """Returns the outcome of the append with that id, or None if it is not in the ledger."""
        ...

    def tail(self) -> Tail:
        """Returns where the ledger ends."""
        ...

    def read(self, after_seq: int = 0, limit: int | None = None) -> Iterator[StoredEvent]:
        """Yields events with `seq > after_seq` in order, each checked against its CRC and the chain.

        Raises:
            LedgerDamaged: A stored event contradicts its checks; what came before it was yielded.
        """
        ...

    def claim_term(self) -> int:
        """Takes leadership: returns a term above every earlier one and durably refuses all lower ones from now on."""
        ...

    def save_snapshot(self, snapshot: Snapshot) -> None:
        """Keeps a snapshot, replacing older ones beyond the adapter's keep count."""
        ...

    def load_snapshot(self) -> Snapshot | None:
        """Returns the newest intact snapshot whose hash is the ledger's at its seq, or None."""
        ...

    def close(self) -> None:
        """Releases everything. Idempotent."""
        ...


def chain_hash(previous: bytes, seq: int, at_ms: int, body: bytes) -> bytes:
    """Returns the 32-byte SHA-256 that ties an event to all before it."""
    return hashlib.sha256(previous + struct.pack(">qq", seq, at_ms) + body).digest()


def event_crc(seq: int, body: bytes) -> int:
    """Returns the CRC-32 stored beside an event; catches a flipped bit without reading the chain from the start."""
    return zlib.crc32(body, seq & 0xFFFFFFFF)


def chained(events: Sequence[NewEvent], tail: Tail) -> list[StoredEvent]:
    """Returns the events numbered and chained after `tail`."""
    stored: list[StoredEvent] = []
    previous = tail.hash
    for seq, event in enumerate(events, tail.seq + 1):
        previous = chain_hash(previous, seq, event.at_ms, event.body)
        stored.append(StoredEvent(seq, event.at_ms, event.body, previous))
    return stored
