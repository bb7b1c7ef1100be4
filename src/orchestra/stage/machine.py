"""What the machine of a node is and how busy it is."""

from __future__ import annotations

import os
import sys
from typing import Any

from .files import read_bytes
from .journal import now_ms
from .processes import boot_id


def _cpu_times() -> tuple[int, int]:
    """(busy, all) ticks since the start of the machine."""
    fields = (read_bytes("/proc/stat") or b"").split(b"\n", 1)[0].split()[1:9]
    values = [int(field) for field in fields]
    return (sum(values) - sum(values[3:5]), sum(values)) if values else (0, 0)


class Facts:
    """What the machine is and how busy it is."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cpu = _cpu_times()
        self.cpu_percent = 0.0

    def fixed(self) -> dict[str, Any]:
        """As in `hello`."""
        disk = os.statvfs(self.base)
        version = ".".join(str(part) for part in sys.version_info[:3])
        facts = {"v": 1, "pid": os.getpid(), "python": version, "boot": boot_id(), "host": os.uname().nodename}
        facts.update(cpus=os.cpu_count() or 1, memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        facts.update(disk_free_bytes=disk.f_bavail * disk.f_frsize, ms=now_ms(), uid=os.getuid())
        return facts

    def current(self) -> dict[str, Any]:
        """As in `facts`: the CPU since the last question, memory and load now."""
        busy, whole = _cpu_times()
        if whole > self.cpu[1]:
            self.cpu_percent = round(100.0 * (busy - self.cpu[0]) / (whole - self.cpu[1]), 1)
            self.cpu = (busy, whole)
        memory: dict[bytes, int] = {}
        for line in (read_bytes("/proc/meminfo") or b"").splitlines():
            name, _, value = line.partition(b":")
            memory[name] = int(value.split()[0])
        total = memory.get(b"MemTotal", 0)
        percent = round(100.0 * (1 - memory.get(b"MemAvailable", 0) / total), 1) if total else 0.0
        return dict(self.fixed(), cpu_percent=self.cpu_percent, memory_percent=percent, load_1m=round(os.getloadavg()[0], 2))
