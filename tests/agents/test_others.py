"""The other CLIs as they are: a file written, and a key that is refused."""

from __future__ import annotations

import pytest

from orchestra.agents.adapter import Adapter
from orchestra.agents.aider import ADAPTER as AIDER
from orchestra.agents.causes import Cause
from orchestra.agents.gemini import ADAPTER as GEMINI
from orchestra.agents.mini import ADAPTER as MINI
from orchestra.agents.opencode import ADAPTER as OPENCODE
from orchestra.core.model import OutcomeKind
from tests.agents.support import URL, Desk, installed, make_task
from tests.unit.recorded import cause_in

CASES = [
    pytest.param(OPENCODE, "SCENE-OPENCODE-WRITE", {"base_url": f"{URL}/v1", "model": "fake-model"}, id="opencode"),
    pytest.param(GEMINI, "SCENE-GEMINI-WRITE", {"base_url": URL, "model": "gemini-2.5-flash"}, id="gemini"),
    pytest.param(AIDER, "SCENE-AIDER-WRITE", {"base_url": f"{URL}/v1", "model": "openai/fake-model", "edit_format": "whole"}, id="aider"),
    pytest.param(MINI, "SCENE-MINI-WRITE", {"base_url": f"{URL}/v1", "model": "openai/fake-model"}, id="mini-swe-agent"),
]


@pytest.fixture(autouse=True)
def worker(stage: Desk) -> None:
    stage.worker()


@pytest.mark.parametrize("adapter,word,settings", CASES)
def test_a_file_is_written(stage: Desk, adapter: Adapter, word: str, settings: dict[str, str]) -> None:
    installed(adapter.programs[0])
    spec = make_task(adapter.kind, word, files=("hello.txt",))
    run = stage.finished(adapter, spec, stage.hand_out(adapter, spec, settings=settings), "success")
    assert run.verdict.kind is OutcomeKind.DONE, (run.verdict, run.end)
    assert (run.work / "hello.txt").read_text() == "hello\n"


@pytest.mark.parametrize("adapter,word,settings", CASES)
def test_a_refused_key_is_told_as_that(stage: Desk, adapter: Adapter, word: str, settings: dict[str, str]) -> None:
    installed(adapter.programs[0])
    spec = make_task(adapter.kind, "SCENE-BAD-KEY")
    run = stage.finished(adapter, spec, stage.hand_out(adapter, spec, settings=settings), "bad-key")
    assert (run.verdict.kind, cause_in(run.verdict.reason)) == (OutcomeKind.REFUSED, Cause.AUTH), (run.verdict, run.end)
