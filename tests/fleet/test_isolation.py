"""Tasks in worktrees on machines reached by SSH: their work comes together in the repository of the control machine, and the user's checkout stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.core.model import TaskStatus
from orchestra.core.state import State
from orchestra.ids import TaskId
from orchestra.testing.hosted import wait_until
from orchestra.testing.lab import Lab, LabFailed
from orchestra.usecases import TaskParams
from tests.fleet.support import WAIT, Fleet, fleet
from tests.integration.test_isolation import HEAD, both, file_at, git, repo, told

__all__ = ["repo"]

HOME_BYTES = 4 << 30
"""Workspaces are made only where a GiB is free."""


@pytest.fixture
def lab(lab_folder: Path) -> Iterator[Lab]:
    """The two machines, with more room at home."""
    wide = Lab(lab_folder, home_bytes=HOME_BYTES)
    try:
        wide.__enter__()
    except LabFailed as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield wide
    finally:
        wide.close()
    assert wide.leftovers() == []


def worktrees(lab: Lab) -> list[str]:
    """Returns the workspaces that are on the machines, as `<plan>/<task>.<attempt>`."""
    listed = "cd ~/.local/state/orchestra 2>/dev/null && find . -path '*/work/worktrees/*/*' -prune || true"
    found = [node.run(["sh", "-c", listed]).stdout.split() for node in lab.nodes.values()]
    return ["/".join(path.split("/")[-2:]) for paths in found for path in paths]


def places(it: Fleet, plan: str) -> set[str]:
    """Returns the nodes on which a plan's attempts were."""
    return {str(attempt.node) for task in it.state.tasks.values() if task.spec.plan == plan for attempt in task.attempts}


async def test_work_of_several_machines_comes_into_the_plans_branch(lab: Lab, repo: Path, tmp_path: Path) -> None:
    tasks = """\
  - {id: a, node: mugen, run: "echo from a > a.txt; hostname > where-a"}
  - {id: b, node: majin, run: "sed -i '1s/.*/from b/' f.txt; hostname > where-b"}
  - {id: c, node: majin, needs: [a], run: "cat a.txt > c.txt"}
  - {id: d, node: mugen, run: "test $ORCHESTRA_ATTEMPT -gt 1 || { echo x > broken; exit 1; }; sed -i '9s/.*/from d/' f.txt"}
  - {id: e, needs: [a, b, c, d], run: "echo e", success_criteria: [{run: "grep -q 'from b' f.txt && grep -q 'from d' f.txt && test ! -e broken"}]}
"""
    before = git(repo, "rev-parse", "HEAD")
    async with fleet(lab, tmp_path, agents=4) as it:
        plan = await it.stage.submit(HEAD + tasks, repo)
        assert await it.stage.wait_plan(plan) == "completed"
        assert places(it, plan) == {"mugen", "majin"}
        commit = it.state.tasks[TaskId("p/c")].commit
        patch = (it.stage.root.results_of(TaskId("p/b")) / "diff.patch").read_text()
        await wait_until(lambda: not worktrees(lab))
    assert (git(repo, "rev-parse", "HEAD"), git(repo, "branch", "--show-current")) == (before, "main")
    assert git(repo, "status", "--short") == "?? notes"
    lines = file_at(repo, "f.txt").splitlines()
    assert (lines[0], lines[8], len(lines)) == ("from b", "from d", 9)
    assert [file_at(repo, name) for name in ("a.txt", "c.txt", "where-a", "where-b")] == ["from a", "from a", "mugen", "majin"]
    git(repo, "merge-base", "--is-ancestor", commit, "orchestra/p/merged")
    assert "+from b" in patch
    assert git(repo, "worktree", "list").count("\n") == 0
    assert git(repo, "for-each-ref", "--format=%(refname:short)", "refs/heads") == "main\norchestra/p/merged"
    git(repo, "fsck", "--strict")


