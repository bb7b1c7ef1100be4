"""What a worker does about the attempt that a dead one before it had in hand."""

from __future__ import annotations

import os
import time

from .claim import claim_attempt, read_claim
from .codec import dumps, read_json
from .current import read_current
from .ending import ENDING_POLL_S, ending_lost, forget_groups, lost_reason
from .journal import agent_value
from .temporary import forget_temporary

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .slot import Slot


def recover(slot: Slot) -> None:
    """Tells the result that is there, or ends what is left and says that the attempt is lost."""
    current = read_current(slot.path)
    place = current.get("dir")
    if not place:
        return
    folder = "%s/%s" % (slot.base, place)
    if os.path.isdir(folder):
        result = read_json(folder + "/exit.json")
        if isinstance(result, dict):
            slot.record("done", **result)  # the predecessor may have died before it could say so; to say it twice is harmless
        else:
            _end_unfinished(slot, folder, current)
        slot.settle()
    slot.take_in_hand()


def _end_unfinished(slot: Slot, folder: str, current: dict[str, Any]) -> None:
    names, child = {"task": current.get("task"), "attempt": current.get("attempt")}, current.get("child") or {}
    slot.persist(lambda: claim_attempt(folder, slot.w, slot.agent), folder + "/claim")
    claim = read_claim(folder)
    if claim is None or claim["agent"] != agent_value(slot.agent):
        return  # another slot was faster, and has it in hand
    slot.view.say("== %s #%s was left by a dead worker: ending what is left of it" % (names["task"], names["attempt"]))
    killed: dict[int, str] = {}
    for _ in ending_lost(folder, child, killed):
        slot.turn(time.monotonic() + 2 * ENDING_POLL_S)
    forget_groups(child)
    forget_temporary(folder)
    fields = {"reason": lost_reason(child), "killed": sorted(killed)}
    slot.keep(folder + "/lost.json", dumps(dict(names, **fields)))
    slot.record("lost", **names, **fields)
