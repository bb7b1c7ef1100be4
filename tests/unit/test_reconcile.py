"""Desired against observed: every row of worker alive or dead by what is found of the attempt."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.agents.registry import adapter_for
from orchestra.core import commands as c
from orchestra.core.effects import (
    CloseAgent,
    Effect,
    KillWorker,
    OpenAgents,
    ProbeAgent,
    ReapAttempt,
    RemoveWindow,
    StartAttempt,
    StopAttempt,
    SweepNode,
)
from orchestra.core.model import Outcome, OutcomeKind, Worker
from orchestra.engine.board import Board
from orchestra.engine.duties import Ask, Call, Duties, Duty, Peek, Step, Tell, WantSweep
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.engine.reconcile import Difference, Expected, expected, reconcile
from orchestra.engine.translate import Translator
from orchestra.errors import PlanInvalid
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.node import AgentWindow, AttemptFacts, Inventory, Notice, OrderFailure, Record, WorkerFacts
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


def worker_facts(
    worker: Worker | None = WORKER, *, alive: bool = True, has: AttemptId | None = None, agent: int = 1, beat_age_ms: int = 10
) -> WorkerFacts:
    return WorkerFacts(AgentId(agent), worker, alive, beat_age_ms, has)


def found(*workers: WorkerFacts, state: str = "", alive: bool = False, windows: tuple[int, ...] = (1,)) -> Inventory:
    facts = (AttemptFacts(ATTEMPT, state, alive, DONE if state == "done" else None),) if state else ()
    return Inventory(workers, facts, tuple(AgentId(number) for number in windows))


def compare(bench: Bench, inventory: Inventory, finder: Any = adapter_for, before: Expected | None = None) -> Difference:
    return reconcile(bench.state, NODE, inventory, Translator(lambda: bench.state, finder), before)


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
    assert list(expected(bench.state, NODE).attempts) == [ATTEMPT]
    assert list(expected(bench.state, NodeId("other")).attempts) == []


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


# --- looks that are older than a change ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change",
    [
        (c.WorkerFell(ONE, WORKER, "killed"),),
        (c.WorkerFell(ONE, WORKER, "killed"), c.WorkerSeen(ONE, Worker(200, 2))),
        (c.AttemptFinished(ATTEMPT.task, 1, Outcome(OutcomeKind.DONE)),),
    ],
)
def test_a_slot_that_moved_since_the_look_began_is_left_for_the_next_one(change: tuple[c.Command, ...]) -> None:
    bench = busy()
    before = expected(bench.state, NODE)
    inventory = found(worker_facts(has=ATTEMPT), state="claimed", alive=True)
    bench.do(*change)
    assert compare(bench, inventory, before=before) == Difference((), ())
    assert compare(bench, inventory) != Difference((), ()), "without that it would have been taken for news"


def test_an_attempt_that_was_assigned_during_the_look_is_neither_started_again_nor_given_up() -> None:
    bench = Bench(make_agents(1))
    before = expected(bench.state, NODE)
    bench.submit(make_task("a"))
    assert compare(bench, found(worker_facts()), before=before) == Difference((), ())


def test_a_slot_that_was_added_during_the_look_is_not_opened_again() -> None:
    bench = Bench(make_agents(1))
    before = expected(bench.state, NODE)
    bench.do(c.Scale(2, "immediate", make_agents(1, first=2)))
    assert compare(bench, found(worker_facts()), before=before).effects == ()


def test_a_slot_that_did_not_move_is_compared() -> None:
    bench = Bench(make_agents(2))
    before = expected(bench.state, NODE)
    bench.do(c.WorkerFell(AgentId(2), Worker(102, 1), "killed"))
    difference = compare(bench, found(worker_facts(alive=False), worker_facts(Worker(102, 1), agent=2), windows=(1, 2)), before=before)
    assert difference.commands == (c.WorkerFell(ONE, WORKER, "its worker is gone"),)


def test_a_node_that_was_removed_during_the_look_is_not_compared() -> None:
    bench = busy()
    before = expected(bench.state, NODE)
    bench.do(c.NodeDown(NODE, "switched off"))
    bench.do(c.RemoveNode(NODE, force=True))
    assert compare(bench, found(worker_facts()), before=before) == Difference((), ())


# --- nodes in trouble ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state, windows", [("absent", ()), ("ordered", (1,)), ("claimed", (1,))])
@pytest.mark.parametrize("workers", [(), (WorkerFacts(ONE, WORKER, True, 10, None),)])
def test_while_the_breaker_is_tripped_nothing_is_opened_reaped_or_started(
    workers: tuple[WorkerFacts, ...], state: str, windows: tuple[int, ...]
) -> None:
    bench = busy()
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    difference = compare(bench, found(*workers, state=state, windows=windows))
    assert difference.effects == ()
    assert words(difference.commands) == (["WorkerSeen"] if workers else ["WorkerFell"]), "what is seen is told all the same"
    bench.do(c.NodeUp(NODE, "boot", "s"))
    assert compare(bench, found(*workers, state=state, windows=windows)).effects != ()


def test_while_the_breaker_is_tripped_what_is_over_is_stopped_and_what_leaves_is_closed() -> None:
    bench = busy()
    bench.finish("p/a")
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    stranger = worker_facts(Worker(107, 1), agent=7)
    difference = compare(bench, found(worker_facts(has=ATTEMPT), stranger, windows=(1, 7)))
    assert [type(effect) for effect in difference.effects] == [StopAttempt, CloseAgent, RemoveWindow]


def test_the_end_of_an_attempt_is_told_although_the_breaker_is_tripped() -> None:
    bench = busy()
    bench.do(c.NodeTroubled(NODE, "its disk is full"))
    assert words(compare(bench, found(worker_facts(), state="done")).commands) == ["WorkerSeen", "AttemptFinished"]


@pytest.mark.parametrize("windows", [(2, 3), (1, 2, 3)], ids=["without a window", "without a worker"])
def test_the_one_on_trial_is_opened_again_if_it_died_before_it_was_ready(windows: tuple[int, ...]) -> None:
    """Nobody else is, and without this nobody would be until the start of the one on trial has taken too long."""
    bench = Bench(make_agents(6))
    bench.fall(*range(1, 7))
    assert compare(bench, found(windows=windows)).effects == ()
    bench.pass_time(1_000)
    difference = compare(bench, found(windows=windows))
    assert [effect.agents for effect in difference.effects if isinstance(effect, OpenAgents)] == [(1,)]


def test_after_the_reset_a_look_opens_all_that_is_missing() -> None:
    bench = Bench(make_agents(6))
    bench.fall(*range(1, 7))
    bench.pass_time(1_000)
    bench.come_up(1)
    difference = compare(bench, found(worker_facts(bench.agent(1).worker), windows=(1, 2, 3)))
    assert [effect.agents for effect in difference.effects if isinstance(effect, OpenAgents)] == [(2, 3, 4, 5, 6)]


def test_a_silent_worker_that_is_found_dead_has_fallen() -> None:
    bench = busy()
    bench.go_silent(1)
    difference = compare(bench, found(worker_facts(alive=False), state="claimed"))
    assert words(difference.commands) == ["WorkerFell"]
    bench.do(*difference.commands)
    assert (bench.agent(1).status.value, bench.agent(1).suspicion) == ("starting", None)


# --- what is told about one worker -----------------------------------------------------------------------------------


def test_a_worker_that_left_is_not_charged_again_when_its_journal_is_read() -> None:
    """Needs `_left` in `translate` to know the worker whose fall was counted."""
    bench = Bench(make_agents(1))
    bench.fall(1)
    translator = Translator(lambda: bench.state, adapter_for)
    assert translator.commands(Record("left", ONE, WORKER, 5)) == []
    bench.come_up(1)
    present = bench.agent(1).worker
    assert present is not None
    assert translator.commands(Record("left", ONE, present, 6)) == [c.AgentClosed(ONE)]


# --- the driver's duties ---------------------------------------------------------------------------------------------


def carry(bench: Bench, duty: Duty, answers: dict[str, Any]) -> list[Step]:
    """Carries out a duty: questions are asked of the state, calls of the port get these answers, and what is told is done."""
    steps: list[Step] = []
    try:
        step = next(duty)
        while True:
            steps.append(step)
            answer: Any = None
            if isinstance(step, Ask | Peek):
                answer = step.question(bench.state)
            elif isinstance(step, Call):
                answer = answers.get(step.method)
            elif isinstance(step, Tell):
                bench.do(*step.commands)
            step = duty.send(answer)
    except StopIteration:
        return steps


def duties(bench: Bench) -> Duties:
    return Duties(NODE, Translator(lambda: bench.state, adapter_for), Board(), OrderMaker(adapter_for, OrderOptions()))


def told(steps: list[Step]) -> list[c.Command]:
    return [command for step in steps if isinstance(step, Tell) for command in step.commands]


def calls(steps: list[Step]) -> list[tuple[str, tuple[Any, ...]]]:
    return [(step.method, step.arguments) for step in steps if isinstance(step, Call)]


def wants_sweep(steps: list[Step]) -> bool:
    return any(isinstance(step, WantSweep) for step in steps)


def test_hearts_that_stop_and_beat_again_are_told() -> None:
    bench = Bench(make_agents(1))
    carry(bench, duties(bench).take(Notice("beat-missed", ONE, WORKER, "no beat for 5 s")), {})
    assert (bench.agent(1).status.value, bench.agent(1).reason) == ("suspect", "no beat for 5 s")
    carry(bench, duties(bench).take(Notice("beat-back", ONE, WORKER)), {})
    assert bench.agent(1).status.value == "idle"


@pytest.mark.parametrize(
    "inventory, commands, sweeps",
    [
        (found(worker_facts(beat_age_ms=6000)), [], False),
        (found(worker_facts()), [c.BeatBack(ONE, WORKER)], False),
        (found(worker_facts(alive=False)), [c.WorkerFell(ONE, WORKER, "its worker is gone")], False),
        (found(worker_facts(beat_age_ms=6000), windows=()), [], True),
    ],
)
def test_a_probe_looks_at_the_worker_and_its_window(inventory: Inventory, commands: list[c.Command], sweeps: bool) -> None:
    bench = Bench(make_agents(1))
    bench.go_silent(1)
    steps = carry(bench, duties(bench).carry_out([ProbeAgent(1, NODE, ONE)]), {"inventory": inventory})
    assert (told(steps), wants_sweep(steps)) == (commands, sweeps)


def test_a_worker_that_answered_meanwhile_is_not_killed() -> None:
    bench = Bench(make_agents(1))
    bench.go_silent(1)
    assert calls(carry(bench, duties(bench).carry_out([KillWorker(1, NODE, ONE, WORKER)]), {})) == []


def test_killing_and_sweeping_are_carried_out() -> None:
    bench = Bench(make_agents(1))
    bench.go_silent(1)
    while (doubt := bench.agent(1).suspicion) is not None and doubt.step != "forced":
        bench.pass_time(1000)
    steps = carry(bench, duties(bench).carry_out([KillWorker(1, NODE, ONE, WORKER), SweepNode(2, NODE)]), {})
    assert calls(steps) == [("kill_worker", (ONE, WORKER))]
    assert wants_sweep(steps)


def test_a_sweep_compares_with_what_was_expected_when_it_began() -> None:
    bench = Bench(make_agents(1))
    duty = duties(bench).sweep()
    asked = next(duty)
    assert isinstance(asked, Ask)
    call = duty.send(asked.question(bench.state))
    assert isinstance(call, Call)
    bench.fall(1)
    compared = duty.send(found(worker_facts(), windows=()))
    assert isinstance(compared, Ask)
    assert compared.question(bench.state) == Difference((), ())


def order(bench: Bench, code: str) -> list[Step]:
    """The order for the attempt cannot be delivered."""
    failure = OrderFailure(ATTEMPT, ONE, code, "No space left on device")
    return carry(bench, duties(bench).carry_out([StartAttempt(1, NODE, ONE, *ATTEMPT)]), {"order": [failure]})


def test_an_order_that_the_node_could_not_take_is_the_nodes_trouble() -> None:
    bench = busy()
    order(bench, "io")
    breaker = bench.node().breaker
    assert breaker is not None
    assert breaker.cause == "node local could not take the order: No space left on device"
    assert (bench.status("p/a"), bench.task("p/a").failures, bench.task("p/a").losses) == ("queued", 0, 0)


def test_an_order_that_no_worker_listens_for_fells_the_worker_it_was_meant_for() -> None:
    bench = busy()
    assert told(order(bench, "no-worker")) == [c.WorkerFell(ONE, WORKER, "its worker does not listen")]


def test_an_order_for_a_slot_whose_worker_is_not_known_makes_it_look() -> None:
    bench = busy()
    bench.fall(1)
    steps = order(bench, "no-worker")
    assert (told(steps), wants_sweep(steps)) == ([], True)


def test_an_order_that_is_refused_ends_the_attempt() -> None:
    bench = busy()
    order(bench, "exists")
    assert bench.status("p/a") == "failed"


def test_what_was_asked_for_before_the_breaker_tripped_is_not_done_after_it() -> None:
    """Needs `window_names` and `_reap` in `duties` to look at the breaker: effects wait in a queue while the state goes on."""
    bench = Bench(make_agents(6))
    bench.submit(make_task("a"))
    bench.fall(1)
    bench.fall(2, 3, 4, 5, 6)
    assert bench.node().breaker is not None
    steps = carry(bench, duties(bench).carry_out([OpenAgents(1, NODE, (ONE, AgentId(2))), ReapAttempt(2, NODE, *ATTEMPT)]), {})
    assert calls(steps) == []
    bench.pass_time(1_000)
    steps = carry(bench, duties(bench).carry_out([OpenAgents(3, NODE, (ONE, AgentId(2)))]), {})
    assert calls(steps) == [("open_windows", ([AgentWindow(ONE, "agent-001")],))], "the one on trial"
