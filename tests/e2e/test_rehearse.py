"""`orchestra rehearse`: the reference plan from its file to the branch, with the stand-in program in the agents' place."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.rehearse import loopback
from orchestra.testing.hosted import end_processes, processes_left
from tests.e2e.command import COMMAND

pytestmark = pytest.mark.timeout(300)
LEVEL6 = Path(__file__).resolve().parents[2] / "examples" / "level6" / "plan.yaml"


class Hall:
    """Rehearses in one folder, with a key in the environment that nobody is to see."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TMUX", "ORCHESTRA"))}
        return subprocess.run(
            [str(COMMAND), *arguments], env={**environment, "ANTHROPIC_API_KEY": "a-real-key"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=240, check=False,
        )  # fmt: skip

    def rehearse(self, plan: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.run("rehearse", str(plan), "--with", "rehearsal", "--folder", str(self.folder), *arguments)

    def task(self, name: str) -> Any:
        return json.loads(self.run("--root", str(self.root), "--json", "task", "show", name).stdout)


@pytest.fixture
def hall(tmp_path: Path) -> Iterator[Hall]:
    found = Hall(tmp_path / "hall")
    yield found
    if (found.root / "ledger").exists():
        found.run("--root", str(found.root), "down", "--now")
    leftovers = processes_left(found.root)
    end_processes(leftovers)
    assert not leftovers, f"left behind: {leftovers}"


def git(folder: Path, *arguments: str) -> list[str]:
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.splitlines()


def test_the_reference_plan_builds_the_framework(hall: Hall) -> None:
    done = hall.rehearse(LEVEL6, "--json")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    result, end = lines[-2], lines[-1]
    assert (result["tasks"]["completed"], result["rehearsal"]) == (15, True)
    assert (end["type"], end["agents"], end["tests_passed"]) == ("rehearsal", "rehearsal", 42)
    assert end["at_once_max"] >= 4
    repository = hall.folder / "work" / "build"
    assert end["merged"] == [{"repository": str(repository), "branch": "orchestra/level6/merged", "files": 55}]
    assert len(git(repository, "ls-tree", "-r", "--name-only", "orchestra/level6/merged")) == 55
    kinds = {line["event"]["type"] for line in lines if line["type"] == "event"}
    assert {"WorkConflicted", "WorkMerged"} <= kinds, "two agents changed one line, and one of them brought both together"

    database = hall.task("level6/database")
    assert [each["outcome"] for each in database["attempts"]] == ["unverified", "done"]
    assert "a value became part of the statement" in database["attempts"][0]["reason"]
    decisions = "\n".join(git(repository, "show", "orchestra/level6/merged:IMPLEMENTATION_PLAN.md"))
    assert "headers are ASCII; bytes that are not" in decisions
    check_that_it_is_said(hall)
    assert not (LEVEL6.parent / ".codex").exists()
    assert "a-real-key" not in "".join(path.read_text(errors="replace") for path in hall.root.rglob("*.json*") if path.is_file())


def check_that_it_is_said(hall: Hall) -> None:
    for name in ("level6.html", "level6.md"):
        assert "REHEARSAL: no model is asked" in (hall.root / "reports" / name).read_text()
    assert json.loads((hall.root / "results/level6/core/result.json").read_text())["rehearsal"] is True
    assert "REHEARSAL: no model is asked" in hall.run("--root", str(hall.root), "status").stdout
    spec = json.loads(next((hall.root / "nodes/local/attempts/level6/core/1").glob("spec.json")).read_text())
    assert spec["title"].startswith("REHEARSAL level6/core: ")


SMALL = """
name: small
workspace: repo
agents: {count: 2}
tasks:
  - {id: a, agent: claude, prompt: Write a., files: [a.md], success_criteria: ["File exists: a.md"]}
  - {id: b, needs: [a], run: cp a.md b.md, isolation: worktree, success_criteria: [{run: cmp a.md b.md}]}
"""


@pytest.fixture
def small(tmp_path: Path) -> Path:
    path = tmp_path / "small.yaml"
    path.write_text(SMALL)
    return path


def test_any_plan_can_be_rehearsed_and_nothing_of_it_is_touched(hall: Hall, small: Path) -> None:
    before = sorted(small.parent.iterdir())
    done = hall.rehearse(small)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "REHEARSAL: no model is asked" in done.stdout
    assert "REHEARSAL small completed" in done.stdout
    assert "nothing is recorded for a" in done.stderr
    assert "branch: orchestra/small/merged" in done.stdout
    assert sorted(each for each in small.parent.iterdir() if each != hall.folder) == before
    assert git(hall.folder / "work/repo", "show", "orchestra/small/merged:b.md")


def test_windows_that_stay_say_what_they_are(hall: Hall, small: Path) -> None:
    assert hall.rehearse(small, "--keep", "--agents", "3").returncode == 0
    assert hall.run("--root", str(hall.root), "up").returncode == 0
    agents = json.loads(hall.run("--root", str(hall.root), "--json", "agent", "list").stdout)["agents"]
    assert [agent["name"] for agent in agents] == ["REHEARSAL-1", "REHEARSAL-2", "REHEARSAL-3"]
    nodes = json.loads(hall.run("--root", str(hall.root), "--json", "node", "list").stdout)["nodes"]
    assert nodes[0]["session"].startswith("REHEARSAL-")


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["--with", "cli"], "no task of this plan has a scene"),
        (["--scenario", "nowhere"], "no folder nowhere"),
        (["--scenario", "wrong"], "no task 'ghost'"),
    ],
)
def test_what_cannot_be_rehearsed_is_told(hall: Hall, small: Path, arguments: list[str], said: str) -> None:
    (small.parent / "wrong" / "ghost").mkdir(parents=True)
    words = [str(small.parent / each) if each == "wrong" else each for each in arguments]
    done = hall.run("rehearse", str(small), "--folder", str(hall.folder), *words)
    assert done.returncode == 2
    assert said in done.stderr
    assert not hall.folder.exists() or not any(hall.folder.iterdir())


