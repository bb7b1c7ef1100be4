"""What Claude Code says it cost, beside what the gateway settled for the same requests."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from orchestra.agents.claude import ADAPTER
from orchestra.core.model import OutcomeKind
from orchestra.errors import PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.spending import Fact, cost_rows, read_settled
from tests.agents.support import URL, Desk, installed, make_task
from tests.integration.stage_support import wait_until

PORT = 4177
"""In the namespace, where nobody else is."""


class Gate:
    """The gateway, in the namespace of the agents, before the fake model server."""

    def __init__(self, stage: Desk) -> None:
        folder = stage.folder.parent / "gate"
        folder.mkdir()
        self._socket = folder / "books" / "admin.sock"
        upstream = {"kind": "anthropic", "base_url": URL, "accounts": {"main": {"keys": [{"command": ["echo", "dummy-key"]}]}}}
        config = {"listen": f"127.0.0.1:{PORT}", "folder": "books", "upstreams": {"api": upstream}}
        (folder / "gateway.json").write_text(json.dumps(config))
        argv = [*stage.net.enter, sys.executable, "-m", "orchestra", "gateway", "run", "--config", str(folder / "gateway.json")]
        self._output = folder / "output"
        with self._output.open("wb") as output:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        wait_until(self._answers, lambda: f"the gateway: {self._output.read_text()}")

    def ask(self, method: str, **params: Any) -> Any:
        return asyncio.run(ask_admin(self._socket, method, params))

    def _answers(self) -> bool:
        assert self.process.poll() is None, self._output.read_text()
        try:
            return bool(self.ask("health")["port"])
        except PortFailed:
            return False


@pytest.fixture
def gate(stage: Desk) -> Iterator[Gate]:
    installed("claude")
    made = Gate(stage)
    yield made
    made.process.kill()
    made.process.wait()


def test_claude_code_says_what_the_gateway_settles(stage: Desk, gate: Gate) -> None:
    token = gate.ask("issue_token", attempt="demo/one#1", task="demo/one", agent="7", plan="demo")["token"]
    stage.worker(env={"ANTHROPIC_API_KEY": token})
    spec = make_task("claude", "SCENE-CLAUDE-WRITE")
    settings = {"base_url": f"http://127.0.0.1:{PORT}", "allow_root": "true", "max_retries": "1"}
    run = stage.finished(ADAPTER, spec, stage.hand_out(ADAPTER, spec, settings=settings), "through-a-gateway")
    assert run.verdict.kind is OutcomeKind.DONE
    attempts = read_settled(gate.ask("usage", by="attempt"))
    fact = Fact("demo/one#1", "demo/one", "7", "demo", "2026-01-01", run.verdict.usage)
    row = cost_rows("task", [fact], read_settled(gate.ask("usage", by="task")), attempts, None)[0]
    assert (row.requests, row.input_tokens, row.output_tokens) == (2, 2_000, 1_000)
    assert (row.assumed_requests, row.unpriced_requests, row.compared_attempts) == (0, 0, 1)
    assert row.settled_usd_micros == row.said_usd_micros
    assert row.difference_usd_micros == 0
