"""How many requests may be on their way at once: halved when the provider says too many, one more for each round that went well (AIMD)."""

from __future__ import annotations

from typing import Final

_SCALE: Final = 1000
HOLD_MS: Final = 1_000
"""Refusals this near to each other are one message from the provider, not many."""


class Ramp:
    """Concurrency of one bucket group."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.in_flight = 0
        self._allowed = most * _SCALE
        self._halved_ms: int | None = None

    @property
    def allowed(self) -> int:
        """How many may be on their way now."""
        return self._allowed // _SCALE

    @property
    def free(self) -> bool:
        """Whether one more may go."""
        return self.in_flight < self.allowed

    def set_most(self, most: int) -> None:
        """Another highest number holds from now on."""
        grew, self.most = most > self.most, most
        self._allowed = most * _SCALE if grew else min(self._allowed, most * _SCALE)

    def went_well(self) -> None:
        """An answer came: grows by one for every full round of answers."""
        self._allowed = min(self.most * _SCALE, self._allowed + _SCALE * _SCALE // self._allowed)

    def too_many(self, now_ms: int) -> None:
        """The provider refused: half of what was on its way is what it takes."""
        if self._halved_ms is not None and now_ms - self._halved_ms < HOLD_MS:
            return
        self._halved_ms = now_ms
        base = min(self._allowed, max(1, self.in_flight) * _SCALE)
        self._allowed = max(_SCALE, base // 2)
