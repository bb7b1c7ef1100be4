"""Takes command files from a folder that others can write to, and trusts nothing about them.

Only a complete regular file of ours counts: opened without following links and without blocking, owned by this user, linked once, not larger than the
limit. What is written in place instead of renamed may be half there when we look, so content that is not JSON yet gets a moment to settle.

Everything goes through a descriptor of the folder, so that a folder that is swapped for a link while we work leads nowhere else.
"""

from __future__ import annotations

import contextlib
import errno
import heapq
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import BadInput
from orchestra.ids import NAME

SUFFIX: Final = ".json"
SETTLE_MS: Final = 2000
"""A file that was not touched for so long is as complete as it will ever be."""
SCAN_MAX: Final = 1000
"""Files of one round; the oldest, so that each has its turn and a flood of them costs no memory."""
NAME_BYTES_MAX: Final = 200
"""Of a file that is put aside; leaves room below the 255 of the file systems for a number."""
PASSING: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EIO, errno.EINTR, errno.ESTALE, errno.EAGAIN})
"""Reasons that are ours or the machine's and say nothing about the file."""

Mark = tuple[str, int, int]
"""Name, inode and change time: one version of one file."""


class Taken(msgspec.Struct, frozen=True):
    """One command file as read."""

    command_id: str
    body: bytes
    settled: bool
    """It was not changed recently: what is wrong with it now stays wrong."""
    mark: Mark


class Incoming:
    """The folder of commands."""

    def __init__(self, path: Path, bytes_max: int) -> None:
        self.path = path
        self._bytes_max = bytes_max
        self._stuck: set[Mark] = set()

    @contextlib.contextmanager
    def _opened(self) -> Iterator[int]:
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            if os.fstat(descriptor).st_uid != os.geteuid():
                raise PermissionError(errno.EPERM, "the folder belongs to another user", str(self.path))
            yield descriptor
        finally:
            os.close(descriptor)

    def scan(self) -> list[str]:
        """Returns the names of up to `SCAN_MAX` files that may be commands, oldest first (by time, then by name).

        Raises:
            OSError: The folder is gone, or is not ours.
        """
        stuck: set[Mark] = set()
        with self._opened() as folder:
            oldest = heapq.nsmallest(SCAN_MAX, self._entries(folder, stuck))
        self._stuck = stuck
        return [name for _, name in oldest]

    def _entries(self, folder: int, stuck: set[Mark]) -> Iterator[tuple[int, str]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if not entry.name.endswith(SUFFIX) or entry.name.startswith("."):
                    continue
                try:
                    facts = entry.stat(follow_symlinks=False)
                except FileNotFoundError:
                    continue
                mark = (entry.name, facts.st_ino, facts.st_ctime_ns)
                if mark in self._stuck:
                    stuck.add(mark)
                else:
                    yield facts.st_mtime_ns, entry.name

    def take(self, name: str, *, now_ms: int) -> Taken | None:
        """Reads one file. None: it is being moved into place and is to be looked at again in a moment.

        Raises:
            BadInput: It is not an acceptable file.
            FileNotFoundError: It is gone.
            OSError: It cannot be read at the moment.
        """
        command_id = command_id_of(name)
        with self._opened() as folder:
            _check(os.stat(name, dir_fd=folder, follow_symlinks=False), self._bytes_max)  # a device may act on being opened
            descriptor = _open(folder, name)
        with open(descriptor, "rb") as file:
            facts = os.fstat(file.fileno())
            _check(facts, self._bytes_max)
            settled = abs(now_ms - facts.st_ctime_ns // 1_000_000) >= SETTLE_MS
            if facts.st_nlink != 1:
                if not settled:
                    return None  # some programs move by making a second link and removing the first
                raise BadInput("the file has several names (hard links)", field="(file)", hint="write a file of its own")
            body = file.read(self._bytes_max + 1)
        if len(body) > self._bytes_max:
            raise _too_large(self._bytes_max)
        return Taken(command_id, body, settled, (name, facts.st_ino, facts.st_ctime_ns))

    def remove(self, taken: Taken) -> None:
        """Removes a file that was dealt with, unless another has taken its name meanwhile."""
        name, inode, changed_ns = taken.mark
        with self._opened() as folder, contextlib.suppress(FileNotFoundError):
            facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
            if (facts.st_ino, facts.st_ctime_ns) == (inode, changed_ns):
                os.unlink(name, dir_fd=folder)

    def put_aside(self, name: str, quarantine: Path) -> None:
        """Moves whatever has that name, without looking into it; if it cannot be moved, it is passed over until it changes.

        Raises:
            OSError: It could not be moved.
        """
        with self._opened() as folder:
            try:
                os.rename(name, free_name(quarantine, name), src_dir_fd=folder)
            except FileNotFoundError:
                raise
            except OSError:
                facts = os.stat(name, dir_fd=folder, follow_symlinks=False)
                self._stuck.add((name, facts.st_ino, facts.st_ctime_ns))
                raise


def command_id_of(name: str) -> str:
    """Returns the command id a file name stands for.

    Raises:
        BadInput: It is not usable as one.
    """
    command_id = name.removesuffix(SUFFIX)
    if NAME.fullmatch(command_id) is None:
        raise BadInput(
            f"{command_id[:80]!r} is not a usable command id",
            field="(file name)",
            hint="use 1 to 64 letters, digits, '.', '_' or '-' before .json",
        )
    return command_id


def free_name(folder: Path, name: str) -> Path:
    """Returns a path in the folder that nothing has yet: the name, or the name with a number."""
    name = os.fsdecode(os.fsencode(name)[:NAME_BYTES_MAX])
    target = folder / name
    number = 2
    while os.path.lexists(target):
        target = folder / f"{name}.{number}"
        number += 1
    return target


def keep_newest(folder: Path, count: int) -> None:
    """Removes the oldest files beyond `count`; a folder only if it is empty, as what is in it is not ours to delete."""
    with os.scandir(folder) as entries:
        found = [(entry.stat(follow_symlinks=False).st_ctime_ns, entry.path, entry.is_dir(follow_symlinks=False)) for entry in entries]
    for _, path, is_folder in sorted(found)[: max(0, len(found) - count)]:
        with contextlib.suppress(OSError):
            if is_folder:
                os.rmdir(path)
            else:
                os.unlink(path)


def _open(folder: int, name: str) -> int:
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    except FileNotFoundError:
        raise
    except OSError as exc:
        if exc.errno in PASSING:
            raise
        raise BadInput(f"the file cannot be opened: {exc.strerror}", field="(file)", hint="make it readable for its owner") from exc


def _check(facts: os.stat_result, bytes_max: int) -> None:
    if stat.S_ISLNK(facts.st_mode):
        raise BadInput("this is a symbolic link", field="(file)", hint="write the file itself; links are not followed")
    if not stat.S_ISREG(facts.st_mode):
        raise BadInput("this is not a regular file", field="(file)", hint="write a file with the command as JSON")
    if facts.st_uid != os.geteuid():
        raise BadInput("the file belongs to another user", field="(file)", hint="commands are taken from the user the orchestra runs as")
    if facts.st_size > bytes_max:
        raise _too_large(bytes_max)


def _too_large(bytes_max: int) -> BadInput:
    return BadInput(f"the file is larger than {bytes_max} bytes", field="(file)", hint="send less at a time, or raise limits.request_bytes")
