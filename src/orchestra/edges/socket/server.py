"""Serves the use cases over a Unix socket; `orchestra.client` is the other end."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestra.client import LINE_BYTES_MAX, WireError, error_to_wire
from orchestra.errors import BadInput, OrchestraError
from orchestra.intake.request import parse_params
from orchestra.usecases import METHODS, UseCases

log = logging.getLogger(__name__)

IN_FLIGHT_MAX: Final = 64
"""Requests of one connection that are worked on at a time; more wait in the socket."""


class _Request(msgspec.Struct):
    jsonrpc: str
    id: int | str
    method: str
    params: msgspec.Raw = msgspec.Raw(b"{}")


_decoder: Final = msgspec.json.Decoder(_Request)


class SocketServer:
    """Listens for the life of a coordinator."""

    def __init__(self, use_cases: UseCases, path: Path) -> None:
        self._use_cases = use_cases
        self._path = path
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen. A socket file left by a dead coordinator is replaced; the ledger's lock says that it is dead."""
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()
        before = os.umask(0o177)
        try:
            self._server = await asyncio.start_unix_server(self._accept, str(self._path), limit=LINE_BYTES_MAX)
        finally:
            os.umask(before)

    async def stop(self) -> None:
        """Ends all connections and removes the socket. Idempotent."""
        if self._server is None:
            return
        self._server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        self._server = None
        with contextlib.suppress(FileNotFoundError):
            self._path.unlink()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)
        slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                while line := await reader.readline():
                    await slots.acquire()
                    group.create_task(self._serve(line, writer, slots))
        except* (OSError, ValueError):
            pass  # the peer went away, or sent a line beyond every limit: the connection ends
        finally:
            writer.close()

    async def _serve(self, line: bytes, writer: asyncio.StreamWriter, slots: asyncio.Semaphore) -> None:
        try:
            answer = await self._answer(line)
            writer.write(msgspec.json.encode(answer) + b"\n")
            with contextlib.suppress(OSError):
                await writer.drain()
        finally:
            slots.release()

    async def _answer(self, line: bytes) -> dict[str, Any]:
        try:
            request = _decoder.decode(line)
        except (msgspec.DecodeError, msgspec.ValidationError) as exc:
            return {"jsonrpc": "2.0", "id": None, "error": WireError(-32600, f"not a JSON-RPC request: {exc}")}
        try:
            method = METHODS.get(request.method)
            if method is None:
                raise BadInput(f"there is no method {request.method!r}", field="method", hint=f"methods: {', '.join(METHODS)}")
            params = parse_params(method.params, bytes(request.params))
            result = await getattr(self._use_cases, request.method)(params)
            return {"jsonrpc": "2.0", "id": request.id, "result": result}
        except OrchestraError as error:
            return {"jsonrpc": "2.0", "id": request.id, "error": error_to_wire(error)}
