"""What a node's driver does, without the waiting: each duty is a generator that says what it needs next and is handed the answer.

Whoever runs a duty carries out its steps in order and sends the results in; a step that failed with `PortFailed` is thrown in. `NodeDriver` does that
with a real node under asyncio, the simulated world with a pretended one on its own time. What is decided here is therefore decided once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import msgspec

from orchestra.agents.access import Access
from orchestra.core import commands as c
from orchestra.core.effects import (
    CloseAgent,
    Effect,
    KillWorker,
    OpenAgents,
    ProbeAgent,
    ReapAttempt,
    RemoveWindow,
    StartAttempt,
    StopAttempt,
    SweepNode,
    may_act,
)
from orchestra.core.model import AgentSpec, AgentStatus, Outcome, OutcomeKind, TaskSpec, Worker
from orchestra.core.state import State
from orchestra.engine.board import Board
from orchestra.engine.earlier import Earlier, known_of
from orchestra.engine.failpoints import hit
from orchestra.engine.orders import OrderMaker
from orchestra.engine.reconcile import BEAT_MISSED_MS, expected, reconcile, still_wanted
from orchestra.engine.translate import Translator
from orchestra.errors import BadInput, NodeFailed, PortFailed
from orchestra.ids import AgentId, AttemptId, NodeId
from orchestra.node import AgentWindow, AttemptOrder, JournalBatch, Notice, OrderFailure, Report
from orchestra.workspace import WorkFailure, WorkRequest, Workspace

WORKSPACES_AT_A_TIME: Final = 4
"""Worktrees made in one go: a large one takes a second, and those that are made should not wait long for the others."""


class Tell(msgspec.Struct, frozen=True):
    """Hand these commands to the loop, in one append. The answer is None."""

    commands: Sequence[c.Command]


class Ask(msgspec.Struct, frozen=True):
    """Ask the durable state. The answer is the question's."""

    question: Callable[[State], Any]


class Peek(msgspec.Struct, frozen=True):
    """Read what never changes, or what may be ahead of the ledger. The answer comes at once, also while an append is under way."""

    question: Callable[[State], Any]


class Call(msgspec.Struct, frozen=True):
    """Call a method of the node's port. The answer is what it returns."""

    method: str
    arguments: tuple[Any, ...] = ()
    options: dict[str, Any] = {}


class Prepare(msgspec.Struct, frozen=True):
    """Make places to work in. The answer is a `Workspace` or `WorkFailure` for each."""

    requests: Sequence[WorkRequest]


class PassRequest(msgspec.Struct, frozen=True):
    """An attempt that is to reach model APIs through the gateway."""

    attempt: AttemptId
    spec: TaskSpec
    agent: AgentId
    apis: tuple[str, ...]


class Admit(msgspec.Struct, frozen=True):
    """Have these attempts let through the gateway. The answer is an `Access` for each."""

    requests: Sequence[PassRequest]


class Act(msgspec.Struct, frozen=True):
    """Put these effects behind those that wait. The answer is None."""

    effects: Sequence[Effect]


class WantPlaces(msgspec.Struct, frozen=True):
    """Attempts were put aside that need places to work in: perform `start_apart` beside everything else. The answer is None."""


class WantSweep(msgspec.Struct, frozen=True):
    """Something odd was seen: look at everything soon. The answer is None."""


class Remark(msgspec.Struct, frozen=True):
    """Write a line to the log. The answer is None."""

    action: str
    facts: dict[str, Any]
    warn: bool = True


Step = Tell | Ask | Peek | Call | Prepare | Admit | Act | WantPlaces | WantSweep | Remark
Duty = Generator[Step, Any, None]


