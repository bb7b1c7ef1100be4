"""Budgets hold, to the micro-dollar of what the upstream says."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import sys
import zlib
from pathlib import Path
from typing import Any

import pytest

from orchestra.metering.usage import Usage
from orchestra.testing.upstream import JSON_TYPE, SSE_TYPE, Answer, Seen, anthropic_chunks, anthropic_json, anthropic_stream, event
from tests.gateway.support import CANARY, asking, staged
from tests.gateway.virtual import VirtualClock, in_virtual_time

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

IN, OUT = 5, 25
"""Micro-dollars a token of the model the tests ask for."""


async def test_a_task_of_one_cent_is_stopped_and_costs_what_the_upstream_said(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []

    def script(seen: Seen, n: int) -> Answer:
        told.append((100 + n, 40 + n))
        return anthropic_json(*told[-1])

    async with staged(tmp_path, script, issue={"budgets": {"task": 10_000}}) as stage:
        statuses: list[int] = []
        body, headers = b"", dict[str, str]()
        while statuses[-1:] != [402]:
            status, body, headers = await stage.post()
            statuses.append(status)
            assert status in {200, 402}
        assert (statuses[-1], json.loads(body)["error"]["type"], headers["x-should-retry"]) == (402, "billing_error", "false")
        assert len(told) == len(statuses) - 1, "what would pass the budget is not sent"
        totals = await stage.totals("task", "task-1")
        assert totals["cost_usd_micros"] == sum(i * IN + o * OUT for i, o in told) <= 10_000
        assert (totals["requests"], totals["reserved_usd_micros"]) == (len(told), 0)
        kinds = await stage.kinds()
        assert kinds.count("budget_warning") == 2, "at four fifths, and at the end"
        assert "budget_spent" in kinds


async def test_a_stream_is_cut_where_it_would_pass_the_budget(tmp_path: Path) -> None:
    texts = ["x" * 400] * 100
    answer = Answer(headers=(SSE_TYPE,), chunks=anthropic_chunks(100, 10_000, texts), pause_ms=2)
    async with staged(tmp_path, lambda seen, n: answer, issue={"budgets": {"task": 20_000}}) as stage:
        status, body, _ = await stage.post(asking(stream=True))
        assert status == 200
        assert body.count(b"content_block_delta") // 2 < 100
        last = body.strip().rpartition(b"\n\n")[2]
        assert last.startswith(b"event: error\ndata: ")
        assert json.loads(last.partition(b"data: ")[2])["error"]["type"] == "billing_error"
        await stage.quiet()
        totals = await stage.totals("task", "task-1")
        assert 15_000 < totals["cost_usd_micros"] <= 20_000 + 100 * OUT, "by one piece of text at most"
        assert totals["assumed_requests"] == 1
        assert (await stage.post())[0] == 402


async def test_a_stream_that_may_have_to_be_cut_is_not_asked_for_compressed(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_stream(1, 1) if n == 0 else anthropic_json(1, 1)) as stage:
        await stage.post(asking(stream=True), accept_encoding="gzip, deflate, br")
        await stage.post(asking(), accept_encoding="br, gzip;q=0.9, zstd, deflate")
        assert [seen.header("accept-encoding") for seen in stage.upstream.seen] == ["identity", "gzip;q=0.9, deflate"], (
            "what can be counted"
        )


async def test_a_compressed_stream_is_cut_without_words_in_it(tmp_path: Path) -> None:
    """A provider that compresses unasked: what came before the cut can be read to the last byte, and then the connection is closed."""
    packer = zlib.compressobj(wbits=31)
    chunks = [packer.compress(chunk) + packer.flush(zlib.Z_SYNC_FLUSH) for chunk in anthropic_chunks(100, 10_000, ["x" * 400] * 100)]
    answer = Answer(headers=(SSE_TYPE, ("Content-Encoding", "gzip")), chunks=tuple(chunks), pause_ms=2)
    async with staged(tmp_path, lambda seen, n: answer, issue={"budgets": {"task": 20_000}}) as stage:
        body = json.dumps(asking(stream=True)).encode()
        request = b"POST /v1/messages HTTP/1.1\r\nHost: x\r\nx-api-key: %b\r\nContent-Length: %d\r\n\r\n%b"
        reader, writer = await asyncio.open_connection("127.0.0.1", stage.gateway.port)
        writer.write(request % (stage.token.encode(), len(body), body))
        _, _, framed = (await reader.read()).partition(b"\r\n\r\n")
        writer.close()
        packed = b""
        while framed:
            size, _, framed = framed.partition(b"\r\n")
            packed, framed = packed + framed[: int(size, 16)], framed[int(size, 16) + 2 :]
        text = zlib.decompressobj(wbits=31).decompress(packed)
        assert text.startswith(b"event: message_start")
        assert text.endswith(b"\n\n")
        assert 0 < text.count(b"content_block_delta") // 2 < 100
        await stage.quiet()
        assert (await stage.totals())["assumed_requests"] == 1
        assert "budget_spent" in await stage.kinds()


async def test_a_screenshot_of_three_megabytes_passes_a_budget_of_two_dollars(tmp_path: Path) -> None:
    """It costs what a picture costs, a few cents, also in a request that repeats it."""
    data = base64.b64encode(b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR" + os.urandom(3_000_000)).decode()
    picture = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": data}}
    body = asking() | {"messages": [{"role": "user", "content": [picture, {"type": "text", "text": "what is it"}]}]}
    async with staged(tmp_path, lambda seen, n: anthropic_json(1_600, 100), issue={"budgets": {"task": 2_000_000}}) as stage:
        assert [(await stage.post(body))[0] for _ in range(2)] == [200, 200]
        assert (await stage.totals("task", "task-1"))["cost_usd_micros"] == 2 * (1_600 * IN + 100 * OUT)


async def test_a_compressed_request_is_estimated_by_what_is_in_it(tmp_path: Path) -> None:
    body = json.dumps(asking(text="many words " * 40_000)).encode()
    packed = zstd.compress(body)
    assert len(packed) * 100 < len(body)
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1), issue={"budgets": {"task": len(body) // 4 * IN}}) as stage:
        assert (await stage.post(packed, content_encoding="zstd"))[0] == 402
        assert stage.upstream.seen == []


async def test_many_at_once_do_not_pass_a_budget_together(tmp_path: Path) -> None:
    """Each reserves before it is sent, so that thirty at once are as few as one after the other."""
    answer = anthropic_json(10, 40)
    slow = Answer(headers=answer.headers, body=answer.body, wait_ms=100)
    async with staged(tmp_path, lambda seen, n: slow, issue={"budgets": {"plan": 20_000}}, bounds={"agent_in_flight": 100}) as stage:
        found = await asyncio.gather(*(stage.post() for _ in range(30)))
        passed = [status for status, _, _ in found].count(200)
        assert 0 < passed < 30
        assert (await stage.totals("plan", "plan-1"))["cost_usd_micros"] <= 20_000


async def test_nobody_is_refused_for_what_others_only_reserved(tmp_path: Path) -> None:
    """Thirty at once ask for far more than they use. Each waits until the budget bears it, and the budget is used as if they had come one by one."""
    answer = anthropic_json(10, 40)
    slow = Answer(headers=answer.headers, body=answer.body, wait_ms=20)
    async with staged(tmp_path, lambda seen, n: slow, budgets={"day_usd": 0.02}, bounds={"agent_in_flight": 100}) as stage:
        found = await asyncio.gather(*(stage.post() for _ in range(30)))
        passed = [status for status, _, _ in found].count(200)
        totals = await stage.totals()
        assert totals["cost_usd_micros"] == passed * (10 * IN + 40 * OUT) <= 20_000
        (first,) = [each for each in (await stage.admin("events"))["events"] if each["kind"] == "budget_spent"][:1]
        told = first["fields"]
        assert told["settled_usd_micros"] + told["needed_usd_micros"] > 20_000, "with nothing else open it would not have fitted"
        assert totals["cost_usd_micros"] > 20_000 - told["needed_usd_micros"] - (10 * IN + 40 * OUT)
        assert stage.gateway.desk.purse.claims.waiting == 0


async def test_who_waits_for_a_budget_is_in_nobody_elses_way(tmp_path: Path) -> None:
    """Two may be on their way at once. One of them holds a plan's budget; the next of that plan waits without a turn, and another plan goes on."""
    go = asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if n == 0:
            await go.wait()
        return anthropic_json(10, 40)

    accounts = {"main": {"keys": [{"env": "KEY_A"}], "concurrency": 2}}
    async with staged(tmp_path, script, upstream={"accounts": accounts}, issue={"budgets": {"plan": 4_000}}) as stage:
        other = (await stage.admin("issue_token", attempt="try-2", agent="agent-2", plan="plan-2", budgets={"plan": 4_000}))["token"]
        first = asyncio.create_task(stage.post())
        await stage.until(lambda: len(stage.upstream.seen) == 1)
        second = asyncio.create_task(stage.post())
        await stage.until(lambda: stage.gateway.desk.purse.claims.waiting == 1)
        assert [(await stage.post(token=other))[0] for _ in range(2)] == [200, 200]
        assert not second.done()
        go.set()
        assert [(await each)[0] for each in (first, second)] == [200, 200]


