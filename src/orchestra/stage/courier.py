"""The courier: one process a node, which carries orders in and the journal out. The contract is docs/node.md.

Rules of this file:

- Standard library only, Python 3.8, never imports the package. What it shares with the worker it loads from `worker.py` beside it.
- It decides nothing. It keeps nothing that is not on disk, so that it may be killed and started anew at any time.
- One thread, one select: a bell from a worker, a request, the death of a worker. What takes time goes on in steps between them.
- What it tells of a worker's death comes after everything that the worker wrote.
- Paths of requests are opened folder by folder without following links, so nobody can be led out of the node's folder.
"""

from __future__ import annotations

import argparse
import errno
import importlib.machinery
import importlib.util
import os
import select
import stat
import sys
import time
from typing import Any, Callable, Iterator

FRAME_BYTES_MAX = 262144  # of journal in a frame
QUEUE_BYTES_MAX = 1048576  # waiting for a reader before the journal waits too
INBOX_LINE_BYTES_MAX = 4096  # PIPE_BUF of Linux: below it a write to a FIFO is atomic
REQUEST_BYTES_MAX = 64 << 20
READ_BYTES_MAX = 4 << 20  # of a file, in one reply
STEP_S = 0.03  # between two looks at processes that are being ended
FLUSH_S = 5.0  # for the last replies, after standard input has ended


def load_worker() -> Any:
    """The module beside this file; its bytecode is kept there, too."""
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "worker.py")
    loader = importlib.machinery.SourceFileLoader("stage_worker", path)
    spec = importlib.util.spec_from_loader("stage_worker", loader)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


