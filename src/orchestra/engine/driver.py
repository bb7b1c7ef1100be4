"""One node's driver: keeps it connected, tells the core what is seen there, and carries out what the core wants there.

Connected means: reports flow, effects are carried out in order, and a sweep compares everything from time to time (at once after anything odd). Effects
that come while the node is out of reach are dropped on purpose: the comparison after the next connect yields whatever is still wanted.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.effects import (
    CloseAgent,
    Effect,
    OpenAgents,
    ReapAttempt,
    RemoveWindow,
    StartAttempt,
    StopAttempt,
)
from orchestra.core.model import Outcome, OutcomeKind
from orchestra.core.state import State
from orchestra.engine.board import Board
from orchestra.engine.loop import Loop
from orchestra.engine.orders import OrderMaker
from orchestra.engine.reconcile import expected_attempts, reconcile
from orchestra.engine.translate import Translator
from orchestra.errors import BadInput, NodeFailed, PortFailed, ProtocolBroken
from orchestra.ids import AgentId, AttemptId
from orchestra.node import AgentWindow, AttemptOrder, JournalBatch, Node, NodeFacts, Notice, Report

log = logging.getLogger(__name__)

EFFECTS_MAX: Final = 4096
"""Effects taken in one go; more wait for the next."""


class DriverOptions(msgspec.Struct, frozen=True):
    """Settings of a driver."""

    sweep_ms: int = 60_000
    reconnect_first_ms: int = 200
    reconnect_max_ms: int = 30_000
    sweep_again_ms: int = 500
    """Pause before a sweep that something odd asked for, so that a burst of oddities costs one sweep."""


class Tools(msgspec.Struct, frozen=True):
    """What all drivers share."""

    loop: Loop
    clock: Clock
    translator: Translator
    board: Board
    orders: OrderMaker


class NodeDriver:
    """Runs one node for the engine."""

    def __init__(self, node: Node, tools: Tools, options: DriverOptions) -> None:
        self.node = node
        self._tools = tools
        self._options = options
        self._effects: asyncio.Queue[Effect] = asyncio.Queue()
        self._sweep_wanted = asyncio.Event()
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
        while True:
            reason = "the connection ended"
            try:
                await self._session()
                pause_ms = self._options.reconnect_first_ms
            except (PortFailed, ProtocolBroken) as error:
                reason = str(error)
                log.warning("node-lost", extra={"node": self.node.id, "reason": reason})
            self._connected.clear()
            await self._tools.loop.report([c.NodeDown(self.node.id, reason)])
            with contextlib.suppress(PortFailed, ProtocolBroken):
                await self.node.stop()
            await self._tools.clock.sleep_ms(pause_ms)
            pause_ms = min(pause_ms * 2, self._options.reconnect_max_ms)

    async def _session(self) -> None:
        offset = await self._tools.loop.ask(lambda state: state.nodes[self.node.id].journal_offset)
        self.facts = await self.node.start(offset)
        while not self._effects.empty():
            self._effects.get_nowait()
        self._connected.set()
        await self._tools.loop.report([c.NodeUp(self.node.id, self.facts.boot, self.facts.session)])
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._read())
                group.create_task(self._carry_out())
                group.create_task(self._sweep_now_and_then())
                self._sweep_wanted.set()
        except* _SessionEnded:
            pass
        except* (PortFailed, ProtocolBroken) as errors:
            raise _first(errors) from errors

    # --- what is seen ------------------------------------------------------------------------------------------------

    async def _read(self) -> None:
        async for report in self.node.reports():
            await self._take(report)
        raise _SessionEnded

    async def _take(self, report: Report) -> None:
        if isinstance(report, Notice):
            await self._take_notice(report)
            return
        await self._take_journal(report)

    async def _take_journal(self, batch: JournalBatch) -> None:
        commands: list[c.Command] = []
        for record in batch.records:
            found = self._tools.translator.signal(record) if record.kind == "signal" else None
            if found is not None:
                self._tools.board.post(*found)
            commands += self._tools.translator.commands(record)
        await self._tools.loop.report([*commands, c.JournalAt(self.node.id, batch.offset)])

    async def _take_notice(self, notice: Notice) -> None:
        log.info("node-notice", extra={"node": self.node.id, "kind": notice.kind, "agent": notice.agent, "detail": notice.detail})
        match notice.kind:
            case "worker-gone":
                fell = c.WorkerFell(notice.agent, notice.worker, notice.detail or "its worker died")
                await self._tools.loop.report([fell])
            case "channel-lost":
                raise NodeFailed(notice.detail or "the channel to the node was lost")
            case _:
                self._sweep_wanted.set()

    async def _sweep_now_and_then(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._options.sweep_ms / 1000):
                    await self._sweep_wanted.wait()
            self._sweep_wanted.clear()
            await self.sweep()
            await self._tools.clock.sleep_ms(self._options.sweep_again_ms)

    async def sweep(self) -> None:
        """Looks at everything on the node and settles the differences."""
        wanted = await self._tools.loop.ask(lambda state: expected_attempts(state, self.node.id))
        found = await self.node.inventory(wanted)
        difference = await self._tools.loop.ask(lambda state: reconcile(state, self.node.id, found, self._tools.translator))
        await self._tools.loop.report(difference.commands)
        for effect in difference.effects:
            self._effects.put_nowait(effect)

    # --- what is wanted ----------------------------------------------------------------------------------------------

    async def _carry_out(self) -> None:
        while True:
            effects = [await self._effects.get()]
            while len(effects) < EFFECTS_MAX and not self._effects.empty():
                effects.append(self._effects.get_nowait())
            await self._open([agent for effect in effects if isinstance(effect, OpenAgents) for agent in effect.agents])
            await self._order([effect for effect in effects if isinstance(effect, StartAttempt)])
            for effect in effects:
                if not isinstance(effect, StartAttempt | OpenAgents):
                    await self._do(effect)

    async def _do(self, effect: Effect) -> None:
        try:
            match effect:
                case StopAttempt(_, _, agent, task, number):
                    grace_ms = self._tools.orders.options.grace_ms
                    await self.node.stop_attempt(AttemptId(task, number), agent, grace_ms)
                case ReapAttempt(_, _, task, number):
                    await self._reap(AttemptId(task, number))
                case CloseAgent(_, _, agent, now):
                    await self.node.close_agents([agent], now=now)
                case RemoveWindow(_, _, agent):
                    await self.node.remove_windows([agent])
                case _:
                    pass
        except NodeFailed as error:
            log.warning(
                "effect-failed", extra={"node": self.node.id, "effect": type(effect).__name__, "seq": effect.seq, "reason": str(error)}
            )
            self._sweep_wanted.set()

    async def _reap(self, attempt: AttemptId) -> None:
        match await self.node.reap(attempt):
            case "alive":
                await self._tools.loop.report([c.AttemptSeen(attempt.task, attempt.number)])
            case "done":
                self._sweep_wanted.set()
            case _:
                pass  # its `lost` record is on the way

    async def _open(self, agents: Sequence[AgentId]) -> None:
        if not agents:
            return
        names = await self._tools.loop.ask(lambda state: _window_names(state, agents))
        try:
            await self.node.open_windows(names)
        except NodeFailed as error:
            log.warning("windows-failed", extra={"node": self.node.id, "agents": len(agents), "reason": str(error)})
            await self._tools.loop.report([c.WorkerFell(agent, None, f"no window: {error}") for agent in agents])

    async def _order(self, effects: Sequence[StartAttempt]) -> None:
        if not effects:
            return
        orders: list[AttemptOrder] = []
        for effect in effects:
            attempt = AttemptId(effect.task, effect.attempt)
            try:
                orders.append(self._tools.orders.make(self._tools.loop.state.tasks[effect.task].spec, attempt, effect.agent))
            except BadInput as error:
                await self._tools.loop.report([_refused(attempt, str(error))])
        for failure in await self.node.order(orders):
            log.warning("order-failed", extra={"node": self.node.id, "attempt": str(failure.attempt), "code": failure.code})
            if failure.code == "no-worker":
                await self._tools.loop.report([c.WorkerFell(failure.agent, None, "its worker does not listen")])
            else:
                await self._tools.loop.report([_refused(failure.attempt, failure.message)])


class _SessionEnded(Exception):
    """The reports ended: the group must end with them."""


def _first(errors: ExceptionGroup[PortFailed | ProtocolBroken]) -> Exception:
    error: BaseException = errors
    while isinstance(error, ExceptionGroup):
        error = error.exceptions[0]
    return error if isinstance(error, PortFailed | ProtocolBroken) else NodeFailed(str(error))


def _refused(attempt: AttemptId, reason: str) -> c.Command:
    return c.AttemptFinished(attempt.task, attempt.number, Outcome(OutcomeKind.REFUSED, reason))


def _window_names(state: State, agents: Sequence[AgentId]) -> list[AgentWindow]:
    found: list[AgentWindow] = []
    for number in dict.fromkeys(agents):
        agent = state.agents.get(number)
        if agent is not None:
            found.append(AgentWindow(number, agent.spec.name or f"agent-{number:03}"))
    return found
