"""SIGKILL and SIGSTOP of every part at random moments and at every failpoint, over a plan of a hundred tasks.

A moment is a number of lines that the tasks have written, so a seed means the same on a slow machine. `ORCHESTRA_CHAOS_ROUNDS` says how many rounds
(3 by default, 50 in the long mode, ORCHESTRA_CHAOS_LONG=1), `ORCHESTRA_CHAOS_SEED` with which seed they begin.
"""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Final, NamedTuple

import pytest

from orchestra.engine import failpoints
from orchestra.ledger import Tail
from orchestra.testing.hosted import is_gone
from tests.chaos.support import (
    Orchestra,
    check_exactly_once,
    check_prefix,
    orchestra,
    plan_text,
    rounds,
    started,
    strike,
    wait_a_while,
    wait_for,
)

pytestmark = pytest.mark.timeout(300)

TASKS: Final = 100
KINDS: Final = ("coordinator", "worker", "courier", "agent", "tmux", "control")
STRIKES: Final = 8
KILLS_MAX: Final = {"coordinator": 2, "control": 1}
"""A round: the supervisor's pauses grow with each kill; the tmux server of the coordinator's own window does not come back."""
SEED: Final = int(os.environ.get("ORCHESTRA_CHAOS_SEED") or 1)


class Strike(NamedTuple):
    """One blow: after so many lines, at a part of this kind, by this signal."""

    lines: int
    kind: str
    number: signal.Signals


def make_strikes(chance: Random) -> list[Strike]:
    found: list[Strike] = []
    for lines in sorted(chance.sample(range(2, 2 * TASKS - 10), STRIKES)):
        number = signal.SIGKILL if chance.random() < 0.7 else signal.SIGSTOP
        killed = [each.kind for each in found if each.number == signal.SIGKILL]
        kinds = [kind for kind in KINDS if killed.count(kind) < KILLS_MAX.get(kind, STRIKES)]
        found.append(Strike(lines, chance.choice(kinds), number))
    return found


@pytest.mark.parametrize("seed", range(SEED, SEED + rounds(3, 50)))
def test_any_part_may_be_killed_or_stopped_at_any_moment(tmp_path: Path, seed: int) -> None:
    chance = Random(seed)
    seen: list[Tail] = []
    with orchestra(tmp_path) as stage:
        stage.up()
        name = stage.submit(plan_text(TASKS, tmp_path, seed=seed, work="sleep 0.15"))
        landed = 0
        for blow in make_strikes(chance):
            wait_for(lambda blow=blow: len(stage.log()) >= blow.lines, f"line {blow.lines} of the log")  # type: ignore[misc]
            seen.append(stage.tail())
            landed += deal(stage, blow, chance)
        stage.wait_plan(name)
        stage.down()
        assert landed >= STRIKES // 2, "most of the blows found nobody"
    check_exactly_once(stage, TASKS)
    check_prefix(stage, seen)


def deal(stage: Orchestra, blow: Strike, chance: Random) -> bool:
    """Strikes; what was stopped goes on when others have written ten lines more, or after two seconds if all of them wait for it."""
    landed = wait_a_while(lambda: strike_one(stage, blow, chance), 5)
    if blow.number == signal.SIGSTOP and landed is not None:
        wait_a_while(lambda: len(stage.log()) >= blow.lines + 10, 2)
        if started(landed[0]) == landed[1]:
            strike(landed[0], signal.SIGCONT)
    return landed is not None


def strike_one(stage: Orchestra, blow: Strike, chance: Random) -> tuple[int, str] | None:
    """Strikes one of the parts there are; returns its pid and birth, or None if none was there any more."""
    victims = sorted(stage.parts(blow.kind))
    if not victims:
        return None
    pid = chance.choice(victims)
    born = started(pid)
    return (pid, born) if strike(pid, blow.number) else None


def test_a_coordinator_is_started_again_although_its_window_is_gone(tmp_path: Path) -> None:
    with orchestra(tmp_path) as stage:
        stage.up(2)
        first = stage.coordinator()
        for kind in ("control", "coordinator"):
            pid = stage.parts(kind)[0]
            strike(pid, signal.SIGKILL)
            wait_for(lambda pid=pid: not started(pid) or is_gone(pid), f"the end of {kind}")  # type: ignore[misc]
        wait_for(lambda: stage.coordinator() not in (0, first), "another coordinator")
        stage.wait_plan(stage.submit(plan_text(10, tmp_path)))
        stage.down()
    check_exactly_once(stage, 10)


def test_an_order_that_a_dying_courier_did_not_finish_writing_is_written_anew(tmp_path: Path) -> None:
    with orchestra(tmp_path) as stage:
        begun = stage.place.nodes / "local" / "attempts" / "p" / "t0" / "1"
        begun.mkdir(parents=True)
        (begun / ".command.sh.1.tmp").touch()  # what a courier leaves that is killed at this moment
        stage.up(2)
        stage.wait_plan(stage.submit(plan_text(3, tmp_path)))
        stage.down()
    check_exactly_once(stage, 3)


