"""An agent that asks, in a real orchestra: the state outlives the coordinator, and the answer finds its way."""

from __future__ import annotations

from pathlib import Path

import pytest

from orchestra.errors import BadInput, IllegalMove
from orchestra.intake.request import AnswerParams
from orchestra.testing.hosted import hosted
from orchestra.usecases import TaskParams

PLAN = """\
name: p
tasks:
  - id: a
    agent: rehearsal
    prompt: ask
    requirements: {scenario: [{ask: "Which colour?"}, {ask: "Really?"}, {write: {path: done.txt, text: x}}]}
    success_criteria: [{run: test -f done.txt}]
"""
TASK = "p/a"


async def test_a_question_outlives_the_coordinator_and_is_answered(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with hosted(root, agents=1, end=False) as stage:
        await stage.submit(PLAN, tmp_path)
        await stage.wait_status(TASK, "waiting")
        with pytest.raises(IllegalMove, match="question 2 any more"):
            await stage.app.answer(AnswerParams(task_id=TASK, text="red", question=2))
        with pytest.raises(BadInput, match="too long"):
            await stage.app.answer(AnswerParams(task_id=TASK, text="\N{GRINNING FACE}" * 2000))
    async with hosted(root) as stage:
        await stage.wait_status(TASK, "waiting")
        reply = await stage.app.answer(AnswerParams(task_id="a", text="red", question=1))
        assert (reply.task_id, reply.attempt, reply.question) == (TASK, 1, "Which colour?")
        await stage.wait(lambda state: True if state.tasks[TASK].attempts[0].question == "Really?" else None)  # type: ignore[index]
        detail = await stage.app.task(TaskParams(TASK))
        assert (detail.task.question, detail.attempts[0].question) == ("Really?", "Really?")
        await stage.app.answer(AnswerParams(task_id=TASK, text="yes"))
        await stage.wait_status(TASK, "completed")
        with pytest.raises(IllegalMove, match="does not wait for an answer: it is completed"):
            await stage.app.answer(AnswerParams(task_id=TASK, text="yes"))
