"""Tasks that work in worktrees of their own, through a whole orchestra: the user's checkout stays as it is, and verified work is merged in order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestra.core.state import State
from orchestra.ids import TaskId
from orchestra.testing.hosted import hosted, wait_until
from orchestra.usecases import TaskParams

IDENTITY = {"GIT_AUTHOR_NAME": "u", "GIT_AUTHOR_EMAIL": "u@x", "GIT_COMMITTER_NAME": "u", "GIT_COMMITTER_EMAIL": "u@x"}
HEAD = "name: p\ndefaults: {isolation: worktree, retry_backoff_seconds: 0.01}\ntasks:\n"


def git(folder: Path, *arguments: str) -> str:
    environment = {**os.environ, **IDENTITY}
    done = subprocess.run(["git", "-C", str(folder), *arguments], env=environment, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    folder.mkdir()
    git(folder, "init", "-q", "-b", "main")
    (folder / "f.txt").write_text("".join(f"line {number}\n" for number in range(9)))
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    (folder / "notes").write_text("mine, not committed")
    return folder


def file_at(repo: Path, path: str, ref: str = "orchestra/p/merged") -> str:
    return git(repo, "show", f"{ref}:{path}")


async def test_verified_work_comes_into_the_plans_branch_and_nothing_else_changes(repo: Path, tmp_path: Path) -> None:
    tasks = """\
  - {id: a, run: "echo from a > a.txt"}
  - {id: b, run: "sed -i '1s/.*/from b/' f.txt"}
  - {id: c, needs: [a], run: "cat a.txt > c.txt"}
  - {id: d, run: "test $ORCHESTRA_ATTEMPT -gt 1 || { echo x > broken; exit 1; }; sed -i '9s/.*/from d/' f.txt"}
  - {id: e, needs: [a, b, c, d], run: "echo e", success_criteria: [{run: "grep -q 'from b' f.txt && grep -q 'from d' f.txt && test ! -e broken"}]}
