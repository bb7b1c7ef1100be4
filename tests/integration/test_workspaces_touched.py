"""What attempts have changed so far: seen while they run, in real worktrees, copies and on another machine's copy of a repository; nothing of theirs is written to."""

from __future__ import annotations

import asyncio
import os
import shutil
from pathlib import Path

import pytest

from orchestra.workspace import Touched, WorkFailure, WorkRequest, Workspace, Workspaces
from orchestra.workspaces.machine import MachineWorkspaces
from tests.integration.test_workspaces import at, attempt, fingerprint, git, made, make_repo, spaces
from tests.integration.test_workspaces_copies import plain
from tests.integration.test_workspaces_hostile import HOOKS, script
from tests.integration.test_workspaces_remote import made as made_there
from tests.integration.test_workspaces_remote import reached, wanted


def all_of(*folders: Path) -> dict[str, int]:
    """Every file there is below some folders, with the time it was written last."""
    return {str(path): path.lstat().st_mtime_ns for folder in folders for path in folder.rglob("*")}


async def look(work: Workspaces, *workspaces: Workspace) -> tuple[Touched | WorkFailure, ...]:
    return await work.touched([WorkRequest(repo=each.repo, attempt=each.attempt, here=each.here) for each in workspaces])


async def seen(work: Workspaces, space: Workspace) -> Touched:
    (found,) = await look(work, space)
    assert isinstance(found, Touched), found
    return found


async def not_seen(work: Workspaces, space: Workspace) -> str:
    (found,) = await look(work, space)
    assert isinstance(found, WorkFailure), found
    return found.message


async def test_what_is_changed_committed_created_and_deleted_is_seen_and_nothing_is_written(tmp_path: Path) -> None:
    repo = make_repo(
        tmp_path / "repo", {"a.txt": "one\n", "src/b.txt": "b\n", "src/c.txt": "c\n", "d.txt": "d\n", ".gitignore": "built/\n"}
    )
    work = spaces(tmp_path)
    space, other = await made(work, repo), await made(work, repo, "p/other")
    assert (await seen(work, space)).paths == ()
    at(space, "a.txt").write_text("uno\n")
    git(space.path, "commit", "-qam", "mine")
    at(space, "src", "b.txt").write_text("B\n")
    at(space, "src", "c.txt").touch()
    at(space, "d.txt").unlink()
    at(space, "built").mkdir()
    at(space, "built", "x.o").write_text("o")
    at(space, "deep", "er").mkdir(parents=True)
    at(space, "deep", "er", "new [1].txt").write_text("n\n")
    make_repo(at(space, "theirs"))
    before, files = fingerprint(repo), all_of(at(space), repo / ".git")
    one, two = await look(work, space, other)
    assert one == Touched(attempt=space.attempt, paths=("a.txt", "d.txt", "deep/er/new [1].txt", "src/b.txt"), more=False, prefix=""), (
        "not what was only touched, is ignored, or is a repository of its own"
    )
    assert isinstance(two, Touched)
    assert two.paths == ()
    assert (fingerprint(repo), all_of(at(space), repo / ".git")) == (before, files)
    assert not list((tmp_path / "orchestra" / "private").iterdir())


async def test_paths_have_a_limit(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, look_paths_max=3)
    space = await made(work, repo)
    for number in range(5):
        at(space, f"new{number}").write_text("n")
    at(space, "src", "b.txt").write_text("B\n")
    found = await seen(work, space)
    assert (found.paths, found.more) == (("new0", "new1", "src/b.txt"), True), "what was there before comes first"
    wide = spaces(tmp_path, look_paths_max=10_000)
    at(space, "d").mkdir()
    for number in range(300):
        at(space, "d", f"{number:03}{'x' * 200}").write_text("n")
    found = await seen(wide, space)
    assert found.more
    assert 100 < len(found.paths) < 200


async def test_a_copy_is_looked_at_too(tmp_path: Path) -> None:
    work = spaces(tmp_path, look_paths_max=2)
    space = await made(work, plain(tmp_path))
    assert (await seen(work, space)).paths == ()
    at(space, "a.txt").write_text("else\n")
    at(space, "run.sh").unlink()
    assert await seen(work, space) == Touched(attempt=space.attempt, paths=("a.txt", "run.sh"), more=False, prefix="")
    for name in ("n", "o", "p"):
        at(space, name).write_text("new\n")
    found = await seen(work, space)
    assert (len(found.paths), found.more) == (2, True)


async def test_a_folder_below_the_top_and_a_repository_of_the_control_machine_on_a_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    repo = make_repo(tmp_path / "repo")
    space = await made(spaces(tmp_path), repo / "src")
    at(space, "src", "b.txt").write_text("B\n")
    found = await seen(spaces(tmp_path), space)
    assert (found.paths, found.prefix) == (("src/b.txt",), "src")
    monkeypatch.setenv("HOME", str(tmp_path))
    work = reached(tmp_path)
    there = await made_there(work, wanted(repo / "src", attempt("p/there")))
    at(there, "src", "b.txt").write_text("B\n")
    found = await seen(reached(tmp_path), there)
    assert (found.paths, found.prefix) == (("src/b.txt",), "src"), "also by a coordinator that did not make it"


