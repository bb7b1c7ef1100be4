"""Watches the folder of commands, carries them out one after the other, and answers each exactly once.

A command's answer is in the ledger before it is in the folder, so the same command id is answered the same way as long as the ledger's state
remembers it, and a crash between any two steps ends with the command carried out once. The file is removed last.

Nothing that a file or the folder does ends the service: what cannot be read is answered and put aside, what cannot be moved is passed over, and a
folder that is gone is made again. A stop waits for an answer that is being recorded, so that a shutdown is still told that it was heard.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from watchfiles import awatch

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.core.state import Answer
from orchestra.edges.filerpc.already import MARKED, done_before, submitted_before
from orchestra.edges.filerpc.envelope import Asked, Form, NotACommand, answer, parse, refusal
from orchestra.edges.filerpc.intake import SCAN_MAX, Incoming, Taken, command_id_of, keep_newest
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, CoordinatorUnreachable, DuplicateId, OrchestraError, PortFailed
from orchestra.files import write_atomically
from orchestra.intake.request import parse_params
from orchestra.root import Root
from orchestra.usecases import METHODS, UseCases

log = logging.getLogger(__name__)

POLL_MS: Final = 1000
"""The folder is looked at this often even if no file event came: some file systems send none."""
SETTLING_POLL_MS: Final = 100
WATCH_STEP_MS: Final = 20
"""How long the watcher waits for an event to be followed by another; also how often its thread wakes up."""
WATCH_AGAIN_MS: Final = 30_000
"""Pause before file events are asked for again where there were none to be had."""
STOP_TIMEOUT_S: Final = 5.0
"""Longest that a stop waits for an answer to be recorded; a full disk may keep it for ever, and the next coordinator answers as well."""
QUARANTINE_MAX: Final = 1000
"""Files kept in quarantine; the oldest go first."""


class FileRpcOptions(msgspec.Struct, frozen=True):
    """Settings of the interface."""

    request_bytes: int = 1 << 20
    requests_per_second: int = 50


class FileRpc:
    """One per coordinator."""

    def __init__(self, use_cases: UseCases, loop: Loop, root: Root, clock: Clock, options: FileRpcOptions) -> None:
        self._use_cases = use_cases
        self._loop = loop
        self._root = root
        self._clock = clock
        self._interval_ms = 1000 / max(1, options.requests_per_second)
        self._due_ms = 0.0
        self._incoming = Incoming(root.incoming, options.request_bytes)
        self._again = asyncio.Event()
        self._settling = False
        self._aside = True
        self._complaints: set[str] = set()

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._serve())

    # --- noticing ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """File events make it quick; without them the folder is still looked at every `POLL_MS`."""
        while True:
            try:
                await self._watch_folder()
                await self._clock.sleep_ms(POLL_MS)  # another folder has the name now
            except (OSError, RuntimeError, ExceptionGroup) as error:
                self._complain("rpc-watch-failed", error)
                await self._clock.sleep_ms(WATCH_AGAIN_MS)

    async def _watch_folder(self) -> None:
        """Returns when the folder is no longer the one that is watched."""
        watched = _identity(self._root.incoming)
        changes = awatch(
            self._root.incoming,
            watch_filter=None,
            step=WATCH_STEP_MS,
            debounce=50,
            recursive=False,
            rust_timeout=POLL_MS,
            yield_on_timeout=True,
        )
        async with contextlib.aclosing(changes):
            async for change in changes:
                if change:
                    self._again.set()
                if _identity(self._root.incoming) != watched:
                    return

    async def _serve(self) -> None:
        while True:
            self._again.clear()
            self._settling = False
            await self.look()
            await self._pause(SETTLING_POLL_MS if self._settling else POLL_MS)

    async def _pause(self, duration_ms: int) -> None:
        """Waits for the time or a file event, whichever comes first."""
        waits = [asyncio.ensure_future(self._clock.sleep_ms(duration_ms)), asyncio.ensure_future(self._again.wait())]
        try:
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for wait in waits:
                wait.cancel()
            await asyncio.gather(*waits, return_exceptions=True)

    async def look(self) -> None:
        """Deals with every file that is there now, or with the oldest of very many. `run` calls it; alone it is one look."""
        try:
            names = await asyncio.to_thread(self._incoming.scan)
        except OSError as error:
            self._complain("rpc-folder-unusable", error)
            self._make_folders()
            return
        dealt_with = 0
        for name in names:
            try:
                dealt_with += await self._one(name)
            except (OSError, CoordinatorUnreachable) as error:  # ours to bear, not the file's fault: it stays for later
                self._complain("rpc-file-left", error)
        if len(names) == SCAN_MAX and dealt_with:
            self._again.set()
        if self._aside:
            self._aside = False
            self._tidy_quarantine()

    def _tidy_quarantine(self) -> None:
        try:
            keep_newest(self._root.quarantine, QUARANTINE_MAX)
        except OSError as error:
            self._complain("rpc-quarantine-failed", error)

    def _make_folders(self) -> None:
        if not self._root.path.is_dir():
            return
        for folder in (self._root.incoming.parent, self._root.incoming, self._root.responses, self._root.quarantine):
            try:
                folder.mkdir(mode=0o700, exist_ok=True)
            except OSError as error:
                self._complain("rpc-folder-not-made", error)

    def _complain(self, action: str, error: Exception) -> None:
        """Logs a trouble once, however long it lasts."""
        text = f"{action}: {error}"
        if text not in self._complaints:
            if len(self._complaints) >= 100:
                self._complaints.clear()
            self._complaints.add(text)
            log.warning(action, extra={"reason": str(error)})

    # --- one file ----------------------------------------------------------------------------------------------------

    async def _one(self, name: str) -> bool:
        """Carries one file's command out and answers it, leaves it for a moment, or puts it aside. Returns whether it is dealt with."""
        taken: Taken | None = None
        try:
            taken = self._incoming.take(name, now_ms=self._clock.wall_ms())
            asked = None if taken is None else parse(taken.body, taken.command_id)
        except FileNotFoundError:
            return False
        except NotACommand as error:
            if error.perhaps_unfinished and taken is not None and not taken.settled:
                self._settling = True
                return False
            await self._refuse(name, error, error.form)
            return True
        except BadInput as error:
            await self._refuse(name, error, Form())
            return True
        if taken is None or asked is None:
            self._settling = True
            return False
        await self._keep_pace()
        try:
            await self._answer(name, taken, asked)
        except (OSError, CoordinatorUnreachable):
            raise
        except Exception:
            self._put_aside(name)  # a bug of ours ends this coordinator; the same command shall not end the next one too
            raise
        return True

    async def _keep_pace(self) -> None:
        """Waits as long as the rate of commands asks for."""
        wait_ms = self._due_ms - self._clock.steady_ms()
        if wait_ms > 0:
            await self._clock.sleep_ms(round(wait_ms))
        self._due_ms = max(self._due_ms, self._clock.steady_ms()) + self._interval_ms

    async def _known(self, command_id: str) -> Answer | None:
        return await self._loop.ask(lambda state: state.answers.get(command_id))

    async def _answer(self, name: str, taken: Taken, asked: Asked) -> None:
        known = await self._known(taken.command_id)
        if known is None:
            response = await self._carry_out(taken.command_id, asked)
            await _see_through(asyncio.create_task(self._record(taken, asked, response)))
            return
        self._respond(taken.command_id, known.response.encode())
        if known.digest == asked.digest:
            self._incoming.remove(taken)
        else:
            log.warning("rpc-id-reused", extra={"command": taken.command_id})
            self._put_aside(name)

    async def _record(self, taken: Taken, asked: Asked, response: bytes) -> None:
        await self._loop.request(c.AnswerCommand(taken.command_id, asked.digest, response.decode()))
        self._respond(taken.command_id, response)
        self._mark_of(taken.command_id).unlink(missing_ok=True)
        self._incoming.remove(taken)

    async def _carry_out(self, command_id: str, asked: Asked) -> bytes:
        try:
            params = with_ids(parse_params(METHODS[asked.method].params, asked.params), command_id)
            return answer(asked.form, await self._result(command_id, asked, params))
        except CoordinatorUnreachable:
            raise  # we are stopping: the next coordinator answers
        except OrchestraError as error:
            return refusal(asked.form, error)

    async def _result(self, command_id: str, asked: Asked, params: Any) -> object:
        if asked.method in MARKED:
            begun_in = self._begun_in(command_id, asked.digest)
            if begun_in is not None:
                done = await done_before(self._use_cases, self._loop, self._clock, params, begun_in)
                if done is not None:
                    return done
            started_ms = await self._loop.ask(lambda state: state.started_ms)
            write_atomically(self._mark_of(command_id), f"{started_ms} {asked.digest}".encode(), durable=True)
        call: Callable[[Any], Awaitable[object]] = getattr(self._use_cases, asked.method)
        try:
            return await call(params)
        except OSError as exc:
            raise PortFailed(f"{asked.method} failed: {exc}", hint="see the log of the coordinator") from exc
        except (DuplicateId, BadInput):  # what was done already may not be possible any more: a folder is gone, the settings are others
            known = await submitted_before(self._loop, params)
            if known is None:
                raise
            return known

    def _mark_of(self, command_id: str) -> Path:
        return self._root.responses / f".{command_id}.begun"

    def _begun_in(self, command_id: str, digest: str) -> int | None:
        """Returns when the run started in which this very command was begun and not answered, or None."""
        try:
            started_ms, _, begun = self._mark_of(command_id).read_text().partition(" ")
            return int(started_ms) if begun == digest else None
        except (FileNotFoundError, ValueError):
            return None

    async def _refuse(self, name: str, error: BadInput, form: Form) -> None:
        """Answers what cannot be read as far as its name allows, and puts it aside. An answer that was given before stays."""
        log.warning("rpc-file-refused", extra={"file": _shown(name), "reason": str(error)})
        try:
            command_id = command_id_of(name)
        except BadInput:
            command_id = ""
        if command_id:
            known = await self._known(command_id)
            self._respond(command_id, refusal(form, error) if known is None else known.response.encode())
        self._put_aside(name)

    def _respond(self, command_id: str, response: bytes) -> None:
        path = self._root.responses / f"{command_id}.json"
        try:
            write_atomically(path, response)
        except FileNotFoundError:
            self._make_folders()
            write_atomically(path, response)

    def _put_aside(self, name: str) -> None:
        self._aside = True
        try:
            self._incoming.put_aside(name, self._root.quarantine)
        except FileNotFoundError:
            self._make_folders()  # the file is gone, or the place for it is and comes back for the next round
        except OSError as error:
            log.warning("rpc-quarantine-failed", extra={"file": _shown(name), "reason": error.strerror or str(error)})


