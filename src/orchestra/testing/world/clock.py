"""The clock of one actor: off by some, running a little too fast or too slow, and its wall time may jump. The steady reading never does."""

from __future__ import annotations

from typing import Final

from orchestra.errors import InvariantBroken
from orchestra.testing.world.timeline import Timeline

EPOCH_MS: Final = 1_700_000_000_000


class SimClock:
    """Implements `orchestra.clock.Clock` but for sleeping, which the world does by events."""

    def __init__(self, line: Timeline, offset_ms: int = 0, rate_ppm: int = 0) -> None:
        self._line = line
        self._offset_ms = offset_ms
        self._rate_ppm = rate_ppm

    def wall_ms(self) -> int:
        """See `Clock.wall_ms`."""
        return EPOCH_MS + self._offset_ms + self.steady_ms()

    def steady_ms(self) -> int:
        """See `Clock.steady_ms`."""
        return self._line.now_ms + self._line.now_ms * self._rate_ppm // 1_000_000

    def jump(self, ms: int) -> None:
        """Somebody sets the wall clock."""
        self._offset_ms += ms

    async def sleep_ms(self, duration_ms: int) -> None:
        """Nothing in the world sleeps like this."""
        raise InvariantBroken("the simulated world does not wait by coroutine")
