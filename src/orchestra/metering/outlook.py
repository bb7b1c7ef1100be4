"""What the gateway's answers mean for the tasks that wait and those that failed: which kinds of agents may start, and whom a failure is to blame on.

Fed with the answers of `health`, `limits`, `budgets` and `events` of the gateway's administration; times are steady milliseconds of whoever asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestra.core.model import OutcomeKind, TaskSpec
from orchestra.ids import AttemptId
from orchestra.quantity import show_ms, show_usd
from orchestra.scheduling.admission import ApiGate

FULL_PERCENT: Final = 95
"""A limit that is used so far, with requests waiting for it, bears no further agents."""
EXCUSED_MS: Final = 120_000
"""How long after a pause of the API a failure may still be its fault: a CLI tries for a while before it gives up."""
ALARM_MS: Final = 300_000
"""A limit that is near for no longer than this needs nobody."""
STEPS: Final = 8
"""After a pause 1, 2, 4 ... attempts are let in, at each look; after so many looks all that want to."""
PROBE_MS: Final = 10_000
"""How often one attempt is let in while an API fails: nothing else finds out that it works again."""
REFUSED_MAX: Final = 10_000
API_CAUSES: Final = frozenset({"rate-limited", "quota", "overloaded", "network"})
BUDGET_CAUSE: Final = "budget"
SHARED: Final = frozenset({"day", "plan"})
"""Scopes of budgets that a single task is not to blame for."""
PAUSE: Final = "pause"
PARK: Final = "park"
STOP: Final = "stop"
TOLD: Final = frozenset(
    {
        *("limit_warning", "limit_calm", "account_parked", "account_resumed", "key_quarantined"),
        *("upstream_down", "upstream_back", "budget_warning", "budget_spent", "price_unknown", "key_changed", "journal_spoilt"),
    }
)
"""Notices that people and parents are told of; the others are the gateway's own affair."""
ALARM: Final = "limit_alarm"


class Fact(msgspec.Struct, frozen=True):
    """Something that is to be told, from a notice or from our own watching (then without a cursor)."""

    kind: str
    facts: dict[str, str | int]
    cursor: int = 0


Ruling = tuple[OutcomeKind, str]
"""What an attempt ended as, and why."""


class Use(msgspec.Struct, frozen=True):
    """How much of the limits of an API is used in the fullest of its classes; 0 as a limit is none known."""

    rpm: int = 0
    rpm_limit: int = 0
    tpm: int = 0
    tpm_limit: int = 0


