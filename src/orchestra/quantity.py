"""Units as integers: milliseconds, bytes, tokens and micro-dollars. Floats exist only at the edges, and are turned here."""

from __future__ import annotations

import math
from typing import Final

from orchestra.errors import BadInput

MS_PER_SECOND: Final = 1000
USD_MICROS: Final = 1_000_000


def ms_from_seconds(seconds: float, *, field: str) -> int:
    """Returns whole milliseconds, rounded.

    Raises:
        BadInput: Negative, not finite, or more than a hundred years.
    """
    if not math.isfinite(seconds) or seconds < 0 or seconds > 3.2e9:
        raise BadInput(f"{seconds} is not a usable number of seconds", field=field, hint="use a finite number from 0 up")
    return round(seconds * MS_PER_SECOND)


def usd_micros(dollars: float, *, field: str) -> int:
    """Returns micro-dollars, rounded up so that a limit is never looser than what was written.

    Raises:
        BadInput: Negative, not finite, or above ten billion dollars.
    """
    if not math.isfinite(dollars) or dollars < 0 or dollars > 1e10:
        raise BadInput(f"{dollars} is not a usable amount in dollars", field=field, hint="use a finite number from 0 up")
    return math.ceil(round(dollars * USD_MICROS, 3))


def show_ms(ms: int) -> str:
    """Returns a duration for people: `850ms`, `4.2s`, `3m 05s`, `2h 04m`."""
    if ms < 1000:
        return f"{ms}ms"
    if ms < 60_000:
        return f"{ms / 1000:.1f}s"
    minutes, seconds = divmod(round(ms / 1000), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h {minutes:02}m" if hours else f"{minutes}m {seconds:02}s"


def show_bytes(count: int) -> str:
    """Returns an amount of memory or disk for people: `512 MiB`, `1.5 GiB`."""
    if count < 1 << 30:
        return f"{count / (1 << 20):.0f} MiB"
    return f"{count / (1 << 30):.1f} GiB"


def show_usd(micros: int) -> str:
    """Returns dollars for people, with enough digits to see a cent's fraction of small sums."""
    return f"${micros / USD_MICROS:.4f}" if micros < USD_MICROS // 10 else f"${micros / USD_MICROS:.2f}"
