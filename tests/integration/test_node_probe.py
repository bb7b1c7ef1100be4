"""Looking at a machine before it is used, and what is said about it."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import msgspec
import pytest

from orchestra.errors import NodeFailed
from orchestra.ids import NodeId
from orchestra.nodes.probe import GIB, MIB, UNKNOWN, NodeNeeds, NodeProbe, findings, probe
from orchestra.nodes.tmux_node import NodeOptions, TmuxNode
from orchestra.nodes.transport import LocalTransport
from tests.integration.ssh_support import contents

N1 = NodeId("n1")


def program(folder: Path, name: str, script: str) -> str:
    path = folder / name
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


async def test_this_machine_tells_what_it_is(tmp_path: Path) -> None:
    seen = await probe(LocalTransport(), N1, str(tmp_path / "a" / "b"), ("sh", "no-such-program"))
    assert seen.node == N1
    assert seen.python_version == sys.version.split()[0] or seen.python != sys.executable
    assert (seen.uid, seen.host, seen.cpus) == (os.getuid(), os.uname().nodename, os.cpu_count())
    assert seen.boot == contents("/proc/sys/kernel/random/boot_id").decode().strip()
    assert 0 < seen.memory_available_bytes <= seen.memory_bytes
    assert seen.disk_free_bytes > 0
    assert (seen.folder, seen.folder_exists, seen.folder_problem) == (str(tmp_path / "a" / "b"), False, "")
    assert not (tmp_path / "a").exists()
    assert list(seen.programs) == ["sh"]
    assert seen.tmux_path.endswith("tmux")
    assert abs(seen.clock_offset_ms) <= seen.clock_error_ms + 1
    assert [each for each in findings(seen) if each.fatal] == []


async def test_a_folder_may_be_below_the_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    seen = await probe(LocalTransport(), N1, "~/x")
    assert (seen.home, seen.folder) == (str(tmp_path), f"{tmp_path}/x")


async def test_a_program_is_found_where_its_installer_put_it_for_one_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A login without a terminal has no ~/.local/bin in its PATH; workers look there all the same."""
    (tmp_path / ".local" / "bin").mkdir(parents=True)
    path = program(tmp_path / ".local" / "bin", "some-agent", "true")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    seen = await probe(LocalTransport(), N1, "~/x", ("some-agent",), python=sys.executable)
    assert seen.programs == {"some-agent": path}
    assert seen.path == "/usr/bin:/bin"


