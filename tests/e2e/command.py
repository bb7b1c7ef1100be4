"""The installed `orchestra` command as a process, and a root that leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestra.testing.hosted import end_processes, processes_left

COMMAND = Path(sys.executable).parent / "orchestra"
TIMEOUT_S = 120


class Shell:
    """Runs the command for one root."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.root = folder / "root"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Starts the command and returns it running."""
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("TMUX", "ORCHESTRA"))}
        return subprocess.Popen(
            [str(COMMAND), "--root", str(self.root), *arguments],
            cwd=self.folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs the command to its end."""
        process = self.start(*arguments)
        out, err = process.communicate(timeout=TIMEOUT_S)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def json(self, *arguments: str) -> Any:
        """Runs the command with `--json`; returns what it printed."""
        done = self.run("--json", *arguments)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    def plan(self, text: str, name: str = "plan.yaml") -> str:
        """Writes a plan file; returns its path."""
        path = self.folder / name
        path.write_text(text, encoding="utf-8")
        return str(path)

    def result(self, task: str) -> Any:
        """Returns the result file of a task."""
        return json.loads((self.root / "results" / task / "result.json").read_text())


@contextmanager
def shell(folder: Path) -> Iterator[Shell]:
    """Gives a shell, then ends its orchestra and checks that nothing of it is left."""
    found = Shell(folder)
    try:
        yield found
    finally:
        if (found.root / "ledger").exists():
            found.run("down", "--now")
        leftovers = processes_left(found.root)
        end_processes(leftovers)
    assert not leftovers, f"left behind: {leftovers}"


def interrupt(process: subprocess.Popen[str]) -> None:
    """Presses Ctrl-C."""
    process.send_signal(signal.SIGINT)
