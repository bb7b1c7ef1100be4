"""Worktrees in repositories, and of agents, that mean harm or are merely in a bad state."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

from orchestra.errors import NodeFailed, NotFound, Refused
from orchestra.workspace import TidyRequest
from tests.integration.test_workspaces import at, attempt, change, failed, fingerprint, git, made, make_repo, merged, spaces, started


def script(path: Path, text: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


HOOKS = (
    "post-checkout",
    "pre-commit",
    "post-commit",
    "commit-msg",
    "reference-transaction",
    "post-index-change",
    "pre-merge-commit",
    "post-merge",
)


async def test_nothing_that_the_repository_names_is_run(tmp_path: Path) -> None:
    """Hooks, filters, drivers, fsmonitor, editors and all else, from the repository's configuration and from the caller's environment."""
    repo = make_repo(
        tmp_path / "repo",
        {"a.txt": "one\n", "b.txt": "b\n", ".gitattributes": "a.txt filter=evil diff=evil merge=evil\nb.txt filter=evil\n"},
    )
    ran = tmp_path / "ran"
    program = script(tmp_path / "evil", f'echo "$0 $*" >> {ran}\ncat')
    for name in HOOKS:
        script(repo / ".git" / "hooks" / name, f"echo {name} >> {ran}")
    for key in (
        "filter.evil.clean",
        "filter.evil.smudge",
        "filter.evil.process",
        "diff.evil.textconv",
        "diff.evil.command",
        "merge.evil.driver",
    ):
        git(repo, "config", key, program)
    for key in ("core.fsmonitor", "core.editor", "core.pager", "core.sshCommand", "core.askPass", "diff.external", "gpg.program"):
        git(repo, "config", key, program)
    git(repo, "config", "filter.evil.required", "true")
    git(repo, "config", "commit.gpgSign", "true")
    git(repo, "config", "alias.worktree", f"!{program}")
    git(repo, "config", "core.hooksPath", str(repo / ".git" / "hooks"))
    ran.unlink(missing_ok=True)
    work = spaces(tmp_path)
    assert "filter.evil.clean" in (await work.inspect(str(repo))).programs
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    first, second = await change(work, one, {"a.txt": "uno\n"}), await change(work, two, {"a.txt": "eins\n", "n.txt": "n\n"})
    assert (await merged(work, one, first.head)).result == "merged"
    assert (await merged(work, two, second.head)).result == "conflict"
    at(two, "b.txt").write_text("late\n")
    await work.salvage(two.attempt)
    await work.discard(two.attempt)
    await work.release(one.attempt)
    await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, dry_run=False))
    assert not ran.exists(), ran.read_text()


async def test_the_environment_of_the_caller_leads_git_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repo, other = make_repo(tmp_path / "repo"), make_repo(tmp_path / "other", {"z.txt": "z\n"})
    before = fingerprint(other)
    for name, value in {
        "GIT_DIR": str(other / ".git"),
        "GIT_WORK_TREE": str(other),
        "GIT_INDEX_FILE": str(other / ".git" / "index"),
        "GIT_CONFIG_PARAMETERS": "'core.hookspath'='/tmp'",
        "GIT_EXTERNAL_DIFF": "false",
        "GIT_AUTHOR_NAME": "somebody",
    }.items():
        monkeypatch.setenv(name, value)
    work = spaces(tmp_path)
    space = await made(work, repo)
    found = await change(work, space, {"a.txt": "x\n"})
    for name in ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_CONFIG_PARAMETERS", "GIT_EXTERNAL_DIFF", "GIT_AUTHOR_NAME"):
        monkeypatch.delenv(name)
    assert git(repo, "show", "-s", "--format=%an", found.head) == "orchestra"
    assert fingerprint(other) == before


@pytest.mark.parametrize("how", ["link", "folder", "text", "gone", "hard link"])
async def test_a_replaced_git_file_is_seen(tmp_path: Path, how: str) -> None:
    repo, other = make_repo(tmp_path / "repo"), make_repo(tmp_path / "other")
    work = spaces(tmp_path)
    space = await made(work, repo)
    git_file = at(space, ".git")
    text = git_file.read_text()
    git_file.unlink()
    if how == "link":
        (tmp_path / "copy").write_text(text)
        git_file.symlink_to(tmp_path / "copy")
    elif how == "folder":
        shutil.copytree(other / ".git", git_file)
    elif how == "text":
        git_file.write_text(f"gitdir: {other}/.git\n")
    elif how == "hard link":
        (tmp_path / "copy").write_text(text)
        os.link(tmp_path / "copy", git_file)
    at(space, "work.txt").write_text("work\n")
    before = fingerprint(other)
    with pytest.raises(Refused, match=r"replaced or removed|names another"):
        await work.collect(space, "x")
    assert git(repo, "rev-parse", space.branch) == space.base
    gone = await work.discard(space.attempt)
    assert git(repo, "show", f"{gone.kept}:work.txt") == "work"
    assert fingerprint(other) == before


async def test_a_worktree_that_became_a_link_is_not_followed(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    shutil.rmtree(space.path)
    at(space).symlink_to(repo)
    with pytest.raises(Refused, match="is not the folder that was made there"):
        await work.collect(space, "x")
    with pytest.raises(Refused, match="is not the folder"):
        await work.discard(space.attempt)
    assert (repo / "a.txt").exists()


async def test_a_worktree_removed_by_hand(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    head = (await change(work, space, {"n": "n\n"})).head
    shutil.rmtree(space.path)
    with pytest.raises(NotFound, match="was removed by somebody else"):
        await work.collect(space, "x")
    gone = await work.discard(space.attempt)
    assert git(repo, "rev-parse", gone.kept) == head
    assert not (repo / ".git" / "worktrees").exists() or os.listdir(repo / ".git" / "worktrees") == []
    assert (await made(work, repo)).fresh


async def test_a_branch_with_work_of_an_earlier_life_is_kept_beside(tmp_path: Path) -> None:
    """The orchestra's folder was deleted, the repository was not."""
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    head = (await change(work, await made(work, repo), {"n": "n\n"})).head
    shutil.rmtree(tmp_path / "orchestra")
    space = await made(work, repo)
    assert space.fresh
    assert git(repo, "rev-parse", space.branch) == space.base != head
    assert git(repo, "rev-parse", "refs/orchestra/salvage/p/t.1") == head


