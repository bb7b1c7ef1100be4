"""The books of the gateway as a fold over its journal: tokens that were issued, what each scope used, what is reserved, and what it may use.

Rules:
- Every state is reached by `apply`, live and after a restart alike, so that what was journalled is all there is.
- A request is opened with a reservation before it is sent, grown while it streams, and closed once. What was open at a crash is closed as assumed.
- A budget bounds settled plus reserved. It is spent for a request only if that would not fit with nothing else open; else others are in its way.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

import msgspec

from orchestra.metering.formulas import DAY_MS
from orchestra.metering.marks import LaneAt, ParkedAt
from orchestra.metering.usage import Usage

ALL: Final = "all"
SCOPES: Final = ("attempt", "task", "agent", "plan", "day", "model")
BUDGETED: Final = ("day", "plan", "task", "agent")
"""In the order in which they are looked at."""
NAMES_MAX: Final = {"attempt": 20_000, "task": 100_000, "agent": 10_000, "plan": 10_000, "day": 4_000, "model": 1_000}
"""Of each scope, of what was used and of budgets; what was not used, or not set, for longest is forgotten first."""
WARN_PERCENTS: Final = (100, 80)
"""Of a budget, where somebody is told; where both are passed at once the first is."""


NOTHING_PROMISED: Final[Mapping[tuple[str, str], int]] = {}


class Who(msgspec.Struct, frozen=True, omit_defaults=True):
    """For whom a request is made."""

    attempt: str
    task: str = ""
    agent: str = ""
    plan: str = ""
    priority: int = 3
    free_of_day: bool = False
    """The budget of the day does not hold for it."""
    free_of: tuple[str, ...] = ()
    """Further scopes of which the budgets do not hold for it."""

    def is_free_of(self, scope: str) -> bool:
        """Tells whether the budget of a scope does not hold for it."""
        return scope in self.free_of or (scope == "day" and self.free_of_day)


class Issued(msgspec.Struct, frozen=True, omit_defaults=True, tag="issued", tag_field="k"):
    """A token of ours was given out; only its SHA-256 is kept."""

    digest: str
    who: Who
    expires_ms: int


class Revoked(msgspec.Struct, frozen=True, tag="revoked", tag_field="k"):
    """A token counts no more."""

    digest: str


class Opened(msgspec.Struct, frozen=True, tag="opened", tag_field="k"):
    """A request is about to be sent."""

    id: int
    ms: int
    who: Who
    upstream: str
    account: str
    model: str
    reserved_usd_micros: int
    usage: Usage
    """What it is thought to use."""
    cost_usd_micros: int = -1
    """Of what it has used so far, as soon as anything is known of that; -1 before."""


class Grown(msgspec.Struct, frozen=True, tag="grown", tag_field="k"):
    """It went on: what it has used so far, and what is reserved for it now."""

    id: int
    reserved_usd_micros: int
    output_tokens: int
    usage: Usage | None = None
    """Books of earlier versions have the output only."""
    cost_usd_micros: int = -1
    """Of `usage`."""


class Closed(msgspec.Struct, frozen=True, omit_defaults=True, tag="closed", tag_field="k"):
    """It ended."""

    id: int
    ms: int
    status: int
    usage: Usage
    cost_usd_micros: int
    assumed: bool = False
    """The provider did not say; input as estimated and output as seen."""
    unpriced: bool = False
    """The model is in no price table; the highest price was used."""
    tries: int = 1


class BudgetsForgotten(msgspec.Struct, frozen=True, tag="forgotten", tag_field="k"):
    """The scopes are over and ask for nothing more."""

    scope: str
    names: tuple[str, ...]


class BudgetSet(msgspec.Struct, frozen=True, tag="budget", tag_field="k"):
    """A scope may use that much; negative lifts the budget."""

    scope: str
    name: str
    usd_micros: int


class Totals(msgspec.Struct):
    """What a scope used."""

    requests: int = 0
    input_tokens: int = 0
    cache_write_tokens: int = 0
    cache_read_tokens: int = 0
    output_tokens: int = 0
    cost_usd_micros: int = 0
    assumed_requests: int = 0
    unpriced_requests: int = 0

    def add(self, closed: Closed) -> None:
        """Counts one request."""
        self.requests += 1
        self.input_tokens += closed.usage.input_tokens
        self.cache_write_tokens += closed.usage.cache_write_tokens
        self.cache_read_tokens += closed.usage.cache_read_tokens
        self.output_tokens += closed.usage.output_tokens
        self.cost_usd_micros += closed.cost_usd_micros
        self.assumed_requests += closed.assumed
        self.unpriced_requests += closed.unpriced


class State(msgspec.Struct, tag="state", tag_field="k"):
    """Everything, as it stands at the head of a journal file."""

    next_id: int = 1
    tokens: dict[str, Issued] = {}
    open: dict[int, Opened] = {}
    reserved: dict[str, dict[str, int]] = {}
    totals: dict[str, dict[str, Totals]] = {}
    budgets: dict[str, dict[str, int]] = {}
    lanes: dict[str, LaneAt] = {}
    parked: dict[str, ParkedAt] = {}


Record = State | Issued | Revoked | Opened | Grown | Closed | BudgetSet | BudgetsForgotten | LaneAt | ParkedAt


class Overspent(msgspec.Struct, frozen=True):
    """A budget that does not bear a request."""

    scope: str
    name: str
    budget_usd_micros: int
    settled_usd_micros: int
    reserved_usd_micros: int
    needed_usd_micros: int = 0
    """What the request would cost."""

    @property
    def for_good(self) -> bool:
        """Whether it would not fit with nothing else open either."""
        settled = self.settled_usd_micros
        return settled >= self.budget_usd_micros or settled + self.needed_usd_micros > self.budget_usd_micros


def day_of(wall_ms: int) -> int:
    """Returns days since 1970 in UTC."""
    return wall_ms // DAY_MS


def names_of(who: Who, model: str, wall_ms: int) -> Iterator[tuple[str, str]]:
    """Yields the scopes that a request counts for; a scope without a name is none."""
    named = (("attempt", who.attempt), ("task", who.task), ("agent", who.agent), ("plan", who.plan), ("day", str(day_of(wall_ms))))
    yield ALL, ""
    yield from ((scope, name) for scope, name in (*named, ("model", model)) if name)


def _forget_oldest(names: dict[str, Any], scope: str) -> None:
    while len(names) > NAMES_MAX.get(scope, 1_000):
        del names[next(iter(names))]


class Books:
    """The state, and the questions asked of it."""

    def __init__(self, day_budget_usd_micros: int = -1) -> None:
        self.state = State()
        self.day_budget_usd_micros = day_budget_usd_micros
        """Of every day that has no budget of its own; negative is none."""
        self._warned: set[tuple[str, str, int]] = set()

    def apply(self, record: Record) -> None:
        """Takes a record into the books. Total: a record about something unknown changes nothing."""
        state = self.state
        match record:
            case State():
                self.state = record
            case Issued():
                state.tokens[record.digest] = record
            case Revoked():
                state.tokens.pop(record.digest, None)
            case Opened():
                if record.id < state.next_id:
                    return
                state.next_id = record.id + 1
                state.open[record.id] = record
                self._reserve(record, record.reserved_usd_micros)
            case Grown():
                self._grow(record)
            case Closed():
                self._close(record)
            case BudgetSet():
                self._set_budget(record)
            case BudgetsForgotten():
                for name in record.names:
                    self.state.budgets.get(record.scope, {}).pop(name, None)
            case LaneAt():
                self._keep(state.lanes, record)
            case ParkedAt():
                self._keep(state.parked, record)

    def _keep(self, names: dict[str, Any], record: LaneAt | ParkedAt) -> None:
        names.pop(record.name, None)
        names[record.name] = record
        _forget_oldest(names, "lane")

    def _reserve(self, opened: Opened, difference: int) -> None:
        for scope, name in names_of(opened.who, opened.model, opened.ms):
            names = self.state.reserved.setdefault(scope, {})
            left = names.get(name, 0) + difference
            if left:
                names[name] = left
            else:
                names.pop(name, None)

    def _grow(self, record: Grown) -> None:
        opened = self.state.open.get(record.id)
        if opened is None:
            return
        self._reserve(opened, record.reserved_usd_micros - opened.reserved_usd_micros)
        self.state.open[record.id] = msgspec.structs.replace(
            opened,
            reserved_usd_micros=record.reserved_usd_micros,
            usage=record.usage or msgspec.structs.replace(opened.usage, output_tokens=record.output_tokens),
            cost_usd_micros=record.cost_usd_micros,
        )

    def _close(self, record: Closed) -> None:
        opened = self.state.open.pop(record.id, None)
        if opened is None:
            return
        self._reserve(opened, -opened.reserved_usd_micros)
        for scope, name in names_of(opened.who, opened.model, opened.ms):
            names = self.state.totals.setdefault(scope, {})
            totals = names.pop(name, None) or Totals()
            totals.add(record)
            names[name] = totals
            _forget_oldest(names, scope)

    def _set_budget(self, record: BudgetSet) -> None:
        names = self.state.budgets.setdefault(record.scope, {})
        names.pop(record.name, None)
        names[record.name] = record.usd_micros
        _forget_oldest(names, record.scope)
        for percent in WARN_PERCENTS:
            self._warned.discard((record.scope, record.name, percent))

    def budget_of(self, scope: str, name: str) -> int:
        """Returns what a scope may use; negative is no budget."""
        said = self.said_budget(scope, name)
        return said if said is not None else self.day_budget_usd_micros if scope == "day" else -1

    def said_budget(self, scope: str, name: str) -> int | None:
        """Returns what somebody set for this very scope, negative if they lifted it, or None."""
        return self.state.budgets.get(scope, {}).get(name)

    def settled(self, scope: str, name: str) -> int:
        """Returns what a scope has cost."""
        totals = self.state.totals.get(scope, {}).get(name)
        return 0 if totals is None else totals.cost_usd_micros

    def reserved(self, scope: str, name: str) -> int:
        """Returns what open requests of a scope hold."""
        return self.state.reserved.get(scope, {}).get(name, 0)

    def budgets_of(self, who: Who, wall_ms: int) -> list[tuple[str, str]]:
        """Returns the scopes whose budgets hold for a request."""
        names = names_of(who, "", wall_ms)
        return [
            (scope, name) for scope, name in names if scope in BUDGETED and not who.is_free_of(scope) and self.budget_of(scope, name) >= 0
        ]

    def overspent(
        self, who: Who, more_usd_micros: int, wall_ms: int, promised: Mapping[tuple[str, str], int] = NOTHING_PROMISED
    ) -> Overspent | None:
        """Returns the budget that does not bear so much more, or None. One that is spent for good goes before one that others are in the way of.

        Args:
            who: Who asks.
            more_usd_micros: What for.
            wall_ms: When.
            promised: (scope, name) -> what others were promised and have not reserved yet.
        """
        held: Overspent | None = None
        for scope, name in self.budgets_of(who, wall_ms):
            budget, settled = self.budget_of(scope, name), self.settled(scope, name)
            reserved = self.reserved(scope, name) + promised.get((scope, name), 0)
            if settled + reserved + more_usd_micros > budget or settled >= budget:
                found = Overspent(scope, name, budget, settled, reserved, more_usd_micros)
                if found.for_good:
                    return found
                held = held or found
        return held

    def warnings(self, who: Who, wall_ms: int) -> list[tuple[int, Overspent]]:
        """Returns budgets of which four fifths, or all, are gone and nobody was told yet, each with its percentage; each is told once."""
        found = []
        for scope, name in names_of(who, "", wall_ms):
            budget = self.budget_of(scope, name) if scope in BUDGETED else -1
            settled = self.settled(scope, name)
            percent = next((each for each in WARN_PERCENTS if budget > 0 and settled * 100 >= budget * each), 0)
            if percent and self.first_told(scope, name, percent):
                found.append((percent, Overspent(scope, name, budget, settled, self.reserved(scope, name))))
        return found

    def first_told(self, scope: str, name: str, percent: int) -> bool:
        """Takes note that somebody is told of so much of a budget; False if they were already."""
        if (scope, name, percent) in self._warned:
            return False
        if len(self._warned) >= NAMES_MAX["task"]:
            self._warned.clear()
        self._warned.update((scope, name, each) for each in WARN_PERCENTS if each <= percent)
        return True

    def orphans(self, wall_ms: int) -> list[Closed]:
        """Returns how the requests that a dead gateway left open are settled: by what was noted of their prompt and answer, and otherwise as reserved."""
        return [_orphaned(opened, wall_ms) for opened in self.state.open.values()]


def _orphaned(opened: Opened, wall_ms: int) -> Closed:
    cost = opened.cost_usd_micros if opened.cost_usd_micros >= 0 else opened.reserved_usd_micros
    return Closed(opened.id, wall_ms, 0, opened.usage, cost, assumed=True)
