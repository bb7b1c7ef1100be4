"""How the classes of models of an API stand, from what the gateway shows of its lanes: which serves nobody, and how many more agents each bears.

Rules:
- A class is closed where every account that could serve it is: parked, refused for its pace, or full with requests waiting.
- Refused is a lane from its refusal on until something went well, or until nobody has asked for it for a while.
- What an agent takes of a limit a minute is known by what all of them took. One more is too many where the limit would not bear it for long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import msgspec

from orchestra.metering.formulas import COUNTING, DAILY, MINUTE_MS
from orchestra.quantity import show_ms

FULL_PERCENT: Final = 95
"""A limit that is used so far, with requests waiting for it, bears no further agents."""
WARN_PERCENT: Final = 70
QUIET_MS: Final = 10_000
"""A lane that was refused, and that nobody has asked for since it opened so long ago, may serve again."""
NO_CLASSES: Final = frozenset({COUNTING, "other"})
"""Lanes of requests that call no model."""

Lane = dict[str, Any]
Place = tuple[str, str, str]
"""Upstream, account, class of models."""


class Standing(msgspec.Struct, frozen=True):
    """How a class stands."""

    why: str = ""
    """Why nobody serves it; empty where somebody does."""
    more: int | None = None
    """How many more attempts its limits bear by what one takes; None where that is not known or does not matter."""
    full: str = ""
    """Which limit that is, in words."""


class _Pace:
    """What was used of a limit and how many attempts used it, as means over the last minute or so."""

    def __init__(self, now_ms: int) -> None:
        self.since_ms = self._at_ms = now_ms
        self.used = 0.0
        self.running = 0.0

    def note(self, used: int, running: int, now_ms: int) -> None:
        part = min(1.0, (now_ms - self._at_ms) / MINUTE_MS)
        self.used += (used - self.used) * part
        self.running += (running - self.running) * part
        self._at_ms = now_ms

    def known(self, now_ms: int) -> bool:
        return now_ms - self.since_ms >= MINUTE_MS and self.running >= 0.5 and self.used >= 1


class Standings:
    """Of the upstreams of one API.

    Args:
        upstreams: Their names.
    """

    def __init__(self, upstreams: Sequence[str]) -> None:
        self._upstreams = tuple(upstreams)
        self._refused_ms: dict[Place, int] = {}
        """Lane -> when it was last seen closed; until it serves again."""
        self._paces: dict[tuple[str, str], _Pace] = {}
        self.parked = ""
        """Why no account serves anybody."""
        self.classes: dict[str, Standing] = {}

    @property
    def refused(self) -> frozenset[Place]:
        """The lanes that are refused for their pace now."""
        return frozenset(self._refused_ms)

    def look(self, lanes: Sequence[Lane], accounts: Mapping[tuple[str, str], int], running: Mapping[str, int], now_ms: int) -> None:
        """Takes in how things stand.

        Args:
            lanes: Those of the upstreams, as `limits` of the gateway shows them.
            accounts: (upstream, account) -> for how long it is parked.
            running: Class -> attempts that are at work; those of which the class is not known count as of "".
            now_ms: Steady time.
        """
        lanes = [lane for lane in lanes if lane["model_class"] not in NO_CLASSES]
        known = dict(accounts)
        for lane in lanes:  # a login that is passed through is an account too, and is in no configuration
            known.setdefault((lane["upstream"], lane["account"]), lane.get("parked_ms", 0))
        self.parked = ""
        if known and all(known.values()):
            upstream, account = min(known, key=lambda each: known[each])
            self.parked = f"the account {upstream}.{account} is used up for {show_ms(min(known.values()))}"
        self._note_refused(lanes, now_ms)
        by_class: dict[str, list[Lane]] = {}
        for lane in lanes:
            by_class.setdefault(lane["model_class"], []).append(lane)
        unknown = running.get("", 0)
        self.classes = {name: self._stands(name, each, known, running.get(name, 0) + unknown, now_ms) for name, each in by_class.items()}
        self._paces = {key: pace for key, pace in self._paces.items() if key[0] in by_class}

    def _note_refused(self, lanes: Sequence[Lane], now_ms: int) -> None:
        still: dict[Place, int] = {}
        for lane in lanes:
            place = place_of(lane)
            since_ms = self._refused_ms.get(place, now_ms)
            if lane["closed_ms"]:
                still[place] = now_ms
            elif lane.get("refusals") and (lane["waiting"] or (place in self._refused_ms and now_ms - since_ms <= QUIET_MS)):
                still[place] = since_ms
        self._refused_ms = still

    def _stands(self, name: str, lanes: Sequence[Lane], accounts: Mapping[tuple[str, str], int], running: int, now_ms: int) -> Standing:
        used = {lane["upstream"] for lane in lanes}
        open_accounts = [account for account, parked_ms in accounts.items() if account[0] in used and not parked_ms]
        mine = [lane for lane in lanes if (lane["upstream"], lane["account"]) in open_accounts]
        more, full = self._more(name, mine, running, now_ms)
        if len(mine) < len(open_accounts):
            return Standing()  # an account nobody has used for it yet
        whys = [self._trouble(lane) for lane in mine]
        why = whys[0] if whys and all(whys) else ""
        if not mine:
            why = f"every account for {name} is used up"
        return Standing(why, more, full)

    def _trouble(self, lane: Lane) -> str:
        where = f"{lane['upstream']}.{lane['account']} ({lane['model_class']})"
        if place_of(lane) in self._refused_ms:
            return f"the provider refuses {where} for its pace, and {lane['waiting']} requests wait"
        full = [limit for limit in lane["limits"] if limit["used_percent"] >= FULL_PERCENT]
        if not full or not lane["waiting"]:
            return ""
        what = f"{full[0]['name'].replace('_', ' ')} of {where}"
        return f"{full[0]['used_percent']} % of the {what} are used and {lane['waiting']} requests wait for them"

    def _more(self, name: str, lanes: Sequence[Lane], running: int, now_ms: int) -> tuple[int | None, str]:
        sums: dict[str, tuple[int, int]] = {}
        for lane in lanes:
            for limit in lane["limits"]:
                if limit["name"] != DAILY:
                    used, most = sums.get(limit["name"], (0, 0))
                    sums[limit["name"]] = used + limit["used"], most + limit["limit"]
        found: tuple[int | None, str] = (None, "")
        for limit_name, (used, most) in sums.items():
            pace = self._paces.setdefault((name, limit_name), _Pace(now_ms))
            pace.note(used, running, now_ms)
            if not pace.known(now_ms):
                continue
            each = pace.used / pace.running
            more = max(int(most * FULL_PERCENT / 100 / each) - running, 0 if running else 1)
            if found[0] is None or more < found[0]:
                what = limit_name.replace("_", " ")
                found = (
                    more,
                    f"an attempt takes about {max(1, round(each))} {what} a minute of {most} for {name}, and {running} are at work",
                )
        return found


def place_of(lane: Lane) -> Place:
    """Returns what names a lane."""
    return lane["upstream"], lane["account"], lane["model_class"]
