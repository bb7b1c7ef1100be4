"""Results for people and programs, written once a task is over into `<root>/results/<task>/`: result.json, execution.log, and what else there is of
diff.patch, test_report.html, junit.xml and transcript.jsonl.

Derived from the ledger and the attempt's folder, so losing them loses nothing: whatever is missing is written again at the next start. result.json comes
last. What lies on a node that is out of sight is fetched when the node is back.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Final

import msgspec

from orchestra.artifacts import Texts, fetch, texts_of
from orchestra.core import events as e
from orchestra.core.effects import KeepResult
from orchestra.core.model import Outcome
from orchestra.core.state import State
from orchestra.costviews import Settled
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Happened
from orchestra.engine.loop import Loop
from orchestra.errors import NodeFailed
from orchestra.files import write_atomically
from orchestra.ids import AttemptId, NodeId, TaskId
from orchestra.projections import DIFF_FILE, JUNIT_FILE, LOG_FILE, RESULT_FILE, TEST_REPORT_FILE, TRANSCRIPT_FILE, Json, result
from orchestra.protocol.junit import read_junit
from orchestra.protocol.masking import Masker, secret_values
from orchestra.protocol.patch import files_of
from orchestra.reporting.testpage import render_test_page
from orchestra.root import Root
from orchestra.viewing import judged_of
from orchestra.workspace import Collected

log = logging.getLogger(__name__)

FETCHED_FILES: Final = (LOG_FILE, TRANSCRIPT_FILE, JUNIT_FILE, TEST_REPORT_FILE)


class KeeperOptions(msgspec.Struct, frozen=True):
    """Settings of results; reasons and defaults in `orchestra.settings`."""

    attempts_keep: int = 0
    """Tasks of which the attempts are kept; 0 means all."""
    file_bytes: int = 4 << 20
    """Of an attempt's output this much is kept, from its end; all of it stays in the attempt's folder until that is removed."""
    secrets: tuple[str, ...] = ()
    """Values that nobody must find in a result."""
    rehearsal: bool = False
    """No model was asked."""


class _Shown(msgspec.Struct, frozen=True):
    """The attempt that stands for the task."""

    number: int
    node: NodeId
    agent: int
    counted: bool
    outcome: Outcome | None
    secrets: tuple[str, ...]
    """Of the task itself."""


class Keeper:
    """Writes results in the background, in the order the tasks ended.

    Args:
        loop: Where the tasks are asked.
        root: Where results go.
        drivers: The nodes that can be read from.
        settled: Tells what the gateway settled for a task, or None if none counted; without it, what the agents' programs said is written.
        options: How much is kept, and what must not be in it.
    """

    def __init__(
        self,
        loop: Loop,
        root: Root,
        drivers: Callable[[NodeId], NodeDriver | None],
        settled: Callable[[TaskId], Awaitable[Settled | None]] | None = None,
        options: KeeperOptions | None = None,
    ) -> None:
        self._loop = loop
        self._options = options or KeeperOptions()
        self._ended: deque[TaskId] = deque()
        self._root = root
        self._driver = drivers
        self._settled = settled
        self._queue: asyncio.Queue[TaskId] = asyncio.Queue()
        self._owed: dict[NodeId, dict[TaskId, None]] = {}
        """Tasks whose output lies on a node that is out of sight."""
        loop.listen(self._on_events)

    def _on_events(self, state: State, happened: Sequence[Happened]) -> None:
        for each in happened:
            if isinstance(each.event, e.NodeConnected):
                for task in self._owed.pop(each.event.node, {}):
                    self._queue.put_nowait(task)

    def keep(self, effects: Sequence[KeepResult]) -> None:
        """Takes tasks that are over."""
        for effect in effects:
            self._queue.put_nowait(effect.task)

    async def catch_up(self) -> None:
        """Takes every task that is over and has no result, or one from before it was retried, or one without its output."""
        over = await self._loop.ask(
            lambda state: [(task.id, task.ended_ms, bool(task.attempts)) for task in state.tasks.values() if task.over]
        )
        over.sort(key=lambda each: each[1])
        self._ended.extend(task for task, _, _ in over[-self._options.attempts_keep :])
        for task, ended_ms, tried in over:
            folder = self._root.results_of(task)
            needed = (RESULT_FILE, LOG_FILE) if tried else (RESULT_FILE,)
            if any(_written_ms(folder / name) < ended_ms for name in needed):
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

    async def keep_work(self, task: TaskId, number: int, work: Collected) -> None:
        """Writes what an attempt changed as a patch, for people and for tools that apply one."""
        folder = self._root.results_of(task)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_atomically(folder / patch_file(number), work.patch)
            over, shown = await self._loop.ask(lambda state: (state.tasks[task].over, _shown_attempt(state, task)))
            if over:
                self._queue.put_nowait(task)
            elif shown is not None and shown.number == number:
                _link_patch(folder, number)
        except OSError as error:
            log.warning("patch-not-written", extra={"task": task, "reason": str(error)})

    async def wait_written(self) -> None:
        """Waits until everything taken so far is written."""
        await self._queue.join()

    async def _write(self, task_id: TaskId) -> None:
        shown = await self._loop.ask(lambda state: _shown_attempt(state, task_id))
        folder = self._root.results_of(task_id)
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        secrets = self._options.secrets
        if shown is not None:
            secrets = await self._write_fetched(task_id, shown, folder)
            _link_patch(folder, shown.number)
        present = [name for name in (DIFF_FILE, TEST_REPORT_FILE, LOG_FILE) if (folder / name).exists()]
        created = _created(folder / DIFF_FILE)
        relative = f"{self._root.path.name}/results/{task_id}"
        settled = None if self._settled is None else await self._settled(task_id)

        def document(state: State) -> Json:
            task, rehearsal = state.tasks[task_id], self._options.rehearsal
            return result(task, relative, present, settled, created=created, rehearsal=rehearsal, judged=judged_of(state, task))

        values = Masker(secrets).plain(await self._loop.ask(document))
        write_atomically(folder / RESULT_FILE, msgspec.json.format(msgspec.json.encode(values), indent=2) + b"\n")

    async def _write_fetched(self, task: TaskId, shown: _Shown, folder: Path) -> tuple[str, ...]:
        """Writes what comes from the node; returns what must not be seen of the task.

        While the node is out of sight, nothing of an earlier attempt must be taken for this one's.
        """
        secrets = (*self._options.secrets, *shown.secrets)
        driver = self._driver(shown.node)
        try:
            if driver is None or not driver.connected:
                raise NodeFailed(f"node {shown.node} is not connected")
            fetched = await fetch(driver.node, AttemptId(task, shown.number), self._options.file_bytes)
        except NodeFailed as error:
            log.info("output-owed", extra={"task": task, "attempt": shown.number, "reason": str(error)})
            self._owed.setdefault(shown.node, {})[task] = None
            for name in FETCHED_FILES:
                (folder / name).unlink(missing_ok=True)
            return secrets
        secrets += fetched.secrets
        texts = await asyncio.to_thread(texts_of, fetched, secrets)  # seconds where there are megabytes
        page = await asyncio.to_thread(_test_page, task, shown, texts, Masker(secrets))
        for name, text in ((TRANSCRIPT_FILE, texts.transcript), (JUNIT_FILE, texts.junit), (TEST_REPORT_FILE, page)):
            if text:
                write_atomically(folder / name, text.encode())
            else:
                (folder / name).unlink(missing_ok=True)
        write_atomically(folder / LOG_FILE, texts.log.encode())
        return secrets

    async def _forget_oldest(self, task_id: TaskId) -> None:
        """Removes the attempts of the task that ended longest ago, once there are more than are kept. What the task came to stays."""
        self._ended.append(task_id)
        if not self._options.attempts_keep or len(self._ended) <= self._options.attempts_keep:
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


def _written_ms(path: Path) -> int:
    try:
        return path.stat().st_mtime_ns // 1_000_000
    except OSError:
        return -1


def _test_page(task: TaskId, shown: _Shown, texts: Texts, masker: Masker) -> str:
    outcome = shown.outcome
    run = read_junit(texts.junit) if texts.junit else None
    if outcome is None or not (outcome.checks or run):
        return ""
    word = "the one that counts" if shown.counted else "the last one"
    checks = [msgspec.structs.replace(check, tail=tuple(masker.text("\n".join(check.tail)).split("\n"))) for check in outcome.checks]
    return render_test_page(task, f"attempt {shown.number}, {word}, by agent #{shown.agent}", checks, outcome.metrics, run)


def patch_file(number: int) -> str:
    """Returns the name of the file with what one attempt changed."""
    return f"diff.{number}.patch"


def _link_patch(folder: Path, number: int) -> None:
    """Makes diff.patch that of one attempt; without one there is none."""
    try:
        write_atomically(folder / DIFF_FILE, (folder / patch_file(number)).read_bytes())
    except FileNotFoundError:
        (folder / DIFF_FILE).unlink(missing_ok=True)


def _created(patch: Path) -> list[str]:
    try:
        text = patch.read_text("utf-8", "backslashreplace")
    except FileNotFoundError:
        return []
    return [file.path for file in files_of(text) if file.change == "created"]


def _shown_attempt(state: State, task_id: TaskId) -> _Shown | None:
    """Returns the attempt that counts or is being merged, else the last one."""
    task = state.tasks[task_id]
    if not task.attempts:
        return None
    chosen = task.primary or task.merging
    attempt = task.attempts[chosen - 1] if chosen else task.attempts[-1]
    return _Shown(attempt.number, attempt.node, attempt.agent, bool(task.primary), attempt.outcome, secret_values(task.spec.env))