async def test_a_client_that_goes_away_waits_for_no_budget(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if n == 0:
            await go.wait()
        return anthropic_json(10, 40)

    async with staged(tmp_path, script, issue={"budgets": {"plan": 4_000}}) as stage:
        claims = stage.gateway.desk.purse.claims
        first = asyncio.create_task(stage.post())
        await stage.until(lambda: len(stage.upstream.seen) == 1)
        second = asyncio.create_task(stage.post())
        await stage.until(lambda: claims.waiting == 1)
        second.cancel()
        await stage.until(lambda: claims.waiting == 0)
        go.set()
        assert (await first)[0] == 200
        assert (await stage.post())[0] == 200


def test_a_budget_that_others_hold_for_too_long_may_be_asked_for_again(tmp_path: Path) -> None:
    clock = VirtualClock()
    answer = anthropic_json(10, 40)

    def script(seen: Seen, n: int) -> Answer:
        return Answer(headers=answer.headers, body=answer.body, wait_ms=200_000)

    async def scene() -> None:
        async with staged(tmp_path, script, issue={"budgets": {"plan": 4_000}}, clock=clock) as stage:
            first = asyncio.create_task(stage.post())
            await clock.sleep_ms(1_000)
            status, body, headers = await stage.post()
            assert (status, headers["retry-after"], headers.get("x-should-retry")) == (429, "10", None)
            assert b"hold what is left of the budget of this plan" in body
            assert clock.steady_ms() == pytest.approx(121_000, abs=1_000)
            assert (await first)[0] == 200
            kinds = await stage.kinds()
            assert "budget_busy" in kinds
            assert "budget_spent" not in kinds

    in_virtual_time(scene())


async def test_more_money_lets_go_on_who_waits_for_others(tmp_path: Path) -> None:
    go = asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if n == 0:
            await go.wait()
        return anthropic_json(10, 40)

    async with staged(tmp_path, script, issue={"budgets": {"plan": 4_000}}) as stage:
        first = asyncio.create_task(stage.post())
        await stage.until(lambda: len(stage.upstream.seen) == 1)
        second = asyncio.create_task(stage.post())
        await stage.until(lambda: stage.gateway.desk.purse.claims.waiting == 1)
        await stage.admin("set_budget", scope="plan", name="plan-1", usd_micros=1_000_000)
        assert (await second)[0] == 200
        go.set()
        assert (await first)[0] == 200


async def test_a_scope_whose_budget_does_not_hold_for_somebody(tmp_path: Path) -> None:
    free = {"free_of": ["plan", "task"], "free_of_day": True, "budgets": {"plan": 0, "task": 0}}
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1), issue=free, budgets={"day_usd": 0}) as stage:
        assert (await stage.post())[0] == 200
        stage.token = (await stage.admin("issue_token", attempt="try-2", plan="plan-1"))["token"]
        assert (await stage.post())[0] == 402


