"""Looks from time to time at what running isolated attempts have changed so far, and tells the core.

Only where it can matter: an attempt whose plan has another unfinished task that works in a place of its own. One look at a time on each machine, over all such
attempts there. A look that fails is tried again at the next time, after the others: what is not known holds nobody up.
"""

from __future__ import annotations

import asyncio
import logging
import posixpath
from collections.abc import Callable, Iterator, Sequence

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.state import State, TaskState
from orchestra.core.touched import comes_together, merges
from orchestra.engine.loop import Loop
from orchestra.errors import OrchestraError
from orchestra.ids import AttemptId, NodeId
from orchestra.workspace import Touched, WorkFailure, WorkRequest, Workspaces

log = logging.getLogger(__name__)


class Lookout:
    """One per coordinator.

    Args:
        workspaces: Those of a node, None while it is not connected.
        every_ms: Between the end of one look and the next.
    """

    def __init__(self, loop: Loop, clock: Clock, workspaces: Callable[[NodeId], Workspaces | None], every_ms: int) -> None:
        self._loop = loop
        self._clock = clock
        self._workspaces = workspaces
        self._every_ms = every_ms
        self._failed: set[AttemptId] = set()
        """Those that the last look could not be taken at; they come last."""

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self._clock.sleep_ms(self._every_ms)
            await self.look()

    async def look(self) -> None:
        """Looks once."""
        wanted = await self._loop.ask(worth_a_look)
        self._failed.intersection_update(request.attempt for requests in wanted.values() for request in requests)
        async with asyncio.TaskGroup() as group:
            for node, requests in wanted.items():
                spaces = self._workspaces(node)
                if spaces is not None:
                    group.create_task(self._look_at(node, spaces, sorted(requests, key=lambda each: each.attempt in self._failed)))

    async def _look_at(self, node: NodeId, spaces: Workspaces, requests: Sequence[WorkRequest]) -> None:
        try:
            found = await spaces.touched(requests)
        except OrchestraError as error:
            log.info("no-look-at-work", extra={"node": node, "reason": str(error)})
            return
        seen = [each for each in found if isinstance(each, Touched)]
        for each in found:
            if isinstance(each, WorkFailure):
                log.info("no-look-at-work", extra={"task": each.attempt.task, "attempt": each.attempt.number, "reason": each.message})
                self._failed.add(each.attempt)
            else:
                self._failed.discard(each.attempt)
        await self._loop.report([c.NoteTouched(*each.attempt, from_folder(each), each.more) for each in seen])


def from_folder(found: Touched) -> tuple[str, ...]:
    """Returns the paths as seen from the task's folder, as its `files` are."""
    if not found.prefix:
        return found.paths
    return tuple(posixpath.relpath(f"/{path}", f"/{found.prefix}") for path in found.paths)


def worth_a_look(state: State) -> dict[NodeId, list[WorkRequest]]:
    """Returns the attempts that have begun and whose changes may get into the way of another task, by node."""
    found: dict[NodeId, list[WorkRequest]] = {}
    for name in state.live:
        task = state.tasks[name]
        if merges(task.spec) and any(comes_together(task.spec, other.spec) for other in _unfinished(state, task)):
            for attempt in task.live_attempts():
                if attempt.started_ms:
                    request = WorkRequest(repo=task.spec.workspace, attempt=AttemptId(name, attempt.number), here=task.spec.workspace_here)
                    found.setdefault(attempt.node, []).append(request)
    return found


def _unfinished(state: State, task: TaskState) -> Iterator[TaskState]:
    """Yields tasks of the same plan that are not over, or what is on its way of those that belong to none."""
    if task.spec.plan is None:
        names = (*state.live, *state.merging, *state.queued, *state.waiting)
        yield from (state.tasks[name] for name in names)
    elif state.plans[task.spec.plan].open > 1:
        latest_first = reversed(state.plans[task.spec.plan].tasks)  # what is over stands mostly at the beginning
        yield from (state.tasks[name] for name in latest_first if not state.tasks[name].over)
