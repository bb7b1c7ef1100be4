"""What is shown of nodes and agents, made from the state alone."""

from __future__ import annotations

import msgspec
import pytest

from orchestra.answers import health_checks
from orchestra.core import commands as c
from orchestra.core.model import AgentStatus, NodeSpec
from orchestra.costviews import ProviderLoad
from orchestra.engine.board import Board
from orchestra.ids import NodeId
from orchestra.node import NodeFacts
from orchestra.testing.builders import NODE, Bench, make_agents, make_task
from orchestra.viewing import Lens, node_warnings, plan_view, status_view

B = NodeId("b")


def facts(offset_ms: int, error_ms: int) -> NodeFacts:
    return NodeFacts("boot", "host", "3", "3", "session", clock_offset_ms=offset_ms, clock_error_ms=error_ms)


def lens(bench: Bench) -> Lens:
    return Lens(bench.now_ms, Board(), lambda *_: "", lambda _: "")


@pytest.mark.parametrize("offset_ms, error_ms, warned", [(2_001, 0, True), (-2_001, 0, True), (5_000, 3_000, False), (-5_001, 3_000, True)])
def test_a_clock_is_off_when_it_is_more_so_than_asking_took(offset_ms: int, error_ms: int, warned: bool) -> None:
    found = node_warnings(Bench(make_agents(1)).node(), facts(offset_ms, error_ms))
    assert bool(found) is warned
    assert all("its clock is off by" in each for each in found)


def test_agents_of_a_lost_node_are_out_of_sight_and_not_in_error() -> None:
    bench = Bench((*make_agents(2), *make_agents(3, "b", first=3)), nodes=(NodeSpec(NODE), NodeSpec(B)))
    bench.do(c.NodeDown(B, "the connection to it broke"))
    assert bench.agent(3).status is AgentStatus.OFFLINE
    view = status_view(bench.state, lens(bench))
    assert (view.agents.total, view.agents.running, view.agents.error) == (5, 2, 0)
    assert view.warnings == ("node b is out of sight: the connection to it broke",)


def test_tasks_without_a_measure_are_expected_to_take_what_the_others_took() -> None:
    bench = Bench(make_agents(1))
    bench.submit(*(make_task(f"t{number}", *needs, estimate_ms=60_000) for number, needs in enumerate(((), ("t0",), ("t1",)))))
    seen = plan_view(bench.state, bench.plan(), lens(bench))
    assert [task.rank_ms for task in seen.tasks] == [180_000, 120_000, 60_000], "nothing is known yet"
    bench.finish("p/t0", duration_ms=3_000)
    seen = plan_view(bench.state, bench.plan(), lens(bench))
    assert [task.estimate_ms for task in seen.tasks] == [3_000] * 3
    assert [task.rank_ms for task in seen.tasks] == [9_000, 6_000, 3_000]


@pytest.mark.parametrize("used,well", [(69, True), (70, False), (200, False)])
def test_health_tells_when_a_limit_is_near(used: int, well: bool) -> None:
    bench = Bench()
    view = msgspec.structs.replace(lens(bench), loads=(ProviderLoad("anthropic", used, 100, None, 100),))
    check = health_checks(bench.state, [], view)[-1]
    assert (check.name, check.ok, check.remedy) == ("API limits within threshold", well, "" if well else "orchestra limits")
    assert all(each.name != check.name for each in health_checks(bench.state, [], lens(bench)))
