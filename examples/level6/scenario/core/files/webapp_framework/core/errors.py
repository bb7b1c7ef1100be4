"""Errors a handler may raise. Each knows the status it becomes."""

from __future__ import annotations


class WebError(Exception):
    """Base of all errors that become a response; its text is shown to the client."""

    status = 500


class BadRequest(WebError):
    """What the client sent cannot be used."""

    status = 400


class Unauthorized(WebError):
    """The client has to say who it is first."""

    status = 401


class Forbidden(WebError):
    """The client is known, and may not do this."""

    status = 403


class NotFound(WebError):
    """There is no such thing."""

    status = 404


def status_of(error: BaseException) -> int:
    """Returns the status an error asks for, or 0 for one that is a fault of the program."""
    status = getattr(error, "status", 0)
    return status if isinstance(status, int) and 400 <= status <= 599 else 0
