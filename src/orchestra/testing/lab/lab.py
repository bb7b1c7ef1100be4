"""A fleet in miniature on one Linux machine: a hub, some nodes with real SSH servers, and a switch between them.

The lab needs root, for namespaces and mounts. It gives nothing a name outside its own namespaces and its folder, so any number of labs run beside each
other with the same addresses, and nothing of a lab stays when the process that made it ends, however it ends.
"""

from __future__ import annotations

import ctypes
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Final

from orchestra.testing.lab import keeper, machine, processes
from orchestra.testing.lab.machine import PORT, USER, LabFailed
from orchestra.testing.lab.node import LabNode, check_name
from orchestra.testing.lab.wire import LINK_PREFIX, NODES_MAX, Wire

CLONE_NEWNET: Final = 0x40000000
CLIENT_KEY: Final = "id_ed25519"
HOME_BYTES: Final = 512 << 20
TOOLS: Final = {
    "ip": "iproute2",
    "nft": "nftables",
    "nsenter": "util-linux",
    "ssh": "openssh-client",
    "ssh-keygen": "openssh-client",
    "/usr/sbin/sshd": "openssh-server",
    "/usr/bin/python3": "python3",
    "/usr/bin/tmux": "tmux",
}
"""Program -> its Debian package. What a node uses has to be where a login finds it."""

_libc = ctypes.CDLL(None, use_errno=True)


def check_tools() -> None:
    """Finds out whether a lab can be built here.

    Raises:
        LabFailed: It cannot; the hint says what to do.
    """
    if sys.platform != "linux":
        raise LabFailed("the fleet lab is made of Linux namespaces", hint="run it on Linux, in a container or a virtual machine")
    if os.geteuid() != 0:
        raise LabFailed("the fleet lab needs root: it makes namespaces and mounts", hint="run it as root")
    path = os.environ.get("PATH", os.defpath) + ":/usr/sbin:/sbin"
    missing = sorted({package for tool, package in TOOLS.items() if shutil.which(tool, path=path) is None})
    if missing:
        raise LabFailed(
            f"the fleet lab misses {', '.join(missing)}", hint=f"bash scripts/setup.sh --test, or: apt-get install {' '.join(missing)}"
        )


