"""Running attempts are looked at through a whole orchestra, in worktrees that the agents themselves may spoil."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from orchestra.core.state import State
from orchestra.ids import TaskId
from orchestra.intake.request import CancelParams
from orchestra.testing.hosted import Stage, hosted
from orchestra.usecases import TaskParams
from tests.integration.test_isolation import HEAD, file_at, git, repo

__all__ = ["repo"]

OFTEN = {"workspaces.look_seconds": "0.05"}


def wait(gate: Path) -> str:
    return f"until [ -e {gate} ]; do sleep 0.02; done"


def changed(state: State, task: str, path: str) -> bool | None:
    known = state.touched.get(TaskId(task), {})
    return True if any(path in each.paths for each in known.values()) else None


async def held(stage: Stage, task: str) -> str:
    """Returns why a task is not running, checked that it was never given out."""
    detail = await stage.app.task(TaskParams(task_id=task))
    assert detail.attempts == ()
    return detail.explain


@pytest.mark.parametrize("end", ["cancelled", "failed"])
async def test_a_task_goes_on_when_what_it_waits_for_comes_to_nothing(repo: Path, tmp_path: Path, end: str) -> None:
    gate, first = tmp_path / "gate", tmp_path / "first"
    tasks = f"""\
  - {{id: a, retries: 0, run: "echo a > f.txt; {wait(gate)}; exit 1"}}
  - {{id: first, run: "{wait(first)}"}}
  - {{id: b, needs: [first], files: ["*.txt"], run: "echo b >> f.txt"}}
"""
    async with hosted(tmp_path / "root", agents=3, flags=OFTEN) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        await stage.wait(lambda state: changed(state, "p/a", "f.txt"))
        first.touch()
        await stage.wait_status("p/first", "completed")
        assert "has changed 'f.txt', which meets its own '*.txt' already" in await held(stage, "p/b")
        if end == "cancelled":
            await stage.app.cancel(CancelParams(task_id="p/a"))
        gate.touch()
        await stage.wait_status("p/b", "completed")
        assert await stage.wait_plan(plan) == ("failed" if end == "failed" else "cancelled")
    assert file_at(repo, "f.txt").splitlines()[-2:] == ["line 8", "b"]


async def test_a_coordinator_that_comes_later_knows_what_was_changed(repo: Path, tmp_path: Path) -> None:
    gate, first = tmp_path / "gate", tmp_path / "first"
    tasks = f"""\
  - {{id: a, run: "echo a >> f.txt; {wait(gate)}"}}
  - {{id: first, run: "{wait(first)}"}}
  - {{id: b, needs: [first], files: [f.txt], run: "echo b >> f.txt"}}
"""
    async with hosted(tmp_path / "root", agents=3, flags=OFTEN, end=False) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        await stage.wait(lambda state: changed(state, "p/a", "f.txt"))
        await stage.crash()
    first.touch()
    async with hosted(tmp_path / "root", flags={"workspaces.look_seconds": "0"}) as stage:
        await stage.wait_status("p/first", "completed")
        assert "p/a to be over" in await held(stage, "p/b")
        gate.touch()
        assert await stage.wait_plan(plan) == "completed"
    assert file_at(repo, "f.txt").splitlines()[-2:] == ["a", "b"]


async def test_an_agent_that_spoils_its_worktree_holds_up_nobody(repo: Path, tmp_path: Path) -> None:
    """The others are looked at all the same, and what runs goes on."""
    gate, ran = tmp_path / "gate", tmp_path / "ran"
    evil = f"git config core.fsmonitor 'touch {ran}; :'; git config filter.x.clean 'touch {ran}; cat'; echo '* filter=x' > .gitattributes"
    tasks = f"""\
  - id: bad
    retries: 0
    run: |
      {evil}; echo x > f.txt; rm .git; mkfifo .gitignore; {wait(gate)}; rm .gitignore
  - {{id: good, run: "echo good > good.txt; {wait(gate)}"}}
"""
    async with hosted(tmp_path / "root", agents=2, flags=OFTEN) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        await stage.wait(lambda state: changed(state, "p/good", "good.txt"))
        gate.touch()
        assert await stage.wait_plan(plan) == "failed", "what it did could not be collected"
    assert file_at(repo, "good.txt") == "good"
    assert not ran.exists()
    git(repo, "fsck", "--strict")


async def test_what_is_changed_inside_a_sandbox_is_seen(repo: Path, tmp_path: Path) -> None:
    tasks = """\
  - {id: a, sandbox: "on", run: "echo a > f.txt; git commit -qam mine; echo n > n.txt; until [ -e done ]; do sleep 0.02; done; rm done"}
  - {id: b, run: "true", needs: [a]}
"""
    async with hosted(tmp_path / "root", agents=1, flags=OFTEN) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        await stage.wait(lambda state: changed(state, "p/a", "n.txt"))
        assert stage.coordinator.loop.state.touched[TaskId("p/a")][1].paths == ("f.txt", "n.txt")
        (place,) = re.findall("^worktree (.*/a.1)$", git(repo, "worktree", "list", "--porcelain"), re.MULTILINE)
        (Path(place) / "done").touch()
        assert await stage.wait_plan(plan) == "completed"
    assert file_at(repo, "n.txt") == "n"


@pytest.mark.parametrize("seconds", ["0", "20"])
async def test_it_can_be_switched_off(tmp_path: Path, seconds: str) -> None:
    async with hosted(tmp_path / "root", agents=1, flags={"workspaces.look_seconds": seconds}) as stage:
        names = [service.name for service in stage.coordinator._services._services]
    assert ("lookout" in names) == (seconds != "0")
