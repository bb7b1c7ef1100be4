"""What the machine of a node is and how busy it is."""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from .files import read_bytes
from .journal import now_ms
from .processes import boot_id

FOUND_S = 30.0  # for which it is remembered where a program is


def _cpu_times() -> tuple[int, int]:
    """(busy, all) ticks since the start of the machine."""
    fields = (read_bytes("/proc/stat") or b"").split(b"\n", 1)[0].split()[1:9]
    values = [int(field) for field in fields]
    return (sum(values) - sum(values[3:5]), sum(values)) if values else (0, 0)


def _memory() -> dict[bytes, int]:
    """Bytes by the names of /proc/meminfo. Empty where there is none."""
    found = {}
    for line in (read_bytes("/proc/meminfo") or b"").splitlines():
        name, _, value = line.partition(b":")
        found[name] = int(value.split()[0]) * 1024
    return found


def _path_of(name: str) -> str | None:
    """Where a program is: in this process's PATH, or where a login would have added it."""
    folders = os.environ.get("PATH", os.defpath).split(":")
    folders += [os.path.expanduser("~/.local/bin"), "/usr/local/bin"]
    for folder in folders:
        path = os.path.join(folder, name)
        if os.path.isabs(path) and os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    return None


class Facts:
    """What the machine is and how busy it is."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cpu = _cpu_times()
        self.cpu_percent = 0.0
        self.found: dict[str, str | None] = {}
        self.found_due = 0.0

    def fixed(self) -> dict[str, Any]:
        """As in `hello`."""
        disk = os.statvfs(self.base)
        version = ".".join(str(part) for part in sys.version_info[:3])
        facts = {"v": 1, "pid": os.getpid(), "python": version, "boot": boot_id(), "host": os.uname().nodename}
        facts.update(cpus=os.cpu_count() or 1, memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        facts.update(disk_free_bytes=disk.f_bavail * disk.f_frsize, ms=now_ms(), uid=os.getuid())
        facts.update(memory_available_bytes=_memory().get(b"MemAvailable", 0), load_1m=round(os.getloadavg()[0], 2))
        return facts

    def current(self) -> dict[str, Any]:
        """As in `facts`: the CPU since the last question, the rest now."""
        busy, whole = _cpu_times()
        if whole > self.cpu[1]:
            self.cpu_percent = round(100.0 * (busy - self.cpu[0]) / (whole - self.cpu[1]), 1)
            self.cpu = (busy, whole)
        memory = _memory()
        total = memory.get(b"MemTotal", 0)
        percent = round(100.0 * (1 - memory.get(b"MemAvailable", 0) / total), 1) if total else 0.0
        return dict(self.fixed(), cpu_percent=self.cpu_percent, memory_percent=percent)

    def programs(self, names: list[str]) -> dict[str, str]:
        """name -> absolute path of those that are installed. Looked up once in half a minute."""
        moment = time.monotonic()
        if moment >= self.found_due:
            self.found, self.found_due = {}, moment + FOUND_S
        for name in names:
            if name not in self.found:
                self.found[name] = _path_of(name)
        return {name: path for name in names for path in [self.found[name]] if path is not None}
