"""HEFT of anrg-saga, without communication costs, as for ours. Reads [[name, plan, speeds], ...] from a file; prints the makespans in seconds."""

import json
import sys
from pathlib import Path

from saga import Network, TaskGraph
from saga.schedulers.heft import HeftScheduler

NOTHING = 1e-9
"""Size of what is handed from task to task; nought would divide by nought in some graphs."""
FAST = 1e9


def makespan(plan: dict[str, tuple[float, list[str]]], speeds: list[float]) -> float:
    names = [f"a{number}" for number in range(len(speeds))]
    network = Network.create(
        nodes=list(zip(names, speeds, strict=True)),
        edges=[(one, other, FAST) for index, one in enumerate(names) for other in names[index:]],
    )
    graph = TaskGraph.create(
        tasks=[(name, cost) for name, (cost, _) in plan.items()],
        dependencies=[(need, name, NOTHING) for name, (_, needs) in plan.items() for need in needs],
    )
    return float(HeftScheduler().schedule(network, graph).makespan)


def main() -> None:
    cases = json.loads(Path(sys.argv[1]).read_text())
    print(json.dumps([makespan(plan, speeds) for _, plan, speeds in cases]))


main()
