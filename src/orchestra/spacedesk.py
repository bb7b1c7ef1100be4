"""The use cases about the places where attempts worked, and their tidying from time to time.

Whatever is not merged is under a ref before its folder goes. Only a person forgets such refs, by asking for it.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from orchestra.answers import find_plan
from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.model import PlanStatus
from orchestra.core.state import State
from orchestra.engine.loop import Loop
from orchestra.errors import NodeUnreachable, NotFound, OrchestraError, Refused
from orchestra.ids import AttemptId, NodeId, PlanId
from orchestra.usecases import MergePlanParams, MergePlanReply, NodeSpaces, WorkspacesParams, WorkspacesReply
from orchestra.workspace import BringRequest, Brought, KeptRef, PruneRequest, TidyRequest, Workspaces
from orchestra.workspaces.names import NO_PLAN, attempt_parts

log = logging.getLogger(__name__)

NO_LIMIT: Final = 1 << 62
FRESH_MS: Final = 600_000
"""As long as a request for a workspace may take: what is younger may belong to an attempt that this look did not know yet."""
FIRST_MS: Final = 60_000
"""Until the first look after a start: whatever is to go on has been found by then."""


class SpaceOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the desk takes from the settings."""

    keep_ms: int = 7 * 86_400_000
    quota_bytes: int = 20 << 30
    """0: no limit."""
    refs_keep_ms: int = 30 * 86_400_000
    tidy_ms: int = 3_600_000
    """0: not by itself."""


class _Known(msgspec.Struct):
    """What the state says about workspaces."""

    live: tuple[AttemptId, ...]
    working: bool
    """Something is to be done yet, so that more attempts may begin at any moment."""
    plans: tuple[PlanId, ...]
    repos: tuple[tuple[str, bool], ...]


class SpaceDesk:
    """One per coordinator.

    Args:
        spaces: The workspaces of each node; None for one that is not connected.
    """

    def __init__(self, loop: Loop, spaces: Callable[[], Mapping[NodeId, Workspaces | None]], options: SpaceOptions) -> None:
        self._loop = loop
        self._spaces = spaces
        self._options = options

    async def run(self, clock: Clock) -> None:
        """Tidies from time to time until cancelled."""
        await clock.sleep_ms(FIRST_MS)
        while True:
            for node in (await self.workspaces(WorkspacesParams(remove=True))).nodes:
                gone = [f"{each.plan}/{each.task}: {each.why}" for each in node.workspaces if each.action == "remove"]
                if gone or node.trouble:
                    facts = {"node": node.node, "gone": gone[:100], "bytes": node.freed_bytes, "trouble": node.trouble}
                    log.info("workspaces-tidied", extra=facts)
            await clock.sleep_ms(self._options.tidy_ms)

    async def workspaces(self, params: WorkspacesParams) -> WorkspacesReply:
        """Looks at all machines, or at one.

        Raises:
            NotFound: There is no such machine.
        """
        spaces = self._spaces()
        if params.node is not None and params.node not in spaces:
            raise NotFound(f"there is no node {params.node!r}", field="node", hint="`orchestra node list` lists them")
        known = await self._loop.ask(_known)
        chosen = {node: found for node, found in spaces.items() if params.node in (None, node)}
        looks = [self._look(node, found, known, params) for node, found in chosen.items()]
        return WorkspacesReply(_once(await asyncio.gather(*looks)), params.remove)

    async def merge_plan(self, params: MergePlanParams) -> MergePlanReply:
        """Brings a completed plan into a branch of the user's.

        Raises:
            Refused: It is not completed, or worked in no repository; or a checkout of the branch is in the way.
        """
        plan, places = await self._loop.ask(lambda state: _worked_in(state, params.plan))
        found: list[Brought] = []
        for (repo, here), node in places.items():
            spaces = self._spaces().get(node)
            if spaces is None:
                raise NodeUnreachable(f"node {node} is not connected", hint="`orchestra node list` says why")
            found.append(await spaces.bring(BringRequest(repo=repo, plan=plan, branch=params.branch, here=here)))
        once = {
            (each.repo, each.head or each.old): each for each in reversed(found)
        }  # of several folders in one repository the first tells
        return MergePlanReply(plan, tuple(reversed(once.values())))

    async def _look(self, node: NodeId, spaces: Workspaces | None, known: _Known, params: WorkspacesParams) -> NodeSpaces:
        try:
            if spaces is None:
                raise NodeUnreachable(f"node {node} is not connected")
            return await (self._refs(node, spaces, known, params) if params.refs else self._tidy(node, spaces, known, params))
        except OrchestraError as error:  # one machine out of sight must not hide the others
            return NodeSpaces(node, trouble=str(error))

    async def _tidy(self, node: NodeId, spaces: Workspaces, known: _Known, params: WorkspacesParams) -> NodeSpaces:
        options = self._options
        quota = options.quota_bytes if params.quota_bytes is None else params.quota_bytes
        request = TidyRequest(
            quota_bytes=quota or NO_LIMIT,
            age_ms=options.keep_ms if params.older_than_ms is None else params.older_than_ms,
            live=known.live,
            fresh_ms=FRESH_MS if known.working else 0,
            dry_run=not params.remove,
        )
        found = await spaces.tidy(request)
        if kept := {(each.plan, each.task): each.kept for each in found.entries if params.remove and each.kept}:
            places = await self._loop.ask(lambda state: _left_on(state, node))
            named = [(places[parts], ref) for parts, ref in kept.items() if parts in places]
            await self._loop.report([c.NoteLetGo(attempt.task, attempt.number, ref) for attempt, ref in named])
        return NodeSpaces(node, found.entries, total_bytes=found.total_bytes, freed_bytes=found.freed_bytes)

    async def _refs(self, node: NodeId, spaces: Workspaces, known: _Known, params: WorkspacesParams) -> NodeSpaces:
        age_ms = self._options.refs_keep_ms if params.older_than_ms is None else params.older_than_ms
        request = PruneRequest(repos=known.repos, age_ms=age_ms, live=known.plans, dry_run=not params.remove)
        return NodeSpaces(node, refs=await spaces.prune(request))


