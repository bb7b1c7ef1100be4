"""A whole orchestra with real coding agents: `orchestra run`, tmux windows, worktrees, checks and merges, in a network with no way out."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from orchestra.testing.hosted import end_processes, processes_left
from tests.agents.support import KEYS, PROGRAMS, URL, Net, installed, program
from tests.integration.stage_support import wait_until

ORCHESTRA = Path(sys.executable).with_name("orchestra")
SETTINGS = f"""\
orchestra:
  kinds:
    claude: {{base_url: "{URL}", allow_root: true, max_retries: 1}}
    codex: {{base_url: "{URL}/v1"}}
    saying: {{command: "cat {{prompt_file}}", env_pass: [HOME]}}
"""
PLAN = """\
name: poem
agents:
  - {count: 1, kind: claude}
  - {count: 1, kind: codex}
  - {count: 1, kind: saying}
defaults: {isolation: worktree, retries: 1, retry_backoff_seconds: 0.01}
tasks:
  - id: write
    agent: claude
    prompt: SCENE-CLAUDE-WRITE
    success_criteria: [{run: "grep -qx hello hello.txt", name: it greets}]
  - id: count
    agent: codex
    needs: [write]
    prompt: SCENE-CODEX-KEYS
    success_criteria: [{run: "test -s hello.txt && grep -qx 0 count.txt"}]
  - id: never
    agent: claude
    prompt: SCENE-SAY
    success_criteria: [{run: "echo there is no such file; test -e other.txt", name: a file}]
  - id: own
    agent: saying
    prompt: a kind of our own
"""


Desk = tuple[Path, dict[str, str], list[str]]
"""A repository with a plan to be, the environment, and what goes before a command that is to run in the network with no way out."""


@pytest.fixture
def desk(tmp_path: Path, net: Net) -> Iterator[Desk]:
    installed("claude")
    installed("codex")
    repo, home = tmp_path / "repo", tmp_path / "home"
    (repo / ".codex" / "config").mkdir(parents=True)
    home.mkdir()
    (repo / ".codex" / "config" / "orchestra.yaml").write_text(SETTINGS)
    (repo / "plan.yaml").write_text(PLAN)
    path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:/usr/bin:/bin:/usr/sbin:/sbin"
    env = {"PATH": path, "HOME": str(home), "LANG": "C.UTF-8", "TERM": "xterm-256color", "TMPDIR": "/tmp", **KEYS}
    identity = ["-c", "user.name=u", "-c", "user.email=u@x"]
    for arguments in (["init", "-q", "-b", "main"], [*identity, "commit", "-q", "--allow-empty", "-m", "base"]):
        subprocess.run(["git", *arguments], cwd=repo, env=env, check=True)
    yield repo, env, net.enter
    leftovers = processes_left(repo.parent)
    end_processes(leftovers)
    assert not leftovers


def result(repo: Path, task: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((repo / ".codex" / "results" / "poem" / task / "result.json").read_text())
    return found


def test_claude_and_codex_work_on_one_repository(desk: Desk, net: Net) -> None:
    repo, env, enter = desk
    done = subprocess.run(
        [*enter, str(ORCHESTRA), "run", "plan.yaml"], cwd=repo, env=env, text=True, timeout=110, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    sys.stdout.write(done.stdout)  # shown where something below fails
    assert done.returncode == 1, "one task cannot succeed"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=repo, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()

    assert git("show", "orchestra/poem/merged:hello.txt") == "hello"
    assert git("show", "orchestra/poem/merged:count.txt") == "0"
    assert git("ls-tree", "--name-only", "-r", "main") == ""
    assert not (repo / "hello.txt").exists()
    again = [json.dumps(request["body"]) for request in net.requests("SCENE-SAY") if "there is no such file" in json.dumps(request["body"])]
    assert again, "the second attempt is told why the first was not enough"
    assert result(repo, "never")["status"] == "failed"
    assert os.path.exists(repo / ".codex" / "results" / "poem" / "write" / "diff.patch")

    # Both went through the orchestra's own gateway, which counted them.
    report = subprocess.run(
        [str(ORCHESTRA), "cost", "report", "--by", "task", "--json"], cwd=repo, env=env, check=True, stdout=subprocess.PIPE, text=True
    )
    assert {"poem/write", "poem/count"} <= set(json.dumps(json.loads(report.stdout)).split('"'))


SPIES = """\
name: spies
agents:
  - {count: 1, kind: claude}
  - {count: 1, kind: codex}
