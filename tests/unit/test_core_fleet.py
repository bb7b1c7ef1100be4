"""Life cycle, agents, scaling and shutdown, told through the kernel."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core.effects import CloseAgent, Finish, OpenAgents, RemoveWindow
from orchestra.core.model import NodeSpec, OutcomeKind, Worker
from orchestra.errors import IllegalMove, Refused
from orchestra.ids import AgentId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task


def test_init_is_ready_when_every_worker_is() -> None:
    bench = Bench()
    bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(2)))
    bench.do(c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1)))
    before = bench.state.lifecycle
    bench.do(c.WorkerSeen(AgentId(2), Worker(2, 1)))
    assert (before.value, bench.state.lifecycle.value) == ("initializing", "ready")


def test_init_goes_on_with_those_that_came_up_and_fails_with_none() -> None:
    for ready, outcome in ((1, "ready"), (0, "failed")):
        bench = Bench()
        bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(2)), c.NodeUp(NODE, "boot", "s"))
        bench.do(*(c.WorkerSeen(AgentId(n + 1), Worker(9, 1)) for n in range(ready)))
        bench.pass_time(60_000)
        assert bench.state.lifecycle.value == outcome


def test_more_agents_than_a_node_takes_are_refused() -> None:
    bench = Bench()
    with pytest.raises(Refused, match="3 agents do not fit"):
        bench.do(c.Init("t", (NodeSpec(NODE, max_agents=2),), make_agents(3)))
    assert bench.state.lifecycle.value == "uninitialized"


@pytest.mark.parametrize("command", [c.Submit((make_task("a", plan=None),)), c.Scale(3, "gradual"), c.ShutDown(True, True, 1000)])
def test_requests_before_init_name_the_state(command: c.Command) -> None:
    with pytest.raises(IllegalMove, match="uninitialized"):
        Bench().do(command)


def test_a_worker_that_falls_too_often_is_left_alone_until_asked() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=2))
    for pid in (101, 102):
        bench.do(c.WorkerFell(AgentId(1), Worker(pid, 1), "gone"))
        bench.do(c.WorkerSeen(AgentId(1), Worker(pid + 1, 1)))
    bench.do(c.WorkerFell(AgentId(1), Worker(103, 1), "gone"))
    assert bench.state.agents[AgentId(1)].status.value == "error"
    bench.do(c.RestartAgent(AgentId(1)))
    assert isinstance(bench.effects[-1], OpenAgents)
    bench.do(c.WorkerSeen(AgentId(1), Worker(200, 1)))
    assert bench.state.agents[AgentId(1)].status.value == "idle"


def test_a_finished_attempt_forgives_earlier_falls() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=1))
    bench.do(c.WorkerFell(AgentId(1), Worker(101, 1), "gone"))
    bench.do(c.WorkerSeen(AgentId(1), Worker(102, 1)))
    bench.submit(make_task("a"))
    bench.finish("p/a")
    bench.do(c.WorkerFell(AgentId(1), Worker(102, 1), "gone"))
    assert bench.state.agents[AgentId(1)].status.value == "starting"


def test_a_late_word_about_an_earlier_worker_changes_nothing() -> None:
    bench = Bench(make_agents(1))
    assert bench.do(c.WorkerFell(AgentId(1), Worker(99, 1), "gone")) == []


def test_scaling_up_and_down_touches_no_work() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a"))
    bench.do(c.Scale(4, "gradual", make_agents(4)[2:]))
    assert bench.state.lifecycle.value == "scaling"
    bench.do(*(c.WorkerSeen(AgentId(n), Worker(n, 1)) for n in (3, 4)))
    assert bench.state.lifecycle.value == "running"
    bench.do(c.Scale(1, "gradual"))
    assert bench.task("p/a").attempts[0].agent == 1
    closing = [effect.agent for effect in bench.effects if isinstance(effect, CloseAgent)]
    assert closing == [4, 3, 2]
    bench.do(*(c.AgentClosed(AgentId(n)) for n in closing))
    assert list(bench.state.agents) == [1]
    assert bench.state.lifecycle.value == "running"
    assert [effect.agent for effect in bench.effects if isinstance(effect, RemoveWindow)] == [4, 3, 2]


def test_a_busy_agent_finishes_before_it_leaves() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"), make_task("b"))
    bench.do(c.Scale(0, "immediate"))
    bench.finish(str(bench.state.agents[AgentId(1)].task))
    bench.do(c.AgentClosed(AgentId(1)))
    assert not bench.state.agents
    assert sorted(bench.status(name) for name in ("p/a", "p/b")) == ["completed", "queued"]


def test_draining_works_off_the_queue_then_ends() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"), make_task("b", "a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=10_000))
    with pytest.raises(IllegalMove, match="draining"):
        bench.submit(make_task("x", plan="q"), plan="q")
    bench.finish("p/a")
    assert bench.status("p/b") == "assigned"
    bench.finish("p/b")
    assert bench.state.lifecycle.value == "terminated"
    assert isinstance(bench.effects[-1], Finish)


def test_without_drain_only_what_runs_is_finished_and_the_rest_goes_on_next_time() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"), make_task("b", "a"))
    bench.do(c.ShutDown(drain=False, graceful=True, timeout_ms=10_000))
    bench.finish("p/a")
    assert bench.state.lifecycle.value == "terminated"
    assert bench.status("p/b") == "queued"
    bench.start_fleet(make_agents(1))
    assert bench.state.lifecycle.value == "running"
    assert bench.status("p/b") == "assigned"


def test_a_hard_stop_queues_what_it_stopped_again() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.ShutDown(drain=False, graceful=False, timeout_ms=10_000))
    bench.finish("p/a", kind=OutcomeKind.STOPPED)
    assert bench.state.lifecycle.value == "terminated"
    assert bench.status("p/a") == "retry_wait"
    bench.start_fleet(make_agents(1))
    bench.pass_time(1)
    assert bench.status("p/a") == "assigned"


def test_a_shutdown_that_takes_too_long_stops_what_runs() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=5_000))
    bench.pass_time(5_000)
    assert bench.task("p/a").attempts[0].stop_reason == "the shutdown's time was up"


def test_a_new_coordinator_loses_sight_of_everything_and_finds_it_again() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.TakeLead(2, 2, "host", "0"))
    assert bench.status("p/a") == "unknown"
    assert {agent.status.value for agent in bench.state.agents.values()} == {"offline"}
    bench.do(c.NodeUp(NODE, "boot", "s"), *(c.WorkerSeen(AgentId(n), Worker(100 + n, 1)) for n in (1, 2)))
    bench.do(c.AttemptSeen(bench.task("p/a").id, 1))
    assert bench.status("p/a") == "running"
    assert bench.state.agents[AgentId(1)].status.value == "busy"
    bench.finish("p/a")
    assert len(bench.task("p/a").attempts) == 1


def test_a_node_out_of_sight_for_too_long_gives_its_work_to_others() -> None:
    bench = Bench(make_agents(1), c.Policy(unknown_grace_ms=1000))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.do(c.NodeDown(NODE, "no answer"))
    bench.pass_time(1000)
    assert bench.status("p/a") == "unknown"
    bench.pass_time(1)
    assert bench.status("p/a") == "queued"
    bench.do(c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(101, 1)))
    bench.finish("p/a", 1)
    assert bench.state.totals.stale == 1
    bench.finish("p/a", 2)
    assert bench.task("p/a").primary == 2
