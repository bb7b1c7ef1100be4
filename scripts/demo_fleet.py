"""Two machines in miniature, 200 agents on them, a plan of 1,000 tasks, and everything that can go wrong while it runs. Called by `make demo-fleet`.

The machines are namespaces of this one with SSH servers of their own, so it needs root; nothing leaves this machine. Every command shown is what a
person would type for real hosts.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

PYTHON: Final = sys.executable
ORCHESTRA: Final = str(Path(PYTHON).with_name("orchestra"))
LAB: Final = (PYTHON, "-m", "orchestra.testing.lab")
LINK_DOWN_S: Final = 10
TASKS: Final = 1000


class Demo:
    """A lab, and an orchestra in its hub."""

    def __init__(self, folder: Path, lab: dict[str, Any]) -> None:
        self._folder = folder
        self._hub: list[str] = lab["hub"]
        self._lab_folder = lab["folder"]
        self._root = folder / "root"
        (self._root / "config").mkdir(parents=True)
        nodes = "".join(
            f"    {name}: {{host: {name}, ssh_user: {facts['user']}, max_agents: 100}}\n" for name, facts in lab["nodes"].items()
        )
        (self._root / "config" / "orchestra.yaml").write_text(
            f"orchestra:\n  ssh: {{config_file: {lab['ssh_config']}, keepalive_seconds: 1}}\n"
            f"  limits: {{unknown_grace_seconds: 60}}\n  nodes:\n{nodes}"
        )

    def argv(self, *arguments: str) -> list[str]:
        """The command line of an `orchestra` command in the hub."""
        return [*self._hub, ORCHESTRA, *arguments, "--root", str(self._root)]

    def call(self, *arguments: str) -> None:
        """Shows a command and what it prints."""
        print(f"\n$ orchestra {shlex.join(arguments)}", flush=True)
        subprocess.run(self.argv(*arguments), check=True)

    def answer(self, *arguments: str) -> Any:
        """Runs a command and returns its JSON."""
        done = subprocess.run([*self.argv(*arguments), "--json"], check=True, stdout=subprocess.PIPE)
        return json.loads(done.stdout.decode().strip().splitlines()[-1])

    def order(self, *words: str) -> None:
        """Breaks or mends something."""
        print(f"\n>>> {' '.join(words)}", flush=True)
        subprocess.run([*LAB, self._lab_folder, *words], check=True)

    def done(self) -> int:
        """How many tasks are completed."""
        return int(self.answer("status")["tasks"]["completed"])

    def wait_done(self, count: int) -> None:
        """Waits until so many tasks are completed."""
        while self.done() < count:
            time.sleep(0.5)

    def wait_agents(self, count: int) -> None:
        """Waits until there are no more agents than that."""
        while self.answer("status")["agents"]["total"] > count:
            time.sleep(0.5)

    def plan(self) -> Path:
        """A plan of many small tasks, each a second or two of waiting as an agent waits for its model."""
        path = self._folder / "thousand.yaml"
        tasks = "".join(f"  - {{id: t{n}, run: 'sleep {1 + n % 3}; echo done on $(hostname)'}}\n" for n in range(TASKS))
        path.write_text(f"name: thousand\nworkspace: /tmp\ndefaults: {{retry_backoff_seconds: 1}}\ntasks:\n{tasks}")
        return path


@contextmanager
def lab(folder: Path) -> Iterator[dict[str, Any]]:
    """Builds the machines, and takes them down."""
    with subprocess.Popen([*LAB, "up", str(folder / "lab"), "--json"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise SystemExit(process.wait() or 1)
            yield json.loads(line)
        finally:
            process.terminate()


def trouble(demo: Demo) -> None:
    """What happens to the fleet while its plan runs."""
    demo.wait_done(50)
    demo.order("cut", "majin")
    time.sleep(LINK_DOWN_S)
    demo.call("node", "list")
    demo.order("heal", "majin")
    demo.wait_done(250)
    demo.order("kill-tmux", "mugen")
    demo.wait_done(400)
    demo.order("reboot", "majin")
    demo.wait_done(600)
    demo.call("scale", "50")
    demo.wait_done(700)
    demo.wait_agents(50)  # a machine that is full has no room beside those that are leaving
    demo.call("scale", "200")
    demo.call("node", "list")


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--calm", action="store_true", help="let nothing go wrong")
    chosen = parser.parse_args(arguments)
    if os.geteuid() != 0:
        print("error: the machines of the demo are namespaces, which needs root\nhint: sudo make demo-fleet", file=sys.stderr)
        return 69
    folder = Path(tempfile.mkdtemp(prefix="orchestra-fleet."))
    with lab(folder) as facts:
        demo = Demo(folder, facts)
        demo.call("node", "check")
        started = time.monotonic()
        demo.call("init", "--phase", "3")
        print(f"200 agents on 2 machines, ready {time.monotonic() - started:.1f} s after the command was typed")
        demo.call("roster", "--phase", "3", "--by", "node")
        with subprocess.Popen(demo.argv("run", str(demo.plan()), "--keep", "--quiet")) as run:
            if not chosen.calm:
                trouble(demo)
            code = run.wait()
        demo.call("status")
        report = demo.answer("report")
        demo.call("down")
    counts = f"exit code {code}"
    print(f"\ndemo: the plan of {TASKS} tasks ended with {counts}\nreport: {report['html']}")
    print(f"demo: everything it made is in {folder}; remove that directory when you are done")
    return code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
