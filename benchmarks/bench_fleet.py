"""The fleet's figures on two machines in miniature, reached by SSH: start, sweep, deaths, a cut link, idle cost. Needs root, for the namespaces.

`--cut-seconds 300` is the long partition of one of the two; a run without it cuts for ten seconds.
"""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from support import arguments, cpu_seconds, median, orchestra, percentile, scratch, show, wait_quiet

from orchestra.core.model import AgentStatus, NodeStatus, TaskStatus
from orchestra.core.state import State
from orchestra.ids import NodeId
from orchestra.intake.request import InitParams
from orchestra.testing.hosted import Stage, hosted, wait_until
from orchestra.testing.lab import Lab, LabNode

BARS = {
    "init_s": 5.0,
    "init_ratio": 1.5,
    "sweep_ms": 100.0,
    "death_seen_s": 1.0,
    "death_recovered_s": 3.0,
    "window_recovered_s": 3.0,
    "loss_seen_keepalives": 3.0,
    "caught_up_s": 2.0,
    "idle_cpu_percent": 3.0,
}
KEEPALIVE_S = 1.0
NODES = ("mugen", "majin")
FAR = NodeId("majin")
UP = (AgentStatus.IDLE, AgentStatus.BUSY)


@asynccontextmanager
async def fleet(flags: dict[str, str] | None = None) -> AsyncIterator[tuple[Stage, Lab]]:
    """An orchestra over a lab of two machines, not initialised yet."""
    with scratch() as folder, Lab(folder / "lab", NODES) as lab, lab.inside():
        root = folder / "root"
        (root / "config").mkdir(parents=True)
        (root / "config" / "orchestra.yaml").write_text(lab.settings_yaml())
        settings = {"ssh.config_file": str(lab.ssh_config), "ssh.keepalive_seconds": str(KEEPALIVE_S), **(flags or {})}
        async with hosted(root, flags=settings) as stage:
            yield stage, lab


async def init_s(agents: int) -> tuple[float, float]:
    """Seconds from the request until all agents are ready: on the two machines, and on this one alone."""
    async with fleet() as (stage, _):
        started = time.perf_counter()
        await stage.app.init(InitParams(agent_count=agents))
        there = time.perf_counter() - started
    async with orchestra() as stage:
        started = time.perf_counter()
        await stage.app.init(InitParams(agent_count=agents))
        return there, time.perf_counter() - started


def workers(node: LabNode) -> list[int]:
    """The workers on a machine, by pid as seen from outside."""
    return sorted(pid for pid, line in node.processes().items() if ".worker import" in line)


def windows(node: LabNode) -> int:
    """Windows of agents on a machine."""
    script = 'for s in /tmp/orchestra-*/*/tmux.sock; do tmux -S "$s" list-windows -a -F "#{window_name}" 2>/dev/null; done | grep -c agent- || true'
    return int(node.run(["sh", "-c", script]).stdout)


async def timed(stage: Stage, question: Callable[[State], Any]) -> float:
    """Seconds until the state answers."""
    started = time.perf_counter()
    await stage.wait(question)
    return time.perf_counter() - started


async def small(stage: Stage, lab: Lab, kills: int) -> dict[str, Any]:
    """Sweep, deaths of workers and windows."""
    sweeps = []
    for _ in range(9):
        started = time.perf_counter()
        await asyncio.gather(*(driver.sweep() for driver in stage.coordinator._drivers.values()))
        sweeps.append((time.perf_counter() - started) * 1000)
    seen, recovered = [], []
    for pid in workers(lab.nodes["majin"])[:kills]:
        before = sum(agent.falls + agent.completed for agent in stage.coordinator.loop.state.agents.values())
        os.kill(pid, signal.SIGKILL)
        seen.append(await timed(stage, lambda s, b=before: True if sum(a.falls + a.completed for a in s.agents.values()) > b else None))
        recovered.append(seen[-1] + await timed(stage, all_up))
    before_windows = windows(lab.nodes["majin"])
    script = 'for s in /tmp/orchestra-*/*/tmux.sock; do tmux -S "$s" kill-window -t "$(tmux -S "$s" list-windows -a -F "#{window_id} #{window_name}" | sed -n "s/ agent-.*//p" | head -1)"; done'
    lab.nodes["majin"].run(["sh", "-c", script])
    started = time.perf_counter()
    await wait_until(lambda: windows(lab.nodes["majin"]) == before_windows)
    return {
        "sweep_ms": median(sweeps),
        "death_seen_s": percentile(seen, 0.99),
        "death_recovered_s": percentile(recovered, 0.99),
        "window_recovered_s": time.perf_counter() - started,
    }


