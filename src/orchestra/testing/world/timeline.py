"""Time of the simulated world: a heap of what happens when, promises, and processes made of generators.

Rules of this package: no asyncio, no threads, no clock, no `random` but the world's own generators, no iteration over sets. Two runs with one seed are equal
event for event, whatever PYTHONHASHSEED says.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from heapq import heappop, heappush
from typing import Any

from orchestra.errors import PortFailed, ProtocolBroken

Action = Callable[..., None]


class Timeline:
    """What happens, in order of time and, at one time, in order of arrival. Milliseconds since the world began."""

    def __init__(self) -> None:
        self.now_ms = 0
        self.steps = 0
        self._heap: list[tuple[int, int, Action, tuple[Any, ...]]] = []
        self._arrivals = 0

    def at(self, ms: int, action: Action, *arguments: Any) -> None:
        """Has something happen at that time, or now if that is past."""
        self._arrivals += 1
        heappush(self._heap, (max(ms, self.now_ms), self._arrivals, action, arguments))

    def after(self, delay_ms: int, action: Action, *arguments: Any) -> None:
        """Has something happen after a while."""
        self.at(self.now_ms + delay_ms, action, *arguments)

    def sleep(self, delay_ms: int) -> Promise:
        """Returns a promise that is kept after a while."""
        promise = Promise(self)
        self.at(self.now_ms + delay_ms, promise.keep, None)
        return promise

    def step(self) -> bool:
        """Lets the next thing happen; False if there is none."""
        if not self._heap:
            return False
        self.now_ms, _, action, arguments = heappop(self._heap)
        self.steps += 1
        action(*arguments)
        return True

    @property
    def next_ms(self) -> int | None:
        """When the next thing happens."""
        return self._heap[0][0] if self._heap else None


class Promise:
    """A value or an error that comes later; whoever waits is told in a step of its own."""

    __slots__ = ("_line", "_then", "done", "error", "value")

    def __init__(self, line: Timeline) -> None:
        self._line = line
        self._then: Callable[[], None] | None = None
        self.done = False
        self.value: Any = None
        self.error: Exception | None = None

    def keep(self, value: Any) -> None:
        """Settles it with a value, unless it is settled."""
        self._settle(value, None)

    def fail(self, error: Exception) -> None:
        """Settles it with an error, unless it is settled."""
        self._settle(None, error)

    def _settle(self, value: Any, error: Exception | None) -> None:
        if self.done:
            return
        self.done, self.value, self.error = True, value, error
        if self._then is not None:
            self._line.at(0, self._then)

    def then(self, action: Callable[[], None]) -> None:
        """Calls `action` when it is settled. One listener only."""
        self._then = action
        if self.done:
            self._line.at(0, action)


Body = Generator[Promise, Any, Any]


class Process:
    """A generator that yields promises and is woken when they are settled. Ends with `ended`, a promise of its own."""

    def __init__(self, line: Timeline, body: Body, enter: Callable[[Callable[[], None]], None]) -> None:
        """`enter` runs each piece for whoever owns the process, and knows what to do if it raises something unforeseen."""
        self.ended = Promise(line)
        self._line = line
        self._body = body
        self._enter = enter
        self._over = False
        line.at(0, self._wake, None)

    def cancel(self) -> None:
        """Ends it where it stands; what it waits for is forgotten."""
        if not self._over:
            self._over = True
            self._body.close()

    def _wake(self, promise: Promise | None) -> None:
        if not self._over:
            self._enter(lambda: self._advance(promise))

    def _advance(self, promise: Promise | None) -> None:
        try:
            if promise is None:
                waited: Promise = next(self._body)
            elif promise.error is not None:
                waited = self._body.throw(promise.error)
            else:
                waited = self._body.send(promise.value)
        except StopIteration as end:
            self._over = True
            self.ended.keep(end.value)
        except (PortFailed, ProtocolBroken) as error:
            self._over = True
            self.ended.fail(error)
        else:
            waited.then(lambda: self._wake(waited))
