"""The gateway of a running orchestra, seen from its agents, its parent and the API: keys, budgets, pauses, and every way it can die."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from orchestra.clocks.system import SystemClock
from orchestra.core.model import TaskStatus
from orchestra.core.state import State
from orchestra.gateway.admin import ask_admin
from orchestra.intake.request import StatusParams
from orchestra.testing.hosted import hosted, is_gone, wait_until
from orchestra.testing.upstream import Answer, Script, Seen, Upstream
from orchestra.usecases import AgentsParams, TaskParams
from tests.gateway.support import CANARY

CLOCK = SystemClock()
ASK = """
import json, os, sys, urllib.error, urllib.request

body = json.dumps({"model": "claude-opus-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": open(sys.argv[1]).read()}]}).encode()
head = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
said = {}
for _ in range(3):
    try:
        with urllib.request.urlopen(urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, head), timeout=60) as answer:
            said = {"summary": json.load(answer)["content"][0]["text"], "env": sorted(os.environ)}
            break
    except urllib.error.HTTPError as error:
        cause = {402: "budget", 429: "rate-limited"}.get(error.code, "overloaded")
        said = {"error": cause + ": " + error.read().decode()}
        if error.code == 402:
            break
    except OSError as error:
        said = {"error": "network: " + str(error)}
        break
print(json.dumps({"type": "result", **said}))
sys.exit(1 if "error" in said else 0)
"""
TOKENS = {"input_tokens": 1_000, "output_tokens": 1_000}
COST = 30_000
"""Micro-dollars of one answer: $5 and $25 a million tokens."""


def reply(text: str = "well done") -> Answer:
    body = {"id": "m", "type": "message", "role": "assistant", "model": "claude-opus-4-5", "content": [{"type": "text", "text": text}]}
    return Answer(
        headers=(("content-type", "application/json"),), body=json.dumps({**body, "stop_reason": "end_turn", "usage": TOKENS}).encode()
    )


def always(seen: Seen, number: int) -> Answer:
    return reply()


async def first_hangs(seen: Seen, number: int) -> Answer:
    if number == 0:
        await asyncio.Event().wait()  # until the connection ends
    return reply()


def prepare(folder: Path, base_url: str, *, cost: dict[str, Any] | None = None, **config: Any) -> Path:
    """Writes what an orchestra with a gateway of its own file needs; the key is in a file that only its owner can read."""
    root = folder / "root"
    (root / "config").mkdir(parents=True)
    (folder / "work").mkdir()
    (folder / "ask.py").write_text(ASK)
    key = folder / "key"
    key.write_text(CANARY)
    key.chmod(0o600)
    upstream = {"kind": "anthropic", "base_url": base_url, "accounts": {"main": {"keys": [{"file": str(key)}]}}}
    (folder / "gateway.json").write_text(json.dumps({"upstreams": {"api": upstream}, **config}))
    asker = {
        "command": f"{sys.executable} {folder / 'ask.py'} {{prompt_file}}",
        "env_pass": "ANTHROPIC_API_KEY,PATH",
        "error": "result:error",
        "summary": "result:summary",
    }
    settings = {
        "gateway": {"file": str(folder / "gateway.json")},
        "kinds": {"asker": asker},
        "cost": cost or {},
        "sandbox": {"readable": [str(folder / "ask.py")]},
    }
    (root / "config" / "orchestra.yaml").write_text(json.dumps({"orchestra": settings}))
    return root


@asynccontextmanager
async def fake_api(script: Script = always) -> AsyncIterator[tuple[Upstream, str]]:
    upstream = Upstream(script, CLOCK)
    url = await upstream.start()
    try:
        yield upstream, url
    finally:
        await upstream.stop()


def plan(name: str, *tasks: str, **more: Any) -> str:
    made = [{"id": each, "agent": "asker", "prompt": f"do {each}", "retry_backoff_seconds": 0.01, **more} for each in tasks]
    return json.dumps({"name": name, "agents": [{"count": 2, "kind": "any"}], "tasks": made})


async def ask(root: Path, method: str, **params: Any) -> Any:
    return await ask_admin(root / "gateway" / "books" / "admin.sock", method, params)


def events(root: Path) -> list[str]:
    return [json.loads(path.read_text())["event"] for path in sorted((root / "queue" / "events").glob("*.json"))]


def waiting(task: str) -> Any:
    def answer(state: State) -> bool | None:
        found = state.tasks[task]  # type: ignore[index]
        return True if found.deferrals and found.status in (TaskStatus.QUEUED, TaskStatus.RETRY_WAIT) else None

    return answer


def holders(text: str) -> list[int]:
    """Processes that have the text in their environment or command line."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            for name in ("environ", "cmdline"):
                try:
                    if text.encode() in (folder / name).read_bytes():
                        found.append(int(folder.name))
                except OSError:
                    continue
    return found


