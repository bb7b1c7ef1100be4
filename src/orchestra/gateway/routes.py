"""Which upstream a request is for, from its path alone, and what no proxy of keys may let through."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

from orchestra.gateway.config import UpstreamPart
from orchestra.gateway.upstream import TOKEN

TARGET_CHARS_MAX: Final = 4096
METHODS: Final = frozenset({"GET", "HEAD", "POST", "DELETE"})
READING: Final = frozenset({"GET", "HEAD"})
ASKING: Final = frozenset({"POST"})
_SAFE: Final = re.compile(r"/[A-Za-z0-9._~!$&'()*+,;=:@/-]*(?:\?[\x21\x22\x24-\x7e]*)?")
_DOTS: Final = re.compile(r"(?:^|/)\.{1,2}(?:/|$)")
_GEMINI: Final = re.compile(r"(?:/v1(?:beta|alpha)?)?/models/([A-Za-z0-9._-]{1,120}):(\w{1,40})")
_KEY_IN_QUERY: Final = re.compile(r"(?:^|&)(?:key|api[_-]?key|access_token|token)=", re.IGNORECASE)

FORMS: Final = {
    ("anthropic", "/v1/messages"): "anthropic",
    ("openai", "/v1/responses"): "responses",
    ("openai", "/v1/chat/completions"): "chat",
    ("openai", "/v1/responses/compact"): "responses",
    ("openai", "/responses"): "responses",
    ("openai", "/responses/compact"): "responses",
}
"""Requests that cost: (kind, path) -> form of the answer. Codex with a subscription asks an address without a version, and has long sessions shortened there."""
_COUNTING: Final = {("anthropic", "/v1/messages/count_tokens"), ("openai", "/v1/responses/input_tokens")}
_LATER: Final = re.compile(r"/batches(?:/|$)|:(?:async)?batch\w*$|:predictLongRunning$", re.IGNORECASE)
"""What is answered, and billed, when nobody looks any more."""
_FREE: Final = re.compile(r"(?:/v1(?:beta|alpha)?)?/models(?:/[A-Za-z0-9._:-]{1,120})?")
_OF_KIND: Final = (
    ("anthropic", re.compile(r"/v1/(?:messages|complete)(?:/.*)?")),
    ("openai", re.compile(r"/v1/(?:responses|chat|embeddings|completions|batches|files|images|audio|moderations)(?:/.*)?")),
    ("gemini", re.compile(r"/v1(?:beta|alpha)(?:/.*)?")),
)


class Route(msgspec.Struct, frozen=True):
    """Where a request goes."""

    upstream: str
    target: str
    """Path and query as they are sent on: the very characters that came."""
    form: str
    """`anthropic`, `responses`, `chat`, `gemini` for what costs; `counting` and `free` for what does not; `other` for what nobody here counts."""
    model: str = ""
    stream: bool = False

    @property
    def costs(self) -> bool:
        """Whether the model answers."""
        return self.form in {"anthropic", "responses", "chat", "gemini"}

    @property
    def methods(self) -> frozenset[str]:
        """What may be asked of it. A list of models is read: deleting one is no business of an agent's."""
        return METHODS if self.form == "other" else READING if self.form == "free" else ASKING


class NoRoute(msgspec.Struct, frozen=True):
    """Why a request is not passed on."""

    status: int
    message: str


def find_route(target: str, headers: Mapping[str, str], upstreams: Mapping[str, UpstreamPart]) -> Route | NoRoute:
    """Returns where a request goes.

    Args:
        target: The request target as it came, undecoded.
        headers: Of the request.
        upstreams: Name -> upstream; the first of a kind serves the provider's own paths, each serves `/NAME/...`.
    """
    if len(target) > TARGET_CHARS_MAX:
        return NoRoute(414, "the path is too long")
    if not target.startswith("/") or _SAFE.fullmatch(target) is None:
        return NoRoute(400, "the request target has to be a path without escapes")
    path, _, query = target.partition("?")
    if "//" in path or _DOTS.search(path):
        return NoRoute(400, "the path is not in its plain form")
    if _KEY_IN_QUERY.search(query) or TOKEN.search(target):
        return NoRoute(400, "a key does not belong into the address; send it in a header")
    first, _, rest = path[1:].partition("/")
    if first in upstreams:
        return _within(first, upstreams[first], "/" + rest, query)
    if path == "/v1/models" or path.startswith("/v1/models/"):
        found = _GEMINI.fullmatch(path)
        kind = "gemini" if found else "anthropic" if "anthropic-version" in headers else "openai"
    else:
        kind = next((kind for kind, pattern in _OF_KIND if pattern.fullmatch(path)), "")
    name = next((name for name, upstream in upstreams.items() if upstream.kind == kind), None)
    if name is None and path.startswith("/v1/models"):
        name = next((name for name, upstream in upstreams.items() if upstream.kind in {"anthropic", "openai"}), None)
    if name is None:
        return NoRoute(404, "no upstream serves this path")
    return _within(name, upstreams[name], path, query)


def _within(name: str, upstream: UpstreamPart, path: str, query: str) -> Route | NoRoute:
    target = f"{path}?{query}" if query else path
    if (form := FORMS.get((upstream.kind, path))) is not None:
        return Route(name, target, form)
    if (upstream.kind, path) in _COUNTING:
        return Route(name, target, "counting")
    if upstream.kind == "gemini" and (found := _GEMINI.fullmatch(path)) is not None:
        if found[2] in {"generateContent", "streamGenerateContent"}:
            return Route(name, target, "gemini", found[1], found[2] == "streamGenerateContent")
        if found[2] == "countTokens":
            return Route(name, target, "counting", found[1])
    elif _FREE.fullmatch(path):
        return Route(name, target, "free")
    if upstream.other_paths == "pass":
        return Route(name, target, "other")
    if _LATER.search(path):
        return NoRoute(
            404, "what is answered later is billed past every budget; `other_paths: pass` of the upstream would let it through, uncounted"
        )
    return NoRoute(404, "this path is not passed on; `other_paths: pass` of the upstream would allow it, uncounted")
