"""The gateway as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from orchestra.errors import PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.testing.upstream import Upstream
from tests.gateway.support import CANARY, configuration


class Process:
    """One run of the command.

    Args:
        folder: Where its file and its books are.
        enter: What goes before the command, to run it elsewhere.
    """

    def __init__(self, folder: Path, enter: Sequence[str] = ()) -> None:
        self.folder = folder
        self._enter = enter
        self.output = folder / "output"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        environ = {**os.environ, "KEY_A": CANARY}
        with self.output.open("ab") as output:
            argv = [*self._enter, sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(self.folder / "gateway.json")]
            self._process = await asyncio.create_subprocess_exec(*argv, env=environ, stdout=output, stderr=output)
        while True:
            with contextlib.suppress(PortFailed):
                self.port = int((await self.admin("health"))["port"])
                if self.port:
                    return
            assert self._process.returncode is None, self.output.read_text()
            await asyncio.sleep(0.02)

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def end(self, number: signal.Signals) -> int:
        assert self._process is not None
        if self._process.returncode is None:
            self._process.send_signal(number)
        return await self._process.wait()

    async def exit_code(self) -> int:
        """Waits for its end."""
        assert self._process is not None
        return await self._process.wait()

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    async def admin(self, method: str, **params: Any) -> Any:
        return await ask_admin(self.folder / "books" / "admin.sock", method, params)

    async def command(self, *args: str) -> Any:
        argv = [sys.executable, "-m", "orchestra", "gateway", *args, "--config", str(self.folder / "gateway.json"), "--json"]
        process = await asyncio.create_subprocess_exec(*argv, stdout=asyncio.subprocess.PIPE)
        output, _ = await process.communicate()
        return json.loads(output.splitlines()[-1])


@asynccontextmanager
async def running(
    folder: Path, upstream: Upstream, /, *, enter: Sequence[str] = (), listener: socket.socket | None = None, **config: Any
) -> AsyncIterator[Process]:
    """A gateway before an upstream; `listener` is where that listens, if not on a port of its own choice."""
    base_url = await upstream.start(listener)
    (folder / "gateway.json").write_text(json.dumps(configuration(base_url, **config)))
    process = Process(folder, enter)
    try:
        await process.start()
        yield process
    finally:
        await process.end(signal.SIGKILL)
        await upstream.stop()
