"""What becomes of verified work on its way into the plan's branch.

A task of which each attempt works in a place of its own is not completed when its checks have passed: what it did has to be in the plan's branch first, because
those that need it start from there. A conflict, of lines or of checks that fail on both together, goes back to an agent once, with both sides; then somebody has
to look.

The functions here are `decide`'s and `evolve`'s for these commands and events, and keep their rules.
"""

from __future__ import annotations

from collections.abc import Iterator

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import Lifecycle, NodeStatus, OutcomeKind, TaskStatus
from orchestra.core.planning import completed
from orchestra.core.state import AttemptState, State, TaskState
from orchestra.ids import TaskId

Events = list[e.Event]


def requeue_now(s: State, task: TaskState) -> Events:
    """No waiting where the task is not to blame. Draining without `drain` leaves it waiting for the next start."""
    return [e.TaskQueued(task.id)] if s.lifecycle is not Lifecycle.DRAINING else []


def _merging(s: State, name: TaskId, number: int) -> TaskState | None:
    """The task if that attempt's work is being merged: the fence of what the merge came to."""
    task = s.tasks.get(name)
    return task if task is not None and task.status is TaskStatus.MERGING and task.merging == number else None


def merge_done(s: State, cmd: c.MergeDone, now: int, policy: c.Policy) -> Events:
    task = _merging(s, cmd.task, cmd.attempt)
    if task is None:
        return []
    merged = e.WorkMerged(cmd.task, cmd.attempt, cmd.branch, cmd.commit, cmd.files)
    return [merged, *completed(s, task, cmd.attempt, policy)]


def merge_conflicted(s: State, cmd: c.MergeConflicted, now: int, policy: c.Policy) -> Events:
    task = _merging(s, cmd.task, cmd.attempt)
    if task is None:
        return []
    conflict = e.WorkConflicted(cmd.task, cmd.attempt, cmd.files, cmd.text, cmd.checks)
    reason = f"its work conflicts with the plan's branch in {', '.join(cmd.files[:5])}"
    if cmd.checks:
        reason = f"merged with the plan's branch, its work fails {', '.join(cmd.checks[:5])}"
    if task.conflicts >= policy.conflicts_max:
        return [conflict, e.TaskFailed(cmd.task, f"{reason}, again")]
    return [conflict, e.TaskRetryScheduled(cmd.task, now, reason), *requeue_now(s, task)]


def merge_failed(s: State, cmd: c.MergeFailed, now: int, policy: c.Policy) -> Events:
    task = _merging(s, cmd.task, cmd.attempt)
    if task is None:
        return []
    if not cmd.again:
        return [e.TaskFailed(cmd.task, cmd.reason)]
    return [e.TaskRetryScheduled(cmd.task, now, cmd.reason), *requeue_now(s, task)]


def note_let_go(s: State, cmd: c.NoteLetGo, now: int, policy: c.Policy) -> Events:
    task = s.tasks.get(cmd.task)
    attempt = None if task is None else task.attempt(cmd.attempt)
    return [] if attempt is None or attempt.kept is not None else [e.WorkLetGo(cmd.task, cmd.attempt, cmd.kept)]


def unwanted_work(task: TaskState) -> list[int]:
    """Returns the attempts of an isolated task whose places may go: what did not pass, what is merged, and what was not chosen or not wanted any more."""
    if not task.spec.isolated:
        return []
    undecided = task.round_start if task.live_attempts() else len(task.attempts) + 1
    return [
        attempt.number
        for attempt in task.attempts
        if attempt.outcome is not None
        and attempt.kept is None
        and attempt.number != task.merging
        and not (attempt.number >= undecided and _may_be_chosen(task, attempt))
    ]


def _may_be_chosen(task: TaskState, attempt: AttemptState) -> bool:
    """What a review did beside reviewing is wanted by nobody."""
    return task.spec.reviews is None and attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.DONE


def merges_given_up(s: State, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """Yields the end of merges whose work lies on a node that is out of sight for too long, or removed."""
    for name in s.merging:
        done = s.tasks[name].attempts[s.tasks[name].merging - 1]
        place = s.nodes.get(done.node)
        if place is None or (place.status is NodeStatus.LOST and now - max(place.since_ms, done.ended_ms) > policy.unknown_grace_ms):
            yield e.TaskRetryScheduled(name, now, f"node {done.node} is out of sight with its work")


def fold_work_merged(s: State, ev: e.WorkMerged, at: int) -> None:
    task = s.tasks[ev.task]
    task.commit, task.branch = ev.commit, ev.branch.removeprefix("refs/heads/")


def fold_work_conflicted(s: State, ev: e.WorkConflicted, at: int) -> None:
    task = s.tasks[ev.task]
    task.conflicts += 1
    task.conflict = ev.text  # beside what a review found: the next attempt has to deal with both


def fold_work_let_go(s: State, ev: e.WorkLetGo, at: int) -> None:
    s.tasks[ev.task].attempts[ev.attempt - 1].kept = ev.kept
