"""Killing every part in mid-run: each time everything completes, once, and nothing is left behind.

Tasks write to a log when they begin and when they end. A task is held in the middle by a named pipe, so a test decides when it goes on.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
from collections import Counter
from pathlib import Path

import pytest

from orchestra.core.model import AgentStatus
from orchestra.core.state import State
from orchestra.errors import OrchestraError
from orchestra.intake.request import ScaleParams
from orchestra.nodes import tmux_node
from orchestra.root import Root
from orchestra.testing.hosted import Stage, check_books, hosted, is_gone, processes_of, wait_until
from orchestra.usecases import AgentsParams

BEGIN = 'printf "begin %s %s\\n" "$ORCHESTRA_TASK" "$ORCHESTRA_ATTEMPT" >> log'
END = 'printf "end %s %s\\n" "$ORCHESTRA_TASK" "$ORCHESTRA_ATTEMPT" >> log'


def plan(tasks: int, held: int) -> str:
    """A plan whose first `held` tasks wait for the gate."""
    lines = ["name: p", "defaults: {retry_backoff_seconds: 0.01}", "tasks:"]
    for number in range(tasks):
        wait = "cat gate > /dev/null; " if number < held else ""
        lines.append(f"  - id: t{number}")
        lines.append(f"    description: task number {number}")
        lines.append(f"    run: '{BEGIN}; {wait}{END}'")
    return "\n".join(lines)


def log_of(folder: Path) -> list[str]:
    path = folder / "log"
    return path.read_text().splitlines() if path.exists() else []


async def open_gate(folder: Path) -> None:
    """Lets everybody through who waits at the gate or comes later."""
    os.unlink(folder / "gate.closed") if (folder / "gate.closed").exists() else None
    os.rename(folder / "gate", folder / "gate.closed")
    (folder / "gate").write_text("")
    # Those who hold the old pipe open are let go by a writer that opens and closes it.
    await asyncio.get_running_loop().run_in_executor(None, _release, str(folder / "gate.closed"))


def _release(path: str) -> None:
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_NONBLOCK))
    except OSError:
        return


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    os.mkfifo(tmp_path / "gate")
    return tmp_path


async def running(stage: Stage, count: int) -> dict[str, tuple[int, int]]:
    """Waits until the first so many tasks run; returns (agent, pid of the agent's process) by task."""

    def answer(state: State) -> dict[str, tuple[int, int]] | None:
        found = {str(i.task): (int(a.agent), a.pid) for i, a in state.live_attempts() if a.pid and a.status.value == "running"}
        return found if {f"p/t{number}" for number in range(count)} <= set(found) else None

    return await stage.wait(answer)


async def began(folder: Path, count: int) -> None:
    """Waits until so many tasks have written their first line: they are at the gate, or about to be."""
    await wait_until(lambda: sum(line.startswith("begin") for line in log_of(folder)) >= count)


def check_exactly_once(folder: Path, root: Path, tasks: int) -> State:
    """Every task completed, and the attempt that counts ended exactly once."""
    state = check_books(root)
    ended = Counter(line for line in log_of(folder) if line.startswith("end"))
    assert set(ended.values()) <= {1}, "an attempt ran twice"
    assert len(state.tasks) == tasks
    for task in state.tasks.values():
        assert task.status.value == "completed"
        assert ended[f"end {task.id} {task.primary}"] == 1
    return state


async def test_a_worker_that_dies_before_it_has_its_slot_is_started_again_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine without memory or processes to spare. Nobody tells of it: not the worker, and not the courier, which knows those with a slot."""
    real, died = tmux_node.stage_argv, asyncio.Event()

    def argv(python: str, stage: str, module: str, *arguments: str) -> tuple[str, ...]:
        if module == "worker" and arguments[-1] == "2" and not died.is_set():
            died.set()
            return ("/bin/false",)
        return real(python, stage, module, *arguments)

    monkeypatch.setattr(tmux_node, "stage_argv", argv)
    async with hosted(tmp_path / "root", agents=1) as stage:
        await stage.app.scale(ScaleParams(target_count=2))  # long after the look with which a connection begins
        await stage.wait(lambda state: True if len(state.agents) == 2 else None)
        await stage.wait(lambda state: True if all(agent.status is AgentStatus.IDLE for agent in state.agents.values()) else None)
        assert died.is_set()
        assert all(not agent.falls for agent in stage.coordinator.loop.state.agents.values()), "it is no death of a worker that was there"


async def test_kill_a_worker(folder: Path) -> None:
    root = folder / "root"
    async with hosted(root, agents=4) as stage:
        name = await stage.submit(plan(12, 2), folder)
        at_gate = await running(stage, 2)
        await began(folder, 2)
        agent, child = at_gate["p/t0"]
        worker = await stage.wait(lambda state: state.agents[agent].worker)  # type: ignore[index]
        os.kill(worker.pid, signal.SIGKILL)
        retried = await stage.wait(lambda state: True if len(state.tasks["p/t0"].attempts) > 1 else None)  # type: ignore[index]
        assert retried
        assert is_gone(child)
        await open_gate(folder)
        assert await stage.wait_plan(name) == "completed"
    state = check_exactly_once(folder, root, 12)
    assert any(attempt.outcome and attempt.outcome.kind.value == "lost" for attempt in state.tasks["p/t0"].attempts)  # type: ignore[index]


async def test_kill_an_agents_process(folder: Path) -> None:
    root = folder / "root"
    async with hosted(root, agents=4) as stage:
        name = await stage.submit(plan(12, 2), folder)
        at_gate = await running(stage, 2)
        await began(folder, 2)
        os.kill(at_gate["p/t0"][1], signal.SIGKILL)
        await stage.wait(lambda state: True if len(state.tasks["p/t0"].attempts) > 1 else None)  # type: ignore[index]
        await open_gate(folder)
        assert await stage.wait_plan(name) == "completed"
    state = check_exactly_once(folder, root, 12)
    first = state.tasks["p/t0"].attempts[0].outcome  # type: ignore[index]
    assert first is not None
    assert first.signal == signal.SIGKILL
    assert first.reason.startswith("ended by SIGKILL")


def tmux_server(root: Path) -> int:
    """Returns the pid of the tmux server of that root's node."""
    socket = Root(root).runtime_folder() / "local" / "tmux.sock"
    done = subprocess.run(
        ["tmux", "-S", str(socket), "display-message", "-p", "#{pid}"], capture_output=True, text=True, check=True, timeout=30
    )
    return int(done.stdout)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
async def test_kill_or_stop_the_tmux_server(folder: Path, number: signal.Signals) -> None:
    root = folder / "root"
    flags = {"tmux.command_timeout_seconds": "1", "monitoring.health_check_interval": "1"}
    async with hosted(root, agents=4, flags=flags) as stage:
        name = await stage.submit(plan(12, 2), folder)
        await running(stage, 2)
        await began(folder, 2)
        before = tmux_server(root)
        os.kill(before, number)
        await open_gate(folder)
        assert await stage.wait_plan(name) == "completed"
        await stage.wait(lambda state: True if all(agent.status.value == "idle" for agent in state.agents.values()) else None)
        await wait_until(lambda: all_windows(stage, 4))
        assert tmux_server(root) != before
    state = check_exactly_once(folder, root, 12)
    again = [attempt for task in state.tasks.values() for attempt in task.attempts if attempt.number != task.primary]
    assert not any(attempt.started_ms for attempt in again), "tmux is only the view: nothing that ran had to be run again"
    assert sum(line.startswith("begin") for line in log_of(folder)) == 12


async def all_windows(stage: Stage, count: int) -> bool:
    """Tells whether every agent has a window again."""
    try:
        return len((await stage.app.screens(AgentsParams())).screens) == count
    except OrchestraError:
        return False


async def test_kill_our_own_tmux_client(folder: Path) -> None:
    root = folder / "root"
    async with hosted(root, agents=3, flags={"monitoring.health_check_interval": "1"}) as stage:
        name = await stage.submit(plan(8, 1), folder)
        await running(stage, 1)
        client = next(pid for pid, command in processes_of(Root(root).runtime_folder()).items() if " -C " in command)
        os.kill(client, signal.SIGKILL)
        worker = await stage.wait(lambda state: next((agent.worker for agent in state.agents.values() if agent.task is None), None))
        os.kill(worker.pid, signal.SIGKILL)
        await open_gate(folder)
        assert await stage.wait_plan(name) == "completed"
        await stage.wait(lambda state: True if all(agent.status.value == "idle" for agent in state.agents.values()) else None)
        await wait_until(lambda: all_windows(stage, 3))
    check_exactly_once(folder, root, 8)


async def test_crash_of_the_coordinator_while_tasks_run_and_while_they_end(folder: Path) -> None:
    root = folder / "root"
    async with hosted(root, agents=4, end=False) as stage:
        name = await stage.submit(plan(12, 2), folder)
        await running(stage, 2)
        await began(folder, 2)
        pids = {agent.id: agent.worker for agent in (await stage.wait(lambda state: state)).agents.values()}
        await stage.crash()
    await open_gate(folder)
    async with hosted(root) as stage:
        assert await stage.wait_plan(name) == "completed"
        after = {agent.id: agent.worker for agent in (await stage.wait(lambda state: state)).agents.values()}
        assert after == pids, "agents are untouched by an outage of the coordinator"
    state = check_exactly_once(folder, root, 12)
    assert all(len(task.attempts) == 1 for task in state.tasks.values()), "what ran was adopted, not started again"


async def test_kill_the_courier(folder: Path) -> None:
    root = folder / "root"
    async with hosted(root, agents=2) as stage:
        name = await stage.submit(plan(8, 1), folder)
        await running(stage, 1)
        courier = next(pid for pid, command in processes_of(root).items() if "orchestra_stage.courier" in command)
        os.kill(courier, signal.SIGKILL)
        await open_gate(folder)
        assert await stage.wait_plan(name) == "completed"
    state = check_exactly_once(folder, root, 8)
    assert all(len(task.attempts) == 1 for task in state.tasks.values())


async def test_attempts_of_old_tasks_are_removed_and_their_results_stay(tmp_path: Path) -> None:
    root = tmp_path / "root"
    async with hosted(root, agents=1, flags={"limits.attempts_keep": "2"}) as stage:
        lines = "".join(f"  - {{id: t{n}, run: 'echo {n}'{', needs: [t' + str(n - 1) + ']' if n else ''}}}\n" for n in range(5))
        name = await stage.submit(f"name: p\ntasks:\n{lines}", tmp_path)
        assert await stage.wait_plan(name) == "completed"
        kept = root / "nodes" / "local" / "attempts" / "p"
        await wait_until(lambda: sorted(path.name for path in kept.iterdir() if any(path.iterdir())) == ["t3", "t4"])
    assert (root / "results" / "p" / "t0" / "execution.log").read_text() == "0\n"
    assert not Root(root).runtime_folder().joinpath("local").exists()
