"""What a response says it used: scanners that read beside the stream, for each provider's form. Sans-I/O.

A count is believed if it can be one (`metering.usage.believable`). Counts that come twice are cumulative, so the larger holds: one that falls, is negative
or is absurd changes nothing. Where a provider does not say, the input stays as estimated and the output is what was seen, a token for four bytes.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import msgspec

from orchestra.metering.usage import BYTES_PER_TOKEN, Usage, believable, mode_of
from orchestra.protocol.sse import SseEvent, SseParser

JSON_BYTES_MAX: Final = 8 << 20
"""Of a body that is read whole; of a larger one the end is searched."""
TAIL_BYTES: Final = 64 << 10
INFLATED_BYTES_MAX: Final = 64 << 20
"""Of a compressed response that is looked into; a bomb is forwarded as it came, and its usage assumed."""
_USAGE_AT: Final = re.compile(rb'"(?:usage|usageMetadata)"\s*:\s*\{')

_ERRORS: Final = (msgspec.DecodeError, RecursionError, UnicodeDecodeError, ValueError)


class Counts(msgspec.Struct):
    """What was read so far; None is not said."""

    input_tokens: int | None = None
    cache_read_tokens: int | None = None
    cache_write_tokens: int | None = None
    """Of any lifetime: the sum is told every time, the share of each lifetime only once."""
    cache_write_1h_tokens: int | None = None
    output_tokens: int | None = None
    web_searches: int | None = None
    modes: dict[str, str] = {}
    """What was asked for and what was said of the service tier, the speed and the place; what is said holds."""
    final: bool = False
    """The provider has said the last word on the output."""

    def raise_to(self, **counts: int | None) -> None:
        """Takes larger counts."""
        for name, value in counts.items():
            if value is not None:
                setattr(self, name, max(value, getattr(self, name) or 0))

    def replace_prompt(self, prompt: int | None, cached: int, written: int) -> None:
        """Takes a whole prompt's counts, told apart anew, unless a larger prompt was told before."""
        if prompt is None or prompt < (self.input_tokens or 0) + (self.cache_read_tokens or 0) + (self.cache_write_tokens or 0):
            return
        self.cache_read_tokens = min(cached, prompt)
        self.cache_write_tokens = min(written, prompt - self.cache_read_tokens)
        self.input_tokens = prompt - self.cache_read_tokens - self.cache_write_tokens

    def usage(self, estimate: Usage, seen_bytes: int) -> tuple[Usage, bool]:
        """Returns what was used, and whether part of it is assumed."""
        assumed = self.input_tokens is None or not self.final
        output = self.output_tokens or 0
        if not self.final:
            output = max(output, -(-seen_bytes // BYTES_PER_TOKEN))
        searches, mode = self.web_searches or 0, mode_of(self.modes)
        if self.input_tokens is None:
            return msgspec.structs.replace(estimate, output_tokens=output, web_searches=searches, mode=mode), True
        written, long = self.cache_write_tokens or 0, self.cache_write_1h_tokens or 0
        return Usage(self.input_tokens, self.cache_read_tokens or 0, max(0, written - long), long, output, searches, mode), assumed

    def tell_modes(self, **said: object) -> None:
        """Takes what is said of a mode; what is left out stays as it was asked for."""
        self.modes.update({name: value for name, value in said.items() if isinstance(value, str)})


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def read_anthropic(found: dict[str, Any], counts: Counts, *, final: bool) -> None:
    """Takes in the `usage` of a message. The start of a stream tells cache writes apart by lifetime, its end repeats their sum alone."""
    by_age = _mapping(found.get("cache_creation"))
    counts.raise_to(
        input_tokens=believable(found.get("input_tokens")),
        cache_read_tokens=believable(found.get("cache_read_input_tokens")),
        cache_write_tokens=believable(found.get("cache_creation_input_tokens")),
        cache_write_1h_tokens=believable(by_age.get("ephemeral_1h_input_tokens")),
        output_tokens=(output := believable(found.get("output_tokens"))),
        web_searches=believable(_mapping(found.get("server_tool_use")).get("web_search_requests")),
    )
    counts.tell_modes(tier=found.get("service_tier"), speed=found.get("speed"), place=found.get("inference_geo"))
    counts.raise_to(cache_write_tokens=(believable(by_age.get("ephemeral_5m_input_tokens")) or 0) + (counts.cache_write_1h_tokens or 0))
    counts.final = counts.final or (final and output is not None)


def read_openai(found: dict[str, Any], counts: Counts, *, final: bool) -> None:
    """Takes in the `usage` of a response or a chat completion; what came from a cache is part of its prompt."""
    prompt = believable(found.get("input_tokens", found.get("prompt_tokens")))
    details = _mapping(found.get("input_tokens_details", found.get("prompt_tokens_details")))
    output = believable(found.get("output_tokens", found.get("completion_tokens")))
    counts.replace_prompt(prompt, believable(details.get("cached_tokens")) or 0, believable(details.get("cache_write_tokens")) or 0)
    counts.raise_to(output_tokens=output)
    counts.final = counts.final or (final and output is not None)


def read_gemini(found: dict[str, Any], counts: Counts, *, final: bool) -> None:
    """Takes in `usageMetadata`; thoughts are paid as output, and each chunk repeats the sums."""
    prompt = believable(found.get("promptTokenCount"))
    tools = believable(found.get("toolUsePromptTokenCount")) or 0
    answer = believable(found.get("candidatesTokenCount"))
    thoughts = believable(found.get("thoughtsTokenCount"))
    output = None if answer is None and thoughts is None else (answer or 0) + (thoughts or 0)
    whole = None if prompt is None else prompt + tools
    counts.tell_modes(tier=found.get("serviceTier"))
    counts.replace_prompt(whole, believable(found.get("cachedContentTokenCount")) or 0, 0)
    counts.raise_to(output_tokens=output)
    counts.final = counts.final or (final and output is not None)


Reader = Callable[..., None]


class Scan:
    """Reads one response. `feed` takes the body as it is forwarded, in its content encoding.

    Args:
        form: `anthropic`, `responses`, `chat` or `gemini`.
        streamed: The body is server-sent events.
        encoding: Content encoding; what cannot be read is forwarded all the same, and assumed.
        modes: What was asked for of the service tier and the like, which holds unless the response says otherwise.
    """

    def __init__(self, form: str, *, streamed: bool, encoding: str = "", modes: Mapping[str, str] = {}) -> None:
        self.counts = Counts(modes=dict(modes))
        self.seen_bytes = 0
        """Of text, thoughts and tool calls that were streamed."""
        self.body_bytes = 0
        """Of the whole body, inflated as far as it could be."""
        self.failed = False
        """An error came inside the stream."""
        self.unreadable = False
        self._form = form
        self._parser = SseParser() if streamed else None
        self._body = bytearray()
        self._clipped = False
        self._inflated = 0
        self._inflate: Any = None
        encoding = encoding.strip().lower()
        if encoding in {"gzip", "x-gzip", "deflate"}:
            self._inflate = zlib.decompressobj(zlib.MAX_WBITS | 32)
        elif encoding not in {"", "identity"}:
            self.unreadable = True
        self._on_event = {"anthropic": self._anthropic, "responses": self._responses, "chat": self._chat, "gemini": self._gemini}[form]

    def feed(self, chunk: bytes) -> None:
        """Looks at the next bytes of the body."""
        if self.unreadable:
            self.seen_bytes += len(chunk)
            return
        for piece in [chunk] if self._inflate is None else self._inflated_pieces(chunk):
            if self._parser is None:
                self._collect(piece)
                continue
            for event in self._parser.feed(piece):
                self._event(event)

    def _inflated_pieces(self, chunk: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        try:
            while chunk:
                piece = self._inflate.decompress(chunk, 1 << 20)
                self._inflated += len(piece)
                if self._inflated > INFLATED_BYTES_MAX:
                    self.unreadable = True
                    return []
                pieces.append(piece)
                chunk = self._inflate.unconsumed_tail
        except zlib.error:
            self.unreadable = True
        return pieces

    def _collect(self, piece: bytes) -> None:
        self.body_bytes += len(piece)
        self._body += piece
        if len(self._body) > JSON_BYTES_MAX:
            self._clipped = True
            del self._body[:-TAIL_BYTES]

    def _event(self, event: SseEvent) -> None:
        if event.clipped:
            self._search(event.data)
            return
        try:
            self._on_event(event)
        except _ERRORS:
            self.seen_bytes += len(event.data)

    def end(self) -> None:
        """The body is complete: reads what is only readable whole."""
        if self._parser is not None or self.unreadable or not self._body:
            return
        try:
            if self._clipped:
                self._search(bytes(self._body[-TAIL_BYTES:]))
            elif self._form == "gemini":
                found = msgspec.json.decode(self._body)
                for each in found if isinstance(found, list) else [found]:
                    self._read_gemini(_mapping(each))
            else:
                self._read_answer(bytes(self._body))
        except _ERRORS:
            self._search(bytes(self._body[-TAIL_BYTES:]))
        self._body = bytearray()

    def _read_answer(self, data: bytes) -> None:
        """Reads a whole message, response or chat completion."""
        found = msgspec.json.decode(data, type=_Answer)
        _reader(self._form)(_mapping(_decoded(found.usage)), self.counts, final=True)
        if self._form != "anthropic":
            self.counts.tell_modes(tier=found.service_tier)
        if self._form == "responses" and found.output:
            made = msgspec.json.decode(found.output, type=list[_Item])
            self.counts.raise_to(web_searches=sum(each.type == "web_search_call" for each in made))

    def _read_gemini(self, found: dict[str, Any]) -> None:
        read_gemini(_mapping(found.get("usageMetadata")), self.counts, final=True)
        candidates = found.get("candidates")
        for each in candidates if isinstance(candidates, list) else []:
            queries = _mapping(_mapping(each).get("groundingMetadata")).get("webSearchQueries")
            self.counts.raise_to(web_searches=len(queries) if isinstance(queries, list) else None)

    def _search(self, data: bytes) -> None:
        """Looks for the last usage in what is left of something large."""
        for match in reversed(list(_USAGE_AT.finditer(data))):
            found = _object_at(data, match.end() - 1)
            if found is not None:
                _reader(self._form)(found, self.counts, final=True)
                return

    def _anthropic(self, event: SseEvent) -> None:
        if event.name in {"ping", "content_block_stop", "message_stop"}:
            return
        found = msgspec.json.decode(event.data, type=_AnthropicEvent)
        if found.type == "content_block_delta":
            self.seen_bytes += sum(len(value) for name, value in _mapping(found.delta).items() if isinstance(value, str) and name in _TEXTS)
        elif found.type == "message_start":
            read_anthropic(_mapping(_mapping(found.message).get("usage")), self.counts, final=False)
        elif found.type == "message_delta":
            read_anthropic(_mapping(found.usage), self.counts, final=True)
        elif found.type == "error":
            self.failed = True

    def _responses(self, event: SseEvent) -> None:
        found = msgspec.json.decode(event.data, type=_ResponsesEvent)
        if found.type.endswith(".delta"):
            delta = _decoded(found.delta)
            self.seen_bytes += len(delta) if isinstance(delta, str) else 0
        elif found.type in {"response.completed", "response.incomplete", "response.failed", "response.done"}:
            if found.response:
                self._read_answer(bytes(found.response))
            self.failed = self.failed or found.type == "response.failed"
        elif found.type == "response.web_search_call.completed":
            self.counts.web_searches = (self.counts.web_searches or 0) + 1
        elif found.type == "error":
            self.failed = True

    def _chat(self, event: SseEvent) -> None:
        if event.data == b"[DONE]":
            return
        found = _mapping(msgspec.json.decode(event.data))
        if isinstance(found.get("usage"), dict):
            read_openai(found["usage"], self.counts, final=True)
        self.counts.tell_modes(tier=found.get("service_tier"))
        choices = found.get("choices")
        for choice in choices if isinstance(choices, list) else []:
            self.seen_bytes += _text_bytes(_mapping(choice).get("delta"))
        self.failed = self.failed or "error" in found

    def _gemini(self, event: SseEvent) -> None:
        found = _mapping(msgspec.json.decode(event.data))
        self._read_gemini(found)
        self.seen_bytes += _text_bytes(found.get("candidates"))
        self.failed = self.failed or "error" in found

    def usage(self, estimate: Usage) -> tuple[Usage, bool]:
        """Returns what was used, and whether part of it is assumed; at any time."""
        return self.counts.usage(estimate, self.seen_bytes)


_TEXTS: Final = frozenset({"text", "partial_json", "thinking", "content", "arguments", "reasoning_content", "refusal"})


class _AnthropicEvent(msgspec.Struct):
    type: str = ""
    delta: Any = None
    message: Any = None
    usage: Any = None


class _ResponsesEvent(msgspec.Struct):
    type: str = ""
    delta: msgspec.Raw = msgspec.Raw(b"")
    response: msgspec.Raw = msgspec.Raw(b"")


class _Answer(msgspec.Struct):
    usage: msgspec.Raw = msgspec.Raw(b"")
    output: msgspec.Raw = msgspec.Raw(b"")
    service_tier: Any = None


class _Item(msgspec.Struct):
    type: str = ""


def _decoded(raw: msgspec.Raw) -> object:
    return msgspec.json.decode(raw) if raw else None


def _reader(form: str) -> Reader:
    return {"anthropic": read_anthropic, "gemini": read_gemini}.get(form, read_openai)


def _text_bytes(value: object) -> int:
    """Returns the length of what a model wrote, anywhere in a delta."""
    if isinstance(value, list):
        return sum(_text_bytes(each) for each in value)
    if not isinstance(value, dict):
        return 0
    return sum(len(each) if isinstance(each, str) and name in _TEXTS else _text_bytes(each) for name, each in value.items())


def _object_at(data: bytes, start: int) -> dict[str, Any] | None:
    depth = 0
    for position in range(start, min(len(data), start + 8192)):
        byte = data[position]
        if byte == 0x7B:
            depth += 1
        elif byte == 0x7D:
            depth -= 1
            if depth == 0:
                try:
                    return _mapping(msgspec.json.decode(data[start : position + 1]))
                except _ERRORS:
                    return None
    return None
