"""An order from its folder to its end: read, checked, claimed, carried out. A worker loads this, and all it needs, with its first order."""

from __future__ import annotations

from .attempt import Attempt
from .claim import claim_attempt, is_claimed
from .codec import loads
from .ending import become_subreaper
from .files import read_file
from .lease import Fence
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
    try:
        spec = _spec_in(folder, slot.agent)
    except ValueError as problem:
        _refuse(slot, folder, "bad-spec", str(problem)[:TAIL_CHARS])
        return
    fence = Fence(slot.base) if spec["fence"] else None
    if fence is not None and not fence.holds():
        _refuse(slot, folder, "fenced", "there is no lease, or it is over: the coordinator may have given the task to another node")
        return
    _run(slot, folder, place, spec, fence)


def _refuse(slot: Slot, folder: str, reason: str, message: str) -> None:
    """What ran or runs is refused as claimed, whatever else is wrong with the order: the other reasons say that it never ran."""
    *parts, number = folder[len(slot.base) :].split("/")[2:]
    names: dict[str, Any] = {"task": "/".join(parts), "attempt": int(number) if number.isdigit() else 0}
    if is_claimed(folder):
        slot.record("refused", **names, reason="claimed")
        return
    slot.view.say("! refused %s #%d: %s" % (names["task"], names["attempt"], message))
    slot.record("refused", **names, reason=reason, message=message)


def _spec_in(folder: str, agent: str) -> dict[str, Any]:
    data = read_file(folder + "/spec.json")
    if data is None:
        raise ValueError("spec: no spec.json")
    spec = checked_spec(loads(data))
    if "agent" in spec and str(spec["agent"]) != agent:
        raise ValueError("spec: is for agent %s" % spec["agent"])
    return spec


def _run(slot: Slot, folder: str, place: Any, spec: dict[str, Any], fence: Fence | None) -> None:
    """`current` comes before the claim, so that a claimed attempt is never one that nobody knows to have in hand."""
    names = {"task": spec["task"], "attempt": spec["attempt"]}
    slot.take_in_hand(dir=place, **names)
    if not slot.persist(lambda: claim_attempt(folder, slot.w, slot.agent), folder + "/claim"):
        slot.record("refused", **names, reason="claimed")
    else:
        if not slot.reaper:
            slot.reaper = True
            become_subreaper()
        slot.folder, slot.names, slot.fence = folder, names, fence
        Attempt(slot, folder, spec).perform()
        slot.folder, slot.names, slot.fence = "", {}, None
        if slot.stops:
            slot.stops = [asked for asked in slot.stops if asked != (names["task"], names["attempt"])]
    slot.take_in_hand()
