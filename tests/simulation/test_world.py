"""Random worlds by seed: safety after every append, then everything that can run comes to its end.

`ORCHESTRA_SIM_SEEDS` says how many fixed seeds are played (20 where time is short, 200 otherwise, thousands overnight); a few that depend on the
date are added unless it is given. A failure prints the command that plays it again.
"""

from __future__ import annotations

import datetime
import os

import pytest

from orchestra.testing.world.campaign import reproduction
from orchestra.testing.world.options import FAULTS, OCCASIONAL, Options
from orchestra.testing.world.world import Result, run

GIVEN = os.environ.get("ORCHESTRA_SIM_SEEDS", "")
FIXED = int(GIVEN or 200)
BATCH = 20
FRESH = 0 if GIVEN else 40


def check(result: Result, options: Options) -> None:
    assert result.ok, f"seed {result.seed}: {result.problem}; again: {reproduction(result.seed, options)}"


@pytest.mark.parametrize("first", range(0, FIXED, BATCH))
@pytest.mark.timeout(300)
def test_fixed_seeds(first: int) -> None:
    for seed in range(first, min(first + BATCH, FIXED)):
        check(run(seed), Options())


@pytest.mark.skipif(not FRESH, reason="the number of seeds was given")
@pytest.mark.timeout(300)
def test_seeds_of_the_day() -> None:
    today = datetime.datetime.now(datetime.UTC).toordinal() * 1000
    for seed in range(today, today + FRESH):
        check(run(seed), Options())


@pytest.mark.parametrize("kind", FAULTS)
def test_each_kind_of_fault_alone(kind: str) -> None:
    options = Options(faults=(kind,))
    happened = 0
    for seed in range(3):
        result = run(seed, options)
        assert result.ok, f"{kind}, seed {seed}: {result.problem}"
        happened += result.faults.get(kind, 0)
    assert happened or kind in OCCASIONAL, "a kind that never happens tests nothing"


def test_all_kinds_together() -> None:
    options = Options(faults=FAULTS)
    for seed in range(10):
        result = run(seed, options)
        assert result.ok, f"seed {seed} with every fault: {result.problem}"


def test_a_calm_world_completes_or_fails_everything() -> None:
    result = run(1, Options(faults=()))
    assert result.ok
    assert set(result.tasks) <= {"completed", "failed", "cancelled"}
    assert result.attempts > 0


def test_a_ledger_that_loses_what_it_acknowledged_is_noticed() -> None:
    """The canary: if this passes unnoticed, the checks are asleep."""
    options = Options(faults=("coordinator-crash",), durable=False)
    problems = [run(seed, options).problem for seed in range(5)]
    assert any(problem.startswith("INV-LOG") for problem in problems), problems
