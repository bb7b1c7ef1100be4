"""Results as files: what is missing or out of date at the start is written again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import msgspec

from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.model import NodeSpec, Outcome, OutcomeKind, Worker
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.ids import AgentId, TaskId
from orchestra.keeper import Keeper
from orchestra.ledgers.memory import MemoryLedger
from orchestra.root import Root
from orchestra.testing.builders import NODE, make_agents, make_task

TASK = TaskId("a")


async def test_a_result_from_before_a_retry_is_written_again_at_the_next_start(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    loop = Loop(Kernel(c.Policy()), ledger, SystemClock(), term=ledger.claim_term())
    root = Root(tmp_path)
    keeper = Keeper(loop, root, lambda node: None)
    services = [asyncio.create_task(loop.run()), asyncio.create_task(keeper.run())]
    file = root.results_of(TASK) / "result.json"
    try:
        await loop.request(c.Init("t", (NodeSpec(NODE),), make_agents(1)))
        await loop.report([c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1))])
        await loop.request(c.Submit((make_task("a", plan=None),)))
        await loop.report([c.AttemptFinished(TASK, 1, Outcome(OutcomeKind.DONE))])
        file.parent.mkdir(parents=True)
        file.write_text("{}")
        (file.parent / "execution.log").touch()
        for each in file.parent.iterdir():
            os.utime(each, (4_000_000_000, 4_000_000_000))
        await keeper.catch_up()
        await keeper.wait_written()
        assert file.read_text() == "{}", "it is newer than the end of the task"
        os.utime(file, (1, 1))
        await keeper.catch_up()
        await keeper.wait_written()
        assert msgspec.json.decode(file.read_bytes())["task_id"] == TASK
        assert not (file.parent / "execution.log").exists(), "it is an earlier attempt's; this one's is owed until its node is back"
        os.utime(file, (4_000_000_000, 4_000_000_000))
        file.write_text("{}")
        await keeper.catch_up()
        await keeper.wait_written()
        assert file.read_text() != "{}", "without its log a result is not complete"
    finally:
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)