defaults: {isolation: worktree, retries: 0, success_criteria: [{run: "git log -1 --format=%s | grep -qx 'by the agent'"}]}
tasks:
  - {id: claude, agent: claude, prompt: SCENE-CLAUDE-SPY}
  - {id: codex, agent: codex, prompt: SCENE-CODEX-SPY}
"""


@pytest.mark.parametrize("mode", ["auto", "off"])
def test_their_tools_see_no_key_and_no_ledger_and_can_commit(desk: Desk, mode: str) -> None:
    repo, env, enter = desk
    key = Path(env["HOME"]) / ".ssh" / "id_ed25519"
    key.parent.mkdir()
    key.write_text("a key")
    (repo / "plan.yaml").write_text(SPIES)
    argv = [*enter, str(ORCHESTRA), "run", "plan.yaml", "--set", f"sandbox.mode={mode}"]
    done = subprocess.run(
        argv, cwd=repo, env=env, text=True, timeout=110, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    for name in ("claude", "codex"):
        patch = (repo / ".codex" / "results" / "spies" / name / "diff.patch").read_text()
        seen = [line for line in ("+id_ed25519", "+ledger.db", "+orchestra.yaml") if line in patch.splitlines()]
        assert len(seen) == (0 if mode == "auto" else 3), "what is to be found is there, and is not found"
        if mode == "auto":
            log = subprocess.run(
                ["git", "log", "--format=%s", "orchestra/spies/merged"], cwd=repo, env=env, check=True, stdout=subprocess.PIPE
            )
            assert log.stdout.decode().splitlines().count("by the agent") >= 1


def there(env: dict[str, str], path: str) -> list[Path]:
    """Returns the files that running isolated attempts have made, by a pattern of `plan/task.attempt/file`."""
    return sorted(Path(env["HOME"], ".local", "state", "orchestra").glob(f"*/local/work/worktrees/{path}"))


def has_begun(run: subprocess.Popen[bytes], env: dict[str, str], path: str, count: int = 1) -> bool:
    """Tells whether so many of these files are there; also once the run is over, as nobody is to wait for them then."""
    return run.poll() is not None or len(there(env, path)) >= count


def test_a_mistake_and_a_conflict_go_back_to_those_who_made_them(desk: Desk) -> None:
    """Two of each kind: one writes what the check does not take, and one the same line as the other kind, which has begun at the same time."""
    repo, env, enter = desk
    tasks = []
    for kind in ("claude", "codex"):
        word = f"SCENE-{kind.upper()}-"
        check = f"""grep -qx hello hello.txt || {{ echo {word}"WRITE"; exit 1; }}"""  # only in what it prints this is the word of a scene
        tasks.append({"id": f"{kind}-mends", "agent": kind, "prompt": f"{word}MISSPELL", "success_criteria": [{"run": check}]})
        tasks.append({"id": f"{kind}-clashes", "agent": kind, "prompt": f"{word}CLASH"})
    defaults = {"isolation": "worktree", "retries": 1, "retry_backoff_seconds": 0.01}
    (repo / "plan.yaml").write_text(json.dumps({"name": "poem", "agents": {"count": 4}, "defaults": defaults, "tasks": tasks}))
    with started(repo, env, enter, "--json") as run:
        wait_until(partial(has_begun, run, env, "poem/*-clashes.1/begun", 2), "both at work")
        for begun in there(env, "poem/*-clashes.1/begun"):
            begun.with_name("go").touch()
    assert run.returncode == 0

    for kind in ("claude", "codex"):
        attempts = shown(repo, env, f"poem/{kind}-mends")["attempts"]
        assert [each["outcome"] for each in attempts] == ["unverified", "done"]
    lines = [json.loads(line) for line in (repo.parent / "run.log").read_text().splitlines()]
    (conflict,) = [line["event"] for line in lines if line["type"] == "event" and line["event"]["type"] == "WorkConflicted"]
    again, other = (
        f"poem/{kind}-clashes" for kind in (("claude", "codex") if "claude" in json.dumps(conflict["task"]) else ("codex", "claude"))
    )
    assert [len(shown(repo, env, task)["attempts"]) for task in (again, other)] == [2, 1]

    def merged(file: str) -> str:
        argv = ["git", "show", f"orchestra/poem/merged:{file}"]
        return subprocess.run(argv, cwd=repo, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout

    assert merged("hello.txt") == "hello\n"
    assert merged("who.txt") == f"{other}, then {again}\n"


PLANNING = """\
name: plans
agents: [{count: 1, kind: claude}, {count: 1, kind: shell}]
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: plan, agent: claude, returns: plan, prompt: SCENE-CLAUDE-PLAN}
  - {id: read, needs: [plan], run: cat planned.txt}
  - {id: look, agent: claude, reviews: read, prompt: SCENE-CLAUDE-REVIEW}