async def test_the_administration_tells_of_some_budgets_and_forgets_others(tmp_path: Path) -> None:
    async with staged(
        tmp_path, lambda seen, n: anthropic_json(100, 400), budgets={"day_usd": 1}, issue={"budgets": {"task": 12_000}}
    ) as stage:
        await stage.admin("set_budget", scope="day", name="2020-01-01", usd_micros=0)
        await stage.admin("set_budget", scope="plan", name="plan-1", usd_micros=10_600)
        assert (await stage.post())[0] == 200

        async def names(**asked: Any) -> list[tuple[str, str]]:
            return [(row["scope"], row["name"]) for row in (await stage.admin("budgets", **asked))["budgets"]]

        assert len(await names()) == 4
        today = next(name for scope, name in await names() if scope == "day" and name != "2020-01-01")
        asked = [("plan", "plan-1"), ("plan", "nobody"), ("day", today), ("day", "2020-01-01")]
        assert await names(of=asked) == [("plan", "plan-1"), ("day", today)]
        assert await names(spent=True) == []
        await stage.admin("set_budget", scope="plan", name="plan-1", usd_micros=10_000)
        assert await names(spent=True) == [("plan", "plan-1")]
        assert (await stage.admin("forget_budgets", scope="task", names=["task-1", "task-2"])) == {"forgotten": 1}
        assert ("task", "task-1") not in await names()
        assert (await stage.totals("task", "task-1"))["requests"] == 1, "what was spent stays counted"


