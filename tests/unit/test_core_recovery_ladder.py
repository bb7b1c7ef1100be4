"""Workers that live and say nothing, workers that fall or never come up, and who takes the place of those that are given up."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import CloseAgent, Effect, KillWorker, OpenAgents, ProbeAgent
from orchestra.core.model import AgentStatus, NodeSpec, OutcomeKind, Worker
from orchestra.errors import IllegalMove
from orchestra.ids import AgentId, NodeId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

ONE = AgentId(1)
WORKER = Worker(101, 1)
POLICY = c.Policy(strikes_max=3, probe_ms=2_000, graceful_ms=5_000)
OFF = c.Policy(falls_max=0)
LADDER = [(2_000, "probe"), (4_000, "probe"), (6_000, "probe"), (8_000, "graceful"), (13_000, "forced")]
"""Milliseconds after the first missed beat, and what is done then."""
AGAIN = [(18_000, "forced"), (28_000, "forced")]
GIVEN_UP_MS = 48_000


def climb(bench: Bench, until_ms: int, since_ms: int = 0) -> list[tuple[int, e.Event]]:
    """Lets time pass in steps of 500 ms; returns what happened and when."""
    seen: list[tuple[int, e.Event]] = []
    for at_ms in range(since_ms + 500, until_ms + 1, 500):
        seen += [(at_ms, event) for event in bench.pass_time(500)]
    return seen


def steps(seen: list[tuple[int, e.Event]]) -> list[tuple[int, str]]:
    return [(at_ms, event.step) for at_ms, event in seen if isinstance(event, e.RecoveryStepTaken)]


def kinds(effects: list[Effect]) -> list[type[Effect]]:
    return [type(effect) for effect in effects]


def names(events: list[e.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def silent(policy: c.Policy = POLICY, agents: int = 1) -> Bench:
    """Agent #1 has just missed a beat."""
    bench = Bench(make_agents(agents), policy)
    bench.effects.clear()
    bench.go_silent(1)
    return bench


# --- the ladder ------------------------------------------------------------------------------------------------------


def test_a_silent_worker_is_looked_at_then_asked_to_leave_then_killed_each_in_its_time() -> None:
    bench = silent()
    assert bench.agent(1).status is AgentStatus.SUSPECT
    assert steps(climb(bench, 13_000)) == LADDER
    assert bench.effects == [
        *(ProbeAgent(effect.seq, NODE, ONE) for effect in bench.effects[:3]),
        CloseAgent(bench.effects[3].seq, NODE, ONE, now=True),
        KillWorker(bench.effects[4].seq, NODE, ONE, WORKER),
    ]


def test_a_killed_worker_is_started_again_and_its_attempt_accounted_for() -> None:
    bench = Bench(make_agents(1), POLICY)
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.go_silent(1)
    climb(bench, 13_000)
    assert bench.status("p/a") == "running", "until it is dead nobody knows"
    events = bench.fall(1)
    assert names(events) == ["AgentLost", "AttemptLostSight"]
    assert isinstance(bench.effects[-2], OpenAgents)
    bench.come_up(1)
    bench.finish("p/a", kind=OutcomeKind.LOST)
    assert (bench.agent(1).status, bench.agent(1).suspicion, bench.status("p/a")) == (AgentStatus.BUSY, None, "assigned")


def test_a_silent_agent_gets_no_work_and_keeps_what_it_has() -> None:
    bench = Bench(make_agents(2), POLICY)
    bench.submit(make_task("a"))
    bench.go_silent(1, 2)
    bench.submit(make_task("b", plan="q"), plan="q")
    assert (bench.status("p/a"), bench.status("q/b")) == ("assigned", "queued")
    bench.finish("p/a")
    assert bench.status("p/a") == "completed"
    assert bench.agent(1).status is AgentStatus.SUSPECT, "an end that was written earlier is no sign of life"
    bench.speak(1)
    assert bench.status("q/b") == "assigned"