@pytest.mark.skipif(shutil.which("unshare") is None, reason="needs Linux")
def test_nothing_can_leave(hall: Hall, small: Path) -> None:
    small.write_text(
        "name: out\nworkspace: repo\ntasks:\n  - {id: a, run: 'ls /sys/class/net > seen; cat /proc/net/dev > seen', isolation: shared}\n"
    )
    done = hall.rehearse(small, "--json")
    assert done.returncode == 0, done.stderr
    end = json.loads(done.stdout.splitlines()[-1])
    interfaces = {line.split(":")[0].strip() for line in (hall.folder / "work/repo/seen").read_text().splitlines() if ":" in line}
    assert not end["enclosed"] or interfaces == {"lo"}


@pytest.mark.parametrize("user", [0, 1000])
def test_a_network_without_a_way_out(monkeypatch: pytest.MonkeyPatch, user: int) -> None:
    monkeypatch.setattr("os.geteuid", lambda: user)  # what an ordinary user needs works for root, too
    if not loopback.can_enclose():
        pytest.skip("network namespaces cannot be made here")
    script = "cat /proc/net/dev; grep CapAmb /proc/self/status"
    said = subprocess.run(loopback.enclosed(["/bin/sh", "-c", script]), capture_output=True, text=True, check=True).stdout
    assert [line.split(":")[0].strip() for line in said.splitlines() if ":" in line and "Cap" not in line] == ["lo"]
    assert "CapAmb:\t0000000000000000" in said
    listen = "import socket; s = socket.create_server(('127.0.0.1', 0)); socket.create_connection(s.getsockname()); print('heard')"
    assert "heard" in subprocess.run(loopback.enclosed(["python3", "-c", listen]), capture_output=True, text=True, check=True).stdout


def test_the_reference_plan_is_prepared_for_real_models(tmp_path: Path) -> None:
    shutil.copy(LEVEL6.parent / "prepare.sh", tmp_path)
    for _ in range(2):
        subprocess.run([tmp_path / "prepare.sh"], check=True, capture_output=True)
    assert git(tmp_path / "build", "rev-parse", "--show-toplevel") == [str(tmp_path / "build")]
