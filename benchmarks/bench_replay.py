"""Start with 1,000,000 events in the ledger: by replay of all of them, and from a snapshot."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import time
from pathlib import Path

from support import arguments, median, scratch, show, wait_quiet

from orchestra.bootstrap.coordinator import restore_kernel
from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.model import AgentSpec, NodeSpec, Outcome, OutcomeKind, Payload, TaskSpec, Worker
from orchestra.engine.kernel import Kernel
from orchestra.ids import AgentId, NodeId, PlanId, TaskId
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions

BARS_S = {"replay": 5.0, "snapshot": 1.0}
NODE = NodeId("local")
PLAN_TASKS = 1000
APPEND_EVENTS = 20_000


def open_ledger(path: Path) -> SqliteLedger:
    """The ledger as the coordinator opens it."""
    return SqliteLedger.open(path, SqliteOptions(), SystemClock())


class Author:
    """Writes the ledger of an orchestra that has been at work for long: plan after plan, every task assigned, begun and finished."""

    def __init__(self, path: Path, policy: c.Policy) -> None:
        self.ledger = open_ledger(path)
        self.term = self.ledger.claim_term()
        self.kernel = Kernel(policy)
        self.now_ms = 1_700_000_000_000
        self.tail_hash = b""
        agents = tuple(AgentSpec(AgentId(number), NODE) for number in range(1, 201))
        self.take(c.TakeLead(self.term, 1, "host", "0"), c.Init("bench", (NodeSpec(NODE),), agents), c.NodeUp(NODE, "boot", "session"))
        self.take(*(c.WorkerSeen(agent.id, Worker(1000 + agent.id, 1)) for agent in agents))

    def take(self, *commands: c.Command) -> None:
        """Decides and folds."""
        self.now_ms += 1
        for command in commands:
            self.kernel.take(command, self.now_ms)
        if self.kernel.pending >= APPEND_EVENTS:
            self.commit()

    def commit(self) -> None:
        """Appends what is pending."""
        self.tail_hash = self.ledger.append(self.kernel.batch(f"bench-{self.kernel.state.seq}", self.term)).hash
        self.kernel.committed()

    def plan(self, number: int) -> None:
        """One plan from its submission to its end."""
        name = PlanId(f"p.{number}")
        specs = tuple(_task(name, index) for index in range(PLAN_TASKS))
        self.take(c.Submit(specs, c.PlanHead(name, "p", "digest")))
        while self.kernel.state.plans[name].open:
            self.kernel.schedule(self.now_ms)
            live = [attempt_id for attempt_id, _ in self.kernel.state.live_attempts()]
            self.take(*(c.AttemptBegan(each.task, each.number, 4711, 1) for each in live))
            done = Outcome(OutcomeKind.DONE, duration_ms=1000, summary="done")
            self.take(*(c.AttemptFinished(each.task, each.number, done) for each in live), c.JournalAt(NODE, self.now_ms))


def _task(plan: PlanId, index: int) -> TaskSpec:
    needs = (TaskId(f"{plan}/t{index - 200}"),) if index >= 200 else ()
    payload = Payload("command", f"make target-{index}")
    return TaskSpec(TaskId(f"{plan}/t{index}"), f"makes target {index}", payload=payload, plan=plan, needs=needs)


def write(path: Path, events: int) -> int:
    """Writes the ledger; returns its number of events."""
    author = Author(path, c.Policy(tasks_max=10_000_000))
    number = 0
    while author.kernel.state.seq < events:
        number += 1
        author.plan(number)
    author.commit()
    author.ledger.close()
    return author.kernel.state.seq


def start(path: Path, *, keep: bool) -> tuple[float, int]:
    """Seconds to open the ledger and have the state, in a process that has done nothing else; with `keep` a snapshot is left."""
    gc.collect()
    started = time.perf_counter()
    ledger = open_ledger(path)
    kernel = restore_kernel(ledger, c.Policy())
    took = time.perf_counter() - started
    if keep:
        ledger.save_snapshot(kernel.snapshot(ledger.tail().hash))
    ledger.close()
    return took, kernel.state.seq


def in_new_process(path: Path, keep: bool) -> tuple[float, int]:
    """The same in a process of its own."""
    argv = [sys.executable, __file__, "--start", str(path), *(["--keep"] if keep else [])]
    done = subprocess.run(argv, stdout=subprocess.PIPE, check=True)
    took, seq = json.loads(done.stdout)
    return float(took), int(seq)


def main() -> None:
    options = arguments(
        __doc__,
        ("--start", {"type": Path, "help": "only start from this ledger"}),
        ("--keep", {"action": "store_true", "help": "and leave a snapshot"}),
    )
    if options.start:
        print(json.dumps(start(options.start, keep=options.keep)))
        return
    events, rounds = (100_000, 1) if options.quick else (1_000_000, 3)
    with scratch() as folder:
        path = folder / "ledger.db"
        count = write(path, events)
        busy = wait_quiet()
        replay = [in_new_process(path, False)[0] for _ in range(rounds)]
        in_new_process(path, True)
        snapshot = [in_new_process(path, False)[0] for _ in range(rounds)]
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    own = {"replay": median(replay), "snapshot": median(snapshot)}
    share = count / 1_000_000
    show(
        "replay",
        "s",
        "replay <= 5 s, snapshot <= 1 s",
        all(own[name] <= bar * share for name, bar in BARS_S.items()),
        {"ours": f"SqliteLedger.open and restore_kernel, {count} events, a new process each"},
        ours=own,
        peer=None,
        ratio={name: own[name] / (bar * share) for name, bar in BARS_S.items()},
        ledger_mib=size / 2**20,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
