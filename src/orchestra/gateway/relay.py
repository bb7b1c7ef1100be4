"""Gives an answer back as it comes: every byte as it was, nothing held back, with a reader beside it that counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import aiohttp
import msgspec
from aiohttp import web

from orchestra.errors import BadInput, PortFailed
from orchestra.gateway.replies import SERVER, Reply, cut_event
from orchestra.gateway.upstream import response_headers
from orchestra.metering.prices import cost_usd_micros
from orchestra.metering.usage import BYTES_PER_TOKEN, Usage
from orchestra.protocol.usage import Scan
from orchestra.protocol.usage_request import inflate
from orchestra.secret import MASK, Secret

if TYPE_CHECKING:
    from orchestra.gateway.exchange import Exchange, Held

ERROR_BYTES_MAX: Final = 256 << 10
"""Of an error that is looked into before it is given back. Providers' errors have a few hundred bytes."""
LOOK_BYTES: Final = 256
"""Of text between two looks at the budget."""
NOTE_BYTES: Final = 1_024
"""Of text between two notes of how far it has come: what a crash may leave uncounted of a stream is at most 256 tokens."""


class Broken(Exception):
    """The answer ended before its first byte."""


async def read_error(response: aiohttp.ClientResponse) -> Reply | None:
    """Returns an error response whole, its body and headers as they came; None if it is too large for an error.

    A body that breaks off is given back as far as it came.
    """
    if (response.content_length or 0) > ERROR_BYTES_MAX:
        return None
    body = bytearray()
    try:
        async with asyncio.timeout(30):
            async for chunk in response.content.iter_any():
                body += chunk
                if len(body) > ERROR_BYTES_MAX:
                    del body[ERROR_BYTES_MAX:]
                    break
    except (aiohttp.ClientError, OSError, TimeoutError):
        pass
    headers = response_headers(response.raw_headers, {})
    headers.popall("Content-Length", None)
    content_type = headers.pop("Content-Type", "application/octet-stream")
    headers.popall("Content-Type", None)
    return Reply(response.status, bytes(body), tuple(headers.items()), content_type)


def words_of(failed: Reply) -> bytes:
    """Returns what an error says, as text even if it was sent compressed: what it means is decided by its words."""
    encoding = next((value for name, value in failed.headers if name.lower() == "content-encoding"), "")
    try:
        return inflate(failed.body, encoding, ERROR_BYTES_MAX)
    except BadInput:
        return failed.body


def without_key(failed: Reply, secret: Secret | None) -> Reply:
    """Returns an error as it came, unless the provider repeats the key in it: then the key is struck out."""
    if secret is None:
        return failed
    key = secret.reveal()
    headers = tuple((name, value.replace(key, MASK)) for name, value in failed.headers)
    words = words_of(failed)
    if key.encode() not in words:
        return msgspec.structs.replace(failed, headers=headers)
    plain = tuple((name, value) for name, value in headers if name.lower() != "content-encoding")
    return msgspec.structs.replace(failed, body=words.replace(key.encode(), MASK.encode()), headers=plain)


