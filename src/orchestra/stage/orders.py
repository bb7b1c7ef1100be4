"""An order from its folder to its end: read, checked, claimed, carried out. A worker loads this, and all it needs, with its first order."""

from __future__ import annotations

import os

from .attempt import Attempt
from .codec import loads
from .ending import become_subreaper
from .files import read_bytes, unlink_quietly
from .journal import agent_value, claim_attempt
from .output import TAIL_CHARS
from .spec import checked_spec
from .telling import short

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from .slot import Slot


def carry_out(slot: Slot, order: dict[str, Any]) -> None:
    """Runs the attempt that an order names, or says in the journal why not."""
    place = order.get("dir")
    parts = place.split("/") if isinstance(place, str) else []
    if len(parts) < 3 or parts[0] != "attempts" or not all(parts) or {".", ".."} & set(parts):
        slot.view.say("! an order without a proper folder was dropped: %s" % short(place))
        return
    folder = "%s/%s" % (slot.base, place)
    task, attempt = "/".join(parts[1:-1]), int(parts[-1]) if parts[-1].isdigit() else 0
    if os.path.exists(folder + "/claim"):
        slot.record("refused", task=task, attempt=attempt, reason="claimed")
        return
    try:
        spec = _spec_in(folder, slot.agent)
    except ValueError as problem:
        slot.view.say("! refused %s: %s" % (place, problem))
        slot.record("refused", task=task, attempt=attempt, reason="bad-spec", message=str(problem)[:TAIL_CHARS])
        return
    _run(slot, folder, place, spec)


def _spec_in(folder: str, agent: str) -> dict[str, Any]:
    data = read_bytes(folder + "/spec.json")
    if data is None:
        raise ValueError("spec: no spec.json")
    spec = checked_spec(loads(data))
    if "agent" in spec and str(spec["agent"]) != agent:
        raise ValueError("spec: is for agent %s" % spec["agent"])
    return spec


def _run(slot: Slot, folder: str, place: Any, spec: dict[str, Any]) -> None:
    """`current` comes before the claim, so that a claimed attempt is never one that nobody knows to have in hand."""
    names = {"task": spec["task"], "attempt": spec["attempt"]}
    slot.keep(slot.path + "/current", dict({"dir": place}, **names))
    identity = {"agent": agent_value(slot.agent), "w": slot.w}
    if not slot.persist(lambda: claim_attempt(folder, identity), folder + "/claim"):
        slot.record("refused", reason="claimed", **names)
    else:
        if not slot.reaper:
            slot.reaper = True
            become_subreaper()
        slot.folder, slot.names, slot.child = folder, names, {}
        Attempt(slot, folder, spec).perform()
        slot.folder, slot.names = "", {}
        slot.stops = [asked for asked in slot.stops if asked != (names["task"], names["attempt"])]
    unlink_quietly(slot.path + "/current")
