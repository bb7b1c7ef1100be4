"""Many seeds: what the command and the tests run, what a failure says, and worlds of a given kind."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from orchestra.testing.world.options import HOUR_MS, Options, Size
from orchestra.testing.world.world import Result, Tracer, run

DAY_FAULTS = (
    "worker-crash",
    "agent-crash",
    "agent-fail",
    "agent-lie",
    "tmux-death",
    "courier-death",
    "coordinator-crash",
    "ledger-unknown",
    "net-slow",
    "journal-replay",
    "human-windows",
)
"""What a busy day brings."""


def options_for(hours: float = 0.0, agents: int = 0, steps_max: int = 0) -> Options:
    """Returns options: of a random world, or of one that is fed tasks for so many hours."""
    steps = steps_max or Options().steps_max
    if not hours and not agents:
        return Options(steps_max=steps)
    size = Size(nodes=2 if agents > 1 else 1, agents=agents or 8, tasks=max(20, agents), plans=2)
    if not hours:
        return Options(size=size, steps_max=steps)
    span_ms = int(hours * HOUR_MS)
    return Options(
        size=size,
        faults=DAY_FAULTS,
        calm_after_ms=span_ms,
        stream_ms=max(1, 2_400_000 // size.agents),
        work_ms=(10_000, 3_600_000),
        rate_percent=2,
        even_agents=True,
        snapshot_ms=HOUR_MS,
        steps_max=max(steps, 20_000_000),
        check_all_every=4096,
    )


def play(first: int, count: int, options: Options, tracer: Tracer | None = None) -> Iterator[Result]:
    """Yields the results of the seeds from `first` on."""
    for seed in range(first, first + count):
        yield run(seed, options, tracer)


def reproduction(seed: int, options: Options, arguments: str = "") -> str:
    """Returns the command that plays a seed again with its trace."""
    return f"orchestra sim --seed {seed}{arguments} --trace"


def summary(results: list[Result]) -> dict[str, object]:
    """Returns figures of many runs."""
    failed = [result for result in results if not result.ok]
    return {
        "runs": len(results),
        "failed": [msgspec.to_builtins(result) for result in failed],
        "events": sum(result.events for result in results),
        "attempts": sum(result.attempts for result in results),
        "stale_results": sum(result.stale for result in results),
        "faults": sum(sum(result.faults.values()) for result in results),
        "virtual_hours": round(sum(result.virtual_ms for result in results) / HOUR_MS, 1),
    }
