"""The worker, as a real process in a real terminal. Nothing here sleeps: the journal and the pane tell when something has happened."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from orchestra.nodes.tmux_node import STAGE_PACKAGE
from tests.integration.stage_support import BOOT, Courier, Pane, Stage, fill, is_alive, small_disk, staged, start_of, wait_until

LINUX_ONLY = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks into /proc")
ROOT_ONLY = pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small file system")


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with staged(tmp_path) as made:
        yield made


def pids_printed(stage: Stage, spec: dict[str, Any], count: int) -> list[int]:
    """The pids that an agent printed as `pid <n>`; each is ended with the test."""

    def found() -> list[int]:
        path = stage.attempt_folder(spec) / "output.jsonl"
        data = path.read_text() if path.exists() else ""
        pids = [int(each) for each in re.findall(r'"pid (\d+)"', data)]
        return pids if len(pids) >= count else []

    pids: list[int] = wait_until(found, f"{count} pids")
    for pid in pids:
        stage.adopt(pid)
    return pids


FAMILY = """
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
def child(setsid, clean):
    if os.fork() == 0:
        if setsid: os.setsid()
        if os.fork() == 0:
            print("pid", os.getpid(), flush=True)
            if clean: os.execve("/bin/sh", ["sh", "-c", "trap '' TERM; while :; do /bin/sleep 1; done"], {})
            while True: signal.pause()
        os._exit(0)
    os.wait()
