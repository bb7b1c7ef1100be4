"""Every way an attempt of a real agent can end, in the windows of a whole orchestra: what its task's result says of it, and that nothing of it is left."""

from __future__ import annotations

import json
import os
import signal
from functools import partial
from pathlib import Path
from typing import Final

import pytest

from orchestra.agents.causes import Cause
from tests.agents.test_orchestra import Desk, called, desk, has_begun, ran, started
from tests.integration.stage_support import is_alive, wait_until
from tests.scenes import ALONE, MODES, otherwise, tasks_of
from tests.unit.recorded import cause_in

__all__ = ["desk"]

KINDS: Final = ("claude", "codex")
ITSELF: Final = {"gateway.mode": "off"}
"""The programs ask the API themselves: a gateway would wait for what passes."""
BOUNDS: Final = {
    "kinds.claude.max_retries": "1",
    "kinds.codex.request_max_retries": "1",
    "kinds.codex.stream_max_retries": "1",
    "kinds.codex.model": "gpt-5.5",
}
NARROW: Final = {"kinds.claude.max_turns": "3", "kinds.claude.permission_mode": "default", "kinds.claude.allowed_tools": "Bash"}
"""What only headless Claude Code is told: in its window it would ask."""


def options(values: dict[str, str]) -> list[str]:
    return [part for name, value in values.items() for part in ("--set", f"{name}={value}")]


@pytest.mark.parametrize("mode", MODES)
def test_each_end_has_its_word(desk: Desk, mode: str) -> None:
    repo, env, enter = desk
    kind, _, how = mode.partition("-")
    plan = {"name": "ends", "agents": {"count": 4, "kind": kind}, "tasks": tasks_of(ALONE[mode], kind)}
    (repo / "plan.yaml").write_text(json.dumps(plan))
    narrow = NARROW if mode == "claude-headless" else {}
    assert ran(repo, env, enter, *options({**ITSELF, **BOUNDS, **narrow, f"kinds.{kind}.mode": how})).returncode == 1
    assert otherwise(ALONE[mode], kind, repo / ".codex" / "results" / "ends") == {}


def processes_of(task: str) -> dict[int, str]:
    """Returns what runs for a task, by pid: all of it has the task's name in its environment, in whatever session it is."""
    found: dict[int, str] = {}
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if f"ORCHESTRA_TASK={task}".encode() in (entry / "environ").read_bytes().split(b"\0") and is_alive(int(entry.name)):
                found[int(entry.name)] = (entry / "comm").read_text().strip()
        except OSError:
            continue
    return found


@pytest.mark.parametrize("how", ["headless", "interactive"])
def test_a_program_that_is_killed_in_its_window_leaves_nothing(desk: Desk, how: str) -> None:
    """Its tool, which has a session of its own, is gone as soon as the task has failed: the windows and agents are still there."""
    repo, env, enter = desk
    plan = f"killed-{how}"  # of its own, as what runs is found by the task's name in all of the machine
    signals = {f"SCENE-{kind.upper()}-WAIT-{number.name}": (kind, number) for kind in KINDS for number in (signal.SIGKILL, signal.SIGTERM)}
    tasks = [{"id": name, "agent": kind, "prompt": f"{name}: do as you are told."} for name, (kind, _) in signals.items()]
    (repo / "plan.yaml").write_text(json.dumps({"name": plan, "agents": {"count": 4}, "defaults": {"retries": 0}, "tasks": tasks}))
    modes = {f"kinds.{kind}.mode": how for kind in KINDS}
    with started(repo, env, enter, "--keep", *options({**BOUNDS, **modes})) as run:
        for name, (kind, number) in signals.items():
            wait_until(partial(has_begun, run, env, f"{plan}/{name}.1/pid"), f"the tool of {name}")
            running = processes_of(f"{plan}/{name}")
            assert {kind, "bash"} <= {*running.values()}, "the program and its tool"
            (pid,) = [pid for pid, program in running.items() if program == kind]
            os.kill(pid, number)
    try:
        assert run.returncode == 1
        for name in signals:
            (reason,) = json.loads((repo / ".codex" / "results" / plan / name / "result.json").read_text())["errors"]
            assert cause_in(reason) is Cause.KILLED, (name, reason)
            assert processes_of(f"{plan}/{name}") == {}
    finally:
        called(repo, env, "down", "--now")
