"""Deliberate bugs. Each replaces one thing for as long as its context is open; the simulation must notice every one of them.

Only tests use this. A check that no mutant can set off checks nothing: whoever adds a rule to the checker adds the bug that breaks it here.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final
from unittest.mock import patch

import msgspec

from orchestra.agents.ending import outcome as honest_outcome
from orchestra.clocks import system
from orchestra.codec.events import decode
from orchestra.codec.state import decode_state
from orchestra.core import commands as c
from orchestra.core import decide as deciding
from orchestra.core import effects, recovery
from orchestra.core import events as e
from orchestra.core import evolve as evolving
from orchestra.core import transitions as t
from orchestra.core.evolve import evolve
from orchestra.core.model import AgentStatus, NodeStatus, Outcome, OutcomeKind
from orchestra.core.state import AgentState, NodeState, State, TaskState
from orchestra.engine import duties, translate
from orchestra.engine.appending import LookUp, Pause, TryAppend
from orchestra.engine.duties import Ask, Duties, Tell
from orchestra.engine.kernel import Kernel
from orchestra.engine.reconcile import reconcile
from orchestra.errors import LedgerFailed, LedgerUnknown
from orchestra.ids import AgentId, NodeId
from orchestra.ledger import Append, Appended, Snapshot, StoredEvent
from orchestra.node import JournalBatch
from orchestra.scheduling import scheduler
from orchestra.testing.world import coordinator as simulated
from orchestra.testing.world.ledger import SimLedger
from orchestra.testing.world.timeline import Promise
from orchestra.testing.world.worker import Folder, SimWorker

Mutant = Callable[[], Any]


def no_fence_check() -> Any:
    """Any end of a task's attempt is taken for the end of the present one."""

    def finished(s: State, cmd: c.AttemptFinished, now: int, policy: c.Policy) -> list[e.Event]:
        task = s.tasks.get(cmd.task)
        live = [] if task is None else task.live_attempts()
        return [e.AttemptEnded(cmd.task, live[-1].number, cmd.outcome)] if live else []

    return patch.dict(deciding.DECISIONS, {c.AttemptFinished: finished})


def stale_accepted() -> Any:
    """A good result completes its task however late it comes."""
    original = deciding.DECISIONS[c.AttemptFinished]

    def finished(s: State, cmd: c.AttemptFinished, now: int, policy: c.Policy) -> Iterable[e.Event]:
        task = s.tasks.get(cmd.task)
        attempt = None if task is None else task.attempt(cmd.attempt)
        if task is not None and attempt is not None and not attempt.live and not task.over and cmd.outcome.kind is OutcomeKind.DONE:
            return [e.TaskCompleted(cmd.task, cmd.attempt)]
        return original(s, cmd, now, policy)

    return patch.dict(deciding.DECISIONS, {c.AttemptFinished: finished})


def retry_on_unknown() -> Any:
    """After an unknown outcome the append is simply made again, behind whatever is there now."""

    def steps(append: Append) -> Generator[Any, Any, Appended]:
        tries = 0
        while True:
            try:
                appended: Appended = yield TryAppend(append)
            except LedgerUnknown:
                tries += 1
                found: Appended | None = yield LookUp(append.idempotency_id)
                tail = append.expected_seq if found is None else found.last_seq
                append = msgspec.structs.replace(append, expected_seq=tail, idempotency_id=f"{append.idempotency_id}-again-{tries}")
            except LedgerFailed as failed:
                if "full" not in str(failed):
                    raise
                yield Pause(500, str(failed))
            else:
                return appended

    return patch.object(simulated, "append_steps", steps)


def effect_before_append() -> Any:
    """What was decided is acted on before it is durable."""

    def commit(self: simulated.SimCoordinator) -> Generator[Promise, Any, None]:
        self._appends += 1
        append = self.kernel.batch(f"{self.name}-{self._appends}", self.term)
        happened, effects = self.kernel.committed()
        self._dispatch(effects)
        yield self.line.sleep(50)
        appended = yield from self._append(append)
        self._tail_hash = appended.hash
        self.world.checker.check_commit(self, happened)

    return patch.object(simulated.SimCoordinator, "_commit", commit)


