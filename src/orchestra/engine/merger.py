"""Brings verified work into its plan's branch, one after another, and lets go of what is not wanted any more.

A merge that brings together what was only verified apart is held until the task's checks have passed on it too; the branch moves then, if it is still where it was.

Asked by the effects `MergeWork` and `DropWork`; after a restart it looks into the state, as everything it does may be done again: a commit that is made is
found, a merge that is in is recognised. What cannot be done because a machine is out of sight waits until the core gives it up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, NamedTuple

import msgspec

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import DropWork, Effect, MergeWork
from orchestra.core.merging import unwanted_work
from orchestra.core.model import AgentSpec, OutcomeKind, TaskSpec, TaskStatus
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.engine.lanes import Lanes
from orchestra.engine.loop import Loop
from orchestra.engine.prover import Case, Prover
from orchestra.errors import NodeFailed, NodeUnreachable, NotFound, OrchestraError, Refused
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.workspace import Collected, MergeRequest, MergeResult, WorkFailure, WorkRequest, Workspace, Workspaces
from orchestra.workspaces.conflicts import conflict_prompt, together_prompt

log = logging.getLogger(__name__)

AGAIN_MS: Final = 1_000
"""Before a machine that did not answer is asked again."""
STALE_MAX: Final = 10
"""How often somebody else may move the plan's branch under a merge."""
PASSING: Final = ("locked", "disk", "failed")
"""Codes of failures that another try may get past."""
SUBJECT_CHARACTERS: Final = 72


class _Work(NamedTuple):
    """A merge as the state has it."""

    spec: TaskSpec
    node: NodeId
    case: Case


class _Left(NamedTuple):
    """What is to be let go, as the state has it."""

    spec: TaskSpec
    node: NodeId
    outdone: bool
    """It did the task and passed its checks, and another attempt at the same time was better."""


class _Leaving(NamedTuple):
    """A place whose work is where it belongs."""

    attempt: AttemptId
    node: NodeId
    collected: Collected


