"""What a parent program is told without asking: a file an event in `<root>/queue/events/`, numbered in order, plus the pure rule what counts.

Immediate ones are written right after the append that caused them; completions are gathered for a moment and told together. What was gathered is
written before a later immediate one, so that the numbers only grow and a parent that goes on from the last one it saw misses nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Final

import msgspec

from orchestra.clock import Clock
from orchestra.core import events as e
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus
from orchestra.core.state import NodeState, State
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
DOWN: Final = (AgentStatus.OFFLINE, AgentStatus.ERROR)
UP: Final = (AgentStatus.IDLE, AgentStatus.BUSY)
RESTARTED: Final = ("connecting again after a restart", "the coordinator was restarted")
"""Reasons of a node's loss that is none: we lose sight of every node while nobody runs. The second is how older ledgers say it."""


class Told(msgspec.Struct, frozen=True):
    """One event for a parent."""

    event: str
    severity: str
    values: dict[str, Any]


class ParentEvents:
    """Turns what happened into what a parent wants to know. Remembers when agents fell, and what was told of a scaling.

    Args:
        fell: Agents that are down already, and since when.
        lost: Nodes that are lost or in trouble already, and since when.
    """

    def __init__(self, fell: Mapping[int, int] | None = None, lost: Mapping[str, int] | None = None) -> None:
        self._fell: dict[int, int] = dict(fell or {})
        self._lost: dict[str, int] = dict(lost or {})
        self._progress = ""
        self._conflicts: dict[str, int] = {}
        """Tasks whose work did not go with the plan's branch, and the last attempt that it was."""
        self._scaling: tuple[int, int] | None = None
        """When the scaling began, and how many agents were up then."""

    def of(self, state: State, happened: Happened) -> Told | None:
        """Returns the event for the parent, or None."""
        match happened.event:
            case e.AgentLost(agent, reason):
                self._fell.setdefault(agent, happened.at_ms)
                return Told("agent_failure", "high", {"agent_id": agent, "reason": reason})
            case e.AgentSuspected(agent, reason):
                self._fell.setdefault(agent, happened.at_ms)
                return Told("agent_failure", "medium", {"agent_id": agent, "reason": reason})
            case e.AgentSuspended(agent):
                self._fell.setdefault(agent, happened.at_ms)
                return None  # whether it is replaced or somebody is called follows
            case e.AgentReplaced(agent, by):
                return Told("agent_replaced", "medium", {"agent_id": agent, "replaced_by": by})
            case e.Escalated(agent, reason):
                remedy = f"orchestra agent restart {agent}"
                return Told("unrecoverable_error", "critical", {"agent_id": agent, "reason": reason, "remedy": remedy})
            case e.AgentReady(agent) | e.AgentCleared(agent):
                return self._ready(state, agent, happened.at_ms)
            case e.AgentRemoved(agent):
                self._fell.pop(agent, None)
                return None
            case e.NodeLost(node, reason, still) if not reason.startswith(RESTARTED):
                if still and node in self._lost:
                    return None  # told already; the new cause is in the status
                self._lost.setdefault(node, happened.at_ms)
                return Told("node_lost", "critical", {"node": node, "reason": reason})
            case e.NodeConnected(node, rebooted=rebooted):
                return self._node_back(node, happened.at_ms, rebooted=rebooted)
            case e.BreakerTripped(node, cause):
                self._lost.setdefault(node, happened.at_ms)
                return Told("node_degraded", "high", {"node": node, "reason": cause})
            case e.BreakerReset(node):
                return self._node_back(node, happened.at_ms, rebooted=False)
            case e.NodeRemoved(node):
                self._lost.pop(node, None)
                return None
            case e.AttemptWaiting(task, attempt, question, number, again) if not again:
                values = {"task_id": task, "attempt": attempt, "question": question, "question_number": number}
                return Told("task_waiting", "high", {**values, "remedy": f'orchestra task answer {task} "..."'})
            case e.AttemptAnswered(task, attempt, waited_ms):
                return Told("task_answered", "info", {"task_id": task, "attempt": attempt, "waited_seconds": waited_ms // 1000})
            case e.ConflictPredicted(task, attempt, other, other_attempt, paths):
                others = {"other_task_id": other, "other_attempt": other_attempt, "paths": paths}
                return Told("conflict_predicted", "medium", {"task_id": task, "attempt": attempt, **others})
            case e.KindLost(kind, reason, _, other):
                return Told("agent_kind_lost", "high", {"kind": kind, "reason": reason, "tasks_go_to": other})
            case e.KindRecovered(kind, reason, told) if told:
                return Told("agent_kind_recovered", "medium", {"kind": kind, "reason": reason})
            case e.TaskMoved(task, was, kind, estimate_ms, warning):
                values = {"task_id": task, "from": was, "to": kind, "estimated_seconds": estimate_ms // 1000, "warning": warning}
                return Told("task_moved", "medium", values)
            case e.WorkConflicted(task, attempt, files, _, checks):
                self._conflicts[task] = attempt
                return Told("work_conflicted", "medium", {"task_id": task, "attempt": attempt, "files": files, "failed_checks": checks})
            case e.TaskFailed(task, reason):
                return self._failed(task, reason)
            case e.AttemptAssigned(task):
                self._conflicts.pop(task, None)
                return None
            case e.TaskCompleted(task):
                return Told("task_completed", "info", {"task_id": task})
            case e.ApiNoticed(_, kind, facts):
                return _of_api(kind, facts)
            case e.InitFailed(reason):
                return Told("unrecoverable_error", "critical", {"reason": reason})
            case e.ScaleStarted() | e.ScaleCompleted():
                return self._scaled(state, happened)
            case _:
                return None

    def _failed(self, task: str, reason: str) -> Told:
        """Work that conflicted again after it was sent back is for a person to bring together."""
        attempt = self._conflicts.pop(task, None)
        if attempt is None:
            return Told("task_failed", "high", {"task_id": task, "reason": reason})
        remedy = f"orchestra task diff {task} --attempt {attempt} shows its work; orchestra task retry {task} begins on the plan's branch as it is now"
        return Told("task_failed", "critical", {"task_id": task, "reason": reason, "remedy": remedy})

    def _node_back(self, node: str, at_ms: int, *, rebooted: bool) -> Told | None:
        lost_ms = self._lost.pop(node, None)
        if lost_ms is None and not rebooted:
            return None  # connected for the first time, or after a restart of ours
        values: dict[str, Any] = {"node": node, "rebooted": rebooted}
        if lost_ms is not None:
            values["downtime_seconds"] = max(0, at_ms - lost_ms) // 1000
        return Told("node_recovered", "medium", values)

    def _scaled(self, state: State, happened: Happened) -> Told | None:
        if isinstance(happened.event, e.ScaleStarted):
            self._progress, self._scaling = "", (happened.at_ms, _up(state))
            return None
        self._progress, self._scaling = "", None
        agents = happened.event.agents if isinstance(happened.event, e.ScaleCompleted) else 0
        return Told("scaling", "info", {"status": "scaled", "progress": f"{agents}/{agents}", "eta_seconds": 0})

    def _ready(self, state: State, agent: int, at_ms: int) -> Told | None:
        fell = self._fell.pop(agent, None)
        if fell is not None:
            return Told("agent_recovered", "medium", {"agent_id": agent, "downtime_seconds": max(0, at_ms - fell) // 1000})
        if state.lifecycle is not Lifecycle.SCALING:
            return None
        up = _up(state)
        progress = f"{up}/{state.scale_target}"
        if progress == self._progress:
            return None  # several came up in one append
        self._progress = progress
        values: dict[str, Any] = {"status": "scaling", "progress": progress}
        if self._scaling is not None and up > self._scaling[1]:
            began_ms, before = self._scaling
            values["eta_seconds"] = -(-(at_ms - began_ms) * max(0, state.scale_target - up) // (up - before) // 1000)
        return Told("scaling", "info", values)


_API: Final[Mapping[str, tuple[str, str]]] = {
    "limit_warning": ("api_limit_warning", "medium"),
    "limit_calm": ("api_limit_recovered", "info"),
    "limit_alarm": ("api_limit_alarm", "high"),
    "account_parked": ("api_account_parked", "high"),
    "account_resumed": ("api_account_resumed", "info"),
    "upstream_down": ("api_down", "high"),
    "upstream_back": ("api_recovered", "info"),
    "key_quarantined": ("api_key_refused", "high"),
    "key_changed": ("api_key_changed", "info"),
    "journal_spoilt": ("cost_books_damaged", "high"),
    "budget_warning": ("cost_threshold_exceeded", "high"),
    "budget_spent": ("budget_spent", "critical"),
    "price_unknown": ("price_unknown", "low"),
}
"""What the gateway noticed -> what a parent is told, and how urgent it is."""


def _of_api(kind: str, facts: Mapping[str, str | int]) -> Told | None:
    if kind not in _API:
        return None
    event, severity = _API[kind]
    values: dict[str, Any] = dict(facts)
    if kind == "budget_warning":
        values["threshold_percent"] = values.pop("percent", 80)
    if kind in ("budget_warning", "budget_spent"):
        name = "" if facts.get("scope") == "day" else f" {facts.get('name')}"
        values["remedy"] = f"orchestra cost budget {facts.get('scope')}{name} --usd AMOUNT"
    return Told(event, severity, values)


def _up(state: State) -> int:
    return sum(each.status in UP for each in state.agents.values())


def _is_in_trouble(node: NodeState) -> bool:
    lost = node.status is NodeStatus.LOST and not node.reason.startswith(RESTARTED)
    return lost or node.breaker is not None


class EventFiles:
    """Writes events for the parent."""

    def __init__(self, loop: Loop, root: Root, clock: Clock) -> None:
        self._root = root
        self._clock = clock
        state = loop.state
        fell: dict[int, int] = {agent.id: agent.since_ms for agent in state.agents.values() if agent.status in DOWN}
        lost: dict[str, int] = {node.spec.id: node.since_ms for node in state.nodes.values() if _is_in_trouble(node)}
        self._rule = ParentEvents(fell, lost)
        self._pending: list[tuple[int, int, Told]] = []
        self._urgent = asyncio.Event()
        self._kept: deque[str] | None = None
        loop.listen(self._on_events)

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            told = self._rule.of(state, each)
            if told is not None:
                self._pending.append((each.seq, each.at_ms, told))
                if told.event != "task_completed":
                    self._urgent.set()

    async def run(self) -> None:
        """Writes until cancelled, and then what is left."""
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._write_urgent())
                group.create_task(self._write_batches())
        finally:
            self.flush()

    async def _write_urgent(self) -> None:
        while True:
            await self._urgent.wait()
            self.flush()

    async def _write_batches(self) -> None:
        while True:
            await self._clock.sleep_ms(BATCH_MS)
            self.flush()

    def flush(self) -> None:
        """Tells everything gathered now."""
        self._urgent.clear()
        pending, self._pending = self._pending, []
        for is_completion, group in groupby(pending, key=lambda each: each[2].event == "task_completed"):
            run = list(group)
            if is_completion:
                seq, at_ms, told = run[-1]
                self._write(seq, at_ms, Told(told.event, told.severity, {"task_ids": [each.values["task_id"] for _, _, each in run]}))
            else:
                for seq, at_ms, told in run:
                    self._write(seq, at_ms, told)

    def _write(self, seq: int, at_ms: int, told: Told) -> None:
        name = f"{seq:012}-{told.event}.json"
        values = {"seq": seq, "event": told.event, "severity": told.severity, "timestamp": rfc3339(at_ms), **told.values}
        path = self._root.events / name
        try:
            try:
                write_atomically(path, msgspec.json.encode(values) + b"\n")
            except FileNotFoundError:  # somebody removed the folder
                path.parent.mkdir(mode=0o700, exist_ok=True)
                write_atomically(path, msgspec.json.encode(values) + b"\n")
            self._forget_oldest(name)
        except OSError as error:
            log.warning("event-not-written", extra={"event": told.event, "seq": seq, "reason": str(error)})

    def _forget_oldest(self, name: str) -> None:
        if self._kept is None:
            found = (path.name for path in self._root.events.iterdir())
            self._kept = deque(sorted(each for each in found if each[:1].isdigit() and each != name))
        self._kept.append(name)
        while len(self._kept) > FILES_MAX:
            (self._root.events / self._kept.popleft()).unlink(missing_ok=True)
