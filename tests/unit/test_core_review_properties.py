"""Plans that grow and reviews that refuse, in any order: invariants and replay hold after each step (`Bench` checks both), nobody builds on work that its review has
not approved, and when agents behave everything ends."""

from __future__ import annotations

from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule

from orchestra.core import commands as c
from orchestra.core.model import Outcome, OutcomeKind, Review, TaskSpec, TaskStatus
from orchestra.errors import BadInput, Refused
from orchestra.ids import PlanId, TaskId
from orchestra.testing.builders import Bench, make_agents, make_task

ROUNDS_MAX = 300
PLANS_MAX = 3
"""Each step replays everything."""
outcomes = st.sampled_from([*[OutcomeKind.DONE] * 6, OutcomeKind.FAILED, OutcomeKind.LOST, OutcomeKind.STOPPED])


class Growing(RuleBasedStateMachine):
    """A fleet that is up, and plans whose agents return what they like."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(make_agents(3), c.Policy(planning_depth_max=2, planned_tasks_max=4))
        self.plans = 0

    def do(self, *commands: c.Command) -> None:
        """A refusal is an answer; anything else that is raised is a bug."""
        try:
            self.bench.do(*commands)
        except (Refused, BadInput):
            return
        self.check_nobody_builds_on_what_is_not_approved()

    def check_nobody_builds_on_what_is_not_approved(self) -> None:
        tasks = self.bench.state.tasks
        for task in tasks.values():
            begun = bool(task.live_attempts()) or task.status in (TaskStatus.QUEUED, TaskStatus.COMPLETED)
            gates = [gate for need in task.spec.needs for gate in tasks[need].spec.gates if begun and gate != task.id]
            for gate in gates:
                between = gate in task.spec.gates or tasks[gate].spec.origin is not None
                assert between or tasks[gate].status is TaskStatus.COMPLETED, f"{task.id} has begun before {gate}"

    def task_at(self, index: int) -> TaskId:
        names = list(self.bench.state.tasks) or [TaskId("none")]
        return names[index % len(names)]

    @rule(
        shape=st.integers(0, 2**10 - 1),
        reviews=st.lists(st.integers(0, 2), min_size=1, max_size=2),
        planner=st.sampled_from([None, 0, 1]),
        alone=st.booleans(),
    )
    def submit(self, shape: int, reviews: list[int], planner: int | None, alone: bool) -> None:
        if self.plans >= PLANS_MAX:
            return
        self.plans += 1
        plan = f"p{self.plans}"
        specs: list[TaskSpec] = []
        for index in range(5):
            needs = [TaskId(f"{plan}/{before}") for before in range(index) if shape >> (index * (index - 1) // 2 + before) & 1]
            fields: dict[str, Any] = {"retries": 1, "backoff_ms": 0, "isolated": index == 2 and alone}
            work = reviews.pop() if reviews and index >= 3 else None
            if work is not None and work < index:
                fields |= {"returns": "review", "reviews": TaskId(f"{plan}/{work}")}
                needs += [] if fields["reviews"] in needs else [fields["reviews"]]
            elif planner == index:
                fields |= {"returns": "plan"}
            specs.append(make_task(str(index), plan=plan, needs=tuple(needs), **fields))
        self.do(c.Submit(tuple(specs), c.PlanHead(PlanId(plan), plan, "digest")))

    @rule(index=st.integers(0, 40))
    def later(self, index: int) -> None:
        name = f"late{len(self.bench.state.tasks)}"
        self.do(c.Submit((make_task(name, plan=None, needs=(self.task_at(index),)),)))

    @rule(index=st.integers(0, 5), kind=outcomes, planned=st.integers(0, 4), approved=st.booleans())
    def attempt_ends(self, index: int, kind: OutcomeKind, planned: int, approved: bool) -> None:
        live = [(attempt.task, attempt.number) for attempt, _ in self.bench.state.live_attempts()]
        if live:
            self.end(*live[index % len(live)], kind, planned, approved)

    @rule(approved=st.booleans(), planned=st.integers(1, 3))
    def all_succeed(self, approved: bool, planned: int) -> None:
        for attempt, _ in list(self.bench.state.live_attempts()):
            self.end(attempt.task, attempt.number, OutcomeKind.DONE, planned, approved)
        for task in list(self.bench.state.merging):
            self.do(c.MergeDone(task, self.bench.state.tasks[task].merging, "branch", "commit"))

    def end(self, task: TaskId, number: int, kind: OutcomeKind, planned: int, approved: bool) -> None:
        """An end with what the task had to return: a chain of tasks, of which the second reviews the first and the third plans; or a review."""
        spec = self.bench.state.tasks[task].spec
        review = Review(approved, "so") if spec.returns == "review" else None
        chain: list[TaskSpec] = []
        for index in range(planned if spec.returns == "plan" else 0):
            before = chain[-1].id if chain else task
            more: dict[str, Any] = {1: {"returns": "review", "reviews": before}, 2: {"returns": "plan"}}.get(index, {})
            ident = {"id": TaskId(f"{task}.{index}"), "plan": spec.plan, "needs": (before,), "depth": spec.depth + 1, "origin": task}
            chain.append(make_task("x", **{**ident, **more}))
        self.do(
            c.AttemptBegan(task, number, 4711, 1), c.AttemptFinished(task, number, Outcome(kind, kind.value, review=review), tuple(chain))
        )

    @rule(index=st.integers(0, 40))
    def cancel(self, index: int) -> None:
        self.do(c.CancelTask(self.task_at(index), "not needed"))

    @rule(index=st.integers(1, 5))
    def cancel_plan(self, index: int) -> None:
        self.do(c.CancelPlan(PlanId(f"p{index}"), "not needed"))

    @rule(index=st.integers(0, 40))
    def retry(self, index: int) -> None:
        self.do(c.RetryTask(self.task_at(index)))

    @rule(index=st.integers(0, 3))
    def merge_conflicts(self, index: int) -> None:
        merging = list(self.bench.state.merging)
        if merging:
            task = merging[index % len(merging)]
            self.do(c.MergeConflicted(task, self.bench.state.tasks[task].merging, ("f",), "both sides"))

    @rule()
    def time_passes(self) -> None:
        self.bench.pass_time(1_000)

    def teardown(self) -> None:
        """From here on everybody behaves: every task that can be run is run, and every plan is closed."""
        for _ in range(ROUNDS_MAX):
            self.all_succeed(True, 1)
            self.bench.pass_time(1_000)
            if not (self.bench.state.live or self.bench.state.waiting or self.bench.state.queued or self.bench.state.merging):
                break
        state = self.bench.state
        assert all(task.over for task in state.tasks.values()), [(task.id, str(task.status)) for task in state.tasks.values()]
        assert all(not plan.open and plan.status.value != "running" for plan in state.plans.values())


Growing.TestCase.settings = settings(
    max_examples=60, stateful_step_count=30, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)
TestGrowing = Growing.TestCase