async def test_the_day_has_a_budget(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(100, 400), budgets={"day_usd": 0.012}) as stage:
        assert (await stage.post())[0] == 200
        assert (await stage.post())[0] == 402
        (row,) = (await stage.admin("budgets"))["budgets"]
        assert (row["scope"], row["budget_usd_micros"], row["settled_usd_micros"]) == ("day", 12_000, 100 * IN + 400 * OUT)
        await stage.admin("set_budget", scope="day", name=row["name"], usd_micros=1_000_000)
        assert (await stage.post())[0] == 200, "raised by hand"
        await stage.admin("set_budget", scope="day", name=row["name"], usd_micros=0)
        assert (await stage.post())[0] == 402
        await stage.admin("set_budget", scope="day", name=row["name"], usd_micros=-1)
        assert (await stage.post())[0] == 200, "lifted by hand, whatever is configured"
        assert (await stage.admin("budgets"))["budgets"] == []


async def test_a_budget_that_was_lifted_is_not_set_again_by_the_next_attempt(tmp_path: Path) -> None:
    async with staged(tmp_path, lambda seen, n: anthropic_json(100, 400), issue={"budgets": {"task": 1}}) as stage:
        assert (await stage.post())[0] == 402
        await stage.admin("set_budget", scope="task", name="task-1", usd_micros=-1)
        again = {"task": "task-1", "budgets": {"task": 1}, "keep_budgets": True}
        stage.token = (await stage.admin("issue_token", attempt="try-2", **again))["token"]
        assert (await stage.post())[0] == 200
        stage.token = (await stage.admin("issue_token", attempt="other", **{**again, "task": "task-2"}))["token"]
        assert (await stage.post())[0] == 402


@pytest.mark.parametrize(
    "kind,path,status,word",
    [
        ("openai", "/v1/chat/completions", 429, "insufficient_quota"),
        ("gemini", "/v1beta/models/g:generateContent", 403, "PERMISSION_DENIED"),
    ],
)
async def test_each_provider_has_its_own_words_for_it(tmp_path: Path, kind: str, path: str, status: int, word: str) -> None:
    upstream = {"kind": kind}
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1), upstream=upstream, issue={"budgets": {"task": 0}}) as stage:
        found, body, headers = await stage.post(asking("gpt-5"), path=path)
        assert (found, headers["x-should-retry"]) == (status, "false")
        assert word in body.decode()
        assert stage.upstream.seen == []