class Outlook:
    """What is known of the APIs.

    Args:
        kinds: Agent kind -> the APIs it uses, for those that use any.
        upstreams: Name of an upstream -> the API it speaks.
        on_spent: What happens when the budget of a day or plan is spent: `pause`, `park` (critical tasks go on), `stop`.
    """

    def __init__(self, kinds: Mapping[str, tuple[str, ...]], upstreams: Mapping[str, str], on_spent: str) -> None:
        self._kinds = kinds
        self._upstreams = upstreams
        self._on_spent = on_spent
        self._trouble: dict[str, str] = {}
        """API -> why it serves nobody now."""
        self._away = ""
        self._closed_ms: dict[str, int] = {}
        """API -> when it was last seen to serve nobody."""
        self._probed_ms: dict[str, int] = {}
        """API that fails -> when an attempt was last let in to try it."""
        self._probing: set[str] = set()
        self._steps: dict[str, int] = {}
        """API -> looks since it serves again."""
        self._spent: dict[tuple[str, str], int] = {}
        """(scope, name) -> the budget that is spent."""
        self._refused: dict[str, tuple[str, int]] = {}
        """Attempt -> scope of the budget that refused it, and how much that is."""
        self._near: dict[str, int] = {}
        """Limit -> since when it is near; negative once an alarm was given."""
        self.use: dict[str, Use] = {}
        """API -> how much of its limits is used."""

    # --- what is seen ------------------------------------------------------------------------------------------------

    def away(self, why: str, now_ms: int) -> None:
        """The gateway does not answer."""
        self._away = why
        for api in set(self._upstreams.values()):
            self._shut(api, now_ms)

    def look(self, health: Mapping[str, Any], limits: Mapping[str, Any], budgets: Mapping[str, Any], now_ms: int) -> list[Fact]:
        """Takes in how things stand; returns what is to be told because of it."""
        self._away = ""
        lanes = limits["lanes"]
        for api in dict.fromkeys(self._upstreams.values()):
            mine = [lane for lane in lanes if self._upstreams.get(lane["upstream"]) == api]
            self.use[api] = _use(mine)
            self._trouble[api] = self._why_closed(api, mine, health)
            self._probe(api, health, now_ms)
            if self._trouble[api]:
                self._shut(api, now_ms)
            elif api in self._steps:
                self._steps[api] += 1
                if self._steps[api] > STEPS:
                    del self._steps[api]
        known = {(row["scope"], row["name"]): row["budget_usd_micros"] for row in budgets["budgets"]}
        self._spent = {key: budget for key, budget in self._spent.items() if known.get(key) == budget}
        return self._alarms(now_ms)

    def _probe(self, api: str, health: Mapping[str, Any], now_ms: int) -> None:
        self._probing.discard(api)
        if not self._fails(api, health):
            self._probed_ms.pop(api, None)
        elif not health["open"] and now_ms - self._probed_ms.setdefault(api, now_ms) >= PROBE_MS:
            self._probed_ms[api] = now_ms
            self._probing.add(api)

    def _fails(self, api: str, health: Mapping[str, Any]) -> bool:
        names = [name for name, kind in self._upstreams.items() if kind == api]
        return bool(names) and all(name in health["upstreams_down"] for name in names)

    def _shut(self, api: str, now_ms: int) -> None:
        self._closed_ms[api] = now_ms
        self._steps[api] = 0

    def _why_closed(self, api: str, lanes: list[dict[str, Any]], health: Mapping[str, Any]) -> str:
        names = [name for name, kind in self._upstreams.items() if kind == api]
        if self._fails(api, health):
            return f"the model API {names[0]} fails; one attempt at a time tries whether it works again"
        parked = {name: each["parked_ms"] for name, each in health["accounts"].items() if name.partition(".")[0] in names}
        if parked and all(parked.values()):
            return f"the account {min(parked, key=lambda name: parked[name])} is used up for {show_ms(min(parked.values()))}"
        for lane in lanes:
            full = [limit for limit in lane["limits"] if limit["used_percent"] >= FULL_PERCENT]
            if full and lane["waiting"]:
                what = f"{full[0]['name'].replace('_', ' ')} of {lane['upstream']}.{lane['account']} ({lane['model_class']})"
                return f"{full[0]['used_percent']} % of the {what} are used and {lane['waiting']} requests wait for them"
        return ""

    def _alarms(self, now_ms: int) -> list[Fact]:
        late = [name for name, since in self._near.items() if since >= 0 and now_ms - since > ALARM_MS]
        for name in late:
            self._near[name] = -1
        return [Fact(ALARM, {"limit": name, "minutes": ALARM_MS // 60_000}) for name in late]

    def hear(self, notice: Mapping[str, Any], now_ms: int) -> Fact | None:
        """Takes in a notice; returns what is to be told because of it."""
        kind, fields = notice["kind"], notice["fields"]
        if kind not in TOLD:
            return None
        limit = "{upstream}.{account} {model_class} {limit}".format_map(_Blank(fields))
        if kind == "limit_warning":
            self._near.setdefault(limit, now_ms)
        elif kind == "limit_calm":
            self._near.pop(limit, None)
        elif kind == "budget_spent":
            key = fields["scope"], fields["name"]
            attempt = str(fields.get("attempt", ""))
            if len(self._refused) < REFUSED_MAX:
                self._refused[attempt] = fields["scope"], fields["budget_usd_micros"]
            if self._spent.get(key) == fields["budget_usd_micros"]:
                return None  # told already
            self._spent[key] = fields["budget_usd_micros"]
        facts = {name: value if isinstance(value, int) else str(value) for name, value in fields.items()}
        return Fact(kind, facts, notice["seq"])

    # --- what follows ------------------------------------------------------------------------------------------------

    def gate(self) -> ApiGate:
        """Returns who may start."""
        closed: dict[str, str] = {}
        room: dict[str, int] = {}
        for kind, apis in self._kinds.items():
            why = self._away or next((self._trouble.get(api, "") for api in apis if self._trouble.get(api)), "")
            if why and not self._away and self._probing & set(apis):
                room[kind] = 1
            elif why:
                closed[kind] = why
            elif (step := min((self._steps[api] for api in apis if api in self._steps), default=None)) is not None:
                room[kind] = 1 << max(0, step - 1)
        critical = False
        for (scope, _), budget in self._spent.items():
            if scope == "day":
                critical = self._on_spent == PARK and not closed
                words = f"the budget of the day ({show_usd(budget)}) is spent; `orchestra cost budget day --usd AMOUNT` raises it"
                closed = dict.fromkeys(self._kinds, words) | closed
        plans = {
            name: f"the budget of the plan ({show_usd(budget)}) is spent"
            for (scope, name), budget in self._spent.items()
            if scope == "plan"
        }
        return ApiGate(closed, critical, room, plans, frozenset(self._kinds))

    def gate_unstarted(self) -> ApiGate:
        """Returns who may start before there is a gateway: whoever comes first brings it up."""
        return ApiGate(kinds=frozenset(self._kinds))

    def ruling(self, spec: TaskSpec, attempt: AttemptId, reason: str, now_ms: int) -> Ruling | None:
        """Returns what a failure is in truth, by what the gateway saw: the model API's or a shared budget's fault (`deferred`), or the end of the task's own
        budget (`refused`). None where the agent's word stands; its reason begins with the cause's word."""
        apis = self._kinds.get(spec.kind, ())
        cause = reason.partition(":")[0]
        if not apis or cause not in API_CAUSES | {BUDGET_CAUSE}:
            return None
        scope, budget = self._refused.get(str(attempt), ("", 0))
        if scope in SHARED:
            return OutcomeKind.DEFERRED, f"the budget of the {scope} is spent"
        if scope:
            return OutcomeKind.REFUSED, f"{BUDGET_CAUSE}: the {scope}'s budget of {show_usd(budget)} is spent"
        shut = [api for api in apis if api in self._closed_ms and now_ms - self._closed_ms[api] <= EXCUSED_MS]
        if cause == BUDGET_CAUSE or not (self._away or shut):
            return None
        why = self._away or next(filter(None, (self._trouble.get(api, "") for api in shut)), "the model API did not serve it")
        return OutcomeKind.DEFERRED, f"{why}: {reason}"

    def forget(self, attempt: AttemptId) -> None:
        """The attempt is over."""
        self._refused.pop(str(attempt), None)


class _Blank(dict[str, Any]):
    def __missing__(self, name: str) -> str:
        return ""


def _use(lanes: list[dict[str, Any]]) -> Use:
    def fullest(*names: str) -> tuple[int, int]:
        found = [limit for lane in lanes for limit in lane["limits"] if limit["name"] in names]
        most = max(found, key=lambda limit: int(limit["used_percent"]), default=None)
        return (0, 0) if most is None else (int(most["used"]), int(most["limit"]))

    return Use(*fullest("requests"), *fullest("input_tokens", "tokens"))
