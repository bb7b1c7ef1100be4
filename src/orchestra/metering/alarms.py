"""What may become an alarm if it lasts: a limit that is near, a pace that is refused, an upstream that is down. Within five minutes it is nobody's affair.

What is near is looked at anew each time, since the gateway tells of a limit only when something happens to it. Only the windows of a subscription are known
from what it tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from orchestra.metering.standing import WARN_PERCENT, Lane, Place

ALARM_MS: Final = 300_000
"""What lasts no longer than this needs nobody."""
ALARM: Final = "limit_alarm"
CALM: Final = "limit_calm"
DOWN: Final = "upstream_down"
BACK: Final = "upstream_back"
WINDOW: Final = "window_"


class Fact(msgspec.Struct, frozen=True):
    """Something that is to be told, from a notice or from our own watching (then without a cursor)."""

    kind: str
    facts: dict[str, str | int]
    cursor: int = 0


class Alarms:
    """Since when what lasts, and what was told of it."""

    def __init__(self) -> None:
        self._since: dict[str, int] = {}
        self._told: set[str] = set()
        self._windows: set[str] = set()

    def hear(self, kind: str, fields: Mapping[str, Any]) -> None:
        """Takes in what the gateway tells of the window of a subscription."""
        if str(fields.get("limit", "")).startswith(WINDOW):
            (self._windows.add if kind == "limit_warning" else self._windows.discard)(_limit(fields, str(fields["limit"])))

    def look(self, lanes: Sequence[Lane], refused: Iterable[Place], down: Iterable[str], now_ms: int) -> list[Fact]:
        """Takes in how things stand; returns what has lasted too long, and what is over that was told."""
        paces = {f"{upstream}.{account} {name} pace" for upstream, account, name in refused}
        near = {_limit(lane, each["name"]) for lane in lanes for each in lane["limits"] if each["used_percent"] >= WARN_PERCENT}
        downs = {f"{DOWN} {name}" for name in down}
        lasting = paces | near | downs | self._windows
        found: list[Fact] = []
        for key in sorted(self._told - lasting):
            if key.startswith(DOWN):
                found.append(Fact(BACK, {"upstream": key.partition(" ")[2]}))
            elif key.endswith(" pace"):  # of the others the gateway tells
                found.append(Fact(CALM, {"limit": key}))
        self._told &= lasting
        self._since = {key: self._since.get(key, now_ms) for key in sorted(lasting)}
        minutes = ALARM_MS // 60_000
        for key, since_ms in self._since.items():
            if now_ms - since_ms > ALARM_MS and key not in self._told:
                self._told.add(key)
                is_down = key.startswith(DOWN)
                name = key.partition(" ")[2]
                found.append(
                    Fact(DOWN, {"upstream": name, "minutes": minutes}) if is_down else Fact(ALARM, {"limit": key, "minutes": minutes})
                )
        return found


def _limit(where: Mapping[str, Any], name: str) -> str:
    return f"{where.get('upstream', '')}.{where.get('account', '')} {where.get('model_class', '')} {name}"
