"""Bugs that the simulated world has found, each told in a few lines so that it stays found."""

from __future__ import annotations

import asyncio

import pytest

from orchestra.agents.shell import ADAPTER
from orchestra.core import commands as c
from orchestra.core.effects import CloseAgent, OpenAgents
from orchestra.core.model import NodeSpec, OutcomeKind, Worker
from orchestra.engine.duties import window_names
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.engine.reconcile import reconcile
from orchestra.engine.translate import Translator
from orchestra.errors import CoordinatorUnreachable, LedgerConflict, Refused
from orchestra.ids import AgentId, NodeId, TaskId
from orchestra.ledger import Append, Appended
from orchestra.ledgers.memory import MemoryLedger
from orchestra.node import Inventory, Record, WorkerFacts
from orchestra.testing.builders import NODE, Bench, make_agents, make_task
from orchestra.testing.world.clock import SimClock
from orchestra.testing.world.timeline import Timeline

ONE = AgentId(1)


def translator(bench: Bench) -> Translator:
    return Translator(lambda: bench.state, lambda kind: ADAPTER)


def inventory(bench: Bench, worker: Worker | None) -> Inventory:
    workers = () if worker is None else (WorkerFacts(ONE, worker, True, 0, None),)
    return Inventory(workers, (), () if worker is None else (ONE,))


def test_a_task_whose_need_failed_is_not_revived_alone() -> None:
    """It stayed pending for ever: nothing would ever meet its need."""
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=0), make_task("b", "a"))
    bench.do(c.CancelTask(TaskId("p/b"), "no"))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    with pytest.raises(Refused, match="waits for p/a"):
        bench.do(c.RetryTask(TaskId("p/b")))


def test_a_revived_task_revives_only_what_nothing_else_blocks() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", retries=0), make_task("b", retries=0), make_task("c", "a", "b"))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    bench.finish("p/b", kind=OutcomeKind.FAILED)
    bench.do(c.RetryTask(TaskId("p/a")))
    assert bench.status("p/c") == "cancelled"
    bench.do(c.RetryTask(TaskId("p/b")))
    assert bench.status("p/c") == "pending"


def test_a_death_that_is_told_twice_counts_once() -> None:
    """The sweep and the courier's notice both tell of it: two deaths were enough to give a slot up that may have three."""
    bench = Bench(make_agents(1))
    worker = Worker(101, 1)
    bench.do(c.WorkerFell(ONE, worker, "its worker is gone"))
    bench.do(c.WorkerFell(ONE, worker, "its worker died"))
    assert bench.state.agents[ONE].falls == 1


def test_a_slot_that_was_given_up_gets_no_window() -> None:
    """Every sweep gave it another worker, so that a crash loop never ended."""
    bench = Bench(make_agents(1), c.Policy(falls_max=0))
    bench.do(c.WorkerFell(ONE, Worker(101, 1), "died"))
    assert bench.state.agents[ONE].status.value == "error"
    found = reconcile(bench.state, NODE, inventory(bench, None), translator(bench))
    assert [effect for effect in found.effects if isinstance(effect, OpenAgents)] == []
    assert window_names(bench.state, [ONE]) == []


def test_nothing_is_started_again_after_the_shutdowns_time_is_up() -> None:
    """What was stopped for lack of time was queued, started and stopped again, for ever."""
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=1000))
    bench.pass_time(1001)
    bench.finish("p/a", kind=OutcomeKind.STOPPED)
    bench.pass_time(1)
    assert len(bench.task("p/a").attempts) == 1
    bench.pass_time(1)
    assert bench.state.lifecycle.value == "terminated"


@pytest.mark.parametrize("record", [Worker(50, 1), Worker(101, 1)])
def test_an_old_ready_record_does_not_push_out_the_present_worker(record: Worker) -> None:
    """A sweep may see the present worker before the journal is read that far."""
    bench = Bench(make_agents(1))
    bench.do(c.WorkerFell(ONE, Worker(101, 1), "died"), c.WorkerSeen(ONE, Worker(102, 1)))
    assert translator(bench).commands(Record("ready", ONE, record, 0)) == []


def test_a_new_worker_of_a_leaving_slot_is_asked_to_leave_too() -> None:
    """The one that had been asked died of something else; its heir waited for work for ever and the scaling never ended."""
    bench = Bench(make_agents(1))
    bench.do(c.Scale(0, "gradual"))
    found = reconcile(bench.state, NODE, inventory(bench, Worker(102, 1)), translator(bench))
    assert [effect.agent for effect in found.effects if isinstance(effect, CloseAgent)] == [ONE]


class Refusing(MemoryLedger):
    def append(self, request: Append) -> Appended:
        raise LedgerConflict("somebody else leads")


async def test_whoever_waits_for_a_turn_that_breaks_off_is_told() -> None:
    """A coordinator that lost the lead at its first append hung in its start."""
    loop = Loop(Kernel(c.Policy()), Refusing(), SimClock(Timeline()), term=1)
    running = asyncio.create_task(loop.run())
    with pytest.raises(CoordinatorUnreachable):
        await loop.request(c.Init("t", (NodeSpec(NodeId("local")),), make_agents(1)))
    with pytest.raises(LedgerConflict):
        await running
