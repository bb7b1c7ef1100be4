"""What becomes of a plan that a task returned.

Its tasks join the plan of the task that planned them, in the append that completes it: a plan is never half there. Whoever needs the planning task waits from
then on for the last of the added tasks too, because what is planned is part of what was asked for. A plan that cannot join is no success: the attempt counts
as one whose check failed, and the next is told why.

The functions here are `decide`'s and `evolve`'s for these events, and keep their rules.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

import msgspec

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.fleet import check_runnable
from orchestra.core.gates import gated
from orchestra.core.graph import topological_order
from orchestra.core.model import RETURNS_PLAN, CheckResult, Outcome, OutcomeKind, TaskSpec, TaskStatus
from orchestra.core.state import PlanState, State, TaskState
from orchestra.errors import PlanInvalid
from orchestra.ids import PlanId, TaskId

COMPLAINTS_MAX: Final = 20
PLAN_CHECK: Final = "the returned plan"
REVIEW_CHECK: Final = "the returned review"


def found_wanting(outcome: Outcome, check: str, complaints: Sequence[str]) -> Outcome:
    """Returns the outcome of work that was said to be done, and of which what it returned cannot be used: a check that failed."""
    failed = CheckResult(check, passed=False, reason=complaints[0], tail=tuple(complaints[:COMPLAINTS_MAX]))
    reason = f"said done, but {check} cannot be used: {complaints[0]}"
    return msgspec.structs.replace(outcome, kind=OutcomeKind.UNVERIFIED, reason=reason, checks=(*outcome.checks, failed))


def ended(s: State, cmd: c.AttemptFinished, policy: c.Policy) -> e.AttemptEnded:
    """Returns the end of a live attempt. What had to be returned and is not there, or cannot join, makes a success one no longer."""
    task, outcome = s.tasks[cmd.task], cmd.outcome
    if outcome.kind is not OutcomeKind.DONE or not task.spec.returns:
        return e.AttemptEnded(cmd.task, cmd.attempt, outcome)
    if task.spec.returns != RETURNS_PLAN:
        wanting = outcome.review is None
        return e.AttemptEnded(cmd.task, cmd.attempt, found_wanting(outcome, REVIEW_CHECK, ["nothing was returned"]) if wanting else outcome)
    complaints, planned = objections(s, task, cmd.planned, policy), cmd.planned
    try:
        planned = tuple(topological_order(gated({spec.id: spec for spec in planned}, s.tasks), known=s.tasks))
    except PlanInvalid as problem:
        complaints.append(problem.message)
    if complaints:
        return e.AttemptEnded(cmd.task, cmd.attempt, found_wanting(outcome, PLAN_CHECK, complaints))
    return e.AttemptEnded(cmd.task, cmd.attempt, outcome, planned)


def objections(s: State, task: TaskState, planned: Sequence[TaskSpec], policy: c.Policy) -> list[str]:
    """Returns why these tasks cannot join now; nothing if they can."""
    if not planned:
        return ["nothing was returned"]
    if len(planned) > policy.planned_tasks_max:
        return [f"it has {len(planned)} tasks; at most {policy.planned_tasks_max} may be added (planning.tasks_max)"]
    if len(s.tasks) + len(planned) > policy.tasks_max:
        return [f"{len(planned)} more tasks would pass the limit of {policy.tasks_max} (limits.tasks)"]
    beside = s.tasks if task.spec.plan is None else s.plans[task.spec.plan].tasks
    taken = {name.lower() for name in beside}
    found: list[str] = []
    for spec in planned:
        if spec.id in s.tasks or spec.id.lower() in taken:
            found.append(f"there is a task {spec.id!r} already: choose another id")
        if spec.returns == RETURNS_PLAN and spec.depth >= policy.planning_depth_max:
            found.append(f"task {spec.id!r} may not plan: {policy.planning_depth_max} in a row is the limit (planning.depth_max)")
        try:
            check_runnable(s, spec)
        except PlanInvalid as problem:
            found.append(problem.message)
    return found


def completed(s: State, task: TaskState, number: int, policy: c.Policy) -> Iterable[e.Event]:
    """Returns what completes a task whose attempt counts: what it planned joins first."""
    attempt = task.attempts[number - 1]
    if task.spec.returns != RETURNS_PLAN:
        return [e.TaskCompleted(task.id, number)]
    complaints = objections(s, task, attempt.planned, policy)
    if complaints:  # it could when the attempt ended; others have taken its place while its work was merged
        return [e.TaskFailed(task.id, f"its plan cannot join: {complaints[0]}")]
    needed = {need for spec in attempt.planned for need in spec.needs}
    last = tuple(spec.id for spec in attempt.planned if spec.id not in needed)
    waiting = [each for each in task.dependents if s.tasks[each].status is not TaskStatus.COMPLETED]
    return [
        e.PlanExtended(task.id, number, len(attempt.planned), last, task.spec.plan),
        *(e.TaskSubmitted(spec) for spec in attempt.planned),
        *(e.NeedsAdded(each, last) for each in waiting),
        e.TaskCompleted(task.id, number),
    ]


def in_order(s: State, plan: PlanState) -> Sequence[TaskId]:
    """Returns a plan's tasks, every need before those that need it."""
    if not plan.joined:
        return plan.tasks
    return [spec.id for spec in topological_order({task: s.tasks[task].spec for task in plan.tasks}, known=s.tasks)]


def planned_by(s: State, task: TaskState) -> tuple[TaskId, ...]:
    """Returns the tasks that a task planned."""
    found: dict[TaskId, None] = {}
    stack = [task.id] if task.spec.returns == RETURNS_PLAN else []
    while stack:
        fresh = [each for each in s.tasks[stack.pop()].dependents if s.tasks[each].spec.origin == task.id and each not in found]
        found.update(dict.fromkeys(fresh))
        stack += fresh
    return tuple(found)


def planned_id(parent: TaskId, name: str) -> TaskId:
    """Returns the id of a task that another one planned."""
    return TaskId(f"{parent}.{name}")


def bare_name(task: TaskId, plan: PlanId | None) -> str:
    """Returns what a task is called in its plan."""
    return task if plan is None else task.removeprefix(f"{plan}/")


def fold_plan_extended(s: State, ev: e.PlanExtended, at: int) -> None:
    """Makes room in the plan. Who comes to need the planning task only now waits for what it planned as well."""
    task = s.tasks[ev.task]
    task.spec = msgspec.structs.replace(task.spec, gates=(*task.spec.gates, *ev.last))
    if ev.plan is not None:
        plan = s.plans[ev.plan]
        plan.size += ev.tasks
        plan.joined += ev.tasks


def fold_needs_added(s: State, ev: e.NeedsAdded, at: int) -> None:
    """Hangs a task that has not begun on further ones."""
    task = s.tasks[ev.task]
    task.spec = msgspec.structs.replace(task.spec, needs=(*task.spec.needs, *ev.needs))
    for need in ev.needs:
        provider = s.tasks[need]
        provider.dependents.append(ev.task)
        task.unmet += provider.status is not TaskStatus.COMPLETED
