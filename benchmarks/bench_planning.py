"""Planning: from the text of a plan to its first tasks in the queue, for 10,000 and 100,000 tasks."""

from __future__ import annotations

import random
import time
from pathlib import Path

from support import arguments, median, show, wait_quiet

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Worker
from orchestra.engine.kernel import Kernel
from orchestra.ids import AgentId, NodeId, PlanId
from orchestra.intake.planfile import parse_plan

BAR_S = 1.0
BAR_LARGE_S = 12.0
NODE = NodeId("local")


def plan_text(tasks: int) -> str:
    """A plan in layers of a hundred; a task needs up to three of the layer before its own."""
    draw = random.Random(7)
    lines = ["name: big", "tasks:"]
    for number in range(tasks):
        above = range(max(0, (number // 100 - 1) * 100), number // 100 * 100)
        needs = ", ".join(f"t{need}" for need in sorted(draw.sample(above, min(len(above), draw.randint(0, 3)))))
        lines.append(
            f"  - {{id: t{number}, run: 'true', description: task {number}, estimated_seconds: {draw.randint(1, 900)}, needs: [{needs}]}}"
        )
    return "\n".join(lines) + "\n"


def fleet() -> Kernel:
    """A kernel with eight idle agents."""
    kernel = Kernel(c.Policy())
    agents = tuple(AgentSpec(AgentId(number), NODE) for number in range(1, 9))
    for command in (
        c.TakeLead(1, 1, "host", "0"),
        c.Init("bench", (NodeSpec(NODE),), agents),
        c.NodeUp(NODE, "boot", "session"),
        *(c.WorkerSeen(agent.id, Worker(1000 + agent.id, 1)) for agent in agents),
    ):
        kernel.take(command, 1)
    kernel.schedule(1)
    kernel.committed()
    return kernel


def once(tasks: int) -> dict[str, float]:
    """Seconds of each part."""
    text, kernel = plan_text(tasks), fleet()
    started = time.perf_counter()
    document = parse_plan(text, source="plan.yaml", directory=str(Path("/tmp")))
    specs = document.specs(PlanId("big"))
    parsed = time.perf_counter()
    kernel.take(c.Submit(specs, document.head(PlanId("big"))), 2)
    kernel.schedule(2)
    queued = time.perf_counter()
    kernel.batch("bench", 1)
    encoded = time.perf_counter()
    if len(kernel.state.tasks) != tasks or len(kernel.state.live) != 8:
        raise RuntimeError("the plan was not taken")
    return {"parse": parsed - started, "order_rank_queue": queued - parsed, "encode": encoded - queued, "all": queued - started}


def main() -> None:
    options = arguments(__doc__)
    small, large, rounds = (2_000, 20_000, 1) if options.quick else (10_000, 100_000, 3)
    busy = wait_quiet()
    few = [once(small) for _ in range(max(3, rounds))]
    many = [once(large) for _ in range(rounds)]
    own, own_large = median([each["all"] for each in few]), median([each["all"] for each in many])
    share = small / 10_000
    show(
        "planning",
        "s",
        f"10,000 tasks <= {BAR_S} s; 100,000 <= {BAR_LARGE_S} s",
        own <= BAR_S * share and own_large <= BAR_LARGE_S * share,
        {"ours": "parse_plan, then Kernel.take(Submit) and Kernel.schedule: order, ranks, queue"},
        ours={str(small): own, str(large): own_large},
        peer=None,
        ratio=own_large / own,
        parts={str(small): few[-1], str(large): many[-1]},
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
