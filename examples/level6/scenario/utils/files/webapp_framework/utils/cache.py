"""A cache that forgets what was used longest ago, and what is too old."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any


class Cache:
    """Keeps up to `size` values, each for up to `seconds`; 0 seconds means for as long as there is room."""

    def __init__(self, size: int, seconds: float = 0, clock: Callable[[], float] = time.monotonic) -> None:
        """Takes the limits, and a clock for tests."""
        if size < 1:
            raise ValueError("a cache has room for at least one value")
        self.size = size
        self.seconds = seconds
        self._clock = clock
        self._items: OrderedDict[Hashable, tuple[float, Any]] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        """Returns the value of a key; one that is missing or too old is made."""
        now = self._clock()
        kept = self._items.get(key)
        if kept is None or (self.seconds and now - kept[0] >= self.seconds):
            self._items[key] = kept = (now, make())
        self._items.move_to_end(key)
        while len(self._items) > self.size:
            self._items.popitem(last=False)
        return kept[1]

    def drop(self, key: Hashable) -> None:
        """Forgets a key, if it is there."""
        self._items.pop(key, None)

    def __len__(self) -> int:
        """Tells how many values are kept."""
        return len(self._items)
