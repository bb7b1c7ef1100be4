"""One seeded run: a control machine, a ledger, nodes, people; faults for a while, then calm, in which everything has to come to its end.

Phases: work and faults until `calm_after_ms`; then all faults stop, whoever looks after the orchestra does what the manual says (starts it again,
restarts agents that were given up), and every task that can run must be over within `live_ms` (INV-LIVE); then it is shut down, and nothing may be left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random
from typing import Any, Final

import msgspec

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, AgentStatus, Lifecycle, NodeSpec, Usage
from orchestra.engine import failpoints
from orchestra.errors import InvariantBroken, LedgerDamaged
from orchestra.ids import AgentId, AttemptId, NodeId
from orchestra.ledger import Append, Appended
from orchestra.testing.world.caution import broken
from orchestra.testing.world.checker import Checker
from orchestra.testing.world.clock import SimClock
from orchestra.testing.world.coordinator import SimCoordinator, SimCrash
from orchestra.testing.world.ledger import SimLedger
from orchestra.testing.world.mischief import Mischief
from orchestra.testing.world.net import SimNet, SimPort
from orchestra.testing.world.node import SimNode
from orchestra.testing.world.options import Options, draw_size, draw_weather
from orchestra.testing.world.plans import draw_fleet, draw_nodes, draw_plans, draw_policy, draw_task
from orchestra.testing.world.timeline import Timeline
from orchestra.testing.world.work import draw_script

CARE_MS: Final = 5_000
"""How often somebody looks after the orchestra."""
RESTART_MS: Final = 2_000
QUIET_MS: Final = 130_000
"""Two sweeps: after that everything on the nodes is known."""
LATE_MS: Final = 3_000
ACCEPTING: Final = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)
STARTABLE: Final = (Lifecycle.UNINITIALIZED, Lifecycle.TERMINATED, Lifecycle.FAILED)

Tracer = Callable[[int, str, tuple[object, ...]], None]


class Result(msgspec.Struct, frozen=True):
    """What a run came to."""

    seed: int
    ok: bool
    problem: str
    virtual_ms: int
    steps: int
    events: int
    appends: int
    tasks: dict[str, int]
    attempts: int
    stale: int
    faults: dict[str, int]
    kinds: tuple[str, ...]
    places: dict[str, int]
    """The failpoints that were reached, and how often a coordinator ended there."""
    agents: int
    nodes: int
    log_hash: str


class World:
    """Everything there is in one run."""

    def __init__(self, seed: int, options: Options | None = None, tracer: Tracer | None = None) -> None:
        self.seed = seed
        self.options = options or Options()
        self._tracer = tracer
        self.line = Timeline()
        self.dice = Random(f"world-{seed}")
        setting = Random(f"setting-{seed}")
        self.weather = draw_weather(setting, self.options)
        self.size = self.options.size or draw_size(setting)
        self.machines = draw_nodes(self.size)
        node_specs = self.node_specs = self.machines[: self.size.nodes]
        self.fleet = draw_fleet(setting, self.size, node_specs, even=self.options.even_agents)
        self._plans = draw_plans(setting, self.size, self.fleet)
        self.policy = draw_policy(setting)
        self.fence_ms = setting.choice((0, 60_000))
        """How long a lease holds that the drivers renew; 0: there is none."""
        self.snapshot_interval_ms = self.options.snapshot_ms or setting.choice((5_000, 60_000, 300_000))
        self._calm_after_ms = self.options.calm_after_ms or setting.randint(60_000, 60_000 + 20_000 * self.size.tasks)
        self.clock = SimClock(
            self.line, setting.randint(-60_000, 60_000), setting.randint(-200, 200) * ("clock-rate" in self.weather.rates)
        )
        self.ledger = SimLedger(self.dice, self.weather, durable=self.options.durable)
        self.checker = Checker(self)
        self.mischief = Mischief(self)
        self.nodes: dict[NodeId, SimNode] = {}
        self.nets: dict[NodeId, SimNet] = {}
        for spec in self.machines:
            self.nodes[spec.id] = SimNode(spec.id, self.line, self.dice, self._draw_script, self)
            self.nets[spec.id] = SimNet(self.line, self.dice, self.weather)
        self.node_list = list(self.nodes.values())
        self.places: dict[str, int] = {}
        """The named places a coordinator came to, and how often one ended there."""
        self._coordinators = 0
        self._all: list[SimCoordinator] = []
        self._ending = False
        self._streamed = 0
        self._in_flight_ms = 0
        self.lead = self._new_coordinator()

    # --- parts -------------------------------------------------------------------------------------------------------

    def _draw_script(self) -> Any:
        return draw_script(self.dice, self.weather, self.options.work_ms)

    def port_to(self, node: NodeId) -> SimPort:
        """Returns a port to a node for one coordinator."""
        return SimPort(self.nodes[node], self.nets[node], self.line, self.dice, self.weather)

    def trace(self, actor: str, *what: object) -> None:
        """Tells the tracer, if there is one."""
        if self._tracer is not None:
            self._tracer(self.line.now_ms, actor, what)

    def program_started(self, node: SimNode, folder: Any, program: Any) -> None:
        """See `Observer`."""
        self.trace(node.id, "agent-begins", folder.attempt, program.script)
        self.checker.program_started(node, folder, program)

    def worker_ended(self, node: SimNode, worker: Any) -> None:
        """See `Observer`."""
        self.checker.worker_ended(node, worker)

    def worker_killed(self, node: SimNode, worker: Any) -> None:
        """See `Observer`."""
        self.checker.caution.check_killed(node, worker)

    def usage_of(self, node: NodeId, attempt: AttemptId) -> Usage:
        """Returns what an attempt used according to the world: only an agent that ends by itself and has a model says anything."""
        folder = self.nodes[node].folders.get(attempt)
        program = None if folder is None else folder.program
        if folder is None or folder.spec is None or program is None or not folder.spec["signals"]:
            return Usage()
        if program.ending or program.script.signal is not None:
            return Usage()
        tokens = program.script.tokens
        return Usage(requests=1, tokens_input=tokens, tokens_output=tokens // 3, cost_usd_micros=tokens * 1000)

    # --- coordinators ------------------------------------------------------------------------------------------------

    def _new_coordinator(self) -> SimCoordinator:
        self._coordinators += 1
        coordinator = SimCoordinator(self, f"coordinator-{self._coordinators}", self.clock)
        self._all.append(coordinator)
        return coordinator

    def take_over(self) -> None:
        """Another coordinator starts, whatever the present one does."""
        self.lead = self._new_coordinator()
        self.trace("world", "starts", self.lead.name)
        self.lead.start()

    def coordinator_ended(self, coordinator: SimCoordinator, why: str) -> None:
        """One has ended; the leader is started again, unless it ended as asked."""
        self.trace("world", "ended", coordinator.name, why)
        self._all.remove(coordinator)
        if not coordinator.finished:
            self.ledger.lose_unsynced()
        if coordinator is not self.lead or (self._ending and coordinator.finished):
            return
        if self.ledger.damaged and "hash" in why:
            self.ledger.repair()
        self.line.after(self.dice.randint(100, RESTART_MS), self._restart, coordinator)

    def _restart(self, coordinator: SimCoordinator) -> None:
        if self.lead is coordinator:
            self.take_over()

    def append(self, owner: SimCoordinator, request: Append) -> Appended:
        """An append of one coordinator reaches the ledger."""
        before = self.ledger.tail().seq
        try:
            return self.ledger.append(request, self.line.now_ms)
        finally:
            if self.ledger.tail().seq > before and request.term != self.ledger.store_term():
                raise broken(
                    "INV-FENCE", f"an append of term {request.term} was accepted after term {self.ledger.store_term()} was claimed"
                )
            self.checker.absorb()
            self.line.after(self.dice.randint(0, LATE_MS), self._arrive_late)

    def _arrive_late(self) -> None:
        self.ledger.arrive_late()
        self.checker.absorb()

    # --- people ------------------------------------------------------------------------------------------------------

    def wish(self, command: c.Command) -> None:
        """Somebody asks the leader for something; nobody waits for the answer."""
        if self.lead.alive:
            self.trace("human", command)
            self.lead.request(command)

    def _care(self) -> None:
        """Somebody looks after the orchestra, as the manual says."""
        state = self.checker.shadow
        if self.lead.alive and not self.lead.finished and not self._ending:
            if state.lifecycle in STARTABLE:
                self.wish(c.Init("sim", self.node_specs, self.fleet))
            elif state.lifecycle in ACCEPTING:
                self._submit_next()
                if self.weather.calm:
                    self._restore_fleet()
            for node in self.nodes:
                if node in state.nodes and state.lifecycle not in STARTABLE:
                    self.lead.enter(lambda node=node: self.lead.add_driver(node))  # type: ignore[misc]
        if not self._ending:
            self.line.after(CARE_MS if self.weather.calm else self.dice.randint(100, CARE_MS), self._care)

    def _submit_next(self) -> None:
        if not self._plans:
            return
        head = self._plans[0]
        known = head.tasks[0].id in self.checker.shadow.tasks
        if known:
            self._plans.pop(0)
        elif self.weather.calm or self.dice.random() < 0.5:
            self.wish(head)

    def take_up(self, spec: NodeSpec) -> None:
        """Somebody adds a machine, or says anew what is known of one. What was given up with it is ended first."""
        if self.nodes[spec.id].abandoned:
            self.start_anew(self.nodes[spec.id])
        self.wish(c.AddNode(spec))

    def start_anew(self, node: SimNode) -> None:
        """Starts a machine that had been given up."""
        node.abandoned = False
        node.reboot()

    def _restore_fleet(self) -> None:
        state = self.checker.shadow
        for node in self.node_list:
            if node.abandoned and node.id not in state.nodes:
                self.start_anew(node)
        for spec in self.node_specs:
            known = state.nodes.get(spec.id)
            if known is None or known.spec.max_agents != spec.max_agents:
                self.take_up(spec)
            elif known.draining:
                self.wish(c.ResumeNode(spec.id))
        for agent in state.agents.values():
            if agent.status is AgentStatus.ERROR:
                self.wish(c.RestartAgent(agent.id))
        self._restore_slots()

    def _restore_slots(self) -> None:
        """What was scaled away comes back, and no machine stays without agents: some tasks can run nowhere else."""
        state = self.checker.shadow
        wanted = [agent for agent in self.fleet if agent.id not in state.agents]
        first = max((*state.agents, *(agent.id for agent in self.fleet))) + 1
        bare = [spec.id for spec in self.node_specs if not any(agent.node == spec.id for agent in wanted) and not state.agents_on(spec.id)]
        wanted += [AgentSpec(AgentId(first + index), node) for index, node in enumerate(bare)]
        usable = all(agent.node in state.nodes and state.nodes[agent.node].usable for agent in wanted)
        leaving = any(agent.status is AgentStatus.DRAINING for agent in state.agents.values())
        if wanted and usable and not leaving and not state.scale_queue:
            self.wish(c.Scale(len(state.agents) + len(wanted), "gradual", tuple(wanted)))

    def _stream(self) -> None:
        if self.weather.calm:
            return
        self._streamed += 1
        task = draw_task(self.dice, f"STREAM-{self._streamed}", None, [], self.fleet)
        self.wish(c.Submit((msgspec.structs.replace(task, replicas=1, timeout_ms=2 * self.options.work_ms[1]),)))
        self.line.after(1 + int(self.dice.expovariate(1 / self.options.stream_ms)), self._stream)

    # --- the run -----------------------------------------------------------------------------------------------------

    def run(self) -> Result:
        """Plays the whole run and returns what it came to; never raises for a broken invariant."""
        problem = ""
        before = failpoints.arm(self._at_failpoint)
        try:
            self._play()
        except InvariantBroken as error:
            problem = str(error)
        finally:
            failpoints.arm(before)
        return self._result(problem)

    def _at_failpoint(self, place: str) -> None:
        self.places.setdefault(place, 0)
        if self.dice.random() < self.weather.rate("coordinator-failpoint"):
            self.places[place] += 1
            self.trace("fault", "failpoint", place)
            self.mischief.counts["failpoint"] = self.mischief.counts.get("failpoint", 0) + 1
            raise SimCrash

    def _play(self) -> None:
        self.lead.start()
        self.line.after(1, self._care)
        if self.options.stream_ms:
            self.line.after(1000, self._stream)
        self.mischief.begin()
        self._until(lambda: self.line.now_ms >= self._calm_after_ms, self._calm_after_ms * 2, "INV-LIVE: time stands still")
        self._calm_down()
        self._until(self._all_over, self.line.now_ms + self.options.live_ms, "INV-LIVE: not everything came to its end")
        quiet_ms = max(self.line.now_ms, self._in_flight_ms) + QUIET_MS
        self._until(
            lambda: self.line.now_ms >= quiet_ms and self._all_over(), self.line.now_ms + self.options.live_ms, "INV-LIVE: no quiet"
        )
        self.checker.check_owned()
        self._shut_down()
        self._until(self._ended, self.line.now_ms + self.options.live_ms, "INV-LIVE: the shutdown did not end")
        self._settle()
        self.checker.check_end()

    def _until(self, over: Callable[[], bool], bound_ms: int, words: str) -> None:
        line, steps_max = self.line, self.options.steps_max
        while not over():
            if line.now_ms > bound_ms or line.steps > steps_max or not line.step():
                raise InvariantBroken(f"{words} (at {line.now_ms} ms, step {line.steps}): {self._unfinished()}")

    def _unfinished(self) -> str:
        state = self.checker.shadow
        open_tasks = [f"{task.id} is {task.status.value}" for task in state.tasks.values() if not task.over]
        agents = [f"agent {agent.id} is {agent.status.value} with {agent.task}" for agent in state.agents.values()]
        return f"{state.lifecycle.value}; {len(open_tasks)} tasks open: {', '.join(open_tasks[:3])}; {', '.join(agents[:5])}"

    def _calm_down(self) -> None:
        self.trace("world", "calm")
        self.weather.calm = True
        for net in self.nets.values():
            self._in_flight_ms = max(self._in_flight_ms, *net.blocked_until_ms.values())
            net.heal()
        for node in self.node_list:
            node.make_room()
            node.sick_until_ms = 0
            for worker in [*node.windows.values(), *node.live_workers()]:
                node.wake_worker(worker)
        for coordinator in list(self._all):
            coordinator.resume()
        if self.ledger.damaged:
            self._check_flip_found()

    def _check_flip_found(self) -> None:
        try:
            for _ in self.ledger.store.read():
                pass
        except LedgerDamaged:
            self.ledger.repair()
        else:
            raise broken("INV-LOG", "a flipped bit was served")

    def _all_over(self) -> bool:
        state = self.checker.shadow
        if self._plans or state.queued or state.waiting or state.live or state.lifecycle not in ACCEPTING:
            return False
        return state.totals.completed + state.totals.failed + state.totals.cancelled == len(state.tasks)

    def _ended(self) -> bool:
        return not self._all and self.checker.shadow.lifecycle is Lifecycle.TERMINATED

    def _shut_down(self) -> None:
        for coordinator in self._all:
            if coordinator is self.lead:
                self.checker.compare(coordinator.kernel.state, coordinator.name)
        self._ending = True
        self._ask_to_end()

    def _ask_to_end(self) -> None:
        if self.checker.shadow.lifecycle in ACCEPTING:
            self.wish(c.ShutDown(drain=True, graceful=True, timeout_ms=60_000))
        if self._all:
            self.line.after(CARE_MS, self._ask_to_end)
        for coordinator in list(self._all):
            if coordinator is not self.lead:
                coordinator.end("was told that another leads")

    def _settle(self) -> None:
        """What was on its way arrives."""
        end = self.line.now_ms + 60_000
        while (due := self.line.next_ms) is not None and due <= end:
            self.line.step()

    def _result(self, problem: str) -> Result:
        state = self.checker.shadow
        tasks: dict[str, int] = {}
        for task in state.tasks.values():
            tasks[task.status.value] = tasks.get(task.status.value, 0) + 1
        digest = hashlib.sha256()
        for event in self.ledger.store._kept.events:
            digest.update(event.hash)
        return Result(
            seed=self.seed,
            ok=not problem,
            problem=problem,
            virtual_ms=self.line.now_ms,
            steps=self.line.steps,
            events=state.seq,
            appends=self.checker.counts["appends"],
            tasks=tasks,
            attempts=state.totals.attempts,
            stale=self.checker.counts["stale"],
            faults=dict(sorted(self.mischief.counts.items())),
            kinds=tuple(self.weather.rates),
            places=dict(sorted(self.places.items())),
            agents=self.size.agents,
            nodes=self.size.nodes,
            log_hash=digest.hexdigest()[:16],
        )


def run(seed: int, options: Options | None = None, tracer: Tracer | None = None) -> Result:
    """Plays one seed."""
    return World(seed, options, tracer).run()
