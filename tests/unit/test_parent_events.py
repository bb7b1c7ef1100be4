"""Which events a parent is told of, and in which words."""

from __future__ import annotations

import pytest

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import AgentSpec, Outcome, OutcomeKind, Worker
from orchestra.core.state import State
from orchestra.edges.filerpc.events import ParentEvents, Told
from orchestra.engine.kernel import Happened
from orchestra.ids import AgentId, TaskId
from orchestra.testing.builders import NODE, Bench, make_agents, make_task


class Teller:
    """A bench whose events go through the rule as the loop would hand them over: after each append, with the state then."""

    def __init__(self, agents: int) -> None:
        self.bench = Bench(make_agents(agents))
        self.rule = ParentEvents()

    def do(self, *commands: c.Command) -> list[Told]:
        events = self.bench.do(*commands)
        at_ms = self.bench.now_ms
        found = [self.rule.of(self.bench.state, Happened(index, at_ms, event)) for index, event in enumerate(events)]
        return [told for told in found if told is not None]


def fell(agent: int, reason: str = "its window is gone") -> c.WorkerFell:
    return c.WorkerFell(AgentId(agent), Worker(100 + agent, 1), reason)


def seen(agent: int, pid: int = 900) -> c.WorkerSeen:
    return c.WorkerSeen(AgentId(agent), Worker(pid + agent, 1))


def test_an_agent_that_falls_and_comes_back() -> None:
    teller = Teller(2)
    assert teller.do(fell(2)) == [Told("agent_failure", "high", {"agent_id": 2, "reason": "its window is gone"})]
    teller.bench.now_ms += 45_999
    assert teller.do(seen(2)) == [Told("agent_recovered", "medium", {"agent_id": 2, "downtime_seconds": 45})]


def test_an_agent_that_fell_before_the_coordinator_was_restarted() -> None:
    teller = Teller(1)
    teller.do(fell(1))
    teller.rule = ParentEvents({1: teller.bench.now_ms - 60_000})
    assert teller.do(seen(1)) == [Told("agent_recovered", "medium", {"agent_id": 1, "downtime_seconds": 60})]


def test_the_downtime_counts_from_the_first_fall() -> None:
    rule = ParentEvents()
    agent = AgentId(1)
    for at_ms in (1000, 5000):
        rule.of(State(), Happened(1, at_ms, e.AgentLost(agent, "x")))
    told = rule.of(State(), Happened(2, 11_000, e.AgentReady(agent, Worker(1, 1))))
    assert told is not None
    assert told.values["downtime_seconds"] == 10


def test_an_agent_beyond_recovery_is_an_error_with_a_remedy() -> None:
    rule = ParentEvents()
    assert rule.of(State(), Happened(1, 0, e.AgentSuspended(AgentId(3), "4 times in a row"))) is None, "it may be replaced"
    told = rule.of(State(), Happened(2, 0, e.Escalated(AgentId(3), "4 times in a row")))
    assert told is not None
    assert (told.event, told.severity) == ("unrecoverable_error", "critical")
    assert told.values == {"agent_id": 3, "reason": "4 times in a row", "remedy": "orchestra agent restart 3"}


def test_a_silent_agent_is_told_and_so_is_its_return() -> None:
    rule = ParentEvents()
    told = rule.of(State(), Happened(1, 1000, e.AgentSuspected(AgentId(3), "it does not answer", 3000)))
    assert told is not None
    assert (told.event, told.severity) == ("agent_failure", "medium")
    back = rule.of(State(), Happened(2, 8000, e.AgentCleared(AgentId(3))))
    assert back is not None
    assert back.values == {"agent_id": 3, "downtime_seconds": 7}


def test_a_replaced_agent_names_its_replacement() -> None:
    told = ParentEvents().of(State(), Happened(1, 0, e.AgentReplaced(AgentId(3), AgentId(21))))
    assert told is not None
    assert (told.event, told.values) == ("agent_replaced", {"agent_id": 3, "replaced_by": 21})


