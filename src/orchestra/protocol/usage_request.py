"""What a request asks for: model, streaming, and how long the answer may be. Read without touching the bytes that are forwarded. Sans-I/O.

The bytes go to the provider as they came, so this parser and the provider's must not read two things in them: a key that decides something and is given
twice is refused.
"""

from __future__ import annotations

import re
import sys
import zlib
from typing import Final

import msgspec

from orchestra.errors import BadInput
from orchestra.metering.estimates import prompt_bytes
from orchestra.metering.usage import TOKENS_MAX

if sys.version_info >= (3, 14):
    from compression.zstd import DecompressionParameter, ZstdDecompressor, ZstdError
else:
    from backports.zstd import DecompressionParameter, ZstdDecompressor, ZstdError

ZSTD_OPTIONS: Final[dict[int, int]] = {DecompressionParameter.window_log_max: 25}
"""A frame may ask for a window of 32 MiB, the size of the largest request; what needs more memory is refused."""
MODES: Final = {"service_tier": "tier", "serviceTier": "tier", "speed": "speed", "inference_geo": "place"}
"""Keys that choose a mode with a price of its own -> what is chosen."""
NAME_CHARS_MAX: Final = 256
_SPACE: Final = re.compile(rb"[ \t\r\n]*")
_KEY: Final = re.compile(rb'"(?:[^"\\]|\\.)*"')
_CONTROL: Final = re.compile(r"[\x00-\x20\x7f-\xa0\ud800-\udfff]")


class Asked(msgspec.Struct, frozen=True):
    """What a request asks for."""

    model: str
    stream: bool
    output_tokens_max: int
    """0 if it does not say."""
    prompt_bytes: int = 0
    """How large it is, inflated, with pictures and documents as text of what they cost at most."""
    modes: dict[str, str] = {}
    """What it says of its service tier, speed and the like."""


def inflate(body: bytes, encoding: str, most: int) -> bytes:
    """Returns a request's body as text.

    Raises:
        BadInput: It is larger than `most` when inflated, broken, or in an encoding that cannot be read.
    """
    encoding = encoding.strip().lower()
    if encoding in {"", "identity"}:
        return body
    if encoding not in {"gzip", "x-gzip", "deflate", "zstd"}:
        raise BadInput(f"the content encoding {encoding[:40]!r} cannot be read", field="content-encoding", hint="send gzip, zstd or none")
    inflater = ZstdDecompressor(options=ZSTD_OPTIONS) if encoding == "zstd" else zlib.decompressobj(zlib.MAX_WBITS | 32)
    try:
        text = inflater.decompress(body, most + 1)
    except (zlib.error, ZstdError) as exc:
        raise BadInput("the compressed body is damaged", field="body", hint="send it again") from exc
    if len(text) > most:
        raise BadInput(f"the body inflates to more than {most} bytes", field="body", hint="send less at a time")
    if inflater.unused_data:
        raise BadInput("something follows the compressed body", field="body", hint="send one gzip member or zstd frame")
    if not inflater.eof:
        raise BadInput("the compressed body is not complete", field="body", hint="send it whole")
    return text


def read_asked(text: bytes, *, kind: str = "anthropic", model: str = "", stream: bool = False) -> Asked:
    """Returns what a JSON body asks for.

    Args:
        text: The body, inflated.
        kind: Of the provider.
        model: What the path says, where the body does not (Gemini).
        stream: What the path says.

    Raises:
        BadInput: It is no JSON object, a deciding key is missing, of a wrong type or given twice, or it is to be answered later.
    """
    try:
        found = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
    except (msgspec.DecodeError, RecursionError, ValueError) as exc:
        raise BadInput("the body is not a JSON object", field="body", hint="send one JSON object in UTF-8") from exc
    _refuse_twins(text, found)
    if bytes(found.get("background", b"false")) not in {b"false", b"null"}:
        raise BadInput(
            "what is answered later is billed past every budget", field="background", hint="leave it out; the answer can be streamed"
        )
    if not model:
        model = _text(found, "model")
    limits = [_count(found, name) for name in ("max_tokens", "max_completion_tokens", "max_output_tokens")]
    if "generationConfig" in found:
        try:
            limits.append(_count(msgspec.json.decode(found["generationConfig"], type=dict[str, msgspec.Raw]), "maxOutputTokens"))
        except (msgspec.DecodeError, RecursionError, ValueError) as exc:
            raise BadInput("it is not an object", field="generationConfig", hint="see the provider's reference") from exc
    return Asked(model, stream or bytes(found.get("stream", b"")) == b"true", max(limits), prompt_bytes(text, kind), _modes(found))


def _modes(found: dict[str, msgspec.Raw]) -> dict[str, str]:
    said: dict[str, str] = {}
    for name, chosen in MODES.items():
        if name not in found:
            continue
        try:
            value = msgspec.json.decode(found[name], type=str | None)
        except (msgspec.DecodeError, ValueError) as exc:
            raise BadInput("it is not a text", field=name, hint="see the provider's reference") from exc
        if value:
            said[chosen] = value[:NAME_CHARS_MAX]
    return said


def _text(found: dict[str, msgspec.Raw], name: str) -> str:
    try:
        value = msgspec.json.decode(found[name], type=str)
    except KeyError as exc:
        raise BadInput("it is missing", field=name, hint="name the model") from exc
    except (msgspec.DecodeError, ValueError) as exc:
        raise BadInput("it is not a text", field=name, hint="name the model") from exc
    if not value or len(value) > NAME_CHARS_MAX or _CONTROL.search(value):
        raise BadInput("it is not the name of a model", field=name, hint="name the model")
    return value


def _count(found: dict[str, msgspec.Raw], name: str) -> int:
    raw = found.get(name)
    if raw is None or bytes(raw) == b"null":
        return 0
    try:
        value = msgspec.json.decode(raw, type=int)
    except (msgspec.DecodeError, ValueError) as exc:
        raise BadInput("it is not a whole number", field=name, hint="give a number of tokens") from exc
    return min(max(value, 0), TOKENS_MAX)


def _refuse_twins(text: bytes, found: dict[str, msgspec.Raw]) -> None:
    """Walks over the top level with the values that were decoded: where the text has another value, a key was given before."""
    position = _SPACE.match(text, 0).end() + 1  # type: ignore[union-attr]
    seen: set[str] = set()
    while True:
        start = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        key = _KEY.match(text, start)
        if key is None:
            return
        name = msgspec.json.decode(key[0], type=str)
        value = found[name]
        position = _SPACE.match(text, key.end()).end() + 1  # type: ignore[union-attr]
        position = _SPACE.match(text, position).end()  # type: ignore[union-attr]
        raw = bytes(value)
        end = _SPACE.match(text, position + len(raw)).end()  # type: ignore[union-attr]
        if name in seen or text[position : position + len(raw)] != raw or text[end : end + 1] not in (b",", b"}"):
            raise BadInput(f"the key {name[:40]!r} is given twice", field=name[:40], hint="give each key once")
        seen.add(name)
        position = end + 1
