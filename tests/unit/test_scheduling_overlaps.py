"""Tasks that say they change the same files are done one after the other, and nobody else waits for them."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core import commands as c
from orchestra.core.model import OutcomeKind
from orchestra.ids import TaskId
from orchestra.scheduling.explain import explain
from orchestra.scheduling.overlaps import ANY, meet, names_meet, pattern_of
from orchestra.testing.builders import Bench, make_agents, make_task


@pytest.mark.parametrize(
    "one, two, meets",
    [
        ("a.py", "a.py", True),
        ("a.py", "b.py", False),
        ("src", "src/x/y.py", True),
        ("src/", "src/x.py", True),
        ("a.py", "a.py/b", False),
        ("src/api", "src/api.py", False),
        ("src/*.py", "src/a.py", True),
        ("src/*.py", "src/a/b.py", False),
        ("src/*.py", "src/a.ts", False),
        ("src/*", "src/a/b.py", True),
        ("**/*.md", "docs/deep/a.md", True),
        ("**/*.md", "docs/deep/a.py", False),
        ("**/a.py", "b/**", True),
        ("**", "anything.py", True),
        (".", "anything.py", True),
        ("./a.py", "a.py", True),
        ("[ab].py", "c.py", True),
        (".github", ".github/x.yml", True),
        ("a?.py", "ab.py", True),
        ("a?.py", "abc.py", False),
        ("*a.py", "b*.py", True),
        ("a*.py", "b*.py", False),
    ],
)
def test_which_paths_meet(one: str, two: str, meets: bool) -> None:
    assert meet(pattern_of("/w", one), pattern_of("/w", two)) == meets
    assert meet(pattern_of("/w", two), pattern_of("/w", one)) == meets


def test_paths_are_seen_from_the_top_of_the_machine() -> None:
    assert meet(pattern_of("/w", "sub/a.py"), pattern_of("/w/sub", "a.py"))
    assert not meet(pattern_of("/w", "a.py"), pattern_of("/v", "a.py"))


names = st.text("ab*?", min_size=1, max_size=5)


def _as_regex(name: str) -> re.Pattern[str]:
    return re.compile("".join({"*": ".*", "?": "."}.get(char, char) for char in name))


@given(names, st.text("ab", min_size=1, max_size=6))
def test_a_name_meets_what_it_matches(name: str, plain: str) -> None:
    assert names_meet(name, plain) == bool(_as_regex(name).fullmatch(plain))


@given(names, names, st.text("ab", min_size=1, max_size=6))
def test_two_names_that_match_one_name_meet(one: str, two: str, plain: str) -> None:
    if _as_regex(one).fullmatch(plain) and _as_regex(two).fullmatch(plain):
        assert names_meet(one, two)


segments = st.lists(st.sampled_from(["a", "b", "*", ANY]), max_size=5).map(tuple)


@given(segments, st.lists(st.sampled_from("ab"), max_size=5).map(tuple))
def test_a_path_meets_what_it_matches(pattern: tuple[str, ...], path: tuple[str, ...]) -> None:
    text = "".join({"*": "[ab]/", ANY: "([ab]/)*"}.get(part, f"{part}/") for part in pattern)
    assert meet(pattern, path) == bool(re.fullmatch(text, "".join(f"{part}/" for part in path)))


def bench_of(*tasks: tuple[str, tuple[str, ...]], agents: int = 3, isolated: bool = True) -> Bench:
    bench = Bench(make_agents(agents))
    bench.submit(*(make_task(name, isolated=isolated, files=files, workspace="/w") for name, files in tasks))
    return bench


def why(bench: Bench, task: str) -> str:
    return explain(bench.state, TaskId(task), bench.state.at_ms)


def merge(bench: Bench, task: str, number: int = 1) -> None:
    bench.do(c.MergeDone(TaskId(task), number, "b", "c", 1))


def test_a_task_waits_until_what_overlaps_it_is_merged_and_others_do_not() -> None:
    bench = bench_of(("a", ("src",)), ("b", ("src/x.py",)), ("c", ("docs",)), ("d", ()))
    assert [bench.status(f"p/{name}") for name in "abcd"] == ["assigned", "queued", "assigned", "assigned"]
    assert (
        why(bench, "p/b")
        == "p/b is ready and waits for p/a to be over, as that one may change 'src', which meets its own 'src/x.py' too (`files`)."
    )
    bench.begin("p/a")
    bench.finish("p/a")
    assert (bench.status("p/a"), bench.status("p/b")) == ("merging", "queued"), "its work is not in the branch yet"
    merge(bench, "p/a")
    assert bench.status("p/b") == "assigned"


def test_what_waited_goes_on_when_the_other_fails_is_cancelled_or_waits_itself() -> None:
    for end in ("failed", "cancelled", "retry"):
        bench = bench_of(("a", ("f",)), ("b", ("f",)))
        assert bench.status("p/b") == "queued"
        bench.begin("p/a")
        if end == "cancelled":
            bench.do(c.CancelTask(TaskId("p/a"), "no"))
            bench.finish("p/a", 1, OutcomeKind.STOPPED)
        else:
            bench.finish("p/a", 1, OutcomeKind.REFUSED if end == "failed" else OutcomeKind.FAILED)
        assert (bench.status("p/a"), bench.status("p/b")) == ({"retry": "retry_wait"}.get(end, end), "assigned")


def test_many_that_overlap_are_done_one_by_one_also_after_a_restart() -> None:
    names = [f"t{number}" for number in range(5)]
    bench = bench_of(*((name, ("f",)) for name in names))
    for _ in names:
        (task,) = bench.state.live
        bench.begin(task)
        bench.finish(task)
        bench.kernel.scheduler.rebuild(bench.state)
        bench.do(c.Tick())
        assert not bench.state.live, "the one that is merged holds the others"
        merge(bench, task)
    assert {bench.status(f"p/{name}") for name in names} == {"completed"}


def test_tasks_that_share_their_folder_or_declare_nothing_do_not_wait() -> None:
    assert {bench_of(("a", ("f",)), ("b", ("f",)), isolated=False).status(f"p/{name}") for name in "ab"} == {"assigned"}
    assert {bench_of(("a", ()), ("b", ())).status(f"p/{name}") for name in "ab"} == {"assigned"}


def test_of_no_plan_those_of_one_batch_wait_for_each_other_and_not_for_one_that_may_wait_for_them() -> None:
    bench = Bench(make_agents(4))
    batch = [make_task(name, plan=None, isolated=True, files=("f",), workspace="/w") for name in "ab"]
    bench.submit(*batch, plan=None)
    assert [bench.status(name) for name in "ab"] == ["assigned", "queued"]
    bench.begin("a")
    bench.now_ms += 1000
    bench.submit(make_task("c", plan=None, isolated=True, files=("f",), workspace="/w"), plan=None)
    assert bench.status("c") == "assigned", "a may have submitted it"
    bench.finish("a")
    bench.now_ms += 1000
    bench.submit(make_task("d", plan=None, isolated=True, files=("f",), workspace="/w"), plan=None)
    assert [bench.status(name) for name in "abd"] == ["merging", "queued", "queued"], "nobody waits in what is being merged"


def test_it_can_be_switched_off() -> None:
    bench = Bench(make_agents(2))
    bench.kernel.scheduler.serialise_overlaps = False
    bench.submit(*(make_task(name, isolated=True, files=("f",), workspace="/w") for name in "ab"))
    assert {bench.status(f"p/{name}") for name in "ab"} == {"assigned"}
