"""What providers do wrong (G1 to G13), and what a client of the gateway sees of it."""

from __future__ import annotations

import asyncio
import email.utils
import gzip
import json
import time
from pathlib import Path
from typing import Any

import pytest

from orchestra.testing.upstream import (
    JSON_TYPE,
    SSE_TYPE,
    Answer,
    Seen,
    anthropic_chunks,
    anthropic_json,
    anthropic_stream,
    event,
    refusal,
)
from tests.gateway.support import asking, staged

LIMITED = ("rate_limit_error",)
OTHER = "sk-canary-second-8812"


def after(*first: Answer, then: Answer | None = None) -> Any:
    """A script that answers so at first, and well afterwards."""

    def script(seen: Seen, n: int) -> Answer:
        return first[n] if n < len(first) else then or anthropic_json(3, 4)

    return script


@pytest.mark.parametrize(
    "headers",
    [
        pytest.param((("retry-after", "1"),), id="seconds"),
        pytest.param((("retry-after", "0"),), id="zero"),
        pytest.param((), id="none"),
        pytest.param((("retry-after", "-7"),), id="negative"),
        pytest.param((("retry-after", "1"), ("retry-after-ms", "20")), id="both"),
        pytest.param((("retry-after", email.utils.formatdate(time.time() + 1, usegmt=True)),), id="date"),
    ],
)
async def test_g1_a_refused_pace_is_waited_out(tmp_path: Path, headers: tuple[tuple[str, str], ...]) -> None:
    async with staged(tmp_path, after(refusal(429, "rate_limit_error", *headers))) as stage:
        status, _, _ = await stage.post()
        assert (status, len(stage.upstream.seen)) == (200, 2)
        waited_ms = stage.upstream.seen[1].at_ms - stage.upstream.seen[0].at_ms
        assert waited_ms >= (1_000 if headers and headers[0] == ("retry-after", "1") else 400)
        assert (await stage.totals())["requests"] == 1, "one request, however often it was sent"


async def test_g1_a_wish_beyond_all_patience_goes_back_at_once(tmp_path: Path) -> None:
    answer = refusal(429, "rate_limit_error", ("retry-after", "1000000000"))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, body, headers = await stage.post()
        assert (status, body, headers["x-should-retry"], headers["retry-after"]) == (429, answer.body, "false", "1000000000")
        assert len(stage.upstream.seen) == 1


async def test_g1_a_storm_is_waited_out_by_all(tmp_path: Path) -> None:
    """Fifty agents; everything is refused for a while, then a third of it. Nobody hears of it."""
    calm_at = asyncio.get_running_loop().time() + 3

    def script(seen: Seen, n: int) -> Answer:
        stormy = asyncio.get_running_loop().time() < calm_at
        return refusal(429, "rate_limit_error", ("retry-after", "1")) if stormy or n % 10 < 3 else anthropic_json(3, 4)

    async with staged(tmp_path, script) as stage:
        tokens = [(await stage.admin("issue_token", attempt=f"try-{n}", agent=f"agent-{n}"))["token"] for n in range(50)]
        found = await asyncio.gather(*(stage.post(token=token) for token in tokens))
        assert [status for status, _, _ in found] == [200] * 50
        assert (await stage.totals())["requests"] == 50
        assert "limited" in await stage.kinds()


async def test_g2_a_spent_account_is_parked_and_not_asked_again(tmp_path: Path) -> None:
    answer = refusal(429, "rate_limit_error", message="You have reached your specified API usage limits. spend limit")
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, body, headers = await stage.post()
        assert (status, body, headers["x-should-retry"]) == (429, answer.body, "false")
        status, _, headers = await stage.post()
        assert (status, headers["x-should-retry"], headers["retry-after"]) == (429, "false", "60")
        assert len(stage.upstream.seen) == 1
        assert "account_parked" in await stage.kinds()
        assert (await stage.totals())["cost_usd_micros"] == 0


@pytest.mark.parametrize("allowed", [True, False])
async def test_g2_another_account_takes_over_if_that_is_allowed(tmp_path: Path, allowed: bool) -> None:
    def script(seen: Seen, n: int) -> Answer:
        if seen.header("x-api-key") == OTHER:
            return anthropic_json(3, 4)
        return refusal(429, "rate_limit_error", ("anthropic-ratelimit-unified-5h-status", "rejected"), ("retry-after", "3600"))

    accounts = {"a": {"keys": [{"env": "KEY_A"}]}, "b": {"keys": [{"env": "KEY_B"}]}}
    upstream = {"accounts": accounts, "other_account_when_spent": allowed}
    async with staged(tmp_path, script, {"KEY_A": "sk-first", "KEY_B": OTHER}, upstream=upstream) as stage:
        assert (await stage.post())[0] == (200 if allowed else 429)
        assert [seen.header("x-api-key") for seen in stage.upstream.seen] == ["sk-first", OTHER][: 2 if allowed else 1]
        if allowed:
            assert (await stage.post())[0] == 200
            assert stage.upstream.seen[-1].header("x-api-key") == OTHER, "the session stays where it went"


