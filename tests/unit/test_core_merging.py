"""Verified work on its way into the plan's branch: completed only when it is there, given back once, and never merged for an attempt that is not current."""

from __future__ import annotations

from typing import Any

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.effects import DropWork, MergeWork
from orchestra.core.merging import unwanted_work
from orchestra.core.model import AgentSpec, NodeSpec, OutcomeKind, TaskStatus, Worker
from orchestra.ids import AgentId, NodeId, TaskId
from orchestra.testing.builders import Bench, make_agents, make_task

A, B = TaskId("p/a"), TaskId("p/b")
FAR = NodeId("far")


def merging(*tasks: str, **fields: Any) -> Bench:
    """Task a is verified; b needs it."""
    bench = Bench(make_agents(2), **fields)
    bench.submit(make_task("a", isolated=True), make_task("b", "a", isolated=True))
    bench.begin("p/a")
    bench.effects.clear()
    bench.finish("p/a")
    return bench


def done(number: int = 1) -> c.MergeDone:
    return c.MergeDone(A, number, "refs/heads/orchestra/p/merged", "abc123", 3)


def conflict(number: int = 1) -> c.MergeConflicted:
    return c.MergeConflicted(A, number, ("f.py",), "both sides")


def test_a_verified_task_is_merged_before_it_is_completed_and_meets_needs_only_then() -> None:
    bench = merging()
    assert (bench.status("p/a"), bench.status("p/b")) == ("merging", "pending")
    assert [effect for effect in bench.effects if isinstance(effect, MergeWork)] == [MergeWork(bench.effects[0].seq, A, 1)]
    assert [type(event).__name__ for event in bench.do(done())][:2] == ["WorkMerged", "TaskCompleted"]
    assert (bench.status("p/a"), bench.task("p/a").commit, bench.status("p/b")) == ("completed", "abc123", "assigned")


def test_its_agent_is_free_while_it_is_merged() -> None:
    bench = merging()
    assert all(agent.task is None for agent in bench.state.agents.values())


def test_tasks_that_share_their_folder_are_completed_at_once() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a"))
    bench.begin("p/a")
    bench.finish("p/a")
    assert bench.status("p/a") == "completed"
    assert not any(isinstance(effect, MergeWork) for effect in bench.effects)


def test_a_conflict_goes_back_once_with_both_sides_and_then_somebody_has_to_look() -> None:
    bench = merging()
    bench.do(conflict())
    assert (bench.status("p/a"), bench.task("p/a").conflict, bench.task("p/a").failures) == ("assigned", "both sides", 0)
    bench.begin("p/a", 2)
    bench.finish("p/a", 2)
    assert unwanted_work(bench.task("p/a")) == [1], "it was not let go of yet, and nobody merges it any more"
    bench.do(conflict(2))
    assert unwanted_work(bench.task("p/a")) == [1, 2]
    assert bench.status("p/a") == "failed"
    assert "f.py" in bench.task("p/a").reason
    assert bench.status("p/b") == "cancelled"
    bench.do(c.RetryTask(A))
    assert bench.task("p/a").conflicts == 0


def test_work_that_fails_its_checks_together_with_others_goes_back_once_too() -> None:
    bench = merging()
    quarrel = c.MergeConflicted(A, 1, (), "what the check said", ("tests",))
    bench.do(quarrel)
    assert (bench.status("p/a"), bench.task("p/a").conflict, bench.task("p/a").conflicts) == ("assigned", "what the check said", 1)
    bench.begin("p/a", 2)
    bench.finish("p/a", 2)
    bench.do(c.MergeConflicted(A, 2, ("f.py",), "both sides"))
    assert bench.status("p/a") == "failed", "one of either kind is all it gets"


def test_what_a_merge_came_to_counts_only_for_the_attempt_that_is_merged() -> None:
    bench = merging()
    for late in (done(2), conflict(2), c.MergeFailed(A, 2, "gone", again=False)):
        assert bench.do(late) == []
    bench.do(done())
    for late in (done(), conflict(), c.MergeFailed(A, 1, "gone", again=False)):
        assert bench.do(late) == []
    assert bench.status("p/a") == "completed"


def test_a_merge_that_failed_is_tried_with_another_attempt_or_ends_the_task() -> None:
    bench = merging()
    bench.do(c.MergeFailed(A, 1, "what it did is gone", again=True))
    assert bench.status("p/a") == "assigned"
    bench.finish("p/a", 2)
    bench.do(c.MergeFailed(A, 2, "the repository is damaged", again=False))
    assert (bench.status("p/a"), bench.task("p/a").reason) == ("failed", "the repository is damaged")


def test_cancelling_ends_a_merge() -> None:
    bench = merging()
    bench.effects.clear()
    bench.do(c.CancelTask(A, "not wanted"))
    assert bench.status("p/a") == "cancelled"
    assert [effect.attempt for effect in bench.effects if isinstance(effect, DropWork)] == [1], "what it did is let go, and kept"
    assert bench.do(done()) == []