class Duties:
    """The duties towards one node."""

    def __init__(self, node: NodeId, translator: Translator, board: Board, orders: OrderMaker) -> None:
        self.node = node
        self._translator = translator
        self._board = board
        self._orders = orders
        self._aside: dict[AttemptId, StartAttempt] = {}
        """Attempts that need a place which nobody makes yet, in the order in which they came."""
        self._making: dict[AttemptId, StartAttempt] = {}
        """Those whose places are being made."""

    def begin(self) -> None:
        """The node was connected: what was asked for before is not done any more; the first look asks for what is still wanted."""
        self._aside, self._making = {}, {}

    # --- what is seen ------------------------------------------------------------------------------------------------

    def take(self, report: Report) -> Duty:
        """Tells the core what a report says.

        Raises:
            NodeFailed: The report says that the connection is over.
        """
        return self._take_notice(report) if isinstance(report, Notice) else self._take_journal(report)

    def _take_journal(self, batch: JournalBatch) -> Duty:
        commands: list[c.Command] = []
        doubtful = False
        for record in batch.records:
            found = self._translator.signal(record) if record.kind == "signal" else None
            if found is not None:
                self._board.post(*found)
                commands += self._translator.waiting(*found)
            told = self._translator.commands(record)
            commands += told
            doubtful = doubtful or (record.kind == "ready" and not told)
        hit("before-journal")
        yield Tell([*commands, c.JournalAt(self.node, batch.offset)])
        if doubtful:
            yield WantSweep()

    def _take_notice(self, notice: Notice) -> Duty:
        facts = {"node": self.node, "kind": notice.kind, "agent": notice.agent, "detail": notice.detail}
        yield Remark("node-notice", facts, warn=False)
        match notice.kind:
            case "worker-gone":
                yield Tell([c.WorkerFell(notice.agent, notice.worker, notice.detail or "its worker died")])
            case "beat-missed":
                yield Tell([c.BeatMissed(notice.agent, notice.worker, notice.detail or "its worker does not answer")])
            case "beat-back":
                yield Tell([c.BeatBack(notice.agent, notice.worker)])
            case "channel-lost":
                raise NodeFailed(notice.detail or "the channel to the node was lost")
            case _:
                yield WantSweep()

    def sweep(self) -> Duty:
        """Looks at everything on the node and settles the differences."""
        before = yield Ask(lambda state: expected(state, self.node))
        found = yield Call("inventory", (before.attempts,))
        difference = yield Ask(lambda state: reconcile(state, self.node, found, self._translator, before))
        yield Tell(difference.commands)
        hit("after-sweep")
        yield Act(difference.effects)

    # --- what is wanted ----------------------------------------------------------------------------------------------

    def carry_out(self, effects: Sequence[Effect]) -> Duty:
        """Does what the effects ask for: first windows, then new attempts, then everything else in order.

        Attempts that need a place of their own are put aside for `start_apart`: a large repository takes its time, and nothing else is to wait for it.
        """
        yield from self._open([agent for effect in effects if isinstance(effect, OpenAgents) for agent in effect.agents])
        starts = [effect for effect in effects if isinstance(effect, StartAttempt)]
        apart = yield Peek(lambda state: {effect.task for effect in starts if state.tasks[effect.task].spec.isolated})
        aside = {AttemptId(each.task, each.attempt): each for each in starts if each.task in apart}
        self._aside |= {attempt: effect for attempt, effect in aside.items() if attempt not in self._making}
        if self._aside:
            yield WantPlaces()
        yield from self._order([effect for effect in starts if effect.task not in apart], {})
        for effect in effects:
            if not isinstance(effect, StartAttempt | OpenAgents):
                yield from self._do(effect)

    def start_apart(self) -> Duty:
        """Has places made for the attempts that were put aside, a few at a time, and starts them there."""
        while self._aside:
            few = list(self._aside)[:WORKSPACES_AT_A_TIME]
            self._making = {attempt: self._aside.pop(attempt) for attempt in few}
            places = yield from self._prepare(list(self._making.values()))
            wanted = yield Ask(partial(still_wanted, attempts=few))
            yield from self._order([self._making[attempt] for attempt in wanted], places)
            self._making = {}

    def _do(self, effect: Effect) -> Duty:
        try:
            match effect:
                case StopAttempt(_, _, agent, task, number):
                    yield from self._stop(AttemptId(task, number), agent)
                case ReapAttempt(_, _, task, number):
                    yield from self._reap(AttemptId(task, number))
                case CloseAgent(_, _, agent, now):
                    yield Call("close_agents", ([agent],), {"now": now})
                case ProbeAgent(_, _, agent):
                    yield from self._probe(agent)
                case KillWorker(_, _, agent, worker):
                    if (yield Ask(lambda state: is_condemned(state, agent, worker))):  # it may have answered meanwhile
                        yield Call("kill_worker", (agent, worker))
                case SweepNode():
                    yield WantSweep()
                case RemoveWindow(_, _, agent):
                    yield Call("remove_windows", ([agent],))
                case _:
                    pass
        except NodeFailed as error:
            facts = {"node": self.node, "effect": type(effect).__name__, "seq": effect.seq, "reason": str(error)}
            yield Remark("effect-failed", facts)
            yield WantSweep()

    def _stop(self, attempt: AttemptId, agent: AgentId) -> Duty:
        """Its worker remembers that it is to stop, also if the order is still to come. Without a place there is no order yet, and after the reaping no more."""
        yield Call("stop_attempt", (attempt, agent, self._orders.options.grace_ms))
        if self._aside.pop(attempt, None) is not None or attempt in self._making:
            yield from self._reap(attempt)

    def _probe(self, agent: AgentId) -> Duty:
        """A worker that is silent may have died unseen, and its window may be gone."""
        found = yield Call("inventory", ((),))
        seen = next((worker for worker in found.workers if worker.agent == agent), None)
        if seen is not None and not seen.alive:
            yield Tell([c.WorkerFell(agent, seen.worker, "its worker is gone")])
        elif seen is not None and seen.beat_age_ms < BEAT_MISSED_MS:
            yield Tell([c.BeatBack(agent, seen.worker)])
        if agent not in found.windows:
            yield WantSweep()

    def _reap(self, attempt: AttemptId) -> Duty:
        if (yield Ask(lambda state: not may_act(state, self.node))):
            return  # it was asked for before the breaker tripped; the look after the reset asks again
        hit("before-reap")
        found = yield Call("reap", (attempt,))
        hit("after-reap")
        match found:
            case "alive":
                yield Tell([c.AttemptSeen(attempt.task, attempt.number)])
            case "done":
                yield WantSweep()
            case _:
                pass  # its `lost` record is on the way

    def _open(self, agents: Sequence[AgentId]) -> Duty:
        if not agents:
            return
        names = yield Ask(lambda state: window_names(state, agents))
        hit("before-open")
        try:
            if names:
                yield Call("open_windows", (names,))
        except NodeFailed as error:
            yield Remark("windows-failed", {"node": self.node, "agents": len(agents), "reason": str(error)})
            yield Tell([c.WorkerFell(agent, None, f"no window: {error}") for agent in agents])
        hit("after-open")

    def _prepare(self, effects: Sequence[StartAttempt]) -> Generator[Step, Any, dict[AttemptId, Workspace | WorkFailure]]:
        specs = yield from self._specs(effects)
        earlier = yield from self._known(effects)
        wanted = [
            WorkRequest(
                repo=spec.workspace,
                attempt=AttemptId(effect.task, effect.attempt),
                here=spec.workspace_here,
                repairs=earlier[effect.agent].repairs,
            )
            for effect, spec in zip(effects, specs, strict=True)
        ]
        return {place.attempt: place for place in (yield Prepare(wanted))}

    def _specs(self, effects: Sequence[StartAttempt]) -> Generator[Step, Any, list[TaskSpec]]:
        found: list[TaskSpec] = yield Peek(lambda state: [state.tasks[effect.task].spec for effect in effects])
        return found

    def _known(self, effects: Sequence[StartAttempt]) -> Generator[Step, Any, dict[AgentId, Earlier]]:
        found: dict[AgentId, Earlier] = yield Peek(lambda state: {effect.agent: self._earlier(state, effect) for effect in effects})
        return found

    def _earlier(self, state: State, effect: StartAttempt) -> Earlier:
        options = self._orders.options
        return known_of(state, effect.task, options.returns, state.agents.get(effect.agent), affinity=options.affinity_sessions)

    def _admit(
        self, effects: Sequence[StartAttempt], specs: Sequence[TaskSpec]
    ) -> Generator[Step, Any, dict[AttemptId, Access | PortFailed]]:
        """Has those let through the gateway that use a model API; where that fails, says why for each."""
        wanted = [
            PassRequest(AttemptId(effect.task, effect.attempt), spec, effect.agent, apis)
            for effect, spec in zip(effects, specs, strict=True)
            if (apis := self._orders.apis_for(spec.kind))
        ]
        if not wanted:
            return {}
        try:
            found: dict[AttemptId, Access | PortFailed] = yield Admit(wanted)
        except PortFailed as error:
            return {request.attempt: error for request in wanted}
        return found

    def _order(self, effects: Sequence[StartAttempt], places: Mapping[AttemptId, Workspace | WorkFailure]) -> Duty:
        if not effects:
            return
        specs = yield from self._specs(effects)
        workers = yield Peek(lambda state: {each.id: each.worker for effect in effects if (each := state.agents.get(effect.agent))})
        slots = yield Peek(lambda state: {each.id: each.spec for effect in effects if (each := state.agents.get(effect.agent))})
        earlier = yield from self._known(effects)
        remote = yield Peek(lambda state: self.node in state.nodes and state.nodes[self.node].spec.remote)
        orders: list[AttemptOrder] = []
        passes = yield from self._admit(effects, specs)
        for effect, spec in zip(effects, specs, strict=True):
            attempt = AttemptId(effect.task, effect.attempt)
            place = places.get(attempt)
            if isinstance(place, WorkFailure):
                yield Remark("no-workspace", {"node": self.node, "attempt": str(attempt), "code": place.code, "reason": place.message})
                yield Tell(no_workspace(self.node, place))
                continue
            access = passes.get(attempt)
            if isinstance(access, PortFailed):
                yield Remark("no-way-through-the-gateway", {"node": self.node, "attempt": str(attempt), "reason": str(access)})
                deferred = Outcome(OutcomeKind.DEFERRED, f"it could not be let through the gateway: {access}")
                yield Tell([c.AttemptFinished(attempt.task, attempt.number, deferred)])
                continue
            try:
                slot = slots.get(effect.agent) or AgentSpec(effect.agent, self.node)
                before = earlier[effect.agent]
                orders.append(self._orders.make(spec, attempt, slot, remote=remote, earlier=before, place=place, access=access))
            except BadInput as error:
                yield Tell([refused(attempt, str(error))])
        hit("before-order")
        failures = yield Call("order", (orders,))
        hit("after-order")
        for failure in failures:
            yield Remark("order-failed", {"node": self.node, "attempt": str(failure.attempt), "code": failure.code})
            worker = workers.get(failure.agent)
            if failure.code == "no-worker" and worker is None:
                yield WantSweep()  # its worker is about to come, or its fall is about to be told
            else:
                yield Tell(order_failed(self.node, failure, worker))


