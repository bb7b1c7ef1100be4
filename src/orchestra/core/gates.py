"""Who waits for a review although he does not name it: whoever builds on work that it may still send back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from orchestra.core.graph import topological_order
from orchestra.core.model import RETURNS_PLAN, TaskSpec
from orchestra.core.state import TaskState
from orchestra.errors import PlanInvalid
from orchestra.ids import TaskId

Specs = Mapping[TaskId, TaskSpec]
Dependents = dict[TaskId, list[TaskId]]


def gated(new: Specs, known: Mapping[TaskId, TaskState]) -> dict[TaskId, TaskSpec]:
    """Returns new tasks with the needs that reviews bring: nobody builds on work that a review may still send back.

    Raises:
        PlanInvalid: A review is of something it cannot review.
    """
    specs = dict(new)
    reviews = {spec.id: spec.reviews for spec in new.values() if spec.reviews is not None}
    if reviews:
        topological_order(new, known)  # what follows goes along the needs, which must lead somewhere and not in a circle
        _check_reviewed(specs, reviews)
    dependents: Dependents = {name: [] for name in specs}
    for spec in specs.values() if reviews else ():
        for need in spec.needs:
            if need in dependents:
                dependents[need].append(spec.id)
    changed = bool(reviews)
    while changed:  # a review may lie behind another one, so that who waits for it waits for that one too
        changed = sum(_close_gate(specs, dependents, review, reviewed) for review, reviewed in reviews.items()) > 0
    for name, spec in specs.items():
        gates = _gates_of(spec, specs, known)
        if gates:
            specs[name] = msgspec.structs.replace(spec, needs=(*spec.needs, *gates))
    return specs


def _gates_of(spec: TaskSpec, specs: Specs, known: Mapping[TaskId, TaskState]) -> list[TaskId]:
    """Returns what was there before and has to be waited for too: reviews of what it needs, and of those again."""
    found: dict[TaskId, None] = {}
    stack = [need for need in spec.needs if need not in specs]
    while stack:
        fresh = [gate for gate in known[need].spec.gates if gate not in found] if (need := stack.pop()) in known else []
        found.update(dict.fromkeys(fresh))
        stack += fresh
    return [gate for gate in found if gate not in spec.needs]


def _check_reviewed(specs: Specs, reviews: Mapping[TaskId, TaskId]) -> None:
    first: dict[TaskId, TaskId] = {}
    for review, reviewed in reviews.items():
        if reviewed not in specs:
            raise PlanInvalid(f"{review!r} reviews {reviewed!r}, which is not in the plan", field=f"{review}.reviews")
        if reviewed in first:
            raise PlanInvalid(
                f"{review!r} and {first[reviewed]!r} both review {reviewed!r}",
                field=f"{review}.reviews",
                hint="let one review it, or review that review",
            )
        first[reviewed] = review


def _close_gate(specs: dict[TaskId, TaskSpec], dependents: Dependents, review: TaskId, reviewed: TaskId) -> bool:
    """Has everybody wait for a review who builds on what it may send back; tells whether that changed anything."""
    before, after = (
        _reached(review, lambda name: [need for need in specs[name].needs if need in specs]),
        _reached(reviewed, dependents.__getitem__),
    )
    between = [reviewed, *(name for name in after if name in before)]
    planner = next((name for name in between if specs[name].returns == RETURNS_PLAN), None)
    if planner is not None:
        raise PlanInvalid(
            f"{planner!r} plans, and would be sent back by {review!r} after its tasks have joined",
            field=f"{review}.reviews",
            hint="have the plan name reviews of its own, or need the planning task from outside of what is reviewed",
        )
    changed = False
    for name in between:
        if review not in specs[name].gates:
            specs[name] = msgspec.structs.replace(specs[name], gates=(*specs[name].gates, review))
            changed = True
    for name in dict.fromkeys(each for one in between for each in dependents[one]):
        if name != review and name not in before and review not in specs[name].needs:
            specs[name] = msgspec.structs.replace(specs[name], needs=(*specs[name].needs, review))
            dependents[review].append(name)
            changed = True
    return changed


def _reached(start: TaskId, along: Callable[[TaskId], Iterable[TaskId]]) -> dict[TaskId, None]:
    """Returns all that is reached from a task, always in the same order."""
    found: dict[TaskId, None] = {}
    stack = [start]
    while stack:
        fresh = [each for each in along(stack.pop()) if each not in found]
        found.update(dict.fromkeys(fresh))
        stack += fresh
    return found
