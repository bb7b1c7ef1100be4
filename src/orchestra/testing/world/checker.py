"""What must never happen, checked after every append: against the ledger's own words and against what really happened in the world.

The checker folds the ledger for itself (`shadow`), event by event as they become durable, whoever appended them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

from orchestra.codec.events import decode
from orchestra.codec.state import encode_state
from orchestra.core import events as e
from orchestra.core.evolve import evolve
from orchestra.core.invariants import check_indexes, check_invariants, check_needs, check_one
from orchestra.core.model import AgentStatus, Outcome, OutcomeKind, TaskStatus, Usage
from orchestra.core.state import State
from orchestra.engine.kernel import Happened
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.ledger import GENESIS, StoredEvent, chain_hash
from orchestra.testing.world.caution import Caution, broken
from orchestra.testing.world.node import SimNode
from orchestra.testing.world.worker import Folder, Program, SimWorker

if TYPE_CHECKING:
    from orchestra.testing.world.coordinator import SimCoordinator
    from orchestra.testing.world.world import World

TIME_SLACK_MS: Final = 5_000
"""What an append may take, and a little."""
AHEAD_SLACK_MS: Final = 60_000
"""More than an append ever takes; far less than a wall clock jumps."""
ENDING_RECORDS: Final = ("done", "lost")


class Checker:
    """The rules, and the books they need."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.shadow = State()
        self.counts = {"appends": 0, "stale": 0}
        self._hash = GENESIS
        self._ahead_ms = 0
        self._running: dict[TaskId, list[Program]] = {}
        self._started: dict[AttemptId, Program] = {}
        self._completed: dict[TaskId, int] = {}
        self._usage = Usage()
        self._given_up: dict[AttemptId, None] = {}
        self._journal_checked: dict[NodeId, int] = {}
        self.caution = Caution(world, self.shadow)

    # --- the ledger --------------------------------------------------------------------------------------------------

    def absorb(self) -> None:
        """Takes in what has become durable since the last time."""
        stored = self.world.ledger.store._kept.events[self.shadow.seq :]
        if not stored:
            return
        self.counts["appends"] += 1
        touched: dict[TaskId, None] = {}
        for each in stored:
            self._check_chain(each)
            event = decode(each.body)
            self._before(event, each.at_ms)
            self.caution.before(event, each.at_ms)
            self._check_time(each, event)
            evolve(self.shadow, event, each.seq, each.at_ms)
            self._after(event)
            self.caution.after(event, each.at_ms)
            self.world.trace("ledger", each.seq, event)
            task = getattr(event, "task", None)
            if task is not None:
                touched[task] = None
        self.caution.after_append()
        self._check_touched(touched)
        if self.counts["appends"] % self.world.options.check_all_every == 0:
            check_invariants(self.shadow)

    def _check_chain(self, stored: StoredEvent) -> None:
        """INV-LOG: dense and chained."""
        if stored.seq != self.shadow.seq + 1:
            raise broken("INV-LOG", f"event {stored.seq} follows event {self.shadow.seq}")
        self._hash = chain_hash(self._hash, stored.seq, stored.at_ms, stored.body)
        if stored.hash != self._hash:
            raise broken("INV-LOG", f"event {stored.seq} contradicts the chain")
        if stored.at_ms < self.shadow.at_ms:
            raise broken("INV-LOG", f"event {stored.seq} is older than the one before")

    def _check_time(self, stored: StoredEvent, event: e.Event) -> None:
        """INV-TIME: while one coordinator leads, the ledger's time runs as steadily as the world's, whatever the wall clock does."""
        now_ms = self.world.line.now_ms
        if isinstance(event, e.CoordinatorStarted):
            self._ahead_ms = stored.at_ms - now_ms
        elif stored.at_ms - now_ms > self._ahead_ms + now_ms // 100 + AHEAD_SLACK_MS:
            raise broken("INV-TIME", f"event {stored.seq} is {stored.at_ms - now_ms - self._ahead_ms} ms ahead of its coordinator's start")

    def _check_drained(self, at_ms: int) -> None:
        """INV-DRAIN: a shutdown that drains ends early only if nobody is left to work."""
        shutdown = self.shadow.shutdown
        if shutdown is None or not (shutdown.drain and shutdown.graceful) or at_ms >= shutdown.deadline_ms - TIME_SLACK_MS:
            return
        hope = any(agent.status in (AgentStatus.IDLE, AgentStatus.BUSY) for agent in self.shadow.agents.values())
        if hope and (self.shadow.queued or self.shadow.waiting):
            raise broken("INV-DRAIN", "it ended while work was queued and agents were there")

    def _check_touched(self, touched: dict[TaskId, None]) -> None:
        for name in touched:
            task = self.shadow.tasks.get(name)
            if task is None:
                continue
            check_one(task)
            check_needs(self.shadow, task)
            check_indexes(self.shadow, task)
            for attempt in task.live_attempts():
                agent = self.shadow.agents.get(attempt.agent)
                if agent is None or (agent.task, agent.attempt) != (name, attempt.number):
                    raise broken("INV-CAP", f"{name}#{attempt.number} is live on an agent that does not have it")
        if self.shadow.totals.usage != self._usage:
            raise broken("INV-COST", f"accounted {self.shadow.totals.usage}, the accepted ends say {self._usage}")

    # --- one event ---------------------------------------------------------------------------------------------------

    def _before(self, event: e.Event, at_ms: int) -> None:
        """What must hold of the state an event meets."""
        match event:
            case e.CoordinatorStarted(term):
                if term <= self.shadow.term:
                    raise broken("INV-FENCE", f"term {term} follows term {self.shadow.term}")
            case e.AttemptAssigned(task, number, agent):
                holder = self.shadow.agents[agent]
                if holder.task is not None:
                    raise broken("INV-CAP", f"agent {agent} gets {task}#{number} and has {holder.task}#{holder.attempt}")
            case e.Terminated():
                self._check_drained(at_ms)
            case e.AttemptEnded(task, number, outcome):
                self._check_end(AttemptId(task, number), outcome, at_ms)
            case e.StaleResultRecorded(task, number):
                self.counts["stale"] += 1
                attempt = self.shadow.tasks[task].attempt(number)
                if attempt is None or attempt.live:
                    raise broken("INV-FENCE", f"the end of the current attempt {task}#{number} was taken for a stale one")
            case _:
                pass

    def _check_end(self, attempt_id: AttemptId, outcome: Outcome, at_ms: int) -> None:
        attempt = self.shadow.tasks[attempt_id.task].attempt(attempt_id.number)
        if attempt is None or not attempt.live:
            raise broken("INV-FENCE", f"a second end of {attempt_id} was accepted")
        self._usage = self._usage.plus(outcome.usage)
        told = outcome.kind not in (OutcomeKind.LOST, OutcomeKind.REFUSED)
        expected = self.world.usage_of(attempt.node, attempt_id) if told else Usage()
        if outcome.usage != expected:
            raise broken("INV-COST", f"{attempt_id} is accounted {outcome.usage} and used {expected}")
        if self.caution.check_given_up(attempt_id, outcome, at_ms):
            self._given_up[attempt_id] = None

    def _after(self, event: e.Event) -> None:
        match event:
            case e.TaskCompleted(task, number):
                self._check_completed(task, number)
            case e.JournalRead(node, offset):
                self._check_journal(node, offset)
            case _:
                pass

    def _check_completed(self, task: TaskId, number: int) -> None:
        """INV-ONE, against the truth: the attempt that counts has really done its work and passed its checks, and is the only one."""
        self._completed[task] = self._completed.get(task, 0) + 1
        if self._completed[task] > 1:
            raise broken("INV-ONE", f"{task} was completed twice")
        state = self.shadow.tasks[task]
        program = self._started.get(AttemptId(task, number))
        if program is None:
            raise broken("INV-ONE", f"{task}#{number} counts as done and never ran")
        script = program.script
        if script.code or script.signal or (script.lies and state.spec.checks) or program.ending:
            raise broken("INV-ONE", f"{task}#{number} counts as done and did not do its work")

    def _check_journal(self, node: NodeId, offset: int) -> None:
        """INV-JOURNAL: an end the node has told of is in the ledger before the journal's offset passes it."""
        journal = self.world.nodes[node].journal
        start = self._journal_checked.get(node, 0)
        for record in journal[start:offset]:
            task = self.shadow.tasks.get(TaskId(record.task)) if record.kind in ENDING_RECORDS else None
            attempt = None if task is None else task.attempt(record.attempt)
            if attempt is not None and attempt.live:
                raise broken("INV-JOURNAL", f"{record.task}#{record.attempt} is {record.kind} before offset {offset}, and still live")
        self._journal_checked[node] = max(start, offset)

    def check_call(self, owner: SimCoordinator, node: NodeId, method: str, arguments: tuple[Any, ...]) -> None:
        """INV-FALLS: a slot that was given up gets no worker until somebody asks. And what `Caution` has to say."""
        self.caution.check_call(owner, node, method, arguments)
        if method != "open_windows":
            return
        state = owner.kernel.state
        for window in arguments[0]:
            agent = state.agents.get(window.agent)
            if agent is not None and agent.status is AgentStatus.ERROR:
                raise broken("INV-FALLS", f"agent {agent.id} was given up and gets another worker")

    # --- whole states ------------------------------------------------------------------------------------------------

    def check_commit(self, owner: SimCoordinator, happened: Sequence[Happened]) -> None:
        """INV-PROJ: what the coordinator believes is what the ledger says."""
        state = owner.kernel.state
        if happened[-1].seq > self.shadow.seq:
            raise broken("INV-LOG", f"{owner.name} acts on event {happened[-1].seq}, the ledger ends at {self.shadow.seq}")
        if self.counts["appends"] % self.world.options.check_all_every == 0:
            self.compare(state, owner.name)

    def check_restored(self, state: State) -> None:
        """INV-LOG and INV-PROJ at a restart: nothing acknowledged is gone, and replay gives the same state."""
        self.check_acked()
        self.compare(state, "the restarted coordinator")

    def compare(self, state: State, who: str) -> None:
        """INV-PROJ: two folds of the same events are equal, byte for byte."""
        if state.seq == self.shadow.seq and encode_state(state) != encode_state(self.shadow):
            raise broken("INV-PROJ", f"the state of {who} differs from the fold of the ledger at event {state.seq}")

    def check_acked(self) -> None:
        """INV-LOG: every acknowledged event is where it was."""
        stored = [event.hash for event in self.world.ledger.store._kept.events]
        if stored[: len(self.world.ledger.acked)] != self.world.ledger.acked:
            raise broken("INV-LOG", f"{len(self.world.ledger.acked)} events were acknowledged, of which some are gone or altered")

    # --- the world's own books ---------------------------------------------------------------------------------------

    def program_started(self, node: SimNode, folder: Folder, program: Program) -> None:
        """INV-ONE in the world: an attempt runs once, and no two agents work on one task unless they are meant to."""
        attempt = folder.attempt
        if attempt in self._started:
            raise broken("INV-ONE", f"{attempt} was run twice")
        self._started[attempt] = program
        others = [each for each in self._running.get(attempt.task, ()) if each.alive]
        task = self.shadow.tasks.get(attempt.task)
        if task is None or task.attempt(attempt.number) is None:
            raise broken("INV-ONE", f"{attempt} runs and is not in the ledger")
        for other in others:
            siblings = min(attempt.number, other.attempt.number) >= task.round_start and task.spec.replicas > 1
            if not (siblings or attempt in self._given_up or other.attempt in self._given_up):
                raise broken("INV-ONE", f"{attempt} begins while the agent of {other.attempt} still works")
        unmet = [need for need in task.spec.needs if self.shadow.tasks[need].status is not TaskStatus.COMPLETED]
        if unmet:
            raise broken("INV-DAG", f"{attempt} runs and needs {unmet[0]}, which is not completed")
        self._running[attempt.task] = [*others, program]

    def worker_ended(self, node: SimNode, worker: SimWorker) -> None:
        """Only noted in the trace."""
        self.world.trace(node.id, "worker-ended", worker.agent, worker.identity)

    def check_owned(self) -> None:
        """INV-LEAK while the orchestra runs: after some quiet, every process and window belongs to a slot, and none works on what is over."""
        for node in self.world.nodes.values():
            ours = {agent.id: agent for agent in self.shadow.agents_on(node.id)}
            for worker in node.live_workers():
                if worker.agent not in ours:
                    raise broken("INV-LEAK", f"{node.id} has a worker of agent {worker.agent}, which does not exist")
                if ours[worker.agent].worker != worker.identity:
                    raise broken(
                        "INV-LEAK", f"agent {worker.agent} has worker {worker.identity}, the ledger knows {ours[worker.agent].worker}"
                    )
            for agent in node.windows:
                if agent not in ours:
                    raise broken("INV-LEAK", f"{node.id} has a window of agent {agent}, which does not exist")
            for program in node.programs.values():
                raise broken("INV-LEAK", f"an agent still works on {program.attempt}, which is over")
            known = self.shadow.nodes.get(node.id)
            if known is not None and known.journal_offset != len(node.journal) and ours:
                raise broken("INV-JOURNAL", f"{node.id} has {len(node.journal)} records, {known.journal_offset} were read")

    # --- the end -----------------------------------------------------------------------------------------------------

    def check_end(self) -> None:
        """INV-LEAK, and everything once more."""
        check_invariants(self.shadow)
        self.check_acked()
        for node in self.world.nodes.values():
            left = [f"worker of agent {worker.agent}" for worker in node.live_workers()]
            left += [f"window of agent {agent}" for agent in node.windows]
            left += [f"agent process of {program.attempt}" for program in node.programs.values()]
            left += ["courier"] * len(node.viewers)
            if left:
                raise broken("INV-LEAK", f"{node.id} still has a {left[0]} ({len(left)} in all)")
        if self.shadow.live:
            raise broken("INV-LEAK", "attempts are live after the end")
