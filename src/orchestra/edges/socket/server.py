"""Serves the use cases over a Unix socket; `orchestra.client` is the other end.

A request is a whole line: what a peer that went away left unfinished is not carried out. What it did send is, and a peer that only closed its sending
side still reads the answers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Final

import msgspec

from orchestra.client import LINE_BYTES_MAX, WireError, error_to_wire
from orchestra.errors import BadInput, OrchestraError, PortFailed, Refused
from orchestra.files import private_server
from orchestra.intake.document import parse
from orchestra.intake.request import parse_params
from orchestra.usecases import METHODS, UseCases

log = logging.getLogger(__name__)

IN_FLIGHT_MAX: Final = 64
"""Requests of one connection that are worked on at a time; more wait in the socket."""
FIELDS: Final = frozenset({"jsonrpc", "id", "method", "params"})
NOT_JSON: Final = -32700
NOT_A_REQUEST: Final = -32600
NO_SUCH_METHOD: Final = -32601


class SocketServer:
    """Listens for the life of a coordinator.

    Args:
        use_cases: What is served.
        path: The socket; its folder has to be private.
        line_bytes_max: Largest request and answer.
    """

    def __init__(self, use_cases: UseCases, path: Path, *, line_bytes_max: int = LINE_BYTES_MAX) -> None:
        self._use_cases = use_cases
        self._path = path
        self._line_bytes_max = line_bytes_max
        self._server: asyncio.Server | None = None
        self._made = (0, 0)
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self) -> None:
        """Begins to listen. A socket file left by a dead coordinator is replaced; the ledger's lock says that it is dead. Idempotent.

        Raises:
            PortFailed: The socket cannot be made.
        """
        if self._server is not None:
            return
        try:
            self._server = await private_server(self._path, self._accept, self._line_bytes_max)
            self._made = self._identity()
        except OSError as exc:
            raise PortFailed(f"the socket {self._path} cannot be made: {exc.strerror or exc}", hint="remove what is in its place") from exc

    async def stop(self) -> None:
        """Ends all connections and removes the socket, unless it is no longer ours: a coordinator that was superseded leaves its successor's. Idempotent."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._connections):
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)
        with contextlib.suppress(FileNotFoundError):
            if self._identity() == self._made:
                self._path.unlink()

    def _identity(self) -> tuple[int, int]:
        """Tells one socket file from another of the same name; a number alone is given again at once."""
        found = self._path.lstat()
        return found.st_ino, found.st_ctime_ns

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(self._converse(reader, writer), name="socket-connection")
        self._connections.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._connections.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("socket-connection-failed", exc_info=error)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        slots = asyncio.Semaphore(IN_FLIGHT_MAX)
        try:
            async with asyncio.TaskGroup() as group:
                async for line in self._lines(reader, writer):
                    await slots.acquire()
                    group.create_task(self._serve(line, writer, slots))
        finally:
            writer.close()

    async def _lines(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> AsyncIterator[bytes]:
        """Yields whole lines until the peer goes away or sends one that is too long."""
        while True:
            try:
                line = await reader.readline()
            except ValueError:
                words = f"the request is larger than {self._line_bytes_max} bytes"
                await _send(writer, _refusal(None, BadInput(words, hint="send less at a time"), NOT_A_REQUEST))
                return
            except OSError:
                return
            if not line.endswith(b"\n"):
                return
            if line.strip():
                yield line

    async def _serve(self, line: bytes, writer: asyncio.StreamWriter, slots: asyncio.Semaphore) -> None:
        try:
            await _send(writer, await self._answer(line))
        finally:
            slots.release()

    async def _answer(self, line: bytes) -> bytes:
        number: int | str | None = None
        try:
            values = _values(line)
            number = _id(values)
            result = await self._result(values)
            answer = msgspec.json.encode({"jsonrpc": "2.0", "id": number, "result": result})
            if len(answer) >= self._line_bytes_max:
                raise Refused(f"the answer is larger than {self._line_bytes_max} bytes", hint="ask for less at a time")
            return answer
        except _NotARequest as error:
            return _refusal(number, error, error.number)
        except OrchestraError as error:
            return _refusal(number, error)
        except OSError as exc:
            return _refusal(number, PortFailed(f"the request failed: {exc}", hint="see the log of the coordinator"))

    async def _result(self, values: dict[str, Any]) -> object:
        unknown = sorted(set(values) - FIELDS)
        if unknown:
            raise _NotARequest("there is no such field", field=unknown[0][:80], hint=f"fields: {', '.join(sorted(FIELDS))}")
        if values.get("jsonrpc") != "2.0":
            raise _NotARequest('must be "2.0"', field="jsonrpc")
        name = values.get("method")
        if not isinstance(name, str) or name not in METHODS:
            raise _NotARequest(
                f"there is no method {str(name)[:80]!r}", field="method", hint=f"methods: {', '.join(METHODS)}", number=NO_SUCH_METHOD
            )
        params = parse_params(METHODS[name].params, values.get("params"))
        return await getattr(self._use_cases, name)(params)


class _NotARequest(BadInput):
    """A line that asks nothing. `number` is JSON-RPC's code for it."""

    def __init__(self, message: str, *, field: str = "", hint: str = "", number: int = NOT_A_REQUEST) -> None:
        super().__init__(message, hint=hint, field=field)
        self.number = number


def _values(line: bytes) -> dict[str, Any]:
    try:
        text = line.decode()
        values = parse(text, source="request.json", error=BadInput).value if text.lstrip()[:1] == "{" else None
    except UnicodeDecodeError as exc:
        raise _NotARequest(f"the request is not UTF-8: byte {exc.start} cannot be read", number=NOT_JSON) from exc
    except BadInput as exc:
        raise _NotARequest(exc.message, hint=exc.hint, number=NOT_JSON) from exc
    if not isinstance(values, dict):
        raise _NotARequest("the request is not a JSON object", hint="one request a line")
    return values


def _id(values: dict[str, Any]) -> int | str:
    number = values.get("id")
    if isinstance(number, bool) or not isinstance(number, int | str):
        raise _NotARequest("must be text or a whole number", field="id", hint="every request is answered, so every request has an id")
    return number


def _refusal(number: int | str | None, error: OrchestraError, code: int | None = None) -> bytes:
    wire = error_to_wire(error)
    return msgspec.json.encode(
        {"jsonrpc": "2.0", "id": number, "error": wire if code is None else WireError(code, wire.message, wire.data)}
    )


async def _send(writer: asyncio.StreamWriter, answer: bytes) -> None:
    writer.write(answer + b"\n")
    with contextlib.suppress(OSError):
        await writer.drain()
