"""Worktrees of attempts: made, collected, merged and let go, in a real repository through a real transport."""

from __future__ import annotations

import asyncio
import hashlib
import os
import subprocess
from pathlib import Path

import msgspec
import pytest

from orchestra.errors import NodeFailed, NotFound, Refused
from orchestra.ids import AttemptId, PlanId, TaskId
from orchestra.nodes.transport import LocalTransport
from orchestra.workspace import (
    BringRequest,
    CheckoutRequest,
    Collected,
    MergeRequest,
    MergeResult,
    PruneRequest,
    TidyRequest,
    Touched,
    WorkFailure,
    WorkRequest,
    Workspace,
)
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import MachineWorkspaces, WorkspaceOptions

P = PlanId("p")
FOREVER_MS = 10**12


def git(folder: Path | str, *arguments: str, data: bytes = b"") -> str:
    """Runs git as the user would, and returns what it printed."""
    names = ["-c", "user.name=u", "-c", "user.email=u@h", "-c", "init.defaultBranch=main"]
    done = subprocess.run(["git", "-C", str(folder), *names, *arguments], input=data, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.decode("utf-8", "replace").strip()


def make_repo(folder: Path, files: dict[str, str] | None = None) -> Path:
    folder.mkdir()
    git(folder, "init", "-q")
    for name, text in (files or {"a.txt": "one\n", "src/b.txt": "two\n"}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "first")
    return folder


def spaces(
    tmp_path: Path, *, owner: str = "0123456789ab", folder: str = "orchestra", program: str = "git", **limits: int
) -> MachineWorkspaces:
    """Returns workspaces whose folder is below `tmp_path`."""
    machine = MachineOptions(folder=str(tmp_path / folder), git=program, timeout_ms=60_000, lock_ms=limits.pop("lock_ms", 5_000))
    options = WorkspaceOptions(machine=machine, owner=owner, disk_free_bytes_min=0)
    return MachineWorkspaces(LocalTransport(), msgspec.structs.replace(options, **limits))


def attempt(task: str = "p/t", number: int = 1) -> AttemptId:
    return AttemptId(TaskId(task), number)


def _wanted(repo: Path, task: str) -> WorkRequest:
    return WorkRequest(repo=str(repo), attempt=attempt(task))


async def made(work: MachineWorkspaces, repo: Path, task: str = "p/t", number: int = 1, base: str = "") -> Workspace:
    (found,) = await work.prepare([WorkRequest(repo=str(repo), attempt=attempt(task, number), base=base)])
    assert isinstance(found, Workspace), found
    return found


async def failed(work: MachineWorkspaces, repo: Path, task: str = "p/t", base: str = "") -> WorkFailure:
    (found,) = await work.prepare([WorkRequest(repo=str(repo), attempt=attempt(task), base=base)])
    assert isinstance(found, WorkFailure), found
    return found


async def merged(work: MachineWorkspaces, workspace: Workspace, head: str, expected: str | None = None) -> MergeResult:
    return await work.merge(MergeRequest(repo=workspace.repo, attempt=workspace.attempt, head=head, expected=expected))


async def change(work: MachineWorkspaces, workspace: Workspace, files: dict[str, str]) -> Collected:
    for name, text in files.items():
        path = at(workspace, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return await work.collect(workspace, f"Work of {workspace.attempt}")


def at(space: Workspace, *names: str) -> Path:
    """Returns a file in a workspace."""
    return Path(space.path, *names)


def read(path: str) -> str:
    return Path(path).read_text()


def started(argv: list[str], folder: str = "/") -> subprocess.Popen[bytes]:
    """Starts a program that waits for input."""
    return subprocess.Popen(argv, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def fingerprint(repo: Path) -> dict[str, str]:
    """All that is the user's: files, index, HEAD, configuration and branches that are not ours."""
    found = {"HEAD": (repo / ".git" / "HEAD").read_text(), "config": (repo / ".git" / "config").read_text()}
    found["refs"] = "\n".join(line for line in git(repo, "for-each-ref").splitlines() if "/orchestra/" not in line)
    for path in sorted([*repo.rglob("*"), repo / ".git" / "index"]):
        if path.is_file() and (".git" not in path.relative_to(repo).parts or (path.name == "index" and path.parent.name == ".git")):
            found[str(path)] = f"{hashlib.sha256(path.read_bytes()).hexdigest()} {path.stat().st_mtime_ns}"
    return found


# --- the ordinary life of an attempt ------------------------------------------------------------------------------------


async def test_an_attempt_from_beginning_to_end(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    (repo / "dirty.txt").write_text("the user's\n")
    (repo / "a.txt").write_text("the user's change\n")
    git(repo, "add", "a.txt")
    before, head = fingerprint(repo), git(repo, "rev-parse", "HEAD")
    work = spaces(tmp_path)
    space = await made(work, repo / "src")
    assert (space.kind, space.base, space.branch, space.fresh) == ("git", head, "refs/heads/orchestra/p/t.1", True)
    assert (space.path, space.cwd) == (f"{tmp_path}/orchestra/worktrees/p/t.1", f"{tmp_path}/orchestra/worktrees/p/t.1/src")
    assert sorted(os.listdir(space.path)) == [".git", "a.txt", "src"]
    assert at(space, "a.txt").read_text() == "one\n"
    assert git(space.path, "status", "--porcelain") == ""
    at(space, "a.txt").unlink()
    found = await change(work, space, {"src/b.txt": "two\nthree\n", "new/c.txt": "c\n"})
    assert (found.created, found.changed, found.deleted) == (("new/c.txt",), ("src/b.txt",), ("a.txt",))
    assert (found.lines_added, found.lines_removed, found.commits, found.skipped, found.notes) == (2, 1, 1, (), ())
    assert b"+three" in found.patch
    assert not found.patch_cut
    assert git(repo, "show", "-s", "--format=%an %cn %s", found.head) == "orchestra orchestra Work of p/t#1"
    assert git(repo, "rev-parse", space.branch) == found.head
    assert git(space.path, "status", "--porcelain") == ""
    assert (await work.collect(space, "again")).head == found.head
    result = await merged(work, space, found.head, expected="")
    assert (result.result, result.trivial, result.head, result.branch) == ("merged", True, found.head, "refs/heads/orchestra/p/merged")
    assert await work.tip(str(repo), P) == found.head
    assert (await merged(work, space, found.head)).result == "nothing"
    assert (await work.release(space.attempt)).removed
    assert not at(space).exists()
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/heads/orchestra", "refs/orchestra") == "refs/heads/orchestra/p/merged"
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 1
    assert fingerprint(repo) == before
    assert (await made(work, repo, "p/u")).base == found.head


async def test_what_a_folder_is(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    (repo / "new").write_text("x")
    hook = repo / ".git" / "hooks" / "pre-commit"
    hook.write_text("#!/bin/sh\n")
    git(repo, "config", "filter.x.clean", "touch /nowhere")
    before = fingerprint(repo)
    facts = await spaces(tmp_path).inspect(str(repo / "src"))
    assert (facts.is_git, facts.toplevel, facts.prefix, facts.branch) == (True, str(repo), "src", "refs/heads/main")
    assert (facts.files, facts.dirty_files, facts.hooks, facts.programs) == (2, 1, ("pre-commit",), ("filter.x.clean",))
    assert facts.head == git(repo, "rev-parse", "HEAD")
    assert fingerprint(repo) == before
    (tmp_path / "plain").mkdir()
    assert not (await spaces(tmp_path).inspect(str(tmp_path / "plain"))).is_git
    with pytest.raises(NotFound):
        await spaces(tmp_path).inspect(str(tmp_path / "nothing"))


async def test_many_at_once_each_with_its_own_outcome(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    wanted = [WorkRequest(repo=str(repo), attempt=attempt(f"p/t{number}")) for number in range(12)]
    wanted.insert(5, WorkRequest(repo=str(repo), attempt=attempt("p/bad"), base="1" * 40))
    halves = await asyncio.gather(work.prepare(wanted[:7]), work.prepare(wanted[7:]))
    found = [*halves[0], *halves[1]]
    assert [each.attempt for each in found] == [each.attempt for each in wanted]
    assert [type(each) is Workspace for each in found].count(True) == 12
    assert isinstance(found[5], WorkFailure)
    assert found[5].code == "not-found"
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 13


async def test_asking_again_returns_what_is_there(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    first = await made(work, repo)
    at(first, "a.txt").write_text("at work\n")
    again = await made(work, repo)
    assert (again.fresh, again.base, again.path) == (False, first.base, first.path)
    assert at(first, "a.txt").read_text() == "at work\n"
    git(repo, "commit", "-q", "--allow-empty", "-m", "second")
    assert (await failed(work, repo, base=git(repo, "rev-parse", "HEAD"))).code == "refused"


# --- merging ------------------------------------------------------------------------------------------------------------


async def test_what_belongs_to_no_plan_begins_with_head_once_that_has_all_of_it(tmp_path: Path) -> None:
    repo, work = make_repo(tmp_path / "repo"), spaces(tmp_path)
    first = await made(work, repo, "one")
    await merged(work, first, (await change(work, first, {"one.txt": "1"})).head)
    tip = git(repo, "rev-parse", "orchestra/_/merged")
    (repo / "mine.txt").write_text("not seen while the branch has more than HEAD")
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "mine")
    assert (await made(work, repo, "two")).base == tip
    brought = await work.bring(BringRequest(repo=str(repo), plan=PlanId("_"), branch="main"))
    assert brought.result == "merged"
    third = await made(work, repo, "three")
    assert third.base == git(repo, "rev-parse", "HEAD") == brought.head
    assert await work.tip(str(repo), PlanId("_")) == tip
    assert (await merged(work, third, (await change(work, third, {"three.txt": "3"})).head, tip)).result == "merged"
    assert git(repo, "show", "orchestra/_/merged:mine.txt").startswith("not seen")
    assert (await made(work, repo, "p/one")).base == brought.head
    planned = await change(work, await made(work, repo, "p/one"), {"p.txt": "p"})
    assert (await work.merge(MergeRequest(repo=str(repo), attempt=attempt("p/one"), head=planned.head))).result == "merged"
    git(repo, "merge", "-q", "--no-ff", "-m", "take it", "orchestra/p/merged")
    assert (await made(work, repo, "p/two")).base == planned.head, "a plan goes on from its own branch"


async def test_a_real_merge_is_told_from_a_trivial_one(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    first, second = await change(work, one, {"one.txt": "1\n"}), await change(work, two, {"two.txt": "2\n"})
    assert (await merged(work, one, first.head)).trivial
    stale = await merged(work, two, second.head, expected="")
    assert (stale.result, stale.old) == ("stale", first.head)
    result = await merged(work, two, second.head, expected=first.head)
    assert (result.result, result.trivial, result.old) == ("merged", False, first.head)
    assert git(repo, "show", "-s", "--format=%P", result.head).split() == [first.head, second.head]
    assert git(repo, "ls-tree", "--name-only", "-r", result.head).split() == ["a.txt", "one.txt", "src/b.txt", "two.txt"]
    assert (await work.release(two.attempt)).removed
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/heads/orchestra/p/two.1") == ""


async def test_a_merge_that_is_held_moves_nothing_until_its_commit_is_proven(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    names = ("p/one", "p/two", "p/three")
    places = [await made(work, repo, name) for name in names]
    heads = [(await change(work, place, {f"{number}.txt": "x\n"})).head for number, place in enumerate(places)]
    asked = [MergeRequest(repo=str(repo), attempt=place.attempt, head=head, hold=True) for place, head in zip(places, heads, strict=True)]
    assert (await work.merge(asked[0])).result == "merged", "what was verified is not verified again"
    held = await work.merge(asked[1])
    assert (held.result, held.old, await work.tip(str(repo), P)) == ("held", heads[0], heads[0])
    assert (await work.merge(asked[2])).result == "held"
    proven = msgspec.structs.replace(asked[1], hold=False, expected=held.old, proven=held.head)
    foreign = msgspec.structs.replace(proven, proven=heads[1])
    assert ((await work.merge(foreign)).result, await work.tip(str(repo), P)) == ("stale", heads[0]), "only the commit that was held"
    result = await work.merge(proven)
    assert (result.result, result.head, await work.tip(str(repo), P)) == ("merged", held.head, held.head)
    assert (await work.merge(proven)).result == "stale"
    assert (await work.merge(msgspec.structs.replace(asked[1], hold=True))).result == "nothing", "asked again after a crash"


async def test_a_merge_whose_files_are_those_that_were_verified_is_trivial(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    first, second = await change(work, one, {"n": "n\n"}), await change(work, two, {"n": "n\n", "m": "m\n"})
    await merged(work, one, first.head)
    assert (await merged(work, two, second.head)).trivial


async def test_a_checkout_for_checks_is_made_anew_each_time_and_leaves_nothing(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo / "src")
    head = (await change(work, space, {"src/c.txt": "c\n"})).head
    asked = CheckoutRequest(repo=str(repo / "src"), attempt=space.attempt, commit=head)
    found = await work.checkout(asked)
    assert (at(found, "src/c.txt").read_text(), found.cwd, found.path != space.path) == ("c\n", f"{found.path}/src", True)
    at(found, "left").write_text("by a check")
    again = await work.checkout(asked)
    assert (again.path, at(again, "left").exists()) == (found.path, False)
    at(again, "left").write_text("by a check")
    report = await work.tidy(TidyRequest(quota_bytes=0, age_ms=FOREVER_MS, live=(space.attempt,), dry_run=False))
    assert [entry.action for entry in report.entries] == ["keep", "keep"], "its attempt is not over"
    await work.drop_checkout(space.attempt)
    await work.drop_checkout(space.attempt)
    assert not at(found).exists()
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/heads/orchestra", "refs/orchestra") == space.branch
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 2


async def test_tidying_removes_a_checkout_that_was_left(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    found = await work.checkout(CheckoutRequest(repo=str(repo), attempt=attempt(), commit=git(repo, "rev-parse", "HEAD")))
    at(found, "left").write_text("by a check")
    (entry,) = (await work.tidy(TidyRequest(quota_bytes=FOREVER_MS, age_ms=0, dry_run=False))).entries
    assert (entry.action, entry.kept, at(found).exists()) == ("remove", "", False)
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/heads/orchestra", "refs/orchestra") == ""


async def test_a_conflict_shows_both_sides_and_changes_nothing(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"a.txt": "one\n", "gone.txt": "x\n"})
    work = spaces(tmp_path, conflict_bytes_max=200)
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    at(one, "gone.txt").unlink()
    first = await change(work, one, {"a.txt": "uno\n"})
    second = await change(work, two, {"a.txt": "eins\n" * 100, "gone.txt": "y\n", "fine.txt": "f\n"})
    await merged(work, one, first.head)
    result = await merged(work, two, second.head)
    assert (result.result, result.conflict_files, result.head) == ("conflict", 2, first.head)
    text, gone = result.conflicts
    assert (text.path, gone.path) == ("a.txt", "gone.txt")
    assert text.base is not None
    assert text.ours is not None
    assert text.theirs is not None
    assert text.merged is not None
    assert (text.base.text, text.ours.text, text.theirs.cut) == ("one\n", "uno\n", True)
    assert "<<<<<<<" in text.merged.text
    assert (gone.ours, gone.base is not None) == (None, True)
    assert any("CONFLICT (content)" in line for line in result.messages)
    assert await work.tip(str(repo), P) == first.head
    assert (await work.release(two.attempt)).removed
    assert git(repo, "rev-parse", two.branch) == second.head


async def test_attributes_of_the_branch_hold_in_a_merge(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"LOG": "0\n", ".gitattributes": "LOG merge=union\n"})
    work = spaces(tmp_path)
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    first, second = await change(work, one, {"LOG": "0\none\n"}), await change(work, two, {"LOG": "0\ntwo\n"})
    await merged(work, one, first.head)
    result = await merged(work, two, second.head)
    assert result.result == "merged"
    assert git(repo, "show", f"{result.head}:LOG").split() == ["0", "one", "two"]


async def test_a_plan_branch_that_somebody_looks_at_is_not_moved_under_them(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    found = await change(work, space, {"n": "n\n"})
    git(repo, "branch", "orchestra/p/merged", "main")
    git(repo, "checkout", "-q", "orchestra/p/merged")
    with pytest.raises(Refused, match="is checked out in") as caught:
        await merged(work, space, found.head)
    assert "git switch --detach" in caught.value.hint


# --- into a branch of the user's ----------------------------------------------------------------------------------------


async def planned(work: MachineWorkspaces, repo: Path, files: dict[str, str]) -> str:
    """Returns the head of a plan's branch with these files."""
    space = await made(work, repo)
    head = (await change(work, space, files)).head
    await merged(work, space, head)
    return head


def into(repo: Path, branch: str = "main") -> BringRequest:
    return BringRequest(repo=str(repo), plan=P, branch=branch)


async def test_a_plan_comes_into_a_branch_that_is_not_checked_out(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    git(repo, "branch", "next")
    work = spaces(tmp_path)
    head = await planned(work, repo, {"n.txt": "n\n"})
    (repo / "a.txt").write_text("the user's change\n")
    before = fingerprint(repo)
    found = await work.bring(into(repo, "next"))
    assert (found.result, found.forward, found.head, found.checkout) == ("merged", True, head, "")
    assert git(repo, "rev-parse", "next") == head
    git(repo, "branch", "-f", "next", "main")
    assert fingerprint(repo) == before
    assert (await work.bring(into(repo, "next"))).result == "merged"
    assert (await work.bring(into(repo, "next"))).result == "nothing"


async def test_a_clean_checkout_of_the_branch_follows(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    head = await planned(work, repo, {"n.txt": "n\n", "src/b.txt": "changed\n"})
    (repo / "mine.txt").write_text("mine\n")
    git(repo, "add", "mine.txt")
    git(repo, "commit", "-qm", "meanwhile")
    old = git(repo, "rev-parse", "HEAD")
    (repo / "untracked").write_text("stays\n")
    found = await work.bring(into(repo))
    assert (found.result, found.forward, found.checkout) == ("merged", False, str(repo))
    assert git(repo, "show", "-s", "--format=%P", "main").split() == [old, head]
    assert git(repo, "status", "--porcelain") == "?? untracked"
    assert [(repo / name).read_text() for name in ("n.txt", "src/b.txt", "mine.txt")] == ["n\n", "changed\n", "mine\n"]


@pytest.mark.parametrize("trouble", ["changed", "staged", "in the way", "ours", "none", "merging", "conflict"])
async def test_what_stands_against_it_leaves_everything_as_it_is(tmp_path: Path, trouble: str) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    await planned(work, repo, {"n.txt": "n\n", "a.txt": "the plan's\n"})
    branch, expected = "main", Refused
    if trouble in ("changed", "staged", "conflict"):
        (repo / ("a.txt" if trouble == "conflict" else "src/b.txt")).write_text("the user's\n")
    if trouble == "staged":
        git(repo, "add", "-A")
    elif trouble == "conflict":
        git(repo, "commit", "-qam", "meanwhile")
    elif trouble == "in the way":
        (repo / "n.txt").write_text("the user's\n")
    elif trouble == "ours":
        branch = "orchestra/p/merged"
    elif trouble == "none":
        branch, expected = "nowhere", NotFound
    elif trouble == "merging":
        (repo / ".git" / "MERGE_HEAD").write_text(git(repo, "rev-parse", "HEAD"))
    before = fingerprint(repo)
    if trouble == "conflict":
        found = await work.bring(into(repo))
        assert (found.result, found.files) == ("conflict", ("a.txt",))
    else:
        with pytest.raises(expected) as caught:
            await work.bring(into(repo, branch))
        assert caught.value.hint
    assert {name: text.split(" ")[0] for name, text in fingerprint(repo).items() if not name.endswith("/index")} == {
        name: text.split(" ")[0] for name, text in before.items() if not name.endswith("/index")
    }


async def test_a_checkout_goes_back_when_the_branch_cannot_move(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, lock_ms=100)
    await planned(work, repo, {"n.txt": "n\n", "a.txt": "the plan's\n"})
    lock = repo / ".git" / "refs" / "heads" / "main.lock"
    lock.write_text("")
    with pytest.raises(NodeFailed, match="lock"):
        await work.bring(into(repo))
    lock.unlink()
    assert git(repo, "status", "--porcelain") == ""
    assert ((repo / "a.txt").read_text(), (repo / "n.txt").exists()) == ("one\n", False)
    assert (await work.bring(into(repo))).result == "merged"


# --- letting go ---------------------------------------------------------------------------------------------------------


async def test_nothing_that_is_not_merged_is_lost(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    await change(work, space, {"kept.txt": "committed\n"})
    at(space, "late.txt").write_text("uncommitted\n")
    with pytest.raises(Refused, match="not collected"):
        await work.release(space.attempt)
    looked = await work.salvage(space.attempt)
    assert (looked.removed, looked.kept) == (False, "refs/orchestra/salvage/p/t.1")
    gone = await work.discard(space.attempt)
    assert gone.removed
    assert git(repo, "show", f"{gone.kept}:late.txt") == "uncommitted"
    assert git(repo, "show", f"{gone.kept}:kept.txt") == "committed"
    assert git(repo, "for-each-ref", "refs/heads/orchestra") == ""
    assert not (await work.discard(space.attempt)).removed


async def test_a_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    with started(["cat"], space.path) as child:
        with pytest.raises(Refused, match=f"process {child.pid} works in"):
            await work.discard(space.attempt)
        report = await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, dry_run=False))
        assert report.entries[0].why == f"process {child.pid} works in it"
        child.communicate(b"")
    assert (await work.discard(space.attempt)).removed


async def test_tidying_looks_first_and_keeps_what_is_not_merged(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    clean, committed, dirty, live = [await made(work, repo, f"p/{name}") for name in ("clean", "committed", "dirty", "live")]
    head = (await change(work, committed, {"c": "c\n"})).head
    at(dirty, "d").write_text("d\n")
    young = await work.tidy(TidyRequest(quota_bytes=FOREVER_MS, age_ms=FOREVER_MS))
    assert {entry.action for entry in young.entries} == {"keep"}
    wanted = TidyRequest(quota_bytes=0, age_ms=FOREVER_MS, live=(live.attempt,))
    dry = await work.tidy(wanted)
    assert [(entry.task, entry.action) for entry in dry.entries if entry.action == "keep"] == [("live.1", "keep")]
    assert dry.freed_bytes > 0
    assert all(at(each).is_dir() for each in (clean, committed, dirty, live))
    done = await work.tidy(TidyRequest(quota_bytes=0, age_ms=FOREVER_MS, live=(live.attempt,), dry_run=False))
    assert [at(each).is_dir() for each in (clean, committed, dirty, live)] == [False, False, False, True]
    assert git(repo, "rev-parse", committed.branch) == head
    (kept,) = [entry.kept for entry in done.entries if entry.kept]
    assert git(repo, "show", f"{kept}:d") == "d"


# --- several at one repository ------------------------------------------------------------------------------------------


async def test_what_was_made_just_now_stays(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    await made(work, repo)
    (entry,) = (await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, fresh_ms=FOREVER_MS, dry_run=False))).entries
    assert (entry.action, entry.why) == ("keep", "it was made just now")


async def test_refs_of_unmerged_work_are_forgotten_by_age_when_asked_and_only_our_own(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work, other = spaces(tmp_path), spaces(tmp_path, owner="ba9876543210", folder="other")
    for owner, task in ((work, "p/t"), (work, "q/t"), (other, "r/t")):
        space = await made(owner, repo, task)
        at(space, "n").write_text("not merged\n")
        assert (await owner.discard(space.attempt)).kept
    refs = [f"refs/orchestra/salvage/{plan}/t.1" for plan in "pqr"]
    commits = {ref: git(repo, "rev-parse", ref) for ref in refs}
    asked = PruneRequest(repos=((str(repo), False), (str(repo / "src"), False), (str(tmp_path / "gone"), False)), age_ms=FOREVER_MS)
    assert {(each.ref, each.action) for each in await work.prune(asked)} == {(ref, "keep") for ref in refs}
    old = msgspec.structs.replace(asked, age_ms=0, live=(PlanId("q"),))
    dry = await work.prune(old)
    assert [(each.ref, each.action, each.why) for each in dry] == [
        (refs[0], "remove", "old"),
        (refs[1], "keep", "its plan is not over"),
        (refs[2], "keep", "another orchestra may have put it there"),
    ]
    assert {each.ref: each.commit for each in dry} == commits
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/orchestra").splitlines() == refs
    assert [each.action for each in await work.prune(msgspec.structs.replace(old, dry_run=False))] == ["remove", "keep", "keep"]
    assert git(repo, "for-each-ref", "--format=%(refname)", "refs/orchestra").splitlines() == refs[1:]
    git(repo, "update-ref", refs[0], commits[refs[0]])  # as long as git has it, it can be had back


async def test_two_orchestras_with_the_same_plan_do_not_meet(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    mine, other = spaces(tmp_path), spaces(tmp_path, owner="ffffffffffff", folder="other")
    one, two = await made(mine, repo), await made(other, repo)
    assert (one.branch, two.branch) == ("refs/heads/orchestra/p/t.1", "refs/heads/orchestra/p.ffffffff/t.1")
    first, second = await change(mine, one, {"x": "mine\n"}), await change(other, two, {"x": "other\n"})
    assert (await merged(mine, one, first.head)).result == "merged"
    assert (await merged(other, two, second.head)).result == "merged"
    assert git(repo, "show", "orchestra/p.ffffffff/merged:x") == "other"


async def test_merges_at_the_same_time_all_come_in(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, calls_max=8, lock_ms=30_000)
    places = [await made(work, repo, f"p/t{number}") for number in range(4)]
    found = [await change(work, place, {f"{place.attempt.task}.txt": "x\n"}) for place in places]
    results = await asyncio.gather(
        *(merged(work, place, each.head) for place, each in zip(places, found, strict=True)), work.prepare([_wanted(repo, "p/late")])
    )
    assert [each.result for each in results[:-1] if isinstance(each, MergeResult)] == ["merged"] * 4
    assert git(repo, "ls-tree", "-r", "--name-only", "orchestra/p/merged").split()[1:5] == [f"p/t{number}.txt" for number in range(4)]
    assert git(repo, "rev-list", "--count", "orchestra/p/merged") == "8"


async def test_who_holds_the_lock_is_told(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, lock_ms=100)
    space = await made(work, repo)
    lock = repo / ".git" / "orchestra" / "lock"
    script = 'import fcntl,sys\nf=open(sys.argv[1],\'r+\')\nfcntl.flock(f,2)\nf.write(\'{"pid": 7, "what": "merge"}\')\nf.flush()\nprint(flush=True)\ninput()'
    with started(["python3", "-c", script, str(lock)]) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(NodeFailed, match=r"process 7 \(merge\) holds the lock"):
            await merged(work, space, space.base)
        holder.communicate(b"\n")
    assert (await merged(work, space, space.base)).result == "merged"


async def test_what_pythons_tools_leave_behind_is_nobodys_work_unless_the_repository_has_it(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"kept/__pycache__/old.pyc": "old"})
    work = spaces(tmp_path)
    space = await made(work, repo)
    left = {"a.py": "x = 1\n", "__pycache__/a.pyc": "a", "sub/.pytest_cache/v": "v", "kept/__pycache__/old.pyc": "new"}
    found = await change(work, space, left)
    assert (found.created, found.changed) == (("a.py",), ("kept/__pycache__/old.pyc",))
    (seen,) = await work.touched([WorkRequest(repo=str(repo), attempt=space.attempt)])
    assert isinstance(seen, Touched)
    assert "__pycache__/a.pyc" not in seen.paths
