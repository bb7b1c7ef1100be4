"""Requests that wait for a budget: it would bear them, but others on their way hold what is left of it, and may settle for less.

Rules:
- The flow that was promised least so far is next, more by priority as in the queue for limits; among equals the one that has waited longest.
- Whoever does not fit yet is passed by nobody who asks the same budget, so that a large request is not starved by small ones. Other budgets are not touched.
- What fits is promised: it is held for the one it was promised to until that is open, or gives up.
"""

from __future__ import annotations

from collections import Counter

import msgspec

from orchestra.metering.books import Books, Overspent, Who
from orchestra.metering.lane import WEIGHTS

Scope = tuple[str, str]


class Claim(msgspec.Struct, eq=False):
    """What one request asks of its budgets."""

    who: Who
    flow: str
    usd_micros: int
    since_ms: int
    promised: tuple[Scope, ...] | None = None
    """The budgets that hold it for this one; None while it waits."""


class Claims:
    """Who waits, and what was promised."""

    def __init__(self, books: Books) -> None:
        self._books = books
        self._waiting: list[Claim] = []
        self._promised: Counter[Scope] = Counter()
        self._stuck: set[Scope] = set()
        """Budgets that somebody waits for in vain: who comes later has to wait behind."""
        self._accounts: dict[str, int] = {}
        """Flow -> what it was promised since anybody waits, by weight."""

    @property
    def waiting(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def refusal(self, who: Who, usd_micros: int, wall_ms: int, claim: Claim | None = None) -> Overspent | None:
        """Returns the budget that does not bear a request now, or None. What was promised to it is held by nobody else.

        Args:
            who: Who asks.
            usd_micros: What for.
            wall_ms: When.
            claim: Its own, if it has waited.
        """
        kept = self._held(claim)
        found = self._books.overspent(who, usd_micros, wall_ms, self._promised)
        if found is None and kept is None and self._stuck:
            behind = next((each for each in self._books.budgets_of(who, wall_ms) if each in self._stuck), None)
            if behind is not None:
                books = self._books
                found = Overspent(*behind, books.budget_of(*behind), books.settled(*behind), books.reserved(*behind), usd_micros)
        if kept is not None:
            self._promised.update(kept)
        return found

    def _held(self, claim: Claim | None) -> Counter[Scope] | None:
        """Takes what was promised to a claim out of the sums, and returns it."""
        if claim is None or claim.promised is None:
            return None
        kept = Counter(dict.fromkeys(claim.promised, claim.usd_micros))
        self._promised -= kept
        return kept

    def wait(self, claim: Claim) -> None:
        """It queues, or queues again where what it was promised did not do."""
        self.drop(claim)
        if not self._waiting:
            self._accounts.clear()
        lowest = min((self._accounts[each.flow] for each in self._waiting), default=0)
        self._accounts[claim.flow] = max(lowest, self._accounts.get(claim.flow, 0))
        self._waiting.append(claim)

    def drop(self, claim: Claim) -> None:
        """It is open, or gave up. Idempotent."""
        self._held(claim)
        claim.promised = None
        if claim in self._waiting:
            self._waiting.remove(claim)

    def admit(self, wall_ms: int) -> list[Claim]:
        """Returns those that are promised what they ask for, and those for which that is hopeless now: both should ask."""
        ahead: Counter[str] = Counter()
        keyed: list[tuple[int, int, int, Claim]] = []
        for claim in self._waiting:
            keyed.append((self._accounts[claim.flow] + ahead[claim.flow], claim.since_ms, len(keyed), claim))
            ahead[claim.flow] += _price(claim)
        admitted: list[Claim] = []
        self._stuck = set()
        for *_, claim in sorted(keyed):
            mine = self._books.budgets_of(claim.who, wall_ms)
            if not self._stuck.isdisjoint(mine):
                continue
            short = self._books.overspent(claim.who, claim.usd_micros, wall_ms, self._promised)
            if short is not None and not short.for_good:
                self._stuck.add((short.scope, short.name))
                continue
            if short is None:
                claim.promised = tuple(mine)
                self._promised.update(dict.fromkeys(mine, claim.usd_micros))
                self._accounts[claim.flow] += _price(claim)
            self._waiting.remove(claim)
            admitted.append(claim)
        return admitted


def _price(claim: Claim) -> int:
    return claim.usd_micros * WEIGHTS[0] // WEIGHTS[min(max(claim.who.priority, 0), len(WEIGHTS) - 1)]
