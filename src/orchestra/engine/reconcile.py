"""Desired against observed: what has to be said and done after a node has been looked at.

Pure. It is asked whenever a node is connected and at every sweep; because it compares and remembers nothing, it is also all the recovery there is: a
coordinator that was killed at any point starts again, folds the ledger, looks, and goes on from here.
"""

from __future__ import annotations

import msgspec

from orchestra.core import commands as c
from orchestra.core.effects import CloseAgent, Effect, OpenAgents, ReapAttempt, RemoveWindow, StartAttempt, StopAttempt
from orchestra.core.model import AgentStatus
from orchestra.core.state import AgentState, AttemptState, State
from orchestra.engine.translate import Translator
from orchestra.ids import AgentId, AttemptId, NodeId
from orchestra.node import AttemptFacts, Inventory, WorkerFacts


class Difference(msgspec.Struct, frozen=True):
    """What to tell the core, and what to do."""

    commands: tuple[c.Command, ...]
    effects: tuple[Effect, ...]


def expected_attempts(state: State, node: NodeId) -> list[AttemptId]:
    """Returns the attempts that should be on the node."""
    return [attempt_id for attempt_id, attempt in state.live_attempts() if attempt.node == node]


def reconcile(state: State, node: NodeId, found: Inventory, translator: Translator) -> Difference:
    """Compares the state with what was found on the node."""
    commands: list[c.Command] = []
    effects: list[Effect] = []
    seen = {worker.agent: worker for worker in found.workers}
    workers = {worker.agent: worker for worker in found.workers if worker.alive}
    missing: list[AgentId] = []
    slots = state.agents_on(node)
    for agent in slots:
        commands += _worker_news(agent, seen.get(agent.id))
        if agent.status is AgentStatus.ERROR:
            continue  # it fell too often: it gets no worker until somebody asks
        if agent.status is AgentStatus.DRAINING and agent.id in workers:
            effects.append(CloseAgent(state.seq, node, agent.id, now=False))  # the worker that was asked may have died of something else
        if agent.status is AgentStatus.DRAINING:
            continue  # what it has goes on without a window, and nothing more comes
        if agent.id not in found.windows or (agent.id not in workers and agent.status is AgentStatus.STARTING):
            missing.append(agent.id)
    facts = {each.attempt: each for each in found.attempts}
    for attempt_id, attempt in state.live_attempts():
        if attempt.node == node:
            _attempt_news(attempt_id, attempt, facts.get(attempt_id), workers, translator, commands, effects)
    for worker in workers.values():
        if worker.attempt is not None and not _is_live(state, worker.attempt):
            effects.append(StopAttempt(state.seq, node, worker.agent, *worker.attempt, "superseded"))  # noqa: PERF401 - reads as the others
    ours = {agent.id for agent in slots}
    effects += [CloseAgent(state.seq, node, number, now=True) for number in workers if number not in ours]
    effects += [RemoveWindow(state.seq, node, number) for number in found.windows if number not in ours]
    if missing:
        effects.append(OpenAgents(state.seq, node, tuple(missing)))
    return Difference(tuple(commands), tuple(effects))


def _worker_news(agent: AgentState, worker: WorkerFacts | None) -> list[c.Command]:
    if worker is not None and worker.alive and worker.worker is not None:
        return [c.WorkerSeen(agent.id, worker.worker)]
    if worker is not None and agent.worker is not None and worker.worker not in (None, agent.worker):
        return []  # what was found is an earlier worker: the present one came after we looked
    if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.OFFLINE, AgentStatus.DRAINING):
        return [c.WorkerFell(agent.id, agent.worker, "its worker is gone")]
    return []


def _attempt_news(
    attempt_id: AttemptId,
    attempt: AttemptState,
    facts: AttemptFacts | None,
    workers: dict[AgentId, WorkerFacts],
    translator: Translator,
    commands: list[c.Command],
    effects: list[Effect],
) -> None:
    seq, node, (task, number) = 0, attempt.node, attempt_id
    worker = workers.get(attempt.agent)
    if facts is not None and facts.done is not None:
        finished = translator.finished(attempt_id, facts.done)
        commands += [] if finished is None else [finished]
    elif facts is not None and facts.state == "claimed":
        in_hand = worker is not None and worker.attempt == attempt_id
        if in_hand or (facts.alive and worker is not None):
            commands.append(c.AttemptSeen(task, number))
            if attempt.stop_reason:
                effects.append(StopAttempt(seq, node, attempt.agent, task, number, attempt.stop_reason))
        else:
            effects.append(ReapAttempt(seq, node, task, number))
    elif worker is None or attempt.stop_reason:
        effects.append(ReapAttempt(seq, node, task, number))
    else:
        effects.append(StartAttempt(seq, node, attempt.agent, task, number))


def _is_live(state: State, attempt_id: AttemptId) -> bool:
    task = state.tasks.get(attempt_id.task)
    attempt = None if task is None else task.attempt(attempt_id.number)
    return attempt is not None and attempt.live
