"""The gateway as one service: built from a configuration, started, reloaded, drained and stopped."""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import random
from collections.abc import Mapping
from pathlib import Path

from orchestra.clock import Clock
from orchestra.errors import PortFailed
from orchestra.gateway.accounts import Accounts, load_accounts
from orchestra.gateway.admin import AdminServer
from orchestra.gateway.config import GatewayConfig, load_config
from orchestra.gateway.desk import Desk
from orchestra.gateway.front import BoundedServer, Front, make_server
from orchestra.gateway.journal import Journal
from orchestra.gateway.limiter import Limiter
from orchestra.gateway.pricing import load_prices
from orchestra.gateway.upstream import Upstreams
from orchestra.metering.books import Books
from orchestra.metering.breaker import Breaker

log = logging.getLogger(__name__)

BACKLOG = 1_024
LOOK_MS = 2_000
"""Between two looks at the key files, and at limits that nobody uses."""
NOTE_MS = 1_000
"""So much of the use of wide limits is forgotten by `kill -9`."""
LOOKS_A_REVIVAL = 15
"""A key that was refused may come from a program, which is not to be run every two seconds."""


class Gateway:
    """One gateway.

    Args:
        config_path: Its file, read again at a reload.
        clock: Both readings of time.
        environ: Where keys and overrides of the file come from.
    """

    def __init__(self, config_path: Path, clock: Clock, environ: Mapping[str, str] = os.environ) -> None:
        self._config_path = config_path
        self._environ = environ
        self._clock = clock
        self.config = load_config(config_path, environ)
        books = Books(self.config.day_budget_usd_micros)
        self.journal = Journal(Path(self.config.folder), books, clock)
        limiter = Limiter(self.config, clock)
        self.desk = Desk(self.config, clock, self.journal, load_prices(self.config), limiter, random.random)
        self.recovered = 0
        """Requests that a dead gateway had left open."""
        self.stopping = asyncio.Event()
        """Set when somebody asked it to end."""
        self._upstreams = Upstreams()
        self._server: BoundedServer | None = None
        self._listener: asyncio.Server | None = None
        self._looking: list[asyncio.Task[None]] = []
        self._admin = AdminServer(self, self.config.admin_socket)
        self.port = 0

    async def start(self) -> None:
        """Begins to serve. Keys are read first, so that a wrong configuration is told at once.

        Raises:
            SettingsInvalid: A key cannot be read.
            PortFailed: The address, the folder or the socket cannot be used.
        """
        self.desk.accounts = await self._load_accounts(self.config)
        self.recovered = self.journal.open()
        self.desk.recall_limits()
        try:
            await self.journal.start()
            self._upstreams.configure(self.config)
            self._server = make_server(Front(self.desk, self._upstreams), self.desk)
            await self._admin.start()
            host, port = self.config.address
            try:
                self._listener = await asyncio.get_running_loop().create_server(self._server, host, port, backlog=BACKLOG)
            except OSError as exc:
                raise PortFailed(f"{self.config.listen} cannot be listened on: {exc.strerror}", hint="choose another port") from exc
            self.port = self._listener.sockets[0].getsockname()[1]
            self._looking = [
                asyncio.create_task(self._look_after_keys(), name="gateway-keys"),
                asyncio.create_task(self._note_limits(), name="gateway-limits"),
            ]
        except BaseException:
            await self.stop()
            raise
        if self.journal.spoilt:
            self.desk.notices.tell("journal_spoilt", lines=self.journal.spoilt)
        if self.recovered:
            self.desk.notices.tell("recovered", requests=self.recovered)
        log.info("gateway-started port=%d recovered=%d", self.port, self.recovered)

    def connections(self) -> int:
        """Returns how many clients are connected."""
        return 0 if self._server is None else len(self._server.connections)

    async def _load_accounts(self, config: GatewayConfig) -> dict[str, Accounts]:
        folder = self._config_path.parent
        return {
            name: await load_accounts(name, upstream, self._environ, folder, self.desk.accounts.get(name))
            for name, upstream in config.upstreams.items()
        }

    async def _look_after_keys(self) -> None:
        """Takes a changed key file into use without being told, and tries keys again that were refused a while ago."""
        desk = self.desk
        for look in itertools.count(1):
            await self._clock.sleep_ms(LOOK_MS)
            desk.look_at_limits()
            for name, accounts in list(desk.accounts.items()):
                for key in await accounts.look():
                    desk.notices.tell("key_changed", upstream=name, key=key.source.name)
                if look % LOOKS_A_REVIVAL == 0:
                    await accounts.revive(self._clock.steady_ms())

    async def _note_limits(self) -> None:
        while True:
            await self._clock.sleep_ms(NOTE_MS)
            self.desk.note_lanes()

    async def reload(self) -> None:
        """Reads the file and all keys again. What is on its way goes on as it began; address, folder and connection bounds stay until a restart.

        Raises:
            SettingsInvalid: Something in it cannot hold; the old configuration stays in force.
        """
        config = load_config(self._config_path, self._environ)
        accounts = await self._load_accounts(config)
        prices = load_prices(config)
        self._upstreams.configure(config)
        desk = self.desk
        for name in config.upstreams:
            desk.breakers.setdefault(name, Breaker())
        self.config = desk.config = config
        desk.accounts, desk.prices = accounts, prices
        desk.journal.books.day_budget_usd_micros = config.day_budget_usd_micros
        desk.limiter.reconfigure(config)
        desk.notices.tell("reloaded")

    async def drain(self) -> int:
        """Takes no new requests and waits for those on their way; returns how many were left when the time was over."""
        self.desk.draining = True
        deadline_ms = self._clock.steady_ms() + round(self.config.bounds.drain_seconds * 1000)
        while self.desk.open and self._clock.steady_ms() < deadline_ms:
            await self._clock.sleep_ms(50)
        return self.desk.open

    async def stop(self) -> None:
        """Ends: connections are closed, what was streaming is settled, the books are synced. Idempotent."""
        self.desk.draining = True
        for looking in self._looking:
            looking.cancel()
        await asyncio.gather(*self._looking, return_exceptions=True)
        self._looking = []
        if self._listener is not None:
            self._listener.close()
            self._listener = None
        if self._server is not None:
            self._server.pre_shutdown()
            for connection in self._server.connections:
                connection.force_close()
            await self._server.shutdown(1.0)
            self._server = None
        await self._admin.stop()
        self.desk.limiter.close()
        await self._upstreams.close()
        if self.journal.is_open:
            self.desk.note_lanes()
        await self.journal.close()
