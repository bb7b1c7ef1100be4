"""A gateway, its clients and its upstream in virtual time: real sockets, real bytes, and a minute that is over when nobody has anything left to do.

Time stands still while anything happens. Only when the loop has nothing to do does it jump on towards the next timer, in small steps with a look at the sockets
before each, so that bytes that are still on their way between two sockets of this process arrive before a timeout does.
"""

from __future__ import annotations

import asyncio
import random
import selectors
from collections.abc import Coroutine
from typing import Any, Final, TypeVar

STEP_S: Final = 0.2
"""Virtual time that passes between two looks."""
LOOK_S: Final = 0.0005
"""Real time that bytes on the way get for arriving, at each look."""
BEGIN_MS: Final = 1_800_000_000_000

T = TypeVar("T")


class _Selector(selectors.DefaultSelector):
    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            return super().select(None)
        ready = super().select(0 if timeout <= 0 else LOOK_S)
        if not ready and timeout > 0:
            self.passed_s += min(timeout, STEP_S)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop whose time is `time()` and nobody else's."""

    def __init__(self) -> None:
        self._virtual = _Selector()
        super().__init__(self._virtual)

    def time(self) -> float:
        return self._virtual.passed_s


class VirtualClock:
    """Both clocks, by the loop that runs."""

    def steady_ms(self) -> int:
        return round(asyncio.get_running_loop().time() * 1000)

    def wall_ms(self) -> int:
        return BEGIN_MS + self.steady_ms()

    async def sleep_ms(self, duration_ms: int) -> None:
        await asyncio.sleep(duration_ms / 1000)


def in_virtual_time(scene: Coroutine[Any, Any, T], seed: int = 1) -> T:
    """Runs it; chance is the same each time."""
    random.seed(seed)
    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(scene)
