"""Tasks that are submitted alone, on a real repository: what a person does with `orchestra task submit`, and a parent program with files."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.command import Shell, shell
from tests.e2e.test_merging import git
from tests.e2e.test_parent_program import ask, wait_for

pytestmark = pytest.mark.timeout(300)
TRIES = 50

SETTINGS = """
orchestra:
  sandbox: {mode: "off"}
  tasks: {retries: 0}
  routing: {coding: coder, review: coder, alternatives: []}
  kinds:
    coder: {command: "coder {prompt_file}", env_pass: [PATH]}
  verification:
    coverage_command: "grep -q covered price.py && echo TOTAL 10 1 90%"
    linter_command: "! grep -n TODO price.py"
"""
CODER = """\
case "$(cat "$1")" in
  *"Judge each of these"*) ;;
  *"was refused"*|*"refused the work"*) sed -i 's/TAX = 10/TAX = 20/' price.py; sed -i 's/== 110/== 120/' test_price.py ;;
  *"price module"*) printf 'TAX = 10  # covered\\n\\n\\ndef price(net):\\n    return net * (100 + TAX) // 100\\n' > price.py
    printf 'from price import price\\n\\n\\ndef test_price():\\n    assert price(100) == 110\\n' > test_price.py ;;
  *"raise the tax"*) sed -i 's/TAX = 10/TAX = 20/' price.py; sed -i 's/== 110/== 120/' test_price.py ;;
  *"look around"*) ls > seen.txt ;;
  *"give up"*) echo half > half.txt; exit 3 ;;
esac
if grep -q 'Judge each of these' "$1"; then
  if grep -q 'TAX = 20' price.py; then verdict=approve met=true; else verdict=refuse met=false; fi
  printf '{"verdict": "%s", "summary": "looked at price.py", "criteria": [{"number": 1, "met": %s, "evidence": "the tax"}]}' $verdict $met > "$ORCHESTRA_RETURN"
else
  cp "$1" "$ORCHESTRA_TOLD"
fi
"""
TESTS = "def test_nothing():\n    pass\n"


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Shell]:
    """A shell in a folder beside the repository, whose orchestra is started there."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "coder").write_text("#!/bin/sh\n" + CODER.replace("$ORCHESTRA_TOLD", str(tmp_path / "told.txt")))
    (tools / "coder").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    (tmp_path / "elsewhere" / "root" / "config").mkdir(parents=True)
    (tmp_path / "elsewhere" / "root" / "config" / "orchestra.yaml").write_text(SETTINGS)
    with shell(tmp_path / "elsewhere") as found:
        yield found


