"""What becomes of reviews.

A task that is reviewed is completed when its own checks have passed, so that the review can begin from it; but nobody builds on it before the review has approved
it. Therefore whoever needs the reviewed task, or anything that lies between it and its review, waits for the review as well (`core.gates`). A refusal can then send the
work back without anything having to be undone: the reviewed task gets a further attempt, which is told the findings, what lies between is done again, and the
review is made anew. The second refusal is final: the review fails, and a person has to look.

The functions here are `decide`'s and `evolve`'s for these events, and keep their rules.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core import transitions as t
from orchestra.core.graph import topological_order
from orchestra.core.model import Finding, Review, TaskSpec
from orchestra.core.planning import completed
from orchestra.core.state import State, TaskState
from orchestra.ids import TaskId

FEEDBACK_CHARACTERS_MAX: Final = 60_000
"""Findings are given to the next attempt, whose prompt has other things to say too."""


def settled(s: State, task: TaskState, number: int, policy: c.Policy) -> Iterable[e.Event]:
    """Returns what follows from an attempt that is verified: completed, on its way into the branch, or, of a review that refuses, sent back."""
    if task.spec.reviews is None:
        return [e.TaskMerging(task.id, number)] if task.spec.isolated else completed(s, task, number, policy)
    outcome = task.attempts[number - 1].outcome
    review = None if outcome is None else outcome.review
    if review is None or review.approved:
        return completed(s, task, number, policy)
    if task.refusals >= policy.review_rounds_max:
        again = "again: " if task.refusals else ""
        return [e.TaskFailed(task.id, f"it refuses {task.spec.reviews}, {again}{review.summary}"[:2000])]
    reviewed = task.spec.reviews
    between = [name for name in _resting_on(s, reviewed) if task.id in s.tasks[name].spec.gates]
    return [
        e.ReviewRefused(task.id, number, reviewed),
        e.TaskSentBack(reviewed, task.id, told(task.id, review)),
        *(e.TaskSentBack(name, task.id) for name in between),
    ]


def judge_of(s: State, task: TaskState) -> TaskId | None:
    """Returns the review that judges what no program can check of a task."""
    reviews = (s.tasks[gate] for gate in task.spec.gates)
    return next((review.id for review in reviews if review.spec.reviews == task.id and review.spec.judges), None)


def _resting_on(s: State, start: TaskId) -> list[TaskId]:
    """Returns what needs a task, directly or not, every need before those that need it."""
    found: dict[TaskId, TaskSpec] = {}
    stack = [start]
    while stack:
        for each in s.tasks[stack.pop()].dependents:
            if each not in found:
                found[each] = s.tasks[each].spec
                stack.append(each)
    return [spec.id for spec in topological_order(found, known=s.tasks)]


def told(by: TaskId, review: Review) -> str:
    """Returns what the next attempt at refused work is told."""
    lines = [
        f"The review {by} refused the work that an earlier attempt did: {review.summary}",
        "Its findings, all of which are to be dealt with:",
    ]
    lines += [f"- {in_words(finding)}" for finding in review.findings]
    lines += [
        f"- not met: {each.criterion}" + (f" ({each.evidence})" if each.evidence else "") for each in review.judgements if not each.met
    ]
    return "\n".join(lines)[:FEEDBACK_CHARACTERS_MAX]


def in_words(finding: Finding) -> str:
    """Returns a finding as one line: severity, place, text."""
    place = f" {finding.file}" + (f":{finding.line}" if finding.line else "") if finding.file else ""
    return f"{finding.severity}{place}: {finding.text}"


def fold_review_refused(s: State, ev: e.ReviewRefused, at: int) -> None:
    """The review waits for the repair."""
    task = s.tasks[ev.task]
    task.status = t.move(t.TASK, task.status, ev)
    task.refusals += 1
    task.reason = f"refused {ev.reviewed}, and waits for its repair"
    s.live.pop(ev.task, None)


def fold_sent_back(s: State, ev: e.TaskSentBack, at: int) -> None:
    """What was completed is open again, and so are the needs that it met."""
    task = s.tasks[ev.task]
    task.status = t.move(t.TASK, task.status, ev)
    task.primary = task.ended_ms = task.failures = task.losses = task.deferrals = task.conflicts = 0
    task.reason, task.feedback = f"sent back by {ev.by}", ev.feedback
    task.sent_back += 1
    for dependent in task.dependents:
        s.tasks[dependent].unmet += 1
    s.totals.completed -= 1
    if task.spec.plan is not None:
        s.plans[task.spec.plan].open += 1