def sse(value: Any) -> bytes:
    return b"data: " + json.dumps(value).encode() + b"\n\n"


@pytest.mark.parametrize(
    "kind,path,model,chunks,header,usage",
    [
        pytest.param(
            "openai",
            "/v1/responses",
            "gpt-5",
            (event("response.completed", {"type": "response.completed", "response": {"usage": {"input_tokens": 9, "output_tokens": 4}}}),),
            ("authorization", f"Bearer {CANARY}"),
            (9, 0, 4),
            id="responses",
        ),
        pytest.param(
            "openai",
            "/v1/chat/completions",
            "gpt-5",
            (
                sse({"usage": {"prompt_tokens": 9, "completion_tokens": 4, "prompt_tokens_details": {"cached_tokens": 6}}}),
                b"data: [DONE]\n\n",
            ),
            ("authorization", f"Bearer {CANARY}"),
            (3, 6, 4),
            id="chat",
        ),
        pytest.param(
            "gemini",
            "/v1beta/models/gemini-2.5-pro:streamGenerateContent?alt=sse",
            "x",
            (sse({"usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 3, "thoughtsTokenCount": 1}}),),
            ("x-goog-api-key", CANARY),
            (9, 0, 4),
            id="gemini",
        ),
    ],
)
async def test_every_provider_is_counted(
    tmp_path: Path, kind: str, path: str, model: str, chunks: tuple[bytes, ...], header: tuple[str, str], usage: tuple[int, int, int]
) -> None:
    answer = Answer(headers=(SSE_TYPE,), chunks=chunks)
    async with staged(tmp_path, lambda seen, n: answer, upstream={"kind": kind}) as stage:
        status, body, _ = await stage.post(asking(model, stream=True), path=path)
        assert (status, body) == (200, b"".join(chunks))
        (seen,) = stage.upstream.seen
        assert (seen.target, seen.header(header[0])) == (path, header[1])
        await stage.quiet()
        totals = await stage.totals()
        assert (totals["input_tokens"], totals["cache_read_tokens"], totals["output_tokens"]) == usage
        assert totals["cost_usd_micros"] > 0


async def test_searches_and_fast_answers_are_settled_at_their_price(tmp_path: Path) -> None:
    """A search costs a cent, a fast answer twice as much, and what has no known price the most there is, with a flag."""
    answers = [
        {"input_tokens": 100, "output_tokens": 40, "server_tool_use": {"web_search_requests": 2}},
        {"input_tokens": 100, "output_tokens": 40, "speed": "fast", "service_tier": "standard"},
        {"input_tokens": 100, "output_tokens": 40, "service_tier": "express"},
    ]
    script = lambda seen, n: Answer(headers=(JSON_TYPE,), body=json.dumps({"usage": answers[n]}).encode())  # noqa: E731
    async with staged(tmp_path, script, issue={"budgets": {"task": 10_000_000}}) as stage:
        before, costs, flagged = 0, [], []
        for _ in answers:
            assert (await stage.post(asking("claude-opus-4-8")))[0] == 200
            totals = await stage.totals()
            costs.append(totals["cost_usd_micros"] - before)
            flagged.append(totals["unpriced_requests"])
            before = totals["cost_usd_micros"]
        assert costs == [100 * IN + 40 * OUT + 20_000, 2 * (100 * IN + 40 * OUT), 2 * (100 * IN + 40 * OUT)]
        assert flagged == [0, 0, 1]
        (told,) = [each["fields"] for each in (await stage.admin("events"))["events"] if each["kind"] == "price_unknown"]
        assert (told["model"], told["mode"]) == ("claude-opus-4-8", "express")


@pytest.mark.parametrize("worked_at,tenths", [("standard", (10, 10)), ("priority", (18, 18)), ("", (10, 18))])
async def test_gemini_says_in_a_header_how_it_worked(tmp_path: Path, worked_at: str, tenths: tuple[int, int]) -> None:
    """A request for the priority tier may be worked on as a plain one; where nothing is said, it was what was asked for."""
    usage = {"promptTokenCount": 1_000, "candidatesTokenCount": 100}
    headers = (JSON_TYPE, *([("x-gemini-service-tier", worked_at)] if worked_at else []))
    answer = Answer(headers=headers, body=json.dumps({"usageMetadata": usage}).encode())
    async with staged(tmp_path, lambda seen, n: answer, upstream={"kind": "gemini"}) as stage:
        costs = []
        for tier in (None, "priority"):
            before = (await stage.totals())["cost_usd_micros"]
            path = "/v1beta/models/gemini-3.8-flash-tts:generateContent"
            assert (await stage.post({"contents": [], "service_tier": tier}, path=path))[0] == 200
            costs.append((await stage.totals())["cost_usd_micros"] - before)
        assert (await stage.totals())["unpriced_requests"] == 0
        plain = stage.gateway.desk.quote("gemini", "gemini-3.8-flash-tts", Usage(1_000)).price
        assert costs == [(1_000 * plain.input + 100 * plain.output) * each // 10_000_000 for each in tenths]


async def test_a_dearer_mode_is_reserved_at_its_price(tmp_path: Path) -> None:
    """What a plain request may do, a fast one may not: nothing of it is sent."""
    body = asking("claude-opus-4-8", max_tokens=100)
    size = -(-len(json.dumps(body | {"speed": "fast"})) // 4)
    budget = size * IN + 100 * OUT
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1), issue={"budgets": {"task": budget}}) as stage:
        assert (await stage.post(body | {"speed": "fast"}))[0] == 402
        assert stage.upstream.seen == []
        assert (await stage.post(body))[0] == 200


async def test_what_cannot_be_written_down_is_not_sent(tmp_path: Path) -> None:
    """A full disk: clients may come again, and nothing is spent that nobody would know of."""
    async with staged(tmp_path, lambda seen, n: anthropic_json(1, 1)) as stage:
        journal = stage.gateway.journal
        kept, journal._file = journal._file, os.open("/dev/full", os.O_WRONLY)
        status, _, headers = await stage.post()
        assert (status, "retry-after" in headers, stage.upstream.seen) == (529, True, [])
        assert journal._file is not None
        os.close(journal._file)
        journal._file = kept
        assert (await stage.post())[0] == 200
        totals = await stage.totals()
        assert (totals["requests"], totals["reserved_usd_micros"]) == (1, 0)


async def test_books_of_before_limits_were_in_them_are_read(tmp_path: Path) -> None:
    """Their head says nothing of limits, and what is written now is read by the next start."""
    state = {
        "k": "state",
        "next_id": 7,
        "totals": {"all": {"": {"requests": 6, "cost_usd_micros": 60}}},
        "budgets": {"task": {"task-1": 50}},
    }
    data = json.dumps(state).encode()
    (tmp_path / "books").mkdir()
    (tmp_path / "books" / "journal.jsonl").write_bytes(b"%08x %b\n" % (zlib.crc32(data), data))
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests_per_day": 3}}}}
    statuses: list[int] = []
    for _ in range(2):
        issue = {"task": "task-2"}
        async with staged(
            tmp_path, lambda seen, n: anthropic_json(1, 1), issue=issue, upstream={"accounts": accounts}, bounds={"queue_seconds": 1}
        ) as stage:
            assert (await stage.totals())["requests"] == 6 + statuses.count(200)
            assert {row["name"] for row in (await stage.admin("budgets"))["budgets"]} == {"task-1"}
            statuses += [(await stage.post())[0] for _ in range(2)]
            assert not stage.gateway.journal.spoilt
    assert statuses == [200, 200, 200, 429]
