"""A coordinator of the simulated world: the production kernel, append protocol, duties, translator and orders, driven on the world's time.

What stands here mirrors `engine.loop`, `engine.driver` and `bootstrap.coordinator` line by line where those wait; what they decide is shared with them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final

from orchestra.agents import rehearsal, shell
from orchestra.agents.adapter import Adapter
from orchestra.clocks.system import LedgerTime
from orchestra.codec.state import decode_state
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import Effect, Finish, NodeEffect
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus
from orchestra.core.state import State
from orchestra.engine.appending import LookUp, Pause, TryAppend, append_steps
from orchestra.engine.board import Board
from orchestra.engine.failpoints import hit
from orchestra.engine.kernel import Happened, Kernel
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.engine.translate import Translator
from orchestra.errors import InvariantBroken, LedgerConflict, LedgerDamaged, LedgerFailed, LedgerUnknown, NodeFailed, OrchestraError
from orchestra.ids import NodeId
from orchestra.ledger import Append, Appended
from orchestra.testing.world.clock import SimClock
from orchestra.testing.world.driver import SimDriver
from orchestra.testing.world.timeline import Process, Promise

if TYPE_CHECKING:
    from orchestra.testing.world.world import World

TURN_ITEMS_MAX: Final = 512
TICK_MS: Final = 100
"""As the real ticker's: what is due is noticed so much later at most. Ticks at which nothing is due are not simulated."""
IDLE_TICK_MS: Final = 30_000
"""A tick also comes so often while there is work, for what only the passing of time reveals."""
SCALE_TICK_MS: Final = 1_000
TRIAL_TICK_MS: Final = 1_000
"""Ticks that wait for a condition rather than for a moment; the real ticker's come more often."""
FIND_MS: Final = 5

ADAPTERS: Final[dict[str, Adapter]] = {"shell": shell.ADAPTER, "rehearsal": rehearsal.ADAPTER}


class SimCrash(BaseException):
    """The process ends at this very point, as if by kill -9."""


class Item:
    """One entry of the loop's queue: a request, reports, or a question."""

    __slots__ = ("answer", "commands", "question", "request")

    def __init__(
        self,
        answer: Promise | None = None,
        request: c.Command | None = None,
        commands: Sequence[c.Command] = (),
        question: Callable[[State], Any] | None = None,
    ) -> None:
        self.answer = answer
        self.request = request
        self.commands = commands
        self.question = question


