"""The files that show the state: for `jq`, for dashboards, for programs that poll. Written atomically, never read back.

They follow the ledger with a short delay, and slower the more there is to write, so that showing the state never costs more than a small share of
the time. The event folder tells a parent program at once what it has to know.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from orchestra.clock import Clock
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.engine.loop import Loop
from orchestra.files import write_atomically
from orchestra.node import NodeFacts
from orchestra.projections import agent_status, heartbeat, orchestra_status, state_summary, task_queue
from orchestra.root import Root
from orchestra.viewing import Lens, node_view, status_view, uptime_ms

log = logging.getLogger(__name__)

DELAY_MS: Final = 1000
"""Files lag behind the ledger by at least this; people and pollers do not look more often."""
SHARE: Final = 20
"""After a write that took t, the next one waits at least SHARE * t: at most 5 % of the time is spent here."""


class Projector:
    """Keeps the state folder current."""

    def __init__(
        self, loop: Loop, root: Root, clock: Clock, lens: Callable[[], Lens], facts: Callable[[], dict[str, NodeFacts | None]]
    ) -> None:
        self._loop = loop
        self._root = root
        self._clock = clock
        self._lens = lens
        self._facts = facts
        self._dirty = asyncio.Event()
        self._written: dict[str, bytes] = {}
        loop.listen(self._on_events)
        self._dirty.set()

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        self._dirty.set()

    async def run(self) -> None:
        """Writes whenever something changed, until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            started = self._clock.steady_ms()
            await self.write()
            took = self._clock.steady_ms() - started
            await self._clock.sleep_ms(max(DELAY_MS, SHARE * took))

    async def write(self) -> None:
        """Writes every file whose content changed. A full disk is reported and tried again with the next change."""
        files = await self._loop.ask(self._files)
        try:
            for name, values in files.items():
                body = msgspec.json.encode(values) + b"\n"
                if self._written.get(name) != body:
                    write_atomically(self._root.state / name, body)
                    self._written[name] = body
            self._remove_stale(files)
        except OSError as error:
            log.warning("state-files-not-written", extra={"reason": str(error)})

    def _files(self, state: State) -> dict[str, Any]:
        lens = self._lens()
        facts = self._facts()
        nodes = [node_view(state, node, facts.get(node.spec.id)) for node in state.nodes.values()]
        files: dict[str, Any] = {
            "task_queue.json": task_queue(state),
            "state.json": state_summary(state, lens.settled),
            "orchestra-status.json": orchestra_status(status_view(state, lens), nodes, state, lens.now_ms, loads=lens.loads),
        }
        for agent in state.agents.values():
            files[f"agent_{agent.id}_status.json"] = agent_status(state, agent, lens.board)
        return files

    def _remove_stale(self, files: dict[str, Any]) -> None:
        for name in [name for name in self._written if name not in files]:
            (self._root.state / name).unlink(missing_ok=True)
            del self._written[name]

    async def beat(self, interval_ms: int) -> None:
        """Writes the heartbeat file until cancelled. It is written by the control loop itself, so that it stops when that stops."""
        while True:
            now = self._loop.now_ms()
            uptime = await self._loop.ask(lambda state: uptime_ms(state, self._loop.now_ms()) // 1000)
            try:
                write_atomically(self._root.state / "heartbeat.json", msgspec.json.encode(heartbeat(now, uptime)) + b"\n")
            except OSError as error:
                log.warning("heartbeat-not-written", extra={"reason": str(error)})
            await self._clock.sleep_ms(interval_ms)
