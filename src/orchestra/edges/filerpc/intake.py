"""Takes command files from a folder that others can write to, and trusts nothing about them.

Only a complete regular file of ours counts: opened without following links and without blocking, owned by this user, linked once, not larger than the
limit. What is written in place instead of renamed may be half there when we look, so content that is not JSON yet gets a moment to settle.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import BadInput
from orchestra.ids import NAME

SUFFIX: Final = ".json"
SETTLE_MS: Final = 2000
"""A file that was not touched for so long is as complete as it will ever be."""


class Taken(msgspec.Struct, frozen=True):
    """One command file as read."""

    command_id: str
    body: bytes
    settled: bool
    """It was not changed recently: what is wrong with it now stays wrong."""


def candidates(folder: Path) -> list[str]:
    """Returns the names of files that may be commands, oldest first (by time, then by name)."""
    found: list[tuple[int, str]] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                try:
                    found.append((entry.stat(follow_symlinks=False).st_mtime_ns, entry.name))
                except FileNotFoundError:
                    continue
    return [name for _, name in sorted(found)]


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


def take(folder: Path, name: str, *, bytes_max: int, now_ms: int) -> Taken:
    """Reads one file.

    Raises:
        BadInput: It is not an acceptable file.
        FileNotFoundError: It is gone.
    """
    command_id = command_id_of(name)
    try:
        descriptor = os.open(folder / name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as exc:
        raise BadInput(f"the file cannot be opened: {exc.strerror}", field="(file)", hint="links and special files are not taken") from exc
    with open(descriptor, "rb") as file:
        facts = os.fstat(file.fileno())
        _check(facts, bytes_max)
        body = file.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise BadInput(
            f"the file is larger than {bytes_max} bytes", field="(file)", hint="send less at a time, or raise limits.request_bytes"
        )
    return Taken(command_id, body, abs(now_ms - facts.st_mtime_ns // 1_000_000) >= SETTLE_MS)


def _check(facts: os.stat_result, bytes_max: int) -> None:
    if not stat.S_ISREG(facts.st_mode):
        raise BadInput("this is not a regular file", field="(file)", hint="write a file with the command as JSON")
    if facts.st_uid != os.getuid():
        raise BadInput("the file belongs to another user", field="(file)", hint="commands are taken from the user the orchestra runs as")
    if facts.st_nlink != 1:
        raise BadInput("the file has several names (hard links)", field="(file)", hint="write a file of its own")
    if facts.st_size > bytes_max:
        raise BadInput(
            f"the file is larger than {bytes_max} bytes", field="(file)", hint="send less at a time, or raise limits.request_bytes"
        )