@pytest.mark.parametrize("after_ms, rung", [(0, ""), (2_000, "probe"), (6_000, "probe"), (8_000, "graceful"), (13_000, "forced")])
@pytest.mark.parametrize("busy", [False, True])
def test_a_beat_that_comes_back_ends_it_at_each_rung(after_ms: int, rung: str, busy: bool) -> None:
    bench = Bench(make_agents(1), POLICY)
    if busy:
        bench.submit(make_task("a"))
    bench.go_silent(1)
    climb(bench, after_ms)
    doubt = bench.agent(1).suspicion
    assert doubt is not None
    assert doubt.step == rung
    assert bench.speak(1) == [e.AgentCleared(ONE)]
    assert bench.agent(1).status is (AgentStatus.BUSY if busy else AgentStatus.IDLE)
    assert climb(bench, 30_000) == []
    bench.go_silent(1)
    assert steps(climb(bench, 13_000)) == LADDER, "the next time it begins at the bottom"


def test_word_of_another_worker_and_a_second_word_change_nothing() -> None:
    bench = Bench(make_agents(1), POLICY)
    assert bench.do(c.BeatMissed(ONE, Worker(99, 1), "no beat")) == []
    assert bench.do(c.BeatBack(ONE, WORKER)) == [], "nobody doubted it"
    bench.go_silent(1)
    assert bench.go_silent(1) == []
    assert bench.do(c.BeatBack(ONE, Worker(99, 1))) == []
    assert bench.agent(1).status is AgentStatus.SUSPECT


def test_a_silent_worker_that_is_found_alive_stays_under_suspicion() -> None:
    bench = silent()
    assert bench.do(c.WorkerSeen(ONE, WORKER)) == []
    assert bench.do(c.WorkerSeen(ONE, Worker(500, 1)))[0] == e.AgentLost(ONE, "its worker was replaced")
    assert (bench.agent(1).status, bench.agent(1).worker) == (AgentStatus.IDLE, Worker(500, 1))


def test_strikes_are_a_setting() -> None:
    bench = silent(c.Policy(strikes_max=0, probe_ms=1_000, graceful_ms=2_000))
    assert steps(climb(bench, 4_000)) == [(1_000, "graceful"), (3_000, "forced")]


def test_a_worker_that_cannot_be_ended_is_given_up_and_somebody_is_called() -> None:
    bench = Bench(make_agents(1), POLICY)
    bench.submit(make_task("a"))
    bench.go_silent(1)
    seen = climb(bench, GIVEN_UP_MS, 0)
    assert steps(seen) == [*LADDER, *AGAIN]
    why = "its worker does not answer and could not be ended"
    assert [(at, type(event).__name__) for at, event in seen[-3:]] == [
        (GIVEN_UP_MS, "AttemptLostSight"),
        (GIVEN_UP_MS, "AgentSuspended"),
        (GIVEN_UP_MS, "Escalated"),
    ]
    assert seen[-1][1] == e.Escalated(ONE, why)
    assert (bench.agent(1).status, bench.agent(1).reason) == (AgentStatus.ERROR, why)
    assert climb(bench, 60_000) == []


def test_a_given_up_worker_that_a_look_finds_is_not_trusted_again() -> None:
    bench = silent()
    climb(bench, GIVEN_UP_MS)
    assert bench.do(c.WorkerSeen(ONE, WORKER, WORKER)) == [], "it was known to be there: that was the trouble"
    bench.do(c.RestartAgent(ONE))
    bench.do(c.WorkerSeen(ONE, WORKER, WORKER))
    assert bench.agent(1).status is AgentStatus.IDLE, "somebody has asked for it"


def test_without_automatic_recovery_a_silent_worker_is_only_looked_at() -> None:
    bench = silent(OFF)
    assert steps(climb(bench, 120_000)) == LADDER[:3]
    assert kinds(bench.effects) == [ProbeAgent] * 3
    assert bench.agent(1).status is AgentStatus.SUSPECT


def test_suspicion_ends_when_the_node_is_lost() -> None:
    bench = silent()
    bench.do(c.NodeDown(NODE, "no answer"))
    assert (bench.agent(1).status, bench.agent(1).suspicion) == (AgentStatus.OFFLINE, None)
    assert steps(climb(bench, 60_000)) == []
    bench.do(c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(ONE, WORKER))
    assert bench.agent(1).status is AgentStatus.IDLE


def test_a_coordinator_that_takes_over_in_the_middle_begins_anew() -> None:
    bench = silent()
    climb(bench, 8_000)
    bench.take_over()
    bench.do(c.NodeUp(NODE, "boot", "s"), c.WorkerSeen(ONE, WORKER))
    assert climb(bench, 30_000) == []
    bench.go_silent(1)
    assert steps(climb(bench, 13_000)) == LADDER


# --- slots that leave ------------------------------------------------------------------------------------------------


