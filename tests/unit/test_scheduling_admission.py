"""What keeps a ready task from a free agent: memory, load, disk and zones; and what a person is told about it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from orchestra.core import commands as c
from orchestra.core.model import NodeSpec, Outcome, OutcomeKind, Priority, TaskSpec, Worker
from orchestra.ids import AgentId, NodeId, TaskId
from orchestra.scheduling.admission import MIB, AdmissionOptions, ApiGate, Load, model_of
from orchestra.scheduling.explain import explain
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

B = NodeId("b")
SHELL = frozenset({"shell"})
GIB = 1 << 30
CALM = Load(0, cpus=4, load_1m=0.5, memory_bytes=16 * GIB, memory_available_bytes=12 * GIB, disk_free_bytes=100 * GIB)


def measured(bench: Bench, node: str = NODE, **figures: Any) -> None:
    """The node says how it is, now."""
    bench.kernel.loads[NodeId(node)] = msgspec.structs.replace(CALM, at_ms=bench.now_ms, **figures)


def made(agents: int = 8, **options: Any) -> Bench:
    """A fleet on one node whose attempts are expected to need 1 GiB; nothing is kept in reserve."""
    bench = Bench(make_agents(agents))
    bench.kernel.admission = AdmissionOptions(**{"memory_reserve_percent": 0, "footprint_bytes": GIB, **options})
    return bench


def submit(bench: Bench, count: int = 6, plan: str = "p", **fields: Any) -> None:
    bench.submit(*(make_task(str(number), plan=plan, **fields) for number in range(count)), plan=plan)


def running(bench: Bench) -> int:
    return sum(1 for _ in bench.state.live_attempts())


def why(bench: Bench, task: str) -> str:
    return explain(bench.state, TaskId(task), bench.now_ms, bench.kernel.gate(bench.now_ms))


def test_without_figures_everything_is_let_in() -> None:
    bench = made()
    submit(bench)
    assert running(bench) == 6


# --- memory ----------------------------------------------------------------------------------------------------------


def test_only_as_many_start_as_there_is_memory_for() -> None:
    bench = made()
    measured(bench, memory_available_bytes=3 * GIB + GIB // 2)
    submit(bench)
    assert running(bench) == 3
    assert why(bench, "p/3") == (
        "p/3 is ready and waits although 5 agents are free: "
        "node local has 512 MiB of memory left and an attempt of kind 'shell' needs about 1.0 GiB."
    )


def test_a_share_of_the_memory_is_kept() -> None:
    bench = made(memory_reserve_percent=10)
    measured(bench, memory_bytes=20 * GIB, memory_available_bytes=4 * GIB)
    submit(bench)
    assert running(bench) == 2


def test_young_attempts_are_counted_and_grown_ones_are_in_the_figures() -> None:
    bench = made(growth_ms=20_000)
    measured(bench, memory_available_bytes=2 * GIB)
    submit(bench, 4)
    assert running(bench) == 2
    bench.now_ms += 10_000
    measured(bench, memory_available_bytes=2 * GIB)
    bench.do(c.Tick())
    assert running(bench) == 2, "they have not grown yet: the 2 GiB are theirs"
    bench.now_ms += 10_001
    measured(bench, memory_available_bytes=2 * GIB)
    bench.do(c.Tick())
    assert running(bench) == 4


def test_an_attempt_that_was_assigned_long_ago_and_began_just_now_is_young() -> None:
    bench = made(growth_ms=20_000)
    measured(bench, memory_available_bytes=GIB)
    submit(bench, 2)
    bench.now_ms += 60_000
    bench.begin("p/0")
    measured(bench, memory_available_bytes=GIB)
    bench.do(c.Tick())
    assert running(bench) == 1


def test_what_attempts_of_a_kind_have_used_is_learned_and_forgotten_slowly() -> None:
    bench = made(footprints={"shell": GIB})
    submit(bench, 1, plan="first")
    bench.finish("first/0", rss_bytes_max=3 * GIB)
    measured(bench, memory_available_bytes=6 * GIB)
    submit(bench, 6)
    assert running(bench) == 2
    assert "of kind 'shell' needs about 3.0 GiB" in why(bench, "p/2")
    bench.finish("p/0", rss_bytes_max=16 * MIB)
    assert 2 * GIB < bench.state.footprints["shell"] < 3 * GIB, "one small one does not make it forget"


def test_kinds_have_footprints_of_their_own_and_a_node_may_say_otherwise() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(B, agent_memory_bytes=4 * GIB))
    bench = Bench((*make_agents(6), *make_agents(6, "b", first=7)), nodes=nodes)
    bench.kernel.admission = AdmissionOptions(0, footprint_bytes=GIB, footprints={"rehearsal": 3 * GIB})
    for node in (NODE, B):
        measured(bench, node, memory_available_bytes=8 * GIB)
    submit(bench, 4, plan="r", kind="rehearsal", node=NODE)
    submit(bench, 4, plan="s", node=B)
    nodes_of = [(attempt_id.task[0], attempt.node) for attempt_id, attempt in bench.state.live_attempts()]
    assert nodes_of == [("r", "local")] * 2 + [("s", "b")] * 2


def test_at_least_one_attempt_is_always_let_in() -> None:
    bench = made(footprint_bytes=32 * GIB, load_per_cpu_max=1.0)
    measured(bench, memory_available_bytes=100 * MIB, load_1m=50.0)
    submit(bench)
    assert running(bench) == 1
    bench.finish(next(iter(bench.state.live)))
    assert running(bench) == 1


def test_with_no_memory_at_all_not_even_one_is_let_in() -> None:
    bench = made()
    measured(bench, memory_available_bytes=0)
    submit(bench)
    assert running(bench) == 0
    assert "has 0 MiB of memory left" in why(bench, "p/0")


# --- load, disk, zones -----------------------------------------------------------------------------------------------


def test_a_node_under_load_gets_no_further_attempt_until_it_is_calm() -> None:
    bench = made(load_per_cpu_max=2.0)
    measured(bench)
    submit(bench, 1, plan="first")
    measured(bench, load_1m=8.5)
    submit(bench)
    assert running(bench) == 1
    assert why(bench, "p/0").endswith("agents are free: node local is busy: load 8.5 on 4 cores.")
    measured(bench, load_1m=8.0)
    bench.do(c.Tick())
    assert running(bench) == 7


def test_a_full_disk_lets_in_nothing_at_all() -> None:
    bench = made(disk_free_bytes_min=GIB)
    measured(bench, disk_free_bytes=GIB // 2)
    submit(bench)
    assert running(bench) == 0
    assert "agents are free: node local has only 512 MiB of disk left." in why(bench, "p/0")
    measured(bench, disk_free_bytes=GIB)
    bench.do(c.Tick())
    assert running(bench) == 6


def test_a_name_with_disk_in_it_is_no_full_disk() -> None:
    node = NodeId("disk-1")
    bench = Bench(make_agents(2, node), nodes=(NodeSpec(node),))
    bench.kernel.admission = AdmissionOptions(load_per_cpu_max=1.0)
    measured(bench, node, load_1m=50.0)
    submit(bench, 2)
    assert running(bench) == 1


def test_rules_are_switched_off_by_zero() -> None:
    bench = made(load_per_cpu_max=0.0, disk_free_bytes_min=0)
    measured(bench, load_1m=500.0, disk_free_bytes=0, memory_bytes=0, memory_available_bytes=0)
    submit(bench)
    assert running(bench) == 6


def test_a_zone_has_no_more_attempts_than_it_may() -> None:
    nodes = (NodeSpec(NODE, zone="eu"), NodeSpec(B, zone="eu"), NodeSpec(NodeId("c")))
    bench = Bench((*make_agents(3), *make_agents(3, "b", first=4), *make_agents(1, "c", first=7)), nodes=nodes)
    bench.kernel.admission = AdmissionOptions(zone_running_max=2)
    submit(bench, 6)
    placed = [attempt.node for _, attempt in bench.state.live_attempts()]
    assert (sum(node in (NODE, B) for node in placed), placed.count(NodeId("c"))) == (2, 1)
    assert why(bench, "p/3").endswith("4 agents are free: zone eu has 2 attempts running, which is its limit.")
    done = next(attempt_id for attempt_id, attempt in bench.state.live_attempts() if attempt.node != "c")
    bench.finish(done.task)
    assert running(bench) == 3


def test_what_one_node_cannot_carry_another_does() -> None:
    for weights in ((100, 100), (400, 100)):
        fleet = (*make_agents(3, weight=weights[0]), *make_agents(3, "b", first=4, weight=weights[1]))
        bench = Bench(fleet, nodes=(NodeSpec(NODE), NodeSpec(B)))
        measured(bench, NODE, disk_free_bytes=0)
        measured(bench, B)
        submit(bench, 2, estimate_ms=60_000)
        assert [attempt.node for _, attempt in bench.state.live_attempts()] == ["b", "b"], weights


def test_replicas_wait_until_all_are_let_in() -> None:
    bench = made()
    measured(bench, memory_available_bytes=GIB + 1)
    submit(bench, 1, plan="one")
    submit(bench, 1, replicas=2)
    assert bench.status("p/0") == "queued"
    bench.finish("one/0")
    measured(bench, memory_available_bytes=2 * GIB)
    bench.do(c.Tick())
    assert len(bench.task("p/0").live_attempts()) == 2


# --- explain ---------------------------------------------------------------------------------------------------------


def no_agent_of_it(bench: Bench) -> None:
    """Needs `may_act` in `effects` to allow for a node that was removed in the same append."""
    bench.submit(make_task("x", node=B))
    bench.do(c.NodeDown(B, "switched off"), c.RemoveNode(B, force=True))


def node_lost(bench: Bench) -> None:
    bench.submit(make_task("x", node=B))
    bench.do(c.NodeDown(B, "switched off"), c.AttemptFinished(TaskId("p/x"), 1, Outcome(OutcomeKind.LOST, "gone")))


def breaker(bench: Bench) -> None:
    bench.do(c.NodeTroubled(B, "its disk is full"))
    bench.submit(make_task("x", node=B))


def draining(bench: Bench) -> None:
    bench.submit(make_task("a", node=B), make_task("b", node=B), make_task("x", node=B))
    bench.do(c.DrainNode(B))


def drained(bench: Bench) -> None:
    draining(bench)
    for name in ("p/a", "p/b"):
        bench.finish(name)
    bench.do(c.AgentClosed(AgentId(3)), c.AgentClosed(AgentId(4)))
    assert not bench.state.agents_on(B)


def workers_down(bench: Bench) -> None:
    bench.submit(make_task("a", node=B), make_task("b", node=B), make_task("x", node=B))
    bench.do(c.WorkerFell(AgentId(3), Worker(103, 1), "killed"), c.WorkerFell(AgentId(4), Worker(104, 1), "killed"))


@pytest.mark.parametrize(
    "arrange, said",
    [
        (no_agent_of_it, "p/x is ready, but the fleet has no agent of kind 'shell' on node 'b'; add one with `orchestra scale`."),
        (
            node_lost,
            "p/x is ready, but none of the 2 agents of kind 'shell' on node 'b' is up: "
            "node b is out of sight, and takes work again when it is back (`orchestra node list` says more).",
        ),
        (breaker, "; nothing is started on node b: its disk is full."),
        (draining, "is up: node b is being drained (`orchestra node resume b` uses it again)."),
        (
            drained,
            "p/x is ready, but there is no agent of kind 'shell' on node 'b', and none can be added now: "
            "node b is being drained (`orchestra node resume b` uses it again).",
        ),
        (workers_down, "is up: their workers are down."),
    ],
)
def test_explain_says_what_keeps_a_node_from_it(arrange: Callable[[Bench], None], said: str) -> None:
    bench = Bench((*make_agents(2), *make_agents(2, "b", first=3)), nodes=(NodeSpec(NODE), NodeSpec(B)))
    arrange(bench)
    waiting = next(task for task in bench.state.queued)
    assert why(bench, waiting).endswith(said)


def test_explain_says_when_agents_are_kept_for_their_own() -> None:
    bench = Bench(make_agents(5, category="review"))
    bench.submit(*(make_task(str(number)) for number in range(5)))
    waiting = next(iter(bench.state.queued))
    assert why(bench, waiting) == (
        f"{waiting} is ready, but the free agents are kept for tasks of their own categories: review (1); "
        "give it one of these, or use a roster with more agents for coding."
    )


def test_a_node_in_trouble_that_the_task_could_not_use_is_not_blamed() -> None:
    bench = Bench((*make_agents(1), *make_agents(1, "b", first=2)), nodes=(NodeSpec(NODE), NodeSpec(B)))
    bench.submit(make_task("a", node=NODE), make_task("x", node=NODE))
    bench.do(c.DrainNode(B))
    assert "node b" not in why(bench, next(iter(bench.state.queued)))


# --- model APIs ------------------------------------------------------------------------------------------------------


def test_kinds_whose_api_is_closed_wait_and_say_why() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(closed={"shell": "the account is used up"}, kinds=SHELL))
    submit(bench)
    assert running(bench) == 0
    assert "the account is used up" in why(bench, "p/0")
    bench.kernel.let_in(ApiGate())
    bench.kernel.schedule(bench.now_ms)
    assert running(bench) == 6


def test_critical_tasks_pass_where_that_is_allowed() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(day="the day is spent", critical_pass=True, kinds=SHELL))
    submit(bench, 2, priority=Priority.CRITICAL)
    submit(bench, 2, plan="q")
    assert running(bench) == 2


def test_after_a_pause_only_so_many_start_until_the_next_round() -> None:
    bench = made()
    gate = ApiGate(room={"shell": 2}, rounds={"shell": 1}, kinds=SHELL)
    bench.kernel.let_in(gate)
    submit(bench)
    assert running(bench) == 2
    bench.kernel.let_in(gate)
    bench.kernel.schedule(bench.now_ms)
    assert running(bench) == 2, "another look is no other round"
    bench.kernel.let_in(ApiGate(room={"shell": 2}, rounds={"shell": 2}, kinds=SHELL))
    bench.kernel.schedule(bench.now_ms)
    assert running(bench) == 4


def by_model(spec: TaskSpec) -> tuple[str, ...]:
    return (f"api {model_of(spec)}",)


def test_only_tasks_of_the_model_without_room_wait() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(closed={"api opus": "opus is full"}, kinds=SHELL, keys_of=by_model))
    submit(bench, 2, plan="p", requirements='{"model":"opus"}')
    submit(bench, 2, plan="q", requirements='{"model":"haiku"}')
    assert sorted({attempt.task.partition("/")[0] for attempt, _ in bench.state.live_attempts()}) == ["q"]
    assert "opus is full" in why(bench, "p/0")


def test_a_round_of_a_model_is_its_own() -> None:
    bench = made()
    gate = ApiGate(room={"api opus": 1}, rounds={"api opus": 1}, kinds=SHELL, keys_of=by_model)
    bench.kernel.let_in(gate)
    submit(bench, 2, plan="p", requirements='{"model":"opus"}')
    submit(bench, 2, plan="q", requirements='{"model":"haiku"}')
    assert sorted(attempt.task.partition("/")[0] for attempt, _ in bench.state.live_attempts()) == ["p", "q", "q"]


def test_a_task_that_spent_its_budget_waits_and_others_do_not() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(tasks={"p/0": "its budget is spent", "q/0": "its budget is spent"}, kinds=SHELL))
    submit(bench, 2)
    submit(bench, 1, plan="q", cost_usd_micros_max=5)
    assert sorted(attempt.task for attempt, _ in bench.state.live_attempts()) == ["p/1", "q/0"], "its own limit is the gateway's to keep"
    assert "its budget is spent" in why(bench, "p/0")
    assert bench.kernel.gate(bench.now_ms).api_troubles == ("task p/0: its budget is spent",)


def test_the_task_of_an_agent_that_spent_its_budget_goes_to_another() -> None:
    bench = made()
    held = {str(agent): "its budget is spent" for agent in bench.state.agents if agent != 2}
    bench.kernel.let_in(ApiGate(agents=held, kinds=SHELL))
    submit(bench, 3)
    assert [attempt.agent for _, attempt in bench.state.live_attempts()] == [2]


def test_critical_tasks_pass_a_plan_without_money_where_that_is_allowed() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(plans={"p": "its budget is spent"}, critical_pass=True, kinds=SHELL))
    submit(bench, 1, priority=Priority.CRITICAL)
    assert running(bench) == 1


def test_a_plan_without_money_does_not_hold_up_another() -> None:
    bench = made()
    bench.kernel.let_in(ApiGate(plans={"p": "its budget is spent"}, kinds=SHELL))
    submit(bench, 3)
    submit(bench, 3, plan="q")
    assert sorted({attempt.task.partition("/")[0] for attempt, _ in bench.state.live_attempts()}) == ["q"]
    assert "its budget is spent" in why(bench, "p/0")
