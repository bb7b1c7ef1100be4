"""What agents are best at: who is preferred for a task, and whose kind does a prompt that names none."""

from __future__ import annotations

from typing import Any

import pytest

from orchestra.core.model import AgentSpec, TaskDefaults
from orchestra.errors import BadInput
from orchestra.ids import AgentId, TaskId
from orchestra.intake.planfile import parse_plan
from orchestra.intake.request import SubmitTaskParams, parse_params, to_spec
from orchestra.scheduling.routing import specialists
from orchestra.testing.builders import NODE, Bench, make_task


def agent(number: int, speciality: str = "", **fields: Any) -> AgentSpec:
    return AgentSpec(AgentId(number), NODE, speciality=speciality, **fields)


def given(agents: tuple[AgentSpec, ...], **fields: Any) -> int:
    bench = Bench(agents)
    bench.submit(make_task("a", **fields))
    return int(bench.task("p/a").attempts[0].agent)


TEAM = (agent(1, "documentation"), agent(2), agent(3, "review"), agent(4, "codegen"), agent(5, "research"))


@pytest.mark.parametrize(
    "fields, number",
    [
        ({}, 4),
        ({"category": "research"}, 5),
        ({"category": "business"}, 2),
        ({"speciality": "documentation"}, 1),
        ({"speciality": "security"}, 2),
        ({"returns": "plan"}, 2),
    ],
)
def test_a_task_goes_to_who_is_best_at_it_else_to_who_is_best_at_nothing_in_particular(fields: dict[str, Any], number: int) -> None:
    assert given(TEAM, **fields) == number


def test_a_review_goes_to_a_reviewer() -> None:
    bench = Bench(TEAM)
    bench.submit(make_task("a"), make_task("r", "a", reviews=TaskId("p/a"), returns="review"))
    bench.begin("p/a")
    bench.finish("p/a")
    assert bench.task("p/r").attempts[0].agent == 3


def test_nobody_waits_for_a_specialist_that_is_busy() -> None:
    bench = Bench((agent(1, "documentation"), agent(2, "codegen")))
    bench.submit(make_task("a"), make_task("b"), make_task("c"))
    assert sorted(bench.task(f"p/{name}").attempts[0].agent for name in ("a", "b")) == [1, 2]
    assert bench.status("p/c") == "queued"


def test_capability_goes_before_speciality() -> None:
    assert given((agent(1, "codegen"), agent(2, "review", weight=150))) == 2


def test_among_equally_fast_ones_of_an_uneven_fleet_it_counts_too() -> None:
    assert given((agent(1, "review", weight=150), agent(2, "codegen", weight=150), agent(3, "codegen", weight=50))) == 2


def test_what_a_kind_can_do_goes_before_speciality() -> None:
    assert given((agent(1, "codegen", kind="codex"), agent(2, "review", kind="claude")), kind="claude") == 2


ROSTER = (agent(1, "codegen", kind="codex"), agent(2, "review", kind="claude"), agent(3, "codegen", kind="codex"), agent(4, "research"))


def test_the_kind_of_each_speciality() -> None:
    assert specialists(Bench(ROSTER).state) == {"codegen": "codex", "review": "claude"}
    mixed = (agent(1, "codegen", kind="aider"), agent(2, "codegen", kind="codex"), agent(3, "codegen", kind="codex"))
    assert specialists(Bench(mixed).state) == {"codegen": "codex"}


PLAN = """\
name: p
tasks:
  - {id: code, prompt: b}
  - {id: look, reviews: code, prompt: c}
  - {id: text, speciality: documentation, prompt: d}
"""


def kinds(defaults: TaskDefaults) -> list[str]:
    return [draft.kind for draft in parse_plan(PLAN, source="p", directory="/w", defaults=defaults).drafts]


def test_a_prompt_without_a_kind_takes_that_of_the_specialists() -> None:
    found = {"codegen": "codex", "review": "claude", "documentation": "gemini"}
    assert kinds(TaskDefaults(specialists=found)) == ["codex", "claude", "gemini"]
    assert kinds(TaskDefaults(kinds={"coding": "aider"}, specialists=found)) == ["aider", "claude", "aider"]


def test_a_submitted_task_takes_it_as_well() -> None:
    params = parse_params(SubmitTaskParams, {"description": "Write the parser of the header", "speciality": "documentation"})

    def kind(defaults: TaskDefaults) -> str:
        return to_spec(params, task_id=TaskId("t"), default_kind="", directory="", defaults=defaults).kind

    assert kind(TaskDefaults(specialists={"documentation": "gemini"})) == "gemini"
    assert kind(TaskDefaults(kinds={"coding": "codex"}, specialists={"documentation": "gemini"})) == "codex"
    with pytest.raises(BadInput, match="needs an agent"):
        kind(TaskDefaults(specialists={"codegen": "codex"}))
