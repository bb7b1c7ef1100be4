"""What the tests of the node's two programs share: a node's folder, orders, workers in a terminal, couriers, and waiting without sleeping.

Whatever is started here is ended here, by its pid, when the test's `Stage` is closed.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import itertools
import json
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import time
import uuid
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from orchestra.nodes.tmux_node import STAGE_PACKAGE, stage_argv, stage_files

DEADLINE_S = 60.0  # only a failure takes as long; some real agent CLIs need 10 s for a refused key on an idle machine
PYTHON = os.environ.get("STAGE_PYTHON", sys.executable)

BOOT = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

Record = dict[str, Any]


class Overdue(AssertionError):
    """What was waited for did not come."""


def wait_until(condition: Callable[[], Any], what: str | Callable[[], str], *, on: int | None = None) -> Any:
    """Returns the first true value of `condition`, asked again whenever `on` is readable and at least fifty times a second."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > deadline:
            raise Overdue(what if isinstance(what, str) else what())
        select.select([on] if on is not None else [], [], [], 0.02)


def start_of(pid: int) -> str | None:
    """Returns the start time of a living process, None for a dead one or a zombie."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return None
    fields = text[text.rfind(b")") + 2 :].split()
    return None if fields[0] in (b"Z", b"X") else fields[19].decode()


def is_alive(pid: int) -> bool:
    return start_of(pid) is not None


def parse_journal(data: bytes) -> list[Record]:
    records = []
    for line in data.split(b"\n"):
        with contextlib.suppress(ValueError):
            if line and int(line[:8], 16) == zlib.crc32(line[9:]):
                records.append(json.loads(line[9:]))
    return records


class Pane:
    """A worker in a terminal of its own."""

    def __init__(self, argv: list[str], env: dict[str, str], *, reads: bool = True) -> None:
        self.text = b""
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            try:
                os.execve(argv[0], argv, env)
            finally:
                os._exit(126)
        self.start = start_of(self.pid)
        fcntl.ioctl(self.fd, termios.TIOCSWINSZ, b"\x18\x00\x50\x00\x00\x00\x00\x00")
        os.set_blocking(self.fd, False)
        self.reads = reads
        self.status: int | None = None

    @property
    def w(self) -> str:
        return f"{self.pid}:{self.start}"

    def pull(self) -> bytes:
        """Reads what there is to see."""
        while self.fd >= 0 and self.reads:
            try:
                part = os.read(self.fd, 65536)
            except BlockingIOError:
                break
            except OSError as problem:
                if problem.errno != errno.EIO:
                    raise
                break
            if not part:
                break
            self.text += part
        return self.text

    def lines(self) -> list[str]:
        return self.pull().decode("utf-8", "replace").replace("\r\n", "\n").split("\n")

    def wait_text(self, text: str) -> str:
        wanted = text.encode()
        return str(wait_until(lambda: wanted in self.pull() and self.text, lambda: f"{text!r} in the pane:\n{self.text!r}", on=self.fd))

    def type(self, data: bytes) -> None:
        os.write(self.fd, data)

    def close_window(self) -> None:
        os.close(self.fd)
        self.fd = -1

    def signal(self, number: int) -> None:
        if start_of(self.pid) == self.start:
            os.kill(self.pid, number)

    def reap(self) -> bool:
        """Whether it is over."""
        self.pull()
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status
        return self.status is not None

    def wait_end(self) -> int:
        wait_until(self.reap, f"the end of worker {self.pid}")
        assert self.status is not None
        return os.waitstatus_to_exitcode(self.status)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)
        self.signal(signal.SIGCONT)
        self.wait_end()

    def close(self) -> None:
        if not self.reap():
            self.kill()
        if self.fd >= 0:
            self.close_window()


class Courier:
    """A courier with its wire in our hands."""

    def __init__(self, folder: Path, stage: Path, *options: str, noise: str = "", env: dict[str, str] | None = None) -> None:
        self.nonce = uuid.uuid4().hex[:8]
        argv = [*stage_argv(PYTHON, str(stage), "courier", str(folder)), "--nonce", self.nonce, *options]
        if noise:
            argv = ["/bin/sh", "-c", 'printf "%s" "$NOISE"; exec "$@"', "sh", *argv]
        self.process = subprocess.Popen(
            argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "NOISE": noise, **(env or {})}
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.out = self.process.stdout.fileno()
        os.set_blocking(self.out, False)
        self.buffer = b""
        self.before = b""
        self.synced = False
        self.frames: list[tuple[str, int, bytes]] = []
        self.number = 0
        self.ended = False

    def pull(self) -> None:
        while True:
            try:
                part = os.read(self.out, 1 << 20)
            except BlockingIOError:
                break
            if not part:
                self.ended = True
                break
            self.buffer += part
        mark = f"#{self.nonce} ".encode()
        if not self.synced:
            at = self.buffer.find(mark)
            if at < 0:
                return
            self.before, self.buffer, self.synced = self.buffer[:at], self.buffer[at:], True
        while b"\n" in self.buffer:
            head, _, rest = self.buffer.partition(b"\n")
            assert head.startswith(mark), head
            kind, size, offset = head[len(mark) :].decode().split(" ")
            if len(rest) < int(size) + 1:
                break
            assert rest[int(size) : int(size) + 1] == b"\n"
            self.frames.append((kind, int(offset), rest[: int(size)]))
            self.buffer = rest[int(size) + 1 :]

    def of_kind(self, kind: str) -> list[Any]:
        self.pull()
        return [json.loads(payload) for name, _, payload in self.frames if name == kind]

    def wait_frame(self, kind: str, wanted: Callable[[Any], Any] = lambda _: True) -> Any:
        def found() -> Any:
            return next((value for value in self.of_kind(kind) if wanted(value)), None)

        return wait_until(found, lambda: f"a {kind} frame; there are {self.frames}", on=self.out)

    def send(self, op: str, **fields: Any) -> int:
        self.number += 1
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps({"id": self.number, "op": op, **fields}).encode() + b"\n")
        self.process.stdin.flush()
        return self.number

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self.wait_reply(self.send(op, **fields))

    def wait_reply(self, number: int) -> dict[str, Any]:
        reply: dict[str, Any] = self.wait_frame("reply", lambda value: value["re"] == number)
        return reply

    def refusal(self, op: str, **fields: Any) -> str:
        return str(self.ask(op, **fields)["error"]["code"])

    def journal(self) -> bytes:
        """What the journal frames carried, which must join without a gap."""
        self.pull()
        parts = [(offset, payload) for kind, offset, payload in self.frames if kind == "journal"]
        for (offset, payload), (following, _) in itertools.pairwise(parts):
            assert offset + len(payload) == following
        return b"".join(payload for _, payload in parts)

    def wait_record(self, kind: str) -> Record:
        def found() -> Record | None:
            return next((record for record in parse_journal(self.journal()) if record["k"] == kind), None)

        record: Record = wait_until(found, f"{kind} through the courier", on=self.out)
        return record

    def hang_up(self) -> int:
        assert self.process.stdin is not None
        self.process.stdin.close()
        return self.process.wait(DEADLINE_S)

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait(DEADLINE_S)
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            with contextlib.suppress(OSError):
                stream.close()


class Stage:
    """A node's folder with the package in it, as it is pushed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.resolve()
        self.pushed = self.folder / "stage" / "0123456789abcdef"
        self.programs = self.pushed / STAGE_PACKAGE
        self.programs.mkdir(parents=True)
        for name, body in stage_files().items():
            (self.programs / name).write_bytes(body)
        self.panes: list[Pane] = []
        self.couriers: list[Courier] = []
        self.others: list[tuple[int, str | None]] = []

    # starting

    def worker(
        self, agent: int = 7, *, env: dict[str, str] | None = None, reads: bool = True, wait: bool = True, options: tuple[str, ...] = ()
    ) -> Pane:
        """`options` are for the interpreter."""
        before = len(self.records("ready"))
        own = {
            "PATH": os.environ["PATH"],
            "HOME": str(self.folder),
            "TERM": "xterm",
            "TMUX": "/tmp/none,1,0",
            "TMUX_PANE": "%1",
            **(env or {}),
        }
        program, *arguments = stage_argv(PYTHON, str(self.pushed), "worker", str(self.folder), str(agent))
        pane = Pane([program, *options, *arguments], own, reads=reads)
        self.panes.append(pane)
        if wait:
            wait_until(lambda: len(self.records("ready")) > before, lambda: f"ready; the pane shows {pane.pull()!r}", on=pane.fd)
        return pane

    def courier(self, *options: str, noise: str = "", env: dict[str, str] | None = None) -> Courier:
        courier = Courier(self.folder, self.pushed, *options, noise=noise, env=env)
        self.couriers.append(courier)
        return courier

    def adopt(self, pid: int) -> None:
        """Has a process ended with the test, should it still be there."""
        self.others.append((pid, start_of(pid)))

    # orders

    def spec(self, argv: list[str], *, task: str = "demo/one", attempt: int = 1, agent: int = 7, **changes: Any) -> dict[str, Any]:
        values: dict[str, Any] = {
            "v": 1,
            "task": task,
            "attempt": attempt,
            "agent": agent,
            "argv": argv,
            "env": {},
            "env_pass": [],
            "cwd": None,
        }
        values.update(stdin="null", timeout_ms=60_000, grace_ms=200, limits={}, signals=[], checks=[], title="a title")
        values.update(output={"file_bytes_max": 16 << 20, "line_bytes_max": 65536, "view": "lines"})
        values.update(success={"codes": [0], "signal": None}, marker=f"---END-OF-OUTPUT-{uuid.uuid4()}---")
        values.update(changes)
        return values

    def place(self, spec: dict[str, Any], files: dict[str, str] | None = None) -> str:
        """Writes an order down; returns its folder as orders name it."""
        name = f"attempts/{spec['task']}/{spec['attempt']}"
        folder = self.folder / name
        folder.mkdir(parents=True)
        for file, text in (files or {}).items():
            (folder / file).write_text(text)
        (folder / "spec.json").write_text(json.dumps(spec))
        return name

    def poke(self, line: dict[str, Any], agent: int = 7) -> None:
        fd = os.open(self.folder / "agents" / str(agent) / "inbox", os.O_WRONLY | os.O_NONBLOCK)
        try:
            os.write(fd, json.dumps(line).encode() + b"\n")
        finally:
            os.close(fd)

    def order(self, argv: list[str], *, files: dict[str, str] | None = None, **changes: Any) -> dict[str, Any]:
        """Writes an order down and hands it out."""
        spec = self.spec(argv, **changes)
        self.poke({"op": "run", "dir": self.place(spec, files)}, spec["agent"])
        return spec

    def python(self, script: str, **changes: Any) -> dict[str, Any]:
        """Orders a Python program."""
        return self.order([sys.executable, "-I", "-S", "-c", script], **changes)

    def attempt_folder(self, spec: dict[str, Any]) -> Path:
        return self.folder / "attempts" / str(spec["task"]) / str(spec["attempt"])

    # what a slot has in hand

    def current(self, agent: int = 7) -> dict[str, Any]:
        """Empty if nothing."""
        try:
            body, check, _ = (self.folder / f"agents/{agent}/current").read_bytes().split(b"\n", 2)
        except (FileNotFoundError, ValueError):
            return {}
        return dict(json.loads(body)) if int(check, 16) == zlib.crc32(body) else {}

    def set_current(self, value: dict[str, Any], agent: int = 7) -> None:
        """As a worker would have left it that died."""
        body = json.dumps(value).encode()
        (self.folder / f"agents/{agent}").mkdir(parents=True, exist_ok=True)
        (self.folder / f"agents/{agent}/current").write_bytes(b"%s\n%08x\n" % (body, zlib.crc32(body)))

    # hearing

    def records(self, kind: str | None = None) -> list[Record]:
        try:
            data = (self.folder / "journal").read_bytes()
        except OSError:
            return []
        return [record for record in parse_journal(data) if kind in (None, record["k"])]

    def wait_record(self, kind: str, spec: dict[str, Any] | None = None) -> Record:
        def found() -> Record | None:
            for pane in self.panes:
                pane.pull()
            for record in self.records(kind):
                if spec is None or (record.get("task"), record.get("attempt")) == (spec["task"], spec["attempt"]):
                    return record
            return None

        record: Record = wait_until(
            found, f"a {kind} record; there are {self.records()}; panes show {[pane.text[-2000:] for pane in self.panes]}"
        )
        return record

    def output(self, spec: dict[str, Any]) -> list[dict[str, Any]]:
        lines = []
        for name in ("output.jsonl.1", "output.jsonl"):
            with contextlib.suppress(FileNotFoundError):
                lines += (self.attempt_folder(spec) / name).read_bytes().splitlines()
        return [json.loads(line) for line in lines]

    def wait_output(self, spec: dict[str, Any], text: str) -> str:
        """Returns the first logged line with this text in it."""

        def found() -> str | None:
            for pane in self.panes:
                pane.pull()
            path = self.attempt_folder(spec) / "output.jsonl"
            data = path.read_bytes() if path.exists() else b""
            entries = [json.loads(line) for line in data.splitlines() if line.endswith(b"}")]
            return next((entry["line"] for entry in entries if text in entry["line"]), None)

        return str(wait_until(found, f"{text!r} in the output"))

    # ending

    def close(self) -> None:
        for courier in self.couriers:
            courier.close()
        for pane in self.panes:
            pane.close()
        for record in self.records("started"):
            if start_of(record["pid"]) == str(record["start"]):
                os.kill(record["pid"], signal.SIGKILL)
        for pid, start in self.others:
            if start is not None and start_of(pid) == start:
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[Path]:
    """A file system in memory, which only root may make."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """Writes until there is no room; returns the file that takes it all."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as file:
        with contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        with contextlib.suppress(OSError):
            while True:
                file.write(b"\0")
    return ballast


@contextlib.contextmanager
def staged(folder: Path) -> Iterator[Stage]:
    stage = Stage(folder)
    try:
        yield stage
    finally:
        stage.close()
