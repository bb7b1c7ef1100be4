"""What a run consists of: its size, and which faults exist in it and how often. Each seed draws its own (swarm testing)."""

from __future__ import annotations

from random import Random
from typing import Final

import msgspec

HOUR_MS: Final = 3_600_000

FAULTS: Final = (
    "worker-crash",
    "worker-hang",
    "worker-zombie",
    "worker-stuck",
    "workers-stall",
    "workers-die",
    "workers-futile",
    "agent-crash",
    "agent-hang",
    "agent-flood",
    "agent-lie",
    "agent-fail",
    "tmux-death",
    "courier-death",
    "journal-replay",
    "order-twice",
    "node-reboot",
    "node-disk-full",
    "net-slow",
    "net-partition",
    "net-one-way",
    "window-fails",
    "ledger-slow",
    "ledger-full",
    "ledger-unknown",
    "ledger-stale",
    "ledger-flip",
    "coordinator-crash",
    "coordinator-failpoint",
    "coordinator-twice",
    "clock-jump",
    "clock-rate",
    "human-windows",
    "human-cancel",
    "human-retry",
    "human-restart",
    "human-scale",
    "human-node",
    "crash-amid",
    "human-shutdown",
)
"""Every kind of fault the world knows."""


class Size(msgspec.Struct, frozen=True):
    """How large a world is."""

    nodes: int
    agents: int
    tasks: int
    plans: int


class Options(msgspec.Struct, frozen=True):
    """Everything that, with the seed, determines a run."""

    size: Size | None = None
    """None: the seed draws it."""
    faults: tuple[str, ...] | None = None
    """Kinds that may happen; None: the seed draws them."""
    calm_after_ms: int = 0
    """When the faults stop; 0: the seed draws it."""
    live_ms: int = 12 * HOUR_MS
    """Everything that can run is over so long after the faults stopped (INV-LIVE)."""
    steps_max: int = 3_000_000
    durable: bool = True
    """False: a crash loses appends that were acknowledged. No ledger of ours may do so; the checks must notice it."""
    stream_ms: int = 0
    """Not 0: one task after the other is submitted, on average so often, until the faults stop."""
    work_ms: tuple[int, int] = (200, 60_000)
    """Shortest and longest time an agent works on a task."""
    rate_percent: int = 100
    """Of the usual rate at which faults happen by themselves."""
    even_agents: bool = False
    """All agents are equally capable, which spares the scheduler its look ahead."""
    snapshot_ms: int = 0
    """Between two snapshots; 0: the seed draws it."""
    check_all_every: int = 64
    """Appends between two complete checks of the state; what an append touched is checked at once."""


class Weather(msgspec.Struct):
    """What may still happen in this run, and how often."""

    rates: dict[str, float]
    """By kind of fault: the mean number in an hour for those that happen by themselves, else the probability at each occasion."""
    calm: bool = False

    def rate(self, kind: str) -> float:
        """Returns how often; 0 once the faults have stopped."""
        return 0.0 if self.calm else self.rates.get(kind, 0.0)


OCCASIONAL: Final = {
    "agent-crash": 0.08,
    "agent-hang": 0.05,
    "agent-flood": 0.1,
    "agent-lie": 0.12,
    "agent-fail": 0.15,
    "journal-replay": 0.5,
    "order-twice": 0.2,
    "window-fails": 0.05,
    "ledger-unknown": 0.02,
    "ledger-stale": 0.3,
    "ledger-slow": 0.05,
    "net-slow": 0.1,
    "coordinator-failpoint": 0.01,
    "worker-zombie": 0.3,
    "clock-rate": 1.0,
    "crash-amid": 0.6,
}
"""Upper bounds of probabilities at each occasion; all other kinds happen by themselves."""
PER_HOUR_MAX: Final = 60.0


def draw_size(dice: Random) -> Size:
    """Returns the size of a random world; most are small, since small ones find most."""
    large = dice.random() < 0.15
    agents = dice.randint(1, 60) if large else dice.randint(1, 8)
    tasks = dice.randint(1, 300) if large else dice.randint(1, 24)
    return Size(nodes=dice.choice((1, 1, 1, 2, 3)), agents=agents, tasks=tasks, plans=dice.randint(1, 4))


def draw_weather(dice: Random, options: Options) -> Weather:
    """Returns the faults of a run: a random subset of all kinds, each with a random rate. Named ones all happen."""
    allowed = options.faults
    kinds = FAULTS if allowed is None else tuple(kind for kind in FAULTS if kind in allowed)
    share = dice.choice((0.1, 0.3, 0.5, 0.8)) if allowed is None else 1.0
    rates: dict[str, float] = {}
    for kind in kinds:
        chosen, strength = dice.random() < share, dice.uniform(0.05, 1.0)
        if chosen:
            rates[kind] = strength * OCCASIONAL.get(kind, PER_HOUR_MAX * options.rate_percent / 100)
    return Weather(rates)
