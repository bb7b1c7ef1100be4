"""Machines that come and go, what tasks ask of them, and fleets that grow a few slots at a time."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import CloseAgent, OpenAgents, RemoveWindow
from orchestra.core.model import AgentSpec, AgentStatus, NodeSpec, OutcomeKind, Worker
from orchestra.errors import DuplicateId, IllegalMove, NotFound, PlanInvalid, Refused
from orchestra.ids import AgentId, NodeId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

B, C = NodeId("b"), NodeId("c")


def names(events: list[e.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def two_nodes(policy: c.Policy | None = None, max_agents: int = 20, b_max: int = 20) -> Bench:
    """Agents #1 and #2 on the local node, #3 and #4 on `b`."""
    nodes = (NodeSpec(NODE, max_agents=max_agents), NodeSpec(B, max_agents=b_max))
    return Bench((*make_agents(2), *make_agents(2, "b", first=3)), policy, nodes)


def opened(bench: Bench) -> list[int]:
    """Slots for which windows were asked for since the last look."""
    found: list[int] = [agent for effect in bench.effects if isinstance(effect, OpenAgents) for agent in effect.agents]
    bench.effects.clear()
    return found


# --- adding ----------------------------------------------------------------------------------------------------------


def test_a_node_is_added_while_the_orchestra_runs_and_takes_agents() -> None:
    bench = Bench(make_agents(1))
    spec = NodeSpec(B, host="10.0.0.2", max_agents=2)
    assert bench.do(c.AddNode(spec)) == [e.NodeAdded(spec)]
    assert bench.do(c.AddNode(spec)) == [], "it is known"
    bench.do(c.NodeUp(B, "boot", "s"), c.Scale(3, "immediate", make_agents(2, "b", first=2)))
    bench.come_up(2, 3)
    bench.submit(make_task("a", node=B))
    assert bench.task("p/a").attempts[0].node == "b"


def test_what_is_known_of_a_node_may_change_but_not_which_machine_it_is() -> None:
    bench = two_nodes()
    bench.do(c.AddNode(NodeSpec(B, weight=300, max_agents=2)))
    assert (bench.node("b").spec.weight, bench.node("b").status.value) == (300, "ready")
    with pytest.raises(Refused, match="cannot become another machine"):
        bench.do(c.AddNode(NodeSpec(B, host="elsewhere")))
    with pytest.raises(Refused, match="has 2 agents"):
        bench.do(c.AddNode(NodeSpec(B, max_agents=1)))


