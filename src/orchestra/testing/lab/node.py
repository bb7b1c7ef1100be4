"""One machine of the lab, from outside: what runs on it, and everything that can go wrong with it."""

from __future__ import annotations

import re
import select
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from orchestra.testing.lab import machine, processes
from orchestra.testing.lab.machine import PORT, USER, LabFailed, write_file
from orchestra.testing.lab.wire import Direction, address_of

if TYPE_CHECKING:
    from orchestra.testing.lab.lab import Lab

SSHD: Final = "/usr/sbin/sshd"
LOGIN_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/games"
"""What Debian's sshd gives to who logs in."""
ROOT_PATH: Final = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
NAME: Final = re.compile(r"[a-z][a-z0-9-]{0,29}")
LISTENING: Final = "0A"
"""As /proc/net/tcp writes the state."""


class LabNode:
    """A machine with its own processes, network, file systems, users and name.

    It has the programs of the machine it runs on (/usr, /etc, /opt, read-only), those that the lab gives it besides, and nothing else of it.
    """

    def __init__(self, lab: Lab, name: str, index: int, *, uid: int, gid: int, home_bytes: int) -> None:
        self.name = name
        self.index = index
        self.address = address_of(index)
        self.user = USER
        self.uid = uid
        self.gid = gid
        self.home_bytes = home_bytes
        self.init_pid = 0
        """Its pid 1, as seen from outside; 0 while it is off."""
        self._lab = lab
        self._folder = machine.make_folder(lab.folder / "nodes" / name)
        self._machine = machine.make_folder(self._folder / "machine")
        for each in ("root", "home", "log"):
            machine.make_folder(self._folder / each)
        machine.write_accounts(self._machine, name, self.address, uid, gid)
        write_file(self._machine / "authorized_keys", f"{lab.client_key}\n")
        self._host_key = self._machine / "ssh_host_ed25519_key"
        self.host_key = machine.make_key(self._host_key)
        """The public half of the key it was built with: type and key."""
        self._true_key = self._host_key.read_text(encoding="ascii")

    # ------------------------------------------------------------ looking and running

    @property
    def root(self) -> Path:
        """Its file system, as root of the machine sees it."""
        return Path(f"/proc/{self._init()}/root")

    def run(
        self, argv: Sequence[str], *, user: str = USER, check: bool = True, input: str | None = None, timeout_s: float = 30
    ) -> subprocess.CompletedProcess[str]:
        """Runs a program on the node, without SSH, in the user's home and with a login's environment; the user is ubuntu or root.

        Raises:
            LabFailed: It took too long (and was killed), or `check` is set and it did not end with 0.
        """
        if user not in (USER, "root"):
            raise LabFailed(f"{self.name} has no user {user!r}", hint=f"known: {USER}, root")
        uid, gid, home, path = (0, 0, "/root", ROOT_PATH) if user == "root" else (self.uid, self.gid, f"/home/{USER}", LOGIN_PATH)
        environment = ["env", "-i", "-C", home, f"HOME={home}", f"USER={user}", f"LOGNAME={user}", "SHELL=/bin/bash", f"PATH={path}"]
        enter = ["nsenter", "-t", str(self._init()), "-a", "-S", str(uid), "-G", str(gid), "--"]
        with subprocess.Popen(
            [*enter, *environment, *argv],
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            encoding="utf-8",
            errors="replace",
        ) as child:
            try:
                out, err = child.communicate(input, timeout=timeout_s)
            except subprocess.TimeoutExpired:
                # nsenter waits outside for the program inside and collects it. Killed itself, it would leave a process or a zombie behind.
                while child.poll() is None:
                    for pid in [pid for pid in self.processes() if processes.parent_of(pid) == child.pid]:
                        processes.send_signal(pid, signal.SIGKILL)
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(0.05)
                raise LabFailed(f"{self.name}: {argv[0]} took longer than {timeout_s} s") from None
        if check and child.returncode:
            raise LabFailed(f"{self.name}: {' '.join(argv)} ended with {child.returncode}: {err.strip()}")
        return subprocess.CompletedProcess(list(argv), child.returncode, out, err)

    def processes(self) -> dict[int, str]:
        """Returns everything that runs on the node, in sandboxes too: pid as seen from outside -> command line."""
        if not self.init_pid:
            return {}
        inode = processes.namespace_of(self.init_pid, "pid")
        return {pid: processes.command_of(pid) for pid in processes.pids_in("pid", inode)} if inode else {}

    def kill_tmux(self) -> int:
        """Kills every tmux server of the node as `kill -9` does, and waits for its end; returns how many there were."""
        servers = [pid for pid in self.processes() if processes.name_of(pid) == "tmux: server"]
        for pid in servers:
            self._end(pid, signal.SIGKILL)
        return len(servers)

    # ------------------------------------------------------------ the network

    def cut(self, direction: Direction = "both") -> None:
        """Drops its packets silently, those of established connections too. Replaces an earlier cut or loss; a reboot does not heal it."""
        self._lab.wire.cut(self.index, direction)

    def loss(self, percent: int) -> None:
        """Drops packets at random, in both directions. Replaces an earlier cut or loss."""
        self._lab.wire.loss(self.index, percent)

    def heal(self) -> None:
        """Ends a cut or a loss."""
        self._lab.wire.heal(self.index)

    # ------------------------------------------------------------ the SSH server

    def stop_sshd(self) -> None:
        """Ends the listener; sessions go on."""
        for pid in self._sshd_listeners():
            self._end(pid, signal.SIGTERM)

    def start_sshd(self) -> None:
        """Starts the listener and waits until it listens."""
        self.run([SSHD, "-f", "/run/lab/sshd_config", "-E", "/var/log/sshd.log"], user="root")
        self._wait(self._listens, f"sshd does not listen; see {self._folder / 'log' / 'sshd.log'}")

    def restart_sshd(self) -> None:
        """Ends the listener and starts a new one; sessions go on."""
        self.stop_sshd()
        self.start_sshd()

    def pause_sshd_sessions(self) -> None:
        """Stops the processes of the connections there are, as if the machine hung; new connections are served."""
        for pid in self._sshd_sessions():
            processes.send_signal(pid, signal.SIGSTOP)

    def resume_sshd_sessions(self) -> None:
        """Lets stopped connections go on."""
        for pid in self._sshd_sessions():
            processes.send_signal(pid, signal.SIGCONT)

    def replace_host_key(self) -> None:
        """Gives the node another host key, as a reinstalled or a foreign machine has, and restarts its sshd."""
        machine.make_key(self._host_key)
        self.restart_sshd()

    def restore_host_key(self) -> None:
        """Gives the node its own host key back and restarts its sshd."""
        write_file(self._host_key, self._true_key, 0o600)
        self.restart_sshd()

    # ------------------------------------------------------------ power and disk

    def boot(self) -> None:
        """Switches the node on; returns when it takes logins."""
        write_file(self._machine / "boot_id", f"{uuid.uuid4()}\n", 0o444)
        reply = self._ask(
            "boot",
            folder=str(self._folder),
            home_bytes=self.home_bytes,
            user=USER,
            uid=self.uid,
            gid=self.gid,
            home_files={".bashrc": machine.BASHRC},
            programs={name: str(path) for name, path in self._lab.programs.items()},
        )
        self.init_pid = int(reply["init"])
        self._lab.remember(self.init_pid)
        self._lab.wire.plug(self.index, self.init_pid)
        self.start_sshd()

    def reboot(self) -> None:
        """Cuts the power and switches the node on again: all processes are gone without a farewell, /tmp and /run are empty, home and logs are kept."""
        self._lab.wire.unplug(self.index)
        self.init_pid = 0
        self._ask("off")
        self.boot()

    def fill_disk(self) -> None:
        """Makes the home's file system full to the last page, without using memory for it."""
        self._ask("resize", size_bytes=0)

    def free_disk(self) -> None:
        """Gives the home's file system its size back."""
        self._ask("resize", size_bytes=self.home_bytes)

    # ------------------------------------------------------------ inner parts

    def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return self._lab.ask(op, node=self.name, **fields)

    def _init(self) -> int:
        if not self.init_pid:
            raise LabFailed(f"{self.name} is off")
        return self.init_pid

    def _sshd(self) -> dict[int, str]:
        """Returns the processes of sshd; since OpenSSH 9.8 those of a connection are programs of their own."""
        return {pid: line for pid, line in self.processes().items() if processes.name_of(pid).startswith("sshd")}

    def _sshd_listeners(self) -> list[int]:
        return [pid for pid, line in self._sshd().items() if "[listener]" in line or line.startswith(SSHD)]

    def _sshd_sessions(self) -> list[int]:
        listeners = self._sshd_listeners()
        return [pid for pid in self._sshd() if pid not in listeners]

    def _listens(self) -> bool:
        table = Path(f"/proc/{self._init()}/net/tcp").read_text().splitlines()[1:]
        return any(line.split()[1].endswith(f":{PORT:04X}") and line.split()[3] == LISTENING for line in table)

    def _end(self, pid: int, number: int) -> None:
        if not processes.end_process(pid, number):
            raise LabFailed(f"{self.name}: process {pid} did not end: {processes.command_of(pid)}")

    def _wait(self, condition: Callable[[], bool], complaint: str) -> None:
        deadline = time.monotonic() + processes.WAIT_S
        while not condition():
            if time.monotonic() > deadline:
                raise LabFailed(f"{self.name}: {complaint}")
            select.select([], [], [], 0.001)


def check_name(name: str) -> None:
    """Refuses what cannot be a host name.

    Raises:
        LabFailed: It cannot be the name of a node.
    """
    if NAME.fullmatch(name) is None:
        raise LabFailed(f"{name!r} cannot be the name of a node", hint="a lower-case letter, then letters, digits and hyphens; 30 at most")
