"""A model API on loopback that does what its script says: well-formed answers of each provider, and every fault that providers are known for.

It speaks HTTP on a plain asyncio server, so that it can also send what no library would: bytes one by one, broken chunks, a reset in the middle.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from orchestra.clock import Clock


class Seen(msgspec.Struct, frozen=True):
    """One request as it came."""

    method: str
    target: str
    headers: list[tuple[str, str]]
    body: bytes
    at_ms: int

    def header(self, name: str) -> str:
        """Returns the first header of that name, or nothing."""
        return next((value for each, value in self.headers if each.lower() == name.lower()), "")


class Answer(msgspec.Struct, frozen=True):
    """What to answer."""

    status: int = 200
    headers: tuple[tuple[str, str], ...] = ()
    body: bytes = b""
    chunks: tuple[bytes, ...] | None = None
    """Sent one by one in chunked encoding; None sends `body` with its length."""
    pause_ms: int = 0
    """Between chunks."""
    after_each: Callable[[], Awaitable[object]] | None = None
    """Waited for after each chunk."""
    wait_ms: int = 0
    """Before the head."""
    hold: bool = False
    """After the head nothing more is sent until the client goes away."""
    reset_after: int = -1
    """After so many chunks the connection is reset; 0 before the head."""
    raw: bytes = b""
    """Sent as it is instead of everything else; then the connection is closed."""


Script = Callable[[Seen, int], Answer | Awaitable[Answer]]
"""Given a request and how many came before it, what to answer."""


class Upstream:
    """The scripted API.

    Args:
        script: Decides on each answer.
        clock: For the times of `seen`.
    """

    def __init__(self, script: Script, clock: Clock) -> None:
        self.script = script
        self.seen: list[Seen] = []
        self.gone = 0
        """Clients that went away before their answer was complete."""
        self.open = 0
        self.open_most = 0
        self._clock = clock
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket | None = None) -> str:
        """Begins to listen, on a socket of its own if none is given; returns the base URL."""
        if listener is None:
            listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
        self._server = await asyncio.start_server(self._accept, sock=listener)
        port = self._server.sockets[0].getsockname()[1]
        return f"http://127.0.0.1:{port}"

    async def stop(self) -> None:
        """Ends all connections."""
        if self._server is not None:
            self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # asyncio does so itself only for sockets that name their protocol; without it each answer's body waits 40 ms for an acknowledgement.
        writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        task = asyncio.create_task(self._converse(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while (seen := await self._read(reader)) is not None:
                self.open += 1
                self.open_most = max(self.open, self.open_most)
                number = len(self.seen)
                self.seen.append(seen)
                try:
                    decided = self.script(seen, number)
                    answer = decided if isinstance(decided, Answer) else await decided
                    if not await self._answer(answer, reader, writer):
                        break
                finally:
                    self.open -= 1
        except (OSError, asyncio.IncompleteReadError):
            self.gone += 1
        finally:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> Seen | None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        first, *lines = head.decode("latin-1").split("\r\n")[:-2]
        method, target, _ = first.split(" ", 2)
        headers = [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]
        length = int(next((value for name, value in headers if name.lower() == "content-length"), "0"))
        return Seen(method, target, headers, await reader.readexactly(length), self._clock.steady_ms())

    async def _answer(self, answer: Answer, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Returns whether the connection may go on."""
        if answer.wait_ms:
            await self._pause(answer.wait_ms, reader)
        if answer.raw:
            writer.write(answer.raw)
            await writer.drain()
            return False
        if answer.reset_after == 0:
            reset(writer)
            return False
        framing = ("Content-Length", str(len(answer.body))) if answer.chunks is None else ("Transfer-Encoding", "chunked")
        lines = [f"HTTP/1.1 {answer.status} X", *(f"{name}: {value}" for name, value in (*answer.headers, framing))]
        writer.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        if answer.hold:
            await writer.drain()
            await self._pause(None, reader)
        if answer.chunks is None:
            writer.write(answer.body)
            await writer.drain()
            return True
        for number, chunk in enumerate(answer.chunks, 1):
            writer.write(b"%x\r\n%b\r\n" % (len(chunk), chunk))
            await writer.drain()
            if number == answer.reset_after:
                reset(writer)
                return False
            if answer.after_each is not None:
                await answer.after_each()
            if answer.pause_ms:
                await self._pause(answer.pause_ms, reader)
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _pause(self, duration_ms: int | None, reader: asyncio.StreamReader) -> None:
        """Waits, and notices a client that goes away meanwhile.

        Raises:
            ConnectionResetError: It did.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(None if duration_ms is None else duration_ms / 1000):
                if not await reader.read(1):
                    raise ConnectionResetError


def reset(writer: asyncio.StreamWriter) -> None:
    """Ends a connection with RST instead of FIN."""
    found = writer.get_extra_info("socket")
    found.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# ---- well-formed answers ----------------------------------------------------------------------------------------------------

JSON_TYPE = ("Content-Type", "application/json")
SSE_TYPE = ("Content-Type", "text/event-stream; charset=utf-8")


def event(name: str, data: Any) -> bytes:
    """Returns one server-sent event."""
    return f"event: {name}\ndata: {json.dumps(data)}\n\n".encode()


def anthropic_usage(tokens_in: int, tokens_out: int, cache_read: int = 0, cache_write: int = 0, cache_write_1h: int = 0) -> dict[str, Any]:
    """Returns the `usage` of a message, or of the start of a streamed one."""
    return {
        "input_tokens": tokens_in,
        "cache_read_input_tokens": cache_read,
        "cache_creation_input_tokens": cache_write + cache_write_1h,
        "cache_creation": {"ephemeral_5m_input_tokens": cache_write, "ephemeral_1h_input_tokens": cache_write_1h},
        "output_tokens": tokens_out,
        "service_tier": "standard",
    }


def anthropic_json(
    tokens_in: int, tokens_out: int, *headers: tuple[str, str], cache_read: int = 0, cache_write: int = 0, cache_write_1h: int = 0
) -> Answer:
    """Returns a whole message."""
    message = {"type": "message", "content": [{"type": "text", "text": "ok"}], "model": "m"}
    body = json.dumps({**message, "usage": anthropic_usage(tokens_in, tokens_out, cache_read, cache_write, cache_write_1h)}).encode()
    return Answer(headers=(JSON_TYPE, *headers), body=body)


def anthropic_chunks(
    tokens_in: int, tokens_out: int, texts: Sequence[str], *, cache_read: int = 0, cache_write: int = 0, cache_write_1h: int = 0
) -> tuple[bytes, ...]:
    """Returns the events of a streamed message. As at the API, the last counts repeat the sums and leave the kinds of cache writes out."""
    start = {"type": "message", "usage": anthropic_usage(tokens_in, 1, cache_read, cache_write, cache_write_1h)}
    deltas = [
        event("content_block_delta", {"type": "content_block_delta", "delta": {"type": "text_delta", "text": text}}) for text in texts
    ]
    sums = anthropic_usage(tokens_in, tokens_out, cache_read, cache_write, cache_write_1h)
    del sums["cache_creation"], sums["service_tier"]
    last = {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": sums}
    stop = event("message_stop", {"type": "message_stop"})
    return (event("message_start", {"type": "message_start", "message": start}), *deltas, event("message_delta", last), stop)


def anthropic_stream(tokens_in: int, tokens_out: int, texts: Sequence[str] = ("hello",), *headers: tuple[str, str], **more: Any) -> Answer:
    """Returns a streamed message."""
    chunks = anthropic_chunks(tokens_in, tokens_out, texts)
    return msgspec.structs.replace(Answer(headers=(SSE_TYPE, *headers), chunks=chunks), **more)


def refusal(status: int, kind: str, *headers: tuple[str, str], message: str = "no") -> Answer:
    """Returns an error of Anthropic's."""
    body = json.dumps({"type": "error", "error": {"type": kind, "message": message}}).encode()
    return Answer(status=status, headers=(JSON_TYPE, *headers), body=body)
