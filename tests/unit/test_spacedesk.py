"""Tidying: what it kept of an attempt's work is named like what was let go when it ended."""

from __future__ import annotations

import asyncio
from typing import cast

from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.merging import unwanted_work
from orchestra.core.model import NodeSpec, Outcome, OutcomeKind, Worker
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.ids import AgentId, TaskId
from orchestra.ledgers.memory import MemoryLedger
from orchestra.spacedesk import SpaceDesk, SpaceOptions
from orchestra.testing.builders import NODE, make_agents, make_task
from orchestra.usecases import WorkspacesParams
from orchestra.workspace import KeptRef, PruneRequest, Tidied, TidyReport, TidyRequest, Workspaces

TASK = TaskId("a")
REF = "refs/orchestra/salvage/_/a.1"


class Places:
    """The workspaces of a node as far as tidying asks for them: one of an attempt that is over, and a checkout for checks."""

    async def tidy(self, request: TidyRequest) -> TidyReport:
        kept = "" if request.dry_run else REF
        found = [Tidied(plan="_", task=name, bytes=1, age_ms=1, action="remove", why="old", kept=kept) for name in ("a.1", "gone.1")]
        return TidyReport(tuple(found), 2, 2)

    def __init__(self) -> None:
        self.live: list[tuple[str, ...]] = []

    async def prune(self, request: PruneRequest) -> tuple[KeptRef, ...]:
        self.live.append(request.live)
        return ()


async def test_what_tidying_kept_of_an_attempts_work_is_named_and_let_go_of_once() -> None:
    ledger = MemoryLedger()
    loop = Loop(Kernel(c.Policy()), ledger, SystemClock(), term=ledger.claim_term())
    places = Places()
    desk = SpaceDesk(loop, lambda: {NODE: cast("Workspaces", places)}, SpaceOptions())
    service = asyncio.create_task(loop.run())
    try:
        await loop.request(c.Init("t", (NodeSpec(NODE),), make_agents(1)))
        await loop.report([c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1))])
        await loop.request(c.Submit((make_task("a", plan=None, isolated=True, retries=0),)))
        await desk.workspaces(WorkspacesParams(refs=True))
        await loop.report([c.AttemptFinished(TASK, 1, Outcome(OutcomeKind.FAILED))])
        await desk.workspaces(WorkspacesParams(refs=True))
        assert places.live == [("_",), ()], "refs of what belongs to no plan stay while any of it is at work"
        await desk.workspaces(WorkspacesParams())
        assert await loop.ask(lambda state: unwanted_work(state.tasks[TASK])) == [1], "to look changes nothing"
        await desk.workspaces(WorkspacesParams(remove=True))
        assert await loop.ask(lambda state: (state.tasks[TASK].attempts[0].kept, unwanted_work(state.tasks[TASK]))) == (REF, [])
    finally:
        service.cancel()
        await asyncio.gather(service, return_exceptions=True)