@pytest.mark.parametrize("where", ["detached", "other branch", "orphan", "amended", "reset"])
async def test_an_agent_that_leaves_its_branch(tmp_path: Path, where: str) -> None:
    repo = make_repo(tmp_path / "repo")
    git(repo, "commit", "-q", "--allow-empty", "-m", "second")
    work = spaces(tmp_path)
    space = await made(work, repo)
    path = at(space)
    if where == "detached":
        git(path, "checkout", "-q", "--detach")
    elif where == "other branch":
        git(path, "checkout", "-q", "-b", "mine")
    elif where == "orphan":
        git(path, "checkout", "-q", "--orphan", "mine")
    elif where == "reset":
        git(path, "reset", "-q", "--hard", "HEAD~1")
    (path / "n.txt").write_text("n\n")
    git(path, "add", "-A")
    git(path, "commit", "-qm", "the agent's", *(["--amend"] if where == "amended" else []))
    own = git(path, "rev-parse", "HEAD")
    found = await work.collect(space, "collected")
    assert git(repo, "rev-parse", space.branch) == found.head
    assert found.created == ("n.txt",)
    assert git(repo, "merge-base", found.head, space.base) == space.base
    if where in ("detached", "other branch"):
        assert found.head == own
        assert any("left its branch" in note for note in found.notes)
    else:
        assert git(repo, "rev-parse", found.salvaged) == own
        assert any("does not descend" in note for note in found.notes)


async def test_an_unfinished_merge_and_a_dead_git_are_told(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    admin = Path(git(space.path, "rev-parse", "--absolute-git-dir"))
    (admin / "index.lock").write_text("")
    (admin / "MERGE_HEAD").write_text(space.base + "\n")
    found = await change(work, space, {"n": "n\n"})
    assert found.created == ("n",)
    assert "a merge was not finished" in found.notes
    assert any("index.lock" in note for note in found.notes)


async def test_an_agent_cannot_hide_its_changes_from_git(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    git(space.path, "update-index", "--assume-unchanged", "a.txt")
    git(space.path, "update-index", "--skip-worktree", "src/b.txt")
    found = await change(work, space, {"a.txt": "hidden\n", "src/b.txt": "hidden\n"})
    assert found.changed == ("a.txt", "src/b.txt")


async def test_submodules_and_repositories_in_the_worktree(tmp_path: Path) -> None:
    repo, inner = make_repo(tmp_path / "repo"), make_repo(tmp_path / "inner")
    git(repo, "-c", "protocol.file.allow=always", "submodule", "--quiet", "add", str(inner), "sub")
    git(repo, "commit", "-qm", "submodule")
    work = spaces(tmp_path)
    assert (await work.inspect(str(repo))).submodules == ("sub",)
    space = await made(work, repo)
    assert os.listdir(at(space, "sub")) == []
    nested = make_repo(at(space, "nested"))
    ran = tmp_path / "ran"
    git(nested, "config", "core.fsmonitor", script(tmp_path / "evil", f"touch {ran}"))
    found = await change(work, space, {"n.txt": "n\n"})
    assert (found.created, found.changed, found.skipped) == (("n.txt",), (), ("nested/",))
    with pytest.raises(Refused, match="holds repositories of its own"):
        await work.discard(space.attempt)
    report = await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, dry_run=False))
    assert (report.entries[0].action, nested.is_dir(), ran.exists()) == ("keep", True, False)


