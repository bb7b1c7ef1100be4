"""Between a coordinator and a node: one connection with a courier at its far end, in both directions first in, first out.

A real channel neither loses nor reorders single messages (it is a pipe or TCP); it is late, it stalls in one direction or both, or it ends with all that was
on its way. Only what tmux tells comes by a channel of its own and may overtake. The pretended port has the methods of `orchestra.node.Node` that the duties
call; each returns a promise.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from random import Random
from typing import Any, Final

from orchestra.core.model import Worker
from orchestra.errors import CourierFailed, NodeFailed, NodeUnreachable
from orchestra.ids import NodeId
from orchestra.node import JournalBatch, NodeFacts, Notice, Report
from orchestra.testing.world import courier as far
from orchestra.testing.world.node import SimNode
from orchestra.testing.world.options import Weather
from orchestra.testing.world.timeline import Promise, Timeline
from orchestra.testing.world.worker import SimWorker

REQUEST_TIMEOUT_MS: Final = 20_000
"""As the real adapter's."""
FAST_MS: Final = 4
SLOW_MS: Final = 3_000
BATCH_RECORDS: Final = 64


class SimNet:
    """The way to one node."""

    def __init__(self, line: Timeline, dice: Random, weather: Weather) -> None:
        self._line = line
        self._dice = dice
        self._weather = weather
        self.blocked_until_ms = {"there": 0, "back": 0}

    def block(self, ways: Sequence[str], duration_ms: int) -> None:
        """Nothing gets through that way for a while."""
        for way in ways:
            self.blocked_until_ms[way] = self._line.now_ms + duration_ms

    def heal(self) -> None:
        """Everything gets through from now on."""
        self.blocked_until_ms = {"there": 0, "back": 0}

    def arrival_ms(self, way: str, not_before_ms: int = 0) -> int:
        """Returns when what is sent now arrives."""
        slow = self._dice.random() < self._weather.rate("net-slow")
        delay = self._dice.randint(0, SLOW_MS) if slow else self._dice.randint(0, FAST_MS)
        return max(max(self._line.now_ms, self.blocked_until_ms[way]) + delay, not_before_ms)


class SimPort:
    """The node as one coordinator sees it."""

    def __init__(self, node: SimNode, net: SimNet, line: Timeline, dice: Random, weather: Weather) -> None:
        self.id: NodeId = node.id
        self.node = node
        self.net = net
        self.line = line
        self.dice = dice
        self.weather = weather
        self._connection: Connection | None = None
        self._reports: list[Report] = []
        self._reader: Promise | None = None
        self._starts = 0

    def start(self, journal_offset: int) -> Promise:
        """See `Node.start`."""
        answer = Promise(self.line)
        arrives = self.net.arrival_ms("there")
        deadline = self.line.now_ms + REQUEST_TIMEOUT_MS
        self._reports.clear()
        self._reader = None
        self._starts += 1
        this = self._starts

        def connect() -> None:
            if answer.done or this != self._starts:
                return
            connection = self._connection = Connection(self, journal_offset)
            facts = NodeFacts(self.node.boot, self.id, "3", "3", f"session-{self.id}", programs=dict(self.node.installed))
            connection.send(answer.keep, facts)
            connection.ring()

        if arrives < deadline:
            self.line.at(arrives, connect)
        self.line.at(deadline, answer.fail, NodeUnreachable(f"no way to {self.id}"))
        return answer

    def stop(self) -> None:
        """See `Node.stop`."""
        self._starts += 1
        if self._connection is not None:
            self._connection.close(NodeUnreachable("the courier was closed"))
            self._connection = None

    def next_report(self) -> Promise:
        """Returns a promise of the next report."""
        promise = Promise(self.line)
        if self._reports:
            promise.keep(self._reports.pop(0))
        else:
            self._reader = promise
        return promise

    def deliver(self, report: Report) -> None:
        """A report has arrived."""
        reader, self._reader = self._reader, None
        if reader is not None and not reader.done:
            reader.keep(report)
        else:
            self._reports.append(report)

    def call(self, method: str, *arguments: Any, **options: Any) -> Promise:
        """Calls a method of the port."""
        if self._connection is None:
            answer = Promise(self.line)
            answer.fail(NodeUnreachable(f"node {self.id} is not connected"))
            return answer
        return self._connection.call(method, arguments, options)