async def test_a_clock_that_is_ahead_is_seen(tmp_path: Path) -> None:
    seen = await probe(LocalTransport(), N1, str(tmp_path), wall_ms=lambda: time.time_ns() // 1_000_000 - 3_600_000)
    assert abs(seen.clock_offset_ms - 3_600_000) <= seen.clock_error_ms + 1
    (clock,) = [each for each in findings(seen) if each.name == "clock"]
    assert not clock.ok
    assert not clock.fatal
    assert "ms ahead of ours" in clock.detail


async def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    seen = await probe(LocalTransport(), N1, str(tmp_path / "file" / "x"))
    assert seen.folder_problem == f"{tmp_path}/file is not a folder"
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    seen = await probe(LocalTransport(), N1, str(tmp_path / "link" / "x"))
    assert seen.folder_problem == f"{tmp_path}/link is a link that leads nowhere"
    seen = await probe(LocalTransport(), N1, "/proc/nothing/here")
    if os.geteuid():
        assert seen.folder_problem == "/proc is not writable"


@pytest.mark.parametrize(
    "script,said", [("exit 127", "no usable python3"), ("echo broken >&2; exit 1", "code 1: broken"), ("echo hello", "code 0: hello")]
)
async def test_a_machine_without_python_is_told(tmp_path: Path, script: str, said: str) -> None:
    with pytest.raises(NodeFailed, match=said):
        await probe(LocalTransport(), N1, str(tmp_path), python=program(tmp_path, "python3", script))
    with pytest.raises(NodeFailed, match="node n1 has no usable python3") as caught:
        await probe(LocalTransport(), N1, str(tmp_path), python="/nowhere/python3")
    assert "install Python 3.8" in caught.value.hint


@pytest.mark.parametrize("said,ok", [("tmux 3.1c", False), ("tmux 3.2", True), ("tmux next-3.5", True), ("tmux master", True)])
async def test_a_node_with_an_old_tmux_is_refused_before_anything_is_made(tmp_path: Path, said: str, ok: bool) -> None:
    tmux = program(tmp_path, "tmux", f"echo {said}")
    seen = await probe(LocalTransport(), N1, str(tmp_path), tmux=tmux)
    (finding,) = [each for each in findings(seen) if each.name == "tmux"]
    assert (finding.ok, finding.fatal) == (ok, not ok)
    assert f"has {said} at {tmux}" in finding.detail
    if not ok:
        options = NodeOptions(folder=f"{tmp_path}/node", runtime=f"{tmp_path}/run-{{uid}}", session="s-1", session_prefix="s-")
        node = TmuxNode(N1, LocalTransport(), msgspec.structs.replace(options, tmux=msgspec.structs.replace(options.tmux, tmux=tmux)))
        with pytest.raises(NodeFailed, match=r"node n1 has tmux 3\.1c") as caught:
            await node.start(0)
        assert caught.value.hint == "install tmux 3.2 or newer there"
        await node.stop()
        assert os.listdir(tmp_path) == ["tmux"]


# --- judging -----------------------------------------------------------------------------------------------------------

GOOD = NodeProbe(
    node=N1,
    python="/usr/bin/python3",
    python_version="3.11.2",
    uid=1000,
    user="me",
    home="/home/me",
    boot="b",
    host="h",
    cpus=8,
    memory_bytes=16 * GIB,
    memory_available_bytes=8 * GIB,
    folder="/home/me/node",
    folder_exists=False,
    folder_problem="",
    disk_free_bytes=100 * GIB,
    load_1m=0.5,
    open_files_max=1024,
    processes_max=UNKNOWN,
    tmux="3.3a",
    tmux_path="/usr/bin/tmux",
    ms=0,
    programs={"git": "/usr/bin/git"},
    sandbox="",
    path="/usr/bin:/bin",
)


def test_a_good_machine_has_nothing_against_it() -> None:
    assert [each.name for each in findings(GOOD)] == [
        "python",
        "tmux",
        "folder",
        "disk",
        "memory",
        "open files",
        "processes",
        "sandbox",
        "clock",
    ]
    assert all(each.ok and not each.fatal and not each.remedy for each in findings(GOOD))


@pytest.mark.parametrize(
    "name,change,fatal,words",
    [
        ("python", {"python_version": "3.7.17"}, True, "has Python 3.7.17"),
        ("tmux", {"tmux": "3.1c"}, True, "has tmux 3.1c"),
        ("tmux", {"tmux": "", "tmux_path": ""}, True, "has no tmux in /usr/bin:/bin"),
        ("tmux", {"tmux": ""}, True, "does not tell its version"),
        ("folder", {"folder_problem": "/home is not writable"}, True, "cannot be used by me: /home is not writable"),
        ("disk", {"disk_free_bytes": 512 * MIB}, False, "512 MiB free at /home/me/node, less than 1.0 GiB"),
        ("disk", {"disk_free_bytes": 63 * MIB}, True, "less than 64 MiB"),
        ("disk", {"disk_free_bytes": 63 * MIB, "folder_exists": True}, False, "less than 64 MiB"),
        ("memory", {"memory_available_bytes": 100 * MIB}, False, "memory for 100 MiB only, less than 256 MiB"),
        ("open files", {"open_files_max": 256}, False, "open files for 256 only, less than 512"),
        ("processes", {"processes_max": 100}, False, "processes for 100 only"),
        ("clock", {"clock_offset_ms": -2_500, "clock_error_ms": 100}, False, "2500 ms behind ours"),
        ("sandbox", {"sandbox": "bwrap is not installed"}, False, "has no sandbox: bwrap is not installed"),
        ("sandbox", {"sandbox": "No permissions to create new namespace"}, False, "has no sandbox: No permissions"),
    ],
)
def test_each_shortage_is_named_with_its_remedy(name: str, change: dict[str, object], fatal: bool, words: str) -> None:
    found = findings(msgspec.structs.replace(GOOD, **change))
    (bad,) = [each for each in found if not each.ok]
    assert (bad.name, bad.fatal) == (name, fatal)
    assert words in bad.detail
    assert "n1" in bad.detail
    assert bad.remedy


def test_an_offset_within_what_asking_took_is_none() -> None:
    assert all(each.ok for each in findings(msgspec.structs.replace(GOOD, clock_offset_ms=4_000, clock_error_ms=2_100)))
    clock = findings(msgspec.structs.replace(GOOD, clock_offset_ms=121, clock_error_ms=148))[-1]
    assert (clock.ok, clock.detail) == (True, "the clock of node n1 agrees with ours within what can be measured (150 ms)")


def test_programs_that_were_asked_for_are_looked_at() -> None:
    found = findings(GOOD, NodeNeeds(programs=("git", "claude")))
    assert [(each.name, each.ok, each.fatal) for each in found[-2:]] == [("git", True, False), ("claude", False, False)]
    assert "/usr/bin:/bin" in found[-1].remedy