def offset_before_records() -> Any:
    """The journal's offset is committed first, what the records say a moment later."""

    def take(self: Duties, batch: JournalBatch) -> Generator[Any, Any, None]:
        commands = [command for record in batch.records for command in self._translator.commands(record)]
        yield Tell([c.JournalAt(self.node, batch.offset)])
        yield Ask(lambda state: None)
        yield Tell(commands)

    return patch.object(Duties, "_take_journal", take)


def offset_not_committed() -> Any:
    """How far the journal was read is forgotten."""
    return patch.dict(deciding.DECISIONS, {c.JournalAt: lambda s, cmd, now, policy: []})


def unverified_completes() -> Any:
    """A task is completed, and needs are met, by work whose checks failed."""
    original = deciding._settle

    def settle(s: State, task: TaskState, now: int, policy: c.Policy) -> Iterable[e.Event]:
        last = task.attempts[-1].outcome
        if last is not None and last.kind is OutcomeKind.UNVERIFIED:
            return [e.TaskCompleted(task.id, len(task.attempts))]
        return original(s, task, now, policy)

    return patch.object(deciding, "_settle", settle)


def checks_not_looked_at() -> Any:
    """What the agent says is believed."""

    def outcome(verdict: Any, end: Any, checks: Any) -> Outcome:
        believed = tuple(msgspec.structs.replace(check, passed=True) for check in checks)
        return honest_outcome(verdict, end, believed)

    return patch.object(translate, "outcome", outcome)


def wall_clock_deadlines() -> Any:
    """The ledger's time is the wall clock's."""
    return patch.object(system.LedgerTime, "now_ms", lambda self: self._clock.wall_ms())


def no_reap_before_retry() -> Any:
    """An attempt whose worker died is over at once; what the worker left of it goes on."""

    def over(s: State, agent_id: AgentId, reason: str) -> list[e.Event]:
        agent = s.agents[agent_id]
        return [] if agent.task is None else [e.AttemptEnded(agent.task, agent.attempt, Outcome(OutcomeKind.LOST, reason))]

    return patch.object(recovery, "lose_attempt", over)


def claim_ignored() -> Any:
    """A worker runs an order as often as it hears it."""

    def take(self: SimWorker, folder: Folder) -> bool:
        folder.claim = self.agent, self.identity
        return True

    return patch.object(SimWorker, "take_claim", take)


def cancel_does_not_follow() -> Any:
    """Nobody tells those who wait for a task that was cancelled."""
    return patch.dict(deciding.CONSEQUENCES, {e.TaskCancelled: lambda s, ev, now, policy: []})


def never_queued_again() -> Any:
    """What was lost is never queued again."""

    def scheduled(s: State, task: TaskState) -> list[e.Event]:
        return []

    return patch.multiple(deciding, requeue_now=scheduled, backoff_ms=lambda spec, failures: 10**12)


@contextmanager
def capacity_ignored() -> Iterator[None]:
    """A busy agent counts as free."""

    def free(state: State, agent: AgentState) -> bool:
        return agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) and state.nodes[agent.spec.node].status is NodeStatus.READY

    def assign(s: State, cmd: c.Assign, now: int, policy: c.Policy) -> list[e.Event]:
        first = len(s.tasks[cmd.task].attempts) + 1
        return [e.AttemptAssigned(cmd.task, first + index, agent) for index, agent in enumerate(cmd.agents)]

    busy: Any = {(AgentStatus.BUSY, e.AttemptAssigned): AgentStatus.BUSY}
    with patch.object(scheduler, "is_free", free), patch.dict(deciding.DECISIONS, {c.Assign: assign}), patch.dict(t.AGENT, busy):
        yield


def replay_skips_a_kind() -> Any:
    """Replay passes over one kind of event."""

    def restore(policy: c.Policy, snapshot: Snapshot | None, events: Iterable[StoredEvent]) -> Kernel:
        kernel = Kernel(policy, None if snapshot is None else decode_state(snapshot.body, snapshot.format))
        for stored in events:
            event = decode(stored.body)
            if isinstance(event, e.AttemptStarted):
                kernel.state.seq = stored.seq
            elif stored.seq > kernel.state.seq:
                evolve(kernel.state, event, stored.seq, stored.at_ms)
        kernel.scheduler.rebuild(kernel.state)
        return kernel

    return patch.object(Kernel, "restore", staticmethod(restore))


