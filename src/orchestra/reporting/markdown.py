"""The run report as Markdown (GitHub's kind), for terminals, commits and chats. The same content as the page, without its pictures."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from orchestra.quantity import show_ms
from orchestra.reporting import figures as fig
from orchestra.reporting.html import commands, counted_attempt, tiles
from orchestra.reporting.notes import notes_of
from orchestra.reporting.words import last_lines, one_line, plain, report_folder, results_link, short, show_time, sign
from orchestra.views import REHEARSAL_NOTICE, ReportData, TaskDetail, TaskView

ROWS_MAX: Final = 1000
FAILURES_MAX: Final = 100
LOGS_MAX: Final = 20
LOG_LINES_MAX: Final = 20
STEPS_MAX: Final = 50
LANES_MAX: Final = 60
LANE_CELLS: Final = 60
_ACTIVE: Final = re.compile(r"[\\`*_{}\[\]#!|~$^<>&@]|:(?=//)|^[-+=]|^[0-9]{1,9}(?=[.)](?:\s|$))")
_BY_NUMBER: Final = frozenset("<>&|:@")
"""Written as entities: a backslash does not stop a table from splitting, or a link from being made."""


def escape(text: str, most: int = 200) -> str:
    """Returns the text as one line in which no character means anything to Markdown or HTML."""
    return _ACTIVE.sub(_harmless, one_line(text, most))


def _harmless(match: re.Match[str]) -> str:
    if match[0].isdigit():
        return f"{match[0]}\\"
    return f"&#{ord(match[0])};" if match[0] in _BY_NUMBER else f"\\{match[0]}"


def fenced(text: str) -> str:
    """Returns a code block; its fence is longer than any run of backticks inside."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}text\n{text}\n{fence}"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table; a head that ends in `:` belongs to figures and stands to the right. Cells are Markdown already."""
    lines = [_line(name.rstrip(":") for name in head), _line("---:" if name.endswith(":") else "---" for name in head)]
    return "\n".join(lines + [_line(row) for row in rows])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def render_markdown(data: ReportData, *, folder: str = "") -> str:
    """Returns the report.

    Args:
        data: The run.
        folder: Where it will lie, for the links to results; the root's `reports` if not given.
    """
    sums = fig.figures(data)
    parts = [
        *([f"**{escape(REHEARSAL_NOTICE)}**"] if data.rehearsal else []),
        *_head(data, sums),
        *_timeline(data, sums),
        *_paths(data),
        *_failures(data),
        *_tasks(data, report_folder(data, folder)),
        *_next(data),
        f"Made {show_time(data.made_ms)} by Miyabi Orchestra {escape(data.version)}",
    ]
    return "\n\n".join(parts) + "\n"


def _head(data: ReportData, sums: fig.Figures) -> list[str]:
    plan = data.plan
    ended = f"ended {show_time(plan.closed_ms)}" if plan.closed_ms else f"as of {show_time(plan.now_ms)}"
    where = [escape(data.orchestra), escape(plan.plan), escape(plan.source), f"submitted {show_time(plan.submitted_ms)}", ended]
    by_status = ", ".join(f"{sign(status)} {count} {escape(status.replace('_', ' '), 20)}" for status, count in sums.by_status)
    notes = [(tile["label"], tile["value"], tile["note"]) for tile in tiles(sums)]
    return [
        f"# {escape(plan.name or plan.plan)}: {fig.verdict(data)[0]}",
        " · ".join(part for part in where if part),
        f"Tasks: {by_status}" if by_status else "There are no tasks.",
        table(("Figure", "Value:", "Note"), notes),
    ]


def _timeline(data: ReportData, sums: fig.Figures) -> list[str]:
    lanes: dict[int, list[str]] = {}
    scale = LANE_CELLS / max(1, sums.end_ms - sums.begin_ms)
    for detail in data.details:
        for attempt in detail.attempts:
            begin, end = fig.attempt_span(attempt, data.plan.now_ms)
            mark = {"done": "█", "": "░", "stopped": "·"}.get(attempt.outcome, "x")
            cells = lanes.setdefault(attempt.agent, [" "] * LANE_CELLS)
            first = min(max(int((begin - sums.begin_ms) * scale), 0), LANE_CELLS - 1)
            last = min(max(int((end - sums.begin_ms) * scale), first + 1), LANE_CELLS)
            for cell in range(first, last):
                cells[cell] = "x" if "x" in (mark, cells[cell]) else mark
    if not lanes:
        return []
    names = {agent.agent: one_line(agent.name, 14) for agent in data.agents if agent.name}
    lines = [f"{names.get(agent, f'#{agent}'):<14} |{''.join(lanes[agent])}|" for agent in sorted(lanes)[:LANES_MAX]]
    more = [f"and {len(lanes) - LANES_MAX} more agents"] if len(lanes) > LANES_MAX else []
    legend = f"█ succeeded   x failed   ░ going on   · stopped; {show_ms(sums.wall_ms)} from left to right"
    return ["## Timeline", fenced("\n".join([*lines, *more, legend]))]


def _paths(data: ReportData) -> list[str]:
    chain, path = fig.actual_chain(data), fig.estimated_path(data)
    details = {detail.task.task: detail for detail in data.details}
    parts = []
    if chain:
        total, waited = sum(step.waited_ms + step.ran_ms for step in chain), sum(step.waited_ms for step in chain)
        rows = [
            (
                f"{sign(step.status)} {escape(short(step.task), 80)}",
                ", ".join(f"#{agent}" for agent in step.agents[:4]),
                show_ms(step.waited_ms),
                show_ms(step.ran_ms),
            )
            for step in chain[-STEPS_MAX:]
        ]
        parts += [
            f"### Chain that ended last: {show_ms(total)}, {show_ms(waited)} of it waiting",
            table(("Task", "Agent", "Waited:", "Ran:"), rows),
        ]
        parts += [f"{len(chain) - STEPS_MAX} earlier steps are left out."] if len(chain) > STEPS_MAX else []
    if path:
        took = [
            (f"{sign(task.status)} {escape(short(task.task), 80)}", show_ms(task.estimate_ms), _took(data, details.get(task.task)))
            for task in path[:STEPS_MAX]
        ]
        parts += [
            f"### Critical path as expected: {show_ms(sum(task.estimate_ms for task in path))}",
            table(("Task", "Expected:", "Took:"), took),
        ]
        parts += [f"{len(path) - STEPS_MAX} further steps are left out."] if len(path) > STEPS_MAX else []
    return ["## What took the time", *parts] if parts else []


def _took(data: ReportData, detail: TaskDetail | None) -> str:
    ran = fig.ran_ms(detail, data.plan.now_ms)
    return show_ms(ran) if ran else "-"


def _failures(data: ReportData) -> list[str]:
    found = fig.failures(data)
    if not found:
        return []
    rows = [
        (
            escape(short(each.task), 80),
            str(each.attempt.number),
            f"#{each.attempt.agent}",
            escape(each.attempt.outcome, 20),
            escape(each.attempt.reason, 300),
            "tried again" if each.retried else f"the task is {escape(each.task_status, 20)}",
        )
        for each in found[:FAILURES_MAX]
    ]
    parts = ["## Failures and retries", table(("Task", "Attempt:", "Agent", "Ended as", "Why", "What followed"), rows)]
    parts += [f"{len(found) - FAILURES_MAX} more are left out."] if len(found) > FAILURES_MAX else []
    told = [each for each in found if each.attempt.tail]
    for each in told[:LOGS_MAX]:
        text = last_lines(each.attempt.tail, LOG_LINES_MAX, 200)
        parts += [f"Last lines of {escape(short(each.task), 80)}, attempt {each.attempt.number}:", fenced(text)]
    return parts + ([f"The lines of {len(told) - LOGS_MAX} more attempts are left out."] if len(told) > LOGS_MAX else [])


def _tasks(data: ReportData, folder: str) -> list[str]:
    details = {detail.task.task: detail for detail in data.details}
    tasks = sorted(data.plan.tasks, key=lambda task: task.status != "failed") if len(data.plan.tasks) > ROWS_MAX else data.plan.tasks
    rows = [_row(data, task, details.get(task.task), folder) for task in tasks[:ROWS_MAX]]
    parts = ["## Tasks", table(("Task", "Status", "Agent", "Attempts:", "Time:", "Checks", "Files"), rows)] if rows else []
    return parts + ([f"{len(tasks) - ROWS_MAX} more tasks are not listed here."] if len(tasks) > ROWS_MAX else [])


def _row(data: ReportData, task: TaskView, detail: TaskDetail | None, folder: str) -> tuple[str, ...]:
    counted = None if detail is None else counted_attempt(detail)
    checks = () if counted is None else counted.checks
    link = results_link(data, detail, folder) if detail is not None and task.status in fig.OVER else ""
    about = f" {escape(task.description, 120)}" if task.description else ""
    return (
        f"**{escape(short(task.task), 80)}**{about}" + "".join(f"; {escape(note, 300)}" for note in notes_of(task, detail)),
        f"{sign(task.status)} {escape(task.status.replace('_', ' '), 20)}",
        ", ".join(f"#{agent}" for agent in task.agents[:4]),
        str(task.attempts),
        _took(data, detail),
        " ".join(
            [f"{'✓' if check.passed else '✗'} {escape(check.name, 32)}" for check in checks[:6]]
            + [f"{'✓' if each.met else '✗'} {escape(each.criterion, 60)} (judged)" for each in (detail.judged if detail else ())[:6]]
        ),
        f"[folder](<{link}>)" if link else "",
    )


def _next(data: ReportData) -> list[str]:
    parts = ["## How to go on"]
    for each in commands(data):
        parts += [f"{each['why']}:", fenced(plain(each["line"]))]
    return parts
