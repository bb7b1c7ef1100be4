"""Claude Code and Codex as they are, as clients of a gateway process, in a network namespace that holds nothing but loopback. The model is scripted."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from orchestra.agents.claude import QUIET, SEEDED
from orchestra.gateway.config import PricePart
from orchestra.metering.prices import cost_usd_micros
from orchestra.metering.usage import Usage
from orchestra.testing.upstream import JSON_TYPE, SSE_TYPE, Answer, Script, Seen, Upstream, event, refusal
from tests.gateway.namespace import Namespace, namespace, program
from tests.gateway.process import Process, running
from tests.gateway.support import CANARY, CLOCK

pytestmark = [pytest.mark.xdist_group("agents"), pytest.mark.timeout(180)]
MODELS = {"claude": "claude-opus-4-5", "codex": "gpt-5.5"}
KINDS = {"claude": "anthropic", "codex": "openai"}
PRICE = {"input": 0.1, "output": 0.5, "cache_read": 0.01, "cache_write_5m": 0.125}
"""Of every model: the first request of Claude Code alone has some 25,000 tokens, and a cent is to bear several."""


class Scene(NamedTuple):
    """A gateway for one kind of CLI."""

    net: Namespace
    process: Process
    upstream: Upstream
    folder: Path
    kind: str
    token: str

    async def run(self, login: str = "own provider") -> tuple[int, list[dict[str, Any]], str]:
        """Runs the CLI to its end; returns its status, the lines it printed and its last complaints.

        Args:
            login: How Codex is told of the gateway: `own provider`, `key` (the provider it has by itself) or `subscription`.
        """
        url = f"http://127.0.0.1:{self.process.port}"
        home = self.folder / "home"
        (home / "own").mkdir(parents=True, exist_ok=True)
        env = {"PATH": f"{os.environ['PATH']}:/usr/bin:/bin", "HOME": str(home), "TERM": "dumb", "LANG": "C.UTF-8", "SHELL": "/bin/bash"}
        argv = self._claude(home, env, url) if self.kind == "claude" else self._codex(home, env, url, login)
        process = await asyncio.create_subprocess_exec(
            *self.net.enter,
            *argv,
            env=env,
            cwd=home,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            limit=1 << 24,
        )
        try:
            output, complaints = await process.communicate()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
        assert process.returncode is not None
        lines = [json.loads(line) for line in output.splitlines() if line.startswith(b"{")]
        return process.returncode, lines, complaints.decode()[-2000:]

    def _claude(self, home: Path, env: dict[str, str], url: str) -> list[str]:
        (home / "own" / ".claude.json").write_text(json.dumps(SEEDED))
        env |= {**QUIET, "CLAUDE_CONFIG_DIR": str(home / "own"), "XDG_RUNTIME_DIR": str(home / "own"), "IS_SANDBOX": "1"}
        env |= {"ANTHROPIC_BASE_URL": url, "ANTHROPIC_API_KEY": self.token, "CLAUDE_CODE_MAX_RETRIES": "2"}
        options = ["--permission-mode", "bypassPermissions", "--model", MODELS["claude"], "--strict-mcp-config"]
        return [program("claude"), "-p", "--output-format", "stream-json", "--verbose", *options, "Do as you are told."]

    def _codex(self, home: Path, env: dict[str, str], url: str, login: str) -> list[str]:
        common = "check_for_update_on_startup=false\n"
        common += 'cli_auth_credentials_store="file"\n[features]\nplugins=false\ndaemon_auto_start=false\n[analytics]\nenabled=false\n'
        if login == "subscription":
            head = f'model_provider="gate"\nchatgpt_base_url="{url}/nowhere/"\n'
            tail = f'[model_providers.gate]\nname="OpenAI"\nbase_url="{url}/api"\nwire_api="responses"\nrequires_openai_auth=true\n'
            tail += f'http_headers={{"x-orchestra-token"="{self.token}"}}\n'
            (home / "own" / "auth.json").write_text(json.dumps(subscription()))
        elif login == "own provider":
            head, tail = 'model_provider="gate"\n', f'[model_providers.gate]\nname="Gateway"\nbase_url="{url}/v1"\nwire_api="responses"\n'
            tail += 'env_key="OPENAI_API_KEY"\nrequest_max_retries=0\nstream_max_retries=1\n'
            env["OPENAI_API_KEY"] = self.token
        else:
            head, tail = f'openai_base_url="{url}/v1"\n', ""
            (home / "own" / "auth.json").write_text(json.dumps({"auth_mode": "apikey", "OPENAI_API_KEY": self.token}))
        (home / "own" / "config.toml").write_text(head + common + tail)
        env["CODEX_HOME"] = str(home / "own")
        options = ["--json", "--skip-git-repo-check", "--dangerously-bypass-approvals-and-sandbox", "-m", MODELS["codex"]]
        return [program("codex"), "exec", *options, "Do as you are told."]

    async def totals(self) -> dict[str, Any]:
        """Returns what the task used, once nothing of it is open any more."""
        while True:
            found = (await self.process.admin("usage", by="task", name="task-1"))["usage"]["task-1"]
            if not found["reserved_usd_micros"]:
                return dict(found)
            await CLOCK.sleep_ms(20)


@asynccontextmanager
async def scene(folder: Path, kind: str, script: Script, *, budget: int = -1, **config: Any) -> AsyncIterator[Scene]:
    upstream = Upstream(script, CLOCK)
    config = {"upstream": {"kind": KINDS[kind]}, "prices": {"unknown": PRICE, "models": dict.fromkeys(MODELS.values(), PRICE)}, **config}
    with namespace() as net:
        async with running(folder, upstream, enter=net.enter, listener=net.listener(), **config) as process:
            budgets = {"task": budget} if budget >= 0 else {}
            issued = await process.admin("issue_token", attempt="try-1", task="task-1", agent="agent-1", budgets=budgets)
            yield Scene(net, process, upstream, folder, kind, issued["token"])


def subscription() -> dict[str, Any]:
    """A login with a subscription that nobody has."""

    def part(value: object) -> str:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).decode().rstrip("=")

    who = {"chatgpt_plan_type": "pro", "chatgpt_account_id": "nobody", "chatgpt_user_id": "nobody"}
    claims = {"email": "nobody@example.com", "exp": int(time.time()) + 864_000, "https://api.openai.com/auth": who}
    login = f"{part({'alg': 'none'})}.{part(claims)}.{part('none')}"
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    tokens = {"id_token": login, "access_token": login, "refresh_token": "none", "account_id": "nobody"}
    return {"auth_mode": "chatgpt", "OPENAI_API_KEY": None, "tokens": tokens, "last_refresh": now}


# ---- what the model says ------------------------------------------------------------------------------------------------------


def claude_says(tokens: tuple[int, int, int, int], block: dict[str, Any], delta: dict[str, Any], stop: str, number: int = 1) -> Answer:
    usage = dict(zip(("input_tokens", "output_tokens", "cache_read_input_tokens", "cache_creation_input_tokens"), tokens, strict=True))
    message: dict[str, Any] = {
        "id": f"msg_{number}",
        "type": "message",
        "role": "assistant",
        "model": MODELS["claude"],
        "content": [],
        "stop_reason": None,
    }
    events: tuple[tuple[str, dict[str, Any]], ...] = (
        ("message_start", {"message": {**message, "stop_sequence": None, "usage": {**usage, "output_tokens": 1}}}),
        ("content_block_start", {"index": 0, "content_block": block}),
        ("content_block_delta", {"index": 0, "delta": delta}),
        ("content_block_stop", {"index": 0}),
        ("message_delta", {"delta": {"stop_reason": stop, "stop_sequence": None}, "usage": {"output_tokens": tokens[1]}}),
        ("message_stop", {}),
    )
    return Answer(headers=(SSE_TYPE,), chunks=tuple(event(name, {"type": name, **data}) for name, data in events))


def codex_says(tokens: tuple[int, int, int, int], item: dict[str, Any]) -> Answer:
    prompt = tokens[0] + tokens[2]
    usage = {"input_tokens": prompt, "input_tokens_details": {"cached_tokens": tokens[2]}, "output_tokens": tokens[1]}
    usage |= {"output_tokens_details": {"reasoning_tokens": 0}, "total_tokens": prompt + tokens[1]}
    events = (
        ("response.created", {"response": {"id": "resp_1"}}),
        ("response.output_item.done", {"output_index": 0, "item": item}),
        ("response.completed", {"response": {"id": "resp_1", "usage": usage}}),
    )
    return Answer(headers=(SSE_TYPE,), chunks=tuple(event(name, {"type": name, **data}) for name, data in events))


def text(kind: str, tokens: tuple[int, int, int, int] = (1_000, 50, 0, 0), number: int = 1) -> Answer:
    """The last word of a turn."""
    if kind == "claude":
        return claude_says(tokens, {"type": "text", "text": ""}, {"type": "text_delta", "text": "Said."}, "end_turn", number)
    content = [{"type": "output_text", "text": "Said."}]
    return codex_says(tokens, {"type": "message", "role": "assistant", "id": "msg_1", "content": content})


def again(kind: str, number: int, tokens: tuple[int, int, int, int]) -> Answer:
    """A tool call, after which the CLI comes again."""
    if kind == "claude":
        block = {"type": "tool_use", "id": f"toolu_{number}", "name": "Bash", "input": {}}
        call = json.dumps({"command": f"echo {number}", "description": "Say a number"})
        return claude_says(tokens, block, {"type": "input_json_delta", "partial_json": call}, "tool_use")
    arguments = json.dumps({"cmd": f"echo {number}"})
    return codex_says(tokens, {"type": "function_call", "name": "exec_command", "call_id": f"call_{number}", "arguments": arguments})


def is_turn(seen: Seen) -> bool:
    """Tells whether it asks for an answer of the model."""
    return seen.method == "POST" and seen.target.partition("?")[0].endswith(("/messages", "/responses"))


def answering(kind: str, turn: Callable[[int], Answer]) -> Script:
    """A script for turns, in order; what else a CLI asks gets an empty answer."""
    turns = iter(range(1_000_000))

    def script(seen: Seen, n: int) -> Answer:
        return turn(next(turns)) if is_turn(seen) else Answer(headers=(JSON_TYPE,), body=b'{"data":[],"models":[]}')

    return script


def is_done(kind: str, lines: list[dict[str, Any]]) -> bool:
    last = lines[-1]
    return last.get("type") == "result" and last["is_error"] is False if kind == "claude" else last.get("type") == "turn.completed"


both = pytest.mark.parametrize("kind", ["claude", "codex"])

# ---- tests -----------------------------------------------------------------------------------------------------------------------


@both
async def test_a_turn_is_streamed_and_counted_and_the_key_stays_in_the_gateway(tmp_path: Path, kind: str) -> None:
    async with scene(tmp_path, kind, answering(kind, lambda n: text(kind, (700, 50, 300, 0)))) as found:
        status, lines, complaints = await found.run()
        assert (status, is_done(kind, lines)) == (0, True), complaints
        turns = [seen for seen in found.upstream.seen if is_turn(seen)]
        header = "x-api-key" if kind == "claude" else "authorization"
        assert {seen.header(header) for seen in turns} == {CANARY if kind == "claude" else f"Bearer {CANARY}"}
        assert all(found.token not in str(seen) for seen in found.upstream.seen)
        assert CANARY not in json.dumps(lines) + complaints
        assert [path for path in (tmp_path / "home").rglob("*") if path.is_file() and CANARY.encode() in path.read_bytes()] == []
        totals = await found.totals()
        assert (totals["requests"], totals["input_tokens"]) == (len(turns), 700 * len(turns))
        assert (totals["cache_read_tokens"], totals["output_tokens"]) == (300 * len(turns), 50 * len(turns))
        assert totals["assumed_requests"] == 0


async def test_codex_asks_for_a_websocket_first_and_goes_on_by_http(tmp_path: Path) -> None:
    """As its own provider does it: the gateway answers 426, and no request of the upgrade reaches the provider."""
    async with scene(tmp_path, "codex", answering("codex", lambda n: text("codex"))) as found:
        status, lines, complaints = await found.run(login="key")
        assert (status, is_done("codex", lines)) == (0, True), complaints
        health = await found.process.admin("health")
        assert health["served"] > len(found.upstream.seen), "the upgrade was answered by the gateway"
        assert all(seen.method == "POST" for seen in found.upstream.seen if seen.target.endswith("/responses"))


async def test_codex_with_a_subscription_compresses_and_passes_with_its_own_login(tmp_path: Path) -> None:
    upstream = {"kind": "openai", "accounts": {}, "pass_through": True}
    async with scene(tmp_path, "codex", answering("codex", lambda n: text("codex", (900, 30, 0, 0))), upstream=upstream) as found:
        status, lines, complaints = await found.run(login="subscription")
        assert (status, is_done("codex", lines)) == (0, True), complaints
        (turn,) = [seen for seen in found.upstream.seen if is_turn(seen)]
        assert (turn.target, turn.header("content-encoding"), turn.body[:4]) == ("/responses", "zstd", b"\x28\xb5\x2f\xfd")
        assert turn.header("authorization").startswith("Bearer ey")
        assert found.token not in str(found.upstream.seen)
        totals = await found.totals()
        assert (totals["requests"], totals["input_tokens"], totals["output_tokens"]) == (1, 900, 30)
        assert MODELS["codex"] in (await found.process.admin("usage", by="model"))["usage"]


@both
@pytest.mark.parametrize("retry_after", ["1", ""], ids=["told", "untold"])
async def test_it_hears_nothing_of_a_limit_that_passes(tmp_path: Path, kind: str, retry_after: str) -> None:
    """Codex would give up at once without a retry-after, Claude would sleep and say so."""
    refused = refusal(429, "rate_limit_error", *([("retry-after", retry_after)] if retry_after else []))
    async with scene(tmp_path, kind, answering(kind, lambda n: refused if n < 2 else text(kind))) as found:
        status, lines, complaints = await found.run()
        assert (status, is_done(kind, lines)) == (0, True), complaints
        assert not [line for line in lines if line.get("subtype") == "api_retry" or line.get("type") == "error"]
        totals = await found.totals()
        assert totals["requests"] == sum(map(is_turn, found.upstream.seen)) - 2, "a request that was refused twice is one"


@both
async def test_one_cent_stops_it_and_costs_what_the_upstream_said(tmp_path: Path, kind: str) -> None:
    told: list[tuple[int, int, int, int]] = []

    def turn(number: int) -> Answer:
        told.append((9_000 + number, 500 + number, 4_000 * number, 0))
        return again(kind, number, told[-1])

    async with scene(tmp_path, kind, answering(kind, turn), budget=10_000) as found:
        status, lines, complaints = await found.run()
        assert status != 0, (lines[-1], complaints)
        assert not is_done(kind, lines)
        own_words = "the budget of $0.0100 of this task task-1 does not bear this request"
        assert {"claude": own_words, "codex": "Quota exceeded"}[kind] in json.dumps(lines) + complaints
        assert 1 < len(told) < 12
        totals = await found.totals()
        price = PricePart(**PRICE).price("price")
        costs = [cost_usd_micros(price, Usage(each[0], each[2], each[3], 0, each[1])) for each in told]
        assert totals["cost_usd_micros"] == sum(costs) <= 10_000
        assert (totals["requests"], totals["assumed_requests"]) == (len(told), 0)
        assert "budget_spent" in [each["kind"] for each in (await found.process.admin("events"))["events"]]


@both
async def test_an_upstream_that_is_down_is_told_in_the_providers_words(tmp_path: Path, kind: str) -> None:
    """The gateway has tried for the time it has; the CLI is not to do the same once more for minutes."""
    async with scene(tmp_path, kind, answering(kind, lambda n: text(kind)), bounds={"queue_seconds": 1}) as found:
        await found.upstream.stop()
        status, lines, complaints = await found.run()
        assert status != 0
        words = json.dumps(lines) + complaints
        assert "orchestra: the provider" in words
        totals = await found.totals()
        assert (totals["cost_usd_micros"], totals["assumed_requests"]) == (0, 0)
        assert totals["requests"] <= 8, "each of the gateway's own tries would be five"


@both
async def test_a_stream_that_is_cut_is_asked_for_again_by_the_cli_and_both_are_counted(tmp_path: Path, kind: str) -> None:
    whole = text(kind)
    assert whole.chunks is not None
    cut = Answer(headers=whole.headers, chunks=whole.chunks[:2], reset_after=2)
    async with scene(tmp_path, kind, answering(kind, lambda n: cut if n == 0 else whole)) as found:
        status, lines, complaints = await found.run()
        assert (status, is_done(kind, lines)) == (0, True), complaints
        totals = await found.totals()
        turns = sum(map(is_turn, found.upstream.seen))
        assert (totals["requests"], totals["assumed_requests"]) == (turns, 1)
        assert turns >= 2