def test_no_node_is_added_to_an_orchestra_that_ends() -> None:
    bench = two_nodes()
    bench.submit(make_task("a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=1_000))
    with pytest.raises(IllegalMove, match="draining"):
        bench.do(c.AddNode(NodeSpec(C)))


@pytest.mark.parametrize("command", [c.DrainNode(C), c.ResumeNode(C), c.RemoveNode(C)])
def test_a_node_that_is_not_there_is_named(command: c.Command) -> None:
    with pytest.raises(NotFound, match="'c'"):
        two_nodes().do(command)


# --- what tasks ask of nodes -----------------------------------------------------------------------------------------


def test_tags_and_programs_are_obeyed() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(B, tags=("gpu", "eu")))
    bench = Bench((*make_agents(1), *make_agents(1, "b", first=2)), nodes=nodes)
    bench.do(c.NodeUp(NODE, "boot", "s", programs=("gcc", "git")), c.WorkerSeen(AgentId(1), Worker(101, 1)))
    bench.submit(make_task("gpu", tags=("gpu",)), make_task("gcc", programs=("gcc",)))
    assert [bench.task(f"p/{name}").attempts[0].node for name in ("gpu", "gcc")] == ["b", "local"]
    for fields, said in (({"tags": ("gpu", "us")}, "with tag gpu, us"), ({"programs": ("ghc",)}, "with ghc installed")):
        with pytest.raises(PlanInvalid, match=said):
            bench.submit(make_task("x", plan="q", **fields), plan="q")


@pytest.mark.parametrize(
    "wish,field,said,hint",
    [
        ({"kind": "codex"}, "agent", "(kinds: shell)", "change `agent`"),
        ({"node": NodeId("majn")}, "node", "there is no node 'majn'", "did you mean 'majin'?"),
        ({"node": NodeId("x")}, "node", "there is no node 'x'", "there are local, majin, idle"),
        ({"node": NodeId("idle")}, "node", "(they are on local, majin)", "change `node`"),
        ({"tags": ("gpu", "nobody")}, "tags", "(no such node has the tag nobody)", "change `tags`"),
        ({"tags": ("gpu", "eu")}, "tags", "(no such node has all of these tags)", "change `tags`"),
        ({"tags": ("gpu",), "node": NODE}, "tags", "(no such node has the tag gpu)", "change `tags`"),
        ({"programs": ("ghc",)}, "programs", "(no such node has the program ghc)", "change `programs`"),
        ({"tags": ("gpu",), "programs": ("gcc",)}, "programs", "(no such node has the program gcc)", "change `programs`"),
        ({"tags": ("gpu",), "replicas": 2}, "target_agents.count", "the fleet has 1", "change `target_agents.count`"),
    ],
)
def test_the_wish_that_cannot_be_met_is_named(wish: dict[str, Any], field: str, said: str, hint: str) -> None:
    nodes = (NodeSpec(NODE, tags=("eu",)), NodeSpec(NodeId("majin"), tags=("gpu",)), NodeSpec(NodeId("idle"), tags=("nobody",)))
    bench = Bench((AgentSpec(AgentId(1), NODE, "shell"), AgentSpec(AgentId(2), NodeId("majin"), "shell")), nodes=nodes)
    bench.do(c.NodeUp(NODE, "boot", "s", programs=("gcc",)), c.WorkerSeen(AgentId(1), Worker(101, 1)))
    with pytest.raises(PlanInvalid) as refusal:
        bench.submit(make_task("x", **wish))
    assert refusal.value.field == field
    assert "'p/x'" in refusal.value.message
    assert said in refusal.value.message
    assert hint in refusal.value.hint


def test_a_misspelt_node_is_told_its_neighbour() -> None:
    bench = Bench(make_agents(1), nodes=(NodeSpec(NODE), NodeSpec(NodeId("majin"))))
    for command in (c.DrainNode(NodeId("majn")), c.ResumeNode(NodeId("majn")), c.RemoveNode(NodeId("majn"))):
        with pytest.raises(NotFound) as refusal:
            bench.do(command)
        assert refusal.value.hint == "did you mean 'majin'?"
    with pytest.raises(NotFound) as refusal:
        bench.do(c.DrainNode(NodeId("x")))
    assert refusal.value.hint == "`orchestra node list` lists them"


def test_force_does_not_remove_a_machine_that_is_there() -> None:
    for force in (False, True):
        with pytest.raises(Refused) as refusal:
            two_nodes().do(c.RemoveNode(B, force))
        assert "`orchestra node drain b` first" in refusal.value.hint
        assert ("--force is only for a machine that is lost" in refusal.value.hint) == force


def test_a_task_waits_for_the_node_it_suits() -> None:
    bench = Bench((*make_agents(1), *make_agents(1, "b", first=2)), nodes=(NodeSpec(NODE), NodeSpec(B, tags=("gpu",))))
    bench.submit(make_task("one", tags=("gpu",)), make_task("two", tags=("gpu",)), make_task("any"))
    assert [bench.status(f"p/{name}") for name in ("one", "two", "any")] == ["assigned", "queued", "assigned"]


# --- draining --------------------------------------------------------------------------------------------------------


def test_a_drained_node_finishes_what_it_has_and_gets_nothing_new() -> None:
    bench = two_nodes()
    bench.submit(make_task("a", node=B))
    bench.effects.clear()
    assert names(bench.do(c.DrainNode(B))) == ["NodeDraining", "AgentDraining", "AgentDraining"]
    assert [(type(effect), getattr(effect, "agent", 0)) for effect in bench.effects] == [(CloseAgent, 3), (CloseAgent, 4)]
    assert bench.do(c.DrainNode(B)) == []
    bench.finish("p/a")
    assert bench.status("p/a") == "completed"
    bench.do(c.AgentClosed(AgentId(3)), c.AgentClosed(AgentId(4)))
    assert list(bench.state.agents) == [1, 2]
    bench.submit(*(make_task(str(n), plan="q") for n in range(4)), plan="q")
    assert {attempt.node for _, attempt in bench.state.live_attempts()} == {NODE}


def test_slots_without_a_worker_leave_a_drained_node_at_once() -> None:
    bench = two_nodes(c.Policy(falls_max=0))
    bench.fall(3)
    bench.do(c.RestartAgent(AgentId(3)))
    bench.fall(4)
    events = bench.do(c.DrainNode(B))
    assert names(events) == ["NodeDraining", "AgentDraining", "AgentRemoved", "AgentDraining", "AgentRemoved"]


def test_a_resumed_node_is_used_again() -> None:
    bench = two_nodes()
    bench.do(c.DrainNode(B), c.AgentClosed(AgentId(3)), c.AgentClosed(AgentId(4)))
    assert bench.do(c.ResumeNode(B)) == [e.NodeResumed(B)]
    assert bench.do(c.ResumeNode(B)) == []
    bench.do(c.Scale(3, "gradual", make_agents(1, "b", first=3)))
    bench.come_up(3)
    bench.submit(make_task("a", node=B))
    assert bench.status("p/a") == "assigned"


def test_draining_the_last_node_during_a_shutdown_ends_the_orchestra() -> None:
    """The first to go is the last that could go on: what ends with it cannot be asked to leave after it."""
    bench = Bench(make_agents(2), c.Policy(falls_max=1))
    for _ in range(2):
        bench.fall(2)
        if bench.agent(2).status is AgentStatus.STARTING:
            bench.come_up(2)
    bench.fall(1)
    bench.submit(make_task("a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=600_000))
    assert [agent.status.value for agent in bench.state.agents.values()] == ["starting", "error"]
    assert names(bench.do(c.DrainNode(NODE))) == ["NodeDraining", "AgentDraining", "AgentRemoved", "Terminated"]


# --- removing --------------------------------------------------------------------------------------------------------


def test_an_empty_node_is_removed_and_one_with_agents_is_not() -> None:
    bench = two_nodes()
    for force in (False, True):
        with pytest.raises(Refused, match="node b has 2 agents"):
            bench.do(c.RemoveNode(B, force))
    bench.do(c.DrainNode(B), c.AgentClosed(AgentId(3)), c.AgentClosed(AgentId(4)))
    assert bench.do(c.RemoveNode(B)) == [e.NodeRemoved(B)]
    assert list(bench.state.nodes) == [NODE]
    assert bench.do(c.NodeUp(B, "boot", "s"), c.NodeDown(B, "gone"), c.NodeTroubled(B, "late"), c.JournalAt(B, 7)) == []


def test_a_node_that_vanished_is_removed_by_force_with_all_it_had() -> None:
    bench = two_nodes()
    bench.submit(make_task("a", node=B), make_task("b"), make_task("c"), make_task("d"))
    bench.begin("p/a")
    bench.do(c.NodeDown(B, "no answer"))
    with pytest.raises(Refused, match="node b has 2 agents") as refused:
        bench.do(c.RemoveNode(B))
    assert "--force" in refused.value.hint
    events = bench.do(c.RemoveNode(B, force=True))
    assert names(events)[-1] in ("NodeRemoved", "AttemptAssigned")
    assert list(bench.state.agents) == [1, 2]
    assert bench.status("p/a") == "queued", "it is pinned to a node that is gone"
    bench.finish("p/b")
    assert bench.status("p/d") == "assigned"
    assert bench.task("p/a").losses == 1


@pytest.mark.parametrize("state", ["busy", "suspect", "starting", "draining", "draining and busy", "error", "leaving and dead"])
def test_force_removes_agents_whatever_they_do(state: str) -> None:
    bench = two_nodes(c.Policy(falls_max=0) if state == "error" else None)
    if "busy" in state or "dead" in state:
        bench.submit(make_task("a", node=B))
        bench.begin("p/a")
    if "draining" in state or "leaving" in state:
        bench.do(c.DrainNode(B))
    if state == "suspect":
        bench.go_silent(3, 4)
    if state in ("starting", "error") or "dead" in state:
        bench.fall(3)
    bench.do(c.NodeDown(B, "no answer"))
    bench.do(c.RemoveNode(B, force=True))
    assert (list(bench.state.agents), list(bench.state.nodes)) == ([1, 2], [NODE])
    assert all(attempt.node != B for _, attempt in bench.state.live_attempts())
    assert bench.pass_time(600_000) is not None


def test_force_may_end_a_shutdown() -> None:
    """With the first slot gone nothing runs and the orchestra ends, and its other slots with it."""
    bench = two_nodes()
    bench.submit(make_task("a", node=B))
    bench.do(c.NodeDown(B, "no answer"))
    bench.do(c.ShutDown(drain=False, graceful=True, timeout_ms=600_000))
    assert names(bench.do(c.RemoveNode(B, force=True)))[-2:] == ["Terminated", "NodeRemoved"]
    assert bench.state.lifecycle.value == "terminated"


# --- scaling a few at a time -----------------------------------------------------------------------------------------


def test_a_gradual_scaling_starts_ten_at_a_time() -> None:
    bench = Bench(make_agents(1))
    opened(bench)
    bench.do(c.Scale(26, "gradual", make_agents(25, first=2)))
    assert opened(bench) == list(range(2, 12))
    assert bench.pass_time(100) == []
    bench.come_up(*range(2, 9))
    bench.pass_time(100)
    assert opened(bench) == list(range(12, 19)), "three are still starting"
    bench.come_up(*range(9, 19))
    bench.pass_time(100)
    assert opened(bench) == list(range(19, 27))
    assert bench.state.lifecycle.value == "scaling"
    assert names(bench.come_up(*range(19, 27)))[-1] == "ScaleCompleted"
    assert bench.state.scale_queue == []


def test_an_immediate_scaling_starts_all_at_once() -> None:
    bench = Bench(make_agents(1))
    opened(bench)
    bench.do(c.Scale(26, "immediate", make_agents(25, first=2)))
    assert opened(bench) == list(range(2, 27))


def test_a_gradual_scaling_survives_a_restart_of_the_coordinator() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.Scale(26, "gradual", make_agents(25, first=2)))
    bench.come_up(*range(2, 12))
    bench.take_over()
    opened(bench)
    assert (bench.state.lifecycle.value, len(bench.state.scale_queue)) == ("scaling", 15)
    assert bench.pass_time(100) == [], "there is no node in sight"
    bench.do(c.NodeUp(NODE, "boot", "s"))
    bench.do(*(c.WorkerSeen(agent.id, agent.worker) for agent in bench.state.agents.values() if agent.worker is not None))
    while bench.state.lifecycle.value == "scaling":
        bench.pass_time(100)
        started = opened(bench)
        assert 0 < len(started) <= 10
        bench.come_up(*started)
    assert list(bench.state.agents) == list(range(1, 27))


@pytest.mark.parametrize("how", ["lost", "drained", "removed", "tripped"])
def test_a_gradual_scaling_goes_elsewhere_when_its_node_vanishes(how: str) -> None:
    bench = two_nodes(c.Policy(scale_step=2), max_agents=10)
    bench.do(c.Scale(10, "gradual", make_agents(6, "b", first=5)))
    bench.come_up(5, 6)
    if how == "tripped":
        bench.do(c.NodeTroubled(B, "its disk is full"))
    elif how == "drained":
        bench.do(c.DrainNode(B))
    else:
        bench.do(c.NodeDown(B, "switched off"))
        if how == "removed":
            bench.do(c.RemoveNode(B, force=True))
    for first in (7, 9):
        bench.pass_time(100)
        bench.come_up(first, first + 1)
    assert [bench.agent(number).spec.node for number in (7, 8, 9, 10)] == [NODE] * 4
    if how == "drained":
        bench.do(*(c.AgentClosed(AgentId(number)) for number in (3, 4, 5, 6)))
    if how == "lost":
        assert bench.state.lifecycle.value == "scaling", "four of its slots are out of sight"
        bench.do(c.NodeUp(B, "boot", "s"))
        bench.come_up(3, 4, 5, 6)
    assert bench.state.lifecycle.value == "running"


def test_slots_that_wait_on_a_tripped_node_do_not_hold_up_the_others() -> None:
    policy = c.Policy(scale_step=2, outage_agents_min=2, breaker_first_ms=600_000, breaker_max_ms=600_000)
    bench = two_nodes(policy)
    bench.fall(3, 4)
    assert bench.node("b").breaker is not None
    bench.do(c.Scale(6, "gradual", make_agents(2, first=5)))
    assert list(bench.state.agents) == [1, 2, 3, 4, 5, 6]


def test_a_gradual_scaling_waits_for_a_node_that_may_come_back() -> None:
    bench = two_nodes(max_agents=2)
    bench.do(c.NodeDown(B, "no answer"))
    bench.do(c.Scale(6, "gradual", make_agents(2, "b", first=5)))
    assert (bench.state.lifecycle.value, len(bench.state.scale_queue)) == ("scaling", 2)
    bench.do(c.NodeUp(B, "boot", "s"))
    bench.pass_time(100)
    assert [bench.agent(number).spec.node for number in (5, 6)] == ["b", "b"]


def test_a_gradual_scaling_that_has_nowhere_to_go_is_over() -> None:
    bench = two_nodes(c.Policy(scale_step=2), max_agents=2)
    bench.do(c.Scale(8, "gradual", make_agents(4, "b", first=5)))
    bench.come_up(5, 6)
    bench.do(c.DrainNode(B), *(c.AgentClosed(AgentId(number)) for number in (3, 4, 5, 6)))
    bench.pass_time(100)
    assert (bench.state.lifecycle.value, bench.state.scale_queue, list(bench.state.agents)) == ("running", [], [1, 2])


def test_a_gradual_scaling_waits_for_those_that_leave() -> None:
    bench = two_nodes(c.Policy(scale_step=1), max_agents=2)
    bench.do(c.Scale(6, "gradual", make_agents(2, "b", first=5)))
    bench.do(c.DrainNode(B), c.ResumeNode(B), c.AddNode(NodeSpec(B, max_agents=2)))
    bench.pass_time(100)
    assert (len(bench.state.scale_queue), len(bench.state.agents_on(B))) == (1, 2), "both have still to leave"
    bench.do(c.AgentClosed(AgentId(3)))
    bench.pass_time(100)
    assert (bench.state.scale_queue, bench.agent(6).spec.node) == ([], "b")


def test_another_scaling_takes_the_place_of_one_that_goes_on() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.Scale(26, "gradual", make_agents(25, first=2)))
    bench.come_up(*range(2, 12))
    bench.do(c.Scale(3, "gradual"))
    assert bench.state.scale_queue == []
    bench.do(*(c.AgentClosed(AgentId(number)) for number in range(4, 12)))
    assert (bench.state.lifecycle.value, list(bench.state.agents)) == ("running", [1, 2, 3])
    with pytest.raises(DuplicateId, match="#3"):
        bench.do(c.Scale(4, "gradual", make_agents(1, first=3)))


def test_a_shutdown_ends_a_gradual_scaling() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.do(c.Scale(26, "gradual", make_agents(25, first=2)))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=600_000))
    assert bench.state.scale_queue == []
    bench.pass_time(1_000)
    bench.finish("p/a")
    assert bench.state.lifecycle.value == "terminated"


