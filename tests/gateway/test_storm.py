"""Two hundred agents, limits and a storm of refusals, through the whole gateway in virtual time: what takes minutes there takes seconds here."""

from __future__ import annotations

import asyncio
import json
import random
from collections import deque
from pathlib import Path

import pytest

from orchestra.testing.upstream import JSON_TYPE, Answer, Seen, anthropic_json, anthropic_stream, refusal
from tests.gateway.support import Stage, asking, staged
from tests.gateway.virtual import VirtualClock, in_virtual_time

CLOCK = VirtualClock()
MINUTE_MS = 60_000


async def issue(stage: Stage, count: int) -> list[str]:
    return [(await stage.admin("issue_token", attempt=f"try-{n}", task=f"task-{n}", agent=f"agent-{n}"))["token"] for n in range(count)]


def slowly(answer: Answer, wait_ms: int) -> Answer:
    return Answer(answer.status, answer.headers, answer.body, answer.chunks, wait_ms=wait_ms)


@pytest.mark.parametrize("some,all_of_them", [("1", "7"), ("0", "0"), ("", "7"), ("", "")], ids=["told", "zero", "told late", "untold"])
def test_fifty_agents_in_a_storm_of_refusals(tmp_path: Path, some: str, all_of_them: str) -> None:
    """Three of ten requests are refused for a minute, then all of them for another, then it is over. Each agent has a task of four turns. No agent hears
    of it, all tasks are completed, and within five minutes."""
    chance = random.Random(7)
    calm_ms = 2 * MINUTE_MS

    def script(seen: Seen, n: int) -> Answer:
        now_ms = CLOCK.steady_ms()
        if now_ms < calm_ms and (now_ms >= MINUTE_MS or chance.random() < 0.3):
            retry_after = some if now_ms < MINUTE_MS else all_of_them
            return refusal(429, "rate_limit_error", *([("retry-after", retry_after)] if retry_after else []))
        return slowly(anthropic_stream(30, 40) if n % 2 else anthropic_json(30, 40), 4_000)

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage:

            async def task(token: str) -> tuple[set[int], int]:
                statuses = set()
                for _ in range(4):
                    statuses.add((await stage.post(token=token))[0])
                    await CLOCK.sleep_ms(10_000)
                return statuses, CLOCK.steady_ms()

            found = await asyncio.gather(*(task(token) for token in await issue(stage, 50)))
            assert [statuses for statuses, _ in found] == [{200}] * 50
            assert max(ended_ms for _, ended_ms in found) - calm_ms < 5 * MINUTE_MS
            refused = [seen for seen in stage.upstream.seen if MINUTE_MS <= seen.at_ms < calm_ms]
            assert 0 < len(refused) < 60, "while all is refused, hardly anybody asks"
            totals = await stage.totals()
            assert (totals["requests"], totals["assumed_requests"], totals["reserved_usd_micros"]) == (200, 0, 0)
            assert totals["cost_usd_micros"] == 200 * (30 * 5 + 40 * 25)

    in_virtual_time(scene())


def test_one_agent_alone_waits_out_a_minute_without_a_word_on_how_long(tmp_path: Path) -> None:
    """Its request is refused time and again; it is the same one each time, and it is not given up before the queue's own patience is."""

    def script(seen: Seen, n: int) -> Answer:
        return refusal(429, "rate_limit_error") if seen.at_ms < MINUTE_MS else anthropic_json(1, 1)

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage:
            assert (await stage.post())[0] == 200
            assert 5 < len(stage.upstream.seen) < 20

    in_virtual_time(scene())


def test_a_limit_that_is_closed_for_longer_than_anybody_waits_says_so_at_once(tmp_path: Path) -> None:
    def script(seen: Seen, n: int) -> Answer:
        return refusal(429, "rate_limit_error", ("retry-after", "1800"))

    async def scene() -> None:
        async with staged(tmp_path, script, clock=CLOCK) as stage:
            assert (await stage.post())[0] == 429
            began_ms = CLOCK.steady_ms()
            status, _, headers = await stage.post()
            assert (status, headers["retry-after"], len(stage.upstream.seen)) == (429, "60", 1)
            assert CLOCK.steady_ms() - began_ms < 1_000

    in_virtual_time(scene())


