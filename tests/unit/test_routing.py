"""Who gets a prompt that names no agent, and who stands in for a kind that is not to be had."""

from __future__ import annotations

import msgspec
import pytest

from orchestra.core import commands as c
from orchestra.core.model import NodeSpec, TaskDefaults
from orchestra.core.state import State
from orchestra.errors import PlanInvalid
from orchestra.ids import NodeId
from orchestra.intake.planfile import parse_plan
from orchestra.scheduling.routing import RouteOptions, rerouted, unavailable
from orchestra.testing.builders import NODE, Bench, make_agents, make_task

KINDS = {"planning": "claude", "review": "claude", "coding": "codex", "research": "gemini"}
PLAN = """\
name: p
{agents}
tasks:
  - {{id: plan, returns: plan, prompt: a}}
  - {{id: code, prompt: b}}
  - {{id: look, reviews: code, prompt: c}}
  - {{id: ask, category: research, prompt: d}}
  - {{id: script, run: "true"}}
"""
OPTIONS = RouteOptions({"codex": "claude"}, 50)
PROGRAMS = {"codex": ("codex",), "claude": ("claude",), "shell": ()}


def kinds(agents: str = "", **defaults: str) -> list[str]:
    plan = parse_plan(PLAN.format(agents=agents), source="p", directory="/w", defaults=TaskDefaults(kinds={**KINDS, **defaults}))
    return [draft.kind for draft in plan.drafts]


def test_prompts_go_by_what_is_asked_for_scripts_to_a_shell() -> None:
    assert kinds() == ["claude", "codex", "claude", "gemini", "shell"]


def test_a_plan_for_one_kind_gives_everything_to_it() -> None:
    assert kinds("agents: {count: 2, kind: aider}") == ["aider"] * 4 + ["shell"]


def test_a_kind_that_the_plan_has_no_agents_of_is_not_chosen() -> None:
    with pytest.raises(PlanInvalid, match="which kind of agent"):
        kinds("agents: [{count: 1, kind: claude}, {count: 1, kind: aider}]")


def test_who_is_named_does_it() -> None:
    text = PLAN.format(agents="defaults: {agent: aider}")
    found = parse_plan(text, source="p", directory="/w", defaults=TaskDefaults(kinds=KINDS)).drafts
    assert [draft.kind for draft in found[:4]] == ["aider"] * 4


def fleet(programs: tuple[str, ...], kind: str = "any") -> Bench:
    bench = Bench(make_agents(2, kind=kind))
    bench.do(c.NodeUp(NODE, "boot", "session", programs))
    return bench


def test_without_codex_its_tasks_go_to_claude_take_half_as_long_again_and_say_so() -> None:
    code = make_task("code", kind="codex", estimate_ms=60_000, requirements='{"model": "gpt-5.5", "x": 1}')
    moved, other = rerouted(fleet(("claude",)).state, [code, make_task("s")], OPTIONS, PROGRAMS.__getitem__)
    assert (moved.kind, moved.estimate_ms, msgspec.json.decode(moved.requirements)) == ("claude", 90_000, {"x": 1})
    assert moved.warnings == (
        "moved from codex to claude: codex is not installed on any node that may have the task; expected to take 50 % longer",
    )
    assert other == make_task("s")


def test_where_codex_is_its_tasks_stay() -> None:
    code = make_task("code", kind="codex")
    assert rerouted(fleet(("claude", "codex")).state, [code], OPTIONS, PROGRAMS.__getitem__) == (code,)


def test_a_fleet_without_agents_for_it_is_without_it() -> None:
    (moved,) = rerouted(fleet(("claude", "codex"), "claude").state, [make_task("code", kind="codex")], OPTIONS, PROGRAMS.__getitem__)
    assert "no agent of the fleet takes tasks of kind codex" in moved.warnings[0]


def test_only_nodes_that_may_have_the_task_count() -> None:
    nodes = (NodeSpec(NODE), NodeSpec(NodeId("far"), host="far"))
    bench = Bench((*make_agents(1), *make_agents(1, "far", first=2)), nodes=nodes)
    bench.do(c.NodeUp(NODE, "boot", "session", ("claude",)), c.NodeUp(NodeId("far"), "boot", "session", ("codex",)))
    here, anywhere = make_task("a", kind="codex", node=NODE), make_task("b", kind="codex")
    assert [spec.kind for spec in rerouted(bench.state, [here, anywhere], OPTIONS, PROGRAMS.__getitem__)] == ["claude", "codex"]


def test_of_a_node_that_was_not_seen_yet_nothing_is_known_though_another_was() -> None:
    far = NodeId("far")
    bench = Bench()
    agents = (*make_agents(1), *make_agents(1, "far", first=2))
    bench.do(c.Init("test", (NodeSpec(NODE), NodeSpec(far, host="far")), agents), c.NodeUp(NODE, "boot", "session", ("claude",)))
    code = make_task("code", kind="codex", node=far)
    assert rerouted(bench.state, [code], OPTIONS, PROGRAMS.__getitem__) == (code,)
    bench.do(c.NodeUp(far, "boot", "session", ("claude",)))
    assert [spec.kind for spec in rerouted(bench.state, [code], OPTIONS, PROGRAMS.__getitem__)] == ["claude"]


def test_without_either_it_is_refused_with_both_reasons() -> None:
    with pytest.raises(PlanInvalid, match=r"codex is not installed .* and claude is not installed"):
        rerouted(fleet(()).state, [make_task("code", kind="codex")], OPTIONS, PROGRAMS.__getitem__)


def test_nobody_stands_in_where_the_settings_name_nobody() -> None:
    code = make_task("code", kind="codex")
    assert rerouted(fleet(()).state, [code], RouteOptions(), PROGRAMS.__getitem__) == (code,)


def test_a_kind_is_unavailable_when_neither_it_nor_who_stands_in_for_it_is_to_be_had() -> None:
    kinds = ("codex", "claude", "shell", "gemini")

    def found(state: State, **alternatives: str) -> list[str]:
        return list(unavailable(state, kinds, RouteOptions(alternatives, 50), lambda kind: PROGRAMS.get(kind, ())))

    assert found(fleet(("claude",)).state) == ["codex"]
    assert found(fleet(("claude",)).state, codex="claude") == []
    assert found(fleet(()).state, codex="claude") == ["codex", "claude"]
    assert found(fleet(("claude", "codex"), "shell").state) == ["codex", "claude", "gemini"]
