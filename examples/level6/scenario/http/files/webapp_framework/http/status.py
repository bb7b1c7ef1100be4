"""Status codes in words."""

from __future__ import annotations

from http import HTTPStatus


def phrase(code: int) -> str:
    """Returns what a status is called; one nobody has named is called after its class."""
    try:
        return HTTPStatus(code).phrase
    except ValueError:
        return {2: "Success", 3: "Redirection", 4: "Client Error", 5: "Server Error"}.get(code // 100, "Unknown")


def is_error(code: int) -> bool:
    """Tells whether a status says that something is wrong."""
    return code >= 400


def is_redirect(code: int) -> bool:
    """Tells whether a status sends the client elsewhere."""
    return code in (301, 302, 303, 307, 308)
