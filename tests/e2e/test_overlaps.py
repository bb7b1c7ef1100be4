"""Tasks that get into each other's way without having said so: one waits for what another has changed, and two that run are told of."""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.e2e.command import TIMEOUT_S, Shell, shell
from tests.e2e.test_merging import git

pytestmark = pytest.mark.timeout(300)


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        (found.root / "config").mkdir(parents=True)
        (found.root / "config" / "orchestra.yaml").write_text(json.dumps({"orchestra": {"workspaces": {"look_seconds": 0.1}}}))
        yield found


@pytest.fixture
def repo(sh: Shell) -> Path:
    folder = sh.folder / "repo"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "src").mkdir()
    (folder / "src" / "x.py").write_text("x = 0\n")
    git(folder, "add", ".")
    git(folder, "commit", "-qm", "base")
    return folder


def until(process: subprocess.Popen[str], holds: Callable[[], bool]) -> None:
    """Asks again and again while the run goes on."""
    end = time.monotonic() + TIMEOUT_S
    while not holds():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it did not come to that"


def wait_for(name: str) -> str:
    return f"until [ -e $GATES/{name} ]; do sleep 0.02; done"


WAITS = f"""\
name: p
workspace: repo
agents: {{count: 3}}
defaults: {{isolation: worktree, retries: 0}}
tasks:
  - {{id: a, run: "echo 'a = 1' >> src/x.py; {wait_for("a")}"}}
  - {{id: first, run: "{wait_for("first")}"}}
  - {{id: b, needs: [first], files: [src/x.py], run: "echo 'b = 2' >> src/x.py"}}
  - {{id: free, needs: [first], files: [docs/], run: "mkdir docs; echo free > docs/free"}}
"""


def test_a_task_waits_for_one_that_has_changed_its_file_without_saying_so(sh: Shell, repo: Path) -> None:
    run = sh.start("run", sh.plan(WAITS.replace("$GATES", str(sh.folder))))
    until(run, lambda: sh.run("task", "show", "p/a").stdout.find("touched") > 0)
    assert sh.json("task", "show", "p/a")["touched"] == ["src/x.py"]
    (sh.folder / "first").touch()
    until(run, lambda: bool(sh.json("task", "show", "p/free")["task"]["status"] == "completed"))
    why = sh.run("task", "explain", "p/b").stdout.strip()
    assert why == "p/b is queued: p/b is ready and waits for p/a to be over, as that one has changed 'src/x.py' already (`files`)."
    assert sh.json("task", "show", "p/b")["attempts"] == []
    (sh.folder / "a").touch()
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, out + err
    assert git(repo, "show", "orchestra/p/merged:src/x.py") == "x = 0\na = 1\nb = 2"
    events = sh.run("ledger", "show", "--limit", "1000").stdout
    assert "WorkConflicted" not in events
    assert "ConflictPredicted" not in events


CLASH = f"""\
name: p
workspace: repo
agents: {{count: 2}}
defaults: {{isolation: worktree, retries: 0}}
tasks:
  - {{id: a, run: "echo 'a = 1' >> src/x.py; {wait_for("a")}"}}
  - {{id: b, run: "echo 'b = 2' >> src/x.py; echo b > b; {wait_for("b")}"}}
"""


def test_two_that_run_and_change_one_file_are_told_of(sh: Shell, repo: Path) -> None:
    run = sh.start("run", sh.plan(CLASH.replace("$GATES", str(sh.folder))))
    told = sh.root / "queue" / "events"
    until(run, lambda: bool(list(told.glob("*-conflict_predicted.json"))))
    (event,) = (json.loads(path.read_text()) for path in told.glob("*-conflict_predicted.json"))
    assert (event["severity"], event["paths"]) == ("medium", ["src/x.py"])
    assert sorted([event["task_id"], event["other_task_id"]]) == ["p/a", "p/b"]
    assert "p/b#1 has changed src/x.py too" in sh.run("task", "show", "p/a").stdout
    (found,) = sh.json("task", "show", "p/b")["conflicts_predicted"]
    assert found == {"attempt": 1, "other": "p/a#1", "paths": ["src/x.py"]}
    (sh.folder / "b").touch()
    until(run, lambda: bool(sh.json("task", "show", "p/b")["task"]["status"] == "completed"))
    assert sh.json("task", "show", "p/a")["task"]["status"] == "running", "nothing that runs is stopped"
    (sh.folder / "a").touch()
    out, err = run.communicate(timeout=TIMEOUT_S)
    assert run.returncode == 0, out + err
    events = sh.run("ledger", "show", "--limit", "1000").stdout
    assert (events.count("ConflictPredicted"), events.count("WorkConflicted")) == (1, 1), "it came as it was foretold"
    assert "have both changed src/x.py" in out