async def test_a_refused_pace_never_changes_the_account(tmp_path: Path) -> None:
    accounts = {"a": {"keys": [{"env": "KEY_A"}]}, "b": {"keys": [{"env": "KEY_B"}]}}
    upstream = {"accounts": accounts, "other_account_when_spent": True}
    script = after(refusal(429, "rate_limit_error", ("retry-after", "0")))
    async with staged(tmp_path, script, {"KEY_A": "sk-first", "KEY_B": OTHER}, upstream=upstream) as stage:
        assert (await stage.post())[0] == 200
        assert {seen.header("x-api-key") for seen in stage.upstream.seen} == {"sk-first"}


@pytest.mark.parametrize("status", [500, 502, 503, 529])
async def test_g3_trouble_is_tried_again(tmp_path: Path, status: int) -> None:
    async with staged(tmp_path, after(refusal(status, "overloaded_error"), refusal(status, "api_error"))) as stage:
        assert (await stage.post())[0] == 200
        assert len(stage.upstream.seen) == 3


async def test_g3_after_five_tries_the_provider_has_the_last_word(tmp_path: Path) -> None:
    answer = refusal(529, "overloaded_error", ("request-id", "r9"), ("retry-after", "0"))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, body, headers = await stage.post()
        assert (status, body, headers["request-id"], headers["x-should-retry"]) == (529, answer.body, "r9", "false")
        assert len(stage.upstream.seen) == 5
        totals = await stage.totals()
        assert (totals["requests"], totals["cost_usd_micros"], totals["reserved_usd_micros"]) == (1, 0, 0)


@pytest.mark.parametrize("status", [429, 500, 529])
async def test_what_the_provider_does_not_want_tried_again_is_not(tmp_path: Path, status: int) -> None:
    answer = refusal(status, "api_error", ("x-should-retry", "false"), ("retry-after", "0"))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        found, body, headers = await stage.post()
        assert (found, body, headers["x-should-retry"]) == (status, answer.body, "false")
        assert len(stage.upstream.seen) == 1


async def test_what_the_provider_wants_tried_again_is(tmp_path: Path) -> None:
    """An error that would else be the request's own, and goes back at once."""
    async with staged(tmp_path, after(refusal(422, "invalid_request_error", ("x-should-retry", "true")))) as stage:
        assert (await stage.post())[0] == 200
        assert len(stage.upstream.seen) == 2


async def test_g4_an_error_inside_a_stream_is_passed_on_and_not_repeated(tmp_path: Path) -> None:
    chunks = (*anthropic_chunks(10, 20, ["x" * 40])[:2], event("error", {"type": "error", "error": {"type": "overloaded_error"}}))
    async with staged(tmp_path, lambda seen, n: Answer(headers=(SSE_TYPE,), chunks=chunks)) as stage:
        status, body, _ = await stage.post(asking(stream=True))
        assert (status, body, len(stage.upstream.seen)) == (200, b"".join(chunks), 1)
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["output_tokens"], totals["assumed_requests"]) == (10, 10, 1)


async def test_g5_a_stall_after_the_head_is_tried_again(tmp_path: Path) -> None:
    script = after(Answer(headers=(SSE_TYPE,), chunks=(), hold=True), then=anthropic_stream(1, 2))
    async with staged(tmp_path, script, bounds={"idle_seconds": 0.3}) as stage:
        assert (await stage.post(asking(stream=True)))[0] == 200
        assert len(stage.upstream.seen) == 2
        assert (await stage.totals())["assumed_requests"] == 1, "nobody knows whether the first try is billed"


async def test_g5_a_stall_between_chunks_ends_the_stream(tmp_path: Path) -> None:
    chunks = anthropic_chunks(10, 20, ["abcd"])
    async with staged(
        tmp_path, lambda s, n: Answer(headers=(SSE_TYPE,), chunks=chunks, pause_ms=60_000), bounds={"idle_seconds": 0.3}
    ) as stage:
        with pytest.raises(Exception, match=r"TransferEncodingError|payload|disconnected"):
            await stage.post(asking(stream=True))
        await stage.quiet()
        assert len(stage.upstream.seen) == 1, "not after the first byte"
        assert (await stage.totals())["assumed_requests"] == 1


async def test_g5_a_drip_passes(tmp_path: Path) -> None:
    text = b"".join(anthropic_chunks(1, 2, ["ab"]))[:400]
    chunks = tuple(text[at : at + 1] for at in range(len(text)))
    async with staged(tmp_path, lambda seen, n: Answer(headers=(SSE_TYPE,), chunks=chunks, pause_ms=1)) as stage:
        assert (await stage.post(asking(stream=True)))[1] == text


