"""A real sshd on 127.0.0.1 that belongs to one test: its own port, host key, accepted keys and home, and a client configuration to reach it."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import pytest

from orchestra.nodes.ssh import SshOptions, SshTarget

SSHD: Final = "/usr/sbin/sshd"
PATIENCE_S: Final = 30
HOST: Final = "127.0.0.1"
ALIAS: Final = "box"


def free_port() -> int:
    """Returns a port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def make_key(path: Path, *words: str, passphrase: str = "") -> Path:
    """Makes a key pair and returns the private one's path."""
    kind = words or ("-t", "ed25519")
    for each in (path, path.with_name(f"{path.name}.pub")):
        each.unlink(missing_ok=True)
    subprocess.run(["ssh-keygen", "-q", *kind, "-N", passphrase, "-C", path.name, "-f", str(path)], check=True, timeout=PATIENCE_S)
    return path


def public(path: Path) -> str:
    return path.with_name(f"{path.name}.pub").read_text(encoding="ascii").strip()


def command(*words: str) -> bytes:
    """Runs a program that has to succeed; returns what it printed."""
    done = subprocess.run(words, capture_output=True, stdin=subprocess.DEVNULL, check=True, timeout=PATIENCE_S)
    return done.stdout


def contents(path: str) -> bytes:
    return Path(path).read_bytes()


class Sshd:
    """One SSH server. `start` returns when it listens."""

    def __init__(self, folder: Path) -> None:
        assert Path(SSHD).exists(), f"{SSHD} is missing: install openssh-server"
        assert shutil.which("ssh-keygen"), "ssh-keygen is missing: install openssh-client"
        self.folder = folder
        self.home = folder / "home"
        self.home.mkdir(parents=True)
        self.known_hosts = folder / "known_hosts"
        self.config = folder / "config"
        self.host_key = make_key(folder / "host_key")
        self.login_key = make_key(folder / "login_key")
        self.log = folder / "sshd.log"
        self.settings = ""
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            self.port: int = probe.getsockname()[1]
        self.accept(self.login_key)
        self.trust()
        self.configure()
        self._process: subprocess.Popen[bytes] | None = None
        self._pumps: list[subprocess.Popen[bytes]] = []

    # What it accepts, and what a client is told.

    def accept(self, key: Path, options: str = "") -> None:
        """Makes one key the only one that is let in. Its programs have the home of the test."""
        words = ",".join(each for each in (f'environment="HOME={self.home}"', options) if each)
        (self.folder / "authorized_keys").write_text(f"{words} {public(key)}\n", encoding="ascii")

    def trust(self) -> None:
        """Puts the host key of this moment into the known hosts, as the only one."""
        kind, key = public(self.host_key).split()[:2]
        self.known_hosts.write_text(f"[{HOST}]:{self.port} {kind} {key}\n", encoding="ascii")

    def configure(self, extra: str = "", *, key: Path | None = None) -> None:
        """Writes the client's configuration: an alias, its key, and more lines for it."""
        lines = (
            f"Host {ALIAS}",
            f"  HostName {HOST}",
            f"  Port {self.port}",
            f"  IdentityFile {key or self.login_key}",
            "  IdentitiesOnly yes",
            f"  UserKnownHostsFile {self.known_hosts}",
            "  GlobalKnownHostsFile none",
        )
        self.config.write_text("\n".join((*lines, extra, "")), encoding="utf-8")

    def target(self) -> SshTarget:
        return SshTarget(ALIAS, name="n1")

    def options(self, **values: object) -> SshOptions:
        return SshOptions(config_file=str(self.config), **values)  # type: ignore[arg-type]

    # Its life.

    def start(self) -> None:
        config = self.folder / "sshd_config"
        config.write_text(
            f"Port {self.port}\nListenAddress {HOST}\nHostKey {self.host_key}\nPidFile none\nStrictModes no\nUsePAM no\n"
            f"AuthorizedKeysFile {self.folder / 'authorized_keys'}\nPermitRootLogin yes\nPermitUserEnvironment yes\nLogLevel VERBOSE\n"
            f"PasswordAuthentication no\nKbdInteractiveAuthentication no\nMaxSessions 10\nPrintMotd no\n{self.settings}\n",
            encoding="utf-8",
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # sshd wants it, and only a service manager makes it
        self._process = subprocess.Popen(
            [SSHD, "-D", "-e", "-f", str(config)], stderr=subprocess.PIPE, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        self._await_listening()

    def _await_listening(self) -> None:
        """Reads its log until it says so; then hands the log to a file."""
        assert self._process is not None
        assert self._process.stderr is not None
        said = b""
        for line in self._process.stderr:
            said += line
            if b"Server listening on" in line:
                with self.log.open("ab") as log:
                    self._pumps.append(subprocess.Popen(["cat"], stdin=self._process.stderr, stdout=log))
                self._process.stderr.close()
                return
        raise AssertionError(f"sshd did not start: {said.decode(errors='replace')}")

    def stop(self) -> None:
        """Ends the listener only; sessions go on."""
        process, self._process = self._process, None
        if process is not None:
            process.terminate()
            process.wait(PATIENCE_S)

    def restart(self) -> None:
        self.stop()
        self.start()

    def replace_host_key(self) -> None:
        """Gives the server another identity; it has to be restarted."""
        make_key(self.host_key)

    def sessions(self) -> list[int]:
        """Returns the processes of sshd that serve a connection of this server, the outermost first."""
        here = f":{self.port} "
        processes = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit() and _name(entry) == "sshd"]
        listener = None if self._process is None else self._process.pid
        return sorted(pid for pid in processes if pid != listener and here in _local_ports(pid))

    def end(self) -> None:
        """Ends the server and every session of it."""
        sessions = self.sessions()
        self.stop()
        for pid in sessions:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
        for pump in self._pumps:
            pump.wait(PATIENCE_S)


def _name(entry: Path) -> str:
    try:
        return (entry / "comm").read_text().strip()
    except OSError:
        return ""


def _local_ports(pid: int) -> str:
    """Returns the local ends of a process's TCP connections as `:port` words."""
    inodes = set()
    try:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            target = os.readlink(link)
            if target.startswith("socket:["):
                inodes.add(target[8:-1])
    except OSError:
        return ""
    words = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return "".join(f":{int(each[1].split(':')[1], 16)} " for each in words if each[9] in inodes)


@pytest.fixture(name="sshd")
def sshd_of(tmp_path: Path) -> Iterator[Sshd]:
    server = Sshd(tmp_path / "ssh")
    server.start()
    try:
        yield server
    finally:
        server.end()
