"""The worker: one process in a tmux window, which runs the attempts of one slot of a node. The contract is docs/node.md.

Rules of this file:

- Standard library only, Python 3.8, never imports the package. `courier.py` loads this file by its path and uses its first half.
- Two hundred of these start at once and then mostly wait. So only C modules and `os` are imported before `ready` is written,
  an idle worker makes one system call or two a second, and a short attempt costs about a fork and a few small files.
- One thread, one poll: `Worker.turn` waits for everything there is to hear. What takes time is a loop of turns, so the heart
  beats and orders are heard in every state, also while a program is being ended and while the disk is full.
- What is on disk is true, what is in the pane is a view. The view may be dropped at any time, the log and the journal may not.
- Nothing is signalled by its number alone: pid and start time name a process, and a zombie is not alive.
"""
# ruff: noqa: PLC0415
# An import costs milliseconds here: it is made where it is needed.

from __future__ import annotations

import errno
import fcntl
import os
import select
import sys
import time
import zlib

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any
else:
    import _signal as signal  # the C half of the module: the other half imports enum, a third of the start-up time

RECORD_BYTES_MAX = 65536  # of a journal record, its frame included
SIGNAL_BYTES_MAX = 32768  # of one agent line in the journal
SIGNALS_MAX = 200  # agent lines in the journal, an attempt
SIGNAL_LINE_BYTES_MAX = 1 << 20  # a JSON line up to this is understood, however small the pieces are in which it is logged
READ_BYTES = 65536  # what a Linux pipe holds
TAIL_LINES = 20
TAIL_CHARS = 500
BEAT_S = 1.0
MEASURE_S = 5.0  # between two looks at the memory of an attempt without a memory limit
ENDING_POLL_S = 0.02
STUBBORN_S = 10.0  # after KILL: what the kernel does not end in this time is reported, not waited for
LONG_S = 2.0  # an attempt that ran this long pays for a look through all processes when it ends
WHOLE_SCAN_POLL_S = 0.2
GRACE_MS = 5000
VIEW_LINES = 200  # shown in each period, the rest is counted
VIEW_PERIOD_S = 0.1
VIEW_CHARS = 2000
VIEW_QUEUE_BYTES = 65536  # waiting for a pane that does not read
ENV_BASE = ("PATH", "HOME", "USER", "LOGNAME", "SHELL", "LANG", "LC_ALL", "TMPDIR", "TZ", "TERM")
ENV_NEVER = ("TMUX", "TMUX_PANE")  # an agent must not drive the server it is shown in
ENV_TAG = "ORCHESTRA_ATTEMPT_DIR"
LINUX = sys.platform.startswith("linux")


# ---- JSON -------------------------------------------------------------------------------------------------------------------


def _codec() -> tuple[Callable[[str], Any], Callable[[Any], str], Callable[[str], str]]:
    """The C halves of the json module: importing the whole costs 6 ms, which is a second for 200 workers."""
    try:
        import _json

        class Context:
            strict, object_hook, object_pairs_hook, parse_float, parse_int = True, None, None, float, int

            @staticmethod
            def parse_constant(name: str) -> None:
                raise ValueError("%s is not JSON" % name)

        scan = _json.make_scanner(Context)  # type: ignore[arg-type]
        encode = _json.make_encoder(None, str, _json.encode_basestring, None, ":", ",", False, False, False)

        def parse(text: str) -> Any:
            try:
                value, end = scan(text, 0)
            except (StopIteration, SystemError):  # the latter where the C half looks for an error class that is not loaded
                value, end = None, -1
            if end != len(text):
                import json

                return json.loads(text, parse_constant=Context.parse_constant)  # knows what is wrong
            return value

        def unparse(value: Any) -> str:
            return "".join(encode(value, 0))

        if parse(unparse({"a": [1, "\u00e9", None]})) == {"a": [1, "\u00e9", None]}:
            return parse, unparse, _json.encode_basestring
    except (ImportError, AttributeError, TypeError, ValueError):
        pass
    import json

    def unparse_whole(value: Any) -> str:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)

    return json.loads, unparse_whole, unparse_whole


_halves: list[Any] = []


def halves() -> list[Any]:
    """parse, unparse and quote, made at first use."""
    if not _halves:
        _halves.extend(_codec())
    return _halves


def loads(text: str | bytes) -> Any:
    """The value; ValueError for whatever is not exactly one JSON value in UTF-8."""
    if isinstance(text, bytes):
        text = text.decode("utf-8")
    try:
        return halves()[0](text.strip())
    except RecursionError:
        raise ValueError("nested too deeply") from None


def dumps(value: Any) -> bytes:
    """One line of JSON in UTF-8."""
    text: str = halves()[1](value)
    try:
        return text.encode("utf-8")
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can carry as an escape and UTF-8 cannot carry at all
        import json

        return json.dumps(value, separators=(",", ":")).encode("ascii")


# ---- files ------------------------------------------------------------------------------------------------------------------


def read_bytes(path: str) -> bytes | None:
    """The content, or None where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts: list[bytes] = []
        while True:
            part = os.read(fd, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(fd)


def read_json(path: str) -> Any:
    """The value in a file, or None if there is none or it is not whole."""
    data = read_bytes(path)
    try:
        return None if data is None else loads(data)
    except ValueError:
        return None


def write_all(fd: int, data: bytes) -> None:
    """Writes everything or raises."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_new(path: str, data: bytes, mode: int = 0o600) -> None:
    """A file with this content; what was there is gone, and so is the file if it cannot be written whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def write_atomic(path: str, data: bytes) -> None:
    """A reader sees the old content or the new, never a part."""
    draft = "%s.%d.tmp" % (path, os.getpid())
    write_new(draft, data)
    os.rename(draft, path)


def unlink_quietly(path: str) -> None:
    """Removes the file if it is there."""
    try:
        os.unlink(path)
    except OSError:
        pass


def remove_folders(paths: list[str]) -> None:
    """Removes empty folders; what is not empty stays."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError:
            pass


def claim_attempt(folder: str, identity: dict[str, Any]) -> bool:
    """True for the first who asks, ever. The claim appears with its content in it, so that no reader finds it empty."""
    draft = "%s/claim.%d.tmp" % (folder, os.getpid())
    write_new(draft, dumps(identity))
    try:
        os.link(draft, folder + "/claim")
    except FileExistsError:
        return False
    finally:
        unlink_quietly(draft)
    return True


def framed(record: dict[str, Any]) -> bytes:
    """A record as it stands in the journal."""
    body = dumps(record)
    return b"\n%08x %s\n" % (zlib.crc32(body), body)


