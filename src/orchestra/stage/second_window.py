"""A second window on a slot: it shows what the first worker's attempts print, until the slot is free."""

from __future__ import annotations

import time

from .codec import loads, read_json
from .current import read_current

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from .slot import Slot

LOOK_S = 0.25
LOOK_BYTES = 262144  # of a log, in one look


class SecondWindow:
    """Follows `current` and the log of the attempt that it names."""

    def __init__(self, slot: Slot) -> None:
        self.slot = slot
        self.place: str | None = None
        self.offset = 0
        self.rest = b""

    def watch(self, take_slot: Callable[[], bool]) -> bool:
        """True when the slot is ours; False if this window is closed before."""
        self.slot.view.say("agent %s is at work in another window: this one shows what it prints" % self.slot.agent)
        while not take_slot():
            current = read_current(self.slot.path)
            if current.get("dir") != self.place:
                self._change(current)
            self._show_new()
            self.slot.turn(time.monotonic() + LOOK_S)
            if self.slot.view.gone or self.slot.leaving:
                return False
        self._show_new()
        self._show_end()
        return True

    def _change(self, current: dict[str, Any]) -> None:
        self._show_new()
        self._show_end()
        self.place, self.offset, self.rest = current.get("dir"), 0, b""
        if self.place is not None:
            folder = "%s/%s" % (self.slot.base, self.place)
            spec = read_json(folder + "/spec.json") or {}
            self.slot.view.marker = str(spec.get("marker") or "")
            self.slot.view.say("== %s | %s #%s" % (spec.get("title"), current.get("task"), current.get("attempt")))
            if spec.get("stdin") == "screen":
                self._show_screen(folder)

    def _show_screen(self, folder: str) -> None:
        from .screen import Screen

        try:
            Screen(self.slot, folder)
        except OSError:
            pass  # it is over, or has no room for another window: what it has printed is shown

    def _show_new(self) -> None:
        if self.place is None:
            return
        try:
            with open("%s/%s/output.jsonl" % (self.slot.base, self.place), "rb", buffering=0) as file:
                if file.seek(0, 2) < self.offset:
                    self.offset, self.rest = 0, b""  # rotated
                file.seek(self.offset)
                data = file.read(LOOK_BYTES)
        except OSError:
            return
        *lines, self.rest = (self.rest + data).split(b"\n")
        self.offset += len(data)
        for line in lines:
            try:
                entry = loads(line)
                self.slot.view.lines([entry["line"]], entry["s"], False)
            except (ValueError, KeyError, TypeError):
                continue

    def _show_end(self) -> None:
        if self.slot.screen is not None:
            self.slot.screen.close()
        if self.place is None:
            return
        result = read_json("%s/%s/exit.json" % (self.slot.base, self.place))
        if isinstance(result, dict):
            outcome = result["exit"]
            self.slot.view.close_attempt("== %s, code %s, signal %s" % (outcome["reason"], outcome["code"], outcome["signal"]))
        self.slot.view.marker = ""
