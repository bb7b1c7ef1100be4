"""Attempts that need a place of their own start beside everything else a node has to do."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any, cast

from orchestra.agents.registry import adapter_for
from orchestra.core import commands as c
from orchestra.core.effects import StartAttempt, StopAttempt
from orchestra.core.model import NodeSpec, Worker
from orchestra.engine.board import Board
from orchestra.engine.driver import DriverOptions, NodeDriver, Tools
from orchestra.engine.duties import Ask, Call, Duties, Duty, Peek, Prepare, Step, Tell, WantPlaces
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.engine.translate import Translator
from orchestra.ids import AgentId, AttemptId, TaskId
from orchestra.ledgers.memory import MemoryLedger
from orchestra.node import Inventory, Node, NodeFacts, Report, WorkerFacts
from orchestra.testing.builders import NODE, Bench, make_agents, make_task
from orchestra.workspace import WorkRequest, Workspace, Workspaces

ONE = AgentId(1)
ATTEMPT = AttemptId(TaskId("p/a"), 1)
START = StartAttempt(1, NODE, ONE, *ATTEMPT)
STOP = StopAttempt(2, NODE, ONE, *ATTEMPT, "cancelled")


def place_for(request: WorkRequest) -> Workspace:
    return Workspace(attempt=request.attempt, kind="git", repo=request.repo, path="/w", cwd="/w")


def bench_of(count: int) -> Bench:
    bench = Bench(make_agents(count))
    bench.submit(*(make_task(name, isolated=True, workspace="/repo") for name in "abcdefghij"[:count]))
    return bench


def duties_of(bench: Bench) -> Duties:
    return Duties(NODE, Translator(lambda: bench.state, adapter_for), Board(), OrderMaker(adapter_for, OrderOptions()))


class Doing:
    """A duty that is carried out in parts. What it sees is the state as it is then."""

    def __init__(self, bench: Bench, duty: Duty) -> None:
        self._bench, self._duty = bench, duty
        self._last: Step | None = None

    def go_on(self, until: type | None = None) -> list[Step]:
        """Carries it out to its end, or up to the next step of a type, which is answered when it goes on. Returns the steps since the last time."""
        steps: list[Step] = []
        while True:
            try:
                self._last = self._duty.send(None if self._last is None else self._answer(self._last))
            except StopIteration:
                return steps
            steps.append(self._last)
            if until is not None and isinstance(self._last, until):
                return steps

    def _answer(self, step: Step) -> Any:
        match step:
            case Ask(question) | Peek(question):
                return question(self._bench.state)
            case Prepare(requests):
                return [place_for(request) for request in requests]
            case Call(method):
                return {"order": [], "reap": "reaped"}.get(method)
            case Tell(commands):
                self._bench.do(*commands)
        return None


def done(bench: Bench, duty: Duty) -> list[Step]:
    return Doing(bench, duty).go_on()


def called(steps: Sequence[Step], method: str) -> list[Any]:
    return [step.arguments[0] for step in steps if isinstance(step, Call) and step.method == method]


def ordered(steps: Sequence[Step]) -> list[AttemptId]:
    return [order.attempt for orders in called(steps, "order") for order in orders]


def test_an_attempt_that_needs_a_place_is_put_aside_and_started_there() -> None:
    bench = bench_of(1)
    duties = duties_of(bench)
    steps = done(bench, duties.carry_out([START]))
    assert (ordered(steps), [step for step in steps if isinstance(step, WantPlaces)]) == ([], [WantPlaces()])
    assert ordered(done(bench, duties.start_apart())) == [ATTEMPT]


def test_places_are_made_a_few_at_a_time_and_asking_again_makes_none_twice() -> None:
    bench = bench_of(6)
    duties = duties_of(bench)
    starts = [StartAttempt(1, NODE, attempt.agent, *attempt_id) for attempt_id, attempt in bench.state.live_attempts()]
    done(bench, duties.carry_out(starts))
    making = Doing(bench, duties.start_apart())
    steps = making.go_on(until=Prepare)
    done(bench, duties.carry_out(starts))  # a look at the node asks for all of them again
    steps += making.go_on()
    assert [len(step.requests) for step in steps if isinstance(step, Prepare)] == [4, 2]
    assert ordered(steps) == [AttemptId(each.task, each.attempt) for each in starts]


def test_what_is_stopped_before_its_place_is_made_gets_none() -> None:
    bench = bench_of(1)
    duties = duties_of(bench)
    done(bench, duties.carry_out([START]))
    bench.do(c.CancelTask(ATTEMPT.task, "not needed"))
    assert called(done(bench, duties.carry_out([STOP])), "reap") == [ATTEMPT]
    assert done(bench, duties.start_apart()) == []


def test_what_is_stopped_while_its_place_is_made_is_not_ordered() -> None:
    bench = bench_of(1)
    duties = duties_of(bench)
    done(bench, duties.carry_out([START]))
    making = Doing(bench, duties.start_apart())
    making.go_on(until=Prepare)
    bench.do(c.CancelTask(ATTEMPT.task, "not needed"))
    stopping = done(bench, duties.carry_out([STOP]))
    assert (called(stopping, "stop_attempt"), called(stopping, "reap")) == ([ATTEMPT], [ATTEMPT])
    assert ordered(making.go_on()) == []


def test_what_has_its_order_is_stopped_by_its_worker_alone() -> None:
    bench = bench_of(1)
    duties = duties_of(bench)
    done(bench, duties.carry_out([START]))
    done(bench, duties.start_apart())
    bench.do(c.CancelTask(ATTEMPT.task, "not needed"))
    stopping = done(bench, duties.carry_out([STOP]))
    assert (called(stopping, "stop_attempt"), called(stopping, "reap")) == ([ATTEMPT], [])


def test_what_was_put_aside_is_forgotten_with_the_connection() -> None:
    bench = bench_of(1)
    duties = duties_of(bench)
    done(bench, duties.carry_out([START]))
    duties.begin()
    assert done(bench, duties.start_apart()) == []


class ReadyNode:
    """A node with a worker in every window that does as it is told."""

    id = NODE

    def __init__(self) -> None:
        self.calls: asyncio.Queue[tuple[str, Any]] = asyncio.Queue()

    async def start(self, journal_offset: int) -> NodeFacts:
        return NodeFacts("boot", "host", "3", "3", "session")

    async def stop(self) -> None:
        return

    async def reports(self) -> AsyncIterator[Report]:
        await asyncio.Event().wait()
        yield cast("Report", None)

    async def inventory(self, attempts: object) -> Inventory:
        return Inventory(
            tuple(WorkerFacts(AgentId(number), Worker(100 + number, 1), True, 10, None) for number in (1, 2)), (), (ONE, AgentId(2))
        )

    async def order(self, orders: Sequence[Any]) -> list[Any]:
        for order in orders:
            self.calls.put_nowait(("order", order.attempt))
        return []

    async def stop_attempt(self, attempt: AttemptId, agent: AgentId, grace_ms: int) -> None:
        self.calls.put_nowait(("stop", attempt))

    async def reap(self, attempt: AttemptId) -> str:
        self.calls.put_nowait(("reap", attempt))
        return "reaped"


class SlowWorkspaces:
    """Makes no place until it is let."""

    def __init__(self) -> None:
        self.asked, self.may = asyncio.Event(), asyncio.Event()

    async def prepare(self, requests: Sequence[WorkRequest]) -> tuple[Workspace, ...]:
        self.asked.set()
        await self.may.wait()
        return tuple(place_for(request) for request in requests)


class StillClock:
    """Time that stands still; who sleeps does not wake."""

    def wall_ms(self) -> int:
        return 1_000_000

    def steady_ms(self) -> int:
        return 1_000_000

    async def sleep_ms(self, duration_ms: int) -> None:
        await asyncio.Event().wait()


async def test_a_repository_that_takes_long_holds_up_nothing_else_on_its_node() -> None:
    ledger, node, places = MemoryLedger(), ReadyNode(), SlowWorkspaces()
    loop = Loop(Kernel(c.Policy()), ledger, StillClock(), term=ledger.claim_term())
    tools = Tools(loop, StillClock(), Translator(lambda: loop.state, adapter_for), Board(), OrderMaker(adapter_for, OrderOptions()))
    driver = NodeDriver(cast("Node", node), tools, DriverOptions(), cast("Workspaces", places))
    loop.send_effects_to(driver.act)
    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        running = [group.create_task(loop.run())]
        await loop.request(c.Init("t", (NodeSpec(NODE),), make_agents(2)))
        running.append(group.create_task(driver.run()))
        while await loop.ask(lambda state: any(agent.worker is None for agent in state.agents.values())):
            pass  # the first look at the node finds the workers
        await loop.request(c.Submit((make_task("slow", plan=None, isolated=True, workspace="/repo"),)))
        await places.asked.wait()
        await loop.request(c.Submit((make_task("other", plan=None),)))
        assert await node.calls.get() == ("order", AttemptId(TaskId("other"), 1))
        await loop.request(c.CancelTask(TaskId("other"), "not needed"))
        assert await node.calls.get() == ("stop", AttemptId(TaskId("other"), 1))
        await loop.request(c.CancelTask(TaskId("slow"), "not needed"))
        assert [await node.calls.get() for _ in "ab"] == [("stop", AttemptId(TaskId("slow"), 1)), ("reap", AttemptId(TaskId("slow"), 1))]
        for task in running:
            task.cancel()
