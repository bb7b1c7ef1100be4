"""A worktree that begins with what an earlier attempt did: the next one repairs that instead of beginning anew."""

from __future__ import annotations

import asyncio
from pathlib import Path

import msgspec
import pytest

from orchestra.ids import AttemptId
from orchestra.nodes.transport import LocalTransport
from orchestra.workspace import Collected, Repair, WorkRequest, Workspace, Workspaces
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import WorkspaceOptions
from orchestra.workspaces.remote import RemoteWorkspaces, Site
from tests.integration.test_workspaces import at, attempt, change, git, made, make_repo, merged, read, spaces

FILES = {"a.txt": "one\n", "b.txt": "two\n", "c.txt": "three\n"}


async def repairing(work: Workspaces, space: Workspace, kept: str | None = None, *, number: int = 2, here: bool = False) -> Workspace:
    """The place of a further attempt at what was done in another one."""
    wanted = Repair(space.attempt, space.base, kept)
    name = AttemptId(space.attempt.task, number)
    (found,) = await work.prepare([WorkRequest(repo=space.repo, attempt=name, here=here, repairs=wanted)])
    assert isinstance(found, Workspace), found
    return found


async def half_done(work: Workspaces, space: Workspace) -> None:
    """Some of it is committed, some is not; a file is gone, and one is ignored."""
    at(space, ".gitignore").write_text("cache\n")
    at(space, "a.txt").write_text("one and a half\n")
    git(space.path, "add", "-A")
    git(space.path, "commit", "-qm", "by the agent")
    at(space, "b.txt").unlink()
    at(space, "new").mkdir()
    at(space, "new", "d.txt").write_text("four\n")
    at(space, "cache").write_text("not part of the work\n")


def looks(space: Workspace) -> dict[str, str]:
    return {str(path.relative_to(space.path)): path.read_text() for path in sorted(Path(space.path).rglob("*.txt"))}


LEFT = {"a.txt": "one and a half\n", "c.txt": "three\n", "new/d.txt": "four\n"}


def work_of(found: Collected) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    return found.created, found.changed, found.deleted


@pytest.mark.parametrize("after", ["still there", "let go", "let go and told"])
async def test_it_begins_as_the_earlier_one_was_left_and_what_both_did_counts(tmp_path: Path, after: str) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first, other = await made(work, repo), await made(work, repo, "p/other")
    await half_done(work, first)
    await merged(work, other, (await change(work, other, {"o.txt": "of another task\n"})).head)
    kept = (await work.discard(first.attempt)).kept if after != "still there" else None
    second = await repairing(work, first, kept if after == "let go and told" else None)
    assert second.repairs
    assert second.base == first.base, "what it is compared with does not move on, or the others' work would seem to be undone"
    assert looks(second) == LEFT
    assert git(second.path, "status", "--short").splitlines() == ["M a.txt", " D b.txt", "?? .gitignore", "?? new/"]
    assert not at(second, "cache").exists()
    found = await change(work, second, {"new/d.txt": "four, mended\n"})
    assert work_of(found) == ((".gitignore", "new/d.txt"), ("a.txt",), ("b.txt",))
    assert found.base == first.base
    result = await merged(work, second, found.head)
    assert (result.result, result.trivial) == ("merged", False)
    branch = "orchestra/p/merged"
    assert git(repo, "ls-tree", "-r", "--name-only", branch).splitlines() == [".gitignore", "a.txt", "c.txt", "new/d.txt", "o.txt"]
    assert git(repo, "show", f"{branch}:new/d.txt") == "four, mended"


