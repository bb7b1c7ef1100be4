"""The machine's own clocks, and the ledger's time made from them."""

from __future__ import annotations

import asyncio
import time
from typing import Final

from orchestra.clock import Clock

_STEADY: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
"""Goes on during suspend where the kernel has such a clock, so that deadlines mean the same after a night's sleep."""


class SystemClock:
    """The clocks of this machine."""

    def wall_ms(self) -> int:
        return time.time_ns() // 1_000_000

    def steady_ms(self) -> int:
        return time.clock_gettime_ns(_STEADY) // 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        await asyncio.sleep(duration_ms / 1000)


class LedgerTime:
    """Time for events: wall time at the start, carried on by the steady clock, never before what the ledger already says.

    A wall clock that jumps while the coordinator runs therefore moves no deadline; between two runs the ledger's own last time is the floor.
    """

    def __init__(self, clock: Clock, floor_ms: int) -> None:
        self._clock = clock
        self._base_ms = max(clock.wall_ms(), floor_ms) - clock.steady_ms()

    def now_ms(self) -> int:
        """Returns the ledger's time, in milliseconds since 1970."""
        return self._base_ms + self._clock.steady_ms()
