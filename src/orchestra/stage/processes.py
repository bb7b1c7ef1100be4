"""Who runs on this machine: by /proc on Linux, by `ps` elsewhere.

Nothing is known by its number alone: pid and start time name a process, and a zombie is not alive.
"""

from __future__ import annotations

import os
import sys
import time

from .files import read_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    Facts = tuple[int, int, str, str]  # parent, session, start, state

LINUX = sys.platform.startswith("linux")
BOOT_CLOCK = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)  # goes on while the machine sleeps, as the latter does on a Mac

_TICKS_A_SECOND = os.sysconf("SC_CLK_TCK")
_same_clock: list[bool] = []


def _stat(pid: int) -> Facts | None:
    """(parent, session, start, state) of a process of Linux. The name in it may hold blanks and brackets: count from the last one."""
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 2048)
    except OSError:
        return None
    finally:
        os.close(fd)
    fields = text[text.rfind(b")") + 2 :].split()
    return int(fields[1]), int(fields[3]), fields[19].decode(), fields[0].decode()


def _ps(*which: str) -> dict[int, Facts]:
    """The same by `ps`, where there is no /proc. The group stands for the session, which `ps` of macOS does not tell."""
    import subprocess

    argv = ["/bin/ps", *(which or ("-ax",)), "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"LC_ALL": "C"}) as asked:
        text = asked.communicate()[0].decode("ascii", "replace")
    table = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 9 and int(fields[0]) != asked.pid:  # it is a child of ours for as long as it looks
            start = int(time.mktime(time.strptime(" ".join(fields[4:]), "%a %b %d %H:%M:%S %Y")))
            table[int(fields[0])] = (int(fields[1]), int(fields[2]), str(start), fields[3][:1])
    return table


def process(pid: int) -> Facts | None:
    """(parent, session, start, state), or None if there is no such process or only its zombie is left."""
    facts = _stat(pid) if LINUX else _ps("-p", str(pid)).get(pid)
    return None if facts is None or facts[3] in "ZX" else facts


def processes() -> dict[int, Facts]:
    """All living processes."""
    if not LINUX:
        return {pid: facts for pid, facts in _ps().items() if facts[3] != "Z"}
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            facts = process(int(name))
            if facts is not None:
                table[int(name)] = facts
    return table


def alive(w: str, boot: str) -> bool:
    """Whether the process of this identity, `<pid>:<start>`, lives: since the machine last started, as both numbers come again after that."""
    pid, _, start = str(w).partition(":")
    facts = process(int(pid)) if pid.isdigit() and boot == boot_id() else None
    return facts is not None and facts[2] == start


def identity_of(pid: int) -> str:
    """`<pid>:<start>`."""
    facts = _stat(pid) if LINUX else _ps("-p", str(pid)).get(pid)
    return "%d:%s" % (pid, facts[2] if facts else "0")


def boot_ticks() -> int:
    """The time since the machine started, in the ticks that /proc counts start times in."""
    return time.clock_gettime_ns(BOOT_CLOCK) * _TICKS_A_SECOND // 1000000000


def start_of_child(pid: int, before: int, after: int) -> str:
    """Start time of a child that was started between these ticks of `boot_ticks`.

    If both are the same it is that one. /proc is not asked then, where the answer takes a tenth of a millisecond while the child is in its exec; but
    once it was asked whether its clock is this one.
    """
    if before == after and _same_clock == [True]:
        return str(before)
    start = identity_of(pid).partition(":")[2]
    if before == after and not _same_clock:
        _same_clock.append(LINUX and start == str(before))
    return start


def with_descendants(table: dict[int, Facts], seeds: Iterable[int]) -> dict[int, str]:
    """pid -> start of those of the seeds that live, and of all below them; never this process itself."""
    children: dict[int, list[int]] = {}
    for pid, facts in table.items():
        children.setdefault(facts[0], []).append(pid)
    found: dict[int, str] = {}
    stack = list(seeds)
    while stack:
        pid = stack.pop()
        if pid in table and pid not in found and pid > 1 and pid != os.getpid():
            found[pid] = table[pid][2]
            stack += children.get(pid, [])
    return found


def descendants(root: int) -> dict[int, str]:
    """pid -> start of every living process below this one. The kernel's lists of children spare a walk through all of /proc."""
    if not os.path.exists("/proc/%d/task/%d/children" % (root, root)):
        table = processes()
        return with_descendants(table, [pid for pid, facts in table.items() if facts[0] == root])
    found: dict[int, str] = {}
    stack = [root]
    while stack:
        pid = stack.pop()
        try:
            threads = os.listdir("/proc/%d/task" % pid)
        except OSError:
            continue
        for thread in threads:
            for child in (read_bytes("/proc/%d/task/%s/children" % (pid, thread)) or b"").split():
                facts = process(int(child))
                if facts is not None and int(child) not in found:
                    found[int(child)] = facts[2]
                    stack.append(int(child))
    return found


def resident_bytes(found: Iterable[int]) -> int:
    """Memory of these processes together. What is shared is counted once, as large as the largest shares."""
    own = shared_max = 0
    if not LINUX:
        import subprocess

        pids = ",".join(str(pid) for pid in found)
        text = subprocess.run(["ps", "-o", "rss=", "-p", pids], stdout=subprocess.PIPE, check=False).stdout if pids else b""
        return sum(int(field) for field in text.split()) * 1024
    for pid in found:
        fields = (read_bytes("/proc/%d/statm" % pid) or b"").split()
        if len(fields) > 2:
            own += int(fields[1]) - int(fields[2])
            shared_max = max(shared_max, int(fields[2]))
    return (own + shared_max) * os.sysconf("SC_PAGE_SIZE")


_boot: list[str] = []


def boot_id() -> str:
    """What changes when the machine starts anew. One word."""
    if not _boot:
        text = read_bytes("/proc/sys/kernel/random/boot_id")
        if text is None and not LINUX:
            import subprocess

            text = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.boottime"], stdout=subprocess.PIPE, check=False).stdout
        _boot.append((text or b"?").decode().strip().replace(" ", "_"))
    return _boot[0]
