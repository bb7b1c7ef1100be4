"""The folder a ledger lives in: who owns it, what file system it is on, and writing files so that they are there or not, never half."""

from __future__ import annotations

import fcntl
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import msgspec

from orchestra.errors import LedgerFailed, LedgerLocked

LOCK_NAME: Final = "coordinator.lock"
MOUNTS: Final = Path("/proc/self/mountinfo")

NETWORK_FILE_SYSTEMS: Final = frozenset(
    {
        *("9p", "afs", "autofs", "beegfs", "ceph", "cifs", "coda", "gfs2", "glusterfs", "gpfs", "lustre", "ncpfs", "nfs", "nfs4", "ocfs2"),
        *("fuse.glusterfs", "fuse.rclone", "fuse.s3fs", "fuse.sshfs", "smb2", "smb3", "smbfs"),
    }
)
"""Their locks and shared memory do not hold between machines; the write-ahead log needs both."""


class Holder(msgspec.Struct, frozen=True):
    """Who holds a folder."""

    pid: int
    host: str
    started_at_ms: int

    def __str__(self) -> str:
        started = datetime.fromtimestamp(self.started_at_ms / 1000, UTC).isoformat(timespec="seconds")
        return f"process {self.pid} on {self.host}, started {started}"


class FolderLock:
    """Ownership of a ledger folder. The kernel drops it when the process ends, however it ends."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    @classmethod
    def take(cls, folder: Path, now_ms: int) -> FolderLock:
        """Takes the folder or says who has it.

        Raises:
            LedgerLocked: Another coordinator (or a repair) holds it.
        """
        descriptor = os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = _read_holder(descriptor)
            os.close(descriptor)
            raise LedgerLocked(f"the ledger in {folder} is held by {holder}", hint="stop that coordinator first") from exc
        content = msgspec.json.encode(Holder(os.getpid(), socket.gethostname(), now_ms))
        try:
            os.pwrite(descriptor, content, 0)
            os.ftruncate(descriptor, len(content))
        except OSError:
            # The content only informs; a full disk must not keep a coordinator from reading its ledger.
            pass
        return cls(descriptor)

    def release(self) -> None:
        """Idempotent. The file stays: removing it would let two processes lock two files of the same name."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def _read_holder(descriptor: int) -> str:
    try:
        return str(msgspec.json.decode(os.pread(descriptor, 4096, 0), type=Holder))
    except msgspec.DecodeError:
        return "a process that has not said who it is"


def file_system_of(path: Path, mountinfo: str) -> str:
    """Returns the type of the file system that holds `path` (absolute, resolved) by a `/proc/self/mountinfo` text, or empty."""
    best, kind = -1, ""
    for line in mountinfo.splitlines():
        left, _, right = line.partition(" - ")
        fields = left.split(" ")
        if len(fields) < 5 or not right:
            continue
        point = Path(fields[4].encode().decode("unicode_escape"))
        if path.is_relative_to(point) and len(point.parts) >= best:
            best, kind = len(point.parts), right.split(" ")[0]
    return kind


def refuse_network_folder(folder: Path, mountinfo: Path = MOUNTS) -> None:
    """Refuses a folder whose file system cannot keep a write-ahead log.

    Raises:
        LedgerFailed: The folder is on a network file system.
    """
    if not mountinfo.exists():
        return
    kind = file_system_of(folder.resolve(), mountinfo.read_text(encoding="utf-8", errors="replace"))
    if kind in NETWORK_FILE_SYSTEMS:
        raise LedgerFailed(f"{folder} is on a network file system ({kind}); SQLite's log is not safe there", hint="use a local disk")


def fsync_folder(folder: Path) -> None:
    """Makes the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_atomically(path: Path, content: bytes) -> None:
    """Replaces a file: durable on return, and after a crash either the old content or the new."""
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_file(path: Path) -> None:
    """Makes a file's content survive a power cut. Not for a database that a connection of this process has open."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sibling(folder: Path, label: str, now_ms: int) -> Path:
    """Returns a dated path beside the folder that nothing has yet."""
    stamp = datetime.fromtimestamp(now_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    path = folder.with_name(f"{folder.name}.{label}-{stamp}")
    number = 1
    while path.exists():
        number += 1
        path = folder.with_name(f"{folder.name}.{label}-{stamp}-{number}")
    return path
