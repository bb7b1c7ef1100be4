"""When everything on a node goes wrong at once, the node is in trouble, not its agents: its breaker, from the trip to the reset."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import Effect, KillWorker, NodeEffect, OpenAgents, ReapAttempt, StartAttempt, SweepNode
from orchestra.core.model import AgentStatus, NodeSpec, Outcome, OutcomeKind, Worker
from orchestra.ids import AgentId, NodeId, TaskId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

POLICY = c.Policy(breaker_first_ms=1_000, breaker_max_ms=60_000, outage_agents_min=5, outage_window_ms=5_000, falls_max=3)
B = NodeId("b")


def names(events: list[e.Event]) -> list[str]:
    return [type(event).__name__ for event in events]


def tripped(agents: int = 6, policy: c.Policy = POLICY) -> Bench:
    """A node on which all workers have died at once."""
    bench = Bench(make_agents(agents), policy)
    bench.fall(*range(1, agents + 1))
    assert bench.node().breaker is not None
    bench.effects.clear()
    return bench


def opened(effects: list[Effect]) -> list[int]:
    return [agent for effect in effects if isinstance(effect, OpenAgents) for agent in effect.agents]


def canary(bench: Bench, node: str = NODE) -> AgentId | None:
    breaker = bench.node(node).breaker
    assert breaker is not None
    assert breaker.probing
    return breaker.canary


# --- what trips it ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "agents, fallen, trips",
    [(5, 4, False), (5, 5, True), (9, 5, True), (10, 5, False), (10, 6, True), (4, 4, False)],
)
def test_most_of_at_least_five_that_fall_at_once_are_an_outage(agents: int, fallen: int, trips: bool) -> None:
    bench = Bench(make_agents(agents), POLICY)
    bench.effects.clear()
    events = bench.fall(*range(1, fallen + 1))
    told = [event for event in events if isinstance(event, e.BreakerTripped)]
    assert told == ([e.BreakerTripped(NODE, f"{fallen} of {agents} workers fell at once", bench.now_ms + 1_000)] if trips else [])
    assert opened(bench.effects) == ([] if trips else list(range(1, fallen + 1))), "those that fall alone are started again at once"


def test_falls_that_are_far_apart_are_no_outage() -> None:
    bench = Bench(make_agents(6), POLICY)
    for number in range(1, 7):
        bench.fall(number)
        bench.pass_time(2_000)
    assert bench.node().breaker is None


@pytest.mark.parametrize("agents, silent, trips", [(5, 4, False), (5, 5, True), (10, 5, False), (10, 6, True)])
def test_most_of_at_least_five_that_are_silent_are_not_killed(agents: int, silent: int, trips: bool) -> None:
    bench = Bench(make_agents(agents), POLICY)
    events = bench.go_silent(*range(1, silent + 1))
    told = [event for event in events if isinstance(event, e.BreakerTripped)]
    assert told == ([e.BreakerTripped(NODE, f"{silent} of {agents} workers do not answer", bench.now_ms + 1_000)] if trips else [])
    if trips:
        assert bench.pass_time(900) == []
    else:
        for _ in range(30):
            bench.pass_time(500)
        assert sum(isinstance(effect, KillWorker) for effect in bench.effects) == silent


def test_ten_starts_in_a_row_that_come_to_nothing_are_futile() -> None:
    bench = Bench(make_agents(4), c.Policy(falls_max=99, futile_starts_max=10))
    bench.fall(1)
    told: list[list[str]] = [names(bench.do(c.WorkerFell(AgentId(1), None, "no window: no room for a pane"))) for _ in range(10)]
    assert told == [["AgentLost"]] * 9 + [["AgentLost", "BreakerTripped"]]
    breaker = bench.node().breaker
    assert breaker is not None
    assert breaker.cause == "10 workers in a row fell before they came up: no window: no room for a pane"


def test_a_worker_that_comes_up_between_makes_the_others_no_longer_futile() -> None:
    bench = Bench(make_agents(2), c.Policy(falls_max=99, futile_starts_max=10))
    for number in (1, 2):
        bench.fall(number)
    for _ in range(9):
        bench.do(c.WorkerFell(AgentId(1), None, "no window"))
    bench.come_up(2)
    bench.do(c.WorkerFell(AgentId(1), None, "no window"))
    assert (bench.node().breaker, bench.node().futile) == (None, 1)


def test_restarting_the_whole_fleet_is_no_outage() -> None:
    """Needs `_agent_lost` in `evolve` to tell a slot that makes room from one that falls."""
    bench = Bench(make_agents(12), POLICY)
    bench.do(*(c.RestartAgent(AgentId(number)) for number in range(1, 13)))
    events = bench.do(*(c.AgentClosed(AgentId(number)) for number in range(1, 13)))
    assert names(events) == ["AgentLost"] * 12
    assert bench.node().breaker is None


def test_a_node_that_says_it_is_in_trouble_trips_once() -> None:
    bench = Bench(make_agents(1), POLICY)
    trouble = c.NodeTroubled(NODE, "its disk is full")
    assert bench.do(trouble) == [e.BreakerTripped(NODE, "its disk is full", bench.now_ms + 1_000)]
    assert bench.do(trouble) == []
    assert bench.do(c.NodeTroubled(NodeId("unknown"), "its disk is full")) == []


def test_one_nodes_trouble_is_not_anothers() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(B))
    bench = Bench((*make_agents(6), *make_agents(6, "b", first=7)), POLICY, nodes)
    bench.fall(*range(1, 7))
    bench.fall(7)
    assert (bench.node().breaker is None, bench.node("b").breaker) == (False, None)
    assert opened(bench.effects)[-1] == 7
    bench.submit(make_task("a"))
    assert bench.task("p/a").attempts[0].node == "b"


# --- while it is tripped ---------------------------------------------------------------------------------------------


def test_nobody_is_charged_for_an_outage_not_even_those_that_fell_after_the_trip() -> None:
    """Needs `_agent_lost` in `evolve` not to count while the breaker is tripped."""
    bench = tripped(10)
    assert {agent.status for agent in bench.state.agents.values()} == {AgentStatus.STARTING}
    assert [agent.falls for agent in bench.state.agents.values()] == [0] * 10


def test_nothing_is_opened_ended_or_started_meanwhile() -> None:
    bench = Bench(make_agents(6), POLICY)
    bench.submit(make_task("a"), make_task("b"))
    bench.begin("p/a")
    bench.begin("p/b")
    bench.effects.clear()
    bench.fall(*range(1, 7))
    bench.submit(make_task("c", plan="q"), plan="q")
    bench.do(c.Scale(7, "immediate", make_agents(1, first=7)))
    bench.do(c.RestartAgent(AgentId(3)))
    bench.pass_time(900)
    assert [effect for effect in bench.effects if isinstance(effect, OpenAgents | ReapAttempt | StartAttempt | KillWorker)] == []
    assert (bench.status("p/a"), bench.status("q/c")) == ("unknown", "queued")


def test_no_start_is_overdue_meanwhile() -> None:
    bench = tripped(6, c.Policy(breaker_first_ms=600_000, breaker_max_ms=600_000, start_timeout_ms=10_000))
    assert bench.pass_time(500_000) == []


def test_the_ladder_stands_still_meanwhile_and_goes_on_after_the_reset() -> None:
    bench = Bench(make_agents(6), c.Policy(breaker_first_ms=100_000, breaker_max_ms=100_000))
    bench.go_silent(*range(1, 7))
    assert bench.pass_time(50_000) == []
    assert names(bench.speak(1, 2)) == ["AgentCleared", "AgentCleared", "BreakerReset"], "four are too few"
    assert names(bench.pass_time(100)) == ["RecoveryStepTaken"] * 4
    assert {agent.id for agent in bench.state.agents.values() if agent.suspicion is not None} == {3, 4, 5, 6}


def test_attempts_out_of_sight_are_given_up_after_a_while_and_their_late_end_changes_nothing() -> None:
    policy = c.Policy(breaker_first_ms=600_000, breaker_max_ms=600_000, unknown_grace_ms=10_000)
    nodes = (NodeSpec(NODE), NodeSpec(B))
    bench = Bench((*make_agents(6), *make_agents(1, "b", first=7, weight=1)), policy, nodes)
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.fall(*range(1, 7))
    assert bench.pass_time(10_000) == []
    events = bench.pass_time(1)
    ended = events[0]
    assert isinstance(ended, e.AttemptEnded)
    assert ended.outcome == Outcome(OutcomeKind.LOST, "node local was out of sight for 10 s: 5 of 6 workers fell at once")
    assert bench.task("p/a").attempts[1].node == "b"
    bench.finish("p/a", 1)
    assert bench.state.totals.stale == 1


def test_a_trip_outlives_its_coordinator_only_until_the_node_is_connected_again() -> None:
    bench = tripped(6)
    bench.take_over()
    assert bench.node().breaker is not None
    assert bench.pass_time(60_000) == [], "nothing is tried on a node out of sight"
    bench.do(c.NodeUp(NODE, "boot", "s"))
    assert bench.node().breaker is None


def test_the_end_of_the_orchestra_ends_the_trip() -> None:
    """Needs `_terminated` in `evolve` to reset the breakers: who is on trial is gone."""
    bench = tripped(6)
    bench.pass_time(1_000)
    assert canary(bench) == 1
    bench.do(c.ShutDown(drain=False, graceful=False, timeout_ms=1_000))
    assert bench.state.lifecycle.value == "terminated"
    bench.effects.clear()
    bench.do(c.Init("t", (NodeSpec(NODE),), make_agents(2)))
    assert opened(bench.effects) == [1, 2]


# --- the trial -------------------------------------------------------------------------------------------------------


def test_one_is_opened_after_the_pause_and_when_it_comes_up_all_are() -> None:
    bench = tripped(6)
    assert bench.pass_time(999) == []
    assert bench.pass_time(1) == [e.BreakerProbing(NODE, AgentId(1))]
    assert opened(bench.effects) == [1]
    assert any(isinstance(effect, SweepNode) for effect in bench.effects)
    assert bench.pass_time(5_000) == [], "it is under way"
    bench.effects.clear()
    assert names(bench.come_up(1)) == ["AgentReady", "BreakerReset"]
    assert [type(effect) for effect in bench.effects] == [SweepNode], "the look opens what is missing"
    assert bench.agent(2).since_ms == bench.now_ms, "it is awaited from now on"


def test_the_pause_doubles_to_the_cap_and_begins_anew_after_a_reset() -> None:
    bench = tripped(6, c.Policy(breaker_first_ms=1_000, breaker_max_ms=10_000))
    pauses: list[int] = []
    for _ in range(5):
        breaker = bench.node().breaker
        assert breaker is not None
        pauses.append(breaker.until_ms - bench.now_ms)
        bench.pass_time(pauses[-1])
        on_trial = canary(bench)
        assert on_trial is not None
        assert names(bench.fall(on_trial)) == ["AgentLost", "BreakerTripped"]
    assert pauses == [1_000, 2_000, 4_000, 8_000, 10_000]
    bench.come_up(1)
    assert bench.node().breaker is None
    bench.do(c.NodeTroubled(NODE, "again"))
    breaker = bench.node().breaker
    assert breaker is not None
    assert breaker.until_ms - bench.now_ms == 1_000


def test_a_trial_that_does_not_come_up_in_time_has_failed() -> None:
    bench = tripped(6, c.Policy(start_timeout_ms=10_000))
    bench.pass_time(1_000)
    assert bench.pass_time(10_000) == []
    assert names(bench.pass_time(1)) == ["AgentLost", "BreakerTripped"]


def test_another_is_tried_each_time() -> None:
    bench = tripped(6)
    tried: list[AgentId | None] = []
    for _ in range(3):
        bench.pass_time(60_000)
        tried.append(canary(bench))
        assert tried[-1] is not None
        bench.fall(tried[-1])
    assert tried == [1, 2, 3]


def test_a_trial_that_leaves_is_followed_by_another() -> None:
    """Needs `_agent_removed` in `evolve` to take the slot off trial."""
    bench = tripped(6)
    bench.pass_time(1_000)
    bench.do(c.Scale(5, "immediate"))
    bench.do(c.Scale(0, "immediate"))
    bench.do(c.Scale(1, "immediate", make_agents(1)))
    bench.effects.clear()
    bench.pass_time(100)
    assert (canary(bench), opened(bench.effects)) == (1, [1])


def test_where_all_workers_are_up_one_attempt_is_the_trial() -> None:
    bench = Bench(make_agents(3), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.submit(make_task("a"), make_task("b"), make_task("c"))
    assert not bench.state.live
    assert bench.pass_time(1_000)[0] == e.BreakerProbing(NODE)
    assert [bench.status(f"p/{name}") for name in "abc"] == ["assigned", "queued", "queued"]
    bench.pass_time(100)
    assert len(bench.state.live) == 1
    assert names(bench.begin("p/a"))[:2] == ["AttemptStarted", "BreakerReset"]
    assert [bench.status(f"p/{name}") for name in "abc"] == ["running", "assigned", "assigned"]


def test_one_attempt_is_the_trial_in_an_uneven_fleet_too() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(B))
    bench = Bench((*make_agents(3, weight=400), *make_agents(3, "b", first=4)), POLICY, nodes)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.pass_time(1_000)
    bench.submit(*(make_task(str(n), estimate_ms=60_000) for n in range(6)))
    on_node = [attempt.node for _, attempt in bench.state.live_attempts()]
    assert on_node.count(NODE) == 1
    assert B in on_node, "tasks do not wait for agents that may not be used"


def test_a_trial_that_the_node_fails_trips_it_for_longer() -> None:
    bench = Bench(make_agents(3), POLICY)
    bench.submit(make_task("a"))
    for pause_ms in (1_000, 2_000, 4_000):
        number = len(bench.task("p/a").attempts)
        lost = c.AttemptFinished(TaskId("p/a"), number, Outcome(OutcomeKind.LOST, "node local could not take the order"))
        events = bench.do(c.NodeTroubled(NODE, "could not take the order"), lost)
        assert events[0] == e.BreakerTripped(NODE, "could not take the order", bench.now_ms + pause_ms)
        bench.pass_time(pause_ms)
    assert (bench.task("p/a").losses, len(bench.task("p/a").attempts)) == (0, 4), "the task is not to blame"


def test_a_trial_that_ends_before_it_has_begun_is_followed_by_the_next_attempt() -> None:
    bench = Bench(make_agents(3), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.submit(make_task("a"), make_task("b"))
    bench.pass_time(1_000)
    bench.finish("p/a", kind=OutcomeKind.REFUSED)
    assert bench.status("p/b") == "assigned"
    bench.begin("p/b")
    assert bench.node().breaker is None


def test_a_trial_whose_worker_dies_has_failed() -> None:
    bench = Bench(make_agents(2), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.submit(make_task("a"))
    bench.pass_time(1_000)
    on_trial = canary(bench)
    assert on_trial is not None
    assert names(bench.fall(on_trial)) == ["AgentLost", "AttemptLostSight", "BreakerTripped"]


def test_workers_that_die_while_an_attempt_is_awaited_for_trial_are_tried_instead() -> None:
    bench = Bench(make_agents(2), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.pass_time(1_000)
    assert canary(bench) is None
    bench.effects.clear()
    bench.fall(1, 2)
    assert opened(bench.effects) == []
    assert bench.pass_time(100) == [e.BreakerProbing(NODE, AgentId(1))]
    assert opened(bench.effects) == [1]


def test_a_slot_whose_old_attempt_ends_during_its_trial_is_still_tried() -> None:
    bench = Bench(make_agents(6), POLICY)
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.fall(*range(1, 7))
    bench.pass_time(1_000)
    assert canary(bench) == 1
    bench.finish("p/a")
    bench.pass_time(100)
    on_trial = canary(bench)
    assert on_trial is not None
    assert names(bench.fall(on_trial)) == ["AgentLost", "BreakerTripped"]


def test_a_silent_worker_on_trial_goes_up_the_ladder() -> None:
    bench = Bench(make_agents(2), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.submit(make_task("a"))
    bench.pass_time(1_000)
    bench.go_silent(1)
    for _ in range(13):
        bench.pass_time(1_000)
    assert isinstance(bench.effects[-1], KillWorker)
    assert names(bench.fall(1))[-1] == "BreakerTripped"


def test_where_all_are_silent_for_good_one_is_ended_for_trial_and_then_the_others() -> None:
    bench = Bench(make_agents(6), POLICY)
    bench.go_silent(*range(1, 7))
    for _ in range(14):
        bench.pass_time(1_000)
    assert [effect.agent for effect in bench.effects if isinstance(effect, KillWorker)] == [1]
    bench.fall(1)
    bench.pass_time(2_000)
    assert canary(bench) == 1
    bench.come_up(1)
    for _ in range(14):
        bench.pass_time(1_000)
    assert [effect.agent for effect in bench.effects if isinstance(effect, KillWorker)] == [1, 2, 3, 4, 5, 6]


def test_where_all_are_silent_one_that_speaks_when_it_is_tried_resets() -> None:
    bench = Bench(make_agents(6), POLICY)
    bench.go_silent(*range(1, 7))
    bench.pass_time(1_000)
    assert canary(bench) == 1
    assert names(bench.speak(1)) == ["AgentCleared", "BreakerReset"]


def test_where_most_are_silent_one_that_speaks_is_not_enough() -> None:
    bench = Bench(make_agents(8), POLICY)
    bench.go_silent(*range(1, 9))
    assert bench.speak(8) == [e.AgentCleared(AgentId(8))]
    assert bench.speak(7) == [e.AgentCleared(AgentId(7))]
    assert bench.speak(6) == [e.AgentCleared(AgentId(6))]
    assert names(bench.speak(5)) == ["AgentCleared", "BreakerReset"], "four of eight are not most"


def test_without_automatic_recovery_nobody_is_ended_for_trial() -> None:
    bench = Bench(make_agents(6), c.Policy(falls_max=0))
    bench.go_silent(*range(1, 7))
    for _ in range(60):
        bench.pass_time(1_000)
    assert not any(isinstance(effect, KillWorker) for effect in bench.effects)


def test_a_slot_added_while_an_attempt_is_awaited_for_trial_is_tried() -> None:
    bench = Bench(make_agents(1), POLICY)
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    bench.pass_time(1_000)
    bench.do(c.Scale(2, "gradual", make_agents(1, first=2)))
    bench.pass_time(100)
    assert opened(bench.effects)[-1] == 2
    bench.come_up(2)
    assert bench.state.lifecycle.value == "running"


def test_effects_of_a_node_that_is_removed_in_the_same_turn_are_none() -> None:
    """Needs `may_act` in `effects` to allow for a node that is gone."""
    bench = Bench(make_agents(1), POLICY)
    bench.submit(make_task("a"))
    bench.effects.clear()
    bench.do(c.NodeDown(NODE, "switched off"), c.RemoveNode(NODE, force=True))
    assert not any(isinstance(effect, ReapAttempt) for effect in bench.effects if isinstance(effect, NodeEffect))
    assert bench.status("p/a") == "queued"


def test_a_worker_that_is_found_after_all_resets() -> None:
    bench = tripped(6)
    assert names(bench.do(c.WorkerSeen(AgentId(4), Worker(104, 1), Worker(104, 1)))) == ["AgentReady", "BreakerReset"]
