"""The state as bytes, for snapshots and for comparing two folds."""

from __future__ import annotations

from typing import Final

import msgspec

from orchestra.core.state import STATE_FORMAT, State

_encoder: Final = msgspec.msgpack.Encoder()
_decoder: Final = msgspec.msgpack.Decoder(State)


def encode_state(state: State) -> bytes:
    """Returns the state in format `STATE_FORMAT`. Equal states give equal bytes."""
    return _encoder.encode(state)


def decode_state(body: bytes, format_version: int) -> State | None:
    """Returns the state, or None if the body is of another format or unreadable: then the ledger is folded from the start."""
    if format_version != STATE_FORMAT:
        return None
    try:
        return _decoder.decode(body)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return None
