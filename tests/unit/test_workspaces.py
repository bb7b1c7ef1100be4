"""The pure part of workspaces: names, the order of merges, overlaps, what an agent is told, what is read from git."""

from __future__ import annotations

import ast
import string
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestra.workspaces.onsite
from orchestra.errors import BadInput, NodeFailed, NotFound, Refused
from orchestra.ids import NAME, AttemptId, PlanId, TaskId
from orchestra.workspace import Conflict, Side
from orchestra.workspaces.calling import MODULES, answer_of
from orchestra.workspaces.merge_queue import Ready, Touch, conflict_prompt, merge_order, overlaps
from orchestra.workspaces.names import attempt_parts, check_prefix, plan_part, ref_part
from orchestra.workspaces.onsite.ground import NAME as PART
from orchestra.workspaces.onsite.merging import parse_merge_tree

ONSITE = Path(orchestra.workspaces.onsite.__file__).parent
NAMES = st.text(string.ascii_letters + string.digits + "._-", min_size=1, max_size=12).filter(lambda text: NAME.fullmatch(text) is not None)


# --- names --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "task,number,parts",
    [
        ("plan/task", 3, ("plan", "task.3")),
        ("TASK-1", 1, ("_", "TASK-1.1")),
        ("a..b/c.", 2, ("a%2E.b", "c%2E.2")),
        ("x.lock/y.lock", 1, ("x%2Elock", "y%2Elock.1")),
    ],
)
def test_an_attempts_names(task: str, number: int, parts: tuple[str, str]) -> None:
    assert attempt_parts(AttemptId(TaskId(task), number)) == parts


@pytest.mark.parametrize(
    "task,number", [("a/b/c", 1), ("../x", 1), ("-x", 1), ("a/", 1), ("", 1), ("a", 0), ("a", 10**9), ("a b", 1), ("a@{1}", 1)]
)
def test_names_that_are_none(task: str, number: int) -> None:
    with pytest.raises(BadInput):
        attempt_parts(AttemptId(TaskId(task), number))


@settings(max_examples=300)
@given(NAMES, NAMES)
def test_different_names_stay_different(one: str, two: str) -> None:
    assert (ref_part(one) == ref_part(two)) == (one == two)
    assert PART.fullmatch(ref_part(one))


def test_git_takes_every_name() -> None:
    """Git itself is asked, for names with dots in every place."""
    names = [f"{a}{b}{c}" for a in ("x", "x.", "x..") for b in ("", "lock", ".lock", "a") for c in ("", ".", "..", ".lock", "-")]
    for name in names:
        plan, task = attempt_parts(AttemptId(TaskId(f"{name}/{name}"), 1))
        done = subprocess.run(["git", "check-ref-format", f"refs/heads/orchestra/{plan}/{task}"], check=False)
        assert done.returncode == 0, name


def test_no_attempt_can_take_the_plans_branch() -> None:
    assert attempt_parts(AttemptId(TaskId("p/merged"), 1)) == ("p", "merged.1")
    assert plan_part(PlanId("p.lock")) == "p%2Elock"
    with pytest.raises(BadInput):
        check_prefix("a..b")
    with pytest.raises(BadInput):
        plan_part(PlanId("_"))


# --- merging ------------------------------------------------------------------------------------------------------------


def ready(task: str, seq: int, number: int = 1) -> Ready:
    return Ready(AttemptId(TaskId(task), number), f"{task}{number}", seq)


def order(done: list[Ready], needs: Mapping[str, tuple[str, ...]], settled: tuple[str, ...] = ()) -> list[str]:
    given = {TaskId(task): tuple(map(TaskId, names)) for task, names in needs.items()}
    return [each.head for each in merge_order(done, given, tuple(map(TaskId, settled)))]


def test_needs_come_first_then_the_time_of_verification() -> None:
    done = [ready("c", 1), ready("b", 2), ready("a", 3), ready("z", 4)]
    assert order(done, {"c": ("a",), "b": ()}) == ["b1", "a1", "c1", "z1"]
    assert order(done, {"c": ("missing",)}) == ["b1", "a1", "z1"]
    assert order(done, {"c": ("missing",)}, settled=("missing", "a")) == ["c1", "b1", "z1"]


def test_one_attempt_a_task_is_merged() -> None:
    assert order([ready("a", 5, 2), ready("a", 3, 1), ready("b", 4)], {}) == ["a1", "b1"]


def test_a_circle_merges_nothing_and_ends() -> None:
    assert order([ready("a", 1), ready("b", 2)], {"a": ("b",), "b": ("a",)}) == []


def test_the_order_does_not_depend_on_how_it_is_asked() -> None:
    done = [ready(name, seq) for seq, name in enumerate("dbca")]
    needs = {"d": ("a",), "b": ("a",)}
    assert order(done, needs) == order(done[::-1], needs) == ["c1", "a1", "d1", "b1"]


def touch(task: str, *declared: str, live: tuple[str, ...] = ()) -> Touch:
    return Touch(TaskId(task), declared, frozenset(live))


def pairs(touches: list[Touch], needs: dict[str, tuple[str, ...]] | None = None) -> list[tuple[str, str, tuple[str, ...], bool]]:
    given = {TaskId(task): tuple(map(TaskId, names)) for task, names in (needs or {}).items()}
    return [(each.first, each.second, each.paths, each.certain) for each in overlaps(touches, given)]


