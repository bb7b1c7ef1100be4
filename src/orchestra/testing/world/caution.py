"""What must never be done to workers and machines in trouble, by the world's own books: who was looked at, asked and told what, and when.

A part of the checker. The ledger says what was decided, the calls of a driver say what was tried, and the machines say what was true.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus, Outcome, OutcomeKind, Worker
from orchestra.core.state import AgentState, State
from orchestra.errors import InvariantBroken
from orchestra.ids import AgentId, AttemptId, NodeId
from orchestra.testing.world.options import HOUR_MS

if TYPE_CHECKING:
    from orchestra.testing.world.coordinator import SimCoordinator
    from orchestra.testing.world.node import SimNode
    from orchestra.testing.world.worker import SimWorker
    from orchestra.testing.world.world import World

DOES_NOT_LEAVE: Final = "its worker does not leave"
"""Suspicion of a worker that may well answer: it was asked to make room and is still there."""
GONE: Final = "its worker is gone"
"""What is said of a worker that was looked for and not found."""
WORKED_FOR: Final = ("open_windows", "order", "reap", "kill_worker", "stop_attempt")
"""What is done on a node for the sake of the fleet; after the node's removal nothing of it is."""


def broken(name: str, what: str) -> InvariantBroken:
    """Returns the error for a rule that does not hold."""
    return InvariantBroken(f"{name}: {what}")


