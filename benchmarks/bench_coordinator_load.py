"""What the coordinator costs while 200 agents are busy and print 2,000 lines a second between them: CPU, memory, and whether memory grows."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

from support import arguments, cpu_seconds, median, orchestra, resident_bytes, show, wait_quiet

from orchestra.testing.hosted import processes_of

BARS = {"cpu_percent": 25.0, "rss_mib": 150.0, "growth_percent": 5.0}
SAMPLE_S = 1.0
PRINTER = """
import os, sys, time
period, count = float(sys.argv[1]), 0
while True:
    count += 1
    os.write(1, b"line %d of an agent at work, as long as such lines are: it reads a file, thinks, and says so\\n" % count)
    time.sleep(period)
"""


def plan_of(agents: int, period_s: float, script: Path) -> str:
    """A task an agent that prints a line each period until it is stopped."""
    lines = ["name: load", "tasks:"]
    lines += [
        f"  - {{id: t{number}, run: 'exec {sys.executable} -I -S {script} {period_s}', description: prints number {number}}}"
        for number in range(agents)
    ]
    return "\n".join(lines)


async def ours(agents: int, seconds: float) -> dict[str, list[float]]:
    """Samples of CPU share and memory of this process, which is the coordinator, and of the courier."""
    samples: dict[str, list[float]] = {"cpu": [], "rss": [], "courier_cpu": []}
    async with orchestra(agents) as stage:
        script = stage.root.path / "printer.py"
        script.write_text(PRINTER)
        await stage.submit(plan_of(agents, agents / 2000, script), Path("/tmp"))
        await stage.wait(lambda state: True if sum(bool(a.pid) for _, a in state.live_attempts()) == agents else None)
        await asyncio.sleep(5)
        courier = next(pid for pid, command in processes_of(stage.root.path).items() if "orchestra_stage.courier" in command)
        end = time.monotonic() + seconds
        last, cpu, courier_cpu = time.monotonic(), cpu_seconds(), cpu_seconds(courier)
        while last < end:
            await asyncio.sleep(SAMPLE_S)
            moment, used, used_there = time.monotonic(), cpu_seconds(), cpu_seconds(courier)
            samples["cpu"].append((used - cpu) / (moment - last))
            samples["courier_cpu"].append((used_there - courier_cpu) / (moment - last))
            samples["rss"].append(float(resident_bytes()))
            last, cpu, courier_cpu = moment, used, used_there
        printed = sum(path.stat().st_size for path in stage.root.path.glob("nodes/*/attempts/*/*/*/output.jsonl"))
        samples["printed_mib"] = [printed / 2**20]
    return samples


def main() -> None:
    options = arguments(__doc__, ("--minutes", {"type": float, "default": 1.0, "help": "how long to look; 30 for the whole measurement"}))
    agents, seconds = (50, 10.0) if options.quick else (200, options.minutes * 60)
    busy = wait_quiet()
    samples = asyncio.run(ours(agents, seconds))
    rss, quarter = samples["rss"], max(1, len(samples["rss"]) // 4)
    early, late = median(rss[quarter : 2 * quarter] or rss), median(rss[-quarter:])
    own = {
        "cpu_percent": 100 * sum(samples["cpu"]) / len(samples["cpu"]),
        "rss_mib": max(rss) / 2**20,
        "growth_percent": 100 * (late - early) / early,
    }
    show(
        "coordinator_load",
        "% of a core, MiB",
        "CPU <= 25 % of a core, RSS <= 150 MiB, flat",
        all(own[name] <= bar for name, bar in BARS.items()),
        {"ours": f"{agents} agents busy for {seconds:.0f} s, 2,000 lines/s in all"},
        ours=own,
        peer=None,
        ratio={name: own[name] / bar for name, bar in BARS.items()},
        courier_cpu_percent=100 * sum(samples["courier_cpu"]) / len(samples["courier_cpu"]),
        printed_mib=samples["printed_mib"][0],
        seconds=seconds,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
