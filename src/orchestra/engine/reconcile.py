"""Desired against observed: what has to be said and done after a node has been looked at.

Pure. It is asked whenever a node is connected and at every sweep; because it compares and remembers nothing, it is also all the recovery there is: a
coordinator that was killed at any point starts again, folds the ledger, looks, and goes on from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from orchestra.core import commands as c
from orchestra.core.effects import CloseAgent, Effect, KillWorker, OpenAgents, ReapAttempt, RemoveWindow, StartAttempt, StopAttempt
from orchestra.core.model import AgentStatus, Worker
from orchestra.core.state import AgentState, AttemptState, State
from orchestra.engine.translate import Translator
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.node import AttemptFacts, Inventory, WorkerFacts

BEAT_MISSED_MS: Final = 5_000
"""Age of its last heartbeat from which a worker counts as silent, as for the courier."""


class Expected(msgspec.Struct, frozen=True):
    """What was believed of a node just before it was looked at. What has changed since then is not compared: the look is older than the change."""

    attempts: tuple[AttemptId, ...]
    slots: dict[AgentId, tuple[Worker | None, Worker | None, TaskId | None, int]]


def expected(state: State, node: NodeId) -> Expected:
    """Returns what should be on the node now."""
    attempts = tuple(attempt_id for attempt_id, attempt in state.live_attempts() if attempt.node == node)
    return Expected(attempts, {agent.id: _mark(agent) for agent in state.agents_on(node)})


def _mark(agent: AgentState) -> tuple[Worker | None, Worker | None, TaskId | None, int]:
    return agent.worker, agent.fallen, agent.task, agent.attempt


class Difference(msgspec.Struct, frozen=True):
    """What to tell the core, and what to do."""

    commands: tuple[c.Command, ...]
    effects: tuple[Effect, ...]


def reconcile(state: State, node: NodeId, found: Inventory, translator: Translator, before: Expected | None = None) -> Difference:
    """Compares the state with what was found on the node.

    Args:
        before: What was expected when the look began; slots that differ from it now are left for the next look.
    """
    if node not in state.nodes:
        return Difference((), ())
    commands: list[c.Command] = []
    effects: list[Effect] = []
    seen = {worker.agent: worker for worker in found.workers}
    workers = {worker.agent: worker for worker in found.workers if worker.alive}
    missing: list[AgentId] = []
    slots = state.agents_on(node)
    moved = set() if before is None else {agent.id for agent in slots if before.slots.get(agent.id) != _mark(agent)}
    for agent in slots:
        if agent.id in moved:
            continue
        commands += _worker_news(agent, seen.get(agent.id), late=before is None)
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
        if attempt.node == node and attempt.agent not in moved:
            _attempt_news(attempt_id, attempt, facts.get(attempt_id), workers, translator, commands, effects)
    for worker in workers.values():
        if worker.attempt is not None and worker.agent not in moved and _live(state, worker.attempt) is None:
            effects.append(StopAttempt(state.seq, node, worker.agent, *worker.attempt, "superseded"))  # noqa: PERF401 - reads as the others
    ours = {agent.id for agent in slots}
    for number, stray in workers.items():
        if number not in ours:
            effects.append(CloseAgent(state.seq, node, number, now=True))
            if stray.worker is not None and stray.beat_age_ms >= BEAT_MISSED_MS:
                effects.append(KillWorker(state.seq, node, number, stray.worker))  # it will not hear that
    effects += [RemoveWindow(state.seq, node, number) for number in found.windows if number not in ours]
    breaker = state.nodes[node].breaker
    if breaker is not None:
        effects = [effect for effect in effects if not isinstance(effect, ReapAttempt | StartAttempt)]
        missing = [agent for agent in missing if breaker.probing and agent == breaker.canary]
    if missing:
        effects.append(OpenAgents(state.seq, node, tuple(missing)))
    return Difference(tuple(commands), tuple(effects))


def _worker_news(agent: AgentState, worker: WorkerFacts | None, *, late: bool) -> list[c.Command]:
    if worker is not None and worker.alive and worker.worker is not None:
        news: list[c.Command] = [c.WorkerSeen(agent.id, worker.worker, agent.fallen)]
        if worker.beat_age_ms >= BEAT_MISSED_MS:  # the courier may have said so before the slot was known to have this worker
            news.append(c.BeatMissed(agent.id, worker.worker, "its worker does not answer"))
        return news
    if late and worker is not None and agent.worker is not None and worker.worker not in (None, agent.worker):
        return []  # what was found is an earlier worker: the present one came after we looked
    if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.SUSPECT, AgentStatus.OFFLINE, AgentStatus.DRAINING):
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


def still_wanted(state: State, attempts: Sequence[AttemptId]) -> list[AttemptId]:
    """Returns those of these attempts, for which no order went out yet, that are still to start."""
    found = [(attempt_id, _live(state, attempt_id)) for attempt_id in attempts]
    return [attempt_id for attempt_id, attempt in found if attempt is not None and not attempt.stop_reason]


def _live(state: State, attempt_id: AttemptId) -> AttemptState | None:
    task = state.tasks.get(attempt_id.task)
    attempt = None if task is None else task.attempt(attempt_id.number)
    return attempt if attempt is not None and attempt.live else None