class Caution:
    """The rules INV-SIGHT, INV-LADDER, INV-BREAKER, INV-TRIAL, INV-BLAME, INV-NODE and INV-RESERVE, and the books they need."""

    def __init__(self, world: World, shadow: State) -> None:
        self.world = world
        self.shadow = shadow
        self._setbacks: dict[AgentId, int] = {}
        """Workers a slot has lost in a row for which it may be blamed."""
        self._answers: dict[tuple[AgentId, Worker], int] = {}
        """Workers that were heard again, and when the leader took that in."""
        self._hidden_ms: dict[NodeId, int] = {}
        """Ledger time from which a node has been out of sight or not to be trusted."""
        self._changed_ms: dict[NodeId, int] = {}
        """World time at which a node's breaker last changed, or the node was removed."""
        self._suspected_ms: dict[AgentId, int] = {}
        """World time at which the suspicion of a slot last changed."""
        self._trials: dict[NodeId, AgentId | AttemptId | None] = {}
        self._made_room = False
        """Whether the worker that was lost last had been asked to make room for another: that is no fall."""
        self._fell_ms: dict[AgentId, int] = {}
        self._outages: dict[NodeId, str] = {}
        """Machines on which most workers have just fallen together."""
        self._pairs: dict[AgentId, AgentId] = {}
        """The slot that was given up, by the slot that took its place."""

    # --- the ledger: what an event meets -----------------------------------------------------------------------------

    def before(self, event: e.Event, at_ms: int) -> None:
        """What must hold of the state an event meets."""
        match event:
            case e.CoordinatorStarted():
                self._answers.clear()
            case e.AgentLost(agent, reason):
                slot = self.shadow.agents[agent]
                self._check_gone(slot, reason)
                self._made_room = slot.status is AgentStatus.STARTING and slot.worker is not None
            case e.RecoveryStepTaken(agent, step):
                self._check_step(self.shadow.agents[agent], step, at_ms)
            case e.AgentSuspended(agent, reason):
                self._check_suspended(self.shadow.agents[agent], reason, at_ms)
            case e.AttemptAssigned(task, number, agent):
                self._check_assigned(AttemptId(task, number), agent, at_ms)
            case e.AgentAdded(agent) if self.shadow.nodes[agent.node].draining and self.shadow.lifecycle is not Lifecycle.INITIALIZING:
                raise broken("INV-NODE", f"{agent.node} is drained and gets agent {agent.id}")
            case e.BreakerProbing(node, _):
                trial = self._trials.get(node)
                if isinstance(trial, AttemptId) and self._is_tried(trial):
                    raise broken("INV-TRIAL", f"another trial of {node} begins before that of {trial} is over")
            case e.BreakerTripped(node) if self.shadow.nodes[node].breaker is None and self.shadow.nodes[node].status is NodeStatus.READY:
                self._hidden_ms[node] = at_ms
            case e.NodeLost(node, still=False):
                self._hidden_ms[node] = at_ms
            case _:
                pass

    def _check_step(self, agent: AgentState, step: str, at_ms: int) -> None:
        """INV-LADDER: one rung after the other, each in its time, and none for a worker that answers."""
        doubt, name = agent.suspicion, f"agent {agent.id}"
        if doubt is None or at_ms < doubt.next_ms:
            raise broken("INV-LADDER", f"{name} gets step {step!r} too early")
        if step == "graceful" and doubt.strikes < self.world.policy.strikes_max:
            raise broken("INV-LADDER", f"{name} is asked to leave after {doubt.strikes} looks")
        if step == "forced" and doubt.step not in ("graceful", "forced"):
            raise broken("INV-LADDER", f"{name} is to be killed and was not asked to leave")
        breaker = self.shadow.nodes[agent.spec.node].breaker
        if breaker is not None and not (breaker.probing and breaker.canary == agent.id):
            raise broken("INV-BREAKER", f"{name} gets step {step!r} while {agent.spec.node} is in trouble")
        self._check_silent(agent, at_ms)

    def _check_gone(self, agent: AgentState, reason: str) -> None:
        """INV-SIGHT, against the truth: whoever was not found on a node is not there."""
        slot = self.world.nodes[agent.spec.node].slots.get(agent.id)
        holder = None if slot is None else slot.holder
        if reason == GONE and agent.worker is not None and holder is not None and holder.identity == agent.worker:
            raise broken("INV-SIGHT", f"worker {agent.worker} of agent {agent.id} is taken for dead and holds the slot")

    def _check_silent(self, agent: AgentState, at_ms: int) -> None:
        heard_ms = None if agent.worker is None else self._answers.get((agent.id, agent.worker))
        if heard_ms is not None and heard_ms < at_ms and agent.reason != DOES_NOT_LEAVE:
            raise broken("INV-LADDER", f"agent {agent.id} is taken for silent and answered {at_ms - heard_ms} ms ago")

    def _check_suspended(self, agent: AgentState, reason: str, at_ms: int) -> None:
        """INV-BLAME: a slot is given up for what happened to it alone."""
        node = self.shadow.nodes[agent.spec.node]
        tried = agent.suspicion is not None and node.breaker is not None and node.breaker.canary == agent.id
        if node.breaker is not None and not tried:
            raise broken("INV-BLAME", f"agent {agent.id} is given up while {node.spec.id} is in trouble: {node.breaker.cause}")
        if agent.suspicion is not None and agent.suspicion.step == "forced":
            self._check_silent(agent, at_ms)
        elif self._setbacks.get(agent.id, 0) < self.world.policy.falls_max:
            raise broken("INV-BLAME", f"agent {agent.id} is given up after {self._setbacks.get(agent.id, 0)} workers of its own: {reason}")

    def _check_assigned(self, attempt: AttemptId, agent: AgentId, at_ms: int) -> None:
        node = self.shadow.nodes[self.shadow.agents[agent].spec.node]
        if node.draining:
            raise broken("INV-NODE", f"{node.spec.id} is drained and gets {attempt}")
        if node.breaker is None:
            return
        if not node.breaker.probing:
            raise broken("INV-BREAKER", f"{node.spec.id} gets {attempt} while nothing is to be started there")
        trial = self._trials.get(node.spec.id)
        if trial is None:
            self._trials[node.spec.id] = attempt
        elif not isinstance(trial, AttemptId) or not self._are_replicas(trial, attempt, at_ms):
            raise broken("INV-TRIAL", f"{node.spec.id} gets {attempt} beside the trial of {trial}")

    def _are_replicas(self, first: AttemptId, other: AttemptId, at_ms: int) -> bool:
        """The replicas of a task begin together or not at all: they are one trial."""
        return first.task == other.task and self.shadow.tasks[first.task].attempts[first.number - 1].assigned_ms == at_ms

    def _is_tried(self, attempt_id: AttemptId) -> bool:
        task = self.shadow.tasks.get(attempt_id.task)
        attempt = None if task is None else task.attempt(attempt_id.number)
        return attempt is not None and attempt.live and not attempt.pid

    def check_given_up(self, attempt_id: AttemptId, outcome: Outcome, at_ms: int) -> bool:
        """INV-ONE: an end that nobody has seen is declared only after the grace. Returns whether this is such an end."""
        attempt = self.shadow.tasks[attempt_id.task].attempts[attempt_id.number - 1]
        node = self.shadow.nodes[attempt.node]
        if outcome.kind is not OutcomeKind.LOST:
            return False
        if "did not stop within" in outcome.reason:
            return True
        if "was removed" in outcome.reason:
            if node.status is not NodeStatus.LOST:
                raise broken("INV-NODE", f"{attempt_id} is given up with {node.spec.id}, which is in sight")
            return True
        if "out of sight" in outcome.reason:
            hidden = node.status is NodeStatus.LOST or node.breaker is not None
            hidden_ms = at_ms - self._hidden_ms.get(node.spec.id, at_ms)
            if not hidden or hidden_ms <= self.world.policy.unknown_grace_ms:
                raise broken("INV-ONE", f"{attempt_id} is given up after {hidden_ms} ms in which {node.spec.id} could not be trusted")
            return True
        return False

    # --- the ledger: what an event leaves ----------------------------------------------------------------------------

    def after(self, event: e.Event, at_ms: int) -> None:
        """Keeps the books, and checks what must hold of the state an event leaves."""
        now_ms = self.world.line.now_ms
        if isinstance(event, e.AgentLost) and not self._made_room:
            self._note_outage(event.agent, at_ms)
        match event:
            case e.AgentLost(agent) if self.shadow.agents[agent].status is not AgentStatus.DRAINING and not self._made_room:
                self._count_fall(agent)
            case e.AgentRestarted(agent) | e.AgentRemoved(agent):
                self._setbacks[agent] = 0
                if isinstance(event, e.AgentRemoved):
                    self._fell_ms.pop(agent, None)
                    self._pairs = {by: given_up for by, given_up in self._pairs.items() if agent not in (by, given_up)}
                    self._trials = {node: None if trial == agent else trial for node, trial in self._trials.items()}
            case e.AttemptEnded(task, number, outcome) if outcome.kind is not OutcomeKind.LOST:
                self._setbacks[self.shadow.tasks[task].attempts[number - 1].agent] = 0
            case e.BreakerTripped(node):
                self._outages.pop(node, None)
                for each in self.shadow.agents_on(node):
                    self._setbacks[each.id] = 0
            case e.AgentReplaced(agent, by):
                self._pairs[by] = agent
                self._check_reserve()
            case e.NodeRemoved(node):
                self.world.nodes[node].abandoned = True
            case e.Terminated():
                for books in (self._setbacks, self._pairs, self._fell_ms, self._outages):
                    books.clear()
                for known in self.shadow.nodes.values():
                    self.world.nodes[known.spec.id].replay_from = known.journal_offset
            case _:
                pass
        match event:
            case e.AgentSuspected(agent) | e.AgentCleared(agent) | e.AgentReady(agent) | e.AgentLost(agent) | e.AgentRestarted(agent):
                self._suspected_ms[agent] = now_ms
            case e.BreakerTripped(node) | e.BreakerReset(node) | e.NodeConnected(node) | e.NodeRemoved(node):
                self._changed_ms[node], self._trials[node] = now_ms, None
            case e.BreakerProbing(node, tried):
                self._changed_ms[node], self._trials[node] = now_ms, tried
            case _:
                pass

    def _note_outage(self, agent: AgentId, at_ms: int) -> None:
        self._fell_ms[agent] = at_ms
        node = self.shadow.nodes[self.shadow.agents[agent].spec.node]
        slots = self.shadow.agents_on(node.spec.id)
        fallen = sum(at_ms - self._fell_ms.get(slot.id, -HOUR_MS) <= self.world.policy.outage_window_ms for slot in slots)
        most = fallen >= self.world.policy.outage_agents_min and 2 * fallen > len(slots)
        if most and node.breaker is None and node.status is NodeStatus.READY:
            self._outages[node.spec.id] = f"{fallen} of {len(slots)}"

    def after_append(self) -> None:
        """INV-BLAME: what happens to most workers of a machine at once is the machine's."""
        for node, count in self._outages.items():
            raise broken("INV-BLAME", f"{count} workers of {node} fell at once, and nothing is made of it")

    def _count_fall(self, agent: AgentId) -> None:
        """INV-FALLS: a slot whose workers fall one after the other is given up. What falls while the machine is in trouble falls with it."""
        if self.shadow.nodes[self.shadow.agents[agent].spec.node].breaker is not None:
            return
        self._setbacks[agent] = self._setbacks.get(agent, 0) + 1
        if self._setbacks[agent] > self.world.policy.falls_max:
            raise broken("INV-FALLS", f"agent {agent} was given {self._setbacks[agent]} workers in a row, none of which did anything")

    def _check_reserve(self) -> None:
        """INV-RESERVE: no more slots stand in for others than the reserve has."""
        if len(self._pairs) > self.world.policy.reserve:
            raise broken("INV-RESERVE", f"{len(self._pairs)} slots stand in for others, the reserve has {self.world.policy.reserve}")

    # --- what the leader is told, and what it tries ------------------------------------------------------------------

    def told(self, owner: SimCoordinator, command: c.Command, now_ms: int) -> None:
        """The leader takes in that a worker is heard again, or no longer."""
        if owner.term != self.shadow.term or not isinstance(command, c.BeatBack | c.BeatMissed) or command.worker is None:
            return
        if isinstance(command, c.BeatBack):
            self._answers[command.agent, command.worker] = now_ms
        else:
            self._answers.pop((command.agent, command.worker), None)

    def check_call(self, owner: SimCoordinator, name: NodeId, method: str, arguments: tuple[Any, ...]) -> None:
        """What a driver may try, measured by what its coordinator knew for certain a moment before."""
        if owner is not self.world.lead or owner.term != self.world.ledger.store_term():
            return  # it does not know yet that another leads
        now_ms = self.world.line.now_ms
        node = self.shadow.nodes.get(name)
        if self._changed_ms.get(name) == now_ms:
            return
        if node is None:
            if method in WORKED_FOR:
                raise broken("INV-NODE", f"{name} was removed and is asked to {method}")
            return
        if method == "kill_worker":
            self._check_kill(*arguments)
        if node.breaker is None or node.status is not NodeStatus.READY:
            return
        if method == "reap":
            raise broken("INV-BREAKER", f"{arguments[0]} is reaped on {name}, which is in trouble: {node.breaker.cause}")
        if method == "open_windows":
            for window in arguments[0]:
                if not node.breaker.probing or window.agent != node.breaker.canary:
                    raise broken("INV-BREAKER", f"agent {window.agent} is started on {name}, which is in trouble: {node.breaker.cause}")

    def _check_kill(self, number: AgentId, worker: Worker) -> None:
        """INV-LADDER: whoever answers again is not killed for having been silent."""
        agent = self.shadow.agents.get(number)
        if agent is None or agent.worker != worker or self._suspected_ms.get(number) == self.world.line.now_ms:
            return
        if agent.suspicion is None or agent.suspicion.step != "forced":
            raise broken("INV-LADDER", f"worker {worker} of agent {number} is killed and is not suspected of anything")

    def check_killed(self, node: SimNode, worker: SimWorker) -> None:
        """INV-LADDER, against the truth: a worker that was stopped is killed only after somebody looked and asked."""
        if worker.stopped and not (worker.looks and worker.asked_to_leave):
            raise broken(
                "INV-LADDER", f"{worker.identity} on {node.id} is killed after {worker.looks} looks, asked: {worker.asked_to_leave}"
            )
