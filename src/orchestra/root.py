"""The folder an orchestra lives in: where everything is, and that a user's git never sees what runs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import socket
import tempfile
from pathlib import Path
from typing import Final

from orchestra.errors import PortFailed
from orchestra.ids import AttemptId, NodeId, TaskId

SOCKET_PATH_BYTES_MAX: Final = 100
"""`sun_path` holds 108 bytes on Linux and 104 on macOS, one of them the closing zero."""
RUNTIME_FOLDERS: Final = ("queue", "state", "results", "ledger", "nodes", "reports", "backups", "logs", "gateway")


class Root:
    """Paths below one root. Folders of ours are made with mode 0700 and an ignore file each; nothing else in the root is touched."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.config = self.path / "config" / "orchestra.yaml"
        self.incoming = self.path / "queue" / "incoming"
        self.responses = self.path / "queue" / "responses"
        self.quarantine = self.path / "queue" / "quarantine"
        self.events = self.path / "queue" / "events"
        self.state = self.path / "state"
        self.results = self.path / "results"
        self.ledger = self.path / "ledger"
        self.nodes = self.path / "nodes"
        self.reports = self.path / "reports"
        self.backups = self.path / "backups"
        self.logs = self.path / "logs"
        self.gateway = self.path / "gateway"

    def prepare(self) -> None:
        """Makes what is missing.

        Raises:
            PortFailed: A folder cannot be made.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for name in RUNTIME_FOLDERS:
                folder = self.path / name
                folder.mkdir(mode=0o700, exist_ok=True)
                ignore = folder / ".gitignore"
                if not ignore.exists():
                    ignore.write_text("# What an orchestra writes while it runs; never part of a repository.\n*\n")
            for folder in (self.incoming, self.responses, self.quarantine, self.events):
                folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as exc:
            raise PortFailed(f"the root {self.path} cannot be prepared: {exc.strerror}", hint="choose another with --root") from exc

    @property
    def exists(self) -> bool:
        return self.ledger.is_dir()

    def runtime_folder(self) -> Path:
        """Returns a short private folder for sockets, made if missing; the same for the same root and user.

        Raises:
            PortFailed: The folder exists and is not ours alone.
        """
        folder = self._runtime_path()
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077 or not folder.is_dir() or folder.is_symlink():
            raise PortFailed(f"{folder} is not a private folder of yours", hint="remove it, or set XDG_RUNTIME_DIR")
        return folder

    def _runtime_path(self) -> Path:
        base = Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
        if len(str(base).encode()) > SOCKET_PATH_BYTES_MAX - 50:
            base = Path("/tmp")
        return base / f"orchestra-{os.getuid()}-{self.key}"

    def release_runtime(self) -> None:
        """Removes the folder for sockets if nothing is in it but sockets that nobody listens on."""
        folder = self._runtime_path()
        with contextlib.suppress(OSError):
            found = list(folder.iterdir())
            if all(_is_dead_socket(each) for each in found):
                for each in found:
                    each.unlink()
                folder.rmdir()

    def forget_runtime(self, node: NodeId) -> None:
        """Removes the socket folder of a node whose server has ended, and the folder around it if nothing else is there."""
        folder = self.runtime_folder()
        shutil.rmtree(folder / node, ignore_errors=True)
        with contextlib.suppress(OSError):
            folder.rmdir()

    @property
    def key(self) -> str:
        """Twelve hex digits that stand for this root's real path."""
        return hashlib.sha256(os.path.realpath(self.path).encode()).hexdigest()[:12]

    @property
    def socket(self) -> Path:
        """The coordinator's socket: in the root, or where a path is short enough."""
        inside = self.state / "coordinator.sock"
        return inside if len(str(inside).encode()) <= SOCKET_PATH_BYTES_MAX else self.runtime_folder() / "coordinator.sock"

    def attempt_folder(self, node: NodeId, attempt: AttemptId) -> str:
        """Returns where the files of an attempt on a node of this machine are."""
        return str(self.nodes / node / "attempts" / attempt.task / str(attempt.number))

    def results_of(self, task: TaskId) -> Path:
        """Returns the folder of a task's results."""
        return self.results / Path(task)


def _is_dead_socket(path: Path) -> bool:
    if not path.is_socket():
        return False
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        try:
            client.connect(str(path))
        except ConnectionRefusedError:
            return True
    return False