async def test_names_that_are_no_text_line_ends_and_twins(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"Readme": "1\n", "README": "2\n", "dos.txt": "x\r\ny\r\n", ".gitattributes": "*.txt text\n"})
    work = spaces(tmp_path)
    space = await made(work, repo)
    assert git(space.path, "status", "--porcelain") == ""
    at(space, os.fsdecode(b"caf\xe9")).write_bytes(b"\xff\n")
    at(space, "new\nline\t").write_text("odd\n")
    found = await change(work, space, {"README": "two\n", "dos.txt": "x\r\ny\r\nz\r\n"})
    assert set(found.created) == {"caf\\xe9", "new\nline\t"}
    assert (found.changed, found.lines_added) == (("README", "dos.txt"), 4)
    assert git(repo, "cat-file", "blob", f"{found.head}:dos.txt") == "x\ny\nz"
    assert git(repo, "show", f"{found.head}:Readme") == "1"
    assert (await merged(work, space, found.head)).result == "merged"


async def test_files_become_folders_and_links(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo", {"file": "f\n", "folder/one": "1\n", "plain": "p\n"})
    work = spaces(tmp_path)
    space = await made(work, repo)
    path = at(space)
    (path / "file").unlink()
    shutil.rmtree(path / "folder")
    (path / "folder").symlink_to("/etc")
    (path / "plain").chmod(0o755)
    os.mkfifo(path / "pipe")
    found = await change(work, space, {"file/below": "b\n"})
    assert set(found.created) == {"file/below", "folder"}
    assert set(found.deleted) == {"file", "folder/one"}
    assert found.changed == ("plain",)
    assert git(repo, "cat-file", "blob", f"{found.head}:folder") == "/etc"


async def test_a_file_too_large_is_left_out_and_not_lost(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, file_bytes_max=1000, patch_bytes_max=50)
    space = await made(work, repo)
    at(space, "core").write_bytes(bytes(5000))
    found = await change(work, space, {"n.txt": "n\n" * 100})
    assert (found.created, found.skipped, found.patch_cut, len(found.patch)) == (("n.txt",), ("core",), True, 50)
    gone = await work.discard(space.attempt)
    assert git(repo, "cat-file", "-s", f"{gone.kept}:core") == "5000"


# --- repositories in odd states -----------------------------------------------------------------------------------------


async def test_a_repository_without_a_commit(tmp_path: Path) -> None:
    repo = tmp_path / "repo"
    repo.mkdir()
    git(repo, "init", "-q")
    work = spaces(tmp_path)
    assert (await work.inspect(str(repo))).head == ""
    one, two = await made(work, repo, "p/one"), await made(work, repo, "p/two")
    assert one.base == two.base
    first, second = await change(work, one, {"1": "1\n"}), await change(work, two, {"2": "2\n"})
    assert (await merged(work, one, first.head)).result == "merged"
    assert (await merged(work, two, second.head)).result == "merged"
    assert git(repo, "status", "--porcelain") == ""
    git(repo, "merge", "-q", "orchestra/p/merged")
    assert sorted(os.listdir(repo)) == [".git", "1", "2"]


async def test_bare_detached_and_linked_repositories(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    git(tmp_path, "clone", "-q", "--bare", str(repo), str(tmp_path / "bare.git"))
    work = spaces(tmp_path)
    facts = await work.inspect(str(tmp_path / "bare.git"))
    assert (facts.bare, facts.toplevel, facts.dirty_files) == (True, "", -1)
    space = await made(work, tmp_path / "bare.git", "bare/t")
    head = (await change(work, space, {"n": "n\n"})).head
    assert (await merged(work, space, head)).result == "merged"
    git(repo, "checkout", "-q", "--detach")
    git(repo, "commit", "-q", "--allow-empty", "-m", "detached")
    assert (await made(work, repo, "detached/t")).base == git(repo, "rev-parse", "HEAD")
    git(repo, "worktree", "add", "-q", str(tmp_path / "linked"), "main")
    linked = await made(work, tmp_path / "linked", "linked/t")
    assert linked.base == git(repo, "rev-parse", "main")


async def test_sha256_and_shallow_repositories(tmp_path: Path) -> None:
    new = tmp_path / "new"
    new.mkdir()
    git(new, "init", "-q", "--object-format=sha256")
    (new / "a").write_text("a\n")
    git(new, "add", "-A")
    git(new, "commit", "-qm", "first")
    work = spaces(tmp_path)
    space = await made(work, new)
    assert len(space.base) == 64
    found = await change(work, space, {"b": "b\n"})
    assert (await merged(work, space, found.head)).result == "merged"
    repo = make_repo(tmp_path / "repo")
    git(repo, "commit", "-q", "--allow-empty", "-m", "second")
    git(tmp_path, "clone", "-q", "--depth=1", f"file://{repo}", str(tmp_path / "shallow"))
    one, two = await made(work, tmp_path / "shallow", "s/one"), await made(work, tmp_path / "shallow", "s/two")
    first, second = await change(work, one, {"1": "1\n"}), await change(work, two, {"2": "2\n"})
    await merged(work, one, first.head)
    assert (await merged(work, two, second.head)).result == "merged"


async def test_a_branch_in_the_way_is_told(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    git(repo, "branch", "orchestra")
    found = await failed(spaces(tmp_path), repo)
    assert "orchestra" in found.message
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 1


async def test_workspaces_inside_the_checkout_are_refused(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    found = await failed(spaces(tmp_path, folder="repo/.codex"), repo)
    assert (found.code, "would lie inside" in found.message) == ("refused", True)
    assert not (repo / ".codex").exists()


async def test_a_repository_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    assert os.geteuid() == 0, "this test gives a folder to another user and has to be run by root"
    for folder, _, files in os.walk(repo):
        for name in ["", *files]:
            os.chown(os.path.join(folder, name), 12345, 12345)
    found = await failed(spaces(tmp_path), repo)
    assert "belongs to another user" in found.message
    assert "safe.directory" in found.hint


# --- killed in the middle -----------------------------------------------------------------------------------------------


async def test_a_git_killed_while_it_writes_files_leaves_nothing_that_matters(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    mark = tmp_path / "killed"
    program = script(tmp_path / "git", f'case "$*" in *read-tree*) [ -e {mark} ] || {{ touch {mark}; kill -9 $$; }};; esac\nexec git "$@"')
    work = spaces(tmp_path, program=program)
    found = await failed(work, repo)
    assert "was killed by signal 9" in found.message
    space = await made(work, repo)
    assert space.fresh
    assert git(space.path, "status", "--porcelain") == ""
    assert git(repo, "worktree", "list", "--porcelain").count("worktree ") == 2


async def test_a_lock_file_of_a_killed_git_is_recognised(tmp_path: Path) -> None:
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path, lock_ms=100)
    space = await made(work, repo)
    head = (await change(work, space, {"n": "n\n"})).head
    with started(["git", "-C", str(repo), "update-ref", "--stdin"]) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(f"start\nupdate refs/heads/orchestra/p/merged {head}\nprepare\n".encode())
        child.stdin.flush()
        assert child.stdout.readline() + child.stdout.readline() == b"start: ok\nprepare: ok\n"
        child.send_signal(signal.SIGKILL)
    lock = repo / ".git" / "refs" / "heads" / "orchestra" / "p" / "merged.lock"
    assert lock.exists()
    with pytest.raises(NodeFailed, match=r"merged\.lock has been there for \d+ s") as caught:
        await merged(work, space, head)
    assert "remove that file" in caught.value.hint
    lock.unlink()
    assert (await merged(work, space, head)).result == "merged"


async def test_our_program_killed_while_it_removes(tmp_path: Path) -> None:
    """What was moved out of the way is removed by the next tidying; the record is what tells that there is something left to do."""
    repo = make_repo(tmp_path / "repo")
    work = spaces(tmp_path)
    space = await made(work, repo)
    trash = tmp_path / "orchestra" / "trash" / "gone-x"
    trash.mkdir(parents=True)
    os.rename(space.path, trash / "work")
    assert (await work.discard(attempt())).removed
    await work.tidy(TidyRequest(quota_bytes=0, age_ms=0, dry_run=False))
    assert os.listdir(tmp_path / "orchestra" / "trash") == []