async def test_what_tasks_left_on_their_machines_comes_home(lab: Lab, repo: Path, tmp_path: Path) -> None:
    tests = '<testsuite><testcase name=\\"one\\"/></testsuite>'
    tasks = f"""\
  - {{id: a, node: mugen, retries: 0, run: "echo half > half; echo sk-ant-api03-Zx81Zx81Zx81Zx81; exit 1"}}
  - {{id: b, node: majin, run: "echo b > b", success_criteria: [{{run: "echo '{tests}' > $ORCHESTRA_REPORTS_DIR/junit.xml", name: tests}}]}}
"""
    async with fleet(lab, tmp_path, agents=2) as it:
        plan = await it.stage.submit(HEAD + tasks, repo)
        await it.stage.wait_plan(plan)
        kept = await it.stage.wait(lambda state: state.tasks[TaskId("p/a")].attempts[0].kept)
        folders = [it.stage.root.results_of(TaskId(name)) for name in ("p/a", "p/b")]
        await wait_until(lambda: all((folder / "result.json").exists() for folder in folders))
        await wait_until((folders[0] / "diff.patch").exists)
    assert (folders[0] / "execution.log").read_text() == "********\n"
    assert "+half" in (folders[0] / "diff.patch").read_text()
    assert kept == "refs/orchestra/results/p/a.1"
    assert file_at(repo, "half", kept) == "half"
    assert "<td>one</td>" in (folders[1] / "test_report.html").read_text()


async def test_work_of_two_machines_that_conflicts_is_done_again_on_top_of_the_other(lab: Lab, repo: Path, tmp_path: Path) -> None:
    change = WAIT + '; sed -i "1s|.*|from $ORCHESTRA_TASK after $(head -1 f.txt)|" f.txt'
    async with fleet(lab, tmp_path, agents=2) as it:
        plan = await it.stage.submit(HEAD + both(change), repo)
        await it.wait_running(2)
        it.open_gate()
        assert await it.stage.wait_plan(plan) == "completed"
        found = sorted((len(task.attempts), task.conflicts) for task in it.state.tasks.values())
        assert found == [(1, 0), (2, 1)]
        again = next(task for task in it.state.tasks.values() if task.conflicts)
        assert "f.txt" in told(it.stage)[0].text
        name = again.id.rpartition("/")[2]
    first = file_at(repo, "f.txt").splitlines()[0]
    assert first in ("from p/a after from p/b after line 0", "from p/b after from p/a after line 0")
    kept = file_at(repo, "f.txt", f"refs/orchestra/results/p/{name}.1").splitlines()[0]
    assert kept == f"from {again.id} after line 0", "the work that conflicted is kept on this machine"


async def test_a_merge_of_work_of_two_machines_is_checked_on_the_machine_of_the_second(lab: Lab, repo: Path, tmp_path: Path) -> None:
    change = (
        f"{WAIT}; mkdir -p below; cd below; if test -e p.a -o -e p.b; then hostname > both; else touch $(echo $ORCHESTRA_TASK | tr / .); fi"
    )
    check = 'if test -e below/p.a && test -e below/p.b; then echo "they quarrel on $(hostname)"; exit 1; fi'
    async with fleet(lab, tmp_path, agents=2) as it:
        plan = await it.stage.submit(HEAD + both(change, check), repo)
        await it.wait_running(2)
        it.open_gate()
        assert await it.stage.wait_plan(plan) == "completed"
        assert sorted((len(task.attempts), task.conflicts) for task in it.state.tasks.values()) == [(1, 0), (2, 1)]
        again = next(task for task in it.state.tasks.values() if task.conflicts)
        assert f"they quarrel on {again.attempts[0].node}" in told(it.stage)[0].text
        await wait_until(lambda: not worktrees(lab))
    assert git(repo, "ls-tree", "--name-only", "orchestra/p/merged:below").count("\n") == 1
    assert "both" in git(repo, "ls-tree", "--name-only", "orchestra/p/merged:below")


async def test_a_task_below_the_top_works_there_on_another_machine_too(lab: Lab, repo: Path, tmp_path: Path) -> None:
    (repo / "below").mkdir()
    (repo / "below" / "x").write_text("x\n")
    git(repo, "add", "below")
    git(repo, "commit", "-qm", "below")
    async with fleet(lab, tmp_path, agents=2) as it:
        plan = await it.stage.submit(HEAD + '  - {id: a, workspace: below, run: "cat x > y"}\n', repo)
        assert await it.stage.wait_plan(plan) == "completed"
    assert file_at(repo, "below/y") == "x"


