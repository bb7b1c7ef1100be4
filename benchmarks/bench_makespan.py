"""Makespan of our scheduler on WfCommons recipes, agents of unequal speed, against HEFT and against the bound that nobody beats.

Time is virtual: the engine's kernel decides, a task takes its estimate over the speed of its agent. HEFT plans the same case as a whole.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Mapping, Sequence
from heapq import heappop, heappush
from pathlib import Path
from typing import Any

from support import SAGA, WFCOMMONS, arguments, median, run_peer, scratch, show

from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Payload, TaskSpec, Worker
from orchestra.engine.kernel import Kernel
from orchestra.ids import AgentId, AttemptId, NodeId, PlanId, TaskId
from orchestra.scheduling.rank import upward_ranks

BARS = {"mean": 1.00, "max": 1.10}
NODE = NodeId("local")
PLAN = PlanId("p")
WEIGHTS = (50, 100, 150, 200, 300, 400)
Plan = Mapping[str, tuple[float, Sequence[str]]]


def specs_of(plan: Plan) -> tuple[TaskSpec, ...]:
    """The tasks, with milliseconds as estimates."""
    names = {name: TaskId(f"p/t{number}") for number, name in enumerate(plan)}
    return tuple(
        TaskSpec(
            names[name],
            f"does {number}",
            payload=Payload("command", "true"),
            plan=PLAN,
            needs=tuple(names[need] for need in needs),
            estimate_ms=milliseconds(seconds),
        )
        for number, (name, (seconds, needs)) in enumerate(plan.items())
    )


def milliseconds(seconds: float) -> int:
    """Whole milliseconds, at least one."""
    return max(1, round(seconds * 1000))


def ours(plan: Plan, weights: Sequence[int]) -> tuple[int, float]:
    """Returns the makespan in milliseconds, and the seconds of CPU that the kernel took."""
    kernel, started = Kernel(c.Policy()), time.process_time()
    agents = tuple(AgentSpec(AgentId(number), NODE, weight=weight) for number, weight in enumerate(weights, 1))
    for command in (
        c.TakeLead(1, 1, "host", "0"),
        c.Init("bench", (NodeSpec(NODE),), agents),
        c.NodeUp(NODE, "boot", "session"),
        *(c.WorkerSeen(agent.id, Worker(1000 + agent.id, 1)) for agent in agents),
    ):
        kernel.take(command, 0)
    kernel.take(c.Submit(specs_of(plan), c.PlanHead(PLAN, "p", "digest")), 0)
    running: list[tuple[int, AttemptId]] = []
    now, known = 0, set[AttemptId]()
    while True:
        kernel.schedule(now)
        for attempt_id, attempt in kernel.state.live_attempts():
            if attempt_id not in known:
                known.add(attempt_id)
                work = kernel.state.tasks[attempt_id.task].spec.estimate_ms
                heappush(running, (now + max(1, work * 100 // weights[attempt.agent - 1]), attempt_id))
        kernel.committed()
        if not running:
            break
        now = running[0][0]
        while running and running[0][0] <= now:
            attempt_id = heappop(running)[1]
            kernel.take(c.AttemptFinished(attempt_id.task, attempt_id.number, Outcome(OutcomeKind.DONE)), now)
    if kernel.state.plans[PLAN].open:
        raise RuntimeError("the plan did not end")
    return now, time.process_time() - started


def lower_bound_ms(plan: Plan, weights: Sequence[int]) -> float:
    """Longest path on the fastest agent, or all work over all agents: no schedule is shorter."""
    specs = specs_of(plan)
    path = max(upward_ranks(_ordered(specs), lambda spec: spec.estimate_ms).values()) * 100 / max(weights)
    return max(path, sum(spec.estimate_ms for spec in specs) * 100 / sum(weights))


def _ordered(specs: Sequence[TaskSpec]) -> list[TaskSpec]:
    left, ordered, done = list(specs), [], set[TaskId]()
    while left:
        ready = [spec for spec in left if all(need in done for need in spec.needs)]
        ordered += ready
        done.update(spec.id for spec in ready)
        left = [spec for spec in left if spec.id not in done]
    return ordered


def cases(sizes: Sequence[int], fleets: Sequence[int], seeds: int) -> list[tuple[str, Plan, list[int]]]:
    """Every workflow with every fleet."""
    plans = [(name, plan) for name, plan in run_peer(WFCOMMONS, "wfcommons_plans.py", *sizes)]
    found = []
    for seed in range(seeds):
        for name, plan in plans:
            for agents in fleets:
                draw = random.Random(1000 * agents + seed)
                found.append((f"{name}/{agents}/{seed}", plan, [draw.choice(WEIGHTS) for _ in range(agents)]))
    return found


def heft(asked: Sequence[tuple[str, Plan, list[int]]]) -> list[float]:
    """Makespans in milliseconds by the peer, which gets the milliseconds that we get."""
    values = [
        (name, {task: (milliseconds(cost), needs) for task, (cost, needs) in plan.items()}, [w / 100 for w in ws])
        for name, plan, ws in asked
    ]
    with scratch() as folder:
        path = Path(folder) / "cases.json"
        path.write_text(json.dumps(values))
        return [float(each) for each in run_peer(SAGA, "heft_makespans.py", path, timeout_s=3000)]


def main() -> None:
    options = arguments(__doc__)
    asked = cases((50,), (4, 16), 1) if options.quick else cases((50, 250, 1000), (4, 16, 64), 1)
    own = [ours(plan, weights) for _, plan, weights in asked]
    peer = heft(asked)
    bounds = [lower_bound_ms(plan, weights) for _, plan, weights in asked]
    ratios = {name: mine / theirs for (name, _, _), (mine, _), theirs in zip(asked, own, peer, strict=True)}
    figures: dict[str, Any] = {"mean": sum(ratios.values()) / len(ratios), "max": max(ratios.values())}
    show(
        "makespan",
        "x HEFT",
        "mean <= 1.00, never > 1.10",
        all(round(figures[name], 3) <= bar for name, bar in BARS.items()),
        {"ours": "Kernel in virtual time", "peer": "anrg-saga HeftScheduler, nothing to transfer"},
        ours=figures,
        peer=1.0,
        ratio=figures,
        median=median(list(ratios.values())),
        worst=sorted(ratios.items(), key=lambda item: -item[1])[:5],
        best=sorted(ratios.items(), key=lambda item: item[1])[:5],
        cases=len(asked),
        over_lower_bound={
            "ours": sum(mine / bound for (mine, _), bound in zip(own, bounds, strict=True)) / len(asked),
            "peer": sum(theirs / bound for theirs, bound in zip(peer, bounds, strict=True)) / len(asked),
        },
        kernel_ms_a_task=1000 * sum(cpu for _, cpu in own) / sum(len(plan) for _, plan, _ in asked),
    )


if __name__ == "__main__":
    main()
