"""One limit of a provider as a bucket that fills continuously. Integers only: what is in it is counted in amount x window."""

from __future__ import annotations

from collections import deque
from typing import Final

from orchestra.metering.marks import LimitMark

SLOT_MS: Final = 100
"""Uses this near to each other are remembered as one, so that a minute is at most 600 of them."""
PARTS: Final = 12
"""In so many parts the last window is remembered beyond the life of the process."""
ROUNDING: Final = 1000
"""Anthropic rounds what remains to a thousand tokens."""


class Use:
    """What was taken within one slot of time, until it is no longer of any window."""

    __slots__ = ("amount", "first_ms", "last_ms", "peak")

    def __init__(self, first_ms: int) -> None:
        self.first_ms = first_ms
        self.last_ms = first_ms
        """It counts from here on, which errs on the safe side by the length of a slot."""
        self.amount = 0
        self.peak = 0
        """Highest level after it and before the next one."""


class Bucket:
    """What is left of one limit.

    Args:
        limit: Amount a window.
        window_ms: A minute, or a day.
        burst_ms: How much may be used at once, as the time in which it grows back.
        exact: No window may ever hold more than the limit, however it is laid.
        now_ms: The steady time.
    """

    def __init__(self, limit: int, window_ms: int, burst_ms: int, now_ms: int, *, exact: bool) -> None:
        self.window_ms = window_ms
        self.burst_ms = burst_ms
        self.exact = exact
        self.limit = limit
        self.taken_total = 0
        """Ever taken; the difference of two readings is what was sent between them."""
        self.foreign = 0
        """What others of the same account used lately, as seen in headers."""
        self._level = self._capacity()
        self._at_ms = now_ms
        self._uses: deque[Use] = deque()
        self._used = 0
        self._parts: deque[list[int]] = deque()
        """The same uses, summed up: [from when, until when, how much]."""

    @property
    def burst(self) -> int:
        """What may be taken at once."""
        return self._capacity() // self.window_ms

    def _capacity(self) -> int:
        return max(self.limit * self.burst_ms, self.window_ms)

    def advance(self, now_ms: int) -> None:
        """Lets time pass."""
        if now_ms > self._at_ms:
            self._level = min(self._capacity(), self._level + self.limit * (now_ms - self._at_ms))
            self._at_ms = now_ms
        while self._uses and self._uses[0].last_ms + self.window_ms <= now_ms:
            self._used -= self._uses.popleft().amount
        while self._parts and self._parts[0][1] + self.window_ms <= now_ms:
            self._parts.popleft()

    def wait_ms(self, amount: int, now_ms: int) -> int:
        """Returns how long until that much may be taken; 0 is now. More than fits at all may be taken when the bucket is full."""
        if amount <= 0:
            return 0
        self.advance(now_ms)
        missing = min(amount * self.window_ms, self._capacity()) - self._level
        wait = -(-missing // self.limit) if missing > 0 else 0
        if self.exact and self._used + amount > self.limit:
            wait = max(wait, self._window_wait(amount, now_ms))
        return wait

    def _window_wait(self, amount: int, now_ms: int) -> int:
        left = self._used
        for use in self._uses:
            if left + amount <= self.limit:
                break
            left -= use.amount
            wait = use.last_ms + self.window_ms - now_ms
            if left + amount <= self.limit or left == 0:
                return max(1, wait)
        return 0

    def take(self, amount: int, now_ms: int) -> Use:
        """Takes it, even where that leaves less than nothing: a debt is waited off by those who come later. Returns where it is noted, for `correct`."""
        self.advance(now_ms)
        last = self._uses[-1] if self._uses else None
        if last is not None and now_ms - last.first_ms < SLOT_MS:
            use = last
        else:
            if last is not None:
                last.peak = max(last.peak, self._level)
            use = Use(now_ms)
            self._uses.append(use)
        self._level -= amount * self.window_ms
        self.taken_total += amount
        self._used += amount
        use.last_ms = now_ms
        use.amount += amount
        use.peak = self._level
        if self._parts and now_ms - self._parts[-1][0] < self.window_ms // PARTS:
            self._parts[-1][1:] = now_ms, self._parts[-1][2] + amount
        else:
            self._parts.append([now_ms, now_ms, amount])
        return use

    def correct(self, amount: int, use: Use, now_ms: int) -> None:
        """Puts back what was reserved and not used, or takes what was used beyond, as if it had been known when it was taken.

        A bucket of the size of the limit that was nearly full meanwhile would have run over: what it could not have held is not put back. Where the window
        is added up, that is what bounds it, and the bucket only keeps the pace even.
        """
        self.advance(now_ms)
        difference = amount * self.window_ms
        if self.exact:
            self._level = min(self._capacity(), self._level - difference)
        else:
            self._level -= self._corrected_since(use, difference)
        if use.last_ms + self.window_ms > now_ms:
            use.amount += amount
            self._used += amount
            part = next((each for each in reversed(self._parts) if each[0] <= use.last_ms), self._parts[-1])
            part[2] += amount

    def _corrected_since(self, use: Use, difference: int) -> int:
        """Corrects how full it has been since; returns by how much."""
        since, peak = [], self._level
        for each in reversed(self._uses):
            since.append(each)
            peak = max(peak, each.peak)
            if each is use:
                break
        difference = max(difference, min(0, peak - self._capacity()))
        for each in since:
            each.peak -= difference
        return difference

    def mark(self, configured: int, now_ms: int) -> LimitMark:
        """Returns how it stands, for the next process."""
        self.advance(now_ms)
        uses = tuple((now_ms - until_ms, amount) for _, until_ms, amount in self._parts)
        return LimitMark(self.limit, configured, -(-(self._capacity() - self._level) // self.window_ms), uses)

    def recall(self, mark: LimitMark, elapsed_ms: int, now_ms: int) -> None:
        """Goes on from where another one stood that long ago."""
        self._level, self._at_ms = self._capacity() - mark.gone * self.window_ms, now_ms - elapsed_ms
        for before_ms, amount in mark.uses:
            at_ms = now_ms - elapsed_ms - before_ms
            use = Use(at_ms)
            use.amount = amount
            self._uses.append(use)
            self._parts.append([at_ms, at_ms, amount])
            self._used += amount
        self.advance(now_ms)

    def empty(self, now_ms: int) -> None:
        """Forgets what is left: the provider says that there is nothing."""
        self.advance(now_ms)
        self._level = min(self._level, 0)

    def set_limit(self, limit: int, now_ms: int) -> None:
        """Another limit holds from now on."""
        self.advance(now_ms)
        self.limit = limit
        self._level = min(self._level, self._capacity())

    def learn_remaining(self, remaining: int, sent_since: int, now_ms: int) -> None:
        """Believes the provider's own count if it is lower than ours.

        Args:
            remaining: What was left when it answered.
            sent_since: What we sent after that request and it may not have seen.
            now_ms: The steady time.
        """
        self.advance(now_ms)
        level = (remaining - sent_since) * self.window_ms
        unseen = (self._level - remaining * self.window_ms) // self.window_ms
        allowance = max(ROUNDING if self.limit > 20 * ROUNDING else 1, self.limit // 20)
        self.foreign = unseen if unseen > allowance else 0
        self._level = min(self._level, level)

    @property
    def left(self) -> int:
        """What may be taken now; negative is debt."""
        return self._level // self.window_ms

    def used(self, now_ms: int) -> int:
        """What was taken within the last window."""
        self.advance(now_ms)
        return max(0, self._used)
