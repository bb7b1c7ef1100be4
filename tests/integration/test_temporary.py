"""Each attempt has a folder for temporary files of its own, in a sandbox or not, and nothing of it is left when the attempt is over, however it ended."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.nodes.checking import run_checks
from orchestra.nodes.transport import LocalTransport
from tests.integration.stage_support import Stage, staged, wait_until
from tests.integration.test_checks import order, program, sh

SOCKET = """
import os, socket, stat, sys
own = os.environ["TMPDIR"]
assert stat.S_IMODE(os.stat(own).st_mode) == 0o700, "it is nobody else's"
deep = own + "/pytest-of-somebody/pytest-0/test_of_a_server_and_its_socket0"
os.makedirs(deep)
socket.socket(socket.AF_UNIX).bind(deep + "/server.sock")
open(own + "/left", "w").write("by the agent")
print("own", own, os.listdir(own))
"""
CHECK = {"name": "there", "argv": ["/bin/sh", "-c", 'grep -q "by the agent" "$TMPDIR/left"'], "timeout_ms": 20_000}


@pytest.fixture
def machine() -> Iterator[Path]:
    """Where the machine keeps temporary files."""
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="t-") as folder:
        yield Path(folder)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    node = tmp_path / "a-node-whose-own-folder-has-a-name-that-leaves-no-room-for-sockets"
    node.mkdir()
    with staged(node) as made:
        yield made


def told(stage: Stage, spec: dict[str, Any], word: str = "own") -> str:
    return str(next(line["line"].split()[1] for line in stage.output(spec) if line["line"].startswith(f"{word} ")))


@pytest.mark.parametrize("sandbox", [{}, {"mode": "on"}], ids=["none", "sandbox"])
def test_a_short_one_that_only_the_attempt_and_its_checks_have(stage: Stage, machine: Path, sandbox: dict[str, Any]) -> None:
    stage.worker(env={"TMPDIR": str(machine)})
    seen = set()
    for number in (1, 2):
        spec = stage.python(SOCKET, attempt=number, checks=[CHECK], sandbox=sandbox)
        done = stage.wait_record("done", spec)
        assert done["exit"]["code"] == 0, stage.output(spec)
        assert [each["passed"] for each in done["checks"]] == [True]
        own = told(stage, spec)
        seen.add(own)
        assert list(machine.iterdir()) == [], "it goes with the attempt"
        assert not os.path.lexists(stage.attempt_folder(spec) / "tmp")
        if sandbox:
            assert own == "/tmp", "which is a private one there"
        else:
            assert Path(own).parent == machine
    assert len(seen) == (1 if sandbox else 2)


def test_a_task_that_names_one_has_that(stage: Stage, machine: Path) -> None:
    stage.worker(env={"TMPDIR": str(machine)})
    spec = stage.order(["/bin/sh", "-c", "echo own $TMPDIR"], env={"TMPDIR": "/var/tmp"})
    stage.wait_record("done", spec)
    assert told(stage, spec) == "/var/tmp"


def test_what_is_large_and_closed_goes_too(stage: Stage, machine: Path) -> None:
    stage.worker(env={"TMPDIR": str(machine)})
    script = "cd $TMPDIR; seq 1000 | xargs touch; mkdir -p a/b; touch a/b/c; chmod 0 a/b; ln -s / link"
    stage.wait_record("done", stage.order(["/bin/sh", "-c", script]))
    wait_until(lambda: list(machine.iterdir()) == [], "it to be removed, in the background")
    assert Path("/etc").is_dir(), "links are not followed"


@pytest.mark.parametrize("by", ["the next worker", "the courier"])
def test_what_a_dead_worker_left_is_removed(stage: Stage, machine: Path, by: str) -> None:
    first = stage.worker(env={"TMPDIR": str(machine)})
    spec = stage.order(["/bin/sh", "-c", "touch $TMPDIR/left; echo own $TMPDIR; exec sleep 600"])
    stage.wait_output(spec, "own ")
    own = Path(told(stage, spec))
    stage.adopt(int(stage.wait_record("started", spec)["pid"]))
    assert (stage.attempt_folder(spec) / "tmp").resolve() == own, "whoever looks for it finds it"
    first.kill()
    assert (own / "left").exists()
    if by == "the courier":
        courier = stage.courier()
        courier.ask("tail", offset=0)
        courier.ask("reap", dir=f"attempts/{spec['task']}/{spec['attempt']}")
    else:
        stage.worker(env={"TMPDIR": str(machine)})
    stage.wait_record("lost", spec)
    wait_until(lambda: not own.exists(), "it to be removed")
    assert not os.path.lexists(stage.attempt_folder(spec) / "tmp")


def test_a_link_that_was_put_in_its_place_leads_nowhere(stage: Stage, machine: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "thing").write_text("kept")
    stage.worker(env={"TMPDIR": str(machine)})
    spec = stage.order(["/bin/sh", "-c", f'rm "$ORCHESTRA_ATTEMPT_DIR/tmp"; ln -s {precious} "$ORCHESTRA_ATTEMPT_DIR/tmp"'])
    stage.wait_record("done", spec)
    assert (precious / "thing").read_text() == "kept"
    assert list(machine.iterdir()) == []


def test_where_none_can_be_made_the_attempt_runs_without(stage: Stage, machine: Path) -> None:
    shutil.rmtree(machine)
    pane = stage.worker(env={"TMPDIR": str(machine)})
    spec = stage.order(["/bin/sh", "-c", "echo own $TMPDIR"])
    assert stage.wait_record("done", spec)["exit"]["code"] == 0
    pane.wait_text("without a folder of its own for temporary files")
    machine.mkdir()


async def test_checks_that_are_run_again_have_one_of_their_own(tmp_path: Path, machine: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(machine))
    (found,) = await run_checks(LocalTransport(), program(tmp_path), order(tmp_path, sh("touch $TMPDIR/left; echo $TMPDIR")))
    assert found.passed
    assert Path(found.tail[0]).parent == machine
    assert os.listdir(machine) == []
