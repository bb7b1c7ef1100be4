"""An orchestra on the machines of a lab, and what must be true of it in the end.

Tasks say that they ran in a file of their machine's home and then wait for the gate there, so that a test decides when they go on.
"""

from __future__ import annotations

import ctypes
import os
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path

from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus, TaskStatus
from orchestra.core.state import AgentState, State
from orchestra.ids import NodeId
from orchestra.testing.hosted import Stage, hosted, wait_until
from orchestra.testing.lab import Lab

WAIT = "[ -e ~/gate ] || { mkfifo ~/shut 2>/dev/null; : < ~/shut; }"
"""Blocks until the gate is open. A look at intervals, by two hundred tasks, would leave no processor to what is tested."""
TASK = f'echo "$ORCHESTRA_TASK#$ORCHESTRA_ATTEMPT" >> ~/ran; {WAIT}'
OPEN = "touch ~/gate; mkfifo ~/shut 2>/dev/null; exec >/dev/null 2>&1; sleep 30 3<>~/shut &"
"""Whoever waits goes on as soon as somebody has the pipe open for writing; it stays so for those who just saw no gate."""
QUICK: Mapping[str, str] = {
    "ssh.keepalive_seconds": "0.3",
    "tasks.retry_backoff_seconds": "0.1",
    "tasks.grace_seconds": "0.5",
    "monitoring.health_check_interval": "5",
}


class Fleet:
    """One orchestra over a lab."""

    def __init__(self, stage: Stage, lab: Lab, folder: Path) -> None:
        self.stage = stage
        self.lab = lab
        self._folder = folder

    @property
    def state(self) -> State:
        return self.stage.coordinator.loop.state

    async def submit(self, tasks: int, *, name: str = "p", run: str = TASK, more: str = "") -> str:
        """Submits a plan of equal tasks."""
        lines = "\n".join(f"  - {{id: t{number}, run: '{run}'{more}}}" for number in range(tasks))
        return await self.stage.submit(f"name: {name}\nworkspace: /tmp\ntasks:\n{lines}\n", self._folder)

    async def wait_running(self, count: int) -> None:
        """Waits until so many attempts run."""
        await self.stage.wait(lambda state: True if sum(a.started_ms > 0 for _, a in state.live_attempts()) >= count else None)

    async def wait_node(self, node: str, *statuses: NodeStatus) -> None:
        """Waits until the node is in one of these states."""
        await self.stage.wait(lambda state: True if state.nodes[NodeId(node)].status in statuses else None)

    async def wait_all_up(self) -> None:
        """Waits until every agent has a worker."""
        await self.stage.wait(lambda state: True if all(map(is_up, state.agents.values())) else None)

    async def wait_scaled(self, count: int) -> None:
        """Waits until a scaling to that many agents is over."""
        await self.stage.wait(lambda state: True if len(state.agents) == count and state.lifecycle is not Lifecycle.SCALING else None)

    def open_gate(self, *nodes: str) -> None:
        """Lets the tasks on these machines (or all) go on, those that come later too."""
        for name in nodes or self.lab.nodes:
            self.lab.nodes[name].run(["sh", "-c", OPEN])

    def ran(self) -> Counter[str]:
        """Returns how often each attempt began, as the tasks themselves told."""
        found: Counter[str] = Counter()
        for node in self.lab.nodes.values():
            found.update(node.run(["sh", "-c", "cat ~/ran 2>/dev/null || true"]).stdout.split())
        return found

    def on_node(self, node: str) -> list[AgentState]:
        """Returns the slots of a node."""
        return self.state.agents_on(NodeId(node))

    async def wait_completed(self, plan: str) -> None:
        """Waits for the plan's end and checks that every task was completed exactly once, by an attempt that really ran."""
        assert await self.stage.wait_plan(plan) == "completed"
        ran = self.ran()
        assert max(ran.values()) == 1, "an order was carried out twice"
        for name, task in self.state.tasks.items():
            if task.spec.plan == plan:
                assert task.status is TaskStatus.COMPLETED
                assert ran[f"{name}#{task.primary}"] == 1
                assert sum(a.outcome is not None and a.outcome.kind.value == "done" for a in task.attempts) == 1

    async def wait_idle(self, node: str) -> None:
        """Waits until nothing of a task is left on the machine."""
        await wait_until(lambda: not any("ORCHESTRA" in line for line in self.lab.nodes[node].processes().values()))


def is_up(agent: AgentState) -> bool:
    """Tells whether the slot has a worker that answers."""
    return agent.status in (AgentStatus.IDLE, AgentStatus.BUSY)


@asynccontextmanager
async def fleet(
    lab: Lab,
    folder: Path,
    *,
    agents: int | None = 6,
    max_agents: int = 100,
    flags: Mapping[str, str] | None = None,
    extra: str = "",
    end: bool = True,
) -> AsyncIterator[Fleet]:
    """Runs an orchestra on the lab's machines, ends it, and checks its books and that nothing of it stays on the machines. Without `end` its
    coordinator goes and everything else stays."""
    root = folder / "root"
    (root / "config").mkdir(parents=True, exist_ok=True)
    (root / "config" / "orchestra.yaml").write_text(lab.settings_yaml(max_agents=max_agents, extra=extra))
    settings = {**QUICK, "ssh.config_file": str(lab.ssh_config), **(flags or {})}
    with lab.inside():
        async with hosted(root, agents=agents, flags=settings, end=end) as stage:
            yield Fleet(stage, lab, folder)
        if not end:
            return
        try:
            await wait_until(lambda: not any(_of_ours(lab, name) for name in lab.nodes))
        except TimeoutError as late:
            raise AssertionError(f"still there: {[_of_ours(lab, name) for name in lab.nodes]}") from late


def _of_ours(lab: Lab, name: str) -> dict[int, str]:
    return {pid: line for pid, line in lab.nodes[name].processes().items() if "orchestra_stage" in line or "tmux.sock" in line}


def attempts_of(state: State, plan: str) -> list[int]:
    """Returns how many attempts each task of a plan took."""
    return [len(task.attempts) for task in state.tasks.values() if task.spec.plan == plan]


PTRACE_SEIZE, PTRACE_INTERRUPT, PTRACE_DETACH = 0x4206, 0x4207, 17
WALL = 0x40000000


@contextmanager
def hung(pid: int) -> Iterator[None]:
    """Keeps a process from doing anything meanwhile. SIGSTOP would not do: tmux continues what stops in its panes."""
    libc = ctypes.CDLL(None, use_errno=True)
    for request in (PTRACE_SEIZE, PTRACE_INTERRUPT):
        if libc.ptrace(request, pid, 0, 0):
            raise OSError(ctypes.get_errno(), "ptrace")
    os.waitpid(pid, WALL)
    try:
        yield
    finally:
        with suppress(ChildProcessError):
            if os.waitpid(pid, WALL | os.WNOHANG) == (0, 0):
                libc.ptrace(PTRACE_DETACH, pid, 0, 0)
