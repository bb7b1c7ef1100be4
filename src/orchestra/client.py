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
from orchestra.errors import BadInput, CoordinatorUnreachable, OrchestraError, PlanInvalid, ProtocolBroken
from orchestra.usecases import METHODS

LINE_BYTES_MAX: Final = 64 << 20
"""Largest request or answer: a plan of a hundred thousand tasks, or all screens of 200 windows with their history."""
CONNECT_TIMEOUT_S: Final = 5.0
START_AGAIN: Final = "start it again: `orchestra up`"
LOST_HINT: Final = "it may have been carried out all the same: look with `orchestra status`"
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
    """A connection. Use as `async with await Client.connect(path) as use_cases`; implements `UseCases` by the table of methods."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._number = 0
        self._waiting: dict[int, asyncio.Future[WireReply]] = {}
        self._over: OrchestraError = CoordinatorUnreachable("the coordinator is gone", hint=START_AGAIN)
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
        except PermissionError as exc:
            raise CoordinatorUnreachable(f"the socket {path} belongs to another user", hint="ask as the user it was started by") from exc
        except OSError as exc:
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
            raise self._over
        self._number += 1
        line = msgspec.json.encode({"jsonrpc": "2.0", "id": self._number, "method": name, "params": params}) + b"\n"
        if len(line) > LINE_BYTES_MAX:
            raise BadInput(f"the request is larger than {LINE_BYTES_MAX} bytes", hint="send less at a time")
        answer: asyncio.Future[WireReply] = asyncio.get_running_loop().create_future()
        self._waiting[self._number] = answer
        reply = await self._exchange(self._number, line, answer)
        if reply.error is not None:
            raise error_from_wire(reply.error)
        try:
            return msgspec.json.decode(reply.result, type=cast("type[Any]", METHODS[name].result))
        except msgspec.DecodeError as exc:
            raise ProtocolBroken(f"the coordinator's answer to {name} cannot be read: {exc}", hint="is it of another version?") from exc

    async def _exchange(self, number: int, line: bytes, answer: asyncio.Future[WireReply]) -> WireReply:
        try:
            self._writer.write(line)
            # A coordinator that goes away ends the wait for room as well, but says why through the answer.
            with contextlib.suppress(OSError):
                await self._writer.drain()
            return await answer
        finally:
            self._waiting.pop(number, None)
            if not answer.cancel() and not answer.cancelled():
                answer.exception()  # looked at, so that nobody reports it as forgotten

    async def _read(self, reader: asyncio.StreamReader) -> None:
        lost: OrchestraError = CoordinatorUnreachable("the coordinator went away before it answered", hint=LOST_HINT)
        try:
            while line := await reader.readline():
                reply = _decoder.decode(line)
                if reply.id is None and reply.error is not None:
                    lost = error_from_wire(reply.error)  # it could not make out which request this is about, and goes away now
                future = self._waiting.get(reply.id) if isinstance(reply.id, int) else None
                if future is not None and not future.done():
                    future.set_result(reply)
        except OSError:
            pass
        except (ValueError, msgspec.DecodeError) as exc:
            self._over = lost = ProtocolBroken(f"the coordinator's answer cannot be read: {exc}", hint="is it of another version?")
        finally:
            for future in self._waiting.values():
                if not future.done():
                    future.set_exception(lost)

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
    try:
        return min(text, os.path.relpath(text), key=len)
    except OSError:
        return text  # the folder we are in is gone


def error_to_wire(error: OrchestraError) -> WireError:
    """Returns the error as it travels."""
    face = errors.FACES.get(error.code, errors.FACES["internal"])
    data: dict[str, Any] = {"code": error.code, "hint": error.hint, "field": error.field}
    if isinstance(error, PlanInvalid) and error.problems:
        data["problems"] = error.problems
    return WireError(face.jsonrpc, error.message, data)


def error_from_wire(error: WireError) -> OrchestraError:
    """Returns the error as it was raised on the other side."""
    kind = BY_CODE.get(str(error.data.get("code")), OrchestraError)
    hint, field = str(error.data.get("hint", "")), str(error.data.get("field", ""))
    problems = error.data.get("problems")
    if kind is PlanInvalid and isinstance(problems, list):
        return PlanInvalid(error.message, hint=hint, field=field, problems=tuple(map(str, problems)))
    return kind(error.message, hint=hint, field=field)