class SimCoordinator:
    """One process of the control plane."""

    def __init__(self, world: World, name: str, clock: SimClock) -> None:
        self.world = world
        self.name = name
        self.line = world.line
        self.clock = clock
        self.alive = True
        self.paused = False
        self.finished = False
        self.term = 0
        self.kernel = Kernel(world.policy)
        self.board = Board()
        self.translator = Translator(lambda: self.kernel.state, ADAPTERS.__getitem__)
        self.orders = OrderMaker(ADAPTERS.__getitem__, OrderOptions())
        self.drivers: dict[NodeId, SimDriver] = {}
        self._removed: list[SimDriver] = []
        self._queue: list[Item] = []
        self._wanted: Promise | None = None
        self._appends = 0
        self._tail_hash = b""
        self._snapshot_ms = 0
        self._snapshot_seq = 0
        self._tick_at_ms = -1
        self._suspended: list[Callable[[], None]] = []

    # --- being a process ---------------------------------------------------------------------------------------------

    def enter(self, piece: Callable[[], None]) -> None:
        """Runs a piece of the coordinator, and ends it where a real one would end."""
        if not self.alive:
            return
        if self.paused:
            self._suspended.append(piece)
            return
        try:
            piece()
        except SimCrash:
            self.end("crashed")
        except (LedgerConflict, LedgerUnknown, LedgerDamaged) as error:
            self.end(f"stopped: {error}")

    def resume(self) -> None:
        """It goes on after a pause, and knows nothing of it."""
        self.paused = False
        suspended, self._suspended = self._suspended, []
        for piece in suspended:
            self.enter(piece)

    def end(self, why: str) -> None:
        """The process is gone; so are its couriers."""
        if self.alive:
            self.alive = False
            for driver in (*self.drivers.values(), *self._removed):
                driver.port.stop()
            self.world.coordinator_ended(self, why)

    def spawn(self, body: Generator[Promise, Any, Any]) -> Process:
        """Starts a process of this coordinator."""
        return Process(self.line, body, self.enter)

    # --- starting ----------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Folds the ledger, takes the lead, and connects the nodes it knows."""
        self.enter(self._start)

    def _start(self) -> None:
        ledger = self.world.ledger
        snapshot = ledger.load_snapshot() if self.world.dice.random() < 0.8 else None
        if snapshot is not None and decode_state(snapshot.body, snapshot.format) is None:
            snapshot = None
        self.kernel = Kernel.restore(self.world.policy, snapshot, ledger.read(0 if snapshot is None else snapshot.seq))
        self.world.checker.check_restored(self.kernel.state)
        self.time = LedgerTime(self.clock, self.kernel.state.at_ms)
        self.term = ledger.claim_term()
        self._snapshot_ms, self._snapshot_seq = self.clock.steady_ms(), self.kernel.state.seq
        loop = self.spawn(self._run())
        loop.ended.then(lambda: self.end(f"stopped: {loop.ended.error}"))
        self.request(c.TakeLead(self.term, 1, self.name, "0"))
        self.spawn(self._reconnect())

    def _reconnect(self) -> Generator[Promise, Any, None]:
        known = yield self.ask(
            lambda state: [
                node.spec.id
                for node in state.nodes.values()
                if state.lifecycle not in (Lifecycle.UNINITIALIZED, Lifecycle.TERMINATED, Lifecycle.FAILED)
                and state.agents_on(node.spec.id)
            ]
        )
        for node in known:
            self.add_driver(node)

    def add_driver(self, node: NodeId) -> None:
        """Begins to run a node, unless it does so already."""
        if node not in self.drivers:
            driver = self.drivers[node] = SimDriver(self, self.world.port_to(node))
            driver.begin()

    # --- the loop ----------------------------------------------------------------------------------------------------

    def request(self, command: c.Command) -> Promise:
        """See `Loop.request`."""
        answer = Promise(self.line)
        self._put(Item(answer, request=command))
        return answer

    def report(self, commands: Sequence[c.Command]) -> None:
        """See `Loop.report`."""
        if commands:
            self._put(Item(commands=commands))

    def ask(self, question: Callable[[State], Any]) -> Promise:
        """See `Loop.ask`."""
        answer = Promise(self.line)
        self._put(Item(answer, question=question))
        return answer

    def _put(self, item: Item) -> None:
        self._queue.append(item)
        if self._wanted is not None:
            wanted, self._wanted = self._wanted, None
            wanted.keep(None)

    def _run(self) -> Generator[Promise, Any, None]:
        while True:
            if not self._queue:
                self._wanted = Promise(self.line)
                yield self._wanted
            items, self._queue = self._queue[:TURN_ITEMS_MAX], self._queue[TURN_ITEMS_MAX:]
            yield from self._turn(items)

    def _turn(self, items: Sequence[Item]) -> Generator[Promise, Any, None]:
        now = self.time.now_ms()
        answers: list[tuple[Promise, list[Any]]] = []
        for item in items:
            if item.request is not None and item.answer is not None:
                try:
                    answers.append((item.answer, list(self.kernel.take(item.request, now))))
                except InvariantBroken:
                    raise
                except OrchestraError as refusal:
                    item.answer.fail(refusal)
            for command in item.commands:
                self.kernel.take(command, now)
                self.world.checker.caution.told(self, command, max(now, self.kernel.state.at_ms))
        self.kernel.schedule(now)
        if self.kernel.pending:
            yield from self._commit()
        for answer, events in answers:
            answer.keep(events)
        for item in items:
            if item.question is not None and item.answer is not None:
                _answer(item.answer, item.question, self.kernel.state)
        self._maybe_snapshot()
        self._plan_tick()

    def _commit(self) -> Generator[Promise, Any, None]:
        self._appends += 1
        append = self.kernel.batch(f"{self.name}-{self._appends}", self.term)
        appended = yield from self._append(append)
        self._tail_hash = appended.hash
        happened, effects = self.kernel.committed()
        self.world.checker.check_commit(self, happened)
        self._let_go(happened)
        self._dispatch(effects)
        hit("after-effects")
        self.board.on_events(self.kernel.state, happened)

    def _append(self, append: Append) -> Generator[Promise, Any, Appended]:
        steps = append_steps(append)
        try:
            step = next(steps)
            while True:
                answer: Any = None
                try:
                    match step:
                        case TryAppend(each):
                            yield self.line.sleep(self.world.ledger.delay_ms())
                            answer = self.world.append(self, each)
                        case LookUp(idempotency_id):
                            yield self.line.sleep(FIND_MS)
                            answer = self.world.ledger.find(idempotency_id)
                        case Pause(duration_ms):
                            answer = yield self.line.sleep(duration_ms)
                except LedgerFailed as failed:
                    step = steps.throw(failed)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            appended: Appended = end.value
            return appended

    def _maybe_snapshot(self) -> None:
        grown = self.kernel.state.seq - self._snapshot_seq
        if self._tail_hash and grown and self.clock.steady_ms() - self._snapshot_ms >= self.world.snapshot_interval_ms:
            self._snapshot_ms, self._snapshot_seq = self.clock.steady_ms(), self.kernel.state.seq
            self.world.ledger.save_snapshot(self.kernel.snapshot(self._tail_hash))

    # --- time --------------------------------------------------------------------------------------------------------

    def _plan_tick(self) -> None:
        due = next_deadline_ms(self.kernel.state, self.world.policy, self.time.now_ms())
        if due is None:
            return
        at_ms = self.line.now_ms + max(due - self.time.now_ms(), 0)
        at_ms = (at_ms // TICK_MS + 1) * TICK_MS
        if self._tick_at_ms <= self.line.now_ms or at_ms < self._tick_at_ms:
            self._tick_at_ms = at_ms
            self.line.at(at_ms, self._tick, at_ms)

    def _tick(self, at_ms: int) -> None:
        if self.alive and at_ms == self._tick_at_ms:
            self._tick_at_ms = -1
            self.enter(lambda: self.report([c.Tick()]))

    # --- effects -----------------------------------------------------------------------------------------------------

    def _let_go(self, happened: Sequence[Happened]) -> None:
        for each in happened:
            if isinstance(each.event, e.NodeRemoved) and each.event.node in self.drivers:
                driver = self.drivers.pop(each.event.node)
                self._removed.append(driver)
                self.spawn(_remove(driver))

    def _dispatch(self, effects: Sequence[Effect]) -> None:
        by_node: dict[NodeId, list[Effect]] = {}
        for effect in effects:
            if isinstance(effect, Finish) and not self.finished:
                self.finished = True
                self.spawn(self._finish())
            elif isinstance(effect, NodeEffect):
                by_node.setdefault(effect.node, []).append(effect)
        for node, orders in by_node.items():
            if node in self.drivers:
                self.drivers[node].act(orders)

    def _finish(self) -> Generator[Promise, Any, None]:
        for driver in list(self.drivers.values()):
            try:
                yield driver.port.call("close_all")
            except NodeFailed:
                continue
        self.end("finished")


def _remove(driver: SimDriver) -> Generator[Promise, Any, None]:
    """What of ours still runs there is ended, if it can be reached."""
    if driver.connected:
        with suppress(NodeFailed):
            yield driver.port.call("close_all")
    driver.end()


def _answer(answer: Promise, question: Callable[[State], Any], state: State) -> None:
    try:
        answer.keep(question(state))
    except LookupError as error:  # it is about something that has been removed meanwhile: the asker's trouble, not the loop's
        answer.fail(error)


def next_deadline_ms(state: State, policy: c.Policy, now_ms: int) -> int | None:
    """Returns the ledger time at which a tick may next do something; None if none will."""
    due: list[int] = [state.tasks[task].ready_ms for task in state.waiting]
    if state.lifecycle is Lifecycle.INITIALIZING:
        due.append(state.started_ms + policy.init_timeout_ms)
    if state.shutdown is not None:
        due.append(max(state.shutdown.deadline_ms, now_ms if not state.live else now_ms + 1000))
    if any(node.status is NodeStatus.LOST or node.breaker is not None for node in state.nodes.values()):
        due += [attempt.lost_sight_ms + policy.unknown_grace_ms + 1 for _, attempt in state.live_attempts() if attempt.lost_sight_ms]
    if state.queued or state.live:
        due.append(now_ms + IDLE_TICK_MS)
    if state.scale_queue:
        due.append(now_ms + SCALE_TICK_MS)
    due += _recovery_ms(state, policy, now_ms)
    return min(due, default=None)


def _recovery_ms(state: State, policy: c.Policy, now_ms: int) -> Iterator[int]:
    """Yields when the next steps of ladders, starts that came to nothing and trials of breakers are due."""
    for node in state.nodes.values():
        if node.breaker is not None and node.status is NodeStatus.READY:
            yield now_ms + TRIAL_TICK_MS if node.breaker.probing else node.breaker.until_ms
    for agent in state.agents.values():
        node = state.nodes[agent.spec.node]
        if node.status is NodeStatus.READY and (node.breaker is None or node.breaker.probing):
            if agent.suspicion is not None:
                yield max(agent.suspicion.next_ms, now_ms if node.breaker is None else now_ms + TRIAL_TICK_MS)
            elif agent.status is AgentStatus.STARTING:
                yield max(agent.since_ms + policy.start_timeout_ms + 1, now_ms)
