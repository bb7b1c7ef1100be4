"""The one codec of events: JSON, tagged with the event's class name, versioned as a whole.

Body: `{"v":1,"type":"TaskQueued",...}`. Reading an old body passes it through every upcaster from its version on; writing always uses the newest.
Adding an event class or an optional field needs no new version. Renaming, removing or reinterpreting one does: raise `VERSION`, add an
upcaster, and keep the golden file of the old version. A body from a newer version is refused: an old reader must not lead.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from orchestra.core.events import AnyEvent, Event
from orchestra.errors import LedgerDamaged

VERSION: Final = 1
_PREFIX: Final = b'{"v":%d,' % VERSION

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(AnyEvent)

Upcaster = Callable[[dict[str, Any]], dict[str, Any]]
UPCASTERS: Final[dict[int, Upcaster]] = {}
"""From version n to n + 1, on the plain values. Empty as long as there is one version."""


def encode(event: Event) -> bytes:
    """Returns the event as the ledger keeps it."""
    return _PREFIX + _encoder.encode(event)[1:]


def decode(body: bytes) -> Event:
    """Returns the event that `body` holds.

    Raises:
        LedgerDamaged: It is not an event of this or an earlier version.
    """
    try:
        if body.startswith(_PREFIX):
            return _decoder.decode(body)
        return _decode_old(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise LedgerDamaged(
            f"an event cannot be read: {exc}: {body[:200]!r}", hint="a newer version of orchestra may have written it"
        ) from exc


def _decode_old(body: bytes) -> Event:
    values = msgspec.json.decode(body, type=dict[str, Any])
    version = values.get("v")
    if not isinstance(version, int) or not 0 < version <= VERSION:
        raise LedgerDamaged(f"an event has version {version!r}; this program reads 1 to {VERSION}", hint="use a newer orchestra")
    for step in range(version, VERSION):
        values = UPCASTERS[step](values)
    event: Event = msgspec.convert(values, AnyEvent)
    return event
