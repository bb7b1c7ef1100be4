"""Processes by the namespace they are in, and ways to wait for their end."""

from __future__ import annotations

import fcntl
import os
import select
import signal
from pathlib import Path
from typing import Final, Literal

WAIT_S: Final = 15.0
"""Longest the lab waits for a process or a port; a deadline, never a measure."""

NS_GET_PARENT: Final = 0xB702
"""The kernel's request, see ioctl_ns(2)."""

Kind = Literal["net", "pid"]


def namespace_of(pid: int, kind: Kind) -> int:
    """Returns the inode number of a process's namespace, or 0 if the process is gone."""
    try:
        return os.stat(f"/proc/{pid}/ns/{kind}").st_ino
    except OSError:
        return 0


def pids_in(kind: Kind, inode: int) -> list[int]:
    """Returns the processes in a namespace, and of processes those in namespaces below it too, as sandboxes have; zombies do not count."""
    pids = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
    inside: dict[int, bool] = {0: False, inode: True}
    found = []
    for pid in pids:
        own = namespace_of(pid, kind)
        if own not in inside:
            inside[own] = kind == "pid" and is_below(pid, inode)
        if inside[own] and started_at(pid):
            found.append(pid)
    return found


def is_below(pid: int, inode: int) -> bool:
    """Tells whether a process is in a process namespace that was made in this one, or in one of those."""
    try:
        descriptor = os.open(f"/proc/{pid}/ns/pid", os.O_RDONLY | os.O_CLOEXEC)
        while os.fstat(descriptor).st_ino != inode:
            try:
                above = fcntl.ioctl(descriptor, NS_GET_PARENT)
            finally:
                os.close(descriptor)
            descriptor = above
    except OSError:  # the process is gone, or this was the topmost
        return False
    os.close(descriptor)
    return True


def started_at(pid: int) -> int:
    """Returns when a process was started, in the kernel's ticks; 0 if it has ended. Tells a process from a later one with its pid."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    return 0 if fields[0] in "ZX" else int(fields[19])


def parent_of(pid: int) -> int:
    """Returns a process's parent, or 0."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def name_of(pid: int) -> str:
    """Returns the name the kernel has for a process, or an empty text."""
    try:
        return Path(f"/proc/{pid}/comm").read_text(errors="replace").strip()
    except OSError:
        return ""


def command_of(pid: int) -> str:
    """Returns a process's command line in one string; its name in brackets if it has none."""
    try:
        line = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""
    return line or f"[{name_of(pid)}]"


def send_signal(pid: int, number: int) -> None:
    """Signals a process if it is still there."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def end_process(pid: int, number: int = signal.SIGKILL) -> bool:
    """Signals a process and waits for its end; tells whether it came."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        signal.pidfd_send_signal(handle, number)
        return bool(select.select([handle], [], [], WAIT_S)[0])
    except ProcessLookupError:
        return True
    finally:
        os.close(handle)


def holders_of(kind: Kind, inode: int, *, but: frozenset[int] = frozenset()) -> list[str]:
    """Returns what keeps a namespace alive: processes, threads, descriptors and mounts, as sentences; `but` are descriptors of this process."""
    link = f"{kind}:[{inode}]"
    found = [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if link in line]
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        pid = int(name)
        if any(_points_at(f"/proc/{pid}/task/{task}/ns/{kind}", link) for task in _listing(f"/proc/{pid}/task")):
            found.append(f"process {pid} {command_of(pid)}")
        for fd in _listing(f"/proc/{pid}/fd"):
            mine = pid == os.getpid() and int(fd) in but
            if not mine and _points_at(f"/proc/{pid}/fd/{fd}", link):
                found.append(f"descriptor {fd} of process {pid} {command_of(pid)}")
    return found


def _listing(path: str) -> list[str]:
    try:
        return os.listdir(path)
    except OSError:
        return []


def _points_at(path: str, link: str) -> bool:
    try:
        return os.readlink(path) == link
    except OSError:
        return False
