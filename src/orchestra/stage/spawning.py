"""Starting a program: a session of its own, only the files it was given, its limits."""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from typing import Any
else:
    import _signal as signal  # the C half, see loop.py


ALL_SIGNALS = sorted(set(signal.valid_signals()) - {signal.SIGKILL, signal.SIGSTOP})
"""To have all set to their defaults takes the C library half the calls of having some: it asks about each of the others."""


def found_program(name: str, path: str) -> str:
    """The file that a name means in this PATH, or the name itself if it says where it is."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "not found in PATH", name)


def spawn(argv: list[str], env: dict[str, str], cwd: str, fds: tuple[int, ...], umask: int = 0o022) -> int:
    """Starts a program in a session of its own, with only these files open, as 0, 1 and so on. vfork and exec in the C library: 0.1 ms."""
    os.chdir(cwd)
    own_umask = os.umask(umask)
    try:
        program = found_program(argv[0], env.get("PATH", os.defpath))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        try:
            return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=ALL_SIGNALS)
        except NotImplementedError:  # a C library that cannot make a session
            pid = os.fork()
            if pid == 0:
                _exec_in_child(program, argv, env, fds)
            return pid
    finally:
        os.umask(own_umask)
        os.chdir("/")


def _exec_in_child(program: str, argv: list[str], env: dict[str, str], fds: tuple[int, ...]) -> None:
    try:
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        for one in ALL_SIGNALS:
            signal.signal(one, signal.SIG_DFL)
        os.execve(program, argv, env)
    finally:
        os._exit(127)


def forget_typed() -> None:
    """What was typed in the window while nothing ran is not meant for what runs next."""
    import termios

    try:
        termios.tcflush(0, termios.TCIFLUSH)
    except (OSError, termios.error):
        pass  # no terminal, or no longer


def apply_limits(pid: int, limits: dict[str, Any]) -> None:
    """Limits of the process just started; what it starts later inherits them. It has not left the dynamic linker yet."""
    if not limits:
        return
    import resource

    prlimit = getattr(resource, "prlimit", None)
    for kind, value, spare in ((resource.RLIMIT_CPU, limits.get("cpu_seconds"), 5), (resource.RLIMIT_NOFILE, limits.get("open_files"), 0)):
        if value and prlimit is not None:
            hard = resource.getrlimit(kind)[1]
            top = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
            try:
                prlimit(pid, kind, (min(value, top), top))
            except (OSError, ValueError):
                pass  # it is over already, or it may not be limited
    if limits.get("nice"):
        try:
            os.setpriority(os.PRIO_PROCESS, pid, limits["nice"])
        except OSError:
            pass
