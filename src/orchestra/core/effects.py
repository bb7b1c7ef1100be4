"""What has to be done outside because of an event: orders to drivers, as values.

An effect is started only after its event is in the ledger. Each is idempotent by what it names (an attempt's number, an agent's slot), and `seq` says
which event asked for it. None has to be remembered: after a crash, comparing the state with what the nodes have yields them again (`engine.reconcile`).
"""

from __future__ import annotations

import msgspec

from orchestra.core import events as e
from orchestra.core.model import AgentStatus, NodeStatus, OutcomeKind, Worker
from orchestra.core.state import State
from orchestra.ids import AgentId, NodeId, TaskId


class Effect(msgspec.Struct, frozen=True):
    """Base of all effects."""

    seq: int


class NodeEffect(Effect, frozen=True):
    """Base of what is done on one node."""

    node: NodeId


class OpenAgents(NodeEffect, frozen=True):
    """Make windows with workers for these slots, where there are none."""

    agents: tuple[AgentId, ...]


class CloseAgent(NodeEffect, frozen=True):
    """Let the slot's worker leave when it is idle (`now`: stop what it has first), then remove its window."""

    agent: AgentId
    now: bool


class RemoveWindow(NodeEffect, frozen=True):
    """The slot is gone: so is its window."""

    agent: AgentId


class ProbeAgent(NodeEffect, frozen=True):
    """Look whether the slot's worker is still there."""

    agent: AgentId


class KillWorker(NodeEffect, frozen=True):
    """End a worker that does not answer. Its `worker-gone` notice follows."""

    agent: AgentId
    worker: Worker


class SweepNode(NodeEffect, frozen=True):
    """Look at everything on the node."""


class StartAttempt(NodeEffect, frozen=True):
    agent: AgentId
    task: TaskId
    attempt: int


class StopAttempt(NodeEffect, frozen=True):
    agent: AgentId
    task: TaskId
    attempt: int
    reason: str


class ReapAttempt(NodeEffect, frozen=True):
    """End whatever a dead worker left of the attempt, and say so in the journal."""

    task: TaskId
    attempt: int


class MergeWork(Effect, frozen=True):
    """Bring what the attempt did into the plan's branch."""

    task: TaskId
    attempt: int


class DropWork(Effect, frozen=True):
    """Let go of what an attempt did that came to nothing; what is not merged is kept where a person finds it."""

    task: TaskId
    attempt: int


class KeepResult(Effect, frozen=True):
    """Write the task's result files for people and programs."""

    task: TaskId


class Finish(Effect, frozen=True):
    """The orchestra has ended: close all windows and stop the coordinator."""


def effects_of(state: State, event: e.Event, seq: int) -> tuple[Effect, ...]:
    """Returns the effects of an event; `state` is the state after its append."""
    match event:
        case e.AttemptAssigned(task, attempt, agent):
            return (StartAttempt(seq, _node_of(state, task, attempt), agent, task, attempt),)
        case e.AttemptStopRequested(task, attempt, reason):
            owner = state.tasks[task].attempts[attempt - 1]
            return (StopAttempt(seq, owner.node, owner.agent, task, attempt, reason),)
        case e.AttemptLostSight(task, attempt):
            node = _node_of(state, task, attempt)
            return (ReapAttempt(seq, node, task, attempt),) if may_act(state, node) else ()
        case e.TaskMerging(task, attempt):
            return (MergeWork(seq, task, attempt),)
        case e.AttemptEnded(task, attempt, outcome):
            spec = state.tasks[task].spec
            unwanted = spec.isolated and (outcome.kind is not OutcomeKind.DONE or spec.reviews is not None)
            return (DropWork(seq, task, attempt),) if unwanted else ()
        case e.TaskCompleted(task) | e.TaskFailed(task) | e.TaskCancelled(task) | e.TaskSentBack(task):
            judged = state.tasks[task].spec.reviews if state.tasks[task].spec.judges else None  # whose result says how it was judged
            kept = (KeepResult(seq, task), *(() if judged is None else (KeepResult(seq, judged),)))
            return kept if isinstance(event, e.TaskSentBack) else (*kept, *_unwanted(state, seq, task))
        case e.AgentAdded(agent):
            return (
                (OpenAgents(seq, agent.node, (agent.id,)),) if agent.id in state.agents and state.nodes[agent.node].breaker is None else ()
            )
        case e.AgentLost(agent_id) | e.AgentRestarted(agent_id):
            agent_state = state.agents.get(agent_id)
            if agent_state is None:
                return ()
            if agent_state.status is AgentStatus.DRAINING:
                return ()  # it is leaving and gets no other worker
            node = agent_state.spec.node
            restarted = isinstance(event, e.AgentRestarted) and agent_state.worker is not None
            close = (CloseAgent(seq, node, agent_id, now=True),) if restarted else ()
            return (*close, OpenAgents(seq, node, (agent_id,))) if state.nodes[node].breaker is None else close
        case e.RecoveryStepTaken(agent_id, step):
            return _step(state, seq, agent_id, step)
        case e.BreakerProbing(node, canary):
            return (SweepNode(seq, node), *((OpenAgents(seq, node, (canary,)),) if canary is not None else ()))
        case e.BreakerReset(node):
            return (SweepNode(seq, node),)
        case e.AgentReady(agent_id) | e.AgentDraining(agent_id):
            draining = state.agents.get(agent_id)
            return (
                (CloseAgent(seq, draining.spec.node, agent_id, now=False),) if draining and draining.status is AgentStatus.DRAINING else ()
            )
        case e.AgentRemoved(agent_id, node):
            return (RemoveWindow(seq, node, agent_id),)
        case e.Terminated():
            return (Finish(seq),)
        case _:
            return ()


def may_act(state: State, node: NodeId) -> bool:
    """While a node's breaker is tripped, nothing is ended for dead on it: what looks dead may only be out of sight."""
    known = state.nodes.get(node)  # it may have been removed in the same append
    return known is not None and known.status is NodeStatus.READY and known.breaker is None


def _step(state: State, seq: int, agent_id: AgentId, step: str) -> tuple[Effect, ...]:
    agent = state.agents.get(agent_id)
    if agent is None:
        return ()
    node = agent.spec.node
    if step == "probe":
        return (ProbeAgent(seq, node, agent_id),)
    if step == "graceful":
        return (CloseAgent(seq, node, agent_id, now=True),)
    return () if agent.worker is None else (KillWorker(seq, node, agent_id, agent.worker),)


def _unwanted(state: State, seq: int, name: TaskId) -> tuple[Effect, ...]:
    """What verified attempts of the last round did that is not, or no more, to be merged: replicas that were beaten, work of a task that was cancelled."""
    task = state.tasks[name]
    if not task.spec.isolated:
        return ()
    verified = [each.number for each in task.attempts[task.round_start - 1 :] if each.outcome and each.outcome.kind is OutcomeKind.DONE]
    return tuple(DropWork(seq, name, number) for number in verified if number != task.primary)


def _node_of(state: State, task: TaskId, attempt: int) -> NodeId:
    return state.tasks[task].attempts[attempt - 1].node