child(False, False); child(True, False); child(True, True)
print("pid", os.getpid(), flush=True)
AFTER
"""
"""Prints four pids: three orphaned grandchildren, two of them in other sessions, one of those without our environment; and its own."""


def change(file: Path, text: str, other: str) -> None:
    """Makes a program of the stage behave as on another machine, before it is started."""
    program = file.read_text()
    assert text in program
    file.write_text(program.replace(text, other))


# --- the plain way


def test_runs_an_order_and_tells_everything(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.order(["/bin/sh", "-c", "echo hello; echo trouble >&2; exit 3"])
    done = stage.wait_record("done", spec)
    assert [record["k"] for record in stage.records()] == ["ready", "started", "done"]
    started = stage.records("started")[0]
    assert started["pid"] > 0
    assert started["start"] > 0
    assert {record["w"] for record in stage.records()} == {pane.w}
    exit_ = done["exit"]
    assert (exit_["code"], exit_["signal"], exit_["reason"]) == (3, None, "exit")
    assert (exit_["lines"], exit_["bytes"], exit_["dropped_bytes"]) == (2, 14, 0)
    assert sorted(exit_["tail"]) == ["hello", "trouble"]
    assert sorted((entry["s"], entry["line"]) for entry in stage.output(spec)) == [("err", "trouble"), ("out", "hello")]
    kept = json.loads((stage.attempt_folder(spec) / "exit.json").read_text())
    assert kept == {"task": "demo/one", "attempt": 1, "exit": exit_, "checks": []}
    assert os.readlink(stage.attempt_folder(spec) / "claim") == f"{pane.w} {BOOT} 7"
    pane.wait_text(spec["marker"])
    assert pane.lines().count(spec["marker"]) == 1
    assert any("a title" in line for line in pane.lines())
    wait_until(lambda: not stage.current(), "the slot to be idle")


def test_an_order_delivered_twice_runs_once(stage: Stage) -> None:
    stage.worker()
    spec = stage.order(["/bin/sh", "-c", "echo ran"])
    for _ in range(2):
        stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    wait_until(lambda: len(stage.records("refused")) == 2, "two refusals")
    assert [record["reason"] for record in stage.records("refused")] == ["claimed", "claimed"]
    assert len(stage.records("started")) == len(stage.records("done")) == 1
    assert [entry["line"] for entry in stage.output(spec)] == ["ran"]


def test_an_order_delivered_again_while_it_runs_is_refused_at_once(stage: Stage) -> None:
    stage.worker()
    spec = stage.python("import signal; print('up', flush=True); signal.pause()")
    stage.wait_output(spec, "up")
    stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    assert stage.wait_record("refused", spec)["reason"] == "claimed"
    waiting = stage.order(["/bin/true"], attempt=2)
    stage.poke({"op": "stop", "task": "demo/one", "attempt": 2})  # still waits in the inbox
    stage.poke({"op": "stop", "task": "demo/one", "attempt": 1})
    assert stage.wait_record("done", spec)["exit"]["reason"] == "stopped"
    assert stage.wait_record("done", waiting)["exit"]["reason"] == "stopped"
    assert len(stage.records("started")) == 1


def test_the_environment_is_clean_and_tagged(stage: Stage) -> None:
    stage.worker(env={"SECRET": "no", "WANTED": "yes", "LANG": "C.UTF-8"})
    spec = stage.order(
        ["/usr/bin/env"], env={"OWN": "1", "TMUX": "x"}, env_pass=["WANTED", "TMUX_PANE"], files={"prompt.txt": "do it"}, task="plan/sub"
    )
    stage.wait_record("done", spec)
    env = dict(entry["line"].split("=", 1) for entry in stage.output(spec))
    folder = stage.attempt_folder(spec)
    assert {name: value for name, value in env.items() if name.startswith("ORCHESTRA")} == {
        "ORCHESTRA_TASK": "plan/sub",
        "ORCHESTRA_ATTEMPT": "1",
        "ORCHESTRA_AGENT": "7",
        "ORCHESTRA_ATTEMPT_DIR": str(folder),
        "ORCHESTRA_PROMPT_FILE": str(folder / "prompt.txt"),
    }
    assert (env["OWN"], env["WANTED"], env["LANG"]) == ("1", "yes", "C.UTF-8")
    assert {"SECRET", "TMUX", "TMUX_PANE"} & env.keys() == set()
    assert not any(spec["marker"] in value for value in env.values())


def test_the_agent_works_in_a_private_folder_or_the_one_named(stage: Stage) -> None:
    stage.worker()
    one = stage.order(["/bin/pwd"])
    two = stage.order(["/bin/pwd"], attempt=2, cwd=str(stage.folder))
    stage.wait_record("done", two)
    assert [entry["line"] for entry in stage.output(one)] == [str(stage.attempt_folder(one) / "work")]
    assert [entry["line"] for entry in stage.output(two)] == [str(stage.folder)]


# --- orders that cannot be carried out


@pytest.mark.parametrize(
    "text",
    [
        "{not json",
        "[]",
        '{"v": 1}',
        '{"v": 2, "task": "demo/bad", "attempt": 1, "argv": ["x"]}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": []}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true", 5]}',
        '{"v": 1, "task": "demo/bad", "attempt": true, "argv": ["/bin/true"]}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "env": {"A": 1}}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "cwd": "relative"}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "stdin": "file"}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "timeout_ms": 0}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "umask": 512}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "limits": {"nice": "5"}}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "output": {"line_bytes_max": 1}}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "success": {"signal": {}}}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "checks": [{"name": "c", "argv": ["x"]}]}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "fence": 1}',
        '{"v": 1, "task": "demo/bad", "attempt": 1, "argv": ["/bin/true"], "sandbox": {"mode": "on", "argv": [1]}}',
        "",
    ],
)
def test_a_bad_spec_is_refused(stage: Stage, text: str) -> None:
    stage.worker()
    folder = stage.folder / "attempts/demo/bad/1"
    folder.mkdir(parents=True)
    (folder / "spec.json").write_text(text)
    stage.poke({"op": "run", "dir": "attempts/demo/bad/1"})
    refused = stage.wait_record("refused")
    assert (refused["task"], refused["attempt"], refused["reason"]) == ("demo/bad", 1, "bad-spec")
    stage.wait_record("done", stage.order(["/bin/true"]))


def test_an_order_with_the_least_in_it_and_nulls_is_carried_out(stage: Stage) -> None:
    stage.worker()
    spec = {
        "v": 1,
        "task": "demo/least",
        "attempt": 1,
        "argv": ["/bin/echo", "ran"],
        "env": None,
        "grace_ms": None,
        "title": None,
        "checks": None,
    }
    stage.poke({"op": "run", "dir": stage.place(spec)})
    assert stage.wait_record("done", spec)["exit"]["tail"] == ["ran"]


def test_an_order_outside_the_folder_is_dropped(stage: Stage) -> None:
    stage.worker()
    for place in ("attempts/../../x/1", "/attempts/x/1", "agents/7/1", 5):
        stage.poke({"op": "run", "dir": place})
    stage.wait_record("done", stage.order(["/bin/true"]))
    assert [record["k"] for record in stage.records()] == ["ready", "started", "done"]


@pytest.mark.parametrize(
    "change", [{"argv": ["no-such-program-here"]}, {"argv": ["/no/such/program"]}, {"cwd": "/no/such/folder"}, {"argv": ["a\0b"]}]
)
def test_a_program_that_cannot_start_is_done_with_reason_spawn(stage: Stage, change: dict[str, Any]) -> None:
    stage.worker()
    argv = change.get("argv", ["/bin/true"])
    spec = stage.order(
        argv, **({"cwd": change["cwd"]} if "cwd" in change else {}), checks=[{"name": "c", "argv": ["/bin/true"], "timeout_ms": 1000}]
    )
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["code"]) == ("spawn", None)
    assert "cannot start" in done["exit"]["tail"][0]
    assert done["checks"] == []
    assert stage.records("started") == []


# --- ending


@LINUX_ONLY
def test_timeout_ends_an_agent_that_ignores_term_and_all_its_family(stage: Stage) -> None:
    stage.worker()
    spec = stage.python(FAMILY.replace("AFTER", "while True: signal.pause()"), timeout_ms=1500, grace_ms=100)
    pids = pids_printed(stage, spec, 4)
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["signal"]) == ("timeout", signal.SIGKILL)
    assert [pid for pid in pids if is_alive(pid)] == []


@LINUX_ONLY
def test_what_an_agent_leaves_behind_is_ended_with_the_attempt(stage: Stage) -> None:
    stage.worker()
    spec = stage.python(FAMILY.replace("AFTER", "sys.exit(0)"), grace_ms=50)
    done = stage.wait_record("done", spec)
    pids = pids_printed(stage, spec, 4)
    assert (done["exit"]["reason"], done["exit"]["code"]) == ("exit", 0)
    assert [pid for pid in pids if is_alive(pid)] == []


@LINUX_ONLY
def test_a_stopped_process_is_ended_too(stage: Stage) -> None:
    stage.worker()
    spec = stage.python("import os, signal; print('pid', os.getpid(), flush=True); os.kill(os.getpid(), signal.SIGSTOP)", grace_ms=10_000)
    pid = pids_printed(stage, spec, 1)[0]
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1})
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["signal"]) == ("stopped", signal.SIGTERM)
    assert not is_alive(pid)


def test_stop_ends_the_attempt_it_names_and_no_other(stage: Stage) -> None:
    stage.worker()
    spec = stage.python("import signal; print('up', flush=True); signal.pause()")
    stage.wait_output(spec, "up")
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 2})
    stage.poke({"op": "stop", "task": "demo/other", "attempt": 1})
    assert stage.records("done") == []
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1, "grace_ms": 5000})
    assert stage.wait_record("done", spec)["exit"]["reason"] == "stopped"
    stage.wait_record("done", stage.order(["/bin/true"], attempt=3))


def test_the_grace_of_a_stop_is_given(stage: Stage) -> None:
    stage.worker()
    # Blocked and waited for, not handled: a handler could come in the middle of printing `up`.
    script = "import sys; from signal import *; pthread_sigmask(SIG_BLOCK, {SIGTERM}); print('up', flush=True); sigwait({SIGTERM}); print('saved', flush=True); sys.exit(4)"
    spec = stage.python(script, grace_ms=0)
    stage.wait_output(spec, "up")
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1, "grace_ms": 20_000})
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["code"], done["exit"]["tail"]) == ("stopped", 4, ["up", "saved"])


@LINUX_ONLY
def test_sigterm_stops_the_attempt_and_leaves(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python("import os, signal; print('pid', os.getpid(), flush=True); signal.pause()")
    pid = pids_printed(stage, spec, 1)[0]
    pane.signal(signal.SIGTERM)
    assert pane.wait_end() == 0
    assert [record["k"] for record in stage.records()] == ["ready", "started", "done", "left"]
    assert stage.records("done")[0]["exit"]["reason"] == "stopped"
    assert not is_alive(pid)


def test_leave_waits_for_the_attempt_in_hand_and_leave_now_does_not(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python("import sys; print('up', flush=True); sys.stdin.readline(); print('read')", stdin="pane")
    stage.wait_output(spec, "up")
    stage.poke({"op": "leave", "now": False})
    pane.type(b"go\n")
    assert pane.wait_end() == 0
    assert stage.records("done")[0]["exit"]["tail"] == ["up", "read"]
    again = stage.worker()
    spec = stage.python("import signal; print('up', flush=True); signal.pause()", attempt=2)
    stage.wait_output(spec, "up")
    stage.poke({"op": "leave", "now": True})
    assert again.wait_end() == 0
    assert stage.wait_record("done", spec)["exit"]["reason"] == "stopped"
    assert stage.records()[-1]["k"] == "left"


# --- dead workers, second workers, closed windows


@LINUX_ONLY
def test_a_new_worker_ends_what_a_killed_one_left(stage: Stage) -> None:
    first = stage.worker()
    spec = stage.python(FAMILY.replace("AFTER", "while True: signal.pause()"), grace_ms=50)
    pids = pids_printed(stage, spec, 4)
    tagged_or_near = [pid for pid in pids if b"ORCHESTRA_ATTEMPT_DIR" in Path(f"/proc/{pid}/environ").read_bytes()]
    first.kill()
    assert all(is_alive(pid) for pid in pids)
    stage.worker()
    lost = stage.wait_record("lost", spec)
    assert (lost["task"], lost["attempt"], lost["reason"]) == ("demo/one", 1, "worker died")
    assert set(tagged_or_near) <= set(lost["killed"])
    assert [pid for pid in tagged_or_near if is_alive(pid)] == []
    assert len(tagged_or_near) == 3
    assert [record["k"] for record in stage.records()] == ["ready", "started", "lost", "ready"]
    stage.wait_record("done", stage.order(["/bin/true"], attempt=2))
    stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    assert stage.wait_record("refused", spec)["reason"] == "claimed"


def test_a_result_that_a_killed_worker_could_not_tell_is_told_by_the_next(stage: Stage) -> None:
    first = stage.worker()
    spec = stage.order(["/bin/true"])
    done = stage.wait_record("done", spec)
    wait_until(lambda: not stage.current(), "the slot to be idle")
    first.kill()
    (stage.folder / "journal").write_bytes(b"")
    stage.set_current({"dir": "attempts/demo/one/1", "task": "demo/one", "attempt": 1})
    stage.worker()
    assert stage.wait_record("done", spec)["exit"] == done["exit"]
    assert stage.records("lost") == []


def test_an_order_taken_but_not_claimed_by_a_dead_worker_is_lost_and_runs_no_more(stage: Stage) -> None:
    (stage.folder / "agents/7").mkdir(parents=True)
    spec = stage.spec(["/bin/sh", "-c", "echo ran"])
    place = stage.place(spec)
    stage.set_current({"dir": place, "task": "demo/one", "attempt": 1})
    stage.worker()
    assert stage.wait_record("lost", spec)["killed"] == []
    stage.poke({"op": "run", "dir": place})
    stage.wait_record("refused", spec)
    assert stage.output(spec) == []


def test_a_pid_in_other_hands_is_left_alone(stage: Stage) -> None:
    """The child's number belongs to another process now: its start time differs."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, start_new_session=True) as bystander:
        (stage.folder / "agents/7").mkdir(parents=True)
        spec = stage.spec(["/bin/true"])
        place = stage.place(spec)
        folder = stage.attempt_folder(spec)
        (folder / "claim").symlink_to(f"1:1 {BOOT} 7")
        child = {"pid": bystander.pid, "start": "1", "boot": BOOT}
        stage.set_current({"dir": place, "task": "demo/one", "attempt": 1, "child": child})
        stage.worker()
        assert stage.wait_record("lost", spec)["killed"] == []
        assert bystander.poll() is None
        assert bystander.stdin is not None
        bystander.stdin.close()


