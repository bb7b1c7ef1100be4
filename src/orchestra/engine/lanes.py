"""Work that is done one piece after another in each lane, and side by side between lanes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Generic, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """Lanes come with their first piece and go with their last."""

    def __init__(self, work: Callable[[T], Awaitable[None]]) -> None:
        self._work = work
        self._waiting: dict[str, deque[T]] = {}
        self._served: set[str] = set()
        self._news = asyncio.Event()
        self._idle = asyncio.Event()
        self._idle.set()

    def put(self, lane: str, piece: T) -> None:
        """Puts a piece behind those of its lane; never blocks."""
        self._waiting.setdefault(lane, deque()).append(piece)
        self._idle.clear()
        self._news.set()

    async def run(self) -> None:
        """Works until cancelled, or until a piece fails."""
        async with asyncio.TaskGroup() as group:
            while True:
                self._news.clear()
                for lane in self._waiting.keys() - self._served:
                    self._served.add(lane)
                    group.create_task(self._serve(lane))
                await self._news.wait()

    async def _serve(self, lane: str) -> None:
        pieces = self._waiting[lane]
        while pieces:
            await self._work(pieces[0])
            pieces.popleft()
        del self._waiting[lane]
        self._served.discard(lane)
        if not self._waiting:
            self._idle.set()

    async def wait_done(self) -> None:
        """Waits until nothing is left of what was put so far."""
        await self._idle.wait()
