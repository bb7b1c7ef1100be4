"""Stops asking an upstream that only fails: open after failures in a row, then one probe at a time with growing pauses."""

from __future__ import annotations

from typing import Final

FAILURES_MAX: Final = 8
"""In a row; a provider that fails half of the time is worth asking again."""
PAUSE_MS: Final = 5_000
PAUSE_MS_MAX: Final = 120_000


class Breaker:
    """State of one upstream."""

    def __init__(self) -> None:
        self._failures = 0
        self._pause_ms = PAUSE_MS
        self._open_until_ms: int | None = None
        self._probing = False

    @property
    def is_open(self) -> bool:
        """Whether requests are held back."""
        return self._open_until_ms is not None

    def wait_ms(self, now_ms: int) -> int:
        """Returns how long a request has to wait; 0 lets it through, and while it is open only as the one probe (see `started`)."""
        if self._open_until_ms is None:
            return 0
        if self._probing:
            return max(1_000, self._open_until_ms - now_ms)
        return max(0, self._open_until_ms - now_ms)

    def started(self) -> bool:
        """A request goes out; tells whether it is the probe."""
        if self._open_until_ms is None:
            return False
        self._probing = True
        return True

    def succeeded(self) -> bool:
        """An answer came that is no failure of the upstream; tells whether this closed the breaker."""
        was_open = self.is_open
        self._failures, self._pause_ms, self._open_until_ms, self._probing = 0, PAUSE_MS, None, False
        return was_open

    def failed(self, now_ms: int, *, probe: bool = False) -> bool:
        """It did not answer, or with a failure of its own; tells whether this opened the breaker."""
        self._failures += 1
        if self.is_open:
            if probe:
                self._pause_ms = min(PAUSE_MS_MAX, self._pause_ms * 2)
                self._open_until_ms = now_ms + self._pause_ms
                self._probing = False
            return False
        if self._failures < FAILURES_MAX:
            return False
        self._open_until_ms = now_ms + self._pause_ms
        return True

    def abandoned(self) -> None:
        """The probe ended without an answer because its client went away."""
        self._probing = False