class Lab:
    """A hub and its nodes. A context manager; everything is taken down at its end.

    Args:
        folder: Where its keys, configurations and logs are kept; made if need be.
        nodes: Names of the machines.
        home_bytes: Size of each machine's /home.
        programs: Programs of this machine, by name, that the nodes have in ~/.local/bin; each is one file that needs nothing beside it.
    """

    def __init__(
        self,
        folder: Path,
        nodes: Sequence[str] = ("mugen", "majin"),
        *,
        home_bytes: int = HOME_BYTES,
        programs: Mapping[str, Path] | None = None,
    ) -> None:
        self.folder = folder.absolute()
        self.nodes: dict[str, LabNode] = {}
        self.ssh_config = self.folder / "ssh_config"
        self.known_hosts = self.folder / "known_hosts"
        self.client_key = ""
        """Public half of the key that all nodes let in."""
        self.programs = {name: path.resolve() for name, path in (programs or {}).items()}
        self._names = tuple(nodes)
        self._home_bytes = home_bytes
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._wire: Wire | None = None
        self._hub = -1
        self._left: dict[int, int] = {}
        """Pid -> start of the processes that were there when the lab closed."""
        self._held: list[str] = []

    def __enter__(self) -> Lab:
        try:
            self._open()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    # ------------------------------------------------------------ use

    @property
    def wire(self) -> Wire:
        """The switch between hub and nodes."""
        if self._wire is None:
            raise LabFailed("the lab is not open")
        return self._wire

    def hub_argv(self, argv: Sequence[str]) -> list[str]:
        """Returns the command that runs `argv` in the hub: its network, and file system, user and environment of the caller."""
        return ["nsenter", f"--net=/proc/{self._keeper().pid}/ns/net", "--", *argv]

    @contextmanager
    def inside(self) -> Iterator[None]:
        """Puts this thread into the hub's network: sockets and children it makes meanwhile belong there, and stay there."""
        before = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        try:
            _set_network(self._hub)
            try:
                yield
            finally:
                _set_network(before)
        finally:
            os.close(before)

    def add_node(self, name: str, *, home_bytes: int = HOME_BYTES) -> LabNode:
        """Adds a machine to the running lab; returns when it takes logins."""
        check_name(name)
        if name in self.nodes or len(self.nodes) >= NODES_MAX:
            raise LabFailed(f"no machine {name!r} can be added", hint=f"names are unique, and {NODES_MAX} machines is the most")
        uid, gid = machine.free_ids()
        node = LabNode(self, name, len(self.nodes) + 1, uid=uid, gid=gid, home_bytes=home_bytes)
        self.nodes[name] = node
        self._write_client_files()
        node.boot()
        return node

    def settings_yaml(self, *, max_agents: int = 100, extra: str = "") -> str:
        """Returns an orchestra.yaml with the machines of the lab, each in a zone of its own; `extra` are further lines below `orchestra:`."""
        lines = ["orchestra:", *(f"  {line}" for line in extra.splitlines()), "  nodes:"]
        for node in self.nodes.values():
            zone = f"zone-{node.index}"
            lines.append(f"    {node.name}: {{host: {node.name}, ssh_user: {node.user}, max_agents: {max_agents}, zone: {zone}}}")
        return "\n".join(lines) + "\n"

    # ------------------------------------------------------------ taking it down

    def close(self) -> None:
        """Ends every process of the lab, those in its hub too; with them go mounts, links and namespaces. Idempotent."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None
        with suppress(BrokenPipeError):
            process.stdin.close()  # the keeper's sign to end everything
        try:
            process.wait(processes.WAIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()
        for node in self.nodes.values():
            node.init_pid = 0
        if self._hub >= 0:
            # Looked at while our descriptor keeps the namespace: later its number may belong to somebody else's.
            inode = os.fstat(self._hub).st_ino
            self._held = processes.holders_of("net", inode, but=frozenset({self._hub}))
            self._left |= {pid: processes.started_at(pid) for pid in processes.pids_in("net", inode)}
            os.close(self._hub)
            self._hub = -1

    def leftovers(self) -> list[str]:
        """Returns what of the lab is still there after `close`: processes, mounts, holders of the hub's namespace, links; one sentence each."""
        here = [
            f"process {pid}: {processes.command_of(pid)}"
            for pid, start in self._left.items()
            if start and processes.started_at(pid) == start
        ]
        mounts = [f"mount {line}" for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{self.folder}/" in line]
        links = [f"link {name}" for _, name in socket.if_nameindex() if name.startswith(LINK_PREFIX)]
        return [*here, *self._held, *mounts, *links]

    # ------------------------------------------------------------ for its nodes

    def ask(self, op: str, **fields: Any) -> dict[str, Any]:
        """Has the keeper do something.

        Raises:
            LabFailed: It could not.
        """
        with self._lock:
            process = self._keeper()
            to, back = _pipes(process)
            try:
                to.write(json.dumps({"op": op, **fields}) + "\n")
                to.flush()
                line = back.readline()
            except BrokenPipeError:
                line = ""
        if not line:
            raise LabFailed(f"the lab's keeper (process {process.pid}) has ended")
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise LabFailed(f"{op}: {reply['error']}")
        return reply

    def remember(self, pid: int) -> None:
        """Notes a node's pid 1, to look for it when the lab is closed."""
        self._left[pid] = processes.started_at(pid)

    # ------------------------------------------------------------ inner parts

    def _open(self) -> None:
        check_tools()
        for name in self._names:
            check_name(name)
        if missing := [str(path) for path in self.programs.values() if not path.is_file()]:
            raise LabFailed(f"no program is at {', '.join(missing)}", hint="bash scripts/setup_agents.sh installs the coding agents")
        machine.make_folder(self.folder, 0o700)
        self.client_key = machine.make_key(self.folder / CLIENT_KEY)
        # No session of ours and no environment: the keeper must not get a terminal's signals, nor be found by what somebody looks for in environments.
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-S", keeper.__file__, str(os.getpid())],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            env={},
            cwd="/",
            start_new_session=True,
        )
        pid = self._process.pid
        self.remember(pid)
        wire = int(self.ask("settle", kept=[str(self.folder), *map(str, self.programs.values())])["wire"])
        self._hub = os.open(f"/proc/{pid}/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        self._wire = Wire(f"/proc/{pid}/fd/{wire}", pid)
        for name in self._names:
            self.add_node(name, home_bytes=self._home_bytes)

    def _keeper(self) -> subprocess.Popen[str]:
        if self._process is None:
            raise LabFailed("the lab is not open", hint="use it inside `with Lab(...) as lab:`")
        return self._process

    def _write_client_files(self) -> None:
        """Writes the SSH client's configuration and what it knows of the hosts."""
        key = self.folder / CLIENT_KEY
        entries = [
            f'Host {node.name}\n  HostName {node.address}\n  Port {PORT}\n  User {USER}\n  IdentityFile "{key}"\n'
            f'  IdentitiesOnly yes\n  UserKnownHostsFile "{self.known_hosts}"\n  GlobalKnownHostsFile /dev/null\n  StrictHostKeyChecking yes\n'
            for node in self.nodes.values()
        ]
        machine.write_file(self.ssh_config, "\n".join(entries), 0o600)
        known = [f"{node.name},{node.address} {node.host_key}\n" for node in self.nodes.values()]
        machine.write_file(self.known_hosts, "".join(known), 0o600)


def _pipes(process: subprocess.Popen[str]) -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout


def _set_network(descriptor: int) -> None:
    if _libc.setns(descriptor, CLONE_NEWNET) != 0:
        number = ctypes.get_errno()
        raise LabFailed(f"this thread cannot enter the network: {os.strerror(number)}")
