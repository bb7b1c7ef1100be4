"""How an append is brought to an end, without the waiting: three outcomes, and what follows from each.

A generator that says what to do next (`TryAppend`, `LookUp`, `Pause`) and is handed the answer; a step that failed with `LedgerFailed` is thrown in. The loop
runs it against a real ledger, the simulated world against a pretended one.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, Final

import msgspec

from orchestra.engine.failpoints import hit
from orchestra.errors import LedgerConflict, LedgerFailed, LedgerUnknown
from orchestra.ledger import Append, Appended

LEDGER_RETRY_MS: Final = 500
"""Pause before a full disk is tried again."""


class TryAppend(msgspec.Struct, frozen=True):
    """Append this. The answer is what `Ledger.append` returns."""

    append: Append


class LookUp(msgspec.Struct, frozen=True):
    """Find the append with this id. The answer is what `Ledger.find` returns."""

    idempotency_id: str


class Pause(msgspec.Struct, frozen=True):
    """Wait, because of that trouble. The answer is None."""

    duration_ms: int
    trouble: str


AppendStep = TryAppend | LookUp | Pause


def append_steps(append: Append) -> Generator[AppendStep, Any, Appended]:
    """Brings one append to its end and returns its outcome.

    Raises:
        LedgerConflict: Somebody else leads; this coordinator is over.
        LedgerUnknown: It is not known, even after looking it up, whether the append will ever be there.
    """
    hit("before-append")
    while True:
        try:
            appended: Appended = yield TryAppend(append)
        except LedgerConflict:
            raise
        except LedgerUnknown as unknown:
            found: Appended | None = yield LookUp(append.idempotency_id)
            if found is None:
                raise unknown from None
            appended = found
        except LedgerFailed as failed:
            yield Pause(LEDGER_RETRY_MS, str(failed))
            continue
        hit("after-append")
        return appended
