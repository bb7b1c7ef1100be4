"""`orchestra rehearse` with the real Claude Code and Codex: the reference plan from its file to the branch, their models being a mock."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from orchestra.testing.hosted import end_processes, processes_left
from tests.agents.support import PROGRAMS, ROOT, installed, program

ORCHESTRA = Path(sys.executable).with_name("orchestra")
PLAN = ROOT / "examples" / "level6" / "plan.yaml"


def outcomes(folder: Path, task: str) -> list[str]:
    """Returns how each attempt of a task ended, of a rehearsal that is over."""
    argv = [str(ORCHESTRA), "--root", str(folder / "root"), "--json", "task", "show", task]
    shown = json.loads(subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True, timeout=60).stdout)
    return [each["outcome"] for each in shown["attempts"]]


@pytest.mark.timeout(300)
def test_the_real_programs_rehearse_the_reference_plan(tmp_path: Path) -> None:
    for name in ("claude", "codex", "aimock"):
        installed(name)
    folder = tmp_path / "hall"
    path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:{os.environ['PATH']}"
    try:
        done = subprocess.run(
            [str(ORCHESTRA), "rehearse", str(PLAN), "--with", "cli", "--folder", str(folder), "--json"],
            env={**os.environ, "PATH": path, "OPENAI_API_KEY": "a-real-key"}, stdin=subprocess.DEVNULL,
            capture_output=True, text=True, timeout=280, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr
        lines = [json.loads(line) for line in done.stdout.splitlines()]
        end = lines[-1]
        assert (end["agents"], end["enclosed"], end["tests_passed"]) == ("cli", True, 42)
        assert end["at_once_max"] >= 4
        assert [(each["branch"], each["files"]) for each in end["merged"]] == [("orchestra/level6/merged", 55)]
        conflicts = [line["event"]["task"] for line in lines if line["type"] == "event" and line["event"]["type"] == "WorkConflicted"]
        assert len(conflicts) == 1
        assert set(conflicts) < {"level6/core", "level6/http"}, "both changed one line, and who came later brought both together"
        assert outcomes(folder, conflicts[0])[-1] == "done"
        assert outcomes(folder, "level6/database") == ["unverified", "done"], "its first version has the recorded mistake"
        for task, kind in (("plan", "claude_code_version"), ("core", "thread.started")):
            output = (folder / "root/nodes/local/attempts/level6" / task / "1" / "output.jsonl").read_text()
            assert kind in output, "it was the program itself"
        assert "a-real-key" not in "".join(each.read_text(errors="replace") for each in folder.rglob("*.json*") if each.is_file())
    finally:
        leftovers = processes_left(folder / "root")
        end_processes(leftovers)
    assert not leftovers
