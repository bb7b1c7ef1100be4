"""What a worker does about the attempt that a dead one before it had in hand."""

from __future__ import annotations

import os
import time

from .codec import read_json
from .ending import ENDING_POLL_S, ending_lost, lost_reason
from .files import unlink_quietly
from .journal import agent_value, claim_attempt

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .slot import Slot


def recover(slot: Slot) -> None:
    """Tells the result that is there, or ends what is left and says that the attempt is lost."""
    current = read_json(slot.path + "/current") or {}
    place = current.get("dir")
    folder = "%s/%s" % (slot.base, place)
    names = {"task": current.get("task"), "attempt": current.get("attempt")}
    if place and os.path.isdir(folder):
        result = read_json(folder + "/exit.json")
        if isinstance(result, dict):
            slot.record("done", **result)  # the predecessor may have died before it could say so; to say it twice is harmless
        else:
            _end_unfinished(slot, folder, names)
        slot.settle()
    unlink_quietly(slot.path + "/current")


def _end_unfinished(slot: Slot, folder: str, names: dict[str, Any]) -> None:
    slot.persist(lambda: claim_attempt(folder, {"agent": agent_value(slot.agent), "w": slot.w}), folder + "/claim")
    claim = read_json(folder + "/claim") or {}
    if str(claim.get("agent")) != slot.agent:
        return  # another slot was faster, and has it in hand
    slot.view.say("== %s #%s was left by a dead worker: ending what is left of it" % (names["task"], names["attempt"]))
    killed: dict[int, str] = {}
    for _ in ending_lost(folder, killed):
        slot.turn(time.monotonic() + 2 * ENDING_POLL_S)
    fields = {"reason": lost_reason(folder), "killed": sorted(killed)}
    slot.keep(folder + "/lost.json", dict(names, **fields))
    slot.record("lost", **names, **fields)
