"""What a client is answered."""

from __future__ import annotations

import json
from typing import Any

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
JSON = "application/json"


class Response:
    """One answer: a status, headers in order, and bytes."""

    def __init__(self, body: str | bytes = "", status: int = 200, content_type: str = TEXT) -> None:
        """Takes text, which is sent as UTF-8, or bytes."""
        self.body = body.encode("utf-8") if isinstance(body, str) else body
        self.status = status
        self.headers: list[tuple[str, str]] = [("Content-Type", content_type)]

    @classmethod
    def of(cls, answer: Any) -> Response:
        """Returns the response a handler's answer stands for: itself, JSON for a dict or list, nothing for None, or text."""
        if isinstance(answer, Response):
            return answer
        if isinstance(answer, (dict, list)):
            return cls.of_json(answer)
        if answer is None:
            return cls("", 204)
        return cls(answer if isinstance(answer, bytes) else str(answer))

    @classmethod
    def of_json(cls, value: Any, status: int = 200) -> Response:
        """Returns a value as JSON; the fields of objects are sorted."""
        return cls(json.dumps(value, sort_keys=True), status, JSON)

    @classmethod
    def of_html(cls, markup: str, status: int = 200) -> Response:
        """Returns a page. What is in it has to be escaped already."""
        return cls(markup, status, HTML)

    @classmethod
    def redirect(cls, path: str, status: int = 303) -> Response:
        """Returns an answer that sends the client to another path of this site."""
        if not path.startswith("/") or path.startswith("//"):
            raise ValueError(f"{path!r} is not a path of this site")
        return cls("", status).with_header("Location", path)

    def with_header(self, name: str, value: str) -> Response:
        """Adds a header and returns the response; a value has one line."""
        if any(end in name + value for end in "\r\n\0"):
            raise ValueError(f"the header {name!r} has more than one line")
        self.headers.append((name, value))
        return self

    def header(self, name: str) -> str:
        """Returns the first header of that name, or nothing."""
        return next((value for known, value in self.headers if known.lower() == name.lower()), "")

    @property
    def text(self) -> str:
        """The body as text."""
        return self.body.decode("utf-8")

    def json(self) -> Any:
        """Returns what the body says in JSON."""
        return json.loads(self.body)
