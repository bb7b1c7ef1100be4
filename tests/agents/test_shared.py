"""Claude Code and Codex in a folder that is not theirs alone: what they may do there unasked."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.causes import Cause
from orchestra.agents.claude import ADAPTER as CLAUDE_ADAPTER
from orchestra.core.model import OutcomeKind, TaskSpec
from tests.agents.replies import PLANNED
from tests.agents.support import URL, Desk, Net, desk, installed, make_task, outside_tmp
from tests.agents.test_interactive import wait_asked
from tests.agents.test_orchestra import desk as repository
from tests.agents.test_orchestra import ran
from tests.unit.recorded import cause_in

__all__ = ["outside_tmp", "repository"]

CLAUDE: Adapter = CLAUDE_ADAPTER
SETTINGS = {"base_url": URL, "max_retries": "1"}
"""Nothing here needs to be told that root is fine: it may not do everything."""


@pytest.fixture
def away(net: Net, tmp_path: Path) -> Iterator[Desk]:
    installed("claude")
    with desk(tmp_path / "node", net) as found:
        found.worker()
        yield found


def shared(stage: Desk, word: str, name: str = "one", **more: str) -> TaskSpec:
    folder = stage.folder / "shared"
    folder.mkdir()
    return make_task("claude", word, name, workspace=str(folder), **more)


def test_claude_changes_files_unasked_and_is_not_let_do_more(away: Desk) -> None:
    spec = shared(away, "SCENE-CLAUDE-WRITE")
    assert away.finished(CLAUDE, spec, away.hand_out(CLAUDE, spec, settings=SETTINGS), "shared-write").verdict.kind is OutcomeKind.DONE
    assert (Path(spec.workspace) / "hello.txt").read_text() == "hello\n"
    other = make_task("claude", "SCENE-CLAUDE-SHARED", "other", workspace=spec.workspace)
    run = away.finished(CLAUDE, other, away.hand_out(CLAUDE, other, settings=SETTINGS), "shared-denied")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.FAILED, Cause.DENIED), run
    assert "set kinds.claude.allowed_tools or permission_mode" in run.verdict.reason
    assert "isolation: worktree" in run.verdict.reason
    assert not (away.agent_folder() / "claude" / "outside.txt").exists()


def test_claude_may_write_what_it_is_to_return(away: Desk) -> None:
    spec = shared(away, "SCENE-CLAUDE-RETURN", "SCENE-CLAUDE-RETURN", returns="plan")
    values = away.hand_out(CLAUDE, spec, settings=SETTINGS)
    run = away.finished(CLAUDE, spec, values, "shared-returned")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert json.loads(away.wait_record("done", values)["returned"]["text"]) == PLANNED
    told = json.dumps(away.net.requests("SCENE-CLAUDE-RETURN")[-1]["body"])
    assert f"{away.attempt_folder(values)}/return/answer.json is the path in" in told


@pytest.mark.parametrize("word", ["SCENE-CLAUDE-WRITE", "SCENE-CLAUDE-SHARED"])
def test_claude_in_its_window_asks(away: Desk, word: str) -> None:
    spec = shared(away, word, word)
    values = away.hand_out(CLAUDE, spec, settings=SETTINGS | {"mode": "interactive"})
    assert wait_asked(away, values).startswith("May it use")
    away.poke({"op": "answer", "task": spec.id, "attempt": 1, "number": 1, "text": "no"})
    assert away.finished(CLAUDE, spec, values, "shared-asked").verdict.kind is OutcomeKind.DONE
    assert list(Path(spec.workspace).iterdir()) == []


def test_claude_in_its_window_may_write_what_it_is_to_return(away: Desk) -> None:
    spec = shared(away, "SCENE-CLAUDE-RETURN", "SCENE-CLAUDE-RETURN", returns="plan")
    values = away.hand_out(CLAUDE, spec, settings=SETTINGS | {"mode": "interactive"})
    run = away.finished(CLAUDE, spec, values, "shared-window-returned")
    assert run.verdict.kind is OutcomeKind.DONE, run
    assert [signal for signal in run.signals if signal.waiting_for] == []
    assert json.loads(away.wait_record("done", values)["returned"]["text"]) == PLANNED


PLAN = """\
name: shared
agents: [{count: 1, kind: codex}]
defaults: {isolation: shared, retries: 0}
tasks:
  - {id: write, agent: codex, prompt: SCENE-CODEX-SHARED, success_criteria: [{run: "grep -qx hello hello.txt"}]}
"""


@pytest.mark.parametrize("mode", ["headless", "interactive"])
@pytest.mark.parametrize("ours", ["auto", "off"])
def test_codex_writes_the_folder_alone_within_our_sandbox_and_without(
    repository: tuple[Path, dict[str, str], list[str]], tmp_path: Path, ours: str, mode: str
) -> None:
    """Its own does not work within ours, so there it has none."""
    repo, env, enter = repository
    (repo / "plan.yaml").write_text(PLAN)
    done = ran(repo, env, enter, "--set", f"sandbox.mode={ours}", "--set", f"kinds.codex.mode={mode}", "--set", "kinds.codex.model=gpt-5.5")
    assert done.returncode == 0
    assert (repo / "hello.txt").read_text() == "hello\n"
    outside = [path for path in tmp_path.rglob("outside.txt") if "homes" in path.parts]
    assert bool(outside) is (ours == "auto"), "its own folder is its own in our sandbox, and not let write in Codex's"
