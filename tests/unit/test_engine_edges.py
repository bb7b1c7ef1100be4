"""The engine where its surroundings end, break or grow large."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest

from orchestra.agents.registry import adapter_for
from orchestra.app import App
from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, OutcomeKind, Strategy, TaskDefaults, Worker
from orchestra.engine import loop as loop_module
from orchestra.engine.board import Board
from orchestra.engine.driver import DriverOptions, NodeDriver, Tools
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.engine.translate import Translator
from orchestra.errors import BadInput, CoordinatorUnreachable, NodeFailed, Refused
from orchestra.ids import AgentId, AttemptId, TaskId
from orchestra.intake.request import ScaleParams
from orchestra.ledgers.memory import MemoryLedger
from orchestra.node import Inventory, Node, NodeFacts, Notice, Record, Report
from orchestra.nodes.courier import Courier
from orchestra.nodes.transport import Channel
from orchestra.scheduling import place
from orchestra.testing.builders import NODE, Bench, make_agents, make_task
from orchestra.workbench import AppOptions, Workbench


class StepClock:
    """Time that stands still but for sleeps, which take no time and are remembered."""

    def __init__(self) -> None:
        self.ms = 1_000_000
        self.slept: list[int] = []

    def wall_ms(self) -> int:
        return self.ms

    def steady_ms(self) -> int:
        return self.ms

    async def sleep_ms(self, duration_ms: int) -> None:
        self.ms += duration_ms
        self.slept.append(duration_ms)
        await asyncio.sleep(0)


@asynccontextmanager
async def looping(clock: StepClock) -> AsyncIterator[tuple[Loop, asyncio.Task[None]]]:
    ledger = MemoryLedger()
    loop = Loop(Kernel(c.Policy()), ledger, clock, term=ledger.claim_term())
    task = asyncio.create_task(loop.run())
    try:
        yield loop, task
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def end(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def make_app(loop: Loop) -> App:
    bench = Workbench(
        loop=loop,
        lens=cast("Any", None),
        find_adapter=adapter_for,
        drivers={},
        add_driver=cast("Any", None),
        remove_driver=cast("Any", None),
        provision=None,
        write_report=cast("Any", None),
        backup=cast("Any", None),
    )
    node = NodeSpec(NODE, max_agents=2)
    return App(bench, AppOptions("t", (node,), 2, "any", "0", "/root", TaskDefaults()))


# --- the loop ends ---------------------------------------------------------------------------------------------------


async def test_nobody_waits_for_news_of_a_loop_that_has_ended() -> None:
    async with looping(StepClock()) as (loop, task):
        waiting: asyncio.Task[None] = asyncio.create_task(make_app(loop).wait_for(lambda state: None))
        await loop.ask(lambda state: None)
        await asyncio.sleep(0)
        await end(task)
        with pytest.raises(CoordinatorUnreachable):
            async with asyncio.timeout(5):
                await waiting


async def test_who_waited_for_room_in_the_queue_is_refused_when_the_loop_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loop_module, "QUEUE_ITEMS_MAX", 1)
    async with looping(StepClock()) as (loop, task):
        await asyncio.sleep(0)
        asking = [asyncio.create_task(loop.ask(lambda state: None)) for _ in range(5)]
        await asyncio.sleep(0)
        task.cancel()
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*asking, return_exceptions=True)
        assert all(answer is None or isinstance(answer, CoordinatorUnreachable) for answer in answers)
        assert any(isinstance(answer, CoordinatorUnreachable) for answer in answers)


# --- a fleet that leaves while it grows ------------------------------------------------------------------------------


async def test_growing_while_others_leave_is_refused_and_ends_nothing() -> None:
    async with looping(StepClock()) as (loop, task):
        await loop.request(c.Init("t", (NodeSpec(NODE, max_agents=2),), make_agents(2)))
        await loop.report([c.NodeUp(NODE, "boot", "s"), *(c.WorkerSeen(AgentId(n), Worker(n, 1)) for n in (1, 2))])
        app = make_app(loop)
        await app.scale(ScaleParams(target_count=1))
        with pytest.raises(Refused, match="no room beside those that are leaving"):
            await app.scale(ScaleParams(target_count=2))
        assert not task.done()


# --- agent kinds that are somebody else's ----------------------------------------------------------------------------


class BrokenKind:
    """A kind with a bug."""

    kind = "shell"
    programs = ()

    def launch(self, *arguments: object) -> None:
        raise KeyError("program")

    def signal(self, line: object) -> None:
        raise ValueError("no figure")


def broken(name: str) -> Any:
    return BrokenKind()


def test_a_kind_that_cannot_make_an_order_is_a_refusal_of_the_task() -> None:
    with pytest.raises(BadInput, match="agent kind 'shell' failed: KeyError"):
        OrderMaker(broken, OrderOptions()).make(make_task("a"), AttemptId(TaskId("p/a"), 1), AgentSpec(AgentId(1), NODE))


def signal_of(bench: Bench, finder: Any = adapter_for) -> object:
    record = Record("signal", AgentId(1), Worker(101, 1), 0, "p/a", 1, {"line": {"type": "progress", "progress": 0.5}})
    return Translator(lambda: bench.state, finder).signal(record)


def test_a_signal_that_its_kind_does_not_understand_is_passed_over() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    assert signal_of(bench, broken) is None


def test_a_signal_of_an_attempt_that_is_over_is_not_kept() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", kind="rehearsal"))
    bench.finish("p/a", kind=OutcomeKind.LOST)
    assert signal_of(bench, broken) is None


# --- a node that comes and goes --------------------------------------------------------------------------------------


class FlakyNode:
    """Connects as often as it is told to, and loses the connection at once; fails to connect otherwise."""

    id = NODE

    def __init__(self, connects: list[bool]) -> None:
        self.connects = connects
        self.done = asyncio.Event()

    async def start(self, journal_offset: int) -> NodeFacts:
        if not self.connects:
            self.done.set()
            await asyncio.Event().wait()
        if not self.connects.pop(0):
            raise NodeFailed("no answer")
        return NodeFacts("boot", "host", "3", "3", "session")

    async def stop(self) -> None:
        return

    async def reports(self) -> AsyncIterator[Report]:
        yield Notice("channel-lost", detail="the channel broke")

    async def inventory(self, attempts: object) -> Inventory:
        return Inventory((), (), ())


async def test_pauses_between_connects_begin_anew_after_each_that_succeeded() -> None:
    clock = StepClock()
    async with looping(clock) as (loop, _):
        await loop.request(c.Init("t", (NodeSpec(NODE),), ()))
        translator = Translator(lambda: loop.state, adapter_for)
        tools = Tools(loop, clock, translator, Board(), OrderMaker(adapter_for, OrderOptions()))
        node = FlakyNode([False, False, True, False])
        driver = NodeDriver(cast("Node", node), tools, DriverOptions(reconnect_first_ms=200, sweep_again_ms=7))
        running = asyncio.create_task(driver.run())
        async with asyncio.timeout(5):
            await node.done.wait()
        await end(running)
    assert [ms for ms in clock.slept if ms != 7] == [200, 400, 200, 400]


# --- many tasks ------------------------------------------------------------------------------------------------------


def test_tasks_that_wait_for_one_agent_are_not_looked_at_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0
    rule = place.at_home

    def counted(*arguments: Any) -> Any:
        nonlocal looks
        looks += 1
        return rule(*arguments)

    monkeypatch.setattr("orchestra.scheduling.scheduler.RULES", {**place.RULES, Strategy.AFFINITY: counted})
    bench = Bench(make_agents(3))
    bench.submit(*(make_task(str(number), affinity="parser", strategy=Strategy.AFFINITY) for number in range(50)))
    looks = 0
    bench.do(c.Tick())
    assert looks <= 1


class EndedChannel:
    """A channel whose other side is gone."""

    async def read(self) -> bytes:
        return b""

    async def close(self) -> None:
        return None


async def test_a_connection_that_ends_is_told_in_words_of_the_person_who_looks() -> None:
    courier = Courier(cast(Channel, EndedChannel()), "nonce", 1000)
    assert await courier.reports.get() == Notice("channel-lost", detail="the connection to it broke")
    await courier.close()
