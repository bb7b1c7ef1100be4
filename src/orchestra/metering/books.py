"""The books of the gateway as a fold over its journal: tokens that were issued, what each scope used, what is reserved, and what it may use.

Rules:
- Every state is reached by `apply`, live and after a restart alike, so that what was journalled is all there is.
- A request is opened with a reservation before it is sent, grown while it streams, and closed once. What was open at a crash is closed as assumed.
- A budget bounds settled plus reserved.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import msgspec

from orchestra.metering.formulas import DAY_MS
from orchestra.metering.usage import Usage

ALL: Final = "all"
SCOPES: Final = ("attempt", "task", "agent", "plan", "day", "model")
BUDGETED: Final = ("day", "plan", "task", "agent")
"""In the order in which they are looked at."""
NAMES_MAX: Final = {"attempt": 20_000, "task": 100_000, "agent": 10_000, "plan": 10_000, "day": 4_000, "model": 1_000}
"""Of each scope, of what was used and of budgets; what was not used, or not set, for longest is forgotten first."""
WARN_PERCENT: Final = 80


class Who(msgspec.Struct, frozen=True, omit_defaults=True):
    """For whom a request is made."""

    attempt: str
    task: str = ""
    agent: str = ""
    plan: str = ""
    priority: int = 3
    free_of_day: bool = False
    """The budget of the day does not hold for it."""


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


Record = State | Issued | Revoked | Opened | Grown | Closed | BudgetSet


class Overspent(msgspec.Struct, frozen=True):
    """A budget that does not bear a request."""

    scope: str
    name: str
    budget_usd_micros: int
    settled_usd_micros: int
    reserved_usd_micros: int


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
        self._warned: set[tuple[str, str]] = set()

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
        self._warned.discard((record.scope, record.name))

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

    def overspent(self, who: Who, more_usd_micros: int, wall_ms: int) -> Overspent | None:
        """Returns the budget that does not bear so much more, or None."""
        for scope, name in names_of(who, "", wall_ms):
            budget = self.budget_of(scope, name) if scope in BUDGETED else -1
            if budget < 0 or (scope == "day" and who.free_of_day):
                continue
            settled, reserved = self.settled(scope, name), self.reserved(scope, name)
            if settled + reserved + more_usd_micros > budget or settled >= budget:
                return Overspent(scope, name, budget, settled, reserved)
        return None

    def warnings(self, who: Who, wall_ms: int) -> Iterable[Overspent]:
        """Returns budgets of which four fifths are gone and nobody was told yet; each is told once."""
        found = []
        for scope, name in names_of(who, "", wall_ms):
            budget = self.budget_of(scope, name) if scope in BUDGETED else -1
            settled = self.settled(scope, name)
            if budget > 0 and settled * 100 >= budget * WARN_PERCENT and (scope, name) not in self._warned:
                if len(self._warned) >= NAMES_MAX["task"]:
                    self._warned.clear()
                self._warned.add((scope, name))
                found.append(Overspent(scope, name, budget, settled, self.reserved(scope, name)))
        return found

    def orphans(self, wall_ms: int) -> list[Closed]:
        """Returns how the requests that a dead gateway left open are settled: by what was noted of their prompt and answer, and otherwise as reserved."""
        return [_orphaned(opened, wall_ms) for opened in self.state.open.values()]


def _orphaned(opened: Opened, wall_ms: int) -> Closed:
    cost = opened.cost_usd_micros if opened.cost_usd_micros >= 0 else opened.reserved_usd_micros
    return Closed(opened.id, wall_ms, 0, opened.usage, cost, assumed=True)
