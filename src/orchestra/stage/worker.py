"""The worker: one process in a tmux window, which runs the attempts of one slot of a node. The contract is docs/node.md.

Two hundred of these start at once and then mostly wait. So only C modules and `os` are imported before `ready` is written, an idle worker
makes one system call or two a second, and a short attempt costs about a fork and a few small files.
"""

from __future__ import annotations

import fcntl
import os
import select
import sys

from .codec import loads
from .current import read_current
from .journal import framed_bytes, now_ms
from .processes import boot_id
from .slot import Slot

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

INBOX_READ_BYTES = 65536
INBOX_LINE_BYTES_MAX = 4096


class Worker:
    """Takes the slot, hears its inbox, and has its orders carried out."""

    def __init__(self, base: str, agent: str) -> None:
        self.slot = Slot(base, agent)
        self.orders: list[dict[str, Any]] = []
        self.inbox_rest = b""

    def live(self) -> None:
        """Takes the slot, as soon as it is free, and works until it is to leave."""
        slot = self.slot
        slot.catch_signals()
        os.makedirs(slot.path, mode=0o700, exist_ok=True)
        lock = os.open(slot.path + "/lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        if not locked(lock) and not self._watch_first(lock):
            return
        self._settle_in(lock)
        while not (slot.leaving or slot.view.gone) or self.orders:
            if self.orders and not slot.stopping_all:
                self._carry_out(self.orders.pop(0))
                self._tell_waiting()
            elif slot.leaving or slot.view.gone:
                break
            else:
                slot.turn()
        slot.record("left")
        slot.view.say("agent %s has left" % slot.agent)
        slot.settle()
        slot.view.flush()

    def _watch_first(self, lock: int) -> bool:
        from .second_window import SecondWindow

        return SecondWindow(self.slot).watch(lambda: locked(lock))

    def _carry_out(self, order: dict[str, Any]) -> None:
        from .orders import carry_out

        carry_out(self.slot, order)

    # settling in

    def _settle_in(self, lock: int) -> None:
        """Identity, heart, inbox; then what a dead predecessor left; then `ready`."""
        slot = self.slot
        slot.beat_fd = slot.persist(lambda: os.open(slot.path + "/beat", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600), "beat")
        boot = boot_id()
        identity = b'{"w":"%s","pid":%d,"boot":"%s"}' % (slot.w.encode(), os.getpid(), boot.encode())

        def write_identity() -> None:
            os.ftruncate(lock, 0)
            os.pwrite(lock, identity, 0)

        slot.persist(write_identity, "lock")
        slot.beat()
        try:
            os.mkfifo(slot.path + "/inbox", 0o600)
        except FileExistsError:
            pass
        inbox = os.open(slot.path + "/inbox", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        if read_current(slot.path):
            from .recovery import recover

            recover(slot)
        slot.listen(inbox, select.POLLIN, self._on_inbox)
        self._ready(boot)
        self._tell_waiting()

    def _ready(self, boot: str) -> None:
        """Written by hand: the JSON codec is made with the first order."""
        slot = self.slot
        body = '{"k":"ready","ms":%d,"agent":%s,"w":"%s","boot":"%s","python":"%d.%d.%d"}'
        name = slot.agent if slot.agent.isdigit() else '"%s"' % slot.agent
        slot.frames.append(framed_bytes((body % ((now_ms(), name, slot.w, boot) + tuple(sys.version_info[:3]))).encode()))
        slot.write_frames()

    def _tell_waiting(self) -> None:
        self.slot.view.say("agent %s waits" % self.slot.agent)

    # orders

    def _on_inbox(self, fd: int, _events: int) -> None:
        try:
            data = os.read(fd, INBOX_READ_BYTES)
        except OSError:
            return
        *lines, self.inbox_rest = (self.inbox_rest + data).split(b"\n")
        self.inbox_rest = self.inbox_rest[-INBOX_LINE_BYTES_MAX:]
        for line in lines:
            try:
                order = loads(line)
            except ValueError:
                continue
            if isinstance(order, dict):
                self._take_order(order)

    def _take_order(self, order: dict[str, Any]) -> None:
        slot, op = self.slot, order.get("op")
        if op == "run":
            if slot.folder and slot.folder == "%s/%s" % (slot.base, order.get("dir")):
                slot.record("refused", reason="claimed", **slot.names)
            else:
                self.orders.append(order)
        elif op == "leave":
            slot.leaving = True
            slot.stopping_all = slot.stopping_all or bool(order.get("now"))
        elif op == "answer":
            self._pass_on(order)
        elif op == "stop":
            asked = (order.get("task"), order.get("attempt"))
            grace_ms = order.get("grace_ms")
            if asked == (slot.names.get("task"), slot.names.get("attempt")) and slot.program is not None:
                slot.program.end("stopped", grace_ms if isinstance(grace_ms, int) else None)
            slot.stops = [*slot.stops[-99:], asked]  # for an order that waits, and for the checks that are still to come

    def _pass_on(self, order: dict[str, Any]) -> None:
        """An answer, if it is for the attempt in hand."""
        slot, number, text = self.slot, order.get("number"), order.get("text")
        ours = (order.get("task"), order.get("attempt")) == (slot.names.get("task"), slot.names.get("attempt"))
        if ours and slot.program is not None and isinstance(number, int) and isinstance(text, str):
            slot.program.answer(number, text)


def locked(lock: int) -> bool:
    """Whether the slot is ours now."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def main(argv: list[str]) -> int:
    """`<node's folder> <agent id>`."""
    if len(argv) != 2 or "/" in argv[1] or not argv[1].replace("-", "").replace("_", "").replace(".", "").isalnum():
        os.write(2, b"usage: worker <node's folder> <agent id>\n")
        return 2
    base = os.path.realpath(argv[0])
    os.umask(0o077)
    os.chdir("/")  # holds no folder open that somebody may want to remove
    Worker(base, argv[1]).live()
    return 0
