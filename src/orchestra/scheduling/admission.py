"""How much more a node can carry: what keeps a ready task from a free agent although both are there.

Measured figures of the nodes are handed in; they are some seconds old. What was started since, or so shortly before that it has not grown yet, is
counted with what attempts of its kind have needed so far. On by default; without figures everything is let in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import msgspec

from orchestra.core.model import AgentSpec, Priority, TaskSpec
from orchestra.core.state import AttemptState, State
from orchestra.ids import NodeId, PlanId, TaskId
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


class _Wishes(msgspec.Struct):
    model: str = ""


_wishes: Final = msgspec.json.Decoder(_Wishes)


def model_of(spec: TaskSpec) -> str:
    """Returns the model that a task asks for by name, or nothing."""
    if '"model"' not in spec.requirements:
        return ""
    try:
        return _wishes.decode(spec.requirements).model
    except msgspec.DecodeError:
        return ""  # its kind refuses it, in words


def any_model(spec: TaskSpec) -> tuple[str, ...]:
    """Says of every task that nothing is known of its model."""
    return ()


class ApiGate(msgspec.Struct, frozen=True):
    """What the model APIs bear at one moment. Kinds that use none are not named. What is said of a kind holds for all of its tasks; what is said of one of
    `keys_of` a task, for the models that share limits with its own, holds for that one."""

    closed: Mapping[str, str] = {}
    """Kind or key -> why none of its attempts is started."""
    day: str = ""
    """Why nothing is started today that uses an API."""
    critical_pass: bool = False
    """Critical tasks are started all the same where a budget is spent."""
    room: Mapping[str, int] = {}
    """Kind or key -> attempts that may be started in this round: after a pause, or near a limit, not all at once."""
    rounds: Mapping[str, int] = {}
    """Kind or key -> number of the round that its `room` is for. What was started before counts until it changes."""
    plans: Mapping[str, str] = {}
    """Plan -> why nothing of it is started that uses an API."""
    tasks: Mapping[str, str] = {}
    """Task -> why it is not started; one that set its own limit of cost is not asked about."""
    agents: Mapping[str, str] = {}
    """Number of an agent -> why it is given nothing that uses an API."""
    kinds: frozenset[str] = frozenset()
    """Kinds that use an API."""
    keys_of: Callable[[TaskSpec], tuple[str, ...]] = any_model


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
        self._begun = {} if begun is None else begun  # by kind and key, the attempts that were started in this round of the APIs
        self._keys: dict[TaskId, tuple[str, ...]] = {}
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

    def refusal(self, agent: AgentSpec, spec: TaskSpec) -> str:
        """Returns why no attempt of the task is started by the agent, or nothing if one may be."""
        return self._api_refusal(agent, spec) or self._node_refusal(agent.node, spec.kind)

    @property
    def api_troubles(self) -> tuple[str, ...]:
        """Why something is not started that needs a model API; empty where nothing is held back."""
        api, state = self._api, self._state
        waiting = {
            name: why
            for name, why in api.tasks.items()
            if (task := state.tasks.get(TaskId(name))) and self._own_refusal(task.spec) and not task.over
        }
        open_plans = {name: why for name, why in api.plans.items() if (plan := state.plans.get(PlanId(name))) is None or plan.open}
        named = [f"{what} {name}: {why}" for what, each in (("plan", open_plans), ("task", waiting)) for name, why in each.items()]
        return tuple(dict.fromkeys((*([api.day] if api.day else []), *api.closed.values(), *api.agents.values(), *named)))

    def held_alone(self, spec: TaskSpec) -> bool:
        """Tells whether the task waits for its plan's or its own sake, and others that ask the same of an agent need not."""
        return spec.kind in self._api.kinds and bool(self._plan_refusal(spec) or self._own_refusal(spec))

    def _passes(self, spec: TaskSpec) -> bool:
        return self._api.critical_pass and spec.priority is Priority.CRITICAL

    def _plan_refusal(self, spec: TaskSpec) -> str:
        return "" if spec.plan is None or self._passes(spec) else self._api.plans.get(spec.plan, "")

    def _own_refusal(self, spec: TaskSpec) -> str:
        return "" if spec.cost_usd_micros_max or self._passes(spec) else self._api.tasks.get(spec.id, "")

    def _api_refusal(self, agent: AgentSpec, spec: TaskSpec) -> str:
        kind, api = spec.kind, self._api
        if kind not in api.kinds:
            return ""
        if api.day and not self._passes(spec):
            return api.day
        keys = self._keys_of(spec)
        for key in keys:
            if key in api.closed:
                return api.closed[key]
        if any(self._begun.get(key, 0) >= api.room[key] for key in keys if key in api.room):
            return "the model API serves again after a pause or is near its limit, and attempts are started a few at a time"
        held = api.agents.get(str(agent.id), "") if api.agents else ""
        return self._plan_refusal(spec) or self._own_refusal(spec) or held

    def _keys_of(self, spec: TaskSpec) -> tuple[str, ...]:
        """Returns what is said of the task's kind by; asked for each agent, and looked up for the first."""
        if (keys := self._keys.get(spec.id)) is None:
            keys = self._keys[spec.id] = (spec.kind, *self._api.keys_of(spec))
        return keys

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

    def took(self, node: NodeId, spec: TaskSpec) -> None:
        """An attempt of the task was started on the node."""
        kind = spec.kind
        for key in self._keys_of(spec) if kind in self._api.kinds else ():
            self._begun[key] = self._begun.get(key, 0) + 1
        room = self._rooms.get(node)
        if room is not None:
            room.running += 1
            room.memory_left -= self.footprint(node, kind)
            self._zones[self._state.nodes[node].spec.zone] += 1
