"""Every (status, event) pair of every machine: those in the table move, all others are bugs."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Any

import pytest

from orchestra.core import events as e
from orchestra.core.evolve import FOLDS
from orchestra.core.transitions import MACHINES, PLAN, Table, diagram, may, move
from orchestra.errors import InvariantBroken
from scripts.state_machines import page

TABLES: dict[str, Table[Any]] = {**MACHINES, "plan": PLAN}


def statuses(table: Table[Any]) -> type[Enum]:
    return type(next(iter(table))[0])


@pytest.mark.parametrize("name", TABLES)
def test_every_pair_leads_somewhere_or_is_refused(name: str) -> None:
    table = TABLES[name]
    for status in statuses(table):
        for event_class in FOLDS:
            assert may(table, status, event_class) == ((status, event_class) in table)
            if may(table, status, event_class):
                assert table[status, event_class] in statuses(table)


def test_a_step_that_is_not_in_the_table_is_a_bug() -> None:
    table = TABLES["orchestra"]
    with pytest.raises(InvariantBroken, match="WorkBegan cannot happen to one that is terminated"):
        move(table, statuses(table)["TERMINATED"], e.WorkBegan())


@pytest.mark.parametrize("name", ["orchestra", "task", "attempt", "agent"])
def test_every_state_is_reached_from_somewhere(name: str) -> None:
    table = TABLES[name]
    targets = set(table.values())
    first = next(iter(statuses(table)))
    assert {status for status in statuses(table) if status is not first} <= targets


def test_terminal_tasks_leave_only_by_being_revived_or_sent_back_by_a_review() -> None:
    for (status, event), target in MACHINES["task"].items():
        if status.value in ("completed", "failed", "cancelled"):
            assert event is (e.TaskSentBack if status.value == "completed" else e.TaskRevived)
            assert target.value == "pending"


def test_the_fold_knows_every_event() -> None:
    classes = {each for each in vars(e).values() if isinstance(each, type) and issubclass(each, e.Event) and each is not e.Event}
    assert classes == set(FOLDS)
    assert set(e.AnyEvent.__args__) == classes


def test_the_diagrams_in_the_docs_are_those_of_the_tables() -> None:
    assert Path("docs/state-machines.md").read_text(encoding="utf-8") == page(), "run: python scripts/state_machines.py"
    assert "PENDING --> QUEUED: TaskQueued" in diagram(TABLES["task"])
