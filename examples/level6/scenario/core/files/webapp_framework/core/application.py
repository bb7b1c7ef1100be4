"""Takes a request to its handler and turns the answer, or an error, into a response."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from typing import Any, Protocol

from webapp_framework.core.errors import status_of
from webapp_framework.core.request import Request
from webapp_framework.core.response import Response

Handler = Callable[[Request], Any]
Middleware = Callable[[Handler], Handler]


class Finder(Protocol):
    """What the application needs of a router."""

    def add(self, method: str, path: str, handler: Handler) -> None:
        """Remembers a handler."""

    def find(self, method: str, path: str) -> tuple[Handler, dict[str, str]]:
        """Returns the handler for a path and the fields in it; an error it raises has a `status`."""


class Application:
    """A program that answers requests; also a WSGI application."""

    def __init__(self, router: Finder, debug: bool = False) -> None:
        """Takes a router; with `debug` the answer to a fault of the program says what it was."""
        self.router = router
        self.debug = debug
        self.middleware: list[Middleware] = []

    def route(self, path: str, method: str = "GET") -> Callable[[Handler], Handler]:
        """Returns a decorator that registers a handler for a path."""

        def register(handler: Handler) -> Handler:
            self.router.add(method, path, handler)
            return handler

        return register

    def use(self, middleware: Middleware) -> None:
        """Puts something round every handler; what was added first is outermost."""
        self.middleware.append(middleware)

    def handle(self, request: Request) -> Response:
        """Returns the answer to a request, whatever happens in its handler."""
        try:
            handler, request.params = self.router.find(request.method, request.path)
            for wrap in reversed(self.middleware):
                handler = wrap(handler)
            return Response.of(handler(request))
        except Exception as error:
            return self.answer_to(error)

    def answer_to(self, error: Exception) -> Response:
        """Returns what the client is told of an error."""
        status = status_of(error)
        if status:
            return Response(str(error) or HTTPStatus(status).phrase, status)
        told = "".join(traceback.format_exception(type(error), error, error.__traceback__)) if self.debug else "internal error"
        return Response(told, 500)

    def __call__(self, environ: Mapping[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        """Answers a WSGI server."""
        try:
            response = self.handle(Request.from_environ(environ))
        except Exception as error:
            response = self.answer_to(error)
        length = ("Content-Length", str(len(response.body)))
        start_response(f"{response.status} {HTTPStatus(response.status).phrase}", [*response.headers, length])
        return [b"" if environ.get("REQUEST_METHOD") == "HEAD" else response.body]
