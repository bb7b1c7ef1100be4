"""A node's driver in the simulated world: the production duties, carried out on the world's time. Mirrors `engine.driver.NodeDriver`."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any, Final, Protocol

from orchestra.core import commands as c
from orchestra.core.effects import Effect
from orchestra.core.state import State
from orchestra.engine.board import Board
from orchestra.engine.driver import EAGER_PAUSE_MS, LEASE_RENEWALS
from orchestra.engine.duties import Act, Ask, Call, Duties, Duty, Peek, Remark, Tell, WantSweep
from orchestra.engine.kernel import Kernel
from orchestra.engine.orders import OrderMaker
from orchestra.engine.translate import Translator
from orchestra.errors import PortFailed, ProtocolBroken
from orchestra.node import NodeFacts
from orchestra.testing.world.net import SimPort
from orchestra.testing.world.timeline import Process, Promise, Timeline

SWEEP_MS: Final = 60_000
SWEEP_AGAIN_MS: Final = 500
RECONNECT_FIRST_MS: Final = 200
RECONNECT_MAX_MS: Final = 30_000
RECONNECT_EAGER_MS: Final = 600_000
EFFECTS_MAX: Final = 4096

Steps = Generator[Promise, Any, Any]


class Owner(Protocol):
    """What a driver needs of its coordinator."""

    line: Timeline
    world: Any
    kernel: Kernel
    translator: Translator
    board: Board
    orders: OrderMaker

    def spawn(self, body: Steps) -> Process: ...

    def report(self, commands: Sequence[c.Command]) -> None: ...

    def ask(self, question: Callable[[State], Any]) -> Promise: ...


class SimDriver:
    """Runs one node for one coordinator."""

    def __init__(self, owner: Owner, port: SimPort) -> None:
        self.port = port
        self._owner = owner
        self._line = owner.line
        self._duties = Duties(port.id, owner.translator, owner.board, owner.orders)
        self._effects: list[Effect] = []
        self._effects_wanted: Promise | None = None
        self._sweep_wanted = False
        self._sweep_promise: Promise | None = None
        self._running: Process | None = None
        self.connected = False

    def begin(self) -> None:
        """Connects and reconnects until it is ended."""
        self._running = self._owner.spawn(self._run())

    def end(self) -> None:
        """The node has been removed: lets go of it."""
        self.connected = False
        if self._running is not None:
            self._running.cancel()
        self.port.stop()

    def act(self, effects: Sequence[Effect]) -> None:
        """See `NodeDriver.act`."""
        if self.connected:
            self._put_effects(effects)

    def _put_effects(self, effects: Sequence[Effect]) -> None:
        self._effects += effects
        wanted, self._effects_wanted = self._effects_wanted, None
        if wanted is not None and effects:
            wanted.keep(None)
        elif wanted is not None:
            self._effects_wanted = wanted

    def _run(self) -> Steps:
        pause_ms, lost_ms = RECONNECT_FIRST_MS, self._line.now_ms
        while True:
            reason = "the connection ended"
            try:
                yield from self._session()
            except (PortFailed, ProtocolBroken) as error:
                reason = str(error)
            if self.connected:
                pause_ms, lost_ms = RECONNECT_FIRST_MS, self._line.now_ms
            self.connected = False
            self._owner.report([c.NodeDown(self.port.id, reason)])
            self.port.stop()
            yield self._line.sleep(pause_ms)
            eager = self._line.now_ms - lost_ms < RECONNECT_EAGER_MS
            pause_ms = min(pause_ms * 2, EAGER_PAUSE_MS if eager else RECONNECT_MAX_MS)

    def _session(self) -> Steps:
        offset = yield self._owner.ask(lambda state: state.nodes[self.port.id].read_from)
        facts: NodeFacts = yield self.port.start(offset)
        self._effects.clear()
        fence_ms = self._owner.world.fence_ms
        if fence_ms:
            yield self.port.call("renew_lease", fence_ms)
        self.connected = True
        self._owner.report([c.NodeUp(self.port.id, facts.boot, facts.session, tuple(sorted(facts.programs)))])
        self._sweep_wanted = True
        bodies = [self._read(), self._carry_out(), self._sweep_now_and_then()]
        if fence_ms:
            bodies.append(self._renew_lease(fence_ms))
        parts = [self._owner.spawn(each) for each in bodies]
        first = Promise(self._line)
        for part in parts:
            part.ended.then(lambda part=part: _pass_on(part, first))  # type: ignore[misc]
        try:
            yield first
        finally:
            for part in parts:
                part.cancel()

    def _read(self) -> Steps:
        while True:
            report = yield self.port.next_report()
            yield from self._perform(self._duties.take(report))

    def _carry_out(self) -> Steps:
        while True:
            if not self._effects:
                self._effects_wanted = Promise(self._line)
                yield self._effects_wanted
            effects, self._effects = self._effects[:EFFECTS_MAX], self._effects[EFFECTS_MAX:]
            yield from self._perform(self._duties.carry_out(effects))

    def _sweep_now_and_then(self) -> Steps:
        while True:
            if not self._sweep_wanted:
                self._sweep_promise = self._line.sleep(SWEEP_MS)
                yield self._sweep_promise
            self._sweep_wanted = False
            yield from self._perform(self._duties.sweep())
            yield self._line.sleep(SWEEP_AGAIN_MS)

    def _renew_lease(self, fence_ms: int) -> Steps:
        while True:
            yield self.port.call("renew_lease", fence_ms)
            yield self._line.sleep(fence_ms // LEASE_RENEWALS)

    def _want_sweep(self) -> None:
        self._sweep_wanted = True
        if self._sweep_promise is not None:
            self._sweep_promise.keep(None)

    def _perform(self, duty: Duty) -> Steps:
        try:
            step = next(duty)
            while True:
                answer: Any = None
                try:
                    match step:
                        case Tell(commands):
                            self._owner.report(commands)
                        case Ask(question):
                            answer = yield self._owner.ask(question)
                        case Peek(question):
                            answer = question(self._owner.kernel.state)
                        case Call(method, arguments, options):
                            self._owner.world.checker.check_call(self._owner, self.port.id, method, arguments)
                            answer = yield self.port.call(method, *arguments, **options)
                        case Act(effects):
                            self._put_effects(effects)
                        case WantSweep():
                            self._want_sweep()
                        case Remark():
                            pass
                except PortFailed as error:
                    step = duty.throw(error)
                else:
                    step = duty.send(answer)
        except StopIteration:
            return


def _pass_on(part: Process, first: Promise) -> None:
    if part.ended.error is not None:
        first.fail(part.ended.error)
    else:
        first.keep(None)
