"""What clients do wrong (H1 to H10)."""

from __future__ import annotations

import asyncio
import gzip
import json
import socket
from pathlib import Path

import pytest

from orchestra.testing.upstream import SSE_TYPE, Answer, anthropic_chunks, anthropic_json
from tests.gateway.support import CANARY, Stage, asking, staged

WELL = anthropic_json(1, 2)


async def raw(stage: Stage, text: bytes) -> bytes:
    """Sends bytes and returns all that comes until the gateway closes or answers once."""
    reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
    try:
        writer.write(text)
        return await reader.read(100_000)
    finally:
        writer.close()


async def ending(reader: asyncio.StreamReader) -> bytes:
    """Returns what came before the gateway hung up."""
    try:
        return await reader.read()
    except ConnectionResetError:
        return b""


def head(stage: Stage, target: str = "/v1/messages", *lines: str, method: str = "POST") -> bytes:
    return "\r\n".join([f"{method} {target} HTTP/1.1", "Host: x", f"x-api-key: {stage.token}", *lines, "", ""]).encode("latin-1")


async def test_h1_slow_heads_are_ended(tmp_path: Path) -> None:
    """Two hundred connections that never finish their head, while others are served."""
    async with staged(tmp_path, lambda seen, n: WELL, bounds={"head_seconds": 1}) as stage:
        slow = [await asyncio.open_connection("127.0.0.1", stage.gateway.port) for _ in range(200)]
        for _, writer in slow:
            writer.write(b"POST /v1/messages HTTP/1.1\r\nX-A")
        assert (await stage.post())[0] == 200
        assert [await reader.read() for reader, _ in slow] == [b""] * 200
        for _, writer in slow:
            writer.close()


async def test_h1_a_slow_body_is_ended(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, bounds={"body_seconds": 0.2}) as stage:
        answer = await raw(stage, head(stage, "/v1/messages", "Content-Length: 100") + b"{")
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert stage.upstream.seen == []


async def test_too_many_connections_are_closed_at_once(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, bounds={"connections": 5}) as stage:
        held = [await asyncio.open_connection("127.0.0.1", stage.gateway.port) for _ in range(5)]
        await stage.until(lambda: stage.gateway.connections() == 5)
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
        assert await ending(reader) == b""
        for each in [*held, (reader, writer)]:
            each[1].close()


async def test_h2_a_reader_that_takes_nothing_is_dropped(tmp_path: Path) -> None:
    """The upstream is not read further than the buffers reach, and is let go."""
    chunks = (*anthropic_chunks(10, 20, [])[:1], *[b": " + b"x" * 65_536 + b"\n\n"] * 2_000)
    answer = Answer(headers=(SSE_TYPE,), chunks=chunks)
    async with staged(tmp_path, lambda seen, n: answer, bounds={"stalled_reader_seconds": 0.5}) as stage:
        body = json.dumps(asking(stream=True)).encode()
        client = socket.socket()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        client.setblocking(False)
        await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", stage.gateway.port))
        await asyncio.get_running_loop().sock_sendall(client, head(stage, "/v1/messages", f"Content-Length: {len(body)}") + body)
        await stage.until(lambda: stage.upstream.gone == 1)
        await stage.quiet()
        client.close()
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["assumed_requests"], totals["reserved_usd_micros"]) == (10, 1, 0)


async def test_h3_two_hundred_that_go_away_at_once(tmp_path: Path) -> None:
    answer = Answer(headers=(SSE_TYPE,), chunks=(*anthropic_chunks(10, 20, ["x" * 40])[:2], b": wait\n\n"), pause_ms=60_000)
    async with staged(tmp_path, lambda seen, n: answer, bounds={"agent_in_flight": 300}) as stage:
        body = json.dumps(asking(stream=True)).encode()
        clients = [await asyncio.open_connection("127.0.0.1", stage.gateway.port) for _ in range(200)]
        for _, writer in clients:
            writer.write(head(stage, "/v1/messages", f"Content-Length: {len(body)}") + body)
        for reader, _ in clients:
            await reader.readuntil(b"message_start")
        for _, writer in clients:
            writer.transport.abort()
        async with asyncio.timeout(5):
            await stage.until(lambda: stage.upstream.gone == 200)
        await stage.quiet()
        totals = await stage.totals()
        assert (totals["requests"], totals["input_tokens"], totals["reserved_usd_micros"]) == (200, 2_000, 0)


