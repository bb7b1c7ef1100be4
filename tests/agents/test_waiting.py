"""A whole orchestra whose agents ask: the state, the window, the event for a parent, the answer, and a tmux server that dies meanwhile."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from orchestra.testing.hosted import end_processes, processes_left
from tests.agents.support import KEYS, PROGRAMS, URL, Net, installed, program
from tests.agents.test_orchestra import ORCHESTRA
from tests.integration.stage_support import wait_until

SETTINGS = f"""\
orchestra:
  kinds:
    claude: {{mode: interactive, permission_mode: default, base_url: "{URL}", allow_root: true, max_retries: 1}}
    codex: {{mode: interactive, approval_policy: untrusted, model: gpt-5.5, base_url: "{URL}/v1"}}
"""
PLAN = """\
name: asking
defaults: {isolation: shared}
agents:
  - {count: 1, kind: claude}
  - {count: 1, kind: codex}
tasks:
  - id: SCENE-CLAUDE-WRITE
    agent: claude
    prompt: what the model does is decided by the name of the task
    success_criteria: [{run: "grep -qx hello hello.txt"}]
  - id: codex
    agent: codex
    prompt: SCENE-CODEX-WRITE
    success_criteria: [{run: "grep -qx hello hello.txt"}]
"""


class Orchestra:
    """The command, in the network without a way out."""

    def __init__(self, folder: Path, net: Net) -> None:
        self.folder, self.root, self.enter = folder / "work", folder / "root", net.enter
        self.folder.mkdir()
        (self.root / "config").mkdir(parents=True)
        (folder / "home").mkdir()
        (self.root / "config" / "orchestra.yaml").write_text(SETTINGS)
        (self.folder / "plan.yaml").write_text(PLAN)
        path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {"PATH": path, "HOME": str(folder / "home"), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TMPDIR": "/tmp", **KEYS}

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*self.enter, str(ORCHESTRA), "--root", str(self.root), *arguments], cwd=self.folder, env=self.env, text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def run(self, *arguments: str, code: int = 0) -> str:
        process = self.start(*arguments)
        out, _ = process.communicate(timeout=60)
        assert process.returncode == code, out
        return out

    def json(self, *arguments: str) -> Any:
        return json.loads(self.run("--json", *arguments))

    def wait_asking(self, task: str) -> str:
        wait_until(lambda: any(each["task_id"] == task for each in self.events("task_waiting")), f"{task} to ask")
        return str(self.json("task", "show", task)["task"]["question"])

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [json.loads(path.read_text()) for path in sorted((self.root / "queue" / "events").glob(f"*-{kind}.json"))]


@pytest.fixture
def orchestra(tmp_path: Path, net: Net) -> Any:
    installed("claude")
    installed("codex")
    found = Orchestra(tmp_path, net)
    yield found
    found.start("down", "--now").communicate(timeout=60)
    end_processes(processes_left(found.root))


def test_agents_that_ask_are_seen_answered_and_done(orchestra: Orchestra) -> None:
    running = orchestra.start("run", "plan.yaml")
    claude, codex = "asking/SCENE-CLAUDE-WRITE", "asking/codex"
    assert orchestra.wait_asking(claude).startswith("May it use Write?")
    assert "May it run" in orchestra.wait_asking(codex)
    assert orchestra.json("task", "show", codex)["task"]["status"] == "waiting"
    assert "waits for an answer: May it run" in orchestra.run("agent", "list")
    assert "waits for an answer" in orchestra.run("status")
    screens = orchestra.json("agent", "capture")["screens"]
    assert "Do you want to create" in screens["1"]
    assert "May it run" in screens["2"]
    assert "question 9 any more" in orchestra.run("task", "answer", codex, "yes", "--question", "9", code=2)

    workers = [each["pid"] for each in orchestra.json("agent", "list")["agents"]]
    servers = {int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) for pid in workers}
    assert [Path(f"/proc/{pid}/comm").read_text().strip() for pid in servers] == ["tmux: server"]
    os.kill(servers.pop(), signal.SIGKILL)
    wait_until(
        lambda: "Do you want to create" in orchestra.json("agent", "capture", "1")["screens"].get("1", ""), "the dialog in a new window"
    )

    orchestra.run("task", "answer", claude, "yes")
    orchestra.run("task", "answer", codex, "yes")
    out, _ = running.communicate(timeout=60)
    assert running.returncode == 0, out
    asked, answered = orchestra.events("task_waiting"), orchestra.events("task_answered")
    assert [each["task_id"] for each in asked].count(claude) == 1
    assert {each["task_id"] for each in answered} == {claude, codex}
    assert all(each["waited_seconds"] >= 0 for each in answered)

    said = [json.loads(line) for line in (orchestra.root / "results" / claude / "transcript.jsonl").read_text().splitlines()]
    blocks = [block for line in said for block in contents(line)]
    assert "I wrote hello.txt." in [block.get("text") for block in blocks if block["type"] == "text"]
    called = next(block for block in blocks if block["type"] == "tool_use" and block["name"] == "Write")
    gave = next(block for block in blocks if block["type"] == "tool_result" and block["tool_use_id"] == called["id"])
    assert "hello.txt" in str(gave["content"])
    assert "dummy-key" not in str(said)


def contents(line: dict[str, Any]) -> list[dict[str, Any]]:
    """The blocks of a message, if the line is one that has some."""
    message = line.get("message")
    blocks = message.get("content") if isinstance(message, dict) else None
    return [block for block in blocks if isinstance(block, dict)] if isinstance(blocks, list) else []


AFFINE = """\
name: affine
defaults: {isolation: shared, affinity: parser}
agents:
  - {count: 1, kind: claude}
  - {count: 1, kind: codex}
tasks:
  - {id: claude-1, agent: claude, prompt: "SCENE-SAY: the first word is xylophone"}
  - {id: claude-2, agent: claude, prompt: "SCENE-SAY: what was the first word for claude?", needs: [claude-1]}
  - {id: codex-1, agent: codex, prompt: "SCENE-SAY: the first word is zeppelin"}
  - {id: codex-2, agent: codex, prompt: "SCENE-SAY: what was the first word for codex?", needs: [codex-1]}
"""


def test_a_task_with_the_same_affinity_goes_on_with_the_session(orchestra: Orchestra, net: Net) -> None:
    (orchestra.root / "config" / "orchestra.yaml").write_text(
        SETTINGS.replace("mode: interactive, permission_mode: default, ", "").replace(
            "approval_policy: untrusted", "approval_policy: never"
        )
    )
    (orchestra.folder / "plan.yaml").write_text(AFFINE)
    orchestra.run("run", "plan.yaml")
    for kind, word in (("claude", "xylophone"), ("codex", "zeppelin")):
        asked = [json.dumps(request["body"]) for request in net.requests(f"what was the first word for {kind}?")]
        assert asked
        assert all(word in body for body in asked)
        tokens = [orchestra.json("task", "show", f"affine/{kind}-{number}")["attempts"][0]["tokens"] for number in (1, 2)]
        assert tokens == [1500, 1500], "what the session used before is not used again"