def test_scaling_down_is_complete_only_when_all_have_left() -> None:
    bench = Bench(make_agents(3))
    bench.fall(3)
    events = bench.do(c.Scale(1, "gradual"))
    assert "ScaleCompleted" not in names(events), "#3 had no worker and is gone, #2 has still to leave"
    assert names(bench.do(c.AgentClosed(AgentId(2)))) == ["AgentRemoved", "ScaleCompleted"]
    assert [effect.agent for effect in bench.effects if isinstance(effect, RemoveWindow)] == [3, 2]


def test_a_scaling_does_not_wait_for_silent_agents() -> None:
    bench = Bench(make_agents(2))
    bench.go_silent(1)
    bench.do(c.Scale(3, "gradual", make_agents(1, first=3)))
    bench.come_up(3)
    assert bench.state.lifecycle.value in ("ready", "running")


def test_a_replacement_never_takes_a_number_that_waits_to_be_added() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=0, reserve=1, scale_step=1))
    bench.do(c.Scale(4, "gradual", make_agents(3, first=2)))
    bench.fall(1)
    assert bench.agent(1).replaced_by == 5
    for number in (2, 5, 3, 4):
        bench.come_up(number)
        bench.pass_time(100)
    assert list(bench.state.agents) == [1, 2, 5, 3, 4]
    assert bench.state.lifecycle.value == "running"


def test_the_attempt_of_a_removed_node_is_told_late_and_changes_nothing() -> None:
    """Needs `may_act` in `effects` to allow for a node that was removed in the same append."""
    bench = two_nodes()
    bench.submit(make_task("a", node=B))
    bench.begin("p/a")
    bench.do(c.NodeDown(B, "no answer"), c.RemoveNode(B, force=True))
    assert names(bench.finish("p/a", 1, OutcomeKind.DONE)) == ["StaleResultRecorded"]
