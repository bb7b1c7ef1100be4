"""Every deliberate bug is noticed by the simulation.

`mutants.json` names the seed that catches each; if it no longer does, the first seeds are searched and the table has to be brought up to date
(`ORCHESTRA_SIM_WRITE=1` writes it).
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from orchestra.errors import OrchestraError
from orchestra.testing.world.mutants import MUTANTS
from orchestra.testing.world.options import HOUR_MS, Options
from orchestra.testing.world.world import run

TABLE = Path(__file__).parent / "mutants.json"
SEEDS_MAX = 200
OPTIONS = Options(live_ms=2 * HOUR_MS, steps_max=60_000)
CRASHES = (KeyError, IndexError, AttributeError, ValueError, OrchestraError)
"""A bug may also show as an error that nobody foresaw."""


def problem_of(name: str, seed: int) -> str:
    with MUTANTS[name]():
        try:
            return run(seed, OPTIONS).problem
        except CRASHES as error:
            return f"{type(error).__name__}: {error}"


def table() -> dict[str, dict[str, object]]:
    found: dict[str, dict[str, object]] = json.loads(TABLE.read_text()) if TABLE.exists() else {}
    return found


@pytest.mark.timeout(300)
@pytest.mark.xdist_group("mutants")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutant_is_caught(name: str) -> None:
    recorded = table().get(name, {}).get("seed")
    if isinstance(recorded, int) and problem_of(name, recorded):
        assert run(recorded, OPTIONS).ok, f"seed {recorded} fails without the mutant too"
        return
    for seed in range(SEEDS_MAX):
        problem = problem_of(name, seed)
        if problem and run(seed, OPTIONS).ok:
            if os.environ.get("ORCHESTRA_SIM_WRITE"):
                entry = {"seed": seed, "noticed": problem.partition(":")[0]}
                TABLE.write_text(json.dumps(dict(sorted({**table(), name: entry}.items())), indent=2) + "\n")
            return
    pytest.fail(f"no seed below {SEEDS_MAX} notices the mutant {name!r}")


def test_there_are_enough_mutants() -> None:
    assert len(MUTANTS) >= 32
    assert set(table()) == set(MUTANTS)