@pytest.mark.parametrize("boot", [BOOT, "00000000-1111-2222-3333-444444444444"])
def test_a_child_of_before_the_machine_started_anew_is_left_alone(stage: Stage, boot: str) -> None:
    """Number and start time are those of a living process, as can be after a restart: only the boot tells."""
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, start_new_session=True) as bystander:
        spec = stage.spec(["/bin/true"])
        place = stage.place(spec)
        (stage.attempt_folder(spec) / "claim").symlink_to(f"1:1 {boot} 7")
        child = {"pid": bystander.pid, "start": start_of(bystander.pid), "boot": boot}
        stage.set_current({"dir": place, "task": "demo/one", "attempt": 1, "child": child})
        stage.worker()
        assert stage.wait_record("lost", spec)["killed"] == ([bystander.pid] if boot == BOOT else [])
        assert bystander.stdin is not None
        bystander.stdin.close()
        assert bystander.wait() == (-signal.SIGTERM if boot == BOOT else 0)


def test_a_torn_current_is_taken_for_nothing(stage: Stage) -> None:
    for attempt in (1, 2):
        stage.place(stage.spec(["/bin/true"], attempt=attempt))
    stage.set_current({"dir": "attempts/demo/one/1", "task": "demo/one", "attempt": 1})
    path = stage.folder / "agents/7/current"
    path.write_bytes(path.read_bytes().replace(b"one/1", b"one/2"))
    stage.worker()
    stage.wait_record("done", stage.order(["/bin/true"], attempt=3))
    assert stage.records("lost") == []
    assert not os.path.lexists(stage.folder / "attempts/demo/one/2/claim")