async def _see_through(recording: asyncio.Task[None]) -> None:
    """Waits for an answer to be recorded, also when we are to stop."""
    try:
        # Shielded: what was carried out is also answered, even if it was the shutdown that stops this very service.
        await asyncio.shield(recording)
    except asyncio.CancelledError:
        await asyncio.wait([recording], timeout=STOP_TIMEOUT_S)
        recording.cancel()
        await asyncio.gather(recording, return_exceptions=True)
        raise


def with_ids(params: Any, command_id: str) -> Any:
    """Gives tasks without an id one that follows from the command's, so that carrying a command out twice makes one task."""
    names = getattr(params, "__struct_fields__", ())
    if "task_id" in names and "description" in names and params.task_id is None:
        return msgspec.structs.replace(params, task_id=f"TASK-{_uuid(command_id)}")
    if "tasks" in names:
        tasks = tuple(with_ids(task, f"{command_id}/{index}") for index, task in enumerate(params.tasks))
        return msgspec.structs.replace(params, tasks=tasks)
    return params


def _uuid(text: str) -> str:
    return str(uuid.uuid5(uuid.NAMESPACE_URL, f"orchestra-command:{text}"))


def _shown(name: str) -> str:
    return name[:100].encode(errors="backslashreplace").decode()


def _identity(folder: Path) -> tuple[int, int]:
    facts = os.stat(folder, follow_symlinks=False)
    return facts.st_dev, facts.st_ino
