"""Attempts whose agent waits for an answer: when that begins, when it is over, and who may be answered."""

from __future__ import annotations

from collections.abc import Iterator

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core import transitions as t
from orchestra.core.model import AttemptStatus
from orchestra.core.state import AttemptState, State, TaskState
from orchestra.errors import IllegalMove


def _live(s: State, cmd: c.AttemptAsks | c.AttemptGoesOn) -> AttemptState | None:
    """The attempt if it is live: what an earlier one says changes nothing."""
    task = s.tasks.get(cmd.task)
    attempt = None if task is None else task.attempt(cmd.attempt)
    return attempt if attempt is not None and attempt.live else None


def attempt_asks(s: State, cmd: c.AttemptAsks, now: int, policy: c.Policy) -> list[e.Event]:
    attempt = _live(s, cmd)
    if attempt is None or not t.may(t.ATTEMPT, attempt.status, e.AttemptWaiting):
        return []
    if (attempt.question, attempt.question_number) == (cmd.question, cmd.number):
        return []
    return [e.AttemptWaiting(cmd.task, cmd.attempt, cmd.question, cmd.number)]


def attempt_goes_on(s: State, cmd: c.AttemptGoesOn, now: int, policy: c.Policy) -> list[e.Event]:
    attempt = _live(s, cmd)
    return [] if attempt is None else answered(cmd, attempt, now)


def answered(what: c.AttemptGoesOn | c.AttemptChecking | c.AttemptFinished, attempt: AttemptState, now: int) -> list[e.Event]:
    """Returns the end of its waiting, if it waits. An attempt that goes on to its checks or ends waits no more either."""
    return [e.AttemptAnswered(what.task, what.attempt, max(0, now - attempt.waiting_ms))] if attempt.question else []


def after_attempt_sighted(s: State, ev: e.AttemptSighted, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """What waited when it was lost sight of, and has told of nothing since, waits still."""
    attempt = s.tasks[ev.task].attempts[ev.attempt - 1]
    if attempt.question and attempt.status is AttemptStatus.RUNNING:
        yield e.AttemptWaiting(ev.task, ev.attempt, attempt.question, attempt.question_number, again=True)


def attempt_to_answer(task: TaskState, number: int | None = None) -> AttemptState:
    """Returns the attempt that waits longest, or for the answer to the question of that number.

    Raises:
        IllegalMove: None does.
    """
    asking = [attempt for attempt in task.live_attempts() if attempt.question]
    if not asking:
        hint = "`orchestra task show` tells what it does" + (
            "; `orchestra agent send` types into its window" if task.live_attempts() else ""
        )
        raise IllegalMove(f"task {task.id} does not wait for an answer: it is {task.status.value}", field="task_id", hint=hint)
    if number is not None:
        asking = [attempt for attempt in asking if attempt.question_number == number]
        if not asking:
            hint = "`orchestra task show` tells what it waits for now"
            raise IllegalMove(f"task {task.id} does not wait for an answer to question {number} any more", field="question", hint=hint)
    return min(asking, key=lambda attempt: attempt.waiting_ms)
