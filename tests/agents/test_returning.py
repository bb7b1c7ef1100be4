"""Codex in its own sandbox, told to return something: the one folder outside of its working folder that it is let write."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.codex import ADAPTER as CODEX
from orchestra.core.model import OutcomeKind
from tests.agents.replies import PLANNED
from tests.agents.support import URL, Desk, Net, desk, installed, make_task, outside_tmp
from tests.agents.test_orchestra import desk as repository
from tests.agents.test_orchestra import ran

__all__ = ["outside_tmp", "repository"]

ADAPTER: Adapter = CODEX
SETTINGS = {"base_url": f"{URL}/v1", "model": "gpt-5.5", "sandbox": "workspace-write"}


@pytest.fixture
def away(net: Net, tmp_path: Path) -> Iterator[Desk]:
    installed("codex")
    with desk(tmp_path / "node", net) as found:
        found.worker()
        yield found


@pytest.mark.parametrize("mode", ["headless", "interactive"])
def test_codex_in_its_own_sandbox_writes_what_it_returns_and_nothing_else(away: Desk, mode: str) -> None:
    settings, session = SETTINGS | {"mode": mode}, ""
    for attempt in (1, 2):  # the second goes on with the session of the first
        spec = make_task("codex", "SCENE-CODEX-CONFINED", returns="plan")
        values = away.hand_out(ADAPTER, spec, settings=settings, attempt=attempt, session=session)
        run = away.finished(ADAPTER, spec, values, f"confined-{mode}-{attempt}")
        assert run.verdict.kind is OutcomeKind.DONE, run
        assert json.loads(away.wait_record("done", values)["returned"]["text"]) == PLANNED
        session = run.verdict.session


PLANNING = """\
name: plans
agents: [{count: 1, kind: codex}, {count: 1, kind: shell}]
defaults: {isolation: worktree, retries: 0}
tasks:
  - {id: plan, agent: codex, returns: plan, prompt: SCENE-CODEX-CONFINED}
  - {id: read, needs: [plan], run: cat planned.txt}
  - {id: look, agent: codex, reviews: read, prompt: SCENE-CODEX-REVIEW}
"""


def test_codex_interactive_plans_and_reviews_in_its_own_sandbox(repository: tuple[Path, dict[str, str], list[str]]) -> None:
    """Without ours around it, within which Codex's does not work."""
    repo, env, enter = repository
    (repo / "plan.yaml").write_text(PLANNING)
    settings = {f"kinds.codex.{name}": value for name, value in SETTINGS.items()} | {
        "kinds.codex.mode": "interactive",
        "sandbox.mode": "off",
    }
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    assert ran(repo, env, enter, *options).returncode == 0
    results = repo / ".codex" / "results" / "plans"
    assert json.loads((results / "plan.greet" / "result.json").read_text())["planned_by"] == "plans/plan"
    assert json.loads((results / "look" / "result.json").read_text())["review"]["verdict"] == "approve"