@pytest.mark.parametrize(
    "first,second,path",
    [
        ("src/a.py", "src/a.py", "src/a.py"),
        ("src/", "src/a.py", "src/a.py"),
        ("src/**", "./src/a.py", "src/a.py"),
        ("src", "src/deep/b/*", "src/deep/b"),
        (".", "anything", "anything"),
        ("**", "*", "."),
    ],
)
def test_declared_files_that_meet(first: str, second: str, path: str) -> None:
    assert pairs([touch("a", first), touch("b", second)]) == [("a", "b", (path,), False)]
    assert pairs([touch("b", second), touch("a", first)]) == [("b", "a", (path,), False)]


@pytest.mark.parametrize("first,second", [("src/a", "src/ab"), ("src/a.py", "src/b.py"), ("a/b", "b")])
def test_declared_files_that_do_not_meet(first: str, second: str) -> None:
    assert pairs([touch("a", first), touch("b", second)]) == []


def test_what_was_changed_already_is_certain() -> None:
    one, two = touch("a", "x", live=("x", "shared")), touch("b", live=("shared",))
    assert pairs([one, two]) == [("a", "b", ("shared",), True)]
    assert pairs([one, touch("c", "shared")]) == [("a", "c", ("shared",), False)]


def test_tasks_of_which_one_needs_the_other_are_in_order_anyway() -> None:
    three = [touch("a", "x"), touch("b", "y"), touch("c", "x")]
    assert pairs(three, {"c": ("b",), "b": ("a",)}) == []
    assert pairs(three, {"b": ("a",)}) == [("a", "c", ("x",), False)]


def test_what_an_agent_is_told_of_a_conflict() -> None:
    side = Side("100644", "line\n---- File 'other'\n", False, False)
    conflicts = [
        Conflict(path="a\nb", base=side, ours=Side("100644", "x", True, False), theirs=None, merged=None),
        Conflict(path="bin", base=None, ours=Side("100644", "", False, True), theirs=side, merged=None),
    ]
    text = conflict_prompt(conflicts, 3)
    assert "in 3 file(s)" in text
    assert "File 'a\\nb'" in text
    assert "    | ---- File 'other'" in text
    assert "yours: there is no such file" in text
    assert "plan's branch: not text" in text
    assert "[the rest is not shown]" in text
    assert "1 more file(s) are not shown" in text
    short = conflict_prompt(
        [Conflict(path="a", base=Side("100644", "é" * 1000, False, False), ours=None, theirs=None, merged=None)], 1, bytes_max=301
    )
    assert short.endswith("\n[cut]\n")
    assert len(short.encode()) <= 310


def test_what_git_says_of_a_merge() -> None:
    out = b"t" * 40 + b"\x00100644 aa 1\tf\x00100644 bb 2\tf\x00100755 cc 3\tf\xff\x00\x001\x00f\x00Auto-merging\x00Auto-merging f\n\x00"
    out += b"2\x00f\x00g\x00CONFLICT (contents)\x00CONFLICT (content): Merge conflict in f\n\x00"
    tree, entries, messages = parse_merge_tree(out)
    assert tree == "t" * 40
    assert entries == {b"f": {"1": ("100644", "aa"), "2": ("100644", "bb")}, b"f\xff": {"3": ("100755", "cc")}}
    assert messages == ["CONFLICT (content): Merge conflict in f"]
    assert parse_merge_tree(b"t" * 40 + b"\x00") == ("t" * 40, {}, [])


# --- what is sent to a machine ------------------------------------------------------------------------------------------


def test_every_module_is_sent_after_those_it_needs() -> None:
    assert sorted(MODULES) == sorted(path.stem for path in ONSITE.glob("*.py") if path.stem != "__init__")
    for number, name in enumerate(MODULES):
        tree = ast.parse((ONSITE / f"{name}.py").read_bytes(), feature_version=(3, 8))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                assert all(alias.name.partition(".")[0] in sys.stdlib_module_names for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                module = node.module or ""
                if module.startswith("orchestra"):
                    assert module.startswith("orchestra.workspaces.onsite")
                    needed = [alias.name for alias in node.names] if module.endswith("onsite") else [module.rpartition(".")[2]]
                    assert all(MODULES.index(each) < number for each in needed), (name, needed)
                else:
                    assert module.partition(".")[0] in sys.stdlib_module_names


@pytest.mark.parametrize(
    "code,kind",
    [
        ("bad-input", BadInput),
        ("not-found", NotFound),
        ("tampered", Refused),
        ("busy", Refused),
        ("locked", NodeFailed),
        ("disk", NodeFailed),
    ],
)
def test_problems_become_errors(code: str, kind: type[Exception]) -> None:
    out = b'banner\n{"problem": {"code": "%s", "message": "m", "hint": "h"}}\n' % code.encode()
    with pytest.raises(kind, match="m"):
        answer_of(out, b"", 0, dict)


@pytest.mark.parametrize("out", [b"", b"\n", b"no json", b"[1]", b'{"other": 1}', b'{"ok": 7}', b'{"problem": 7}'])
def test_an_answer_that_is_none_shows_what_was_printed(out: bytes) -> None:
    with pytest.raises(NodeFailed, match="code 1: Traceback"):
        answer_of(out, b"Traceback", 1, dict)
