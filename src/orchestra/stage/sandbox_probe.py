"""Whether `bwrap` can make a sandbox on this machine: it may be installed and yet be forbidden to, as in most containers."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
else:
    import _signal as signal  # the C half, see loop.py

SANDBOX_OPTIONS = (
    *("--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"),
    *("--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc"),
)
"""What every sandbox begins with. Whoever is root gives up the rights that would lead out of it.

Not among them is a name space for System V IPC: its end alone takes the kernel 20 ms, five times as long as all else together. Shared memory by files
(`/dev/shm`) is private as it is.
"""
SAID_CHARS = 300

_working: set[str] = set()


def problem_with(program: str) -> str:
    """Why this bwrap cannot make a sandbox, or nothing. One that did is not asked again by this process."""
    if program in _working:
        return ""
    read_end, write_end = os.pipe()
    try:
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            actions = [(os.POSIX_SPAWN_DUP2, null, 0), (os.POSIX_SPAWN_DUP2, null, 1), (os.POSIX_SPAWN_DUP2, write_end, 2)]
            argv = [program, *SANDBOX_OPTIONS, "--", "/bin/sh", "-c", ":"]
            defaults = (signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)
            pid = os.posix_spawn(program, argv, {"LC_ALL": "C"}, file_actions=actions, setsigmask=(), setsigdef=defaults)
        finally:
            os.close(null)
    except OSError as problem:
        return str(problem)
    finally:
        os.close(write_end)
        said = _all_of(read_end)
    status = os.waitpid(pid, 0)[1]
    if status == 0:
        _working.add(program)
        return ""
    return said or "it ended with status %d" % status


def _all_of(fd: int) -> str:
    """What a pipe brings until everybody has closed it, in one line."""
    parts: list[bytes] = []
    try:
        while True:
            part = os.read(fd, 4096)
            if not part:
                return " ".join(b"".join(parts).decode("utf-8", "replace").split())[-SAID_CHARS:]
            parts.append(part)
    finally:
        os.close(fd)
