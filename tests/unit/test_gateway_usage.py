"""Responses are read beside the stream: in any chunking, in each provider's form, and in every form they should not have."""

from __future__ import annotations

import gzip
import json
import sys
import zlib
from typing import Any

import pytest

from orchestra.errors import BadInput
from orchestra.metering.usage import Usage
from orchestra.protocol.sse import EVENT_BYTES_MAX, SseEvent, SseParser
from orchestra.protocol.usage import Scan
from orchestra.protocol.usage_request import inflate, read_asked
from orchestra.testing.upstream import anthropic_chunks, event

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

GUESS = Usage(input_tokens=1_000, output_tokens=5)


def scanned(form: str, *chunks: bytes, streamed: bool = True, encoding: str = "") -> tuple[Usage, bool]:
    scan = Scan(form, streamed=streamed, encoding=encoding)
    for chunk in chunks:
        scan.feed(chunk)
    scan.end()
    return scan.usage(GUESS)


def data(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


STREAMS = {
    "anthropic": (b"".join(anthropic_chunks(10, 20, ["grün ✓"], cache_read=5, cache_write=7)), Usage(10, 5, 7, 0, 20)),
    "responses": (
        event("response.output_text.delta", {"type": "response.output_text.delta", "delta": "ab"})
        + event(
            "response.completed",
            {
                "type": "response.completed",
                "response": {"usage": {"input_tokens": 100, "input_tokens_details": {"cached_tokens": 60}, "output_tokens": 9}},
            },
        ),
        Usage(40, 60, 0, 0, 9),
    ),
    "chat": (
        data({"choices": [{"delta": {"content": "ab"}}], "usage": None})
        + data({"choices": [], "usage": {"prompt_tokens": 30, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 10}}})
        + b"data: [DONE]\n\n",
        Usage(20, 10, 0, 0, 4),
    ),
    "gemini": (
        data(
            {"candidates": [{"content": {"parts": [{"text": "ab"}]}}], "usageMetadata": {"promptTokenCount": 8, "candidatesTokenCount": 1}}
        )
        + data(
            {"usageMetadata": {"promptTokenCount": 8, "cachedContentTokenCount": 3, "candidatesTokenCount": 6, "thoughtsTokenCount": 2}}
        ),
        Usage(5, 3, 0, 0, 8),
    ),
}


