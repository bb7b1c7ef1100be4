"""What a parent program is told without asking: a file an event in `<root>/queue/events/`, numbered in order, plus the pure rule what counts.

Immediate ones are written with the append that caused them; completions are gathered for a moment and told together.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any, Final

import msgspec

from orchestra.clock import Clock
from orchestra.core import events as e
from orchestra.core.model import AgentStatus, Lifecycle
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.engine.loop import Loop
from orchestra.files import write_atomically
from orchestra.projections import rfc3339
from orchestra.root import Root

log = logging.getLogger(__name__)

BATCH_MS: Final = 1000
"""Completions are told together this often."""
FILES_MAX: Final = 1000
"""Event files kept; a parent that is further behind reads the status instead."""


class Told(msgspec.Struct, frozen=True):
    """One event for a parent."""

    event: str
    severity: str
    values: dict[str, Any]


class ParentEvents:
    """Turns what happened into what a parent wants to know. Remembers only when agents fell."""

    def __init__(self) -> None:
        self._fell: dict[int, int] = {}

    def of(self, state: State, happened: Happened) -> Told | None:
        """Returns the event for the parent, or None."""
        match happened.event:
            case e.AgentLost(agent, reason):
                self._fell.setdefault(agent, happened.at_ms)
                return Told("agent_failure", "high", {"agent_id": agent, "reason": reason})
            case e.AgentSuspended(agent, reason):
                return Told(
                    "unrecoverable_error", "critical", {"agent_id": agent, "reason": reason, "remedy": f"orchestra agent restart {agent}"}
                )
            case e.AgentReady(agent):
                return self._ready(state, agent, happened.at_ms)
            case e.NodeLost(node, reason) if not reason.startswith("the coordinator was restarted"):
                return Told("node_lost", "critical", {"node": node, "reason": reason})
            case e.TaskFailed(task, reason):
                return Told("task_failed", "high", {"task_id": task, "reason": reason})
            case e.TaskCompleted(task):
                return Told("task_completed", "info", {"task_id": task})
            case e.ScaleCompleted(agents):
                return Told("scaling", "info", {"status": "scaled", "progress": f"{agents}/{agents}", "eta_seconds": 0})
            case e.InitFailed(reason):
                return Told("unrecoverable_error", "critical", {"reason": reason})
            case _:
                return None

    def _ready(self, state: State, agent: int, at_ms: int) -> Told | None:
        fell = self._fell.pop(agent, None)
        if fell is not None:
            return Told("agent_recovered", "medium", {"agent_id": agent, "downtime_seconds": (at_ms - fell) // 1000})
        if state.lifecycle is not Lifecycle.SCALING:
            return None
        ready = sum(each.status in (AgentStatus.IDLE, AgentStatus.BUSY) for each in state.agents.values())
        return Told("scaling", "info", {"status": "scaling", "progress": f"{ready}/{state.scale_target}"})


class EventFiles:
    """Writes events for the parent."""

    def __init__(self, loop: Loop, root: Root, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        self._rule = ParentEvents()
        self._queue: asyncio.Queue[tuple[int, int, Told]] = asyncio.Queue()
        self._completed: list[tuple[int, int, Told]] = []
        loop.listen(self._on_events)

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            told = self._rule.of(state, each)
            if told is None:
                continue
            if told.event == "task_completed":
                self._completed.append((each.seq, each.at_ms, told))
            else:
                self._queue.put_nowait((each.seq, each.at_ms, told))

    async def run(self) -> None:
        """Writes until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._write_immediate())
            group.create_task(self._write_batches())

    async def _write_immediate(self) -> None:
        while True:
            seq, at_ms, told = await self._queue.get()
            self._write(seq, {"event": told.event, "severity": told.severity, "timestamp": rfc3339(at_ms), **told.values})

    async def _write_batches(self) -> None:
        while True:
            await self._clock.sleep_ms(BATCH_MS)
            self.flush()

    def flush(self) -> None:
        """Tells gathered completions now."""
        gathered, self._completed = self._completed, []
        if gathered:
            seq, at_ms, _ = gathered[-1]
            tasks = [told.values["task_id"] for _, _, told in gathered]
            self._write(seq, {"event": "task_completed", "severity": "info", "timestamp": rfc3339(at_ms), "task_ids": tasks})

    def _write(self, seq: int, values: dict[str, Any]) -> None:
        name = f"{seq:012}-{values['event']}.json"
        try:
            write_atomically(self._root.events / name, msgspec.json.encode({"seq": seq, **values}) + b"\n")
            names = sorted(path.name for path in self._root.events.iterdir() if path.name[:1].isdigit())
            for old in names[:-FILES_MAX]:
                (self._root.events / old).unlink(missing_ok=True)
        except OSError as error:
            log.warning("event-not-written", extra={"event": values["event"], "reason": str(error)})
