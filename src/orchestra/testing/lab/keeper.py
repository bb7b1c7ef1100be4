"""The process that holds a lab: it owns the hub's and the wire's network namespaces and is the parent of every node.

It is started as a program of its own (`python -I -S keeper.py OWNER`), because the owner may have threads and must not leave its own namespaces. It reads
one JSON request a line and answers with one JSON line. When its stdin ends, for whatever reason, it ends every process of the lab and then itself; when it
dies itself, the kernel ends the nodes (PR_SET_PDEATHSIG), and with their last process go namespaces, links and mounts. Nothing has a name outside.

A node is a launcher (child of the keeper, outside) and its init (pid 1 inside). A pipe rather than the death signal watches the owner: the kernel sends
that signal when the *thread* that started the child ends.

This file imports nothing of the package, so that it starts in a few hundredths of a second.
"""

from __future__ import annotations

import ctypes
import json
import os
import resource
import select
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x20000, 0x4000000, 0x8000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_REMOUNT, MS_BIND, MS_MOVE, MS_REC, MS_PRIVATE = 1, 2, 4, 8, 32, 4096, 8192, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_SET_NAME = 1, 15

SYSTEM = ("bin", "sbin", "lib", "lib32", "lib64", "libx32", "usr", "etc", "opt")
"""What a node has of the machine, read-only."""
DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
PROGRAMS = "/srv/programs"
"""Where a node has programs it was given besides; its user finds them in ~/.local/bin, as with an installer of their own."""
OWN_ETC = ("passwd", "group", "shadow", "hostname", "hosts", "resolv.conf")
"""Files of /etc that a node has for itself, where the machine has them as plain files."""
TERM_MS = 2000
"""What a process in the hub gets between SIGTERM and SIGKILL."""
RESIZE_TRIES = 200

_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str = "", flags: int = 0, options: str = "") -> None:
    """Calls mount(2)."""
    result = _libc.mount(source.encode(), target.encode(), kind.encode() or None, ctypes.c_ulong(flags), options.encode() or None)
    _check(result, f"mount {source} on {target}")


def bind(source: str, target: str, *, read_only: bool = True) -> None:
    """Shows the source at the target as well."""
    mount(source, target, flags=MS_BIND)
    if read_only:
        mount("none", target, flags=MS_REMOUNT | MS_BIND | MS_RDONLY)


def unshare(flags: int) -> None:
    """Calls unshare(2)."""
    _check(_libc.unshare(flags), "unshare")


def die_with_parent() -> None:
    """Has the kernel kill this process when its parent ends."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL), 0, 0, 0), "prctl")


def set_name(name: str) -> None:
    """Names this process, for `ps`."""
    _libc.prctl(PR_SET_NAME, ctypes.c_char_p(name.encode()), 0, 0, 0)


# ---------------------------------------------------------------- a node from inside


def _make_dev(root: str) -> None:
    dev = f"{root}/dev"
    mount("tmpfs", dev, "tmpfs", MS_NOSUID | MS_NOEXEC, "mode=755")
    for name in DEVICES:
        Path(dev, name).touch()
        bind(f"/dev/{name}", f"{dev}/{name}", read_only=False)
    for name, options in (("pts", "newinstance,ptmxmode=0666,mode=620,gid=5"), ("shm", "mode=1777")):
        os.mkdir(f"{dev}/{name}")
        mount(name, f"{dev}/{name}", "devpts" if name == "pts" else "tmpfs", MS_NOSUID | MS_NOEXEC, options)
    links = {
        "ptmx": "pts/ptmx",
        "fd": "/proc/self/fd",
        "stdin": "/proc/self/fd/0",
        "stdout": "/proc/self/fd/1",
        "stderr": "/proc/self/fd/2",
    }
    for name, target in links.items():
        os.symlink(target, f"{dev}/{name}")


def _make_root(folder: str, programs: dict[str, str]) -> None:
    """Puts the node's file system together at `folder`/root and moves into it. Everything but home and log is new.

    Programs of the machine that lie outside of SYSTEM are shown as they are, each by itself: what is beside them, and above, stays unseen.
    """
    root, machine = f"{folder}/root", f"{folder}/machine"
    mount("tmpfs", root, "tmpfs", 0, "mode=755")
    for name in SYSTEM:
        source, target = f"/{name}", f"{root}/{name}"
        if os.path.islink(source):
            os.symlink(os.readlink(source), target)
        elif os.path.isdir(source):
            os.mkdir(target)
            bind(source, target)
    for name in ("proc", "sys", "dev", "tmp", "run", "home", "root", "var"):
        os.mkdir(f"{root}/{name}")
    os.chmod(f"{root}/root", 0o700)
    mount("proc", f"{root}/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    mount("sysfs", f"{root}/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_RDONLY)
    mount("tmpfs", f"{root}/tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("tmpfs", f"{root}/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    bind(f"{folder}/home", f"{root}/home", read_only=False)
    _make_dev(root)
    for path in ("run/lab", "run/sshd", "var/tmp", "var/log", "var/lib"):
        os.mkdir(f"{root}/{path}")
    os.chmod(f"{root}/var/tmp", 0o1777)
    os.symlink("/run", f"{root}/var/run")
    bind(f"{folder}/log", f"{root}/var/log", read_only=False)
    bind(machine, f"{root}/run/lab")
    for name, source in programs.items():
        place = Path(f"{root}{PROGRAMS}", name)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch()
        bind(source, str(place))
    for name in OWN_ETC:
        if os.path.isfile(f"/etc/{name}") and not os.path.islink(f"/etc/{name}"):
            bind(f"{machine}/{name}", f"{root}/etc/{name}")
    bind(f"{machine}/boot_id", f"{root}/proc/sys/kernel/random/boot_id")
    # A root that was moved over the old one, and not pivot_root(2), which the C library does not offer.
    os.chdir(root)
    mount(".", "/", flags=MS_MOVE)
    os.chroot(".")
    os.chdir("/")


def _furnish_home(request: dict[str, Any]) -> None:
    """Makes the user's home, once: it is kept from boot to boot."""
    home = Path("/home", request["user"])
    if home.exists():
        return
    home.mkdir(mode=0o755)
    made = [home]
    for name, text in request["home_files"].items():
        (home / name).write_text(text)
        made.append(home / name)
    if request["programs"]:
        place = home / ".local" / "bin"
        place.mkdir(parents=True)
        made += [place.parent, place]
        for name in request["programs"]:
            (place / name).symlink_to(f"{PROGRAMS}/{name}")
    for path in made:
        os.chown(path, request["uid"], request["gid"])


