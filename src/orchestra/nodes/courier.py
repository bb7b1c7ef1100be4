"""The control side of a courier: requests with deadlines, and the stream of journal and notices."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from orchestra.core.model import Worker
from orchestra.errors import CourierFailed, NodeUnreachable, ProtocolBroken
from orchestra.ids import AgentId
from orchestra.node import JournalBatch, Notice, Record, Report
from orchestra.nodes.transport import Channel, Transport
from orchestra.protocol.courier import Frame, FrameParser, request_line
from orchestra.protocol.journal import parse_lines

REPORTS_MAX: Final = 1024
"""Frames that wait for the engine; beyond that the courier's pipe fills up and it waits, nothing is dropped."""
HELLO_TIMEOUT_MS: Final = 20_000
"""A loaded machine may need seconds to start a Python; twice what was seen with 200 workers starting beside it."""


class Courier:
    """One running courier process and its channel."""

    def __init__(self, channel: Channel, nonce: str, request_timeout_ms: int) -> None:
        self._channel = channel
        self._parser = FrameParser(nonce)
        self._timeout_ms = request_timeout_ms
        self._number = 0
        self._waiting: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._hello: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self.reports: asyncio.Queue[Report] = asyncio.Queue(REPORTS_MAX)
        self._reader = asyncio.create_task(self._read(), name="courier-reader")
        self.spoilt = 0
        """Journal lines that were torn and passed over."""

    @classmethod
    async def open(cls, transport: Transport, argv: Sequence[str], *, request_timeout_ms: int) -> tuple[Courier, dict[str, Any]]:
        """Starts a courier and waits for its greeting; returns it and its facts.

        Raises:
            CourierFailed: It did not greet; the message has what it printed instead.
        """
        nonce = secrets.token_hex(4)
        channel = await transport.open([*argv, "--nonce", nonce])
        courier = cls(channel, nonce, request_timeout_ms)
        try:
            async with asyncio.timeout(HELLO_TIMEOUT_MS / 1000):
                return courier, await courier._hello
        except TimeoutError as exc:
            await courier.close()
            raise CourierFailed(f"the courier did not greet within {HELLO_TIMEOUT_MS // 1000} s", hint="is python3 >= 3.8 there?") from exc
        except CourierFailed:
            await courier.close()
            raise

    async def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Sends a request and returns its reply.

        Raises:
            CourierFailed: It was refused (`code` and message in the text), or no answer came in time.
        """
        if self._reader.done():
            raise NodeUnreachable("the courier is gone")
        self._number += 1
        number = self._number
        answer: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            async with asyncio.timeout(self._timeout_ms / 1000):
                self._channel.write(request_line(number, op, fields))
                await self._channel.drain()
                reply = await answer
        except TimeoutError as exc:
            raise CourierFailed(f"the courier did not answer {op!r} within {self._timeout_ms} ms") from exc
        except OSError as exc:
            raise NodeUnreachable(f"the courier's channel broke: {exc}") from exc
        finally:
            self._waiting.pop(number, None)
        error = reply.get("error")
        if error:
            raise CourierRefused(str(error.get("code")), f"{op}: {error.get('message')}")
        return reply

    async def close(self) -> None:
        """Ends the courier by closing its stdin. Idempotent."""
        self._reader.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self._reader
        await self._channel.close()
        self._fail(NodeUnreachable("the courier was closed"))

    async def _read(self) -> None:
        reason = "the connection to it broke"
        try:
            while data := await self._channel.read():
                for frame in self._parser.feed(data):
                    await self._take(frame)
        except (ProtocolBroken, OSError, msgspec.MsgspecError, ValueError) as error:
            reason = f"the courier said what nobody understands: {error}"
        self._fail(CourierFailed(reason))
        await self.reports.put(Notice("channel-lost", detail=reason))

    def _fail(self, error: Exception) -> None:
        for future in (self._hello, *self._waiting.values()):
            if not future.done():
                future.set_exception(error)
        if self._hello.done() and not self._hello.cancelled():
            self._hello.exception()  # looked at, so that nobody complains when it was never awaited

    async def _take(self, frame: Frame) -> None:
        rule = _KINDS.get(frame.kind)
        if rule is None:
            raise ProtocolBroken(f"the courier sent a frame of the unknown kind {frame.kind!r}")
        report = rule(self, frame)
        if report is not None:
            await self.reports.put(report)

    def _on_hello(self, frame: Frame) -> None:
        if not self._hello.done():
            self._hello.set_result(msgspec.json.decode(frame.payload, type=dict[str, Any]))

    def _on_reply(self, frame: Frame) -> None:
        reply = msgspec.json.decode(frame.payload, type=dict[str, Any])
        waiting = self._waiting.get(reply.get("re", 0))
        if waiting is not None and not waiting.done():
            waiting.set_result(reply)

    def _on_journal(self, frame: Frame) -> Report:
        raw, spoilt = parse_lines(frame.payload)
        self.spoilt += spoilt
        records = tuple(
            Record(
                each.kind,
                AgentId(each.agent),
                Worker(*each.worker),
                each.ms,
                str(each.body.pop("task", "")),
                int(each.body.pop("attempt", 0)),
                each.body,
            )
            for each in raw
        )
        return JournalBatch(records, frame.offset + len(frame.payload))

    def _on_notice(self, frame: Frame) -> Report:
        values = msgspec.json.decode(frame.payload, type=dict[str, Any])
        worker = worker_of(values.get("w"))
        return Notice(str(values.get("n")), AgentId(int(values.get("agent", 0))), worker, str(values.get("detail", "")))


class CourierRefused(CourierFailed):
    """The courier understood and said no; `reason` is its stable word for why."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason


def worker_of(text: object) -> Worker | None:
    """Returns the worker that `pid:start` names, or None."""
    pid, mark, start = str(text or "").partition(":")
    return Worker(int(pid), int(start)) if mark and pid.isdigit() and start.isdigit() else None


_KINDS: Final[dict[str, Callable[[Courier, Frame], Report | None]]] = {
    "hello": Courier._on_hello,
    "reply": Courier._on_reply,
    "journal": Courier._on_journal,
    "notice": Courier._on_notice,
}