@pytest.mark.parametrize("form", list(STREAMS))
@pytest.mark.parametrize("ending", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("size", [1, 2, 7, 100_000])
def test_a_stream_in_any_chunking(form: str, ending: bytes, size: int) -> None:
    text, usage = STREAMS[form]
    text = text.replace(b"\n", ending)
    found, assumed = scanned(form, *(text[at : at + size] for at in range(0, len(text), size)))
    assert (found, assumed) == (usage, False)


@pytest.mark.parametrize("form", list(STREAMS))
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_compressed_stream(form: str, encoding: str) -> None:
    text, usage = STREAMS[form]
    packed = gzip.compress(text) if encoding == "gzip" else zlib.compress(text)
    found, assumed = scanned(form, *(packed[at : at + 3] for at in range(0, len(packed), 3)), encoding=encoding)
    assert (found.output_tokens, assumed) == (usage.output_tokens, False)


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip"])
def test_what_cannot_be_inflated_is_assumed(encoding: str) -> None:
    found, assumed = scanned("anthropic", b"\x00\x01 not compressed " * 10, encoding=encoding)
    assert assumed
    assert found.input_tokens == GUESS.input_tokens


def test_a_bomb_is_not_unfolded() -> None:
    packer = zlib.compressobj(9, wbits=31)
    bomb = b"".join([packer.compress(bytes(1 << 20)) for _ in range(200)]) + packer.flush()
    scan = Scan("anthropic", streamed=False, encoding="gzip")
    scan.feed(bomb)
    assert scan.unreadable
    assert scan.usage(GUESS)[1]


START = event("message_start", {"type": "message_start", "message": {"usage": {"input_tokens": 10, "output_tokens": 1}}})
TEXT = event("content_block_delta", {"type": "content_block_delta", "delta": {"type": "text_delta", "text": "x" * 400}})


def delta(**usage: Any) -> bytes:
    return event("message_delta", {"type": "message_delta", "usage": usage})


@pytest.mark.parametrize(
    "stream,output,assumed",
    [
        pytest.param([START, TEXT], 100, True, id="broken off"),
        pytest.param([START, TEXT, delta(output_tokens=120)], 120, False, id="no message_stop"),
        pytest.param([START, TEXT, delta()], 100, True, id="usage only at the start"),
        pytest.param([START, delta(output_tokens=50), delta(output_tokens=70)], 70, False, id="usage twice"),
        pytest.param([START, delta(output_tokens=70), delta(output_tokens=50)], 70, False, id="output falls"),
        pytest.param([START, TEXT, delta(output_tokens=-5)], 100, True, id="negative"),
        pytest.param([START, TEXT, delta(output_tokens=10**30)], 100, True, id="absurd"),
        pytest.param([START, TEXT, delta(output_tokens="70")], 100, True, id="no number"),
        pytest.param([START, TEXT, delta(output_tokens=True)], 100, True, id="a truth value"),
        pytest.param([START, b"data: {not json\n\n", delta(output_tokens=7)], 7, False, id="an event that is no JSON"),
        pytest.param([START, b": a comment\n\n", delta(output_tokens=7)], 7, False, id="a comment"),
        pytest.param([START, delta(output_tokens=7).replace(b"data: ", b"data:")], 7, False, id="data without a space"),
        pytest.param([b"\xef\xbb\xbf" + START, delta(output_tokens=7)], 7, False, id="a byte order mark"),
        pytest.param([START, b"data: " + b"[" * 100_000 + b"\n\n", delta(output_tokens=7)], 7, False, id="deep nesting"),
        pytest.param([START, event("error", {"type": "error", "error": {"type": "overloaded_error"}})], 1, True, id="an error inside"),
    ],
)
def test_every_way_a_stream_can_be_wrong(stream: list[bytes], output: int, assumed: bool) -> None:
    found, guessed = scanned("anthropic", *stream)
    assert (found.input_tokens, found.output_tokens, guessed) == (10, output, assumed)


def test_without_any_usage_input_is_as_estimated() -> None:
    assert scanned("anthropic", TEXT) == (Usage(input_tokens=1_000, output_tokens=100), True)


def test_cache_writes_by_age() -> None:
    usage = {"input_tokens": 1, "cache_creation_input_tokens": 30, "cache_creation": {"ephemeral_1h_input_tokens": 20}}
    body = json.dumps({"usage": {**usage, "output_tokens": 2}}).encode()
    assert scanned("anthropic", body, streamed=False) == (Usage(1, 0, 10, 20, 2), False)


@pytest.mark.parametrize("short,long", [(0, 12_000), (300, 12_000), (300, 0)])
def test_cache_writes_of_a_stream_are_counted_once_each(short: int, long: int) -> None:
    """The end of a stream repeats their sum without telling the lifetimes apart."""
    chunks = anthropic_chunks(3, 20, ["ab"], cache_read=5, cache_write=short, cache_write_1h=long)
    assert scanned("anthropic", *chunks) == (Usage(3, 5, short, long, 20), False)
    assert scanned("anthropic", chunks[-2], *chunks[:-2]) == (Usage(3, 5, short, long, 20), False), "whichever comes first"


SEARCHED = {"type": "web_search_call", "status": "completed"}
BILLED = {
    "anthropic": (
        {
            "usage": {
                "input_tokens": 1,
                "output_tokens": 2,
                "speed": "fast",
                "service_tier": "standard",
                "server_tool_use": {"web_search_requests": 3},
            }
        },
        START.replace(b'"input_tokens": 10', b'"input_tokens": 1, "speed": "fast", "service_tier": "standard"')
        + delta(input_tokens=1, output_tokens=2, server_tool_use={"web_search_requests": 3}),
        Usage(1, output_tokens=2, web_searches=3, mode="fast"),
    ),
    "responses": (
        (
            answer := {
                "usage": {"input_tokens": 1, "output_tokens": 2},
                "service_tier": "flex",
                "output": [SEARCHED, {"type": "message"}, SEARCHED],
            }
        ),
        event("response.web_search_call.completed", {"type": "response.web_search_call.completed"}) * 2
        + event("response.completed", {"type": "response.completed", "response": answer}),
        Usage(1, output_tokens=2, web_searches=2, mode="flex"),
    ),
    "chat": (
        {"usage": {"prompt_tokens": 1, "completion_tokens": 2}, "service_tier": "priority"},
        data({"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 2}, "service_tier": "priority"}),
        Usage(1, output_tokens=2, mode="priority"),
    ),
    "gemini": (
        (
            grounded := {
                "candidates": [{"groundingMetadata": {"webSearchQueries": ["a", "b"]}}],
                "usageMetadata": {"promptTokenCount": 1, "candidatesTokenCount": 2, "serviceTier": "FLEX"},
            }
        ),
        data(grounded) * 2,
        Usage(1, output_tokens=2, web_searches=2, mode="flex"),
    ),
}


@pytest.mark.parametrize("form", list(BILLED))
def test_what_is_billed_beside_tokens(form: str) -> None:
    """Searches the provider made, and the service tier or speed it worked at; whole and streamed."""
    whole, stream, usage = BILLED[form]
    assert scanned(form, json.dumps(whole).encode(), streamed=False) == (usage, False)
    assert scanned(form, stream) == (usage, False)


def test_a_mode_that_was_asked_for_holds_unless_the_response_says_otherwise() -> None:
    asked = read_asked(b'{"model":"m","service_tier":"priority","speed":"fast","inference_geo":"us","serviceTier":null}').modes
    assert asked == {"tier": "priority", "speed": "fast", "place": "us"}
    asked = read_asked(b'{"model":"m","service_tier":"priority","speed":"fast"}').modes
    scan = Scan("anthropic", streamed=True, modes=asked)
    assert scan.usage(GUESS)[0].mode == "fast+priority"
    scan.feed(START.replace(b'"input_tokens": 10', b'"input_tokens": 1, "service_tier": "standard"'))
    assert scan.usage(GUESS)[0].mode == "fast"


def test_an_event_larger_than_is_kept_is_read_at_its_end() -> None:
    answer = {"output": "x" * (EVENT_BYTES_MAX + 100_000), "usage": {"input_tokens": 5, "output_tokens": 6}}
    large = event("response.completed", {"type": "response.completed", "response": answer})
    pieces = [large[at : at + 65_536] for at in range(0, len(large), 65_536)]
    assert scanned("responses", *pieces) == (Usage(5, output_tokens=6), False)


def test_a_million_tiny_events_leave_nothing_behind() -> None:
    parser = SseParser()
    assert sum(len(parser.feed(b"data: 1\n\n" * 1_000)) for _ in range(1_000)) == 1_000_000
    assert parser.feed(b"data: a\ndata:b\nid: 4\nevent: n\n\n") == [SseEvent("n", b"a\nb")]


def test_a_large_body_is_read_at_its_end() -> None:
    body = json.dumps({"content": "x" * (9 << 20), "usage": {"input_tokens": 3, "output_tokens": 4}}).encode()
    assert scanned("anthropic", body, streamed=False) == (Usage(3, output_tokens=4), False)


def test_what_a_request_asks_for() -> None:
    asked = read_asked(b' {"model":"m-1" , "stream" : true,"max_tokens":7,"x":{"model":"other"},"y":[1,{"stream":1}]} ')
    assert (asked.model, asked.stream, asked.output_tokens_max) == ("m-1", True, 7)
    assert read_asked(b'{"generationConfig":{"maxOutputTokens":9}}', model="g").output_tokens_max == 9


@pytest.mark.parametrize(
    "body,field",
    [
        pytest.param(b"", "body", id="empty"),
        pytest.param(b"[]", "body", id="no object"),
        pytest.param(b'{"model":"m"', "body", id="cut off"),
        pytest.param(b'{"model":"m","x":NaN}', "body", id="not a number"),
        pytest.param(b'\xef\xbb\xbf{"model":"m"}', "body", id="a byte order mark"),
        pytest.param(b'{"model":"m","x":' + b"[" * 100_000 + b"]" * 100_000 + b"}", "body", id="deep nesting"),
        pytest.param(b"{}", "model", id="no model"),
        pytest.param(b'{"model":7}', "model", id="a number for a name"),
        pytest.param(b'{"model":"a\\nb"}', "model", id="a line break in the name"),
        pytest.param(b'{"model":"a","max_tokens":"many"}', "max_tokens", id="no number"),
        pytest.param(b'{"model":"cheap","model":"dear"}', "model", id="a key twice"),
        pytest.param(b'{"model":"dear","x":1,"mod\\u0065l":"cheap"}', "model", id="a key twice in disguise"),
        pytest.param(b'{"model":"m","max_tokens":1,"max_tokens":12}', "max_tokens", id="a number twice"),
        pytest.param(b'{"model":"m","model":"m"}', "model", id="the same twice"),
        pytest.param(b'{"model":"m","service_tier":["priority"]}', "service_tier", id="no text for a service tier"),
    ],
)
def test_requests_that_two_parsers_could_read_in_two_ways(body: bytes, field: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_asked(body)
    assert refused.value.field == field


def test_a_huge_number_is_no_crash() -> None:
    with pytest.raises(BadInput):
        read_asked(b'{"model":"m","max_tokens":' + b"9" * 5_000 + b"}")


def test_a_request_in_zstd_is_inflated_within_bounds() -> None:
    assert inflate(zstd.compress(b"{}"), "zstd", 100) == b"{}"
    bomb = zstd.compress(bytes(64 << 20))
    wide = zstd.ZstdCompressor(options={zstd.CompressionParameter.window_log: 28})
    for body, words in (
        (bomb, "inflates to more"),
        (zstd.compress(b"{}") * 2, "something follows"),
        (zstd.compress(b"{}")[:-1], "not complete"),
        (b"{}", "damaged"),
        (wide.compress(b"x", mode=wide.FLUSH_BLOCK) + wide.flush(), "damaged"),
    ):
        with pytest.raises(BadInput, match=words):
            inflate(body, "zstd", 100)


def test_a_request_is_inflated_within_bounds() -> None:
    body = b'{"model":"m"}'
    assert inflate(gzip.compress(body), "gzip", 1_000) == body
    for packed, encoding in ((gzip.compress(bytes(5_000)), "gzip"), (gzip.compress(body)[:-4], "gzip"), (b"junk", "gzip"), (body, "zstd")):
        with pytest.raises(BadInput):
            inflate(packed, encoding, 1_000)
