"""Asks an application without a network, and keeps its cookies like a browser."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

from webapp_framework.core import Application, Request, Response
from webapp_framework.http import read_cookies


class Client:
    """Sends requests to one application."""

    def __init__(self, application: Application) -> None:
        """Begins without cookies."""
        self.application = application
        self.cookies: dict[str, str] = {}

    def send(self, method: str, path: str, body: bytes = b"", headers: Mapping[str, str] | None = None) -> Response:
        """Sends a request and returns the answer; its cookies are kept for the next one."""
        place, _, query = path.partition("?")
        sent = dict(headers or {})
        if self.cookies:
            sent["Cookie"] = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        response = self.application.handle(Request(method, place, query, sent, body))
        for name, value in response.headers:
            if name == "Set-Cookie":
                self._keep(value)
        return response

    def get(self, path: str) -> Response:
        """Asks for a path."""
        return self.send("GET", path)

    def post(self, path: str, value: Any) -> Response:
        """Sends a value as JSON."""
        return self.send("POST", path, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def submit(self, path: str, **fields: str) -> Response:
        """Sends a form."""
        kind = {"Content-Type": "application/x-www-form-urlencoded"}
        return self.send("POST", path, urlencode(fields).encode(), kind)

    def _keep(self, header: str) -> None:
        for name, value in read_cookies(header.partition(";")[0]).items():
            if value:
                self.cookies[name] = value
            else:
                self.cookies.pop(name, None)
