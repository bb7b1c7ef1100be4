"""PORT: time. Nothing below the engine reads a clock; everything above gets one handed in."""

from __future__ import annotations

from typing import Protocol


class Clock(Protocol):
    """Two readings of time, both in whole milliseconds."""

    def wall_ms(self) -> int:
        """Milliseconds since 1970 in UTC. May jump; only for stamps that people read."""
        ...

    def steady_ms(self) -> int:
        """Milliseconds since an arbitrary start; never jumps and goes on during suspend. For every interval and deadline."""
        ...

    async def sleep_ms(self, duration_ms: int) -> None:
        """Suspends the caller for that long."""
        ...