@LINUX_ONLY
def test_the_start_time_that_is_told_is_that_of_the_process(stage: Stage) -> None:
    """Asked of /proc for the first attempt, taken from the clock for the others."""
    stage.worker()
    for attempt in range(1, 6):
        spec = stage.python("import signal; signal.pause()", attempt=attempt)
        started = stage.wait_record("started", spec)
        assert str(started["start"]) == start_of(started["pid"])
        assert stage.current()["child"] == {"pid": started["pid"], "start": start_of(started["pid"]), "what": "agent", "boot": BOOT}
        stage.poke({"op": "stop", "task": spec["task"], "attempt": attempt})
        stage.wait_record("done", spec)


def test_a_second_worker_shows_the_first_and_takes_over(stage: Stage) -> None:
    first = stage.worker()
    spec = stage.python("import sys; print('before', flush=True); sys.stdin.readline(); print('after', flush=True)", stdin="pane")
    stage.wait_output(spec, "before")
    second = stage.worker(wait=False)
    second.wait_text("before")
    assert len(stage.records("ready")) == 1
    first.type(b"\n")
    stage.wait_record("done", spec)
    second.wait_text("after")
    stage.poke({"op": "leave", "now": False})
    first.wait_end()
    wait_until(lambda: len(stage.records("ready")) == 2, "the take-over", on=second.fd)
    assert stage.records("ready")[1]["w"] == second.w
    assert second.lines().count(spec["marker"]) == 1
    again = stage.order(["/bin/true"], attempt=2)
    assert stage.wait_record("done", again)["w"] == second.w


def test_a_second_worker_whose_window_closes_says_nothing(stage: Stage) -> None:
    stage.worker()
    second = stage.worker(wait=False)
    second.wait_text("another window")
    second.close_window()
    assert second.wait_end() == 0
    assert [record["k"] for record in stage.records()] == ["ready"]


def test_a_closed_window_does_not_hurt_the_attempt(stage: Stage) -> None:
    pane = stage.worker()
    fifo = stage.folder / "go"
    os.mkfifo(fifo)
    spec = stage.python(f"print('up', flush=True); open({str(fifo)!r}).read(); print('x' * 3000); print('finished')")
    stage.wait_output(spec, "up")
    pane.close_window()
    fifo.write_text("go")
    assert pane.wait_end() == 0
    assert [record["k"] for record in stage.records()] == ["ready", "started", "done", "left"]
    assert stage.records("done")[0]["exit"]["tail"][-1] == "finished"


def test_an_idle_worker_leaves_with_its_window(stage: Stage) -> None:
    pane = stage.worker()
    pane.close_window()
    assert pane.wait_end() == 0
    assert [record["k"] for record in stage.records()] == ["ready", "left"]


def test_sighup_alone_means_nothing(stage: Stage) -> None:
    pane = stage.worker()
    pane.signal(signal.SIGHUP)
    stage.wait_record("done", stage.order(["/bin/true"]))
    assert stage.records("left") == []


# --- output


def test_a_line_of_ten_megabytes_comes_in_pieces(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python(
        "import sys; sys.stdout.write('\\u00e9' * 5_000_000 + '\\nend\\n')",
        output={"file_bytes_max": 64 << 20, "line_bytes_max": 65535},
        env={"PYTHONUTF8": "1"},
    )
    done = stage.wait_record("done", spec)
    assert (done["exit"]["lines"], done["exit"]["bytes"], done["exit"]["dropped_bytes"]) == (2, 10_000_005, 0)
    *pieces, end = stage.output(spec)
    assert "".join(piece["line"] for piece in pieces) == "é" * 5_000_000
    assert [piece.get("part", False) for piece in pieces] == [True] * (len(pieces) - 1) + [False]
    assert max(len(piece["line"].encode()) for piece in pieces) <= 65535
    assert end["line"] == "end"
    pane.wait_text(spec["marker"])
    assert max(len(line) for line in pane.lines()) < 2100


def test_bytes_that_are_no_text_are_kept_readable(stage: Stage) -> None:
    stage.worker()
    spec = stage.python("import sys; sys.stdout.buffer.write(bytes(range(256)) + b'\\n\\xff\\xfe tail')")
    done = stage.wait_record("done", spec)
    lines = [entry["line"] for entry in stage.output(spec)]
    assert lines[-1] == "\\xff\\xfe tail"
    assert "\x00" in lines[0]
    assert done["exit"]["bytes"] == 256 + 8


HOSTILE = [
    "\x1b]0;evil title\x07",
    "\x1b]52;c;ZXZpbA==\x07",
    "\x1b[2J\x1b[H\x1b[10A",
    "\x9b31m c1",
    "\x90q sixel \x9c",
    "right\u202eleft\u2066",
    "line\u2028separator",
    "one\rtwo",
    "\x0eshift\x05enq",
]


def test_nothing_an_agent_prints_reaches_the_terminal_as_a_command(stage: Stage) -> None:
    pane = stage.worker(env={"PYTHONUTF8": "1"})
    spec = stage.python(
        f"import sys; sys.stdout.write({chr(10).join(HOSTILE)!r} + '\\n'); sys.stderr.write('\\x1b[31mred\\n')", env={"PYTHONUTF8": "1"}
    )
    stage.wait_record("done", spec)
    pane.wait_text(spec["marker"])
    seen = pane.text.replace(b"\x1b[2m", b"").replace(b"\x1b[0m", b"").decode("utf-8")
    assert [char for char in seen if (ord(char) < 32 and char not in "\r\n") or 0x7F <= ord(char) < 0xA0] == []
    assert [char for char in seen if char in "\u202e\u2066\u2028"] == []
    assert "^[]0;evil title^G" in seen
    assert "<202e>" in seen
    assert {entry["line"] for entry in stage.output(spec)} >= {"\x1b[31mred", HOSTILE[0]}


def test_an_agent_cannot_print_the_marker(stage: Stage) -> None:
    pane = stage.worker()
    script = "import json, os; m = json.load(open(os.environ['ORCHESTRA_ATTEMPT_DIR'] + '/spec.json'))['marker']; print(m); print(m[:5] + chr(0) + m[5:]); print('x' + chr(13) + m)"
    spec = stage.python(script)
    stage.wait_record("done", spec)
    pane.wait_text("code 0")
    pane.wait_text(spec["marker"])
    assert pane.text.count(spec["marker"].encode()) == 1
    assert stage.output(spec)[0]["line"] == spec["marker"]


def test_the_marker_stands_alone_even_if_a_person_types(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python("import sys; sys.stdin.readline(); print('up', flush=True); sys.stdin.readline()", stdin="pane")
    stage.wait_record("started", spec)
    pane.type(b"\n")
    pane.wait_text("up")
    pane.type(b"half a li")
    pane.wait_text("half a li")
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1})
    pane.wait_text(spec["marker"])
    assert pane.lines().count(spec["marker"]) == 1


