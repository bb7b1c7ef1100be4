"""A program with a terminal of its own, in one window, in another one, and in none; and answers that find their question."""

from __future__ import annotations

import fcntl
import json
import termios
from pathlib import Path
from typing import Any

import pytest

from orchestra.agents.staged import SCRIPT
from tests.integration.stage_support import PYTHON, Stage, staged, wait_until

HOST = """
import json, os, sys
sys.path.insert(0, sys.argv[1])
from orchestra_stage.terminal import Terminal
terminal = Terminal()
terminal.on_answer = lambda number, text: terminal.type(("answer %d %s" % (number, text)).encode() + b"\\n")
terminal.start([sys.executable, "-I", "-S", "-c", sys.argv[2]], dict(os.environ))
while terminal.status is None and not terminal.stopping:
    terminal.turn(1)
terminal.finish()
"""
TUI = """
import os, signal, sys
def draw(*_):
    size = os.get_terminal_size()
    print("\\x1b[2J\\x1b[Hdrawn %dx%d" % (size.lines, size.columns), flush=True)
signal.signal(signal.SIGWINCH, draw)
print("\\x1b[?2004h", end="")
draw()
for line in sys.stdin:
    print("heard " + line.strip(), flush=True)
    if line.strip() in ("end", "answer 0 please"):
        break
"""
ASKING = """
import json
for number in (1, 2):
    print(json.dumps({"type": "waiting", "ask": number, "text": "?"}), flush=True)
    print(json.dumps({"type": "heard", "text": input()}), flush=True)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Any:
    with staged(tmp_path / "node") as found:
        yield found


def start(stage: Stage) -> dict[str, Any]:
    return stage.order([PYTHON, "-I", "-S", "-c", HOST, str(stage.pushed), TUI], stdin="screen")


def test_a_window_is_the_programs_terminal_until_it_ends(stage: Stage) -> None:
    pane = stage.worker()
    spec = start(stage)
    pane.wait_text("drawn 24x80")
    assert b"drawn 40x120" not in pane.text
    fcntl.ioctl(pane.fd, termios.TIOCSWINSZ, b"\x1e\x00\x64\x00\x00\x00\x00\x00")
    pane.wait_text("drawn 30x100")
    pane.type(b"hello\r")
    pane.wait_text("heard hello")
    assert fcntl.ioctl(pane.fd, termios.TIOCGWINSZ, b"\0" * 8)[:4] == b"\x1e\x00\x64\x00"
    pane.type(b"end\r")
    stage.wait_record("done", spec)
    shown = pane.wait_text(spec["marker"])
    assert "agent 7 waits" in pane.wait_text("agent 7 waits")
    assert shown.count(spec["marker"]) == 1
    pane.type(b"typed\r")
    pane.wait_text("nothing runs here now")  # the terminal is an ordinary one again


def test_the_program_outlives_its_window_and_is_drawn_anew_in_the_next(stage: Stage) -> None:
    first = stage.worker()
    spec = start(stage)
    first.wait_text("drawn 24x80")
    first.close_window()
    second = stage.worker(wait=False)
    second.wait_text("drawn 24x80")
    second.wait_text("\x1b[?2004h")
    second.type(b"hello\r")
    second.wait_text("heard hello")
    second.type(b"end\r")
    assert stage.wait_record("done", spec)["exit"]["code"] == 0
    second.wait_text(spec["marker"])


def test_an_answer_reaches_the_program_without_any_window(stage: Stage) -> None:
    pane = stage.worker()
    spec = start(stage)
    pane.wait_text("drawn")
    pane.close_window()
    stage.poke({"op": "answer", "task": spec["task"], "attempt": 1, "number": 0, "text": "please"})
    assert stage.wait_record("done", spec)["exit"]["code"] == 0


def test_only_the_answer_to_the_present_question_is_passed_on(stage: Stage) -> None:
    pane = stage.worker()
    spec = stage.python(ASKING, stdin="pane", signals=["waiting", "heard"])
    wait_until(lambda: len(stage.records("signal")) == 1, "the first question")
    order = {"op": "answer", "task": spec["task"], "attempt": 1}
    stage.poke({**order, "number": 2, "text": "too early"})
    stage.poke({**order, "attempt": 2, "number": 1, "text": "of another attempt"})
    stage.poke({**order, "number": 1, "text": "one\nline"})
    wait_until(lambda: len(stage.records("signal")) == 3, "the second question")
    stage.poke({**order, "number": 1, "text": "too late"})
    stage.poke({**order, "number": 2, "text": "two"})
    stage.wait_record("done", spec)
    heard = [record["line"]["text"] for record in stage.records("signal") if record["line"]["type"] == "heard"]
    assert heard == ["one line", "two"]
    pane.wait_text("an answer to question 1 was not used")


def test_a_program_of_the_stage_is_run_from_its_package(stage: Stage) -> None:
    stage.worker()
    spec = stage.order([PYTHON, "-I", "-S", "-c", SCRIPT, f"{stage.programs}/claude_terminal"])
    assert stage.wait_record("done", spec)["exit"]["code"] == 2
    assert "usage: claude_terminal" in json.dumps(stage.output(spec))
