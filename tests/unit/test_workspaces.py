"""The pure part of workspaces: names, what an agent is told, what is read from git."""

from __future__ import annotations

import ast
import string
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import orchestra.workspaces.onsite
from orchestra.errors import BadInput, NodeFailed, NotFound, Refused
from orchestra.ids import NAME, AttemptId, PlanId, TaskId
from orchestra.workspace import Conflict, Side
from orchestra.workspaces.calling import MODULES, answer_of
from orchestra.workspaces.conflicts import conflict_prompt
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
        plan_part(PlanId("_p"))
    assert plan_part(PlanId("_")) == "_", "what belongs to no plan"


# --- merging ------------------------------------------------------------------------------------------------------------


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
