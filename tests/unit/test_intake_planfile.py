"""Plan files: what a plan may say, what each field becomes, and how what is wrong is told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from orchestra.core.graph import topological_order
from orchestra.core.model import Limits, Payload, Priority, Strategy, TaskSpec
from orchestra.errors import PlanInvalid
from orchestra.ids import PlanId
from orchestra.intake.planfile import PlanDocument, parse_plan, plan_schema
from orchestra.intake.schema import schema_text

ROOT = Path(__file__).resolve().parents[2]

FULL = """\
name: full
workspace: repo
agents:
  - {count: 2, kind: claude, category: coding, weight: 150, name: CCG}
  - {count: 1}
defaults:
  retries: 1
  env: {LANG: C, MODE: fast}
  limits: {memory_mb: 512, nice: 5}
  constraints: {max_execution_time_seconds: 120}
tasks:
  - id: build
    description: Build it
    payload: {type: code, content: "print(1)", language: python}
    requirements: {language: rust, tests_required: true}
    limits: {open_files: 64}
  - id: write
    needs: [build]
    prompt: Write it
    agent: claude
    category: research
    priority: critical
    target_agents: {strategy: round-robin, count: 3}
    constraints: {max_cost_dollars: 5.0}
    success_criteria: ["All tests pass", {run: "make lint", name: lint, timeout_seconds: 1.5}]
    retries: 7
    retry_backoff_seconds: 0.5
    retry_backoff_max_seconds: 9
    estimated_seconds: 600
    files: [src/a.py, docs]
    env: {MODE: slow}
    stdin: pane
    affinity: core
    node: mugen
    workspace: /elsewhere
