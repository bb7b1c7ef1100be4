"""The door: everything about a request that is decided before anybody is asked for it. Bounds, path, token, body."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import Final

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_protocol import RequestHandler

from orchestra.errors import BadInput
from orchestra.gateway.desk import ANONYMOUS, Desk
from orchestra.gateway.exchange import Exchange, Order
from orchestra.gateway.replies import SERVER, Reply, reply, unavailable
from orchestra.gateway.routes import METHODS, NoRoute, Route, find_route
from orchestra.gateway.upstream import Upstreams
from orchestra.metering.books import Who
from orchestra.protocol.usage_request import Asked, inflate, read_asked

log = logging.getLogger(__name__)

LINE_BYTES_MAX: Final = 8_190
FIELD_BYTES_MAX: Final = 32_768
"""Of one header. Codex sends a turn's metadata in one."""
HEADERS_MAX: Final = 200
CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


class QuietHandler(RequestHandler):
    """A connection whose malformed requests are answered without repeating what came, on the line or in the log: a token may be in it."""

    __slots__ = ()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Returns the answer to what is no HTTP, or to a fault of ours."""
        if status >= 500:
            log.error("request-failed path=%s", request.path, exc_info=exc)
        return answer_with(
            reply("anthropic", status, "orchestra: the request is malformed" if status < 500 else "orchestra: internal error"), close=True
        )


class BoundedServer(web.Server):
    """An HTTP server that takes so many connections and no more."""

    connections_max = 0

    def __call__(self) -> RequestHandler:
        """Makes the handler of a new connection."""
        return QuietHandler(self, loop=self._loop, **self._kwargs)

    def connection_made(self, handler: RequestHandler, transport: asyncio.Transport) -> None:
        """Counts a connection; one too many is closed at once."""
        super().connection_made(handler, transport)
        if len(self.connections) > self.connections_max:
            transport.abort()


class Refusal(Exception):
    """The request is answered here."""

    def __init__(self, answer: Reply, *, close: bool = False) -> None:
        super().__init__(answer.status)
        self.answer = answer
        self.close = close


def make_server(front: Front, desk: Desk) -> BoundedServer:
    """Returns the server; has to be called in the loop. A head has to be complete, and a connection used again, within the same time."""
    server = BoundedServer(
        front.handle,
        handler_cancellation=True,
        access_log=None,
        keepalive_timeout=desk.config.bounds.head_seconds,
        max_line_size=LINE_BYTES_MAX,
        max_field_size=FIELD_BYTES_MAX,
        max_headers=HEADERS_MAX,
        lingering_time=0,
        auto_decompress=False,
        logger=log,
    )
    server.connections_max = desk.config.bounds.connections
    return server


class Front:
    """Handles requests."""

    def __init__(self, desk: Desk, upstreams: Upstreams) -> None:
        self._desk = desk
        self._upstreams = upstreams

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        """Answers one request."""
        desk = self._desk
        desk.open += 1
        desk.served += 1
        try:
            return await self._handle(request)
        except Refusal as refusal:
            return answer_with(refusal.answer, close=refusal.close)
        finally:
            desk.open -= 1

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.method in {"HEAD", "GET"} and request.raw_path == "/":
            return answer_with(Reply(200, b""))
        route, kind = self._route(request)
        who = self._identify(request, route, kind)
        with self._holding() as hold:
            body = await self._body(request, kind, hold)
            asked = self._asked(request, route, kind, body)
            exchange = Exchange(self._desk, self._upstreams, Order(request, route, kind, who, body, asked))
            done = await exchange.run()
        return answer_with(done) if isinstance(done, Reply) else done

    def _route(self, request: web.BaseRequest) -> tuple[Route, str]:
        desk = self._desk
        route = find_route(request.raw_path, request.headers, desk.config.upstreams)
        kind = "anthropic" if isinstance(route, NoRoute) else desk.config.upstreams[route.upstream].kind
        if "websocket" in request.headers.get("upgrade", "").lower():
            raise Refusal(reply(kind, 426, "orchestra: this gateway speaks HTTP/1.1 only", ("Upgrade", "HTTP/1.1")), close=True)
        if request.method not in METHODS:
            raise Refusal(reply(kind, 405, "orchestra: this method is not passed on", ("Allow", ", ".join(sorted(METHODS)))), close=True)
        if isinstance(route, NoRoute):
            raise Refusal(reply(kind, route.status, f"orchestra: {route.message}"), close=route.status == 400)
        if request.method not in route.methods:
            allowed = ", ".join(sorted(route.methods))
            raise Refusal(reply(kind, 405, f"orchestra: this path takes {allowed} only", ("Allow", allowed)), close=True)
        if desk.draining:
            raise Refusal(unavailable(kind, "orchestra: the gateway is stopping", 5_000), close=True)
        return route, kind

    def _identify(self, request: web.BaseRequest, route: Route, kind: str) -> Who:
        upstream = self._desk.config.upstreams[route.upstream]
        who = self._desk.identify(request.headers)
        if who is None and upstream.pass_through and upstream.anonymous:
            return ANONYMOUS
        if who is None:
            raise Refusal(reply(kind, 401, "orchestra: the token is missing, unknown, revoked or expired", ("x-should-retry", "false")))
        return who

    @contextlib.contextmanager
    def _holding(self) -> Iterator[list[int]]:
        """Counts the body of a request while it is held."""
        hold = [0]
        try:
            yield hold
        finally:
            self._desk.body_bytes -= hold[0]

    async def _body(self, request: web.BaseRequest, kind: str, hold: list[int]) -> bytes:
        """Reads the body within the bounds of size and time."""
        bounds = self._desk.config.bounds
        most = bounds.body_mb << 20
        too_large = Refusal(reply(kind, 413, f"orchestra: a body may have {bounds.body_mb} MiB"), close=True)
        if (request.content_length or 0) > most:
            raise too_large
        if request.headers.get("expect", "").lower() == "100-continue":
            assert request.transport is not None
            request.transport.write(CONTINUE)
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(bounds.body_seconds):
                async for part in request.content.iter_any():
                    parts.append(part)
                    hold[0] += len(part)
                    self._desk.body_bytes += len(part)
                    if hold[0] > most:
                        raise too_large
                    if self._desk.body_bytes > bounds.bodies_mb << 20:
                        raise Refusal(unavailable(kind, "orchestra: too many large requests at once", 2_000), close=True)
        except TimeoutError:
            raise Refusal(reply(kind, 408, "orchestra: the body did not come in time"), close=True) from None
        except (web.RequestPayloadError, HttpProcessingError) as exc:
            raise Refusal(reply(kind, 400, "orchestra: the body is not complete"), close=True) from exc
        return b"".join(parts)

    def _asked(self, request: web.BaseRequest, route: Route, kind: str, body: bytes) -> Asked:
        if not route.costs:
            return Asked(route.model, False, 0)
        try:
            encoding = ", ".join(request.headers.getall("content-encoding", []))
            text = inflate(body, encoding, self._desk.config.bounds.body_mb << 20)
            return read_asked(text, kind=kind, model=route.model, stream=route.stream)
        except BadInput as error:
            status = 413 if "inflates" in error.message else 415 if error.field == "content-encoding" else 400
            raise Refusal(reply(kind, status, f"orchestra: {error}")) from error


def answer_with(answer: Reply, *, close: bool = False) -> web.Response:
    """Returns an answer of the gateway's own."""
    response = web.Response(status=answer.status, body=answer.body)
    response.content_type = answer.content_type
    response.headers["Server"] = SERVER
    for name, value in answer.headers:
        response.headers[name] = value
    if close:
        response.force_close()
    return response
