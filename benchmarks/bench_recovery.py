"""kill -9 of a worker with a task in hand: how soon it is seen, and how soon the task runs again."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from pathlib import Path
from typing import Any

from support import arguments, orchestra, percentile, show, wait_quiet

from orchestra.core.state import State
from orchestra.ids import TaskId
from orchestra.testing.hosted import Stage

BARS_S = {"seen": 1.0, "running": 2.0}
AGENTS = 20
TASKS = 15


def plan_of(tasks: int) -> str:
    """Tasks that run until they are stopped, tried again at once and as often as it takes."""
    lines = ["name: held", "defaults: {retries: 100, retry_backoff_seconds: 0.01}", "tasks:"]
    lines += [f"  - {{id: t{number}, run: 'exec sleep 3600', description: holds number {number}}}" for number in range(tasks)]
    return "\n".join(lines)


async def kill_one(stage: Stage, task: TaskId) -> tuple[float, float]:
    """Kills the worker that has the task; returns the seconds until the core knows, and until the next attempt's process runs."""

    def victim(state: State) -> tuple[int, Any] | None:
        attempt = state.tasks[task].attempts[-1]
        agent = state.agents[attempt.agent]
        return (attempt.number, agent) if attempt.pid and attempt.live and agent.worker is not None else None

    number, agent = await stage.wait(victim)
    worker = agent.worker
    started = time.perf_counter()
    os.kill(worker.pid, signal.SIGKILL)

    def seen(state: State) -> float | None:
        attempt = state.tasks[task].attempts[number - 1]
        present = state.agents[agent.id]
        known = not attempt.live or attempt.lost_sight_ms or present.worker != worker or present.status.value != "busy"
        return time.perf_counter() - started if known else None

    def again(state: State) -> float | None:
        attempt = state.tasks[task].attempts[-1]
        return time.perf_counter() - started if attempt.number > number and attempt.pid else None

    return await stage.wait(seen), await stage.wait(again)


async def ours(samples: int, seed: int) -> list[tuple[float, float]]:
    """One kill after the other, each of another task's worker, on a fleet that is busy for the greater part."""
    found = []
    async with orchestra(AGENTS) as stage:
        plan = await stage.submit(plan_of(TASKS), Path("/tmp"))
        await stage.wait(lambda state: True if sum(bool(a.pid) for _, a in state.live_attempts()) == TASKS else None)
        for number in random.Random(seed).sample(range(TASKS), samples):
            found.append(await kill_one(stage, TaskId(f"{plan}/t{number}")))
            await stage.wait(_all_up)
    return found


def _all_up(state: State) -> bool | None:
    return True if all(agent.worker and agent.status.value in ("idle", "busy") for agent in state.agents.values()) else None


def main() -> None:
    options = arguments(__doc__)
    rounds, kills = (1, 6) if options.quick else (6, 12)
    samples = rounds * kills
    busy = wait_quiet()
    found = [each for seed in range(rounds) for each in asyncio.run(ours(kills, seed))]
    times = {"seen": [seen for seen, _ in found], "running": [again for _, again in found]}
    own = {name: {"p50": percentile(values, 0.5), "p99": percentile(values, 0.99), "max": max(values)} for name, values in times.items()}
    show(
        "recovery",
        "s",
        "p99: seen <= 1 s, running again <= 2 s",
        all(own[name]["p99"] <= bar for name, bar in BARS_S.items()),
        {"ours": f"{samples} x kill -9 of a worker with a task in hand, {AGENTS} agents"},
        ours=own,
        peer=None,
        ratio={name: own[name]["p99"] / bar for name, bar in BARS_S.items()},
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
