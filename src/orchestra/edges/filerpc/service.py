"""Watches the folder of commands, carries them out one after the other, and answers each exactly once.

A command's answer is in the ledger before it is in the folder, so the same command id is answered the same way for ever, and a crash between any two
steps ends with the command carried out once. The file is removed last.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, Final

import msgspec
from watchfiles import awatch

from orchestra.clock import Clock
from orchestra.core import commands as c
from orchestra.edges.filerpc.envelope import Asked, answer, parse, refusal
from orchestra.edges.filerpc.intake import Taken, candidates, command_id_of, take
from orchestra.engine.loop import Loop
from orchestra.errors import BadInput, DuplicateId, OrchestraError
from orchestra.files import write_atomically
from orchestra.intake.request import parse_params
from orchestra.root import Root
from orchestra.usecases import METHODS, UseCases

log = logging.getLogger(__name__)

POLL_MS: Final = 1000
"""The folder is looked at this often even if no file event came: some file systems send none."""
SETTLING_POLL_MS: Final = 100
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
        self._options = options
        self._again = asyncio.Event()
        self._settling = False

    async def run(self) -> None:
        """Serves until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._watch())
            group.create_task(self._serve())

    async def _watch(self) -> None:
        async for _ in self._changes():
            self._again.set()

    async def _changes(self) -> AsyncIterator[Any]:
        async for changes in awatch(self._root.incoming, step=5, debounce=50, recursive=False):
            yield changes

    async def _serve(self) -> None:
        while True:
            self._again.clear()
            self._settling = False
            for name in candidates(self._root.incoming):
                await self._one(name)
                await self._clock.sleep_ms(1000 // max(1, self._options.requests_per_second))
            pause = SETTLING_POLL_MS if self._settling else POLL_MS
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause / 1000):
                    await self._again.wait()

    async def _one(self, name: str) -> None:
        """Deals with one file: carried out and answered, left for a moment, or quarantined."""
        asked: Asked | None = None
        taken: Taken | None = None
        try:
            taken = take(self._root.incoming, name, bytes_max=self._options.request_bytes, now_ms=self._clock.wall_ms())
            asked = parse(taken.body)
        except FileNotFoundError:
            return
        except BadInput as error:
            if taken is not None and not taken.settled and error.field == "(file)":
                self._settling = True  # perhaps it is still being written
                return
            self._refuse_file(name, error)
            return
        try:
            response = await self._answer(taken.command_id, asked)
        except DuplicateId as error:
            log.warning("rpc-id-reused", extra={"command": taken.command_id, "reason": error.message})
            self._quarantine(name)
            return
        write_atomically(self._root.responses / f"{taken.command_id}.json", response)
        (self._root.incoming / name).unlink(missing_ok=True)

    async def _answer(self, command_id: str, asked: Asked) -> bytes:
        known = await self._loop.ask(lambda state: state.answers.get(command_id))
        if known is not None:
            if known.digest != asked.digest:
                write_atomically(self._root.responses / f"{command_id}.json", known.response.encode())
                raise DuplicateId(f"command id {command_id!r} was used for something else", hint="use a new id for every command")
            return known.response.encode()
        response = await self._carry_out(command_id, asked)
        await self._loop.request(c.AnswerCommand(command_id, asked.digest, response.decode()))
        return response

    async def _carry_out(self, command_id: str, asked: Asked) -> bytes:
        try:
            params = parse_params(METHODS[asked.method].params, asked.params)
            call: Callable[[Any], Awaitable[object]] = getattr(self._use_cases, asked.method)
            return answer(asked, await call(with_ids(params, command_id)))
        except OrchestraError as error:
            return refusal(asked, error)

    def _refuse_file(self, name: str, error: BadInput) -> None:
        """Answers what cannot be read as far as its name allows, and puts it aside."""
        try:
            command_id = command_id_of(name)
        except BadInput:
            command_id = ""
        response = self._root.responses / f"{command_id}.json"
        if command_id and not response.exists():
            write_atomically(response, refusal(None, error))
        log.warning("rpc-file-refused", extra={"file": name[:100], "reason": str(error)})
        self._quarantine(name)

    def _quarantine(self, name: str) -> None:
        source = self._root.incoming / name
        target = _free_name(self._root.quarantine, name)
        try:
            os.rename(source, target)
        except OSError as error:
            log.warning("rpc-quarantine-failed", extra={"file": name[:100], "reason": str(error)})
            return
        kept = sorted(self._root.quarantine.iterdir(), key=lambda path: path.lstat().st_mtime_ns)
        for old in kept[:-QUARANTINE_MAX]:
            if old.name != ".gitignore" and not old.is_dir():
                old.unlink(missing_ok=True)


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


def _free_name(folder: Path, name: str) -> Path:
    target = folder / name
    number = 2
    while os.path.lexists(target):
        target = folder / f"{name}.{number}"
        number += 1
    return target
