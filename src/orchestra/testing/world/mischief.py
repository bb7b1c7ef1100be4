"""What happens by itself in the world: faults of machines and wishes of people, each kind at its own rate until the calm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Final

import msgspec

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, AgentStatus, TaskStatus
from orchestra.ids import AgentId, NodeId
from orchestra.testing.world.options import HOUR_MS

if TYPE_CHECKING:
    from orchestra.testing.world.world import World

HANG_MS_MAX: Final = 600_000
PARTITION_MS_MAX: Final = 900_000
DISK_FULL_MS_MAX: Final = 120_000
STALL_MS_MAX: Final = 180_000
"""How long an overloaded machine may stand still."""
SICK_MS_MAX: Final = 120_000
TOGETHER_MS: Final = 2_000
"""What dies at once dies within this time."""
AMID_MS_MAX: Final = 20_000
"""A coordinator that is killed in the middle of something is killed so long after its beginning, at most."""
PAUSE_MS_MAX: Final = 60_000
JUMP_MS_MAX: Final = 3_600_000


class Mischief:
    """Makes things happen."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.dice = world.dice
        self.counts: dict[str, int] = {}

    def begin(self) -> None:
        """Every kind that happens by itself gets its first time."""
        for kind in ACTS:
            if self.world.weather.rates.get(kind):
                self._plan(kind)

    def _plan(self, kind: str) -> None:
        rate = self.world.weather.rate(kind)
        if rate:
            self.world.line.after(1 + int(self.dice.expovariate(rate / HOUR_MS)), self._happen, kind)

    def _happen(self, kind: str) -> None:
        if not self.world.weather.calm:
            self.counts[kind] = self.counts.get(kind, 0) + 1
            self.world.trace("fault", kind)
            ACTS[kind](self)
            if kind in LASTING and self.dice.random() < self.world.weather.rate("crash-amid"):
                self.world.line.after(self.dice.randint(0, AMID_MS_MAX), self._crash_amid)
            self._plan(kind)

    def _crash_amid(self) -> None:
        if not self.world.weather.calm:
            self.counts["crash-amid"] = self.counts.get("crash-amid", 0) + 1
            self.world.lead.end("was killed in the middle")

    # --- machines ----------------------------------------------------------------------------------------------------

    def _worker_crash(self) -> None:
        node = self.dice.choice(self.world.node_list)
        workers = node.live_workers()
        if workers:
            seen = self.dice.random() >= self.world.weather.rate("worker-zombie")
            node.end_worker(self.dice.choice(workers), unseen_ms=0 if seen else self.dice.randint(0, 60_000))

    def _worker_hang(self) -> None:
        node = self.dice.choice(self.world.node_list)
        workers = [worker for worker in node.live_workers() if not worker.stopped]
        if workers:
            worker = self.dice.choice(workers)
            node.hang_worker(worker)
            self.world.line.after(self.dice.randint(1_000, HANG_MS_MAX), node.wake_worker, worker)

    def _worker_stuck(self) -> None:
        """One worker, seldom several, is stopped and never goes on."""
        node = self.dice.choice(self.world.node_list)
        workers = node.live_workers()
        count = len(workers) if self.dice.random() < 0.1 else 1
        for worker in self.dice.sample(workers, min(count, len(workers))):
            node.hang_worker(worker, for_ever=True)

    def _workers_stall(self) -> None:
        """The machine is overloaded: most workers stand still, and go on together."""
        node = self.dice.choice(self.world.node_list)
        workers = [worker for worker in node.live_workers() if not worker.stopped and self.dice.random() < 0.9]
        duration_ms = self.dice.randint(1_000, STALL_MS_MAX)
        for worker in workers:
            node.hang_worker(worker)
            self.world.line.after(duration_ms + self.dice.randint(0, TOGETHER_MS), node.wake_worker, worker)

    def _workers_die(self) -> None:
        """Most workers of a machine die at once."""
        node = self.dice.choice(self.world.node_list)
        for worker in node.live_workers():
            if self.dice.random() < 0.9:
                self.world.line.after(self.dice.randint(0, TOGETHER_MS), node.end_worker, worker)

    def _workers_futile(self) -> None:
        """No worker comes up for a while, and those that are there fall."""
        node = self.dice.choice(self.world.node_list)
        node.sicken(self.dice.randint(1_000, SICK_MS_MAX))
        workers = node.live_workers()
        for worker in self.dice.sample(workers, self.dice.randint(0, len(workers))):
            node.end_worker(worker)

    def _tmux_death(self) -> None:
        self.dice.choice(self.world.node_list).lose_tmux()

    def _courier_death(self) -> None:
        node = self.dice.choice(self.world.node_list)
        if node.viewers:
            self.dice.choice(node.viewers).die()

    def _node_reboot(self) -> None:
        self.dice.choice(self.world.node_list).reboot()

    def _node_disk_full(self) -> None:
        node = self.dice.choice(self.world.node_list)
        node.disk_full = True
        self.world.line.after(self.dice.randint(1_000, DISK_FULL_MS_MAX), node.make_room)

    def _partition(self) -> None:
        self.world.nets[self.dice.choice(self.world.node_list).id].block(("there", "back"), self.dice.randint(100, PARTITION_MS_MAX))

    def _one_way(self) -> None:
        way = self.dice.choice(("there", "back"))
        self.world.nets[self.dice.choice(self.world.node_list).id].block((way,), self.dice.randint(100, PARTITION_MS_MAX))

    def _ledger_full(self) -> None:
        self.world.ledger.fill(self.world.line.now_ms)

    def _ledger_flip(self) -> None:
        self.world.ledger.flip_bit()

    def _coordinator_crash(self) -> None:
        self.world.lead.end("was killed")

    def _coordinator_twice(self) -> None:
        """The leader seems dead, another takes over, and the first goes on: at once, or after a pause."""
        old = self.world.lead
        if not old.alive or old.finished:
            return
        if self.dice.random() < 0.5:
            old.paused = True
            self.world.line.after(self.dice.randint(1, PAUSE_MS_MAX), old.resume)
        self.world.take_over()

    def _clock_jump(self) -> None:
        self.world.clock.jump(self.dice.randint(-JUMP_MS_MAX, JUMP_MS_MAX))

    # --- people ------------------------------------------------------------------------------------------------------

    def _windows(self) -> None:
        node = self.dice.choice(self.world.node_list)
        if node.windows:
            node.close_window(self.dice.choice(list(node.windows)))

    def _cancel(self) -> None:
        state = self.world.checker.shadow
        if state.plans and self.dice.random() < 0.2:
            self.world.wish(c.CancelPlan(self.dice.choice(list(state.plans)), "somebody changed their mind"))
        elif state.tasks:
            self.world.wish(c.CancelTask(self.dice.choice(list(state.tasks)), "somebody changed their mind"))

    def _retry(self) -> None:
        over = (TaskStatus.FAILED, TaskStatus.CANCELLED)
        found = [task.id for task in self.world.checker.shadow.tasks.values() if task.status in over]
        if found:
            self.world.wish(c.RetryTask(self.dice.choice(found)))

    def _restart(self) -> None:
        agents = list(self.world.checker.shadow.agents.values())
        troubled = [agent for agent in agents if agent.status is AgentStatus.ERROR] or agents
        if troubled:
            self.world.wish(c.RestartAgent(self.dice.choice(troubled).id))

    def _scale(self) -> None:
        target = self.dice.randint(0, len(self.world.fleet))
        there = self.world.checker.shadow.agents
        staying = sum(agent.status is not AgentStatus.DRAINING for agent in there.values())
        additions = [agent for agent in self.world.fleet if agent.id not in there][: max(0, target - staying)]
        strategy = "gradual" if self.dice.random() < 0.7 else "immediate"
        self.world.wish(c.Scale(staying + len(additions) if additions else min(target, staying), strategy, tuple(additions)))

    def _node(self) -> None:
        """Somebody adds a machine, with agents or without, drains one, uses it again, or removes it."""
        world, dice = self.world, self.dice
        state = world.checker.shadow
        unknown = [spec for spec in world.machines if spec.id not in state.nodes]
        match dice.choice(("add", "drain", "drain", "resume", "remove", "change")):
            case "add" if unknown:
                spec = dice.choice(unknown)
                world.take_up(spec)
                self._populate(spec.id)
            case "drain" if state.nodes:
                world.wish(c.DrainNode(dice.choice(list(state.nodes))))
            case "resume" if drained := [node.spec.id for node in state.nodes.values() if node.draining]:
                node = dice.choice(drained)
                world.wish(c.ResumeNode(node))
                self._populate(node)
            case "remove" if state.nodes:
                world.wish(c.RemoveNode(dice.choice(list(state.nodes)), force=dice.random() < 0.5))
            case "change" if state.nodes:
                spec = state.nodes[dice.choice(list(state.nodes))].spec
                world.wish(c.AddNode(msgspec.structs.replace(spec, max_agents=dice.choice((5, 250)), weight=dice.choice((50, 100)))))
            case _:
                pass

    def _populate(self, node: NodeId) -> None:
        """Asks for new slots on a machine."""
        there = self.world.checker.shadow.agents
        staying = sum(agent.status is not AgentStatus.DRAINING for agent in there.values())
        first = max((*there, len(self.world.fleet))) + 1
        new = tuple(AgentSpec(AgentId(first + index), node) for index in range(self.dice.randint(0, 5)))
        if new:
            self.world.wish(c.Scale(staying + len(new), self.dice.choice(("gradual", "immediate")), new))

    def _shutdown(self) -> None:
        graceful = self.dice.random() < 0.7
        self.world.wish(c.ShutDown(self.dice.random() < 0.5, graceful, self.dice.randint(1_000, 300_000)))