@LINUX_ONLY
def test_a_flood_stays_bounded_in_file_and_memory_and_pane(stage: Stage) -> None:
    pane = stage.worker(reads=False)  # and the terminal does not read at all
    spec = stage.order(["/usr/bin/yes", "a line of output"], output={"file_bytes_max": 1 << 20, "line_bytes_max": 65536, "view": "lines"})
    folder = stage.attempt_folder(spec)
    wait_until((folder / "output.jsonl.1").exists, "a rotation")
    before = (folder / "output.jsonl.1").stat().st_ino
    wait_until(lambda: (folder / "output.jsonl.1").stat().st_ino != before, "another rotation")
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1})
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "stopped"
    assert done["exit"]["dropped_bytes"] > 0
    assert done["exit"]["lines"] > 20_000
    assert sum(path.stat().st_size for path in folder.glob("output.jsonl*")) < 3 << 20
    status = Path(f"/proc/{pane.pid}/status").read_text()
    assert int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) < 64 << 10
    pane.reads = True
    pane.wait_text("lines more in output.jsonl")
    pane.wait_text(spec["marker"])


def test_json_view_is_readable(stage: Stage) -> None:
    pane = stage.worker()
    lines = [
        {"type": "system", "subtype": "init", "model": "m-1", "cwd": "/w", "session_id": "s1"},
        {
            "type": "assistant",
            "message": {
                "content": [
                    {"type": "text", "text": "I will\nread it"},
                    {"type": "tool_use", "name": "Read", "input": {"file": "a\x1b[2J"}},
                ]
            },
        },
        {"type": "user", "message": {"content": [{"type": "tool_result", "content": "the text"}]}},
        {"type": "result", "subtype": "success", "is_error": False, "num_turns": 3, "result": "all good"},
        {"type": "novel", "deep": {"x": "y" * 5000}},
    ]
    script = f"import json\nfor line in {lines!r}: print(json.dumps(line))\nprint('plain')"
    spec = stage.python(script, output={"view": "json"})
    stage.wait_record("done", spec)
    pane.wait_text(spec["marker"])
    shown = pane.lines()
    for wanted in ("* init model m-1, cwd /w, session_id s1", "I will", "read it", "< the text", "all good", "plain"):
        assert wanted in shown
    assert any(line.startswith("> Read") for line in shown)
    assert any(line.startswith("* ") and "novel" in line and len(line) < 300 for line in shown)
    assert b"\x1b[2J" not in pane.text


# --- input


