"""Control groups: the kernel keeps an attempt's limits where this user may make a group."""

from __future__ import annotations

import os

from .files import read_bytes, remove_folders
from .processes import LINUX

PERIOD_US = 100000  # of the kernel's accounting of processors


class Cgroup:
    """A control group for one attempt, where this user may make one. Without it the limits are kept by measuring."""

    def __init__(self, name: str, memory_bytes: int | None, processes_max: int | None, cpus: int | None = None) -> None:
        self.folders: list[str] = []
        quota_us = PERIOD_US * cpus if cpus else None
        files = {
            "memory": ("memory.limit_in_bytes", memory_bytes),
            "pids": ("pids.max", processes_max),
            "cpu": ("cpu.cfs_quota_us", quota_us),
            "cpu,cpuacct": ("cpu.cfs_quota_us", quota_us),
        }
        if not LINUX or not (memory_bytes or processes_max or cpus):
            return
        for line in (read_bytes("/proc/self/cgroup") or b"").decode().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                unified = {"memory.max": memory_bytes, "pids.max": processes_max, "cpu.max": quota_us}
                self._make("/sys/fs/cgroup%s/%s" % (path.rstrip("/"), name), unified)
            elif controllers in files and files[controllers][1]:
                self._make("/sys/fs/cgroup/%s%s/%s" % (controllers, path.rstrip("/"), name), dict([files[controllers]]))

    def _make(self, folder: str, limits: dict[str, int | None]) -> None:
        wanted = {file: value for file, value in limits.items() if value}
        try:
            os.mkdir(folder)
        except OSError:
            return
        try:
            for file, value in wanted.items():
                fd = os.open("%s/%s" % (folder, file), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"%d" % value)  # of cpu.max the period stays what it is, 100 ms
                finally:
                    os.close(fd)
        except OSError:
            os.rmdir(folder)
            return
        self.folders.append(folder)

    def add(self, pid: int) -> None:
        """Puts a process in, before it has had the time to start others."""
        for folder in self.folders:
            try:
                fd = os.open(folder + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"%d" % pid)
                finally:
                    os.close(fd)
            except OSError:
                pass

    def out_of_memory(self) -> bool:
        """Whether the kernel ended one of its processes for want of memory."""
        for folder in self.folders:
            for file in ("/memory.oom_control", "/memory.events"):
                for line in (read_bytes(folder + file) or b"").splitlines():
                    if line.startswith(b"oom_kill ") and line != b"oom_kill 0":
                        return True
        return False

    def close(self) -> None:
        """Removes the group; what is not empty yet stays."""
        remove_folders(self.folders)
        self.folders = []
