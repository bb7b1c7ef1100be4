"""Any requests and any reports in any order: invariants and replay hold after each (`Bench` checks both), and when agents behave everything ends."""

from __future__ import annotations

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Strategy, TaskSpec, Worker
from orchestra.core.state import AgentState
from orchestra.errors import BadInput, Refused
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.testing.builders import Bench, make_task

NODES = (NodeSpec(NodeId("n1"), max_agents=4), NodeSpec(NodeId("n2"), max_agents=4))
LATER = NodeId("n3")
"""A machine that is taken in while the orchestra runs."""
KINDS = ("any", "shell", "rehearsal")
POLICY = c.Policy(
    losses_max=2,
    falls_max=2,
    unknown_grace_ms=5_000,
    init_timeout_ms=3_000,
    strikes_max=2,
    probe_ms=500,
    graceful_ms=1_000,
    start_timeout_ms=5_000,
    outage_agents_min=2,
    futile_starts_max=3,
    reserve=2,
    scale_step=2,
)
"""Small figures, so that a few steps reach every rule."""
ROUNDS_MAX = 400
"""Rounds after which well-behaved agents must be through; each round ends every live attempt."""

numbers = st.integers(1, 7)
any_nodes = st.sampled_from([*(node.id for node in NODES), LATER])
strategies = st.sampled_from(["gradual", "immediate"])
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
        self.deaf = False
        """In the end, silent workers stay silent and have to be killed; else they speak again."""

    @initialize(up=st.sampled_from([4, 4, 4, 2, 0]), deaf=st.booleans())
    def begin(self, up: int, deaf: bool) -> None:
        """Mostly a fleet that is up, since most that can happen happens to one."""
        self.deaf = deaf
        self.start(4, "any")
        for node in NODES[: 2 if up else 0]:
            self.node_up(node.id)
        for number in range(1, up + 1):
            self.worker_seen(number, fresh=True)

    def do(self, *commands: c.Command) -> None:
        """A refusal is an answer; anything else that is raised is a bug."""
        try:
            self.bench.do(*commands)
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

    @rule(size=st.integers(0, 7), node=any_nodes, kind=st.sampled_from(KINDS), strategy=strategies)
    def scale(self, size: int, node: NodeId, kind: str, strategy: str) -> None:
        state = self.bench.state
        staying = sum(each.status.value != "draining" for each in state.agents.values())
        free = [number for number in range(1, 20) if AgentId(number) not in state.agents]
        self.do(c.Scale(size, strategy, tuple(agent(number, node, kind) for number in free[: max(0, size - staying)])))

    @rule(node=any_nodes, size=st.integers(2, 5))
    def add_node(self, node: NodeId, size: int) -> None:
        self.do(c.AddNode(NodeSpec(node, max_agents=size)))

    @rule(node=any_nodes)
    def drain_node(self, node: NodeId) -> None:
        self.do(c.DrainNode(node))

    @rule(node=any_nodes)
    def resume_node(self, node: NodeId) -> None:
        self.do(c.ResumeNode(node))

    @rule(node=any_nodes, force=st.booleans(), vanishes=st.booleans())
    def remove_node(self, node: NodeId, force: bool, vanishes: bool) -> None:
        """Sometimes in the same turn in which it is lost."""
        before = (c.NodeDown(node, "switched off"),) if vanishes else ()
        self.do(*before, c.RemoveNode(node, force))

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

    @rule(node=any_nodes)
    def node_up(self, node: NodeId) -> None:
        self.do(c.NodeUp(node, "boot", "session"))

    @rule(node=any_nodes)
    def node_down(self, node: NodeId) -> None:
        self.do(c.NodeDown(node, "no answer"))

    @rule(node=any_nodes)
    def node_troubled(self, node: NodeId) -> None:
        self.do(c.NodeTroubled(node, "its disk is full"))

    @rule(which=st.sets(numbers, min_size=1, max_size=4), missed=st.booleans(), known=st.booleans())
    def heart(self, which: set[int], missed: bool, known: bool) -> None:
        workers = [(AgentId(number), self.worker_of(number, fresh=not known)) for number in sorted(which)]
        self.do(*(c.BeatMissed(number, worker, "no beat") if missed else c.BeatBack(number, worker) for number, worker in workers))

    @rule(which=st.sets(numbers, min_size=2, max_size=7))
    def many_fall(self, which: set[int]) -> None:
        self.do(*(c.WorkerFell(AgentId(number), self.worker_of(number, fresh=False), "killed") for number in sorted(which)))

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
        at_rest = all(each.status.value in ("idle", "busy") for each in state.agents.values())
        return at_rest and state.lifecycle.value in ("ready", "running") and not (state.live or state.waiting or state.queued)

    def behave(self) -> None:
        bench, state = self.bench, self.bench.state
        self.mend_nodes()
        for number in list(state.agents):
            if number in state.agents:
                self.tend(number)
        for attempt_id, attempt in list(state.live_attempts()):
            self.work_off(attempt_id.task, attempt_id.number, state.agents[attempt.agent])
        fleet = tuple(agent(n, NODES[n % 2].id, "any") for n in range(1, 5))
        if state.lifecycle.value in ("terminated", "failed"):
            self.do(c.Init("t", NODES, fleet))
        elif state.lifecycle.value in ("ready", "running"):
            self.make_able()
        bench.pass_time(2_000)

    def mend_nodes(self) -> None:
        state = self.bench.state
        for spec in NODES:
            if spec.id not in state.nodes:
                self.do(c.AddNode(spec))
        for node in list(state.nodes.values()):
            if node.status.value != "ready":
                self.do(c.NodeUp(node.spec.id, "boot", "session"))
            if node.draining:
                self.do(c.ResumeNode(node.spec.id))

    def tend(self, number: AgentId) -> None:
        """A worker comes up where one was asked for, and a silent one speaks or dies."""
        each = self.bench.state.agents[number]
        breaker = self.bench.state.nodes[each.spec.node].breaker
        asked_for = breaker is None or breaker.canary == number
        if each.suspicion is not None:
            if not self.deaf:
                self.do(c.BeatBack(number, each.worker))
            elif each.suspicion.step == "forced":
                self.do(c.WorkerFell(number, each.worker, "killed"))
        elif each.status.value == "error":
            self.do(c.RestartAgent(number))
        elif each.status.value == "draining" and each.task is None:
            self.do(c.AgentClosed(number))
        elif each.status.value == "offline" or (each.status.value == "starting" and asked_for):
            worker = self.worker_of(number, fresh=True)
            assert worker is not None
            self.do(c.WorkerSeen(number, worker))

    def work_off(self, task: TaskId, number: int, holder: AgentState) -> None:
        """A worker that is heard ends what it has; what a dead one had is accounted for, but not while the breaker is tripped."""
        if holder.worker is not None and holder.suspicion is None:
            self.do(c.AttemptBegan(task, number, 4711, 1))
            self.do(c.AttemptFinished(task, number, Outcome(OutcomeKind.DONE)))
        elif holder.worker is None and self.bench.state.nodes[holder.spec.node].breaker is None:
            self.do(c.AttemptFinished(task, number, Outcome(OutcomeKind.LOST)))

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
    max_examples=100, stateful_step_count=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestAnyOrder = AnyOrder.TestCase