def test_stdin_from_the_pane(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python("import sys\nfor line in sys.stdin: print('got', line.strip(), flush=True)\nprint('eof')", stdin="pane")
    stage.wait_record("started", spec)
    pane.type(b"first\n")
    stage.wait_output(spec, "got first")
    pane.type(b"second\n")
    stage.wait_output(spec, "got second")
    pane.type(b"\x04")
    assert stage.wait_record("done", spec)["exit"]["tail"] == ["got first", "got second", "eof"]
    pane.wait_text(spec["marker"])
    pane.type(b"anyone?\n")
    pane.wait_text("nothing runs here")


def test_ctrl_c_in_the_pane_interrupts_the_agent_only(stage: Stage) -> None:
    pane = stage.worker()
    # Blocked and waited for, not handled: a handler could come in the middle of printing `up`.
    spec = stage.python(
        "from signal import *; pthread_sigmask(SIG_BLOCK, {SIGINT}); print('up', flush=True); sigwait({SIGINT}); print('interrupted')"
    )
    stage.wait_output(spec, "up")
    pane.type(b"\x1a\x1c")  # Ctrl-Z and Ctrl-\ do nothing
    pane.type(b"\x03")
    assert stage.wait_record("done", spec)["exit"]["tail"] == ["up", "interrupted"]
    pane.type(b"\x03")
    stage.wait_record("done", stage.order(["/bin/true"], attempt=2))


def test_prompt_on_stdin_and_null(stage: Stage) -> None:
    stage.worker()
    one = stage.order(["/bin/cat"], stdin="prompt", files={"prompt.txt": "first\nzweite Zeile é"})
    two = stage.order(["/bin/cat"], stdin="null", attempt=2)
    assert stage.wait_record("done", one)["exit"]["tail"] == ["first", "zweite Zeile é"]
    assert stage.wait_record("done", two)["exit"]["lines"] == 0


# --- signals and success


def test_json_lines_of_asked_types_are_journalled(stage: Stage) -> None:
    stage.worker()
    script = """
import json
print(json.dumps({"type": "system", "n": 1}))
print(json.dumps({"type": "other", "n": 2}))
print('{"type": "result", broken')
print(json.dumps({"type": "result", "text": "x" * 100_000, "is_error": False}))
print('{"type": ' + '[' * 100_000)
print(json.dumps({"no": "type"})); print('quoted {"type": "result"}')
for n in range(300): print(json.dumps({"type": "system", "n": n}))
print(json.dumps({"type": "system", "odd": "\\ud800"}))
"""
    spec = stage.python(script, signals=["result", "system"])
    done = stage.wait_record("done", spec)
    signals = [record["line"] for record in stage.records("signal")]
    assert len(signals) == 201  # at most 200 of a type
    assert signals[0] == {"type": "system", "n": 1}
    assert signals[1]["type"] == "result"
    assert signals[1]["is_error"] is False
    assert len(json.dumps(signals[1])) < 32768
    assert {line["type"] for line in signals} == {"system", "result"}
    assert done["exit"]["last"]["system"]["odd"] == "\ud800"
    assert done["exit"]["last"]["result"]["is_error"] is False
    assert max(len(line) for line in (stage.folder / "journal").read_bytes().split(b"\n")) < 65536


CHECKS = [
    {"name": "good", "argv": ["/bin/sh", "-c", "pwd; echo fine"], "timeout_ms": 20_000},
    {"name": "bad", "argv": ["/bin/sh", "-c", "echo wrong >&2; exit 9"], "timeout_ms": 20_000},
    {"name": "slow", "argv": [sys.executable, "-I", "-S", "-c", FAMILY.replace("AFTER", "while True: signal.pause()")], "timeout_ms": 1000},
    {"name": "none", "argv": ["/no/such/check"], "timeout_ms": 20_000},
]


@LINUX_ONLY
def test_checks_pass_fail_time_out_and_leave_nothing(stage: Stage) -> None:
    stage.worker()
    spec = stage.order(["/bin/true"], checks=CHECKS, cwd=str(stage.folder), grace_ms=50)
    done = stage.wait_record("done", spec)
    assert [record["k"] for record in stage.records()] == ["ready", "started", "exited", "done"]
    assert stage.records("exited")[0]["exit"]["code"] == 0
    good, bad, slow, none = done["checks"]
    assert (good["name"], good["passed"], good["code"], good["reason"], good["tail"]) == (
        "good",
        True,
        0,
        "exit",
        [str(stage.folder), "fine"],
    )
    assert (bad["passed"], bad["code"], bad["tail"]) == (False, 9, ["wrong"])
    assert (slow["passed"], slow["reason"], slow["signal"]) == (False, "timeout", signal.SIGKILL)
    assert (none["passed"], none["reason"]) == (False, "spawn")
    assert [pid for pid in pids_printed(stage, spec, 4) if is_alive(pid)] == []
    assert {entry["s"] for entry in stage.output(spec)} == {"check:good", "check:bad", "check:slow", "check:none"}
    assert (done["exit"]["lines"], done["exit"]["tail"]) == (0, [])


@pytest.mark.parametrize(
    "printed,code,checked",
    [
        ('{"type":"result","is_error":false}', 0, True),
        ('{"type":"result","is_error":true}', 0, False),
        ("", 0, False),
        ('{"type":"result","is_error":false}', 1, False),
    ],
)
def test_success_decides_whether_checks_run(stage: Stage, printed: str, code: int, checked: bool) -> None:
    stage.worker()
    success = {"codes": [0], "signal": {"type": "result", "fields": {"is_error": False}}}
    spec = stage.order(["/bin/sh", "-c", f"echo '{printed}'; exit {code}"], success=success, checks=CHECKS[:1])
    done = stage.wait_record("done", spec)
    assert [check["passed"] for check in done["checks"]] == ([True] if checked else [])
    assert len(stage.records("exited")) == checked


def test_stop_during_a_check(stage: Stage) -> None:
    stage.worker()
    wait = [sys.executable, "-I", "-S", "-c", "import signal; print('checking', flush=True); signal.pause()"]
    spec = stage.order(["/bin/true"], checks=[{"name": "long", "argv": wait, "timeout_ms": 60_000}, *CHECKS[:1]])
    stage.wait_output(spec, "checking")
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1})
    done = stage.wait_record("done", spec)
    assert [(check["name"], check["reason"]) for check in done["checks"]] == [("long", "stopped")]


# --- limits


HOG = """
import os, signal
if os.fork() == 0:
    os.setsid()
    kept = b"x" * (200 << 20)
    print("pid", os.getpid(), flush=True)
    signal.pause()
print("pid", os.getpid(), flush=True)
signal.pause()
"""


@LINUX_ONLY
def test_a_tree_that_takes_too_much_memory_is_ended(stage: Stage) -> None:
    stage.worker()
    spec = stage.python(HOG, limits={"memory_bytes": 100 << 20})
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "memory"
    assert [pid for pid in pids_printed(stage, spec, 1) if is_alive(pid)] == []


@LINUX_ONLY
@pytest.mark.parametrize("limits", [{"memory_bytes": 100 << 20}, {"processes": 1}])
def test_limits_hold_by_measuring_where_no_control_group_can_be_made(stage: Stage, limits: dict[str, int]) -> None:
    change(stage.programs / "cgroup.py", '"/sys/fs/cgroup', '"/nowhere')
    stage.worker()
    spec = stage.python(HOG, limits=limits)
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "memory"
    assert [pid for pid in pids_printed(stage, spec, 1) if is_alive(pid)] == []