def test_a_shutdown_waits_for_merges() -> None:
    bench = merging()
    bench.do(c.CancelTask(B, "no"), c.ShutDown(drain=False, graceful=True, timeout_ms=60_000))
    assert bench.state.lifecycle.value == "draining"
    bench.do(done())
    assert bench.state.lifecycle.value == "terminated"


def test_a_shutdown_without_grace_leaves_merges_to_the_next_start() -> None:
    bench = merging()
    bench.do(c.CancelTask(B, "no"), c.ShutDown(drain=False, graceful=False, timeout_ms=60_000))
    assert (bench.state.lifecycle.value, bench.status("p/a")) == ("terminated", "merging")
    bench.do(done())
    assert bench.status("p/a") == "completed"


def test_what_a_beaten_replica_did_is_let_go() -> None:
    bench = Bench(make_agents(2))
    bench.submit(make_task("a", isolated=True, replicas=2))
    for number in (1, 2):
        bench.begin("p/a", number)
    bench.finish("p/a", 1)
    assert unwanted_work(bench.task("p/a")) == [], "nothing is decided while another one is at it"
    bench.finish("p/a", 2)
    winner = bench.task("p/a").merging
    bench.do(done(winner))
    assert [effect.attempt for effect in bench.effects if isinstance(effect, DropWork)] == [3 - winner], "once"


def test_work_on_a_machine_that_is_out_of_sight_is_given_up_after_the_grace() -> None:
    bench = Bench(policy=c.Policy(unknown_grace_ms=5_000))
    near = make_agents(1)
    bench.do(c.Init("t", (NodeSpec(FAR), NodeSpec(near[0].node)), (*near, AgentSpec(AgentId(2), FAR))))
    bench.do(c.NodeUp(FAR, "b", "s"), c.NodeUp(near[0].node, "b", "s"), c.WorkerSeen(AgentId(2), Worker(2, 1)))
    bench.do(c.WorkerSeen(AgentId(1), Worker(1, 1)))
    bench.submit(make_task("z"), make_task("a", isolated=True))
    assert bench.task("p/a").attempts[0].node == FAR
    bench.finish("p/a")
    bench.finish("p/z")
    bench.do(c.NodeDown(FAR, "cut"))
    bench.pass_time(5_000)
    assert bench.status("p/a") == "merging"
    bench.pass_time(1)
    bench.pass_time(1)
    assert (bench.status("p/a"), bench.task("p/a").attempts[-1].node) == ("assigned", near[0].node)


def test_what_an_attempt_did_that_came_to_nothing_is_let_go() -> None:
    bench = Bench(make_agents(1))
    bench.submit(make_task("a", isolated=True))
    for number, kind in enumerate((OutcomeKind.FAILED, OutcomeKind.LOST, OutcomeKind.UNVERIFIED), 1):
        bench.begin("p/a", number)
        bench.finish("p/a", number, kind)
        bench.pass_time(3_600_000)
    dropped = [effect.attempt for effect in bench.effects if isinstance(effect, DropWork)]
    assert dropped == [1, 2, 3]


def test_a_restart_in_the_middle_of_a_merge_finds_it() -> None:
    bench = merging()
    bench.take_over()
    assert list(bench.state.merging) == [A]
    assert bench.task("p/a").status is TaskStatus.MERGING
    assert any(isinstance(event, e.TaskCompleted) for event in bench.do(done()))


def test_the_best_is_merged_and_the_others_are_let_go_once() -> None:
    bench = Bench(make_agents(3))
    bench.submit(make_task("a", isolated=True, replicas=3))
    for number in (1, 2, 3):
        bench.begin("p/a", number)
    bench.finish("p/a", 2, OutcomeKind.FAILED)
    bench.finish("p/a", 1)
    bench.effects.clear()
    bench.finish("p/a", 3)
    assert [type(each).__name__ + str(each.attempt) for each in bench.effects if isinstance(each, MergeWork | DropWork)] == [
        "MergeWork1",
        "DropWork3",
    ]
    assert unwanted_work(bench.task("p/a")) == [2, 3]
    kept = bench.do(c.NoteLetGo(A, 3, "refs/orchestra/salvage/p/a.3"))
    assert kept == [e.WorkLetGo(A, 3, "refs/orchestra/salvage/p/a.3")]
    assert bench.do(c.NoteLetGo(A, 3, "again")) == []
    assert bench.do(c.NoteLetGo(TaskId("p/gone"), 1)) == []
    bench.do(done())
    assert unwanted_work(bench.task("p/a")) == [1, 2], "a coordinator that dies now leaves these to the next"


def test_what_succeeded_for_a_task_that_is_cancelled_is_let_go() -> None:
    bench = merging()
    bench.effects.clear()
    bench.do(c.CancelTask(A, "no"))
    assert [each.attempt for each in bench.effects if isinstance(each, DropWork)] == ([1] if bench.status("p/a") == "cancelled" else [])
