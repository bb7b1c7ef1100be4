"""What a run came to in figures: sums, the chain that decided how long it took, and what went wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Final

import msgspec

from orchestra.views import AttemptView, ReportData, TaskDetail, TaskView

STATUS_ORDER: Final = (
    *("completed", "failed", "cancelled", "running", "waiting", "verifying", "assigned", "unknown", "retry_wait", "queued", "pending"),
)
OVER: Final = ("completed", "failed", "cancelled")
WELL: Final = ("", "done", "stopped")
"""Outcomes that are no failure: still going on, done, or ended on our own order."""

Span = tuple[int, int]


class Figures(msgspec.Struct, frozen=True):
    """The sums of one run."""

    tasks: int
    by_status: tuple[tuple[str, int], ...]
    begin_ms: int
    end_ms: int
    wall_ms: int
    """From the submission of the plan to the end of its last attempt, or to now."""
    task_ms: int
    """What the tasks took one by one: waiting, and attempts in parallel to another of the same task, do not count."""
    speed_up: float | None
    agents_used: int
    agents_total: int
    attempts: int
    retries: int
    """Attempts that began after another one of the same task had ended."""
    failed_attempts: int
    tokens: int
    cost_usd_micros: int
    settled: int
    """Attempts of which both are as the gateway settled them; of the others as their programs said."""


class ChainStep(msgspec.Struct, frozen=True):
    """One task of a chain, and how its time went."""

    task: str
    status: str
    agents: tuple[int, ...]
    attempts: int
    waited_ms: int
    ran_ms: int
    end_ms: int


class Failure(msgspec.Struct, frozen=True):
    """One attempt that did not end well."""

    task: str
    attempt: AttemptView
    retried: bool
    task_status: str


def attempt_span(attempt: AttemptView, now_ms: int) -> Span:
    """Returns when the attempt began and ended; one that goes on ends now."""
    begin = attempt.started_ms or attempt.assigned_ms
    return begin, max(begin, attempt.ended_ms or now_ms)


def covered_ms(spans: Iterable[Span]) -> int:
    """Returns how much time lies in at least one of the spans."""
    total, reached = 0, None
    for begin, end in sorted(spans):
        reached = begin if reached is None else max(reached, begin)
        total += max(0, end - reached)
        reached = max(reached, end)
    return total


def ran_ms(detail: TaskDetail | None, now_ms: int) -> int:
    """Returns how long the task was being worked on: neither the wait before a retry nor attempts in parallel count."""
    return 0 if detail is None else covered_ms(attempt_span(attempt, now_ms) for attempt in detail.attempts)


def figures(data: ReportData) -> Figures:
    """Returns the sums."""
    plan = data.plan
    attempts = [attempt for detail in data.details for attempt in detail.attempts]
    spans = [attempt_span(attempt, plan.now_ms) for attempt in attempts]
    begin = plan.submitted_ms or min((span[0] for span in spans), default=plan.now_ms)
    end = max((span[1] for span in spans), default=plan.closed_ms or plan.now_ms)
    task_ms = sum(ran_ms(detail, plan.now_ms) for detail in data.details)
    wall = max(0, end - begin)
    count = Counter(task.status for task in plan.tasks)
    order = {status: place for place, status in enumerate(STATUS_ORDER)}
    return Figures(
        tasks=len(plan.tasks),
        by_status=tuple(sorted(count.items(), key=lambda item: (order.get(item[0], len(order)), item[0]))),
        begin_ms=begin,
        end_ms=end,
        wall_ms=wall,
        task_ms=task_ms,
        speed_up=task_ms / wall if wall and task_ms else None,
        agents_used=len({attempt.agent for attempt in attempts}),
        agents_total=len(data.agents),
        attempts=len(attempts),
        retries=sum(_is_retry(attempt, detail) for detail in data.details for attempt in detail.attempts),
        failed_attempts=sum(attempt.outcome not in WELL for attempt in attempts),
        tokens=sum(attempt.tokens for attempt in attempts),
        cost_usd_micros=sum(attempt.cost_usd_micros for attempt in attempts),
        settled=sum(attempt.settled for attempt in attempts),
    )


def _is_retry(attempt: AttemptView, detail: TaskDetail) -> bool:
    return any(other.ended_ms and other.number < attempt.number and other.ended_ms <= attempt.assigned_ms for other in detail.attempts)


def verdict(data: ReportData) -> tuple[str, str]:
    """Returns the outcome in a few words and its colour class."""
    count = Counter(task.status for task in data.plan.tasks)
    total, done, failed, cancelled = len(data.plan.tasks), count["completed"], count["failed"], count["cancelled"]
    open_tasks = total - done - failed - cancelled
    if not total:
        return "no tasks", "off"
    if done == total:
        return f"all {total} completed" if total > 1 else "completed", "good"
    parts = [f"{number} {word}" for number, word in ((failed, "failed"), (cancelled, "cancelled"), (open_tasks, "open")) if number]
    return f"{', '.join(parts)} of {total}", "bad" if failed else ("live" if open_tasks else "off")


def actual_chain(data: ReportData) -> tuple[ChainStep, ...]:
    """Returns the chain of tasks that ended last, first task first: from each task back to the need that ended last.

    The steps follow one another without a gap, so what they waited and ran adds up to the time from the submission to the end of the run.
    """
    details = {detail.task.task: detail for detail in data.details if detail.attempts}
    if not details:
        return ()
    ends = {task: max(attempt_span(each, data.plan.now_ms)[1] for each in detail.attempts) for task, detail in details.items()}
    current: str | None = max(ends, key=lambda task: ends[task])
    steps: list[ChainStep] = []
    seen: set[str] = set()
    while current is not None and current not in seen:
        seen.add(current)
        needs = [need for need in details[current].task.needs if need in ends and need not in seen]
        before = max(needs, key=lambda need: ends[need], default=None)
        begin = data.plan.submitted_ms if before is None else ends[before]
        steps.append(_step(details[current], begin, ends[current], data.plan.now_ms))
        current = before
    return tuple(reversed(steps))


def _step(detail: TaskDetail, from_ms: int, end_ms: int, now_ms: int) -> ChainStep:
    spans = [attempt_span(attempt, now_ms) for attempt in detail.attempts]
    ran = covered_ms((max(begin, from_ms), end) for begin, end in spans if end > from_ms)
    return ChainStep(
        task=detail.task.task,
        status=detail.task.status,
        agents=tuple(dict.fromkeys(attempt.agent for attempt in detail.attempts)),
        attempts=len(detail.attempts),
        waited_ms=max(0, end_ms - from_ms - ran),
        ran_ms=ran,
        end_ms=end_ms,
    )


def estimated_path(data: ReportData) -> tuple[TaskView, ...]:
    """Returns the tasks of the path that was expected to take longest."""
    tasks: Mapping[str, TaskView] = {task.task: task for task in data.plan.tasks}
    return tuple(tasks[task] for task in data.plan.critical_path if task in tasks)


def failures(data: ReportData) -> tuple[Failure, ...]:
    """Returns every attempt that did not end well: those of failed tasks first, then by time."""
    found = [
        Failure(detail.task.task, attempt, attempt.number < len(detail.attempts), detail.task.status)
        for detail in data.details
        for attempt in detail.attempts
        if attempt.outcome not in WELL
    ]
    return tuple(sorted(found, key=lambda each: (each.task_status != "failed", each.attempt.ended_ms, each.task, each.attempt.number)))
