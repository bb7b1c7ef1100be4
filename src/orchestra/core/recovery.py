"""What is done about workers that fall or fall silent, and about nodes on which everything does.

A worker that is dead is started again; one that falls too often in a row is left alone and replaced from the reserve, or somebody is called. A worker
that lives and says nothing goes up a ladder, one step at a time (`_ladder`): looks, a request to leave, the kill. What happens to many
agents of a node at once is not theirs: the node's breaker trips, nothing is started, ended or counted there, and after a pause one agent (or one
attempt) is tried. A worker that comes up, or an attempt that starts, resets it.

The functions here are `decide`'s and `follow`'s for these commands and events, and keep their rules.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import msgspec

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core import transitions as t
from orchestra.core.fleet import roomiest
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus
from orchestra.core.state import AgentState, Breaker, NodeState, State
from orchestra.ids import AgentId, NodeId

Events = list[e.Event]
UP: Final = (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.DRAINING)
WATCHED: Final = (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.DRAINING, AgentStatus.STARTING)
"""Slots whose silent worker is looked after; the others are known to be in trouble."""

# --- reports ---------------------------------------------------------------------------------------------------------


def node_up(s: State, cmd: c.NodeUp, now: int, policy: c.Policy) -> Events:
    node = s.nodes.get(cmd.node)
    if node is None:
        return []
    return [e.NodeConnected(cmd.node, cmd.boot, cmd.session, cmd.programs, bool(node.boot) and node.boot != cmd.boot)]


def node_down(s: State, cmd: c.NodeDown, now: int, policy: c.Policy) -> Events:
    node = s.nodes.get(cmd.node)
    if node is None or (node.status is NodeStatus.LOST and node.reason == cmd.reason):
        return []
    return [e.NodeLost(cmd.node, cmd.reason, node.status is NodeStatus.LOST)]


def node_troubled(s: State, cmd: c.NodeTroubled, now: int, policy: c.Policy) -> Events:
    node = s.nodes.get(cmd.node)
    if node is None or (node.breaker is not None and not node.breaker.probing):
        return []
    return [_trip(node, cmd.cause, now, policy)]


def worker_seen(s: State, cmd: c.WorkerSeen, now: int, policy: c.Policy) -> Events:
    agent = s.agents.get(cmd.agent)
    if agent is None or (agent.worker == cmd.worker and agent.status in (*UP, AgentStatus.SUSPECT)):
        return []
    if s.nodes[agent.spec.node].status is not NodeStatus.READY:
        return []
    if agent.fallen == cmd.worker and cmd.fallen != cmd.worker:
        return []  # it was seen before it fell
    if agent.status is AgentStatus.ERROR and agent.fallen == cmd.worker:
        return []  # it was given up although it lives: that it is still there is no news
    if (
        agent.worker is not None
        and agent.worker != cmd.worker
        and agent.status in (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.SUSPECT)
    ):
        return [e.AgentLost(cmd.agent, "its worker was replaced"), e.AgentReady(cmd.agent, cmd.worker)]
    return [e.AgentReady(cmd.agent, cmd.worker)]


def worker_fell(s: State, cmd: c.WorkerFell, now: int, policy: c.Policy) -> Events:
    agent = s.agents.get(cmd.agent)
    if agent is None or agent.status is AgentStatus.ERROR:
        return []
    if cmd.worker is not None and agent.worker is not None and agent.worker != cmd.worker:
        return []  # an earlier worker of the slot; the present one is another
    if cmd.worker is not None and cmd.worker == agent.fallen:
        return []  # the same fall, told by another way: a death counts once
    if cmd.worker is None and agent.worker is not None and agent.status in (AgentStatus.IDLE, AgentStatus.BUSY, AgentStatus.SUSPECT):
        return []  # a window that could not be opened says nothing about the worker we know
    return _fall(s, agent, cmd.reason, policy)


def _fall(s: State, agent: AgentState, reason: str, policy: c.Policy) -> Events:
    if agent.status is AgentStatus.DRAINING:
        return _drop_agent(s, agent, reason)
    if agent.status is AgentStatus.STARTING and agent.worker is not None:
        return [e.AgentLost(agent.id, reason)]  # it was asked to make room for another
    if agent.falls + 1 > policy.falls_max and s.nodes[agent.spec.node].breaker is None:
        return _suspend(s, agent, f"{reason}, {agent.falls + 1} times in a row")
    return [e.AgentLost(agent.id, reason)]


def _suspend(s: State, agent: AgentState, reason: str) -> Events:
    return [*lose_attempt(s, agent.id, reason), e.AgentSuspended(agent.id, reason)]


def _drop_agent(s: State, agent: AgentState, reason: str) -> Events:
    """A leaving slot whose worker is gone is removed at once, or after its attempt has been accounted for."""
    if agent.task is None:
        return [e.AgentRemoved(agent.id, agent.spec.node)]
    return [e.AgentLost(agent.id, reason)] if agent.worker is not None else lose_attempt(s, agent.id, reason)


def lose_attempt(s: State, agent_id: AgentId, reason: str) -> Events:
    """Returns what leads to UNKNOWN for the attempt that a slot has in hand."""
    agent = s.agents[agent_id]
    if agent.task is None:
        return []
    attempt = s.tasks[agent.task].attempt(agent.attempt)
    if attempt is None or not t.may(t.ATTEMPT, attempt.status, e.AttemptLostSight):
        return []
    return [e.AttemptLostSight(agent.task, agent.attempt, reason)]


def agent_closed(s: State, cmd: c.AgentClosed, now: int, policy: c.Policy) -> Events:
    agent = s.agents.get(cmd.agent)
    if agent is None:
        return []
    if agent.status is AgentStatus.DRAINING:
        return _drop_agent(s, agent, "its worker left")
    return worker_fell(s, c.WorkerFell(cmd.agent, agent.worker, "its worker left"), now, policy)


def beat_missed(s: State, cmd: c.BeatMissed, now: int, policy: c.Policy) -> Events:
    agent = s.agents.get(cmd.agent)
    if agent is None or agent.suspicion is not None or agent.worker is None or agent.worker != cmd.worker or agent.status not in WATCHED:
        return []
    return [e.AgentSuspected(agent.id, cmd.reason, now + policy.probe_ms)]


def beat_back(s: State, cmd: c.BeatBack, now: int, policy: c.Policy) -> Events:
    agent = s.agents.get(cmd.agent)
    if agent is None or agent.suspicion is None or agent.worker != cmd.worker:
        return []
    return [e.AgentCleared(agent.id)]


# --- time ------------------------------------------------------------------------------------------------------------


def overdue(s: State, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """Yields what a tick makes due: the next step of each ladder, starts that came to nothing, trials of tripped breakers."""
    for node in s.nodes.values():
        if node.status is NodeStatus.READY and node.breaker is not None:
            yield from _try_again(s, node, node.breaker, now, policy)
    for agent in list(s.agents.values()):
        node = s.nodes[agent.spec.node]
        if agent.id not in s.agents or node.status is not NodeStatus.READY or not _awaited(node, agent):
            continue
        if agent.suspicion is not None:
            if now >= agent.suspicion.next_ms:
                yield from _ladder(s, agent, now, policy)
        elif agent.status is AgentStatus.STARTING and now - max(agent.since_ms, node.since_ms) > policy.start_timeout_ms:
            yield from _not_come_up(s, agent, now, policy)


def _ladder(s: State, agent: AgentState, now: int, policy: c.Policy) -> Events:
    doubt = agent.suspicion
    assert doubt is not None
    if doubt.step == "forced":
        if doubt.kills >= policy.strikes_max and agent.status is not AgentStatus.DRAINING:
            return _suspend(s, agent, "its worker does not answer and could not be ended")
        pause_ms = min(policy.graceful_ms << min(doubt.kills, 30), policy.breaker_max_ms)
        return [e.RecoveryStepTaken(agent.id, "forced", now + pause_ms)]
    if doubt.step == "graceful":
        return [e.RecoveryStepTaken(agent.id, "forced", now + policy.graceful_ms)]
    if doubt.strikes < policy.strikes_max:
        return [e.RecoveryStepTaken(agent.id, "probe", now + policy.probe_ms)]
    return [e.RecoveryStepTaken(agent.id, "graceful", now + policy.graceful_ms)] if policy.falls_max else []


def _awaited(node: NodeState, agent: AgentState) -> bool:
    """While the breaker is tripped nobody is started or ended, but for the one that is tried."""
    return node.breaker is None or (node.breaker.probing and node.breaker.canary == agent.id)


def _not_come_up(s: State, agent: AgentState, now: int, policy: c.Policy) -> Events:
    if agent.worker is not None:  # it was asked to make room for another and is still there
        return [e.AgentSuspected(agent.id, "its worker does not leave", now + policy.probe_ms)]
    return _fall(s, agent, f"no worker came up within {policy.start_timeout_ms // 1000} s", policy)


def _try_again(s: State, node: NodeState, breaker: Breaker, now: int, policy: c.Policy) -> Events:
    if now < breaker.until_ms:
        return []
    chosen = _to_try(s, node, policy)
    if all(agent.status in (AgentStatus.DRAINING, AgentStatus.ERROR) for agent in s.agents_on(node.spec.id)):
        return [e.BreakerReset(node.spec.id)]  # nobody is left whom one could try, and what they had in hand has to be settled
    if breaker.probing and breaker.canary is None and chosen is None:
        return []  # the next attempt is the trial
    tried = None if breaker.canary is None else s.agents.get(breaker.canary)
    if tried is not None and (tried.status is AgentStatus.STARTING or tried.task is not None or tried.suspicion is not None):
        return []
    return [e.BreakerProbing(node.spec.id, chosen)]


def _to_try(s: State, node: NodeState, policy: c.Policy) -> AgentId | None:
    """Returns the slot that is tried: the one that has waited longest for a worker; where all are silent, the first; else None."""
    agents = s.agents_on(node.spec.id)
    starting = [agent for agent in agents if agent.status is AgentStatus.STARTING]
    if starting:
        return min(starting, key=lambda agent: (agent.since_ms, agent.id)).id
    if not policy.falls_max or any(agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) for agent in agents):
        return None
    return next((agent.id for agent in agents if agent.suspicion is not None), None)


# --- consequences ----------------------------------------------------------------------------------------------------


def after_agent_lost(s: State, ev: e.AgentLost, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from lose_attempt(s, ev.agent, ev.reason)
    agent = s.agents[ev.agent]
    node = s.nodes[agent.spec.node]
    if node.breaker is not None:
        if node.breaker.probing and node.breaker.canary == agent.id:
            yield _trip(node, node.breaker.cause, now, policy)
    elif node.status is NodeStatus.READY and (cause := _outage(s, node, now, policy) or _futility(node, ev.reason, policy)):
        yield _trip(node, cause, now, policy)


def _outage(s: State, node: NodeState, now: int, policy: c.Policy) -> str:
    agents = s.agents_on(node.spec.id)
    fallen = sum(agent.fell_ms > 0 and now - agent.fell_ms <= policy.outage_window_ms for agent in agents)
    return f"{fallen} of {len(agents)} workers fell at once" if _is_most(fallen, len(agents), policy) else ""


def _is_most(count: int, total: int, policy: c.Policy) -> bool:
    return count >= policy.outage_agents_min and 2 * count > total


def _futility(node: NodeState, reason: str, policy: c.Policy) -> str:
    return f"{node.futile} workers in a row fell before they came up: {reason}" if node.futile >= policy.futile_starts_max else ""


def _trip(node: NodeState, cause: str, now: int, policy: c.Policy) -> e.Event:
    trips = 0 if node.breaker is None else node.breaker.trips
    pause_ms = min(policy.breaker_first_ms << min(trips, 30), policy.breaker_max_ms)
    return e.BreakerTripped(node.spec.id, cause, now + pause_ms)


def after_agent_suspected(s: State, ev: e.AgentSuspected, now: int, policy: c.Policy) -> Iterator[e.Event]:
    node = s.nodes[s.agents[ev.agent].spec.node]
    silent, total = _silent(s, node.spec.id)
    if node.breaker is None and _is_most(silent, total, policy):
        yield _trip(node, f"{silent} of {total} workers do not answer", now, policy)


def _silent(s: State, node: NodeId) -> tuple[int, int]:
    agents = s.agents_on(node)
    return sum(agent.suspicion is not None for agent in agents), len(agents)


def after_agent_cleared(s: State, ev: e.AgentCleared, now: int, policy: c.Policy) -> Iterator[e.Event]:
    node = s.nodes[s.agents[ev.agent].spec.node]
    if node.breaker is not None and (node.breaker.canary == ev.agent or not _is_most(*_silent(s, node.spec.id), policy)):
        yield e.BreakerReset(node.spec.id)


def reset_by_agent(s: State, agent: AgentId) -> Iterator[e.Event]:
    """A worker came up: the node works."""
    owner = s.agents.get(agent)
    if owner is not None and s.nodes[owner.spec.node].breaker is not None:
        yield e.BreakerReset(owner.spec.node)


def after_attempt_started(s: State, ev: e.AttemptStarted, now: int, policy: c.Policy) -> Iterator[e.Event]:
    attempt = s.tasks[ev.task].attempts[ev.attempt - 1]
    node = s.nodes.get(attempt.node)
    if node is not None and node.breaker is not None and node.breaker.probing and node.breaker.canary == attempt.agent:
        yield e.BreakerReset(attempt.node)


def after_agent_suspended(s: State, ev: e.AgentSuspended, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """Another slot takes its place, or somebody is called."""
    agent = s.agents[ev.agent]
    used = sum(each.replaced_by in s.agents for each in s.agents.values())
    working = s.lifecycle in (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)
    node = roomiest(s) if working and used < policy.reserve and agent.replaced_by not in s.agents else None
    if node is None:
        yield e.Escalated(ev.agent, ev.reason)
        return
    number = AgentId(max((*s.agents, *(each.id for each in s.scale_queue))) + 1)
    name = f"{agent.spec.name}-r{number}" if agent.spec.name else ""
    yield e.AgentAdded(msgspec.structs.replace(agent.spec, id=number, node=node, name=name))
    yield e.AgentReplaced(ev.agent, number)
