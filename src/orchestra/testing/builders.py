"""Builders for tests: short ways to a task, a fleet, a kernel that is driven by hand against a ledger in memory."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orchestra.codec.state import encode_state
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import Effect
from orchestra.core.invariants import check_invariants
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Payload, TaskSpec, Worker
from orchestra.core.state import AgentState, NodeState, PlanState, State, TaskState
from orchestra.engine.kernel import Happened, Kernel
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.ledgers.memory import MemoryLedger

NODE = NodeId("local")


def make_task(name: str, *needs: str, plan: str | None = "p", **fields: Any) -> TaskSpec:
    """Returns a task of plan `p` that runs `true`, with the given needs."""
    prefix = "" if plan is None else f"{plan}/"
    spec = {
        "id": TaskId(prefix + name),
        "description": f"does {name}",
        "payload": Payload("command", "true"),
        "plan": None if plan is None else PlanId(plan),
        "needs": tuple(TaskId(prefix + need) for need in needs),
        "backoff_ms": 1000,
        **fields,
    }
    return TaskSpec(**spec)


def make_agents(count: int, node: str = NODE, first: int = 1, **fields: Any) -> tuple[AgentSpec, ...]:
    """Returns that many agents from #first on, on one node: the local one unless told otherwise."""
    return tuple(AgentSpec(AgentId(number), NodeId(node), **fields) for number in range(first, first + count))


class Bench:
    """A kernel, a ledger in memory, and time that moves when told. Every commit checks the invariants and that replay gives the same state."""

    def __init__(self, agents: Iterable[AgentSpec] = (), policy: c.Policy | None = None, nodes: Sequence[NodeSpec] = ()) -> None:
        self.ledger = MemoryLedger()
        self.policy = policy or c.Policy()
        self.kernel = Kernel(self.policy)
        self.term = self.ledger.claim_term()
        self.now_ms = 1_000_000
        self.effects: list[Effect] = []
        self._appends = 0
        self._workers = 10_000
        self.do(c.TakeLead(self.term, 1, "host", "0"))
        fleet = tuple(agents)
        if fleet:
            self.start_fleet(fleet, nodes)

    @property
    def state(self) -> State:
        return self.kernel.state

    def start_fleet(self, fleet: tuple[AgentSpec, ...], nodes: Sequence[NodeSpec] = ()) -> None:
        """Initialises with these agents and has all their workers come up; on the local node unless told otherwise."""
        machines = tuple(nodes) or (NodeSpec(NODE),)
        self.do(c.Init("test", machines, fleet), *(c.NodeUp(node.id, "boot", "session") for node in machines))
        self.do(*(c.WorkerSeen(agent.id, Worker(100 + agent.id, 1)) for agent in fleet))

    def do(self, *commands: c.Command) -> list[e.Event]:
        """Takes the commands as one turn, assigns, commits; returns what happened. A refusal is raised and leaves everything as it was."""
        for command in commands:
            self.kernel.take(command, self.now_ms)
        self.kernel.schedule(self.now_ms)
        return [each.event for each in self._commit()]

    def _commit(self) -> list[Happened]:
        if not self.kernel.pending:
            return []
        self._appends += 1
        self.ledger.append(self.kernel.batch(f"test-{self._appends}", self.term))
        happened, effects = self.kernel.committed()
        self.effects += effects
        check_invariants(self.state)
        self.check_replay()
        return happened

    def check_replay(self) -> None:
        """Raises if folding the ledger does not give the live state, byte for byte."""
        replayed = Kernel.restore(self.policy, None, self.ledger.read())
        assert encode_state(replayed.state) == encode_state(self.state), "replay differs from the live state"

    def pass_time(self, ms: int) -> list[e.Event]:
        """Moves time on and lets what was due happen."""
        self.now_ms += ms
        return self.do(c.Tick())

    def take_over(self) -> None:
        """The coordinator is killed; another reads the ledger and takes the lead."""
        self.kernel = Kernel.restore(self.policy, None, self.ledger.read())
        self.term = self.ledger.claim_term()
        self.do(c.TakeLead(self.term, 1, "host", "0"))

    def come_up(self, *numbers: int) -> list[e.Event]:
        """Each of the slots gets a worker that was not there before."""
        self._workers += len(numbers)
        fresh = range(self._workers - len(numbers), self._workers)
        return self.do(*(c.WorkerSeen(AgentId(number), Worker(pid, 1)) for number, pid in zip(numbers, fresh, strict=True)))

    def fall(self, *numbers: int) -> list[e.Event]:
        """The workers of the slots die, all in one turn."""
        return self.do(*(c.WorkerFell(AgentId(number), self.agent(number).worker, "killed") for number in numbers))

    def go_silent(self, *numbers: int) -> list[e.Event]:
        """The workers of the slots live and are not heard of, all in one turn."""
        return self.do(*(c.BeatMissed(AgentId(number), self.agent(number).worker, "no beat") for number in numbers))

    def speak(self, *numbers: int) -> list[e.Event]:
        """The workers of the slots are heard again."""
        return self.do(*(c.BeatBack(AgentId(number), self.agent(number).worker) for number in numbers))

    def submit(self, *tasks: TaskSpec, plan: str | None = "p") -> list[e.Event]:
        """Submits tasks, as a plan unless told otherwise."""
        head = None if plan is None else c.PlanHead(PlanId(plan), plan.partition(".")[0], "digest")
        return self.do(c.Submit(tasks, head))

    def begin(self, task: str, number: int = 1) -> list[e.Event]:
        """The attempt's process runs."""
        return self.do(c.AttemptBegan(TaskId(task), number, 4711, 1))

    def finish(self, task: str, number: int = 1, kind: OutcomeKind = OutcomeKind.DONE, **fields: Any) -> list[e.Event]:
        """The attempt ends."""
        reason = "" if kind is OutcomeKind.DONE else f"was {kind.value}"
        return self.do(c.AttemptFinished(TaskId(task), number, Outcome(kind, reason, **fields)))

    def agent(self, number: int) -> AgentState:
        """Returns a slot."""
        return self.state.agents[AgentId(number)]

    def node(self, node: str = NODE) -> NodeState:
        """Returns a node; the local one unless told otherwise."""
        return self.state.nodes[NodeId(node)]

    def task(self, task: str) -> TaskState:
        """Returns a task by its full id."""
        return self.state.tasks[TaskId(task)]

    def plan(self, plan: str = "p") -> PlanState:
        """Returns a plan."""
        return self.state.plans[PlanId(plan)]

    def status(self, task: str) -> str:
        """Returns the task's status as a word."""
        return self.task(task).status.value
