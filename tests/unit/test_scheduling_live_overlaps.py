"""A ready task waits for one that has changed its files already; two that run and changed the same are told of. Nobody waits in a circle."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.codec.state import decode_state, encode_state
from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.model import NodeSpec, OutcomeKind
from orchestra.core.state import STATE_FORMAT
from orchestra.engine.board import Board
from orchestra.engine.lookout import from_folder, worth_a_look
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.scheduling.explain import explain
from orchestra.scheduling.overlaps import meet, overlap_of, pattern_of
from orchestra.testing.builders import Bench, make_agents, make_task
from orchestra.viewing import Lens, task_detail
from orchestra.workspace import Touched

X = "src/x.py"


def isolated(name: str, *needs: str, **fields: Any) -> Any:
    return make_task(name, *needs, **{"isolated": True, "workspace": "/w", **fields})


def touch(bench: Bench, task: str, *paths: str, number: int = 1) -> list[e.Event]:
    return bench.do(c.NoteTouched(TaskId(task), number, paths))


def why(bench: Bench, task: str) -> str:
    return explain(bench.state, TaskId(task), bench.state.at_ms)


def merge(bench: Bench, task: str, number: int = 1) -> None:
    bench.do(c.MergeDone(TaskId(task), number, "b", "c", 1))


def running(*others: Any, agents: int = 4, **fields: Any) -> Bench:
    """Task `a` runs, `gate` too; `b`, which declares the file, needs only `gate`."""
    bench = Bench(make_agents(agents))
    bench.submit(isolated("a", **fields), isolated("gate"), isolated("b", "gate", files=(X,)), *others)
    bench.begin("p/a")
    bench.begin("p/gate")
    return bench


def open_gate(bench: Bench) -> None:
    bench.finish("p/gate")
    merge(bench, "p/gate")


def test_a_task_waits_for_one_that_has_changed_what_it_declares_until_that_is_merged() -> None:
    bench = running()
    assert touch(bench, "p/a", X, "y") == [e.WorkTouched(TaskId("p/a"), 1, (X, "y"))]
    assert touch(bench, "p/a", X, "y") == [], "nothing new"
    open_gate(bench)
    assert bench.status("p/b") == "queued"
    assert why(bench, "p/b") == "p/b is ready and waits for p/a to be over, as that one has changed 'src/x.py' already (`files`)."
    bench.finish("p/a")
    assert (bench.status("p/a"), bench.status("p/b")) == ("merging", "queued")
    merge(bench, "p/a")
    assert bench.status("p/b") == "assigned"
    assert bench.state.touched == {}


@pytest.mark.parametrize("end", ["failed", "cancelled", "retry", "conflict", "lost"])
def test_what_waited_goes_on_when_the_work_comes_to_nothing(end: str) -> None:
    bench = running()
    touch(bench, "p/a", X)
    open_gate(bench)
    assert bench.status("p/b") == "queued"
    if end == "cancelled":
        bench.do(c.CancelTask(TaskId("p/a"), "no"))
        bench.finish("p/a", 1, OutcomeKind.STOPPED)
    elif end == "conflict":
        bench.finish("p/a")
        bench.do(c.MergeConflicted(TaskId("p/a"), 1, (X,), "both"))
    else:
        bench.finish("p/a", 1, {"failed": OutcomeKind.REFUSED, "lost": OutcomeKind.LOST}.get(end, OutcomeKind.FAILED))
    assert bench.status("p/b") == "assigned"
    assert bench.state.touched == {}


def test_what_was_undone_holds_nobody_any_more() -> None:
    bench = running()
    touch(bench, "p/a", X)
    open_gate(bench)
    assert bench.status("p/b") == "queued"
    touch(bench, "p/a", "elsewhere.py")
    assert bench.status("p/b") == "assigned"


def test_it_is_known_after_a_restart_and_in_a_snapshot() -> None:
    bench = running()
    touch(bench, "p/a", X)
    bench.take_over()
    bench.do(c.NodeUp(NodeId("local"), "boot", "session"))
    assert decode_state(encode_state(bench.state), STATE_FORMAT) == bench.state
    assert bench.state.touched[TaskId("p/a")][1].paths == (X,)


def test_only_what_declares_files_waits_and_only_in_its_own_plan_and_place() -> None:
    bench = running(
        isolated("free", "gate"), isolated("docs", "gate", files=("docs",)), make_task("shared", "gate", files=(X,), workspace="/w")
    )
    bench.submit(msgspec.structs.replace(isolated("other", plan="q"), files=(X,)), plan="q")
    touch(bench, "p/a", X)
    open_gate(bench)
    found = {name: bench.status(name) for name in ("p/free", "p/docs", "p/shared", "p/b", "q/other")}
    assert found["p/b"] == "queued"
    assert overlap_of(bench.state, bench.task("p/b")) is not None
    assert all(overlap_of(bench.state, bench.task(name)) is None for name in found if name != "p/b")


def test_what_a_review_changes_and_what_is_not_isolated_is_not_taken_note_of() -> None:
    bench = Bench(make_agents(4))
    bench.submit(isolated("a"), make_task("s"))
    bench.begin("p/s")
    assert touch(bench, "p/s", X) == []
    assert touch(bench, "p/gone", X) == []
    assert touch(bench, "p/a", X, number=7) == []
    bench.begin("p/a")
    bench.finish("p/a")
    assert touch(bench, "p/a", X) == [], "a look that comes late"


def test_of_replicas_only_what_may_still_be_merged_counts() -> None:
    bench = Bench(make_agents(4))
    bench.submit(isolated("a", replicas=2), isolated("gate"), isolated("b", "gate", files=(X,)))
    for task, number in (("p/a", 1), ("p/a", 2), ("p/gate", 1)):
        bench.begin(task, number)
    touch(bench, "p/a", X, number=1)
    assert touch(bench, "p/a", X, number=2) == [e.WorkTouched(TaskId("p/a"), 2, (X,))], "only one of them will be merged"
    touch(bench, "p/a", "y", number=2)
    open_gate(bench)
    assert bench.status("p/b") == "queued"
    bench.finish("p/a", 1, OutcomeKind.FAILED)
    assert (list(bench.state.touched[TaskId("p/a")]), bench.status("p/b")) == ([2], "assigned")


def test_a_task_of_no_plan_that_a_running_one_may_wait_for_is_not_held() -> None:
    bench = Bench(make_agents(3))
    bench.submit(isolated("a", plan=None), plan=None)
    bench.begin("a")
    touch(bench, "a", X)
    bench.now_ms += 1000
    bench.submit(isolated("b", plan=None, files=(X,)), plan=None)
    assert bench.status("b") == "assigned"


def test_it_can_be_switched_off() -> None:
    bench = running()
    bench.kernel.scheduler.serialise_overlaps = False
    touch(bench, "p/a", X)
    open_gate(bench)
    assert bench.status("p/b") == "assigned"


def test_two_that_changed_the_same_are_told_of_once_for_each_set_of_paths() -> None:
    bench = running(isolated("c"))
    bench.begin("p/c")
    touch(bench, "p/a", X, "y")
    told = touch(bench, "p/c", "a", X)
    assert told[1:] == [e.ConflictPredicted(TaskId("p/c"), 1, TaskId("p/a"), 1, (X,))]
    assert len(touch(bench, "p/c", X)) == 1, "known"
    assert len(touch(bench, "p/c", "b", X)) == 1
    assert touch(bench, "p/a", "b", X)[1:] == [e.ConflictPredicted(TaskId("p/a"), 1, TaskId("p/c"), 1, ("b", X))]
    lens = Lens(now_ms=bench.now_ms, board=Board(), attempt_folder=lambda node, attempt: "", result_folder=str)
    detail = task_detail(bench.state, bench.task("p/c"), lens)
    assert detail.touched == ("b", X)
    (found,) = detail.conflicts_predicted
    assert (found.attempt, found.other, found.paths) == (1, "p/a#1", ("b", X))


def test_folders_below_one_another_are_compared_by_where_the_files_are() -> None:
    bench = running(isolated("c", workspace="/w/src"), isolated("d", "gate", workspace="/w/src", files=("deep",)))
    bench.begin("p/c")
    touch(bench, "p/a", X, "src/deep/z.py")
    assert touch(bench, "p/c", "x.py", "../top.py")[1:] == [e.ConflictPredicted(TaskId("p/c"), 1, TaskId("p/a"), 1, ("x.py",))]
    assert bench.state.touched[TaskId("p/a")][1].shared == {"p/c#1": (X,)}
    open_gate(bench)
    assert (
        why(bench, "p/d")
        == "p/d is ready and waits for p/a to be over, as that one has changed 'src/deep/z.py', which meets its own 'deep' already (`files`)."
    )
    assert from_folder(Touched(attempt=AttemptId(TaskId("t"), 1), paths=("src/x.py", "top.py"), more=False, prefix="src")) == (
        "x.py",
        "../top.py",
    )


def test_folders_of_the_same_name_on_two_machines_do_not_conflict() -> None:
    nodes = (NodeSpec(NodeId("one"), host="one"), NodeSpec(NodeId("two"), host="two"))
    for here, count in ((False, 1), (True, 2)):
        bench = Bench((*make_agents(1, "one"), *make_agents(1, "two", 2)), nodes=nodes)
        bench.submit(*(isolated(name, node=NodeId(node), workspace_here=here) for name, node in (("a", "one"), ("b", "two"))))
        bench.begin("p/a")
        bench.begin("p/b")
        touch(bench, "p/a", X)
        assert len(touch(bench, "p/b", X)) == count


def test_only_where_it_can_matter_is_looked() -> None:
    bench = Bench(make_agents(4))
    bench.submit(isolated("a"), make_task("s"))
    bench.begin("p/a")
    assert worth_a_look(bench.state) == {}, "there is no other isolated task"
    bench = running()
    (requests,) = worth_a_look(bench.state).values()
    assert sorted(str(request.attempt) for request in requests) == ["p/a#1", "p/gate#1"]
    open_gate(bench)
    bench.begin("p/b")
    bench.finish("p/b")
    merge(bench, "p/b")
    assert worth_a_look(bench.state) == {}, "the last one is in nobody's way"


names = st.sampled_from(["a", "b.py", "[id].py", "*", "**", "?.py", "c"])
paths = st.lists(names, min_size=1, max_size=3).map("/".join)
plain = st.lists(st.sampled_from(["a", "b.py", "[id].py", "c"]), min_size=1, max_size=4).map("/".join)


@given(st.lists(paths, min_size=1, max_size=3), st.lists(plain, min_size=1, max_size=4, unique=True))
def test_the_quick_answer_is_that_of_the_patterns(declared: list[str], changed: list[str]) -> None:
    bench = Bench(make_agents(1))
    bench.submit(isolated("a"), isolated("b", files=tuple(declared)))
    bench.begin("p/a")
    touch(bench, "p/a", *changed)
    escaped = [tuple(name.replace("[", "?").replace("]", "]") for name in f"w/{path}".split("/")) for path in changed]
    expected = any(meet(pattern_of("/w", pattern), file) for pattern in declared for file in escaped)
    assert (overlap_of(bench.state, bench.task("p/b")) is not None) == expected


files = st.lists(st.sampled_from(["x", "y", "z", "src/", "**"]), max_size=2, unique=True).map(tuple)
steps = st.lists(st.tuples(st.sampled_from(["touch", "finish", "merge", "fail", "conflict"]), st.integers(0, 9), files), max_size=30)


@given(st.lists(files, min_size=2, max_size=6), steps)
def test_nobody_waits_for_ever(declared: list[tuple[str, ...]], played: list[tuple[str, int, tuple[str, ...]]]) -> None:
    """Whatever running tasks change, who waits, waits for one that was given out; when those go on, all come to an end."""
    bench = Bench(make_agents(3))
    bench.submit(*(isolated(f"t{number}", files=each, retries=2) for number, each in enumerate(declared)))

    def play(step: str, pick: int, paths: tuple[str, ...]) -> None:
        at_work = [*bench.state.live]
        merging = [*bench.state.merging]
        if step == "merge" and merging:
            merge(bench, merging[pick % len(merging)], bench.task(merging[pick % len(merging)]).merging)
        elif step == "conflict" and merging:
            name = merging[pick % len(merging)]
            bench.do(c.MergeConflicted(name, bench.task(name).merging, ("x",), "both"))
        elif at_work and step in ("touch", "finish", "fail"):
            name = at_work[pick % len(at_work)]
            number = bench.task(name).live_attempts()[0].number
            bench.begin(name, number)
            if step == "touch":
                touch(bench, name, *paths, number=number)
            else:
                bench.finish(name, number, OutcomeKind.DONE if step == "finish" else OutcomeKind.FAILED)
        for each in bench.state.queued:
            overlap = overlap_of(bench.state, bench.task(each))
            assert overlap is None or overlap.task in (*bench.state.live, *bench.state.merging)

    for step in played:
        play(*step)
    for _ in range(60):
        play("touch", 0, ("x", "y", "z", "src/a"))
        play("finish", 0, ())
        play("merge", 0, ())
        bench.pass_time(10_000)
    assert all(task.over for task in bench.state.tasks.values())
