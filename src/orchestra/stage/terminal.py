"""A program on a terminal of its own, and the windows that look at it.

The windows connect to a socket that the worker made (`screen.py` has their half and the frames). What the program draws goes to all of them, what is
typed in any of them goes to the program; its size is that of the window that spoke last. A window that comes later is shown everything
by having the program draw it anew.
"""

from __future__ import annotations

import fcntl
import json
import os
import pty
import re
import select
import signal
import socket
import struct
import termios
import time
from typing import Any, Callable

from .screen import FRAME

READ_BYTES = 65536
WINDOW_QUEUE_BYTES = 1 << 20  # for a window that does not read; then it is shown what is there when it does
ROWS, COLUMNS = 40, 120  # without any window
NUDGE_S = 0.15  # a size that is no other than before draws nothing anew, so it is another one for so long
FLUSH_S = 1.0  # for the last words of the program
MODE = re.compile(rb"\x1b\[\?([0-9]{1,4})([hl])")
SHOWN_BY_DEFAULT = b"25"  # the cursor


class Window:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self.fd = connection.fileno()
        self.incoming = b""
        self.queue = b""
        self.behind = False  # it has missed something


class Terminal:
    """The program, its windows, and whatever else is listened to."""

    def __init__(self, listener: int = 0) -> None:
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[int], None]] = {}
        self.listener = socket.socket(fileno=os.dup(listener))
        self.listener.setblocking(False)
        self.windows: dict[int, Window] = {}
        self.size = ROWS, COLUMNS
        self.nudged = 0.0  # until when the size is another one
        self.modes: dict[bytes, bytes] = {}  # private modes that the program set, and whether
        self.master = -1
        self.pid = 0
        self.status: int | None = None
        self.stopping = False
        self.on_drawn: Callable[[bytes], None] = lambda data: None
        self.on_answer: Callable[[int, str], None] = lambda number, text: None
        self.listen(self.listener.fileno(), self._on_window)

    def _catch_signals(self) -> None:
        read_end, write_end = os.pipe()
        os.set_blocking(read_end, False)
        os.set_blocking(write_end, False)
        signal.set_wakeup_fd(write_end, warn_on_full_buffer=False)
        self.listen(read_end, self._on_signal)

        def note(number: int, _frame: object) -> None:
            self.stopping = self.stopping or number == signal.SIGTERM

        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, note)
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    @staticmethod
    def _on_signal(fd: int) -> None:
        os.read(fd, 512)

    def start(self, argv: list[str], env: dict[str, str], passed: int = -1) -> None:
        """Starts the program; a file `passed` stays open for it."""
        self._catch_signals()
        for _ in range(2):
            self.turn(0)  # whoever looks already is taken, and says how large the window is
        self.master, inner = pty.openpty()
        self._resize(inner, *self.size)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                os.setsid()
                fcntl.ioctl(inner, termios.TIOCSCTTY, 0)
                for fd in (0, 1, 2):
                    os.dup2(inner, fd)
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM, signal.SIGCHLD):
                    signal.signal(number, signal.SIG_DFL)
                if passed >= 0:
                    os.set_inheritable(passed, True)
                os.execvpe(argv[0], argv, env)
            except OSError as problem:
                os.write(2, ("cannot start %s: %s\r\n" % (argv[0], problem.strerror)).encode())
            finally:
                os._exit(127)
        os.close(inner)
        os.set_blocking(self.master, False)
        self.listen(self.master, self._on_drawn)

    def listen(self, fd: int, handler: Callable[[int], None]) -> None:
        """Has `handler(fd)` called from a turn when there is something to read."""
        self.handlers[fd] = handler
        self.poller.register(fd, select.POLLIN)

    def forget(self, fd: int) -> None:
        """Hears it no more."""
        if self.handlers.pop(fd, None) is not None:
            self.poller.unregister(fd)

    def turn(self, seconds: float) -> None:
        """Waits for something to be heard, and deals with it."""
        if self.nudged:
            seconds = min(seconds, max(0.0, self.nudged - time.monotonic()))
        for each in self.windows.values():
            self.poller.modify(each.fd, select.POLLIN | (select.POLLOUT if each.queue else 0))
        for fd, events in self.poller.poll(int(seconds * 1000) + (seconds > 0)):
            window = self.windows.get(fd)
            if window is not None and events & select.POLLOUT:
                self._flush(window)
            handler = self.handlers.get(fd)
            if handler is not None and events & ~select.POLLOUT:
                handler(fd)
        if self.nudged and time.monotonic() >= self.nudged:
            self.nudged = 0.0
            self._resize(self.master, *self.size)
        self._reap()

    def _reap(self) -> None:
        if self.pid and self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.status = status

    # the program

    def type(self, data: bytes) -> None:
        """Types. A program that does not read is not waited for: what it does not take is lost, as with any terminal."""
        try:
            os.write(self.master, data)
        except OSError:
            pass

    def signal(self, number: int) -> None:
        """Sends the program a signal."""
        if self.pid and self.status is None:
            os.kill(self.pid, number)

    def _on_drawn(self, fd: int) -> None:
        try:
            data = os.read(fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:  # nobody has the terminal open any more
            self.forget(fd)
            return
        for mode, state in MODE.findall(data):
            self.modes[mode] = state
        for window in list(self.windows.values()):
            self._show(window, data)
        self.on_drawn(data)

    def finish(self) -> None:
        """After its end: what is still to be shown is shown."""
        while self.master in self.handlers and select.select([self.master], [], [], 0)[0]:
            self._on_drawn(self.master)
        until = time.monotonic() + FLUSH_S
        while any(window.queue for window in self.windows.values()) and time.monotonic() < until:
            self.turn(0.05)

    @staticmethod
    def _resize(fd: int, rows: int, columns: int) -> None:
        try:
            fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        except OSError:
            pass

    def redraw(self) -> None:
        """Has the program draw everything anew."""
        if self.master >= 0:
            rows, columns = self.size
            self._resize(self.master, rows, max(2, columns - 1))
            self.nudged = time.monotonic() + NUDGE_S

    # windows

    def _on_window(self, _fd: int) -> None:
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        connection.setblocking(False)
        window = Window(connection)
        self.windows[window.fd] = window
        self.listen(window.fd, self._on_frame)
        if self.master >= 0:
            self._catch_up(window)

    def _catch_up(self, window: Window) -> None:
        """A clean screen in the modes that the program has set, and everything drawn anew."""
        unusual = b"".join(b"\x1b[?%s%s" % each for each in self.modes.items() if (each[1] == b"h") != (each[0] == SHOWN_BY_DEFAULT))
        window.behind = False
        window.queue = b"\x18\x1b[0m\x1b[H\x1b[2J" + unusual  # first of all an end of what may have been cut off
        self._flush(window)
        self.redraw()

    def _show(self, window: Window, data: bytes) -> None:
        if window.behind:
            return
        if len(window.queue) + len(data) > WINDOW_QUEUE_BYTES:
            window.behind, window.queue = True, b""
        else:
            window.queue += data
        self._flush(window)

    def _flush(self, window: Window) -> None:
        try:
            while window.queue:
                window.queue = window.queue[window.connection.send(window.queue) :]
        except BlockingIOError:
            return
        except OSError:
            self._close(window)
            return
        if window.behind:
            self._catch_up(window)

    def _close(self, window: Window) -> None:
        self.forget(window.fd)
        self.windows.pop(window.fd, None)
        window.connection.close()

    def _on_frame(self, fd: int) -> None:
        window = self.windows[fd]
        try:
            data = window.connection.recv(READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._close(window)
            return
        window.incoming += data
        while len(window.incoming) >= FRAME.size:
            kind, length = FRAME.unpack_from(window.incoming)
            if len(window.incoming) < FRAME.size + length:
                return
            body = window.incoming[FRAME.size : FRAME.size + length]
            window.incoming = window.incoming[FRAME.size + length :]
            self._take(kind, body)

    def _take(self, kind: bytes, body: bytes) -> None:
        if kind == b"k":
            self.type(body)
        elif kind == b"s":
            rows, _, columns = body.partition(b" ")
            self.size = int(rows), int(columns)
            if not self.nudged and self.master >= 0:
                self._resize(self.master, *self.size)
        elif kind == b"a":
            told: dict[str, Any] = json.loads(body)
            self.on_answer(told["number"], told["text"])