@LINUX_ONLY
def test_a_node_without_proc_lists_of_children_or_without_proc(stage: Stage) -> None:
    """What a Mac has is `ps`; and a kernel may be built without lists of children."""
    change(stage.programs / "processes.py", 'LINUX = sys.platform.startswith("linux")', "LINUX = False")
    change(stage.programs / "processes.py", "/children", "/none")
    stage.worker()
    spec = stage.python("import os, signal; print('pid', os.getpid(), flush=True); os.fork(); signal.pause()", timeout_ms=1500, grace_ms=50)
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "timeout"
    assert [pid for pid in pids_printed(stage, spec, 1) if is_alive(pid)] == []


@LINUX_ONLY
def test_memory_of_the_whole_tree_is_measured(stage: Stage) -> None:
    stage.worker()
    spec = stage.python(HOG, timeout_ms=3000)
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "timeout"
    assert done["exit"]["rss_bytes_max"] > 200 << 20


@LINUX_ONLY
def test_limits_of_files_cpu_and_nice_reach_the_agent(stage: Stage) -> None:
    stage.worker()
    script = (
        "import os, resource as r; print(r.getrlimit(r.RLIMIT_NOFILE)[0], r.getrlimit(r.RLIMIT_CPU)[0], os.getpriority(os.PRIO_PROCESS, 0))"
    )
    spec = stage.python(script, limits={"open_files": 77, "cpu_seconds": 33, "nice": 5})
    assert stage.wait_record("done", spec)["exit"]["tail"] == ["77 33 5"]


@LINUX_ONLY
def test_too_many_processes_do_not_go_on(stage: Stage) -> None:
    stage.worker()
    script = """
import os, signal
made = 0
try:
    while made < 40:
        if os.fork() == 0: signal.pause()
        made += 1
except OSError: print("refused", made, flush=True)
signal.pause()
"""
    spec = stage.python(script, limits={"processes": 10}, timeout_ms=4000)
    done = stage.wait_record("done", spec)
    assert done["exit"]["reason"] == "memory" or done["exit"]["tail"] == ["refused 9"]


# --- a full disk


@ROOT_ONLY
@LINUX_ONLY
def test_a_full_disk_delays_the_news_and_loses_none(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "2m") as disk, staged(disk) as stage:
        pane = stage.worker()
        fifo = stage.folder / "go"
        os.mkfifo(fifo)
        spec = stage.python(f"print('up', flush=True); open({str(fifo)!r}).read()\nfor n in range(3000): print('line', n)")
        stage.wait_output(spec, "up")
        ballast = fill(disk)
        fifo.write_text("go")
        pane.wait_text("disk is full")
        pane.wait_text("trying each second")
        assert stage.records("done") == []
        assert is_alive(pane.pid)
        beat = stage.folder / "agents/7/beat"
        before = beat.stat().st_mtime_ns
        wait_until(lambda: beat.stat().st_mtime_ns > before, "a beat on a full disk")
        ballast.unlink()
        done = stage.wait_record("done", spec)
        assert (done["exit"]["code"], done["exit"]["lines"]) == (0, 3001)
        assert done["exit"]["dropped_bytes"] > 0
        assert stage.output(spec)  # every logged line is whole
        again = stage.order(["/bin/echo", "well"], attempt=2)
        assert stage.wait_record("done", again)["exit"]["tail"] == ["well"]


def test_a_journal_that_was_taken_away_is_begun_anew(stage: Stage) -> None:
    stage.worker()
    stage.wait_record("done", stage.order(["/bin/true"]))
    (stage.folder / "journal").rename(stage.folder / "journal.old")
    again = stage.order(["/bin/true"], attempt=2)
    stage.wait_record("done", again)
    assert [record["k"] for record in stage.records()] == ["started", "done"]
    (stage.folder / "journal").unlink()
    stage.wait_record("done", stage.order(["/bin/true"], attempt=3))


# --- the fence


WAITER = "import signal; print('up', flush=True); signal.pause()"


def lease(courier: Courier, ttl_ms: int) -> None:
    assert courier.ask("lease", ttl_ms=ttl_ms).keys() == {"re"}


def test_an_attempt_with_a_fence_starts_only_under_a_lease(stage: Stage) -> None:
    courier = stage.courier()
    stage.worker()
    spec = stage.order(["/bin/echo", "ran"], fence=True)
    refused = stage.wait_record("refused", spec)
    assert refused["reason"] == "fenced"
    assert "lease" in refused["message"]
    assert not os.path.lexists(stage.attempt_folder(spec) / "claim")
    lease(courier, 0)
    stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    wait_until(lambda: len(stage.records("refused")) == 2, "another refusal")
    lease(courier, 60_000)
    stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    assert stage.wait_record("done", spec)["exit"]["tail"] == ["ran"]
    lease(courier, 0)
    stage.poke({"op": "run", "dir": "attempts/demo/one/1"})
    wait_until(lambda: len(stage.records("refused")) == 3, "a third refusal")
    assert stage.records("refused")[2]["reason"] == "claimed", "what ran is never told as if it had not"


@pytest.mark.parametrize(
    "text", [None, "{broken", "[]", '{"until_ms": 9000000000000, "boot": "another"}', f'{{"until_ms": 1, "boot": "{BOOT}"}}']
)
def test_a_lease_that_is_gone_or_of_before_a_restart_is_over(stage: Stage, text: str | None) -> None:
    courier = stage.courier()
    lease(courier, 60_000)
    stage.worker()
    spec = stage.python(WAITER, fence=True)
    stage.wait_output(spec, "up")
    if text is None:
        (stage.folder / "lease").unlink()
    else:
        (stage.folder / "lease").write_text(text)
    exit_ = stage.wait_record("done", spec)["exit"]
    assert (exit_["reason"], exit_["signal"]) == ("fenced", signal.SIGTERM)


