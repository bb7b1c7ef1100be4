"""What a person sees of merging: `orchestra run` on a repository, and the branch it leaves."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import Shell, shell

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        yield found


def git(folder: Path, *arguments: str) -> str:
    names = ["-c", "user.name=u", "-c", "user.email=u@h", "-c", "init.defaultBranch=main"]
    return subprocess.run(["git", "-C", str(folder), *names, *arguments], check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def repo(sh: Shell) -> Path:
    folder = sh.folder / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "prices.py").write_text("TAX = 10\n\n\ndef price(net):\n    return net * (100 + TAX) // 100\n")
    (folder / "shop.py").write_text("from prices import price\n\nassert price(100) == 110\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "a shop")
    return folder


TOGETHER = """\
name: shop
workspace: repo
agents: {count: 2}
defaults: {isolation: worktree, retries: 0, success_criteria: [{name: shop works, run: python3 -B shop.py}]}
tasks:
  - id: rename
    description: call it gross, wherever it is used
    run: |
      touch "$MET/rename"; until [ -e "$MET/cart" ]; do sleep 0.02; done
      sed -i 's/price(/gross(/; s/import price/import gross/' *.py
  - id: cart
    description: a cart beside the shop, with the price of all that is in it
    run: |
      touch "$MET/cart"; until [ -e "$MET/rename" ]; do sleep 0.02; done
      name=$(sed -n 's/^def \\([a-z]*\\).*/\\1/p' prices.py)
      printf 'from prices import %s\\n\\nassert sum(%s(net) for net in (100, 200)) == 330\\n' $name $name > cart.py
      printf 'import cart\\n' >> shop.py
"""


def test_work_that_breaks_only_together_goes_back_once_and_the_branch_always_works(sh: Shell, repo: Path) -> None:
    met = sh.folder / "met"
    met.mkdir()
    text = TOGETHER.replace('"$MET', f'"{met}')
    done = sh.run("run", sh.plan(text))
    assert done.returncode == 0, done.stdout + done.stderr
    results = {name: sh.result(f"shop/{name}") for name in ("rename", "cart")}
    assert {result["status"] for result in results.values()} == {"completed"}
    events = sh.run("ledger", "show", "--limit", "1000").stdout
    assert events.count("WorkConflicted") == 1, events
    assert "shop works" in events
    for commit in git(repo, "rev-list", "--first-parent", "main..orchestra/shop/merged").split():
        git(repo, "checkout", "-q", "--detach", commit)
        subprocess.run(["python3", "-B", "shop.py"], cwd=repo, check=True)
    assert "gross(net)" in git(repo, "show", "orchestra/shop/merged:cart.py")


FAILS = """\
name: trial
workspace: repo
agents: {count: 1}
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: try, run: "echo half > half.txt; exit 1"}
"""


def test_what_a_run_left_is_listed_and_forgotten_after_it_too(sh: Shell, repo: Path) -> None:
    assert sh.run("run", sh.plan(FAILS)).returncode == 1
    ref = "refs/orchestra/salvage/trial/try.1"
    assert git(repo, "show", f"{ref}:half.txt") == "half"
    assert sh.json("workspace", "list")["nodes"][0].get("workspaces", []) == [], "work that came to nothing is let go at once"
    dry = sh.run("workspace", "gc", "--refs", "--older-than", "0")
    assert "salvage/trial/try.1" in dry.stdout
    assert "1 refs would go; `--yes` does it" in dry.stdout
    assert git(repo, "rev-parse", ref)
    assert "0 refs would go" in sh.run("workspace", "gc", "--refs").stdout, "it is too young for the settings"
    done = sh.json("workspace", "gc", "--refs", "--older-than", "0", "--yes")
    assert [each["action"] for each in done["nodes"][0]["refs"]] == ["remove"]
    assert git(repo, "for-each-ref", "refs/orchestra") == ""
    assert sh.run("workspace", "gc", "--node", "nowhere").returncode == 2


ADDS = """\
name: add
workspace: repo
agents: {count: 1}
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: a, run: "echo 'SHIPPING = 5' >> prices.py"}
"""


def test_a_completed_plan_comes_into_the_branch_that_was_named(sh: Shell, repo: Path) -> None:
    done = sh.run("run", sh.plan(ADDS), "--merge-into", "main")
    assert done.returncode == 0, done.stderr
    assert f"merged: main in {repo} went forward" in done.stdout
    assert git(repo, "rev-parse", "main") == git(repo, "rev-parse", "orchestra/add/merged")
    assert git(repo, "status", "--short") == ""
    assert "SHIPPING" in (repo / "prices.py").read_text()


def test_a_conflict_with_the_named_branch_leaves_it_as_it_is_and_is_told(sh: Shell, repo: Path) -> None:
    git(repo, "branch", "next")
    git(repo, "switch", "-q", "next")
    (repo / "prices.py").write_text("TAX = 20\n")
    git(repo, "commit", "-qam", "all new")
    git(repo, "switch", "-q", "main")
    before = git(repo, "rev-parse", "next")
    done = sh.run("run", sh.plan(ADDS), "--merge-into", "next")
    assert done.returncode == 1
    assert "changed the same lines in prices.py; nothing was changed" in done.stderr
    assert git(repo, "rev-parse", "next") == before
    assert sh.run("workspace", "merge", "next").returncode == 1
    assert sh.json("workspace", "merge", "main")["repos"][0]["result"] == "merged", "also when the orchestra has ended"


STEPS = """\
name: steps
workspace: repo
agents: {count: 1}
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: a, run: "echo 'SHIPPING = 5' >> prices.py"}
  - {id: b, needs: [a], run: "echo 'INSURED = 1' >> prices.py"}
  - {id: c, isolation: shared, run: "true"}
"""


def test_the_commit_that_each_began_from_is_known_when_its_place_is_gone(sh: Shell, repo: Path) -> None:
    done = sh.run("run", sh.plan(STEPS))
    assert done.returncode == 0, done.stdout + done.stderr
    assert sh.json("workspace", "list")["nodes"][0].get("workspaces", []) == []
    first, after_a = git(repo, "rev-parse", "main"), git(repo, "rev-parse", "orchestra/steps/merged~1")
    bases = {name: sh.json("task", "show", f"steps/{name}")["attempts"][0].get("base", "") for name in "abc"}
    assert bases == {"a": first, "b": after_a, "c": ""}
    assert f"began from {after_a[:12]}" in sh.run("task", "show", "steps/b").stdout
    assert sh.result("steps/b")["base_commit"] == after_a
    assert "base_commit" not in sh.result("steps/c")
    assert after_a in sh.run("ledger", "show", "--limit", "1000").stdout


def test_a_branch_that_nothing_could_come_into_is_refused_before_anything_runs(sh: Shell, repo: Path) -> None:
    for text, branch, words in (
        (ADDS, "nosuch", f"{repo} has no branch 'nosuch'"),
        (ADDS.replace("isolation: worktree, ", ""), "main", "no task of this plan works in a worktree"),
    ):
        done = sh.run("run", sh.plan(text), "--merge-into", branch)
        assert (done.returncode, words in done.stderr) == (2, True), done.stderr
    assert git(repo, "for-each-ref", "refs/heads/orchestra") == ""
