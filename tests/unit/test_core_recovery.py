"""What the core does where things go wrong twice, late, or in the wrong order; every commit also checks invariants and replay (`Bench`)."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import CloseAgent, OpenAgents, RemoveWindow
from orchestra.core.model import AgentSpec, NodeSpec, OutcomeKind, Worker
from orchestra.errors import Refused
from orchestra.ids import AgentId, TaskId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

ONE = AgentId(1)


# --- plans -----------------------------------------------------------------------------------------------------------


def test_a_plan_is_not_closed_while_its_tasks_are_still_being_taken_in() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", retries=0))
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    bench.submit(make_task("x", plan="q", needs=(TaskId("p/a"),)), make_task("y", plan="q"), plan="q")
    assert (bench.status("q/x"), bench.status("q/y")) == ("cancelled", "assigned")
    assert bench.plan("q").status.value == "running"
    bench.finish("q/y")
    assert bench.plan("q").status.value == "cancelled"


def test_retrying_reopens_every_plan_that_has_a_task_revived() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", retries=0))
    bench.submit(make_task("x", plan="q", needs=(TaskId("p/a"),)), plan="q")
    bench.finish("p/a", kind=OutcomeKind.FAILED)
    assert bench.plan("q").status.value == "cancelled"
    bench.do(c.RetryTask(TaskId("p/a")))
    bench.finish("p/a", 2)
    bench.finish("q/x")
    assert [bench.plan(plan).status.value for plan in ("p", "q")] == ["completed", "completed"]


def test_a_task_with_another_dead_need_is_not_revived_into_waiting_for_ever() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", retries=0), make_task("b", retries=0), make_task("c", "a", "b"))
    for name in ("p/a", "p/b"):
        bench.finish(name, kind=OutcomeKind.FAILED)
    bench.do(c.RetryTask(TaskId("p/a")))
    bench.finish("p/a", 2)
    assert bench.status("p/c") == "cancelled"
    assert bench.plan().status.value == "failed"
    bench.do(c.RetryTask(TaskId("p/b")))
    bench.finish("p/b", 2)
    bench.finish("p/c")
    assert bench.plan().status.value == "completed"


# --- slots that leave ------------------------------------------------------------------------------------------------


def test_a_leaving_slot_keeps_its_lost_attempt_until_it_is_accounted_for() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a"), make_task("b"))
    bench.begin("p/a")
    bench.begin("p/b")
    bench.do(c.Scale(1, "gradual"))
    leaving = next(agent for agent in bench.state.agents.values() if agent.status.value == "draining")
    task, worker = leaving.task, leaving.worker
    assert task is not None
    for word in (worker, None):
        bench.do(c.WorkerFell(leaving.id, word, "killed"))
        assert leaving.id in bench.state.agents, "its attempt is live"
    assert not any(isinstance(effect, OpenAgents) and leaving.id in effect.agents for effect in bench.effects[2:])
    bench.finish(task, kind=OutcomeKind.LOST)
    assert leaving.id not in bench.state.agents
    assert bench.state.lifecycle.value == "running"


def test_a_slot_that_is_to_leave_before_its_worker_came_leaves_at_once() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.Scale(2, "gradual", make_agents(2)[1:]))
    bench.do(c.Scale(1, "gradual"))
    assert list(bench.state.agents) == [1]
    assert isinstance(bench.effects[-1], RemoveWindow)
    assert bench.state.lifecycle.value == "running"


def test_a_worker_that_comes_up_in_a_leaving_slot_is_asked_to_leave() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.do(c.WorkerFell(ONE, Worker(101, 1), "killed"))
    bench.do(c.Scale(0, "gradual"))
    assert bench.state.agents[ONE].status.value == "draining"
    bench.do(c.WorkerSeen(ONE, Worker(200, 1)))
    assert isinstance(bench.effects[-1], CloseAgent)
    bench.finish("p/a", kind=OutcomeKind.LOST)
    bench.do(c.AgentClosed(ONE))
    assert not bench.state.agents


def test_more_agents_than_there_is_room_beside_those_that_leave_are_refused() -> None:
    bench = Bench()
    bench.do(c.Init("t", (NodeSpec(NODE, max_agents=2),), make_agents(2)), c.NodeUp(NODE, "boot", "s"))
    bench.do(*(c.WorkerSeen(AgentId(n), Worker(n, 1)) for n in (1, 2)))
    bench.do(c.Scale(1, "gradual"))
    with pytest.raises(Refused, match="do not fit on node local, which takes 2 and has 2"):
        bench.do(c.Scale(2, "gradual", (AgentSpec(AgentId(3), NODE),)))


# --- workers that fall -----------------------------------------------------------------------------------------------


def test_a_window_that_cannot_be_opened_is_no_fall_of_a_worker_that_is_known() -> None:
    bench = Bench(make_agents(1))
    assert bench.do(c.WorkerFell(ONE, None, "no window: tmux is wedged")) == []


def test_a_worker_that_was_believed_dead_may_still_die() -> None:
    bench = Bench(make_agents(1))
    worker = Worker(101, 1)
    bench.do(c.WorkerFell(ONE, worker, "it does not listen"))
    assert bench.do(c.WorkerSeen(ONE, worker)) == [], "it was seen before it fell"
    bench.do(c.WorkerSeen(ONE, worker, worker))
    assert bench.state.agents[ONE].status.value == "idle"
    bench.do(c.WorkerFell(ONE, worker, "killed"))
    assert bench.state.agents[ONE].status.value == "starting"


def test_a_suspended_slot_that_is_restarted_gets_a_worker_that_nobody_asks_to_leave() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=0))
    bench.do(c.WorkerFell(ONE, Worker(101, 1), "killed"))
    assert bench.state.agents[ONE].status.value == "error"
    bench.effects.clear()
    bench.do(c.RestartAgent(ONE))
    assert [type(effect) for effect in bench.effects] == [OpenAgents]


# --- starting --------------------------------------------------------------------------------------------------------


def test_a_start_after_one_that_failed_takes_the_fleet_as_it_is_asked_for_now() -> None:
    bench = Bench(policy=c.Policy(falls_max=0))
    bench.do(c.Init("t", (NodeSpec(NODE, max_agents=3),), make_agents(3)), c.NodeUp(NODE, "boot", "s"))
    bench.do(*(c.WorkerFell(AgentId(n), None, "no window") for n in (1, 2, 3)))
    assert bench.state.lifecycle.value == "failed"
    bench.effects.clear()
    bench.do(c.Init("t", (NodeSpec(NODE, max_agents=2),), make_agents(2, kind="shell")))
    assert [(agent.id, agent.spec.kind, agent.status.value) for agent in bench.state.agents.values()] == [
        (1, "shell", "starting"),
        (2, "shell", "starting"),
    ]
    assert {effect.agent for effect in bench.effects if isinstance(effect, RemoveWindow)} == {3}
    assert {agent for effect in bench.effects if isinstance(effect, OpenAgents) for agent in effect.agents} == {1, 2}
    bench.do(*(c.WorkerSeen(AgentId(n), Worker(n, 1)) for n in (1, 2)))
    assert bench.state.lifecycle.value == "ready"


def test_a_start_after_one_that_was_too_slow_is_ready_at_once() -> None:
    bench = Bench()
    bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(1)), c.NodeUp(NODE, "boot", "s"))
    bench.pass_time(60_000)
    assert bench.state.lifecycle.value == "failed"
    bench.do(c.WorkerSeen(ONE, Worker(1, 1)))
    bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(1)))
    bench.pass_time(100)
    assert bench.state.lifecycle.value == "ready"


def test_a_node_lost_before_the_coordinator_was_restarted_gets_its_time_again() -> None:
    bench = Bench(make_agents(1), c.Policy(unknown_grace_ms=1000))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.NodeDown(NODE, "no answer"))
    bench.now_ms += 60_000
    bench.do(c.TakeLead(2, 2, "host", "0"))
    bench.pass_time(100)
    assert bench.status("p/a") == "unknown", "nobody looked for the node meanwhile"
    bench.pass_time(1000)
    assert bench.status("p/a") == "queued"


# --- ending ----------------------------------------------------------------------------------------------------------


def test_draining_waits_for_a_worker_that_is_being_replaced() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=100_000))
    bench.do(c.WorkerFell(ONE, Worker(101, 1), "killed"))
    bench.finish("p/a", kind=OutcomeKind.LOST)
    assert bench.state.lifecycle.value == "draining"
    bench.do(c.Tick())
    bench.do(c.WorkerSeen(ONE, Worker(102, 1)))
    bench.finish("p/a", 2)
    assert (bench.status("p/a"), bench.state.lifecycle.value) == ("completed", "terminated")


def test_draining_ends_when_no_agent_is_left_that_could_go_on() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=0))
    bench.submit(make_task("a"), make_task("b"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=100_000))
    bench.finish(str(bench.state.agents[ONE].task), kind=OutcomeKind.REFUSED)
    bench.do(c.WorkerFell(ONE, bench.state.agents[ONE].worker, "killed"))
    live = [attempt_id for attempt_id, _ in bench.state.live_attempts()]
    for attempt_id in live:
        bench.finish(attempt_id.task, attempt_id.number, OutcomeKind.LOST)
    assert bench.state.lifecycle.value == "terminated"


def test_a_shutdown_ends_although_a_worker_never_says_that_it_stopped() -> None:
    bench = Bench(make_agents(1), c.Policy(unknown_grace_ms=10_000))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.ShutDown(drain=False, graceful=False, timeout_ms=5_000))
    bench.pass_time(15_000)
    assert bench.state.lifecycle.value == "draining"
    events = bench.pass_time(1)
    assert bench.state.lifecycle.value == "terminated"
    assert any(isinstance(event, e.AttemptEnded) and event.outcome.kind is OutcomeKind.LOST for event in events)
    assert bench.status("p/a") == "retry_wait"
