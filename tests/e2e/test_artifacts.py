"""What a task leaves, seen by its user: the files of its result folder and the commands that show them, while the orchestra runs and after it."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
from pathlib import Path

from tests.e2e.command import Shell, shell
from tests.e2e.test_report_page import dom_of

KEY = "sk-ant-api03-Zx81Zx81Zx81Zx81Zx81"
GIT = ("git", "-c", "user.name=u", "-c", "user.email=u@x", "-c", "commit.gpgsign=false")
PLAN = """\
name: p
workspace: repo
agents: {count: 2}
defaults: {isolation: worktree, retries: 0}
tasks:
  - id: good
    run: |
      printf 'one\\ntwo\\nthree\\n' > f.txt
      mkdir -p sub && echo new > 'sub/a file'
      echo "the key is KEY"
      echo "a line on stderr with ghp_ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789" >&2
    env: {MY_API_KEY: correct-horse-battery}
    success_criteria: ["All tests pass", {run: 'echo "$MY_API_KEY"; test -s f.txt', name: "f is there <b>"}]
  - {id: bad, run: "echo half > half.txt; exit 3"}
""".replace('KEY"', KEY + '"', 1)
TESTS = """\
import pytest

def test_a(): pass

def test_b(): pass

@pytest.mark.skip
def test_c(): pass
"""


def repository(folder: Path) -> Path:
    repo = folder / "repo"
    repo.mkdir()
    (repo / "f.txt").write_text("one\n2\n")
    (repo / "test_it.py").write_text(TESTS)
    for words in (["init", "-q", "-b", "main"], ["add", "."], ["commit", "-qm", "base"]):
        subprocess.run([*GIT, "-C", str(repo), *words], check=True)
    return repo


def see(at: Shell) -> None:
    """What has to be seen while the orchestra runs, and after it."""
    stat_lines = at.run("task", "diff", "p/good", "--stat").stdout.splitlines()
    assert [line.split()[0] for line in stat_lines] == ["f.txt", "sub/a", "2"]
    assert stat_lines[-1] == "2 files, 3 lines added, 1 removed"
    files = at.json("task", "diff", "good", "--stat")
    assert [(each["path"], each["change"], each["added"], each["removed"]) for each in files] == [
        ("f.txt", "changed", 2, 1),
        ("sub/a file", "created", 1, 0),
    ]
    assert "tests    2 passed, 0 failed" in at.run("task", "result", "good").stdout
    assert at.json("task", "result", "good") == at.result("p/good")
    names = [each["name"] for each in at.json("task", "artifacts", "good")["artifacts"]]
    assert names == ["result.json", "diff.patch", "test_report.html", "junit.xml", "execution.log", "diff.1.patch"]
    log = at.run("task", "artifacts", "good", "execution.log").stdout
    assert log.startswith("the key is ********\n")
    assert "[err] a line on stderr with ********" in log


def test_what_a_task_left_is_seen_with_commands_while_the_orchestra_runs_and_after_it(tmp_path: Path) -> None:
    repo = repository(tmp_path)
    with shell(tmp_path) as at:
        plan = at.plan(PLAN)
        assert at.run("run", plan).returncode == 1
        see(at)
        at.run("up", "--agents", "1")
        see(at)
        patch = at.run("task", "diff", "p/good").stdout
        assert "\x1b" not in patch
        subprocess.run([*GIT, "-C", str(repo), "apply", "-"], input=patch, text=True, check=True)
        assert (repo / "sub" / "a file").read_text() == "new\n"

        failed = at.result("p/bad")
        assert (failed["status"], failed["result"]["success"], failed["result"]["output"]["files_created"]) == (
            "failed",
            False,
            ["half.txt"],
        )
        assert "+half" in at.run("task", "diff", "bad", "--attempt", "1").stdout
        kept = re.search(r"what it did is kept: (refs/\S+)", at.run("task", "show", "bad").stdout)
        assert kept is not None
        assert subprocess.run([*GIT, "-C", str(repo), "show", f"{kept[1]}:half.txt"], capture_output=True, check=True).stdout == b"half\n"

        for arguments, words in (
            (("task", "diff", "p/goood"), "did you mean 'p/good'?"),
            (("task", "diff", "good", "--attempt", "2"), "it has 1 to 1"),
            (("task", "artifacts", "good", "junit.xlm"), "did you mean 'junit.xml'?"),
        ):
            refused = at.run(*arguments)
            assert refused.returncode != 0
            assert words in refused.stderr
        copied = at.run("task", "artifacts", "good", "--copy-to", str(tmp_path / "out"))
        assert copied.returncode == 0
        assert (tmp_path / "out" / "result.json").read_bytes() == (at.root / "results/p/good/result.json").read_bytes()
        assert "already" in at.run("task", "artifacts", "good", "--copy-to", str(tmp_path / "out")).stderr


def test_the_result_folder_is_private_complete_and_without_secrets(tmp_path: Path) -> None:
    repository(tmp_path)
    with shell(tmp_path) as at:
        at.run("run", at.plan(PLAN))
        folder = at.root / "results" / "p" / "good"
        found = at.result("p/good")
        assert found["result"]["artifacts"] == {
            "code_diff": "root/results/p/good/diff.patch",
            "test_report": "root/results/p/good/test_report.html",
            "logs": "root/results/p/good/execution.log",
        }
        output = found["result"]["output"]
        assert output == {
            "files_created": ["sub/a file"],
            "tests_passed": 2,
            "tests_failed": 0,
            "coverage_percent": None,
            "linter_errors": None,
        }
        for file in folder.iterdir():
            assert stat.S_IMODE(file.stat().st_mode) == 0o600, file
            assert not re.search(rb"Zx81|correct-horse|ghp_A", file.read_bytes()), file
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        dom = dom_of(tmp_path, (folder / "test_report.html").read_text())
        assert "test_a" in dom
        assert "f is there &lt;b&gt;" in dom
        assert dom.count('<td class="word">passed</td>') == 2
        assert dom.count('<td class="word">skipped</td>') == 1


def test_a_task_in_a_shared_folder_has_no_diff_and_says_what_to_do(tmp_path: Path) -> None:
    with shell(tmp_path) as at:
        at.run(
            "run",
            at.plan("name: s\ntasks:\n  - {id: a, run: 'echo 1'}\n  - {id: t, agent: rehearsal, prompt: use sk-proj-Zx81Zx81Zx81Zx81}\n"),
        )
        stream = at.run("task", "artifacts", "t", "transcript.jsonl").stdout.splitlines()
        assert [json.loads(line)["type"] for line in stream][-1] == "result"
        assert "Zx81" not in "".join(stream)
        assert "transcript.jsonl" not in os.listdir(at.root / "results/s/a")
        refused = at.run("--json", "task", "diff", "a")
        assert "isolation: worktree" in json.loads(refused.stderr)["error"]["hint"]
        assert at.result("s/a")["result"]["artifacts"]["code_diff"] is None
        assert sorted(os.listdir(at.root / "results/s/a")) == ["execution.log", "result.json"]
