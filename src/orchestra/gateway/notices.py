"""What whoever watches the gateway should know, in order, with a number to ask from."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Any, Final

import msgspec

from orchestra.clock import Clock

KEPT: Final = 10_000


class Notice(msgspec.Struct, frozen=True):
    """One thing that happened."""

    seq: int
    """Grows over restarts too, since it starts from the wall clock."""
    ms: int
    kind: str
    fields: dict[str, Any]


class Notices:
    """The last of them; older ones are forgotten."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._kept: deque[Notice] = deque(maxlen=KEPT)
        self._seq = clock.wall_ms() * 1000
        self._more = asyncio.Event()

    def tell(self, kind: str, **fields: Any) -> None:
        """Adds one. Nothing secret belongs into it."""
        self._seq += 1
        self._kept.append(Notice(self._seq, self._clock.wall_ms(), kind, fields))
        self._more.set()
        self._more = asyncio.Event()

    def after(self, cursor: int, limit: int) -> list[Notice]:
        """Returns what came after a number, oldest first."""
        return [notice for notice in self._kept if notice.seq > cursor][:limit]

    @property
    def last(self) -> int:
        """The number of the newest."""
        return self._seq

    async def wait(self, cursor: int, timeout_ms: int) -> None:
        """Returns when there is something after that number, or the time is over."""
        if self._seq > cursor and self._kept and self._kept[-1].seq > cursor:
            return
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await self._more.wait()
        except TimeoutError:
            return