async def test_a_place_that_is_not_there_is_told_and_the_others_are_seen(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space, gone, link = [await made(work, repo, f"p/{name}") for name in ("a", "gone", "link")]
    shutil.rmtree(gone.path)
    shutil.rmtree(link.path)
    at(link).symlink_to(repo)
    never = await look(work, Workspace(attempt=attempt("p/never"), kind="git", repo=str(repo), path="/", cwd="/"))
    assert isinstance(never[0], WorkFailure)
    at(space, "a.txt").write_text("uno\n")
    one, two, three = await look(work, gone, link, space)
    assert isinstance(one, WorkFailure)
    assert isinstance(two, WorkFailure)
    assert "is not the folder that was made there" in two.message
    assert isinstance(three, Touched)
    assert three.paths == ("a.txt",)


# --- of agents that mean harm -------------------------------------------------------------------------------------------


async def test_a_look_runs_nothing_that_the_repository_or_the_worktree_names(tmp_path: Path) -> None:
    attributes = "* filter=evil diff=evil merge=evil textconv=evil working-tree-encoding=UTF-16\n"
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    ran = tmp_path / "ran"
    program = script(tmp_path / "evil", f'echo "$0 $*" >> {ran}\ncat')
    for name in HOOKS:
        script(repo / ".git" / "hooks" / name, f"echo {name} >> {ran}")
    for key in ("clean", "smudge", "process"):
        git(repo, "config", f"filter.evil.{key}", program)
    for key in ("core.fsmonitor", "core.pager", "diff.external", "diff.evil.textconv", "diff.evil.command", "core.alternateRefsCommand"):
        git(repo, "config", key, program)
    git(repo, "config", "core.hooksPath", str(repo / ".git" / "hooks"))
    at(space, ".gitattributes").write_text(attributes)
    at(space, "a.txt").write_text("ONE\n")
    at(space, "src", "b.txt").touch()
    assert (await seen(work, space)).paths == (".gitattributes", "a.txt")
    evil = make_repo(tmp_path / "other")
    for key in ("core.fsmonitor", "core.worktree", "filter.evil.clean"):
        git(evil, "config", "--file", str(evil / ".git" / "config"), key, program)
    at(space, ".git").unlink()
    shutil.copytree(evil / ".git", at(space, ".git"))
    assert (await seen(work, space)).paths == (".gitattributes", "a.txt"), "its own git is not asked"
    assert not ran.exists(), ran.read_text()


async def test_an_index_that_was_spoilt_does_not_lead_a_look_astray(tmp_path: Path) -> None:
    """The index as it was at the start is another name of the worktree's own: who writes into that instead of replacing it writes into ours."""
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    index = Path(git(space.path, "rev-parse", "--absolute-git-dir")) / "index"
    at(space, "a.txt").write_text("longer\n")
    good = index.read_bytes()
    with index.open("r+b") as file:
        file.write(b"JUNK")
    assert "index" in await not_seen(work, space)
    with index.open("r+b") as file:
        file.write(good)
    git(space.path, "rm", "-q", "--cached", "src/b.txt")
    assert (await seen(work, space)).paths == ("a.txt",), "what the agent says of its files is not believed"


@pytest.mark.parametrize("where", [".gitignore", "src/.gitignore", "a.txt"])
async def test_a_pipe_in_the_place_of_a_file_does_not_hold_up_a_look(tmp_path: Path, where: str) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, look_ms=2_000)
    space, other = await made(work, repo), await made(work, repo, "p/other")
    at(other, "a.txt").write_text("uno\n")
    at(space, where).unlink(missing_ok=True)
    os.mkfifo(at(space, where))
    first, second = await look(work, space, other)
    assert isinstance(second, Touched)
    assert second.paths == ("a.txt",)
    if isinstance(first, WorkFailure):
        assert "in time" in first.message
    assert not list((tmp_path / "orchestra" / "private").iterdir())


async def test_a_pipe_in_a_copy_does_not_hold_up_a_look(tmp_path: Path) -> None:
    work = spaces(tmp_path)
    space = await made(work, plain(tmp_path))
    os.mkfifo(at(space, "sub", ".gitignore"))
    at(space, "a.txt").write_text("else\n")
    assert (await seen(work, space)).paths == ("a.txt",)


async def test_a_look_at_a_copy_has_its_time(tmp_path: Path) -> None:
    space = await made(spaces(tmp_path), plain(tmp_path))
    for number in range(10_000):
        at(space, f"n{number}").touch()
    assert "no time" in await not_seen(spaces(tmp_path, look_ms=1, look_paths_max=100_000), space)


async def test_links_lead_out_of_no_worktree(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    secret = make_repo(tmp_path / "secret", {"b.txt": "secret\n", "key": "k\n"})
    work = spaces(tmp_path)
    space = await made(work, repo)
    shutil.rmtree(at(space, "src"))
    at(space, "src").symlink_to(secret)
    assert (await seen(work, space)).paths == ("src", "src/b.txt")


async def test_more_files_than_anybody_can_list_cost_their_time_only(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)

    def flood() -> None:
        for folder in range(40):
            at(space, f"d{folder}").mkdir()
            for number in range(150):
                at(space, f"d{folder}", f"{number}{'x' * 200}").touch()

    await asyncio.to_thread(flood)
    found = await seen(work, space)
    assert found.more
    assert len("".join(found.paths)) <= 32 << 10


async def test_work_goes_on_while_it_is_looked_at(tmp_path: Path) -> None:
    """A look holds no lock of the repository, and none of the worktree's index."""
    repo = make_repo(tmp_path / "repo")
    work: MachineWorkspaces = spaces(tmp_path)
    space = await made(work, repo)

    async def commit_many() -> None:
        for number in range(15):
            at(space, "a.txt").write_text(f"{number}\n")
            await asyncio.to_thread(git, space.path, "commit", "-qam", str(number))

    async def look_often() -> None:
        for _ in range(5):
            assert isinstance((await look(work, space))[0], Touched)

    await asyncio.gather(commit_many(), look_often())
    assert git(space.path, "rev-list", "--count", "HEAD") == "16"