def snapshot_of_another_moment() -> Any:
    """A snapshot says it is one event further than it is."""
    original = Kernel.snapshot

    def snapshot(self: Kernel, tail_hash: bytes) -> Snapshot:
        self.state.seq += 1
        taken = original(self, tail_hash)
        self.state.seq -= 1
        return msgspec.structs.replace(taken, seq=self.state.seq)

    return patch.object(Kernel, "snapshot", snapshot)


def term_ignored() -> Any:
    """The ledger takes appends of a coordinator that has been superseded, wherever it ends now."""
    original = SimLedger.append

    def append(self: SimLedger, request: Append, now_ms: int) -> Appended:
        if request.term < self.store_term():
            request = msgspec.structs.replace(request, term=self.store_term(), expected_seq=self.tail().seq)
        return original(self, request, now_ms)

    return patch.object(SimLedger, "append", append)


def falls_not_counted() -> Any:
    """A slot whose workers die one after the other gets a new one for ever."""
    original = evolving.FOLDS[e.AgentLost]

    def lost(s: State, ev: e.AgentLost, at: int) -> None:
        original(s, ev, at)
        s.agents[ev.agent].falls = 0

    return patch.dict(evolving.FOLDS, {e.AgentLost: lost})


def draining_forgets_the_queue() -> Any:
    """A shutdown that drains ends when nothing runs, whatever waits."""

    def terminated(s: State) -> list[e.Event]:
        return [] if s.shutdown is None or s.live or s.lifecycle is not t.L.DRAINING else [e.Terminated()]

    return patch.object(deciding, "_maybe_terminated", terminated)


def _blind(original: Callable[..., Any]) -> Callable[..., Any]:
    """Returns the same function, for which no breaker is tripped."""

    def look(state: State, *rest: Any) -> Any:
        breakers = [(node, node.breaker) for node in state.nodes.values()]
        for node, _ in breakers:
            node.breaker = None
        try:
            return original(state, *rest)
        finally:
            for node, breaker in breakers:
                node.breaker = breaker

    return look


def breaker_ignored_by_reconcile() -> Any:
    """A sweep has everything ended and started that it finds wanting, and nobody asks again before it is done."""
    blind: dict[str, Any] = {name: _blind(getattr(duties, name)) for name in ("reconcile", "window_names", "may_act")}
    return patch.multiple(duties, **blind)


@contextmanager
def reaping_on_mass_death() -> Iterator[None]:
    """What was in hand when most workers of a machine fell is ended at once."""

    def may(state: State, node: NodeId) -> bool:
        return state.nodes[node].status is NodeStatus.READY

    with patch.object(effects, "may_act", may), patch.object(duties, "may_act", may):
        yield


def breaker_never_trips() -> Any:
    """Whatever happens to a machine is taken for the fault of its agents."""
    nothing: Any = {kind: lambda s, ev, now, policy: [] for kind in (e.AgentSuspected,)}
    lost: Any = {e.AgentLost: lambda s, ev, now, policy: recovery.lose_attempt(s, ev.agent, ev.reason)}
    return patch.dict(deciding.CONSEQUENCES, {**nothing, **lost})


@contextmanager
def breaker_never_resets() -> Iterator[None]:
    """Nothing shows that a machine works again."""

    def nothing(*arguments: Any) -> list[e.Event]:
        return []

    with (
        patch.object(deciding, "reset_by_agent", nothing),
        patch.dict(deciding.CONSEQUENCES, {e.AttemptStarted: nothing, e.AgentCleared: nothing}),
    ):
        yield


def canary_floods() -> Any:
    """A machine that is tried gets everything at once."""

    def usable(self: NodeState) -> bool:
        return self.status is NodeStatus.READY and not self.draining and (self.breaker is None or self.breaker.probing)

    return patch.object(NodeState, "usable", property(usable))


def _step(step: str) -> Callable[..., list[e.Event]]:
    def ladder(s: State, agent: AgentState, now: int, policy: c.Policy) -> list[e.Event]:
        doubt = agent.suspicion
        if step == "graceful" and doubt is not None and doubt.strikes < policy.strikes_max:
            return [e.RecoveryStepTaken(agent.id, "probe", now + policy.probe_ms)]
        return [e.RecoveryStepTaken(agent.id, "forced", now + policy.graceful_ms)]

    return ladder


