"""Desired against observed: every row of worker alive or dead by what is found of the attempt."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.agents.registry import adapter_for
from orchestra.core import commands as c
from orchestra.core.effects import CloseAgent, Effect, OpenAgents, ReapAttempt, RemoveWindow, StartAttempt, StopAttempt
from orchestra.core.model import OutcomeKind, Worker
from orchestra.engine.reconcile import Difference, expected_attempts, reconcile
from orchestra.engine.translate import Translator
from orchestra.errors import PlanInvalid
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.node import AttemptFacts, Inventory, WorkerFacts
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

ONE = AgentId(1)
WORKER = Worker(101, 1)
ATTEMPT = AttemptId(TaskId("p/a"), 1)
DONE = {"exit": {"code": 0, "signal": None, "reason": "exit", "duration_ms": 5}, "checks": []}


def busy(*, stopped: bool = False) -> Bench:
    """One agent that has an attempt; with `stopped`, one that is being cancelled."""
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    if stopped:
        bench.do(c.CancelTask(ATTEMPT.task, "not needed"))
    return bench


def worker_facts(worker: Worker | None = WORKER, *, alive: bool = True, has: AttemptId | None = None, agent: int = 1) -> WorkerFacts:
    return WorkerFacts(AgentId(agent), worker, alive, 10, has)


def found(*workers: WorkerFacts, state: str = "", alive: bool = False, windows: tuple[int, ...] = (1,)) -> Inventory:
    facts = (AttemptFacts(ATTEMPT, state, alive, DONE if state == "done" else None),) if state else ()
    return Inventory(workers, facts, tuple(AgentId(number) for number in windows))


def compare(bench: Bench, inventory: Inventory, finder: Any = adapter_for) -> Difference:
    return reconcile(bench.state, NODE, inventory, Translator(lambda: bench.state, finder))


def words(things: tuple[c.Command | Effect, ...]) -> list[str]:
    return [type(thing).__name__ for thing in things]


@pytest.mark.parametrize(
    "worker, state, alive, stopped, commands, effects",
    [
        # worker alive and idle
        ("idle", "absent", False, False, ["WorkerSeen"], [StartAttempt]),
        ("idle", "absent", False, True, ["WorkerSeen"], [ReapAttempt]),
        ("idle", "ordered", False, False, ["WorkerSeen"], [StartAttempt]),
        ("idle", "ordered", False, True, ["WorkerSeen"], [ReapAttempt]),
        ("idle", "claimed", False, False, ["WorkerSeen"], [ReapAttempt]),
        ("idle", "claimed", True, False, ["WorkerSeen", "AttemptSeen"], []),
        ("idle", "done", False, False, ["WorkerSeen", "AttemptFinished"], []),
        ("idle", "done", False, True, ["WorkerSeen", "AttemptFinished"], []),
        # worker alive with the attempt in hand
        ("has it", "claimed", True, False, ["WorkerSeen", "AttemptSeen"], []),
        ("has it", "claimed", True, True, ["WorkerSeen", "AttemptSeen"], [StopAttempt]),
        ("has it", "done", False, False, ["WorkerSeen", "AttemptFinished"], []),
        # worker dead
        ("dead", "absent", False, False, ["WorkerFell"], [ReapAttempt]),
        ("dead", "ordered", False, False, ["WorkerFell"], [ReapAttempt]),
        ("dead", "claimed", False, False, ["WorkerFell"], [ReapAttempt]),
        ("dead", "claimed", False, True, ["WorkerFell"], [ReapAttempt]),
        ("dead", "done", False, False, ["WorkerFell", "AttemptFinished"], []),
        # nothing of the worker is found
        ("none", "absent", False, False, ["WorkerFell"], [ReapAttempt]),
        ("none", "done", False, False, ["WorkerFell", "AttemptFinished"], []),
        # the attempt was assigned after the node was asked
        ("idle", "", False, False, ["WorkerSeen"], [StartAttempt]),
    ],
)
def test_every_row(worker: str, state: str, alive: bool, stopped: bool, commands: list[str], effects: list[type[Effect]]) -> None:
    rows = {
        "idle": (worker_facts(),),
        "has it": (worker_facts(has=ATTEMPT),),
        "dead": (worker_facts(alive=False),),
        "none": (),
    }
    difference = compare(busy(stopped=stopped), found(*rows[worker], state=state, alive=alive))
    assert words(difference.commands) == commands
    assert [type(effect) for effect in difference.effects] == effects


def test_what_agrees_yields_nothing_to_do() -> None:
    bench = Bench(make_agents(2))
    workers = (worker_facts(), worker_facts(Worker(102, 1), agent=2))
    difference = compare(bench, found(*workers, windows=(1, 2)))
    assert difference.effects == ()
    assert bench.do(*difference.commands) == []


def test_only_attempts_of_this_node_are_asked_for() -> None:
    bench = busy()
    assert expected_attempts(bench.state, NODE) == [ATTEMPT]
    assert expected_attempts(bench.state, NodeId("other")) == []


def test_a_worker_with_something_that_is_over_is_told_to_stop_it() -> None:
    bench = busy()
    bench.finish("p/a")
    difference = compare(bench, found(worker_facts(has=ATTEMPT)))
    assert [type(effect) for effect in difference.effects] == [StopAttempt]


def test_a_look_from_before_the_present_worker_came_does_not_fell_it() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.WorkerFell(ONE, WORKER, "killed"), c.WorkerSeen(ONE, Worker(200, 2)))
    difference = compare(bench, found(worker_facts(alive=False)))
    assert difference.commands == ()


def test_a_missing_window_is_opened_whether_or_not_its_worker_lives() -> None:
    for workers in ((worker_facts(),), ()):
        difference = compare(Bench(make_agents(1)), found(*workers, windows=()))
        assert next(effect for effect in difference.effects if isinstance(effect, OpenAgents)).agents == (ONE,)


def test_a_suspended_slot_gets_no_worker() -> None:
    bench = Bench(make_agents(1), c.Policy(falls_max=0))
    bench.do(c.WorkerFell(ONE, WORKER, "killed"))
    assert compare(bench, found(windows=())) == Difference((), ())


def test_a_leaving_slot_is_asked_to_leave_again_and_gets_no_window() -> None:
    bench = busy()
    bench.do(c.Scale(0, "gradual"))
    difference = compare(bench, found(worker_facts(has=ATTEMPT), state="claimed", alive=True, windows=()))
    assert [type(effect) for effect in difference.effects] == [CloseAgent]
    assert not any(isinstance(command, c.WorkerFell) for command in difference.commands)


def test_a_leaving_slot_whose_worker_is_gone_is_removed() -> None:
    bench = Bench(make_agents(1))
    bench.do(c.Scale(0, "gradual"))
    bench.do(*compare(bench, found(windows=())).commands)
    assert not bench.state.agents


def test_what_an_earlier_fleet_has_left_is_cleared_away() -> None:
    bench = Bench(make_agents(1))
    difference = compare(bench, found(worker_facts(), worker_facts(Worker(107, 1), agent=7), windows=(1, 7)))
    assert [(type(effect), getattr(effect, "agent", None)) for effect in difference.effects] == [(CloseAgent, 7), (RemoveWindow, 7)]


@pytest.mark.parametrize("error", [PlanInvalid("there is no agent kind 'shell'"), KeyError("result"), ValueError("bad figure")])
def test_the_end_is_told_although_the_kind_is_gone_or_broken(error: Exception) -> None:
    def finder(kind: str) -> Any:
        raise error

    difference = compare(busy(), found(worker_facts(), state="done"), finder)
    finished = difference.commands[-1]
    assert isinstance(finished, c.AttemptFinished)
    assert finished.outcome.kind is OutcomeKind.FAILED
    assert "agent kind 'shell' could not judge the end" in finished.outcome.reason
