"""One program, the agent or a check: started, heard, timed, measured, and ended with all that it started."""

from __future__ import annotations

import os
import select
import time

from .cgroup import Cgroup
from .ending import ENDING_POLL_S, ending, tagged
from .processes import LINUX, boot_ticks, descendants, processes, resident_bytes, with_descendants
from .spawning import apply_limits, found_program, spawn

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any

    from .output import Piece, Splitter
    from .sandbox import Sandbox
    from .screen import Screen
    from .slot import Slot
else:
    import _signal as signal  # the C half, see loop.py

READ_BYTES = 65536  # what a Linux pipe holds
MEASURE_S = 5.0  # between two looks at the memory of an attempt without a memory limit
LONG_S = 2.0  # an attempt that ran this long pays for a look through all processes when it ends
WHOLE_SCAN_POLL_S = 0.2
SANDBOX_PROCESSES = 2  # besides what runs in it
SANDBOX_END_S = 2.0  # in which the kernel ends all that is left in a sandbox
GATE = 'read -r _ <&4; exec "$@" 4<&-'
SIGNAL_MAX = 64
SIGNAL_BASE = 128  # added to the signal that ended a program in a sandbox, as a shell does


class Program:
    """One program, the agent or a check: started, heard, timed, measured, and ended with all that it started."""

    def __init__(self, slot: Slot, argv: list[str], timeout_ms: int | None, grace_ms: int, limits: dict[str, Any]) -> None:
        self.slot, self.argv, self.limits = slot, argv, limits
        self.sandbox: Sandbox | None = None
        self.status_fd = -1  # on which a sandbox tells that the program was started, and how it ended
        self.timeout_ms, self.grace_ms = timeout_ms, grace_ms
        self.pid = 0
        self.start_ticks = 0, 1  # between which it was started
        self.status: int | None = None
        self.umask = 0o022
        self.reason = ""  # why it is being ended; set before the first signal is sent
        self.began = time.monotonic()
        self.ended = self.began
        self.cpu_s = 0.0
        self.rss_max = 0
        self.measure_due = self.began
        self.stubborn = 0
        self.streams: dict[int, tuple[Callable[[list[Piece]], None], Splitter]] = {}
        self.read_bytes = 0
        self.stdin_fd = -1
        self.stdin_queue = b""
        self.cgroup: Cgroup | None = None
        self.screen: Screen | None = None  # of a program that has a terminal of its own

    def open_screen(self, folder: str) -> int:
        """The socket at which the program finds its windows, ours among them; it becomes its standard input."""
        from .screen import Screen, make_listener

        listener = make_listener(folder)
        try:
            self.screen = Screen(self.slot, folder)
        except OSError:
            os.close(listener)
            raise
        return listener

    def start(self, env: dict[str, str], cwd: str, stdin: str | int | None, takers: list[Any]) -> None:
        """Starts it; OSError or ValueError if it cannot be. `stdin` is a path, a file that is open, or None for what is typed in the pane."""
        pairs: list[tuple[int, int]] = []
        try:
            pairs.extend(os.pipe() for _ in takers)  # one by one: if one cannot be made, those before it are closed below
            pairs.append((-1, self._open_stdin(stdin)))
            argv, extra = self.argv, []
            if self.sandbox is not None:
                found_program(argv[0], env.get("PATH", os.defpath))  # what is not there is to be told in the same words
                argv = self.sandbox.argv(argv)
                pairs.append(os.pipe())
                extra = [pairs[3][1]]
                if self.limits:  # a sandbox has started others before they could be set: it begins when they are
                    argv = ["/bin/sh", "-c", GATE, "sh", *argv]
                    gate = os.pipe()
                    pairs.append(gate[::-1])
                    extra.append(gate[0])
            self._make_cgroup()
            before = boot_ticks()
            self.pid = spawn(argv, env, cwd, (pairs[2][1], pairs[0][1], pairs[1][1], *extra), self.umask)
            self.start_ticks = before, boot_ticks()
        except (OSError, ValueError):
            for pair in pairs[: len(takers)] + pairs[len(takers) + 1 :]:
                os.close(pair[0])
            self.close_stdin()
            self.close_screen()
            if self.cgroup is not None:
                self.cgroup.close()
            raise
        finally:
            for pair in pairs:
                os.close(pair[1])
        self.status_fd = pairs[3][0] if pairs[3:] else -1
        self.slot.program = self
        self.slot.childless = False
        if self.cgroup is not None:
            self.cgroup.add(self.pid)
        apply_limits(self.pid, self.limits)
        if pairs[4:]:
            os.close(pairs[4][0])
        for (fd, _), (take, splitter) in zip(pairs, takers):
            os.set_blocking(fd, False)
            self.streams[fd] = (take, splitter)
            self.slot.listen(fd, select.POLLIN, self._on_output)

    def _open_stdin(self, path: str | int | None) -> int:
        """What the program reads."""
        if isinstance(path, int):
            return path
        if path is not None:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        read_end, self.stdin_fd = os.pipe()
        os.set_blocking(self.stdin_fd, False)
        return read_end

    def _make_cgroup(self) -> None:
        """Before the program starts: to make a group takes longer than a program needs to start others."""
        wanted = self.limits.get("memory_bytes"), self.limits.get("processes"), self.limits.get("cpus")
        if any(wanted):
            self.slot.programs += 1
            self.cgroup = Cgroup("orchestra-%d-%d" % (os.getpid(), self.slot.programs), wanted[0], self._processes_max(), wanted[2])

    def _processes_max(self) -> int | None:
        """As many as the order allows; those that hold the sandbox do not count."""
        most = self.limits.get("processes")
        return most and most + (SANDBOX_PROCESSES if self.sandbox is not None else 0)

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
        if data and self.slot.held_until:
            self._tell_first()
        take, splitter = self.streams[fd]
        self.read_bytes += len(data)
        found = splitter.feed(data) if data else splitter.end()
        if found:
            take(found)
        if not data:
            self._close_stream(fd)
        return bool(data)

    def _tell_first(self) -> None:
        """That it has started is told before anything it prints, unless it is over already."""
        self.slot.reap()
        if self.status is None:
            self.slot.end_hold()

    def _drain(self) -> None:
        """What is in the pipes now, at most a few MB: somebody may still write."""
        for fd in list(self.streams):
            for _ in range(64):
                if not self._read(fd):
                    break

    def _close_stream(self, fd: int) -> None:
        del self.streams[fd]
        self.slot.forget(fd)
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
                self.slot.listen(self.stdin_fd, select.POLLOUT, self._write_stdin)
                return
            except OSError:
                self.close_stdin()
                return
        self.slot.forget(self.stdin_fd)

    def close_stdin(self) -> None:
        """No more input."""
        if self.stdin_fd >= 0:
            self.slot.forget(self.stdin_fd)
            os.close(self.stdin_fd)
        self.stdin_fd, self.stdin_queue = -1, b""

    def close_screen(self) -> None:
        """The window is ours alone again."""
        if self.screen is not None:
            self.screen.close()
            self.screen = None

    def answer(self, number: int, text: str) -> None:
        """Hands over the answer to the question of that number; the answer to another one than it waits for is not used."""
        if number and number != self.slot.asked:
            self.slot.view.say("an answer to question %d was not used: that is not what is asked now" % number)
        elif self.screen is not None:
            self.screen.answer(number, text)
        elif self.stdin_fd >= 0:
            self.type_in((" ".join(text.splitlines()) + "\n").encode("utf-8", "replace"))

    def interrupt(self) -> None:
        """Ctrl-C in the pane."""
        if not self.pid or self.status is not None:
            return
        try:
            if self.sandbox is None:
                os.killpg(self.pid, signal.SIGINT)
                return
            for pid in descendants(os.getpid()):  # all of the group but its first, which holds the sandbox
                if pid != self.pid and os.getpgid(pid) == self.pid:
                    os.kill(pid, signal.SIGINT)
        except OSError:
            pass

    # ending

    def wait(self) -> None:
        """Turns until it is over and nothing of it is left."""
        deadline = None if self.timeout_ms is None else self.began + self.timeout_ms / 1000
        while self.status is None and not self.reason:
            self.slot.turn(deadline)
            if deadline is not None and time.monotonic() >= deadline:
                self.end("timeout")
        self.ended = time.monotonic()
        if not self.reason:
            self._drain()
        if self.sandbox is not None and not self.reason:
            self._wait_sandbox()
        self._end_tree()
        if self.status_fd >= 0:
            self._hear_sandbox()
        self.ended = self.ended if self.status is not None and not self.reason else time.monotonic()
        self._drain()
        for fd in list(self.streams):
            take, splitter = self.streams[fd]
            rest = splitter.end()
            if rest:
                take(rest)
            self._close_stream(fd)
        self.close_stdin()
        self.close_screen()
        if self.cgroup is not None:
            self.cgroup.close()
        self.slot.program = None
        self.slot.held_until = 0.0

    def end(self, reason: str, grace_ms: int | None = None) -> None:
        """Asks for the end. The intent is on disk before the first signal, so that a successor knows it too."""
        if not self.reason and self.status is None:
            self.reason = reason
            self.slot.note_intent(reason)
            if grace_ms is not None:
                self.grace_ms = grace_ms

    def _wait_sandbox(self) -> None:
        """Once its holder is gone the kernel ends all that is left in it."""
        until = time.monotonic() + SANDBOX_END_S
        while not (self.slot.childless or self.slot.reap()) and time.monotonic() < until:
            self.slot.turn(until)

    def _hear_sandbox(self) -> None:
        """What never came to run did not exit either: the holder says how its program ended, and only if there was one."""
        os.set_blocking(self.status_fd, False)
        try:
            said = os.read(self.status_fd, READ_BYTES)
        except BlockingIOError:
            said = b""
        os.close(self.status_fd)
        self.status_fd = -1
        if b'"exit-code"' not in said and not self.reason and self.status is not None and os.WIFEXITED(self.status):
            self.reason = "spawn"

    def _end_tree(self) -> None:
        folder = self.slot.folder
        forced = bool(self.reason) or not (self.slot.childless or self.slot.reap()) or time.monotonic() - self.began > LONG_S
        if not forced:
            return  # no child is left and this process is the reaper of all: the tree is gone
        grace_s = self.grace_ms / 1000

        def below() -> dict[int, str]:
            self.slot.reap()
            return descendants(os.getpid())

        def everywhere() -> dict[int, str]:
            table = processes()
            return with_descendants(table, tagged(table, folder))

        killed: dict[int, str] = {}
        keeper = self.pid if self.sandbox is not None else 0
        for find, pause in ((below, ENDING_POLL_S), (everywhere, WHOLE_SCAN_POLL_S)):
            for _ in ending(find, grace_s, killed, keeper):
                self.slot.turn(time.monotonic() + pause)
        self.slot.reap()
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
        too_many = limits.get("processes") and len(found) > (self._processes_max() or 0)
        too_large = limits.get("memory_bytes") and resident > limits["memory_bytes"]
        if too_many or too_large or (self.cgroup is not None and self.cgroup.out_of_memory()):
            self.end("memory", 0)

    def reaped(self, pid: int, status: int, usage: Any) -> None:
        """A process of the tree is gone."""
        self.cpu_s += usage.ru_utime + usage.ru_stime
        self.rss_max = max(self.rss_max, usage.ru_maxrss * (1024 if LINUX else 1))
        if pid == self.pid:
            if self.sandbox is not None and os.WIFEXITED(status):
                number = os.WEXITSTATUS(status) - SIGNAL_BASE
                status = number if 0 < number <= SIGNAL_MAX else status  # what the kernel reports of a program that a signal ended
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
