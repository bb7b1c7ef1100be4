"""Cookies, read and written."""

from __future__ import annotations

from http.cookies import CookieError, SimpleCookie


def read_cookies(header: str) -> dict[str, str]:
    """Returns the cookies of a `Cookie` header; one that cannot be read counts as none at all."""
    try:
        return {name: morsel.value for name, morsel in SimpleCookie(header).items()}
    except CookieError:
        return {}


def make_cookie(name: str, value: str, max_age: int = 3600, secure: bool = False) -> str:
    """Returns the value of a `Set-Cookie` header: kept from scripts and from other sites.

    Raises:
        ValueError: The name is not one.
    """
    jar: SimpleCookie = SimpleCookie()
    try:
        jar[name] = value
    except CookieError as error:
        raise ValueError(f"{name!r} is not a name of a cookie") from error
    jar[name].update({"max-age": max_age, "httponly": True, "samesite": "Lax", "path": "/"})
    if secure:
        jar[name]["secure"] = True
    return jar[name].OutputString()


def drop_cookie(name: str) -> str:
    """Returns the value of a `Set-Cookie` header that makes a client forget a cookie."""
    return make_cookie(name, "", max_age=0)
