"""Commits between two folders that stand for two machines. Over SSH only the transport is another."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from orchestra.errors import NodeFailed, NotFound, Refused
from orchestra.nodes.ssh import SshTransport
from orchestra.nodes.transport import LocalTransport
from orchestra.workspace import MergeRequest, WorkRequest, Workspace
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import MachineWorkspaces, WorkspaceOptions
from orchestra.workspaces.transfer import End, TransferOptions, fetch_back, mirror_folder, send_commits, send_repo
from tests.integration.ssh_support import Sshd, sshd_of
from tests.integration.test_workspaces import attempt, change, git, made, make_repo, spaces


def ends(tmp_path: Path, repo: Path) -> tuple[End, End]:
    here = End(LocalTransport(), MachineOptions(folder=str(tmp_path / "here")), str(repo))
    node = MachineOptions(folder="~/node")
    return here, End(LocalTransport(), node, mirror_folder(node, "app"))


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "home").mkdir()


async def test_a_repository_goes_to_a_node_and_its_work_comes_back(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    head = git(repo, "rev-parse", "HEAD")
    here, there = ends(tmp_path, repo)
    sent = await send_repo(here, there)
    mirror = tmp_path / "home" / "node" / "repos" / "app.git"
    assert (sent.repo, sent.refs, sent.bytes > 0) == (str(mirror), {"refs/heads/start": head}, True)
    assert (await send_repo(here, there)).bytes == 0
    node = spaces(tmp_path, folder="home/node")
    space = await made(node, mirror, base=head)
    found = await change(node, space, {"n.txt": "made there\n"})
    back = await fetch_back(there, here, {space.attempt: found.head})
    assert back.refs == {"refs/orchestra/results/p/t.1": found.head}
    assert git(repo, "show", f"{found.head}:n.txt") == "made there"
    control = spaces(tmp_path, folder="here")
    result = await control.merge(MergeRequest(repo=str(repo), attempt=space.attempt, head=found.head))
    assert (result.result, result.head) == ("merged", found.head)
    (repo / "big.txt").write_text("x" * 100_000)
    git(repo, "add", "-A")
    git(repo, "commit", "-qm", "more")
    more = await send_repo(here, there)
    assert 0 < more.bytes < 2_000
    assert git(mirror, "rev-parse", "start") == git(repo, "rev-parse", "HEAD")
    git(repo, "fsck", "--strict")
    git(mirror, "fsck", "--strict")


@pytest.mark.parametrize("left", [(), ("refs",), ("refs", "config"), ("refs", "config", "HEAD")], ids=len)
async def test_a_copy_that_was_killed_while_it_was_made_is_made_whole(tmp_path: Path, left: tuple[str, ...]) -> None:
    repo = make_repo(tmp_path / "repo")
    git(tmp_path / "home", "init", "-q")  # whose folder is a repository itself must not be taken for it
    here, there = ends(tmp_path, repo)
    mirror = tmp_path / "home" / "node" / "repos" / "app.git"
    mirror.mkdir(parents=True)
    git(mirror, "init", "-q", "--bare", ".")
    for path in mirror.iterdir():
        if path.name not in left:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    sent = await send_repo(here, there)
    assert git(mirror, "rev-parse", "start") == sent.refs["refs/heads/start"]
    git(mirror, "fsck", "--strict")


async def test_a_large_history_stays_at_home(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    (repo / "a.txt").write_text("changed\n")
    git(repo, "commit", "-qam", "second")
    here, there = ends(tmp_path, repo)
    sent = await send_repo(here, there, options=TransferOptions(history_bytes_max=0))
    assert git(sent.repo, "rev-list", "--count", "start") == "1"
    node = spaces(tmp_path, folder="home/node")
    space = await made(node, Path(sent.repo))
    found = await change(node, space, {"n.txt": "n\n"})
    await fetch_back(there, here, {space.attempt: found.head})
    assert git(repo, "rev-list", "--count", found.head) == "3"
    assert not (repo / ".git" / "shallow").exists()
    (repo / "a.txt").write_text("one\n")  # as it was in the commit that the node does not have
    git(repo, "commit", "-qam", "third")
    git(repo, "repack", "-qadb")  # with a bitmap git would leave out whatever older commits had
    again = await send_repo(here, there, options=TransferOptions(history_bytes_max=0))
    assert git(again.repo, "rev-list", "--count", "start") == "2"
    assert git(again.repo, "show", "start:a.txt") == "one"
    git(again.repo, "fsck", "--strict")
    git(repo, "fsck", "--strict")


async def test_a_repository_never_loses_history_by_what_comes_back(tmp_path: Path) -> None:
    repo, stranger = make_repo(tmp_path / "repo"), make_repo(tmp_path / "stranger", {"s": "s\n"})
    git(stranger, "commit", "-q", "--allow-empty", "-m", "second")
    here, _ = ends(tmp_path, stranger)
    there = End(LocalTransport(), MachineOptions(folder="~/node"), mirror_folder(MachineOptions(folder="~/node"), "app"))
    await send_repo(here, there, options=TransferOptions(history_bytes_max=0))
    home = End(LocalTransport(), MachineOptions(folder=str(tmp_path / "here")), str(repo))
    with pytest.raises(Refused, match="the history that the work builds on is not here"):
        await fetch_back(there, home, {attempt(): git(stranger, "rev-parse", "HEAD")})
    assert not (repo / ".git" / "shallow").exists()


async def test_a_result_never_changes(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    here, there = ends(tmp_path, repo)
    await send_repo(here, there)
    first = git(repo, "rev-parse", "HEAD")
    await fetch_back(there, here, {attempt(): first})
    await fetch_back(there, here, {attempt(): first})
    git(repo, "commit", "-q", "--allow-empty", "-m", "second")
    await send_repo(here, there)
    with pytest.raises(Refused, match="a new attempt number"):
        await fetch_back(there, here, {attempt(): git(repo, "rev-parse", "HEAD")})
    assert git(repo, "rev-parse", "refs/orchestra/results/p/t.1") == first


async def test_what_is_missing_or_too_much_is_told(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    here, there = ends(tmp_path, repo)
    with pytest.raises(NotFound, match="no commit 1111"):
        await send_repo(here, there, {"refs/heads/x": "1" * 40})
    with pytest.raises(Refused, match="more than 10 bytes"):
        await send_repo(here, there, options=TransferOptions(bundle_bytes_max=10))
    mirror = tmp_path / "home" / "node" / "repos" / "app.git"
    assert git(mirror, "for-each-ref") == ""
    with pytest.raises(NotFound, match="no folder"):
        await send_commits(here, End(there.transport, there.machine, "~/nothing"), {"refs/heads/x": git(repo, "rev-parse", "HEAD")})


async def test_a_commit_made_to_do_harm_does_not_come_in(tmp_path: Path) -> None:
    """A tree with an entry `.git` would write into the git directory of whoever checks it out."""
    repo = make_repo(tmp_path / "repo")
    here, there = ends(tmp_path, repo)
    sent = await send_repo(here, there)
    blob = git(sent.repo, "hash-object", "-w", "--stdin", data=b"evil\n")
    raw = b"100644 .git\0" + bytes.fromhex(blob)
    tree = git(sent.repo, "hash-object", "-t", "tree", "-w", "--literally", "--stdin", data=raw)
    evil = git(sent.repo, "commit-tree", tree, "-p", "start", "-m", "evil")
    with pytest.raises(NodeFailed, match="index-pack failed"):
        await fetch_back(there, here, {attempt(): evil})
    assert git(repo, "cat-file", "--batch-check", data=evil.encode()) == f"{evil} missing"


# --- over SSH -----------------------------------------------------------------------------------------------------------

sshd = sshd_of


async def test_all_of_it_over_ssh(tmp_path: Path, sshd: Sshd) -> None:
    """The repository is here, the agent's machine is reached by SSH only, and its folder is named by `~/`."""
    repo = make_repo(tmp_path / "repo", {"a.bin": "\0\n0\n{}\n" * 200_000})
    far = SshTransport(sshd.target(), sshd.options())
    machine = MachineOptions(folder="~/node", timeout_ms=60_000)
    here, there = ends(tmp_path, repo)[0], End(far, machine, mirror_folder(machine, "app"))
    try:
        sent = await send_repo(here, there)
        assert sent.repo == f"{sshd.home}/node/repos/app.git"
        node = MachineWorkspaces(far, WorkspaceOptions(machine=machine, owner="0123456789ab", disk_free_bytes_min=0))
        spaces_made = await node.prepare([WorkRequest(repo=sent.repo, attempt=attempt(f"p/t{number}")) for number in range(3)])
        one, two = [each for each in spaces_made if isinstance(each, Workspace)][:2]
        assert one.path == f"{sshd.home}/node/worktrees/p/t0.1"
        first, second = await change(node, one, {"1": "1\n"}), await change(node, two, {"2": "2\n"})
        await fetch_back(there, here, {one.attempt: first.head, two.attempt: second.head})
        with pytest.raises(NotFound, match="no commit 1111"):
            await fetch_back(there, here, {attempt("p/x"): "1" * 40})
    finally:
        await far.close()
    control = spaces(tmp_path, folder="here")
    for workspace, found in ((one, first), (two, second)):
        request = MergeRequest(repo=str(repo), attempt=workspace.attempt, head=found.head)
        assert (await control.merge(request)).result == "merged"
    assert git(repo, "ls-tree", "--name-only", "orchestra/p/merged").split() == ["1", "2", "a.bin"]