def order_failed(node: NodeId, failure: OrderFailure, worker: Worker | None) -> list[c.Command]:
    """Returns what an order that could not be delivered means to the core; `worker` is who was to get it."""
    if failure.code == "no-worker":
        return [c.WorkerFell(failure.agent, worker, "its worker does not listen")]
    if failure.code == "io":  # the node is to blame, not the task: it goes elsewhere
        reason = f"node {node} could not take the order: {failure.message}"
        lost = c.AttemptFinished(failure.attempt.task, failure.attempt.number, Outcome(OutcomeKind.LOST, reason))
        return [c.NodeTroubled(node, reason), lost]
    return [refused(failure.attempt, failure.message)]


def no_workspace(node: NodeId, failure: WorkFailure) -> list[c.Command]:
    """Returns what it means to the core that an attempt has no place to work in: elsewhere, later, or somebody has to mend it."""
    task, number = failure.attempt
    reason = f"no workspace on node {node}: {failure.message}"
    if failure.code == "disk":
        return [c.NodeTroubled(node, reason), c.AttemptFinished(task, number, Outcome(OutcomeKind.LOST, reason))]
    if failure.code in ("locked", "failed", "stale"):
        return [c.AttemptFinished(task, number, Outcome(OutcomeKind.FAILED, reason))]
    return [refused(failure.attempt, failure.message + (f" ({failure.hint})" if failure.hint else ""))]


def refused(attempt: AttemptId, reason: str) -> c.Command:
    """Returns the end of an attempt that could not be carried out at all."""
    return c.AttemptFinished(attempt.task, attempt.number, Outcome(OutcomeKind.REFUSED, reason))


def is_condemned(state: State, number: AgentId, worker: Worker) -> bool:
    """Tells whether the worker is still to be killed."""
    agent = state.agents.get(number)
    return agent is None or (agent.worker == worker and agent.suspicion is not None and agent.suspicion.step == "forced")


def window_names(state: State, agents: Sequence[AgentId]) -> list[AgentWindow]:
    """Returns the windows of the slots that still exist and have not been given up meanwhile."""
    found: list[AgentWindow] = []
    for number in dict.fromkeys(agents):
        agent = state.agents.get(number)
        breaker = None if agent is None else state.nodes[agent.spec.node].breaker
        if agent is not None and agent.status is not AgentStatus.ERROR and (breaker is None or breaker.canary == number):
            found.append(AgentWindow(number, agent.spec.name or f"agent-{number:03}"))
    return found