def test_a_node_that_is_back_says_how_long_it_was_gone_and_whether_it_was_started_anew() -> None:
    rule = ParentEvents()
    assert rule.of(State(), Happened(1, 0, e.NodeConnected(NODE, "b", "s"))) is None, "the first time is no return"
    lost = rule.of(State(), Happened(2, 1000, e.NodeLost(NODE, "silence")))
    assert lost is not None
    assert (lost.event, lost.severity) == ("node_lost", "critical")
    assert rule.of(State(), Happened(2, 4000, e.NodeLost(NODE, "no route", True))) is None, "it is told once"
    back = rule.of(State(), Happened(3, 31_000, e.NodeConnected(NODE, "c", "s", (), True)))
    assert back is not None
    assert back.values == {"node": NODE, "rebooted": True, "downtime_seconds": 30}


def test_after_a_restart_the_return_of_a_node_is_told_all_the_same() -> None:
    back = ParentEvents(lost={NODE: 1000}).of(State(), Happened(3, 31_000, e.NodeConnected(NODE, "c", "s")))
    assert back is not None
    assert back.values["downtime_seconds"] == 30


def test_a_tripped_node_is_degraded_until_its_reset() -> None:
    rule = ParentEvents()
    tripped = rule.of(State(), Happened(1, 0, e.BreakerTripped(NODE, "60 of 100 workers fell at once", 2000)))
    assert tripped is not None
    assert (tripped.event, tripped.values["reason"]) == ("node_degraded", "60 of 100 workers fell at once")
    reset = rule.of(State(), Happened(2, 5000, e.BreakerReset(NODE)))
    assert reset is not None
    assert (reset.event, reset.values["downtime_seconds"]) == ("node_recovered", 5)


def test_an_agent_that_was_removed_is_forgotten() -> None:
    rule = ParentEvents({1: 0})
    rule.of(State(), Happened(1, 0, e.AgentRemoved(AgentId(1), NODE)))
    assert rule.of(State(), Happened(2, 0, e.AgentReady(AgentId(1), Worker(1, 1)))) is None


def test_a_lost_node_is_told_but_not_our_own_restart() -> None:
    teller = Teller(1)
    told = teller.do(c.NodeDown(NODE, "the connection broke"))
    assert told == [Told("node_lost", "critical", {"node": "local", "reason": "the connection broke"})]
    assert [each.event for each in Teller(1).do(c.TakeLead(9, 1, "host", "0"))] == []


@pytest.mark.parametrize("kind,event,severity", [(OutcomeKind.DONE, "task_completed", "info"), (OutcomeKind.FAILED, "task_failed", "high")])
def test_a_task_that_ends(kind: OutcomeKind, event: str, severity: str) -> None:
    teller = Teller(1)
    teller.bench.submit(make_task("a", plan=None, retries=0), plan=None)
    teller.bench.begin("a")
    outcome = teller.bench.finish("a", kind=kind)
    told = [teller.rule.of(teller.bench.state, Happened(1, 0, each)) for each in outcome]
    found = [each for each in told if each is not None]
    assert [(each.event, each.severity, each.values["task_id"]) for each in found] == [(event, severity, TaskId("a"))]


def test_scaling_is_told_as_it_goes() -> None:
    teller = Teller(2)
    added = tuple(AgentSpec(AgentId(number), NODE) for number in range(3, 7))
    assert teller.do(c.Scale(6, "gradual", added)) == []
    teller.bench.now_ms += 1000
    assert teller.do(seen(3)) == [Told("scaling", "info", {"status": "scaling", "progress": "3/6", "eta_seconds": 3})]
    assert teller.do(seen(4), seen(5)) == [Told("scaling", "info", {"status": "scaling", "progress": "5/6", "eta_seconds": 1})]
    assert teller.do(seen(6)) == [Told("scaling", "info", {"status": "scaled", "progress": "6/6", "eta_seconds": 0})]


def test_a_fleet_that_comes_up_the_first_time_tells_nothing() -> None:
    bench = Bench()
    rule = ParentEvents()
    bench.start_fleet(make_agents(2))
    assert rule.of(bench.state, Happened(1, 0, e.AgentReady(AgentId(1), Worker(1, 1)))) is None


def test_a_failed_start_is_an_error() -> None:
    told = ParentEvents().of(State(), Happened(1, 0, e.InitFailed("no worker came up")))
    assert told == Told("unrecoverable_error", "critical", {"reason": "no worker came up"})


