"""The courier: one process a node, which carries orders in and the journal out. The contract is docs/node.md.

- It decides nothing. It keeps nothing that is not on disk, so that it may be killed and started anew at any time.
- One thread, one poll: a bell from a worker, a request, the death of a worker. What takes time goes on in steps between them.
- What it tells of a worker's death comes after everything that the worker wrote.
"""

from __future__ import annotations

import argparse
import os
import select
import time
from typing import Any

from .codec import loads
from .courier_ops import Operations
from .folder import Refused
from .journal import agent_value
from .live_workers import Workers
from .machine import Facts
from .reaping import Reaping
from .wire import Tail, Wire

REQUEST_BYTES_MAX = 64 << 20
STEP_S = 0.03  # between two looks at processes that are being ended
FLUSH_S = 5.0  # for the last replies, after standard input has ended


class Courier:
    """Requests in, frames out."""

    def __init__(self, base: str, nonce: str, options: argparse.Namespace) -> None:
        self.base = base
        self.beat_check_s = options.beat_check_ms / 1000
        self.backstop_s = options.backstop_ms / 1000
        self.workers = Workers(base, options.beat_missed_ms / 1000)
        self.facts = Facts(base)
        self.wire = Wire(nonce)
        self.tail = Tail(base, self.wire)
        self.reaping = Reaping(base, self.workers, self.wire)
        self.operations = Operations(base, self.workers, self.facts, self.tail, self.reaping)
        self.incoming = bytearray()
        self.beat_due = 0.0
        self.poller = select.poll()
        self.polled: dict[int, int] = {}

    def run(self) -> None:
        """Until standard input ends or nobody reads."""
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        try:
            os.mkfifo(self.base + "/bell", 0o600)
        except FileExistsError:
            pass
        bell = os.open(self.base + "/bell", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self.wire.send_json("hello", self.facts.fixed())
        try:
            while self._turn(bell):
                pass
            self._finish()
        except BrokenPipeError:
            pass

    def _turn(self, bell: int) -> bool:
        self.wire.flush()
        wanted = {0: select.POLLIN, bell: select.POLLIN}
        wanted.update({one.pidfd: select.POLLIN for one in self.workers.watched.values() if one.pidfd >= 0})
        if self.wire.outgoing:
            wanted[1] = select.POLLOUT
        self._poll_for(wanted)
        pause = STEP_S if self.reaping.in_hand else min(self.backstop_s, max(0.0, self.beat_due - time.monotonic()))
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

    def _pump(self) -> None:
        if self.tail.pump():
            self.workers.refresh()

    def _watch(self, ready: list[int]) -> None:
        """The journal first: what a worker wrote is told before its death."""
        self._pump()
        dead = self.workers.gone(ready)
        if dead:
            self._pump()
        for one in dead:
            self.wire.send_json("notice", {"n": "worker-gone", "agent": agent_value(one.agent), "w": one.w})
        if time.monotonic() >= self.beat_due:
            self.beat_due = time.monotonic() + self.beat_check_s
            self.workers.refresh()
            for notice in self.workers.hearts():
                self.wire.send_json("notice", notice)
        self.reaping.step()

    def _finish(self) -> None:
        """The last replies, for a reader that still reads."""
        deadline = time.monotonic() + FLUSH_S
        while self.reaping.in_hand and time.monotonic() < deadline:
            select.select([], [], [], STEP_S)
            self.reaping.step()
        while self.wire.outgoing and time.monotonic() < deadline:
            self.wire.flush()
            if self.wire.outgoing:
                select.select([], [1], [], max(0.0, deadline - time.monotonic()))

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
                request = loads(line)
            except ValueError as problem:
                raise Refused("bad-request", str(problem)) from None
            reply = self.operations.carry_out(request)
        except Refused as refused:
            reply = {"error": {"code": refused.code, "message": str(refused)}}
        except FileNotFoundError as problem:
            reply = {"error": {"code": "absent", "message": str(problem)}}
        except (OSError, ValueError, TypeError) as problem:
            reply = {"error": {"code": "io", "message": str(problem)}}
        if reply is not None:
            self.wire.reply(request.get("id") if isinstance(request, dict) else None, reply)


def main(argv: list[str]) -> int:
    """`<node's folder> --nonce <8 hex>`."""
    parser = argparse.ArgumentParser(prog="courier")
    parser.add_argument("dir")
    parser.add_argument("--nonce", required=True)
    parser.add_argument("--beat-check-ms", type=int, default=2000, help="between two looks at the hearts")
    parser.add_argument("--beat-missed-ms", type=int, default=5000, help="from which age a heartbeat is missed")
    parser.add_argument("--backstop-ms", type=int, default=500, help="the journal is looked at this often even if no bell rings")
    arguments = parser.parse_args(argv)
    if not arguments.nonce.isalnum():
        parser.error("--nonce is not hexadecimal")
    os.umask(0o077)
    base = os.path.realpath(arguments.dir)
    os.makedirs(base, mode=0o700, exist_ok=True)
    os.chdir("/")
    Courier(base, arguments.nonce, arguments).run()
    return 0