def all_up(state: State) -> bool | None:
    """Whether every agent has a worker that answers."""
    return True if all(agent.status in UP and agent.worker for agent in state.agents.values()) else None


async def idle_cpu(seconds: float) -> float:
    """CPU of this process, which is the coordinator, as a share of one core in percent."""
    await asyncio.sleep(2)
    before, started = cpu_seconds(), time.perf_counter()
    await asyncio.sleep(seconds)
    return (cpu_seconds() - before) / (time.perf_counter() - started) * 100


async def partition(stage: Stage, lab: Lab, seconds: float, tasks: int) -> dict[str, Any]:
    """Cuts one of the two machines off in mid-run; what is completed, what twice, and how long the catching up takes."""
    lines = "\n".join(f"  - {{id: t{n}, run: 'echo $ORCHESTRA_TASK >> ~/ran; sleep 1'}}" for n in range(tasks))
    plan = await stage.submit(f"name: cut\nworkspace: /tmp\ntasks:\n{lines}\n", Path("/tmp"))
    await stage.wait(lambda state: True if any(a.started_ms and a.node == FAR for _, a in state.live_attempts()) else None)
    lab.nodes["majin"].cut()
    cut = time.perf_counter()
    loss_seen = await timed(stage, lambda state: True if state.nodes[FAR].status is NodeStatus.LOST else None)
    await asyncio.sleep(max(0.0, seconds - (time.perf_counter() - cut)))
    size = int(lab.nodes["majin"].run(["sh", "-c", "cat ~/.local/state/orchestra/*/majin/journal | wc -c"]).stdout)
    lab.nodes["majin"].heal()
    caught_up = await timed(stage, lambda state: True if state.nodes[FAR].journal_offset >= size else None)
    async with asyncio.timeout(600):
        await stage.app.wait_for(lambda state: True if not state.plans[plan].open else None)  # type: ignore[index]
    done = [task for task in stage.coordinator.loop.state.tasks.values() if task.status is TaskStatus.COMPLETED]
    twice = [t for t in done if sum(a.outcome is not None and a.outcome.kind.value == "done" for a in t.attempts) > 1]
    return {
        "loss_seen_keepalives": loss_seen / KEEPALIVE_S,
        "caught_up_s": caught_up,
        "completed_percent": 100 * len(done) / tasks,
        "accepted_twice": len(twice),
        "stale_results": stage.coordinator.loop.state.totals.stale,
    }


async def ours(options: Any, agents: int) -> dict[str, Any]:
    """Everything on one fleet, but for the start."""
    long = options.cut_seconds > 60
    grace = {"limits.unknown_grace_seconds": "60"} if long else {}
    async with fleet(grace) as (stage, lab):
        await stage.app.init(InitParams(agent_count=agents))
        found = await small(stage, lab, 3 if options.quick else 20)
        found["idle_cpu_percent"] = await idle_cpu(3 if options.quick else 30)
        found |= await partition(stage, lab, options.cut_seconds, 200 if options.quick else 1000)
    return found


def main() -> None:
    options = arguments(__doc__, ("--cut-seconds", {"type": float, "default": 10.0, "help": "length of the partition"}))
    agents = 20 if options.quick else 200
    busy = wait_quiet()
    starts = [asyncio.run(init_s(agents)) for _ in range(1 if options.quick else 3)]
    there, here = median([each[0] for each in starts]), median([each[1] for each in starts])
    own: dict[str, Any] = {"init_s": there, "init_local_s": here, "init_ratio": there / here, **asyncio.run(ours(options, agents))}
    met = all(own[name] <= bar for name, bar in BARS.items()) and own["completed_percent"] == 100 and not own["accepted_twice"]
    show(
        "fleet",
        "",
        ", ".join(f"{name} <= {bar:g}" for name, bar in BARS.items()) + ", 100 % completed, none accepted twice",
        met,
        {"ours": f"{agents} agents on 2 machines over SSH, cut for {options.cut_seconds:g} s, keepalive {KEEPALIVE_S:g} s"},
        ours=own,
        peer=None,
        ratio={name: own[name] / bar for name, bar in BARS.items()},
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