"""


def test_claude_returns_a_plan_that_is_carried_out_and_reviews_what_came_of_it(desk: Desk, net: Net) -> None:
    repo, env, enter = desk
    (repo / "plan.yaml").write_text(PLANNING)
    done = subprocess.run(
        [*enter, str(ORCHESTRA), "run", "plan.yaml"], cwd=repo, env=env, text=True, timeout=110, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    sys.stdout.write(done.stdout)  # shown where something below fails
    assert done.returncode == 0
    results = repo / ".codex" / "results" / "plans"
    assert json.loads((results / "plan.greet" / "result.json").read_text())["planned_by"] == "plans/plan"
    assert (results / "read" / "execution.log").read_text() == "hello\n"
    assert json.loads((results / "look" / "result.json").read_text())["review"]["verdict"] == "approve"
    asked = json.dumps(net.requests("SCENE-CLAUDE-PLAN")[0]["body"])
    assert "ORCHESTRA_RETURN" in asked
    assert "agent is one of: claude, shell" in asked
    assert "cat planned.txt" in json.dumps(net.requests("SCENE-CLAUDE-REVIEW")[0]["body"]), "it is told what the reviewed task was told"


def test_a_submitted_task_is_done_by_claude_in_the_users_repository_and_judged(
    desk: tuple[Path, dict[str, str], list[str]], net: Net
) -> None:
    repo, env, enter = desk
    (repo / "Makefile").write_text("test:\n\tgrep -qx hello hello.txt\n")
    for arguments in (["add", "Makefile"], ["-c", "user.name=u", "-c", "user.email=u@x", "commit", "-qm", "tests"]):
        subprocess.run(["git", *arguments], cwd=repo, env=env, check=True)

    def orchestra(*arguments: str) -> str:
        done = subprocess.run(
            [*enter, str(ORCHESTRA), *arguments], cwd=repo, env=env, text=True, timeout=110, check=False,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        sys.stdout.write(done.stdout)
        assert done.returncode == 0
        return done.stdout

    results = repo / ".codex" / "results"
    orchestra("up", "--agents", "2")
    try:
        words = ["SCENE-CLAUDE-WRITE: write a file that greets", "--id", "greet", "--agent", "claude", "--retries", "0"]
        told = orchestra("task", "submit", *words, "--criterion", "All tests pass", "--criterion", "It greets")
        assert "greet.judge judges what no program can check" in told
        path = results / "greet" / "result.json"
        wait_until(lambda: path.exists() and "judged" in json.loads(path.read_text()), "the judgement")
        found = json.loads(path.read_text())
        orchestra("task", "show", "greet")
        assert (found["status"], found["errors"], found["merged"]["branch"]) == ("completed", [], "orchestra/_/merged")
        assert [(each["criterion"], each["met"], each["agent"]) for each in found["judged"]] == [("It greets", True, "claude")]
        assert "+hello" in orchestra("task", "diff", "greet")
        assert not (repo / "hello.txt").exists()
    finally:
        orchestra("down", "--now")
    merged = subprocess.run(["git", "show", "orchestra/_/merged:hello.txt"], cwd=repo, env=env, check=True, stdout=subprocess.PIPE)
    assert merged.stdout == b"hello\n"
    assert "1. It greets" in json.dumps(net.requests("Judge whether the work meets its criteria")[0]["body"])


POOR = """\
name: poor
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults: {isolation: worktree, retries: 2, retry_backoff_seconds: 0.01}
tasks:
  - {id: claude, agent: claude, prompt: SCENE-SAY}
  - {id: codex, agent: codex, prompt: SCENE-SAY}