@pytest.mark.parametrize("reset_after", [0, 1, 2])
async def test_g6_a_reset(tmp_path: Path, reset_after: int) -> None:
    """Before the first byte it is tried again, after it the client sees that the stream broke."""
    broken = Answer(headers=(SSE_TYPE,), chunks=anthropic_chunks(10, 20, ["x" * 40]), reset_after=reset_after, pause_ms=50)
    async with staged(tmp_path, after(broken, then=anthropic_stream(1, 2))) as stage:
        if reset_after == 0:
            assert (await stage.post(asking(stream=True)))[0] == 200
            assert len(stage.upstream.seen) == 2
            return
        with pytest.raises(Exception, match=r"TransferEncodingError|payload|disconnected|reset"):
            await stage.post(asking(stream=True))
        await stage.quiet()
        assert len(stage.upstream.seen) == 1
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["assumed_requests"]) == (10, 1)


async def test_g7_a_compressed_stream_passes_as_it_is_and_is_counted(tmp_path: Path) -> None:
    packed = gzip.compress(b"".join(anthropic_chunks(11, 22, ["grün"])))
    chunks = tuple(packed[at : at + 5] for at in range(0, len(packed), 5))
    answer = Answer(headers=(SSE_TYPE, ("Content-Encoding", "gzip")), chunks=chunks)
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        body = json.dumps(asking(stream=True)).encode()
        headers = {"x-api-key": stage.token, "accept-encoding": "br, gzip;q=0.9, zstd"}
        async with stage.http.post(stage.url + "/v1/messages", data=body, headers=headers) as response:
            assert response.headers["content-encoding"] == "gzip"
            assert b"message_stop" in await response.read()
        assert stage.upstream.seen[0].header("accept-encoding") == "identity", "it came unasked"
        await stage.quiet()
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["output_tokens"], totals["assumed_requests"]) == (11, 22, 0)


async def test_g7_ten_megabytes_in_one_event(tmp_path: Path) -> None:
    large = event("content_block_delta", {"type": "content_block_delta", "delta": {"text": "x" * (10 << 20)}})
    chunks = anthropic_chunks(1, 2, [])
    answer = Answer(headers=(SSE_TYPE,), chunks=(chunks[0], large, *chunks[1:]))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        _, body, _ = await stage.post(asking(stream=True))
        assert len(body) > 10 << 20
        await stage.quiet()
        assert (await stage.totals())["output_tokens"] == 2


@pytest.mark.parametrize(
    "headers",
    [
        (("x-ratelimit-limit-tokens", "-1"),),
        (("anthropic-ratelimit-requests-limit", "10"), ("anthropic-ratelimit-requests-remaining", "99")),
    ],
)
async def test_g8_odd_limit_headers_change_nothing(tmp_path: Path, headers: tuple[tuple[str, str], ...]) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1, *headers)) as stage:
        assert [(await stage.post())[0] for _ in range(3)] == [200, 200, 200]
        assert (await stage.admin("limits"))["lanes"][0]["limits"] == []


async def test_g8_limits_are_learned_and_shown(tmp_path: Path) -> None:
    names = (("anthropic-ratelimit-requests-limit", "1000"), ("anthropic-ratelimit-requests-remaining", "200"))
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1, *names)) as stage:
        await stage.post()
        (lane,) = (await stage.admin("limits"))["lanes"]
        assert lane["model_class"] == "opus-4"
        assert (lane["limits"][0]["limit"], lane["limits"][0]["learned"]) == (1000, True)


@pytest.mark.parametrize(
    "raw,status",
    [
        pytest.param(
            b'HTTP/1.0 200 OK\r\nContent-Type: application/json\r\n\r\n{"usage":{"input_tokens":1,"output_tokens":2}}', 200, id="HTTP/1.0"
        ),
        pytest.param(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", 200, id="100 before"),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n2\r\n{}\r\n0\r\nX: 1\r\n\r\n", 200, id="trailers"
        ),
        pytest.param(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n2\r\n{}\r\n0\r\n\r\n", 529, id="two framings"
        ),
        pytest.param(b"not http at all\r\n\r\n", 529, id="no HTTP"),
    ],
)
async def test_g9_odd_framing(tmp_path: Path, raw: bytes, status: int) -> None:
    async with staged(tmp_path, lambda seen, n: Answer(raw=raw), bounds={"queue_seconds": 2}) as stage:
        found, _, headers = await stage.post()
        assert found == status
        assert "x" not in headers