def _init(request: dict[str, Any], guard: socket.socket, report: int) -> NoReturn:
    """Is pid 1 of a node: makes its file system, says so, and reaps whatever is orphaned."""
    try:
        die_with_parent()
        guard.send(b"1")
        if guard.recv(1) != b"1":  # the launcher ended before the death signal was set
            os._exit(1)
        set_name("init")
        socket.sethostname(request["node"])
        _make_root(request["folder"], request["programs"])
        _furnish_home(request)
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        null = os.open("/dev/null", os.O_RDWR)
        for fd in (0, 1, 2):
            os.dup2(null, fd)
        os.write(report, b"ready\n")
    except OSError as error:
        os.write(report, f"failed {error}\n".encode())
        os._exit(1)
    # Also the descriptors of the hub and the wire: held open here, they would outlive the lab's other processes.
    os.closerange(3, 1024)
    while True:
        signal.sigwait({signal.SIGCHLD})
        reap()


def reap() -> None:
    """Collects every child that has ended."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return


def _launch(request: dict[str, Any], keeper: int, report: int) -> NoReturn:
    """Is a node's power supply: starts its init in new namespaces and ends with it, and the other way round."""
    try:
        die_with_parent()
        if os.getppid() != keeper:
            os._exit(1)
        set_name(f"lab-{request['node']}"[:15])
        unshare(CLONE_NEWNS | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWNET | CLONE_NEWPID)
        here, there = socket.socketpair()
        pid = os.fork()
        if pid == 0:
            try:
                here.close()
                _init(request, there, report)
            finally:
                os._exit(1)
        there.close()
        os.write(report, f"{pid}\n".encode())
        if here.recv(1) == b"1":
            here.send(b"1")
    except OSError as error:
        os.write(report, f"failed {error}\n".encode())
        os._exit(1)
    null = os.open("/dev/null", os.O_RDWR)
    for fd in (0, 1, 2):
        os.dup2(null, fd)
    os.closerange(3, 1024)
    os.waitpid(pid, 0)
    os._exit(0)


# ---------------------------------------------------------------- the keeper


