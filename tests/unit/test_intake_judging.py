"""Criteria that no program can check: refused, or given to a review that judges them, and never taken for executed."""

from __future__ import annotations

import msgspec
import pytest

from orchestra.core.model import TaskDefaults
from orchestra.errors import BadInput, PlanInvalid
from orchestra.ids import TaskId
from orchestra.intake.planfile import PlanDocument, parse_plan
from orchestra.intake.request import SubmitTaskParams, judged_phrases, parse_params, to_spec

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


@pytest.mark.parametrize(
    "defaults, head, remedy",
    [
        (TaskDefaults(kinds={"review": "claude"}, judge=False), "", "`judge: true` in the plan"),
        (JUDGING, "judge: false", "`judge: true` in the plan"),
        (msgspec.structs.replace(JUDGING, strict=True), "judge: true", "without `strict`"),
    ],
)
def test_where_it_is_switched_off_it_is_refused_and_the_hint_says_what_can_be_done(defaults: TaskDefaults, head: str, remedy: str) -> None:
    with pytest.raises(PlanInvalid) as refused:
        plan(head=head, defaults=defaults)
    assert "'It is readable' cannot be checked by a machine" in refused.value.message
    assert remedy in refused.value.hint
    assert "All tests pass" in refused.value.hint


def test_strictness_is_handed_on_to_what_a_task_plans() -> None:
    text = "name: p\ntasks: [{id: a, agent: codex, prompt: x, returns: plan}, {id: b, run: x}]"
    for strict in (True, False):
        found = parse_plan(text, source="p", directory="/w", defaults=msgspec.structs.replace(JUDGING, strict=strict)).drafts
        assert [draft.strict for draft in found] == [strict, False]


@pytest.mark.parametrize(
    "defaults, kind",
    [
        (JUDGING, "claude"),
        (TaskDefaults(kinds={"review": "claude"}, lacking={"claude": "not installed"}), "codex"),
        (TaskDefaults(kinds={"review": "claude", "coding": "gemini"}, lacking={"claude": "no", "codex": "no"}), "gemini"),
        (TaskDefaults(specialists={"review": "aider"}), "aider"),
        (TaskDefaults(), "codex"),
    ],
)
def test_who_judges_is_the_first_that_is_to_be_had(defaults: TaskDefaults, kind: str) -> None:
    text = "name: p\ntasks: [{id: work, agent: codex, prompt: x, success_criteria: [It is readable]}]"
    assert parse_plan(text, source="p", directory="/w", defaults=defaults).drafts[1].kind == kind


@pytest.mark.parametrize(
    "text", ["covrage > 80", "Code coverage >> 80%", "Linter pases", "All tets pass", "File exist: a", "$", "File exists:"]
)
def test_a_slip_of_the_pen_is_told_and_not_judged(text: str) -> None:
    with pytest.raises(PlanInvalid) as refused:
        plan(f"success_criteria: [It is readable, '{text}']", head="judge: true")
    assert refused.value.field == "tasks[0].success_criteria[1]"
    assert "did you mean" in refused.value.hint or text == "$"


@pytest.mark.parametrize(
    "text", ["All docs pass", "It builds fine on a phone", "The linter has nothing new to say", "Latency < 200 ms", "No known bugs"]
)
def test_what_only_sounds_like_a_known_phrase_is_judged(text: str) -> None:
    assert plan(f"success_criteria: ['{text}']").drafts[1].judges == (text,)


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


@pytest.mark.parametrize(
    "defaults, said, hint",
    [
        (TaskDefaults(), "it is not said which kind of agent judges", "routing.review"),
        (TaskDefaults(kinds={"review": "claude"}, lacking={"claude": "claude is not installed"}), "claude is not installed", "(claude)"),
    ],
)
def test_without_a_kind_that_judges_it_is_refused(defaults: TaskDefaults, said: str, hint: str) -> None:
    with pytest.raises(PlanInvalid) as refused:
        plan(defaults=defaults)
    assert f"'It is readable' cannot be checked by a machine, and nobody can judge it: {said}" in refused.value.message
    assert refused.value.field == "tasks[0].success_criteria[0]"
    assert "All tests pass" in refused.value.hint
    assert hint in refused.value.hint


def test_a_submitted_task_is_judged_by_the_same_rules() -> None:
    params = parse_params(
        SubmitTaskParams, {"description": "d", "agent": "codex", "success_criteria": ["It is readable", "All tests pass"]}
    )
    strict = msgspec.structs.replace(params, strict=True)
    assert judged_phrases(params, JUDGING) == ("It is readable",)
    assert [check.name for check in to_spec(params, task_id=TaskId("t"), default_kind="", directory="/w", defaults=JUDGING).checks] == [
        "All tests pass"
    ]
    for one, defaults, remedy in ((strict, JUDGING, "without `strict`"), (params, TaskDefaults(judge=False), "tasks.judge_criteria")):
        assert judged_phrases(one, defaults) == ()
        with pytest.raises(BadInput) as refused:
            to_spec(one, task_id=TaskId("t"), default_kind="", directory="/w", defaults=defaults)
        assert (refused.value.field, remedy in refused.value.hint) == ("success_criteria[0]", True)


@pytest.mark.parametrize("criteria, clear", [(["It is better"], False), (["It is better", "All tests pass"], True)])
def test_an_opinion_makes_no_clear_task_of_a_vague_one(criteria: list[str], clear: bool) -> None:
    params = parse_params(SubmitTaskParams, {"description": "Make it better", "agent": "codex", "success_criteria": criteria})
    refused = ""
    try:
        to_spec(params, task_id=TaskId("t"), default_kind="", directory="/w", defaults=JUDGING)
    except BadInput as error:
        refused = error.message
    assert ("too vague" in refused) is not clear