ACTS: Final[dict[str, Callable[[Mischief], None]]] = {
    "worker-crash": Mischief._worker_crash,
    "worker-hang": Mischief._worker_hang,
    "worker-stuck": Mischief._worker_stuck,
    "workers-stall": Mischief._workers_stall,
    "workers-die": Mischief._workers_die,
    "workers-futile": Mischief._workers_futile,
    "tmux-death": Mischief._tmux_death,
    "courier-death": Mischief._courier_death,
    "node-reboot": Mischief._node_reboot,
    "node-disk-full": Mischief._node_disk_full,
    "net-partition": Mischief._partition,
    "net-one-way": Mischief._one_way,
    "ledger-full": Mischief._ledger_full,
    "ledger-flip": Mischief._ledger_flip,
    "coordinator-crash": Mischief._coordinator_crash,
    "coordinator-twice": Mischief._coordinator_twice,
    "clock-jump": Mischief._clock_jump,
    "human-windows": Mischief._windows,
    "human-cancel": Mischief._cancel,
    "human-retry": Mischief._retry,
    "human-restart": Mischief._restart,
    "human-scale": Mischief._scale,
    "human-node": Mischief._node,
    "human-shutdown": Mischief._shutdown,
}
"""Kinds that happen by themselves; all others happen on occasions, where they are asked for."""

LASTING: Final = (
    "worker-stuck",
    "workers-stall",
    "workers-die",
    "workers-futile",
    "node-reboot",
    "node-disk-full",
    "human-scale",
    "human-node",
)
"""Kinds that take a while to get over: a coordinator may be killed in the middle of that."""