class Relay:
    """One answer on its way."""

    def __init__(self, exchange: Exchange, held: Held, response: aiohttp.ClientResponse) -> None:
        self._exchange = exchange
        self._held = held
        self._response = response
        self._desk = exchange.desk
        self._order = exchange.order
        self._bounds = exchange.desk.config.bounds
        self._chunks = response.content.iter_any().__aiter__()
        streamed = response.headers.get("content-type", "").lower().startswith("text/event-stream")
        self._streamed = streamed
        encoding = response.headers.get("content-encoding", "")
        self._plain = encoding.strip().lower() in {"", "identity"}
        form = exchange.order.route.form
        costs = exchange.order.route.costs and response.status < 400
        self._scan = Scan(form, streamed=streamed, encoding=encoding, modes=exchange.order.asked.modes) if costs else None
        if self._scan is not None and exchange.order.kind == "gemini":
            self._scan.counts.tell_modes(tier=response.headers.get("x-gemini-service-tier"))
        self._look_at = 0
        self._note_at = NOTE_BYTES
        self._noted = False
        self._done = False

    async def first(self) -> bytes:
        """Returns the first bytes; empty if the answer has no body.

        Raises:
            Broken: It broke off or stalled before.
        """
        try:
            async with asyncio.timeout(self._bounds.idle_seconds):
                return await anext(self._chunks, b"")
        except TimeoutError:
            raise Broken("the provider began an answer and stalled") from None
        except (aiohttp.ClientError, OSError) as exc:
            raise Broken(f"the provider's answer broke off: {type(exc).__name__}") from exc

    async def run(self, chunk: bytes) -> web.StreamResponse:
        """Gives all of it back and settles. A client that is gone or takes nothing ends it, and so does an upstream that stalls."""
        response, request = self._response, self._order.request
        out = web.StreamResponse(status=response.status, reason=response.reason)
        out.headers.extend(response_headers(response.raw_headers, {}))
        out.headers.setdefault("Server", SERVER)
        whole = False
        try:
            await out.prepare(request)
            async with asyncio.timeout(self._bounds.whole_seconds):
                whole = await self._pump(out, chunk)
        except (aiohttp.ClientError, TimeoutError, OSError):
            whole = False
        finally:
            self._settle(whole=whole)
        if not whole:
            out.force_close()
            if request.transport is not None:
                request.transport.close()
            return out
        await out.write_eof()
        return out

    async def _pump(self, out: web.StreamResponse, chunk: bytes) -> bool:
        """Forwards until the end; tells whether the end was a good one."""
        loop = asyncio.get_running_loop()
        idle, stalled = self._bounds.idle_seconds, self._bounds.stalled_reader_seconds
        async with asyncio.timeout(idle) as patience:
            while chunk:
                if self._scan is not None:
                    self._scan.feed(chunk)
                    if (words := self._over_budget()) is not None:
                        if not self._plain:
                            return False
                        await out.write(cut_event(self._order.route.form, words))
                        return True
                patience.reschedule(loop.time() + stalled)
                await out.write(chunk)
                patience.reschedule(loop.time() + idle)
                chunk = await anext(self._chunks, b"")
        if self._scan is not None:
            self._scan.end()
        self._settle(whole=True)
        return True

    def _over_budget(self) -> str | None:
        """Returns why the stream has to be cut, if it does."""
        scan, opened = self._scan, self._exchange.opened
        if scan is None or opened is None or not self._streamed or scan.seen_bytes < self._look_at:
            return None
        self._look_at = scan.seen_bytes + LOOK_BYTES
        usage, _ = scan.usage(self._exchange.expected)
        cost = cost_usd_micros(self._desk.quote(self._order.kind, opened.model, usage).price, usage)
        grows = cost > self._desk.held(opened)
        due = scan.seen_bytes >= self._note_at or (not self._noted and scan.counts.input_tokens is not None)
        if grows or due:
            self._noted, self._note_at = True, scan.seen_bytes + NOTE_BYTES
        if not grows:
            if due:
                self._desk.note(opened, cost, usage)
            return None
        try:
            overspent = self._desk.grow(opened, cost, usage)
        except PortFailed as error:
            return f"orchestra: {error.message}"
        return None if overspent is None else self._desk.tell_overspent(self._order.who, overspent)

    def _settle(self, *, whole: bool) -> None:
        if self._done:
            return
        self._done = True
        if self._scan is None:
            self._exchange.settle_limits(self._held, Usage())
            self._exchange.settle(self._response.status, Usage(), assumed=False)
            return
        usage, assumed = self._scan.usage(self._exchange.expected)
        if assumed and whole and not self._streamed and self._scan.counts.output_tokens is None:
            output = max(usage.output_tokens, self._scan.body_bytes // BYTES_PER_TOKEN)
            usage = msgspec.structs.replace(usage, output_tokens=output)
        self._exchange.settle_limits(self._held, usage)
        self._exchange.settle(self._response.status, usage, assumed=assumed)
        if assumed:
            self._desk.notices.tell("usage_assumed", attempt=self._order.who.attempt, model=self._order.asked.model)