@pytest.fixture
def repo(tmp_path: Path) -> Path:
    folder = tmp_path / "repo"
    (folder / "docs").mkdir(parents=True)
    git(folder, "init", "-q")
    (folder / "test_it.py").write_text(TESTS)
    (folder / "docs" / "index.md").write_text("Prices\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    return folder


def at(folder: Path, home: Shell) -> Shell:
    """The same orchestra from another folder."""
    there = Shell(folder)
    there.root = home.root
    return there


def ended(sh: Shell, task: str) -> Any:
    """Waits until a task is over; returns its result."""
    return wait_for(sh.root / "results" / task / "result.json")


def kept_under(sh: Shell, task: str) -> str:
    """Waits until what an attempt left is let go of; returns where it is kept."""
    for _ in range(TRIES):
        if kept := sh.json("task", "show", task)["attempts"][0].get("kept"):
            return str(kept)
    raise AssertionError(f"what {task} did was not let go of")


def judged(sh: Shell, task: str) -> Any:
    """Waits until a result says how it was judged; returns it."""
    for _ in range(TRIES):
        found = sh.json("task", "result", task)
        if "judged" in found:
            return found
    raise AssertionError(f"the result of {task} does not say how it was judged")


def submit(sh: Shell, task: str, words: str, *options: str) -> Any:
    done = sh.run("task", "submit", words, "--id", task, *options)
    assert done.returncode == 0, done.stderr
    return ended(sh, task)


def test_a_task_is_done_verified_and_merged_in_the_repository_the_user_stands_in(home: Shell, repo: Path) -> None:
    assert home.run("up", "--agents", "2").returncode == 0
    here = at(repo, home)
    first = submit(here, "one", "Write the price module", "--agent", "coder", "--criterion", "All tests pass")
    assert (first["status"], first["result"]["output"]["tests_passed"]) == ("completed", 2), first["errors"]
    assert first["merged"]["branch"] == "orchestra/_/merged"
    assert first["merged"]["commit"] == git(repo, "rev-parse", "orchestra/_/merged")
    assert first["result"]["output"]["files_created"] == ["price.py", "test_price.py"]
    assert "+TAX = 10" in here.run("task", "diff", "one").stdout
    shown = here.run("task", "show", "one").stdout
    assert f"beside {repo}" in shown
    assert "into orchestra/_/merged" in shown
    assert git(repo, "status", "--short") == "", "the checkout is as it was"
    assert not (repo / "price.py").exists()

    second = submit(here, "two", "Please raise the tax", "--agent", "coder", "--needs", "one", "--criterion", "All tests pass")
    assert second["status"] == "completed", second["errors"]
    assert "TAX = 20" in git(repo, "show", "orchestra/_/merged:price.py")

    lost = submit(here, "three", "Then give up half way", "--agent", "coder")
    assert lost["status"] == "failed"
    ref = kept_under(here, "three")
    assert (ref, git(repo, "show", f"{ref}:half.txt")) == ("refs/orchestra/salvage/_/three.1", "half")
    kept = here.json("workspace", "gc", "--refs", "--older-than", "0")["nodes"][0]["refs"]
    assert [each["action"] for each in kept] == ["remove"], "nothing of no plan is at work any more"

    merged = here.run("workspace", "merge", "main")
    assert merged.returncode == 0, merged.stderr
    assert "TAX = 20" in (repo / "price.py").read_text()
    (repo / "news.txt").write_text("what the user did since\n")
    git(repo, "add", ".")
    git(repo, "commit", "-qm", "news")
    submit(at(repo / "docs", home), "four", "Now look around", "--agent", "coder", "--workspace", "..")
    assert "news.txt" in git(repo, "show", "orchestra/_/merged:seen.txt"), "it began with what is in HEAD"


def test_a_script_runs_in_the_folder_itself_and_other_places_are_named(home: Shell, repo: Path) -> None:
    assert home.run("up", "--agents", "2").returncode == 0
    here = at(repo, home)
    submit(here, "count", "Count the lines", "--run", "wc -l *.py")
    assert (here.root / "results" / "count" / "execution.log").read_text() == "2 test_it.py\n"
    assert "works in a folder that others change too" in here.run("task", "diff", "count").stderr
    submit(here, "played", "Play a part of the plan", "--agent", "rehearsal")
    assert "works in a private folder that is empty at first" in here.run("task", "diff", "played").stderr
    beside = submit(here, "beside", "Write a file", "--run", "echo x > new.txt", "--isolation", "worktree", "--workspace", "docs")
    assert beside["result"]["output"]["files_created"] == ["docs/new.txt"]
    assert not (repo / "docs" / "new.txt").exists()

    for options, said in (
        (("--workspace", "/nowhere/at/all"), "the workspace /nowhere/at/all does not exist"),
        (("--workspace", "../other"), "does not exist"),
        (("--isolation", "both"), "'both' is not one of"),
        (("--affinity", "a b"), "expected a plain name"),
    ):
        refused = here.run("task", "submit", "Count the lines", "--run", "true", *options)
        assert (refused.returncode, said in refused.stderr) == (2, True), refused.stderr
    assert here.json("task", "list")["total"] == 3
    assert here.run("task", "submit", "Make a folder", "--id", "made", "--run", "pwd", "--workspace", "made/here").returncode == 0
    ended(here, "made")
    assert (here.root / "results" / "made" / "execution.log").read_text() == f"{repo}/made/here\n"


PUBLISHED = {
    "task_id": "TASK-a3f2c5d8-1234-5678-9abc-def012345678",
    "submitted_at": "2025-11-12T12:00:00Z",
    "submitted_by": "PARENT-ORCHESTRATOR-001",
    "category": "coding",
    "priority": "high",
    "description": "Implement the price module",
    "requirements": {"language": "python", "target_path": "price.py", "tests_required": True},
    "constraints": {"max_execution_time_seconds": 3600, "max_cost_dollars": 5.0},
    "success_criteria": ["All tests pass", "Code coverage > 80%", "Linter passes"],
}


def test_the_published_task_of_a_parent_program_passes_in_the_folder_the_orchestra_was_started_in(home: Shell, repo: Path) -> None:
    here = at(repo, home)
    assert here.run("up", "--bare").returncode == 0
    ask(here, "c1", "init", agent_count=2)
    task = PUBLISHED["task_id"]
    assert ask(here, "c2", "submit_task", **PUBLISHED)["status"] == "queued"
    result = ended(here, str(task))
    assert (result["status"], result["errors"]) == ("completed", [])
    output = result["result"]["output"]
    assert (output["tests_passed"], output["coverage_percent"], output["linter_errors"]) == (2, 90, 0)
    assert Path(result["result"]["artifacts"]["code_diff"]).name == "diff.patch"
    assert "+TAX = 10" in (here.root / "results" / str(task) / "diff.patch").read_text()
    assert result["merged"]["branch"] == "orchestra/_/merged"
    told = (repo.parent / "told.txt").read_text()
    assert "- target_path: price.py\n- tests_required: true" in told
    assert git(repo, "status", "--short") == ""

    batch = ask(
        here, "c3", "submit_batch",
        tasks=[
            {"task_id": "tax", "description": "Please raise the tax", "dependencies": [task], "success_criteria": ["All tests pass"]},
            {"task_id": "list", "description": "Now look around", "directory": str(repo / "docs"), "isolation": "shared"},
        ],
    )  # fmt: skip
    assert [each["status"] for each in batch["tasks"]] == ["queued", "queued"]
    assert ended(here, "tax")["status"] == "completed"
    assert ended(here, "list")["status"] == "completed"
    assert (repo / "docs" / "seen.txt").read_text() == "index.md\nseen.txt\n"

    for number, (fields, field) in enumerate(
        (
            ({"workspace": ""}, "workspace"),
            ({"workspace": "/nowhere/at/all"}, "workspace"),
            ({"isolation": "none"}, "isolation"),
            ({"directory": "docs"}, "directory"),
            ({"directory": "/nowhere", "workspace": "x"}, "workspace"),
            ({"affinity": "../x"}, "affinity"),
        )
    ):
        error = ask(here, f"bad{number}", "submit_task", description="Now look around", **fields)["error"]
        assert (error["field"], bool(error["hint"] or error["message"])) == (field, True), error
    error = ask(here, "bad", "submit_batch", tasks=[{"description": "Now look around", "workspace": "/nowhere/at/all"}])["error"]
    assert error["field"] == "tasks[0].workspace"
    assert not Path("/nowhere").exists()


def test_outside_a_repository_an_agent_has_a_copy_and_the_patch_is_the_result(home: Shell) -> None:
    assert home.run("up", "--agents", "1").returncode == 0
    plain = home.folder / "plain"
    plain.mkdir()
    (plain / "a.txt").write_text("a\n")
    here = at(plain, home)
    result = submit(here, "alone", "Now look around", "--agent", "coder")
    assert (result["status"], "merged" in result) == ("completed", False)
    assert not (plain / "seen.txt").exists()
    patch = subprocess.run(
        ["git", "apply", "--stat", str(here.root / "results/alone/diff.patch")], capture_output=True, text=True, check=True
    )
    assert "seen.txt" in patch.stdout
    assert json.loads(here.run("task", "diff", "alone", "--stat", "--json").stdout)[0]["path"] == "seen.txt"


def test_what_no_program_can_check_of_a_submitted_task_is_judged_and_may_send_it_back(home: Shell, repo: Path) -> None:
    assert home.run("up", "--agents", "2").returncode == 0
    here = at(repo, home)
    criteria = ["--criterion", "All tests pass", "--criterion", "The tax is what the law says"]
    options = ["Write the price module", "--agent", "coder", *criteria]
    strict = here.run("task", "submit", *options, "--strict")
    assert (strict.returncode, "'The tax is what the law says' cannot be checked by a machine" in strict.stderr) == (2, True)
    assert "without `strict` an agent judges such a phrase" in strict.stderr
    done = here.run("task", "submit", *options, "--id", "shop")
    assert (done.returncode, "shop.judge judges what no program can check" in done.stdout) == (0, True), done.stderr
    assert here.run("task", "submit", "Now look around", "--id", "next", "--agent", "coder", "--needs", "shop").returncode == 0
    assert ended(here, "shop.judge")["review"]["verdict"] == "approve"
    assert ended(here, "next")["status"] == "completed"
    detail = here.json("task", "show", "shop")
    assert detail["sent_back"] == 1, "the first time it was not met"
    assert [(each["criterion"], each["met"], each["by"]) for each in detail["judged"]] == [
        ("The tax is what the law says", True, "shop.judge")
    ]
    result = judged(here, "shop")
    assert (result["status"], result["judged"][0]["met"], result["result"]["output"]["tests_passed"]) == ("completed", True, 2)
    assert "TAX = 20" in git(repo, "show", "orchestra/_/merged:price.py")

    typo = here.run("task", "submit", "Now look around", "--agent", "coder", "--criterion", "Linter pases")
    assert (typo.returncode, "did you mean 'Linter passes'?" in typo.stderr) == (2, True)
    plain = home.folder / "plain"
    plain.mkdir()
    alone = at(plain, home).run("task", "submit", "Now look around", "--agent", "coder", "--criterion", "It is nice")
    assert (alone.returncode, "works in a copy of" in alone.stderr, "git repository" in alone.stderr) == (2, True, True)