# --- failpoints --------------------------------------------------------------------------------------------------------

GATE: Final = "cat $HERE/gate > /dev/null"
CYCLES: Final = 3
EXIT_TIMEOUT_S: Final = 60


def start_alone(stage: Orchestra, failpoint: str = "", action: str = "exit") -> subprocess.Popen[str]:
    """Starts a coordinator that nobody supervises."""
    stage.environment = {failpoints.VARIABLE: f"{failpoint}:{action}"} if failpoint else {}
    return stage.start("coordinator", "--agents", "4")


def kill(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.communicate(timeout=60)


def upset(stage: Orchestra) -> None:
    """Kills one worker that has work in hand, so that there is something to reap, to open and to order."""
    strike(min(stage.parts("worker")), signal.SIGKILL)


def begin_at_the_gate(stage: Orchestra, folder: Path) -> str:
    """Has twenty tasks begun, some of which wait at the gate, and kills the coordinator; returns the plan."""
    os.mkfifo(folder / "gate")
    process = start_alone(stage)
    stage.wait_ready()
    name = stage.submit(plan_text(20, folder, work=GATE.replace("$HERE", str(folder))))
    wait_for(lambda: len(stage.log()) >= 3, "tasks at the gate")
    kill(process)
    return name


@pytest.mark.parametrize("place", failpoints.PLACES)
def test_a_coordinator_may_end_at_every_named_place(tmp_path: Path, place: str) -> None:
    with orchestra(tmp_path) as stage:
        name = begin_at_the_gate(stage, tmp_path)
        hits = 0
        process: subprocess.Popen[str] | None = None
        for _ in range(CYCLES):
            upset(stage)
            process = start_alone(stage, place)
            wait_a_while(lambda process=process: process.poll() is not None, 10 if hits else EXIT_TIMEOUT_S)  # type: ignore[misc]
            if process.poll() is None:
                break
            assert process.wait() == failpoints.EXIT_CODE, process.communicate()
            process.communicate(timeout=60)
            hits += 1
        assert hits, f"no coordinator came to {place}"
        if process is not None and process.poll() is None:
            kill(process)
        open_gate(tmp_path)
        finish(stage, name)
    check_exactly_once(stage, 20)


def finish(stage: Orchestra, name: str) -> None:
    """Starts another coordinator, which brings the plan to its end."""
    process = start_alone(stage)
    stage.wait_plan(name)
    stage.down()
    process.communicate(timeout=60)


@pytest.mark.parametrize("place", failpoints.PLACES)
def test_an_error_at_any_named_place_ends_the_coordinator_and_the_next_one_goes_on(tmp_path: Path, place: str) -> None:
    with orchestra(tmp_path) as stage:
        name = begin_at_the_gate(stage, tmp_path)
        upset(stage)
        process = start_alone(stage, place, "raise")
        wait_for(lambda: process.poll() is not None, f"the end of a coordinator at {place}", seconds=EXIT_TIMEOUT_S)
        _, said = process.communicate(timeout=60)
        assert process.returncode not in (0, failpoints.EXIT_CODE), said
        assert place in said, "the error that ended it is not told"
        open_gate(tmp_path)
        finish(stage, name)
    check_exactly_once(stage, 20)


@pytest.mark.parametrize("place", failpoints.PLACES)
def test_a_coordinator_that_stands_still_at_any_named_place_goes_on_from_there(tmp_path: Path, place: str) -> None:
    with orchestra(tmp_path) as stage:
        name = begin_at_the_gate(stage, tmp_path)
        upset(stage)
        process = start_alone(stage, place, "pause")
        wait_for(lambda: is_stopped(process.pid), f"a coordinator that stands still at {place}", seconds=EXIT_TIMEOUT_S)
        open_gate(tmp_path)
        with kept_awake(process):
            stage.wait_plan(name)
            stage.down()
            process.communicate(timeout=60)
    check_exactly_once(stage, 20)


def is_stopped(pid: int) -> bool:
    """Tells whether a process stands still by a signal."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"
    return False


@contextmanager
def kept_awake(process: subprocess.Popen[str]) -> Iterator[None]:
    """Sends SIGCONT whenever the process stands still."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.01):
            if process.poll() is None and is_stopped(process.pid):
                strike(process.pid, signal.SIGCONT)

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def open_gate(folder: Path) -> None:
    """Lets through who waits at the gate, and everybody after them."""
    os.rename(folder / "gate", folder / "gate.old")
    (folder / "gate").write_text("")
    with suppress(OSError):
        os.close(os.open(folder / "gate.old", os.O_WRONLY | os.O_NONBLOCK))
