"""Jumps of the wall clock under a running coordinator: ledger time goes on steadily, retries and timeouts keep their intervals.

Needs libfaketime (Debian package `libfaketime`, which `scripts/setup.sh --test` installs); fails where it is missing. Only the wall clock is faked.
"""

from __future__ import annotations

import os
import subprocess
from contextlib import closing
from pathlib import Path
from typing import Final

import pytest

from orchestra.codec.events import decode
from orchestra.core import events as e
from orchestra.ledger import StoredEvent
from orchestra.ledgers.sqlite import SqliteLedger
from tests.chaos.support import CONFIG, Orchestra, check_exactly_once, orchestra, plan_text, require, task_lines, wait_for

pytestmark = pytest.mark.timeout(180)

PLACES: Final = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib", "/usr/local/lib")
BACKOFF_S: Final = 3
TIMEOUT_S: Final = 3
SLACK_MS: Final = 20_000
"""How late a loaded machine may be; far less than any jump."""


def library() -> Path:
    """Returns libfaketime."""
    found = [path for place in PLACES for path in [Path(place) / "faketime" / "libfaketime.so.1"] if path.exists()]
    require(found, "libfaketime (Debian package libfaketime)")
    return found[0]


def jump(folder: Path, offset: str) -> None:
    """Moves the wall clock of whoever reads the file."""
    partial = folder / "clock.partial"
    partial.write_text(f"{offset}\n")
    partial.rename(folder / "clock")


def start(stage: Orchestra) -> subprocess.Popen[str]:
    """Starts a coordinator whose wall clock is ours; what it starts has the true one."""
    stage.environment = {
        "LD_PRELOAD": str(library()),
        "FAKETIME_TIMESTAMP_FILE": str(stage.folder / "clock"),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    return stage.start("coordinator", "--agents", "4")


def events_of(stage: Orchestra) -> list[StoredEvent]:
    with closing(SqliteLedger.open_readonly(stage.place.ledger)) as ledger:
        return list(ledger.read())


def test_the_clock_can_be_moved_at_all(tmp_path: Path) -> None:
    stage = Orchestra(tmp_path)
    jump(tmp_path, "+3600")
    start_environment = {**os.environ, "LD_PRELOAD": str(library()), "FAKETIME_TIMESTAMP_FILE": str(stage.folder / "clock")}
    done = subprocess.run(["date", "+%s"], env=start_environment, capture_output=True, text=True, check=True)
    true = subprocess.run(["date", "+%s"], capture_output=True, text=True, check=True)
    assert int(done.stdout) - int(true.stdout) > 3000


@pytest.mark.parametrize("offset", ["+3600", "-86400"])
def test_intervals_are_kept_and_ledger_time_never_goes_back_when_the_clock_jumps(tmp_path: Path, offset: str) -> None:
    jump(tmp_path, "+0")
    lines = ["name: p", f"defaults: {{retry_backoff_seconds: {BACKOFF_S}, retries: 5}}", "tasks:"]
    lines += task_lines("retried", fails_once=True)
    lines += task_lines("slow", work="if [ -e slow.once ]; then sleep 0; else : > slow.once; exec sleep 600; fi")
    lines += [f"    constraints: {{max_execution_time_seconds: {TIMEOUT_S}}}"]
    text = "\n".join(lines).replace("$HERE", str(tmp_path))
    with orchestra(tmp_path, config=CONFIG.replace("retry_backoff_max_seconds: 0.05", f"retry_backoff_max_seconds: {BACKOFF_S}")) as stage:
        process = start(stage)
        stage.environment = {}
        stage.wait_ready()
        name = stage.submit(text)
        wait_for(lambda: (tmp_path / "once.retried").exists() and (tmp_path / "slow.once").exists(), "both under way")
        wait_for(lambda: ended(stage, "p/retried"), "the first try to be over")
        jump(tmp_path, offset)
        stage.wait_plan(name)
        stage.wait_plan(stage.submit(plan_text(10, tmp_path, name="q")))
        jump(tmp_path, "+0")
        stage.down()
        process.communicate(timeout=60)
    check_exactly_once(stage, 12)
    stored = events_of(stage)
    times = [each.at_ms for each in stored]
    assert times == sorted(times)
    check_interval(stored, "p/retried", BACKOFF_S * 1000)
    check_timeout(stored, "p/slow", TIMEOUT_S * 1000)
    assert times[-1] - times[0] < 120_000, "the jump is not in the ledger"


def ended(stage: Orchestra, task: str) -> bool:
    """Tells whether an attempt of the task has ended, by the ledger."""
    return any(isinstance(event := decode(each.body), e.AttemptEnded) and event.task == task for each in events_of(stage))


def check_interval(stored: list[StoredEvent], task: str, least_ms: int) -> None:
    """The second try came after its pause, and not an hour later."""
    over = next(each.at_ms for each in stored if isinstance(event := decode(each.body), e.AttemptEnded) and event.task == task)
    tries = [each.at_ms for each in stored if isinstance(event := decode(each.body), e.AttemptAssigned) and event.task == task]
    assert least_ms <= tries[1] - over <= least_ms + SLACK_MS


def check_timeout(stored: list[StoredEvent], task: str, least_ms: int) -> None:
    """The attempt was ended when its time was over, and not before."""
    begun = next(each.at_ms for each in stored if isinstance(event := decode(each.body), e.AttemptAssigned) and event.task == task)
    over = next(each.at_ms for each in stored if isinstance(event := decode(each.body), e.AttemptEnded) and event.task == task)
    assert least_ms - 500 <= over - begun <= least_ms + SLACK_MS
