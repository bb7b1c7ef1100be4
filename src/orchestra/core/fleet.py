"""What a fleet is made of: which slots fit where, and what leads from one fleet to another."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from orchestra.core import events as e
from orchestra.core.model import AgentSpec, AgentStatus, NodeSpec
from orchestra.core.state import State
from orchestra.errors import Refused


def check_fits(nodes: Sequence[NodeSpec], agents: Sequence[AgentSpec]) -> None:
    """Raises Refused if an agent has no node, or a node has more than it takes."""
    known = {node.id for node in nodes}
    for index, agent in enumerate(agents):
        if agent.node not in known:
            raise Refused(f"agent #{agent.id} names the unknown node {agent.node!r}", field=f"agents[{index}].node")
    for node in nodes:
        wanted = sum(agent.node == node.id for agent in agents)
        if wanted > node.max_agents:
            raise Refused(
                f"{wanted} agents do not fit on node {node.id}, which takes {node.max_agents}",
                field="agent_count",
                hint="raise the node's max_agents or add a node",
            )


def check_room(s: State, additions: Iterable[AgentSpec]) -> None:
    """Raises Refused if they do not fit beside those that are there, leaving ones included."""
    on_node = Counter(agent.node for agent in additions)
    for name, count in on_node.items():
        node = s.node(name)
        there = len(s.agents_on(name))
        if there + count > node.spec.max_agents:
            raise Refused(
                f"{count} more agents do not fit on node {name}, which takes {node.spec.max_agents} and has {there}",
                field="target_count",
                hint="wait until those that leave are gone, raise the node's max_agents, or add a node",
            )


def fleet_changes(s: State, wanted: Iterable[AgentSpec]) -> Iterator[e.Event]:
    """Yields what leads from the slots that a failed start has left to those that are wanted now."""
    new = {agent.id: agent for agent in wanted}
    for known in s.agents.values():
        if known.task is None and (known.id not in new or new[known.id].node != known.spec.node):
            yield e.AgentRemoved(known.id, known.spec.node)
    for agent in new.values():
        left = s.agents.get(agent.id)
        if left is None or left.spec != agent:
            yield e.AgentAdded(agent)
        if left is not None and left.status is AgentStatus.ERROR and left.spec.node == agent.node:
            yield e.AgentRestarted(agent.id)
