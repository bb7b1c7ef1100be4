"""Answers the use cases read off the state: pure functions, each of one moment."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec

from orchestra.core.model import AgentSpec, Lifecycle, NodeSpec, TaskSpec
from orchestra.core.state import PlanState, State, TaskState
from orchestra.errors import BadInput, NotFound, PlanInvalid
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.intake.planfile import AgentGroup
from orchestra.intake.roster import places
from orchestra.usecases import LogLine
from orchestra.viewing import Lens
from orchestra.views import HealthCheck, NodeView

LIMIT_PERCENT_MAX = 70
"""Where the gateway begins to warn; from here on agents may have to wait."""
READY_FIRST = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)


def spread(groups: Sequence[AgentGroup], nodes: Sequence[NodeSpec]) -> list[AgentSpec]:
    """Numbers the agents from 1 and lays them on the nodes in proportion to what each takes and its weight, filling one node after the other.

    Raises:
        Refused: They do not fit.
    """
    counts = places(sum(group.count for group in groups), nodes)
    where = [node.id for node, count in zip(nodes, counts, strict=True) for _ in range(count)]
    kinds = [group for group in groups for _ in range(group.count)]
    return [
        AgentSpec(
            AgentId(index + 1),
            place,
            group.kind,
            "" if group.name is msgspec.UNSET else f"{group.name}-{index + 1}",
            group.weight,
            "" if group.category is msgspec.UNSET else group.category,
        )
        for index, (group, place) in enumerate(zip(kinds, where, strict=True))
    ]


def init_result(state: State) -> str | None:
    if state.lifecycle is Lifecycle.FAILED:
        return state.reason or "no reason given"
    return "" if state.lifecycle in READY_FIRST else None


def resolve_task(state: State, wanted: TaskId) -> TaskId:
    """Returns the id of the task meant by a full id or a short name.

    Raises:
        NotFound: Nothing is called so.
    """
    if wanted in state.tasks:
        return wanted
    if "/" in wanted and (plan := find_plan_or_none(state, wanted.partition("/")[0])) is not None:
        full = TaskId(f"{plan.id}/{wanted.partition('/')[2]}")
        if full in state.tasks:
            return full
    if "/" not in wanted:
        for plan in reversed(list(state.plans.values())):
            full = TaskId(f"{plan.id}/{wanted}")
            if full in state.tasks:
                return full
    return state.task(wanted).id


def find_plan_or_none(state: State, name: str) -> PlanState | None:
    """Returns the plan of that id, or the latest run of that name."""
    exact = state.plans.get(PlanId(name))
    runs = [plan for plan in state.plans.values() if plan.name == name]
    return runs[-1] if runs else exact


def find_plan(state: State, name: str | None) -> PlanState:
    """Returns the plan of that id or name, or the latest of all.

    Raises:
        NotFound: There is none.
    """
    if name is None:
        if not state.plans:
            raise NotFound("no plan was run here yet", field="plan", hint="start one: `orchestra run PLAN`")
        return next(reversed(state.plans.values()))
    return state.plans.get(PlanId(name)) or find_plan_or_none(state, name) or state.plan(PlanId(name))


def latest_run(state: State, name: str) -> tuple[PlanId, str, int, bool] | None:
    runs = [plan for plan in state.plans.values() if plan.name == name]
    if not runs:
        return None
    last = runs[-1]
    return last.id, last.digest, len(last.tasks), not last.open


def free_plan_id(state: State, name: str) -> PlanId:
    if PlanId(name) not in state.plans:
        return PlanId(name)
    number = 2
    while PlanId(f"{name}.{number}") in state.plans:
        number += 1
    return PlanId(f"{name}.{number}")


def is_root_failure(task: TaskState) -> bool:
    return task.over and task.blocked_by is None and task.status.value in ("failed", "cancelled")


def make_workspace(workspace: str, directory: str, *, field: str = "workspace") -> None:
    """A workspace inside the folder that it is seen from is made if missing; one elsewhere has to be there."""
    path = Path(workspace or directory)
    if path.is_dir():
        return
    if not Path(directory).is_dir() or not path.resolve().is_relative_to(Path(directory).resolve()):
        raise PlanInvalid(
            f"the workspace {workspace} does not exist", field=field, hint=f"make it; only a folder below {directory} is made for you"
        )
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise PlanInvalid(f"the workspace {workspace} cannot be made: {exc.strerror}", field=field) from exc


def blind_needs(specs: Sequence[TaskSpec]) -> list[str]:
    """Returns a warning for each folder in which tasks do not see what those did that they need: it is no repository, so each has a private copy."""
    folders = {spec.id: spec.workspace for spec in specs if spec.isolated}
    blind: dict[str, TaskSpec] = {}
    for spec in specs:
        if spec.isolated and any(folders.get(need) == spec.workspace for need in spec.needs):
            blind.setdefault(spec.workspace, spec)
    return [
        f"{spec.id} and others do not see what the tasks did that they need: {folder} is no git repository, so each works in a private copy of it; "
        "make it one (git init, git add, git commit), or write isolation: shared"
        for folder, spec in blind.items()
        if Path(folder).is_dir() and not _in_repository(Path(folder))
    ]


def check_judged(specs: Sequence[TaskSpec]) -> None:
    """Raises PlanInvalid where what an agent is to judge would stay in a copy that only the worker of it sees."""
    for spec in specs:
        if spec.judges and spec.isolated and spec.workspace_here and not _in_repository(Path(spec.workspace)):
            raise PlanInvalid(
                f"{spec.judges[0][:120]!r} cannot be checked by a machine, and {spec.reviews!r} works in a copy of {spec.workspace}, of which whoever judges it "
                "would see nothing",
                field="success_criteria",
                hint="make the folder a git repository, set `isolation: shared`, or use criteria that can be run",
            )


def _in_repository(folder: Path) -> bool:
    top = folder.resolve()
    return any((each / ".git").exists() for each in (top, *top.parents)) or ((top / "HEAD").is_file() and (top / "objects").is_dir())


def attempt_place(state: State, task_id: TaskId, number: int) -> tuple[int, NodeId, bool]:
    task = state.task(task_id)
    if not task.attempts:
        return 0, NodeId(""), task.over
    attempt = task.attempts[-1] if number == 0 else task.attempt(number)
    if attempt is None:
        raise NotFound(f"task {task_id} has no attempt {number}", field="attempt", hint=f"it has 1 to {len(task.attempts)}")
    return attempt.number, attempt.node, not attempt.live


def log_line(line: str) -> LogLine | None:
    try:
        values: dict[str, Any] = msgspec.json.decode(line, type=dict[str, Any])
        return LogLine(int(values["t"]), str(values["s"]), str(values["line"]))
    except (msgspec.DecodeError, KeyError, ValueError, TypeError):
        return None


def agent_id(target: object) -> AgentId:
    text = str(target).removeprefix("#")
    if not text.isascii() or not text.isdigit() or len(text) > 6:
        raise BadInput(f"{str(target)[:40]!r} is not an agent's number", field="target", hint="name it by number, for example 7")
    return AgentId(int(text))


def today(state: State, now_ms: int) -> tuple[int, int]:
    """Returns how many tasks completed and failed since midnight UTC."""
    midnight = now_ms - now_ms % 86_400_000
    ended = [task for task in state.tasks.values() if task.over and task.ended_ms >= midnight]
    completed = sum(task.status.value == "completed" for task in ended)
    return completed, sum(task.status.value == "failed" for task in ended)


def health_checks(state: State, nodes: Sequence[NodeView], lens: Lens) -> tuple[HealthCheck, ...]:
    """Returns what a person wants to see ticked."""
    up = sum(node.agents_running for node in nodes)
    total = len(state.agents)
    recent = [t for t in state.tasks.values() if t.status.value == "failed" and t.ended_ms > lens.now_ms - 3_600_000]
    checks = [HealthCheck(f"node {node.name} connected", node.connected, node.reason or node.session) for node in nodes]
    checks += [
        HealthCheck(f"all {total} agents responding", up == total, f"{up} of {total}", "orchestra agent list" if up < total else ""),
        HealthCheck("ledger durable", not lens.ledger_trouble, lens.ledger_trouble or f"{state.seq} events"),
        HealthCheck(
            "no task failed in the last hour", not recent, f"{len(recent)} failed", "orchestra task list --status failed" if recent else ""
        ),
    ]
    if lens.loads:
        near = [f"{name} {unit} {used}/{limit}" for name, unit, used, limit in _limits(lens) if used * 100 >= limit * LIMIT_PERCENT_MAX]
        checks.append(
            HealthCheck("API limits within threshold", not near, ", ".join(near) or "below 70 %", "orchestra limits" if near else "")
        )
    return tuple(checks)


def _limits(lens: Lens) -> list[tuple[str, str, int, int]]:
    found = [(load.name, "rpm", load.rpm_used, load.rpm_limit) for load in lens.loads]
    found += [(load.name, "tpm", load.tpm_used, load.tpm_limit) for load in lens.loads]
    return [(name, unit, used, limit) for name, unit, used, limit in found if used is not None and limit]
