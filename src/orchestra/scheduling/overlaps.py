"""Which tasks would change the same files: told from what they declare, before any of them begins, and from what those that run have changed so far.

Two tasks of a plan that say they may touch the same file, and that each work in a place of their own, are better done one after the other: side by side, the second
would find a conflict when all its work is done. So is a task that says it may touch a file that another one has changed already, whether that one said so or not.
What a task does not declare is not known, and it waits for nobody.

Only what is ready waits, and only for what has been given out. That never waits for what is only ready, so nobody waits in a circle: a task that belongs to no
plan may have been submitted by one that runs and waits for its result, and is not held by that one.

A path is a file, or a folder with all that is in it if it ends in `/` or in a name without a dot. `*`, `?` and `[...]` stand for characters of a name, `**` for any
number of folders. Where that leaves a doubt, two patterns count as overlapping.
"""

from __future__ import annotations

import functools
import posixpath
from collections.abc import Callable
from typing import Final, NamedTuple

from orchestra.core.model import TaskSpec
from orchestra.core.state import AttemptState, State, TaskState
from orchestra.core.touched import comes_together
from orchestra.ids import TaskId

ANY: Final = "**"
WILD: Final = frozenset("*?[")
Pattern = tuple[str, ...]
"""Names one below the other, from the root of the machine."""


class Overlap(NamedTuple):
    """A task that has to be over first, and the declared paths that meet."""

    task: TaskId
    theirs: str
    ours: str
    changed: bool = False
    """Theirs is a file that it has changed, not one that it declared."""


def overlap_of(state: State, task: TaskState) -> Overlap | None:
    """Returns the first task at work that may change the same files, None if there is none. Costs time in the number of tasks at work."""
    spec = task.spec
    if not spec.files or not spec.isolated:
        return None
    for name in (*state.live, *state.merging):
        other = state.tasks[name].spec
        if name in state.live and any(attempt.live and _may_await(attempt, task) for attempt in state.tasks[name].attempts):
            continue
        if other.files and other.isolated and other.plan == spec.plan and other.workspace_here == spec.workspace_here and name != spec.id:
            found = meeting(other, spec)
            if found is not None:
                return Overlap(name, *found)
    return _live_overlap(state, task)


def _live_overlap(state: State, task: TaskState) -> Overlap | None:
    """Returns the first task whose work is not merged and that has changed a file this one declares."""
    for name, attempts in state.touched.items():
        other = state.tasks[name]
        if not comes_together(task.spec, other.spec):
            continue
        for number, known in attempts.items():
            if _may_await(other.attempts[number - 1], task):
                continue
            index = _below(other.spec.workspace, known.paths)
            for declared in task.spec.files:
                found = _touching(pattern_of(task.spec.workspace, declared), index)
                if found is not None:
                    return Overlap(name, found, declared, changed=True)
    return None


def _may_await(attempt: AttemptState, task: TaskState) -> bool:
    """Tells whether an attempt may have submitted the task, and wait for its result: it had been given out before, and the task belongs to no plan."""
    return task.spec.plan is None and task.submitted_ms > attempt.assigned_ms


class _Index(NamedTuple):
    """Changed files as seen from the root of the machine, for quick answers to plain patterns."""

    files: dict[Pattern, str]
    folders: dict[Pattern, str]
    """Each folder above a changed file, and the file itself, with the first file that is there."""


@functools.lru_cache(maxsize=1_024)
def _below(workspace: str, paths: tuple[str, ...]) -> _Index:
    files: dict[Pattern, str] = {}
    folders: dict[Pattern, str] = {}
    for path in paths:
        names = tuple(name for name in posixpath.normpath(f"{workspace}/{path}").split("/") if name)
        files[names] = path
        for length in range(len(names) + 1):
            folders.setdefault(names[:length], path)
    return _Index(files, folders)


def _touching(declared: Pattern, index: _Index) -> str | None:
    """Returns the first changed file that a declared path may name, None if there is none."""
    *names, last = declared
    if all(map(WILD.isdisjoint, names)) and (last == ANY or WILD.isdisjoint(last)):
        return index.folders.get(tuple(names)) if last == ANY else index.files.get(declared)
    return next((path for file, path in index.files.items() if meet(declared, _plainly(file))), None)


def _plainly(names: Pattern) -> Pattern:
    """Returns the names of a file as a pattern: what stands for something in a pattern stands for any character."""
    return tuple("".join("?" if char in WILD else char for char in name) for name in names)


def meeting(one: TaskSpec, two: TaskSpec) -> tuple[str, str] | None:
    """Returns the first two declared paths of two tasks that may name one file, None if there are none."""
    for first in one.files:
        for second in two.files:
            if meet(pattern_of(one.workspace, first), pattern_of(two.workspace, second)):
                return first, second
    return None


@functools.lru_cache(maxsize=65_536)
def pattern_of(workspace: str, path: str) -> Pattern:
    """Returns a declared path as a pattern. Wildcards in the name of the workspace itself stand for nothing."""
    names = [name for name in path.split("/") if name not in ("", ".")]
    top = _plainly(tuple(name for name in workspace.split("/") if name))
    is_folder = not names or path.endswith("/") or "." not in names[-1].lstrip(".")
    return (*top, *names, *((ANY,) if is_folder and names[-1:] != [ANY] else ()))


def meet(one: Pattern, two: Pattern) -> bool:
    """Tells whether some path matches both patterns."""
    for first, second in zip(one, two, strict=False):  # most differ in a plain name, which is seen at once
        if first != second:
            if WILD.isdisjoint(first) and WILD.isdisjoint(second):
                return False
            break
    return _meet(one, two, ANY, names_meet)


def names_meet(one: str, two: str) -> bool:
    """Tells whether some name matches both; a set of characters counts as any character."""
    if WILD.isdisjoint(one) and WILD.isdisjoint(two):
        return one == two
    return _meet(_characters(one), _characters(two), "*", lambda a, b: a == b or "?" in (a, b))


def _characters(name: str) -> tuple[str, ...]:
    found: list[str] = []
    at = 0
    while at < len(name):
        end = name.find("]", at + 2) if name[at] == "[" else -1
        found.append("?" if end > 0 else name[at])
        at = max(end, at) + 1
    return tuple(found)


def _meet(one: tuple[str, ...], two: tuple[str, ...], many: str, same: Callable[[str, str], bool]) -> bool:
    """Tells whether some sequence matches both, where `many` stands for any number of parts. Costs time in the product of their lengths."""
    row = [False] * (len(two) + 1)  # of the tails one[at:] and two[other:]: do they have a sequence in common?
    for at in range(len(one), -1, -1):
        behind, row = row, [False] * (len(two) + 1)
        for other in range(len(two), -1, -1):
            if at == len(one) and other == len(two):
                row[other] = True
            elif at < len(one) and one[at] == many:
                row[other] = behind[other] or (other < len(two) and row[other + 1])
            elif other < len(two) and two[other] == many:
                row[other] = row[other + 1] or (at < len(one) and behind[other])
            elif at < len(one) and other < len(two):
                row[other] = behind[other + 1] and same(one[at], two[other])
    return row[0]
