"""Kinds that are not to be had any more while a plan runs: what says so, which tasks move, and when a kind is back."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.codec.state import decode_state, encode_state
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.kinds import FAILURES, PROGRAMS
from orchestra.core.model import NodeSpec, Outcome, OutcomeKind, TaskSpec
from orchestra.core.state import STATE_FORMAT
from orchestra.errors import PlanInvalid
from orchestra.ids import NodeId, TaskId
from orchestra.scheduling.explain import explain
from orchestra.scheduling.rank import estimate_ms
from orchestra.scheduling.routing import RouteOptions, rerouted
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

FAR = NodeId("far")
BOTH = ("claude", "codex")
GRACE_MS = 300_000
RETRY_MS = 900_000
LOGIN = "auth: the API refused the key"


def policy(**fields: Any) -> c.Policy:
    options: dict[str, Any] = {
        "alternatives": {"codex": "claude"},
        "kind_programs": {"codex": ("codex",), "claude": ("claude",)},
        "unknown_grace_ms": GRACE_MS,
        "kind_retry_ms": RETRY_MS,
        **fields,
    }
    return c.Policy(**options)


def bench_of(agents: int = 1, programs: tuple[str, ...] = BOTH, **fields: Any) -> Bench:
    bench = Bench(make_agents(agents), policy(**fields))
    bench.do(c.NodeUp(NODE, "boot", "session", programs))
    return bench


def two_nodes(**fields: Any) -> Bench:
    """A node with Claude alone, and one with both."""
    nodes = (NodeSpec(NODE), NodeSpec(FAR, host="far"))
    bench = Bench((*make_agents(1), *make_agents(1, FAR, first=2)), policy(**fields), nodes)
    bench.do(c.NodeUp(NODE, "boot", "session", ("claude",)), c.NodeUp(FAR, "boot", "session", BOTH))
    return bench


def code(name: str, *needs: str, **fields: Any) -> TaskSpec:
    return make_task(name, *needs, kind="codex", estimate_ms=60_000, **fields)


def fail(bench: Bench, task: str, number: int = 1, reason: str = LOGIN, kind: OutcomeKind = OutcomeKind.REFUSED) -> list[e.Event]:
    return bench.do(c.AttemptFinished(TaskId(task), number, Outcome(kind, reason, kind_unable=True)))


def kinds(bench: Bench) -> dict[str, str]:
    return {task.id.removeprefix("p/"): task.spec.kind for task in bench.state.tasks.values()}


def of(events: list[e.Event], kind: type[e.Event]) -> list[e.Event]:
    return [event for event in events if isinstance(event, kind)]


# --- its program is gone ---------------------------------------------------------------------------------------------


def test_a_program_that_is_removed_moves_what_is_ready_and_what_becomes_so() -> None:
    bench = bench_of()
    bench.submit(code("a"), code("b"), code("c", "a"), make_task("s"))
    bench.begin("p/a")
    told = bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert of(told, e.KindLost) == [
        e.KindLost("codex", "codex is not installed any more on any node that has agents for it", PROGRAMS, "claude")
    ]
    assert kinds(bench) == {"a": "codex", "b": "claude", "c": "codex", "s": "shell"}
    moved = bench.task("p/b").spec
    assert moved.estimate_ms == 90_000
    assert moved.warnings == (
        "moved from codex to claude: codex is not installed any more on any node that has agents for it; expected to take 50 % longer",
    )
    assert "claude takes it if that is still so when it is ready" in explain(bench.state, TaskId("p/c"), bench.now_ms)
    bench.finish("p/a")  # what runs goes on
    assert kinds(bench)["c"] == "claude"
    assert "It was moved from codex to claude" in explain(bench.state, TaskId("p/b"), bench.now_ms)


def test_a_moved_task_is_given_to_an_agent_of_its_new_kind() -> None:
    bench = Bench((*make_agents(1, kind="codex"), *make_agents(1, first=2, kind="claude")), policy())
    bench.do(c.NodeUp(NODE, "boot", "session", BOTH))
    bench.submit(code("a"), code("b"))
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert [(a.agent, bench.task("p/b").spec.kind) for a in bench.task("p/b").attempts] == [(2, "claude")]


def test_an_agent_that_takes_two_kinds_is_asked_again_for_a_task_that_has_moved() -> None:
    bench = bench_of()
    bench.submit(code("a"), code("b"))
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    bench.begin("p/a")
    bench.finish("p/a")
    assert bench.task("p/b").status.value == "assigned"


def test_nothing_is_said_of_a_kind_that_nobody_waits_for() -> None:
    bench = bench_of()
    bench.submit(make_task("a"))
    assert [type(event) for event in bench.do(c.ProgramsSeen(NODE, ("claude",)))] == [e.ProgramsChanged]
    assert bench.do(c.ProgramsSeen(NODE, ("claude",))) == []


def test_with_the_program_back_new_tasks_go_to_it_and_moved_ones_stay() -> None:
    bench = bench_of(agents=1)
    bench.submit(code("a"), code("b"), code("c", "a"))
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    told = bench.do(c.ProgramsSeen(NODE, BOTH))
    assert of(told, e.KindRecovered) == [e.KindRecovered("codex", "it is there again", was_lost=True)]
    assert kinds(bench) == {"a": "codex", "b": "claude", "c": "codex"}
    for name in ("a", "b"):
        bench.begin(f"p/{name}")
        bench.finish(f"p/{name}")
    assert kinds(bench)["c"] == "codex"
    assert bench.state.kinds == {}


def test_a_task_of_a_fixed_kind_stays() -> None:
    bench = bench_of()
    bench.submit(make_task("s"), code("a", agent_fixed=True))
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert kinds(bench)["a"] == "codex"
    assert "it may have no other" in explain(bench.state, TaskId("p/a"), bench.now_ms)
    options = RouteOptions({"codex": "claude"})
    assert rerouted(bench.state, [code("x", agent_fixed=True)], options, lambda kind: (kind,))[0].kind == "codex"


def test_where_neither_is_to_be_had_a_task_waits_for_whichever_comes_first() -> None:
    bench = bench_of()
    bench.submit(make_task("s"), code("a"))
    bench.do(c.ProgramsSeen(NODE, ()))
    assert kinds(bench)["a"] == "codex"
    assert "nor is claude" in explain(bench.state, TaskId("p/a"), bench.now_ms)
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert kinds(bench)["a"] == "claude"


def test_a_kind_that_nobody_stands_in_for_is_never_lost() -> None:
    bench = bench_of(alternatives={})
    bench.submit(make_task("s"), code("a"))
    bench.do(c.ProgramsSeen(NODE, ()))
    assert bench.state.kinds == {}


def test_a_program_that_is_named_by_its_path_is_not_looked_for() -> None:
    bench = bench_of(kind_programs={"codex": ("/opt/codex",), "claude": ("claude",)})
    bench.submit(make_task("s"), code("a"))
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert bench.state.kinds == {}


def test_what_was_measured_before_grows_as_well_and_is_kept_in_the_measure_of_its_own_kind() -> None:
    bench = bench_of()
    bench.submit(code("a", plan="q.1", id=TaskId("q.1/a")), plan="q.1")
    bench.begin("q.1/a")
    bench.finish("q.1/a", duration_ms=100_000)
    bench.submit(make_task("s"))
    bench.submit(code("a", plan="q.2", id=TaskId("q.2/a")), plan="q.2")
    bench.do(c.ProgramsSeen(NODE, ("claude",)))
    assert estimate_ms(bench.state, bench.task("q.2/a").spec) == 150_000
    bench.finish("p/s")
    bench.finish("q.2/a", duration_ms=150_000)
    assert bench.state.durations["q/a"] == 100_000


def test_a_move_to_the_default_kind_is_the_same_in_a_replay_and_a_snapshot() -> None:
    bench = bench_of(alternatives={"codex": "shell"})
    bench.submit(make_task("s"), code("a"))
    bench.do(c.ProgramsSeen(NODE, ()))
    assert kinds(bench)["a"] == "shell"
    body = encode_state(bench.state)
    restored = decode_state(body, STATE_FORMAT)
    assert restored is not None
    assert encode_state(restored) == body


# --- what is only out of sight ---------------------------------------------------------------------------------------


def test_a_lost_node_is_waited_for_until_the_grace_is_over() -> None:
    bench = two_nodes()
    bench.submit(make_task("s", node=NODE), make_task("t", node=FAR), code("a"))
    told = bench.do(c.NodeDown(FAR, "no route"))
    assert of(told, e.KindMissed) == [e.KindMissed("codex", "no node that has codex and agents for it is in use")]
    assert "another one takes it if that lasts" in explain(bench.state, TaskId("p/a"), bench.now_ms)
    assert of(bench.pass_time(GRACE_MS), e.KindLost) == []
    assert len(of(bench.pass_time(1), e.KindLost)) == 1
    assert kinds(bench)["a"] == "claude"


def test_a_node_that_is_back_in_time_has_lost_nothing() -> None:
    bench = two_nodes()
    bench.submit(make_task("s", node=NODE), make_task("t", node=FAR), code("a"))
    bench.do(c.NodeDown(FAR, "no route"))
    told = bench.do(c.NodeUp(FAR, "boot", "session", BOTH))
    assert of(told, e.KindRecovered) == [e.KindRecovered("codex", "it is there again")]
    assert kinds(bench)["a"] == "codex"


def test_a_restart_begins_the_grace_anew() -> None:
    bench = two_nodes()
    bench.submit(make_task("s", node=NODE), make_task("t", node=FAR), code("a"))
    bench.do(c.NodeDown(FAR, "no route"))
    bench.now_ms += 10 * GRACE_MS
    bench.take_over()
    assert of(bench.pass_time(1), e.KindLost) == []


def test_a_drained_node_is_waited_for_as_well() -> None:
    bench = two_nodes()
    bench.submit(make_task("s", node=NODE), make_task("t", node=FAR), code("a"))
    assert len(of(bench.do(c.DrainNode(FAR)), e.KindMissed)) == 1
    bench.pass_time(GRACE_MS + 1)
    assert kinds(bench)["a"] == "claude"


# --- its program or login does not work ------------------------------------------------------------------------------


def test_the_first_failure_is_forgiven_the_second_task_moves_all() -> None:
    bench = bench_of(agents=2)
    bench.submit(code("a", retries=0), code("b", retries=0), code("c"))
    first = fail(bench, "p/a")
    assert of(first, e.TaskRetryScheduled) == [e.TaskRetryScheduled(TaskId("p/a"), bench.now_ms + 1000, LOGIN, 1)]
    told = fail(bench, "p/b")
    assert of(told, e.KindLost) == [e.KindLost("codex", f"codex does not work: {LOGIN}", FAILURES, "claude")]
    assert (kinds(bench)["b"], bench.task("p/b").failures, bench.status("p/b")) == ("claude", 0, "assigned")
    bench.pass_time(1000)
    assert (kinds(bench)["a"], bench.task("p/a").failures) == ("claude", 0)
    assert bench.task("p/a").spec.warnings[0].startswith(f"moved from codex to claude: codex does not work: {LOGIN}")


def test_a_task_that_fails_so_alone_moves_alone() -> None:
    bench = bench_of()
    bench.submit(code("a", retries=0))
    fail(bench, "p/a")
    bench.pass_time(1000)
    fail(bench, "p/a", 2)
    assert kinds(bench)["a"] == "claude"
    assert bench.state.kinds["codex"].lost_ms == 0
    bench.finish("p/a", 3)
    assert bench.status("p/a") == "completed"


def test_a_success_between_forgets_the_failures() -> None:
    bench = bench_of(agents=3)
    bench.submit(code("a"), code("b"), code("c"))
    fail(bench, "p/a")
    bench.finish("p/b")
    assert bench.state.kinds == {}
    assert of(fail(bench, "p/c"), e.KindLost) == []


def test_other_failures_use_up_retries_as_ever() -> None:
    bench = bench_of()
    bench.submit(code("a", retries=0))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    assert bench.status("p/a") == "failed"


@pytest.mark.parametrize("fields", [{"alternatives": {}}, {"kind_failures_max": 0}])
def test_without_another_kind_or_with_the_rule_off_it_fails_at_once(fields: dict[str, Any]) -> None:
    bench = bench_of(**fields)
    bench.submit(code("a"))
    fail(bench, "p/a")
    assert (bench.status("p/a"), bench.task("p/a").failures) == ("failed", 1)


def test_one_bad_node_among_several_does_not_lose_the_kind() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(FAR, host="far"))
    bench = Bench((*make_agents(2), *make_agents(1, FAR, first=3)), policy(), nodes)
    bench.do(c.NodeUp(NODE, "boot", "session", BOTH), c.NodeUp(FAR, "boot", "session", BOTH))
    bench.submit(code("a", node=NODE), code("b", node=NODE), code("c", node=FAR))
    fail(bench, "p/a")
    assert of(fail(bench, "p/b"), e.KindLost) == []
    assert len(of(fail(bench, "p/c"), e.KindLost)) == 1


def test_a_kind_whose_login_failed_is_tried_again_after_a_while() -> None:
    bench = bench_of(agents=2)
    bench.submit(code("a"), code("b"))
    fail(bench, "p/a")
    fail(bench, "p/b")
    options = RouteOptions({"codex": "claude"})
    assert rerouted(bench.state, [code("x")], options, lambda kind: (kind,))[0].kind == "claude"
    assert of(bench.pass_time(RETRY_MS - 1), e.KindRecovered) == []
    assert of(bench.pass_time(1), e.KindRecovered) == [e.KindRecovered("codex", "it is tried again", was_lost=True)]
    assert rerouted(bench.state, [code("x")], options, lambda kind: (kind,))[0].kind == "codex"


def test_a_success_brings_it_back() -> None:
    bench = bench_of(agents=3)
    bench.submit(code("a"), code("b"), code("c"))
    fail(bench, "p/a")
    fail(bench, "p/b")
    assert of(bench.finish("p/c"), e.KindRecovered) == [e.KindRecovered("codex", "an attempt of p/c succeeded", was_lost=True)]


def test_who_stands_in_for_each_other_does_not_wander_for_ever() -> None:
    bench = bench_of(alternatives={"codex": "claude", "claude": "codex"})
    bench.submit(code("a", retries=0))
    for number in range(1, 9):
        if bench.status("p/a") == "failed":
            break
        fail(bench, "p/a", number)
        bench.pass_time(1000)
    assert (bench.status("p/a"), bench.task("p/a").moves) == ("failed", 3)


def test_an_alternative_that_is_lost_itself_takes_nothing() -> None:
    bench = bench_of(agents=4, alternatives={"codex": "claude", "claude": "aider"}, kind_programs={})
    bench.submit(*(make_task(name, kind=kind) for name, kind in (("a", "claude"), ("b", "claude"), ("c", "codex"), ("d", "codex"))))
    for name in ("a", "b", "c"):
        fail(bench, f"p/{name}")
    fail(bench, "p/d")
    assert (kinds(bench)["d"], bench.status("p/d")) == ("codex", "failed")


def test_a_submission_is_refused_where_neither_is_installed() -> None:
    bench = bench_of(programs=())
    with pytest.raises(PlanInvalid, match="and claude is not installed"):
        rerouted(bench.state, [code("x")], RouteOptions({"codex": "claude"}), lambda kind: (kind,))
