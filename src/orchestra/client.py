"""The use cases over the coordinator's Unix socket: JSON-RPC 2.0, one object a line, answers in any order.

The socket has mode 0600 in a private folder: whoever can open it is the user the orchestra belongs to.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
from pathlib import Path
from typing import Any, Final, TypeVar, cast

import msgspec

from orchestra import errors
from orchestra.errors import CoordinatorUnreachable, OrchestraError
from orchestra.usecases import METHODS

LINE_BYTES_MAX: Final = 64 << 20
"""Largest request or answer: a plan of a hundred thousand tasks, or all screens of 200 windows with their history."""
CONNECT_TIMEOUT_S: Final = 5.0
T = TypeVar("T")

BY_CODE: Final[dict[str, type[OrchestraError]]] = {
    each.code: each for each in vars(errors).values() if isinstance(each, type) and issubclass(each, OrchestraError)
}


class WireError(msgspec.Struct, frozen=True):
    """An error as it travels; `data` has what JSON-RPC has no place for."""

    code: int
    message: str
    data: dict[str, Any] = {}


class WireReply(msgspec.Struct, frozen=True):
    id: int | str | None = None
    result: msgspec.Raw = msgspec.Raw(b"null")
    error: WireError | None = None


_decoder: Final = msgspec.json.Decoder(WireReply)


class Client:
    """A connection. Use as `async with Client.connect(path) as use_cases`; implements `UseCases` by the table of methods."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._number = 0
        self._waiting: dict[int, asyncio.Future[WireReply]] = {}
        self._reading = asyncio.create_task(self._read(reader), name="client-reader")

    @classmethod
    async def connect(cls, path: Path) -> Client:
        """Opens the socket.

        Raises:
            CoordinatorUnreachable: Nobody listens there.
        """
        try:
            async with asyncio.timeout(CONNECT_TIMEOUT_S):
                reader, writer = await asyncio.open_unix_connection(_short(path), limit=LINE_BYTES_MAX)
        except (OSError, TimeoutError) as exc:
            raise CoordinatorUnreachable(
                "no orchestra is running for this root", hint="start one: `orchestra up`, or name its --root"
            ) from exc
        return cls(reader, writer)

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        async def call(params: msgspec.Struct) -> Any:
            return await self._call(name, params)

        return call

    async def _call(self, name: str, params: msgspec.Struct) -> Any:
        if self._reading.done():
            raise CoordinatorUnreachable("the coordinator is gone", hint="start it again: `orchestra up`")
        self._number += 1
        answer: asyncio.Future[WireReply] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        line = msgspec.json.encode({"jsonrpc": "2.0", "id": self._number, "method": name, "params": params}) + b"\n"
        try:
            self._writer.write(line)
            await self._writer.drain()
            reply = await answer
        except OSError as exc:
            raise CoordinatorUnreachable("the coordinator is gone", hint="start it again: `orchestra up`") from exc
        finally:
            self._waiting.pop(self._number, None)
        if reply.error is not None:
            raise error_from_wire(reply.error)
        return msgspec.json.decode(reply.result, type=cast("type[Any]", METHODS[name].result))

    async def _read(self, reader: asyncio.StreamReader) -> None:
        try:
            while line := await reader.readline():
                reply = _decoder.decode(line)
                future = self._waiting.get(reply.id) if isinstance(reply.id, int) else None
                if future is not None and not future.done():
                    future.set_result(reply)
        except (OSError, ValueError, msgspec.DecodeError):
            pass
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(CoordinatorUnreachable("the coordinator went away before it answered"))

    async def close(self) -> None:
        """Ends the connection."""
        self._reading.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reading
        self._writer.close()
        with contextlib.suppress(OSError):
            await self._writer.wait_closed()

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()


def _short(path: Path) -> str:
    """A socket path relative to here may be short enough where the absolute one is not."""
    text = str(path)
    relative = os.path.relpath(text)
    return min(text, relative, key=len)


def error_to_wire(error: OrchestraError) -> WireError:
    """Returns the error as it travels."""
    face = errors.FACES.get(error.code, errors.FACES["internal"])
    return WireError(face.jsonrpc, error.message, {"code": error.code, "hint": error.hint, "field": error.field})


def error_from_wire(error: WireError) -> OrchestraError:
    """Returns the error as it was raised on the other side."""
    kind = BY_CODE.get(str(error.data.get("code")), OrchestraError)
    return kind(error.message, hint=str(error.data.get("hint", "")), field=str(error.data.get("field", "")))
