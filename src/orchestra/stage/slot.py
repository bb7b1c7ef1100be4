"""The slot of one agent on the node: its folder, its voice in the journal, and the attempt it has in hand.

What is on disk is true. What the disk refuses is tried again, turn after turn, and nothing goes on before it is written.
"""

from __future__ import annotations

import os
import time

from .codec import dumps
from .files import write_atomic
from .journal import agent_value, append_record, framed, now_ms
from .loop import BEAT_S, Loop
from .processes import identity_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any


class Slot(Loop):
    """What an attempt and its programs know of the worker that runs them."""

    def __init__(self, base: str, agent: str) -> None:
        super().__init__(agent)
        self.base = base
        self.path = "%s/agents/%s" % (base, agent)
        self.w = identity_of(os.getpid())
        self.frames: list[bytes] = []  # records that the disk did not take yet, in order
        self.programs = 0  # that had a control group
        self.folder = ""  # of the attempt in hand
        self.names: dict[str, Any] = {}
        self.child: dict[str, Any] = {}
        self.stops: list[tuple[Any, Any]] = []
        self.reaper = False  # of the orphans of its agents

    def beat(self) -> None:
        """The heartbeat, and another try for what the disk refused."""
        super().beat()
        if self.frames:
            self.write_frames()

    def record(self, kind: str, **fields: Any) -> None:
        """Adds a record to the journal, in order; what the disk refuses is tried again each second."""
        record = {"k": kind, "ms": now_ms(), "agent": agent_value(self.agent), "w": self.w}
        record.update(fields)
        self.frames.append(framed(record))
        self.write_frames()

    def write_frames(self) -> None:
        """As many as the disk takes."""
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

    def stop_asked(self, names: dict[str, Any]) -> bool:
        """Whether a stop came for this attempt."""
        return (names["task"], names["attempt"]) in self.stops
