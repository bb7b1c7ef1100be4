"""The identifiers of the domain, as distinct types, and the one pattern every external name must match.

A name that came from outside becomes a path, a window title or a branch, so it is checked here once and by this pattern only:
no separators, no leading dash or dot, at most 64 ASCII characters. A plan's task is `<plan>/<task>`; a lone task is one name.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple, NewType

from orchestra.errors import BadInput

AgentId = NewType("AgentId", int)
"""Number of an agent slot, 1 and up, unique in the orchestra."""
NodeId = NewType("NodeId", str)
PlanId = NewType("PlanId", str)
TaskId = NewType("TaskId", str)
"""`<plan>/<task>` for a plan's task, a bare name (`TASK-<uuid>`) for one submitted alone."""

NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
AGENTS_MAX: Final = 10_000
"""Largest agent number; far above the 250 the scaling rules allow, so that a typo is told from an intention."""


class AttemptId(NamedTuple):
    """One execution of a task. `number` grows with every attempt of the task and is its fencing token."""

    task: TaskId
    number: int

    def __str__(self) -> str:
        return f"{self.task}#{self.number}"


def check_name(text: str, *, field: str) -> str:
    """Returns `text` if it is a plain name.

    Raises:
        BadInput: It is empty, too long, or holds a character that a path, branch or window name must not hold.
    """
    if NAME.fullmatch(text) is None:
        raise BadInput(
            f"{text[:80]!r} is not a usable name",
            field=field,
            hint="use 1 to 64 letters, digits, '.', '_' or '-', starting with a letter or digit",
        )
    return text


def plan_task_id(plan: PlanId, name: str) -> TaskId:
    """Returns the id of a plan's task."""
    return TaskId(f"{plan}/{name}")


def parse_task_id(text: str, *, field: str = "task_id") -> TaskId:
    """Returns `text` as a task id: one name, or two joined by a slash.

    Raises:
        BadInput: A part is not a plain name, or there are more than two.
    """
    parts = text.split("/")
    if len(parts) > 2:
        raise BadInput(f"{text[:80]!r} is not a task id", field=field, hint="write TASK or PLAN/TASK")
    for part in parts:
        check_name(part, field=field)
    return TaskId(text)


def parse_attempt_id(text: str) -> AttemptId:
    """Returns the attempt that `task#number` names.

    Raises:
        BadInput: The text is not of that form.
    """
    task, mark, number = text.rpartition("#")
    if not mark or not number.isascii() or not number.isdigit() or len(number) > 9:
        raise BadInput(f"{text[:80]!r} is not an attempt id", field="attempt", hint="write TASK#NUMBER")
    return AttemptId(parse_task_id(task), int(number))
