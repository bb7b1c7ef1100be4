"""What was spent: the gateway's books beside what the agents' programs said. Pure.

Rules:
- The gateway's figures stand for what is paid; a program's own are shown beside them and compared, attempt by attempt.
- A difference is taken only over attempts of which both sides are known, so that a program which names no cost makes none.
- The rows add up to everything the gateway settled: what bears no name of the scope, or was forgotten, is a row without a name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgspec

from orchestra.core.model import Usage
from orchestra.core.state import State
from orchestra.costviews import CostRow, LimitView, ProviderLoad, Settled
from orchestra.ids import AttemptId, PlanId, TaskId
from orchestra.quantity import MS_PER_SECOND
from orchestra.views import AttemptView, TaskDetail

BY: Final = ("task", "agent", "model", "day", "plan", "attempt")
UNFILTERED: Final = ("model", "day")
"""The gateway counts these over all plans together."""
TOKEN_LIMITS: Final = ("tokens", "input_tokens", "output_tokens")

Books = Mapping[str, Settled]
"""Name -> what the gateway settled for it."""


class Fact(msgspec.Struct, frozen=True):
    """One attempt, and what its program said."""

    attempt: str
    task: str
    agent: str
    plan: str
    day: str
    """In UTC: when it ended, which is when its program speaks."""
    said: Usage

    def name_in(self, by: str) -> str:
        """Returns its name in a scope; empty in that of models, since programs do not tell them apart."""
        return "" if by == "model" else str(getattr(self, by))


class _Tally(msgspec.Struct):
    """What the attempts of a row said, and how that compares."""

    said: Usage = Usage()
    difference: int = 0
    compared: int = 0
    unsaid: int = 0
    uncounted: int = 0

    def add(self, fact: Fact, settled: Settled | None) -> None:
        self.said = self.said.plus(fact.said)
        spoke, counted = fact.said.cost_usd_micros > 0, settled is not None and settled.requests > 0
        if settled is not None and spoke and counted:
            self.difference += settled.cost_usd_micros - fact.said.cost_usd_micros
        self.compared += spoke and counted
        self.unsaid += counted and not spoke
        self.uncounted += spoke and not counted


def read_settled(answer: Mapping[str, Any]) -> dict[str, Settled]:
    """Returns the rows of a gateway's answer to `usage`."""
    return msgspec.convert(answer["usage"], dict[str, Settled])


def day_of(ms: int) -> str:
    """Returns the day in UTC as the gateway names it."""
    return datetime.fromtimestamp(ms / MS_PER_SECOND, UTC).strftime("%Y-%m-%d")


def facts_of(state: State, plan: PlanId | None = None) -> Iterator[Fact]:
    """Yields every attempt, or those of one plan."""
    tasks = state.tasks.values() if plan is None else (state.tasks[task] for task in state.plans[plan].tasks)
    for task in tasks:
        for attempt in task.attempts:
            yield Fact(
                attempt=str(AttemptId(task.id, attempt.number)),
                task=task.id,
                agent=str(attempt.agent),
                plan=task.spec.plan or "",
                day=day_of(attempt.ended_ms or attempt.assigned_ms),
                said=Usage() if attempt.outcome is None else attempt.outcome.usage,
            )


def cost_rows(by: str, facts: Iterable[Fact], scope: Books | None, attempts: Books | None, whole: Settled | None) -> list[CostRow]:
    """Returns a row for each name that used anything, the dearest first; days and agents in their own order.

    Args:
        by: One of `BY`.
        facts: The attempts that count.
        scope: What the gateway settled by name; None if no gateway counted.
        attempts: The same by attempt.
        whole: What it settled in all, where the rows are to add up to that.
    """
    tallies: dict[str, _Tally] = {}
    for fact in facts:
        settled = None if attempts is None else attempts.get(fact.attempt)
        tallies.setdefault(fact.name_in(by), _Tally()).add(fact, settled)
    books = dict(scope or {})
    if whole is not None:
        rest = whole
        for each in books.values():
            rest = rest.minus(each)
        books[""] = books.get("", Settled()).plus(rest)
    names = list(dict.fromkeys([*books, *tallies]))
    rows = [_row(name, books.get(name), tallies.get(name, _Tally()), counted=scope is not None) for name in names]
    return sorted(filter(_used, rows), key=_order(by))


def _row(name: str, settled: Settled | None, tally: _Tally, *, counted: bool) -> CostRow:
    said, shown = tally.said, settled or Settled()
    if not counted:
        shown = Settled(said.requests, said.tokens_input, said.tokens_cache_write, said.tokens_cache_read, said.tokens_output)
    return CostRow(
        name=name,
        requests=shown.requests,
        input_tokens=shown.input_tokens,
        cache_write_tokens=shown.cache_write_tokens,
        cache_read_tokens=shown.cache_read_tokens,
        output_tokens=shown.output_tokens,
        settled_usd_micros=shown.cost_usd_micros if counted else None,
        said_usd_micros=said.cost_usd_micros or None,
        difference_usd_micros=tally.difference if tally.compared else None,
        compared_attempts=tally.compared,
        unsaid_attempts=tally.unsaid,
        uncounted_attempts=tally.uncounted if counted else 0,
        assumed_requests=shown.assumed_requests,
        unpriced_requests=shown.unpriced_requests,
        reserved_usd_micros=shown.reserved_usd_micros,
    )