async def test_of_a_chain_of_attempts_nothing_is_lost(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first = await made(work, repo)
    await half_done(work, first)
    kept = (await work.discard(first.attempt)).kept
    second = await repairing(work, first, kept)
    at(second, "e.txt").write_text("five\n")
    kept = (await work.discard(second.attempt)).kept
    assert kept == "refs/orchestra/salvage/p/t.2"
    third = await repairing(work, second, kept, number=3)
    assert looks(third) == {**LEFT, "e.txt": "five\n"}
    assert git(repo, "show", "refs/orchestra/salvage/p/t.1:a.txt") == "one and a half", "and each is kept as it was"


async def test_asked_again_after_a_restart_it_is_the_same(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first = await made(work, repo)
    await half_done(work, first)
    second = await repairing(work, first)
    at(second, "c.txt").write_text("in work\n")
    again = await repairing(spaces(tmp_path), first)
    assert again == msgspec.structs.replace(second, fresh=False)
    assert read(str(at(again, "c.txt"))) == "in work\n"
    plain = await made(spaces(tmp_path), repo, number=2)
    assert (plain.repairs, plain.base) == (True, first.base), "who collects it knows nothing of the other"


async def test_what_did_nothing_leaves_nothing_and_what_is_gone_is_not_made_up(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first, other = await made(work, repo), await made(work, repo, "p/other")
    await merged(work, other, (await change(work, other, {"o.txt": "of another task\n"})).head)
    kept = (await work.discard(first.attempt)).kept
    assert kept == ""
    same = await repairing(work, first, kept)
    assert (same.repairs, same.base, looks(same)) == (True, first.base, FILES)
    for gone in (
        msgspec.structs.replace(first, attempt=attempt("p/t", 9)),
        msgspec.structs.replace(first, base="1" * 40),
        msgspec.structs.replace(first, base=""),
    ):
        number = 3 + len(git(repo, "branch", "--list", "orchestra/p/t.*").splitlines())
        anew = await repairing(work, gone, number=number)
        assert (anew.repairs, anew.base) == (False, git(repo, "rev-parse", "orchestra/p/merged"))
        assert looks(anew) == {**FILES, "o.txt": "of another task\n"}


async def test_a_ref_of_the_user_is_nobodys_work(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first = await made(work, repo)
    await work.discard(first.attempt)
    git(repo, "checkout", "-q", "-b", "mine")
    (repo / "a.txt").write_text("mine\n")
    git(repo, "commit", "-qam", "mine")
    second = await repairing(work, first, "refs/heads/mine")
    assert not second.repairs


async def test_what_is_too_large_is_left_out_of_the_repair_too(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path, file_bytes_max=1000)
    first = await made(work, repo)
    found = await change(work, first, {"a.txt": "small\n", "core": "x" * 2000})
    assert found.skipped == ("core",)
    kept = (await work.discard(first.attempt)).kept
    assert git(repo, "show", f"{kept}:core"), "nothing is lost"
    second = await repairing(work, first, kept)
    assert work_of(await work.collect(second, "again")) == ((), ("a.txt",), ())


async def test_many_at_once_begin_with_the_same(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    work = spaces(tmp_path)
    first = await made(work, repo)
    await half_done(work, first)
    found = await asyncio.gather(*(repairing(work, first, number=number) for number in range(2, 6)), work.discard(first.attempt))
    assert [looks(each) for each in found[:4] if isinstance(each, Workspace)] == [LEFT] * 4


async def test_on_a_node_it_is_there_wherever_the_earlier_one_was(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo = make_repo(tmp_path / "repo", FILES)
    monkeypatch.setenv("HOME", str(tmp_path))

    def node(name: str) -> RemoteWorkspaces:
        options = WorkspaceOptions(machine=MachineOptions(folder=str(tmp_path / "here")), owner="0123456789ab", disk_free_bytes_min=0)
        there = msgspec.structs.replace(options, machine=MachineOptions(folder=f"~/{name}"))
        return RemoteWorkspaces(Site(LocalTransport(), options), Site(LocalTransport(), there))

    one, two, home = node("one"), node("two"), spaces(tmp_path, folder="here")
    (first,) = await one.prepare([WorkRequest(repo=str(repo), attempt=attempt(), here=True)])
    assert isinstance(first, Workspace)
    await half_done(one, first)
    same = await repairing(one, first, here=True)
    assert (same.repairs, looks(same)) == (True, LEFT)
    brought = (await one.collect(first, "work")).brought
    await one.discard(first.attempt)
    far = await repairing(two, first, brought, number=3, here=True)
    assert (far.repairs, looks(far)) == (True, LEFT)
    near = await repairing(home, first, brought, number=4)
    assert (near.repairs, looks(near)) == (True, LEFT), "and on the control machine itself"
    at(near, "f.txt").write_text("six\n")
    kept = (await home.discard(near.attempt)).kept
    there = await repairing(two, near, kept, number=5, here=True)
    assert looks(there) == {**LEFT, "f.txt": "six\n"}, "and from there"
    anew = await repairing(two, msgspec.structs.replace(first, attempt=attempt("p/t", 9)), number=6, here=True)
    assert (anew.repairs, looks(anew)) == (False, FILES)


@pytest.mark.parametrize("after", ["still there", "let go", "let go and told"])
async def test_a_copy_begins_as_the_earlier_one_was_left(tmp_path: Path, after: str) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    for name, text in FILES.items():
        (folder / name).write_text(text)
    work = spaces(tmp_path)
    first = await made(work, folder)
    at(first, "a.txt").write_text("one and a half\n")
    at(first, "b.txt").unlink()
    at(first, "b.txt").mkdir()
    at(first, "b.txt", "d.txt").write_text("four\n")
    at(first, "link").symlink_to("a.txt")
    kept = (await work.discard(first.attempt)).kept if after != "still there" else None
    second = await repairing(work, first, kept if after == "let go and told" else None)
    assert (second.kind, second.repairs) == ("copy", True)
    assert at(second, "link").readlink() == Path("a.txt")
    assert not at(second, "b.txt").is_file()
    assert read(str(at(second, "b.txt", "d.txt"))) == "four\n"
    found = await change(work, second, {"c.txt": "mended\n"})
    assert work_of(found) == (("b.txt/d.txt", "link"), ("a.txt", "c.txt"), ("b.txt",))
    third = await repairing(work, msgspec.structs.replace(first, attempt=attempt("p/t", 9)), number=3)
    assert (third.repairs, looks(third)) == (False, FILES)
    fourth = await made(work, folder, number=4)
    await work.discard(fourth.attempt)
    assert (await repairing(work, fourth, "", number=5)).repairs, "it did nothing"


async def test_a_copy_that_does_not_go_with_the_folder_any_more_begins_anew(tmp_path: Path) -> None:
    folder = tmp_path / "plain"
    folder.mkdir()
    (folder / "x").mkdir()
    (folder / "x" / "y.txt").write_text("y\n")
    work = spaces(tmp_path)
    first = await made(work, folder)
    at(first, "x", "y.txt").write_text("changed\n")
    (folder / "x" / "y.txt").unlink()
    (folder / "x").rmdir()
    (folder / "x").write_text("a file now\n")
    second = await repairing(work, first)
    assert (second.repairs, read(str(at(second, "x")))) == (False, "a file now\n")
