"""Tasks as people read them: lists, details, and how one failed."""

from __future__ import annotations

from typing import Final

from orchestra.edges.cli.render import Part, Renderer, Styled, mark, one_line, status_word
from orchestra.quantity import show_ms, show_usd
from orchestra.usecases import TasksReply
from orchestra.views import AttemptView, CheckView, TaskDetail, TaskView

PATHS_SHOWN_MAX: Final = 10
SHA_SHOWN: Final = 12
TAIL_LINES: Final = 10
"""Last lines of a failed attempt that are shown; the rest is one command away."""

RULE: Final = "best of {}: verified before not, then most checks passed, fewest failed tests, lowest cost, shortest run, first started"
"""As `core.state.better` has it."""


def took(task: TaskView) -> str:
    """Returns how long a task ran, or nothing if it never did."""
    return show_ms(task.duration_ms) if task.duration_ms else ""


def doing(task: TaskView) -> str:
    """Returns what a task is doing, with its progress if it says, or why it is where it is."""
    if task.question:
        return f"waits for an answer: {one_line(task.question)}"
    percent = "" if task.progress is None else f"{task.progress:.0%} "
    return percent + task.activity if task.activity or percent else task.reason


def agents_of(task: TaskView) -> str:
    """Returns the agents of a task as people name them."""
    return " ".join(f"#{agent}" for agent in task.agents)


def show_tasks(render: Renderer, reply: TasksReply) -> None:
    """Writes a table of tasks."""
    if not reply.tasks:
        render.line("no task is like that")
        return
    header = ["task", "status", "kind", "agent", "tries", "time", "what"]
    rows: list[list[Part]] = [
        [task.task, status_word(task.status), task.kind, agents_of(task), str(task.attempts), took(task), doing(task) or task.description]
        for task in reply.tasks
    ]
    render.table(header, rows, right=("tries", "time"))
    if reply.total > len(reply.tasks):
        render.note(f"{len(reply.tasks)} of {reply.total} shown; --limit shows more")


def show_detail(render: Renderer, detail: TaskDetail) -> None:
    """Writes everything about one task."""
    task = detail.task
    rows: list[tuple[str, Part]] = [
        ("task", Styled(task.task, "bold")),
        ("what", task.description),
        ("status", status_word(task.status)),
        ("why", detail.explain),
        ("question", task.question),
        ("kind", f"{task.kind}, {task.category}, priority {task.priority}"),
        ("needs", ", ".join(task.needs)),
        ("time", f"{took(task) or 'not yet'}, estimated {show_ms(task.estimate_ms)}"),
        ("tries", f"{task.attempts} of at most {detail.retries + 1}"),
        ("criteria", "; ".join(detail.success_criteria)),
        ("planned by", task.origin or ""),
        ("planned", ", ".join(detail.planned)),
        ("reviews", task.reviews or ""),
        ("reviewed by", ", ".join(detail.reviewed_by)),
        ("sent back", f"{detail.sent_back} times" if detail.sent_back > 1 else "once" if detail.sent_back else ""),
        ("warnings", "; ".join(task.warnings)),
        ("works", works(detail)),
        ("merged", merged(detail)),
        ("files", ", ".join(detail.files)),
        ("touched", listed(detail.touched)),
        ("conflicts", "; ".join(f"{each.other} has changed {listed(each.paths)} too" for each in detail.conflicts_predicted)),
        ("rule", RULE.format(detail.replicas) if detail.replicas > 1 else ""),
        ("results", detail.results),
    ]
    render.fields((name, value) for name, value in rows if value)
    for judged in detail.judged:
        evidence = f": {judged.evidence}" if judged.evidence else ""
        render.line("  ", mark(judged.met), f" {judged.criterion} (judged by {judged.by}, {judged.kind}){evidence}")
    for attempt in detail.attempts:
        render.line()
        primary = ", the one that counts" if attempt.number == detail.primary_attempt else ""
        word = status_word(attempt.outcome or attempt.status)
        ran = f" for {show_ms(attempt.duration_ms)}" if attempt.duration_ms else ""
        render.line(Styled(f"attempt {attempt.number}", "bold"), f" by agent #{attempt.agent} on {attempt.node}: ", word, f"{ran}{primary}")
        show_attempt(render, attempt)


def works(detail: TaskDetail) -> str:
    """Returns where its attempts work."""
    if not detail.workspace:
        return "in a private folder"
    return f"{'beside' if detail.isolated else 'in'} {detail.workspace}"


def merged(detail: TaskDetail) -> str:
    """Returns where its work was merged, or nothing."""
    return f"into {detail.branch}, at {detail.commit[:SHA_SHOWN]}" if detail.commit else ""


def listed(paths: tuple[str, ...]) -> str:
    """Returns the first of some paths, and how many there are besides."""
    more = len(paths) - PATHS_SHOWN_MAX
    return ", ".join(paths[:PATHS_SHOWN_MAX]) + (f" and {more} more" if more > 0 else "")


def show_attempt(render: Renderer, attempt: AttemptView) -> None:
    """Writes how an attempt went."""
    if attempt.reason:
        render.line(f"  {attempt.reason}")
    if attempt.waited_ms:
        render.line(f"  waited for answers for {show_ms(attempt.waited_ms)}")
    if attempt.base:
        render.line(f"  began from {attempt.base[:SHA_SHOWN]}")
    if attempt.kept:
        render.line(f"  what it did is kept: {attempt.kept}")
    show_evidence(render, attempt)


def failure_of(check: CheckView) -> str:
    """Returns how a check failed, in words."""
    return f"exit code {check.code}" if check.reason in ("", "exit") else check.reason


def show_evidence(render: Renderer, attempt: AttemptView) -> None:
    """Writes what an attempt left: checks, cost, last lines."""
    for check in attempt.checks:
        render.line("  ", mark(check.passed), f" {check.name}", "" if check.passed else f": {failure_of(check)}")
    if attempt.review is not None:
        render.line(f"  review: {attempt.review.verdict}: {attempt.review.summary}")
        for finding in attempt.review.findings:
            place = finding.file + (f":{finding.line}" if finding.line else "")
            render.line(f"    {finding.severity}{f' {place}' if place else ''}: {finding.text}")
    if attempt.tokens or attempt.cost_usd_micros:
        render.line(f"  {attempt.tokens} tokens, {show_usd(attempt.cost_usd_micros)}")
    show_tail(render, attempt.tail)


def show_tail(render: Renderer, tail: tuple[str, ...]) -> None:
    """Writes the last lines of an output."""
    for line in tail[-TAIL_LINES:]:
        render.line(Styled("    | ", "dim"), line)
