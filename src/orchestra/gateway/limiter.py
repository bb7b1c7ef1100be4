"""Lets requests wait for their turn: the lanes of `metering` with futures and a timer each."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.gateway.config import AccountPart, GatewayConfig, UpstreamPart
from orchestra.metering.formulas import FORMULAS
from orchestra.metering.group import Group, Reservation
from orchestra.metering.lane import Crowd, Lane, Ticket
from orchestra.metering.marks import LaneAt
from orchestra.metering.retry import RETRY_AFTER_MS_MAX

CLASSES_MAX: Final = 500
"""Of one account; a client that makes up names of models gets them all into one."""
REST: Final = "rest"
DEFAULT: Final = "default"


class Place(msgspec.Struct, frozen=True):
    """Names a lane."""

    upstream: str
    account: str
    model_class: str


class QueueFull(Exception):
    """Nobody more may wait in this lane."""


class Limiter:
    """All lanes."""

    def __init__(self, config: GatewayConfig, clock: Clock) -> None:
        self._config = config
        self._clock = clock
        self._crowd = Crowd(config.bounds.agent_in_flight)
        self._lanes: dict[Place, Lane] = {}
        self._futures: dict[int, asyncio.Future[Reservation]] = {}
        self._timers: dict[Place, asyncio.TimerHandle] = {}

    @property
    def lanes(self) -> dict[Place, Lane]:
        """The lanes that were used so far."""
        return self._lanes

    def place(self, upstream: str, account: str, model_class: str) -> Place:
        """Returns the name of the lane; the number of classes is bounded."""
        place = Place(upstream, account, model_class)
        if place in self._lanes or len(self._lanes) < CLASSES_MAX or self._forget_idle():
            return place
        known = account in self._config.upstreams[upstream].accounts
        return Place(upstream, account if known else REST, REST)

    def _forget_idle(self) -> bool:
        """Makes room: lanes that nobody uses and that know nothing are made again when they are asked for. Tells whether there were any."""
        idle = [place for place, lane in self._lanes.items() if not lane.waiting and not lane.group.ramp.in_flight and lane.group.is_plain]
        for place in idle:
            del self._lanes[place]
            if (timer := self._timers.pop(place, None)) is not None:
                timer.cancel()
        return bool(idle)

    def lane(self, place: Place) -> Lane:
        """Returns the lane, made when first asked for."""
        lane = self._lanes.get(place)
        if lane is None:
            upstream = self._config.upstreams[place.upstream]
            group = self._group(upstream, upstream.accounts.get(place.account), place.model_class)
            lane = self._lanes[place] = Lane(group, self._crowd, waiting_max=self._config.bounds.queue)
        return lane

    def _group(self, upstream: UpstreamPart, account: AccountPart | None, model_class: str) -> Group:
        configured = upstream.limits if account is None else account.limits
        limits = configured.get(model_class, configured.get(DEFAULT, {}))
        return Group(FORMULAS[upstream.kind], limits, 256 if account is None else account.concurrency, self._clock.steady_ms())

    def reconfigure(self, config: GatewayConfig) -> None:
        """Takes new limits into use; what waits and what is on its way stays."""
        self._config = config
        self._crowd.per_flow_max = config.bounds.agent_in_flight
        for place, lane in self._lanes.items():
            upstream = config.upstreams.get(place.upstream)
            if upstream is not None:
                account = upstream.accounts.get(place.account)
                fresh = self._group(upstream, account, place.model_class)
                lane.group.adopt(fresh, self._clock.steady_ms())
            self.pump(place)

    async def acquire(self, place: Place, ticket: Ticket, timeout_ms: int) -> Reservation:
        """Waits for a turn.

        Raises:
            TimeoutError: It did not come in time.
            QueueFull: Too many wait already.
        """
        lane = self.lane(place)
        if lane.full:
            raise QueueFull
        held = lane.offer(ticket, self._clock.steady_ms())
        if held is not None:
            return held
        future: asyncio.Future[Reservation] = asyncio.get_running_loop().create_future()
        self._futures[id(ticket)] = future
        self.pump(place)
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                return await future
        except BaseException:
            if not lane.withdraw(ticket) and future.done() and not future.cancelled():
                lane.group.settle_unsent(future.result(), self._clock.steady_ms())
                self.release(place, ticket, served=False)
            raise
        finally:
            self._futures.pop(id(ticket), None)

    def release(self, place: Place, ticket: Ticket, *, served: bool) -> None:
        """A request has ended and was settled: others may go."""
        self.lane(place).release(ticket, served=served)
        self.pump(place)
        for other, lane in self._lanes.items():
            if lane.waiting and other != place:
                self.pump(other)

    def pump(self, place: Place) -> None:
        """Lets go whose turn it is, and asks again when time may let go the next."""
        lane = self._lanes.get(place)
        if lane is None:
            return
        now_ms = self._clock.steady_ms()
        for ticket, held in lane.admit(now_ms):
            future = self._futures.get(id(ticket))
            if future is None or future.done():
                lane.group.settle_unsent(held, now_ms)
                lane.release(ticket, served=False)
            else:
                future.set_result(held)
        if (timer := self._timers.pop(place, None)) is not None:
            timer.cancel()
        wait_ms = lane.ask_again_ms(now_ms)
        if wait_ms is not None:
            self._timers[place] = asyncio.get_running_loop().call_later(wait_ms / 1000, self.pump, place)

    def mark(self, place: Place) -> LaneAt | None:
        """Returns how a lane stands, for the next process; None if nothing is known of it that would be lost."""
        lane = self._lanes.get(place)
        if lane is None:
            return None
        now_ms = self._clock.steady_ms()
        limits, closed_ms = lane.group.marks(now_ms), max(0, lane.group.closed_until_ms - now_ms)
        wall_ms = self._clock.wall_ms()
        found = LaneAt(place.upstream, place.account, place.model_class, wall_ms, limits, wall_ms + closed_ms if closed_ms else 0)
        return found if limits or closed_ms else None

    def recall(self, mark: LaneAt) -> None:
        """Goes on from where a lane stood when another process marked it, unless the configuration has no such account any more."""
        upstream = self._config.upstreams.get(mark.upstream)
        if upstream is None or not (upstream.pass_through or mark.account in upstream.accounts):
            return
        now_ms, wall_ms = self._clock.steady_ms(), self._clock.wall_ms()
        group = self.lane(self.place(mark.upstream, mark.account, mark.model_class)).group
        group.recall(mark.limits, max(0, wall_ms - mark.ms), now_ms)
        left_ms = min(mark.closed_until_ms - wall_ms, RETRY_AFTER_MS_MAX * 2)
        if left_ms > 0:
            group.close_until(now_ms + left_ms, now_ms)

    def turn_away(self, place: Place) -> None:
        """The account is spent: those who wait for it look for another way at once."""
        lane = self._lanes[place]
        for ticket in lane.tickets(lambda _: True):
            future = self._futures.get(id(ticket))
            if future is not None and not future.done():
                future.set_exception(TimeoutError("the account is spent"))

    def close(self) -> None:
        """Stops all timers."""
        for timer in self._timers.values():
            timer.cancel()
        self._timers.clear()
