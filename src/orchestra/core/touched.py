"""What running attempts have changed so far, and which of them have changed the same files.

An isolated attempt is looked at from time to time. The paths are kept until its work is merged, or not wanted any more: tasks that declare one of them wait
(`orchestra.scheduling.overlaps`), and two attempts that changed the same one are told of, as the second to be merged will most likely find a conflict. Nothing
that runs is stopped for it.

The functions here are `decide`'s and `evolve`'s for these events, and keep their rules.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterator

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import TaskSpec
from orchestra.core.state import AttemptState, State, TaskState, Touched
from orchestra.ids import AttemptId, TaskId


def merges(spec: TaskSpec) -> bool:
    """Tells whether what the task changes comes together with what others do. What a review changes is wanted by nobody."""
    return spec.isolated and spec.reviews is None


def comes_together(one: TaskSpec, two: TaskSpec) -> bool:
    """Tells whether the work of two tasks may go to one branch."""
    return one.id != two.id and merges(one) and merges(two) and one.plan == two.plan and one.workspace_here == two.workspace_here


def placed(spec: TaskSpec, path: str) -> str:
    """Returns a path that is relative to a task's folder as seen from the root of the machine."""
    return posixpath.normpath(f"{spec.workspace}/{path}")


def note_touched(s: State, cmd: c.NoteTouched, now: int, policy: c.Policy) -> list[e.Event]:
    task = s.tasks.get(cmd.task)
    attempt = None if task is None else task.attempt(cmd.attempt)
    if task is None or attempt is None or not attempt.live or not merges(task.spec):
        return []
    known = s.touched.get(cmd.task, {}).get(cmd.attempt, Touched())
    return [] if (known.paths, known.more) == (cmd.paths, cmd.more) else [e.WorkTouched(cmd.task, cmd.attempt, cmd.paths, cmd.more)]


def after_work_touched(s: State, ev: e.WorkTouched, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """Yields what is new of this attempt and each other that has changed the same files."""
    task = s.tasks[ev.task]
    here = s.touched[ev.task][ev.attempt]
    for name in list(s.touched):
        other = s.tasks[name]
        if not comes_together(task.spec, other.spec):
            continue
        for number, theirs in list(s.touched[name].items()):
            if not _one_repository(s, task, task.attempts[ev.attempt - 1], other.attempts[number - 1]):
                continue
            both = _both(task.spec, here.paths, other.spec, theirs.paths)
            if not both <= set(here.shared.get(str(AttemptId(name, number)), ())):
                yield e.ConflictPredicted(ev.task, ev.attempt, name, number, tuple(sorted(both)))


def _one_repository(s: State, task: TaskState, one: AttemptState, two: AttemptState) -> bool:
    """A folder that is named by its place on the node is another repository on each machine."""
    if task.spec.workspace_here or one.node == two.node:
        return True
    first, second = s.nodes.get(one.node), s.nodes.get(two.node)
    return first is not None and second is not None and not first.spec.remote and not second.spec.remote


def _both(one: TaskSpec, ours: tuple[str, ...], two: TaskSpec, theirs: tuple[str, ...]) -> set[str]:
    """Returns which of our paths are theirs too."""
    if one.workspace == two.workspace:
        return set(ours) & set(theirs)
    there = {placed(two, path) for path in theirs}
    return {path for path in ours if placed(one, path) in there}


# --- the fold --------------------------------------------------------------------------------------------------------


def fold_work_touched(s: State, ev: e.WorkTouched, at: int) -> None:
    known = s.touched.setdefault(ev.task, {}).setdefault(ev.attempt, Touched())
    known.paths, known.more = ev.paths, ev.more


def fold_conflict_predicted(s: State, ev: e.ConflictPredicted, at: int) -> None:
    one, two = s.tasks[ev.task].spec, s.tasks[ev.other].spec
    there = ev.paths
    if one.workspace != two.workspace:
        there = tuple(posixpath.relpath(placed(one, path), two.workspace) for path in ev.paths)
    _share(s.touched[ev.task][ev.attempt], AttemptId(ev.other, ev.other_attempt), ev.paths)
    _share(s.touched[ev.other][ev.other_attempt], AttemptId(ev.task, ev.attempt), there)


def _share(known: Touched, other: AttemptId, paths: tuple[str, ...]) -> None:
    name = str(other)
    known.shared = {**known.shared, name: tuple(sorted({*known.shared.get(name, ()), *paths}))}


def forget_touched(s: State, task: TaskId, attempt: int) -> None:
    """An attempt came to nothing: what it changed will never be merged."""
    known = s.touched.get(task)
    if known is not None:
        known.pop(attempt, None)
        if not known:
            del s.touched[task]


def keep_touched(s: State, task: TaskId, attempt: int) -> None:
    """One attempt's work is merged: nobody will see what the others changed."""
    for number in list(s.touched.get(task, ())):
        if number != attempt:
            forget_touched(s, task, number)