"""
    before = git(repo, "rev-parse", "HEAD")
    async with hosted(tmp_path / "root", agents=4) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        assert await stage.wait_plan(plan) == "completed"
        commit = stage.coordinator.loop.state.tasks[TaskId("p/c")].commit
        patch = (stage.root.results_of(TaskId("p/b")) / "diff.patch").read_text()
    assert git(repo, "status", "--short") == "?? notes"
    assert (git(repo, "rev-parse", "HEAD"), git(repo, "branch", "--show-current")) == (before, "main")
    lines = file_at(repo, "f.txt").splitlines()
    assert (lines[0], lines[8], len(lines)) == ("from b", "from d", 9)
    assert file_at(repo, "c.txt") == "from a"
    git(repo, "merge-base", "--is-ancestor", commit, "orchestra/p/merged")
    assert "+from b" in patch
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/orchestra/salvage") == "refs/orchestra/salvage/p/d.1", (
        "nothing is thrown away"
    )
    assert git(repo, "worktree", "list").count("\n") == 0
    assert git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads") == "main\norchestra/p/merged"


async def test_work_that_conflicts_goes_back_once_and_is_then_done_on_top_of_the_other(repo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    change = f'until [ -e {gate} ]; do sleep 0.02; done; sed -i "1s|.*|from $ORCHESTRA_TASK after $(head -1 f.txt)|" f.txt'
    async with hosted(tmp_path / "root", agents=2) as stage:
        plan = await stage.submit(HEAD + both(change), repo)
        await stage.wait(lambda state: True if sum(a.started_ms > 0 for _, a in state.live_attempts()) == 2 else None)
        gate.touch()
        assert await stage.wait_plan(plan) == "completed"
        found = {task.id: (len(task.attempts), task.conflicts) for task in stage.coordinator.loop.state.tasks.values()}
        assert sorted(found.values()) == [(1, 0), (2, 1)]
        again = next(task for task in stage.coordinator.loop.state.tasks.values() if task.conflicts)
        assert "f.txt" in again.feedback
        assert "plan's branch" in again.feedback
    first = file_at(repo, "f.txt").splitlines()[0]
    assert first in ("from p/a after from p/b after line 0", "from p/b after from p/a after line 0")
    assert git(repo, "for-each-ref", "refs/orchestra/salvage"), "the work that conflicted is kept"


def both(script: str) -> str:
    """Two tasks with the same script."""
    return "".join(f"  - id: {name}\n    run: |\n      {script}\n" for name in ("a", "b"))


async def test_a_coordinator_that_ends_during_a_merge_goes_on_with_it(repo: Path, tmp_path: Path) -> None:
    lock = repo / ".git" / "refs" / "heads" / "orchestra" / "p" / "merged.lock"
    lock.parent.mkdir(parents=True)
    lock.write_text("")  # as a git that was killed leaves it: the merge waits
    async with hosted(tmp_path / "root", agents=1, end=False) as stage:
        plan = await stage.submit(HEAD + '  - {id: a, run: "echo 1 > a.txt"}\n', repo)
        await stage.wait_status("p/a", "merging")
        await stage.crash()
    lock.unlink()
    async with hosted(tmp_path / "root") as again:
        assert await again.wait_plan(plan) == "completed"
        assert len(again.coordinator.loop.state.tasks[TaskId("p/a")].attempts) == 1
    assert file_at(repo, "a.txt") == "1"


async def test_a_folder_that_is_no_repository_is_worked_on_as_a_copy(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "kept").write_text("as it was")
    async with hosted(tmp_path / "root", agents=1) as stage:
        plan = await stage.submit(HEAD + '  - {id: a, run: "cat kept > made; rm kept"}\n', folder)
        assert await stage.wait_plan(plan) == "completed"
        patch = (stage.root.results_of(TaskId("p/a")) / "diff.patch").read_text()
    assert [path.name for path in folder.iterdir()] == ["kept"]
    assert "as it was" in patch


async def test_a_workspace_that_cannot_be_made_fails_the_task_with_the_reason(repo: Path, tmp_path: Path) -> None:
    (repo / ".git" / "config").write_text("[core\n")
    async with hosted(tmp_path / "root", agents=1) as stage:
        await stage.submit(HEAD + '  - {id: a, run: "true", retries: 0}\n', repo)
        task = await stage.wait_status("p/a", "failed")
        assert "config" in task.reason


def _completed(state: State) -> bool | None:
    return True if all(task.status.value == "completed" for task in state.tasks.values()) else None


async def test_the_end_of_an_orchestra_leaves_no_worktree(repo: Path, tmp_path: Path) -> None:
    async with hosted(tmp_path / "root", agents=3) as stage:
        plan = await stage.submit(HEAD + "".join(f'  - {{id: t{n}, run: "echo {n} > f{n}"}}\n' for n in range(6)), repo)
        assert await stage.wait_plan(plan) == "completed"
        await stage.wait(_completed)
    await wait_until(lambda: git(repo, "worktree", "list").count("\n") == 0)
    assert {file_at(repo, f"f{n}") for n in range(6)} == set("012345")


async def test_of_several_that_try_the_best_is_merged_and_what_the_others_did_is_kept_and_named(repo: Path, tmp_path: Path) -> None:
    script = "echo by $ORCHESTRA_ATTEMPT > by.txt; test $ORCHESTRA_ATTEMPT != 2"
    check = 'n=$(cut -d" " -f2 by.txt); echo "$n failed, 3 passed"'
    task = f"""\
  - id: a
    run: {script}
    target_agents: {{count: 3}}
    retries: 0
    success_criteria: [{{run: '{check}', name: tests}}]
"""
    async with hosted(tmp_path / "root", agents=3) as stage:
        plan = await stage.submit(HEAD + task, repo)
        assert await stage.wait_plan(plan) == "completed"
        await stage.wait(lambda state: True if all(attempt.kept is not None for attempt in state.tasks[TaskId("p/a")].attempts) else None)
        found = await stage.app.task(TaskParams("p/a"))
        folder = stage.root.results_of(TaskId("p/a"))
        assert (found.primary_attempt, found.replicas) == (1, 3), "verified, and the fewest failed tests"
        kept = [attempt.kept for attempt in found.attempts]
        assert [(folder / f"diff.{number}.patch").read_text().count(f"+by {number}") for number in (1, 2, 3)] == [1, 1, 1]
        assert (folder / "diff.patch").read_bytes() == (folder / "diff.1.patch").read_bytes()
    assert file_at(repo, "by.txt") == "by 1"
    assert kept == ["", "refs/orchestra/salvage/p/a.2", "refs/orchestra/salvage/p/a.3"]
    assert [file_at(repo, "by.txt", ref) for ref in kept[1:]] == ["by 2", "by 3"]


async def test_what_a_dead_coordinator_did_not_let_go_of_is_let_go_by_the_next(repo: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with hosted(root, agents=1, end=False) as stage:
        await stage.submit(HEAD + "  - {id: a, retries: 0, run: 'echo half > half.txt; exit 1'}\n", repo)
        await stage.wait_status("p/a", "failed")
        await stage.crash()
    async with hosted(root) as stage:
        kept = await stage.wait(lambda state: state.tasks[TaskId("p/a")].attempts[0].kept)
    assert file_at(repo, "half.txt", kept) == "half"
