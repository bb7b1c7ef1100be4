"""What the gateway's answers mean for the tasks that wait and those that failed: which kinds of agents may start, and whom a failure is to blame on.

Fed with the answers of `health`, `limits`, `budgets` and `events` of the gateway's administration; times are steady milliseconds of whoever asks.

What is held back is held back as narrowly as is known: a class of models where the task names its model, all of a kind where it names none (its program
chooses), a plan, a task or an agent whose budget is spent.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any, Final

import msgspec

from orchestra.core.model import OutcomeKind, TaskSpec
from orchestra.ids import AttemptId
from orchestra.metering.alarms import Alarms, Fact
from orchestra.metering.formulas import model_class
from orchestra.metering.standing import Lane, Standing, Standings
from orchestra.quantity import show_usd
from orchestra.scheduling.admission import ApiGate, model_of

EXCUSED_MS: Final = 120_000
"""How long after a pause of the API a failure may still be its fault: a CLI tries for a while before it gives up."""
STEP_MS: Final = 1_000
STEPS: Final = 8
"""After a pause 1, 2, 4 ... attempts are let in, a second each; after so many seconds all that want to."""
PROBE_MS: Final = 10_000
"""How often one attempt is let in while an API fails: nothing else finds out that it works again."""
REFUSED_MAX: Final = 10_000
API_CAUSES: Final = frozenset({"rate-limited", "quota", "overloaded", "network"})
BUDGET_CAUSE: Final = "budget"
DAY: Final = "day"
PLAN: Final = "plan"
TASK: Final = "task"
AGENT: Final = "agent"
PAUSE: Final = "pause"
PARK: Final = "park"
STOP: Final = "stop"
TOLD: Final = frozenset(
    {
        *("limit_warning", "limit_calm", "account_parked", "account_resumed", "key_quarantined"),
        *("budget_warning", "budget_spent", "price_unknown", "key_changed", "journal_spoilt"),
    }
)
"""Notices that people and parents are told of; the others are the gateway's own affair. An upstream that is down is told when it lasts."""

Ruling = tuple[OutcomeKind, str]
"""What an attempt ended as, and why."""


class Use(msgspec.Struct, frozen=True):
    """How much of the limits of an API is used in the fullest of its classes; 0 as a limit is none known."""

    rpm: int = 0
    rpm_limit: int = 0
    tpm: int = 0
    tpm_limit: int = 0


class _Spent(msgspec.Struct, frozen=True):
    """A budget that did not bear a request."""

    budget_usd_micros: int
    needed_usd_micros: int = 0
    """What the request would have cost."""