def test_the_silent_worker_of_a_leaving_slot_is_killed_and_the_slot_removed() -> None:
    for first in ("silent", "leaving"):
        bench = Bench(make_agents(2), POLICY)
        words = (c.BeatMissed(AgentId(2), Worker(102, 1), "no beat"), c.Scale(1, "gradual"))
        bench.do(*(words if first == "silent" else reversed(words)))
        assert bench.agent(2).status is AgentStatus.DRAINING
        assert steps(climb(bench, 13_000)) == LADDER
        bench.fall(2)
        assert list(bench.state.agents) == [1]
        assert bench.state.lifecycle.value == "running"


def test_a_leaving_slot_is_never_suspended_but_killed_again() -> None:
    bench = Bench(make_agents(2), POLICY)
    bench.do(c.Scale(1, "gradual"))
    bench.go_silent(2)
    seen = climb(bench, GIVEN_UP_MS)
    assert steps(seen)[len(LADDER) :] == [*AGAIN, (48_000, "forced")]
    assert bench.agent(2).status is AgentStatus.DRAINING
    bench.speak(2)
    assert bench.agent(2).status is AgentStatus.DRAINING
    assert climb(bench, 30_000) == []


def test_steps_end_with_the_orchestra() -> None:
    """The last agent that could go on is given up, and with the end goes a leaving one that was due in the same tick."""
    bench = Bench(make_agents(2), POLICY)
    bench.do(c.Scale(1, "gradual"))
    bench.go_silent(1, 2)
    bench.submit(make_task("a"))
    bench.do(c.ShutDown(drain=True, graceful=True, timeout_ms=600_000))
    seen = climb(bench, GIVEN_UP_MS)
    assert [type(event).__name__ for at_ms, event in seen if at_ms == GIVEN_UP_MS] == ["AgentSuspended", "Escalated", "Terminated"]
    assert (bench.status("p/a"), bench.state.agents) == ("queued", {})


# --- workers that are asked to make room -----------------------------------------------------------------------------


def test_a_restarted_worker_that_falls_silent_before_it_has_left_is_looked_after() -> None:
    """Needs the pairs (STARTING, AgentSuspected) and (STARTING, AgentCleared) in `transitions`."""
    bench = Bench(make_agents(1), POLICY)
    bench.do(c.RestartAgent(ONE))
    bench.go_silent(1)
    assert (bench.agent(1).status, bench.agent(1).suspicion is None) == (AgentStatus.STARTING, False)
    bench.speak(1)
    assert bench.agent(1).suspicion is None
    bench.go_silent(1)
    assert steps(climb(bench, 13_000)) == LADDER
    bench.fall(1)
    bench.come_up(1)
    assert bench.agent(1).status is AgentStatus.IDLE


def test_a_restarted_worker_that_does_not_leave_in_time_is_ended() -> None:
    """Needs the pair (STARTING, AgentSuspected) in `transitions`."""
    bench = Bench(make_agents(1), POLICY)
    bench.do(c.RestartAgent(ONE))
    events = bench.pass_time(60_001)
    assert events == [e.AgentSuspected(ONE, "its worker does not leave", bench.now_ms + 2_000)]
    assert steps(climb(bench, 13_000)) == LADDER
    assert kinds(bench.effects)[-1] is KillWorker


def test_restarting_is_no_fall() -> None:
    """Needs `_agent_lost` in `evolve` to tell a slot that makes room from one that falls."""
    bench = Bench(make_agents(1), POLICY)
    bench.do(c.RestartAgent(ONE))
    bench.effects.clear()
    bench.do(c.AgentClosed(ONE))
    assert kinds(bench.effects) == [OpenAgents]
    assert (bench.agent(1).falls, bench.node().futile) == (0, 0)


def test_restarting_works_without_automatic_recovery() -> None:
    bench = Bench(make_agents(1), OFF)
    bench.do(c.RestartAgent(ONE))
    bench.effects.clear()
    bench.do(c.AgentClosed(ONE))
    assert bench.agent(1).status is AgentStatus.STARTING
    assert kinds(bench.effects) == [OpenAgents]


# --- falls, starts, reserve ------------------------------------------------------------------------------------------


def test_a_worker_that_falls_too_often_is_given_up_and_its_attempt_lost_from_sight() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=1))
    bench.fall(1)
    bench.come_up(1)
    bench.submit(make_task("a"))
    events = bench.fall(1)
    assert names(events) == ["AttemptLostSight", "AgentSuspended", "Escalated"]
    assert events[1] == e.AgentSuspended(ONE, "killed, 2 times in a row")


