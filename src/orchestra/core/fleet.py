"""What a fleet is made of: which slots fit where, what leads from one fleet to another, and machines that come and go."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

import msgspec

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import AgentSpec, AgentStatus, Lifecycle, NodeSpec, NodeStatus, Outcome, OutcomeKind, TaskSpec
from orchestra.core.state import AgentState, NodeState, State, neighbour_hint
from orchestra.errors import DuplicateId, IllegalMove, PlanInvalid, Refused
from orchestra.ids import NodeId


def suits(s: State, agent: AgentSpec, spec: TaskSpec) -> bool:
    """Tells whether a slot can ever run the task: by its kind, and by what its node is and has."""
    return agent.kind in ("any", spec.kind) and node_suits(s, agent.node, spec)


def node_suits(s: State, name: NodeId, spec: TaskSpec) -> bool:
    """Tells whether a node is what the task asks for. What is installed there is known once it has been connected."""
    if spec.node is not None and spec.node != name:
        return False
    if not spec.tags and not spec.programs:
        return True
    node = s.nodes[name]
    return set(spec.tags) <= set(node.spec.tags) and set(spec.programs) <= set(node.programs)


def check_runnable(s: State, spec: TaskSpec) -> None:
    """Raises PlanInvalid if no agents of the fleet could ever run the task; `field` is the wish that cannot be met."""
    if spec.node is not None and spec.node not in s.nodes:
        there = f"there are {', '.join(s.nodes)}" if s.nodes else "`orchestra node add` takes one in"
        hint = neighbour_hint(spec.node, s.nodes, there)
        raise PlanInvalid(f"task {spec.id!r}: there is no node {spec.node!r}", field="node", hint=hint)
    staying = [agent for agent in s.agents.values() if agent.status is not AgentStatus.DRAINING]
    able = sum(suits(s, agent.spec, spec) for agent in staying)
    if able < spec.replicas:
        field, reason = _unmet(s, staying, spec)
        raise PlanInvalid(
            f"task {spec.id!r} wants {spec.replicas} agent(s) of {wants(spec)}; the fleet has {able} ({reason})",
            field=field,
            hint=f"add such agents or nodes, or change `{field}`",
        )


def _unmet(s: State, staying: Sequence[AgentState], spec: TaskSpec) -> tuple[str, str]:
    """Returns the first wish of a task that leaves no agent at all, or how many it wants if each can be met; and why, in words."""
    kinds = ", ".join(dict.fromkeys(agent.spec.kind for agent in staying)) or "none"
    names = dict.fromkeys(agent.spec.node for agent in staying if agent.spec.kind in ("any", spec.kind))
    if not names:
        return "agent", f"kinds: {kinds}"
    if spec.node is not None and spec.node not in names:
        return "node", f"they are on {', '.join(names)}"
    nodes = [s.nodes[name] for name in names if spec.node in (None, name)]
    tagged = [node for node in nodes if set(spec.tags) <= set(node.spec.tags)]
    if not tagged:
        return "tags", _missing("tag", spec.tags, [node.spec.tags for node in nodes])
    if not any(set(spec.programs) <= set(node.programs) for node in tagged):
        return "programs", _missing("program", spec.programs, [node.programs for node in tagged])
    return "target_agents.count", f"kinds: {kinds}"


def _missing(what: str, wanted: Sequence[str], had: Sequence[Iterable[str]]) -> str:
    there = {each for one in had for each in one}
    absent = [each for each in wanted if each not in there]
    return f"no such node has the {what} {', '.join(absent)}" if absent else f"no such node has all of these {what}s"


def wants(spec: TaskSpec) -> str:
    """Returns what a task asks of an agent, in words."""
    tags = f" with tag {', '.join(spec.tags)}" if spec.tags else ""
    programs = f" with {', '.join(spec.programs)} installed" if spec.programs else ""
    return f"kind {spec.kind!r}" + (f" on node {spec.node!r}" if spec.node else "") + tags + programs


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
        if node.draining:
            raise Refused(f"node {name} is being drained", field="target_count", hint=f"`orchestra node resume {name}` uses it again")
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


def roomiest(s: State) -> NodeId | None:
    """Returns the usable node with the largest free share of what it takes, or None if none has room."""
    free: list[tuple[float, NodeId]] = []
    for node in s.nodes.values():
        room = node.spec.max_agents - len(s.agents_on(node.spec.id))
        if node.usable and room > 0:
            free.append((room / node.spec.max_agents, node.spec.id))
    return max(free, key=lambda each: each[0])[1] if free else None


# --- scaling ---------------------------------------------------------------------------------------------------------


def scale(s: State, cmd: c.Scale) -> list[e.Event]:
    """Returns the events of a scaling, which is legal in this phase."""
    staying = [agent for agent in s.agents.values() if agent.status is not AgentStatus.DRAINING]
    if cmd.target < len(staying):
        # The idle and the youngest go first, so that no work is touched and the numbers stay dense.
        leaving = sorted(staying, key=lambda agent: (agent.task is not None, -agent.id))[: len(staying) - cmd.target]
        leaving.sort(key=lambda agent: agent.worker is None)  # those are gone at once, and the scaling must not seem complete then
        return [e.ScaleStarted(cmd.target, cmd.strategy), *(e.AgentDraining(agent.id) for agent in leaving)]
    for index, agent in enumerate(cmd.additions):
        if agent.id in s.agents:
            raise DuplicateId(f"there is an agent #{agent.id} already", field=f"additions[{index}]")
    check_room(s, cmd.additions)
    if cmd.strategy == "gradual":
        return [e.ScaleStarted(cmd.target, cmd.strategy, cmd.additions)]
    return [e.ScaleStarted(cmd.target, cmd.strategy), *(e.AgentAdded(agent) for agent in cmd.additions)]


def scale_on(s: State, policy: c.Policy) -> Iterator[e.Event]:
    """Yields the next slots of a gradual scaling, when most of the last ones are up."""
    if not s.scale_queue or s.lifecycle is not Lifecycle.SCALING:
        return
    starting = sum(agent.status is AgentStatus.STARTING and s.nodes[agent.spec.node].breaker is None for agent in s.agents.values())
    for wanted in s.scale_queue[: max(0, policy.scale_step - starting)]:
        spec = wanted
        node = s.nodes.get(spec.node)
        if node is None or not node.usable or len(s.agents_on(spec.node)) >= node.spec.max_agents:
            other = roomiest(s)
            if other is None:
                if not any(_may_have_room(s, each) for each in s.nodes.values()):
                    yield e.ScaleStarted(len(s.agents), "gradual")  # there is nowhere to go and nothing to wait for
                return
            spec = msgspec.structs.replace(spec, node=other)
        yield e.AgentAdded(spec)


def _may_have_room(s: State, node: NodeState) -> bool:
    """Tells whether the node takes another slot sooner or later: when it is back in sight, works again, or those that leave are gone."""
    staying = sum(agent.status is not AgentStatus.DRAINING for agent in s.agents_on(node.spec.id))
    return not node.draining and staying < node.spec.max_agents


# --- nodes -----------------------------------------------------------------------------------------------------------


def add_node(s: State, cmd: c.AddNode, now: int, policy: c.Policy) -> list[e.Event]:
    if s.lifecycle in (Lifecycle.DRAINING, Lifecycle.TERMINATED):
        raise IllegalMove(f"cannot add a node while the orchestra is {s.lifecycle.value}", hint="start it first: `orchestra up`")
    known = s.nodes.get(cmd.node.id)
    if known is not None and known.spec == cmd.node:
        return []
    there = s.agents_on(cmd.node.id)
    if known is not None and there:
        if known.spec.machine != cmd.node.machine:
            raise Refused(
                f"node {cmd.node.id} has {len(there)} agents and cannot become another machine",
                field="host",
                hint="choose another name, or drain and remove it first",
            )
        if len(there) > cmd.node.max_agents:
            raise Refused(f"node {cmd.node.id} has {len(there)} agents", field="max_agents", hint="scale down first")
    return [e.NodeAdded(cmd.node)]


def drain_node(s: State, cmd: c.DrainNode, now: int, policy: c.Policy) -> Iterator[e.Event]:
    node = s.node(cmd.node)
    if node.draining:
        return
    yield e.NodeDraining(cmd.node)
    for agent in s.agents_on(cmd.node):
        if agent.id in s.agents and agent.status is not AgentStatus.DRAINING:  # the last that could go on may have ended everything
            yield e.AgentDraining(agent.id)


def resume_node(s: State, cmd: c.ResumeNode, now: int, policy: c.Policy) -> list[e.Event]:
    return [e.NodeResumed(cmd.node)] if s.node(cmd.node).draining else []


def remove_node(s: State, cmd: c.RemoveNode, now: int, policy: c.Policy) -> Iterator[e.Event]:
    node = s.node(cmd.node)
    agents = [agent.id for agent in s.agents_on(cmd.node)]
    if agents and not (cmd.force and node.status is NodeStatus.LOST):
        raise Refused(
            f"node {cmd.node} has {len(agents)} agents",
            field="node",
            hint=f"`orchestra node drain {cmd.node}` first"
            + (", or --force, which gives up what it has" if node.status is NodeStatus.LOST else "")
            + ("; --force is only for a machine that is lost, and this one is not" if cmd.force else ""),
        )
    lost = Outcome(OutcomeKind.LOST, f"node {cmd.node} was removed")
    for number in agents:
        agent = s.agents.get(number)
        if agent is not None and agent.task is not None:
            yield e.AttemptEnded(agent.task, agent.attempt, lost)
        if number in s.agents:  # a leaving one has gone with its attempt, and the last may have ended everything
            yield e.AgentRemoved(number, cmd.node)
    yield e.NodeRemoved(cmd.node)
