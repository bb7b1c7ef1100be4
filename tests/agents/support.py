"""Real agent CLIs under a real worker, in a network namespace that has only a loopback interface and a fake model server on it.

Nothing a CLI does there can leave the machine. Each has a HOME of its own and keys that are none.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import pytest

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, STAGE_DIR, Adapter, Context, Exit, Launch, Signal, Verdict
from orchestra.agents.adapter import PYTHON as NODE_PYTHON
from orchestra.core.model import AgentSpec, Payload, TaskSpec
from orchestra.engine.orders import OrderMaker, OrderOptions
from orchestra.ids import AgentId, AttemptId, NodeId, TaskId
from orchestra.nodes.tmux_node import attempt_dir, stage_argv
from orchestra.stage.ending import tagged
from orchestra.stage.processes import processes
from tests.agents.replies import FIXTURES
from tests.integration.stage_support import PYTHON, Pane, Stage, wait_until

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".cache" / "agents" / "bin"
REMEDY = "run: bash scripts/setup_agents.sh --all"
PORT = 4141
URL = f"http://127.0.0.1:{PORT}"
AGENT = 7
KEYS = {
    "ANTHROPIC_API_KEY": "dummy-key",
    "OPENAI_API_KEY": "dummy-key",
    "GEMINI_API_KEY": "dummy-key",
}
RECORDINGS = ROOT / "tests" / "unit" / "recordings"
RECORD = os.environ.get("ORCHESTRA_RECORD_AGENTS") == "1"
"""Writes what was seen to the recordings that the unit tests judge."""


@pytest.fixture(name="tmp_path")
def outside_tmp() -> Iterator[Path]:
    """Not below /tmp: there Codex lets its commands write anyway, and its sandbox does not find a helper of its own."""
    with tempfile.TemporaryDirectory(prefix="agents-", dir="/var/tmp") as folder:
        yield Path(folder)


class Missing(AssertionError):
    """Something the tests need is not there."""


def program(name: str) -> str:
    """Returns the path of a program, or says what to do."""
    found = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}:/usr/sbin:/sbin")
    if found is None:
        raise Missing(f"{name} is not installed; {REMEDY}")
    return found


def installed(name: str) -> str:
    """Returns the pinned program; another one on PATH does not count."""
    if not (PROGRAMS / name).exists():
        raise Missing(f"{PROGRAMS / name} is not there; {REMEDY}")
    return str(PROGRAMS / name)


class Net:
    """A network namespace with a fake model server in it."""

    def __init__(self, folder: Path) -> None:
        fixtures, self.log = folder / "fixtures.json", folder / "server.log"
        fixtures.write_text(json.dumps({"fixtures": FIXTURES}))
        as_root = os.geteuid() == 0
        unshare = [program("unshare"), "--net"] if as_root else [program("unshare"), "--map-root-user", "--net"]
        start = f'{program("ip")} link set lo up && exec "$@"'
        server = [program("node"), installed("aimock"), "--port", str(PORT), "--fixtures", str(fixtures)]
        # Ends with this process, however that ends.
        argv = [program("setpriv"), "--pdeathsig", "KILL", *unshare, "/bin/sh", "-c", start, "sh", *server]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
        names = ["net"] if as_root else ["user", "net"]
        spaces = [f"--{name}=/proc/{self.process.pid}/ns/{name}" for name in names]
        self.enter = [program("nsenter"), *spaces, *([] if as_root else ["--preserve-credentials"])]
        try:
            wait_until(lambda: self.process.poll() is not None or "listening on" in self.log.read_text(), "the fake model server")
        finally:
            if "listening on" not in self.log.read_text():
                self.close()
        if self.process.poll() is not None:
            raise Missing(f"the fake model server did not start: {self.log.read_text()[-2000:]}; {REMEDY}")

    def requests(self, word: str) -> list[dict[str, Any]]:
        """Returns the requests to the model whose body has the word in it, in order."""
        script = f"import sys, urllib.request; sys.stdout.buffer.write(urllib.request.urlopen('{URL}/__aimock/journal?limit=1000').read())"
        done = subprocess.run([*self.enter, sys.executable, "-I", "-c", script], stdout=subprocess.PIPE, check=True, timeout=20)
        found = json.loads(done.stdout)
        entries = found if isinstance(found, list) else found["entries"]
        return [each for each in entries if word in json.dumps(each.get("body"))]

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


class Run(NamedTuple):
    """How an attempt went, in the adapter's words and in the worker's."""

    verdict: Verdict
    end: Exit
    signals: list[Signal]
    lines: list[dict[str, Any]]
    work: Path


class Configured:
    """A kind with settings and a context, which is what the coordinator gives it."""

    def __init__(self, adapter: Adapter, settings: dict[str, str], changes: dict[str, Any]) -> None:
        self.kind, self.programs, self.memory_bytes = adapter.kind, adapter.programs, adapter.memory_bytes
        self.variables = adapter.variables
        self.signal, self.verdict = adapter.signal, adapter.verdict
        self._adapter, self._settings, self._changes = adapter, settings, changes

    def launch(self, spec: TaskSpec, context: Context) -> Launch:
        return self._adapter.launch(spec, msgspec.structs.replace(context, settings=self._settings, **self._changes))


class Desk(Stage):
    """A node's folder whose workers are in the namespace."""

    def __init__(self, folder: Path, net: Net) -> None:
        super().__init__(folder)
        self.net = net
        self.home = folder / "home"
        self.temporary = folder / "tmp"
        self.home.mkdir()
        self.temporary.mkdir()

    def worker(
        self, agent: int = AGENT, *, env: dict[str, str] | None = None, reads: bool = True, wait: bool = True, options: tuple[str, ...] = ()
    ) -> Pane:
        before = len(self.records("ready"))
        path = f"{PROGRAMS}:{Path(program('node')).resolve().parent}:/usr/bin:/bin"
        own = {
            "PATH": path,
            "HOME": str(self.home),
            "TERM": "xterm-256color",
            "LANG": "C.UTF-8",
            "SHELL": "/bin/bash",
            **KEYS,
            **(env or {}),
        }
        argv = [*self.net.enter, *stage_argv(PYTHON, str(self.pushed), "worker", str(self.folder), str(agent))]
        pane = Pane(argv, own, reads=reads)
        self.panes.append(pane)
        if wait:
            wait_until(lambda: len(self.records("ready")) > before, lambda: f"ready; the pane shows {pane.pull()!r}", on=pane.fd)
        return pane

    def agent_folder(self) -> Path:
        return self.folder / "homes" / str(AGENT)

    def hand_out(
        self,
        adapter: Adapter,
        spec: TaskSpec,
        *,
        attempt: int = 1,
        settings: dict[str, str] | None = None,
        keys: bool = True,
        **changes: Any,
    ) -> dict[str, Any]:
        """Makes the order as the coordinator does, puts real paths into it as the node does, and hands it out; `changes` are to the context."""
        configured = Configured(adapter, settings or {}, changes)
        order = OrderMaker(lambda kind: configured, OrderOptions(grace_ms=1000)).make(
            spec, AttemptId(spec.id, attempt), AgentSpec(AgentId(AGENT), NodeId("here"))
        )
        for name, text in order.agent_files.items():
            path = self.agent_folder() / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        places = {
            ATTEMPT_DIR: f"{self.folder}/{attempt_dir(order.attempt)}/",
            AGENT_DIR: f"{self.agent_folder()}/",
            STAGE_DIR: f"{self.programs}/",
        }

        def real(text: str) -> str:
            if text == NODE_PYTHON:
                return PYTHON
            return next((folder + text.removeprefix(mark) for mark, folder in places.items() if text.startswith(mark)), text)

        values = {**order.spec, "argv": [real(each) for each in order.spec["argv"]]}
        values["env"] = {name: real(value) for name, value in order.spec["env"].items()}
        values["env_pass"] = values["env_pass"] if keys else []
        if argv := order.spec.get("sandbox", {}).get("argv"):
            values["sandbox"] = {**order.spec["sandbox"], "argv": [real(each) for each in argv]}
        self.poke({"op": "run", "dir": self.place(values, order.files)}, AGENT)
        return values

    def finished(self, adapter: Adapter, spec: TaskSpec, values: dict[str, Any], name: str) -> Run:
        """Waits for the end and asks the kind what it makes of it."""
        done = self.wait_record("done", values)
        end = msgspec.convert(done["exit"], Exit, strict=False)
        lines = [
            record["line"]
            for record in self.records("signal")
            if (record["task"], record["attempt"]) == (values["task"], values["attempt"])
        ]
        if RECORD:
            self._write_recording(f"{adapter.kind}-{name}", {"exit": done["exit"], "lines": lines})
        signals = [found for line in lines if (found := adapter.signal(line)) is not None]
        return Run(adapter.verdict(spec, end), end, signals, lines, self.attempt_folder(values) / "work")

    def _write_recording(self, name: str, seen: dict[str, Any]) -> None:
        text = json.dumps(_trimmed(seen), indent=1, ensure_ascii=False)
        text = text.replace(str(self.folder), "/node").replace(str(ROOT), "/here")
        RECORDINGS.mkdir(exist_ok=True)
        (RECORDINGS / f"{name}.json").write_text(text + "\n")

    def tool_pid(self, values: dict[str, Any]) -> int:
        """Waits until the tool that the model called runs, and returns its pid."""
        path = self.attempt_folder(values) / "work" / "pid"
        return int(wait_until(lambda: path.exists() and path.read_text().strip(), "the tool's pid"))

    def driven_pid(self, values: dict[str, Any]) -> int:
        """Returns the CLI's pid, where a program of the stage has it as its child."""
        ours = self.wait_record("started", values)["pid"]
        return next(pid for pid, facts in processes().items() if facts[0] == ours)

    def left_of(self, values: dict[str, Any]) -> list[int]:
        """Returns the processes of an attempt that are still there, whatever session they are in."""
        return tagged(processes(), str(self.attempt_folder(values)))


LONG_LISTS = re.compile(r"^(tools|slash_commands|terminal_slash_commands|agents|skills|plugins|capabilities)$")


def _trimmed(value: Any) -> Any:
    """Leaves out the long lists of what a CLI can do, which nothing here reads."""
    if isinstance(value, dict):
        return {name: _trimmed(part) for name, part in value.items() if not LONG_LISTS.match(name)}
    return [_trimmed(part) for part in value] if isinstance(value, list) else value


def make_task(kind: str, word: str, name: str = "one", **more: Any) -> TaskSpec:
    return TaskSpec(
        id=TaskId(f"demo/{name}"), description="A scene", payload=Payload("analysis", f"{word}: do as you are told."), kind=kind, **more
    )


@contextmanager
def desk(folder: Path, net: Net) -> Iterator[Desk]:
    stage = Desk(folder, net)
    try:
        yield stage
    finally:
        stage.close()


def end_by_kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
