"""What a machine is before anything of ours is on it, and whether that will do.

One Python program is run on the node through its transport, with arguments and standard input only; nothing is interpolated into it. It runs on any Python 3,
so that an old one can be told from none. `findings` judges what it reported, and is pure.
"""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable, Sequence
from typing import Final

import msgspec

from orchestra.errors import NodeFailed
from orchestra.ids import NodeId
from orchestra.nodes.transport import MS, NOT_STARTED, Transport

MIB: Final = 1 << 20
GIB: Final = 1 << 30
UNKNOWN: Final = -1
"""A limit that the machine does not tell, or that is none."""


class NodeProbe(msgspec.Struct, frozen=True, kw_only=True):
    """One look at a machine. `UNKNOWN` where it does not tell."""

    node: NodeId = NodeId("")
    python: str
    """Path of the interpreter itself; `python3` may be a shim that costs a tenth of a second a start."""
    python_version: str
    uid: int
    user: str
    home: str
    boot: str
    host: str
    cpus: int
    memory_bytes: int
    memory_available_bytes: int
    folder: str
    """The node's folder, absolute."""
    folder_exists: bool
    """It has been a node of ours before, most likely."""
    folder_problem: str
    """Why we cannot write there, or empty."""
    disk_free_bytes: int
    load_1m: float
    open_files_max: int
    processes_max: int
    tmux: str
    """Version, or empty: there is none."""
    tmux_path: str
    ms: int
    programs: dict[str, str]
    sandbox: str = "bwrap is not installed"
    """Why attempts cannot run in a sandbox there, or empty."""
    path: str
    """Where programs are looked for."""
    clock_offset_ms: int = 0
    """How far its clock is ahead of ours."""
    clock_error_ms: int = 0
    """By how much that may be wrong: half of what asking took."""


class NodeNeeds(msgspec.Struct, frozen=True, kw_only=True):
    """What a node should have. Less than a `_min` cannot work, less than the rest may not last."""

    python_min: tuple[int, int] = (3, 8)
    tmux_min: tuple[int, int] = (3, 2)
    disk_bytes: int = GIB
    disk_bytes_min: int = 64 * MIB
    memory_bytes: int = 256 * MIB
    """A hundred windows with idle workers take about that much."""
    open_files: int = 512
    """Two hundred windows take one terminal each of the tmux server, and some."""
    processes: int = 1024
    """Two hundred attempts of five processes."""
    clock_offset_ms: int = 2_000
    programs: tuple[str, ...] = ()


class Finding(msgspec.Struct, frozen=True):
    """One thing looked at. `detail` says what was found, `remedy` how to mend it; `fatal`: the node cannot be used so."""

    name: str
    ok: bool
    detail: str
    remedy: str = ""
    fatal: bool = False


def system_wall_ms() -> int:
    """Returns this machine's time in UTC milliseconds."""
    return time.time_ns() // 1_000_000


