"""A real coordinator for tests: own root, own tmux server, and nothing left behind afterwards, by pid."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TypeVar

from orchestra.bootstrap.coordinator import Coordinator, restore_kernel
from orchestra.bootstrap.launch import load_settings
from orchestra.clocks.system import SystemClock
from orchestra.codec.state import encode_state
from orchestra.core import commands as c
from orchestra.core.invariants import check_invariants
from orchestra.core.state import State, TaskState
from orchestra.engine.kernel import Kernel
from orchestra.intake.request import InitParams, ShutdownParams
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.root import Root
from orchestra.usecases import PlanParams

T = TypeVar("T")
WAIT_S = 60.0
"""Longest a test waits for anything; a deadline, never a measure."""


class Stage:
    """One running coordinator and short ways to use it."""

    def __init__(self, coordinator: Coordinator) -> None:
        self.coordinator = coordinator
        self.app = coordinator.app
        self.root = coordinator.root

    async def submit(self, text: str, directory: Path) -> str:
        """Submits a plan file's text; returns the plan's id."""
        reply = await self.app.submit_plan(PlanParams(text=text, source="plan.yaml", directory=str(directory)))
        return reply.plan

    async def wait(self, question: Callable[[State], T | None]) -> T:
        """Returns the first answer that is not None."""
        async with asyncio.timeout(WAIT_S):
            return await self.app.wait_for(question)

    async def wait_plan(self, plan: str) -> str:
        """Waits until the plan is over; returns how it ended."""
        found: str = await self.wait(lambda state: _closed(state, plan))
        return found

    async def wait_status(self, task: str, *statuses: str) -> TaskState:
        """Waits until the task is in one of these states."""

        def answer(state: State) -> TaskState | None:
            found = next((each for name, each in state.tasks.items() if name == task), None)
            return found if found is not None and found.status.value in statuses else None

        return await self.wait(answer)

    async def crash(self) -> None:
        """Ends the coordinator as a kill would: no farewell to nodes or ledger beyond what is durable already."""
        await self.coordinator.stop()


def _closed(state: State, plan: str) -> str | None:
    found = next((each for name, each in state.plans.items() if name == plan), None)
    return found.status.value if found is not None and found.status.value != "running" else None


@asynccontextmanager
async def hosted(
    root: Path, *, agents: int | None = None, flags: Mapping[str, str] | None = None, end: bool = True
) -> AsyncIterator[Stage]:
    """Runs a coordinator; with `agents`, initialised. Ends the orchestra and checks its books unless told not to."""
    coordinator = Coordinator(Root(root), load_settings(root, dict(flags or {})), SystemClock())
    await coordinator.start()
    stage = Stage(coordinator)
    try:
        if agents is not None:
            await stage.app.init(InitParams(agent_count=agents))
        yield stage
        if end:
            async with asyncio.timeout(WAIT_S):
                await stage.app.shutdown(ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=5))
                await coordinator.wait_ended()
    finally:
        await coordinator.stop()
        if end:
            leftovers = processes_left(root)
            end_processes(leftovers)
            assert not leftovers, f"left behind: {leftovers}"
    check_books(root)


async def wait_until(condition: Callable[[], bool] | Callable[[], Awaitable[bool]]) -> None:
    """Waits until the condition holds. For what cannot be waited on: files and processes outside the orchestra."""
    async with asyncio.timeout(WAIT_S):
        while True:
            holds = condition()
            if await holds if isinstance(holds, Awaitable) else holds:
                return
            await asyncio.sleep(0.01)


def is_gone(pid: int) -> bool:
    """Tells whether a process has ended (a zombie has)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


def check_books(root: Path) -> State:
    """Checks that the ledger of a stopped orchestra folds to a state in which all invariants hold, with and without its snapshot."""
    ledger = SqliteLedger.open_readonly(Root(root).ledger)
    try:
        state = Kernel.restore(c.Policy(), None, ledger.read()).state
        assert encode_state(state) == encode_state(restore_kernel(ledger, c.Policy()).state), "the snapshot differs from the ledger"
    finally:
        ledger.close()
    check_invariants(state)
    return state


def processes_of(root: Path) -> dict[int, str]:
    """Returns the processes whose command line or environment names the root, by pid; zombies and this process do not count."""
    found: dict[int, str] = {}
    needle = os.fsencode(str(root))
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command = (entry / "cmdline").read_bytes()
            state = (entry / "stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z" and (needle in command or needle in (entry / "environ").read_bytes()):
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
    return found


def processes_left(root: Path) -> dict[int, str]:
    """Returns what is still there of a root after whatever was on its way out has gone: looks again for up to five seconds."""
    deadline = time.monotonic() + 5
    while (found := processes_of(root)) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    return found


def end_processes(found: Mapping[int, str]) -> None:
    """Kills processes a test started and could not get rid of."""
    for pid in found:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
