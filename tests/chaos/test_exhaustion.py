"""Running out of things: descriptors under many clients, processes in a control group, and a flood of output beside short tasks."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import which
from typing import Final

import pytest

from tests.chaos.support import (
    CONFIG,
    Orchestra,
    check_exactly_once,
    command,
    orchestra,
    plan_text,
    require,
    require_root,
    rss_kib,
    task_lines,
    wait_a_while,
    wait_for,
)

pytestmark = pytest.mark.timeout(240)

FILES_MAX: Final = 64
CLIENTS: Final = 100
FLOODERS: Final = 20
FLOOD_LINES: Final = 100_000
SHORT_TASKS: Final = 200
RSS_KIB_MAX: Final = 150 * 1024
OUTPUT_BYTES: Final = 1 << 20
GROUPS: Final = (Path("/sys/fs/cgroup/pids"), Path("/sys/fs/cgroup"))


def test_a_coordinator_without_descriptors_for_its_clients_recovers(tmp_path: Path) -> None:
    require(which("prlimit"), "prlimit (Debian package util-linux)")
    with orchestra(tmp_path) as stage:
        stage.up(4)
        pid = stage.coordinator()
        name = stage.submit(plan_text(40, tmp_path))
        command("prlimit", "--pid", str(pid), f"--nofile={FILES_MAX}:{FILES_MAX * 64}")
        crowd = list(clients(stage.place.socket))
        try:
            assert len(crowd) > FILES_MAX // 2
            used = cpu_ticks(pid)
            wait_a_while(lambda: False, 2)
            busy = (cpu_ticks(pid) - used) / os.sysconf("SC_CLK_TCK")
            assert busy < 1.5, f"it turns in circles: {busy:.1f} s of processor time in 2 s"
        finally:
            for client in crowd:
                client.close()
        stage.wait_plan(name)
        assert stage.coordinator() == pid, "it recovered by itself"
        stage.down()
    check_exactly_once(stage, 40)


def clients(path: Path) -> Iterator[socket.socket]:
    """Connects as often as it goes; nobody says anything."""
    for _ in range(CLIENTS):
        client = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        client.settimeout(2)
        try:
            client.connect(str(path))
        except OSError:
            client.close()
            return
        yield client


def cpu_ticks(pid: int) -> int:
    """Returns the processor time a process has used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])


@contextmanager
def control_group(stage: Orchestra) -> Iterator[Path]:
    """Makes a control group with a limit on processes; whatever is in it goes back before it is removed."""
    require_root()
    parent = next((path for path in GROUPS if can_limit(path)), None)
    require(parent, "a control group where the number of processes can be limited")
    assert parent is not None
    group = parent / f"mt-chaos-{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        wait_a_while(lambda: not stage.processes(), 10)
        for pid in (group / "cgroup.procs").read_text().split():
            with suppress(OSError):
                (parent / "cgroup.procs").write_text(pid)
        wait_a_while(lambda: not (group / "cgroup.procs").read_text(), 5)
        group.rmdir()


def can_limit(parent: Path) -> bool:
    """Tells whether a group below has `pids.max`."""
    probe = parent / f"mt-chaos-probe-{os.getpid()}"
    try:
        probe.mkdir()
    except OSError:
        return False
    try:
        return (probe / "pids.max").exists()
    finally:
        probe.rmdir()


def test_agents_that_get_no_processes_fail_and_are_tried_again(tmp_path: Path) -> None:
    with orchestra(tmp_path) as stage, control_group(stage) as group:
        stage.up(4)
        for worker in stage.parts("worker"):
            (group / "cgroup.procs").write_text(str(worker))
        (group / "pids.max").write_text("1")
        name = stage.submit(plan_text(20, tmp_path))
        wait_for(lambda: refused_starts(group), "a start that the limit refuses")
        (group / "pids.max").write_text("max")
        stage.wait_plan(name)
        stage.down()
    check_exactly_once(stage, 20)


def refused_starts(group: Path) -> int:
    """Returns how often the kernel refused a process in the group."""
    events = group / "pids.events"
    return sum(int(line.split()[1]) for line in events.read_text().splitlines()) if events.exists() else 0


FLOOD_CONFIG: Final = CONFIG.replace("losses_max: 100", f"losses_max: 100, output_file_bytes: {OUTPUT_BYTES}")


def test_a_flood_of_output_drowns_nobody(tmp_path: Path) -> None:
    lines = ["name: p", "tasks:"]
    for number in range(FLOODERS):
        lines += task_lines(f"flood{number}", work=f"yes flood of output {number} | head -n {FLOOD_LINES}")
    for number in range(SHORT_TASKS):
        lines += task_lines(f"short{number}", work="true", check=False)
    with orchestra(tmp_path, config=FLOOD_CONFIG) as stage:
        stage.up(FLOODERS + 10)
        name = stage.submit("\n".join(lines).replace("$HERE", str(tmp_path)))
        most = {"coordinator": 0, "worker": 0, "courier": 0}
        wait_for(lambda: watch(stage, most) and stage.plan_status(name) != "running", "the end of the flood", seconds=180)
        stage.wait_plan(name)
        descriptors = len(list(Path(f"/proc/{stage.coordinator()}/fd").iterdir()))
        stage.down()
    check_exactly_once(stage, FLOODERS + SHORT_TASKS)
    assert max(most.values()) < RSS_KIB_MAX, most
    assert descriptors < FILES_MAX * 2
    attempts = stage.place.nodes / "local" / "attempts"
    assert max(path.stat().st_size for path in attempts.rglob("output.jsonl*")) <= OUTPUT_BYTES + (1 << 16)
    assert sum(path.stat().st_size for path in attempts.rglob("*") if path.is_file()) < FLOODERS * 2 * OUTPUT_BYTES + (SHORT_TASKS << 16)


def watch(stage: Orchestra, most: dict[str, int]) -> bool:
    """Notes the largest memory of each kind of part."""
    for kind, before in most.items():
        most[kind] = max([before, *(rss_kib(pid) for pid in stage.parts(kind))])
    return True
