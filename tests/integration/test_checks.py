"""The program that runs an attempt's checks again: as a worker would, and never longer than somebody wants to know."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from orchestra.errors import NodeFailed
from orchestra.intake.check_scripts import TESTS, TESTS_NAME
from orchestra.nodes.checking import run_checks
from orchestra.nodes.tmux_node import STAGE_PACKAGE, stage_argv, stage_files
from orchestra.nodes.transport import LocalTransport
from orchestra.testing.hosted import is_gone, wait_until
from tests.integration import stage_support

HOG = "data = bytearray(300 << 20)\nfor at in range(0, len(data), 4096): data[at] = 1\nimport time; time.sleep(600)"


def program(tmp_path: Path) -> list[str]:
    """Returns what starts the program, with its files as a node has them."""
    package = tmp_path / "stage" / STAGE_PACKAGE
    if not package.exists():
        package.mkdir(parents=True)
        for name, body in stage_files().items():
            (package / name).write_bytes(body)
    return [*stage_argv(sys.executable, str(package.parent), "checks", str(tmp_path / "node"), "attempts/p/t/1/merged")]


def order(tmp_path: Path, *checks: dict[str, Any], **fields: Any) -> dict[str, Any]:
    values = [{"timeout_ms": 60_000, **check, "name": str(number)} for number, check in enumerate(checks)]
    least = {"v": 1, "task": "p/t", "attempt": 1, "agent": 3, "argv": ["/bin/false"], "cwd": str(tmp_path), "grace_ms": 0}
    return {**least, "checks": values, **fields}


def sh(script: str, **fields: Any) -> dict[str, Any]:
    return {"argv": ["sh", "-c", script], **fields}


async def test_each_check_runs_in_the_folder_with_the_orders_environment(tmp_path: Path) -> None:
    asked = order(tmp_path, sh("echo $OWN $ORCHESTRA_TASK; pwd"), sh("echo no >&2; exit 3"), {"argv": ["/nowhere"]}, env={"OWN": "given"})
    good, bad, missing = await run_checks(LocalTransport(), program(tmp_path), asked)
    assert (good.passed, good.tail) == (True, ("given p/t", str(tmp_path)))
    assert (bad.passed, bad.code, bad.tail) == (False, 3, ("no",))
    assert (missing.passed, missing.reason) == (False, "spawn")
    assert "check:1" in (tmp_path / "node/attempts/p/t/1/merged/output.jsonl").read_text()


async def test_what_they_count_is_kept_apart_from_what_the_attempts_own_checks_counted(tmp_path: Path) -> None:
    own = tmp_path / "node/attempts/p/t/1/reports"
    program(tmp_path)
    env = {"ORCHESTRA_REPORTS_DIR": str(own), "ORCHESTRA_REPORTER": str(tmp_path / "stage" / STAGE_PACKAGE / "reporter.py")}
    counted = {"argv": ["/bin/sh", "-c", TESTS, TESTS_NAME, "echo '=== 3 passed in 0.1s ==='"]}
    for _ in range(2):
        (found,) = await run_checks(LocalTransport(), program(tmp_path), order(tmp_path, counted, env=env))
        assert (found.passed, found.tail[-1]) == (True, "tests: 3 passed, 0 failed")
    assert not own.exists()
    assert len(list((tmp_path / "node/attempts/p/t/1/merged/reports").glob("figures.*"))) == 1


async def test_a_check_that_takes_too_long_is_ended_with_all_that_it_started(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    asked = order(tmp_path, sh(f"setsid sleep 600 & echo $! > {pid}; wait", timeout_ms=300))
    (found,) = await run_checks(LocalTransport(), program(tmp_path), asked)
    assert (found.passed, found.reason) == (False, "timeout")
    assert is_gone(int(pid.read_text()))


async def test_a_check_that_takes_too_much_memory_is_ended(tmp_path: Path) -> None:
    asked = order(tmp_path, {"argv": [sys.executable, "-c", HOG]}, limits={"memory_bytes": 100 << 20})
    (found,) = await run_checks(LocalTransport(), program(tmp_path), asked)
    assert (found.passed, found.reason) == (False, "memory")


async def test_cancelled_it_ends_what_runs_before_it_goes(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    asked = order(tmp_path, sh(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"))
    running = asyncio.create_task(run_checks(LocalTransport(), program(tmp_path), asked))
    await wait_until(pid.exists)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert is_gone(int(pid.read_text()))


def started(tmp_path: Path, asked: dict[str, Any], pid: Path) -> subprocess.Popen[bytes]:
    """Starts the program as no coordinator would, and returns when its check runs."""
    child = subprocess.Popen(program(tmp_path), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert child.stdin is not None
    child.stdin.write(json.dumps(asked).encode() + b"\n")
    child.stdin.flush()
    stage_support.wait_until(pid.exists, "the check never ran")
    return child


def test_it_ends_when_whoever_asked_is_gone(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    asked = order(tmp_path, sh(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"), sh("echo never"))
    with started(tmp_path, asked, pid) as child:
        out, _ = child.communicate(timeout=60)
    assert (json.loads(out), child.returncode) == ([], 0)
    assert is_gone(int(pid.read_text()))


async def test_what_a_killed_one_left_is_ended_by_the_next(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    asked = order(tmp_path, sh(f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 600"))
    with started(tmp_path, asked, pid) as child:
        os.kill(child.pid, signal.SIGKILL)
    assert not is_gone(int(pid.read_text()))
    (found,) = await run_checks(LocalTransport(), program(tmp_path), order(tmp_path, sh("true")))
    assert found.passed
    assert is_gone(int(pid.read_text()))


async def test_an_order_that_cannot_be_read_is_the_nodes_failure(tmp_path: Path) -> None:
    with pytest.raises(NodeFailed, match="gave no results"):
        await run_checks(LocalTransport(), program(tmp_path), order(tmp_path, sh("true"), argv=[]))
