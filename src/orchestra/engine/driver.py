"""One node's driver: keeps it connected, tells the core what is seen there, and carries out what the core wants there.

Connected means: reports flow, effects are carried out in order, and a sweep compares everything from time to time (at once after anything odd). Attempts that
need a place of their own start beside that, because making it can take long. Effects that come while the node is out of reach are dropped on purpose: the
comparison after the next connect yields whatever is still wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol, assert_never

import msgspec

from orchestra.agents.access import Access
from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.effects import Effect
from orchestra.engine.board import Board
from orchestra.engine.duties import (
    Act,
    Admit,
    Ask,
    Call,
    Duties,
    Duty,
    PassRequest,
    Peek,
    Prepare,
    Remark,
    Step,
    Tell,
    WantPlaces,
    WantSweep,
)
from orchestra.engine.loop import Loop
from orchestra.engine.orders import OrderMaker
from orchestra.engine.translate import Translator
from orchestra.errors import NodeFailed, PortFailed, ProtocolBroken
from orchestra.ids import AttemptId
from orchestra.node import Node, NodeFacts
from orchestra.workspace import Workspaces

log = logging.getLogger(__name__)

EFFECTS_MAX: Final = 4096
"""Effects taken in one go; more wait for the next."""


EAGER_PAUSE_MS: Final = 1_000
EXPOSE_AGAIN_MS: Final = 500
"""A connection that broke unseen may hold a port there until it is found dead. An agent that loses its request with it asks again twice, within two
seconds; where all ports are had, nothing is sent."""
LEASE_RENEWALS: Final = 4
"""Renewals within the time of a lease: it takes several lost ones until a node gives up its work."""


class DriverOptions(msgspec.Struct, frozen=True):
    """Settings of a driver."""

    sweep_ms: int = 60_000
    reconnect_first_ms: int = 200
    reconnect_max_ms: int = 30_000
    reconnect_eager_ms: int = 600_000
    """How long a lost node is looked for every second; later, twice as seldom each time."""
    fence_ms: int = 0
    """After so long without a word of ours the node stops what it runs; 0 lets it go on."""
    sweep_again_ms: int = 500
    """Pause before a sweep that something odd asked for, so that a burst of oddities costs one sweep."""


class Passes(Protocol):
    """Lets attempts through the gateway."""

    @property
    def port(self) -> int:
        """The gateway's port on this machine, or 0 as long as it is not needed."""
        ...

    async def issue(self, requests: Sequence[PassRequest]) -> tuple[int, Mapping[AttemptId, str]]:
        """Returns the gateway's port on this machine, and a token for each attempt.

        Raises:
            PortFailed: The gateway does not answer.
        """
        ...


class Tools(msgspec.Struct, frozen=True):
    """What all drivers share."""

    loop: Loop
    clock: Clock
    translator: Translator
    board: Board
    orders: OrderMaker
    passes: Passes | None = None
    """None where no gateway stands before the model APIs."""


