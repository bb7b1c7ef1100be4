"""In what order verified work is merged, and which tasks had better not work side by side. Pure; the git part is `Workspaces.merge`.

One queue a plan. A task's work may be merged once the work of everything it needs is in; among those that may, the one verified first goes first. So a task
that waits for another holds up nobody else, and the order is the same however often it is asked for.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

import msgspec

from orchestra.ids import AttemptId, TaskId
from orchestra.workspace import Conflict, Side


class Ready(msgspec.Struct, frozen=True):
    """A verified attempt that is not merged yet. `seq`: when it was verified, as the ledger counts."""

    attempt: AttemptId
    head: str
    seq: int


def merge_order(ready: Iterable[Ready], needs: Mapping[TaskId, Collection[TaskId]], settled: Collection[TaskId]) -> tuple[Ready, ...]:
    """Returns what can be merged now, in order: each after all it needs, else by the time of its verification.

    Args:
        ready: At most one attempt a task counts, the one verified first.
        needs: What each task of the plan needs; tasks that are not in it need nothing.
        settled: Tasks whose work is in the plan's branch, or that have none to merge.
    """
    waiting: dict[TaskId, Ready] = {}
    for each in sorted(ready, key=lambda each: (each.seq, each.attempt)):
        if each.attempt.task not in settled:
            waiting.setdefault(each.attempt.task, each)
    done = set(settled)
    order: list[Ready] = []
    while True:
        first = next((each for task, each in waiting.items() if all(need in done for need in needs.get(task, ()))), None)
        if first is None:
            return tuple(order)
        order.append(first)
        done.add(first.attempt.task)
        del waiting[first.attempt.task]


class Touch(msgspec.Struct, frozen=True):
    """What a task changes: the paths it declared, and what its attempt has changed so far."""

    task: TaskId
    declared: tuple[str, ...] = ()
    """Relative; a folder or a pattern ending in `/**` or `/*` stands for all below."""
    live: frozenset[str] = frozenset()


class Overlap(NamedTuple):
    """Two tasks that change the same file. `certain`: both already did."""

    first: TaskId
    second: TaskId
    paths: tuple[str, ...]
    certain: bool


OVERLAP_PATHS_MAX = 10
"""Paths that are named; more help nobody."""


def overlaps(touches: Sequence[Touch], needs: Mapping[TaskId, Collection[TaskId]]) -> tuple[Overlap, ...]:
    """Returns the pairs of tasks that must not run side by side, in the order of the tasks. Pairs of which one needs the other are in order anyway."""
    before = {touch.task: _all_needs(touch.task, needs) for touch in touches}
    found = []
    for number, first in enumerate(touches):
        for second in touches[number + 1 :]:
            if first.task in before[second.task] or second.task in before[first.task] or first.task == second.task:
                continue
            both = first.live & second.live
            paths = both | _meet(first, second)
            if paths:
                found.append(Overlap(first.task, second.task, tuple(sorted(paths)[:OVERLAP_PATHS_MAX]), bool(both)))
    return tuple(found)


def _all_needs(task: TaskId, needs: Mapping[TaskId, Collection[TaskId]]) -> frozenset[TaskId]:
    seen: set[TaskId] = set()
    pending = list(needs.get(task, ()))
    while pending:
        need = pending.pop()
        if need not in seen:
            seen.add(need)
            pending.extend(needs.get(need, ()))
    return frozenset(seen)


def _meet(first: Touch, second: Touch) -> set[str]:
    mine = {_plain(path) for path in first.declared} | first.live
    other = {_plain(path) for path in second.declared} | second.live
    return {_longer(one, two) for one in mine for two in other if _covers(one, two) or _covers(two, one)}


def _plain(path: str) -> str:
    """Returns a declared path without `./`, and without what stands for all below; the whole workspace is empty."""
    for ending in ("/**", "/*", "/"):
        path = path.removesuffix(ending)
    path = path.removeprefix("./")
    return "" if path in (".", "*", "**") else path


def _covers(folder: str, path: str) -> bool:
    return folder in ("", path) or path.startswith(folder + "/")


def _longer(one: str, two: str) -> str:
    return max(one, two, key=len) or "."


# --- what an agent is told of a conflict --------------------------------------------------------------------------------


def conflict_prompt(conflicts: Sequence[Conflict], total: int, bytes_max: int = 64 << 10) -> str:
    """Returns conflicts as text for an agent that is to solve them. Every line of a file is indented, so that none can pass for one of ours."""
    lines = [
        f"Your work and other work that is already in the plan's branch change the same lines in {total} file(s).",
        "Bring both together. Each file is shown as it was before both, as it is in the plan's branch, and as you left it.",
    ]
    for conflict in conflicts:
        lines += ["", f"File {conflict.path!r}"]
        for title, side in (("before", conflict.base), ("plan's branch", conflict.ours), ("yours", conflict.theirs)):
            lines += _side_lines(title, side)
    if len(conflicts) < total:
        lines += ["", f"{total - len(conflicts)} more file(s) are not shown."]
    text = "\n".join(lines) + "\n"
    raw = text.encode()
    return text if len(raw) <= bytes_max else raw[:bytes_max].decode(errors="ignore") + "\n[cut]\n"


def _side_lines(title: str, side: Side | None) -> list[str]:
    if side is None:
        return [f"  {title}: there is no such file"]
    if side.binary:
        return [f"  {title}: not text"]
    ending = ["  [the rest is not shown]"] if side.cut else []
    return [f"  {title}:", *(f"    | {line}" for line in side.text.splitlines()), *ending]