def append_record(base: str, frame: bytes) -> bool:
    """Appends a framed record and rings the bell. False if the disk took none or only a part of it."""
    try:
        fd = os.open(base + "/journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError:
        return False
    try:
        whole = os.write(fd, frame) == len(frame)
    except OSError:
        whole = False
    finally:
        os.close(fd)
    try:
        fd = os.open(base + "/bell", os.O_WRONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return whole  # nobody listens; the journal is there for whoever comes
    try:
        os.write(fd, b"!")
    except OSError:
        pass  # the FIFO is full: it rings already
    finally:
        os.close(fd)
    return whole


def now_ms() -> int:
    """UTC milliseconds."""
    return time.time_ns() // 1000000


def agent_value(name: str) -> int | str:
    """An agent id as records carry it: a number where it is one."""
    return int(name) if name.isdigit() else name


# ---- processes --------------------------------------------------------------------------------------------------------------


def _stat(pid: int) -> tuple[int, int, str, str] | None:
    """(parent, session, start, state) of a process of Linux. The name in it may hold blanks and brackets: count from the last one."""
    try:
        fd = os.open("/proc/%d/stat" % pid, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        text = os.read(fd, 2048)
    except OSError:
        return None
    finally:
        os.close(fd)
    fields = text[text.rfind(b")") + 2 :].split()
    return int(fields[1]), int(fields[3]), fields[19].decode(), fields[0].decode()


def _ps(*which: str) -> dict[int, tuple[int, int, str, str]]:
    """The same by `ps`, where there is no /proc. The group stands for the session, which `ps` of macOS does not tell."""
    import subprocess

    argv = ["/bin/ps", *(which or ("-ax",)), "-o", "pid=,ppid=,pgid=,stat=,lstart="]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env={"LC_ALL": "C"}) as asked:
        text = asked.communicate()[0].decode("ascii", "replace")
    table = {}
    for line in text.splitlines():
        fields = line.split()
        if len(fields) == 9 and int(fields[0]) != asked.pid:  # it is a child of ours for as long as it looks
            start = int(time.mktime(time.strptime(" ".join(fields[4:]), "%a %b %d %H:%M:%S %Y")))
            table[int(fields[0])] = (int(fields[1]), int(fields[2]), str(start), fields[3][:1])
    return table


def process(pid: int) -> tuple[int, int, str, str] | None:
    """(parent, session, start, state), or None if there is no such process or only its zombie is left."""
    facts = _stat(pid) if LINUX else _ps("-p", str(pid)).get(pid)
    return None if facts is None or facts[3] in "ZX" else facts


def processes() -> dict[int, tuple[int, int, str, str]]:
    """All living processes."""
    if not LINUX:
        return {pid: facts for pid, facts in _ps().items() if facts[3] != "Z"}
    table = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            facts = process(int(name))
            if facts is not None:
                table[int(name)] = facts
    return table


def alive(w: str) -> bool:
    """Whether the process of this identity, `<pid>:<start>`, lives."""
    pid, _, start = str(w).partition(":")
    facts = process(int(pid)) if pid.isdigit() else None
    return facts is not None and facts[2] == start


def identity_of(pid: int) -> str:
    """`<pid>:<start>`."""
    facts = _stat(pid) if LINUX else _ps("-p", str(pid)).get(pid)
    return "%d:%s" % (pid, facts[2] if facts else "0")


def _with_descendants(table: dict[int, tuple[int, int, str, str]], seeds: Iterable[int]) -> dict[int, str]:
    children: dict[int, list[int]] = {}
    for pid, facts in table.items():
        children.setdefault(facts[0], []).append(pid)
    found: dict[int, str] = {}
    stack = list(seeds)
    while stack:
        pid = stack.pop()
        if pid in table and pid not in found and pid > 1 and pid != os.getpid():
            found[pid] = table[pid][2]
            stack += children.get(pid, [])
    return found


def descendants(root: int) -> dict[int, str]:
    """pid -> start of every living process below this one. The kernel's lists of children spare a walk through all of /proc."""
    if not os.path.exists("/proc/%d/task/%d/children" % (root, root)):
        table = processes()
        return _with_descendants(table, [pid for pid, facts in table.items() if facts[0] == root])
    found: dict[int, str] = {}
    stack = [root]
    while stack:
        pid = stack.pop()
        try:
            threads = os.listdir("/proc/%d/task" % pid)
        except OSError:
            continue
        for thread in threads:
            for child in (read_bytes("/proc/%d/task/%s/children" % (pid, thread)) or b"").split():
                facts = process(int(child))
                if facts is not None and int(child) not in found:
                    found[int(child)] = facts[2]
                    stack.append(int(child))
    return found


def tagged(table: Iterable[int], folder: str) -> list[int]:
    """Those whose environment names the attempt's folder."""
    if not LINUX:
        return []
    tag = ("\0%s=%s\0" % (ENV_TAG, folder)).encode()
    return [pid for pid in table if tag in b"\0" + (read_bytes("/proc/%d/environ" % pid) or b"")]


def remains(folder: str) -> dict[int, str]:
    """pid -> start of what is left of an attempt whose worker is gone: child, its session, the tagged ones, and all below them."""
    table = processes()
    child = read_json(folder + "/child.json") or {}
    pid, start = child.get("pid"), child.get("start")
    seeds = tagged(table, folder)
    if pid and (pid not in table or table[pid][2] == start):  # else the number is in other hands, and so is the session
        seeds += [other for other, facts in table.items() if facts[1] == pid or other == pid]
    for group in child.get("cgroups", []):
        seeds += [int(member) for member in (read_bytes(group + "/cgroup.procs") or b"").split()]
    return _with_descendants(table, seeds)


def signal_processes(found: dict[int, str], number: int) -> None:
    """Sends a signal to those that are still who they were."""
    for pid, start in found.items():
        facts = process(pid)
        if facts is not None and facts[2] == start:
            try:
                os.kill(pid, number)
            except OSError:
                pass


def ending(find: Callable[[], dict[int, str]], grace_s: float, killed: dict[int, str]) -> Iterator[None]:
    """Ends what `find` finds, until it finds nothing: TERM once, KILL after the grace. Yields wherever the caller should wait a little."""
    deadline = time.monotonic() + grace_s
    asked: dict[int, str] = {}
    while True:
        left = find()
        moment = time.monotonic()
        if not left or moment > deadline + STUBBORN_S:
            return
        killed.update(left)
        if moment < deadline:
            fresh = {pid: start for pid, start in left.items() if asked.get(pid) != start}
            signal_processes(fresh, signal.SIGTERM)
            signal_processes(fresh, signal.SIGCONT)  # a stopped process hears TERM only when it goes on
            asked.update(fresh)
        else:
            signal_processes(left, signal.SIGKILL)
        yield


def ending_lost(folder: str, killed: dict[int, str]) -> Iterator[None]:
    """Ends what a dead worker left of an attempt."""
    spec = read_json(folder + "/spec.json")
    grace_ms = spec.get("grace_ms", GRACE_MS) if isinstance(spec, dict) else GRACE_MS
    return ending(lambda: remains(folder), (grace_ms if isinstance(grace_ms, int) else GRACE_MS) / 1000, killed)


def lost_reason(folder: str) -> str:
    """Why an attempt is lost, in words. Its control groups are empty by now, and go."""
    child = read_json(folder + "/child.json") or {}
    remove_folders(child.get("cgroups", []))
    return "worker died while it ended the attempt (%s)" % child["intent"] if child.get("intent") else "worker died"


def boot_id() -> str:
    """What changes when the machine starts anew."""
    text = read_bytes("/proc/sys/kernel/random/boot_id")
    if text is None and not LINUX:
        import subprocess

        text = subprocess.run(["/usr/sbin/sysctl", "-n", "kern.boottime"], stdout=subprocess.PIPE, check=False).stdout
    return (text or b"?").decode().strip()


def resident_bytes(found: Iterable[int]) -> int:
    """Memory of these processes together. What is shared is counted once, as large as the largest shares."""
    own = shared_max = 0
    if not LINUX:
        import subprocess

        pids = ",".join(str(pid) for pid in found)
        text = subprocess.run(["ps", "-o", "rss=", "-p", pids], stdout=subprocess.PIPE, check=False).stdout if pids else b""
        return sum(int(field) for field in text.split()) * 1024
    for pid in found:
        fields = (read_bytes("/proc/%d/statm" % pid) or b"").split()
        if len(fields) > 2:
            own += int(fields[1]) - int(fields[2])
            shared_max = max(shared_max, int(fields[2]))
    return (own + shared_max) * os.sysconf("SC_PAGE_SIZE")


def become_subreaper() -> None:
    """Orphans of the agent come back to this process instead of process 1. `_ctypes` alone loads in a third of the time of ctypes."""
    if not LINUX:
        return
    try:
        import _ctypes

        _ctypes.call_function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "prctl"), (36, 1, 0, 0, 0))  # type: ignore[arg-type]
    except (ImportError, AttributeError, OSError, TypeError):
        try:
            import ctypes

            ctypes.CDLL(None).prctl(36, 1, 0, 0, 0)
        except (ImportError, AttributeError, OSError):
            pass  # the environment tag still finds them


class Cgroup:
    """A control group for one attempt, where this user may make one. Without it the limits are kept by measuring."""

    def __init__(self, name: str, memory_bytes: int | None, processes_max: int | None) -> None:
        self.folders: list[str] = []
        wanted = {"memory": memory_bytes, "pids": processes_max}
        if not LINUX or not (memory_bytes or processes_max):
            return
        for line in (read_bytes("/proc/self/cgroup") or b"").decode().splitlines():
            _, controllers, path = line.split(":", 2)
            if not controllers:
                self._make("/sys/fs/cgroup%s/%s" % (path.rstrip("/"), name), {"memory.max": memory_bytes, "pids.max": processes_max})
            elif wanted.get(controllers):
                file = "memory.limit_in_bytes" if controllers == "memory" else "pids.max"
                self._make("/sys/fs/cgroup/%s%s/%s" % (controllers, path.rstrip("/"), name), {file: wanted[controllers]})

    def _make(self, folder: str, limits: dict[str, int | None]) -> None:
        wanted = {file: value for file, value in limits.items() if value}
        try:
            os.mkdir(folder)
        except OSError:
            return
        try:
            for file, value in wanted.items():
                fd = os.open("%s/%s" % (folder, file), os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"%d" % value)
                finally:
                    os.close(fd)
        except OSError:
            os.rmdir(folder)
            return
        self.folders.append(folder)

    def add(self, pid: int) -> None:
        """Puts a process in, before it has had the time to start others."""
        for folder in self.folders:
            try:
                fd = os.open(folder + "/cgroup.procs", os.O_WRONLY | os.O_CLOEXEC)
                try:
                    os.write(fd, b"%d" % pid)
                finally:
                    os.close(fd)
            except OSError:
                pass

    def out_of_memory(self) -> bool:
        """Whether the kernel ended one of its processes for want of memory."""
        for folder in self.folders:
            for file in ("/memory.oom_control", "/memory.events"):
                for line in (read_bytes(folder + file) or b"").splitlines():
                    if line.startswith(b"oom_kill ") and line != b"oom_kill 0":
                        return True
        return False

    def close(self) -> None:
        """Removes the group; what is not empty yet stays."""
        remove_folders(self.folders)
        self.folders = []