async def test_h3_who_goes_away_before_the_answer_may_still_be_billed(tmp_path: Path) -> None:
    answer = Answer(headers=WELL.headers, body=WELL.body, wait_ms=60_000)
    async with staged(tmp_path, lambda seen, n: answer) as stage:
        asked = asyncio.create_task(stage.post(asking(text="x" * 4_000)))
        await stage.until(lambda: stage.upstream.open == 1)
        asked.cancel()
        await stage.until(lambda: stage.upstream.gone == 1)
        await stage.quiet()
        totals = await stage.totals()
        assert (totals["requests"], totals["assumed_requests"], totals["output_tokens"]) == (1, 1, 0)
        assert totals["input_tokens"] > 1_000
        assert totals["reserved_usd_micros"] == 0


@pytest.mark.parametrize(
    "lines,body,status",
    [
        pytest.param(("Content-Length: 0",), b"", 400, id="no body"),
        pytest.param(("Content-Length: 34000000",), b"", 413, id="33 MB"),
        pytest.param(("Content-Length: 1073741824",), b"", 413, id="1 GB"),
        pytest.param(("Content-Length: 12x",), b"{}", 400, id="a length that is none"),
        pytest.param(("Content-Length: 5", "Content-Length: 6"), b"{}", 400, id="two lengths"),
        pytest.param(("Content-Length: 2", "Transfer-Encoding: chunked"), b"2\r\n{}\r\n0\r\n\r\n", 400, id="length and chunks"),
        pytest.param(("Transfer-Encoding: chunked",), b"zz\r\n{}\r\n", 400, id="chunks that are none"),
        pytest.param(("Transfer-Encoding: chunked",), b"2\r\n{}\r\n", 408, id="chunks without an end"),
        pytest.param(("X-Long: " + "x" * 70_000,), b"", 400, id="64 KB of header"),
        pytest.param(tuple(f"X-{n}: 1" for n in range(300)), b"", 400, id="300 headers"),
        pytest.param(("X-A: b\rX-Injected: c",), b"", 400, id="a line break in a header"),
        pytest.param(("Content-Length: 13", "Content-Encoding: gzip"), b'{"model":"m"}', 400, id="not compressed"),
        pytest.param(("Content-Length: 13", "Content-Encoding: zstd"), b'{"model":"m"}', 400, id="not compressed by zstd"),
        pytest.param(("Content-Length: 13", "Content-Encoding: br"), b'{"model":"m"}', 415, id="br"),
        pytest.param(("Content-Length: 13", "Content-Encoding: gzip, zstd"), b'{"model":"m"}', 415, id="twice compressed"),
    ],
)
async def test_h4_bodies_and_heads_that_cannot_be(tmp_path: Path, lines: tuple[str, ...], body: bytes, status: int) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, bounds={"body_seconds": 0.3, "head_seconds": 1}) as stage:
        answer = await raw(stage, head(stage, "/v1/messages", *lines) + body)
        assert answer.split(b" ")[1] == str(status).encode(), answer[:200]
        assert b"xxxx" not in answer, "nothing of what came is repeated"
        assert stage.upstream.seen == []
        assert (await stage.post())[0] == 200


async def test_h5_a_bomb_is_not_unfolded(tmp_path: Path) -> None:
    bomb = gzip.compress(bytes(256 << 20))
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        assert (await stage.post(bomb, content_encoding="gzip"))[0] == 413
        assert (await stage.post(gzip.compress(json.dumps(asking()).encode()), content_encoding="gzip"))[0] == 200
        assert stage.upstream.seen[0].header("content-encoding") == "gzip", "it goes on as it came"


async def test_bodies_are_bounded_together(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, bounds={"bodies_mb": 1}) as stage:
        status, _, headers = await stage.post(asking(text="x" * (2 << 20)))
        assert (status, "retry-after" in headers) == (529, True)
        assert stage.gateway.desk.body_bytes == 0


@pytest.mark.parametrize(
    "target",
    [
        "http://evil.test/v1/messages",
        "//evil.test/v1/messages",
        "/v1/../admin",
        "/v1/%2e%2e/admin",
        "/v1/./messages",
        "/v1//messages",
        "/v1/messages\\..",
        "/v1/messages?key=abc",
        "/v1/messages?x=1&api_key=abc",
        "/v1/me%73sages",
        "*",
    ],
)
async def test_h7_targets_no_proxy_takes(tmp_path: Path, target: str) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, upstream={"other_paths": "pass"}) as stage:
        answer = await raw(stage, head(stage, target, "Content-Length: 0", "Connection: close"))
        assert answer.split(b" ")[1] == b"400", answer[:100]
        assert stage.upstream.seen == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE", "PUT", "OPTIONS"])
