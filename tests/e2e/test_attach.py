"""A person attaches to an agent's window in a real terminal, sees what runs, and types to it."""

from __future__ import annotations

import select
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.command import COMMAND, Shell, shell

pytestmark = pytest.mark.timeout(200)
DEADLINE_S = 60


@pytest.fixture
def sh(tmp_path: Path) -> Iterator[Shell]:
    with shell(tmp_path) as found:
        yield found


class Terminal:
    """A person's terminal: a tmux server of its own, 100 by 30."""

    def __init__(self, folder: Path) -> None:
        self._tmux = ["tmux", "-S", str(folder / "t.sock"), "-f", "/dev/null"]
        self.run("new-session", "-d", "-x", "100", "-y", "30", "-s", "me", "env", "-u", "TMUX", "TERM=screen", "sh")

    def run(self, *arguments: str) -> str:
        return subprocess.run([*self._tmux, *arguments], check=True, capture_output=True, text=True, timeout=30).stdout

    def type(self, text: str) -> None:
        self.run("send-keys", "-t", "me", "-l", text)
        self.run("send-keys", "-t", "me", "Enter")

    def wait_shows(self, text: str) -> str:
        """Waits until the text is on the screen; returns the screen."""
        deadline = time.monotonic() + DEADLINE_S
        while text not in (screen := self.run("capture-pane", "-p", "-t", "me")):
            assert time.monotonic() < deadline, f"{text!r} did not come:\n{screen}"
            select.select([], [], [], 0.05)
        return screen

    def close(self) -> None:
        self.run("kill-server")


@pytest.fixture
def terminal(tmp_path: Path) -> Iterator[Terminal]:
    found = Terminal(tmp_path)
    yield found
    found.close()


def test_attach_see_and_type(sh: Shell, terminal: Terminal) -> None:
    assert sh.run("up", "--agents", "1").returncode == 0
    script = "echo who are you; read name; echo hello $name; read rest"
    assert sh.run("task", "submit", "asks for a name", "--id", "ask", "--run", script).returncode == 0
    terminal.type(f"{COMMAND} --root {sh.root} agent attach 1")
    terminal.wait_shows("who are you")
    terminal.type("Miyabi")
    screen = terminal.wait_shows("hello Miyabi")
    assert "ask" in screen
    assert sh.run("agent", "send", "1", "done").returncode == 0
    terminal.wait_shows("---END-OF-OUTPUT-")
    lines = sh.json("task", "logs", "ask")["lines"]
    assert [line["text"] for line in lines if line["stream"] == "out"] == ["who are you", "hello Miyabi"]
