"""A whole day with 200 agents and a steady stream of tasks."""

from __future__ import annotations

import pytest

from orchestra.testing.world.campaign import options_for
from orchestra.testing.world.options import HOUR_MS
from orchestra.testing.world.world import run


@pytest.mark.timeout(600)
def test_a_day_with_two_hundred_agents() -> None:
    result = run(1, options_for(hours=24, agents=200))
    assert result.ok, result.problem
    assert result.virtual_ms >= 24 * HOUR_MS
    assert sum(result.tasks.values()) > 6_000
