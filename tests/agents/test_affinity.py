"""Sessions of the real programs over worktrees: each attempt has a folder of its own, and the agent goes on with what it knows."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.testing.hosted import end_processes, processes_left
from tests.agents.support import KEYS, PROGRAMS, URL, Net, installed, program

ORCHESTRA = Path(sys.executable).with_name("orchestra")
SETTINGS = f"""\
orchestra:
  kinds:
    claude: {{base_url: "{URL}", allow_root: true, max_retries: 1, mode: MODE}}
    codex: {{base_url: "{URL}/v1", mode: MODE}}
"""
AFFINE = """\
name: affine-MODE
workspace: repo
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults: {isolation: worktree, affinity: parser, retries: 0}
tasks:
  - {id: SCENE-SAY-claude-1, agent: claude, prompt: "SCENE-SAY: the first word is xylophone"}
  - id: SCENE-CLAUDE-WRITE
    agent: claude
    needs: [SCENE-SAY-claude-1]
    prompt: SCENE-CLAUDE-WRITE for affinity
    success_criteria: [{run: "grep -qx hello hello.txt"}]
  - {id: SCENE-SAY-codex-1, agent: codex, prompt: "SCENE-SAY: the first word is zeppelin"}
  - id: SCENE-CODEX-KEYS
    agent: codex
    needs: [SCENE-SAY-codex-1, SCENE-CLAUDE-WRITE]
    prompt: SCENE-CODEX-KEYS for affinity
    success_criteria: [{run: "grep -qx hello hello.txt && test -s count.txt"}]
"""
REPAIR = """\
name: repair-MODE
workspace: repo
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults:
  isolation: worktree
  retries: 1
  retry_backoff_seconds: 0.01
  success_criteria: [{name: greeting, run: "grep -qx hello hello.txt && echo not yet && test $ORCHESTRA_ATTEMPT = 2"}]
tasks:
  - {id: SCENE-CLAUDE-WRITE, agent: claude, prompt: SCENE-CLAUDE-WRITE for repair}
  - {id: SCENE-CODEX-WRITE, agent: codex, prompt: SCENE-CODEX-WRITE for repair}
"""
"""Interactive, Claude Code is told the name of a file: so the scene is in the name of its task too."""


class Place:
    """A repository and a root, in the network without a way out."""

    def __init__(self, folder: Path, net: Net, mode: str) -> None:
        self.folder, self.root, self.enter, self.mode = folder, folder / "root", net.enter, mode
        path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:/usr/bin:/bin:/usr/sbin:/sbin"
        self.env = {"PATH": path, "HOME": str(folder / "home"), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TMPDIR": "/tmp", **KEYS}
        for name in ("home", "repo", "root/config"):
            (folder / name).mkdir(parents=True)
        (self.root / "config" / "orchestra.yaml").write_text(SETTINGS.replace("MODE", mode))
        self.git("init", "-q", "-b", "main")
        self.git("-c", "user.name=u", "-c", "user.email=u@x", "commit", "-q", "--allow-empty", "-m", "base")

    def git(self, *arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=self.folder / "repo", env=self.env, check=True, stdout=subprocess.PIPE, text=True)
        return done.stdout

    def run(self, *arguments: str) -> str:
        argv = [*self.enter, str(ORCHESTRA), "--root", str(self.root), *arguments]
        done = subprocess.run(
            argv, cwd=self.folder, env=self.env, text=True, timeout=110, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout
        return done.stdout

    def attempts(self, task: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = json.loads(self.run("--json", "task", "show", task))["attempts"]
        return found

    def asked(self, net: Net, task: str, number: int) -> list[str]:
        """What was asked of the model in an attempt that goes on with a session: it is told its folder, or interactive Claude Code a file to read."""
        words = f"attempts/{task}/{number}/prompt.txt" if self.mode == "interactive" and "CLAUDE" in task else f"{task}.{number}"
        return [json.dumps(request["body"]) for request in net.requests(words)]

    def prompt(self, task: str, number: int = 1) -> str:
        return (Path(self.attempts(task)[number - 1]["folder"]) / "prompt.txt").read_text()


@pytest.fixture(params=["headless", "interactive"])
def place(request: pytest.FixtureRequest, tmp_path: Path, net: Net) -> Iterator[Place]:
    installed("claude")
    installed("codex")
    found = Place(tmp_path, net, request.param)
    yield found
    subprocess.run(
        [*net.enter, str(ORCHESTRA), "--root", str(found.root), "down", "--now"], env=found.env, stderr=subprocess.DEVNULL, check=False
    )
    end_processes(processes_left(found.root))


def test_a_task_with_the_same_affinity_goes_on_with_the_session_in_a_worktree_of_its_own(place: Place, net: Net) -> None:
    (place.folder / "plan.yaml").write_text(AFFINE.replace("MODE", place.mode))
    place.run("run", "plan.yaml")
    # Interactive, Claude Code is told the name of its task's file; else both are told their prompts.
    first_words = {"claude": "SCENE-SAY-claude-1" if place.mode == "interactive" else "xylophone", "codex": "zeppelin"}
    for kind, first, second in (("claude", "SCENE-SAY-claude-1", "SCENE-CLAUDE-WRITE"), ("codex", "SCENE-SAY-codex-1", "SCENE-CODEX-KEYS")):
        told = place.prompt(f"affine-{place.mode}/{second}")
        assert "in another folder" in told
        assert f"affine-{place.mode}/{second}.1." in told, "it is told where it is now"
        bodies = place.asked(net, f"affine-{place.mode}/{second}", 1)
        assert len(bodies) >= 2, "the tool call, and the last word"
        assert all(first_words[kind] in body for body in bodies), "it remembers the first task"
        tokens = [place.attempts(f"affine-{place.mode}/{name}")[0]["tokens"] for name in (first, second)]
        assert tokens == [1500, 3000], "what the session used before is not used again"
    assert place.git("show", f"orchestra/affine-{place.mode}/merged:hello.txt") == "hello\n"
    assert place.git("show", f"orchestra/affine-{place.mode}/merged:count.txt")


def test_a_repair_goes_on_with_the_session_and_the_work_that_failed_its_checks(place: Place, net: Net) -> None:
    (place.folder / "plan.yaml").write_text(REPAIR.replace("MODE", place.mode))
    place.run("run", "plan.yaml")
    for kind in ("CLAUDE", "CODEX"):
        task = f"repair-{place.mode}/SCENE-{kind}-WRITE"
        attempts = place.attempts(task)
        assert [each["outcome"] for each in attempts] == ["unverified", "done"]
        assert attempts[0]["base"] == attempts[1]["base"]
        told = place.prompt(task, 2)
        assert "The check 'greeting' ended with:\n    not yet" in told
        assert "failed its checks left it" in told
        assert f"{task}.2." in told, "it is told where it is now"
        asked = "and do what it says" if (kind, place.mode) == ("CLAUDE", "interactive") else f"SCENE-{kind}-WRITE for repair"
        bodies = place.asked(net, task, 2)
        assert bodies
        assert all(body.count(asked) >= 2 for body in bodies), "what was asked first and what is asked now are of one session"
    assert place.git("show", f"orchestra/repair-{place.mode}/merged:hello.txt") == "hello\n"
