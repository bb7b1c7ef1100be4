"""Tasks that work in worktrees of their own, through a whole orchestra: the user's checkout stays as it is, and verified work is merged in order."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from orchestra.bootstrap.wiring import make_workspaces
from orchestra.codec.events import decode
from orchestra.core import events as e
from orchestra.core.state import State
from orchestra.ids import AttemptId, TaskId
from orchestra.intake.request import CancelParams
from orchestra.nodes.transport import LocalTransport
from orchestra.testing.hosted import Stage, hosted, is_gone, wait_until
from orchestra.usecases import PlanParams, TaskParams, WorkspacesParams
from orchestra.workspace import WorkRequest, Workspace

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
        (conflict,) = told(stage)
        assert "f.txt" in conflict.text
        assert "plan's branch" in conflict.text
    first = file_at(repo, "f.txt").splitlines()[0]
    assert first in ("from p/a after from p/b after line 0", "from p/b after from p/a after line 0")
    assert git(repo, "for-each-ref", "refs/orchestra/salvage"), "the work that conflicted is kept"


def told(stage: Stage) -> list[e.WorkConflicted]:
    """What went back to agents, with what was said of it."""
    events = (decode(stored.body) for stored in stage.coordinator._ledger.read(0))
    return [event for event in events if isinstance(event, e.WorkConflicted)]


def both(script: str, check: str = "") -> str:
    """Two tasks with the same script, and the same check."""
    criteria = f"    success_criteria:\n      - name: together\n        run: |\n          {check}\n" if check else ""
    return "".join(f"  - id: {name}\n    run: |\n      {script}\n{criteria}" for name in ("a", "b"))


async def side_by_side(stage: Stage, repo: Path, tasks: str, gate: Path) -> str:
    """Submits tasks that wait for the gate, which is opened when both have begun from the same commit; returns the plan."""
    plan = await stage.submit(HEAD + tasks, repo)
    await stage.wait(lambda state: True if sum(a.started_ms > 0 for _, a in state.live_attempts()) == 2 else None)
    open_gate(gate)
    return plan


def open_gate(gate: Path) -> None:
    gate.touch()


async def test_work_that_merges_cleanly_and_fails_its_check_together_goes_back_once(repo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    change = f"until [ -e {gate} ]; do sleep 0.02; done; if test -e p.a -o -e p.b; then echo $ORCHESTRA_TASK > both; else touch $(echo $ORCHESTRA_TASK | tr / .); fi"
    async with hosted(tmp_path / "root", agents=2) as stage:
        plan = await side_by_side(stage, repo, both(change, "if test -e p.a && test -e p.b; then echo they quarrel; exit 1; fi"), gate)
        assert await stage.wait_plan(plan) == "completed"
        found = {task.id: (len(task.attempts), task.conflicts, task.failures) for task in stage.coordinator.loop.state.tasks.values()}
        assert sorted(found.values()) == [(1, 0, 0), (2, 1, 0)]
        again = next(task for task in stage.coordinator.loop.state.tasks.values() if task.conflicts)
        (conflict,) = told(stage)
        assert "they quarrel" in conflict.text
        assert "'together' ended on both together with exit code 1" in conflict.text
    files = git(repo, "ls-tree", "--name-only", "orchestra/p/merged").splitlines()
    assert ("p.a" in files) + ("p.b" in files) == 1
    assert file_at(repo, "both") == again.id
    assert git(repo, "log", "--format=%s", "--merges", "orchestra/p/merged") == "", "what fails together never was in the branch"
    assert git(repo, "for-each-ref", "refs/orchestra/salvage").count("\n") == 0, "the work that went back is kept"


async def test_tasks_that_declare_the_same_file_are_done_one_after_the_other(repo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    change = f'until [ -e {gate} ]; do sleep 0.02; done; sed -i "1s|.*|$ORCHESTRA_TASK after $(head -1 f.txt)|" f.txt'
    tasks = both(change).replace("    run:", '    files: ["*.txt"]\n    run:')
    async with hosted(tmp_path / "root", agents=2) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        first = await stage.wait(lambda state: next((each.task for each, a in state.live_attempts() if a.started_ms), None))
        second = "p/b" if first == "p/a" else "p/a"
        told = await stage.app.explain(TaskParams(second))
        assert told.explanation == f"{second} is ready and waits for {first} to be over, as that one may change '*.txt' too (`files`)."
        open_gate(gate)
        assert await stage.wait_plan(plan) == "completed"
        assert all((len(task.attempts), task.conflicts) == (1, 0) for task in stage.coordinator.loop.state.tasks.values())
    assert file_at(repo, "f.txt").splitlines()[0] == f"{second} after {first} after line 0"


async def test_checks_run_again_on_a_real_merge_and_only_there(repo: Path, tmp_path: Path) -> None:
    gate, seen = tmp_path / "gate", tmp_path / "seen"
    change = f"until [ -e {gate} ]; do sleep 0.02; done; touch $(echo $ORCHESTRA_TASK | tr / .)"
    async with hosted(tmp_path / "root", agents=2) as stage:
        tasks = both(change, f'echo "$ORCHESTRA_TASK $ORCHESTRA_ATTEMPT $(ls p.* | wc -l) $(git status --short | wc -l)" >> {seen}')
        assert await stage.wait_plan(await side_by_side(stage, repo, tasks, gate)) == "completed"
    runs = sorted(seen.read_text().splitlines())
    assert [line.split(" ", 1)[1] for line in runs if line.endswith(" 1 1")] == ["1 1 1", "1 1 1"], (
        "each by itself, before it was committed"
    )
    assert len(runs) == 3
    assert any(line.endswith(" 1 2 0") for line in runs), "once more on both, as they are committed"


HANGS = "case $PWD in *.proof) test -e {done} || {{ echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600; }};; esac"
"""A check that takes for ever on what was merged."""


async def test_cancelling_ends_the_checks_of_a_merge_and_keeps_the_work(repo: Path, tmp_path: Path) -> None:
    gate, pid = tmp_path / "gate", tmp_path / "pid"
    change = f"until [ -e {gate} ]; do sleep 0.02; done; touch $(echo $ORCHESTRA_TASK | tr / .)"
    async with hosted(tmp_path / "root", agents=2) as stage:
        plan = await side_by_side(stage, repo, both(change, HANGS.format(done=tmp_path / "done", pid=pid)), gate)
        await wait_until(pid.exists)
        held = await stage.coordinator.loop.ask(lambda state: list(state.merging))
        await stage.app.cancel(CancelParams(task_id=held[0]))
        assert await stage.wait_plan(plan) == "cancelled"
        await wait_until(lambda: is_gone(int(pid.read_text())))
        await wait_until(lambda: git(repo, "worktree", "list").count("\n") == 0)
    (kept,) = git(repo, "for-each-ref", "--format=%(refname)", "refs/orchestra/salvage").splitlines()
    assert kept == f"refs/orchestra/salvage/{held[0]}.1"
    assert git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads") == "main\norchestra/p/merged"
    assert held[0].replace("/", ".") not in git(repo, "ls-tree", "--name-only", "orchestra/p/merged")


async def test_a_coordinator_that_ends_while_a_merge_is_checked_ends_the_checks_and_the_next_runs_them_again(
    repo: Path, tmp_path: Path
) -> None:
    gate, pid, done = tmp_path / "gate", tmp_path / "pid", tmp_path / "done"
    change = f"until [ -e {gate} ]; do sleep 0.02; done; touch $(echo $ORCHESTRA_TASK | tr / .)"
    async with hosted(tmp_path / "root", agents=2, end=False) as stage:
        plan = await side_by_side(stage, repo, both(change, HANGS.format(done=done, pid=pid)), gate)
        await wait_until(pid.exists)
        tip = git(repo, "rev-parse", "orchestra/p/merged")
        await stage.crash()
    assert is_gone(int(pid.read_text()))
    assert git(repo, "rev-parse", "orchestra/p/merged") == tip, "the branch did not move"
    done.touch()
    async with hosted(tmp_path / "root") as again:
        assert await again.wait_plan(plan) == "completed"
        assert all(len(task.attempts) == 1 for task in again.coordinator.loop.state.tasks.values())
    assert git(repo, "ls-tree", "--name-only", "orchestra/p/merged").splitlines() == ["f.txt", "p.a", "p.b"]


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
    assert kept == ["", "refs/orchestra/salvage/p/a.2", "refs/heads/orchestra/p/a.3"], "the second failed, the third lost"
    assert [file_at(repo, "by.txt", ref) for ref in kept[1:]] == ["by 2", "by 3"]


@pytest.mark.parametrize(
    "tasks, warned",
    [
        ("  - {id: a, run: 'true'}\n  - {id: b, needs: [a], run: 'true'}\n  - {id: c, needs: [b], run: 'true'}\n", 1),
        ("  - {id: a, run: 'true'}\n  - {id: b, needs: [a], run: 'true', isolation: shared}\n", 0),
        ("  - {id: a, run: 'true'}\n  - {id: b, run: 'true'}\n", 0),
    ],
    ids=["copies that need each other", "one of them is shared", "nobody needs anybody"],
)
async def test_who_will_not_see_what_it_needs_is_told_at_the_beginning(tasks: str, warned: int, repo: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.mkdir()
    async with hosted(tmp_path / "root", agents=1) as stage:
        replies = [
            await stage.app.submit_plan(PlanParams(text=HEAD + tasks, source="p.yaml", directory=str(each))) for each in (plain, repo)
        ]
        assert [len(reply.warnings) for reply in replies] == [warned, 0]
        assert all(
            f"p/b and others do not see what the tasks did that they need: {plain} is no git repository" in each
            for each in replies[0].warnings
        )


async def test_what_a_dead_coordinator_did_not_let_go_of_is_let_go_by_the_next(repo: Path, tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with hosted(root, agents=1, end=False) as stage:
        await stage.submit(HEAD + "  - {id: a, retries: 0, run: 'echo half > half.txt; exit 1'}\n", repo)
        await stage.wait_status("p/a", "failed")
        await stage.crash()
    async with hosted(root) as stage:
        kept = await stage.wait(lambda state: state.tasks[TaskId("p/a")].attempts[0].kept)
    assert file_at(repo, "half.txt", kept) == "half"


async def test_an_end_without_grace_leaves_merges_that_are_checked_to_the_next_start(repo: Path, tmp_path: Path) -> None:
    gate, pid, done = tmp_path / "gate", tmp_path / "pid", tmp_path / "done"
    change = f"until [ -e {gate} ]; do sleep 0.02; done; touch $(echo $ORCHESTRA_TASK | tr / .)"
    async with hosted(tmp_path / "root", agents=2) as stage:
        plan = await side_by_side(stage, repo, both(change, HANGS.format(done=done, pid=pid)), gate)
        await wait_until(pid.exists)
    assert is_gone(int(pid.read_text()))
    open_gate(done)
    async with hosted(tmp_path / "root", agents=2) as again:
        assert await again.wait_plan(plan) == "completed"
        assert all(len(task.attempts) == 1 for task in again.coordinator.loop.state.tasks.values())


async def test_tidying_lets_go_of_what_was_left_and_of_nothing_that_is_wanted(repo: Path, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    tasks = f'  - {{id: a, run: "echo a > a"}}\n  - {{id: b, needs: [a], run: "until [ -e {gate} ]; do sleep 0.02; done; echo b > b"}}\n'
    async with hosted(tmp_path / "root", agents=1) as stage:
        plan = await stage.submit(HEAD + tasks, repo)
        await stage.wait_status("p/b", "running")
        spaces = stage.app.spaces
        everything = WorkspacesParams(older_than_ms=0, remove=True)
        (look,) = (await spaces.workspaces(everything)).nodes
        assert [(each.task, each.action, each.why) for each in look.workspaces] == [("b.1", "keep", "its attempt is not over")]
        open_gate(gate)
        assert await stage.wait_plan(plan) == "completed"
        await wait_until(lambda: git(repo, "worktree", "list").count("\n") == 0)
        (node,) = stage.coordinator.loop.state.nodes.values()
        places = make_workspaces(node.spec, stage.root, LocalTransport())
        (left,) = await places.prepare([WorkRequest(repo=str(repo), attempt=AttemptId(TaskId("p/b"), 9))])
        assert isinstance(left, Workspace)
        write(left.path, "c")
        (dry,) = (await spaces.workspaces(WorkspacesParams(older_than_ms=0))).nodes
        assert [(each.task, each.action) for each in dry.workspaces] == [("b.9", "remove")]
        assert "uncommitted work is kept" in dry.workspaces[0].why
        (young,) = (await spaces.workspaces(WorkspacesParams(remove=True))).nodes
        assert [each.action for each in young.workspaces] == ["keep"]
        (done,) = (await spaces.workspaces(everything)).nodes
        (gone,) = done.workspaces
        assert git(repo, "show", f"{gone.kept}:c") == "left"
        (refs,) = (await spaces.workspaces(WorkspacesParams(refs=True, older_than_ms=0, remove=True))).nodes
        assert [(each.ref, each.action) for each in refs.refs] == [(gone.kept, "remove")]
    assert git(repo, "for-each-ref", "refs/orchestra") == ""


def write(folder: str, name: str) -> None:
    Path(folder, name).write_text("left\n")
