"""How many requests may be on their way at once: fewer when the provider says too many, by as much as it refuses; more with each round that went well.

Rules:
- Where all is refused half remains; where a third is, five sixths. Refusals that hit a few by chance would otherwise bring everything down to one at a time.
- It is cut once a round: what was on its way when the first was refused says nothing new.
- The level that remained after the first of several refusals in a row is the good one; the others are a storm and say nothing about it. It is reached
  again by doubling. Beyond it a round adds a quarter, and one at least: a round of answers may take a minute, so one more each round would take an hour.
"""

from __future__ import annotations

from typing import Final

_SCALE: Final = 1000
CUT_LEAST: Final = 250
"""Of a thousand: a refusal counts as if so many had been refused at least."""
ROUND_PART: Final = 4
MEMORY: Final = 16
"""Answers by which the share of refusals is known."""


class Ramp:
    """Concurrency of one bucket group."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_flight = 0
        self._allowed = most * _SCALE
        self._good = most * _SCALE
        """Up to here it doubles."""
        self._refused = _SCALE
        """Share of refusals among the last answers, in thousandths."""
        self._peak = 0
        """Most that were on their way at once since the last cut: fewer than allowed may have wanted to go."""
        self._storm = False
        """Nothing went well since the last refusal."""
        self._round_left = 0
        """Answers still to come of those that were on their way at the last cut."""

    @property
    def allowed(self) -> int:
        """How many may be on their way now."""
        return self._allowed // _SCALE

    @property
    def free(self) -> bool:
        """Whether one more may go."""
        return self.in_flight < self.allowed

    @property
    def mostly_refused(self) -> bool:
        """Whether the provider refuses more than it takes at present."""
        return self._refused * 2 > _SCALE

    def enter(self) -> None:
        """One more is on its way."""
        self.in_flight += 1
        self._peak = max(self._peak, self.in_flight)

    def leave(self) -> None:
        """One is back."""
        self.in_flight -= 1

    def set_most(self, most: int) -> None:
        """Another highest number holds from now on."""
        grew, self.most = most > self.most, most
        self._allowed = most * _SCALE if grew else min(self._allowed, most * _SCALE)
        self._good = self._allowed

    def went_well(self) -> None:
        """An answer came."""
        self._storm = False
        self._round_left -= 1
        self._refused -= self._refused // MEMORY
        step = _SCALE if self._allowed < self._good else max(_SCALE * _SCALE // self._allowed, _SCALE // ROUND_PART)
        self._allowed = min(self.most * _SCALE, self._allowed + step)

    def too_many(self) -> None:
        """The provider refused."""
        self._round_left -= 1
        self._refused += (_SCALE - self._refused) // MEMORY
        if self._round_left > 0:
            return
        self._round_left = max(1, self.in_flight)
        base = min(self._allowed, max(1, self._peak) * _SCALE)
        self._peak = self.in_flight
        self._allowed = max(_SCALE, base - base * max(self._refused, CUT_LEAST) // (2 * _SCALE))
        if not self._storm:
            self._good, self._storm = self._allowed, True
