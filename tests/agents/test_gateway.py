"""Claude Code in its terminal and Codex as a server behind the orchestra's own gateway: with a token and no key, counted by attempt, ended by a budget."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from tests.agents.test_orchestra import ORCHESTRA, desk, ran, shown

__all__ = ["desk"]

Place = tuple[Path, dict[str, str], list[str]]
MODES = (
    *("--set", "kinds.claude.mode=interactive", "--set", "kinds.codex.mode=interactive"),
    *("--set", "kinds.claude.model=claude-opus-4-5", "--set", "kinds.codex.model=gpt-5.5"),
)
WORK = """\
name: work
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: SCENE-CLAUDE-KEYS, agent: claude, prompt: Count, success_criteria: [{run: "grep -qx 0 count.txt"}]}
  - {id: codex, agent: codex, needs: [SCENE-CLAUDE-KEYS], prompt: SCENE-CODEX-KEYS, success_criteria: [{run: "grep -qx 0 count.txt"}]}
"""
"""In this mode Claude Code reads its prompt from a file, the path of which has the task's name in it."""
ENDLESS = """\
name: endless
agents: [{count: 1, kind: claude}, {count: 1, kind: codex}]
defaults: {isolation: worktree, retries: 2, retry_backoff_seconds: 0.01}
tasks:
  - {id: SCENE-CLAUDE-TURNS, agent: claude, prompt: Go on}
  - {id: codex, agent: codex, prompt: SCENE-CODEX-TURNS}
"""


def counted(repo: Path, env: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Returns the gateway's own count, by attempt."""
    argv = [str(ORCHESTRA), "cost", "report", "--by", "attempt", "--json"]
    told = subprocess.run(argv, cwd=repo, env=env, check=True, stdout=subprocess.PIPE).stdout
    return {row["name"]: row for row in json.loads(told)["rows"]}


def test_what_they_use_is_counted_for_their_attempts_and_the_key_is_not_with_them(desk: Place) -> None:
    repo, env, enter = desk
    (repo / "plan.yaml").write_text(WORK)
    assert ran(repo, env, enter, *MODES).returncode == 0
    rows = counted(repo, env)
    assert rows.keys() == {"work/SCENE-CLAUDE-KEYS#1", "work/codex#1"}
    for row in rows.values():
        assert (row["requests"], row["input_tokens"], row["output_tokens"]) == (2, 2000, 1000)
    claude = rows["work/SCENE-CLAUDE-KEYS#1"]
    assert claude["said_usd_micros"] == claude["settled_usd_micros"] > 0, "the program counts the same"


def test_a_spent_budget_ends_them_and_they_are_not_tried_again(desk: Place) -> None:
    repo, env, enter = desk
    (repo / "plan.yaml").write_text(ENDLESS)
    assert ran(repo, env, enter, *MODES, "--set", "cost.task_budget_usd=0.3", "--set", "cost.on_spent=stop").returncode == 1
    rows = counted(repo, env)
    for task in ("SCENE-CLAUDE-TURNS", "codex"):
        found = json.loads((repo / ".codex" / "results" / "endless" / task / "result.json").read_text())
        assert found["errors"] == ["budget: the task's budget of $0.30 is spent"]
        assert len(shown(repo, env, f"endless/{task}")["attempts"]) == 1
        row = rows[f"endless/{task}#1"]
        assert row["requests"] > 1, "it went on as long as there was something left"
        assert 0 < row["settled_usd_micros"] <= 300_000
