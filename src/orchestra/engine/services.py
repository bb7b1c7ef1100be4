"""The one contract of everything that runs in the background: start, stop, and nobody dies in silence.

`start` may be called twice, `stop` before `start` or while starting or twice; each does the sensible thing. A service that ends with an error
makes `wait_failed` of its group raise, and the coordinator stops: half a coordinator is worse than none, since the next start recovers everything.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

log = logging.getLogger(__name__)


class Service:
    """One background activity, made from the coroutine function that does it."""

    def __init__(self, name: str, body: Callable[[], Awaitable[None]]) -> None:
        self.name = name
        self._body = body
        self._task: asyncio.Task[None] | None = None
        self._stopped = False

    @property
    def running(self) -> bool:
        return self._task is not None and not self._task.done()

    def start(self) -> None:
        """Begins, unless it runs already or was stopped: a stopped service is not started again, a new one is made."""
        if self._task is None and not self._stopped:
            self._task = asyncio.create_task(self._run(), name=self.name)

    async def stop(self) -> None:
        """Cancels the activity and waits until it is gone. Its own error, if any, is left to `wait_failed`."""
        self._stopped = True
        if self._task is None:
            return
        if not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        # Of several that fail together `wait_failed` raises the first; asyncio would print the others as nobody's.
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            log.info("service-failed", extra={"service": self.name, "reason": str(error)})

    async def wait_ended(self) -> None:
        """Waits until it has ended by itself or was stopped; raises its error, if it had one."""
        if self._task is None:
            return
        await asyncio.wait([self._task])
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _run(self) -> None:
        await self._body()


class ServiceGroup:
    """Services that live and die together, started in order and stopped in reverse."""

    def __init__(self, services: Sequence[Service]) -> None:
        self._services = list(services)
        self._grown = asyncio.Event()

    def add(self, service: Service) -> None:
        """Adds one and starts it."""
        self._services.append(service)
        service.start()
        self._grown.set()

    async def remove(self, name: str) -> None:
        """Stops one and forgets it; its end is nobody's news."""
        leaving = [service for service in self._services if service.name == name]
        self._services = [service for service in self._services if service.name != name]
        self._grown.set()
        for service in leaving:
            await service.stop()

    def start(self) -> None:
        for service in self._services:
            service.start()

    async def stop(self) -> None:
        for service in reversed(self._services):
            await service.stop()

    async def wait_failed(self) -> None:
        """Returns when a service has ended; raises the error of one that failed. Services that are added meanwhile count."""
        while True:
            self._grown.clear()
            grown = asyncio.ensure_future(self._grown.wait())
            waits = {service: asyncio.ensure_future(service.wait_ended()) for service in self._services}
            try:
                await asyncio.wait([grown, *waits.values()], return_when=asyncio.FIRST_COMPLETED)
                ended = [wait for service, wait in waits.items() if wait.done() and service in self._services]
                for each in ended:
                    each.result()
                if ended:
                    return
            finally:
                for wait in (grown, *waits.values()):
                    wait.cancel()
                await asyncio.gather(grown, *waits.values(), return_exceptions=True)
