"""What agents return, read as strictly as what people write, and kept within what the planning task may do itself."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from orchestra.core.model import Finding, Judgement, Limits, Payload, Priority, TaskDefaults, TaskSpec
from orchestra.errors import BadInput, PlanInvalid
from orchestra.ids import NodeId, PlanId, TaskId
from orchestra.intake.returned import read_plan, read_review

PARENT = TaskSpec(
    TaskId("p/plan"),
    "plans",
    Payload("analysis", "plan it"),
    kind="claude",
    plan=PlanId("p"),
    priority=Priority.NORMAL,
    workspace="/work/here",
    workspace_here=True,
    env={"CI": "1"},
    tags=("eu",),
    limits=Limits(memory_bytes=1 << 30),
    returns="plan",
    depth=1,
)


def parent(**fields: Any) -> TaskSpec:
    return msgspec.structs.replace(PARENT, **fields)


def tasks(*values: dict[str, Any], **more: Any) -> str:
    return json.dumps({"tasks": [{"run": "true", **each} for each in values], **more})


def test_tasks_join_under_the_planners_name_with_its_place_and_rights() -> None:
    one, two = read_plan(tasks({"id": "one"}, {"id": "two", "needs": ["one"], "reviews": "one"}), PARENT)
    assert (one.id, one.needs, one.plan, one.origin, one.depth) == ("p/plan.one", ("p/plan",), "p", "p/plan", 2)
    assert (two.id, two.needs, two.reviews) == ("p/plan.two", ("p/plan.one",), "p/plan.one")
    assert (one.workspace, one.workspace_here, one.env, one.tags, one.limits) == ("/work/here", True, {"CI": "1"}, ("eu",), PARENT.limits)


def test_what_no_program_can_check_of_a_planned_task_is_judged_beside_it_if_anybody_can_see_it() -> None:
    text = tasks({"id": "one", "success_criteria": ["It is readable"]})
    defaults = TaskDefaults(kinds={"review": "claude"})
    one, judge = read_plan(text, PARENT, defaults=defaults)
    assert (judge.id, judge.reviews, judge.judges, judge.workspace) == ("p/plan.one.judge", one.id, ("It is readable",), "/work/here")
    with pytest.raises(PlanInvalid, match="cannot be checked by a machine"):
        read_plan(text, parent(workspace=""), defaults=defaults)
    with pytest.raises(PlanInvalid, match="cannot be checked by a machine"):
        read_plan(tasks({"id": "one", "success_criteria": ["It is readable"]}, judge=True), parent(strict=True), defaults=defaults)
    with pytest.raises(PlanInvalid, match="nobody can judge it: gone"):
        read_plan(text, PARENT, defaults=msgspec.structs.replace(defaults, lacking={"claude": "gone"}))


def test_a_planner_alone_plans_tasks_alone() -> None:
    (one,) = read_plan(tasks({"id": "one"}), parent(id=TaskId("TASK-7"), plan=None))
    assert (one.id, one.plan, one.needs) == ("TASK-7.one", None, ("TASK-7",))


def test_a_planner_in_a_worktree_plans_work_in_worktrees() -> None:
    (one,) = read_plan(tasks({"id": "one"}), parent(isolated=True))
    assert one.isolated


def test_a_planner_without_a_workspace_plans_tasks_without_one() -> None:
    (one,) = read_plan(tasks({"id": "one", "isolation": "worktree"}), parent(workspace=""))
    assert (one.workspace, one.isolated) == ("", False)


def test_what_it_says_nothing_about_is_as_the_planner_has_it() -> None:
    (one,) = read_plan(tasks({"id": "one"}), parent(priority=Priority.LOW, node=NodeId("far")))
    assert (one.priority, one.node) == (Priority.LOW, "far")


def test_what_is_left_of_the_cost_is_shared() -> None:
    text = tasks({"id": "a", "constraints": {"max_cost_dollars": 2}}, {"id": "b"}, {"id": "c"})
    costs = [spec.cost_usd_micros_max for spec in read_plan(text, parent(cost_usd_micros_max=10_000_000), spent_usd_micros=1_000_000)]
    assert costs == [2_000_000, 3_500_000, 3_500_000]


@pytest.mark.parametrize(
    "text, fields, said",
    [
        ("", {}, "mapping"),
        ("not a plan", {}, "mapping"),
        ("[1, 2]", {}, "mapping"),
        ('{"tasks": []}', {}, "1 to"),
        ('{"tasks": [{"id": "a"}]}', {}, "nothing to do"),
        (tasks({"id": "a", "needs": ["ghost"]}), {}, "'ghost', which is not in the plan"),
        (tasks({"id": "a", "needs": ["b"]}, {"id": "b", "needs": ["a"]}), {}, "cycle"),
        (tasks({"id": "../../x"}), {}, "a plain name"),
        (tasks({"id": "a"}, {"id": "A"}), {}, "differ only in case"),
        (tasks({"id": "a" * 64}), {}, "longer than 64"),
        (tasks({"id": "a", "workspace": "/etc"}), {}, "works where the planning task does"),
        (tasks({"id": "a"}, workspace="/etc"), {}, "works where the planning task does"),
        (tasks({"id": "a"}, defaults={"env": {"LD_PRELOAD": "x"}}), {}, "has the environment of the planning task"),
        (tasks({"id": "a"}, agents={"count": 200}), {}, "brings no agents"),
        (tasks({"id": "a", "priority": "critical"}), {}, "may not be more urgent"),
        (tasks({"id": "a", "node": "near"}), {"node": NodeId("far")}, "bound to node 'far'"),
        (tasks({"id": "a", "isolation": "shared"}), {"isolated": True}, "worktree of its own"),
        (tasks({"id": "a", "limits": {"memory_mb": 4096}}), {}, "memory_bytes of 4294967296 passes"),
        (
            tasks({"id": "a", "constraints": {"max_cost_dollars": 11}}),
            {"cost_usd_micros_max": 10_000_000},
            "are left of the planning task's limit",
        ),
        (tasks({"id": "a", "success_criteria": ["It is beautiful"]}), {}, "cannot be checked by a machine"),
        (tasks({"id": "a", "agent": "codex"}), {"kinds": ("shell", "claude")}, "may not be of kind 'codex'"),
        (tasks({"id": "a"}, defaults=7), {}, "expected a mapping"),
    ],
)
def test_what_it_may_not_say_is_refused_with_its_place(text: str, fields: dict[str, Any], said: str) -> None:
    kinds = fields.pop("kinds", ())
    with pytest.raises(PlanInvalid) as refused:
        read_plan(text, parent(**fields), kinds=kinds)
    assert said in " ".join((refused.value.message, *refused.value.problems))


def review(**values: Any) -> str:
    return json.dumps({"verdict": "approve", "summary": "good", **values})


def test_a_review_is_read() -> None:
    found = read_review(review(verdict="refuse", findings=[{"severity": "major", "text": "wrong", "file": "a.py", "line": 3}]))
    assert (found.approved, found.summary, found.findings) == (False, "good", (Finding("major", "wrong", "a.py", 3),))


def test_criteria_are_judged_by_number() -> None:
    judged = [{"number": 2, "met": True, "evidence": "b"}, {"number": 1, "met": False, "evidence": "a"}]
    found = read_review(review(verdict="refuse", criteria=judged), ("first", "second"))
    assert found.judgements == (Judgement("first", False, "a"), Judgement("second", True, "b"))


@pytest.mark.parametrize(
    "text, judges, said",
    [
        ("", (), "mapping"),
        (review(verdict="maybe"), (), "one of approve, refuse"),
        (review(extra=1), (), "there is no field 'extra'"),
        (review(verdict="refuse"), (), "does not say why"),
        (review(findings=[{"severity": "critical", "text": "x"}]), (), "it approves, and findings[0] is critical"),
        (review(findings=[{"severity": "awful", "text": "x"}]), (), "one of critical"),
        (review(), ("one",), "each number from 1 to 1 once"),
        (review(criteria=[{"number": 1, "met": True, "evidence": "x"}]), (), "no criterion to judge"),
        (review(criteria=[{"number": 1, "met": False, "evidence": "x"}]), ("one",), "criterion 1 is not met"),
        (review(criteria=[{"number": 1, "met": True, "evidence": "x"}] * 2), ("one", "two"), "each number from 1 to 2"),
    ],
)
def test_a_review_that_contradicts_itself_is_refused(text: str, judges: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput) as refused:
        read_review(text, judges)
    assert said in " ".join((refused.value.message, *getattr(refused.value, "problems", ())))