def files_with(text: str, folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != "key" and text.encode() in path.read_bytes()]


async def test_the_key_is_in_the_gateway_alone(tmp_path: Path) -> None:
    async with fake_api() as (api, url):
        root = prepare(tmp_path, url)
        async with hosted(root, agents=2) as stage:
            assert await stage.wait_plan(await stage.submit(plan("p", "a", "b"), tmp_path / "work")) == "completed"
            screens = (await stage.app.screens(AgentsParams(lines=2_000))).screens
            assert "result" in "".join(screens.values())
            assert CANARY not in "".join(screens.values())
            assert not holders(CANARY)
            assert {seen.header("x-api-key") for seen in api.seen} == {CANARY}
            usage = (await ask(root, "usage", by="task"))["usage"]
            assert {name: row["cost_usd_micros"] for name, row in usage.items()} == {"p/a": COST, "p/b": COST}
            await wait_until(lambda: _no_tokens(root))
        assert not files_with(CANARY, tmp_path)


async def _no_tokens(root: Path) -> bool:
    return bool((await ask(root, "health"))["tokens"] == 0)


async def test_status_shows_the_limits_as_they_stand(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        limits = {"main": {"keys": [{"command": ["echo", "sk-none"]}], "limits": {"default": {"requests": 600, "input_tokens": 90_000}}}}
        root = prepare(tmp_path, url, upstreams={"api": {"kind": "anthropic", "base_url": url, "accounts": limits}})
        async with hosted(root, agents=2) as stage:
            await stage.wait_plan(await stage.submit(plan("p", "a"), tmp_path / "work"))

            async def shown() -> bool:
                view = (await stage.app.status(StatusParams())).api_limits
                return view.rpm_usage == "1/600" and view.tpm_usage.endswith("/90000")

            await wait_until(shown)


async def test_a_killed_gateway_comes_back_where_its_agents_look_for_it(tmp_path: Path) -> None:
    async with fake_api(first_hangs) as (api, url):
        root = prepare(tmp_path, url)
        async with hosted(root, agents=2) as stage:
            name = await stage.submit(plan("p", "a"), tmp_path / "work")
            await wait_until(lambda: bool(api.seen))
            before = await ask(root, "health")
            os.kill(before["pid"], signal.SIGKILL)
            assert await stage.wait_plan(name) == "completed"
            after = await ask(root, "health")
            assert after["pid"] != before["pid"]
            assert after["port"] == before["port"]
            assert after["recovered"] == 1
            task = await stage.wait(lambda state: state.tasks["p/a"])  # type: ignore[index]
            assert task.failures == 0


async def test_a_token_whose_attempt_ended_while_the_gateway_was_away_is_no_good_when_it_is_back(tmp_path: Path) -> None:
    async with fake_api(first_hangs) as (api, url):
        root = prepare(tmp_path, url)
        async with hosted(root, agents=1) as stage:
            name = await stage.submit(plan("p", "a"), tmp_path / "work")
            await wait_until(lambda: bool(api.seen))
            (tmp_path / "key").chmod(0o644)  # so that no other one starts
            os.kill((await ask(root, "health"))["pid"], signal.SIGKILL)
            await stage.wait(waiting("p/a"))
            (tmp_path / "key").chmod(0o600)
            assert await stage.wait_plan(name) == "completed"
            await wait_until(lambda: _no_tokens(root))


async def test_it_survives_the_coordinator_and_ends_with_the_orchestra(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url)
        async with hosted(root, agents=2, end=False) as stage:
            await stage.wait_plan(await stage.submit(plan("p", "a"), tmp_path / "work"))
            before = (await ask(root, "health"))["pid"]
        async with hosted(root) as stage:
            assert await stage.wait_plan(await stage.submit(plan("q", "b"), tmp_path / "work")) == "completed"
            assert (await ask(root, "health"))["pid"] == before
            assert (await ask(root, "usage", by="plan"))["usage"].keys() == {"p", "q"}
        await wait_until(lambda: is_gone(before))


async def test_a_spent_day_pauses_the_work_and_more_money_lets_it_go_on(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url, budgets={"day_usd": 0.03})
        async with hosted(root, agents=1) as stage:
            assert await stage.wait_plan(await stage.submit(plan("p", "a"), tmp_path / "work")) == "completed"
            name = await stage.submit(plan("q", "b", "c"), tmp_path / "work")
            await stage.wait(waiting("q/b"))
            assert any("the budget of the day" in each for each in (await stage.app.status(StatusParams())).warnings)
            await wait_until(lambda: {"budget_spent", "cost_threshold_exceeded"} <= set(events(root)))
            assert "cost budget day" in (await stage.app.explain(TaskParams("q/c"))).explanation
            day = (await ask(root, "budgets"))["budgets"][0]["name"]
            await ask(root, "set_budget", scope="day", name=day, usd_micros=10_000_000)
            assert await stage.wait_plan(name) == "completed"
            tasks = await stage.wait(lambda state: [state.tasks["q/b"], state.tasks["q/c"]])  # type: ignore[index]
            assert [task.failures for task in tasks] == [0, 0]


async def test_critical_tasks_go_on_where_the_rest_is_parked(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url, cost={"on_spent": "park"}, budgets={"day_usd": 0.03})
        async with hosted(root, agents=1) as stage:
            await stage.wait_plan(await stage.submit(plan("p", "a"), tmp_path / "work"))
            await stage.submit(plan("q", "b"), tmp_path / "work")
            await stage.wait(waiting("q/b"))
            assert await stage.wait_plan(await stage.submit(plan("r", "c", priority="critical"), tmp_path / "work")) == "completed"
            task = await stage.wait(lambda state: state.tasks["q/b"])  # type: ignore[index]
            assert not task.over


async def test_a_spent_day_ends_the_orchestra_where_that_is_asked_for(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url, cost={"on_spent": "stop"}, budgets={"day_usd": 0.001})
        async with hosted(root, agents=1, end=False) as stage:
            await stage.submit(plan("p", "a"), tmp_path / "work")
            await stage.coordinator.wait_ended()


@pytest.mark.parametrize(
    "limit,cost", [({"constraints": {"max_cost_dollars": 0.001}}, {}), ({}, {"task_budget_usd": 0.001, "on_spent": "stop"})]
)
async def test_a_task_that_spent_what_it_may_cost_fails_and_says_so(tmp_path: Path, limit: dict[str, Any], cost: dict[str, Any]) -> None:
    async with fake_api() as (api, url):
        root = prepare(tmp_path, url, cost=cost)
        async with hosted(root, agents=1) as stage:
            assert await stage.wait_plan(await stage.submit(plan("p", "a", retries=0, **limit), tmp_path / "work")) == "failed"
            task = await stage.wait(lambda state: state.tasks["p/a"])  # type: ignore[index]
            assert task.reason == "budget: the task's budget of $0.0010 is spent"
            assert not api.seen
            await ask(root, "set_budget", scope="task", name="p/a", usd_micros=1_000_000)
            await stage.app.retry(TaskParams("p/a"))
            await stage.wait_status("p/a", "completed")


async def test_a_task_that_spent_what_the_settings_allow_it_waits_until_that_is_raised(tmp_path: Path) -> None:
    """It asks for more than it may, waits, and is not started again and again meanwhile; another task of the plan goes on."""

    def script(seen: Seen, number: int) -> Answer:
        return reply()

    async with fake_api(script) as (api, url):
        root = prepare(tmp_path, url, cost={"task_budget_usd": 0.031})
        async with hosted(root, agents=1) as stage:
            await stage.wait_plan(await stage.submit(plan("before", "x"), tmp_path / "work"))
            name = await stage.submit(plan("p", "a", "b", retries=0), tmp_path / "work")
            await stage.wait_status("p/b", "completed")
            await stage.wait_status("p/a", "completed")
            assert await stage.wait_plan(name) == "completed"
            await wait_until(lambda: _budgets_are(root, []))

            await ask(root, "set_budget", scope="task", name="q/c", usd_micros=1_000)
            name = await stage.submit(plan("q", "c", "d", retries=0), tmp_path / "work")
            await stage.wait(waiting("q/c"))
            await stage.wait_status("q/d", "completed")
            await wait_until(
                lambda: _says(stage, "task q/c: its budget of $0.0010 is spent; `orchestra cost budget task q/c --usd AMOUNT` raises it")
            )
            told = [json.loads(path.read_text()) for path in sorted((root / "queue" / "events").glob("*-cost_threshold_exceeded.json"))]
            mine = [each for each in told if each.get("name") == "q/c"]
            assert [(each["severity"], each["threshold_percent"], each["remedy"]) for each in mine] == [
                ("high", 100, "orchestra cost budget task q/c --usd AMOUNT")
            ]
            asked = len(api.seen)
            before = await stage.wait(lambda state: len(state.tasks["q/c"].attempts))  # type: ignore[index]
            await ask(root, "set_budget", scope="task", name="q/c", usd_micros=1_000_000)
            assert await stage.wait_plan(name) == "completed"
            task = await stage.wait(lambda state: state.tasks["q/c"])  # type: ignore[index]
            assert (task.failures, len(task.attempts), len(api.seen)) == (0, before + 1, asked + 1)


async def _budgets_are(root: Path, wanted: list[str]) -> bool:
    return [row["name"] for row in (await ask(root, "budgets"))["budgets"] if row["scope"] == "task"] == wanted


async def _says(stage: Any, words: str) -> bool:
    return any(words in each for each in (await stage.app.status(StatusParams())).warnings)


async def test_the_task_of_an_agent_that_spent_its_budget_goes_to_another(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url)
        async with hosted(root, agents=2) as stage:
            await stage.wait_plan(await stage.submit(plan("before", "x"), tmp_path / "work"))
            await ask(root, "set_budget", scope="agent", name="1", usd_micros=0)
            name = await stage.submit(plan("p", "a", "b", "c", "d", retries=0), tmp_path / "work")
            assert await stage.wait_plan(name) == "completed"
            tasks = await stage.wait(lambda state: [task for task in state.tasks.values() if task.spec.plan == "p"])
            assert [task.failures for task in tasks] == [0] * 4
            assert {task.attempts[-1].agent for task in tasks} == {2}
            assert sum(task.deferrals for task in tasks) == 1, "it is given nothing more"


async def test_an_api_that_is_down_parks_tasks_and_fails_none(tmp_path: Path) -> None:
    down = [True]

    def script(seen: Seen, number: int) -> Answer:
        return Answer(status=529, body=b"{}") if down[0] else reply()

    async with fake_api(script) as (_, url):
        root = prepare(tmp_path, url, retry={"tries": 3, "multiplier": 1}, bounds={"queue_seconds": 3})
        async with hosted(root, agents=2) as stage:
            name = await stage.submit(plan("p", "a", "b", retries=0), tmp_path / "work")
            await stage.wait(lambda state: waiting("p/a")(state) and waiting("p/b")(state))
            await wait_until(lambda: _says(stage, "the model API api fails"))
            assert "api_down" not in events(root), "it is told when it lasts"
            down[0] = False
            await ask(root, "health")
            assert await stage.wait_plan(name) == "completed"


async def test_a_gateway_that_cannot_start_is_told_and_nothing_fails_for_it(tmp_path: Path) -> None:
    async with fake_api() as (_, url):
        root = prepare(tmp_path, url)
        (tmp_path / "key").chmod(0o644)  # others may read it
        async with hosted(root, agents=1) as stage:
            name = await stage.submit(plan("p", "a"), tmp_path / "work")
            await stage.wait(waiting("p/a"))

            async def told() -> bool:
                return any("the gateway does not start" in each for each in (await stage.app.status(StatusParams())).warnings)

            await wait_until(told)
            (tmp_path / "key").chmod(0o600)
            assert await stage.wait_plan(name) == "completed"


@pytest.mark.parametrize("mode", ["auto", "off"])
async def test_without_a_key_there_is_no_gateway(tmp_path: Path, mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "CODEX_API_KEY", "GEMINI_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    async with hosted(tmp_path / "root", flags={"gateway.mode": mode}, end=False) as stage:
        assert not (stage.root.gateway / "gateway.json").exists()