def test_five_at_once_on_a_hundred_tokens_a_minute(tmp_path: Path) -> None:
    """One is sent at once, the others as the limit grows back; nobody is refused."""
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"tokens": 100}}}}
    body = asking(max_tokens=40, text="x" * 130)
    size = -(-len(json.dumps(body)) // 4)
    assert 50 < size + 40 <= 100

    async def scene() -> None:
        script = lambda seen, n: anthropic_json(size, 40)  # noqa: E731
        async with staged(tmp_path, script, upstream={"accounts": accounts}, bounds={"queue_seconds": 600}, clock=CLOCK) as stage:
            found = await asyncio.gather(*(stage.post(body) for _ in range(5)))
            assert [status for status, _, _ in found] == [200] * 5
            times = [seen.at_ms for seen in stage.upstream.seen]
            level, last_ms = 100.0, times[0]
            for at_ms in times:
                level, last_ms = min(100.0, level + (at_ms - last_ms) / 600) - (size + 40), at_ms
                assert level > -1, "the provider's bucket is never overdrawn"
            least_ms = (5 * (size + 40) - 100) * 600
            assert times[-1] - times[0] <= least_ms * 1.05 + 1_000, "and what it gives is used"

    in_virtual_time(scene())


def test_two_hundred_agents_on_one_limit(tmp_path: Path) -> None:
    """1,000 requests and 60,000 tokens a minute, and everybody always wants more: never over by more than one request, at least 95 % of it used, and shared evenly.

    The upstream adds up every minute by itself, as OpenAI does.
    """
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": {"requests": 1_000, "tokens": 60_000}}, "concurrency": 1_000}}
    end_ms = 4 * MINUTE_MS
    window: deque[int] = deque()
    most = 0
    counts: dict[str, int] = {}
    body = json.dumps({"model": "gpt-5", "max_completion_tokens": 60, "messages": [{"role": "user", "content": "x" * 90}]}).encode()
    answer = json.dumps({"usage": {"prompt_tokens": 40, "completion_tokens": 20}}).encode()

    def script(seen: Seen, n: int) -> Answer:
        nonlocal most
        window.append(seen.at_ms)
        while window[0] <= seen.at_ms - MINUTE_MS:
            window.popleft()
        most = max(most, len(window))
        return Answer(body=answer, wait_ms=2_000)

    async def scene() -> int:
        upstream = {"kind": "openai", "accounts": accounts}
        async with staged(tmp_path, script, upstream=upstream, clock=CLOCK) as stage:

            async def agent(number: int, token: str) -> None:
                while CLOCK.steady_ms() < end_ms:
                    status, _, _ = await stage.post(body, path="/v1/chat/completions", token=token)
                    assert status == 200
                    counts[f"agent-{number}"] = counts.get(f"agent-{number}", 0) + (CLOCK.steady_ms() < end_ms)

            await asyncio.gather(*(agent(number, token) for number, token in enumerate(await issue(stage, 200))))
            return sum(MINUTE_MS <= seen.at_ms < 4 * MINUTE_MS for seen in stage.upstream.seen)

    sent = in_virtual_time(scene())
    assert most <= 1_001
    assert sent >= 0.95 * 3_000
    values = list(counts.values())
    assert len(values) == 200
    assert sum(values) ** 2 / (200 * sum(each * each for each in values)) >= 0.9


@pytest.mark.parametrize(
    "kind,path,limits,usage",
    [
        pytest.param("openai", "/v1/responses", {"tokens": 1_000}, {"input_tokens": 200, "output_tokens": 300}, id="openai"),
        pytest.param("anthropic", "/v1/messages", {"output_tokens": 8_000}, {"input_tokens": 30, "output_tokens": 4_000}, id="anthropic"),
    ],
)
def test_answers_longer_than_anybody_thought(tmp_path: Path, kind: str, path: str, limits: dict[str, int], usage: dict[str, int]) -> None:
    """A gateway that has seen no answer yet, and five clients that always want more: by what the answers say they used it is never over by more than one of
    them, and nearly all of the limit is used."""
    ((name, limit),) = limits.items()
    cost = usage["output_tokens"] + (usage["input_tokens"] if name == "tokens" else 0)
    accounts = {"main": {"keys": [{"env": "KEY_A"}], "limits": {"default": limits}}}
    minutes = 5
    answer = json.dumps({"usage": usage}).encode()
    body = json.dumps(
        {"model": "gpt-5", "max_tokens": 8_000, "messages": []} if kind == "anthropic" else {"model": "gpt-5", "input": "x" * 100}
    ).encode()

    async def scene() -> list[int]:
        script = lambda seen, n: Answer(headers=(JSON_TYPE,), body=answer, wait_ms=5_000)  # noqa: E731
        upstream = {"kind": kind, "accounts": accounts}
        async with staged(tmp_path, script, upstream=upstream, bounds={"queue_seconds": 600}, clock=CLOCK) as stage:

            async def agent() -> None:
                while CLOCK.steady_ms() < minutes * MINUTE_MS:
                    assert (await stage.post(body, path=path))[0] == 200

            await asyncio.gather(*(agent() for _ in range(5)))
            return [seen.at_ms for seen in stage.upstream.seen if seen.at_ms < minutes * MINUTE_MS]

    times = in_virtual_time(scene())
    burst = limit if kind == "anthropic" else 0
    level, last_ms = float(limit), times[0]
    for at_ms in times:
        level, last_ms = min(limit, level + (at_ms - last_ms) * limit / MINUTE_MS) - cost, at_ms
        assert level >= -cost, "over by one request at most"
        assert kind == "anthropic" or sum(at_ms - MINUTE_MS < each <= at_ms for each in times) * cost <= limit + cost
    assert len(times) * cost >= 0.95 * (limit * minutes) - cost
    assert len(times) * cost <= burst + limit * minutes + cost


@pytest.mark.parametrize("told", ["20", ""])
def test_a_refusal_that_outlasts_the_queue_is_the_providers_own_and_may_be_repeated(tmp_path: Path, told: str) -> None:
    answer = refusal(429, "rate_limit_error", ("request-id", "r1"), *([("retry-after", told)] if told else []))

    async def scene() -> None:
        async with staged(tmp_path, lambda seen, n: answer, clock=CLOCK) as stage:
            status, body, headers = await stage.post()
            assert (status, body, headers["request-id"], "x-should-retry" in headers) == (429, answer.body, "r1", False)
            assert 90_000 < CLOCK.steady_ms() <= 120_500
            assert headers["retry-after"] == told if told else 1 <= int(headers["retry-after"]) <= 60, (
                "without one Codex does not ask again"
            )

    in_virtual_time(scene())