class Outlook:
    """What is known of the APIs.

    Args:
        kinds: Agent kind -> the APIs it uses, for those that use any.
        upstreams: Name of an upstream -> the API it speaks.
        on_spent: What happens when a budget is spent: `pause`, `park` (critical tasks go on), `stop`.
        models: Agent kind -> the model that the settings name for it.
        classes: API -> pattern of model names -> class, before the built-in ones.
    """

    def __init__(
        self,
        kinds: Mapping[str, tuple[str, ...]],
        upstreams: Mapping[str, str],
        on_spent: str,
        *,
        models: Mapping[str, str] | None = None,
        classes: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self._kinds = kinds
        self._upstreams = upstreams
        self._on_spent = on_spent
        self._models = models or {}
        self._classes = classes or {}
        self._alarms = Alarms()
        self._standings = {
            api: Standings([name for name, each in upstreams.items() if each == api]) for api in dict.fromkeys(upstreams.values())
        }
        self._trouble: dict[str, str] = {}
        """API, or API and class -> why it serves nobody now."""
        self._away = ""
        self._shut_ms: dict[str, int] = {}
        """API, or API and class -> when it was last seen to serve nobody."""
        self._back_ms: dict[str, int] = {}
        """The same -> since when it serves again."""
        self._probed_ms: dict[str, int] = {}
        """API that fails -> when an attempt was last let in to try it."""
        self._probing: set[str] = set()
        self._looks = 0
        self._spent: dict[tuple[str, str], _Spent] = {}
        """(scope, name) -> the budget that is spent."""
        self._refused: dict[str, tuple[str, str, int]] = {}
        """Attempt -> scope and name of the budget that refused it, and how much that is; negative if others only held it."""
        self.use: dict[str, Use] = {}
        """API -> how much of its limits is used."""

    # --- what is seen ------------------------------------------------------------------------------------------------

    @property
    def spent(self) -> list[tuple[str, str]]:
        """The budgets that are spent as far as is known: of these the gateway is asked how they stand."""
        return list(self._spent)

    def away(self, why: str, now_ms: int) -> None:
        """The gateway does not answer."""
        self._away = why
        for api in self._standings:
            self._shut(api, now_ms)

    def look(
        self,
        health: Mapping[str, Any],
        limits: Mapping[str, Any],
        budgets: Mapping[str, Any],
        now_ms: int,
        running: Iterable[TaskSpec] = (),
    ) -> list[Fact]:
        """Takes in how things stand; returns what is to be told because of it.

        Args:
            health: The gateway's answer, as are the next two.
            limits: Of all lanes.
            budgets: At least those that are `spent`.
            now_ms: Steady time.
            running: What is at work.
        """
        self._away = ""
        self._looks += 1
        lanes: list[Lane] = limits["lanes"]
        at_work = self._at_work(running)
        trouble: dict[str, str] = {}
        for api, standings in self._standings.items():
            mine = [lane for lane in lanes if self._upstreams.get(lane["upstream"]) == api]
            self.use[api] = _use(mine)
            standings.look(mine, self._accounts(api, health), at_work[api], now_ms)
            self._probe(api, health, now_ms)
            if self._fails(api, health):
                name = next(name for name, kind in self._upstreams.items() if kind == api)
                trouble[api] = f"the model API {name} fails; one attempt at a time tries whether it works again"
            elif standings.parked:
                trouble[api] = standings.parked
            trouble |= {_key(api, name): each.why for name, each in standings.classes.items() if each.why}
        for key in trouble:
            self._shut(key, now_ms)
        self._trouble = trouble
        self._note_back(now_ms)
        self._look_at_budgets(budgets["budgets"])
        refused = [place for standings in self._standings.values() for place in standings.refused]
        return self._alarms.look(lanes, refused, health["upstreams_down"], now_ms)

    def _at_work(self, running: Iterable[TaskSpec]) -> dict[str, Counter[str]]:
        found: dict[str, Counter[str]] = {api: Counter() for api in self._standings}
        for spec in running:
            for api in self._kinds.get(spec.kind, ()):
                found[api][self._class_of(api, spec)] += 1
        return found

    def _accounts(self, api: str, health: Mapping[str, Any]) -> dict[tuple[str, str], int]:
        """Returns for how long each account of an API is parked. Names of both may have dots in them."""
        names = sorted((name for name in self._upstreams if self._upstreams[name] == api), key=len, reverse=True)
        found: dict[tuple[str, str], int] = {}
        for whole, each in health["accounts"].items():
            upstream = max((name for name in self._upstreams if whole.startswith(f"{name}.")), key=len, default="")
            if upstream in names:
                found[(upstream, whole[len(upstream) + 1 :])] = each["parked_ms"]
        return found

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

    def _shut(self, key: str, now_ms: int) -> None:
        self._shut_ms[key] = now_ms
        self._back_ms.pop(key, None)

    def _note_back(self, now_ms: int) -> None:
        for key, shut_ms in list(self._shut_ms.items()):
            if key not in self._trouble:
                self._back_ms.setdefault(key, now_ms)
                if now_ms - shut_ms > EXCUSED_MS:
                    del self._shut_ms[key], self._back_ms[key]

    def _look_at_budgets(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Forgets what is spent no longer, and learns what was spent before anybody listened."""
        known = {(row["scope"], row["name"]): row for row in rows}
        for key, spent in list(self._spent.items()):
            row = known.get(key)
            if row is None or row["settled_usd_micros"] + max(1, spent.needed_usd_micros) <= row["budget_usd_micros"]:
                del self._spent[key]
        for key, row in known.items():
            if row["settled_usd_micros"] >= row["budget_usd_micros"]:
                self._spent.setdefault(key, _Spent(row["budget_usd_micros"]))

    def hear(self, notice: Mapping[str, Any], now_ms: int) -> Fact | None:
        """Takes in a notice; returns what is to be told because of it."""
        kind, fields = notice["kind"], notice["fields"]
        if kind == "limited":
            self._shut(_key(self._upstreams.get(fields["upstream"], ""), fields["model_class"]), now_ms)
        elif kind == "budget_busy":
            self._note_refused(fields, -1)
        if kind not in TOLD:
            return None
        if kind in ("limit_warning", "limit_calm"):
            self._alarms.hear(kind, fields)
        elif kind == "budget_spent":
            key, budget = (fields["scope"], fields["name"]), fields["budget_usd_micros"]
            self._note_refused(fields, budget)
            was, self._spent[key] = self._spent.get(key), _Spent(budget, fields.get("needed_usd_micros", 0))
            if was is not None and was.budget_usd_micros == budget:
                return None  # told already
        facts = {name: value if isinstance(value, int) else str(value) for name, value in fields.items()}
        return Fact(kind, facts, notice["seq"])

    def _note_refused(self, fields: Mapping[str, Any], budget: int) -> None:
        if len(self._refused) < REFUSED_MAX:
            self._refused[str(fields.get("attempt", ""))] = fields["scope"], fields["name"], budget

    # --- what follows ------------------------------------------------------------------------------------------------

    def _class_of(self, api: str, spec: TaskSpec) -> str:
        """Returns the class of the model that the task, or the settings for its kind, name; nothing if its program chooses."""
        model = model_of(spec) or self._models.get(spec.kind, "")
        model = model.rpartition("/")[2]  # some programs want the provider before it
        if not model:
            return ""
        for pattern, name in self._classes.get(api, {}).items():
            if re.fullmatch(pattern, model):
                return name
        if api != "anthropic" or "claude-" in model:
            return model_class(api, model)
        meant = [name for name in self._standings[api].classes if name.startswith(f"{model}-")]  # `opus`, as Claude Code calls the newest
        return meant[0] if len(meant) == 1 else ""

    def _keys_of(self, spec: TaskSpec) -> tuple[str, ...]:
        apis = self._kinds.get(spec.kind, ())
        return tuple(_key(api, self._class_of(api, spec)) for api in apis)

    def gate(self, now_ms: int) -> ApiGate:
        """Returns who may start."""
        closed: dict[str, str] = {}
        room: dict[str, int] = {}
        rounds: dict[str, int] = {}
        for kind, apis in self._kinds.items():
            why = self._away or next((self._trouble[api] for api in apis if api in self._trouble), "")
            if why and not self._away and self._probing & set(apis):
                room[kind], rounds[kind] = 1, max(self._probed_ms[api] for api in apis if api in self._probing)
            elif why:
                closed[kind] = why
            elif (back_ms := max((self._back_ms[api] for api in apis if api in self._back_ms), default=None)) is not None:
                self._resume(kind, back_ms, now_ms, room, rounds)
        for api, standings in self._standings.items():
            for name, each in standings.classes.items():
                self._class_gate(api, name, each, now_ms, (closed, room, rounds))
        spent = {scope: {name: each for (of, name), each in self._spent.items() if of == scope} for scope in (DAY, PLAN, TASK, AGENT)}
        day = next(
            (f"the budget of the day ({show_usd(each.budget_usd_micros)}) is spent; {raising(DAY, '')}" for each in spent[DAY].values()), ""
        )
        return ApiGate(
            closed=closed,
            day=day,
            critical_pass=self._on_spent == PARK,
            room=room,
            rounds=rounds,
            plans={name: f"the budget of the plan ({show_usd(each.budget_usd_micros)}) is spent" for name, each in spent[PLAN].items()},
            tasks={name: _of_task(name, each.budget_usd_micros) for name, each in spent[TASK].items()} if self._on_spent != STOP else {},
            agents={
                name: f"the budget of agent {name} ({show_usd(each.budget_usd_micros)}) is spent; {raising(AGENT, name)}"
                for name, each in spent[AGENT].items()
            },
            kinds=frozenset(self._kinds),
            keys_of=self._keys_of,
        )

    def _class_gate(
        self, api: str, name: str, stands: Standing, now_ms: int, into: tuple[dict[str, str], dict[str, int], dict[str, int]]
    ) -> None:
        """Says what a class bears. A task of which the model is not known may be of any class: the narrowest holds for it."""
        closed, room, rounds = into
        key, unknown = _key(api, name), _key(api, "")
        if stands.why or stands.more == 0:
            closed[key] = stands.why or f"the limit is near: {stands.full}"
            closed.setdefault(unknown, closed[key])
            return
        if key in self._back_ms:
            self._resume(key, self._back_ms[key], now_ms, room, rounds)
        if stands.more is not None and stands.more < room.get(key, 1 << 30) and key not in rounds:
            room[key], rounds[key] = stands.more, self._looks
        if key in room and room[key] < room.get(unknown, 1 << 30):
            room[unknown], rounds[unknown] = room[key], rounds[key]

    def _resume(self, key: str, back_ms: int, now_ms: int, room: dict[str, int], rounds: dict[str, int]) -> None:
        step = (now_ms - back_ms) // STEP_MS
        if step < STEPS:
            room[key], rounds[key] = 1 << step, back_ms + step

    def gate_unstarted(self) -> ApiGate:
        """Returns who may start before there is a gateway: whoever comes first brings it up."""
        return ApiGate(kinds=frozenset(self._kinds))

    def ruling(self, spec: TaskSpec, attempt: AttemptId, reason: str, now_ms: int) -> Ruling | None:
        """Returns what a failure is in truth, by what the gateway saw: the model API's or a budget's fault that somebody may raise (`deferred`), or the end
        of what the task may cost (`refused`). None where the agent's word stands; its reason begins with the cause's word."""
        apis = self._kinds.get(spec.kind, ())
        cause = reason.partition(":")[0]
        if not apis or cause not in API_CAUSES | {BUDGET_CAUSE}:
            return None
        scope, name, budget = self._refused.get(str(attempt), ("", "", 0))
        if scope and budget < 0:
            return OutcomeKind.DEFERRED, f"requests on their way held what was left of the budget of the {scope}"
        if scope == TASK and (spec.cost_usd_micros_max or self._on_spent == STOP):
            return OutcomeKind.REFUSED, f"{BUDGET_CAUSE}: the task's budget of {show_usd(budget)} is spent"
        if scope:
            words = {TASK: _of_task(name, budget), AGENT: f"the budget of agent {name} is spent"}
            return OutcomeKind.DEFERRED, words.get(scope, f"the budget of the {scope} is spent")
        shut = [key for key, at_ms in self._shut_ms.items() if key.partition(" ")[0] in apis and now_ms - at_ms <= EXCUSED_MS]
        if cause == BUDGET_CAUSE or not (self._away or shut):
            return None
        why = self._away or next(filter(None, (self._trouble.get(key, "") for key in shut)), "the model API did not serve it")
        return OutcomeKind.DEFERRED, f"{why}: {reason}"

    def forget(self, attempt: AttemptId) -> None:
        """The attempt is over."""
        self._refused.pop(str(attempt), None)

    def forget_budget(self, scope: str, name: str) -> None:
        """The task or plan is over."""
        self._spent.pop((scope, name), None)


def raising(scope: str, name: str) -> str:
    """Returns what lets work go on that a spent budget holds back."""
    return f"`orchestra cost budget {' '.join(filter(None, (scope, name)))} --usd AMOUNT` raises it"


def _of_task(name: str, budget_usd_micros: int) -> str:
    return f"its budget of {show_usd(budget_usd_micros)} is spent; {raising(TASK, name)}"


def _key(api: str, name: str) -> str:
    return f"{api} {name}"


def _use(lanes: list[Lane]) -> Use:
    def fullest(*names: str) -> tuple[int, int]:
        found = [limit for lane in lanes for limit in lane["limits"] if limit["name"] in names]
        most = max(found, key=lambda limit: int(limit["used_percent"]), default=None)
        return (0, 0) if most is None else (int(most["used"]), int(most["limit"]))

    return Use(*fullest("requests"), *fullest("input_tokens", "tokens"))
