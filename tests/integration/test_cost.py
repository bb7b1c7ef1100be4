"""Cost and limits in an orchestra: a real coordinator, and a real gateway process before a scripted model API on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from orchestra.bootstrap.launch import load_settings
from orchestra.bootstrap.shelf import open_blank, open_shelf
from orchestra.bootstrap.wiring import app_options
from orchestra.clocks.system import SystemClock
from orchestra.costdesk import CostDesk, CostOptions
from orchestra.edges.cli.main import cli
from orchestra.errors import BadInput, NotFound, PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.gateway.journal import encode_line
from orchestra.gateway.reading import JOURNAL, read_books
from orchestra.gateway.service import Gateway
from orchestra.ids import AttemptId, TaskId
from orchestra.intake.request import EstimateCostParams
from orchestra.metering.books import State, Totals
from orchestra.root import Root
from orchestra.testing.hosted import Stage, hosted, wait_until
from orchestra.testing.upstream import Upstream, anthropic_json
from orchestra.usecases import CostParams, Empty, EstimateParams, PlanNameParams, SetBudgetParams, TaskParams, UseCases
from orchestra.workbench import AppOptions

MODEL = "claude-opus-4-5"
REQUEST_USD_MICROS = 1_000 * 5 + 100 * 25
"""1,000 tokens in and 100 out at 5 and 25 dollars a million."""
ASKING = """\
import json, os, sys, urllib.request
said = json.load(open(sys.argv[1])) if len(sys.argv) > 1 else {}
url, token = os.environ["GATE_URL"], os.environ["GATE_TOKEN"]
body = json.dumps({"model": "claude-opus-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}).encode()
for _ in range(int(os.environ["GATE_REQUESTS"])):
    request = urllib.request.Request(url + "/v1/messages", body, {"x-api-key": token, "content-type": "application/json"})
    urllib.request.urlopen(request).read()
print(json.dumps({"type": "result", "cost": float(os.environ["GATE_SAYS"]), "input": 1000}))
"""
SETTINGS = """\
orchestra:
  kinds:
    asking:
      command: "{python} -S {script}"
      cost_usd: "result:cost"
      tokens_input: "result:input"
"""
LIMIT_HEADERS = (
    ("anthropic-ratelimit-requests-limit", "50"),
    ("anthropic-ratelimit-requests-remaining", "49"),
    ("anthropic-ratelimit-requests-reset", "2099-01-01T00:00:00Z"),
)


class Gate:
    """One gateway process. Its folder is a link in the orchestra's root, so that it does not count as something the orchestra left behind."""

    def __init__(self, root: Path) -> None:
        self.folder = root.parent / "gate"
        self.folder.mkdir()
        (root / "gateway").symlink_to(self.folder)
        self.socket = self.folder / "books" / "admin.sock"
        self._process: asyncio.subprocess.Process | None = None

    async def start(self, base_url: str, **config: Any) -> None:
        upstream = {"kind": "anthropic", "base_url": base_url, "accounts": {"main": {"keys": [{"env": "KEY_A"}]}}}
        file = {"listen": "127.0.0.1:0", "folder": "books", "upstreams": {"anthropic": upstream}, **config}
        (self.folder / "gateway.json").write_text(json.dumps(file))
        argv = [sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(self.folder / "gateway.json")]
        with (self.folder / "output").open("wb") as output:
            environ = {**os.environ, "KEY_A": "sk-dummy"}
            self._process = await asyncio.create_subprocess_exec(*argv, env=environ, stdout=output, stderr=output)
        self.port = 0

        async def answers() -> bool:
            with contextlib.suppress(PortFailed):
                self.port = int((await self.ask("health", {}))["port"])
            return bool(self.port)

        await wait_until(answers)

    async def ask(self, method: str, params: dict[str, Any]) -> Any:
        return await ask_admin(self.socket, method, params)

    async def token(self, attempt: str, agent: int = 1) -> str:
        task = attempt.partition("#")[0]
        params = {"attempt": attempt, "task": task, "agent": str(agent), "plan": task.partition("/")[0]}
        return str((await self.ask("issue_token", params))["token"])

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@asynccontextmanager
async def gated(root: Path, **config: Any) -> AsyncIterator[Gate]:
    upstream = Upstream(lambda seen, number: anthropic_json(1_000, 100, *LIMIT_HEADERS), SystemClock())
    gate = Gate(root)
    try:
        await gate.start(await upstream.start(), **config)
        yield gate
    finally:
        await gate.kill()
        await upstream.stop()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A root whose settings define a kind that asks the model API and says what that cost."""
    script = tmp_path / "asking.py"
    script.write_text(ASKING)
    found = tmp_path / "r"
    (found / "config").mkdir(parents=True)
    (found / "config" / "orchestra.yaml").write_text(SETTINGS.format(python=sys.executable, script=script))
    return found


def desk(stage: Stage, gate: Gate | None) -> CostDesk:
    """The cost desk of a coordinator that knows its gateway, or has none."""
    options = stage.app.options
    return CostDesk(stage.coordinator.loop, lambda: True, None if gate is None else gate.ask, money(options))


def money(options: AppOptions) -> CostOptions:
    return CostOptions(
        options.root, options.kind_default, options.agents_default, options.task_defaults, options.models, options.day_budget_usd_micros
    )


async def run_plan(stage: Stage, gate: Gate, folder: Path, requests: int = 2, says: float = 0.010, name: str = "demo") -> None:
    """Runs a plan whose task asks the model that often and says what it wants to have cost."""
    env = {
        "GATE_URL": f"http://127.0.0.1:{gate.port}",
        "GATE_TOKEN": await gate.token(f"{name}/ask#1"),
        "GATE_REQUESTS": str(requests),
        "GATE_SAYS": str(says),
    }
    task = {"id": "ask", "agent": "asking", "prompt": "ask the model", "env": env, "isolation": "shared", "retries": 0}
    plan = await stage.submit(json.dumps({"name": name, "tasks": [task, {"id": "idle", "run": "true"}]}), folder)
    assert await stage.wait_plan(plan) == "completed"


async def test_what_programs_say_is_compared_with_what_the_gateway_settled(root: Path, tmp_path: Path) -> None:
    async with gated(root, budgets={"day_usd": 5}) as gate, hosted(root, agents=1) as stage:
        await run_plan(stage, gate, tmp_path)
        costs = desk(stage, gate)
        reply = await costs.cost(CostParams("task"))
        assert (reply.source, reply.live, len(reply.rows)) == ("gateway", True, 1)
        row = reply.rows[0]
        assert (row.name, row.requests, row.input_tokens, row.output_tokens) == ("demo/ask", 2, 2_000, 200)
        assert (row.settled_usd_micros, row.said_usd_micros) == (2 * REQUEST_USD_MICROS, 10_000)
        assert row.difference_usd_micros == 2 * REQUEST_USD_MICROS - 10_000
        assert reply.total.settled_usd_micros == row.settled_usd_micros
        for by, name in (("agent", "1"), ("plan", "demo"), ("attempt", "demo/ask#1"), ("model", MODEL)):
            rows = (await costs.cost(CostParams(by))).rows
            assert [(each.name, each.settled_usd_micros) for each in rows if each.name] == [(name, 2 * REQUEST_USD_MICROS)], by
        assert len((await costs.cost(CostParams("day"))).rows) == 1
        of_plan = await costs.cost(CostParams("agent", plan="demo", name="1"))
        assert of_plan.total.difference_usd_micros == row.difference_usd_micros
        assert [each.name for each in (await costs.cost(CostParams("task", name="ask"))).rows] == ["demo/ask"]
        limits = await costs.limits()
        assert [(each.upstream, each.name, each.limit, each.learned) for each in limits.limits if each.name == "requests"] == [
            ("anthropic", "requests", 50, True)
        ]
        await costs.look()
        assert (costs.loads[0].name, costs.loads[0].rpm_limit) == ("anthropic", 50)
        assert costs.whole is not None
        assert costs.whole.cost_usd_micros == 2 * REQUEST_USD_MICROS


async def test_results_and_state_hold_what_was_settled(root: Path, tmp_path: Path) -> None:
    """The coordinator of this test is not told of its gateway; it reads the books."""
    async with gated(root) as gate:
        async with hosted(root, agents=1) as stage:
            await run_plan(stage, gate, tmp_path)
            await wait_until((root / "results" / "demo" / "ask" / "result.json").exists)
            result = json.loads((root / "results" / "demo" / "ask" / "result.json").read_text())
            assert result["cost"] == {
                "api_requests": 2,
                "tokens_consumed": 2_200,
                "estimated_cost_dollars": 2 * REQUEST_USD_MICROS / 1e6,
            }
            attempt = (await stage.app.task(TaskParams("ask"))).attempts[0]
            assert (attempt.tokens, attempt.cost_usd_micros, attempt.settled) == (2_200, 2 * REQUEST_USD_MICROS, True)
            many = [AttemptId(TaskId("demo/ask"), number) for number in range(1, 50)]
            for names in (many[:2], many):
                settled = await stage.app.costs.settled_attempts(names)
                assert settled["demo/ask#1"].cost_usd_micros == 2 * REQUEST_USD_MICROS
            report = await stage.app.report(PlanNameParams("demo"))
            page = await asyncio.to_thread(Path(report.html).read_text)
            assert "as the gateway settled it" in page
        totals = json.loads((root / "state" / "state.json").read_text())["totals"]
        assert (totals["api_requests"], totals["estimated_cost_dollars"]) == (2, 2 * REQUEST_USD_MICROS / 1e6)


async def test_everything_is_known_after_the_end_of_both(root: Path, tmp_path: Path) -> None:
    async with gated(root, budgets={"day_usd": 5}) as gate:
        async with hosted(root, agents=1) as stage:
            await run_plan(stage, gate, tmp_path)
            before = await desk(stage, gate).cost(CostParams("task"))
        shelf = shelf_of(root)
        assert (await shelf.cost(CostParams("task"))).source == "gateway", "it goes on without a coordinator"
        await gate.kill()
        shelf = shelf_of(root)
        after = await shelf.cost(CostParams("task"))
        assert (after.source, after.live, after.rows, after.total) == ("journal", False, before.rows, before.total)
        limits = await shelf.limits(Empty())
        assert (limits.source, limits.limits) == ("configuration", ())
        budgets = await shelf.budgets(Empty())
        assert [(each.scope, each.budget_usd_micros, each.settled_usd_micros) for each in budgets.budgets] == [
            ("day", 5_000_000, 2 * REQUEST_USD_MICROS)
        ]
        with pytest.raises(PortFailed, match="no gateway runs"):
            await shelf.set_budget(SetBudgetParams("day", "", 1))
        found = await asyncio.to_thread(CliRunner().invoke, cli, ["cost", "report", "--root", str(root), "--csv"])
        assert found.exit_code == 0, found.output
        assert found.stdout.splitlines()[1].startswith("demo/ask,2,2000,0,0,200,0.015000,0.010000,0.005000,1,0,0")


def shelf_of(root: Path) -> UseCases:
    found = open_shelf(Root(root), load_settings(root, {}))
    assert found is not None
    return found.use_cases


async def test_without_a_gateway_there_is_what_programs_said(root: Path, tmp_path: Path) -> None:
    async with hosted(root, agents=1) as stage:
        scenario = {
            "steps": [{"usage": {"input_tokens": 70, "output_tokens": 7, "cost_usd": 0.25}}, {"write": {"path": "x.txt", "text": "x"}}]
        }
        task = {"id": "a", "agent": "rehearsal", "prompt": "play", "requirements": {"scenario": scenario}}
        plan = await stage.submit(json.dumps({"name": "demo", "tasks": [task]}), tmp_path)
        assert await stage.wait_plan(plan) == "completed"
        reply = await stage.app.cost(CostParams("agent"))
        assert reply.source == "agents"
        assert [(row.name, row.settled_usd_micros, row.said_usd_micros, row.output_tokens) for row in reply.rows] == [
            ("1", None, 250_000, 7)
        ]
        assert (await stage.app.limits(Empty())).source == ""
        assert (await stage.app.budgets(Empty())).budgets == ()
        with pytest.raises(PortFailed, match="no gateway"):
            await stage.app.set_budget(SetBudgetParams("day", "", 1))


async def test_watch_follows_a_running_orchestra_and_ends_with_it(root: Path, tmp_path: Path) -> None:
    async with gated(root) as gate:
        async with hosted(root, agents=1) as stage:
            argv = [sys.executable, "-m", "orchestra", "cost", "watch", "--interval", "0.1", "--root", str(root)]
            pipe = asyncio.subprocess.PIPE
            looking = await asyncio.create_subprocess_exec(*argv, "--json", stdout=pipe, stderr=asyncio.subprocess.DEVNULL)
            assert looking.stdout is not None
            first = json.loads(await looking.stdout.readline())
            assert (first["all_usd_micros"], first["tasks"]) == (0, [])
            await run_plan(stage, gate, tmp_path)
            look = first
            while look["all_usd_micros"] < 2 * REQUEST_USD_MICROS:
                look = json.loads(await looking.stdout.readline())
            assert look["today_usd_micros"] == look["all_usd_micros"] == 2 * REQUEST_USD_MICROS
            assert [each["name"] for each in look["tasks"]] == ["demo/ask"]
        await looking.stdout.read()
        assert await looking.wait() == 0


async def test_a_budget_that_is_set_ends_the_spending(root: Path, tmp_path: Path) -> None:
    async with gated(root) as gate, hosted(root, agents=1) as stage:
        await run_plan(stage, gate, tmp_path)
        costs = desk(stage, gate)
        reply = await costs.set_budget(SetBudgetParams("task", "ask", 16_000))
        assert [(each.name, each.budget_usd_micros) for each in reply.budgets] == [("demo/ask", 16_000)]
        status = await asyncio.to_thread(post, gate.port, await gate.token("demo/ask#2"))
        assert status == 402, "the next request is thought to cost more than what is left"
        assert (await costs.set_budget(SetBudgetParams("task", "demo/ask", -1))).budgets == ()
        assert await asyncio.to_thread(post, gate.port, await gate.token("demo/ask#2")) == 200
        for scope, name in (("day", ""), ("plan", "demo"), ("agent", "1")):
            reply = await costs.set_budget(SetBudgetParams(scope, name, 1_000_000))
            assert reply.budgets[-1].budget_usd_micros == 1_000_000
        for scope, name, error in (
            ("model", "x", BadInput),
            ("plan", "", BadInput),
            ("plan", "other", NotFound),
            ("agent", "9", NotFound),
            ("day", "x", BadInput),
        ):
            with pytest.raises(error):
                await costs.set_budget(SetBudgetParams(scope, name, 1))


def post(port: int, token: str) -> int:
    import urllib.error
    import urllib.request

    body = json.dumps({"model": MODEL, "max_tokens": 1000, "messages": [{"role": "user", "content": "hi"}]}).encode()
    headers = {"x-api-key": token, "content-type": "application/json"}
    request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/messages", body, headers)
    try:
        with urllib.request.urlopen(request) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as refused:
        return refused.code


async def test_what_cannot_be_counted_is_refused(root: Path) -> None:
    use_cases = open_blank(root, load_settings(root, {}))
    for params, field in ((CostParams("colour"), "by"), (CostParams("model", plan="demo"), "by"), (CostParams("day", name="x"), "name")):
        with pytest.raises(BadInput) as caught:
            await use_cases.cost(params)
        assert caught.value.field == field


PLAN = """\
name: demo
agents: {count: 2}
tasks:
  - {id: a, agent: claude, prompt: write it down in detail, estimated_seconds: 60, retries: 0}
  - {id: b, agent: claude, prompt: write it again in detail, needs: [a], estimated_seconds: 60, retries: 0, requirements: {model: claude-haiku-4-5}}
  - {id: c, agent: saying, prompt: in own words, retries: 0}
  - {id: d, run: "true", retries: 0}
"""


async def test_a_plan_is_estimated_from_prices_before_anything_ran(root: Path, tmp_path: Path) -> None:
    flags = {"kinds.saying.command": "echo"}
    use_cases = open_blank(root, load_settings(root, flags))
    reply = await use_cases.estimate(EstimateParams(PLAN, "plan.yaml", str(tmp_path)))
    a, b, c, d = reply.tasks
    assert (a.model, b.model, a.priced, c.priced) == ("claude-opus-5-5", "claude-haiku-4-5", True, False)
    assert a.cost_usd_micros.low < b.cost_usd_micros.high
    assert c.cost_usd_micros.likely > a.cost_usd_micros.likely > b.cost_usd_micros.likely > d.cost_usd_micros.likely == 0
    assert reply.cost_usd_micros.likely == sum(each.cost_usd_micros.likely for each in reply.tasks)
    assert (reply.agents, reply.duration_ms.likely, reply.samples) == (2, 120_000, 0)


async def test_a_plan_is_estimated_from_what_was_paid(root: Path, tmp_path: Path) -> None:
    async with gated(root) as gate, hosted(root, agents=1) as stage:
        for run, requests in enumerate((1, 2, 3), 1):
            await run_plan(stage, gate, tmp_path, requests, name=f"run{run}")
        costs = desk(stage, gate)
        text = json.dumps({"name": "next", "tasks": [{"id": "ask", "agent": "asking", "prompt": "ask the model"}]})
        reply = await costs.estimate(EstimateParams(text, "plan.json", str(tmp_path)))
        assert reply.tasks[0].basis == "3 attempts of kind asking in category coding"
        cost = reply.cost_usd_micros
        assert (cost.low, cost.likely, cost.high) == tuple(n * REQUEST_USD_MICROS for n in (1, 2, 3))
        found = await costs.estimate_cost(EstimateCostParams(task="Ask the model three times", agents=10, estimated_tokens=1_100))
        assert found.estimated_cost_usd == 10 * REQUEST_USD_MICROS / 1e6, "the mixture of the past, for each agent"
        assert found.cost_usd_low <= found.estimated_cost_usd <= found.cost_usd_high
        assert found.basis == "the mixture of 3 attempts of kind asking; kind asking"


async def test_a_parent_asks_what_a_task_will_cost(root: Path) -> None:
    async with hosted(root, agents=1):
        ask = {
            "command": "orchestra.estimate_cost",
            "parameters": {"task": "Implement feature X", "agents": 10, "estimated_tokens": 50_000},
        }
        (root / "queue" / "incoming" / "c1.json").write_text(json.dumps(ask))
        answer = root / "queue" / "responses" / "c1.json"
        await wait_until(answer.exists)
        told = json.loads(answer.read_text())
        assert told["estimated_cost_usd"] > 0
        assert told["estimated_duration_seconds"] > 0
        assert told["cost_usd_low"] < told["estimated_cost_usd"] < told["cost_usd_high"]
        assert "claude-opus-5-5" in told["basis"]


async def test_books_are_read_without_touching_them(root: Path, tmp_path: Path) -> None:
    folder = root / "gateway" / "books"
    assert read_books(folder) is None
    async with gated(root) as gate, hosted(root, agents=1) as stage:
        await run_plan(stage, gate, tmp_path)
        data = (folder / "journal.jsonl").read_bytes()
        books = read_books(folder)
        assert books is not None
        assert books.settled("task", "demo/ask") == 2 * REQUEST_USD_MICROS
        assert (folder / "journal.jsonl").read_bytes() == data
        await gate.kill()
        budgets = (await shelf_of(root).budgets(Empty())).budgets
        assert [(each.scope, each.budget_usd_micros) for each in budgets] == [("day", 100_000_000)], "the settings' where the file has none"
        torn = tmp_path / "torn"
        torn.mkdir()
        (torn / "journal.jsonl").write_bytes(data[:-7])
        assert read_books(torn) is not None


def test_models_of_the_settings_are_known(root: Path) -> None:
    options = app_options(load_settings(root, {"kinds.claude.model": "claude-sonnet-5"}), Root(root))
    assert options.models == {"claude": "claude-sonnet-5"}


async def test_the_usage_of_as_many_tasks_as_the_books_hold_is_one_answer(tmp_path: Path) -> None:
    totals = {
        f"a-plan-with-a-name/and-a-task-{number}": Totals(12, 123_456, 123_456, 1_234_567, 12_345, 1_234_567) for number in range(100_000)
    }
    (tmp_path / "books").mkdir(mode=0o700)
    (tmp_path / "books" / JOURNAL).write_bytes(encode_line(State(totals={"task": dict(totals)})))
    upstream = {"kind": "anthropic", "base_url": "http://127.0.0.1:9", "accounts": {"main": {"keys": [{"env": "KEY_A"}]}}}
    (tmp_path / "gateway.json").write_text(json.dumps({"listen": "127.0.0.1:0", "folder": "books", "upstreams": {"a": upstream}}))
    gateway = Gateway(tmp_path / "gateway.json", SystemClock(), {"KEY_A": "sk-dummy"})
    await gateway.start()
    try:
        answer = await ask_admin(gateway.config.admin_socket, "usage", {"by": "task"})
        assert len(answer["usage"]) == len(totals)
    finally:
        await gateway.stop()
