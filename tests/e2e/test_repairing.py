"""A task whose attempts fail one after another: what is still to be repaired reaches the one that can, with the work that is to be repaired."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Shell, shell
from tests.e2e.test_merging import git

pytestmark = pytest.mark.timeout(300)

SCRIPT = """\
number=$(ls "$SEEN" | wc -l)
cp "$1" "$SEEN/$number"
case $number in
    0) echo first half > half.txt; git add half.txt; git -c user.name=a -c user.email=a@x commit -qm 'by the agent' ;;
    1) echo never seen > lost.txt; kill -9 $PPID; sleep 60 ;;
    *) test -e half.txt && echo second half > whole.txt ;;
esac
"""
SETTINGS = """\
orchestra:
  kinds: {fixer: {command: "sh FOLDER/fix.sh {prompt_file}"}}
  sandbox: {mode: "off"}
"""
PLAN = """\
name: fix
workspace: repo
agents: {count: 1, kind: fixer}
defaults: {retries: 1, retry_backoff_seconds: 0.01}
tasks:
  - id: it
    agent: fixer
    isolation: ISOLATION
    prompt: make it whole
    env: {SEEN: FOLDER/seen}
    success_criteria: [{name: is it whole, run: "echo the answer is 42; test -e whole.txt"}]
"""


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        (found.folder / "seen").mkdir()
        (found.folder / "fix.sh").write_text(SCRIPT)
        (found.root / "config").mkdir(parents=True)
        (found.root / "config" / "orchestra.yaml").write_text(SETTINGS.replace("FOLDER", str(found.folder)))
        repo = found.folder / "repo"
        repo.mkdir()
        git(repo, "init", "-q")
        git(repo, "commit", "-q", "--allow-empty", "-m", "nothing yet")
        yield found


def test_what_a_check_said_outlives_a_killed_worker_and_the_work_is_gone_on_with(sh: Shell) -> None:
    done = sh.run("run", sh.plan(PLAN.replace("FOLDER", str(sh.folder)).replace("ISOLATION", "worktree")))
    assert done.returncode == 0, done.stdout + done.stderr
    attempts = sh.json("task", "show", "fix/it")["attempts"]
    assert [each["outcome"] for each in attempts] == ["unverified", "lost", "done"]
    prompts = [path.read_text() for path in sorted((sh.folder / "seen").iterdir())]
    assert len(prompts) == 3
    assert "42" not in prompts[0]
    for prompt in prompts[1:]:
        assert "The check 'is it whole' ended with:\n    the answer is 42" in prompt
        assert "failed its checks left it" in prompt
    repo = sh.folder / "repo"
    assert git(repo, "ls-tree", "--name-only", "orchestra/fix/merged").splitlines() == ["half.txt", "whole.txt"]
    patch = (sh.root / "results" / "fix" / "it" / "diff.patch").read_text()
    assert "+first half" in patch
    assert "+second half" in patch
    assert attempts[0]["base"] == attempts[2]["base"] == git(repo, "rev-parse", "HEAD"), (
        "all of it is what differs from where the first began"
    )
    assert git(repo, "show", "refs/orchestra/salvage/fix/it.2:lost.txt") == "never seen"


def test_in_a_folder_that_is_no_repository_too(sh: Shell) -> None:
    plain = sh.folder / "plain"
    plain.mkdir()
    (sh.folder / "fix.sh").write_text(
        SCRIPT.replace("git add half.txt; git -c user.name=a -c user.email=a@x commit -qm 'by the agent'", "true")
    )
    text = PLAN.replace("FOLDER", str(sh.folder)).replace("ISOLATION", "worktree").replace("workspace: repo", "workspace: plain")
    done = sh.run("run", sh.plan(text))
    assert done.returncode == 0, done.stdout + done.stderr
    last = (sh.folder / "seen" / "2").read_text()
    assert "the answer is 42" in last
    assert "failed its checks left it" in last
    patch = (sh.root / "results" / "fix" / "it" / "diff.patch").read_text()
    assert "+first half" in patch
    assert "+second half" in patch
