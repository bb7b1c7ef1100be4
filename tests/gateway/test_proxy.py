"""What passes the gateway, passes unchanged; what must not pass, does not."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from orchestra.testing.upstream import JSON_TYPE, SSE_TYPE, Answer, anthropic_chunks, anthropic_json, anthropic_stream, refusal
from tests.gateway.support import CANARY, asking, staged


async def test_a_message_passes_unchanged_and_is_counted(tmp_path: Path) -> None:
    answer = anthropic_json(12, 7, ("X-Odd-Case", "Kept"), ("request-id", "req_1"))
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        body = json.dumps(asking(), indent=3).encode()
        status, given, headers = await stage.post(body, anthropic_beta="a-1,b-2")
        assert (status, given) == (200, answer.body)
        assert headers["x-odd-case"] == "Kept"
        seen = stage.upstream.seen[0]
        assert (seen.method, seen.target, seen.body) == ("POST", "/v1/messages?beta=true", body)
        assert (seen.header("x-api-key"), seen.header("anthropic-beta"), seen.header("authorization")) == (CANARY, "a-1,b-2", "")
        assert stage.token not in str(seen.headers)
        totals = await stage.totals("task", "task-1")
        assert (totals["requests"], totals["input_tokens"], totals["output_tokens"]) == (1, 12, 7)
        assert totals["cost_usd_micros"] == 12 * 5 + 7 * 25
        assert totals["reserved_usd_micros"] == 0


async def test_a_stream_passes_chunk_by_chunk(tmp_path: Path) -> None:
    """The upstream sends the next chunk only when the client has the one before; whoever held one back would never end."""
    chunks = anthropic_chunks(10, 20, ["a", "b", "c"])
    hurry: asyncio.Queue[bool] = asyncio.Queue()

    async with staged(tmp_path, lambda seen, n: Answer(headers=(SSE_TYPE,), chunks=chunks, after_each=hurry.get)) as stage:
        found = b""
        async with stage.http.post(
            stage.url + "/v1/messages", json=asking(stream=True), headers={"authorization": f"Bearer {stage.token}"}
        ) as response:
            assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
            for number in range(1, len(chunks) + 1):
                while len(found) < sum(map(len, chunks[:number])):
                    found += await response.content.readany()
                assert found == b"".join(chunks[:number])
                hurry.put_nowait(True)
        await stage.quiet()
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["output_tokens"], totals["assumed_requests"]) == (10, 20, 0)


@pytest.mark.parametrize("status", [400, 403, 404, 413, 422])
async def test_an_error_passes_word_for_word(tmp_path: Path, status: int) -> None:
    answer = refusal(status, "some_error", ("x-request-id", "r"), message='odd   spacing "kept"')
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        got, body, headers = await stage.post()
        assert (got, body, headers["x-request-id"]) == (status, answer.body, "r")
        assert len(stage.upstream.seen) == 1, "it is the request's own fault and not tried again"
        assert "x-should-retry" not in headers


async def test_a_client_that_goes_away_ends_the_upstream(tmp_path: Path) -> None:
    answer = Answer(headers=(SSE_TYPE,), chunks=(*anthropic_chunks(10, 20, ["hello " * 50])[:2], b": wait\n\n"), pause_ms=60_000)
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        async with stage.http.post(stage.url + "/v1/messages", json=asking(stream=True), headers={"x-api-key": stage.token}) as response:
            await response.content.readany()
            response.close()
        await stage.until(lambda: stage.upstream.gone == 1)
        await stage.quiet()
        totals = await stage.totals()
        assert totals["assumed_requests"] == 1
        assert totals["input_tokens"] == 10
        assert totals["reserved_usd_micros"] == 0


async def test_probe_models_and_counting(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: Answer(headers=(JSON_TYPE,), body=b'{"input_tokens":3}')) as stage:
        async with stage.http.head(stage.url + "/") as response:
            assert response.status == 200
        assert stage.upstream.seen == []
        assert (await stage.post(path="/v1/messages/count_tokens"))[0] == 200
        async with stage.http.get(stage.url + "/v1/models", headers={"x-api-key": stage.token, "anthropic-version": "1"}) as response:
            assert response.status == 200
        assert [seen.target for seen in stage.upstream.seen] == ["/v1/messages/count_tokens", "/v1/models"]
        assert (await stage.totals())["requests"] == 0, "neither costs anything"


async def test_streams_of_others(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_stream(1, 2)) as stage:
        status, body, _ = await stage.post(path="/api/v1/messages", body=asking(stream=True))
        assert status == 200
        assert body.endswith(b'{"type": "message_stop"}\n\n')
