"""How urgent a task is by its place in the plan: the upward rank, the length of the longest remaining path that starts with it.

Source: Topcuoglu, Hariri, Wu, "Performance-effective and low-complexity task scheduling" (2002), without communication costs: results travel
in files and branches whose cost is not known beforehand. Linear in tasks plus needs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from orchestra.core.model import TaskSpec
from orchestra.core.state import State, duration_key
from orchestra.ids import TaskId

Estimate = Callable[[TaskSpec], int]


def estimate_ms(state: State, spec: TaskSpec) -> int:
    """Returns how long the task is expected to take: as measured in earlier runs, else as its author says."""
    measured = state.durations.get(duration_key(spec))
    return spec.estimate_ms if measured is None else measured * (100 + spec.slower_percent) // 100


def upward_ranks(ordered: Sequence[TaskSpec], estimate: Estimate) -> dict[TaskId, int]:
    """Returns milliseconds from the start of each task to the end of the longest path behind it.

    Args:
        ordered: The tasks, every need before those that need it.
        estimate: Expected duration of one task in milliseconds.
    """
    ranks: dict[TaskId, int] = {spec.id: 0 for spec in ordered}
    for spec in reversed(ordered):
        ranks[spec.id] += estimate(spec)
        for need in spec.needs:
            if need in ranks and ranks[need] < ranks[spec.id]:
                ranks[need] = ranks[spec.id]
    return ranks


def critical_path(tasks: Mapping[TaskId, TaskSpec], ranks: Mapping[TaskId, int]) -> list[TaskId]:
    """Returns the longest path through the plan, first task first."""
    dependents: dict[TaskId, list[TaskId]] = {}
    for spec in tasks.values():
        for need in spec.needs:
            dependents.setdefault(need, []).append(spec.id)
    roots = [spec.id for spec in tasks.values() if not any(need in tasks for need in spec.needs)]
    path: list[TaskId] = []
    candidates = roots
    while candidates:
        current = max(candidates, key=lambda task: ranks[task])
        path.append(current)
        candidates = dependents.get(current, [])
    return path
