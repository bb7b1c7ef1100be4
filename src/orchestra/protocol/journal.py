"""Journal frames to records. Sans-I/O; the format is in `docs/node.md`.

A line whose CRC does not fit is passed over and counted: a disk that filled up tears a record, and the writer writes it again later.
"""

from __future__ import annotations

import zlib
from typing import Any, Final

import msgspec

RECORD_BYTES_MAX: Final = 65_536


class RawRecord(msgspec.Struct, frozen=True):
    """One intact journal line: the common fields, and the rest as plain values."""

    kind: str
    agent: int
    worker: tuple[int, int]
    """pid and start time of the writer."""
    ms: int
    body: dict[str, Any]


def parse_lines(data: bytes) -> tuple[list[RawRecord], int]:
    """Returns the records of complete journal lines, and how many lines were unusable."""
    records: list[RawRecord] = []
    spoilt = 0
    for line in data.split(b"\n"):
        if not line:
            continue
        record = _parse(line)
        if record is None:
            spoilt += 1
        else:
            records.append(record)
    return records, spoilt


def _parse(line: bytes) -> RawRecord | None:
    if len(line) > RECORD_BYTES_MAX or line[8:9] != b" ":
        return None
    try:
        if int(line[:8], 16) != zlib.crc32(line[9:]):
            return None
        body = msgspec.json.decode(line[9:], type=dict[str, Any])
        pid, _, start = str(body.pop("w")).partition(":")
        return RawRecord(str(body.pop("k")), int(body.pop("agent")), (int(pid), int(start)), int(body.pop("ms")), body)
    except (ValueError, KeyError, TypeError, msgspec.DecodeError):
        return None
