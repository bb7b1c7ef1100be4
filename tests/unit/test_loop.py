"""The single writer: what is answered is durable, whatever the ledger does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from orchestra.clock import Clock
from orchestra.codec.state import encode_state
from orchestra.core import commands as c
from orchestra.core.effects import Effect
from orchestra.core.model import NodeSpec
from orchestra.engine.kernel import Happened, Kernel
from orchestra.engine.loop import Loop
from orchestra.errors import CoordinatorUnreachable, IllegalMove, LedgerConflict, LedgerFailed, LedgerUnknown
from orchestra.ids import NodeId
from orchestra.ledger import Append, Appended
from orchestra.ledgers.memory import MemoryLedger
from orchestra.testing.builders import make_agents


class StepClock:
    """Time that stands still but for sleeps, which take no time."""

    def __init__(self) -> None:
        self.ms = 1_000_000

    def wall_ms(self) -> int:
        return self.ms

    def steady_ms(self) -> int:
        return self.ms

    async def sleep_ms(self, duration_ms: int) -> None:
        self.ms += duration_ms
        await asyncio.sleep(0)


class TroubledLedger(MemoryLedger):
    """A ledger that has one kind of trouble before, or instead of, an append."""

    def __init__(self) -> None:
        super().__init__()
        self.trouble: Callable[[Append], Appended] | None = None

    def append(self, request: Append) -> Appended:
        if self.trouble is not None:
            return self.trouble(request)
        return super().append(request)


@asynccontextmanager
async def running(ledger: MemoryLedger, clock: Clock | None = None) -> AsyncIterator[Loop]:
    term = ledger.claim_term()
    kernel = Kernel.restore(c.Policy(), ledger.load_snapshot(), ledger.read())
    loop = Loop(kernel, ledger, clock or StepClock(), term=term)
    task = asyncio.create_task(loop.run())
    try:
        await loop.request(c.TakeLead(term, 1, "host", "0"))
        yield loop
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


INIT = c.Init("t", (NodeSpec(NodeId("local")),), make_agents(1))


async def test_an_answer_means_the_events_are_in_the_ledger() -> None:
    ledger = MemoryLedger()
    async with running(ledger) as loop:
        events = await loop.request(INIT)
        assert ledger.tail().seq == 1 + len(events)
        assert await loop.ask(lambda state: state.seq) == ledger.tail().seq


async def test_a_refusal_leaves_nothing_behind() -> None:
    ledger = MemoryLedger()
    async with running(ledger) as loop:
        before = ledger.tail()
        with pytest.raises(IllegalMove):
            await loop.request(c.Scale(3, "gradual"))
        assert ledger.tail() == before


async def test_what_waits_together_is_appended_together() -> None:
    ledger = MemoryLedger()
    appends: list[int] = []
    async with running(ledger) as loop:
        loop.listen(lambda state, happened: appends.append(len(happened)))
        answers = [c.AnswerCommand(f"c{n}", "d", "{}") for n in range(50)]
        await asyncio.gather(*(loop.request(each) for each in answers))
        assert sum(appends) == 50
        assert len(appends) < 10


async def test_effects_and_listeners_come_after_the_append() -> None:
    ledger = MemoryLedger()
    seen: list[tuple[str, int]] = []

    def sink(effects: object) -> None:
        seen.append(("effects", ledger.tail().seq))

    def listener(state: object, happened: object) -> None:
        assert isinstance(happened, list)
        assert isinstance(happened[-1], Happened)
        seen.append(("listener", happened[-1].seq))

    async with running(ledger) as loop:
        loop.send_effects_to(sink)
        loop.listen(listener)
        await loop.request(INIT)
    assert seen == [("effects", ledger.tail().seq), ("listener", ledger.tail().seq)]


async def test_an_unknown_outcome_is_looked_up_and_not_repeated() -> None:
    ledger = TroubledLedger()
    async with running(ledger) as loop:

        def append_then_forget(request: Append) -> Appended:
            ledger.trouble = None
            MemoryLedger.append(ledger, request)
            raise LedgerUnknown("no answer")

        ledger.trouble = append_then_forget
        events = await loop.request(INIT)
        assert ledger.tail().seq == 1 + len(events)


async def test_an_unknown_outcome_that_did_not_happen_ends_the_coordinator() -> None:
    ledger = TroubledLedger()
    term = ledger.claim_term()
    loop = Loop(Kernel(c.Policy()), ledger, StepClock(), term=term)

    def lose(request: Append) -> Appended:
        raise LedgerUnknown("no answer")

    ledger.trouble = lose
    task = asyncio.create_task(loop.run())
    asking = asyncio.create_task(loop.request(c.TakeLead(term, 1, "host", "0")))
    with pytest.raises(LedgerUnknown):
        await task
    asking.cancel()
    with pytest.raises(CoordinatorUnreachable):
        await loop.request(INIT)
    assert ledger.tail().seq == 0


async def test_a_full_disk_is_waited_out_and_nothing_is_lost() -> None:
    ledger = TroubledLedger()
    async with running(ledger) as loop:
        refusals = 0
        noted: list[str] = []

        def full(request: Append) -> Appended:
            nonlocal refusals
            refusals += 1
            noted.append(loop.ledger_trouble)
            if refusals == 3:
                ledger.trouble = None
            raise LedgerFailed("the disk is full")

        ledger.trouble = full
        await loop.request(INIT)
        assert refusals == 3
        assert noted == ["", "the disk is full", "the disk is full"]
        assert loop.ledger_trouble == ""


async def test_a_coordinator_that_was_superseded_stops_without_effects() -> None:
    ledger = MemoryLedger()
    effects: list[Effect] = []
    term = ledger.claim_term()
    loop = Loop(Kernel(c.Policy()), ledger, StepClock(), term=term)
    loop.send_effects_to(effects.extend)
    ledger.claim_term()
    task = asyncio.create_task(loop.run())
    asking = asyncio.create_task(loop.request(c.TakeLead(term, 1, "host", "0")))
    with pytest.raises(LedgerConflict):
        await task
    asking.cancel()
    assert not effects


async def test_a_restart_folds_to_the_same_state_with_and_without_snapshot() -> None:
    ledger = MemoryLedger()
    async with running(ledger) as loop:
        await loop.request(INIT)
        await loop.save_snapshot()
        await loop.request(c.AnswerCommand("c", "d", "{}"))
        live = await loop.ask(encode_state)
    snapshot = ledger.load_snapshot()
    assert snapshot is not None
    from_snapshot = Kernel.restore(c.Policy(), snapshot, ledger.read(snapshot.seq))
    from_start = Kernel.restore(c.Policy(), None, ledger.read())
    assert encode_state(from_snapshot.state) == encode_state(from_start.state) == live


async def test_ledger_time_never_goes_back_even_if_the_wall_clock_does() -> None:
    ledger = MemoryLedger()
    late = StepClock()
    late.ms = 5_000_000
    async with running(ledger, late) as loop:
        await loop.request(INIT)
    early = StepClock()
    async with running(ledger, early) as loop:
        assert loop.now_ms() >= 5_000_000
        await loop.request(c.AnswerCommand("c", "d", "{}"))
    times = [stored.at_ms for stored in ledger.read()]
    assert times == sorted(times)