def _known(state: State) -> _Known:
    live = [attempt for attempt, _ in state.live_attempts()]
    live += [AttemptId(name, state.tasks[name].merging) for name in state.merging]
    for task in (state.tasks[name] for name in state.live):  # of those that are ready before others, one may be chosen
        live += [AttemptId(task.id, attempt.number) for attempt in task.attempts[task.round_start - 1 :] if not attempt.live]
    plans = [plan.id for plan in state.plans.values() if plan.status is PlanStatus.RUNNING]
    if any(task.spec.plan is None and task.spec.isolated and not task.over for task in state.tasks.values()):
        plans.append(PlanId(NO_PLAN))
    specs = (task.spec for task in state.tasks.values() if task.spec.isolated and task.spec.workspace)
    working = bool(live or state.queued or state.waiting)
    return _Known(tuple(live), working, tuple(plans), tuple(dict.fromkeys((spec.workspace, spec.workspace_here) for spec in specs)))


def _left_on(state: State, node: NodeId) -> dict[tuple[str, str], AttemptId]:
    """Returns the attempts on the node whose places nobody has let go of yet, by what those are called."""
    tasks = (task for task in state.tasks.values() if task.spec.isolated)
    left = (AttemptId(task.id, each.number) for task in tasks for each in task.attempts if each.node == node and each.kept is None)
    return {attempt_parts(attempt): attempt for attempt in left}


def _worked_in(state: State, name: str | None) -> tuple[PlanId, dict[tuple[str, bool], NodeId]]:
    """Returns a completed plan, the folders its isolated tasks worked on, and a node that each can be reached from. `_` is what belongs to no plan."""
    loose = [task for task in state.tasks.values() if task.spec.plan is None]
    if name == NO_PLAN or (name is None and loose and not state.plans):
        plan_id, tasks = PlanId(NO_PLAN), loose
    else:
        plan = find_plan(state, name)
        if plan.status is not PlanStatus.COMPLETED:
            raise Refused(
                f"plan {plan.id} is {plan.status.value}", field="plan", hint="only a completed plan is merged into a branch of yours"
            )
        plan_id, tasks = plan.id, [state.tasks[each] for each in plan.tasks]
    places: dict[tuple[str, bool], NodeId] = {}
    for task in tasks:
        if task.commit:  # a copy of a folder that is no repository has none
            places.setdefault((task.spec.workspace, task.spec.workspace_here), task.attempts[task.primary - 1].node)
    if not places:
        raise Refused(f"plan {plan_id} has no branch: none of its tasks worked in a worktree", field="plan", hint="`isolation: worktree`")
    return plan_id, places


def _once(found: list[NodeSpaces]) -> tuple[NodeSpaces, ...]:
    """Leaves out refs of the control machine that an earlier node's look has told of."""
    told: set[tuple[str, str]] = set()
    nodes = []
    for node in found:
        refs: list[KeptRef] = [each for each in node.refs if not (each.here and (each.repo, each.ref) in told)]
        told |= {(each.repo, each.ref) for each in refs}
        nodes.append(msgspec.structs.replace(node, refs=tuple(refs)))
    return tuple(nodes)
