"""`orchestra gateway` as a process: started, asked, killed and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from orchestra.testing.upstream import SSE_TYPE, Answer, Seen, Upstream, anthropic_chunks, anthropic_json, refusal
from tests.gateway.namespace import namespace
from tests.gateway.process import running
from tests.gateway.support import CANARY, CLOCK, asking, configuration
from tests.gateway.test_keys import put


def files_that_hold(text: str, folder: Path) -> list[Path]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert {"gateway.json", "journal.jsonl", "output"} <= {path.name for path in files}
    return [path for path in files if text.encode() in path.read_bytes()]


def processes_that_hold(text: str) -> set[int]:
    """Of this machine, in their environment or arguments."""
    holders = set()
    for entry in Path("/proc").iterdir():
        for name in ("environ", "cmdline"):
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and text.encode() in (entry / name).read_bytes():
                    holders.add(int(entry.name))
    return holders


async def test_kill_9_with_two_hundred_streams(tmp_path: Path) -> None:
    """Each is settled by the prompt the provider told and what was streamed, and not by the larger sum that was reserved; what was settled stays, tokens go
    on, and the budget still holds."""
    begun_with = b"".join(anthropic_chunks(100, 20, ["x" * 2_000])[:2])
    answer = Answer(headers=(SSE_TYPE,), chunks=(begun_with, b": wait\n\n"), pause_ms=60_000)
    upstream = Upstream(lambda seen, n: anthropic_json(10, 10) if n == 0 else answer, CLOCK)
    async with (
        running(tmp_path, upstream, bounds={"agent_in_flight": 300}) as process,
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as http,
    ):
        issued = await process.admin("issue_token", attempt="try-1", task="task-1", budgets={"task": 10_000_000})
        headers = {"x-api-key": issued["token"]}
        async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers=headers) as response:
            assert response.status == 200

        async def stream() -> None:
            async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(stream=True), headers=headers) as response:
                await response.content.readexactly(len(begun_with))
                begun.release()
                await response.read()

        begun = asyncio.Semaphore(0)
        streams = [asyncio.create_task(stream()) for _ in range(200)]
        for _ in range(200):
            await begun.acquire()
        held = (await process.admin("usage", by="task", name="task-1"))["usage"]["task-1"]
        assert held["reserved_usd_micros"] > 0
        await process.end(signal.SIGKILL)
        await asyncio.gather(*streams, return_exceptions=True)

        await process.start()
        totals = (await process.admin("usage", by="task", name="task-1"))["usage"]["task-1"]
        assert (totals["requests"], totals["assumed_requests"], totals["reserved_usd_micros"]) == (201, 200, 0)
        assert (totals["input_tokens"], totals["output_tokens"]) == (10 + 200 * 100, 10 + 200 * 500)
        assert totals["cost_usd_micros"] == totals["input_tokens"] * 5 + totals["output_tokens"] * 25
        assert totals["cost_usd_micros"] < held["cost_usd_micros"] + held["reserved_usd_micros"]
        assert "recovered" in [each["kind"] for each in (await process.admin("events"))["events"]]
        await process.admin("set_budget", scope="task", name="task-1", usd_micros=totals["cost_usd_micros"])
        async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers=headers) as response:
            assert response.status == 402, "the token is known again, and so is the budget"


async def test_kill_9_forgets_no_limit(tmp_path: Path) -> None:
    """What was used of a day, what the provider said of its limits and which account is used up hold after it as before."""
    spent = [("anthropic-ratelimit-unified-5h-status", "rejected"), ("retry-after", "3600")]

    def script(seen: Seen, n: int) -> Answer:
        if b"claude-haiku" in seen.body:
            return refusal(429, "rate_limit_error", *spent)
        answer = anthropic_json(10, 10)
        return Answer(headers=(*answer.headers, ("anthropic-ratelimit-requests-limit", "4000")), body=answer.body)

    upstream = Upstream(script, CLOCK)
    part = {"accounts": {"main": {"keys": [{"env": "KEY_A"}], "limits": {"opus-4": {"requests_per_day": 5}}}}}
    async with running(tmp_path, upstream, upstream=part, bounds={"queue_seconds": 1}) as process, aiohttp.ClientSession() as http:
        headers = {"x-api-key": (await process.admin("issue_token", attempt="try-1"))["token"]}

        async def ask(model: str) -> int:
            url = f"http://127.0.0.1:{process.port}/v1/messages"
            async with http.post(url, json=asking(model), headers=headers) as response:
                return response.status

        async def restart() -> None:
            await process.end(signal.SIGKILL)
            await process.start()

        assert [await ask("claude-opus-4-5") for _ in range(6)] == [200] * 5 + [429]
        await restart()
        assert await ask("claude-opus-4-5") == 429
        (lane,) = (await process.admin("limits"))["lanes"]
        limits = {each["name"]: each for each in lane["limits"]}
        assert limits["requests_per_day"]["used"] == 5
        assert (limits["requests"]["limit"], limits["requests"]["learned"]) == (4_000, True)
        assert len(upstream.seen) == 5

        assert await ask("claude-haiku-4-5") == 429
        await restart()
        assert await ask("claude-sonnet-4-5") == 429, "the account is used up for all its models"
        assert (await process.admin("health"))["accounts"]["api.main"]["parked_ms"] > 3_000_000
        assert len(upstream.seen) == 6, "nobody was asked for it"


async def test_the_key_is_nowhere_but_in_the_gateway(tmp_path: Path) -> None:
    """In no log, no file, no answer, and in no other process's environment or arguments, the agent's least of all."""

    def script(seen: Any, n: int) -> Answer:
        assert seen.header("x-api-key") == CANARY
        return [anthropic_json(1, 1), refusal(400, "bad"), refusal(500, "api_error"), refusal(401, "authentication_error")][min(n, 3)]

    upstream = Upstream(script, CLOCK)
    async with running(tmp_path, upstream) as process, aiohttp.ClientSession() as http:
        token = (await process.command("token", "--attempt", "try-1"))["token"]
        answers = []
        for _ in range(4):
            async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers={"x-api-key": token}) as response:
                answers.append(str(response.headers) + await response.text())
        agent = await asyncio.create_subprocess_exec("sleep", "60", env={"ANTHROPIC_API_KEY": token, "PATH": os.environ["PATH"]})
        try:
            answers += [json.dumps(await process.admin(method)) for method in ("usage", "limits", "budgets", "events", "health")]
            assert not [answer for answer in answers if CANARY in answer]
            assert files_that_hold(CANARY, tmp_path) == []
            assert processes_that_hold(CANARY) == {process.pid}
        finally:
            agent.kill()
            await agent.wait()


async def test_the_command_from_outside(tmp_path: Path) -> None:
    upstream = Upstream(lambda seen, n: anthropic_json(100, 10), CLOCK)
    async with running(tmp_path, upstream) as process, aiohttp.ClientSession() as http:
        argv = ("token", "--attempt", "try-1", "--task", "docs", "--task-budget", "0.003", "--hours", "1")
        token = (await process.command(*argv))["token"]
        statuses = []
        for _ in range(6):
            async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers={"x-api-key": token}) as response:
                statuses.append(response.status)
        assert statuses == [200] * 4 + [402] * 2
        usage = (await process.command("usage", "--by", "task"))["usage"]["docs"]
        assert (usage["requests"], usage["cost_usd_micros"]) == (4, 3_000)
        assert (await process.command("limits"))["lanes"][0]["account"] == "main"
        assert (await process.command("status"))["healthy"]
        assert (await process.command("token", "--attempt", "try-1", "--revoke"))["revoked"] == 1
        events = await process.admin("events")
        assert {"budget_spent"} <= {each["kind"] for each in events["events"]}
        assert (await process.admin("events", cursor=events["cursor"]))["events"] == []


async def test_signals_reload_and_drain(tmp_path: Path) -> None:
    """SIGTERM waits for what is on its way and takes nothing new."""
    answer = anthropic_json(1, 1)
    slow = Answer(headers=answer.headers, body=answer.body, wait_ms=600)
    arrived = asyncio.Event()

    def script(seen: Any, n: int) -> Answer:
        arrived.set()
        return slow

    upstream = Upstream(script, CLOCK)
    async with running(tmp_path, upstream) as process, aiohttp.ClientSession() as http:
        token = (await process.admin("issue_token", attempt="try-1"))["token"]
        process.signal(signal.SIGHUP)
        while "reloaded" not in [each["kind"] for each in (await process.admin("events", wait_ms=1_000))["events"]]:
            pass

        async def ask() -> int:
            async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers={"x-api-key": token}) as response:
                await response.read()
                return response.status

        asked = asyncio.create_task(ask())
        await arrived.wait()
        assert await process.end(signal.SIGTERM) == 0
        assert await asked == 200


async def test_budgets_reload_and_the_end_by_commands(tmp_path: Path) -> None:
    """What an administrator of a gateway alone does, without its socket."""
    upstream = Upstream(lambda seen, n: anthropic_json(1, 1), CLOCK)
    async with running(tmp_path, upstream) as process, aiohttp.ClientSession() as http:
        token = (await process.admin("issue_token", attempt="try-1", task="docs"))["token"]

        async def ask() -> int:
            async with http.post(f"http://127.0.0.1:{process.port}/v1/messages", json=asking(), headers={"x-api-key": token}) as response:
                return response.status

        assert await ask() == 200
        (held,) = (await process.command("budget", "task", "docs", "--usd", "0"))["budgets"]
        assert (held["scope"], held["name"], held["budget_usd_micros"]) == ("task", "docs", 0)
        assert held["settled_usd_micros"] > 0
        assert await ask() == 402
        assert (await process.command("budget", "task", "docs", "--none"))["budgets"] == []
        assert await ask() == 200

        await process.command("budget", "day", "--usd", "0")
        assert await ask() == 402
        assert (await process.command("budget", "plan"))["budgets"] == []
        (today,) = (await process.command("budget", "day"))["budgets"]
        await process.command("budget", "day", today["name"], "--usd", "1.5")
        assert await ask() == 200

        assert await process.command("reload") == {}
        assert (await process.admin("events"))["events"][-1]["kind"] == "reloaded"
        assert await process.command("stop") == {}
        assert await process.exit_code() == 0


async def test_two_gateways_do_not_share_a_folder(tmp_path: Path) -> None:
    upstream = Upstream(lambda seen, n: anthropic_json(1, 1), CLOCK)
    async with running(tmp_path, upstream) as process:
        argv = [sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(tmp_path / "gateway.json")]
        second = await asyncio.create_subprocess_exec(*argv, env={**os.environ, "KEY_A": "sk-x"}, stderr=asyncio.subprocess.PIPE)
        _, words = await second.communicate()
        assert second.returncode == 69
        assert b"another gateway uses" in words
        assert (await process.admin("health"))["healthy"]


@pytest.mark.parametrize(
    "change,field",
    [
        ({"listen": "0.0.0.0:80"}, "listen"),
        ({"upstreams": {}}, "upstreams"),
        ({"upstream": {"base_url": "http://api.example.com"}}, "upstreams.api.base_url"),
        ({"upstream": {"base_url": "ftp://x"}}, "upstreams.api.base_url"),
        ({"upstream": {"accounts": {}}}, "upstreams.api.accounts"),
        ({"upstream": {"accounts": {"main": {"keys": [{}]}}}}, "upstreams.api.accounts.main.keys[0]"),
        (
            {"upstream": {"accounts": {"main": {"keys": [{"env": "A"}], "limits": {"default": {"rpm": 5}}}}}},
            "upstreams.api.accounts.main.limits.default.rpm",
        ),
        ({"bounds": {"bodi_mb": 1}}, "bounds.bodi_mb"),
    ],
)
async def test_a_configuration_that_cannot_hold_names_the_place(tmp_path: Path, change: dict[str, Any], field: str) -> None:
    from orchestra.errors import SettingsInvalid
    from orchestra.gateway.config import load_config

    made = configuration("https://api.example.com", **{name: value for name, value in change.items() if name != "upstreams"})
    (tmp_path / "gateway.json").write_text(json.dumps({**made, **({"upstreams": {}} if "upstreams" in change else {})}))
    with pytest.raises(SettingsInvalid) as refused:
        load_config(tmp_path / "gateway.json", {})
    assert refused.value.field == field
    assert refused.value.hint


async def test_keys_change_under_load_by_signal_and_no_request_is_lost(tmp_path: Path) -> None:
    """The provider takes both for a while, as providers do; then the old one is withdrawn. Streams that are on their way go on."""
    key = put(tmp_path / "key", CANARY)
    fresh = CANARY + "-rotated"
    taken = {CANARY, fresh}
    held, letting_go = asyncio.Event(), asyncio.Event()

    async def script(seen: Seen, n: int) -> Answer:
        if seen.header("x-api-key") not in taken:
            return refusal(401, "authentication_error")
        if b'"stream": true' not in seen.body:
            return anthropic_json(1, 1)
        return Answer(headers=(SSE_TYPE,), chunks=anthropic_chunks(1, 2, ["a", "b"]), after_each=wait)

    async def wait() -> None:
        held.set()
        await letting_go.wait()

    upstream = Upstream(script, CLOCK)
    part = {"accounts": {"main": {"keys": [{"file": "key"}]}}}
    async with running(tmp_path, upstream, upstream=part, bounds={"agent_in_flight": 100}) as process, aiohttp.ClientSession() as http:
        headers = {"x-api-key": (await process.admin("issue_token", attempt="try-1"))["token"]}
        url, statuses, going = f"http://127.0.0.1:{process.port}/v1/messages", list[int](), True

        async def ask(*, stream: bool = False) -> bytes:
            async with http.post(url, json=asking(stream=stream), headers=headers) as response:
                statuses.append(response.status)
                return await response.read()

        async def ask_on() -> None:
            while going:
                await ask()

        streamed = asyncio.create_task(ask(stream=True))
        await held.wait()
        load = [asyncio.create_task(ask_on()) for _ in range(20)]
        put(key, fresh)
        process.signal(signal.SIGHUP)
        while not any(seen.header("x-api-key") == fresh for seen in upstream.seen):
            await CLOCK.sleep_ms(5)
        taken.discard(CANARY)
        before = len(statuses)
        while len(statuses) < before + 200:
            await CLOCK.sleep_ms(5)
        going = False
        await asyncio.gather(*load)
        letting_go.set()
        assert b"message_stop" in await streamed
        assert set(statuses) == {200}
        assert (await process.admin("health"))["accounts"]["api.main"]["keys_refused"] == 0


async def test_a_gateway_without_descriptors_serves_again_when_there_are_some(tmp_path: Path) -> None:
    """Whoever is connected is served on; nothing spins, and those who come later are served when others have left."""
    upstream = Upstream(lambda seen, n: anthropic_json(1, 1), CLOCK)
    async with running(tmp_path, upstream) as process:
        token = (await process.admin("issue_token", attempt="try-1"))["token"]
        resource.prlimit(process.pid, resource.RLIMIT_NOFILE, (40, 40))
        held = [await asyncio.open_connection("127.0.0.1", process.port) for _ in range(60)]
        for _, writer in held:
            writer.close()
        url = f"http://127.0.0.1:{process.port}/v1/messages"
        async with aiohttp.ClientSession() as http, http.post(url, json=asking(), headers={"x-api-key": token}) as response:
            assert response.status == 200
        assert (await process.admin("health"))["healthy"]


async def test_an_upstream_whose_name_is_not_known(tmp_path: Path) -> None:
    """Where no name is known to anybody: the words are the provider's for trouble, and nothing is charged."""
    upstream = Upstream(lambda seen, n: anthropic_json(1, 1), CLOCK)
    part = {"base_url": "https://api.example.invalid"}
    with namespace() as net:
        async with running(tmp_path, upstream, enter=net.enter, upstream=part, bounds={"queue_seconds": 1}) as process:
            token = (await process.admin("issue_token", attempt="try-1"))["token"]
            argv = [
                "curl",
                "-s",
                "-D-",
                "-H",
                f"x-api-key: {token}",
                "-d",
                json.dumps(asking()),
                f"http://127.0.0.1:{process.port}/v1/messages",
            ]
            curl = await asyncio.create_subprocess_exec(*net.enter, *argv, stdout=asyncio.subprocess.PIPE)
            output, _ = await curl.communicate()
            assert output.startswith(b"HTTP/1.1 529 ")
            assert b"the provider cannot be reached" in output
            assert (await process.admin("usage"))["usage"][""]["cost_usd_micros"] == 0
