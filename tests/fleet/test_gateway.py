"""Agents on machines reached by SSH and the gateway on the control machine: they reach it at a port of their own, with a token and never a key."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

from orchestra.core.model import TaskStatus
from orchestra.gateway.admin import ask_admin
from orchestra.ids import TaskId
from orchestra.testing.hosted import wait_until
from orchestra.testing.lab import Lab
from orchestra.testing.upstream import Answer, Seen
from tests.fleet.support import fleet
from tests.gateway.support import CANARY
from tests.gateway.test_in_orchestra import always, fake_api, reply

ASK = """
import json, os, time, urllib.request

body = json.dumps({"model": "claude-opus-4-5", "max_tokens": 100, "messages": [{"role": "user", "content": "hi"}]}).encode()
head = {"x-api-key": os.environ["ANTHROPIC_API_KEY"], "anthropic-version": "2023-06-01", "content-type": "application/json"}
for _ in range(300):
    try:
        with urllib.request.urlopen(urllib.request.Request(os.environ["ANTHROPIC_BASE_URL"] + "/v1/messages", body, head)) as answer:
            print(answer.read().decode())
            raise SystemExit(0)
    except OSError:
        time.sleep(0.1)
raise SystemExit(1)
"""


def prepare(lab: Lab, folder: Path, base_url: str) -> dict[str, str]:
    """Puts the agent's program on the machines and the key into a file here; returns the settings."""
    for node in lab.nodes.values():
        node.run(["sh", "-c", "cat > ~/ask.py"], input=ASK)
    key = folder / "key"
    key.write_text(CANARY)
    key.chmod(0o600)
    upstream = {"kind": "anthropic", "base_url": base_url, "accounts": {"main": {"keys": [{"file": str(key)}]}}}
    (folder / "gateway.json").write_text(json.dumps({"upstreams": {"api": upstream}}))
    (folder / "work").mkdir()
    return {
        "gateway.file": str(folder / "gateway.json"),
        "kinds.asker.command": "python3 /home/ubuntu/ask.py",
        "kinds.asker.env_pass": "ANTHROPIC_API_KEY,PATH,HOME",
        "sandbox.readable": "/home/ubuntu/ask.py",
    }


def plan(*nodes: str) -> str:
    tasks = [{"id": node, "agent": "asker", "node": node, "prompt": "go", "isolation": "shared", "retries": 0} for node in nodes]
    return json.dumps({"name": "p", "workspace": "/tmp", "tasks": tasks})


async def test_agents_on_other_machines_reach_the_api_without_its_key(lab: Lab, tmp_path: Path) -> None:
    with lab.inside():
        async with fake_api(always) as (api, url):
            flags = prepare(lab, tmp_path, url)
            async with fleet(lab, tmp_path, agents=4, flags=flags) as it:
                name = await it.stage.submit(plan("mugen", "majin"), tmp_path / "work")
                assert await it.stage.wait_plan(name) == "completed"
                assert {seen.header("x-api-key") for seen in api.seen} == {CANARY}
                usage = (await ask_admin(tmp_path / "root/gateway/books/admin.sock", "usage", {"by": "task"}))["usage"]
                assert usage.keys() == {"p/mugen", "p/majin"}
                for node in lab.nodes.values():
                    assert node.run(["grep", "-r", CANARY, "/home", "/tmp", "/proc/self/environ"], check=False).stdout == ""


async def test_an_attempt_finds_the_gateway_again_after_link_and_coordinator_were_gone(lab: Lab, tmp_path: Path) -> None:
    gone = asyncio.Event()

    async def script(seen: Seen, number: int) -> Answer:
        if not gone.is_set():
            await asyncio.Event().wait()  # until its connection ends
        return reply()

    with lab.inside():
        async with fake_api(script) as (api, url):
            flags = prepare(lab, tmp_path, url)
            async with fleet(lab, tmp_path, agents=4, flags=flags, end=False) as it:
                await it.stage.submit(plan("mugen", "majin"), tmp_path / "work")
                await wait_until(lambda: len(api.seen) == 2)
            gone.set()
            async with fleet(lab, tmp_path, agents=None, flags=flags) as again:
                for node in ("mugen", "majin"):
                    task = await again.stage.wait_status(TaskId(f"p/{node}"), TaskStatus.COMPLETED.value)
                    assert len(task.attempts) == 1
