"""The gateway's own answers, in the schema of the provider that the client believes to talk to."""

from __future__ import annotations

from typing import Final

import msgspec

SERVER: Final = "orchestra-gateway"
NO_RETRY: Final = ("x-should-retry", "false")
RETRY_AFTER_S_MAX: Final = 60
"""Claude Code gives up at once on more."""

_ANTHROPIC: Final = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    504: "timeout_error",
    529: "overloaded_error",
}
_GEMINI: Final = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    402: "PERMISSION_DENIED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


class Reply(msgspec.Struct, frozen=True):
    """One answer."""

    status: int
    body: bytes
    headers: tuple[tuple[str, str], ...] = ()
    content_type: str = "application/json"


def reply(kind: str, status: int, message: str, *headers: tuple[str, str]) -> Reply:
    """Returns an error in a provider's schema."""
    return Reply(status, msgspec.json.encode(_body(kind, status, message, "")), headers)


def _body(kind: str, status: int, message: str, code: str) -> object:
    if kind == "anthropic":
        return {"type": "error", "error": {"type": _ANTHROPIC.get(status, "api_error"), "message": message}}
    if kind == "gemini":
        return {"error": {"code": status, "message": message, "status": _GEMINI.get(status, "INTERNAL")}}
    kinds = {429: "rate_limit_exceeded", 401: "invalid_request_error", 400: "invalid_request_error", 404: "invalid_request_error"}
    return {"error": {"message": message, "type": code or kinds.get(status, "server_error"), "param": None, "code": code or None}}


def busy(kind: str, message: str, retry_after_ms: int) -> Reply:
    """Returns the refusal that the client may try again later."""
    seconds = min(RETRY_AFTER_S_MAX, max(1, -(-retry_after_ms // 1000)))
    return reply(kind, 429, message, ("retry-after", str(seconds)))


def unavailable(kind: str, message: str, retry_after_ms: int) -> Reply:
    """Returns the provider's word for having trouble: the client may try again later."""
    seconds = min(RETRY_AFTER_S_MAX, max(1, -(-retry_after_ms // 1000)))
    return reply(kind, 529 if kind == "anthropic" else 503, message, ("retry-after", str(seconds)))


def spent(kind: str, message: str) -> Reply:
    """Returns the refusal of a budget, which no client repeats: 402 of Anthropic, `insufficient_quota` of OpenAI."""
    if kind == "openai":
        return Reply(429, msgspec.json.encode(_body(kind, 429, message, "insufficient_quota")), (NO_RETRY,))
    return reply(kind, 402 if kind == "anthropic" else 403, message, NO_RETRY)


def cut_event(form: str, message: str) -> bytes:
    """Returns the last event of a stream that is ended because a budget is spent."""
    if form == "anthropic":
        error = msgspec.json.encode(_body("anthropic", 402, message, ""))
        return b"event: error\ndata: " + error + b"\n\n"
    if form == "responses":
        error = msgspec.json.encode({"type": "error", "code": "insufficient_quota", "message": message, "param": None})
        return b"event: error\ndata: " + error + b"\n\n"
    kind = "gemini" if form == "gemini" else "openai"
    return b"data: " + msgspec.json.encode(_body(kind, 429, message, "insufficient_quota")) + b"\n\n"
