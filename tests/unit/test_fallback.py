"""The local fallback: when it begins, and that it ends again. `step` says what is due; the core carries it out."""

from __future__ import annotations

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Worker
from orchestra.fallback import FALLBACK, FallbackOptions, step
from orchestra.ids import AgentId, NodeId
from orchestra.testing.builders import Bench, make_task

FAR = NodeId("far")
OPTIONS = FallbackOptions(agents=2, after_ms=60_000)


def remote_bench() -> Bench:
    bench = Bench()
    bench.do(c.Init("t", (NodeSpec(FAR, host="far"),), (AgentSpec(AgentId(1), FAR),)), c.NodeUp(FAR, "boot", "s"))
    bench.do(c.WorkerSeen(AgentId(1), Worker(1, 1)))
    return bench


def due(bench: Bench, options: FallbackOptions = OPTIONS) -> list[c.Command]:
    return step(bench.state, bench.now_ms, options)


def obey(bench: Bench) -> list[str]:
    """Carries out what is due, as the service does; returns the names of the commands."""
    found = due(bench)
    bench.do(*found)
    return [type(command).__name__ for command in found]


def lose(bench: Bench) -> None:
    bench.do(c.NodeDown(FAR, "cut"))


def test_nothing_is_started_here_while_a_machine_is_there_or_lost_for_a_moment_only() -> None:
    bench = remote_bench()
    bench.now_ms += 1_000_000
    assert due(bench) == []
    lose(bench)
    bench.now_ms += 59_999
    assert due(bench) == []


def test_nothing_is_started_here_unless_the_settings_allow_it() -> None:
    bench = remote_bench()
    lose(bench)
    bench.now_ms += 10_000_000
    assert due(bench, FallbackOptions()) == []


def test_an_orchestra_of_this_machine_alone_has_no_use_for_it() -> None:
    bench = Bench()
    bench.do(
        c.Init("t", (NodeSpec(FAR),), (AgentSpec(AgentId(1), FAR),)), c.NodeUp(FAR, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1))
    )
    lose(bench)
    bench.now_ms += 10_000_000
    assert due(bench) == []


def test_the_work_goes_on_here_and_leaves_when_a_machine_is_back() -> None:
    bench = remote_bench()
    lose(bench)
    bench.pass_time(60_000)
    bench.submit(make_task("a"))
    assert obey(bench) == ["AddNode"]
    assert obey(bench) == ["Scale"]
    assert obey(bench) == []
    here = [agent.id for agent in bench.state.agents_on(FALLBACK)]
    assert len(here) == OPTIONS.agents
    bench.do(c.NodeUp(FALLBACK, "boot", "s"), *(c.WorkerSeen(agent, Worker(100 + agent, 1)) for agent in here))
    assert bench.task("p/a").attempts[0].node == FALLBACK
    bench.do(c.NodeUp(FAR, "boot", "s"), c.WorkerSeen(AgentId(1), Worker(1, 1)))
    assert obey(bench) == ["DrainNode"]
    assert obey(bench) == [], "what runs here is not disturbed"
    bench.finish("p/a")
    bench.do(*(c.AgentClosed(agent) for agent in here))
    assert obey(bench) == ["RemoveNode"]
    assert list(bench.state.nodes) == [FAR]


def test_a_second_loss_while_it_leaves_calls_it_back() -> None:
    bench = remote_bench()
    lose(bench)
    bench.pass_time(60_000)
    for _ in range(2):
        obey(bench)
    bench.do(c.NodeUp(FALLBACK, "boot", "s"))
    bench.do(c.NodeUp(FAR, "boot", "s"))
    assert obey(bench) == ["DrainNode"]
    lose(bench)
    assert obey(bench) == ["ResumeNode"]


def test_what_a_scaling_has_still_to_add_is_not_forgotten() -> None:
    bench = Bench(policy=c.Policy(scale_step=1))
    bench.do(c.Init("t", (NodeSpec(FAR, host="far"),), (AgentSpec(AgentId(1), FAR),)), c.NodeUp(FAR, "boot", "s"))
    bench.do(c.WorkerSeen(AgentId(1), Worker(1, 1)))
    bench.do(c.Scale(4, "gradual", tuple(AgentSpec(AgentId(n), FAR) for n in (2, 3, 4))))
    lose(bench)
    bench.pass_time(60_000)
    for _ in range(2):
        obey(bench)
    assert len(bench.state.agents) == 4 + OPTIONS.agents
    assert len(bench.state.agents_on(FALLBACK)) == OPTIONS.agents