async def probe(
    transport: Transport,
    node: NodeId,
    folder: str,
    programs: Sequence[str] = (),
    *,
    python: str = "python3",
    tmux: str = "tmux",
    timeout_ms: int = 20_000,
    wall_ms: Callable[[], int] = system_wall_ms,
) -> NodeProbe:
    """Looks at a machine. `folder` may begin with `~/`.

    Raises:
        NodeFailed: There is no Python 3, or it cannot run the program.
        NodeUnreachable: The node cannot be reached.
    """
    loop = asyncio.get_running_loop()
    before, began = wall_ms(), loop.time()
    try:
        done = await transport.run([python, "-I", "-S", "-c", PROBE_SCRIPT, folder, tmux, *programs], timeout_ms=timeout_ms)
    except TimeoutError as late:
        raise NodeFailed(f"node {node} did not answer a look at it within {timeout_ms} ms", hint="is it overloaded?") from late
    trip_ms = round((loop.time() - began) * MS)
    said = done.err.decode(errors="replace").strip()[-300:]
    if done.code == NOT_STARTED:
        raise NodeFailed(f"node {node} has no usable python3: {said}", hint=f"install Python 3.8 or newer there, as {python!r} in its PATH")
    try:
        found = msgspec.json.decode(done.out, type=NodeProbe)
    except msgspec.MsgspecError as error:
        shown = said or done.out.decode(errors="replace").strip()[-300:]
        raise NodeFailed(f"node {node} has no usable python3: {python} ended with code {done.code}: {shown}") from error
    offset = found.ms - before - trip_ms // 2
    return msgspec.structs.replace(found, node=node, clock_offset_ms=offset, clock_error_ms=(trip_ms + 1) // 2)


def findings(probe: NodeProbe, needs: NodeNeeds | None = None) -> tuple[Finding, ...]:
    """Judges a node, everything that was looked at, in a fixed order."""
    needs = needs or NodeNeeds()
    return (
        _python(probe, needs),
        _tmux(probe, needs),
        _folder(probe),
        _disk(probe, needs),
        _at_least(probe, "memory", probe.memory_available_bytes, needs.memory_bytes, "end what uses it, or give the node fewer agents"),
        _at_least(probe, "open files", probe.open_files_max, needs.open_files, "raise `nofile` in /etc/security/limits.conf there"),
        _at_least(
            probe, "processes", probe.processes_max, needs.processes, "raise `nproc` in /etc/security/limits.conf, or TasksMax= there"
        ),
        _sandbox(probe),
        _clock(probe, needs),
        *(_program(probe, name) for name in needs.programs),
    )


def _version(text: str) -> tuple[int, int] | None:
    match = re.search(r"(\d+)\.(\d+)", text)
    return None if match is None else (int(match[1]), int(match[2]))


def _dotted(version: tuple[int, int]) -> str:
    return f"{version[0]}.{version[1]}"


def _python(probe: NodeProbe, needs: NodeNeeds) -> Finding:
    ok = (_version(probe.python_version) or (0, 0)) >= needs.python_min
    detail = f"node {probe.node} has Python {probe.python_version} at {probe.python}"
    return Finding("python", ok, detail, "" if ok else f"install Python {_dotted(needs.python_min)} or newer there", fatal=not ok)


def _tmux(probe: NodeProbe, needs: NodeNeeds) -> Finding:
    wanted = _dotted(needs.tmux_min)
    if not probe.tmux_path:
        return Finding("tmux", False, f"node {probe.node} has no tmux in {probe.path}", f"install tmux {wanted} or newer there", fatal=True)
    version = _version(probe.tmux)
    # A version without a number is a development one, newer than any release that lacks what we need.
    ok = bool(probe.tmux) and (version is None or version >= needs.tmux_min)
    detail = f"node {probe.node} has tmux {probe.tmux or 'that does not tell its version'} at {probe.tmux_path}"
    return Finding("tmux", ok, detail, "" if ok else f"install tmux {wanted} or newer there", fatal=not ok)


def _folder(probe: NodeProbe) -> Finding:
    if not probe.folder_problem:
        return Finding("folder", True, f"node {probe.node}: {probe.folder} can be written")
    detail = f"node {probe.node}: {probe.folder} cannot be used by {probe.user}: {probe.folder_problem}"
    return Finding("folder", False, detail, f"make it writable for {probe.user}, or set another folder for this node", fatal=True)


def _disk(probe: NodeProbe, needs: NodeNeeds) -> Finding:
    free = probe.disk_free_bytes
    detail = f"node {probe.node} has {_size(free)} free at {probe.folder}"
    if free == UNKNOWN or free >= needs.disk_bytes:
        return Finding("disk", True, detail)
    short = free < needs.disk_bytes_min
    fatal = short and not probe.folder_exists  # a node in use goes on with what it has: letting go of it would not free anything
    limit = _size(needs.disk_bytes_min if short else needs.disk_bytes)
    return Finding("disk", False, f"{detail}, less than {limit}", "free some space there, or set another folder for this node", fatal=fatal)


def _at_least(probe: NodeProbe, name: str, found: int, wanted: int, remedy: str) -> Finding:
    show = _size if name == "memory" else str
    if found == UNKNOWN:
        return Finding(name, True, f"node {probe.node} tells no limit of {name}")
    if found >= wanted:
        return Finding(name, True, f"node {probe.node} has {name} for {show(found)}")
    return Finding(name, False, f"node {probe.node} has {name} for {show(found)} only, less than {show(wanted)}", remedy)


def _clock(probe: NodeProbe, needs: NodeNeeds) -> Finding:
    off = abs(probe.clock_offset_ms)
    if off <= probe.clock_error_ms:
        return Finding(
            "clock", True, f"the clock of node {probe.node} agrees with ours within what can be measured ({_tens(probe.clock_error_ms)} ms)"
        )
    ok = off - probe.clock_error_ms <= needs.clock_offset_ms
    side = "ahead of" if probe.clock_offset_ms > 0 else "behind"
    detail = f"the clock of node {probe.node} is {off} ms {side} ours, give or take {probe.clock_error_ms} ms"
    return Finding("clock", ok, detail, "" if ok else "have both machines take their time from NTP (`timedatectl set-ntp true`)")


def _tens(count: int) -> int:
    """Returns the number rounded up to tens, at least 10: a figure that is a guess should not look exact."""
    return max(10, -(-count // 10) * 10)


def _program(probe: NodeProbe, name: str) -> Finding:
    path = probe.programs.get(name, "")
    if path:
        return Finding(name, True, f"node {probe.node} has {name} at {path}")
    remedy = f"install it there, in ~/.local/bin or a folder that is in PATH without a login ({probe.path})"
    return Finding(name, False, f"node {probe.node} has no program {name}", remedy)


def sandbox_remedy(problem: str) -> str:
    """Returns what to do where attempts cannot run in a sandbox."""
    if "not installed" in problem:
        return "install bubblewrap (Debian: apt-get install bubblewrap); without it attempts see and change all that their user can"
    return (
        "allow user namespaces (sysctl kernel.unprivileged_userns_clone=1 or user.max_user_namespaces, on Ubuntu also "
        "kernel.apparmor_restrict_unprivileged_userns=0 or an AppArmor profile for bwrap); in a container they are the host's to allow"
    )


def _sandbox(probe: NodeProbe) -> Finding:
    if not probe.sandbox:
        return Finding("sandbox", True, f"node {probe.node} can run attempts in a sandbox (bwrap)")
    return Finding("sandbox", False, f"node {probe.node} has no sandbox: {probe.sandbox}", sandbox_remedy(probe.sandbox))


def _size(count: int) -> str:
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count // MIB} MiB"


PROBE_SCRIPT: Final = r"""
import json, os, pwd, resource, shutil, subprocess, sys, time

def text(path):
    try:
        with open(path) as file:
            return file.read()
    except (OSError, ValueError):
        return ""

def number(value):
    value = value.strip()
    return int(value) if value.isdigit() else -1

def least(values):
    known = [value for value in values if value >= 0]
    return min(known) if known else -1

def limit(name):
    kind = getattr(resource, name, None)
    soft = -1 if kind is None else resource.getrlimit(kind)[0]
    return -1 if soft == resource.RLIM_INFINITY else soft

def pids():
    found = []
    for line in text("/proc/self/cgroup").splitlines():
        controllers, path = line.split(":", 2)[1:]
        if controllers not in ("", "pids"):
            continue
        base = "/sys/fs/cgroup" + ("/pids" if controllers else "")
        while True:
            found.append(number(text(base + path.rstrip("/") + "/pids.max")))
            if path in ("", "/"):
                break
            path = os.path.dirname(path)
    return found

def memory():
    for line in text("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return -1

def version_of(tmux):
    try:
        said = subprocess.check_output([tmux, "-V"], stderr=subprocess.STDOUT, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    said = said.decode("utf-8", "replace").strip()
    return said[5:] if said.startswith("tmux ") else said

def search_path(home):
    # As a worker does (stage/attempt.py): a login without a terminal leaves out the place where most installers for one user put things.
    folders = os.environ.get("PATH", os.defpath).split(":")
    return ":".join(folders + [each for each in (home.rstrip("/") + "/.local/bin", "/usr/local/bin") if each not in folders])

def sandbox(path):
    bwrap = shutil.which("bwrap", path=path)
    if not bwrap:
        return "bwrap is not installed"
    argv = [bwrap, "--die-with-parent", "--unshare-pid", "--cap-drop", "ALL"]
    argv += ["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--", "/bin/sh", "-c", ":"]
    try:
        subprocess.check_output(argv, stderr=subprocess.STDOUT, timeout=5)
    except subprocess.CalledProcessError as problem:
        return " ".join(problem.output.decode("utf-8", "replace").split())[-300:] or "bwrap ended with code %d" % problem.returncode
    except (OSError, subprocess.SubprocessError) as problem:
        return str(problem)
    return ""

def problem_of(folder):
    there = folder
    while not os.path.lexists(there) and there != "/":
        there = os.path.dirname(there)
    if os.path.islink(there) and not os.path.exists(there):
        return there, "%s is a link that leads nowhere" % there
    if not os.path.isdir(there):
        return os.path.dirname(there), "%s is not a folder" % there
    if not os.access(there, os.W_OK | os.X_OK):
        return there, "%s is not writable" % there
    return there, ""

folder, tmux = sys.argv[1:3]
uid = os.getuid()
try:
    entry = pwd.getpwuid(uid)
    user, home = entry.pw_name, entry.pw_dir
except KeyError:
    user, home = str(uid), "/"
home = os.environ.get("HOME") or home
if folder == "~" or folder.startswith("~/"):
    folder = home.rstrip("/") + folder[1:]
folder = os.path.normpath(folder)
there, problem = problem_of(folder)
try:
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
except OSError:
    free = -1
tmux_path = shutil.which(tmux) or ""
path = search_path(home)
facts = {
    "python": sys.executable, "python_version": sys.version.split()[0], "uid": uid, "user": user, "home": home,
    "boot": text("/proc/sys/kernel/random/boot_id").strip(), "host": os.uname().nodename, "cpus": os.cpu_count() or 1,
    "memory_bytes": os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "memory_available_bytes": memory(),
    "folder": folder, "folder_exists": there == folder, "folder_problem": problem, "disk_free_bytes": free, "load_1m": round(os.getloadavg()[0], 2),
    "open_files_max": limit("RLIMIT_NOFILE"), "processes_max": least(pids() + ([limit("RLIMIT_NPROC")] if uid else [])),
    "tmux": version_of(tmux_path) if tmux_path else "", "tmux_path": tmux_path, "path": os.environ.get("PATH", ""), "sandbox": sandbox(path),
    "programs": dict((name, found) for name, found in ((name, shutil.which(name, path=path)) for name in sys.argv[3:]) if found),
}
facts["ms"] = int(time.time() * 1000)
json.dump(facts, sys.stdout)
"""
