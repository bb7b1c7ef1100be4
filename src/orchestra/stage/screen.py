"""A window on a program that has a terminal of its own: what is typed here goes there, and what is drawn there is shown here.

The program finds its windows at a socket, `screen` in the attempt's folder, which the worker makes and hands it as standard input. So the program
and its terminal do not depend on any window: one that is made anew, by the same worker or another, connects and sees the same screen.

To the program go frames: a letter, the length of what follows in two bytes, and that: `k` keys, `s` the window's size as `<rows> <columns>`,
`a` an answer as JSON {"number", "text"}. From the program come the bytes for the terminal, as they are.
"""

from __future__ import annotations

import os
import select
import struct

from .codec import dumps

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket

    from .loop import Loop

SOCKET = "screen"
BACKLOG = 16  # windows that wait to be taken
READ_BYTES = 65536
VIEW_QUEUE_BYTES = 65536  # that wait for the terminal: more is not taken from the program
FRAME = struct.Struct("!cH")


def make_listener(folder: str) -> int:
    """The socket of an attempt. Its path may be longer than an address can be, so it is named from within its folder."""
    import socket

    listener = socket.socket(socket.AF_UNIX)
    os.chdir(folder)
    try:
        listener.bind(SOCKET)
        listener.listen(BACKLOG)
    except OSError:
        listener.close()
        raise
    finally:
        os.chdir("/")
    return listener.detach()


def connected(folder: str) -> socket.socket:
    """A connection to the program of an attempt; OSError if there is none."""
    import socket

    found = socket.socket(socket.AF_UNIX)
    try:
        os.chdir(folder)
        try:
            found.connect(SOCKET)
        finally:
            os.chdir("/")
        found.setblocking(False)
    except OSError:
        found.close()
        raise
    return found


class Screen:
    """This window's connection. Without a terminal to show anything in, it is there for the answers."""

    def __init__(self, slot: Loop, folder: str) -> None:
        self.slot, self.view = slot, slot.view
        self.socket: socket.socket | None = connected(folder)
        self.fd = self.socket.fileno()
        self.queue = b""
        self.events = 0
        slot.screen = self
        if self.view.begin_screen():
            self._send_size()
            self._write()  # before the program starts, so that it is of that size from the first

    def watch(self) -> None:
        """Before each turn: listens to what can be dealt with now."""
        if self.socket is None:
            return
        if self.slot.resized:
            self.slot.resized = False
            self._send_size()
        events = 0 if len(self.view.queue) > VIEW_QUEUE_BYTES and not self.view.gone else select.POLLIN
        if self.queue:
            events |= select.POLLOUT
        if events != self.events:
            self.events = events
            self.slot.listen(self.fd, events, self._on_ready)

    def typed(self, data: bytes) -> None:
        """Passes on what a person typed."""
        self._send(b"k", data)

    def answer(self, number: int, text: str) -> None:
        """Passes on the answer to a question."""
        self._send(b"a", dumps({"number": number, "text": text}))

    def close(self) -> None:
        """Gives the terminal back."""
        if self.socket is not None:
            found, self.socket = self.socket, None
            self.slot.forget(self.fd)
            while self._read():
                pass  # its last words
            found.close()
        self.slot.screen = None
        self.view.end_screen()

    def _send_size(self) -> None:
        try:
            size = os.get_terminal_size(self.view.fd)
        except OSError:
            return
        if size.lines and size.columns:
            self._send(b"s", b"%d %d" % (size.lines, size.columns))

    def _send(self, kind: bytes, data: bytes) -> None:
        self.queue += FRAME.pack(kind, len(data)) + data

    def _on_ready(self, _fd: int, events: int) -> None:
        if events & select.POLLOUT:
            self._write()
        if events & ~select.POLLOUT and not self._read():
            self.close()

    def _write(self) -> None:
        try:
            self.queue = self.queue[os.write(self.fd, self.queue) :]
        except BlockingIOError:
            return
        except OSError:
            self.queue = b""

    def _read(self) -> bool:
        """One read. False when nothing more comes, now or ever."""
        try:
            data = os.read(self.fd, READ_BYTES)
        except BlockingIOError:
            return self.socket is not None
        except OSError:
            data = b""
        if data and self.view.cooked is not None and not self.view.gone:
            self.view.draw(data)
        return bool(data)
