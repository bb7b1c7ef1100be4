"""What a client asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import parse_qs

from webapp_framework.core.errors import BadRequest

BODY_BYTES_MAX = 1 << 20


class Request:
    """One request. `params` holds the fields of the route that was found, `state` what middleware adds."""

    def __init__(
        self,
        method: str = "GET",
        path: str = "/",
        query: str = "",
        headers: Mapping[str, str] | None = None,
        body: bytes = b"",
    ) -> None:
        """Takes the parts of a request; the query is still encoded, header names know no case."""
        self.method = method.upper()
        self.path = path or "/"
        self.query = last_values(query)
        self.headers = {name.lower(): value for name, value in (headers or {}).items()}
        self.body = body
        self.params: dict[str, str] = {}
        self.state: dict[str, Any] = {}

    @classmethod
    def from_environ(cls, environ: Mapping[str, Any]) -> Request:
        """Returns the request a WSGI server describes.

        Raises:
            BadRequest: Its length is no number, or more than a mebibyte.
        """
        names = {key[5:].replace("_", "-"): value for key, value in environ.items() if key.startswith("HTTP_")}
        if environ.get("CONTENT_TYPE"):
            names["Content-Type"] = environ["CONTENT_TYPE"]
        body = environ["wsgi.input"].read(length_of(environ)) if "wsgi.input" in environ else b""
        path = environ.get("PATH_INFO", "/").encode("latin-1", "replace").decode("utf-8", "replace")
        return cls(environ.get("REQUEST_METHOD", "GET"), path, environ.get("QUERY_STRING", ""), names, body)

    def header(self, name: str, default: str = "") -> str:
        """Returns a header, or the default."""
        return self.headers.get(name.lower(), default)

    @property
    def text(self) -> str:
        """The body as text.

        Raises:
            BadRequest: It is not UTF-8.
        """
        try:
            return self.body.decode("utf-8")
        except UnicodeDecodeError as error:
            raise BadRequest("the body is not UTF-8") from error

    def json(self) -> Any:
        """Returns what the body says in JSON; nothing for an empty body.

        Raises:
            BadRequest: It is not JSON.
        """
        try:
            return json.loads(self.text or "null")
        except ValueError as error:
            raise BadRequest("the body is not JSON") from error

    def form(self) -> dict[str, str]:
        """Returns the fields of a form that was sent in the body."""
        return last_values(self.text)


def last_values(encoded: str) -> dict[str, str]:
    """Returns the fields of a query string; of a name that comes twice the last value."""
    return {name: values[-1] for name, values in parse_qs(encoded, keep_blank_values=True).items()}


def length_of(environ: Mapping[str, Any]) -> int:
    """Returns how many bytes of body a WSGI server announces."""
    told = environ.get("CONTENT_LENGTH") or "0"
    if not str(told).isdigit() or int(told) > BODY_BYTES_MAX:
        raise BadRequest("the length of the body is not usable")
    return int(told)