async def test_a_coordinator_that_ends_while_a_machine_works_merges_it_when_it_is_back(lab: Lab, repo: Path, tmp_path: Path) -> None:
    tasks = f'  - {{id: a, node: mugen, run: "echo a > a"}}\n  - {{id: b, node: majin, run: "{WAIT}; echo b > b"}}\n'
    async with fleet(lab, tmp_path, agents=2, end=False) as it:
        plan = await it.stage.submit(HEAD + tasks, repo)
        await it.stage.wait_status("p/a", "completed")
        await it.wait_running(1)
    it.open_gate()
    async with fleet(lab, tmp_path, agents=None) as again:
        assert await again.stage.wait_plan(plan) == "completed"
        assert [len(task.attempts) for task in again.state.tasks.values()] == [1, 1]
    assert [file_at(repo, name) for name in ("a", "b")] == ["a", "b"]


async def test_a_folder_without_git_is_refused_with_the_reason(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    async with fleet(lab, tmp_path, agents=2) as it:
        await it.stage.submit(HEAD + '  - {id: a, run: "true"}\n', folder)
        task = await it.stage.wait_status("p/a", "failed")
        assert "is no git repository" in task.reason
        assert "isolation: shared" in task.reason
        assert len(task.attempts) == 1, "trying again would not help"


async def test_a_repository_that_lies_on_the_machine_is_worked_on_there(lab: Lab, tmp_path: Path) -> None:
    folder = tmp_path / "own"
    folder.mkdir()  # a plan's folders have to be there on the machine it is submitted on, too
    made = f"git init -q {folder} && git -C {folder} -c user.name=u -c user.email=u@x commit -q --allow-empty -m first"
    lab.nodes["majin"].run(["sh", "-c", f"mkdir -p {folder} && {made}"])
    async with fleet(lab, tmp_path, agents=2) as it:
        plan = await it.stage.submit(HEAD + f'  - {{id: a, node: majin, workspace: {folder}, run: "hostname > where"}}\n', tmp_path)
        assert await it.stage.wait_plan(plan) == "completed"
        assert it.state.tasks[TaskId("p/a")].status is TaskStatus.COMPLETED
    assert lab.nodes["majin"].run(["git", "-C", str(folder), "show", "orchestra/p/merged:where"]).stdout.strip() == "majin"
    assert list(folder.iterdir()) == []


async def test_what_runs_on_machines_is_looked_at_there_and_holds_up_who_declares_it(lab: Lab, repo: Path, tmp_path: Path) -> None:
    tasks = f"""\
  - {{id: a, node: mugen, run: "echo a >> f.txt; {WAIT}"}}
  - {{id: c, node: majin, run: "echo c > c.txt; sed -i 1d f.txt; {WAIT}"}}
  - {{id: first, node: majin, run: "until [ -e ~/first ]; do sleep 0.05; done"}}
  - {{id: b, node: majin, needs: [first], files: [f.txt], run: "tail -1 f.txt > b.txt"}}
"""
    async with fleet(lab, tmp_path, agents=8, flags={"workspaces.look_seconds": "0.1"}) as it:
        plan = await it.stage.submit(HEAD + tasks, repo)
        seen = await it.stage.wait(lambda state: _changed(state, "p/a", "p/c"))
        assert seen == {"p/a": ("f.txt",), "p/c": ("c.txt", "f.txt")}
        assert it.state.touched[TaskId("p/a")][1].shared == {"p/c#1": ("f.txt",)}
        lab.nodes["majin"].run(["touch", "/home/ubuntu/first"])
        await it.stage.wait_status("p/first", "completed")
        held = await it.stage.app.task(TaskParams(task_id="p/b"))
        assert held.attempts == ()
        assert "as that one has changed 'f.txt' already" in held.explain
        it.open_gate()
        assert await it.stage.wait_plan(plan) == "completed"
        assert it.state.touched == {}
    assert file_at(repo, "b.txt") == "a", "it began when the work of the other was in the branch"


def _changed(state: State, *tasks: str) -> dict[str, tuple[str, ...]] | None:
    """Returns what is known to be changed by the tasks, once there is something of each and two of them are told to conflict."""
    found = {str(name): known.paths for name, attempts in state.touched.items() for known in attempts.values() if known.shared}
    return found if found.keys() == set(tasks) else None
