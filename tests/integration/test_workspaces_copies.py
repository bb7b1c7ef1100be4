"""Private copies of folders that are no repository."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from orchestra.errors import Refused
from orchestra.root import Root
from orchestra.workspace import TidyRequest, Workspace
from tests.integration.test_workspaces import at, change, failed, git, made, make_repo, merged, read, spaces


def plain(tmp_path: Path) -> Path:
    folder = tmp_path / "plain"
    (folder / "sub").mkdir(parents=True)
    (folder / "a.txt").write_text("one\ntwo\n")
    (folder / "sub" / "b.bin").write_bytes(b"\0\1")
    (folder / "run.sh").write_text("#!/bin/sh\n")
    (folder / "run.sh").chmod(0o755)
    (folder / "out").symlink_to("/etc/passwd")
    (folder / "in").symlink_to("sub")
    return folder


async def test_a_copy_from_beginning_to_end(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    work = spaces(tmp_path)
    space = await made(work, folder)
    assert (space.kind, space.base, space.branch, space.cwd) == ("copy", "", "", space.path)
    path = at(space)
    assert sorted(os.listdir(path)) == ["a.txt", "in", "out", "run.sh", "sub"]
    assert (os.readlink(path / "out"), os.readlink(path / "in")) == ("/etc/passwd", "sub")
    assert os.access(path / "run.sh", os.X_OK)
    assert (path / "a.txt").stat().st_ino != (folder / "a.txt").stat().st_ino
    assert (await work.collect(space, "nothing")).files == frozenset()
    (path / "a.txt").write_text("one\nTWO\n")
    (path / "run.sh").unlink()
    (path / "in").unlink()
    (path / "in").symlink_to("/tmp")
    found = await change(work, space, {"new/c.txt": "c"})
    assert (found.created, found.changed, found.deleted) == (("new/c.txt",), ("a.txt", "in"), ("run.sh",))
    assert (folder / "a.txt").read_text() == "one\ntwo\n"
    again = make_repo(tmp_path / "check", {"a.txt": "one\ntwo\n", "run.sh": "#!/bin/sh\n"})
    part = found.patch.replace(b"diff --git a/in", b"\0").partition(b"\0")
    git(again, "apply", "-", data=part[0] + b"diff --git" + part[2].partition(b"diff --git")[2])
    assert (again / "a.txt").read_text() == "one\nTWO\n"
    assert (again / "new" / "c.txt").read_text() == "c"
    assert not (again / "run.sh").exists()
    with pytest.raises(Refused, match="nothing to merge into"):
        await merged(work, space, "1" * 40)
    with pytest.raises(Refused, match="has changes"):
        await work.release(space.attempt)
    gone = await work.discard(space.attempt)
    assert read(f"{gone.kept}/files/new/c.txt") == "c"
    assert not path.exists()


async def test_a_change_that_keeps_size_and_time_is_seen(tmp_path: Path) -> None:
    work = spaces(tmp_path)
    space = await made(work, plain(tmp_path))
    file = at(space, "a.txt")
    before = file.stat()
    file.write_text("eno\ntwo\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    os.utime(at(space, "run.sh"))
    assert (await work.collect(space, "x")).changed == ("a.txt",)


async def test_what_is_too_much_or_strange_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = plain(tmp_path)
    assert "more than 5 files" in (await failed(spaces(tmp_path, copy_files_max=5), folder)).message
    assert "more than 10 bytes" in (await failed(spaces(tmp_path, copy_bytes_max=10), folder)).message
    with socket.socket(socket.AF_UNIX) as listener:
        monkeypatch.chdir(folder)  # a socket's path is short
        listener.bind("s")
        found = await failed(spaces(tmp_path), folder)
    assert (found.code, "device, pipe or socket" in found.message) == ("refused", True)
    (folder / "s").unlink()
    assert isinstance(await made(spaces(tmp_path), folder), Workspace)


async def test_an_untracked_folder_below_a_repository_is_copied(tmp_path: Path) -> None:
    """A home folder that is a repository makes no worktree of every project in it."""
    repo = make_repo(tmp_path / "repo")
    (repo / "project").mkdir()
    (repo / "project" / "x").write_text("x\n")
    work = spaces(tmp_path)
    space = await made(work, repo / "project")
    assert (space.kind, os.listdir(space.path)) == ("copy", ["x"])


async def test_copies_are_tidied(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    work = spaces(tmp_path)
    clean, dirty = await made(work, folder, "p/clean"), await made(work, folder, "p/dirty")
    at(dirty, "n").write_text("n\n")
    os.mkfifo(at(dirty, "pipe"))
    assert (await work.collect(dirty, "x")).skipped == ("pipe",)
    report = await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, dry_run=False))
    assert [(entry.task, entry.action) for entry in report.entries] == [("clean.1", "remove"), ("dirty.1", "remove")]
    assert read(f"{report.entries[1].kept}/files/n") == "n\n"
    assert not at(clean).exists()


async def test_what_an_orchestra_keeps_in_the_folder_is_no_part_of_the_copy(tmp_path: Path) -> None:
    """Its root is there by default, with sockets and pipes that could not be copied."""
    folder = plain(tmp_path)
    root = Root(folder / ".codex")
    root.prepare()
    os.mkfifo(root.nodes / "bell")
    (root.path / "config").mkdir()
    (root.path / "config" / "orchestra.yaml").write_text("orchestra: {}\n")
    space = await made(spaces(tmp_path), folder)
    assert sorted(os.listdir(at(space))) == [".codex", "a.txt", "in", "out", "run.sh", "sub"]
    assert os.listdir(at(space) / ".codex") == ["config"]


async def test_the_patch_of_a_copy_can_be_applied_whatever_was_left_there(tmp_path: Path) -> None:
    folder = plain(tmp_path)
    work = spaces(tmp_path)
    space = await made(work, folder)
    (at(space) / "sub" / "b.bin").write_bytes(b"\0\2")
    found = await change(work, space, {"a.txt": "one\n2\n", "__pycache__/a.pyc": "a", "sub/.mypy_cache/c": "c"})
    assert (found.created, found.changed) == ((), ("a.txt", "sub/b.bin"))
    assert b"# sub/b.bin changed: not text, and not in this patch\n" in found.patch
    again = make_repo(tmp_path / "check", {"a.txt": "one\ntwo\n"})
    git(again, "apply", "-", data=found.patch)
    assert (again / "a.txt").read_text() == "one\n2\n"