async def test_h7_methods_no_proxy_takes(tmp_path: Path, method: str) -> None:
    async with staged(tmp_path, lambda seen, n: WELL, upstream={"other_paths": "pass"}) as stage:
        target = "evil.test:443" if method == "CONNECT" else "/v1/messages"
        answer = await raw(stage, head(stage, target, "Connection: close", method=method))
        assert answer.split(b" ")[1] in {b"400", b"405"}
        assert stage.upstream.seen == []


async def test_h7_headers_of_other_proxies_stay_here(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        await stage.post(
            x_forwarded_for="1.2.3.4", forwarded="for=1", via="x", x_orchestra_secret="s", cookie="a=b", connection="x-gone", x_gone="1"
        )
        names = {name.lower() for name, _ in stage.upstream.seen[0].headers}
        assert not names & {"x-forwarded-for", "forwarded", "via", "x-orchestra-secret", "cookie", "x-gone", "connection"}


async def test_other_paths_are_refused_unless_allowed(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        assert (await stage.post(path="/v1/organizations/keys"))[0] == 404
        assert (await stage.post(path="/api/v1/files"))[0] == 404
        assert stage.upstream.seen == []


async def test_h8_tokens(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        second = (await stage.admin("issue_token", attempt="try-2"))["token"]
        brief = (await stage.admin("issue_token", attempt="try-3", expires_in_ms=1))["token"]
        for token in ("orc-forged", "", stage.token[:-1], stage.token + "x", CANARY, brief):
            status, _, headers = await stage.post(token=token or "none")
            assert (status, headers["x-should-retry"]) == (401, "false")
        assert (await stage.post(token=second))[0] == 200
        assert (await stage.admin("revoke", attempt="try-2"))["revoked"] == 1
        assert (await stage.post(token=second))[0] == 401, "not after the attempt has ended"
        assert (await stage.post(token="none", authorization=f"Bearer {stage.token}"))[0] == 200
        assert len(stage.upstream.seen) == 2
        assert all(stage.token not in str(seen.headers) for seen in stage.upstream.seen)


async def test_h9_two_hundred_agents_in_one_moment(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        tokens = [(await stage.admin("issue_token", attempt=f"try-{n}", agent=f"agent-{n}"))["token"] for n in range(200)]
        found = await asyncio.gather(*(stage.post(token=token) for token in tokens for _ in range(5)))
        assert [status for status, _, _ in found] == [200] * 1_000
        assert (await stage.totals())["requests"] == 1_000
        rows = (await stage.admin("usage", by="agent"))["usage"]
        assert [rows[f"agent-{n}"]["requests"] for n in range(200)] == [5] * 200


async def test_an_agent_has_so_many_on_their_way_and_no_more(tmp_path: Path) -> None:
    answer = Answer(headers=WELL.headers, body=WELL.body, wait_ms=20)
    async with staged(tmp_path, lambda seen, n: answer, bounds={"agent_in_flight": 3}) as stage:
        found = await asyncio.gather(*(stage.post() for _ in range(20)))
        assert [status for status, _, _ in found] == [200] * 20
        assert stage.upstream.open_most == 3


async def test_h10_a_websocket_is_told_to_use_http(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: WELL) as stage:
        lines = ("Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Version: 13", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")
        answer = await raw(stage, head(stage, "/v1/responses", *lines, method="GET"))
        assert answer.startswith(b"HTTP/1.1 426 ")
        assert stage.upstream.seen == []


async def test_a_turn_that_does_not_come_in_time_is_the_providers_own_error(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 1}}}}
    async with staged(tmp_path, lambda seen, n: WELL, upstream={"accounts": accounts}, bounds={"queue_seconds": 0.3}) as stage:
        assert (await stage.post())[0] == 200
        status, body, headers = await stage.post()
        assert (status, json.loads(body)["error"]["type"]) == (429, "rate_limit_error")
        assert 1 <= int(headers["retry-after"]) <= 60
        assert len(stage.upstream.seen) == 1


async def test_one_model_that_has_no_room_holds_up_no_other(tmp_path: Path) -> None:
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"opus-4": {"requests": 1}}}}
    async with staged(tmp_path, lambda seen, n: WELL, upstream={"accounts": accounts}) as stage:
        assert (await stage.post())[0] == 200
        waiting = asyncio.create_task(stage.post())
        await stage.until(lambda: stage.gateway.desk.open == 1)
        assert (await stage.post(asking("claude-haiku-4-5")))[0] == 200
        assert not waiting.done()
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        await stage.quiet()
        assert (await stage.admin("limits"))["lanes"][0]["waiting"] == 0, "who goes away waits no more"
