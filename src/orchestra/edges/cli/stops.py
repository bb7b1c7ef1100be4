"""Ctrl-C and SIGTERM during a run: the first asks to end, the second insists, the third is left to Python."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable
from types import TracebackType
from typing import Any, Final, Self, TypeVar

T = TypeVar("T")

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
ENOUGH: Final = 2


class Stops:
    """Counts the requests to stop while it is entered."""

    def __init__(self) -> None:
        self.first = asyncio.Event()
        self.second = asyncio.Event()

    async def __aenter__(self) -> Self:
        for number in SIGNALS:
            asyncio.get_running_loop().add_signal_handler(number, self.ask)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._let_go()

    def ask(self) -> None:
        """Notes one more request."""
        if not self.first.is_set():
            self.first.set()
            return
        self.second.set()
        self._let_go()

    def _let_go(self) -> None:
        for number in SIGNALS:
            asyncio.get_running_loop().remove_signal_handler(number)


async def unless(event: asyncio.Event, work: Awaitable[T]) -> T | None:
    """Returns what `work` comes to, or cancels it and returns None once `event` is set. Done work counts even then."""
    task: asyncio.Future[T] = asyncio.ensure_future(work)
    other: asyncio.Task[Any] = asyncio.create_task(event.wait())
    try:
        await asyncio.wait((task, other), return_when=asyncio.FIRST_COMPLETED)
        return task.result() if task.done() else None
    finally:
        other.cancel()
        task.cancel()
        await asyncio.gather(task, other, return_exceptions=True)
