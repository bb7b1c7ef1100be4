"""One group of limits and those who wait for it. Sans-I/O: asked at a time, it says who may go and when to ask again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Final

import msgspec

from orchestra.metering.fair import FairQueue, Waiting
from orchestra.metering.formulas import Charge
from orchestra.metering.group import Group, Reservation

WEIGHTS: Final = (16, 8, 4, 2, 1)
"""Of the priorities 0 to 4 (1 critical, 4 low): one step is worth twice the share."""


class Ticket(msgspec.Struct):
    """A request that wants to be sent."""

    flow: str
    """Whose it is: turns and the number in flight are counted by it."""
    priority: int
    charge: Charge
    weight: int
    """Tokens, for the queue where no limit is known."""
    since_ms: int = -1
    """When it first came, if it was refused and comes again; -1 is now."""
    price: int = 0
    """What its flow was charged for its turn."""
    recount: Callable[[], Charge] | None = None
    """What it takes as far as is known by now: while it waited, answers to others were seen."""


class Crowd:
    """How many requests of each flow are on their way, over all lanes."""

    def __init__(self, per_flow_max: int) -> None:
        self.per_flow_max = per_flow_max
        self._on_way: Counter[str] = Counter()

    def free(self, flow: str) -> bool:
        """Whether this flow may send one more."""
        return self._on_way[flow] < self.per_flow_max

    def enter(self, flow: str) -> None:
        """One more is on its way."""
        self._on_way[flow] += 1

    def leave(self, flow: str) -> None:
        """One is back."""
        self._on_way[flow] -= 1
        if self._on_way[flow] <= 0:
            del self._on_way[flow]


class Lane:
    """A group with its queue."""

    def __init__(self, group: Group, crowd: Crowd, *, waiting_max: int) -> None:
        self.group = group
        self._crowd = crowd
        self._queue: FairQueue[Ticket] = FairQueue()
        self._waiting: dict[int, Waiting[Ticket]] = {}
        self._waiting_max = waiting_max

    @property
    def full(self) -> bool:
        """Whether nobody more may wait."""
        return len(self._queue) >= self._waiting_max

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._queue)

    def offer(self, ticket: Ticket, now_ms: int) -> Reservation | None:
        """Returns a reservation if it may go at once, and otherwise queues it."""
        since_ms = now_ms if ticket.since_ms < 0 else ticket.since_ms
        weight = WEIGHTS[min(max(ticket.priority, 0), len(WEIGHTS) - 1)]
        item = Waiting(ticket, ticket.flow, weight, self.group.cost(ticket.charge) or ticket.weight, since_ms)
        if not self._queue and self._may_go(ticket, now_ms):
            ticket.price = self._queue.served_at_once(item)
            return self._go(ticket, now_ms)
        self._waiting[id(ticket)] = item
        self._queue.put(item)
        return None

    def _may_go(self, ticket: Ticket, now_ms: int) -> bool:
        return self._crowd.free(ticket.flow) and self.group.ramp.free and self._wait_ms(ticket, now_ms) == 0

    def _wait_ms(self, ticket: Ticket, now_ms: int) -> int:
        if ticket.recount is not None:
            ticket.charge = ticket.recount()
        return self.group.wait_ms(ticket.charge, now_ms)

    def _go(self, ticket: Ticket, now_ms: int) -> Reservation:
        self._crowd.enter(ticket.flow)
        return self.group.take(ticket.charge, now_ms)

    def admit(self, now_ms: int) -> list[tuple[Ticket, Reservation]]:
        """Returns whose turn came, in order."""
        admitted: list[tuple[Ticket, Reservation]] = []
        while self._queue and self.group.ramp.free:
            head = self._queue.head(self._crowd.free)
            if head is None or self._wait_ms(head.key, now_ms) > 0:
                break
            head.key.price = self._queue.take(head, now_ms)
            del self._waiting[id(head.key)]
            admitted.append((head.key, self._go(head.key, now_ms)))
        return admitted

    def withdraw(self, ticket: Ticket) -> bool:
        """Takes a ticket out of the queue; False if it was admitted already."""
        item = self._waiting.pop(id(ticket), None)
        return item is not None and self._queue.remove(item)

    def release(self, ticket: Ticket, *, served: bool = True) -> None:
        """The request of an admitted ticket has ended; its reservation was settled. One that was not served costs its flow nothing."""
        self._crowd.leave(ticket.flow)
        if not served:
            self._queue.give_back(ticket.flow, ticket.price)

    def ask_again_ms(self, now_ms: int) -> int | None:
        """Returns when time alone may let somebody go, as a duration; None if only a release can."""
        if not self._queue or not self.group.ramp.free:
            return None
        head = self._queue.head(self._crowd.free)
        return None if head is None else max(1, self._wait_ms(head.key, now_ms))

    def tickets(self, match: Callable[[Ticket], bool]) -> list[Ticket]:
        """Returns those who wait and match."""
        return [item.key for item in self._queue.items() if match(item.key)]
