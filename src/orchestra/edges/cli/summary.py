"""How a run ended: the figures, what failed with its last words, and where the report is."""

from __future__ import annotations

from typing import Final, NamedTuple

import msgspec

from orchestra.edges.cli.render import Face, Renderer, Styled, status_word
from orchestra.edges.cli.session import Session
from orchestra.edges.cli.task_text import TAIL_LINES, show_evidence
from orchestra.errors import OrchestraError, Refused
from orchestra.quantity import show_ms
from orchestra.usecases import PlanNameParams, ReportReply, TaskParams, UseCases
from orchestra.views import REHEARSAL, PlanView, TaskCounts, TaskDetail, TaskView

FAILURES_SHOWN: Final = 10
UNFINISHED: Final = "unfinished"
QUEUED: Final = ("pending", "queued", "retry_wait")
OVER: Final = ("completed", "failed", "cancelled")
EXIT_CODES: Final = {"completed": 0, "failed": 1, "cancelled": 1, UNFINISHED: 3}


class Failure(msgspec.Struct, frozen=True):
    """A task that failed for good."""

    task: str
    status: str
    reason: str
    tail: tuple[str, ...]


class RunResult(msgspec.Struct, frozen=True, tag_field="type", tag="result"):
    """The last line of `orchestra run --json`."""

    plan: str
    status: str
    """`completed`, `failed`, `cancelled` or `unfinished`."""
    exit_code: int
    tasks: TaskCounts
    duration_ms: int
    failures: tuple[Failure, ...]
    """Of tasks that failed; those that were blocked by them are only counted, as cancelled."""
    report: ReportReply | None
    rehearsal: bool = False
    """No model was asked."""


class RunEnd(NamedTuple):
    """The result, and for people what the first failures left."""

    result: RunResult
    details: tuple[TaskDetail, ...] = ()


async def collect(use_cases: UseCases, plan: str, last: PlanView | None, *, finished: bool, rehearsal: bool = False) -> RunEnd:
    """Returns how it ended; what an orchestra that is gone cannot tell any more is left out."""
    view = last
    details: tuple[TaskDetail, ...] = ()
    try:
        view = await use_cases.plan(PlanNameParams(plan))
        details = tuple([await use_cases.task(TaskParams(task.task)) for task in _failed(view)[:FAILURES_SHOWN]])
    except OrchestraError:
        if view is None:
            return RunEnd(RunResult(plan, UNFINISHED, EXIT_CODES[UNFINISHED], TaskCounts(0, 0, 0, 0), 0, (), None, rehearsal))
    status = view.status if finished and view.status != "running" else UNFINISHED
    tails = {detail.task.task: detail.attempts[-1].tail for detail in details if detail.attempts}
    failures = tuple(Failure(task.task, task.status, task.reason, tails.get(task.task, ())[-TAIL_LINES:]) for task in _failed(view))
    duration = max(0, (view.closed_ms or view.now_ms) - view.submitted_ms)
    report = await _report(use_cases, plan)
    return RunEnd(RunResult(plan, status, EXIT_CODES.get(status, 1), counts(view.tasks), duration, failures, report, rehearsal), details)


async def _report(use_cases: UseCases, plan: str) -> ReportReply | None:
    """A report that cannot be written must not hide how the run ended."""
    try:
        return await use_cases.report(PlanNameParams(plan))
    except OrchestraError:
        return None


def _failed(view: PlanView) -> list[TaskView]:
    return [task for task in view.tasks if task.status == "failed"]


def counts(tasks: tuple[TaskView, ...]) -> TaskCounts:
    """Returns how many tasks are in which state."""
    queued = sum(task.status in QUEUED for task in tasks)
    over = {word: sum(task.status == word for task in tasks) for word in OVER}
    return TaskCounts(queued, len(tasks) - queued - sum(over.values()), over["completed"], over["failed"], over["cancelled"])


def show_end(session: Session, end: RunEnd) -> None:
    """Shows how the run ended."""
    render, result = session.render, end.result
    if render.face is Face.JSON:
        render.json(result)
    elif render.face is Face.QUIET:
        if result.failures:
            names = ", ".join(failure.task for failure in result.failures[:FAILURES_SHOWN])
            message = f"{len(result.failures)} of {_total(result)} tasks failed: {names}"
            render.error(Refused(message, hint=f"`orchestra task logs {result.failures[0].task}` shows what it wrote"))
    else:
        _show_human(render, end)


def _total(result: RunResult) -> int:
    tasks = result.tasks
    return tasks.queued + tasks.in_progress + tasks.completed + tasks.failed + tasks.cancelled


def _show_human(render: Renderer, end: RunEnd) -> None:
    result = end.result
    mark = (Styled(REHEARSAL, "yellow"), " ") if result.rehearsal else ()
    render.line(
        *mark, Styled(result.plan, "bold"), " ", status_word(result.status), f": {_figures(result)} in {show_ms(result.duration_ms)}"
    )
    for detail in end.details:
        render.line()
        render.line(Styled("✗", "red"), f" {detail.task.task}: {detail.task.reason}")
        if detail.attempts:
            show_evidence(render, detail.attempts[-1])
        render.line(Styled(f"    orchestra task logs {detail.task.task}", "dim"))
    hidden = len(result.failures) - len(end.details)
    if hidden > 0:
        render.line(f"and {hidden} more: `orchestra task list --plan {result.plan} --status failed`")
    if result.report is not None:
        render.line(f"report: {result.report.html}")


def _figures(result: RunResult) -> str:
    tasks = result.tasks
    parts = [f"{tasks.completed} of {_total(result)} tasks completed"]
    rest = ((tasks.failed, "failed"), (tasks.cancelled, "cancelled"), (tasks.in_progress, "running"), (tasks.queued, "not started"))
    return ", ".join(parts + [f"{count} {word}" for count, word in rest if count])
