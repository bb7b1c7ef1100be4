"""The example plans are what their comments say, and every kind takes their tasks."""

from __future__ import annotations

import os
import runpy
import tempfile
from collections import Counter
from pathlib import Path

import pytest

from orchestra.agents import claude, codex, rehearsal, shell
from orchestra.agents.adapter import Adapter, Context
from orchestra.errors import PlanInvalid
from orchestra.intake.planfile import PlanDocument, parse_plan
from orchestra.rehearse.scenario import read_scenario

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
FLEET_DEMO = EXAMPLES.parent / "scripts" / "demo_fleet.py"
ADAPTERS: dict[str, Adapter] = {each.kind: each for each in (claude.ADAPTER, codex.ADAPTER, rehearsal.ADAPTER, shell.ADAPTER)}


def read(name: str) -> PlanDocument:
    path = EXAMPLES / name
    return parse_plan(path.read_text(encoding="utf-8"), source=name, directory=str(path.parent))


def waves(plan: PlanDocument) -> list[list[str]]:
    """Returns the tasks by the longest chain of needs below them."""
    depth: dict[str, int] = {}
    while len(depth) < len(plan.drafts):
        for task in plan.drafts:
            if task.id not in depth and all(need in depth for need in task.needs):
                depth[task.id] = max((depth[need] + 1 for need in task.needs), default=0)
    return [[task for task, level in depth.items() if level == wave] for wave in range(max(depth.values()) + 1)]


def test_no_example_is_forgotten() -> None:
    assert sorted(path.relative_to(EXAMPLES).as_posix() for path in EXAMPLES.rglob("*.yaml") if path.name != "scene.yaml") == [
        "broken.yaml",
        "fanout-200.yaml",
        "hello.yaml",
        "level6/plan.yaml",
        "planning.yaml",
    ]


@pytest.mark.parametrize("name", ["hello.yaml", "fanout-200.yaml", "level6/plan.yaml"])
def test_a_plan_is_sound_and_its_kinds_take_it(name: str) -> None:
    for task in read(name).drafts:
        assert ADAPTERS[task.kind].launch(task, Context(attempt=1, agent=1)).argv


def test_the_broken_plan_is_refused_by_name() -> None:
    with pytest.raises(PlanInvalid, match="'straw'"):
        read("broken.yaml")


def test_the_broken_plan_has_a_circle_too() -> None:
    text = (EXAMPLES / "broken.yaml").read_text(encoding="utf-8").replace(", straw]", "]")
    with pytest.raises(PlanInvalid, match="chicken"):
        parse_plan(text, source="broken.yaml", directory=str(EXAMPLES))


def test_hello_has_two_tasks_at_once_and_one_after_them() -> None:
    assert waves(read("hello.yaml")) == [["greet", "rehearse"], ["part"]]


def test_fanout_is_two_hundred_and_one() -> None:
    assert [len(wave) for wave in waves(read("fanout-200.yaml"))] == [200, 1]


def test_level6_is_fifteen_tasks_for_two_kinds_of_agents() -> None:
    plan = read("level6/plan.yaml")
    assert [sorted(wave) for wave in waves(plan)] == [
        ["plan"],
        ["core", "http", "routing", "utils"],
        ["database", "templating"],
        ["auth", "validation"],
        ["testing-cli"],
        ["tests"],
        ["docs"],
        ["config"],
        ["review"],
        ["verify"],
    ]
    claude_does = ["plan", "tests", "docs", "config", "review", "verify"]
    assert [task.id for task in plan.drafts if task.kind == "claude"] == claude_does
    assert Counter(task.kind for task in plan.drafts) == {"codex": 9, "claude": 6}
    assert [(group.kind, group.count) for group in plan.agents] == [("claude", 6), ("codex", 9)]


def test_level6_declares_its_files_once_each_and_merges_them() -> None:
    plan = read("level6/plan.yaml")
    files = Counter(file for task in plan.drafts for file in task.files)
    assert set(files.values()) == {1}
    assert len(files) == 55
    assert {(task.workspace, task.isolated) for task in plan.drafts} == {(str(EXAMPLES / "level6" / "build"), True)}
    assert (EXAMPLES / "level6" / ".gitignore").read_text(encoding="utf-8").split() == ["build/"]


def test_the_scenario_of_level6_has_every_file_and_its_two_mishaps() -> None:
    scenes, plan = read_scenario(EXAMPLES / "level6" / "scenario"), read("level6/plan.yaml")
    assert {task.id: set(scenes[task.id].files) for task in plan.drafts} == {task.id: set(task.files) for task in plan.drafts}
    assert {task: sorted(scene.attempts) for task, scene in scenes.items() if scene.attempts} == {
        "core": [1, 2],
        "http": [1, 2],
        "database": [1],
    }


def test_every_task_of_level6_is_verified() -> None:
    assert [task.id for task in read("level6/plan.yaml").drafts if not task.checks] == []


def test_the_fleet_demo_without_root_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert runpy.run_path(str(FLEET_DEMO))["main"]([]) == 69
    assert list(tmp_path.iterdir()) == []
    assert "needs root" in capsys.readouterr().err


def test_the_planning_example_has_a_planner_and_a_review() -> None:
    plan = read("planning.yaml")
    assert {task.id: (task.returns, task.reviews) for task in plan.drafts if task.returns} == {
        "plan": ("plan", None),
        "check": ("review", "write"),
    }
    assert next(task.needs for task in plan.drafts if task.id == "check") == ("write",)