class Connection:
    """A channel and the courier at its far end."""

    def __init__(self, port: SimPort, offset: int) -> None:
        self._port = port
        self._line = port.line
        self._node = port.node
        self._last = {"there": 0, "back": 0}
        self._waiting: dict[int, Promise] = {}
        self._calls = 0
        self._open = True
        self._ringing = False
        if offset < 0:
            offset = len(port.node.journal)
        elif offset and port.dice.random() < port.weather.rate("journal-replay"):
            offset = max(min(offset, port.node.replay_from), offset - port.dice.randint(1, 30))
        self._offset = offset
        self._missed: dict[Worker, None] = {}
        self._node.attach(self)

    # --- towards the node --------------------------------------------------------------------------------------------

    def call(self, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Promise:
        """Sends a request; the promise fails when no answer came in time."""
        self._calls += 1
        number = self._calls
        answer = Promise(self._line)
        arrives = self._last["there"] = self._port.net.arrival_ms("there", self._last["there"])
        times = 1
        if method == "order" and self._port.dice.random() < self._port.weather.rate("order-twice"):
            times = 2
        self._waiting[number] = answer
        for _ in range(times):
            self._line.at(arrives, self._run, number, method, arguments, options)
        late = CourierFailed(f"the courier did not answer {method!r} in time")
        blocked = self._port.net.blocked_until_ms
        queued = max(self._last.values()) > self._line.now_ms + SLOW_MS  # behind what was sent while the way was blocked
        if method == "close_all" or queued or not self._open or blocked["there"] or blocked["back"]:
            self._line.after(REQUEST_TIMEOUT_MS, self._finish, number, None, late)
        return answer

    def _run(self, number: int, method: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        if not self._open:
            return
        if method == "open_windows" and self._port.dice.random() < self._port.weather.rate("window-fails"):
            self.send(self._finish, number, None, NodeFailed("tmux refused"))
            return
        far.OPERATIONS[method](
            self._node, lambda value: self.send(self._finish, number, value, None), lambda: self._open, *arguments, **options
        )

    def _finish(self, number: int, value: Any, error: Exception | None) -> None:
        answer = self._waiting.pop(number, None)
        if answer is None:
            return
        failed = error if error is not None else value if isinstance(value, NodeFailed) else None
        if failed is not None:
            answer.fail(failed)
        else:
            answer.keep(value)

    # --- back --------------------------------------------------------------------------------------------------------

    def send(self, action: Callable[..., None], *arguments: Any) -> None:
        """Something travels back, in order."""
        arrives = self._last["back"] = self._port.net.arrival_ms("back", self._last["back"])
        self._line.at(arrives, self._arrive, action, arguments)

    def _arrive(self, action: Callable[..., None], arguments: tuple[Any, ...]) -> None:
        if self._port._connection is self:
            action(*arguments)

    def ring(self) -> None:
        """See `Viewer.ring`. What comes in one moment goes in one frame."""
        if not self._ringing and self._open:
            self._ringing = True
            self._line.after(1, self._pump)

    def _pump(self) -> None:
        self._ringing = False
        if not self._open or self._offset >= len(self._node.journal):
            return
        records = tuple(self._node.journal[self._offset : self._offset + BATCH_RECORDS])
        self._offset += len(records)
        self.send(self._port.deliver, JournalBatch(records, self._offset))
        if self._offset < len(self._node.journal):
            self.ring()

    def notice(self, notice: Notice, *, aside: bool = False) -> None:
        """See `Viewer.notice`."""
        if aside:
            self._line.at(self._port.net.arrival_ms("back"), self._arrive, self._port.deliver, (notice,))
        else:
            self._pump()
            self.send(self._port.deliver, notice)

    def heart(self, worker: SimWorker, *, beats: bool) -> None:
        """See `Viewer.heart`. Each change is told once."""
        if beats == (worker.identity in self._missed):
            if beats:
                del self._missed[worker.identity]
            else:
                self._missed[worker.identity] = None
            self.notice(Notice("beat-back" if beats else "beat-missed", worker.agent, worker.identity))

    # --- its end -----------------------------------------------------------------------------------------------------

    def die(self) -> None:
        """See `Viewer.die`: the other side finds out when the channel ends."""
        if self._open:
            self._open = False
            self._node.viewers.remove(self)
            self.send(self._lose)

    def _lose(self) -> None:
        self._fail(CourierFailed("the courier ended"))
        self._port.deliver(Notice("channel-lost", detail="the courier ended"))

    def _fail(self, error: Exception) -> None:
        waiting, self._waiting = self._waiting, {}
        for answer in waiting.values():
            answer.fail(error)

    def close(self, error: Exception) -> None:
        """This side lets go."""
        if self._open:
            self._open = False
            self._node.viewers.remove(self)
        self._fail(error)