def no_strikes() -> Any:
    """A worker is killed at the first missed beat."""
    return patch.object(recovery, "_ladder", _step("probe"))


def kill_without_asking() -> Any:
    """A silent worker is looked at, and killed without having been asked to leave."""
    return patch.object(recovery, "_ladder", _step("graceful"))


def beat_back_ignored() -> Any:
    """A worker that was silent once is taken for silent for ever."""
    return patch.dict(deciding.DECISIONS, {c.BeatBack: lambda s, cmd, now, policy: []})


@contextmanager
def drained_still_assigned() -> Iterator[None]:
    """A drained node keeps its agents, and they get work."""

    def usable(self: NodeState) -> bool:
        return self.status is NodeStatus.READY and (self.breaker is None or (self.breaker.probing and self.breaker.canary is None))

    def drain(s: State, cmd: c.DrainNode, now: int, policy: c.Policy) -> list[e.Event]:
        return [] if s.node(cmd.node).draining else [e.NodeDraining(cmd.node)]

    with patch.object(NodeState, "usable", property(usable)), patch.dict(deciding.DECISIONS, {c.DrainNode: drain}):
        yield


def scaling_forgets_its_queue() -> Any:
    """A restart forgets which slots a gradual scaling has still to add."""
    original = Kernel.restore

    def restore(policy: c.Policy, snapshot: Snapshot | None, events: Iterable[StoredEvent]) -> Kernel:
        kernel = original(policy, snapshot, events)
        kernel.state.scale_queue.clear()
        return kernel

    return patch.object(Kernel, "restore", staticmethod(restore))


def sweep_race() -> Any:
    """What was seen on a node is compared with what is wanted by the time the answer comes."""
    return patch.object(duties, "reconcile", lambda state, node, found, translator, before: reconcile(state, node, found, translator))


def reserve_unlimited() -> Any:
    """Every slot that is given up is replaced."""
    original = recovery.after_agent_suspended

    def replaced(s: State, ev: e.AgentSuspended, now: int, policy: c.Policy) -> Iterable[e.Event]:
        return original(s, ev, now, msgspec.structs.replace(policy, reserve=1000))

    return patch.object(deciding, "after_agent_suspended", replaced)


def outage_is_charged() -> Any:
    """What fell with the machine counts against the agents."""
    original = evolving.FOLDS[e.BreakerTripped]

    def tripped(s: State, ev: e.BreakerTripped, at: int) -> None:
        falls = {agent.id: agent.falls for agent in s.agents_on(ev.node)}
        original(s, ev, at)
        for agent, count in falls.items():
            s.agents[agent].falls = count

    return patch.dict(evolving.FOLDS, {e.BreakerTripped: tripped})


MUTANTS: Final[dict[str, Mutant]] = {
    "no fence check": no_fence_check,
    "stale result accepted": stale_accepted,
    "append again on unknown outcome": retry_on_unknown,
    "effect before append": effect_before_append,
    "journal offset before its records": offset_before_records,
    "journal offset not committed": offset_not_committed,
    "unverified work completes": unverified_completes,
    "checks not looked at": checks_not_looked_at,
    "wall clock deadlines": wall_clock_deadlines,
    "no reap before retry": no_reap_before_retry,
    "claim ignored": claim_ignored,
    "cancel does not follow": cancel_does_not_follow,
    "never queued again": never_queued_again,
    "capacity ignored": capacity_ignored,
    "replay skips a kind": replay_skips_a_kind,
    "snapshot of another moment": snapshot_of_another_moment,
    "superseded coordinator appends": term_ignored,
    "falls not counted": falls_not_counted,
    "draining forgets the queue": draining_forgets_the_queue,
    "reaping on mass death": reaping_on_mass_death,
    "breaker never trips": breaker_never_trips,
    "breaker never resets": breaker_never_resets,
    "breaker ignored by reconcile": breaker_ignored_by_reconcile,
    "canary floods": canary_floods,
    "outage is charged": outage_is_charged,
    "no strikes": no_strikes,
    "kill without asking": kill_without_asking,
    "beat back ignored": beat_back_ignored,
    "drained node still assigned": drained_still_assigned,
    "gradual scaling forgets its queue": scaling_forgets_its_queue,
    "sweep race": sweep_race,
    "reserve unlimited": reserve_unlimited,
}
"""By the name they have in the table of catching seeds."""
