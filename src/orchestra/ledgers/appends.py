"""What every adapter asks of an append before it looks at its store. Pure."""

from __future__ import annotations

from typing import Final

from orchestra.errors import BadInput
from orchestra.ledger import Append

EVENT_BYTES_MAX: Final = 16 << 20
"""Bytes of one event. A prompt or a diff is far below; above it the bytes belong in a file that the event names."""
APPEND_EVENTS_MAX: Final = 100_000
"""Events of one append: a quarter of a second of writing, the longest that other callers should wait."""
ID_CHARS_MAX: Final = 200
INT64_MAX: Final = (1 << 63) - 1


def check_append(request: Append) -> None:
    """Refuses an append that no ledger can hold, whatever its tail.

    Raises:
        BadInput: `field` names the part that is wrong.
    """
    if not 1 <= len(request.events) <= APPEND_EVENTS_MAX:
        raise BadInput(f"an append carries 1 to {APPEND_EVENTS_MAX} events, not {len(request.events)}", field="events")
    _check_id(request.idempotency_id)
    if not 0 <= request.expected_seq <= INT64_MAX - APPEND_EVENTS_MAX:
        raise BadInput("a sequence number is between 0 and 2^63", field="expected_seq")
    if not 0 <= request.term <= INT64_MAX - 1:
        raise BadInput("a term is between 0 and 2^63", field="term")
    earlier = 0
    for index, event in enumerate(request.events):
        if event.at_ms < earlier or event.at_ms > INT64_MAX:
            raise BadInput(f"time {event.at_ms} comes before {earlier}", field=f"events[{index}].at_ms")
        if len(event.body) > EVENT_BYTES_MAX:
            raise BadInput(f"an event has at most {EVENT_BYTES_MAX} bytes, not {len(event.body)}", field=f"events[{index}].body")
        earlier = event.at_ms


def check_follows(request: Append, tail_at_ms: int) -> None:
    """Refuses events that are older than the last one in the ledger.

    Raises:
        BadInput: The caller has to clamp its clock to the ledger's time first.
    """
    if request.events[0].at_ms < tail_at_ms:
        raise BadInput(f"time {request.events[0].at_ms} comes before {tail_at_ms}, the ledger's", field="events[0].at_ms")


def _check_id(idempotency_id: str) -> None:
    if not 1 <= len(idempotency_id) <= ID_CHARS_MAX:
        raise BadInput(f"an idempotency id has 1 to {ID_CHARS_MAX} characters", field="idempotency_id")
    if not idempotency_id.isprintable():
        raise BadInput("an idempotency id has printable characters only", field="idempotency_id")
