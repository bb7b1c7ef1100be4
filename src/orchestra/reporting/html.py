"""The run report as one HTML page that needs nothing else: no network, no fonts, no libraries.

What tasks and agents wrote is hostile. Three things keep it from acting: control and direction marks are replaced (`words.plain`), the template escapes
everything, and the page's content policy runs the one script whose hash it names. Lists are bounded, and the page says where it left something out.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from functools import cache
from importlib import resources
from typing import Final

import jinja2
import msgspec
from markupsafe import Markup

from orchestra.quantity import show_ms, show_usd
from orchestra.reporting import figures as fig
from orchestra.reporting import pictures as pic
from orchestra.reporting.notes import notes_of
from orchestra.reporting.words import last_lines, one_line, plain, report_folder, results_link, short, show_time, sign, tone
from orchestra.views import REHEARSAL, REHEARSAL_NOTICE, AgentView, AttemptView, ReportData, TaskDetail, TaskView

ROWS_MAX: Final = 2000
FAILURES_MAX: Final = 300
LOGS_MAX: Final = 60
LOG_LINES_MAX: Final = 30
LOG_COLUMNS_MAX: Final = 240
LOG_CHARS_MAX: Final = 100_000
"""All log tails together. This, and texts that get shorter the more rows there are, keep a run of 1,000 failed tasks below 3 MB."""
CELL_CHARS_MAX: Final = 80_000
"""All texts of one column together."""
CHECKS_MAX: Final = 4
STEPS_MAX: Final = 100

Values = dict[str, object]


class _Book(msgspec.Struct, frozen=True):
    """What many parts of the page look up."""

    data: ReportData
    figures: fig.Figures
    key: dict[str, int]
    """Place of each task in the plan, which is what the page calls it by."""
    details: dict[str, TaskDetail]
    agents: dict[int, AgentView]
    folder: str


def render_html(data: ReportData, *, folder: str = "") -> str:
    """Returns the page.

    Args:
        data: The run.
        folder: Where the page will lie, for the links to results; the root's `reports` if not given.
    """
    book = _Book(
        data,
        fig.figures(data),
        {task.task: place for place, task in enumerate(data.plan.tasks)},
        {detail.task.task: detail for detail in data.details},
        {agent.agent: agent for agent in data.agents},
        report_folder(data, folder),
    )
    values = {**_head(book), **_plan(book), **_timeline(book), **_paths(book), **_failures(book), **_rows(book), "commands": commands(data)}
    style, script, template = _parts()
    hashes = {"style": Markup(style), "style_hash": _digest(style), "script": Markup(script), "script_hash": _digest(script)}
    return template.render({**values, **hashes})


@cache
def _parts() -> tuple[str, str, jinja2.Template]:
    """Returns style, script and template. The first two are ours and go in as they are."""
    here = resources.files("orchestra.reporting")
    style, script, page = (here.joinpath(name).read_text("utf-8") for name in ("report.css", "report.js", "report.html.j2"))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters["svg"] = pic.number
    return style, script, environment.from_string(page)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _head(book: _Book) -> Values:
    data, sums = book.data, book.figures
    words, colour = fig.verdict(data)
    name = data.plan.name or data.plan.plan
    ended = f"ended {show_time(data.plan.closed_ms)}" if data.plan.closed_ms else f"as of {show_time(data.plan.now_ms)}"
    meta = [data.orchestra, data.plan.plan, data.plan.source, f"submitted {show_time(data.plan.submitted_ms)}", ended]
    return {
        "title": one_line(f"{REHEARSAL} {name}" if data.rehearsal else name, 200),
        "verdict": words,
        "verdict_tone": colour,
        "rehearsal": REHEARSAL_NOTICE if data.rehearsal else "",
        "meta": [one_line(each, 300) for each in meta if each],
        "tiles": tiles(sums),
        "tasks_count": sums.tasks,
        "begin": show_time(sums.begin_ms),
        "footer": one_line(f"Made {show_time(data.made_ms)} by Miyabi Orchestra {data.version}", 200),
    }


def tiles(sums: fig.Figures) -> list[dict[str, str]]:
    """Returns the summary figures: label, value and a note each."""
    done = dict(sums.by_status).get("completed", 0)
    source = "as the gateway settled it" if sums.settled else "as agents reported it"
    speed = f"{sums.speed_up:.1f}×" if sums.speed_up is not None else "-"  # noqa: RUF001
    return [
        {"label": "Tasks completed", "value": f"{done} / {sums.tasks}", "note": ""},
        {"label": "Wall time", "value": show_ms(sums.wall_ms), "note": "from submission to end"},
        {"label": "Sum of task time", "value": show_ms(sums.task_ms), "note": "one task after the other"},
        {"label": "Speed-up", "value": speed, "note": "sum / wall time"},
        {"label": "Agents used", "value": str(sums.agents_used), "note": f"of {sums.agents_total}"},
        {"label": "Attempts", "value": str(sums.attempts), "note": f"retries: {sums.retries}, failed: {sums.failed_attempts}"},
        {"label": "Model cost", "value": show_usd(sums.cost_usd_micros), "note": source},
        {"label": "Tokens", "value": f"{sums.tokens:,}", "note": source},
    ]


def _plan(book: _Book) -> Values:
    return {
        "shares": pic.shares(book.figures),
        "dag": pic.dag_picture(book.data),
        "bands": pic.band_picture(book.data),
    }


def _timeline(book: _Book) -> Values:
    return {"gantt": pic.gantt_picture(book.data, book.figures, book.key)}


def _paths(book: _Book) -> Values:
    chain, path = fig.actual_chain(book.data), fig.estimated_path(book.data)
    total = sum(step.waited_ms + step.ran_ms for step in chain)
    return {
        "chain": [_chain_step(book, step) for step in chain[-STEPS_MAX:]],
        "chain_left_out": max(0, len(chain) - STEPS_MAX),
        "chain_total": f"{show_ms(total)}, {show_ms(sum(step.waited_ms for step in chain))} of it waiting" if chain else "-",
        "path": [_path_step(book, task) for task in path[:STEPS_MAX]],
        "path_left_out": max(0, len(path) - STEPS_MAX),
        "path_total": show_ms(sum(task.estimate_ms for task in path)),
    }


def _named(book: _Book, task: str, status: str) -> Values:
    return {"key": book.key.get(task, 0), "name": one_line(short(task), 80), "tone": tone(status), "sign": sign(status)}


def _chain_step(book: _Book, step: fig.ChainStep) -> Values:
    return {
        **_named(book, step.task, step.status),
        "agent": ", ".join(_agent(book, agent) for agent in step.agents[:4]),
        "waited": show_ms(step.waited_ms),
        "ran": show_ms(step.ran_ms) + (f" ({step.attempts} tries)" if step.attempts > 1 else ""),
        "after": show_ms(max(0, step.end_ms - book.figures.begin_ms)),
    }


def _path_step(book: _Book, task: TaskView) -> Values:
    return {**_named(book, task.task, task.status), "expected": show_ms(task.estimate_ms), "took": _took(book, task)}


def _room(most: int, cells: int) -> int:
    """Returns how many characters a text may have in a column of so many cells."""
    return max(40, min(most, CELL_CHARS_MAX // max(1, cells)))


def _took(book: _Book, task: TaskView) -> str:
    ran = fig.ran_ms(book.details.get(task.task), book.data.plan.now_ms)
    return show_ms(ran) if ran else "-"


def _agent(book: _Book, agent: int) -> str:
    found = book.agents.get(agent)
    return one_line(found.name, 24) if found is not None and found.name else f"#{agent}"


def _failures(book: _Book) -> Values:
    found = fig.failures(book.data)
    tasks = len({each.task for each in found})
    note = f"{_count(len(found), 'attempt')} of {_count(tasks, 'task')} did not end well."
    if len(found) > FAILURES_MAX:
        note += f" The first {FAILURES_MAX} are listed, those of failed tasks first."
    logs, left_out = _logs(book, found)
    return {
        "failures": [_failure(book, each, _room(300, len(found))) for each in found[:FAILURES_MAX]],
        "failures_note": note,
        "logs": logs,
        "logs_note": f"Of {left_out} more attempts the lines are not shown here; their folders have them." if left_out else "",
    }


def _count(number: int, word: str) -> str:
    return f"{number} {word}" if number == 1 else f"{number} {word}s"


def _failure(book: _Book, each: fig.Failure, room: int) -> Values:
    attempt = each.attempt
    ending = f"exit code {attempt.code}" if attempt.code else (f"signal {attempt.signal}" if attempt.signal else "")
    followed = "tried again" if each.retried else ("the task failed" if each.task_status == "failed" else f"the task is {each.task_status}")
    return {
        **_named(book, each.task, "failed"),
        "number": attempt.number,
        "agent": _agent(book, attempt.agent),
        "outcome": one_line(attempt.outcome, 20),
        "reason": one_line(attempt.reason or ending or "no reason was given", room),
        "followed": followed,
    }


def _logs(book: _Book, found: tuple[fig.Failure, ...]) -> tuple[list[Values], int]:
    """Returns the log tails that fit, and how many were left out."""
    logs: list[Values] = []
    room, left_out = LOG_CHARS_MAX, 0
    for each in found:
        checks = [(f"check {check.name}", check.tail) for check in each.attempt.checks if not check.passed and check.tail]
        for what, lines in [("output", each.attempt.tail), *checks]:
            text = last_lines(lines, LOG_LINES_MAX, LOG_COLUMNS_MAX)
            if not text:
                continue
            if len(logs) >= LOGS_MAX or len(text) > room:
                left_out += 1
                continue
            room -= len(text)
            about = f"attempt {each.attempt.number}, {one_line(what, 80)}, end of the log, {_count(text.count(chr(10)) + 1, 'line')}"
            logs.append({**_named(book, each.task, "failed"), "about": about, "text": text})
    return logs, left_out


def _rows(book: _Book) -> Values:
    tasks = book.data.plan.tasks
    if len(tasks) > ROWS_MAX:
        tasks = tuple(sorted(tasks, key=lambda task: task.status != "failed"))
    return {"rows": [_row(book, task, _room(160, len(tasks))) for task in tasks[:ROWS_MAX]], "rows_left_out": max(0, len(tasks) - ROWS_MAX)}


def _row(book: _Book, task: TaskView, room: int) -> Values:
    detail = book.details.get(task.task)
    counted = None if detail is None else counted_attempt(detail)
    checks = () if counted is None else counted.checks
    over = task.status in fig.OVER
    return {
        **_named(book, task.task, task.status),
        "status": one_line(task.status, 20),
        "word": one_line(task.status.replace("_", " "), 20),
        "description": one_line(task.description, room),
        "reason": one_line(task.reason, room) if task.status != "completed" else "",
        "notes": [one_line(note, 300) for note in notes_of(task, detail)],
        "agent": ", ".join(_agent(book, agent) for agent in task.agents[:4]),
        "attempts": task.attempts,
        "time": _took(book, task),
        "checks": [{"passed": check.passed, "name": one_line(check.name, 28)} for check in checks[:CHECKS_MAX]]
        + [
            {"passed": each.met, "name": one_line(f"{each.criterion} (judged)", 60)}
            for each in (detail.judged if detail else ())[:CHECKS_MAX]
        ],
        "checks_more": max(0, len(checks) - CHECKS_MAX),
        "link": results_link(book.data, detail, book.folder) if detail is not None and over else "",
        "logged": task.attempts > 0,
    }


def counted_attempt(detail: TaskDetail) -> AttemptView | None:
    """Returns the attempt whose checks stand for the task: the one that counts, else the last."""
    primary = next((attempt for attempt in detail.attempts if attempt.number == detail.primary_attempt), None)
    return primary or (detail.attempts[-1] if detail.attempts else None)


def commands(data: ReportData) -> list[dict[str, str]]:
    """Returns what can be done next: why, and the line to type."""
    tasks = data.plan.tasks
    failed = [task for task in tasks if task.status == "failed"]
    shown = (failed or list(tasks))[:1]
    source = shlex.quote(plain(data.plan.source)) if data.plan.source else "PLAN"
    lines = [{"why": "See all that a task printed", "line": f"orchestra task logs {shlex.quote(plain(task.task))}"} for task in shown]
    if any(task.status != "completed" for task in tasks):
        why = "Run again what is not completed; what is completed stays as it is"
        lines.append({"why": why, "line": f"orchestra run {source} --resume"})
    else:
        lines.append({"why": "All is done. Do it anew, also after a change to the plan", "line": f"orchestra run {source}"})
    return lines