worker = load_worker()


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def asked(request: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A field of a request."""
    value = request.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused("bad-request", "%s is missing or of the wrong kind" % name)
    return value


# ---- paths ------------------------------------------------------------------------------------------------------------------


def parts_of(path: Any) -> list[str]:
    """The names in a relative path, which leads down only."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or "" in parts or {".", ".."} & set(parts) or "\0" in str(path):
        raise Refused("bad-path", "not a path below the node's folder: %.200r" % (path,))
    return parts


def attempt_parts(path: Any) -> list[str]:
    """The names in the path of an attempt's folder."""
    parts = parts_of(path)
    if parts[0] != "attempts" or len(parts) < 3:
        raise Refused("bad-path", "not the folder of an attempt: %.200r" % (path,))
    return parts


class Folder:
    """A folder held open. Each step down refuses symbolic links."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @classmethod
    def walk(cls, base: str, parts: list[str], make: bool = False) -> Folder:
        """Opens base/parts; `make` makes what is missing."""
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            for name in parts:
                if make:
                    try:
                        os.mkdir(name, 0o700, dir_fd=fd)
                    except FileExistsError:
                        pass
                below = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=fd)
                os.close(fd)
                fd = below
        except OSError as problem:
            os.close(fd)
            if problem.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused("bad-path", "%s is not a folder of ours" % "/".join(parts)) from None
            raise
        return cls(fd)

    def write(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """Writes a file atomically."""
        draft = ".%s.%d.tmp" % (name[:200], os.getpid())
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            worker.write_all(fd, data)
            os.fchmod(fd, mode)
            os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            os.unlink(draft, dir_fd=self.fd)
            raise
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True


def remove_tree(name: str, parent_fd: int) -> None:
    """Removes a folder and all in it. Links are removed, not followed."""
    fd = os.open(name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent_fd)
    try:
        for entry in os.listdir(fd):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                remove_tree(entry, fd)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)


# ---- facts ------------------------------------------------------------------------------------------------------------------


def _cpu_times() -> tuple[int, int]:
    """(busy, all) ticks since the start of the machine."""
    fields = (worker.read_bytes("/proc/stat") or b"").split(b"\n", 1)[0].split()[1:9]
    values = [int(field) for field in fields]
    return (sum(values) - sum(values[3:5]), sum(values)) if values else (0, 0)


class Facts:
    """What the machine is and how busy it is."""

    def __init__(self, base: str) -> None:
        self.base = base
        self.cpu = _cpu_times()
        self.cpu_percent = 0.0

    def fixed(self) -> dict[str, Any]:
        """As in `hello`."""
        disk = os.statvfs(self.base)
        version = ".".join(str(part) for part in sys.version_info[:3])
        facts = {"v": 1, "pid": os.getpid(), "python": version, "boot": worker.boot_id(), "host": os.uname().nodename}
        facts.update(cpus=os.cpu_count() or 1, memory_bytes=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"))
        facts.update(disk_free_bytes=disk.f_bavail * disk.f_frsize, ms=worker.now_ms(), uid=os.getuid())
        return facts

    def current(self) -> dict[str, Any]:
        """As in `facts`: the CPU since the last question, memory and load now."""
        busy, whole = _cpu_times()
        if whole > self.cpu[1]:
            self.cpu_percent = round(100.0 * (busy - self.cpu[0]) / (whole - self.cpu[1]), 1)
            self.cpu = (busy, whole)
        memory: dict[bytes, int] = {}
        for line in (worker.read_bytes("/proc/meminfo") or b"").splitlines():
            name, _, value = line.partition(b":")
            memory[name] = int(value.split()[0])
        total = memory.get(b"MemTotal", 0)
        percent = round(100.0 * (1 - memory.get(b"MemAvailable", 0) / total), 1) if total else 0.0
        return dict(self.fixed(), cpu_percent=self.cpu_percent, memory_percent=percent, load_1m=round(os.getloadavg()[0], 2))


# ---- workers ----------------------------------------------------------------------------------------------------------------


class Watched:
    """A worker whose death and whose heart are watched."""

    def __init__(self, agent: str, w: str) -> None:
        self.agent, self.w = agent, w
        self.pidfd = self._open()
        self.beat_mtime = -1
        self.beat_seen = time.monotonic()  # when the beat was last seen to change: a clock that is set does not matter
        self.missed = False

    def _open(self) -> int:
        """A pidfd, or -1 where there is none; then the process is looked at."""
        try:
            return os.pidfd_open(int(self.w.partition(":")[0]))
        except (AttributeError, OSError, ValueError):
            return -1

    def close(self) -> None:
        """Lets go of it."""
        if self.pidfd >= 0:
            os.close(self.pidfd)
            self.pidfd = -1


class Workers:
    """The workers of the node, as their locks name them."""

    def __init__(self, base: str, beat_missed_s: float) -> None:
        self.base = base
        self.beat_missed_s = beat_missed_s
        self.watched: dict[str, Watched] = {}
        self.lock_stamps: dict[str, tuple[int, int]] = {}

    def agents(self) -> list[str]:
        """The slots there are."""
        try:
            return sorted(os.listdir(self.base + "/agents"))
        except OSError:
            return []

    def identity(self, agent: str) -> str | None:
        """Who holds the slot, or held it last."""
        lock = worker.read_json("%s/agents/%s/lock" % (self.base, agent))
        return str(lock["w"]) if isinstance(lock, dict) and "w" in lock else None

    def refresh(self) -> None:
        """Finds new workers. Only locks that changed are read."""
        for agent in self.agents():
            try:
                facts = os.stat("%s/agents/%s/lock" % (self.base, agent))
            except OSError:
                continue
            stamp = (facts.st_mtime_ns, facts.st_size)
            if self.lock_stamps.get(agent) == stamp:
                continue
            w = self.identity(agent)
            if w is None:
                continue  # it is being written: the next look finds it
            self.lock_stamps[agent] = stamp
            known = self.watched.get(agent)
            if (known is None or known.w != w) and worker.alive(w):
                if known is not None:
                    known.close()
                self.watched[agent] = Watched(agent, w)

    def gone(self, ready: list[int]) -> list[Watched]:
        """Those that are dead, and are watched no more. Cheap for who has a pidfd."""
        dead = [one for one in self.watched.values() if (one.pidfd in ready or one.pidfd < 0) and not worker.alive(one.w)]
        for one in dead:
            one.close()
            del self.watched[one.agent]
        return dead

    def hearts(self) -> list[dict[str, Any]]:
        """Notices of hearts that stopped or beat again."""
        notices = []
        moment = time.monotonic()
        for one in self.watched.values():
            try:
                mtime = os.stat("%s/agents/%s/beat" % (self.base, one.agent)).st_mtime_ns
            except OSError:
                mtime = one.beat_mtime
            if mtime != one.beat_mtime:
                one.beat_mtime, one.beat_seen = mtime, moment
            age = moment - one.beat_seen
            if (age > self.beat_missed_s) != one.missed:
                one.missed = not one.missed
                name = {"agent": worker.agent_value(one.agent), "w": one.w}
                notices.append(dict(name, n="beat-missed", age_ms=int(age * 1000)) if one.missed else dict(name, n="beat-back"))
        return notices

    def told(self) -> list[dict[str, Any]]:
        """As in `inventory`."""
        found = []
        for agent in self.agents():
            w = self.identity(agent)
            if w is None:
                continue
            slot = "%s/agents/%s" % (self.base, agent)
            try:
                age_ms = max(0, int((time.time() - os.stat(slot + "/beat").st_mtime) * 1000))
            except OSError:
                age_ms = None
            current = worker.read_json(slot + "/current")
            found.append({"agent": worker.agent_value(agent), "w": w, "alive": worker.alive(w), "beat_age_ms": age_ms, "current": current})
        return found

    def has_in_hand(self, place: str, folder: str) -> bool:
        """Whether a live worker has claimed this attempt, or is about to settle what a dead one left of it."""
        claim = worker.read_json(folder + "/claim")
        if not isinstance(claim, dict):
            return False
        if worker.alive(claim.get("w", "")):
            return True
        agent = str(claim.get("agent"))
        w = self.identity(agent) if "/" not in agent else None
        current = worker.read_json("%s/agents/%s/current" % (self.base, agent))
        return w is not None and worker.alive(w) and isinstance(current, dict) and current.get("dir") == place


# ---- the courier ------------------------------------------------------------------------------------------------------------


class Courier:
    """Requests in, frames out."""

    def __init__(self, base: str, nonce: str, options: argparse.Namespace) -> None:
        self.base, self.nonce = base, nonce
        self.beat_check_s = options.beat_check_ms / 1000
        self.backstop_s = options.backstop_ms / 1000
        self.workers = Workers(base, options.beat_missed_ms / 1000)
        self.facts = Facts(base)
        self.outgoing: list[bytes | memoryview] = []
        self.outgoing_bytes = 0
        self.incoming = bytearray()
        self.offset: int | None = None  # of the journal, once it is asked for
        self.reaping: dict[str, tuple[Iterator[None], dict[int, str], list[Any]]] = {}
        self.beat_due = 0.0
        self.poller = select.poll()
        self.polled: dict[int, int] = {}
        self.ops: dict[str, Callable[[dict[str, Any]], dict[str, Any] | None]] = {
            "slots": self.op_slots,
            "start": self.op_start,
            "poke": self.op_poke,
            "tail": self.op_tail,
            "inventory": self.op_inventory,
            "reap": self.op_reap,
            "read": self.op_read,
            "write": self.op_write,
            "remove": self.op_remove,
            "facts": lambda _: self.facts.current(),
        }

    # frames

    def send(self, kind: str, payload: bytes, offset: int = 0) -> None:
        """Queues a frame."""
        frame = b"#%s %s %d %d\n%s\n" % (self.nonce.encode(), kind.encode(), len(payload), offset, payload)
        self.outgoing.append(frame)
        self.outgoing_bytes += len(frame)

    def send_json(self, kind: str, value: dict[str, Any]) -> None:
        """Queues a frame of JSON."""
        self.send(kind, worker.dumps(value))

    def flush(self) -> None:
        """Writes what the reader takes now."""
        while self.outgoing:
            try:
                count = os.write(1, self.outgoing[0])
            except BlockingIOError:
                return
            self.outgoing_bytes -= count
            if count == len(self.outgoing[0]):
                del self.outgoing[0]
            else:
                self.outgoing[0] = memoryview(self.outgoing[0])[count:]

    def pump(self) -> None:
        """Sends what is new in the journal, as long as the reader keeps up."""
        while self.offset is not None and self.outgoing_bytes < QUEUE_BYTES_MAX:
            try:
                fd = os.open(self.base + "/journal", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:
                return
            try:
                data = os.pread(fd, FRAME_BYTES_MAX, self.offset)
            finally:
                os.close(fd)
            end = data.rfind(b"\n") + 1
            if not end:
                return
            self.send("journal", data[:end], self.offset)
            self.offset += end
            if b'{"k":"ready"' in data:
                self.workers.refresh()

    # the loop

    def run(self) -> None:
        """Until standard input ends or nobody reads."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        try:
            os.mkfifo(self.base + "/bell", 0o600)
        except FileExistsError:
            pass
        bell = os.open(self.base + "/bell", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.send_json("hello", self.facts.fixed())
        try:
            while self._turn(bell):
                pass
            self._finish()
        except BrokenPipeError:
            pass

    def _turn(self, bell: int) -> bool:
        self.flush()
        wanted = {0: select.POLLIN, bell: select.POLLIN}
        wanted.update({one.pidfd: select.POLLIN for one in self.workers.watched.values() if one.pidfd >= 0})
        if self.outgoing:
            wanted[1] = select.POLLOUT
        self._poll_for(wanted)
        pause = STEP_S if self.reaping else min(self.backstop_s, max(0.0, self.beat_due - time.monotonic()))
        ready = dict(self.poller.poll(int(pause * 1000) + 1))
        if bell in ready:
            self._empty(bell)
        if 1 in ready and ready[1] & (select.POLLERR | select.POLLHUP):
            return False
        going_on = 0 not in ready or self._hear()
        self._watch(list(ready))
        return going_on

    def _poll_for(self, wanted: dict[int, int]) -> None:
        """Registers only what changed: two hundred workers are watched."""
        if wanted == self.polled:
            return
        for fd in self.polled.keys() - wanted.keys():
            self.poller.unregister(fd)
        for fd, events in wanted.items():
            if self.polled.get(fd) != events:
                self.poller.register(fd, events)
        self.polled = wanted

    @staticmethod
    def _empty(bell: int) -> None:
        try:
            while len(os.read(bell, 65536)) == 65536:
                pass
        except BlockingIOError:
            pass

    def _watch(self, ready: list[int]) -> None:
        """The journal first: what a worker wrote is told before its death."""
        self.pump()
        dead = self.workers.gone(ready)
        if dead:
            self.pump()
        for one in dead:
            self.send_json("notice", {"n": "worker-gone", "agent": worker.agent_value(one.agent), "w": one.w})
        if time.monotonic() >= self.beat_due:
            self.beat_due = time.monotonic() + self.beat_check_s
            self.workers.refresh()
            for notice in self.workers.hearts():
                self.send_json("notice", notice)
        self._step_reaping()

    def _finish(self) -> None:
        """The last replies, for a reader that still reads."""
        deadline = time.monotonic() + FLUSH_S
        while self.reaping and time.monotonic() < deadline:
            select.select([], [], [], STEP_S)
            self._step_reaping()
        while self.outgoing and time.monotonic() < deadline:
            self.flush()
            if self.outgoing:
                select.select([], [1], [], max(0.0, deadline - time.monotonic()))

    # requests

    def _hear(self) -> bool:
        """Reads requests; False at the end of standard input."""
        try:
            data = os.read(0, 1 << 20)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.incoming += data
        if b"\n" in data:
            *lines, rest = bytes(self.incoming).split(b"\n")
            self.incoming = bytearray(rest)
            for line in lines:
                if line.strip():
                    self._answer(line)
        if len(self.incoming) > REQUEST_BYTES_MAX:
            raise SystemExit("a request is longer than %d bytes" % REQUEST_BYTES_MAX)
        return bool(data)

    def _answer(self, line: bytes) -> None:
        request: Any = None
        try:
            try:
                request = worker.loads(line)
            except ValueError as problem:
                raise Refused("bad-request", str(problem)) from None
            op = self.ops.get(str(request.get("op"))) if isinstance(request, dict) else None
            if op is None:
                raise Refused("bad-request", "no such op")
            reply = op(request)
        except Refused as refused:
            reply = {"error": {"code": refused.code, "message": str(refused)}}
        except FileNotFoundError as problem:
            reply = {"error": {"code": "absent", "message": str(problem)}}
        except (OSError, ValueError, TypeError) as problem:
            reply = {"error": {"code": "io", "message": str(problem)}}
        if reply is not None:
            self.reply(request.get("id") if isinstance(request, dict) else None, reply)

    def reply(self, number: Any, reply: dict[str, Any]) -> None:
        """Answers a request."""
        self.send_json("reply", dict({"re": number}, **reply))

    # ops

    def op_slots(self, request: dict[str, Any]) -> dict[str, Any]:
        """Folders and inboxes."""
        for agent in asked(request, "agents", list):
            with Folder.walk(self.base, ["agents", *parts_of(str(agent))], make=True) as slot:
                try:
                    os.mkfifo("inbox", 0o600, dir_fd=slot.fd)
                except FileExistsError:
                    pass
        return {}

    def op_start(self, request: dict[str, Any]) -> dict[str, Any]:
        """Writes orders down and hands them out. What is not handed out is not left behind."""
        failed = []
        for order in asked(request, "orders", list):
            place = order.get("dir") if isinstance(order, dict) else None
            try:
                self._start(order)
            except Refused as refused:
                failed.append({"dir": place, "code": refused.code, "message": str(refused)})
            except (OSError, ValueError, TypeError) as problem:
                failed.append({"dir": place, "code": "io", "message": str(problem)})
        return {"failed": failed}

    def _start(self, order: dict[str, Any]) -> None:
        place = asked(order, "dir", str)
        *above, name = attempt_parts(place)
        files = asked(order, "files", dict, {})
        agent = str(order.get("agent"))
        with Folder.walk(self.base, above, make=True) as parent:
            try:
                os.mkdir(name, 0o700, dir_fd=parent.fd)
            except FileExistsError:
                raise Refused("exists", "%s is there already" % place) from None
            try:
                with Folder.walk(self.base, [*above, name]) as folder:
                    for file, text in files.items():
                        if len(parts_of(file)) != 1 or not isinstance(text, str):
                            raise Refused("io", "files holds names and texts")
                        folder.write(file, text.encode("utf-8", "surrogatepass"))
                    folder.write("spec.json", worker.dumps(asked(order, "spec", dict)))
                self.poke(agent, worker.dumps({"op": "run", "dir": place}))
            except (OSError, ValueError, TypeError, Refused):
                remove_tree(name, parent.fd)
                raise

    def op_poke(self, request: dict[str, Any]) -> dict[str, Any]:
        """One line into an inbox."""
        line = request.get("line")
        data = worker.dumps(line) if isinstance(line, dict) else asked(request, "line", str).strip().encode("utf-8")
        self.poke(str(request.get("agent")), data)
        return {}

    def poke(self, agent: str, line: bytes) -> None:
        """One line, whole or not at all."""
        if b"\n" in line or len(line) >= INBOX_LINE_BYTES_MAX:
            raise Refused("bad-request", "an inbox line is one line of less than %d bytes" % INBOX_LINE_BYTES_MAX)
        try:
            with Folder.walk(self.base, ["agents", *parts_of(agent)]) as slot:
                fd = os.open("inbox", os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=slot.fd)
        except OSError as problem:
            if problem.errno in (errno.ENXIO, errno.ENOENT):
                raise Refused("no-worker", "no worker reads the inbox of agent %s" % agent) from None
            raise
        try:
            os.write(fd, line + b"\n")
        except BlockingIOError:
            raise Refused("io", "the inbox of agent %s is full" % agent) from None
        except BrokenPipeError:
            raise Refused("no-worker", "the worker of agent %s has just gone" % agent) from None
        finally:
            os.close(fd)

    def op_tail(self, request: dict[str, Any]) -> dict[str, Any]:
        """From where the journal is to be sent."""
        offset = asked(request, "offset", int)
        try:
            size = os.stat(self.base + "/journal").st_size
        except FileNotFoundError:
            size = 0
        if not 0 <= offset <= size:
            raise Refused("bad-offset", "the journal has %d bytes" % size)
        self.offset = offset
        return {}

    def op_inventory(self, request: dict[str, Any]) -> dict[str, Any]:
        """What there is."""
        attempts = [self._attempt_facts(place) for place in asked(request, "dirs", list, [])]
        return {"workers": self.workers.told(), "attempts": attempts}

    def _attempt_facts(self, place: Any) -> dict[str, Any]:
        folder = "%s/%s" % (self.base, "/".join(attempt_parts(place)))
        # The result is looked for first: what is not there yet and gets there meanwhile is told as running, which is corrected by the journal.
        result = worker.read_json(folder + "/exit.json")
        facts = {"dir": place, "state": "absent", "alive": False, "exit": None}
        if isinstance(result, dict):
            facts.update(state="done", exit=result)
        elif os.path.exists(folder + "/claim"):
            facts.update(state="claimed", alive=self.workers.has_in_hand(place, folder))
        elif os.path.exists(folder + "/spec.json"):
            facts.update(state="ordered")
        return facts

    def op_reap(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """Ends what is left, in steps. The claim is taken first, so that a late order cannot start the attempt any more."""
        place = asked(request, "dir", str)
        parts = attempt_parts(place)
        folder = "%s/%s" % (self.base, "/".join(parts))
        Folder.walk(self.base, parts, make=True).__exit__()
        if isinstance(worker.read_json(folder + "/exit.json"), dict):
            raise Refused("done", "%s is over" % place)
        worker.claim_attempt(folder, {"agent": None, "w": worker.identity_of(os.getpid())})
        claim = worker.read_json(folder + "/claim")
        if isinstance(claim, dict) and claim.get("agent") is not None and self.workers.has_in_hand(place, folder):
            raise Refused("worker-alive", "a live worker has %s in hand" % place)
        if place in self.reaping:
            self.reaping[place][2].append(request.get("id"))
            return None
        killed: dict[int, str] = {}
        self.reaping[place] = (worker.ending_lost(folder, killed), killed, [request.get("id")])
        return None

    def _step_reaping(self) -> None:
        for place in list(self.reaping):
            steps, killed, numbers = self.reaping[place]
            try:
                next(steps)
            except StopIteration:
                if self._write_lost(place, sorted(killed)):
                    del self.reaping[place]
                    for number in numbers:
                        self.reply(number, {"killed": sorted(killed)})

    def _write_lost(self, place: str, killed: list[int]) -> bool:
        """False if the disk is full: tried again with the next step, whose look at the processes finds nothing."""
        parts = place.split("/")
        folder = "%s/%s" % (self.base, place)
        number = parts[-1]
        claim = worker.read_json(folder + "/claim") or {}
        spec = worker.read_json(folder + "/spec.json")
        agent = claim.get("agent")
        if agent is None:
            agent = spec.get("agent", 0) if isinstance(spec, dict) else 0
        names = {"task": "/".join(parts[1:-1]), "attempt": int(number) if number.isdigit() else 0}
        fields = dict(names, reason=worker.lost_reason(folder), killed=killed)
        record = dict({"k": "lost", "ms": worker.now_ms(), "agent": agent, "w": worker.identity_of(os.getpid())}, **fields)
        try:
            worker.write_atomic(folder + "/lost.json", worker.dumps(fields))
        except FileNotFoundError:
            pass
        except OSError:
            return False
        done: bool = worker.append_record(self.base, worker.framed(record))
        return done

    def op_read(self, request: dict[str, Any]) -> dict[str, Any]:
        """A part of a file."""
        *above, name = parts_of(request.get("path"))
        offset = asked(request, "offset", int, 0)
        length = min(max(0, asked(request, "length", int, READ_BYTES_MAX)), READ_BYTES_MAX)
        with Folder.walk(self.base, above) as folder:
            try:
                fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder.fd)
            except OSError as problem:
                if problem.errno == errno.ELOOP:
                    raise Refused("bad-path", "%s is a symbolic link" % name) from None
                raise
        try:
            facts = os.fstat(fd)
            if not stat.S_ISREG(facts.st_mode):
                raise Refused("bad-path", "%s is not a file" % name)
            offset = max(0, facts.st_size + offset) if offset < 0 else offset
            data = os.pread(fd, length, offset)
        finally:
            os.close(fd)
        return {"text": data.decode("utf-8", "replace"), "offset": offset, "size": facts.st_size}

    def op_write(self, request: dict[str, Any]) -> dict[str, Any]:
        """A whole file."""
        *above, name = parts_of(request.get("path"))
        with Folder.walk(self.base, above, make=True) as folder:
            folder.write(name, asked(request, "text", str).encode("utf-8", "surrogatepass"), asked(request, "mode", int, 0o600) & 0o777)
        return {}

    def op_remove(self, request: dict[str, Any]) -> dict[str, Any]:
        """Folders of attempts that are over."""
        removed = []
        for place in asked(request, "dirs", list):
            *above, name = attempt_parts(place)
            try:
                with Folder.walk(self.base, [*above, name]) as folder:
                    over = folder.has("exit.json") or folder.has("lost.json") or not folder.has("claim")
                if over:
                    with Folder.walk(self.base, above) as parent:
                        remove_tree(name, parent.fd)
                    removed.append(place)
            except OSError:
                continue  # it is gone already, or it cannot be removed now: the reply does not name it
        return {"removed": removed}


def main() -> int:
    """`courier.py <dir> --nonce <8 hex>`."""
    parser = argparse.ArgumentParser(prog="courier.py")
    parser.add_argument("dir")
    parser.add_argument("--nonce", required=True)
    parser.add_argument("--beat-check-ms", type=int, default=2000, help="between two looks at the hearts")
    parser.add_argument("--beat-missed-ms", type=int, default=5000, help="from which age a heartbeat is missed")
    parser.add_argument("--backstop-ms", type=int, default=500, help="the journal is looked at this often even if no bell rings")
    arguments = parser.parse_args()
    if not arguments.nonce.isalnum():
        parser.error("--nonce is not hexadecimal")
    os.umask(0o077)
    base = os.path.realpath(arguments.dir)
    os.makedirs(base, mode=0o700, exist_ok=True)
    os.chdir("/")
    Courier(base, arguments.nonce, arguments).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
