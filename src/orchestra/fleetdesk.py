"""The use cases that change the fleet: more or fewer agents, machines that come and go."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from itertools import count
from typing import Final

import msgspec

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, AgentStatus, NodeSpec
from orchestra.core.state import AgentState, State
from orchestra.engine.driver import NodeDriver
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, Refused
from orchestra.ids import AgentId, NodeId, check_name
from orchestra.intake.request import ScaleParams
from orchestra.usecases import DrainReply, NodeAddParams, NodeDrainParams, NodeParams, NodeRemoveParams, NodeReply, ScaleReply
from orchestra.viewing import node_view

SCALE_ETA_MS_PER_AGENT: Final = 50
"""A worker in its window takes 8 to 25 ms; gradual scaling waits between its steps."""


class Wanted(msgspec.Struct, frozen=True):
    """What a provisioner is asked for."""

    agents: int
    """Slots that do not fit on the machines there are."""
    nodes: tuple[NodeSpec, ...]
    """Those there are."""


class DeskOptions(msgspec.Struct, frozen=True):
    """What the desk takes from the settings."""

    kind_default: str


class FleetDesk:
    """One per coordinator.

    Args:
        provision: Makes machines and returns them; None where no provisioner is configured.
    """

    def __init__(
        self,
        loop: Loop,
        drivers: Mapping[NodeId, NodeDriver],
        add_driver: Callable[[NodeSpec], NodeDriver],
        remove_driver: Callable[[NodeId], Awaitable[None]],
        provision: Callable[[Wanted], Awaitable[tuple[NodeSpec, ...]]] | None,
        options: DeskOptions,
    ) -> None:
        self._loop = loop
        self._drivers = drivers
        self._add_driver = add_driver
        self._remove_driver = remove_driver
        self._provision = provision
        self._options = options
        self._providing = asyncio.Lock()

    # --- agents ------------------------------------------------------------------------------------------------------

    async def scale(self, params: ScaleParams) -> ScaleReply:
        """Changes the number of agents, with new machines if the ones there are cannot take them."""
        missing = await self._loop.ask(lambda state: params.target_count - capacity(state))
        if missing > 0 and self._provision is not None:
            async with self._providing:
                await self._make_room(params.target_count)
        additions, current = await self._loop.ask(lambda state: self._additions(state, params.target_count))
        await self._loop.request(c.Scale(params.target_count, params.strategy, additions))
        for node in dict.fromkeys(agent.node for agent in additions):
            await self._connect(node)
        eta = abs(params.target_count - current) * SCALE_ETA_MS_PER_AGENT
        return ScaleReply("scaling", current, params.target_count, -(-eta // 1000))

    async def _make_room(self, target: int) -> None:
        assert self._provision is not None
        missing, known = await self._loop.ask(lambda state: (target - capacity(state), tuple(node.spec for node in state.nodes.values())))
        if missing <= 0:
            return  # another scaling has just had machines made
        for spec in await self._provision(Wanted(missing, known)):
            await self._loop.request(c.AddNode(msgspec.structs.replace(spec, added=True)))
            await self._connect(spec.id)

    async def _connect(self, node: NodeId) -> None:
        if node not in self._drivers:
            self._add_driver(await self._loop.ask(lambda state: state.node(node).spec))

    def _additions(self, state: State, target: int) -> tuple[tuple[AgentSpec, ...], int]:
        staying = [agent for agent in state.agents.values() if agent.status is not AgentStatus.DRAINING]
        wanted = target - len(staying)
        if wanted <= 0:
            return (), len(staying)
        if target > capacity(state):
            names = ", ".join(f"{node.spec.id} {node.spec.max_agents}" for node in state.nodes.values() if not node.draining) or "none"
            raise Refused(
                f"{target} agents do not fit: the nodes take {capacity(state)} ({names})",
                field="target_count",
                hint="raise max_agents, add a machine with `orchestra node add`, or set provisioner.command",
            )
        return tuple(self._placed(state, wanted, staying)), len(staying)

    def _placed(self, state: State, wanted: int, staying: list[AgentState]) -> list[AgentSpec]:
        """Puts each where the largest share is free."""
        nodes = [node.spec for node in state.nodes.values() if not node.draining]
        numbers = (AgentId(number) for number in count(1) if AgentId(number) not in state.agents)
        load = {node.id: len(state.agents_on(node.id)) for node in nodes}
        found: list[AgentSpec] = []
        for index in range(wanted):
            roomy = [node for node in nodes if load[node.id] < node.max_agents]
            if not roomy:
                raise Refused("there is no room beside those that are leaving", field="target_count", hint="wait until those are gone")
            node = min(roomy, key=lambda each: load[each.id] * 100 / (each.max_agents * each.weight))
            load[node.id] += 1
            model = staying[index * len(staying) // wanted % len(staying)].spec if staying else None
            found.append(self._like(model, next(numbers), node.id))
        return found

    def _like(self, model: AgentSpec | None, number: AgentId, node: NodeId) -> AgentSpec:
        """A new slot is like one of those there are, taken evenly from all of them, so that a fleet keeps its mixture. It leads nobody."""
        if model is None:
            return AgentSpec(number, node, self._options.kind_default)
        return msgspec.structs.replace(model, id=number, node=node, name="", level=3, team="")

    # --- nodes -------------------------------------------------------------------------------------------------------

    async def node_add(self, params: NodeAddParams) -> NodeReply:
        """Takes a machine into the fleet and begins to connect it."""
        name = NodeId(check_name(params.name, field="name"))
        if params.max_agents < 1:
            raise BadInput("a node takes at least one agent", field="max_agents", hint="use a number from 1 up")
        spec = NodeSpec(
            name,
            host=params.host,
            ssh_user=params.ssh_user,
            max_agents=params.max_agents,
            port=params.port,
            zone=params.zone,
            weight=params.weight,
            tags=params.tags,
            agent_memory_bytes=params.agent_memory_mb << 20,
            folder=params.folder,
            added=True,
        )
        before = await self._loop.ask(lambda state: state.nodes[name].spec if name in state.nodes else None)
        await self._loop.request(c.AddNode(spec))
        if before is not None and not before.added:
            await self._loop.request(c.ResumeNode(name))  # it had gone from the settings, and is wanted after all
        if before is not None and before.machine != spec.machine:
            await self._remove_driver(name)  # it has no agents, or the core would have refused
        await self._connect(name)
        return await self._reply(name)

    async def node_drain(self, params: NodeDrainParams) -> DrainReply:
        """Lets a node's agents finish and leave; with `move`, as many are started on the others."""
        name = NodeId(params.node)
        before = await self._loop.ask(_wanted_agents)
        leaving = await self._loop.ask(
            lambda state: sum(a.status is not AgentStatus.DRAINING for a in state.agents_on(state.node(name).spec.id))
        )
        if params.move:
            room = await self._loop.ask(lambda state: capacity(state, without=name))
            if room < before:
                raise Refused(
                    f"the other nodes take {room} of {before} agents", field="move", hint="add a node first, or drain without --move"
                )
        await self._loop.request(c.DrainNode(name))
        if params.move and before:
            await self.scale(ScaleParams(target_count=before, strategy="gradual"))
        return DrainReply(name, leaving, leaving if params.move else 0)

    async def node_resume(self, params: NodeParams) -> NodeReply:
        """Uses a drained node again."""
        await self._loop.request(c.ResumeNode(NodeId(params.node)))
        await self._connect(NodeId(params.node))
        return await self._reply(NodeId(params.node))

    async def node_remove(self, params: NodeRemoveParams) -> NodeReply:
        """Forgets a node that has no agents (or, by force, one that is lost), and what of ours still runs on it is ended."""
        name = NodeId(params.node)
        reply = await self._reply(name)
        await self._loop.request(c.RemoveNode(name, params.force))
        await self._remove_driver(name)
        return reply

    async def _reply(self, name: NodeId) -> NodeReply:
        driver = self._drivers.get(name)
        facts = None if driver is None else driver.facts
        return await self._loop.ask(lambda state: NodeReply(node_view(state, state.node(name), facts)))


def _wanted_agents(state: State) -> int:
    """Slots that stay, and those that a scaling has still to add."""
    return sum(agent.status is not AgentStatus.DRAINING for agent in state.agents.values()) + len(state.scale_queue)


def capacity(state: State, *, without: NodeId | None = None) -> int:
    """Returns how many agents the nodes take in all that are not being drained."""
    return sum(node.spec.max_agents for name, node in state.nodes.items() if not node.draining and name != without)
