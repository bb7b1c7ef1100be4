"""What an attempt's branch and folder are called.

`orchestra/<plan>/<task>.<attempt>`; the plan's own branch is `orchestra/<plan>/merged`, as git cannot have a branch `a` beside a branch `a/b`. A task that
belongs to no plan is kept under `_`, which no plan can be called. A name may hold dots that git refuses in branches; those are written `%2E`, so that
different names stay different.
"""

from __future__ import annotations

import re
from typing import Final

from orchestra.errors import BadInput
from orchestra.ids import AttemptId, PlanId, check_name, parse_task_id

NO_PLAN: Final = "_"
_REFUSED_DOT: Final = re.compile(r"\.(?=\.)|\.$|\.(?=lock$)")


def ref_part(name: str) -> str:
    """Returns a name in the form that can stand between two slashes of a ref."""
    return _REFUSED_DOT.sub("%2E", name)


def plan_part(plan: PlanId) -> str:
    """Returns what a plan is called in refs and folders; `_` stands for the tasks of none."""
    return NO_PLAN if plan == NO_PLAN else ref_part(check_name(plan, field="plan"))


def attempt_parts(attempt: AttemptId) -> tuple[str, str]:
    """Returns what an attempt's plan and the attempt itself are called in refs and folders.

    Raises:
        BadInput: The task's id or the number is none.
    """
    if not 0 < attempt.number < 10**9:
        raise BadInput(f"{attempt.number} is not the number of an attempt", field="attempt")
    plan, mark, task = parse_task_id(attempt.task).rpartition("/")
    return ref_part(plan) if mark else NO_PLAN, f"{ref_part(task)}.{attempt.number}"


def check_prefix(text: str) -> str:
    """Returns what all branches of an orchestra begin with.

    Raises:
        BadInput: It is no plain name, or git would refuse it.
    """
    if ref_part(check_name(text, field="branches")) != text:
        raise BadInput(f"{text!r} cannot begin a branch", field="branches", hint="leave out dots")
    return text