class Keeper:
    """The namespaces and the nodes of one lab."""

    def __init__(self, owner: int) -> None:
        self._owner = owner
        self._launchers: dict[str, tuple[int, int]] = {}
        """Node -> pids of its launcher and its init."""
        self._homes: dict[str, str] = {}
        unshare(CLONE_NEWNET)
        self.wire = os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        unshare(CLONE_NEWNS | CLONE_NEWNET)
        self._hub = os.stat("/proc/self/ns/net").st_ino

    def settle(self, kept: list[str]) -> dict[str, Any]:
        """Makes the mounts its own and lets go of those of others, in which nothing lies that is to be kept: a copy of a mount keeps its device busy."""
        mount("none", "/", flags=MS_REC | MS_PRIVATE)
        points = [line.split()[4].encode().decode("unicode_escape") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        for point in reversed(points):
            needed = any(f"{path}/".startswith(f"{point}/") for path in kept)
            if needed or point.split("/")[1] in SYSTEM or point in ("/", "/proc", "/sys", "/dev"):
                continue
            _libc.umount2(point.encode(), MNT_DETACH)  # best effort: what cannot be let go of stays until the keeper ends
        return {"wire": self.wire}

    def boot(self, request: dict[str, Any]) -> dict[str, Any]:
        """Starts a node."""
        node, folder = request["node"], request["folder"]
        if node not in self._homes:
            mount("tmpfs", f"{folder}/home", "tmpfs", MS_NOSUID | MS_NODEV, f"mode=755,size={request['home_bytes']}")
            self._homes[node] = f"{folder}/home"
        reading, writing = os.pipe()
        keeper = os.getpid()
        launcher = os.fork()
        if launcher == 0:
            try:
                os.close(reading)
                _launch(request, keeper, writing)
            finally:
                os._exit(1)  # whatever happened, a child never goes on as the keeper
        os.close(writing)
        with os.fdopen(reading) as report:
            lines = report.read().split("\n")
        if lines[1:2] != ["ready"]:
            os.waitpid(launcher, 0)
            raise OSError(next((line for line in lines if line.startswith("failed")), "the node's init ended"))
        self._launchers[node] = (launcher, int(lines[0]))
        return {"init": int(lines[0])}

    def off(self, node: str) -> dict[str, Any]:
        """Ends a node: the kernel ends every process of a pid namespace with its pid 1."""
        launcher, init = self._launchers.pop(node)
        _signal(init, signal.SIGKILL)
        os.waitpid(launcher, 0)
        return {}

    def resize(self, node: str, size_bytes: int) -> dict[str, Any]:
        """Gives a node's home another size; 0 is what is in use, so that not one page is free."""
        path = self._homes[node]
        for _ in range(RESIZE_TRIES):
            now = os.statvfs(path)
            if size_bytes == 0 and now.f_bfree == 0:
                return {}
            wanted = size_bytes or (now.f_blocks - now.f_bfree) * now.f_frsize
            try:
                mount("none", path, flags=MS_REMOUNT | MS_NOSUID | MS_NODEV, options=f"size={wanted}")
            except OSError:
                continue  # somebody wrote in between
            if size_bytes:
                return {}
        raise OSError(f"the size of {path} could not be set")

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        """Does what one request says."""
        op = request["op"]
        if op == "settle":
            return self.settle(request["kept"])
        if op == "boot":
            return self.boot(request)
        if op == "off":
            return self.off(request["node"])
        return self.resize(request["node"], request["size_bytes"])

    def serve(self) -> None:
        """Answers until stdin ends, then ends everything."""
        try:
            for line in sys.stdin:
                try:
                    reply = self.answer(json.loads(line))
                except OSError as error:
                    reply = {"error": str(error)}
                sys.stdout.write(json.dumps(reply) + "\n")
                sys.stdout.flush()
        finally:
            for node in list(self._launchers):
                self.off(node)
            self._clear_hub()

    def _clear_hub(self) -> None:
        """Ends what still runs in the hub: it would keep the namespace."""
        for pid in self._in_hub():
            _signal(pid, signal.SIGTERM)
        deadline_ms = time.monotonic_ns() // 1_000_000 + TERM_MS
        while self._in_hub() and time.monotonic_ns() // 1_000_000 < deadline_ms:
            select.select([], [], [], 0.01)
        for pid in self._in_hub():
            _signal(pid, signal.SIGKILL)

    def _in_hub(self) -> list[int]:
        found = []
        for name in os.listdir("/proc"):
            # The owner may be on a visit (`Lab.inside`).
            if name.isdigit() and int(name) not in (os.getpid(), self._owner):
                try:
                    if os.stat(f"/proc/{name}/ns/net").st_ino == self._hub:
                        found.append(int(name))
                except OSError:
                    continue
        return found


def _signal(pid: int, number: int) -> None:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return


def main() -> None:
    """Runs the keeper of the owner whose pid is the one argument."""
    os.umask(0o022)
    set_name("lab-keeper")
    # A terminal's Ctrl-C is for the owner; it closes the pipe when it is ready.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Keeper(int(sys.argv[1])).serve()


if __name__ == "__main__":
    main()
