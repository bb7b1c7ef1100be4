"""What the sandbox costs an attempt: one task at a time, from the request to its end, in a sandbox and without, in turns.

With it an attempt has its folders made, is run by bwrap, and has them removed again. The task is `true`: a coding agent takes seconds to start.
"""

from __future__ import annotations

import asyncio
import subprocess
import time

from support import arguments, debian_program, median, orchestra, percentile, show, wait_quiet

from orchestra.intake import fields
from orchestra.intake.request import SubmitTaskParams

BAR_MS = 50.0
"""A tenth of what the quickest of the coding agents takes to start."""
WARM_UP = 5


async def tasks(mode: str, count: int) -> list[float]:
    """Milliseconds from the request until the task is completed."""
    times = []
    async with orchestra(1, {"sandbox.mode": mode}) as stage:
        for number in range(count + WARM_UP):
            payload = fields.PayloadFields(type="command", content="true")
            started = time.perf_counter()
            await stage.app.submit_task(SubmitTaskParams(description="does nothing", task_id=f"t{number}", payload=payload))
            await stage.wait_status(f"t{number}", "completed")
            times.append((time.perf_counter() - started) * 1000)
    return times[WARM_UP:]


def bare(argv: list[str], count: int) -> list[float]:
    """Milliseconds of the program alone, which is the least that it can be."""
    times = []
    for _ in range(count):
        started = time.perf_counter()
        subprocess.run(argv, check=True)
        times.append((time.perf_counter() - started) * 1000)
    return times


def main() -> None:
    options = arguments(__doc__)
    count, rounds = (20, 1) if options.quick else (60, 3)
    bwrap = debian_program("bwrap", "bubblewrap")
    least = [bwrap, "--die-with-parent", "--unshare-pid", "--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "true"]
    busy = wait_quiet()
    inside, without = [], []
    for _ in range(rounds):
        without += asyncio.run(tasks("off", count))
        inside += asyncio.run(tasks("on", count))
    floor = median(bare(least, count)) - median(bare(["true"], count))
    added = median(inside) - median(without)
    show(
        "sandbox",
        "ms",
        f"adds <= {BAR_MS:.0f} ms to an attempt",
        added <= BAR_MS,
        {"ours": "a task `true`, sandbox.mode on", "peer": "the same, sandbox.mode off"},
        ours={"p50": median(inside), "p99": percentile(inside, 0.99)},
        peer={"p50": median(without), "p99": percentile(without, 0.99)},
        added=added,
        bwrap_alone_adds=floor,
        ratio=median(inside) / median(without),
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