class NodeDriver:
    """Runs one node for the engine."""

    def __init__(self, node: Node, tools: Tools, options: DriverOptions, workspaces: Workspaces | None = None) -> None:
        self.node = node
        self.workspaces = workspaces
        self._tools = tools
        self._options = options
        self._duties = Duties(node.id, tools.translator, tools.board, tools.orders)
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
        self._sweep_wanted = asyncio.Event()
        self._places_wanted = asyncio.Event()
        self._connected = asyncio.Event()
        self.facts: NodeFacts | None = None

    def act(self, effects: Sequence[Effect]) -> None:
        """Takes effects for this node. Never blocks; out of reach they are dropped."""
        if self._connected.is_set():
            for effect in effects:
                self._effects.put_nowait(effect)

    @property
    def connected(self) -> bool:
        return self._connected.is_set()

    async def run(self) -> None:
        """Connects and reconnects until cancelled."""
        pause_ms = self._options.reconnect_first_ms
        lost_ms = self._tools.clock.steady_ms()
        while True:
            reason = "the connection ended"
            try:
                await self._session()
            except (PortFailed, ProtocolBroken) as error:
                reason = str(error)
                log.warning("node-lost", extra={"node": self.node.id, "reason": reason})
            if self._connected.is_set():
                # It was there: this is a new trouble, not the old one going on.
                pause_ms, lost_ms = self._options.reconnect_first_ms, self._tools.clock.steady_ms()
            self._connected.clear()
            await self._tools.loop.report([c.NodeDown(self.node.id, reason)])
            with contextlib.suppress(PortFailed, ProtocolBroken):
                await self.node.stop()
            await self._tools.clock.sleep_ms(pause_ms)
            eager = self._tools.clock.steady_ms() - lost_ms < self._options.reconnect_eager_ms
            pause_ms = min(pause_ms * 2, EAGER_PAUSE_MS if eager else self._options.reconnect_max_ms)

    async def _session(self) -> None:
        offset = await self._tools.loop.ask(lambda state: state.nodes[self.node.id].read_from if self.node.id in state.nodes else None)
        if offset is None:
            raise NodeFailed(f"node {self.node.id} was removed")
        self.facts = await self.node.start(offset)
        while not self._effects.empty():
            self._effects.get_nowait()
        self._duties.begin()
        if self._options.fence_ms:
            await self.node.renew_lease(self._options.fence_ms)
        self._connected.set()
        programs = tuple(sorted(self.facts.programs))
        await self._tools.loop.report([c.NodeUp(self.node.id, self.facts.boot, self.facts.session, programs)])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._carry_out())
                group.create_task(self._start_apart())
                group.create_task(self._sweep_now_and_then())
                if self._options.fence_ms:
                    group.create_task(self._renew_lease())
                if self._tools.passes is not None:
                    group.create_task(self._keep_exposed(self._tools.passes))
                self._sweep_wanted.set()
        except* _SessionEnded:
            pass
        except* (PortFailed, ProtocolBroken) as errors:
            raise _first(errors) from errors

    # --- what is seen ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for report in self.node.reports():
            await self._perform(self._duties.take(report))
        raise _SessionEnded

    async def _sweep_now_and_then(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.sweep_ms / 1000):
                    await self._sweep_wanted.wait()
            self._sweep_wanted.clear()
            await self.sweep()
            await self._tools.clock.sleep_ms(self._options.sweep_again_ms)

    async def _renew_lease(self) -> None:
        while True:
            await self.node.renew_lease(self._options.fence_ms)
            await self._tools.clock.sleep_ms(self._options.fence_ms // LEASE_RENEWALS)

    async def _keep_exposed(self, passes: Passes) -> None:
        """What runs there since before the connection goes on asking at the gateway's port."""
        while True:
            if passes.port:
                try:
                    await self.node.expose(passes.port)
                except PortFailed as error:
                    log.warning("gateway-not-reachable", extra={"node": self.node.id, "reason": str(error)})
            await self._tools.clock.sleep_ms(EXPOSE_AGAIN_MS)

    async def sweep(self) -> None:
        """Looks at everything on the node and settles the differences."""
        await self._perform(self._duties.sweep())

    # --- what is wanted ----------------------------------------------------------------------------------------------

    async def _carry_out(self) -> None:
        while True:
            effects = [await self._effects.get()]
            while len(effects) < EFFECTS_MAX and not self._effects.empty():
                effects.append(self._effects.get_nowait())
            await self._perform(self._duties.carry_out(effects))

    async def _start_apart(self) -> None:
        while True:
            await self._places_wanted.wait()
            self._places_wanted.clear()
            await self._perform(self._duties.start_apart())

    # --- how a duty is done ------------------------------------------------------------------------------------------

    async def _perform(self, duty: Duty) -> None:
        try:
            step = next(duty)
            while True:
                try:
                    answer = await self._do(step)
                except PortFailed as error:
                    step = duty.throw(error)
                else:
                    step = duty.send(answer)
        except StopIteration:
            return

    async def _do(self, step: Step) -> Any:
        match step:
            case Tell(commands):
                await self._tools.loop.report(commands)
            case Ask(question):
                return await self._tools.loop.ask(question)
            case Peek(question):
                return question(self._tools.loop.state)
            case Call(method, arguments, options):
                return await getattr(self.node, method)(*arguments, **options)
            case Prepare(requests):
                if self.workspaces is None:
                    raise NodeFailed(f"node {self.node.id} has no workspaces")
                return await self.workspaces.prepare(requests)
            case Admit(requests):
                return await self._let_through(requests)
            case Act(effects):
                for effect in effects:
                    self._effects.put_nowait(effect)
            case WantPlaces():
                self._places_wanted.set()
            case WantSweep():
                self._sweep_wanted.set()
            case Remark(action, facts, warn):
                log.log(logging.WARNING if warn else logging.INFO, action, extra=facts)
            case _:
                assert_never(step)
        return None

    async def _let_through(self, requests: Sequence[PassRequest]) -> dict[AttemptId, Access]:
        passes = self._tools.passes
        if passes is None:
            raise NodeFailed("there is no gateway")
        port, tokens = await passes.issue(requests)
        url = f"http://127.0.0.1:{await self.node.expose(port)}"
        logins = self._tools.orders.options.gateway_logins
        return {each.attempt: Access(url, tokens[each.attempt], each.apis, logins) for each in requests}


class _SessionEnded(Exception):
    """The reports ended: the group must end with them."""


def _first(errors: ExceptionGroup[PortFailed | ProtocolBroken]) -> Exception:
    error: BaseException = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, PortFailed | ProtocolBroken) else NodeFailed(str(error))