def _used(row: CostRow) -> bool:
    return bool(row.requests or row.settled_usd_micros or row.said_usd_micros or row.reserved_usd_micros or row.output_tokens)


def cost_of(row: CostRow) -> int:
    """Returns what it cost, as far as anybody knows."""
    return row.settled_usd_micros or row.said_usd_micros or 0


def _order(by: str) -> Callable[[CostRow], tuple[bool, int, str]]:
    def key(row: CostRow) -> tuple[bool, int, str]:
        if by == "agent" and row.name.isascii() and row.name.isdigit():
            return not row.name, int(row.name), ""
        return not row.name, 0 if by == "day" else -cost_of(row), row.name

    return key


def total_of(rows: Iterable[CostRow], *, counted: bool) -> CostRow:
    """Returns the sum of rows."""
    found = list(rows)

    def added(name: str) -> int | None:
        known = [value for row in found if (value := getattr(row, name)) is not None]
        return sum(known) if known else None

    sums = {name: added(name) for name in CostRow.__struct_fields__ if name != "name"}
    optional = ("settled_usd_micros", "said_usd_micros", "difference_usd_micros")
    values: dict[str, Any] = {name: value if name in optional else value or 0 for name, value in sums.items()}
    if counted:
        values["settled_usd_micros"] = values["settled_usd_micros"] or 0
    return CostRow(name="total", **values)


def gathered(facts: Iterable[Fact], by: str, attempts: Books) -> dict[str, Settled]:
    """Returns what the gateway settled for some attempts, added up by name."""
    found: dict[str, Settled] = {}
    for fact in facts:
        if (settled := attempts.get(fact.attempt)) is not None:
            name = fact.name_in(by)
            found[name] = found.get(name, Settled()).plus(settled)
    return found


def attempts_of(details: Iterable[TaskDetail]) -> list[AttemptId]:
    """Returns the attempts of tasks."""
    return [AttemptId(TaskId(detail.task.task), attempt.number) for detail in details for attempt in detail.attempts]


def with_settled(detail: TaskDetail, attempts: Books) -> TaskDetail:
    """Returns a task whose attempts show what the gateway settled for them, where it counted anything."""

    def shown(attempt: AttemptView) -> AttemptView:
        settled = attempts.get(str(AttemptId(TaskId(detail.task.task), attempt.number)))
        if settled is None or not settled.requests:
            return attempt
        return msgspec.structs.replace(attempt, tokens=settled.tokens, cost_usd_micros=settled.cost_usd_micros, settled=True)

    return msgspec.structs.replace(detail, attempts=tuple(map(shown, detail.attempts)))


def limit_rows(answer: Mapping[str, Any]) -> tuple[LimitView, ...]:
    """Returns the rows of a gateway's answer to `limits`; a lane of which no limit is known is one row."""
    rows = []
    for lane in answer["lanes"]:
        common: dict[str, Any] = {
            name: lane[name] for name in ("upstream", "account", "model_class", "waiting", "in_flight", "concurrency")
        }
        common["closed_ms"] = max(lane["closed_ms"], lane["parked_ms"])
        for limit in lane["limits"]:
            known = {name: limit[name] for name in ("name", "limit", "used", "left", "used_percent", "learned")}
            rows.append(LimitView(**common, **known, foreign=limit.get("foreign", 0)))
        if not lane["limits"]:
            rows.append(LimitView(**common, name="", limit=None, used=None, left=None, used_percent=None))
    return tuple(rows)


def provider_loads(limits: Iterable[LimitView]) -> tuple[ProviderLoad, ...]:
    """Returns each upstream's load where it is tightest, since that is where its agents wait."""
    found: dict[str, dict[str, LimitView]] = {}
    for limit in limits:
        places = found.setdefault(limit.upstream, {})
        kind = "rpm" if limit.name == "requests" else "tpm" if limit.name in TOKEN_LIMITS else ""
        if kind and (kind not in places or (limit.used_percent or 0) > (places[kind].used_percent or 0)):
            places[kind] = limit
    return tuple(
        ProviderLoad(
            name,
            rpm_used=places["rpm"].used if "rpm" in places else None,
            rpm_limit=places["rpm"].limit if "rpm" in places else None,
            tpm_used=places["tpm"].used if "tpm" in places else None,
            tpm_limit=places["tpm"].limit if "tpm" in places else None,
        )
        for name, places in found.items()
    )
