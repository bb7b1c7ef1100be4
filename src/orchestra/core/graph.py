"""The shape of a plan: is it a DAG, and in which order can its tasks be told.

Iterative throughout: a chain of a hundred thousand tasks must not meet Python's recursion limit. Linear in tasks plus needs.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Container, Mapping

from orchestra.core.model import TaskSpec
from orchestra.errors import PlanInvalid
from orchestra.ids import TaskId


def topological_order(tasks: Mapping[TaskId, TaskSpec], known: Container[TaskId] = ()) -> list[TaskSpec]:
    """Returns the tasks with every need before those that need it, otherwise in the order given.

    Args:
        tasks: The new tasks by id.
        known: Ids a need may also name: tasks that were accepted before.

    Raises:
        PlanInvalid: A need names nothing, a task needs itself or one thing twice, or there is a cycle; the message names it.
    """
    open_needs: dict[TaskId, int] = {}
    dependents: dict[TaskId, list[TaskId]] = {}
    for task, spec in tasks.items():
        inside = 0
        for index, need in enumerate(spec.needs):
            if need in tasks:
                inside += 1
                dependents.setdefault(need, []).append(task)
            elif need not in known:
                raise PlanInvalid(
                    f"task {task!r} needs {need!r}, which does not exist", field=f"{task}.needs[{index}]", hint="name a task of this plan"
                )
        if len(dict.fromkeys(spec.needs)) != len(spec.needs):
            raise PlanInvalid(f"task {task!r} names one need twice", field=f"{task}.needs")
        open_needs[task] = inside
    ready = deque(task for task, count in open_needs.items() if not count)
    order: list[TaskSpec] = []
    while ready:
        task = ready.popleft()
        order.append(tasks[task])
        for dependent in dependents.get(task, ()):
            open_needs[dependent] -= 1
            if not open_needs[dependent]:
                ready.append(dependent)
    if len(order) < len(tasks):
        cycle = find_cycle(tasks, [task for task, count in open_needs.items() if count])
        shown = " -> ".join(cycle if len(cycle) <= 12 else [*cycle[:6], "...", *cycle[-5:]])
        raise PlanInvalid(f"the needs form a cycle: {shown}", field=f"{cycle[0]}.needs", hint="remove one of these needs")
    return order


def find_cycle(tasks: Mapping[TaskId, TaskSpec], among: list[TaskId]) -> list[TaskId]:
    """Returns one cycle as `[a, ..., a]`, each needing the next. `among` are tasks that all have an unmet need among themselves."""
    inside = dict.fromkeys(among)
    seen: dict[TaskId, int] = {}
    path: list[TaskId] = []
    current = among[0]
    while current not in seen:
        seen[current] = len(path)
        path.append(current)
        current = next(need for need in tasks[current].needs if need in inside)
    return [*path[seen[current] :], current]
