"""Ending processes: TERM to the whole tree, KILL after the grace, and a look whether anything is left.

Nothing is signalled by its number alone, and what takes time is a generator, so that its caller's heart goes on beating.
"""

from __future__ import annotations

import os
import time

from .codec import read_json
from .files import read_bytes, remove_folders
from .processes import LINUX, boot_id, process, processes, with_descendants

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any
else:
    import _signal as signal  # the C half, see loop.py

ENDING_POLL_S = 0.02
STUBBORN_S = 10.0  # after KILL: what the kernel does not end in this time is reported, not waited for
GRACE_MS = 5000
ENV_TAG = "ORCHESTRA_ATTEMPT_DIR"


def tagged(table: Iterable[int], folder: str) -> list[int]:
    """Those whose environment names the attempt's folder."""
    if not LINUX:
        return []
    tag = ("\0%s=%s\0" % (ENV_TAG, folder)).encode()
    return [pid for pid in table if tag in b"\0" + (read_bytes("/proc/%d/environ" % pid) or b"")]


def remains(folder: str, child: dict[str, Any]) -> dict[int, str]:
    """pid -> start of what is left of an attempt whose worker is gone: child, its session, the tagged ones, and all below them."""
    table = processes()
    if child.get("boot") != boot_id():
        child = {}  # its number, and the names of its groups, mean nothing since the machine started anew
    pid, start = child.get("pid"), child.get("start")
    seeds = tagged(table, folder)
    if pid and (pid not in table or table[pid][2] == start):  # else the number is in other hands, and so is the session
        seeds += [other for other, facts in table.items() if facts[1] == pid or other == pid]
    for group in child.get("cgroups", []):
        seeds += [int(member) for member in (read_bytes(group + "/cgroup.procs") or b"").split()]
    return with_descendants(table, seeds)


def signal_processes(found: dict[int, str], number: int) -> None:
    """Sends a signal to those that are still who they were."""
    for pid, start in found.items():
        facts = process(pid)
        if facts is not None and facts[2] == start:
            try:
                os.kill(pid, number)
            except OSError:
                pass


def ending(find: Callable[[], dict[int, str]], grace_s: float, killed: dict[int, str], keeper: int = 0) -> Iterator[None]:
    """Ends what `find` finds, until it finds nothing: TERM once, KILL after the grace. Yields wherever the caller should wait a little.

    `keeper` holds a sandbox: it goes by itself when nothing is in it any more, and would take all with it at once if it was told to go.
    """
    deadline = time.monotonic() + grace_s
    asked: dict[int, str] = {}
    while True:
        left = find()
        moment = time.monotonic()
        if not left or moment > deadline + STUBBORN_S:
            return
        killed.update(left)
        if moment < deadline:
            fresh = {pid: start for pid, start in left.items() if asked.get(pid) != start and pid != keeper}
            signal_processes(fresh, signal.SIGTERM)
            signal_processes(fresh, signal.SIGCONT)  # a stopped process hears TERM only when it goes on
            asked.update(fresh)
        else:
            signal_processes(left, signal.SIGKILL)
        yield


def ending_lost(folder: str, child: dict[str, Any], killed: dict[int, str]) -> Iterator[None]:
    """Ends what a dead worker left of an attempt. `child` is what it noted of its program."""
    spec = read_json(folder + "/spec.json")
    grace_ms = spec.get("grace_ms", GRACE_MS) if isinstance(spec, dict) else GRACE_MS
    return ending(lambda: remains(folder, child), (grace_ms if isinstance(grace_ms, int) else GRACE_MS) / 1000, killed)


def forget_groups(child: dict[str, Any]) -> None:
    """Removes the control groups of an attempt that is lost; they are empty by now."""
    if child.get("boot") == boot_id():
        remove_folders(child.get("cgroups", []))


def lost_reason(child: dict[str, Any]) -> str:
    """Why an attempt is lost, in words."""
    return "worker died while it ended the attempt (%s)" % child["intent"] if child.get("intent") else "worker died"


def become_subreaper() -> None:
    """Orphans of the agent come back to this process instead of process 1. `_ctypes` alone loads in a third of the time of ctypes."""
    if not LINUX:
        return
    try:
        import _ctypes

        _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"), (36, 1, 0, 0, 0))  # type: ignore[arg-type]
    except (ImportError, AttributeError, OSError, TypeError):
        try:
            import ctypes

            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        except (ImportError, AttributeError, OSError):
            pass  # the environment tag still finds them