# ---- the pane ---------------------------------------------------------------------------------------------------------------


def _visible_controls() -> dict[int, str]:
    """Everything that moves a cursor, names a window, fills a clipboard or turns the writing direction, spelled out instead."""
    table = {code: "^" + chr(code ^ 64) for code in [*range(32), 127]}
    hidden = [*range(0x80, 0xA0), 0xAD, 0x61C, 0x180E, *range(0x200B, 0x2010), *range(0x2028, 0x202F), *range(0x2060, 0x2070)]
    hidden += [0xFEFF, *range(0xFFF9, 0xFFFC), *range(0xE0000, 0xE0080)]
    table.update({code: "<%04x>" % code for code in hidden})
    return table


_controls: dict[int, str] = {}


def shown(text: str) -> str:
    """Text that is safe in a terminal, on one line, of a sane width. Of a line redrawn by carriage returns the last drawing is shown."""
    if not _controls:
        _controls.update(_visible_controls())
    text = text.rstrip("\r\n").rpartition("\r")[2]
    cut = text[:VIEW_CHARS].expandtabs().translate(_controls)[:VIEW_CHARS]
    return cut + "…" if len(text) > VIEW_CHARS else cut


def short(value: Any, chars: int = 200) -> str:
    """A value on one line, cut."""
    text = value if isinstance(value, str) else dumps(value).decode("utf-8", "replace")
    text = " ".join(text[: chars * 4].split())
    return text if len(text) <= chars else text[:chars] + "…"


def _told_block(block: Any) -> list[str]:
    kind = block.get("type") if isinstance(block, dict) else None
    if kind == "text":
        return str(block.get("text", "")).splitlines()
    if kind == "tool_use":
        return ["> %s %s" % (block.get("name"), short(block.get("input", {})))]
    if kind == "tool_result":
        return ["< " + short(block.get("content", ""))]
    return ["(%s)" % kind] if kind else [short(block)]


def told(line: str) -> list[str]:
    """A line of a coding agent's JSON stream as a person reads it. What is not known is shown short."""
    try:
        record = loads(line)
    except ValueError:
        return [line]
    if not isinstance(record, dict) or not isinstance(record.get("type"), str):
        return [short(line)]
    kind = record["type"]
    if kind in ("assistant", "user"):
        message = record.get("message")
        content = message.get("content") if isinstance(message, dict) else None
        blocks = [{"type": "text", "text": content}] if isinstance(content, str) else content
        return [text for block in blocks if block for text in _told_block(block)] if isinstance(blocks, list) else [short(line)]
    if kind == "system":
        parts = ["%s %s" % (name, record[name]) for name in ("model", "cwd", "session_id") if record.get(name)]
        return ["* %s %s" % (record.get("subtype", "system"), ", ".join(parts))]
    if kind == "result":
        parts = [str(record.get("subtype", ""))] + [
            "%s %s" % (name, record[name]) for name in ("is_error", "num_turns", "total_cost_usd") if name in record
        ]
        return ["= result: " + ", ".join(parts)] + str(record.get("result", "")).splitlines()
    return ["* %s" % short(line)]


class View:
    """The pane. Own words are always said; lines of the agent are shown as far as a person, and the terminal, can take them."""

    def __init__(self) -> None:
        self.fd, self.tty = self._open()
        self.gone = False  # the window is closed: what would be shown is forgotten
        self.queue = bytearray()
        self.due: float | None = None  # when the number of hidden lines is to be told
        self.shown = self.hidden = 0
        self.marker = ""

    @staticmethod
    def _open() -> tuple[int, bool]:
        """A description of our own for the terminal, as non-blocking is a property that all who share one would see."""
        if os.isatty(0) and os.isatty(1):
            try:
                return os.open(os.ttyname(1), os.O_RDWR | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), True
            except OSError:
                pass
        os.set_blocking(1, False)
        return 1, False

    def say(self, text: str) -> None:
        """A line of the worker itself."""
        self._put(shown(text) + "\n")

    def close_attempt(self, text: str) -> None:
        """How it ended, and the marker, alone on its line whatever a person has half typed."""
        self._tell_hidden()
        self._put("\n%s\n%s\n" % (shown(text), self.marker) if self.marker else "\n%s\n" % shown(text))
        self.marker = ""

    def lines(self, texts: list[str], source: str, as_json: bool) -> None:
        """Lines of the agent, at most so many a period."""
        if self.gone:
            return
        if self.due is None:
            self.due, self.shown = time.monotonic() + VIEW_PERIOD_S, 0
        free = max(0, VIEW_LINES - self.shown)
        if len(self.queue) > VIEW_QUEUE_BYTES:
            free = 0
        self.hidden += max(0, len(texts) - free)
        taken = texts[:free]
        if as_json:
            taken = [part for text in taken for part in told(text)]
        self.shown += len(taken)
        for text in taken:
            line = shown(text)
            if self.marker and self.marker in line:
                line = line.replace(self.marker, "(marker)")  # only the end of the attempt prints it
            self._put("\x1b[2m%s\x1b[0m\n" % line if source != "out" else line + "\n")

    def tick(self) -> None:
        """Ends a period when its time is over."""
        if self.due is not None and time.monotonic() >= self.due:
            self._tell_hidden()

    def _tell_hidden(self) -> None:
        if self.hidden:
            self._put("… %d lines more in output.jsonl\n" % self.hidden)
        self.due, self.hidden = None, 0

    def _put(self, text: str) -> None:
        if not self.gone and len(self.queue) < 16 * VIEW_QUEUE_BYTES:
            self.queue += text.encode("utf-8", "replace")

    def flush(self) -> None:
        """Writes what the terminal takes now."""
        while self.queue and not self.gone:
            try:
                count = os.write(self.fd, self.queue[:8192])
            except BlockingIOError:
                return
            except OSError:
                self.gone = True
                return
            del self.queue[:count]
        if self.gone:
            self.queue.clear()


# ---- what an agent prints ---------------------------------------------------------------------------------------------------


class Splitter:
    """Bytes of one stream into lines. A line that is too long comes in pieces, and as a whole too if it may be a JSON record."""

    def __init__(self, line_bytes_max: int, keep_whole: bool) -> None:
        self.line_bytes_max = line_bytes_max
        self.keep_whole = keep_whole
        self.rest = b""
        self.whole: list[bytes] | None = None
        self.whole_bytes = 0

    def feed(self, data: bytes) -> list[tuple[bytes, bool, bytes]]:
        """(piece, whether more of the line follows, the line if this ends it, or nothing if that is not known)."""
        lines = (self.rest + data).split(b"\n")
        self.rest = lines.pop()
        found: list[tuple[bytes, bool, bytes]] = []
        for line in lines:
            last = line
            while len(last) > self.line_bytes_max:
                last = self._cut(last, found)
            found.append((last, False, self._end(last)))
        while len(self.rest) > self.line_bytes_max:
            self.rest = self._cut(self.rest, found)
        return found

    def end(self) -> list[tuple[bytes, bool, bytes]]:
        """What is left without a newline when the stream ends."""
        rest, self.rest = self.rest, b""
        return [(rest, False, self._end(rest))] if rest else []

    def _cut(self, line: bytes, found: list[tuple[bytes, bool, bytes]]) -> bytes:
        size = self.line_bytes_max
        while size > self.line_bytes_max - 4 and size > 1 and line[size] & 0xC0 == 0x80:
            size -= 1  # not within a character
        piece = line[:size]
        if self.whole is None:
            self.whole, self.whole_bytes = [], 0
            if not self.keep_whole or not piece.lstrip().startswith(b"{"):
                self.whole_bytes = SIGNAL_LINE_BYTES_MAX + 1
        self._keep(piece)
        found.append((piece, True, b""))
        return line[size:]

    def _keep(self, piece: bytes) -> None:
        self.whole_bytes += len(piece)
        if self.whole is not None:
            if self.whole_bytes <= SIGNAL_LINE_BYTES_MAX:
                self.whole.append(piece)
            else:
                self.whole.clear()

    def _end(self, line: bytes) -> bytes:
        if self.whole is None:
            return line
        self._keep(line)
        whole = b"".join(self.whole)
        self.whole = None
        return whole


