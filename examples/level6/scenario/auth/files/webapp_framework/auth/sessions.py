"""Sessions: a signed token in a cookie says who somebody is, until it is too old."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Callable, Mapping
from typing import Any

from webapp_framework.core import Request, Response
from webapp_framework.http import make_cookie, read_cookies
from webapp_framework.templating import page

COOKIE = "session"
LOGIN = """<!doctype html>
<title>Log in</title>
<form method="post" action="/login">
{% if reason %}<p>{{ reason }}</p>{% end %}
<input name="user" required><input name="password" type="password" required><button>Log in</button>
</form>
"""


def sign(claims: Mapping[str, Any], key: bytes, seconds: float = 3600, now: float | None = None) -> str:
    """Returns a token that says this, and cannot be changed; it holds for so many seconds."""
    until = int((time.time() if now is None else now) + seconds)
    body = base64.urlsafe_b64encode(json.dumps({**claims, "until": until}, sort_keys=True).encode()).decode()
    return f"{body}.{_seal(body, key)}"


def verify(token: str, key: bytes, now: float | None = None) -> dict[str, Any] | None:
    """Returns what a token says, or nothing if it was changed, is too old, or is none."""
    body, _, seal = token.partition(".")
    if not hmac.compare_digest(seal.encode(), _seal(body, key).encode()):
        return None
    claims: dict[str, Any] = json.loads(base64.urlsafe_b64decode(body))
    return claims if claims.pop("until") > (time.time() if now is None else now) else None


def log_in(response: Response, user: str, key: bytes) -> Response:
    """Adds the cookie of a user to an answer and returns it."""
    return response.with_header("Set-Cookie", make_cookie(COOKIE, sign({"user": user}, key)))


def log_out(response: Response) -> Response:
    """Makes the client forget who it was."""
    return response.with_header("Set-Cookie", make_cookie(COOKIE, "", max_age=0))


def user_of(request: Request, key: bytes) -> str:
    """Returns who sent a request, or nothing."""
    claims = verify(read_cookies(request.header("Cookie")).get(COOKIE, ""), key)
    return str(claims.get("user", "")) if claims else ""


def signed_in(key: bytes) -> Callable[[Callable[[Request], Any]], Callable[[Request], Any]]:
    """Returns a decorator for handlers that need a user; whoever is none is shown the way to log in."""

    def guard(handler: Callable[[Request], Any]) -> Callable[[Request], Any]:
        def guarded(request: Request) -> Any:
            user = user_of(request, key)
            if not user:
                return page(LOGIN, 401, reason="You have to log in first.")
            request.state["user"] = user
            return handler(request)

        return guarded

    return guard


def _seal(body: str, key: bytes) -> str:
    return hmac.new(key, body.encode(), hashlib.sha256).hexdigest()
