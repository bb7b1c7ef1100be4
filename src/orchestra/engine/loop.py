"""The single writer: everything that changes the orchestra goes through this queue, one batch after the other.

A turn: take what is in the queue, decide and fold it, assign what became ready, append it all in one go, and only then answer, tell the listeners and
release the effects. While one append is on its way to the disk the next turn's input collects in the queue, which is the group commit.

Reports of one journal frame and the frame's new offset are one item and so land in one append: the offset can neither run ahead of what it covers
nor fall behind it. Questions are answered between turns, never from a state that is not durable yet.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, TypeVar

import msgspec

from orchestra.clock import Clock
from orchestra.clocks.system import LedgerTime
from orchestra.core import commands as c
from orchestra.core.effects import Effect
from orchestra.core.events import Event
from orchestra.core.state import State
from orchestra.engine.appending import AppendStep, LookUp, Pause, TryAppend, append_steps
from orchestra.engine.failpoints import hit
from orchestra.engine.kernel import Happened, Kernel
from orchestra.errors import CoordinatorUnreachable, InvariantBroken, LedgerFailed, OrchestraError
from orchestra.ledger import Append, Appended, Ledger

R = TypeVar("R")
Listener = Callable[[State, Sequence[Happened]], None]
EffectSink = Callable[[Sequence[Effect]], None]

QUEUE_ITEMS_MAX: Final = 10_000
"""Back-pressure: reports wait at the node's end of the pipe, requests at the caller's."""
TURN_ITEMS_MAX: Final = 512
"""Items a turn takes at most, so that one append stays in the milliseconds."""
SNAPSHOT_EVENTS: Final = 100_000
"""A snapshot is also taken after so many events: folding them takes well under a second."""


class _Request(msgspec.Struct):
    command: c.Command
    answer: asyncio.Future[list[Event]]


class _Reports(msgspec.Struct):
    commands: Sequence[c.Command]


class _Question(msgspec.Struct):
    ask: Callable[[State], Any]
    answer: asyncio.Future[Any]


class Loop:
    """Owns the kernel and the ledger. One instance per coordinator."""

    def __init__(self, kernel: Kernel, ledger: Ledger, clock: Clock, *, term: int, snapshot_interval_ms: int = 300_000) -> None:
        self.kernel = kernel
        self._ledger = ledger
        self._clock = clock
        self._time = LedgerTime(clock, kernel.state.at_ms)
        self._term = term
        self._queue: asyncio.Queue[_Request | _Reports | _Question] = asyncio.Queue(QUEUE_ITEMS_MAX)
        self._listeners: list[Listener] = []
        self._ended: list[Callable[[], None]] = []
        self._sink: EffectSink = lambda effects: None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ledger")
        self._run_id = os.urandom(8).hex()
        self._appends = 0
        self._tail_hash = b""
        self._snapshot_interval_ms = snapshot_interval_ms
        self._snapshot_ms = clock.steady_ms()
        self._snapshot_seq = kernel.state.seq
        self._closed = False
        self._in_hand: Sequence[_Request | _Reports | _Question] = ()
        self.ledger_trouble = ""
        """Why nothing can be made durable at the moment, or empty."""

    @property
    def state(self) -> State:
        """The state. It may be ahead of the ledger during an append: only immutable parts may be read outside `ask`."""
        return self.kernel.state

    def now_ms(self) -> int:
        """Returns the ledger's time."""
        return self._time.now_ms()

    def listen(self, listener: Listener) -> None:
        """Calls `listener` after every append with the state and what happened. It must not block or raise."""
        self._listeners.append(listener)

    def send_effects_to(self, sink: EffectSink) -> None:
        """Names who carries effects out."""
        self._sink = sink

    async def request(self, command: c.Command) -> list[Event]:
        """Has a command decided; returns its events once they are durable.

        Raises:
            Refused: The command is not possible now.
        """
        answer: asyncio.Future[list[Event]] = asyncio.get_running_loop().create_future()
        self._check_open()
        await self._put(_Request(command, answer))
        return await answer

    async def report(self, commands: Sequence[c.Command]) -> None:
        """Hands in what was seen; all of it lands in one append. Waits only if the queue is full."""
        if commands and not self._closed:
            await self._put(_Reports(commands))

    async def ask(self, question: Callable[[State], R]) -> R:
        """Returns what `question` makes of the durable state. It must not keep or change the state."""
        answer: asyncio.Future[R] = asyncio.get_running_loop().create_future()
        self._check_open()
        await self._put(_Question(question, answer))
        return await answer

    async def _put(self, item: _Request | _Reports | _Question) -> None:
        await self._queue.put(item)
        if self._closed:
            self._refuse_rest()  # it ended while the queue was full: nobody else takes this out again, or makes room for the next

    def _check_open(self) -> None:
        if self._closed:
            raise CoordinatorUnreachable("the coordinator has stopped", hint="start it again: `orchestra up`")

    def when_ended(self, callback: Callable[[], None]) -> None:
        """Calls `callback` when no turn will be taken any more, so that nobody waits for news that cannot come."""
        self._ended.append(callback)

    async def run(self) -> None:
        """Takes turns until cancelled."""
        try:
            while True:
                items = [await self._queue.get()]
                while len(items) < TURN_ITEMS_MAX and not self._queue.empty():
                    items.append(self._queue.get_nowait())
                self._in_hand = items
                await self._turn(items)
                self._in_hand = ()
        finally:
            self._closed = True
            self._refuse_rest()
            for callback in self._ended:
                callback()

    async def _turn(self, items: Sequence[_Request | _Reports | _Question]) -> None:
        now = self.now_ms()
        answers: list[tuple[asyncio.Future[list[Event]], list[Event]]] = []
        for item in items:
            if isinstance(item, _Request):
                try:
                    answers.append((item.answer, self.kernel.take(item.command, now)))
                except InvariantBroken:
                    raise  # half of it may be folded: nothing of this turn may be made durable
                except OrchestraError as refusal:
                    _settle(item.answer, error=refusal)
            elif isinstance(item, _Reports):
                for command in item.commands:
                    self.kernel.take(command, now)
        self.kernel.schedule(now)
        if self.kernel.pending:
            await self._commit()
        for answer, events in answers:
            _settle(answer, events)
        for item in items:
            if isinstance(item, _Question):
                _answer_question(item, self.kernel.state)
        await self._maybe_snapshot()

    async def _commit(self) -> None:
        self._appends += 1
        append = self.kernel.batch(f"{self._run_id}-{self._appends}", self._term)
        # Shielded: once the append is under way its outcome must be known before anything else happens.
        appended = await asyncio.shield(self._append(append))
        self._tail_hash = appended.hash
        happened, effects = self.kernel.committed()
        self._sink(effects)
        hit("after-effects")
        for listener in self._listeners:
            listener(self.kernel.state, happened)

    async def _append(self, append: Append) -> Appended:
        steps = append_steps(append)
        try:
            step = next(steps)
            while True:
                try:
                    answer = await self._append_step(step)
                except LedgerFailed as failed:
                    step = steps.throw(failed)
                else:
                    step = steps.send(answer)
        except StopIteration as end:
            self.ledger_trouble = ""
            appended: Appended = end.value
            return appended

    async def _append_step(self, step: AppendStep) -> Any:
        match step:
            case TryAppend(append):
                return await self._in_thread(self._ledger.append, append)
            case LookUp(idempotency_id):
                return await self._in_thread(self._ledger.find, idempotency_id)
            case Pause(duration_ms, trouble):
                self.ledger_trouble = trouble
                return await self._clock.sleep_ms(duration_ms)

    async def _in_thread(self, function: Callable[[Any], R], argument: object) -> R:
        return await asyncio.get_running_loop().run_in_executor(self._thread, function, argument)

    async def _maybe_snapshot(self) -> None:
        grown = self.kernel.state.seq - self._snapshot_seq
        overdue = self._clock.steady_ms() - self._snapshot_ms >= self._snapshot_interval_ms
        if self._tail_hash and (grown >= SNAPSHOT_EVENTS or (overdue and grown)):
            await self.save_snapshot()

    async def save_snapshot(self) -> None:
        """Keeps the present state as a snapshot. Only between turns, or after the last."""
        if not self._tail_hash or self.kernel.pending:
            return
        self._snapshot_ms, self._snapshot_seq = self._clock.steady_ms(), self.kernel.state.seq
        snapshot = self.kernel.snapshot(self._tail_hash)
        try:
            await self._in_thread(self._ledger.save_snapshot, snapshot)
        except LedgerFailed as failed:
            self.ledger_trouble = f"no snapshot could be kept: {failed}"

    async def close(self) -> None:
        """After the last turn: keeps a snapshot, so that the next start is quick, and closes the ledger."""
        await self.save_snapshot()
        await self._in_thread(lambda _: self._ledger.close(), None)
        self._thread.shutdown()

    def _refuse_rest(self) -> None:
        """Nobody waits for ever: neither those in the queue nor those whose turn broke off, whose outcome only the ledger knows."""
        items = [*self._in_hand]
        while not self._queue.empty():
            items.append(self._queue.get_nowait())
        for item in items:
            if not isinstance(item, _Reports):
                _settle(item.answer, error=CoordinatorUnreachable("the coordinator has stopped"))


def _settle(future: asyncio.Future[Any], value: object = None, *, error: Exception | None = None) -> None:
    if future.done():
        return
    if error is None:
        future.set_result(value)
    else:
        future.set_exception(error)


def _answer_question(item: _Question, state: State) -> None:
    try:
        _settle(item.answer, item.ask(state))
    except Exception as error:  # a question changes nothing: its error is the asker's, and must not end the one writer
        _settle(item.answer, error=error if not isinstance(error, StopIteration) else RuntimeError("the question raised StopIteration"))
