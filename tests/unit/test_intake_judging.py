"""Criteria that no program can check: refused, or given to a review that judges them, and never taken for executed."""

from __future__ import annotations

import pytest

from orchestra.core.model import TaskDefaults
from orchestra.errors import PlanInvalid
from orchestra.intake.planfile import PlanDocument, parse_plan

JUDGING = TaskDefaults(kinds={"review": "claude"}, judge=True)
CRITERIA = "success_criteria: [It is readable, All tests pass, {run: 'true'}, '$ true', 'The docs say why']"


def plan(text: str = CRITERIA, defaults: TaskDefaults = JUDGING, more: str = "", head: str = "") -> PlanDocument:
    whole = f"name: p\n{head}\ntasks:\n  - {{id: work, run: 'true', {text}}}\n{more}"
    return parse_plan(whole, source="p.yaml", directory="/w", defaults=defaults)


def test_what_no_program_can_check_is_judged_by_a_review_and_the_rest_is_run() -> None:
    work, judge = plan().drafts
    assert [check.name for check in work.checks] == ["All tests pass", "true", "true"]
    assert work.criteria[0] == "It is readable"
    assert (judge.id, judge.reviews, judge.needs, judge.kind) == ("work.judge", "work", ("work",), "claude")
    assert (judge.judges, judge.returns, judge.workspace) == (("It is readable", "The docs say why"), "review", "/w")


def test_a_review_that_is_there_judges_them_too() -> None:
    drafts = plan(more="  - {id: look, reviews: work, agent: codex, prompt: look}\n").drafts
    assert [draft.id for draft in drafts] == ["work", "look"]
    assert drafts[1].judges == ("It is readable", "The docs say why")


def test_a_plan_may_ask_for_it_or_forbid_it() -> None:
    assert len(plan(head="judge: true", defaults=TaskDefaults(kinds={"review": "claude"})).drafts) == 2
    with pytest.raises(PlanInvalid, match="cannot be checked by a machine"):
        plan(head="judge: false")


@pytest.mark.parametrize("defaults", [TaskDefaults(), TaskDefaults(judge=True, strict=True, kinds={"review": "claude"})])
def test_strictly_or_by_default_it_is_refused_and_the_hint_says_what_can_be_done(defaults: TaskDefaults) -> None:
    with pytest.raises(PlanInvalid) as refused:
        plan(head="judge: true" if defaults.strict else "", defaults=defaults)
    assert "'It is readable' cannot be checked by a machine" in refused.value.message
    assert "judge: true" in refused.value.hint


@pytest.mark.parametrize(
    "text, more, said",
    [
        (f"run: x, returns: plan, {CRITERIA}", "", "cannot be judged after its tasks have joined"),
        (f"run: x, {CRITERIA}", "  - {id: work.judge, run: 'true'}\n", "too long or taken"),
        (f"agent: rehearsal, prompt: x, {CRITERIA}", "", "private folder"),
        ("run: x, success_criteria: ['Code coverage > 101%']", "", "cannot be reached"),
    ],
)
def test_what_cannot_be_judged_is_refused(text: str, more: str, said: str) -> None:
    whole = f"name: p\ntasks:\n  - {{id: work, {text}}}\n{more}"
    with pytest.raises(PlanInvalid) as refused:
        parse_plan(whole, source="p.yaml", directory="/w", defaults=JUDGING)
    assert said in " ".join(refused.value.problems)


def test_without_a_kind_that_judges_it_is_refused() -> None:
    with pytest.raises(PlanInvalid, match="which kind of agent judges"):
        plan(defaults=TaskDefaults(judge=True))
