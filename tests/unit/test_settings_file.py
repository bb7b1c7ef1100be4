"""What is told of a settings file that changes while an orchestra runs."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestra.bootstrap.settings_file import SettingsFile
from orchestra.settings import load

AT_START = "orchestra:\n  tasks: {retries: 2}\n  kinds: {claude: {model: sonnet}}\n"


def written(file: Path, text: str) -> None:
    """As an editor saves: whole, as another file."""
    beside = file.with_suffix(".new")
    beside.write_text(text)
    beside.replace(file)


def started(file: Path, **environ: str) -> SettingsFile:
    file.write_text(AT_START)
    return SettingsFile(file, load(AT_START, str(file), environ, {"tasks.retry_backoff_seconds": "7"}))


@pytest.mark.parametrize(
    "text,named",
    [
        (AT_START.replace("retries: 2", "retries: 3"), "tasks.retries"),
        (AT_START.replace("sonnet", "opus"), "kinds.claude.model"),
        ("", "tasks.retries, kinds.claude.model"),
        (AT_START + "  cost: {daily_budget_usd: 5}\n", "cost.daily_budget_usd"),
        (AT_START + "  cost: {daily_budget_usd: 5, task_budget_usd: 1}\n  agents: {count: 3, kind: shell}\n", "and 1 more"),
    ],
)
def test_what_another_value_would_be_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "orchestra.yaml"
    watch = started(file)
    assert watch.notice() == ""
    written(file, text)
    assert "was changed after the start" in watch.notice()
    for name in named.split(", "):
        assert name in watch.notice()


@pytest.mark.parametrize(
    "text",
    [
        "# a remark\n" + AT_START,
        AT_START.replace("{retries: 2}", "{retries: 2, retry_backoff_seconds: 9}"),
        AT_START + "  agents: {count: 9}\n",
        AT_START + "  nodes: {majin: {host: 10.0.0.2}}\n",
    ],
    ids=["a remark", "a flag goes before it", "a variable goes before it", "nodes are added while it runs"],
)
def test_what_changes_nothing_is_not_told(tmp_path: Path, text: str) -> None:
    file = tmp_path / "orchestra.yaml"
    watch = started(file, ORCHESTRA_AGENTS_COUNT="4")
    written(file, text)
    assert watch.notice() == ""


def test_a_change_that_is_taken_back_is_told_no_more(tmp_path: Path) -> None:
    file = tmp_path / "orchestra.yaml"
    watch = started(file)
    written(file, AT_START.replace("2", "3"))
    assert "tasks.retries" in watch.notice()
    written(file, AT_START)
    assert watch.notice() == ""
    file.unlink()
    assert "tasks.retries" in watch.notice()


def test_a_file_that_cannot_hold_is_told_with_its_mistake(tmp_path: Path) -> None:
    file = tmp_path / "orchestra.yaml"
    watch = started(file)
    written(file, "orchestra: {tasks: {retires: 3}}\n")
    assert "would be refused at the next start" in watch.notice()
    assert "retires" in watch.notice()
    written(file, "orchestra: [\n")
    assert "would be refused" in watch.notice()
    file.write_bytes(b"\xff\xfe")
    os.utime(file, ns=(1, 1))
    assert "cannot be read" in watch.notice()
