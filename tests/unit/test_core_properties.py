"""Any requests and any reports in any order: invariants and replay hold after each (`Bench` checks both), and when agents behave everything ends."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Strategy, TaskSpec, Worker
from orchestra.errors import BadInput, Refused
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.testing.builders import Bench, make_task

NODES = (NodeSpec(NodeId("n1"), max_agents=4), NodeSpec(NodeId("n2"), max_agents=4))
KINDS = ("any", "shell", "rehearsal")
POLICY = c.Policy(losses_max=2, falls_max=2, unknown_grace_ms=5_000, init_timeout_ms=3_000)
ROUNDS_MAX = 400
"""Rounds after which well-behaved agents must be through; each round ends every live attempt."""

numbers = st.integers(1, 6)
nodes = st.sampled_from([node.id for node in NODES])
outcomes = st.sampled_from(list(OutcomeKind))


def agent(number: int, node: NodeId, kind: str) -> AgentSpec:
    return AgentSpec(AgentId(number), node, kind)


class AnyOrder(RuleBasedStateMachine):
    """The core under everything that people, agents and nodes may do to it."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(policy=POLICY)
        self.plans = 0
        self.workers = 1000

    @initialize(up=st.sampled_from([4, 4, 4, 2, 0]))
    def begin(self, up: int) -> None:
        """Mostly a fleet that is up, since most that can happen happens to one."""
        self.start(4, "any")
        for node in NODES[: 2 if up else 0]:
            self.node_up(node.id)
        for number in range(1, up + 1):
            self.worker_seen(number, fresh=True)

    def do(self, command: c.Command) -> None:
        """A refusal is an answer; anything else that is raised is a bug."""
        try:
            self.bench.do(command)
        except (Refused, BadInput):
            return

    def task_at(self, index: int) -> TaskId:
        names = list(self.bench.state.tasks) or [TaskId("none")]
        return names[index % len(names)]

    def attempt_at(self, index: int) -> tuple[TaskId, int]:
        """A live attempt where there is one, else any."""
        live = [(attempt_id.task, attempt_id.number) for attempt_id, _ in self.bench.state.live_attempts()]
        return live[index % len(live)] if live else (self.task_at(index), 1)

    def worker_of(self, number: int, fresh: bool) -> Worker | None:
        known = self.bench.state.agents.get(AgentId(number))
        if not fresh:
            return None if known is None else known.worker
        self.workers += 1
        return Worker(self.workers, 1)

    # --- requests ----------------------------------------------------------------------------------------------------

    @rule(
        count=st.integers(1, 4),
        shape=st.integers(0, 63),
        replicas=st.integers(1, 2),
        retries=st.integers(0, 2),
        kind=st.sampled_from(KINDS[1:]),
        strategy=st.sampled_from(list(Strategy)),
        pinned=st.sampled_from([None, NODES[0].id]),
        outside=st.booleans(),
    )
    def submit(
        self, count: int, shape: int, replicas: int, retries: int, kind: str, strategy: Strategy, pinned: NodeId | None, outside: bool
    ) -> None:
        self.plans += 1
        plan = f"p{self.plans}"
        specs: list[TaskSpec] = []
        for index in range(count):
            needs = [TaskId(f"{plan}/{before}") for before in range(index) if shape >> (index + before) & 1]
            if outside and index == 0 and self.bench.state.tasks:
                needs.append(self.task_at(shape))
            fields = {"replicas": replicas if index == 1 else 1, "strategy": strategy, "node": pinned}
            specs.append(make_task(str(index), plan=plan, needs=tuple(needs), kind=kind, retries=retries, **fields))
        self.do(c.Submit(tuple(specs), c.PlanHead(PlanId(plan), plan, "digest")))

    @rule(index=st.integers(0, 50))
    def cancel(self, index: int) -> None:
        self.do(c.CancelTask(self.task_at(index), "not needed"))

    @rule(index=st.integers(1, 9))
    def cancel_plan(self, index: int) -> None:
        self.do(c.CancelPlan(PlanId(f"p{index}"), "not needed"))

    @rule(index=st.integers(0, 50))
    def retry(self, index: int) -> None:
        self.do(c.RetryTask(self.task_at(index)))

    @rule(size=st.integers(0, 6), node=nodes, kind=st.sampled_from(KINDS))
    def scale(self, size: int, node: NodeId, kind: str) -> None:
        state = self.bench.state
        staying = sum(each.status.value != "draining" for each in state.agents.values())
        free = [number for number in range(1, 20) if AgentId(number) not in state.agents]
        self.do(c.Scale(size, "gradual", tuple(agent(number, node, kind) for number in free[: max(0, size - staying)])))

    @rule(number=numbers)
    def restart(self, number: int) -> None:
        self.do(c.RestartAgent(AgentId(number)))

    @rule(drain=st.booleans(), graceful=st.booleans())
    def shut_down(self, drain: bool, graceful: bool) -> None:
        self.do(c.ShutDown(drain, graceful, 4_000))

    @rule(count=st.integers(1, 4), kind=st.sampled_from(KINDS))
    def start(self, count: int, kind: str) -> None:
        self.do(c.Init("t", NODES, tuple(agent(n, NODES[n % 2].id, kind) for n in range(1, count + 1))))

    @rule()
    def take_over(self) -> None:
        self.do(c.TakeLead(2, 2, "host", "0"))

    # --- reports -----------------------------------------------------------------------------------------------------

    @rule(node=nodes)
    def node_up(self, node: NodeId) -> None:
        self.do(c.NodeUp(node, "boot", "session"))

    @rule(node=nodes)
    def node_down(self, node: NodeId) -> None:
        self.do(c.NodeDown(node, "no answer"))

    @rule(number=numbers, fresh=st.booleans())
    def worker_seen(self, number: int, fresh: bool) -> None:
        worker = self.worker_of(number, fresh)
        if worker is not None:
            self.do(c.WorkerSeen(AgentId(number), worker))

    @rule(number=numbers, known=st.booleans())
    def worker_fell(self, number: int, known: bool) -> None:
        self.do(c.WorkerFell(AgentId(number), self.worker_of(number, fresh=False) if known else None, "gone"))

    @rule(number=numbers)
    def agent_closed(self, number: int) -> None:
        self.do(c.AgentClosed(AgentId(number)))

    @rule(index=st.integers(0, 20), step=st.integers(0, 2))
    def attempt_goes_on(self, index: int, step: int) -> None:
        task, number = self.attempt_at(index)
        kinds = (c.AttemptBegan(task, number, 4711, 1), c.AttemptChecking(task, number), c.AttemptSeen(task, number))
        self.do(kinds[step])

    @rule(index=st.integers(0, 20), kind=outcomes, earlier=st.booleans())
    def attempt_ends(self, index: int, kind: OutcomeKind, earlier: bool) -> None:
        task, number = self.attempt_at(index)
        self.do(c.AttemptFinished(task, max(1, number - earlier), Outcome(kind, kind.value)))

    @rule(ms=st.sampled_from([0, 100, 1_000, 4_000, 60_000]))
    def time_passes(self, ms: int) -> None:
        self.bench.pass_time(ms)

    # --- the end -----------------------------------------------------------------------------------------------------

    def teardown(self) -> None:
        """From here on everybody behaves: every task that can be run is run, and every plan is closed."""
        for _ in range(ROUNDS_MAX):
            if self.settled():
                break
            self.behave()
        state = self.bench.state
        assert state.lifecycle.value in ("ready", "running")
        assert not state.live
        assert not state.waiting
        assert not state.queued, [self.bench.status(task) for task in state.queued]
        assert all(task.over for task in state.tasks.values()), [str(task.status) for task in state.tasks.values()]
        assert all(not plan.open and plan.status.value != "running" for plan in state.plans.values())

    def settled(self) -> bool:
        state = self.bench.state
        return state.lifecycle.value in ("ready", "running") and not (state.live or state.waiting or state.queued)

    def behave(self) -> None:
        bench, state = self.bench, self.bench.state
        for node in state.nodes.values():
            if node.status.value != "ready":
                self.do(c.NodeUp(node.spec.id, "boot", "session"))
        for each in list(state.agents.values()):
            if each.status.value == "error":
                self.do(c.RestartAgent(each.id))
            if each.status.value == "draining" and each.task is None:
                self.do(c.AgentClosed(each.id))
            elif each.status.value in ("starting", "offline"):
                worker = self.worker_of(each.id, fresh=True)
                assert worker is not None
                self.do(c.WorkerSeen(each.id, worker))
        for attempt_id, _ in list(state.live_attempts()):
            self.do(c.AttemptFinished(attempt_id.task, attempt_id.number, Outcome(OutcomeKind.DONE)))
        fleet = tuple(agent(n, NODES[n % 2].id, "any") for n in range(1, 5))
        if state.lifecycle.value in ("terminated", "failed"):
            self.do(c.Init("t", NODES, fleet))
        elif state.lifecycle.value in ("ready", "running"):
            self.make_able()
        bench.pass_time(2_000)

    def make_able(self) -> None:
        """A fleet that was scaled to something that cannot run all there is gets agents that can: two of any kind on the node tasks are pinned to."""
        state, home = self.bench.state, NODES[0]
        there = state.agents_on(home.id)
        if sum(each.spec.kind == "any" for each in there) >= 2:
            return
        if len(there) > 2:
            self.do(c.Scale(0, "gradual"))
            return
        free = [number for number in range(1, 30) if AgentId(number) not in state.agents][:2]
        self.do(c.Scale(len(state.agents) + 2, "gradual", tuple(agent(number, home.id, "any") for number in free)))


AnyOrder.TestCase.settings = settings(
    max_examples=60, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = AnyOrder.TestCase