class Log:
    """output.jsonl with one older generation. What a full disk refuses is counted and let go: the agent must not hang on it."""

    def __init__(self, path: str, file_bytes_max: int) -> None:
        self.path = path
        self.file_bytes_max = file_bytes_max
        self.size = 0
        self.older = 0
        self.dropped_bytes = 0
        self.fd = -1

    def append(self, data: bytes) -> bool:
        """False if the disk is full."""
        if self.size and self.size + len(data) > self.file_bytes_max:
            self._rotate()
        try:
            if self.fd < 0:
                self.fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
            write_all(self.fd, data)
        except OSError:
            self.dropped_bytes += len(data)
            if self.fd >= 0:
                os.ftruncate(self.fd, self.size)  # no half a line
            return False
        self.size += len(data)
        return True

    def _rotate(self) -> None:
        try:
            os.rename(self.path, self.path + ".1")
        except OSError:
            return
        self.close()
        self.dropped_bytes += self.older
        self.older, self.size = self.size, 0

    def close(self) -> None:
        """Closes the file."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1


def shrunk(record: dict[str, Any], bytes_max: int) -> dict[str, Any]:
    """A JSON record that fits: long texts are cut, then everything but plain values is left out, then only its type is left."""

    def cut(value: Any, chars: int) -> Any:
        if isinstance(value, str):
            return value if len(value) <= chars else value[:chars] + "…"
        if isinstance(value, dict):
            return {name: cut(part, chars) for name, part in value.items()}
        return [cut(part, chars) for part in value] if isinstance(value, list) else value

    if len(dumps(record)) <= bytes_max:
        return record
    for smaller in (
        lambda: cut(record, 2000),
        lambda: cut(record, 200),
        lambda: {name: cut(value, 100) for name, value in record.items() if not isinstance(value, (dict, list))},
    ):
        candidate: dict[str, Any] = smaller()
        if len(dumps(candidate)) <= bytes_max:
            return candidate
    return {"type": record.get("type")}


class Output:
    """Everything one attempt prints: into the log, into the pane, into the tail, and the asked JSON lines into the journal."""

    def __init__(self, worker: Worker, folder: str, spec: dict[str, Any]) -> None:
        options = spec["output"]
        self.worker = worker
        self.task, self.attempt = spec["task"], spec["attempt"]
        self.log = Log(folder + "/output.jsonl", options["file_bytes_max"])
        self.line_bytes_max = options["line_bytes_max"]
        self.as_json = options["view"] == "json"
        self.journalled = set(spec["signals"])
        expected = spec["success"]["signal"]
        self.types = self.journalled | ({expected["type"]} if expected else set())
        self.last: dict[str, Any] = {}
        self.signals = 0
        self.full = False
        self.lines = self.bytes = 0
        self.tail: list[str] = []

    def splitter(self) -> Splitter:
        """One for each stream."""
        return Splitter(self.line_bytes_max, bool(self.types))

    def take(self, source: str, found: list[tuple[bytes, bool, bytes]]) -> list[str]:
        """Logs and shows lines of a stream; gives them as text."""
        quote = halves()[2]
        head = '{"t":%d,"s":%s,"line":' % (now_ms(), quote(source))
        texts = [piece.decode("utf-8", "backslashreplace") for piece, _, _ in found]
        entries = [head + quote(text) + (',"part":true}\n' if part[1] else "}\n") for text, part in zip(texts, found)]
        step = 2000  # entries written at once, so that no write passes the size of a log file by much
        for at in range(0, len(entries), step):
            self._write("".join(entries[at : at + step]).encode("utf-8"))
        self.worker.view.lines(texts, source, self.as_json and source == "out")
        return texts

    def _write(self, data: bytes) -> None:
        if self.log.append(data):
            self.full = False
        elif not self.full:
            self.full = True
            self.worker.view.say("! the disk is full: output is not logged until there is room")

    def take_agent(self, source: str, found: list[tuple[bytes, bool, bytes]]) -> None:
        """Lines of the agent itself."""
        self.lines += sum(not more for _, more, _ in found)
        self.tail = (self.tail + [text[:TAIL_CHARS] for text in self.take(source, found)[-TAIL_LINES:]])[-TAIL_LINES:]
        if self.types and source == "out":
            for _, _, whole in found:
                if whole[:1] == b"{" and b'"type"' in whole:
                    self._take_record(whole)

    def _take_record(self, line: bytes) -> None:
        try:
            record = loads(line)
            kind = record.get("type")
            if not isinstance(kind, str) or kind not in self.types:
                return
            record = shrunk(record, SIGNAL_BYTES_MAX)
        except (ValueError, RecursionError):
            return
        self.last[kind] = record
        if kind in self.journalled and self.signals < SIGNALS_MAX:
            self.signals += 1
            self.worker.record("signal", task=self.task, attempt=self.attempt, line=record)


# ---- one program ------------------------------------------------------------------------------------------------------------


def found_program(name: str, path: str) -> str:
    """The file that a name means in this PATH, or the name itself if it says where it is."""
    if "/" in name:
        return name
    for folder in path.split(":"):
        candidate = os.path.join(folder or ".", name)
        if os.access(candidate, os.X_OK) and not os.path.isdir(candidate):
            return candidate
    raise FileNotFoundError(errno.ENOENT, "not found in PATH", name)


def spawn(argv: list[str], env: dict[str, str], cwd: str, fds: tuple[int, int, int]) -> int:
    """Starts a program in a session of its own, with only these files open. vfork and exec in the C library: 0.1 ms."""
    defaults: list[int] = [
        signal.SIGHUP,
        signal.SIGINT,
        signal.SIGQUIT,
        signal.SIGTERM,
        signal.SIGPIPE,
        signal.SIGTSTP,
        signal.SIGTTIN,
        signal.SIGTTOU,
    ]
    defaults += [signal.SIGXFSZ, signal.SIGCHLD]
    os.chdir(cwd)
    try:
        program = found_program(argv[0], env.get("PATH", os.defpath))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(fds)]
        try:
            return os.posix_spawn(program, argv, env, file_actions=actions, setsid=True, setsigmask=(), setsigdef=defaults)
        except NotImplementedError:  # a C library that cannot make a session
            pid = os.fork()
            if pid == 0:
                _exec_in_child(program, argv, env, fds, defaults)
            return pid
    finally:
        os.chdir("/")


def _exec_in_child(program: str, argv: list[str], env: dict[str, str], fds: tuple[int, int, int], defaults: list[int]) -> None:
    try:
        os.setsid()
        for number, fd in enumerate(fds):
            os.dup2(fd, number)
        for one in defaults:
            signal.signal(one, signal.SIG_DFL)
        os.execve(program, argv, env)
    finally:
        os._exit(127)


def apply_limits(pid: int, limits: dict[str, Any]) -> None:
    """Limits of the process just started; what it starts later inherits them. It has not left the dynamic linker yet."""
    if not limits:
        return
    import resource

    prlimit = getattr(resource, "prlimit", None)
    for kind, value, spare in ((resource.RLIMIT_CPU, limits.get("cpu_seconds"), 5), (resource.RLIMIT_NOFILE, limits.get("open_files"), 0)):
        if value and prlimit is not None:
            hard = resource.getrlimit(kind)[1]
            top = value + spare if hard == resource.RLIM_INFINITY else min(value + spare, hard)
            try:
                prlimit(pid, kind, (min(value, top), top))
            except (OSError, ValueError):
                pass  # it is over already, or it may not be limited
    if limits.get("nice"):
        try:
            os.setpriority(os.PRIO_PROCESS, pid, limits["nice"])
        except OSError:
            pass


class Program:
    """One program, the agent or a check: started, heard, timed, measured, and ended with all that it started."""

    def __init__(self, worker: Worker, argv: list[str], timeout_ms: int | None, grace_ms: int, limits: dict[str, Any]) -> None:
        self.worker, self.argv, self.limits = worker, argv, limits
        self.timeout_ms, self.grace_ms = timeout_ms, grace_ms
        self.pid = 0
        self.status: int | None = None
        self.reason = ""  # why it is being ended; set before the first signal is sent
        self.began = time.monotonic()
        self.ended = self.began
        self.cpu_s = 0.0
        self.rss_max = 0
        self.measure_due = self.began
        self.stubborn = 0
        self.streams: dict[int, tuple[Callable[[list[tuple[bytes, bool, bytes]]], None], Splitter]] = {}
        self.read_bytes = 0
        self.stdin_fd = -1
        self.stdin_queue = b""
        self.cgroup: Cgroup | None = None

    def start(self, env: dict[str, str], cwd: str, stdin: str | None, takers: list[Any]) -> None:
        """Starts it; OSError or ValueError if it cannot be. `stdin` is a path, or None for what is typed in the pane."""
        pairs: list[tuple[int, int]] = []
        try:
            pairs += [os.pipe() for _ in takers]
            if stdin is None:
                read_end, self.stdin_fd = os.pipe()
                os.set_blocking(self.stdin_fd, False)
            else:
                read_end = os.open(stdin, os.O_RDONLY | os.O_CLOEXEC)
            pairs.append((-1, read_end))
            self._make_cgroup()
            self.pid = spawn(self.argv, env, cwd, (read_end, pairs[0][1], pairs[1][1]))
        except (OSError, ValueError):
            for pair in pairs[: len(takers)]:
                os.close(pair[0])
            self.close_stdin()
            if self.cgroup is not None:
                self.cgroup.close()
            raise
        finally:
            for pair in pairs:
                os.close(pair[1])
        self.worker.program = self
        if self.cgroup is not None:
            self.cgroup.add(self.pid)
        apply_limits(self.pid, self.limits)
        for (fd, _), (take, splitter) in zip(pairs, takers):
            os.set_blocking(fd, False)
            self.streams[fd] = (take, splitter)
            self.worker.listen(fd, select.POLLIN, self._on_output)

    def _make_cgroup(self) -> None:
        """Before the program starts: to make a group takes longer than a program needs to start others."""
        wanted = self.limits.get("memory_bytes"), self.limits.get("processes")
        if any(wanted):
            self.worker.programs += 1
            self.cgroup = Cgroup("orchestra-%d-%d" % (os.getpid(), self.worker.programs), *wanted)

    # hearing

    def _on_output(self, fd: int, _events: int) -> None:
        self._read(fd)

    def _read(self, fd: int) -> bool:
        """One read. False when there is nothing to read now."""
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        take, splitter = self.streams[fd]
        self.read_bytes += len(data)
        found = splitter.feed(data) if data else splitter.end()
        if found:
            take(found)
        if not data:
            self._close_stream(fd)
        return bool(data)

    def _drain(self) -> None:
        """What is in the pipes now, at most a few MB: somebody may still write."""
        for fd in list(self.streams):
            for _ in range(64):
                if not self._read(fd):
                    break

    def _close_stream(self, fd: int) -> None:
        del self.streams[fd]
        self.worker.forget(fd)
        os.close(fd)

    # typing

    def type_in(self, data: bytes) -> None:
        """Passes on what a person typed; nothing means end of file."""
        if not data:
            self.close_stdin()
            return
        self.stdin_queue += data
        self._write_stdin()

    def _write_stdin(self, _fd: int = 0, _events: int = 0) -> None:
        while self.stdin_queue:
            try:
                self.stdin_queue = self.stdin_queue[os.write(self.stdin_fd, self.stdin_queue) :]
            except BlockingIOError:
                self.worker.listen(self.stdin_fd, select.POLLOUT, self._write_stdin)
                return
            except OSError:
                self.close_stdin()
                return
        self.worker.forget(self.stdin_fd)

    def close_stdin(self) -> None:
        """No more input."""
        if self.stdin_fd >= 0:
            self.worker.forget(self.stdin_fd)
            os.close(self.stdin_fd)
        self.stdin_fd, self.stdin_queue = -1, b""

    def interrupt(self) -> None:
        """Ctrl-C in the pane."""
        if self.pid and self.status is None:
            try:
                os.killpg(self.pid, signal.SIGINT)
            except OSError:
                pass

    # ending

    def wait(self) -> None:
        """Turns until it is over and nothing of it is left."""
        deadline = None if self.timeout_ms is None else self.began + self.timeout_ms / 1000
        while self.status is None and not self.reason:
            self.worker.turn(deadline)
            if deadline is not None and time.monotonic() >= deadline:
                self.end("timeout")
        self.ended = time.monotonic()
        if not self.reason:
            self._drain()
        self._end_tree()
        self.ended = self.ended if self.status is not None and not self.reason else time.monotonic()
        self._drain()
        for fd in list(self.streams):
            take, splitter = self.streams[fd]
            rest = splitter.end()
            if rest:
                take(rest)
            self._close_stream(fd)
        self.close_stdin()
        if self.cgroup is not None:
            self.cgroup.close()
        self.worker.program = None

    def end(self, reason: str, grace_ms: int | None = None) -> None:
        """Asks for the end. The intent is on disk before the first signal, so that a successor knows it too."""
        if not self.reason and self.status is None:
            self.reason = reason
            self.worker.note_intent(reason)
            if grace_ms is not None:
                self.grace_ms = grace_ms

    def _end_tree(self) -> None:
        folder = self.worker.folder
        forced = bool(self.reason) or not self.worker.reap() or time.monotonic() - self.began > LONG_S
        if not forced:
            return  # no child is left and this process is the reaper of all: the tree is gone
        grace_s = self.grace_ms / 1000

        def below() -> dict[int, str]:
            self.worker.reap()
            return descendants(os.getpid())

        def everywhere() -> dict[int, str]:
            table = processes()
            return _with_descendants(table, tagged(table, folder))

        killed: dict[int, str] = {}
        for find, pause in ((below, ENDING_POLL_S), (everywhere, WHOLE_SCAN_POLL_S)):
            for _ in ending(find, grace_s, killed):
                self.worker.turn(time.monotonic() + pause)
        self.worker.reap()
        self.stubborn = len(below())

    # measuring

    def measure(self) -> None:
        """Memory and number of processes of the whole tree, each beat if there is a limit, more seldom if not."""
        moment = time.monotonic()
        limits = self.limits
        if self.reason or (moment < self.measure_due and not (limits.get("memory_bytes") or limits.get("processes"))):
            return
        self.measure_due = moment + MEASURE_S
        found = descendants(os.getpid())
        resident = resident_bytes(found)
        self.rss_max = max(self.rss_max, resident)
        too_many = limits.get("processes") and len(found) > limits["processes"]
        too_large = limits.get("memory_bytes") and resident > limits["memory_bytes"]
        if too_many or too_large or (self.cgroup is not None and self.cgroup.out_of_memory()):
            self.end("memory", 0)

    def reaped(self, pid: int, status: int, usage: Any) -> None:
        """A process of the tree is gone."""
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.rss_max = max(self.rss_max, usage.ru_maxrss * (1024 if LINUX else 1))
        if pid == self.pid:
            self.status = status
            if not self.reason and self.cgroup is not None and self.cgroup.out_of_memory() and os.WIFSIGNALED(status):
                self.reason = "memory"

    def outcome(self) -> dict[str, Any]:
        """code, signal, reason, duration."""
        code = number = None
        if self.status is not None:
            code = os.WEXITSTATUS(self.status) if os.WIFEXITED(self.status) else None
            number = os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else None
        return {"code": code, "signal": number, "reason": self.reason or "exit", "duration_ms": int((self.ended - self.began) * 1000)}


# ---- one attempt ------------------------------------------------------------------------------------------------------------


def checked_spec(spec: Any) -> dict[str, Any]:
    """The order with its defaults filled in; ValueError says what is wrong with it."""

    def texts(value: Any) -> bool:
        return isinstance(value, list) and all(isinstance(part, str) for part in value)

    def whole(value: Any, least: int) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and value >= least

    def must(held: Any, what: str) -> None:
        if not held:
            raise ValueError("spec: " + what)

    must(isinstance(spec, dict), "not a JSON object")
    must(spec.get("v", 1) == 1, "v is not 1")
    must(isinstance(spec.get("task"), str) and spec["task"], "task is missing")
    must(whole(spec.get("attempt"), 0), "attempt is missing")
    must(texts(spec.get("argv")) and spec["argv"] and spec["argv"][0], "argv is missing")
    defaults: dict[str, Any] = {
        "env": {},
        "env_pass": [],
        "cwd": None,
        "stdin": "null",
        "timeout_ms": None,
        "grace_ms": GRACE_MS,
        "limits": {},
    }
    defaults.update({"output": {}, "signals": [], "success": {}, "checks": [], "marker": "", "title": spec["task"]})
    full = dict(defaults, **{name: value for name, value in spec.items() if value is not None})
    must(isinstance(full["env"], dict) and texts(list(full["env"].values())), "env is not names and texts")
    must(texts(full["env_pass"]) and texts(full["signals"]), "env_pass or signals are not texts")
    must(full["cwd"] is None or (isinstance(full["cwd"], str) and os.path.isabs(full["cwd"])), "cwd is not an absolute path")
    must(full["stdin"] in ("null", "pane", "prompt"), "stdin is not null, pane or prompt")
    must(full["timeout_ms"] is None or whole(full["timeout_ms"], 1), "timeout_ms is not a number")
    must(whole(full["grace_ms"], 0), "grace_ms is not a number")
    must(isinstance(full["limits"], dict), "limits is not an object")
    must(all(value is None or isinstance(value, int) for value in full["limits"].values()), "limits are not numbers")
    must(isinstance(full["output"], dict) and isinstance(full["success"], dict), "output or success is not an object")
    full["output"] = dict({"file_bytes_max": 16777216, "line_bytes_max": 65536, "view": "lines"}, **full["output"])
    must(whole(full["output"]["file_bytes_max"], 1) and whole(full["output"]["line_bytes_max"], 16), "output is not numbers")
    full["success"] = dict({"codes": [0], "signal": None}, **full["success"])
    expected = full["success"]["signal"]
    must(isinstance(full["success"]["codes"], list), "success.codes is not a list")
    must(expected is None or (isinstance(expected, dict) and isinstance(expected.get("type"), str)), "success.signal has no type")
    must(isinstance(full["checks"], list), "checks is not a list")
    for check in full["checks"]:
        must(isinstance(check, dict) and isinstance(check.get("name"), str), "a check has no name")
        must(texts(check.get("argv")) and check["argv"] and whole(check.get("timeout_ms"), 1), "a check has no argv or timeout_ms")
    must(isinstance(full["marker"], str) and isinstance(full["title"], str), "marker or title is not a text")
    return full


class Attempt:
    """One attempt, from its claim to its exit.json."""

    def __init__(self, worker: Worker, folder: str, spec: dict[str, Any]) -> None:
        self.worker, self.folder, self.spec = worker, folder, spec
        self.names = {"task": spec["task"], "attempt": spec["attempt"]}
        self.output = Output(worker, folder, spec)
        self.cwd = spec["cwd"] or folder + "/work"
        self.env = self._environment()

    def _environment(self) -> dict[str, str]:
        own, spec = os.environ, self.spec
        env = {name: own[name] for name in (*ENV_BASE, *spec["env_pass"]) if name in own}
        env.setdefault("PATH", "/usr/local/bin:/usr/bin:/bin")
        env.update(spec["env"])
        for name in ENV_NEVER:
            env.pop(name, None)
        env.update(
            {
                "ORCHESTRA_TASK": spec["task"],
                "ORCHESTRA_ATTEMPT": str(spec["attempt"]),
                "ORCHESTRA_AGENT": self.worker.agent,
                ENV_TAG: self.folder,
            }
        )
        if os.path.exists(self.folder + "/prompt.txt"):
            env["ORCHESTRA_PROMPT_FILE"] = self.folder + "/prompt.txt"
        return env

    def perform(self) -> None:
        """Runs the agent, then the checks if it succeeded, and writes down how it went."""
        view, spec = self.worker.view, self.spec
        view.marker = spec["marker"]
        view.say("== %s | %s #%d | %s" % (spec["title"], spec["task"], spec["attempt"], time.strftime("%H:%M:%S")))
        outcome = self._run_agent()
        checks: list[dict[str, Any]] = []
        if spec["checks"] and self._succeeded(outcome):
            self.worker.record("exited", exit=outcome, **self.names)
            checks = self._run_checks()
        self.output.log.close()
        result = fitted({"exit": dict(outcome, dropped_bytes=self.output.log.dropped_bytes), "checks": checks})
        self.worker.keep(self.folder + "/exit.json", dict(self.names, **result))
        self.worker.record("done", **self.names, **result)
        self.worker.settle()
        view.close_attempt(self._told(result))

    def _program(self, argv: list[str], timeout_ms: int | None) -> Program:
        return Program(self.worker, argv, timeout_ms, self.spec["grace_ms"], self.spec["limits"])

    def _run_agent(self) -> dict[str, Any]:
        program = self._program(self.spec["argv"], self.spec["timeout_ms"])
        program.reason = "stopped" if self.worker.stopping_all or self.worker.stop_asked(self.names) else ""
        takers = [(lambda found, source=source: self.output.take_agent(source, found), self.output.splitter()) for source in ("out", "err")]
        stdin = {"null": os.devnull, "pane": None, "prompt": self.folder + "/prompt.txt"}[self.spec["stdin"]]
        if not program.reason:
            try:
                if not self.spec["cwd"]:
                    os.makedirs(self.cwd, mode=0o700, exist_ok=True)
                program.start(self.env, self.cwd, stdin, takers)
            except (OSError, ValueError) as problem:
                program.reason = "spawn"
                self.output.take_agent("err", [(("cannot start: %s" % problem).encode(), False, b"")])
        if program.pid:
            start = self._note_child(program, "agent")
            self.worker.record("started", pid=program.pid, start=int(start), **self.names)
            program.wait()
        return self._agent_outcome(program)

    def _agent_outcome(self, program: Program) -> dict[str, Any]:
        output = self.output
        if program.stubborn:
            output.tail = output.tail[1 - TAIL_LINES :] + ["%d processes could not be ended" % program.stubborn]
        outcome = program.outcome()
        outcome.update(lines=output.lines, bytes=program.read_bytes, dropped_bytes=output.log.dropped_bytes)
        outcome.update(last=output.last, tail=output.tail, rss_bytes_max=program.rss_max, cpu_ms=int(program.cpu_s * 1000))
        return fitted({"exit": outcome, "checks": []})["exit"]  # type: ignore[no-any-return]

    def _note_child(self, program: Program, what: str) -> str:
        """Who runs, for a successor. The worker goes on without it if the disk is full: the environment names the folder too."""
        start = identity_of(program.pid).partition(":")[2]
        self.worker.child = {"pid": program.pid, "start": start, "what": what}
        if program.cgroup is not None:
            self.worker.child["cgroups"] = program.cgroup.folders
        self.worker.write_child()
        return start

    def _succeeded(self, outcome: dict[str, Any]) -> bool:
        success = self.spec["success"]
        if outcome["reason"] != "exit" or outcome["code"] not in success["codes"]:
            return False
        expected = success["signal"]
        if expected is None:
            return True
        last = self.output.last.get(expected["type"])
        return last is not None and all(name in last and last[name] == value for name, value in (expected.get("fields") or {}).items())

    def _run_checks(self) -> list[dict[str, Any]]:
        results = []
        for check in self.spec["checks"]:
            if self.worker.stopping_all or self.worker.stop_asked(self.names):
                break
            results.append(self._run_check(check))
        return results

    def _run_check(self, check: dict[str, Any]) -> dict[str, Any]:
        source = "check:" + check["name"]
        tail: list[str] = []

        def take(found: list[tuple[bytes, bool, bytes]]) -> None:
            tail.extend(text[:TAIL_CHARS] for text in self.output.take(source, found)[-TAIL_LINES:])
            del tail[:-TAIL_LINES]

        program = self._program(check["argv"], check["timeout_ms"])
        self.worker.view.say("-- check %s" % check["name"])
        try:
            program.start(self.env, self.cwd, os.devnull, [(take, self.output.splitter()), (take, self.output.splitter())])
        except (OSError, ValueError) as problem:
            program.reason = "spawn"
            take([(("cannot start: %s" % problem).encode(), False, b"")])
        else:
            self._note_child(program, source)
            program.wait()
        outcome = program.outcome()
        passed = outcome["reason"] == "exit" and outcome["code"] == 0
        self.worker.view.say("-- check %s %s" % (check["name"], "passed" if passed else "failed"))
        return dict({"name": check["name"], "passed": passed}, **outcome, tail=tail)

    def _told(self, result: dict[str, Any]) -> str:
        outcome = result["exit"]
        how = {"exit": "exit code %s" % outcome["code"] if outcome["signal"] is None else "ended by signal %s" % outcome["signal"]}
        text = "== %s after %.1f s, %d lines" % (
            how.get(outcome["reason"], outcome["reason"]),
            outcome["duration_ms"] / 1000,
            outcome["lines"],
        )
        failed = [check["name"] for check in result["checks"] if not check["passed"]]
        if result["checks"]:
            text += ", checks " + ("passed" if not failed else "failed: " + ", ".join(failed))
        return text


def fitted(result: dict[str, Any]) -> dict[str, Any]:
    """A result that fits in a record: first the tails are shortened, then the last JSON lines."""
    room = RECORD_BYTES_MAX - 2048
    for tail_lines, last_bytes in ((20, 32768), (10, 16384), (4, 4096), (1, 1024), (0, 0)):
        if len(dumps(result)) <= room:
            break
        outcome = dict(
            result["exit"],
            tail=result["exit"]["tail"][len(result["exit"]["tail"]) - tail_lines :] if tail_lines < 20 else result["exit"]["tail"],
        )
        outcome["last"] = {kind: shrunk(record, last_bytes) for kind, record in outcome["last"].items()}
        checks = [dict(check, tail=check["tail"][max(0, len(check["tail"]) - tail_lines // 2) :]) for check in result["checks"]]
        result = dict(result, exit=outcome, checks=checks)
    return result


# ---- the slot ---------------------------------------------------------------------------------------------------------------


class Worker:
    """The slot: its lock, its inbox, its heart, and the one loop."""

    def __init__(self, base: str, agent: str) -> None:
        self.base, self.agent = base, agent
        self.slot = "%s/agents/%s" % (base, agent)
        self.w = identity_of(os.getpid())
        self.view = View()
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[int, int], None]] = {}
        self.pane_events = 0
        self.orders: list[dict[str, Any]] = []
        self.inbox_rest = b""
        self.frames: list[bytes] = []  # records that the disk did not take yet, in order
        self.program: Program | None = None
        self.programs = 0  # that had a control group
        self.folder = ""  # of the attempt in hand
        self.names: dict[str, Any] = {}
        self.child: dict[str, Any] = {}
        self.stops: list[tuple[Any, Any]] = []
        self.stopping_all = self.leaving = False
        self.interrupts = 0
        self.beat_fd = -1
        self.beat_due = 0.0
        self.reaper = False

    # hearing

    def listen(self, fd: int, events: int, handler: Callable[[int, int], None]) -> None:
        """Has `handler(fd, events)` called from a turn."""
        self.handlers[fd] = handler
        self.poller.register(fd, events)

    def forget(self, fd: int) -> None:
        """Hears it no more."""
        if self.handlers.pop(fd, None) is not None:
            self.poller.unregister(fd)

    def turn(self, until: float | None = None) -> None:
        """Shows what there is to show, waits until something is heard, a beat is due or `until` has come, and deals with it."""
        self.view.tick()
        self.view.flush()
        self._watch_pane()
        moment = time.monotonic()
        wake = self.beat_due if self.beat_fd >= 0 else moment + BEAT_S
        for other in (until, self.view.due):
            if other is not None and other < wake:
                wake = other
        for fd, events in self.poller.poll(int(max(0.0, wake - moment) * 1000) + (wake > moment)):
            handler = self.handlers.get(fd)
            if handler is not None:
                handler(fd, events)
        self._after_turn()

    def _after_turn(self) -> None:
        if self.program is not None:
            self.reap()
            if self.interrupts:
                self.program.interrupt()
            if self.stopping_all:
                self.program.end("stopped")
        self.interrupts = 0
        if self.beat_fd >= 0 and time.monotonic() >= self.beat_due:
            self._beat()

    def _beat(self) -> None:
        self.beat_due = time.monotonic() + BEAT_S
        try:
            os.utime(self.beat_fd)
        except OSError:
            pass
        if self.frames:
            self._write_frames()
        if self.program is not None:
            self.program.measure()

    def _watch_pane(self) -> None:
        """The terminal is listened to for typing, for room to write, and for its end."""
        view = self.view
        if view.gone:
            self.forget(view.fd)
            return
        busy = self.program is not None and len(self.program.stdin_queue) > READ_BYTES
        events = (select.POLLIN if view.tty and not busy else 0) | (select.POLLOUT if view.queue else 0)
        if events != self.pane_events or (view.tty and view.fd not in self.handlers):
            self.pane_events = events
            if events or view.tty:
                self.listen(view.fd, events, self._on_pane)
            else:
                self.forget(view.fd)

    def _on_pane(self, fd: int, events: int) -> None:
        if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL):
            self.view.gone = True
        elif events & select.POLLIN:
            try:
                data = os.read(fd, 4096)
            except BlockingIOError:
                return
            except OSError:
                self.view.gone = True
                return
            self._on_typed(data)

    def _on_typed(self, data: bytes) -> None:
        if self.program is None:
            self.view.say("nothing runs here now: agent %s waits for an attempt" % self.agent)
        elif self.program.stdin_fd < 0:
            self.view.say("what runs here reads nothing that is typed")
        else:
            self.program.type_in(data)

    def _on_signal_byte(self, fd: int, _events: int) -> None:
        try:
            os.read(fd, 512)
        except OSError:
            pass

    def _catch_signals(self) -> None:
        """Handlers only take notes; a byte in a pipe ends the poll."""
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end)
        self.listen(read_end, select.POLLIN, self._on_signal_byte)

        def note(number: int, _frame: object) -> None:
            if number == signal.SIGINT:
                self.interrupts += 1
            elif number == signal.SIGTERM:
                self.stopping_all = self.leaving = True

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP):
            signal.signal(number, note)
        for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def reap(self) -> bool:
        """Takes in the dead. True if no child is left at all."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return True
            if pid == 0:
                return False
            if self.program is not None:
                self.program.reaped(pid, status, usage)

    # writing

    def record(self, kind: str, **fields: Any) -> None:
        """Adds a record to the journal, in order; what the disk refuses is tried again each second."""
        record = {"k": kind, "ms": now_ms(), "agent": agent_value(self.agent), "w": self.w}
        record.update(fields)
        self.frames.append(framed(record))
        self._write_frames()

    def _write_frames(self) -> None:
        while self.frames and append_record(self.base, self.frames[0]):
            del self.frames[0]

    def settle(self) -> None:
        """Turns until the journal has everything."""
        if self.frames:
            self.view.say("! the journal cannot be written: trying each second")
        while self.frames:
            self.turn()

    def persist(self, what: Callable[[], Any], path: str) -> Any:
        """Does a piece of writing, as often as it takes. None if the place to write is gone."""
        told_it = False
        while True:
            try:
                return what()
            except FileNotFoundError:
                return None
            except OSError as problem:
                if not told_it:
                    self.view.say("! cannot write %s (%s): trying each second" % (path, problem.strerror))
                    told_it = True
            self.turn(time.monotonic() + BEAT_S)

    def keep(self, path: str, value: Any) -> None:
        """Writes a file that must not be missing."""
        self.persist(lambda: write_atomic(path, dumps(value)), path)

    def write_child(self) -> None:
        """child.json: who runs, and why it is being ended."""
        try:
            write_atomic(self.folder + "/child.json", dumps(self.child))
        except OSError:
            pass

    def note_intent(self, reason: str) -> None:
        """Written before the first signal of an end."""
        self.child["intent"] = reason
        self.write_child()

    # orders

    def _on_inbox(self, fd: int, _events: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except OSError:
            return
        *lines, self.inbox_rest = (self.inbox_rest + data).split(b"\n")
        self.inbox_rest = self.inbox_rest[-4096:]
        for line in lines:
            try:
                order = loads(line)
            except ValueError:
                continue
            if isinstance(order, dict):
                self._take_order(order)

    def _take_order(self, order: dict[str, Any]) -> None:
        op = order.get("op")
        if op == "run":
            if self.folder and self.folder == "%s/%s" % (self.base, order.get("dir")):
                self.record("refused", reason="claimed", **self.names)
            else:
                self.orders.append(order)
        elif op == "leave":
            self.leaving = True
            self.stopping_all = self.stopping_all or bool(order.get("now"))
        elif op == "stop":
            asked = (order.get("task"), order.get("attempt"))
            grace_ms = order.get("grace_ms")
            if asked == (self.names.get("task"), self.names.get("attempt")) and self.program is not None:
                self.program.end("stopped", grace_ms if isinstance(grace_ms, int) else None)
            self.stops = [*self.stops[-99:], asked]  # for an order that waits, and for the checks that are still to come

    def stop_asked(self, names: dict[str, Any]) -> bool:
        """Whether a stop came for this attempt."""
        return (names["task"], names["attempt"]) in self.stops

    def _carry_out(self, order: dict[str, Any]) -> None:
        place = order.get("dir")
        parts = place.split("/") if isinstance(place, str) else []
        if len(parts) < 3 or parts[0] != "attempts" or not all(parts) or {".", ".."} & set(parts):
            self.view.say("! an order without a proper folder was dropped: %s" % short(place))
            return
        folder = "%s/%s" % (self.base, place)
        task, attempt = "/".join(parts[1:-1]), int(parts[-1]) if parts[-1].isdigit() else 0
        if os.path.exists(folder + "/claim"):
            self.record("refused", task=task, attempt=attempt, reason="claimed")
            return
        try:
            data = read_bytes(folder + "/spec.json")
            if data is None:
                raise ValueError("spec: no spec.json")
            spec = checked_spec(loads(data))
            if "agent" in spec and str(spec["agent"]) != self.agent:
                raise ValueError("spec: is for agent %s" % spec["agent"])
        except ValueError as problem:
            self.view.say("! refused %s: %s" % (place, problem))
            self.record("refused", task=task, attempt=attempt, reason="bad-spec", message=str(problem)[:TAIL_CHARS])
            return
        self._carry_out_spec(folder, place, spec)

    def _carry_out_spec(self, folder: str, place: Any, spec: dict[str, Any]) -> None:
        """`current` comes before the claim, so that a claimed attempt is never one that nobody knows to have in hand."""
        names = {"task": spec["task"], "attempt": spec["attempt"]}
        self.keep(self.slot + "/current", dict({"dir": place}, **names))
        identity = {"agent": agent_value(self.agent), "w": self.w}
        if not self.persist(lambda: claim_attempt(folder, identity), folder + "/claim"):
            self.record("refused", reason="claimed", **names)
        else:
            self._become_reaper()
            self.folder, self.names, self.child = folder, names, {}
            Attempt(self, folder, spec).perform()
            self.folder, self.names = "", {}
            self.stops = [asked for asked in self.stops if asked != (names["task"], names["attempt"])]
        unlink_quietly(self.slot + "/current")

    def _become_reaper(self) -> None:
        if not self.reaper:
            self.reaper = True
            become_subreaper()

    # life

    def live(self) -> None:
        """Takes the slot, as soon as it is free, and works until it is to leave."""
        self._catch_signals()
        os.makedirs(self.slot, mode=0o700, exist_ok=True)
        lock = os.open(self.slot + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not self._locked(lock) and not self._watch_first(lock):
            return
        self._settle_in(lock)
        while not (self.leaving or self.view.gone) or self.orders:
            if self.orders and not self.stopping_all:
                self._carry_out(self.orders.pop(0))
                self._tell_waiting()
            elif self.leaving or self.view.gone:
                break
            else:
                self.turn()
        self.record("left")
        self.view.say("agent %s has left" % self.agent)
        self.settle()
        self.view.flush()

    @staticmethod
    def _locked(lock: int) -> bool:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return False
        return True

    def _settle_in(self, lock: int) -> None:
        """Identity, heart, inbox; then what a dead predecessor left; then `ready`."""
        self.beat_fd = self.persist(lambda: os.open(self.slot + "/beat", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "beat")
        boot = boot_id()
        identity = b'{"w":"%s","pid":%d,"boot":"%s"}' % (self.w.encode(), os.getpid(), boot.encode())

        def write_identity() -> None:
            os.ftruncate(lock, 0)
            os.pwrite(lock, identity, 0)

        self.persist(write_identity, "lock")
        self._beat()
        try:
            os.mkfifo(self.slot + "/inbox", 0o600)
        except FileExistsError:
            pass
        inbox = os.open(self.slot + "/inbox", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if os.path.exists(self.slot + "/current"):
            self._recover()
        self.listen(inbox, select.POLLIN, self._on_inbox)
        self._ready(boot)
        self._tell_waiting()

    def _ready(self, boot: str) -> None:
        """Written by hand: the JSON codec is loaded with the first order."""
        body = '{"k":"ready","ms":%d,"agent":%s,"w":"%s","boot":"%s","python":"%d.%d.%d"}'
        name = self.agent if self.agent.isdigit() else '"%s"' % self.agent
        data = (body % ((now_ms(), name, self.w, boot) + tuple(sys.version_info[:3]))).encode()
        self.frames.append(b"\n%08x %s\n" % (zlib.crc32(data), data))
        self._write_frames()

    def _tell_waiting(self) -> None:
        self.view.say("agent %s waits" % self.agent)

    def _recover(self) -> None:
        current = read_json(self.slot + "/current") or {}
        place = current.get("dir")
        folder = "%s/%s" % (self.base, place)
        names = {"task": current.get("task"), "attempt": current.get("attempt")}
        if place and os.path.isdir(folder):
            result = read_json(folder + "/exit.json")
            if isinstance(result, dict):
                self.record("done", **result)  # the predecessor may have died before it could say so; to say it twice is harmless
            else:
                self._recover_unfinished(folder, names)
            self.settle()
        unlink_quietly(self.slot + "/current")

    def _recover_unfinished(self, folder: str, names: dict[str, Any]) -> None:
        self.persist(lambda: claim_attempt(folder, {"agent": agent_value(self.agent), "w": self.w}), folder + "/claim")
        claim = read_json(folder + "/claim") or {}
        if str(claim.get("agent")) != self.agent:
            return  # another slot was faster, and has it in hand
        self.view.say("== %s #%s was left by a dead worker: ending what is left of it" % (names["task"], names["attempt"]))
        killed: dict[int, str] = {}
        for _ in ending_lost(folder, killed):
            self.turn(time.monotonic() + 2 * ENDING_POLL_S)
        fields = {"reason": lost_reason(folder), "killed": sorted(killed)}
        self.keep(folder + "/lost.json", dict(names, **fields))
        self.record("lost", **names, **fields)

    # a second window

    def _watch_first(self, lock: int) -> bool:
        """Shows what the first worker's attempts print until the slot is free. False if this window is closed before."""
        self.view.say("agent %s is at work in another window: this one shows what it prints" % self.agent)
        place, offset, rest = None, 0, b""
        while not self._locked(lock):
            current = read_json(self.slot + "/current") or {}
            if current.get("dir") != place:
                if place is not None:
                    offset, rest = self._show_new(place, offset, rest)
                    self._show_end(place)
                place, offset, rest = current.get("dir"), 0, b""
                if place is not None:
                    self._show_start(place, current)
            if place is not None:
                offset, rest = self._show_new(place, offset, rest)
            self.turn(time.monotonic() + 0.25)
            if self.view.gone or self.leaving:
                return False
        if place is not None:
            self._show_new(place, offset, rest)
            self._show_end(place)
        return True

    def _show_start(self, place: str, current: dict[str, Any]) -> None:
        spec = read_json("%s/%s/spec.json" % (self.base, place)) or {}
        self.view.marker = str(spec.get("marker") or "")
        self.view.say("== %s | %s #%s" % (spec.get("title"), current.get("task"), current.get("attempt")))

    def _show_new(self, place: str, offset: int, rest: bytes) -> tuple[int, bytes]:
        path = "%s/%s/output.jsonl" % (self.base, place)
        try:
            with open(path, "rb", buffering=0) as file:
                if file.seek(0, 2) < offset:
                    offset, rest = 0, b""  # rotated
                file.seek(offset)
                data = file.read(4 * READ_BYTES)
        except OSError:
            return offset, rest
        *lines, rest = (rest + data).split(b"\n")
        for line in lines:
            try:
                entry = loads(line)
                self.view.lines([entry["line"]], entry["s"], False)
            except (ValueError, KeyError, TypeError):
                continue
        return offset + len(data), rest

    def _show_end(self, place: str) -> None:
        result = read_json("%s/%s/exit.json" % (self.base, place))
        if isinstance(result, dict):
            outcome = result["exit"]
            self.view.close_attempt("== %s, code %s, signal %s" % (outcome["reason"], outcome["code"], outcome["signal"]))
        self.view.marker = ""


def main(argv: list[str]) -> int:
    """`worker.py <dir> <agent id>`."""
    if len(argv) != 3 or "/" in argv[2] or not argv[2].replace("-", "").replace("_", "").replace(".", "").isalnum():
        os.write(2, b"usage: worker.py <dir> <agent id>\n")
        return 2
    base = os.path.realpath(argv[1])
    os.umask(0o077)
    os.chdir("/")  # holds no folder open that somebody may want to remove
    Worker(base, argv[2]).live()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv))
