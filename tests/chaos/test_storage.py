"""Full disks, power cuts and damaged files under a whole orchestra. Needs root, loop devices and ext4; fails where they are missing.

A power cut: everything lies on an ext4 on a loop device. The writers are stopped, the file behind the device is copied (which is what had reached the disk
and nothing more: dirty pages are only in memory), and the copy is mounted as the disk of the machine that comes up again.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from random import Random
from shutil import copyfile, which
from tempfile import mkdtemp
from typing import Final

import pytest

import orchestra.ledger
from orchestra.clocks.system import SystemClock
from orchestra.ledger import StoredEvent
from orchestra.ledgers import care
from orchestra.ledgers import sqlite_format as fmt
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import check_chain
from orchestra.testing.hosted import end_processes
from orchestra.usecases import Empty
from tests.chaos.support import (
    Orchestra,
    check_exactly_once,
    command,
    plan_text,
    require,
    require_root,
    rounds,
    strike,
    wait_a_while,
    wait_for,
)
from tests.chaos.support import (
    orchestra as an_orchestra,
)

pytestmark = pytest.mark.timeout(300)

SHM: Final = Path("/dev/shm")
DISK_BYTES: Final = 96 << 20
CUTS: Final = rounds(5, 20, "ORCHESTRA_CHAOS_CUTS")
ENVIRONMENT: Final = {**os.environ, "PYTHONPATH": str(Path(orchestra.ledger.__file__).parents[1])}

WRITER: Final = """
import sys
from pathlib import Path
from orchestra.clocks.system import SystemClock
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.testing.conformance.ledger import make_append

ledger = SqliteLedger.open(Path(sys.argv[1]), SqliteOptions(checkpoint_pages=200), SystemClock())
term, seq = ledger.claim_term(), ledger.tail().seq
while True:
    done = ledger.append(make_append(f"{term}-{seq}", seq, *[b"%d " % seq * 100] * (1 + seq % 5), term=term))
    seq = done.last_seq
    print(seq, done.hash.hex(), flush=True)
"""


# --- disks of our own --------------------------------------------------------------------------------------------------


@contextmanager
def small_disk(at: Path, mebibytes: int) -> Iterator[Path]:
    """Mounts a tmpfs of so many MiB."""
    require_root()
    at.mkdir()
    command("mount", "-t", "tmpfs", "-o", f"size={mebibytes}m", "tmpfs", at)
    try:
        yield at
    finally:
        command("umount", "-l", at)


@contextmanager
def loop_disk(image: Path, at: Path) -> Iterator[Path]:
    """Mounts a file as an ext4 disk."""
    at.mkdir(exist_ok=True)
    device = command("losetup", "--find", "--show", image).strip()
    try:
        command("mount", "-t", "ext4", device, at)
        try:
            yield at
        finally:
            if subprocess.run(["umount", at], capture_output=True, check=False).returncode != 0:
                command("umount", "-l", at)
    finally:
        command("losetup", "--detach", device)


@pytest.fixture
def images() -> Iterator[Path]:
    """A folder in memory for the files behind loop devices: a copy of one is quick and consistent."""
    require_root()
    require(which("mkfs.ext4"), "mkfs.ext4 (Debian package e2fsprogs)")
    require(Path("/dev/loop-control").exists(), "loop devices")
    folder = Path(mkdtemp(prefix="mt-chaos-", dir=SHM))
    try:
        yield folder
    finally:
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()


def make_image(path: Path) -> Path:
    with path.open("wb") as file:
        file.truncate(DISK_BYTES)
    command("mkfs.ext4", "-q", "-F", path)
    return path


# --- full --------------------------------------------------------------------------------------------------------------


def fill(disk: Path) -> Path:
    """Takes all the space there is; returns the file that has it."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file:
        for size in (1 << 20, 4096, 1):
            try:
                while True:
                    file.write(b"\0" * size)
            except OSError:
                continue
    return ballast


def test_a_disk_that_is_full_for_a_while_loses_nothing(tmp_path: Path) -> None:
    with ExitStack() as stack:
        disk = stack.enter_context(small_disk(tmp_path / "disk", 160))
        stage = stack.enter_context(an_orchestra(tmp_path, disk / "root"))
        stage.up(4)
        name = stage.submit(plan_text(60, tmp_path))
        wait_for(lambda: len(stage.log()) >= 30, "the plan under way")
        ballast = fill(disk)
        try:
            says = wait_for(lambda: trouble(stage), "health to say that the disk is full", seconds=20)
            assert "full" in says or "space" in says
            before = stage.tail()
            wait_a_while(lambda: stage.tail() != before, 2)
            assert stage.tail() == before, "nothing is accepted while nothing can be kept"
        finally:
            ballast.unlink()
        stage.wait_plan(name)
        wait_for(lambda: not trouble(stage), "health to be well again")
        stage.down()
        check_exactly_once(stage, 60)


def trouble(stage: Orchestra) -> str:
    """Returns what health says of checks that are not well, or empty."""
    try:
        view = stage.ask(lambda use_cases: use_cases.health(Empty()), seconds=3)
    except TimeoutError:
        return ""
    return "; ".join(f"{check.name}: {check.detail}" for check in view.checks if not check.ok)


# --- the power is cut --------------------------------------------------------------------------------------------------


