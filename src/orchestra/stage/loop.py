"""The one loop of a worker: one thread, one poll.

`Loop.turn` waits for everything there is to hear. What takes time is a loop of turns, so the heart beats and orders are heard in every
state, also while a program is being ended and while the disk is full.
"""

from __future__ import annotations

import os
import select
import time

from .view import View

TYPE_CHECKING = False
if TYPE_CHECKING:
    import signal
    from collections.abc import Callable
    from typing import Any, Protocol

    from .screen import Screen

    class Running(Protocol):
        """What a turn asks of the program in hand."""

        stdin_fd: int
        stdin_queue: bytes

        def type_in(self, data: bytes) -> None:
            """Passes on what a person typed."""

        def interrupt(self) -> None:
            """Ctrl-C in the pane."""

        def answer(self, number: int, text: str) -> None:
            """Hands over the answer to a question."""

        def end(self, reason: str, grace_ms: int | None = None) -> None:
            """Asks for the end."""

        def measure(self) -> None:
            """Looks at memory and number of processes, once a beat."""

        def reaped(self, pid: int, status: int, usage: Any) -> None:
            """A process of the tree is gone."""
else:
    import _signal as signal  # the C half of the module: the other half imports enum, a third of the start-up time

BEAT_S = 1.0
MOMENT_S = 0.05  # an attempt that is over sooner is told of and shown all at once: one write to the journal, one to the pane
STDIN_QUEUE_BYTES = 65536  # typed and not read yet: more is not taken from the pane


class Loop:
    """Pane, signals, children and heart, and whatever else is listened to."""

    def __init__(self, agent: str) -> None:
        self.agent = agent
        self.view = View()
        self.poller = select.poll()
        self.handlers: dict[int, Callable[[int, int], None]] = {}
        self.pane_events = 0  # that are listened to; -1 where it is gone
        self.program: Running | None = None
        self.screen: Screen | None = None  # of a program that has a terminal of its own, while this pane shows it
        self.resized = False
        self.stopping_all = self.leaving = False
        self.interrupts = 0
        self.beat_fd = -1
        self.beat_due = 0.0
        self.held_until = 0.0  # what is said of an attempt that has just started waits for so long, if it is not over before
        self.childless = True  # no child is there that could be reaped

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
        view, moment = self.view, time.monotonic()
        wake = self.beat_due if self.beat_fd >= 0 else moment + BEAT_S
        if until is not None and until < wake:
            wake = until
        if view.due is not None:
            due = view.tick(moment)
            if due is not None and due < wake:
                wake = due
        if self.held_until:
            if moment >= self.held_until:
                self.end_hold()
            elif self.held_until < wake:
                wake = self.held_until
        if view.queue and not self.held_until:
            view.flush()
        if self.screen is not None:
            self.screen.watch()
        self._watch_pane()
        for fd, events in self.poller.poll(int((wake - moment) * 1000) + 1 if wake > moment else 0):
            handler = self.handlers.get(fd)
            if handler is not None:
                handler(fd, events)
        self._after_turn()

    def hold(self) -> None:
        """Has what is said now wait for a moment, or until `held_until` is 0 again."""
        self.held_until = time.monotonic() + MOMENT_S

    def end_hold(self) -> None:
        """What was held goes out: the attempt in hand lasts."""
        self.held_until = 0.0

    def _after_turn(self) -> None:
        program = self.program
        if program is not None:
            if not self.childless:
                self.reap()
            if self.interrupts:
                program.interrupt()
            if self.stopping_all:
                program.end("stopped")
        self.interrupts = 0
        if self.beat_fd >= 0 and time.monotonic() >= self.beat_due:
            self.beat()

    def beat(self) -> None:
        """The heartbeat, and what is done once a beat."""
        self.beat_due = time.monotonic() + BEAT_S
        try:
            os.utime(self.beat_fd)
        except OSError:
            pass
        if self.program is not None:
            self.program.measure()

    # the pane

    def _watch_pane(self) -> None:
        """The terminal is listened to for typing, for room to write, and for its end."""
        view, program = self.view, self.program
        events = select.POLLIN if view.tty else 0
        if program is not None and len(program.stdin_queue) > STDIN_QUEUE_BYTES:
            events = 0
        if self.screen is not None and len(self.screen.queue) > STDIN_QUEUE_BYTES:
            events = 0
        if view.queue and not self.held_until:
            events |= select.POLLOUT
        if view.gone:
            events = -1
        if events != self.pane_events:
            self.pane_events = events
            if events > 0 or (view.tty and not view.gone):
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
        if self.screen is not None:
            self.screen.typed(data)
        elif self.program is None:
            self.view.say("nothing runs here now: agent %s waits for an attempt" % self.agent)
        elif self.program.stdin_fd < 0:
            self.view.say("what runs here reads nothing that is typed")
        else:
            self.program.type_in(data)

    # signals and children

    def catch_signals(self) -> None:
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
            elif number == signal.SIGWINCH:
                self.resized = True

        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGCHLD, signal.SIGHUP, signal.SIGWINCH):
            signal.signal(number, note)
        for number in (signal.SIGQUIT, signal.SIGTSTP, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
            signal.signal(number, signal.SIG_IGN)

    def _on_signal_byte(self, fd: int, _events: int) -> None:
        try:
            os.read(fd, 512)
        except OSError:
            pass

    def reap(self) -> bool:
        """Takes in the dead. True if no child is left at all."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                self.childless = True
                return True
            if pid == 0:
                return False
            if self.program is not None:
                self.program.reaped(pid, status, usage)