"""


def test_what_a_tasks_budget_does_not_bear_is_not_asked_for_and_not_tried_again(desk: Desk) -> None:
    repo, env, enter = desk
    (repo / "plan.yaml").write_text(POOR)
    done = subprocess.run(
        [*enter, str(ORCHESTRA), "run", "plan.yaml", "--set", "cost.task_budget_usd=0.001", "--set", "cost.on_spent=stop"], cwd=repo, env=env, text=True, timeout=110,
        check=False, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    sys.stdout.write(done.stdout)
    assert done.returncode == 1
    for name in ("claude", "codex"):
        found = json.loads((repo / ".codex" / "results" / "poor" / name / "result.json").read_text())
        assert found["errors"][0].startswith("budget: "), found["errors"]
        assert found["cost"]["estimated_cost_dollars"] == 0
        shown = subprocess.run(
            [str(ORCHESTRA), "task", "show", f"poor/{name}", "--json"], cwd=repo, env=env, check=True, stdout=subprocess.PIPE
        )
        assert len(json.loads(shown.stdout)["attempts"]) == 1


def ran(repo: Path, env: dict[str, str], enter: list[str], *options: str) -> subprocess.CompletedProcess[str]:
    """Runs the plan to its end."""
    argv = [*enter, str(ORCHESTRA), "run", "plan.yaml", *options]
    done = subprocess.run(
        argv, cwd=repo, env=env, text=True, timeout=110, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    sys.stdout.write(done.stdout)  # shown where something fails
    return done


@contextmanager
def started(repo: Path, env: dict[str, str], enter: list[str], *options: str) -> Iterator[subprocess.Popen[bytes]]:
    """Begins to run the plan; at the end it is over, and what it printed is in `run.log`."""
    argv = [*enter, str(ORCHESTRA), "run", "plan.yaml", *options]
    with (repo.parent / "run.log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=repo, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        yield process
        process.wait(110)
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        sys.stdout.write((repo.parent / "run.log").read_text())  # shown where something fails


def called(repo: Path, env: dict[str, str], *arguments: str) -> str:
    """Returns what a command of the running or ended orchestra prints."""
    return subprocess.run([str(ORCHESTRA), *arguments], cwd=repo, env=env, check=True, stdout=subprocess.PIPE, text=True).stdout


def shown(repo: Path, env: dict[str, str], task: str) -> dict[str, Any]:
    argv = [str(ORCHESTRA), "task", "show", task, "--json"]
    found: dict[str, Any] = json.loads(subprocess.run(argv, cwd=repo, env=env, check=True, stdout=subprocess.PIPE).stdout)
    return found


def test_eight_at_once_each_on_an_agent_of_its_own(desk: Desk) -> None:
    repo, env, enter = desk
    tasks = [{"id": f"t{number}", "agent": "claude" if number % 2 else "codex", "prompt": "SCENE-SLOW"} for number in range(8)]
    (repo / "plan.yaml").write_text(json.dumps({"name": "eight", "agents": {"count": 8}, "tasks": tasks}))
    assert ran(repo, env, enter).returncode == 0
    used = [[attempt["agent"] for attempt in shown(repo, env, f"eight/t{number}")["attempts"]] for number in range(8)]
    assert sorted(used) == [[number] for number in range(1, 9)]


def test_agents_go_on_while_the_coordinator_is_killed_and_started_again(desk: Desk, net: Net) -> None:
    repo, env, enter = desk
    tasks = [{"id": kind, "agent": kind, "prompt": "SCENE-SLOW and it stays"} for kind in ("claude", "codex")]
    (repo / "plan.yaml").write_text(json.dumps({"name": "killed", "agents": {"count": 2}, "tasks": tasks}))
    argv = [*enter, str(ORCHESTRA), "run", "plan.yaml"]
    with subprocess.Popen(argv, cwd=repo, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as first:
        wait_until(lambda: len(net.requests("SCENE-SLOW and it stays")) >= 2 or first.poll() is not None, "both agents at work")
        first.kill()
    assert ran(repo, env, enter, "--resume").returncode == 0
    assert [len(shown(repo, env, f"killed/{kind}")["attempts"]) for kind in ("claude", "codex")] == [1, 1]


def test_what_codex_was_to_do_claude_does_where_there_is_no_codex(desk: Desk, tmp_path: Path) -> None:
    repo, env, enter = desk
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "claude").symlink_to(PROGRAMS / "claude")
    env = {**env, "PATH": env["PATH"].replace(str(PROGRAMS), str(programs))}
    (repo / "plan.yaml").write_text(json.dumps({"name": "alone", "agents": {"count": 1}, "tasks": [{"id": "code", "prompt": "SCENE-SAY"}]}))
    done = ran(repo, env, enter)
    assert done.returncode == 0
    found = json.loads((repo / ".codex" / "results" / "alone" / "code" / "result.json").read_text())
    assert any("codex" in warning and "claude" in warning for warning in found["warnings"]), found["warnings"]
