"""From ready to running on an idle orchestra, against fork + exec of `true`.

The task writes a byte into a pipe as its first act, so the figure runs from the request, which is decided, made durable, assigned and delivered
on the way, to the moment the process has started. A fork + exec runs to the end of `true`.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import time

from support import PEERS, arguments, median, orchestra, percentile, scratch, show, wait_quiet

from orchestra.intake import fields
from orchestra.intake.request import SubmitTaskParams

BARS = (20.0, 100.0)


async def ours(samples: int) -> list[float]:
    """Seconds from the request to the task's first act, one task at a time."""
    times = []
    with scratch() as folder:
        pipe = folder / "pipe"
        os.mkfifo(pipe)
        read_end = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
        keep_open = os.open(pipe, os.O_WRONLY)
        try:
            async with orchestra(8) as stage:
                for number in range(samples + 5):
                    params = SubmitTaskParams(
                        description=f"writes a byte, number {number}",
                        task_id=f"t{number}",
                        payload=fields.PayloadFields(type="command", content=f"printf x > {pipe}"),
                    )
                    arrived = asyncio.get_running_loop().create_future()
                    asyncio.get_running_loop().add_reader(read_end, _note, read_end, arrived)
                    started = time.perf_counter()
                    await stage.app.submit_task(params)
                    times.append(await arrived - started)
                    await stage.wait_status(f"t{number}", "completed")
        finally:
            os.close(read_end)
            os.close(keep_open)
    return times[5:]


def _note(fd: int, arrived: asyncio.Future[float]) -> None:
    os.read(fd, 100)
    asyncio.get_running_loop().remove_reader(fd)
    arrived.set_result(time.perf_counter())


def fork_exec(samples: int) -> list[float]:
    """Seconds to start `true` and to wait for its end, from a process that is as small as Python gets."""
    argv = [sys.executable, "-I", "-S", str(PEERS / "fork_exec.py"), str(samples)]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    return [float(each) for each in json.loads(done.stdout)]


def main() -> None:
    options = arguments(__doc__)
    samples = 50 if options.quick else 300
    busy = wait_quiet()
    peer = fork_exec(samples)
    own = asyncio.run(ours(samples))
    peer += fork_exec(samples)
    base = median(peer)
    ratios = {"p50": percentile(own, 0.5) / base, "p99": percentile(own, 0.99) / base}
    show(
        "latency",
        "ms",
        f"p50 <= {BARS[0]:.0f} x, p99 <= {BARS[1]:.0f} x the median fork + exec",
        ratios["p50"] <= BARS[0] and ratios["p99"] <= BARS[1],
        {"ours": f"{samples} x submit_task, one at a time, 8 agents idle", "peer": f"{2 * samples} x fork, execv('true'), waitpid"},
        ours={"p50": percentile(own, 0.5) * 1000, "p99": percentile(own, 0.99) * 1000, "max": max(own) * 1000},
        peer={"p50": base * 1000, "p99": percentile(peer, 0.99) * 1000},
        ratio=ratios,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
