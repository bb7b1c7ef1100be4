"""What a command asks for may be done already: the coordinator died between carrying it out and remembering its answer.

Submitting is recognised by its outcome: the tasks are there, and each is what is submitted. The others are recognised by a mark that says which
run of the orchestra the command was begun in; without it the same request is a new one, and is refused or carried out like any.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.core.model import Lifecycle, PlanStatus, TaskDefaults, TaskStatus
from orchestra.core.review import judge_of
from orchestra.core.state import State
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput
from orchestra.ids import PlanId, TaskId
from orchestra.intake.request import CancelParams, InitParams, ShutdownParams, StatusParams, SubmitBatchParams, SubmitTaskParams, to_spec
from orchestra.projections import rfc3339
from orchestra.scheduling.scheduler import eta_ms
from orchestra.usecases import CancelReply, InitReply, ShutdownReply, SubmitBatchReply, SubmitReply, UseCases

MARKED: Final = ("init", "cancel", "shutdown")
"""Commands that would not do the same a second time. `scale` and `status` would."""
POLL_MS: Final = 100
READY: Final = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)


async def submitted_before(loop: Loop, params: object) -> object | None:
    """Returns the answer to a submission whose tasks are all there and equal, or None."""
    match params:
        case SubmitTaskParams():
            return await loop.ask(lambda state: _known_task(state, loop, params))
        case SubmitBatchParams():

            def answer(state: State) -> SubmitBatchReply | None:
                found = [_known_task(state, loop, each) for each in params.tasks]
                known = tuple(each for each in found if each is not None)
                return SubmitBatchReply(known) if len(known) == len(found) else None

            return await loop.ask(answer)
        case _:
            return None


def _known_task(state: State, loop: Loop, params: SubmitTaskParams) -> SubmitReply | None:
    task = state.tasks.get(TaskId(params.task_id or ""))
    if task is None:
        return None
    # What the submission leaves open is taken from the task itself, so that other defaults since then make no other task of it.
    known, judge = task.spec, judge_of(state, task)
    defaults = TaskDefaults(
        timeout_ms=known.timeout_ms,
        retries=known.retries,
        backoff_ms=known.backoff_ms,
        backoff_max_ms=known.backoff_max_ms,
        judge=judge is not None,
    )
    try:
        spec = to_spec(params, task_id=task.id, default_kind=known.kind, directory=known.workspace, defaults=defaults)
    except BadInput:
        return None
    if not set(spec.needs) <= set(known.needs):
        return None
    # Reviews may have joined its needs, and another kind may have taken its place: all else is as it was asked for.
    decided = ["needs", "gates", *(("kind", "estimate_ms", "slower_percent", "requirements", "warnings") if known.warnings else ())]
    if params.directory is None and not (params.workspace or "").startswith("/"):
        decided.append("workspace")  # where it is seen from is not said
    if msgspec.structs.replace(spec, **{name: getattr(known, name) for name in decided}) != known:
        return None
    done_ms = task.ended_ms if task.over else loop.now_ms() + eta_ms(state, loop.kernel.scheduler, task)
    return SubmitReply(task.id, "queued", tuple(int(attempt.agent) for attempt in task.live_attempts()), rfc3339(done_ms), judge or "")


async def done_before(use_cases: UseCases, loop: Loop, clock: Clock, params: object, begun_in: int) -> object | None:
    """Returns the answer to a marked command that was done after all, or None if it is to be carried out.

    Args:
        use_cases: For the figures of an answer.
        loop: For the state.
        clock: To wait for an initialisation that is still going on.
        params: The command's.
        begun_in: When the run started in which the command was begun: `State.started_ms` of then.
    """
    match params:
        case InitParams():
            return await _initialised(use_cases, loop, clock, begun_in)
        case CancelParams():
            return await loop.ask(lambda state: _cancelled(state, params.task_id))
        case ShutdownParams():
            return await loop.ask(_over_since(begun_in, loop))
        case _:
            return None


async def _initialised(use_cases: UseCases, loop: Loop, clock: Clock, begun_in: int) -> InitReply | None:
    if await loop.ask(lambda state: state.started_ms) == begun_in:
        return None
    while await loop.ask(lambda state: state.lifecycle) is Lifecycle.INITIALIZING:
        await clock.sleep_ms(POLL_MS)
    if await loop.ask(lambda state: state.lifecycle) not in READY:
        return None
    status = await use_cases.status(StatusParams())

    def answer(state: State) -> InitReply:
        counts = {node: len(state.agents_on(node)) for node in state.nodes}
        return InitReply(
            status="initialized",
            session_ids={node.spec.id: node.session for node in state.nodes.values() if counts[node.spec.id]},
            agent_manifest={"total": len(state.agents), **{name: count for name, count in counts.items() if count}},
            agents_ready=status.agents.running,
            health=status.health,
        )

    return await loop.ask(answer)


def _cancelled(state: State, name: str) -> CancelReply | None:
    task = state.tasks.get(TaskId(name))
    if task is None and (plan := state.plans.get(PlanId(name))) is not None:
        return CancelReply(name, plan.status.value) if plan.status is PlanStatus.CANCELLED else None
    if task is None and "/" not in name:  # a short name means the task of the latest plan that has one of that name
        task = next(
            (state.tasks[full] for plan in reversed(state.plans.values()) if (full := TaskId(f"{plan.id}/{name}")) in state.tasks), None
        )
    return CancelReply(task.id, task.status.value) if task is not None and task.status is TaskStatus.CANCELLED else None


def _over_since(begun_in: int, loop: Loop) -> Callable[[State], ShutdownReply | None]:
    def answer(state: State) -> ShutdownReply | None:
        over = state.lifecycle is Lifecycle.TERMINATED or state.started_ms != begun_in
        return ShutdownReply("shutdown_initiated", 0, rfc3339(loop.now_ms())) if over else None

    return answer