@LINUX_ONLY
def test_a_lease_that_runs_out_ends_the_attempt_and_all_its_family(stage: Stage) -> None:
    courier = stage.courier()
    lease(courier, 2500)
    stage.worker()
    fenced = stage.python(FAMILY.replace("AFTER", "while True: signal.pause()"), fence=True, grace_ms=100)
    pids = pids_printed(stage, fenced, 4)
    exit_ = stage.wait_record("done", fenced)["exit"]
    assert (exit_["reason"], exit_["signal"]) == ("fenced", signal.SIGKILL)
    assert [pid for pid in pids if is_alive(pid)] == []


def test_a_lease_that_is_renewed_keeps_an_attempt_and_one_that_comes_late_does_not(stage: Stage) -> None:
    courier = stage.courier()
    lease(courier, 3000)
    stage.worker()
    script = "from signal import *; pthread_sigmask(SIG_BLOCK, {SIGTERM}); print('up', flush=True); sigwait({SIGTERM}); print('asked', flush=True); pause()"
    spec = stage.python(script, fence=True, grace_ms=1500)
    stage.wait_output(spec, "up")
    lease(courier, 600_000)
    beat = stage.folder / "agents/7/beat"
    for _ in range(4):  # longer than the first lease
        before = beat.stat().st_mtime_ns
        wait_until(lambda before=before: beat.stat().st_mtime_ns > before, "a beat")  # type: ignore[misc]
    assert stage.records("done") == []
    lease(courier, 0)
    stage.wait_output(spec, "asked")
    lease(courier, 600_000)
    exit_ = stage.wait_record("done", spec)["exit"]
    assert (exit_["reason"], exit_["signal"], exit_["tail"]) == ("fenced", signal.SIGKILL, ["up", "asked"])
    stage.wait_record("started", stage.python(WAITER, fence=True, attempt=2))


LEAVER = """
import os, sys
from signal import *
pthread_sigmask(SIG_BLOCK, {SIGTERM})
if os.fork() == 0:
    sigwait({SIGTERM})
    print("asked", flush=True)
    pause()
"""
"""Ends at once, and leaves a child behind that does not."""


def test_a_lease_that_was_over_for_a_while_keeps_checks_from_running(stage: Stage) -> None:
    courier = stage.courier()
    lease(courier, 60_000)
    stage.worker()
    spec = stage.python(LEAVER, fence=True, grace_ms=4000, checks=CHECKS[:1])
    stage.wait_output(spec, "asked")  # the agent itself is over
    lease(courier, 0)
    beat = stage.folder / "agents/7/beat"
    for _ in range(2):
        before = beat.stat().st_mtime_ns
        wait_until(lambda before=before: beat.stat().st_mtime_ns > before, "a beat")  # type: ignore[misc]
    lease(courier, 600_000)
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["code"], done["checks"]) == ("fenced", 0, [])


def test_the_fence_stops_checks_too_and_no_attempt_without_one(stage: Stage) -> None:
    courier = stage.courier()
    lease(courier, 60_000)
    stage.worker()
    stage.worker(8)
    free = stage.python(WAITER, agent=8, attempt=2)
    stage.wait_output(free, "up")
    long = {"name": "long", "argv": [sys.executable, "-I", "-S", "-c", WAITER], "timeout_ms": 60_000}
    spec = stage.order(["/bin/true"], fence=True, checks=[long, {"name": "next", "argv": ["/bin/true"], "timeout_ms": 1000}])
    stage.wait_output(spec, "up")
    lease(courier, 0)
    done = stage.wait_record("done", spec)
    assert (done["exit"]["reason"], done["exit"]["code"]) == ("fenced", 0)
    assert [(check["name"], check["reason"], check["passed"]) for check in done["checks"]] == [("long", "fenced", False)]
    assert {record["attempt"] for record in stage.records("done")} == {1}
    stage.poke({"op": "stop", "task": "demo/one", "attempt": 2}, 8)
    assert stage.wait_record("done", free)["exit"]["reason"] == "stopped"


# --- the heart


def test_a_worker_beats_while_it_ends_a_stubborn_program(stage: Stage) -> None:
    stage.worker()
    spec = stage.python(
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()", grace_ms=3000
    )
    stage.wait_output(spec, "up")
    beat = stage.folder / "agents/7/beat"
    stage.poke({"op": "stop", "task": spec["task"], "attempt": 1})
    for _ in range(2):
        before = beat.stat().st_mtime_ns
        wait_until(lambda before=before: beat.stat().st_mtime_ns > before, "a beat")  # type: ignore[misc]
    assert stage.records("done") == []
    assert stage.wait_record("done", spec)["exit"]["signal"] == signal.SIGKILL


HEAVY = {"enum", "re", "json", "subprocess", "threading", "collections", "typing", "ctypes", "resource", "signal", "contextlib"}


def test_start_up_imports_nothing_heavy(stage: Stage) -> None:
    """Two hundred workers start at once: what an attempt needs is loaded with the first order."""
    pane = stage.worker(options=("-X", "importtime"))
    pane.wait_text("agent 7 waits")
    before = imported(pane.lines())
    assert before & HEAVY == set()
    assert "zlib" in before
    ours = {name for name in before if name.startswith(STAGE_PACKAGE)}
    assert f"{STAGE_PACKAGE}.slot" in ours
    assert {f"{STAGE_PACKAGE}.{name}" for name in ("orders", "attempt", "program", "output", "recovery", "telling")} & ours == set()
    spec = stage.order(["/bin/true"])
    pane.wait_text(spec["marker"])
    after = imported(pane.lines())
    assert after & HEAVY <= {"resource"}  # os.wait4 loads it
    assert f"{STAGE_PACKAGE}.attempt" in after


def imported(lines: list[str]) -> set[str]:
    """The modules that `-X importtime` told of."""
    return {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time")}


def test_pane_helper_closes(stage: Stage) -> None:
    """The tests' own promise: what was started is over when the stage is closed."""
    pane: Pane = stage.worker()
    stage.close()
    assert pane.status is not None
    assert not is_alive(pane.pid)
