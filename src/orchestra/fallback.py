"""When every other machine is lost, the work goes on here, if the settings allow it; when one is back, what was started here leaves again.

`step` says what is due, from the state alone, so that it holds after a restart too. Nothing is ever started here that was not allowed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, AgentStatus, Lifecycle, NodeSpec, NodeStatus
from orchestra.core.state import State
from orchestra.engine.driver import NodeDriver
from orchestra.engine.loop import Loop
from orchestra.errors import OrchestraError
from orchestra.ids import AgentId, NodeId

FALLBACK: Final = NodeId("local-fallback")
"""A name of its own, so that it is never mistaken for a machine somebody configured."""
LOOK_MS: Final = 1_000


class FallbackOptions(msgspec.Struct, frozen=True):
    """Settings of the fallback; no agents means there is none."""

    agents: int = 0
    after_ms: int = 60_000
    kind: str = "any"


def step(state: State, now_ms: int, options: FallbackOptions) -> list[c.Command]:
    """Returns what has to be asked of the core now."""
    remote = [node for node in state.nodes.values() if node.spec.remote]
    if not options.agents or not remote or state.lifecycle not in (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING):
        return []
    here = state.nodes.get(FALLBACK)
    any_up = any(node.status is NodeStatus.READY for node in remote)
    if here is None:
        lost_ms = max(node.since_ms for node in remote)
        return [] if any_up or now_ms - lost_ms < options.after_ms else [c.AddNode(NodeSpec(FALLBACK, max_agents=options.agents))]
    if any_up and not here.draining:
        return [c.DrainNode(FALLBACK)]
    agents = state.agents_on(FALLBACK)
    if here.draining:
        if not any_up:
            return [c.ResumeNode(FALLBACK)]
        return [] if agents else [c.RemoveNode(FALLBACK)]
    return [] if agents else [_fill(state, options)]


def _fill(state: State, options: FallbackOptions) -> c.Command:
    first = max((*state.agents, *(agent.id for agent in state.scale_queue)), default=0) + 1
    additions = tuple(AgentSpec(AgentId(first + index), FALLBACK, options.kind) for index in range(options.agents))
    additions = (*state.scale_queue, *additions)  # what a scaling has still to add is not forgotten
    staying = sum(agent.status is not AgentStatus.DRAINING for agent in state.agents.values())
    return c.Scale(staying + len(additions), "immediate", additions)


class LocalFallback:
    """Runs `step` again and again."""

    def __init__(
        self,
        loop: Loop,
        clock: Clock,
        add_driver: Callable[[NodeSpec], NodeDriver],
        remove_driver: Callable[[NodeId], Awaitable[None]],
        options: FallbackOptions,
    ) -> None:
        self._loop = loop
        self._clock = clock
        self._add_driver = add_driver
        self._remove_driver = remove_driver
        self._options = options

    async def run(self) -> None:
        """Looks until cancelled."""
        while True:
            await self._clock.sleep_ms(LOOK_MS)
            here = await self._loop.ask(lambda state: state.nodes[FALLBACK].spec if FALLBACK in state.nodes else None)
            if here is not None:
                self._add_driver(here)  # after a restart nobody has; one that is there goes on
            for command in await self._loop.ask(lambda state: step(state, self._loop.now_ms(), self._options)):
                try:
                    await self._loop.request(command)
                except OrchestraError:
                    break  # the state has moved on: the next look sees it
                if isinstance(command, c.AddNode):
                    self._add_driver(command.node)
                elif isinstance(command, c.RemoveNode):
                    await self._remove_driver(command.node)
