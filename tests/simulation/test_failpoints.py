"""Every named place at which a coordinator may end is reached in the simulated world, and coordinators have ended at all of them."""

from __future__ import annotations

from orchestra.engine import failpoints
from orchestra.testing.world.options import Options
from orchestra.testing.world.world import run

SEEDS_MAX = 200
KINDS = ("coordinator-failpoint", "worker-crash", "workers-die", "tmux-death", "net-slow")
"""Something to reap, to open and to order, and a coordinator that may end in the middle of it."""


def test_a_coordinator_ends_at_every_named_place() -> None:
    left = dict.fromkeys(failpoints.PLACES)
    for seed in range(SEEDS_MAX):
        result = run(seed, Options(faults=KINDS))
        assert result.ok, f"seed {seed}: {result.problem}"
        assert set(result.places) <= set(failpoints.PLACES)
        for place, ended in result.places.items():
            if ended:
                left.pop(place, None)
        if not left:
            return
    assert not left, f"no coordinator ended at {list(left)}"
