"""A fair queue in virtual time: whoever was served least, by weight, is next; and what waits long is charged less.

Each flow has an account of what it was served, divided by its weight. The flow with the lowest account goes first. A flow that comes back keeps its account,
since agents send one request after the other and are away in between; it may lag behind those who wait by `CREDIT_MAX` at most, so nobody saves up by being idle.

Deficit round robin was tried first: flows with large requests come to afford them all in the same round, and then hold up everybody else for minutes.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Final, Generic, TypeVar

import msgspec

SCALE: Final = 1_000
AGEING_MS: Final = 120_000
"""A request that waited this long is charged half. Not less: where all wait for minutes, those who wait longest would get more than their share."""
CREDIT_MAX: Final = 200_000 * SCALE
"""A fifth of a minute's limit, since costs are millionths of it."""
PAST_MAX: Final = 10_000
"""Flows whose accounts are kept while nothing of theirs waits."""

Key = TypeVar("Key")


class Waiting(msgspec.Struct, Generic[Key]):
    """One request in the queue."""

    key: Key
    flow: str
    weight: int
    cost: int
    since_ms: int


class _Flow(Generic[Key]):
    __slots__ = ("items", "served")

    def __init__(self, served: int) -> None:
        self.items: deque[Waiting[Key]] = deque()
        self.served = served


class FairQueue(Generic[Key]):
    """Requests that wait for one limit."""

    def __init__(self) -> None:
        self._flows: dict[str, _Flow[Key]] = {}
        self._past: OrderedDict[str, int] = OrderedDict()
        self._floor = 0
        """The lowest account of those who wait; never falls."""
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def put(self, item: Waiting[Key]) -> None:
        """Queues it behind what its flow has waiting."""
        flow = self._flows.get(item.flow)
        if flow is None:
            flow = self._flows[item.flow] = _Flow(self._account(item.flow))
            self._past.pop(item.flow, None)
        flow.items.append(item)
        self._size += 1

    def _account(self, name: str) -> int:
        return max(self._past.get(name, self._floor), self._floor - CREDIT_MAX)

    def remove(self, item: Waiting[Key]) -> bool:
        """Takes it out, wherever it is; tells whether it was there."""
        flow = self._flows.get(item.flow)
        if flow is None:
            return False
        for position, each in enumerate(flow.items):
            if each is item:
                del flow.items[position]
                self._gone(item.flow, flow)
                return True
        return False

    def items(self) -> list[Waiting[Key]]:
        """Returns all that wait."""
        return [item for flow in self._flows.values() for item in flow.items]

    def head(self, may_go: Callable[[str], bool]) -> Waiting[Key] | None:
        """Returns whose turn it is; flows that may not go are passed over without losing anything."""
        best: _Flow[Key] | None = None
        for name, flow in self._flows.items():
            if (best is None or flow.served < best.served) and may_go(name):
                best = flow
        return None if best is None else best.items[0]

    def take(self, item: Waiting[Key], now_ms: int) -> int:
        """Serves the head of a flow; returns what its flow was charged."""
        flow = self._flows[item.flow]
        flow.items.popleft()
        self._floor = max(self._floor, min(each.served for each in self._flows.values()))
        price = self._price(item, max(0, now_ms - item.since_ms))
        flow.served += price
        self._gone(item.flow, flow)
        return price

    def served_at_once(self, item: Waiting[Key]) -> int:
        """Takes note of a request that had not to wait; returns what its flow was charged."""
        price = self._price(item, 0)
        self._keep(item.flow, self._account(item.flow) + price)
        return price

    def give_back(self, flow: str, price: int) -> None:
        """A request was served for nothing: who is refused by chance again and again would otherwise be the last each time."""
        if flow in self._flows:
            self._flows[flow].served -= price
        elif flow in self._past:
            self._past[flow] -= price

    def _price(self, item: Waiting[Key], waited_ms: int) -> int:
        return max(1, item.cost * SCALE * AGEING_MS // (item.weight * (AGEING_MS + min(waited_ms, AGEING_MS))))

    def _gone(self, name: str, flow: _Flow[Key]) -> None:
        self._size -= 1
        if not flow.items:
            del self._flows[name]
            self._keep(name, flow.served)

    def _keep(self, name: str, served: int) -> None:
        self._past[name] = served
        self._past.move_to_end(name)
        if len(self._past) > PAST_MAX:
            self._past.popitem(last=False)
