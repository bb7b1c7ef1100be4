"""A parent program drives the orchestra by files alone, from init to shutdown."""

from __future__ import annotations

import json
import os
import select
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.testing.hosted import processes_left
from tests.e2e.command import Shell, shell

pytestmark = pytest.mark.timeout(200)
DEADLINE_S = 60


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        yield found


def ask(sh: Shell, command_id: str, command: str, **parameters: Any) -> Any:
    """Writes a command file the way a careful parent does and waits for its answer."""
    folder = sh.root / "queue"
    part = folder / "incoming" / f".{command_id}.part"
    part.write_text(json.dumps({"command": f"orchestra.{command}", "parameters": parameters}))
    os.rename(part, folder / "incoming" / f"{command_id}.json")
    return wait_for(folder / "responses" / f"{command_id}.json")


def wait_for(path: Path) -> Any:
    """Waits until a file is there; returns its JSON."""
    deadline = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < deadline, f"{path.name} did not come"
        select.select([], [], [], 0.02)
    return json.loads(path.read_text())


def test_from_init_to_shutdown(sh: Shell) -> None:
    assert sh.run("up", "--bare").returncode == 0
    early = ask(sh, "c0", "submit_task", description="prints a word for us", payload={"type": "command", "content": "echo word"})
    assert early["error"]["code"] == "illegal_move"
    assert "uninitialized" in early["error"]["message"]

    ready = ask(sh, "c1", "init", agent_count=3)
    assert ready["status"] == "initialized"
    assert ready["agent_manifest"] == {"total": 3, "local": 3}
    assert ready["session_ids"]["local"].startswith("miyabi-orchestra-local-")

    task_id = "TASK-a3f2c5d8-1234-5678-9abc-def012345678"
    queued = ask(
        sh,
        "c2",
        "submit_task",
        task_id=task_id,
        description="prints a word for us",
        category="coding",
        priority="high",
        payload={"type": "command", "content": "echo word"},
        success_criteria=[{"run": "true", "name": "nothing broke"}],
        constraints={"max_execution_time_seconds": 60, "max_cost_dollars": 5.0},
    )
    assert (queued["task_id"], queued["status"]) == (task_id, "queued")
    result = wait_for(sh.root / "results" / task_id / "result.json")
    assert (result["status"], result["result"]["success"]) == ("completed", True)

    assert ask(sh, "c3", "scale", target_count=5, strategy="immediate")["target_count"] == 5
    again = ask(sh, "c2", "submit_task", task_id="other", description="something else entirely")
    assert again == queued, "a command id is answered once and for ever"
    wrong = ask(sh, "c4", "submit_task", description="Make it better")
    assert wrong["error"]["field"] == "description"

    status = ask(sh, "c5", "status")
    assert status["tasks"]["completed"] == 1
    assert set(status) >= {"status", "health", "agents", "api_limits", "tasks", "uptime_seconds"}
    told = [json.loads(path.read_text())["event"] for path in sorted((sh.root / "queue" / "events").glob("*.json"))]
    assert "task_completed" in told
    assert wait_for(sh.root / "state" / "heartbeat.json")["status"] == "alive"

    assert ask(sh, "c6", "shutdown", graceful=True, drain_tasks=True, timeout_seconds=30)["status"] == "shutdown_initiated"
    assert not processes_left(sh.root)
