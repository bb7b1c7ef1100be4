"""A guard against lost speed: small benchmarks, their ratios to peers in the same run held against margins far beyond any noise.

Whatever slows the machine slows the peer too, so a ratio says more than a time. The bars themselves are in `docs/benchmarks.md`.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
pytestmark = [pytest.mark.xdist_group("benchmarks"), pytest.mark.timeout(600)]


def run_benchmark(name: str) -> dict[str, Any]:
    """Returns what the quick form of a benchmark prints."""
    done = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / f"bench_{name}.py"), "--quick"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    values: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    assert values["name"] == name
    return values


def test_latency_stays_within_three_times_its_bar() -> None:
    assert run_benchmark("latency")["ratio"]["p50"] <= 3 * 20


def test_status_stays_within_four_times_its_bar() -> None:
    assert run_benchmark("status")["ratio"] <= 4 / 20


def test_planning_stays_linear() -> None:
    """Ten times the tasks may cost ten times the time, and as much again for a machine that is busy with other things."""
    assert run_benchmark("planning")["ratio"] <= 25
