"""The courier, as a real process on pipes, beside real workers. Nothing here sleeps: frames tell when something has happened."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.nodes.tmux_node import stage_argv
from tests.integration.stage_support import (
    BOOT,
    PYTHON,
    Courier,
    Stage,
    fill,
    is_alive,
    parse_journal,
    small_disk,
    staged,
    start_of,
    wait_until,
)

LINUX_ONLY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
SLEEPER = [sys.executable, "-I", "-S", "-c", "import os, signal; print('pid', os.getpid(), flush=True); signal.pause()"]


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as made:
        yield made


def order_of(spec: dict[str, Any], files: dict[str, str] | None = None) -> dict[str, Any]:
    return {"dir": f"attempts/{spec['task']}/{spec['attempt']}", "agent": spec["agent"], "spec": spec, "files": files or {}}


def begin(stage: Stage, courier: Courier, **changes: Any) -> tuple[dict[str, Any], int]:
    """Starts an attempt that waits; returns its order and the pid of its agent."""
    order = order_of(stage.spec(SLEEPER, **changes))
    assert courier.ask("start", orders=[order])["failed"] == []
    pid = stage.wait_record("started", order["spec"])["pid"]
    stage.wait_output(order["spec"], f"pid {pid}")
    return order, pid


# --- the wire


def test_hello_is_found_in_what_a_shell_prints_before(stage: Stage) -> None:
    courier = stage.courier(noise="Welcome to this machine!\\n#deadbeef hello 2 0\\n{}\\nlast login: never ")
    hello = courier.wait_frame("hello")
    assert courier.before.endswith(b"last login: never ")
    assert hello["v"] == 1
    assert hello["pid"] == courier.process.pid
    assert hello["uid"] == os.getuid()
    assert {"python", "boot", "host", "cpus", "memory_bytes", "disk_free_bytes", "ms"} <= hello.keys()
    assert 0 < hello["memory_available_bytes"] <= hello["memory_bytes"]
    assert hello["load_1m"] >= 0
    assert "programs" not in hello
    assert (stage.folder / "bell").is_fifo()


def test_it_ends_with_its_standard_input_and_answers_first(stage: Stage) -> None:
    courier = stage.courier()
    number = courier.send("facts")
    assert courier.hang_up() == 0
    assert courier.wait_frame("reply", lambda value: value["re"] == number)["cpus"] > 0


def test_it_ends_when_nobody_reads(stage: Stage) -> None:
    courier = stage.courier()
    courier.wait_frame("hello")
    assert courier.process.stdout is not None
    courier.process.stdout.close()
    courier.send("facts")
    wait_until(lambda: courier.process.poll() is not None, "the courier's end")


@pytest.mark.parametrize(
    "line",
    [b"{broken", b"[]", b"5", b'{"op": "nothing"}', b'{"op": ["x"]}', b"\xff\xfe", b'{"op": "read"}', b'{"op": "tail", "offset": true}'],
)
def test_bad_requests_are_answered_and_do_no_harm(stage: Stage, line: bytes) -> None:
    courier = stage.courier()
    assert courier.process.stdin is not None
    courier.process.stdin.write(line + b"\n")
    courier.process.stdin.flush()
    assert courier.wait_frame("reply")["error"]["code"] in ("bad-request", "bad-path")
    assert "load_1m" in courier.ask("facts")


def test_facts_say_where_programs_are_and_remember_it(stage: Stage) -> None:
    own, away = stage.folder / "home/.local/bin", stage.folder / "path"
    for folder in (own, away):
        folder.mkdir(parents=True)
    (own / "of-the-user").write_text("#!/bin/sh\n")
    (away / "in-the-path").write_text("#!/bin/sh\n")
    (away / "no-program").write_text("a text")
    for program in (own / "of-the-user", away / "in-the-path"):
        program.chmod(0o700)
    (away / "a-folder").mkdir()
    courier = stage.courier(env={"HOME": str(stage.folder / "home"), "PATH": f"{away}:relative:{os.environ['PATH']}"})
    assert "programs" not in courier.ask("facts")
    names = ["sh", "of-the-user", "in-the-path", "no-program", "a-folder", "not-installed"]
    facts = courier.ask("facts", programs=names)
    found = facts["programs"]
    assert found.keys() == {"sh", "of-the-user", "in-the-path"}
    assert (found["of-the-user"], found["in-the-path"]) == (str(own / "of-the-user"), str(away / "in-the-path"))
    assert os.access(found["sh"], os.X_OK)
    assert {"memory_available_bytes", "load_1m", "disk_free_bytes", "ms", "cpu_percent", "memory_percent"} <= facts.keys()
    (away / "in-the-path").unlink()
    assert courier.ask("facts", programs=["in-the-path"])["programs"] == {"in-the-path": str(away / "in-the-path")}
    for bad in (["../sh"], ["/bin/sh"], [""], [5], "sh"):
        assert courier.refusal("facts", programs=bad) == "bad-request"


@LINUX_ONLY
def test_a_lease_is_written_by_a_clock_that_nobody_sets(stage: Stage) -> None:
    courier = stage.courier()
    before = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    assert courier.ask("lease", ttl_ms=60_000).keys() == {"re"}
    after = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000
    lease = json.loads((stage.folder / "lease").read_text())
    assert lease.keys() == {"until_ms", "boot"}
    assert before + 60_000 <= lease["until_ms"] <= after + 60_000
    assert lease["boot"] == BOOT
    for bad in (-1, True, "60", None):
        assert courier.refusal("lease", ttl_ms=bad) == "bad-request"
    assert json.loads((stage.folder / "lease").read_text()) == lease
    assert [path.name for path in stage.folder.glob("lease*")] == ["lease"]


# --- orders


def test_start_writes_the_order_and_the_worker_runs_it(stage: Stage) -> None:
    courier = stage.courier()
    assert courier.ask("slots", agents=[7, 8])["re"] == 1
    assert (stage.folder / "agents/8/inbox").is_fifo()
    stage.worker()
    courier.ask("tail", offset=0)
    order = order_of(stage.spec(["/bin/cat"], stdin="prompt"), {"prompt.txt": "do this\n", "scenario.json": "{}"})
    assert courier.ask("start", orders=[order]) == {"re": 3, "failed": []}
    assert courier.wait_record("done")["exit"]["tail"] == ["do this"]
    folder = stage.attempt_folder(order["spec"])
    assert (folder / "scenario.json").read_text() == "{}"
    assert folder.stat().st_mode & 0o777 == 0o700
    assert stage.records() == parse_journal(courier.journal())


def test_what_cannot_be_started_is_said_one_by_one(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("slots", agents=[7, 8])
    stage.worker()
    good, twice = order_of(stage.spec(["/bin/true"])), order_of(stage.spec(["/bin/true"]))
    nobody = order_of(stage.spec(["/bin/true"], agent=8, attempt=2))
    unknown = order_of(stage.spec(["/bin/true"], agent=99, attempt=3))
    broken = {**order_of(stage.spec(["/bin/true"], attempt=4)), "files": {"../x": "y"}}
    failed = courier.ask("start", orders=[good, twice, nobody, unknown, broken])["failed"]
    assert [(each["dir"][-1], each["code"]) for each in failed] == [
        ("1", "exists"),
        ("2", "no-worker"),
        ("3", "no-worker"),
        ("4", "bad-path"),
    ]
    stage.wait_record("done", good["spec"])
    assert not stage.attempt_folder(nobody["spec"]).exists()
    assert not (stage.folder / "attempts/demo/one/x").exists()


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_failed_start_leaves_no_folder_of_its_own(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("slots", agents=[7, 8])
    stage.worker()
    kept = stage.place(stage.spec(["/bin/true"], task="demo/kept"))
    before = files_below(stage.folder / "attempts")
    orders = [order_of(stage.spec(["/bin/true"], task=task, agent=8)) for task in ("demo/new", "other/deep/one", "demo/kept/sub")]
    assert [each["code"] for each in courier.ask("start", orders=orders)["failed"]] == ["no-worker"] * 3
    assert files_below(stage.folder / "attempts") == before
    assert (stage.folder / kept / "spec.json").exists()


@LINUX_ONLY
@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")
def test_a_start_that_a_full_disk_refuses_leaves_nothing_behind(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk, staged(disk) as stage:
        courier = stage.courier()
        stage.worker()
        first = order_of(stage.spec(["/bin/true"]))
        assert courier.ask("start", orders=[first])["failed"] == []
        stage.wait_record("done", first["spec"])
        before = files_below(disk / "attempts")
        large = order_of(stage.spec(["/bin/true"], task="demo/two"), {"prompt.txt": "x" * (4 << 20)})  # some of it fits
        deep = order_of(stage.spec(["/bin/true"], task="new/plan/task"), {"prompt.txt": "x" * (4 << 20)})
        again = order_of(stage.spec(["/bin/true"], attempt=2))
        failed = courier.ask("start", orders=[large, deep])["failed"]
        assert [each["code"] for each in failed] == ["io", "io"]
        assert files_below(disk / "attempts") == before
        ballast = fill(disk)
        assert [each["code"] for each in courier.ask("start", orders=[again])["failed"]] == ["io"]
        assert files_below(disk / "attempts") == before
        ballast.unlink()
        assert courier.ask("start", orders=[again])["failed"] == []
        stage.wait_record("done", again["spec"])
        assert len(stage.records("started")) == 2


def test_poke_reaches_the_inbox_or_says_no_worker(stage: Stage) -> None:
    courier = stage.courier()
    assert courier.refusal("poke", agent=7, line='{"op":"leave"}') == "no-worker"
    pane = stage.worker()
    assert courier.refusal("poke", agent=7, line="a\nb") == "bad-request"
    assert courier.refusal("poke", agent=7, line="x" * 4096) == "bad-request"
    assert "error" not in courier.ask("poke", agent=7, line='{"op":"leave","now":false}')
    pane.wait_end()
    assert courier.refusal("poke", agent=7, line='{"op":"leave"}') == "no-worker"


# --- the journal


def test_the_journal_is_sent_from_an_offset_and_as_it_grows(stage: Stage) -> None:
    stage.worker()
    first = stage.order(["/bin/true"])
    stage.wait_record("done", first)
    offset = len((stage.folder / "journal").read_bytes())
    courier = stage.courier()
    courier.ask("tail", offset=offset)
    second = stage.order(["/bin/true"], attempt=2)
    assert courier.wait_record("done")["attempt"] == 2
    assert next(start for kind, start, _ in courier.frames if kind == "journal") == offset
    assert courier.refusal("tail", offset=1 << 40) == "bad-offset"
    assert courier.refusal("tail", offset=-1) == "bad-offset"
    assert parse_journal(courier.journal()) == [record for record in stage.records() if record.get("attempt") == second["attempt"]]


def record_bytes(**fields: Any) -> bytes:
    body = json.dumps(fields).encode()
    return b"\n%08x %s\n" % (zlib.crc32(body), body)


def test_a_torn_record_spoils_nothing(stage: Stage) -> None:
    journal = stage.folder / "journal"
    torn = record_bytes(k="done", n=2)[:20]
    journal.write_bytes(record_bytes(k="ready", n=1) + torn)
    courier = stage.courier()
    courier.ask("tail", offset=0)
    courier.wait_record("ready")
    assert torn.strip() not in courier.journal()  # what is not complete is not sent yet
    with journal.open("ab") as file:
        file.write(record_bytes(k="done", n=3))
    assert courier.wait_record("done")["n"] == 3
    assert [record["n"] for record in parse_journal(courier.journal())] == [1, 3]


def test_a_large_journal_comes_in_frames_that_end_with_a_record(stage: Stage) -> None:
    whole = b"".join(record_bytes(k="signal", n=n, text="x" * (n * 997 % 60_000)) for n in range(200))
    (stage.folder / "journal").write_bytes(whole)
    courier = stage.courier()
    courier.ask("tail", offset=0)
    wait_until(lambda: len(courier.journal()) == len(whole), "the whole journal", on=courier.out)
    assert courier.journal() == whole
    frames = [payload for kind, _, payload in courier.frames if kind == "journal"]
    assert len(frames) > 10
    assert all(len(payload) <= 262_144 and payload.endswith(b"\n") for payload in frames)
    assert [record["n"] for record in parse_journal(whole)] == list(range(200))


def test_a_bell_wakes_the_courier(stage: Stage) -> None:
    """It would not look at the journal by itself for an hour."""
    courier = stage.courier("--backstop-ms", "3600000", "--beat-check-ms", "3600000")
    courier.ask("tail", offset=0)
    bell = os.open(stage.folder / "bell", os.O_WRONLY | os.O_NONBLOCK)
    try:
        for number in range(50):
            with (stage.folder / "journal").open("ab") as file:
                file.write(record_bytes(k=f"n{number}"))
            os.write(bell, b"!")
            courier.wait_record(f"n{number}")
    finally:
        os.close(bell)


def test_without_a_bell_the_backstop_finds_the_record(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("tail", offset=0)
    (stage.folder / "bell").unlink()
    stage.worker()
    assert courier.wait_record("ready")["agent"] == 7


def test_a_worker_finds_the_bell_of_a_new_courier(stage: Stage) -> None:
    """It holds the bell of the old one open; the new one would not look at the journal by itself for an hour."""
    options = ("--backstop-ms", "3600000", "--beat-check-ms", "3600000")
    first = stage.courier(*options)
    first.ask("tail", offset=0)
    stage.worker()
    stage.order(["/bin/true"])
    first.wait_record("done")
    first.close()
    (stage.folder / "bell").unlink()
    second = stage.courier(*options)
    second.ask("tail", offset=(stage.folder / "journal").stat().st_size)
    stage.order(["/bin/true"], attempt=2)
    assert second.wait_record("done")["attempt"] == 2


# --- deaths and hearts


def test_a_killed_worker_is_noticed_after_what_it_wrote(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("tail", offset=0)
    pane = stage.worker()
    courier.wait_record("ready")
    order, pid = begin(stage, courier)
    pane.kill()
    gone = courier.wait_frame("notice", lambda value: value["n"] == "worker-gone")
    assert (gone["agent"], gone["w"]) == (7, pane.w)
    assert is_alive(pid)
    courier.ask("reap", dir=order["dir"])


def test_a_worker_that_leaves_says_so_before_it_is_gone(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("tail", offset=0)
    pane = stage.worker()
    courier.wait_record("ready")
    courier.ask("poke", agent=7, line='{"op":"leave"}')
    courier.wait_frame("notice", lambda value: value["n"] == "worker-gone")
    pane.wait_end()
    last_journal = max(index for index, frame in enumerate(courier.frames) if frame[0] == "journal" and b'"left"' in frame[2])
    notice = next(index for index, frame in enumerate(courier.frames) if frame[0] == "notice")
    assert last_journal < notice


def test_a_stopped_heart_is_noticed_and_so_is_its_return(stage: Stage) -> None:
    courier = stage.courier("--beat-check-ms", "50", "--beat-missed-ms", "1500")
    courier.ask("tail", offset=0)
    pane = stage.worker()
    courier.wait_record("ready")
    pane.signal(signal.SIGSTOP)
    missed = courier.wait_frame("notice")
    assert (missed["n"], missed["agent"], missed["w"]) == ("beat-missed", 7, pane.w)
    assert missed["age_ms"] > 1500
    pane.signal(signal.SIGCONT)
    back = courier.wait_frame("notice", lambda value: value["n"] == "beat-back")
    assert back["w"] == pane.w
    assert [value["n"] for value in courier.of_kind("notice")] == ["beat-missed", "beat-back"]


def test_inventory_tells_workers_and_attempts(stage: Stage) -> None:
    courier = stage.courier("--beat-check-ms", "600000")  # it looks for hearts now, and not again in this test
    assert courier.ask("inventory", dirs=[])["workers"] == []
    pane = stage.worker()
    done = stage.order(["/bin/true"])
    stage.wait_record("done", done)
    order, _ = begin(stage, courier, attempt=2)
    stage.place(stage.spec(["/bin/true"], attempt=3))
    dirs = [f"attempts/demo/one/{number}" for number in (1, 2, 3, 4)]
    found = courier.ask("inventory", dirs=dirs)
    (only,) = found["workers"]
    assert (only["agent"], only["w"], only["alive"]) == (7, pane.w, True)
    assert only["current"] == {"dir": order["dir"], "task": "demo/one", "attempt": 2}
    assert only["beat_age_ms"] >= 0
    assert [each["state"] for each in found["attempts"]] == ["done", "claimed", "ordered", "absent"]
    assert [each["alive"] for each in found["attempts"]] == [False, True, False, False]
    assert found["attempts"][0]["exit"]["exit"]["code"] == 0
    pane.kill()
    found = courier.ask("inventory", dirs=dirs)
    assert found["workers"][0]["alive"] is False
    assert [each["alive"] for each in found["attempts"]] == [False, False, False, False]


@LINUX_ONLY
@pytest.mark.parametrize("stopped", [False, True])
def test_kill_ends_the_worker_that_is_named_and_no_other(stage: Stage, stopped: bool) -> None:
    courier = stage.courier()
    courier.ask("tail", offset=0)
    pane, other = stage.worker(), stage.worker(8)
    order, pid = begin(stage, courier)
    if stopped:
        pane.signal(signal.SIGSTOP)
    for agent, w in ((7, other.w), (8, pane.w), (7, f"{pane.pid}:1"), (9, pane.w), (7, "")):
        assert courier.ask("kill", agent=agent, w=w)["killed"] is False
    assert courier.refusal("kill", agent=7) == "bad-request"
    assert courier.refusal("kill", agent="../agents/7", w=pane.w) == "bad-path"
    assert is_alive(pane.pid)
    assert courier.ask("kill", agent=7, w=pane.w)["killed"] is True
    gone = courier.wait_frame("notice", lambda value: value["n"] == "worker-gone")
    assert (gone["agent"], gone["w"]) == (7, pane.w)
    assert pane.wait_end() == -signal.SIGKILL
    assert courier.ask("kill", agent=7, w=pane.w)["killed"] is False
    assert is_alive(other.pid)
    assert pid in courier.ask("reap", dir=order["dir"])["killed"]


@LINUX_ONLY
def test_who_lived_before_the_machine_started_anew_is_dead(stage: Stage) -> None:
    """Number and start time in lock and claim are those of a living process; the boot is not."""
    courier = stage.courier()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, start_new_session=True) as bystander:
        w, spec = f"{bystander.pid}:{start_of(bystander.pid)}", stage.spec(["/bin/true"])
        place = stage.place(spec)
        stage.set_current({"dir": place, "task": "demo/one", "attempt": 1})
        for boot, alive in (("00000000-1111-2222-3333-444444444444", False), (BOOT, True)):
            (stage.folder / "agents/7/lock").write_text(json.dumps({"w": w, "pid": bystander.pid, "boot": boot}))
            claim = stage.attempt_folder(spec) / "claim"
            claim.unlink(missing_ok=True)
            claim.symlink_to(f"{w} {boot} 7")
            found = courier.ask("inventory", dirs=[place])
            assert found["boot"] == BOOT
            assert [each["alive"] for each in (*found["workers"], *found["attempts"])] == [alive, alive]
            if not alive:
                assert courier.ask("kill", agent=7, w=w)["killed"] is False
                assert courier.ask("reap", dir=place)["killed"] == []
                assert stage.wait_record("lost", spec)["agent"] == 7
        assert bystander.poll() is None
        assert bystander.stdin is not None
        bystander.stdin.close()


# --- reap


@LINUX_ONLY
def test_reap_ends_what_a_dead_worker_left(stage: Stage) -> None:
    courier = stage.courier()
    courier.ask("tail", offset=0)
    pane = stage.worker()
    order, pid = begin(stage, courier)
    assert courier.refusal("reap", dir=order["dir"]) == "worker-alive"
    pane.kill()
    first, second = courier.send("reap", dir=order["dir"]), courier.send("reap", dir=order["dir"])
    replies = [courier.wait_reply(number) for number in (first, second)]
    assert [pid in reply["killed"] for reply in replies] == [True, True]
    assert not is_alive(pid)
    lost = courier.wait_record("lost")
    assert (lost["task"], lost["attempt"], lost["agent"], lost["killed"]) == ("demo/one", 1, 7, replies[0]["killed"])
    assert courier.ask("reap", dir=order["dir"])["killed"] == []
    found = courier.ask("inventory", dirs=[order["dir"]])["attempts"][0]
    assert (found["state"], found["alive"]) == ("claimed", False)


def test_reap_of_what_is_over_or_never_began(stage: Stage) -> None:
    courier = stage.courier()
    stage.worker()
    done = stage.order(["/bin/true"])
    stage.wait_record("done", done)
    assert courier.refusal("reap", dir="attempts/demo/one/1") == "done"
    waiting = stage.spec(["/bin/sh", "-c", "echo ran"], attempt=2)
    place = stage.place(waiting)
    assert courier.ask("reap", dir=place)["killed"] == []
    assert courier.ask("reap", dir="attempts/demo/one/3")["killed"] == []
    stage.poke({"op": "run", "dir": place})
    assert stage.wait_record("refused", waiting)["reason"] == "claimed"
    late = order_of(stage.spec(["/bin/true"], attempt=3))
    assert courier.ask("start", orders=[late])["failed"][0]["code"] == "exists"
    assert len(stage.records("started")) == 1


# --- files


def test_read_write_and_parts_of_files(stage: Stage) -> None:
    courier = stage.courier()
    assert "error" not in courier.ask("write", path="attempts/a/1/deep/note.txt", text="héllo wörld", mode=0o640)
    path = stage.folder / "attempts/a/1/deep/note.txt"
    assert path.read_text() == "héllo wörld"
    assert path.stat().st_mode & 0o777 == 0o640
    assert list(path.parent.iterdir()) == [path]
    read = courier.ask("read", path="attempts/a/1/deep/note.txt", offset=0, length=1000)
    assert (read["text"], read["offset"], read["size"]) == ("héllo wörld", 0, 13)
    assert courier.ask("read", path="attempts/a/1/deep/note.txt", offset=-3, length=2)["text"] == "rl"
    assert courier.ask("read", path="attempts/a/1/deep/note.txt", offset=-99, length=2)["offset"] == 0
    assert courier.refusal("read", path="attempts/a/1/none", offset=0, length=1) == "absent"


ESCAPES = [
    "../secret",
    "/etc/passwd",
    "attempts/../../secret",
    "link/secret",
    "attempts/link/secret",
    "filelink",
    ".",
    "",
    "a//b",
    "a/./b",
    "a\0b",
    "bell",
    "attempts",
]


@pytest.mark.parametrize("path", ESCAPES)
def test_no_path_leads_out_of_the_folder(tmp_path: Path, path: str) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "secret").write_text("secret")
    (tmp_path / "secret").write_text("secret")
    with staged(tmp_path / "node") as stage:
        (stage.folder / "attempts").mkdir()
        (stage.folder / "link").symlink_to(outside)
        (stage.folder / "attempts/link").symlink_to(outside)
        (stage.folder / "filelink").symlink_to(outside / "secret")
        courier = stage.courier()
        courier.wait_frame("hello")
        assert courier.refusal("read", path=path, offset=0, length=100) == "bad-path"
        if path not in ("filelink", "bell", "attempts"):  # a write replaces a name, it does not follow it
            assert courier.refusal("write", path=path, text="overwritten", mode=0o600) == "bad-path"
        assert courier.ask("remove", dirs=["attempts/demo/1"])["removed"] == []
        for place in (f"attempts/{path}/1", "attempts/link/1", path):
            reply = courier.ask("remove", dirs=[place])
            assert reply.get("removed", []) == []
            (failure,) = courier.ask("start", orders=[{"dir": place, "agent": 7, "spec": {}, "files": {}}])["failed"] or [{"code": "?"}]
            assert failure["code"] in ("bad-path", "no-worker", "io")
        assert sorted(entry.name for entry in outside.iterdir()) == ["secret"]
        assert (outside / "secret").read_text() == (tmp_path / "secret").read_text() == "secret"


def test_a_write_replaces_a_link_and_does_not_follow_it(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("mine")
    with staged(tmp_path / "node") as stage:
        (stage.folder / "attempts").mkdir()
        (stage.folder / "attempts/file").symlink_to(target)
        courier = stage.courier()
        assert "error" not in courier.ask("write", path="attempts/file", text="new", mode=0o600)
        assert target.read_text() == "mine"
        assert (stage.folder / "attempts/file").read_text() == "new"


def test_remove_takes_what_is_over_and_follows_no_link(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    with staged(tmp_path / "node") as stage:
        courier = stage.courier()
        pane = stage.worker()
        over = stage.order(["/bin/ln", "-s", str(outside), "away"])
        stage.wait_record("done", over)
        running, pid = begin(stage, courier, attempt=2)
        ordered = stage.place(stage.spec(["/bin/true"], attempt=3))
        dirs = ["attempts/demo/one/1", running["dir"], ordered, "attempts/demo/one/4"]
        assert courier.ask("remove", dirs=dirs)["removed"] == ["attempts/demo/one/1", ordered]
        assert not stage.attempt_folder(over).exists()
        assert stage.attempt_folder(running["spec"]).exists()
        assert is_alive(pid)
        assert (outside / "kept").read_text() == "kept"
        pane.kill()
        courier.ask("reap", dir=running["dir"])
        assert courier.ask("remove", dirs=[running["dir"]])["removed"] == [running["dir"]]


# --- together


@LINUX_ONLY
def test_a_dead_courier_is_replaced_without_anyone_noticing(stage: Stage) -> None:
    first = stage.courier()
    stage.worker()
    order, pid = begin(stage, first)
    first.close()
    second = stage.courier()
    assert second.ask("inventory", dirs=[order["dir"]])["attempts"][0]["alive"]
    assert second.ask("poke", agent=7, line=json.dumps({"op": "stop", "task": "demo/one", "attempt": 1})).keys() == {"re"}
    second.ask("tail", offset=0)
    assert second.wait_record("done")["exit"]["reason"] == "stopped"
    assert start_of(pid) is None


def test_both_programs_run_from_bytecode_without_the_house(stage: Stage) -> None:
    """Isolated, without site-packages, from a folder of their own; and what the first one compiled is there for the next."""
    for program in ("worker", "courier"):
        argv = stage_argv(PYTHON, str(stage.pushed), program)
        done = subprocess.run(argv, capture_output=True, check=False, text=True)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("usage: ")
    compiled = {path.name.partition(".")[0] for path in (stage.programs / "__pycache__").iterdir()}
    assert {"worker", "slot", "courier", "courier_ops"} <= compiled
