"""Writing a ledger out as JSON lines, for people, scripts and other ledgers."""

from __future__ import annotations

import base64
from pathlib import Path

import msgspec

from orchestra.errors import LedgerFailed
from orchestra.ledger import StoredEvent
from orchestra.ledgers.folder import fsync_file, fsync_folder
from orchestra.ledgers.sqlite import DEFAULTS, SqliteLedger, SqliteOptions


class _Line(msgspec.Struct, frozen=True):
    seq: int
    at_ms: int
    hash: str
    event: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    event_base64: str | msgspec.UnsetType = msgspec.UNSET


def export(folder: Path, out: Path, options: SqliteOptions = DEFAULTS) -> int:
    """Writes one line an event: `{"seq", "at_ms", "hash", "event"}`; a body that is not JSON becomes `event_base64`.

    The file appears whole or not at all. Works beside a running coordinator.

    Returns:
        The number of events written.

    Raises:
        LedgerDamaged: The ledger is not intact; repair it first.
        LedgerFailed: There is no ledger, or `out` cannot be written.
    """
    partial = out.with_name(out.name + ".partial")
    ledger = SqliteLedger.open_readonly(folder, options)
    count = 0
    try:
        with partial.open("wb") as file:
            for event in ledger.read():
                file.write(export_line(event))
                count += 1
        fsync_file(partial)
        partial.replace(out)
        fsync_folder(out.absolute().parent)
    except OSError as exc:
        raise LedgerFailed(f"writing {out}: {exc}", hint="check the path and the space") from exc
    finally:
        ledger.close()
        partial.unlink(missing_ok=True)
    return count


def export_line(event: StoredEvent) -> bytes:
    """Returns one line, newline included."""
    try:
        body = msgspec.json.format(event.body, indent=-1)
        msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        line = _Line(event.seq, event.at_ms, event.hash.hex(), event_base64=base64.b64encode(event.body).decode())
    else:
        line = _Line(event.seq, event.at_ms, event.hash.hex(), msgspec.Raw(body))
    return msgspec.json.encode(line) + b"\n"