def test_a_power_cut_loses_no_acknowledged_append(tmp_path: Path, images: Path) -> None:
    chance = Random(20)
    image = make_image(images / "disk-0")
    acknowledged: dict[int, str] = {}
    for cut in range(CUTS):
        with loop_disk(image, tmp_path / "disk") as disk:
            told = write_a_while(disk / "ledger", chance.randrange(20, 300))
            image = Path(copyfile(image, images / f"disk-{cut + 1}"))
            end_processes({told.pid: ""})
            acknowledged.update(rest_of(told))
        (images / f"disk-{cut}").unlink()
        with loop_disk(image, tmp_path / "disk") as disk:
            events = read_again(disk / "ledger")
            assert {seq: events[seq - 1].hash.hex() for seq in acknowledged if seq <= len(events)} == acknowledged
    assert len(acknowledged) >= 20 * CUTS


class Writer:
    """A process that appends, stopped, with what it said so far."""

    def __init__(self, process: subprocess.Popen[str], said: list[str]) -> None:
        self.process = process
        self.pid = process.pid
        self.said = said


def write_a_while(folder: Path, appends: int) -> Writer:
    """Starts a writer and stops it after so many acknowledgements."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], env=ENVIRONMENT, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    said = [process.stdout.readline() for _ in range(appends)]
    strike(process.pid, signal.SIGSTOP)
    wait_for(lambda: state_of(process.pid) == "T", "a stopped writer")
    return Writer(process, said)


def rest_of(writer: Writer) -> dict[int, str]:
    """Returns all that a writer acknowledged, also what was still in the pipe when it was stopped."""
    assert writer.process.stdout is not None
    lines = writer.said + [line for line in writer.process.stdout if line.endswith("\n")]
    writer.process.wait(timeout=30)
    writer.process.stdout.close()
    return {int(seq): link for seq, link in (line.split() for line in lines)}


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def read_again(folder: Path) -> list[StoredEvent]:
    """Opens a ledger as a coordinator would, after a power cut."""
    with closing(SqliteLedger.open(folder, SqliteOptions(), SystemClock())) as ledger:
        events = list(ledger.read())
    check_chain(events)
    assert care.verify(folder).ok
    return events


def test_a_power_cut_under_a_whole_orchestra(tmp_path: Path, images: Path) -> None:
    """What the machine knew is gone with it: processes, memory, the folder of sockets. Only the disk is there when it comes up again."""
    first, second = make_image(images / "disk-0"), images / "disk-1"
    at = tmp_path / "disk"
    with ExitStack() as stack:
        with loop_disk(first, at):
            stage = stack.enter_context(an_orchestra(tmp_path, at / "root"))
            stage.up(4)
            name = stage.submit(plan_text(60, tmp_path))
            wait_for(lambda: len(stage.log()) >= 40, "the plan under way")
            for pid in stage.processes():
                strike(pid, signal.SIGSTOP)
            seen = stage.tail()
            copyfile(first, second)
            end_processes(stage.processes())
            wait_for(lambda: not stage.processes(), "the end of everything")
            stage.remove_runtime()
        stack.enter_context(loop_disk(second, at))
        try:
            stage.up(4)
            assert stage.tail().seq >= seen.seq
            stage.wait_plan(name)
            stage.down()
            check_exactly_once(stage, 60)
        finally:
            end_processes(stage.processes())
            wait_a_while(lambda: not stage.processes(), 10)


# --- damaged files -----------------------------------------------------------------------------------------------------


def damage(database: Path, how: str, chance: Random) -> None:
    """Cuts a file short, or flips a bit in what it says last."""
    size = database.stat().st_size
    if how == "truncated":
        os.truncate(database, size // 2)
        return
    with database.open("r+b") as file:
        for _ in range(40):
            at = chance.randrange(4096, size)
            file.seek(at)
            byte = file.read(1)[0]
            file.seek(at)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))


@pytest.mark.parametrize("how", ["truncated", "flipped"])
def test_up_refuses_a_damaged_ledger_names_the_repair_and_goes_on_after_it(tmp_path: Path, how: str) -> None:
    with an_orchestra(tmp_path) as stage:
        stage.up(4)
        stage.wait_plan(stage.submit(plan_text(20, tmp_path)))
        stage.down()
        before = stage.tail().seq
        damage(stage.place.ledger / fmt.DATABASE_NAME, how, Random(3))
        refused = stage.run("up", "--agents", "4")
        assert refused.returncode != 0
        assert "orchestra ledger repair" in refused.stdout + refused.stderr, refused.stderr
        assert not stage.coordinator()
        assert stage.run("ledger", "verify").returncode == 65
        assert stage.run("ledger", "repair", "--yes").returncode != 0, "a loss has to be accepted in words"
        repaired = stage.run("ledger", "repair", "--yes", "--accept-data-loss")
        assert repaired.returncode == 0, repaired.stderr
        assert stage.run("ledger", "verify").returncode == 0
        assert stage.tail().seq < before
        stage.up(4)
        done = stage.run("task", "submit", "writes a word", "--run", f"echo word > {tmp_path}/word")
        assert done.returncode == 0, done.stderr
        wait_for((tmp_path / "word").exists, "a task after the repair")
        stage.down()
    assert care.verify(stage.place.ledger).ok