@pytest.mark.parametrize("status,message", [(401, "invalid x-api-key"), (403, "This organization has been disabled.")])
async def test_g10_a_dead_key_is_left_out_and_nobody_hears_of_it(tmp_path: Path, status: int, message: str) -> None:
    def script(seen: Seen, n: int) -> Answer:
        return anthropic_json(1, 1) if seen.header("x-api-key") == OTHER else refusal(status, "authentication_error", message=message)

    upstream = {"accounts": {"main": {"keys": [{"env": "KEY_A"}, {"env": "KEY_B"}]}}}
    async with staged(tmp_path, script, {"KEY_A": "sk-dead", "KEY_B": OTHER}, upstream=upstream) as stage:
        assert [(await stage.post())[0] for _ in range(4)] == [200] * 4
        assert [seen.header("x-api-key") for seen in stage.upstream.seen].count("sk-dead") <= 1
        health = await stage.admin("health")
        assert health["accounts"]["api.main"]["keys_refused"] <= 1


async def test_g10_when_all_keys_are_dead_clients_may_come_again(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: refusal(401, "authentication_error")) as stage:
        status, body, headers = await stage.post()
        assert status == 529
        assert "retry-after" in headers
        assert b"authentication_error" not in body
        assert "key_quarantined" in await stage.kinds()
        assert not (await stage.admin("health"))["healthy"]
        assert (await stage.post())[0] == 529
        assert len(stage.upstream.seen) == 1


async def test_g11_nobody_there(tmp_path: Path) -> None:
    async with staged(
        tmp_path, lambda s, n: anthropic_json(1, 1), upstream={"base_url": "http://127.0.0.1:9"}, bounds={"queue_seconds": 2}
    ) as stage:
        status, _, headers = await stage.post()
        assert (status, headers["x-should-retry"]) == (529, "false")
        assert (await stage.totals())["cost_usd_micros"] == 0


async def test_g11_a_certificate_that_is_not_trusted(tmp_path: Path) -> None:
    """The scripted upstream speaks no TLS, so the handshake fails and the key is never sent."""
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1)) as stage:
        plain = (tmp_path / "gateway.json").read_text()
        (tmp_path / "gateway.json").write_text(
            plain.replace("http://", "https://").replace('"folder"', '"bounds": {"queue_seconds": 1}, "folder"')
        )
        await stage.admin("reload")
        assert (await stage.post())[0] == 529
        assert stage.upstream.seen == []


async def test_g11_a_redirect_is_not_followed(tmp_path: Path) -> None:
    answer = Answer(status=307, headers=(("Location", "http://127.0.0.1:9/steal"),))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        status, _, headers = await stage.post()
        assert (status, len(stage.upstream.seen)) == (502, 1)
        assert "location" not in headers


async def test_g12_refused_although_the_buckets_look_full(tmp_path: Path) -> None:
    """An acceleration limit: fewer at once afterwards."""

    async def script(seen: Seen, n: int) -> Answer:
        if stage_open() > 4:
            return refusal(429, "rate_limit_error")
        return Answer(headers=(JSON_TYPE,), body=anthropic_json(1, 1).body, wait_ms=30)

    def stage_open() -> int:
        return stage.upstream.open

    async with staged(tmp_path, script) as stage:
        tokens = [(await stage.admin("issue_token", attempt=f"try-{n}", agent=f"agent-{n}"))["token"] for n in range(24)]
        found = await asyncio.gather(*(stage.post(token=token) for token in tokens))
        assert [status for status, _, _ in found] == [200] * 24
        (lane,) = (await stage.admin("limits"))["lanes"]
        assert lane["concurrency"] < 24


async def test_g13_a_model_without_a_price_costs_most_and_is_flagged(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(1_000, 0)) as stage:
        await stage.post(asking("brand-new-model"))
        totals = await stage.totals()
        assert totals["unpriced_requests"] == 1
        assert totals["cost_usd_micros"] >= 1_000 * 100
        assert "price_unknown" in await stage.kinds()


async def test_a_sick_upstream_is_left_alone_and_comes_back(tmp_path: Path) -> None:
    sick = True

    def script(seen: Seen, n: int) -> Answer:
        return refusal(500, "api_error") if sick else anthropic_json(1, 1)

    async with staged(tmp_path, script, bounds={"queue_seconds": 20}) as stage:
        tokens = [(await stage.admin("issue_token", attempt=f"try-{n}", agent=f"agent-{n}"))["token"] for n in range(12)]
        waiting = [asyncio.create_task(stage.post(token=token)) for token in tokens]
        await stage.until(lambda: stage.gateway.desk.breakers["api"].is_open)
        sent = len(stage.upstream.seen)
        assert not (await stage.admin("health"))["healthy"]
        sick = False
        found = await asyncio.gather(*waiting)
        assert [status for status, _, _ in found] == [200] * 12
        assert len(stage.upstream.seen) <= sent + 12 + 1
        assert {"upstream_down", "upstream_back"} <= set(await stage.kinds())
