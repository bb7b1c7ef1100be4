"""Lets requests wait for a budget: the claims of `metering` with a future each."""

from __future__ import annotations

import asyncio

from orchestra.clock import Clock
from orchestra.metering.books import Books
from orchestra.metering.claims import Claim, Claims


class Purse:
    """All budgets."""

    def __init__(self, books: Books, clock: Clock) -> None:
        self.claims = Claims(books)
        self._clock = clock
        self._futures: dict[int, asyncio.Future[None]] = {}

    async def wait(self, claim: Claim, timeout_ms: int) -> bool:
        """Returns True when the budgets bear it, or never will; False when the time is over."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._futures[id(claim)] = future
        self.claims.wait(claim)
        self.pump()
        try:
            async with asyncio.timeout(timeout_ms / 1000):
                await future
        except TimeoutError:
            self.drop(claim)
            return False
        except BaseException:
            self.drop(claim)
            raise
        finally:
            self._futures.pop(id(claim), None)
        return True

    def drop(self, claim: Claim | None) -> None:
        """It is open, or gave up. Others may go."""
        if claim is not None:
            self.claims.drop(claim)
            self.pump()

    def pump(self) -> None:
        """Lets go whom the budgets bear now: something was settled, or a budget is another one."""
        if not self.claims.waiting:
            self.claims.admit(0)  # nobody is in anybody's way any more
            return
        for claim in self.claims.admit(self._clock.wall_ms()):
            future = self._futures.get(id(claim))
            if future is not None and not future.done():
                future.set_result(None)