def test_without_automatic_recovery_a_fallen_worker_is_not_started_again() -> None:
    bench = Bench(make_agents(1), OFF)
    bench.effects.clear()
    assert names(bench.fall(1)) == ["AgentSuspended", "Escalated"]
    assert bench.effects == []


def test_a_start_that_comes_to_nothing_is_a_fall() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=1, start_timeout_ms=10_000))
    bench.fall(1)
    assert bench.pass_time(10_000) == []
    events = bench.pass_time(1)
    assert events[0] == e.AgentSuspended(ONE, "no worker came up within 10 s, 2 times in a row")


def test_an_overdue_start_is_tried_again() -> None:
    bench = Bench(make_agents(1), c.Policy(start_timeout_ms=10_000))
    bench.fall(1)
    bench.effects.clear()
    assert bench.pass_time(10_001) == [e.AgentLost(ONE, "no worker came up within 10 s")]
    assert kinds(bench.effects) == [OpenAgents]


def test_a_start_is_awaited_from_when_the_node_is_there() -> None:
    bench = Bench(policy=c.Policy(start_timeout_ms=10_000, init_timeout_ms=100_000))
    bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(1)))
    bench.now_ms += 9_000
    bench.do(c.NodeUp(NODE, "boot", "s"))
    assert bench.pass_time(10_000) == []
    assert names(bench.pass_time(1)) == ["AgentLost"]


def test_nobody_is_awaited_on_a_node_out_of_sight() -> None:
    bench = Bench(make_agents(1), c.Policy(start_timeout_ms=10_000))
    bench.do(c.NodeDown(NODE, "no answer"))
    bench.do(c.RestartAgent(ONE))
    assert bench.pass_time(60_000) == []


def test_a_given_up_slot_is_replaced_from_the_reserve_until_that_is_used_up() -> None:
    bench = Bench(make_agents(3, kind="shell", name="CC"), c.Policy(falls_max=0, reserve=2))
    bench.effects.clear()
    events = bench.fall(1)
    assert names(events) == ["AgentSuspended", "AgentAdded", "AgentReplaced"]
    assert events[2] == e.AgentReplaced(ONE, AgentId(4))
    assert (bench.agent(4).spec.kind, bench.agent(4).spec.name) == ("shell", "CC-r4")
    assert bench.effects == [OpenAgents(bench.effects[0].seq, NODE, (AgentId(4),))]
    bench.fall(2)
    bench.come_up(4, 5)
    assert names(bench.fall(3)) == ["AgentSuspended", "Escalated"]
    assert list(bench.state.agents) == [1, 2, 3, 4, 5]
    bench.submit(make_task("a"))
    assert bench.task("p/a").attempts[0].agent == 4


def test_a_replacement_goes_where_there_is_room_and_else_somebody_is_called() -> None:
    nodes = (NodeSpec(NODE, max_agents=1), NodeSpec(NodeId("b"), max_agents=2))
    bench = Bench((*make_agents(1), *make_agents(1, "b", first=2)), c.Policy(falls_max=0, reserve=5), nodes)
    bench.fall(1)
    assert bench.agent(3).spec.node == "b"
    assert names(bench.fall(2))[-1] == "Escalated", "every node is full"


def test_restarting_clears_what_was_held_against_a_slot() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=1, reserve=1))
    bench.fall(1)
    bench.come_up(1)
    bench.fall(1)
    assert bench.agent(1).replaced_by == 2
    bench.do(c.RestartAgent(ONE))
    assert (bench.agent(1).falls, bench.agent(1).replaced_by, bench.agent(1).reason) == (0, 2, ""), "its stand-in stays, and counts"
    bench.come_up(1)
    assert names(bench.fall(1)) == ["AgentLost"], "it may fall as often as at first"


def test_restarting_a_silent_agent_clears_the_suspicion() -> None:
    bench = silent()
    bench.do(c.RestartAgent(ONE))
    assert (bench.agent(1).status, bench.agent(1).suspicion) == (AgentStatus.STARTING, None)
    assert climb(bench, 20_000) == []


def test_a_leaving_agent_is_not_restarted() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.Scale(0, "immediate"))
    with pytest.raises(IllegalMove, match="leaving"):
        bench.do(c.RestartAgent(ONE))