"""

LEVEL6: dict[str, Any] = {
    "name": "level6",
    "agents": [{"count": 6, "kind": "claude", "name": "CCG"}, {"count": 9, "kind": "codex", "name": "CG"}],
    "tasks": [
        {"id": f"Task-{n}", "agent": agent, "prompt": f"Do part {n}", "needs": [f"Task-{m}" for m in needs], "estimated_seconds": 600}
        for n, (agent, needs) in enumerate(
            [
                *[("claude", []), ("codex", [1]), ("codex", [1]), ("codex", [1]), ("codex", [1]), ("codex", [2, 3]), ("codex", [4, 5])],
                *[
                    ("codex", [6]),
                    ("codex", [7]),
                    ("codex", [8, 9]),
                    ("claude", [10]),
                    ("claude", [11]),
                    ("claude", [12]),
                    ("claude", [13]),
                ],
                ("claude", [14]),
            ],
            1,
        )
    ],
}

EXAMPLES = {
    "full": FULL,
    "small": "name: small\ntasks:\n  - {id: a, run: 'true'}\n",
    "one group": "name: g\nagents: {count: 4, kind: codex}\ntasks: [{id: a, prompt: Do it}]",
    "level 6": json.dumps(LEVEL6),
}


def plan(text: str, source: str = "p.yaml") -> PlanDocument:
    return parse_plan(text, source=source, directory="/w/plans")


def tasks(*lines: str, head: str = "name: p") -> str:
    return "\n".join([head, "tasks:", *(f"  - {line}" for line in lines)])


def refusal(text: str, source: str = "p.yaml") -> PlanInvalid:
    with pytest.raises(PlanInvalid) as caught:
        plan(text, source)
    return caught.value


def only(*lines: str, head: str = "name: p") -> TaskSpec:
    return plan(tasks(*lines, head=head)).specs(PlanId("P"))[0]


def test_every_field_arrives() -> None:
    read = plan(FULL)
    build, write = read.specs(PlanId("P1"))
    assert [msg.count for msg in read.agents] == [2, 1]
    assert (read.agents[0].kind, read.agents[0].weight, read.agents[0].name, read.agents[1].kind) == ("claude", 150, "CCG", "any")
    assert build.payload == Payload("code", "print(1)", "python")
    assert json.loads(build.requirements) == {"language": "rust", "tests_required": True}
    assert (build.id, build.kind, build.workspace, build.retries) == ("P1/build", "shell", "/w/plans/repo", 1)
    assert build.limits == Limits(memory_bytes=512 * 1024 * 1024, open_files=64, nice=5)
    assert (build.timeout_ms, build.cost_usd_micros_max, build.env) == (120_000, 0, {"LANG": "C", "MODE": "fast"})
    assert (write.needs, write.plan, write.payload) == (("P1/build",), "P1", Payload("analysis", "Write it"))
    assert (write.category, write.priority, write.strategy, write.replicas) == ("research", Priority.CRITICAL, Strategy.ROUND_ROBIN, 3)
    assert (write.timeout_ms, write.cost_usd_micros_max) == (120_000, 5_000_000)
    assert write.criteria == ("All tests pass", "lint")
    assert (write.checks[1].argv, write.checks[1].timeout_ms) == (("/bin/sh", "-c", "make lint"), 1500)
    assert (write.retries, write.backoff_ms, write.backoff_max_ms, write.estimate_ms) == (7, 500, 9000, 600_000)
    assert (write.files, write.env, write.stdin) == (("src/a.py", "docs"), {"LANG": "C", "MODE": "slow"}, "pane")
    assert (write.affinity, write.node, write.workspace, write.description) == ("core", "mugen", "/elsewhere", "Write it")


def test_what_is_not_said() -> None:
    spec = only("{id: a, run: echo}")
    assert spec == TaskSpec("P/a", "echo", Payload("command", "echo"), plan=PlanId("P"), workspace="/w/plans", workspace_here=True)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "head,line,kind,workspace",
    [
        ("name: p", "{id: a, run: x}", "shell", "/w/plans"),
        ("name: p\nworkspace: ../repo", "{id: a, run: x}", "shell", "/w/repo"),
        ("name: p\nagents: {count: 1, kind: codex}", "{id: a, prompt: x}", "codex", "/w/plans"),
        ("name: p\nagents: [{count: 1, kind: codex}, {count: 2}]", "{id: a, prompt: x}", "codex", "/w/plans"),
        ("name: p\nagents: {count: 1, kind: rehearsal}", "{id: a, prompt: x}", "rehearsal", ""),
        ("name: p\nworkspace: r\ndefaults: {agent: claude}", "{id: a, prompt: x}", "claude", "/w/plans/r"),
        ("name: p\ndefaults: {agent: claude, workspace: d}", "{id: a, run: x, agent: gemini}", "gemini", "/w/plans/d"),
    ],
)
def test_kind_and_workspace(head: str, line: str, kind: str, workspace: str) -> None:
    spec = only(line, head=head)
    assert (spec.kind, spec.workspace) == (kind, workspace)


def test_a_task_s_own_payload_goes_before_the_default_s() -> None:
    first, second = plan(tasks("{id: a}", "{id: b, prompt: mine, agent: x}", head="name: p\ndefaults: {run: general}")).drafts
    assert (first.payload, second.payload) == (Payload("command", "general"), Payload("analysis", "mine"))


@pytest.mark.parametrize("word", ["medium", "normal"])
def test_medium_is_normal(word: str) -> None:
    assert only(f"{{id: a, run: x, priority: {word}}}").priority is Priority.NORMAL


@pytest.mark.parametrize(
    "text,field,message,hint",
    [
        (tasks("{id: a, run: x, retris: 1}"), "tasks[0].retris", "p.yaml:3:21: there is no field 'retris'", "did you mean 'retries'?"),
        (tasks("{id: a, run: x, dependencies: [b]}"), "tasks[0].dependencies", "p.yaml:3:21:", "did you mean 'needs'?"),
        (
            tasks("{id: a, run: x}", "{id: b, run: x, retries: '3'}"),
            "tasks[1].retries",
            "p.yaml:4:21: expected a whole number from 0 to 100",
            "",
        ),
        (tasks("{id: a, run: x, retries: 1.5}"), "tasks[0].retries", "p.yaml:3:21: expected a whole number", ""),
        (tasks("{id: a, run: x, retries: true}"), "tasks[0].retries", "p.yaml:3:21: expected a whole number from 0 to 100, found true", ""),
        (tasks("{id: a, run: x, needs: b}"), "tasks[0].needs", "p.yaml:3:21: expected a list, found the text 'b'", "write it as [a, b]"),
        (tasks("{id: a, run: x, priority: hgih}"), "tasks[0].priority", "p.yaml:3:21: expected one of", "did you mean 'high'?"),
        (
            tasks("{id: a, run: x, env: {PORT: 80}}"),
            "tasks[0].env.PORT",
            "p.yaml:3:27: expected text, found the number 80",
            "put it in quotes",
        ),
        (tasks("{id: a, run: x, env: {1A: b}}"), "tasks[0].env.1A", "p.yaml:3:27: the name is not usable", ""),
        (tasks("{id: a, run: x, target_agents: {count: 201}}"), "tasks[0].target_agents.count", "p.yaml:3:37: expected a whole number", ""),
        (
            tasks("{id: a, run: x, constraints: {max_execution_time: 9}}"),
            "tasks[0].constraints.max_execution_time",
            "p.yaml:3:35:",
            "did you mean 'max",
        ),
        (tasks("{id: a, run: x, files: [../b]}"), "tasks[0].files[0]", "p.yaml:3:29: expected a relative path without '..'", ""),
        (tasks("{id: a, run: x, files: [/b]}"), "tasks[0].files[0]", "p.yaml:3:29:", ""),
        (tasks("{id: a, run: x, files: [a/../b]}"), "tasks[0].files[0]", "p.yaml:3:29:", ""),
        (
            tasks("{id: a, run: x, success_criteria: [It is good]}"),
            "tasks[0].success_criteria[0]",
            "p.yaml:3:40: 'It is good' cannot be",
            "use {run",
        ),
        (tasks("{id: a, run: x, prompt: y}"), "tasks[0].prompt", "p.yaml:3:21: run and prompt are given", "give exactly one"),
        (tasks("{id: a}"), "tasks[0]", "p.yaml:3:5: task 'a' has nothing to do", "give exactly one"),
        (tasks("{run: x}"), "tasks[0].id", "p.yaml:3:5: the field 'id' is missing", ""),
        (tasks("{id: a, prompt: x}"), "tasks[0]", "p.yaml:3:5: it is not said which kind", "write agent"),
        (
            tasks("{id: a, run: x}", "{id: b, run: x, needs: [a, aa]}"),
            "tasks[1].needs[1]",
            "p.yaml:4:32: task 'b' needs 'aa'",
            "did you mean 'a'?",
        ),
        (tasks("{id: a, run: x, needs: [a]}"), "tasks[0].needs[0]", "p.yaml:3:29: task 'a' needs itself", ""),
        (
            tasks("{id: a, run: x}", "{id: b, run: x, needs: [a, a]}"),
            "tasks[1].needs[1]",
            "p.yaml:4:32: task 'b' names the need 'a' twice",
            "",
        ),
        (tasks("{id: a, run: x}", "{id: a, run: x}"), "tasks[1].id", "p.yaml:4:6: there is a task 'a' already", ""),
        (tasks("{id: Ab, run: x}", "{id: aB, run: x}"), "tasks[1].id", "p.yaml:4:6: 'aB' and 'Ab' differ only in case", ""),
        (
            tasks("{id: a, run: x, needs: [b]}", "{id: b, run: x, needs: [a]}"),
            "tasks[0].needs",
            "p.yaml:3:21: the needs form a cycle: a -> b -> a",
            "",
        ),
        ("name: p\ntasks: []", "tasks", "p.yaml:2:1: expected 1 to 200000 entries, found 0", ""),
        ("tasks: [{id: a, run: x}]", "name", "p.yaml:1:1: the field 'name' is missing", ""),
        ("- a", "", "p.yaml:1:1: a plan is a mapping", ""),
        (tasks("{id: a, run: x}", head="name: p\ndefaults: {id: z}"), "defaults.id", "p.yaml:2:12: there is no field 'id'", ""),
        (tasks("{id: a}", head="name: p\ndefaults: {run: x, prompt: y}"), "defaults.prompt", "p.yaml:2:20: run and prompt", ""),
        (
            tasks("{id: a, run: x}", head="name: p\ndefaults: {success_criteria: [Fine]}"),
            "defaults.success_criteria[0]",
            "p.yaml:2:31:",
            "",
        ),
        (tasks('{id: a, run: "x\\0"}'), "tasks[0].run", "p.yaml:3:13: expected text of 1 to 1048576 characters without NUL", ""),
        (tasks("{id: a, run: ''}"), "tasks[0].run", "p.yaml:3:13:", ""),
        (tasks("{id: a, run: null}"), "tasks[0].run", "p.yaml:3:13: expected text, found nothing", ""),
    ],
)
def test_what_a_plan_may_not_say(text: str, field: str, message: str, hint: str) -> None:
    error = refusal(text)
    assert error.field == field
    assert error.message.startswith(message)
    assert error.hint.startswith(hint)
    assert error.problems[0].startswith(message.partition(": ")[0])


def test_problems_are_told_together_and_at_most_twenty() -> None:
    error = refusal(tasks(*(f"{{id: t{n}, run: {n}, retries: -1}}" for n in range(30))))
    assert len(error.problems) == 20
    assert error.problems[3].startswith("p.yaml:4:22: tasks[1].retries: expected a whole number from 0 to 100, found the number -1")
    error = refusal(tasks("{id: a, run: x, needs: [q]}", "{id: A, run: x, prompt: y}", "{id: c}"))
    assert [line.partition(": ")[0] for line in error.problems] == ["p.yaml:4:6", "p.yaml:3:29", "p.yaml:4:21", "p.yaml:5:5"]


def test_places_in_json() -> None:
    error = refusal('{"name": "p",\n "tasks": [\n  {"id": "a", "run": "x"},\n  {"id": "b", "retries": 101, "run": "x"}]}', "p.json")
    assert str(error) == "tasks[1].retries: p.json:4:15: expected a whole number from 0 to 100, found the number 101"


HOSTILE = [
    "../../etc/passwd",
    "a/b",
    ".",
    "..",
    "",
    "x" * 300,
    "-rf",
    "con:1.2",
    "a\0b",
    "a\nb",
    "a\n",
    "\u202egnp",
    "é",
    "😀",
    "%00",
    " a",
    "a b",
]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("place", ["name", "id", "need", "agent", "node", "affinity", "kind"])
def test_hostile_names_are_refused_everywhere(name: str, place: str) -> None:
    task: dict[str, Any] = {"id": "a", "run": "x"}
    whole: dict[str, Any] = {"name": "p", "tasks": [task], "agents": {"count": 1}}
    {"need": task, "name": whole, "kind": whole["agents"]}.get(place, task)[{"need": "needs"}.get(place, place)] = (
        [name] if place == "need" else name
    )
    assert refusal(json.dumps(whole), "p.json").message.startswith("p.json:1:")


@pytest.mark.parametrize(
    "text", ["'; tmux kill-server; '", "$(id) `id` ${HOME}", '"quotes" and \\', "\x1b[201~\x07", "#(id)", "a;\nb\r\n\t;", "…漢字😀"]
)
def test_prompts_are_data(text: str) -> None:
    whole = {"name": "p", "tasks": [{"id": "a", "agent": "claude", "prompt": text}, {"id": "b", "run": text}]}
    first, second = plan(json.dumps(whole), "p.json").drafts
    assert (first.payload.content, second.payload.content) == (text, text)


def test_the_digest_is_of_what_is_said() -> None:
    as_yaml = plan(FULL)
    as_json = plan(json.dumps(yaml.safe_load(FULL)), "p.json")
    assert as_yaml.digest == as_json.digest
    assert plan(FULL.replace("retries: 7", "retries: 8")).digest != as_yaml.digest
    head = as_yaml.head(PlanId("P"))
    assert (head.id, head.name, head.digest, head.source) == ("P", "full", as_yaml.digest, "p.yaml")


def test_a_long_chain_of_needs() -> None:
    count = 100_000
    whole = {"name": "p", "tasks": [{"id": f"t{n}", "run": "x", "needs": [f"t{n + 1}"] if n + 1 < count else []} for n in range(count)]}
    specs = plan(json.dumps(whole), "p.json").specs(PlanId("P"))
    assert topological_order({spec.id: spec for spec in specs})[0].id == f"P/t{count - 1}"
    whole["tasks"][-1]["needs"] = ["t0"]  # type: ignore[index]
    assert "the needs form a cycle: t0 -> t1 -> " in refusal(json.dumps(whole), "p.json").message


def test_a_task_that_needs_very_many() -> None:
    names = [f"t{n}" for n in range(10_000)]
    whole = {"name": "p", "tasks": [*({"id": name, "run": "x"} for name in names), {"id": "end", "run": "x", "needs": names}]}
    assert len(plan(json.dumps(whole), "p.json").drafts[-1].needs) == 10_000
    whole["tasks"][-1]["needs"] = [*names, "t1"]  # type: ignore[index]
    assert refusal(json.dumps(whole), "p.json").field == "tasks[10000].needs[10000]"


def test_the_published_fifteen_tasks() -> None:
    read = plan(EXAMPLES["level 6"], "p.json")
    assert [spec.kind for spec in read.drafts].count("codex") == 9
    assert sum(group.count for group in read.agents) == 15


@pytest.mark.parametrize("name", EXAMPLES)
def test_examples_fit_the_schema(name: str) -> None:
    plan(EXAMPLES[name])
    jsonschema.Draft202012Validator(plan_schema()).validate(yaml.safe_load(EXAMPLES[name]))


def test_the_committed_schema_is_the_generated_one() -> None:
    jsonschema.Draft202012Validator.check_schema(plan_schema())
    assert (ROOT / "docs/schema/plan.schema.json").read_text(encoding="utf-8") == schema_text(), "python -m orchestra.intake.schema"


@pytest.mark.parametrize(
    "text",
    [
        tasks("{id: a/b, run: x}"),
        tasks("{id: a, run: x, nope: 1}"),
        tasks("{id: a, run: x, prompt: y}"),
        tasks("{id: a, run: x, files: [a/../b]}"),
    ],
)
def test_the_schema_refuses_what_the_parser_refuses(text: str) -> None:
    refusal(text)
    assert not jsonschema.Draft202012Validator(plan_schema()).is_valid(yaml.safe_load(text))


VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-300, 300)
    | st.floats()
    | st.sampled_from(["a", "B", "high", "shell", "All tests pass", "../x", ""]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["id", "run", "needs", "type", "content", "count", "kind", "env", "strategy", "A"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
FIELDS = [
    "id",
    "run",
    "prompt",
    "payload",
    "needs",
    "env",
    "files",
    "limits",
    "success_criteria",
    "target_agents",
    "retries",
    "agent",
    "workspace",
]


@given(
    st.lists(st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=4).map(lambda task: {"id": "a", "run": "x", **task}), max_size=3),
    st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=2),
    st.dictionaries(st.sampled_from(["name", "agents", "workspace", "x"]), VALUES, max_size=1),
)
def test_nothing_but_plan_invalid_escapes(entries: list[object], defaults: dict[str, object], rest: dict[str, object]) -> None:
    text = json.dumps({"name": "p", "tasks": entries, "defaults": defaults, **rest})
    for source in ("p.json", "p.yaml"):
        error: PlanInvalid | None = None
        try:
            assert len(plan(text, source).specs(PlanId("P"))) == len(entries)
        except PlanInvalid as refused:
            error = refused
        assert error is None or (error.message.startswith(f"{source}:1:") and len(error.problems) <= 20)
