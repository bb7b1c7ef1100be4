"""A network namespace with a loopback interface and nothing else: what runs in it can reach nobody. Sockets for it are made in it and handed out."""

from __future__ import annotations

import array
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = ROOT / ".cache" / "agents" / "bin"

LISTEN = """
import array, socket
listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
with socket.socket(fileno=0) as line:
    line.sendmsg([b"x"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [listener.fileno()]))])
"""


def program(name: str) -> str:
    """Returns the path of a program, or says what to do."""
    found = shutil.which(name, path=f"{PROGRAMS}:{os.environ['PATH']}:/usr/sbin:/sbin")
    assert found is not None, f"{name} is not installed; run: bash scripts/setup_agents.sh"
    return found


class Namespace:
    """One of them.

    Args:
        holder: A process that is in it.
    """

    def __init__(self, holder: int) -> None:
        names = ["net"] if os.geteuid() == 0 else ["user", "net"]
        spaces = [f"--{name}=/proc/{holder}/ns/{name}" for name in names]
        self.enter = [program("nsenter"), *spaces, *([] if os.geteuid() == 0 else ["--preserve-credentials"])]
        """What goes before a command that is to run in it."""

    def listener(self) -> socket.socket:
        """Returns a socket that listens in the namespace, for a server that is outside."""
        ours, theirs = socket.socketpair()
        with ours, theirs:
            subprocess.run([*self.enter, sys.executable, "-I", "-c", LISTEN], stdin=theirs.fileno(), check=True, timeout=20)
            _, sent, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
        return socket.socket(fileno=array.array("i", sent[0][2])[0])


@contextmanager
def namespace() -> Iterator[Namespace]:
    """Makes one; it ends with this process, however that ends."""
    unshare = [program("unshare"), "--net"] if os.geteuid() == 0 else [program("unshare"), "--map-root-user", "--net"]
    start = f"{program('ip')} link set lo up && echo ready && exec sleep infinity"
    argv = [program("setpriv"), "--pdeathsig", "KILL", *unshare, "/bin/sh", "-c", start]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == b"ready\n", "no network namespace can be made here"
            yield Namespace(holder.pid)
        finally:
            holder.kill()