class Merger:
    """One per coordinator.

    Args:
        workspaces: Those of a node, None while it is not connected.
        keep: Keeps what an attempt changed for people, beside the task's results.
        prover: Runs checks on what is merged; None: what was verified apart counts as verified together.
    """

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        workspaces: Callable[[NodeId], Workspaces | None],
        keep: Callable[[TaskId, int, Collected], Awaitable[None]],
        prover: Prover | None = None,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._workspaces = workspaces
        self._keep = keep
        self._prover = prover
        self._lanes: Lanes[MergeWork | DropWork | _Leaving] = Lanes(self._do)
        self._in_hand: dict[AttemptId, asyncio.Event] = {}
        """Attempts whose work is being merged, or let go of after that, each with the end of it."""
        self._out_of_sight: dict[NodeId, dict[AttemptId, DropWork]] = {}
        loop.listen(self._on_events)

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            if isinstance(each.event, e.NodeConnected):
                self.take(tuple(self._out_of_sight.pop(each.event.node, {}).values()))

    def take(self, effects: Sequence[Effect]) -> None:
        """Takes what concerns it; never blocks."""
        for effect in effects:
            if isinstance(effect, MergeWork | DropWork):
                if isinstance(effect, DropWork) and self._prover is not None:
                    self._prover.stop(AttemptId(effect.task, effect.attempt))
                self._put(effect)

    def _put(self, piece: MergeWork | DropWork | _Leaving) -> None:
        """The merges of a plan go one after another; nobody else waits for them, and they do not wait for folders to be removed."""
        task = piece.attempt.task if isinstance(piece, _Leaving) else piece.task
        self._lanes.put(f"{type(piece).__name__} {task.rpartition('/')[0]}", piece)

    async def run(self) -> None:
        """Works until cancelled."""
        for task, attempt in await self._loop.ask(lambda state: [(name, state.tasks[name].merging) for name in state.merging]):
            self._put(MergeWork(0, task, attempt))
        for task, attempt in await self._loop.ask(_left_over):
            self._put(DropWork(0, task, attempt))
        await self._lanes.run()

    async def wait_done(self) -> None:
        """Waits until everything taken so far is done. The checks of merges are not waited for, and no more are begun: the next start does that."""
        if self._prover is not None:
            self._prover.close()
        await self._lanes.wait_done()

    async def _do(self, piece: MergeWork | DropWork | _Leaving) -> None:
        attempt = piece.attempt if isinstance(piece, _Leaving) else AttemptId(piece.task, piece.attempt)
        try:
            if isinstance(piece, MergeWork):
                await self._merge(attempt)
            elif isinstance(piece, DropWork):
                await self._drop(piece)
            else:
                await self._let_go(self._spaces(piece.node), attempt, piece.collected)
                self._end(attempt)
        except NodeFailed as error:
            log.warning("work-waits", extra={"task": attempt.task, "attempt": attempt.number, "reason": str(error)})
            await self._clock.sleep_ms(AGAIN_MS)
            self._put(piece)
        except OrchestraError as error:  # a person has to mend it
            log.warning("work-not-merged", extra={"task": attempt.task, "attempt": attempt.number, "reason": str(error)})
            if isinstance(piece, MergeWork):
                await self._loop.report([c.MergeFailed(*attempt, str(error), again=False)])
            elif isinstance(piece, _Leaving):
                self._end(attempt)

    async def _merge(self, attempt: AttemptId) -> None:
        self._in_hand[attempt] = asyncio.Event()
        leaving = None
        try:
            work = await self._loop.ask(lambda state: _wanted(state, *attempt))
            if work is not None:  # else cancelled, given up, or done already
                leaving = await self._bring(attempt, work)
        finally:
            if leaving is None:
                self._end(attempt)
            else:
                self._put(leaving)

    def _end(self, attempt: AttemptId) -> None:
        self._in_hand.pop(attempt).set()

    async def _bring(self, attempt: AttemptId, work: _Work) -> _Leaving | None:
        """Merges one attempt's work; returns its place if nobody needs that any more."""
        spaces = self._spaces(work.node)
        found = await self._found(spaces, attempt, work)
        if found is None:
            return None
        place, collected = found
        await self._keep(*attempt, collected)
        told = await self._merged(spaces, work.case, place, collected)
        if told is None:
            return None  # not wanted any more, or not now; what it did stays where it is
        await self._loop.report([told])
        return _Leaving(attempt, work.node, collected)  # what is merged is in the branch; what conflicts is kept under a salvage ref

    async def _found(self, spaces: Workspaces, attempt: AttemptId, work: _Work) -> tuple[Workspace, Collected] | None:
        """Returns what an attempt did; None if that cannot be had, which is then told."""
        message = message_of(work.spec, attempt.number)
        if (known := spaces.known(attempt)) is not None:
            try:
                return known, await spaces.collect(known, message)
            except NotFound:
                pass  # somebody removed it: what is to be done about that depends on what is left
        request = WorkRequest(repo=work.spec.workspace, attempt=attempt, here=work.spec.workspace_here)
        place = (await spaces.prepare([request]))[0]
        if isinstance(place, WorkFailure):
            if place.code in PASSING:
                raise NodeFailed(place.message, hint=place.hint)
            await self._loop.report([c.MergeFailed(*attempt, place.message, again=False)])
            return None
        if place.fresh:
            await self._let_go(spaces, attempt)
            await self._loop.report([c.MergeFailed(*attempt, "what it did is gone from its node", again=True)])
            return None
        return place, await spaces.collect(place, message)

    async def _merged(self, spaces: Workspaces, case: Case, place: Workspace, collected: Collected) -> c.Command | None:
        spec, (task, number) = case.spec, place.attempt
        if place.kind == "copy":
            return c.MergeDone(task, number, "", "", len(collected.files))
        request = MergeRequest(
            repo=spec.workspace,
            attempt=place.attempt,
            head=collected.head,
            message=message_of(spec, number),
            hold=self._prover is not None and bool(spec.checks),
            here=spec.workspace_here,
        )
        for _ in range(STALE_MAX):
            result = await spaces.merge(request)
            if result.result == "held" and self._prover is not None:
                found = await self._prover.prove(spaces, case, result.head)
                if found is None or await self._loop.ask(lambda state: _wanted(state, task, number)) is None:
                    return None
                if failed := tuple(check for check in found if not check.passed):
                    names = tuple(check.name for check in failed)
                    return c.MergeConflicted(task, number, (), together_prompt(failed, collected), names)
                result = await spaces.merge(msgspec.structs.replace(request, hold=False, expected=result.old, proven=result.head))
            if result.result != "stale":
                return _told(place.attempt, result, collected)
        return c.MergeFailed(task, number, "somebody else moves the plan's branch all the time", again=True)

    async def _drop(self, effect: DropWork) -> None:
        attempt = AttemptId(effect.task, effect.attempt)
        if attempt in self._in_hand:  # who merges it lets go of it too, if it comes so far
            await self._in_hand[attempt].wait()
        work = await self._loop.ask(lambda state: _unwanted(state, effect.task, effect.attempt))
        if work is None:
            return  # it is gone
        spaces = self._workspaces(work.node)
        if spaces is None:
            self._out_of_sight.setdefault(work.node, {})[attempt] = effect
            return  # it stays on its machine until that is back; nobody else has to wait
        collected = await self._collected(spaces, work.spec, attempt)
        if work.outdone and collected is not None and await self._left_as_branch(spaces, attempt, collected):
            return
        await self._let_go(spaces, attempt, collected)

    async def _collected(self, spaces: Workspaces, spec: TaskSpec, attempt: AttemptId) -> Collected | None:
        """Keeps what an attempt that is not wanted did for people to look at. Where that cannot be done, it is under its salvage ref all the same."""
        try:
            place = (await spaces.prepare([WorkRequest(repo=spec.workspace, attempt=attempt, here=spec.workspace_here)]))[0]
            if isinstance(place, WorkFailure) or place.fresh:
                return None
            collected = await spaces.collect(place, message_of(spec, attempt.number))
        except NodeUnreachable:
            raise
        except OrchestraError as error:
            log.info("work-not-collected", extra={"task": attempt.task, "attempt": attempt.number, "reason": str(error)})
            return None
        await self._keep(attempt.task, attempt.number, collected)
        return collected

    async def _left_as_branch(self, spaces: Workspaces, attempt: AttemptId, collected: Collected) -> bool:
        """Removes a place and leaves its branch where it is. On another machine nobody would look for one: what came back from there has a ref here."""
        place = spaces.known(attempt)
        if place is None or place.kind != "git" or place.here:
            return False
        try:
            await spaces.release(attempt)
        except Refused as error:  # it could not be collected; letting go keeps what there is
            log.info("no-branch-left", extra={"task": attempt.task, "attempt": attempt.number, "reason": str(error)})
            return False
        await self._loop.report([c.NoteLetGo(attempt.task, attempt.number, place.branch if collected.commits else "")])
        return True

    async def _let_go(self, spaces: Workspaces, attempt: AttemptId, collected: Collected | None = None) -> None:
        gone = await spaces.discard(attempt)
        kept = (collected.brought if collected is not None and gone.kept else "") or gone.kept
        await self._loop.report([c.NoteLetGo(attempt.task, attempt.number, kept)])

    def _spaces(self, node: NodeId) -> Workspaces:
        spaces = self._workspaces(node)
        if spaces is None:
            raise NodeFailed(f"node {node} is not connected")
        return spaces


