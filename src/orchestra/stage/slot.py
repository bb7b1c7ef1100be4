"""The slot of one agent on the node: its folder, its voice in the journal, and the attempt it has in hand.

What is on disk is true. What the disk refuses is tried again, turn after turn, and nothing goes on before it is written.
"""

from __future__ import annotations

import os
import time

from .codec import dumps
from .current import Current
from .files import write_atomic
from .journal import RECORD_BYTES_MAX, Journal, framed_bytes, now_ms
from .loop import BEAT_S, Loop
from .processes import identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .lease import Fence


class Slot(Loop):
    """What an attempt and its programs know of the worker that runs them."""

    def __init__(self, base: str, agent: str) -> None:
        super().__init__(agent)
        self.base = base
        self.path = "%s/agents/%s" % (base, agent)
        self.w = identity_of(os.getpid())
        self.signature = b'"agent":%s,"w":"%s"' % ((agent if agent.isdigit() else '"%s"' % agent).encode(), self.w.encode())
        self.journal = Journal(base)
        self.frames: list[bytes] = []  # records that are not in the journal yet, in order
        self.programs = 0  # that had a control group
        self.current = Current(self.path)
        self.in_hand: dict[str, Any] = {}  # as `current` has it
        self.folder = ""  # of the attempt in hand
        self.names: dict[str, Any] = {}
        self.stops: list[tuple[Any, Any]] = []
        self.asked = 0  # number of the question that the agent of the attempt in hand waits to be answered
        self.fence: Fence | None = None
        self.reaper = False  # of the orphans of its agents

    def beat(self) -> None:
        """The heartbeat, another try for what the disk refused, and a look at the fence."""
        super().beat()
        if self.frames:
            self.write_frames()
        if self.fence is not None and self.program is not None and not self.fence.holds():
            self.program.end("fenced")

    # telling

    def record(self, kind: str, **fields: Any) -> None:
        """Adds a record to the journal, in order; what the disk refuses is tried again each second."""
        self.tell(kind, dumps(fields)[1:-1])

    def tell(self, kind: str, fields: bytes, *, at_once: bool = True) -> None:
        """The same with the fields in JSON. What need not be told at once goes out with what follows, or when the attempt has run for a moment."""
        body = b'{"k":"%s","ms":%d,%s%s%s}' % (kind.encode(), now_ms(), self.signature, b"," if fields else b"", fields)
        self.frames.append(framed_bytes(body))
        if at_once:
            self.write_frames()

    def write_frames(self) -> None:
        """As many as the disk takes: all in one write where they are small, else one by one."""
        frames = self.frames
        together = b"".join(frames)
        if len(together) <= RECORD_BYTES_MAX:
            if self.journal.append(together):
                frames.clear()
            return
        while frames and self.journal.append(frames[0]):
            del frames[0]

    def end_hold(self) -> None:
        """That the attempt in hand has started is told now."""
        super().end_hold()
        self.write_frames()

    def settle(self) -> None:
        """Turns until the journal has everything."""
        if self.frames:
            self.view.say("! the journal cannot be written: trying each second")
        while self.frames:
            self.turn()

    # keeping

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

    def keep(self, path: str, data: bytes) -> None:
        """Writes a file that must not be missing."""
        self.persist(lambda: write_atomic(path, data), path)

    def take_in_hand(self, **facts: Any) -> None:
        """What `current` says; nothing means that the slot is idle."""
        self.in_hand = facts
        self.persist(lambda: self.current.write(facts), self.current.path)

    def note_child(self, child: dict[str, Any]) -> None:
        """Who runs, for a successor. The worker goes on without it if the disk is full: the environment names the folder too."""
        self.in_hand["child"] = child
        try:
            self.current.write(self.in_hand)
        except OSError:
            pass

    def note_intent(self, reason: str) -> None:
        """Why it is being ended. Written before the first signal of an end."""
        self.note_child(dict(self.in_hand.get("child", {}), intent=reason))

    def stop_asked(self, names: dict[str, Any]) -> bool:
        """Whether a stop came for this attempt."""
        return (names["task"], names["attempt"]) in self.stops
