"""Results for people and programs: `<root>/results/<task>/result.json` and `execution.log`, written once a task is over.

Derived from the ledger and the attempt's folder, so losing them loses nothing: whatever is missing is written again at the next start.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from orchestra.core.effects import KeepResult
from orchestra.core.state import State, TaskState
from orchestra.costviews import Settled
from orchestra.engine.driver import NodeDriver
from orchestra.engine.loop import Loop
from orchestra.errors import NodeFailed, NotFound
from orchestra.files import write_atomically
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.projections import result
from orchestra.protocol.text import printable
from orchestra.root import Root
from orchestra.viewing import judged_of
from orchestra.workspace import Collected

log = logging.getLogger(__name__)

LOG_BYTES_MAX: Final = 4 << 20
"""Of an attempt's output this much is kept in execution.log, from its end; all of it stays in the attempt's folder until that is removed."""
LOG_PIECE_BYTES: Final = 262_144


class Keeper:
    """Writes results in the background, in the order the tasks ended.

    Args:
        loop: Where the tasks are asked.
        root: Where results go.
        drivers: The nodes that can be read from.
        settled: Tells what the gateway settled for a task, or None if none counted; without it, what the agents' programs said is written.
        attempts_keep: Tasks of which the attempts are kept; 0 means all.
        rehearsal: No model was asked.
    """

    def __init__(
        self,
        loop: Loop,
        root: Root,
        drivers: Callable[[NodeId], NodeDriver | None],
        settled: Callable[[TaskId], Awaitable[Settled | None]] | None = None,
        *,
        attempts_keep: int = 0,
        rehearsal: bool = False,
    ) -> None:
        self._loop = loop
        self._rehearsal = rehearsal
        self._attempts_keep = attempts_keep
        self._ended: deque[TaskId] = deque()
        self._root = root
        self._driver = drivers
        self._settled = settled
        self._queue: asyncio.Queue[TaskId] = asyncio.Queue()

    def keep(self, effects: Sequence[KeepResult]) -> None:
        """Takes tasks that are over."""
        for effect in effects:
            self._queue.put_nowait(effect.task)

    async def catch_up(self) -> None:
        """Takes every task that is over and has no result, or one from before it was retried."""
        over = await self._loop.ask(lambda state: [(task.id, task.ended_ms) for task in state.tasks.values() if task.over])
        over.sort(key=lambda each: each[1])
        self._ended.extend(task for task, _ in over[-self._attempts_keep :])
        for task, ended_ms in over:
            if _written_ms(self._root.results_of(task) / "result.json") < ended_ms:
                self._queue.put_nowait(task)

    async def run(self) -> None:
        """Writes results until cancelled."""
        while True:
            task = await self._queue.get()
            try:
                await self._write(task)
                await self._forget_oldest(task)
            except OSError as error:
                log.warning("result-not-written", extra={"task": task, "reason": str(error)})
            finally:
                self._queue.task_done()

    def keep_work(self, task: TaskId, work: Collected) -> None:
        """Writes what an attempt changed as a patch, for people and for tools that apply one."""
        folder = self._root.results_of(task)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            write_atomically(folder / "diff.patch", work.patch)
        except OSError as error:
            log.warning("patch-not-written", extra={"task": task, "reason": str(error)})

    async def wait_written(self) -> None:
        """Waits until everything taken so far is written."""
        await self._queue.join()

    async def _write(self, task_id: TaskId) -> None:
        attempt = await self._loop.ask(lambda state: _shown_attempt(state, task_id))
        folder = self._root.results_of(task_id)
        folder.mkdir(parents=True, exist_ok=True)
        if attempt is not None:
            number, node = attempt
            await self._write_log(task_id, number, node)
        relative = f"{self._root.path.name}/results/{task_id}"
        settled = None if self._settled is None else await self._settled(task_id)

        def document(state: State) -> dict[str, object]:
            task = state.tasks[task_id]
            return result(task, relative, settled=settled, rehearsal=self._rehearsal, judged=judged_of(state, task))

        values = await self._loop.ask(document)
        write_atomically(folder / "result.json", msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n")

    async def _forget_oldest(self, task_id: TaskId) -> None:
        """Removes the attempts of the task that ended longest ago, once there are more than are kept. What the task came to stays."""
        self._ended.append(task_id)
        if not self._attempts_keep or len(self._ended) <= self._attempts_keep:
            return
        oldest = self._ended.popleft()
        if oldest in self._ended:
            return  # it was retried since
        places = await self._loop.ask(lambda state: [(a.node, a.number) for a in state.tasks[oldest].attempts if not a.live])
        for node in dict.fromkeys(place for place, _ in places):
            driver = self._driver(node)
            if driver is not None and driver.connected:
                try:
                    await driver.node.remove([AttemptId(oldest, number) for place, number in places if place == node])
                except NodeFailed as error:
                    log.info("attempts-not-removed", extra={"task": oldest, "node": node, "reason": str(error)})

    async def _write_log(self, task_id: TaskId, number: int, node: NodeId) -> None:
        driver = self._driver(node)
        if driver is None or not driver.connected:
            return
        pieces: list[str] = []
        path, offset = f"attempts/{task_id}/{number}/output.jsonl", -LOG_BYTES_MAX
        try:
            text, size = await driver.node.read(path, offset, LOG_PIECE_BYTES)
            offset = max(0, size - LOG_BYTES_MAX)
            while text:
                pieces.append(text)
                offset += len(text.encode())
                if offset >= size:
                    break
                text, _ = await driver.node.read(path, offset, LOG_PIECE_BYTES)
        except (NodeFailed, NotFound) as error:
            log.info("no-output", extra={"task": task_id, "attempt": number, "reason": str(error)})
        lines = [line for line in map(_readable, "".join(pieces).split("\n")) if line]
        write_atomically(self._root.results_of(task_id) / "execution.log", "".join(lines).encode())


def _written_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return -1


def _shown_attempt(state: State, task_id: TaskId) -> tuple[int, NodeId] | None:
    task: TaskState = state.tasks[task_id]
    if not task.attempts:
        return None
    attempt = task.attempts[task.primary - 1] if task.primary else task.attempts[-1]
    return attempt.number, attempt.node


class _Line(msgspec.Struct):
    t: int
    s: str
    line: str


_decoder: Final = msgspec.json.Decoder(_Line)


def _readable(text: str) -> str:
    """Returns a line of output.jsonl as a line of a log: its text, with the stream named where it is not plain output."""
    if not text:
        return ""
    try:
        values = _decoder.decode(text)
    except (msgspec.DecodeError, msgspec.ValidationError):
        return ""
    mark = "" if values.s == "out" else f"[{values.s}] "
    return f"{mark}{printable(values.line)}\n"
