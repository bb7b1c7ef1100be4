"""Which session of its CLI a task goes on with, and what of a session's consumption is an attempt's own."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orchestra.core.model import OutcomeKind, TaskSpec, Usage
from orchestra.core.sessions import SESSIONS_MAX, session_for
from orchestra.engine.earlier import earlier_of
from orchestra.ids import NodeId
from orchestra.testing.builders import Bench, make_agents, make_task


def make(name: str = "a", **fields: Any) -> TaskSpec:
    return make_task(name, **{"plan": None, "kind": "claude", "affinity": "parser", "workspace": "/w", **fields})


def bench_after(kind: OutcomeKind = OutcomeKind.DONE, **fields: Any) -> Bench:
    """One agent that has done a task in session s."""
    bench = Bench(make_agents(1))
    bench.submit(make(retries=0, **fields), plan=None)
    bench.finish("a", kind=kind, session="s", usage=Usage(1, 100, 10))
    return bench


def test_a_task_goes_on_with_the_session_of_the_last_one_like_it() -> None:
    bench = bench_after()
    assert session_for(bench.agent(1), make("b")) == "s"
    bench.submit(make("b"), plan=None)
    assert earlier_of(bench.task("b"), bench.agent(1)).session == "s"
    assert earlier_of(bench.task("b")).session == ""
    bench.finish("b", kind=OutcomeKind.DONE, session="s", usage=Usage(1, 50, 5))
    assert bench.agent(1).sessions["s"].usage == Usage(2, 150, 15)


@pytest.mark.parametrize(
    "change", [{"kind": "codex"}, {"affinity": "lexer"}, {"affinity": ""}, {"workspace": "/v"}, {"workspace": ""}, {"isolated": True}]
)
def test_another_kind_matter_or_folder_has_its_own(change: dict[str, Any]) -> None:
    assert session_for(bench_after().agent(1), make("b", **change)) == ""


def test_isolated_tasks_go_on_with_the_session_of_the_last_one_like_them() -> None:
    bench = bench_after(isolated=True)
    assert session_for(bench.agent(1), make("b", isolated=True)) == "s"
    assert session_for(bench.agent(1), make("b")) == "", "those that share their folder work in another way"
    assert session_for(bench.agent(1), make("b", isolated=True, workspace="/v")) == ""


def test_a_session_is_of_no_use_on_another_node_than_it_was_in() -> None:
    agent = bench_after().agent(1)
    agent.spec = msgspec.structs.replace(agent.spec, node=NodeId("far"))
    assert session_for(agent, make("b")) == ""


@pytest.mark.parametrize(
    "fields, goes_on",
    [
        ({"kind": "claude"}, True),
        ({"kind": "claude", "isolated": True}, True),
        ({"kind": "codex"}, False),
    ],
)
def test_the_next_attempt_goes_on_with_the_session_whose_work_failed_its_checks(fields: dict[str, Any], goes_on: bool) -> None:
    bench = Bench(make_agents(1))
    bench.submit(make(affinity="", backoff_ms=1, **{**fields, "kind": "claude"}), plan=None)
    bench.begin("a")
    bench.finish("a", kind=OutcomeKind.UNVERIFIED, session="s")
    bench.pass_time(1_000)
    task = bench.task("a")
    assert len(task.live_attempts()) == 1, "the next attempt is there already when its order is made"
    if fields["kind"] != "claude":
        task.spec = msgspec.structs.replace(task.spec, kind=fields["kind"])  # it has moved to another kind meanwhile
    for affinity in (True, False):
        assert earlier_of(task, bench.agent(1), affinity=affinity).session == ("s" if goes_on else "")


@pytest.mark.parametrize("kind", [OutcomeKind.FAILED, OutcomeKind.STOPPED, OutcomeKind.TIMEOUT])
def test_a_session_that_was_broken_off_is_not_gone_on_with_and_still_counts(kind: OutcomeKind) -> None:
    bench = bench_after(kind)
    assert session_for(bench.agent(1), make("b")) == ""
    assert bench.agent(1).sessions["s"].usage == Usage(1, 100, 10)


def test_a_second_attempt_of_a_task_is_told_of_the_first_and_begins_anew() -> None:
    bench = bench_after()
    bench.submit(make("b"), plan=None)
    bench.finish("b", kind=OutcomeKind.FAILED, session="s")
    assert earlier_of(bench.task("b"), bench.agent(1)).session == ""


def test_an_agent_remembers_so_many() -> None:
    bench = Bench(make_agents(1))
    for number in range(SESSIONS_MAX + 1):
        bench.submit(make(f"t{number}"), plan=None)
        bench.finish(f"t{number}", session=f"s{number}")
    assert list(bench.agent(1).sessions) == [f"s{number}" for number in range(1, SESSIONS_MAX + 1)]
