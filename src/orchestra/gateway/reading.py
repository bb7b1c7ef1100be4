"""The books read without a gateway: what stood in them when it last wrote. Takes no lock and changes nothing, so that it may run beside one.

The administration answers from the same functions, so that an answer has one shape whoever gives it.
"""

from __future__ import annotations

import calendar
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestra.errors import BadInput, PortFailed
from orchestra.gateway.journal import decode_lines
from orchestra.metering.books import ALL, BUDGETED, SCOPES, Books, Totals, day_of

JOURNAL: Final = "journal.jsonl"


def read_books(folder: Path, day_budget_usd_micros: int = -1) -> Books | None:
    """Returns the books of a folder as they stand, or None if there are none. A line that is torn or being written is passed over.

    Args:
        folder: Where the gateway keeps them.
        day_budget_usd_micros: What its configuration allows a day; it is not in the books.

    Raises:
        PortFailed: They are there and cannot be read.
    """
    try:
        data = (folder / JOURNAL).read_bytes()
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as exc:
        raise PortFailed(f"the gateway's books in {folder} cannot be read: {exc.strerror}", hint="read them as the user it ran as") from exc
    books = Books(day_budget_usd_micros)
    for record in decode_lines(data):
        if record is not None:
            books.apply(record)
    return books


def day_name(number: str) -> str:
    """Returns days since 1970 as people write a day."""
    return time.strftime("%Y-%m-%d", time.gmtime(int(number) * 86_400))


def day_number(name: str, field: str) -> str:
    """Returns the day that people wrote as days since 1970."""
    try:
        return str(calendar.timegm(time.strptime(name, "%Y-%m-%d")) // 86_400)
    except ValueError as exc:
        raise BadInput(f"{name[:20]!r} is no day", field=field, hint="write 2026-01-31") from exc


def usage_rows(books: Books, by: str, name: str = "") -> dict[str, dict[str, int]]:
    """Returns what each name of a scope used, or one of them: the counts of `Totals`, and `reserved_usd_micros`.

    Raises:
        BadInput: Nothing is counted by that.
    """
    if by != ALL and by not in SCOPES:
        raise BadInput(f"nothing is counted by {by[:40]!r}", field="by", hint="use all, attempt, task, agent, plan, day or model")
    wanted = day_number(name, "name") if by == "day" and name else name
    names = books.state.totals.get(by, {})
    reserved = books.state.reserved.get(by, {})
    chosen = [wanted] if by == ALL or wanted else list(dict.fromkeys([*names, *reserved]))
    show = day_name if by == "day" else str
    return {show(each): {**_plain(names.get(each, Totals())), "reserved_usd_micros": reserved.get(each, 0)} for each in chosen}


def budget_rows(books: Books, wall_ms: int, of: Iterable[tuple[str, str]] | None = None, *, spent: bool = False) -> list[dict[str, Any]]:
    """Returns the budgets there are, today's included.

    Args:
        books: Where they stand.
        wall_ms: Now.
        of: Only these (scope, name), of days only today's; the books are not gone through for it.
        spent: Only those of which all is used, of days only today's.
    """
    today = str(day_of(wall_ms))
    if of is not None:
        asked = [(scope, day_number(name, "of") if scope == "day" else name) for scope, name in of]
        named = [each for each in asked if books.budget_of(*each) >= 0]
    else:
        named = [(scope, name) for scope in BUDGETED for name, amount in books.state.budgets.get(scope, {}).items() if amount >= 0]
        if books.budget_of("day", today) >= 0 and ("day", today) not in named:
            named.insert(0, ("day", today))
    if of is not None or spent:
        named = [(scope, name) for scope, name in named if scope != "day" or name == today]
    if spent:
        named = [each for each in named if books.settled(*each) >= books.budget_of(*each)]
    return [
        {
            "scope": scope,
            "name": day_name(name) if scope == "day" else name,
            "budget_usd_micros": books.budget_of(scope, name),
            "settled_usd_micros": books.settled(scope, name),
            "reserved_usd_micros": books.reserved(scope, name),
        }
        for scope, name in named
    ]


def _plain(totals: Totals) -> dict[str, int]:
    found: dict[str, int] = msgspec.to_builtins(totals)
    return found
