"""Which kind of agent does a task when its own is not to be had: another one, more slowly, and it is said so."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from typing import Final

import msgspec

from orchestra.core.kinds import ProgramsOf, is_lost, lacking, moved
from orchestra.core.model import ANY_KIND, Payload, TaskSpec
from orchestra.core.state import State
from orchestra.errors import PlanInvalid
from orchestra.ids import TaskId

_ANY_TASK: Final = TaskSpec(TaskId("any"), "", Payload("analysis", ""))
"""A task that asks for nothing."""


class RouteOptions(msgspec.Struct, frozen=True):
    """The settings under `routing`."""

    alternatives: dict[str, str] = {}
    """For a kind that is not to be had, the one that takes its tasks."""
    slower_percent: int = 50
    """What is added to the estimate of such a task."""


def specialists(state: State) -> dict[str, str]:
    """Returns the kind that most agents of each speciality have; of several equal ones that of the lowest number. Agents of every kind have none."""
    counts: dict[str, Counter[str]] = {}
    for agent in state.agents.values():
        if agent.spec.speciality and agent.spec.kind != ANY_KIND:
            counts.setdefault(agent.spec.speciality, Counter())[agent.spec.kind] += 1
    return {speciality: found.most_common(1)[0][0] for speciality, found in counts.items()}


def unavailable(state: State, kinds: Iterable[str], options: RouteOptions, programs_of: ProgramsOf) -> dict[str, str]:
    """Returns which of the kinds no agent of the fleet can work as, also not by a kind that stands in for it, and why."""
    found: dict[str, str] = {}
    for kind in dict.fromkeys(kinds):
        other = options.alternatives.get(kind)
        reason = lacking(state, _ANY_TASK, kind, programs_of)
        if reason and (other is None or lacking(state, _ANY_TASK, other, programs_of)):
            found[kind] = reason
    return found


def rerouted(state: State, specs: Iterable[TaskSpec], options: RouteOptions, programs_of: ProgramsOf) -> tuple[TaskSpec, ...]:
    """Returns the tasks, those of a kind that is not to be had as ones of its alternative, with a longer estimate and a warning.

    Args:
        state: The fleet, and what is installed on its nodes.
        specs: The tasks.
        options: Who stands in for whom.
        programs_of: The programs a kind needs on its node.

    Raises:
        PlanInvalid: Neither is to be had.
    """
    return tuple(_rerouted(state, spec, options, programs_of) for spec in specs)


def _rerouted(state: State, spec: TaskSpec, options: RouteOptions, programs_of: ProgramsOf) -> TaskSpec:
    other = options.alternatives.get(spec.kind)
    if other is None or spec.agent_fixed:
        return spec
    missing = lacking(state, spec, spec.kind, programs_of)
    lost = state.kinds[spec.kind].reason if is_lost(state, spec.kind) else ""
    if not missing and not lost:
        return spec
    also_missing = lacking(state, spec, other, programs_of)
    if also_missing and missing:
        raise PlanInvalid(
            f"task {spec.id!r}: {missing}, and {also_missing}",
            field="agent",
            hint=f"install {spec.kind} or {other} on a node, add such agents, or name another kind",
        )
    if also_missing or is_lost(state, other):
        return spec  # it waits for whichever is back first
    return moved(spec, other, missing or lost, options.slower_percent)
