"""Who goes first, to whom, and what a person is told about it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, Priority, Strategy
from orchestra.ids import AgentId, TaskId
from orchestra.scheduling import place
from orchestra.scheduling.explain import explain
from orchestra.scheduling.rank import critical_path, upward_ranks
from orchestra.scheduling.scheduler import eta_ms
from orchestra.testing.builders import NODE, Bench, make_agents, make_task


def assigned(bench: Bench) -> list[str]:
    """Ids of the tasks that were given to agents, in that order."""
    return [str(attempt_id.task).partition("/")[2] for attempt_id, _ in bench.state.live_attempts()]


def agent_of(bench: Bench, task: str) -> int:
    return bench.task(task).attempts[-1].agent


def test_the_longest_remaining_path_goes_first() -> None:
    bench = Bench(make_agents(2))
    bench.submit(
        make_task("short", estimate_ms=50_000),
        make_task("head", estimate_ms=1_000),
        make_task("tail", "head", estimate_ms=90_000),
        make_task("middle", estimate_ms=60_000),
    )
    assert assigned(bench) == ["head", "middle"]


def test_measured_times_replace_estimates_in_the_next_run() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("slow", estimate_ms=1_000), make_task("fast", estimate_ms=2_000))
    for _ in range(2):
        task = bench.state.agents[AgentId(1)].task
        assert task is not None
        bench.begin(task)
        bench.finish(task, duration_ms=90_000 if "slow" in task else 10)
    bench.submit(make_task("slow", plan="p.2", estimate_ms=1_000), make_task("fast", plan="p.2", estimate_ms=2_000), plan="p.2")
    assert assigned(bench) == ["slow"]


def test_priority_goes_before_path_length_and_overtakes_what_is_queued() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("first"), make_task("long", estimate_ms=10**6), make_task("low", priority=Priority.LOW, estimate_ms=10**7))
    bench.submit(make_task("urgent", plan="q", priority=Priority.CRITICAL), plan="q")
    running = bench.state.agents[AgentId(1)].task
    assert running == "p/long", "what runs is never touched"
    bench.finish(running)
    assert assigned(bench) == ["urgent"]


def test_plans_share_the_fleet() -> None:
    bench = Bench(make_agents(4))
    bench.submit(*(make_task(f"a{n}", estimate_ms=10**6) for n in range(8)))
    bench.submit(*(make_task(f"b{n}", plan="q") for n in range(8)), plan="q")
    for name in ("p/a0", "p/a1"):
        bench.finish(name)
    running = [attempt_id.task for attempt_id, _ in bench.state.live_attempts()]
    assert sum(task.startswith("q/") for task in running) == 2


def fleet(*weights: int) -> tuple[AgentSpec, ...]:
    return tuple(AgentSpec(AgentId(n), NODE, weight=weight) for n, weight in enumerate(weights, 1))


def test_the_most_capable_free_agent_takes_it() -> None:
    bench = Bench(fleet(100, 300, 200))
    bench.submit(make_task("a"))
    assert agent_of(bench, "p/a") == 2


def test_a_long_task_waits_for_a_fast_agent_and_a_short_one_does_not() -> None:
    bench = Bench(fleet(100, 400))
    bench.submit(make_task("first", estimate_ms=10_000), make_task("long", estimate_ms=9_000), make_task("short", estimate_ms=1_000))
    assert agent_of(bench, "p/first") == 2, "2.5 s on the fast one"
    assert bench.status("p/long") == "queued", "4.75 s by waiting for the fast one, 9 s on the slow one"
    assert agent_of(bench, "p/short") == 1
    bench.now_ms += 2_500
    bench.finish("p/first")
    assert agent_of(bench, "p/long") == 2


def test_nobody_waits_for_ever_for_an_agent_that_is_late() -> None:
    bench = Bench(fleet(100, 400))
    bench.submit(make_task("first", estimate_ms=10_000), make_task("long", estimate_ms=9_000))
    bench.pass_time(2_600)
    assert bench.status("p/long") == "queued"
    bench.pass_time(2_400)
    bench.pass_time(6_000)
    assert agent_of(bench, "p/long") == 1


def test_what_soon_is_ready_keeps_the_fast_agent() -> None:
    bench = Bench(fleet(100, 400))
    bench.submit(
        make_task("gate", estimate_ms=4_000),
        make_task("urgent", "gate", estimate_ms=40_000),
        make_task("other", estimate_ms=10_000),
    )
    assert agent_of(bench, "p/gate") == 2
    assert bench.status("p/other") == "assigned", "it would be finished later behind the urgent one"
    assert agent_of(bench, "p/other") == 1


def test_an_even_fleet_never_waits() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("long", estimate_ms=10**7), make_task("a", estimate_ms=1), make_task("b", estimate_ms=1))
    assert assigned(bench) == ["long", "a"]


def test_replicas_and_other_rules_do_not_look_ahead() -> None:
    bench = Bench(fleet(100, 400))
    bench.submit(make_task("first", estimate_ms=10_000), make_task("turn", estimate_ms=9_000, strategy=Strategy.ROUND_ROBIN))
    assert agent_of(bench, "p/turn") == 1


def test_an_outlook_that_is_exhausted_leaves_nobody_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(place, "LOOKS_MAX", 2)
    bench = Bench(fleet(100, 400))
    bench.submit(make_task("first", estimate_ms=10_000), make_task("long", estimate_ms=9_000), make_task("longer", estimate_ms=9_500))
    assert len(assigned(bench)) == 2


@given(
    st.lists(st.tuples(st.integers(0, 50_000), st.integers(0, 3)), min_size=1, max_size=25),
    st.lists(st.integers(10, 500), min_size=1, max_size=6),
)
def test_any_plan_ends_on_any_fleet_with_no_task_given_twice(tasks: list[tuple[int, int]], weights: list[int]) -> None:
    bench = Bench(fleet(*weights))
    names = [f"t{n}" for n in range(len(tasks))]
    bench.submit(*(make_task(names[n], *names[max(0, n - needs) : n], estimate_ms=ms) for n, (ms, needs) in enumerate(tasks)))
    for _ in tasks:
        running = min(
            (a.assigned_ms + bench.task(i.task).spec.estimate_ms * 100 // weights[a.agent - 1], i.task)
            for i, a in bench.state.live_attempts()
        )
        bench.now_ms = max(bench.now_ms, running[0])
        bench.finish(running[1])
    assert bench.plan().open == 0


def test_round_robin_goes_round() -> None:
    bench = Bench(make_agents(3))
    seen = []
    for number in range(5):
        bench.submit(make_task("x", plan=f"q{number}", strategy=Strategy.ROUND_ROBIN), plan=f"q{number}")
        seen.append(agent_of(bench, f"q{number}/x"))
        bench.finish(f"q{number}/x")
    assert seen == [1, 2, 3, 1, 2]


def test_load_based_picks_who_worked_least() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a"))
    bench.now_ms += 5_000
    bench.finish("p/a")
    bench.submit(make_task("b", plan="q", strategy=Strategy.LOAD_BASED), plan="q")
    assert agent_of(bench, "q/b") == 2


def test_weighted_shares_follow_capability() -> None:
    bench = Bench(fleet(100, 300))
    count = {1: 0, 2: 0}
    for number in range(8):
        bench.submit(make_task("x", plan=f"q{number}", strategy=Strategy.WEIGHTED), plan=f"q{number}")
        count[agent_of(bench, f"q{number}/x")] += 1
        bench.finish(f"q{number}/x")
    assert count == {1: 2, 2: 6}


def test_affinity_goes_home_and_waits_for_it_a_while() -> None:
    bench = Bench(make_agents(4))
    bench.submit(make_task("a", affinity="parser", strategy=Strategy.AFFINITY))
    home = agent_of(bench, "p/a")
    bench.submit(make_task("b", plan="q", affinity="parser", strategy=Strategy.AFFINITY), plan="q")
    assert bench.status("q/b") == "queued"
    assert "affinity" in explain(bench.state, TaskId("q/b"), bench.now_ms)
    bench.finish("p/a")
    assert agent_of(bench, "q/b") == home
    bench.submit(make_task("c", plan="r", affinity="parser", strategy=Strategy.AFFINITY), plan="r")
    bench.pass_time(30_000)
    bench.do(c.Tick())
    assert agent_of(bench, "r/c") != home


def test_kinds_and_nodes_are_obeyed() -> None:
    mixed = (AgentSpec(AgentId(1), NODE, kind="shell"), AgentSpec(AgentId(2), NODE, kind="rehearsal"))
    bench = Bench(mixed)
    bench.submit(make_task("r", kind="rehearsal"), make_task("s", kind="shell"), make_task("t", kind="shell"))
    assert agent_of(bench, "p/r") == 2
    assert bench.task("p/s").attempts[0].agent == 1
    assert bench.status("p/t") == "queued"


def test_ranks_and_the_critical_path() -> None:
    specs = [
        make_task("a", estimate_ms=1),
        make_task("b", "a", estimate_ms=10),
        make_task("c", "a", estimate_ms=5),
        make_task("d", "b", "c", estimate_ms=2),
    ]
    ranks = upward_ranks(specs, lambda spec: spec.estimate_ms)
    assert [ranks[spec.id] for spec in specs] == [13, 12, 7, 2]
    tasks = {spec.id: spec for spec in specs}
    assert critical_path(tasks, ranks) == ["p/a", "p/b", "p/d"]


@pytest.mark.parametrize(
    "task, said",
    [
        ("p/b", "p/b waits for p/a (assigned) to complete."),
        ("p/c", "p/c is ready and waits for a free agent of kind 'shell': 1 of 1 are busy, 0 other tasks wait too."),
        ("p/a", "p/a is being started on agent #1."),
    ],
)
def test_explain_says_it_in_one_sentence(task: str, said: str) -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", estimate_ms=10**6), make_task("b", "a"), make_task("c"))
    assert explain(bench.state, TaskId(task), bench.now_ms) == said


def test_an_estimate_of_the_end_grows_with_what_is_ahead() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"), make_task("b"), make_task("c"))
    scheduler = bench.kernel.scheduler
    first = eta_ms(bench.state, scheduler, bench.task("p/a"))
    bench.submit(*(make_task(f"x{n}", plan="q", priority=Priority.CRITICAL) for n in range(5)), plan="q")
    assert eta_ms(bench.state, scheduler, bench.task("p/a")) > first
