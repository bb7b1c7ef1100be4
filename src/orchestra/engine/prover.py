"""Runs a task's checks on what its work would be merged to, before the plan's branch goes there.

They run on the node where the attempt was, as its worker ran them: same programs, same environment, same limits. Nothing of it is remembered: a proof that was
broken off, by a crash or on purpose, is made again from the beginning, and what it left is removed first.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

import msgspec

from orchestra.core.model import AgentSpec, CheckResult, TaskSpec
from orchestra.engine.orders import OrderMaker
from orchestra.errors import NodeFailed, OrchestraError
from orchestra.ids import AttemptId, NodeId
from orchestra.node import Node
from orchestra.workspace import CheckoutRequest, Workspaces

log = logging.getLogger(__name__)


class Case(msgspec.Struct, frozen=True):
    """Whose work is to be proved, and where."""

    spec: TaskSpec
    attempt: AttemptId
    slot: AgentSpec
    """Who did it."""
    remote: bool
    """Its node is another machine."""


class Prover:
    """One per coordinator."""

    def __init__(self, nodes: Callable[[NodeId], Node | None], orders: OrderMaker) -> None:
        self._nodes = nodes
        self._orders = orders
        self._running: dict[AttemptId, asyncio.Event] = {}
        self._closed = False

    def stop(self, attempt: AttemptId) -> None:
        """Ends the proof of an attempt's work, if it runs."""
        if attempt in self._running:
            self._running[attempt].set()

    def close(self) -> None:
        """Ends all proofs; none is begun any more."""
        self._closed = True
        for stopped in self._running.values():
            stopped.set()

    async def prove(self, spaces: Workspaces, case: Case, commit: str) -> Sequence[CheckResult] | None:
        """Returns what the checks came to, None if they were stopped.

        Raises:
            OrchestraError: They could not be run.
        """
        if self._closed:
            return None
        stopped = self._running[case.attempt] = asyncio.Event()
        proof = asyncio.create_task(self._prove(spaces, case, commit), name=f"proof-{case.attempt}")
        stop = asyncio.create_task(stopped.wait())
        try:
            await asyncio.wait([proof, stop], return_when=asyncio.FIRST_COMPLETED)
            return proof.result() if proof.done() else None
        finally:
            del self._running[case.attempt]
            for task in (proof, stop):
                task.cancel()
            await asyncio.gather(proof, stop, return_exceptions=True)

    async def _prove(self, spaces: Workspaces, case: Case, commit: str) -> Sequence[CheckResult]:
        node = self._nodes(case.slot.node)
        if node is None:
            raise NodeFailed(f"node {case.slot.node} is not connected")
        request = CheckoutRequest(repo=case.spec.workspace, attempt=case.attempt, commit=commit, here=case.spec.workspace_here)
        try:
            place = await spaces.checkout(request)
            order = self._orders.make_checks(case.spec, case.attempt, case.slot, remote=case.remote, place=place)
            return await node.check(order)
        finally:
            with contextlib.suppress(OrchestraError):  # else the next one, or tidying, removes it
                await spaces.drop_checkout(case.attempt)
