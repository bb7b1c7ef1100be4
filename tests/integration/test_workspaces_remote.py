"""Repositories of the control machine on a node: brought there once, worked on, and what was done comes home. Over SSH only the transport is another."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Sequence
from pathlib import Path

import msgspec
import pytest

import orchestra.workspaces.remote as remote
from orchestra.errors import NodeFailed
from orchestra.ids import AttemptId
from orchestra.nodes.transport import Channel, LocalTransport
from orchestra.workspace import CheckoutRequest, MergeRequest, PruneRequest, TidyRequest, WorkFailure, WorkRequest, Workspace
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import WorkspaceOptions
from orchestra.workspaces.remote import RemoteWorkspaces, Site
from orchestra.workspaces.transfer import End, Transferred, send_repo
from tests.integration.test_workspaces import P, attempt, git, make_repo


class Counting(LocalTransport):
    """Counts the transfers that pass."""

    def __init__(self) -> None:
        super().__init__()
        self.transfers = 0

    async def open(self, argv: Sequence[str]) -> Channel:
        self.transfers += 1
        return await super().open(argv)


def reached(tmp_path: Path, transport: LocalTransport | None = None, owner: str = "0123456789ab") -> RemoteWorkspaces:
    """Returns the workspaces of a node whose home is another folder."""
    options = WorkspaceOptions(machine=MachineOptions(folder=str(tmp_path / "here")), owner=owner, disk_free_bytes_min=0)
    there = msgspec.structs.replace(options, machine=MachineOptions(folder="~/node"))
    return RemoteWorkspaces(Site(LocalTransport(), options), Site(transport or LocalTransport(), there))


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    return folder


def wanted(folder: Path, name: AttemptId | None = None, base: str = "") -> WorkRequest:
    return WorkRequest(repo=str(folder), attempt=name or attempt(), base=base, here=True)


async def made(work: RemoteWorkspaces, request: WorkRequest) -> Workspace:
    (found,) = await work.prepare([request])
    assert isinstance(found, Workspace), found
    return found


async def failed(work: RemoteWorkspaces, request: WorkRequest) -> WorkFailure:
    (found,) = await work.prepare([request])
    assert isinstance(found, WorkFailure), found
    return found


def inside(space: Workspace, *names: str) -> Path:
    """Returns a file below the folder where the agent starts."""
    return Path(space.cwd, *names)


async def done(work: RemoteWorkspaces, space: Workspace, name: str, text: str) -> str:
    """Writes a file where the agent starts, and collects; returns the commit."""
    inside(space, name).write_text(text)
    return (await work.collect(space, f"Work of {space.attempt}")).head


async def merged(work: RemoteWorkspaces, space: Workspace, head: str) -> str:
    result = await work.merge(MergeRequest(repo=space.repo, attempt=space.attempt, head=head, here=space.here))
    return result.result


async def test_work_on_a_node_comes_into_the_users_repository(tmp_path: Path, home: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    (repo / "mine").write_text("not committed")
    before = git(repo, "rev-parse", "HEAD")
    work = reached(tmp_path)
    first = await made(work, wanted(repo, attempt("p/a")))
    assert first.path.startswith(str(home / "node"))
    assert (first.base, first.cwd, first.repo, first.fresh) == (before, first.path, str(repo), True)
    head = await done(work, first, "n.txt", "from there\n")
    assert await merged(work, first, head) == "merged"
    assert git(repo, "show", "orchestra/p/merged:n.txt") == "from there"
    assert git(repo, "rev-parse", "refs/orchestra/results/p/a.1") == head
    second = await made(work, wanted(repo, attempt("p/b")))
    assert (second.base, inside(second, "n.txt").read_text()) == (head, "from there\n")
    assert (await work.collect(second, "nothing")).head == head
    assert await merged(work, second, head) == "nothing"
    assert (await work.discard(first.attempt)).removed
    assert (await work.release(second.attempt)).removed
    assert await work.tip(str(repo), P) == head
    assert (git(repo, "rev-parse", "HEAD"), git(repo, "status", "--short")) == (before, "?? mine")
    assert (await work.inspect(str(repo))).head == before


async def test_what_belongs_to_no_plan_begins_with_head_there_too(tmp_path: Path) -> None:
    repo, work = make_repo(tmp_path / "repo"), reached(tmp_path)
    first = await made(work, wanted(repo, attempt("one")))
    head = await done(work, first, "one.txt", "1")
    assert await merged(work, first, head) == "merged"
    assert (await made(work, wanted(repo, attempt("two")))).base == head
    git(repo, "merge", "-q", "--no-ff", "-m", "take it", "orchestra/_/merged")
    assert (await made(work, wanted(repo, attempt("three")))).base == git(repo, "rev-parse", "HEAD") != head


async def test_two_askings_at_once_send_once(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    transport = Counting()
    work = reached(tmp_path, transport)
    names = [[attempt(f"p/t{4 * part + number}") for number in range(4)] for part in range(3)]
    groups = await asyncio.gather(*(work.prepare([wanted(repo, name) for name in group]) for group in names))
    assert all(isinstance(each, Workspace) and each.fresh for group in groups for each in group)
    assert transport.transfers == 1


async def test_after_a_restart_a_workspace_is_found_also_when_the_plan_went_on(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    before = reached(tmp_path)
    a, b = await made(before, wanted(repo, attempt("p/a"))), await made(before, wanted(repo, attempt("p/b")))
    inside(b, "b.txt").write_text("kept\n")
    assert await merged(before, a, await done(before, a, "a.txt", "changed\n")) == "merged"
    again = await made(before, wanted(repo, attempt("p/b")))
    after = reached(tmp_path)
    found = await made(after, wanted(repo, attempt("p/b")))
    assert (found, again) == (msgspec.structs.replace(b, fresh=False),) * 2
    assert (await failed(after, wanted(repo, attempt("p/b"), base=git(repo, "rev-parse", "orchestra/p/merged")))).code == "refused"
    head = (await after.collect(found, "b")).head
    assert await merged(after, found, head) == "merged"
    assert git(repo, "show", "orchestra/p/merged:b.txt") == "kept"


async def test_a_folder_below_the_top_is_where_the_agent_starts_there_too(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = reached(tmp_path)
    space = await made(work, wanted(repo / "src"))
    assert (space.cwd, inside(space, "b.txt").read_text()) == (f"{space.path}/src", "two\n")
    git(repo, "rm", "-rq", "--cached", "src")
    git(repo, "commit", "-qm", "no src")
    git(repo, "add", "src")
    bare = await made(work, wanted(repo / "src", attempt("p/u")))
    assert list(inside(bare).iterdir()) == []
    head = await done(work, space, "n", "n\n")
    assert git(repo, "show", f"{head}:src/n") == "n"
    top = await made(work, wanted(repo, attempt("p/v")))
    assert len(list((tmp_path / "home" / "node" / "repos").iterdir())) == 1, "one copy, whichever folder a task names"
    assert top.cwd == top.path


async def test_what_is_no_repository_is_refused_with_what_to_do(tmp_path: Path) -> None:
    plain, empty, repo = tmp_path / "plain", tmp_path / "empty", make_repo(tmp_path / "repo")
    plain.mkdir()
    empty.mkdir()
    git(empty, "init", "-q")
    work = reached(tmp_path)
    wants = [
        wanted(plain, attempt("p/a")),
        wanted(repo, attempt("p/b")),
        wanted(empty, attempt("p/c")),
        wanted(tmp_path / "gone", attempt("p/d")),
    ]
    no_git, good, no_commit, gone = await work.prepare(wants)
    assert isinstance(good, Workspace)
    assert isinstance(no_git, WorkFailure)
    assert isinstance(no_commit, WorkFailure)
    assert isinstance(gone, WorkFailure)
    assert (no_git.code, no_commit.code, gone.code) == ("refused", "refused", "not-found")
    assert "is no git repository" in no_git.message
    assert "has no commit" in no_commit.message
    assert "isolation: shared" in no_git.hint
    git(plain, "init", "-q")
    git(plain, "commit", "-q", "--allow-empty", "-m", "first")
    assert isinstance((await work.prepare(wants[:1]))[0], Workspace), "mended, it works at once"


async def test_a_repository_of_the_node_itself_stays_there(tmp_path: Path, home: Path) -> None:
    repo = make_repo(home / "repo")
    transport = Counting()
    work = reached(tmp_path, transport)
    space = await made(work, WorkRequest(repo="~/repo", attempt=attempt()))
    head = await done(work, space, "n", "n\n")
    assert await merged(work, space, head) == "merged"
    assert git(repo, "show", "orchestra/p/merged:n") == "n"
    assert transport.transfers == 0


async def test_a_node_that_lost_its_copy_gets_it_again(tmp_path: Path, home: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = reached(tmp_path)
    await made(work, wanted(repo, attempt("p/a")))
    shutil.rmtree(home / "node")
    space = await made(work, wanted(repo, attempt("p/b")))
    assert space.fresh
    assert await merged(work, space, await done(work, space, "n", "n\n")) == "merged"
    assert (await made(work, wanted(repo, attempt("p/a")))).fresh, "what was lost with it is not there"
    (mirror,) = (home / "node" / "repos").iterdir()
    shutil.rmtree(mirror)
    mirror.mkdir()
    assert "no repository any more" in (await failed(work, wanted(repo, attempt("p/c"), base=space.base))).message
    mirror.rmdir()
    assert (await made(work, wanted(repo, attempt("p/c")))).fresh


async def test_a_result_of_another_orchestra_with_the_same_name_stays(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    git(repo, "update-ref", "refs/orchestra/results/p/t.1", "HEAD")
    before = git(repo, "rev-parse", "HEAD")
    work = reached(tmp_path)
    space = await made(work, wanted(repo))
    head = await done(work, space, "n", "n\n")
    assert (await work.collect(space, "again")).head == head
    assert git(repo, "rev-parse", "refs/orchestra/results/p/t.1") == before
    assert git(repo, "rev-parse", f"refs/orchestra/results/p/t.1-{head[:12]}") == head
    assert await merged(work, space, head) == "merged"


async def test_a_transfer_that_broke_off_is_tried_again_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make_repo(tmp_path / "repo")
    breaks = [2]

    async def breaking(source: End, target: End, refs: dict[str, str]) -> Transferred:
        if breaks[0]:
            breaks[0] -= 1
            raise NodeFailed("the bundle broke off")
        return await send_repo(source, target, refs)

    monkeypatch.setattr(remote, "send_repo", breaking)
    work = reached(tmp_path)
    assert (await failed(work, wanted(repo))).code == "failed"
    breaks[0] = 1
    assert (await made(work, wanted(repo))).fresh


async def test_a_merge_is_checked_where_the_work_was_done(tmp_path: Path, home: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = reached(tmp_path)
    one, two = await made(work, wanted(repo / "src", attempt("p/a"))), await made(work, wanted(repo / "src", attempt("p/b")))
    assert await merged(work, one, await done(work, one, "a.new", "a")) == "merged"
    asked = MergeRequest(repo=two.repo, attempt=two.attempt, head=await done(work, two, "b.new", "b"), hold=True, here=True)
    held = await work.merge(asked)
    assert held.result == "held"
    seen = await work.checkout(CheckoutRequest(repo=two.repo, attempt=two.attempt, commit=held.head, here=True))
    assert seen.path.startswith(str(home / "node"))
    assert (inside(seen, "a.new").read_text(), inside(seen, "b.new").read_text()) == ("a", "b")
    await work.drop_checkout(two.attempt)
    assert not inside(seen).exists()
    result = await work.merge(msgspec.structs.replace(asked, hold=False, expected=held.old, proven=held.head))
    assert (result.result, git(repo, "rev-parse", "orchestra/p/merged")) == ("merged", held.head)


async def test_workspaces_and_refs_of_a_node_are_let_go_by_age(tmp_path: Path, home: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = reached(tmp_path)
    space = await made(work, wanted(repo))
    head = await done(work, space, "n.txt", "not merged")
    inside(space, "more").write_text("not collected")
    (entry,) = (await work.tidy(TidyRequest(quota_bytes=1 << 40, age_ms=0, dry_run=False))).entries
    assert (entry.action, entry.kept, inside(space).exists()) == ("remove", "refs/orchestra/salvage/p/t.1", False)
    asked = PruneRequest(repos=((str(repo), True), (str(tmp_path / "gone"), True)), age_ms=0)
    there = [(each.ref, each.action, each.here) for each in await work.prune(asked)]
    assert there == [
        ("refs/orchestra/salvage/p/t.1", "remove", False),
        ("refs/orchestra/results/p/t.1", "keep", True),
    ], "what came home is kept while nobody knows whose plan it is"
    await work.merge(MergeRequest(repo=str(repo), attempt=space.attempt, head=head, here=True))
    assert {each.action for each in await work.prune(msgspec.structs.replace(asked, dry_run=False))} == {"remove"}
    assert git(repo, "for-each-ref", "refs/orchestra") == ""
    assert git(next((home / "node" / "repos").iterdir()), "for-each-ref", "refs/orchestra") == ""
