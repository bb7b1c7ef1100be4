"""Tasks a second: 2,000 `true` through 50 windows with every transition durable, against HyperQueue and GNU parallel."""

from __future__ import annotations

import asyncio
import os
import subprocess
import time
from pathlib import Path

from support import (
    HYPERQUEUE,
    Unavailable,
    arguments,
    cpu_seconds,
    debian_program,
    median,
    orchestra,
    run_peer,
    scratch,
    show,
    wait_quiet,
)

AGENTS = 50
BAR = 2.0


def plan_of(tasks: int) -> str:
    """A plan file of independent tasks."""
    return "name: throughput\ntasks:\n" + "".join(
        f"  - {{id: t{number}, run: 'true', description: number {number}}}\n" for number in range(tasks)
    )


async def ours(tasks: int, agents: int) -> tuple[float, float]:
    """Returns tasks a second from the submission to the last end, and the coordinator's CPU in milliseconds a task."""
    async with orchestra(agents) as stage:
        text = plan_of(tasks)
        cpu = cpu_seconds()
        started = time.perf_counter()
        plan = await stage.submit(text, Path("/tmp"))
        ended = await stage.wait_plan(plan)
        took = time.perf_counter() - started
        if ended != "completed":
            raise RuntimeError(f"the plan {ended}")
        return tasks / took, (cpu_seconds() - cpu) * 1000 / tasks


def hyperqueue(tasks: int) -> float:
    """Tasks a second of HyperQueue with a worker as wide as the machine, its default. It keeps no journal then, so nothing is durable.

    Three times as many tasks, because its client looks for the end of a job only once a second.
    """
    with scratch() as folder:
        cores = os.cpu_count() or 1
        found = run_peer(HYPERQUEUE, "hyperqueue_tasks.py", 3 * tasks, cores, environment={"TMPDIR": str(folder)})
    return float(found["tasks_per_second"])


def parallel(program: str, tasks: int) -> float:
    """Tasks a second of GNU parallel with eight jobs at a time."""
    lines = "".join(f"{number}\n" for number in range(tasks)).encode()
    with scratch() as folder:
        environment = {**os.environ, "TMPDIR": str(folder)}
        started = time.perf_counter()
        subprocess.run(
            [program, "-j8", "true"], input=lines, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=environment, check=True
        )
        return tasks / (time.perf_counter() - started)


def main() -> None:
    options = arguments(__doc__)
    tasks, rounds = (500, 2) if options.quick else (2000, 5)
    busy = wait_quiet()
    program = debian_program("parallel", "parallel")
    own: list[tuple[float, float]] = []
    peers: dict[str, list[float]] = {"hyperqueue": [], "parallel": []}
    why = ""
    for _ in range(rounds):
        own.append(asyncio.run(ours(tasks, AGENTS)))
        peers["parallel"].append(parallel(program, tasks))
        try:
            peers["hyperqueue"].append(hyperqueue(tasks))
        except Unavailable as reason:
            why = str(reason)
    rate = median([each for each, _ in own])
    figures = {name: median(values) for name, values in peers.items() if values}
    ratios = {name: rate / value for name, value in figures.items()}
    show(
        "throughput",
        "tasks/s",
        f">= {BAR} x each",
        len(ratios) == len(peers) and min(ratios.values()) >= BAR,
        {
            "ours": f"plan of {tasks} tasks `true` on {AGENTS} windows",
            "parallel": f"seq {tasks} | parallel -j8 true",
            "hyperqueue": f"{3 * tasks} programs `true`, LocalCluster with one worker",
        },
        ours=rate,
        peer=figures,
        ratio=ratios,
        all_ours=[each for each, _ in own],
        all_peers=peers,
        coordinator_cpu_ms_a_task=median([cpu for _, cpu in own]),
        busy_before=busy,
        why=why,
    )


if __name__ == "__main__":
    main()