def _told(attempt: AttemptId, result: MergeResult, collected: Collected) -> c.Command:
    task, number = attempt
    if result.result == "conflict":
        files = tuple(conflict.path for conflict in result.conflicts)
        return c.MergeConflicted(task, number, files, conflict_prompt(result.conflicts, result.conflict_files))
    return c.MergeDone(task, number, result.branch, result.head, len(collected.files))


def _wanted(state: State, task: TaskId, number: int) -> _Work | None:
    found = state.tasks.get(task)
    if found is None or found.status is not TaskStatus.MERGING or found.merging != number:
        return None
    done = found.attempts[number - 1]
    agent, node = state.agents.get(done.agent), state.nodes.get(done.node)
    slot = AgentSpec(done.agent, done.node) if agent is None or agent.spec.node != done.node else agent.spec
    return _Work(found.spec, done.node, Case(found.spec, AttemptId(task, number), slot, node is not None and node.spec.remote))


def _unwanted(state: State, task: TaskId, number: int) -> _Left | None:
    found = state.tasks.get(task)
    if found is None or number not in unwanted_work(found):
        return None
    attempt = found.attempts[number - 1]
    done = attempt.outcome is not None and attempt.outcome.kind is OutcomeKind.DONE and found.spec.reviews is None
    return _Left(found.spec, attempt.node, done and bool(found.primary) and number != found.primary and number >= found.round_start)


def _left_over(state: State) -> list[tuple[TaskId, int]]:
    """What an earlier coordinator did not come to."""
    return [(task.id, number) for task in state.tasks.values() for number in unwanted_work(task)]


def message_of(spec: TaskSpec, number: int) -> str:
    """Returns the commit message: what the task is, and which attempt did it."""
    described = not spec.payload.content.startswith(spec.description)  # else it is the first line of what was run or asked
    subject = " ".join(spec.description.split())[:SUBJECT_CHARACTERS] if described or spec.payload.type == "analysis" else ""
    subject = subject or str(spec.id)
    return f"{subject}\n\nTask: {spec.id}\nAttempt: {number}\n"
