"""Which kind of agent does a task when its own is not to be had: another one, more slowly, and it is said so."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import msgspec

from orchestra.core.fleet import node_suits
from orchestra.core.model import ANY_KIND, AgentStatus, NodeStatus, TaskSpec
from orchestra.core.state import State
from orchestra.errors import PlanInvalid

OUT = (AgentStatus.DRAINING, AgentStatus.ERROR)


class RouteOptions(msgspec.Struct, frozen=True):
    """The settings under `routing`."""

    alternatives: dict[str, str] = {}
    """For a kind that is not to be had, the one that takes its tasks."""
    slower_percent: int = 50
    """What is added to the estimate of such a task."""


ProgramsOf = Callable[[str], tuple[str, ...]]


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
    missing = "" if other is None else lacking(state, spec, spec.kind, programs_of)
    if other is None or not missing:
        return spec
    also_missing = lacking(state, spec, other, programs_of)
    if also_missing:
        raise PlanInvalid(
            f"task {spec.id!r}: {missing}, and {also_missing}",
            field="agent",
            hint=f"install {spec.kind} or {other} on a node, add such agents, or name another kind",
        )
    warning = f"moved from {spec.kind} to {other}: {missing}; expected to take {options.slower_percent} % longer"
    return msgspec.structs.replace(
        spec,
        kind=other,
        estimate_ms=spec.estimate_ms * (100 + options.slower_percent) // 100,
        requirements=_without_model(spec.requirements),
        warnings=(*spec.warnings, warning),
    )


def lacking(state: State, spec: TaskSpec, kind: str, programs_of: ProgramsOf) -> str:
    """Returns why no agent of that kind can do the task now, or nothing. Of nodes that were never seen nothing is known, which is no reason."""
    if not any(node.status is not NodeStatus.ADDED for node in state.nodes.values()):
        return ""
    able = [
        a for a in state.agents.values() if a.spec.kind in (ANY_KIND, kind) and a.status not in OUT and node_suits(state, a.spec.node, spec)
    ]
    if not able:
        return f"no agent of the fleet takes tasks of kind {kind}"
    needed = set(programs_of(kind))
    nodes = [state.nodes[agent.spec.node] for agent in able]
    if not any(node.status is NodeStatus.ADDED or needed <= set(node.programs) for node in nodes):
        return f"{kind} is not installed on any node that may have the task"
    return ""


def _without_model(requirements: str) -> str:
    """Another kind does not know the model that was wished for."""
    try:
        values = msgspec.json.decode(requirements)
    except msgspec.DecodeError:
        return requirements
    if not isinstance(values, dict) or "model" not in values:
        return requirements
    return msgspec.json.encode({name: value for name, value in values.items() if name != "model"}).decode()
