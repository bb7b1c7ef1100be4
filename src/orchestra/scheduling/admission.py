"""How much more a node can carry: what keeps a ready task from a free agent although both are there.

Measured figures of the nodes are handed in; they are some seconds old. What was started since, or so shortly before that it has not grown yet, is
counted with what attempts of its kind have needed so far. On by default; without figures everything is let in.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from orchestra.core.model import Priority, TaskSpec
from orchestra.core.state import AttemptState, State
from orchestra.ids import NodeId
from orchestra.quantity import show_bytes

MIB: Final = 1 << 20


class Load(msgspec.Struct, frozen=True):
    """A node's figures at one moment."""

    at_ms: int
    """Ledger time of the measurement."""
    cpus: int
    load_1m: float
    memory_bytes: int
    memory_available_bytes: int
    disk_free_bytes: int


class AdmissionOptions(msgspec.Struct, frozen=True):
    """Settings of the admission; 0 switches a rule off."""

    memory_reserve_percent: int = 5
    """Share of a node's memory that attempts are not given."""
    load_per_cpu_max: float = 16.0
    """Processes that want to run, a core, above which no further attempt is started. Agents wait for a model most of the time."""
    disk_free_bytes_min: int = 64 * MIB
    growth_ms: int = 20_000
    """How long an attempt may take until its memory is what it will be."""
    footprints: Mapping[str, int] = {}
    """Memory in bytes that an attempt of each kind is expected to need, before any was measured."""
    footprint_bytes: int = 256 * MIB
    """The same for kinds that do not say."""
    zone_running_max: int = 0
    """Attempts that may run at the same time in one zone, so that one zone's trouble is not everybody's."""


class ApiGate(msgspec.Struct, frozen=True):
    """What the model APIs bear at one moment. Kinds that use none are not named."""

    closed: Mapping[str, str] = {}
    """Kind -> why none of its attempts is started."""
    critical_pass: bool = False
    """Critical tasks are started all the same."""
    room: Mapping[str, int] = {}
    """Kind -> attempts that may be started now: after a pause not all at once."""
    plans: Mapping[str, str] = {}
    """Plan -> why nothing of it is started that uses an API."""
    kinds: frozenset[str] = frozenset()
    """Kinds that use an API."""


OPEN: Final = ApiGate()


class _Room(msgspec.Struct):
    memory_left: int
    running: int
    closed: str
    even_alone: bool = False
    """Also for the only attempt."""


class Gate:
    """Lets attempts in, at one moment. Ask `refusal`, then tell it what was started."""

    def __init__(
        self,
        state: State,
        loads: Mapping[NodeId, Load],
        options: AdmissionOptions,
        now_ms: int,
        api: ApiGate = OPEN,
        begun: dict[str, int] | None = None,
    ) -> None:
        self._state = state
        self._api = api
        self._begun = {} if begun is None else begun  # attempts of each kind that were started since the APIs were looked at
        self._options = options
        self._loads = loads
        self._now_ms = now_ms
        self._rooms: dict[NodeId, _Room] = {}
        self._zones: dict[str, int] = {}
        if loads or options.zone_running_max:
            self._count()

    def _count(self) -> None:
        state = self._state
        for name, node in state.nodes.items():
            self._rooms[name] = self._room(name, self._loads.get(name))
            self._zones.setdefault(node.spec.zone, 0)
        for attempt_id, attempt in state.live_attempts():
            room = self._rooms.get(attempt.node)
            if room is None:
                continue
            room.running += 1
            self._zones[state.nodes[attempt.node].spec.zone] += 1
            if self._is_young(attempt):
                room.memory_left -= self.footprint(attempt.node, state.tasks[attempt_id.task].spec.kind)

    def _room(self, name: NodeId, load: Load | None) -> _Room:
        if load is None:
            return _Room(1 << 62, 0, "")
        options = self._options
        reserve = load.memory_bytes * options.memory_reserve_percent // 100
        left = load.memory_available_bytes - reserve if load.memory_bytes else 1 << 62
        closed = ""
        if options.disk_free_bytes_min and load.disk_free_bytes < options.disk_free_bytes_min:
            return _Room(left, 0, f"node {name} has only {show_bytes(load.disk_free_bytes)} of disk left", even_alone=True)
        if options.load_per_cpu_max and load.load_1m > options.load_per_cpu_max * max(1, load.cpus):
            closed = f"node {name} is busy: load {load.load_1m:g} on {load.cpus} cores"
        return _Room(left, 0, closed)

    def _is_young(self, attempt: AttemptState) -> bool:
        load = self._loads.get(attempt.node)
        return load is not None and max(attempt.started_ms, attempt.assigned_ms) > load.at_ms - self._options.growth_ms

    def footprint(self, node: NodeId, kind: str) -> int:
        """Returns the bytes an attempt of the kind is expected to need on the node."""
        own = self._state.nodes[node].spec.agent_memory_bytes
        return own or self._state.footprints.get(kind, 0) or self._options.footprints.get(kind, self._options.footprint_bytes)

    def refusal(self, node: NodeId, spec: TaskSpec) -> str:
        """Returns why no further attempt of the task's kind is started on the node, or nothing if one may be."""
        return self._api_refusal(spec) or self._node_refusal(node, spec.kind)

    @property
    def api_troubles(self) -> tuple[str, ...]:
        """Why nothing is started that needs a model API; empty where nothing is held back."""
        return tuple(dict.fromkeys((*self._api.closed.values(), *(f"plan {plan}: {why}" for plan, why in self._api.plans.items()))))

    def plan_held(self, spec: TaskSpec) -> bool:
        """Tells whether the task waits for its plan's sake, and others of its kind need not."""
        return spec.kind in self._api.kinds and spec.plan in self._api.plans

    def _api_refusal(self, spec: TaskSpec) -> str:
        kind, api = spec.kind, self._api
        if kind in api.closed and not (api.critical_pass and spec.priority is Priority.CRITICAL):
            return api.closed[kind]
        if self._begun.get(kind, 0) >= api.room.get(kind, 1 << 30):
            return "the model API serves again after a pause, and attempts are started a few at a time"
        return api.plans[spec.plan] if spec.plan is not None and self.plan_held(spec) else ""

    def _node_refusal(self, node: NodeId, kind: str) -> str:
        room = self._rooms.get(node)
        if room is None:
            return ""
        zone = self._state.nodes[node].spec.zone
        if self._options.zone_running_max and zone and self._zones[zone] >= self._options.zone_running_max:
            return f"zone {zone} has {self._zones[zone]} attempts running, which is its limit"
        if room.closed and (room.running or room.even_alone):
            return room.closed
        need = self.footprint(node, kind)
        if room.memory_left < need and (room.running or room.memory_left <= 0):
            return f"node {node} has {show_bytes(max(0, room.memory_left))} of memory left and an attempt of kind {kind!r} needs about {show_bytes(need)}"
        return ""

    def took(self, node: NodeId, kind: str) -> None:
        """An attempt of the kind was started on the node."""
        self._begun[kind] = self._begun.get(kind, 0) + 1
        room = self._rooms.get(node)
        if room is not None:
            room.running += 1
            room.memory_left -= self.footprint(node, kind)
            self._zones[self._state.nodes[node].spec.zone] += 1