def test_a_question_and_its_answer_are_told_with_the_time_between() -> None:
    teller = Teller(1)
    teller.bench.submit(make_task("a"))
    teller.bench.begin("p/a")
    told = teller.do(c.AttemptAsks(TaskId("p/a"), 1, "May it use Write?", 3))
    assert [(each.event, each.severity) for each in told] == [("task_waiting", "high")]
    assert told[0].values == {
        "task_id": "p/a",
        "attempt": 1,
        "question": "May it use Write?",
        "question_number": 3,
        "remedy": 'orchestra task answer p/a "..."',
    }
    teller.bench.now_ms += 61_000
    told = teller.do(c.AttemptGoesOn(TaskId("p/a"), 1))
    assert told == [Told("task_answered", "info", {"task_id": "p/a", "attempt": 1, "waited_seconds": 61})]


def test_two_that_changed_one_file() -> None:
    teller = Teller(2)
    teller.bench.submit(*(make_task(name, isolated=True, workspace="/w") for name in "ab"))
    assert teller.do(*(c.NoteTouched(TaskId(f"p/{name}"), 1, ("x.py",)) for name in "ab")) == [
        Told(
            "conflict_predicted", "medium", {"task_id": "p/b", "attempt": 1, "other_task_id": "p/a", "other_attempt": 1, "paths": ("x.py",)}
        )
    ]


def test_a_kind_that_goes_and_comes_back_and_what_moved() -> None:
    rule, state = ParentEvents(), State()

    def told(event: e.Event) -> Told | None:
        return rule.of(state, Happened(1, 1, event))

    lost = told(e.KindLost("codex", "it is not installed", "programs", "claude"))
    assert lost == Told("agent_kind_lost", "high", {"kind": "codex", "reason": "it is not installed", "tasks_go_to": "claude"})
    moved = told(e.TaskMoved(TaskId("p/a"), "codex", "claude", 90_000, "moved"))
    values = {"task_id": "p/a", "from": "codex", "to": "claude", "estimated_seconds": 90, "warning": "moved"}
    assert moved == Told("task_moved", "medium", values)
    back = told(e.KindRecovered("codex", "it is there again", was_lost=True))
    assert back == Told("agent_kind_recovered", "medium", {"kind": "codex", "reason": "it is there again"})
    assert told(e.KindMissed("codex", "out of sight")) is None
    assert told(e.KindRecovered("codex", "it is there again")) is None


def test_work_that_conflicts_again_after_it_was_sent_back_is_for_a_person() -> None:
    teller = Teller(1)
    teller.bench.submit(make_task("a", isolated=True, workspace="/w"))
    told: list[Told] = []
    for number in (1, 2):
        teller.bench.begin("p/a")
        told += teller.do(c.AttemptFinished(TaskId("p/a"), number, Outcome(OutcomeKind.DONE)))
        told += teller.do(c.MergeConflicted(TaskId("p/a"), number, ("x.py",), "both sides"))
    assert [(each.event, each.severity) for each in told] == [("work_conflicted", "medium")] * 2 + [("task_failed", "critical")]
    assert told[0].values == {"task_id": "p/a", "attempt": 1, "files": ("x.py",), "failed_checks": ()}
    assert "orchestra task diff p/a --attempt 2" in told[-1].values["remedy"]


@pytest.mark.parametrize("percent,scope,name,remedy", [(80, "day", "2026-01-31", "day"), (100, "task", "p/a", "task p/a")])
def test_a_budget_of_which_much_is_gone_is_a_cost_threshold(percent: int, scope: str, name: str, remedy: str) -> None:
    facts: dict[str, str | int] = {
        "percent": percent,
        "scope": scope,
        "name": name,
        "budget_usd_micros": 100,
        "settled_usd_micros": percent,
    }
    (told,) = Teller(1).do(c.NoteApi(5, "budget_warning", facts))
    assert (told.event, told.severity) == ("cost_threshold_exceeded", "high")
    figures = {"scope": scope, "name": name, "budget_usd_micros": 100, "settled_usd_micros": percent}
    assert told.values == {**figures, "threshold_percent": percent, "remedy": f"orchestra cost budget {remedy} --usd AMOUNT"}
