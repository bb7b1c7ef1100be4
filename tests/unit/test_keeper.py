"""Results as files: what is missing or out of date at the start is written again."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import cast

import msgspec

from orchestra.bootstrap.shelf import StillNode
from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.model import NodeSpec, Outcome, OutcomeKind, Worker
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.ids import AgentId, TaskId
from orchestra.keeper import Keeper
from orchestra.ledgers.memory import MemoryLedger
from orchestra.root import Root
from orchestra.testing.builders import NODE, make_agents, make_task
from orchestra.testing.hosted import wait_until

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


class Line:
    """A node's driver as far as results need one."""

    def __init__(self, folder: Path) -> None:
        self.node = StillNode(folder)
        self.connected = False


async def test_the_output_of_a_machine_that_is_out_of_sight_is_written_when_it_is_back(tmp_path: Path) -> None:
    ledger = MemoryLedger()
    loop = Loop(Kernel(c.Policy()), ledger, SystemClock(), term=ledger.claim_term())
    root, line = Root(tmp_path), Line(tmp_path / "node")
    keeper = Keeper(loop, root, lambda node: cast("NodeDriver", line))
    services = [asyncio.create_task(loop.run()), asyncio.create_task(keeper.run())]
    folder, attempt = root.results_of(TASK), tmp_path / "node" / "attempts" / "a" / "1"
    attempt.mkdir(parents=True)
    (attempt / "output.jsonl").write_text('{"t":1,"s":"out","line":"hello"}\n')
    try:
        await loop.request(c.Init("t", (NodeSpec(NODE),), make_agents(1)))
        await loop.report([c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1))])
        await loop.request(c.Submit((make_task("a", plan=None),)))
        await loop.report([c.AttemptFinished(TASK, 1, Outcome(OutcomeKind.DONE)), c.NodeDown(NODE, "cut")])
        await keeper.catch_up()
        await keeper.wait_written()
        assert [each.name for each in folder.iterdir()] == ["result.json"]
        assert msgspec.json.decode((folder / "result.json").read_bytes())["result"]["artifacts"]["logs"] is None
        line.connected = True
        await loop.report([c.NodeUp(NODE, "boot", "s")])
        await wait_until((folder / "execution.log").exists)
        await keeper.wait_written()
        assert (folder / "execution.log").read_text() == "hello\n"
        assert msgspec.json.decode((folder / "result.json").read_bytes())["result"]["artifacts"]["logs"] is not None
    finally:
        for service in services:
            service.cancel()
        await asyncio.gather(*services, return_exceptions=True)
