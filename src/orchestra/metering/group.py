"""The limits of one account for one class of models: all buckets, the ramp, and when it is closed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from math import isqrt
from typing import Final

import msgspec

from orchestra.metering.bucket import Bucket, Use
from orchestra.metering.formulas import (
    DAILY,
    DAY_MS,
    DIMENSIONS,
    EXTRA,
    INPUT,
    MINUTE_MS,
    OUTPUT,
    TOKENS,
    Charge,
    Formula,
    refused,
    reserve,
    settle,
)
from orchestra.metering.headers import Report
from orchestra.metering.marks import LimitMark
from orchestra.metering.ramp import Ramp
from orchestra.metering.usage import ANSWERS_ENOUGH, Estimate, Usage

WARN_PERCENT: Final = 70
CALM_PERCENT: Final = 50
"""Below it a warning is over; the gap keeps it from flickering."""
LEARN_MAX: Final = 10**10


class Reservation(msgspec.Struct):
    """What a request holds of a group until it is settled."""

    charge: Charge
    sent_marks: dict[str, int]
    """Dimension -> `taken_total` when it was sent."""
    uses: dict[str, Use]
    """Dimension -> where its bucket noted it."""
    open: bool = True


class DimensionView(msgspec.Struct, frozen=True):
    """One limit, as shown."""

    name: str
    limit: int
    left: int
    used: int
    used_percent: int
    foreign: int
    learned: bool


class Group:
    """Limits that share one account and one class of models. All times are steady milliseconds."""

    def __init__(self, formula: Formula, limits: Mapping[str, int], concurrency_max: int, now_ms: int) -> None:
        self.formula = formula
        self.ramp = Ramp(concurrency_max)
        self.closed_until_ms = 0
        self.refusals = 0
        """Since something last went well."""
        self._configured = dict(limits)
        self._buckets: dict[str, Bucket] = {}
        self._extra: Counter[str] = Counter()
        """Dimension -> what is reserved out of caution; nobody is to be warned of it."""
        self._warned: set[str] = set()
        for name, limit in limits.items():
            self._make(name, limit, now_ms)

    def _make(self, name: str, limit: int, now_ms: int) -> None:
        window_ms = DAY_MS if name == DAILY else MINUTE_MS
        burst_ms = self.formula.burst_ms[name]
        self._buckets[name] = Bucket(limit, window_ms, burst_ms, now_ms, exact=self.formula.exact_window and window_ms == MINUTE_MS)

    def charge_of(self, estimate: Estimate) -> Charge:
        """Returns what a request is to reserve. Until some answers of its model were seen nobody knows how long they are: then it reserves its largest
        answer, or a share of what may be used at once that is smaller with each answer, so that not many set out together that turn out long."""
        if estimate.answers >= ANSWERS_ENOUGH and 0 <= estimate.output_mean < estimate.output_tokens:
            beyond = 2 * (estimate.output_tokens - estimate.output_mean) // (1 + isqrt(self.ramp.in_flight + 1))
            estimate = msgspec.structs.replace(estimate, output_tokens=estimate.output_mean + beyond)
        charge = reserve(self.formula, estimate)
        if estimate.answers < ANSWERS_ENOUGH:
            for name, prompt in ((OUTPUT, 0), (TOKENS, charge[INPUT])):
                bucket = self._buckets.get(name)
                if bucket is not None:
                    share = bucket.burst // (estimate.answers + 1)
                    most = min(share, prompt + estimate.output_tokens_max) if estimate.output_tokens_max else share
                    charge[EXTRA[name]] = max(0, most - charge[name])
                    charge[name] = max(charge[name], most)
        return charge

    def wait_ms(self, charge: Charge, now_ms: int) -> int:
        """Returns how long until the limits admit it; 0 is now. What is on its way is not counted: see `ramp.free`."""
        wait = max(0, self.closed_until_ms - now_ms)
        for name, bucket in self._buckets.items():
            wait = max(wait, bucket.wait_ms(charge.get(name, 0), now_ms))
        return wait

    def cost(self, charge: Charge) -> int:
        """Returns what a request takes of the limit it takes most of, in millionths: that is what flows share evenly. 0 if no limit is known."""
        return max((charge.get(name, 0) * 1_000_000 // bucket.limit for name, bucket in self._buckets.items()), default=0)

    def take(self, charge: Charge, now_ms: int) -> Reservation:
        """Reserves."""
        uses = {name: bucket.take(charge.get(name, 0), now_ms) for name, bucket in self._buckets.items()}
        self._extra.update(self._extra_of(charge))
        self.ramp.enter()
        return Reservation(dict(charge), {name: bucket.taken_total for name, bucket in self._buckets.items()}, uses)

    @staticmethod
    def _extra_of(charge: Charge) -> Charge:
        return {name: extra for name, key in EXTRA.items() if (extra := charge.get(key, 0))}

    def settle(self, held: Reservation, usage: Usage, now_ms: int) -> None:
        """Puts what was really used in the place of what was reserved. Idempotent."""
        self._close(held, settle(self.formula, held.charge, usage), now_ms)

    def settle_refused(self, held: Reservation, now_ms: int) -> None:
        """The provider refused it. Idempotent."""
        self._close(held, refused(self.formula, held.charge), now_ms)

    def settle_unsent(self, held: Reservation, now_ms: int) -> None:
        """It never reached the provider. Idempotent."""
        self._close(held, {}, now_ms)

    def _close(self, held: Reservation, charge: Charge, now_ms: int) -> None:
        if not held.open:
            return
        held.open = False
        self._extra.subtract(self._extra_of(held.charge))
        self.ramp.leave()
        for name, bucket in self._buckets.items():
            use = held.uses.get(name)
            if use is not None and (difference := charge.get(name, 0) - held.charge.get(name, 0)):
                bucket.correct(difference, use, now_ms)

    def learn(self, report: Report, held: Reservation, now_ms: int) -> None:
        """Believes the limits that a response showed; a configured limit is only ever lowered by them."""
        split = INPUT in report.readings or OUTPUT in report.readings
        for name in DIMENSIONS:
            reading = report.readings.get(name)
            if reading is None or (name == TOKENS and split and TOKENS not in self._configured):
                continue
            if reading.limit is not None and 0 < reading.limit <= LEARN_MAX:
                limit = min(reading.limit, self._configured.get(name, reading.limit))
                if name not in self._buckets:
                    self._make(name, limit, now_ms)
                elif self._buckets[name].limit != limit:
                    self._buckets[name].set_limit(limit, now_ms)
            bucket = self._buckets.get(name)
            if bucket is not None and reading.remaining is not None and reading.limit is not None:
                self._learn_remaining(bucket, reading.remaining, reading.limit, name, held, now_ms)

    def _learn_remaining(self, bucket: Bucket, remaining: int, limit: int, name: str, held: Reservation, now_ms: int) -> None:
        shown = remaining if bucket.limit >= limit else remaining * bucket.limit // limit
        mark = held.sent_marks.get(name, bucket.taken_total)
        bucket.learn_remaining(shown, bucket.taken_total - mark, now_ms)

    def went_well(self) -> None:
        """An answer came."""
        self.refusals = 0
        self.ramp.went_well()

    @property
    def is_plain(self) -> bool:
        """Whether nothing is known of it that would be lost with it."""
        return not self._buckets and not self.refusals

    def slow_down(self) -> None:
        """The provider refused one and takes most of the others: fewer at once, and nobody else waits."""
        self.ramp.too_many()

    def close_until(self, until_ms: int, now_ms: int) -> None:
        """The provider says that for a while nothing goes; afterwards it starts slowly."""
        if self.closed_until_ms <= now_ms:
            self.refusals += 1
        self.closed_until_ms = max(self.closed_until_ms, until_ms)
        self.ramp.too_many()
        for name, bucket in self._buckets.items():
            if name != DAILY:
                bucket.empty(now_ms)

    def adopt(self, fresh: Group, now_ms: int) -> None:
        """Takes over the configured limits of another group; what was learned and used stays."""
        for name in self._configured.keys() - fresh._configured.keys():
            del self._buckets[name]
        self._configured = fresh._configured
        self.ramp.set_most(fresh.ramp.most)
        for name, limit in self._configured.items():
            if name not in self._buckets:
                self._make(name, limit, now_ms)
            elif self._buckets[name].limit != limit:
                self._buckets[name].set_limit(limit, now_ms)

    def marks(self, now_ms: int) -> dict[str, LimitMark]:
        """Returns all limits as they stand, for the next process."""
        return {name: bucket.mark(self._configured.get(name, 0), now_ms) for name, bucket in self._buckets.items()}

    def recall(self, marks: Mapping[str, LimitMark], elapsed_ms: int, now_ms: int) -> None:
        """Goes on from where the limits stood that long ago: what was used counts, and what was learned holds unless the configuration says otherwise by now."""
        for name, mark in marks.items():
            configured = self._configured.get(name, 0)
            if name not in DIMENSIONS or not 0 < mark.limit <= LEARN_MAX or (mark.configured and not configured):
                continue
            if name not in self._buckets:
                self._make(name, mark.limit, now_ms)
            elif mark.limit < configured and mark.configured in (0, configured):
                self._buckets[name].set_limit(mark.limit, now_ms)
            self._buckets[name].recall(mark, elapsed_ms, now_ms)

    def view(self, now_ms: int) -> list[DimensionView]:
        """Returns all limits as they stand."""
        return [self._view(name, bucket, now_ms) for name, bucket in self._buckets.items()]

    def _view(self, name: str, bucket: Bucket, now_ms: int) -> DimensionView:
        used = max(0, bucket.used(now_ms) - self._extra[name]) + bucket.foreign
        percent = min(999, used * 100 // bucket.limit)
        return DimensionView(name, bucket.limit, bucket.left, used, percent, bucket.foreign, name not in self._configured)

    def changes(self, now_ms: int) -> list[tuple[DimensionView, bool]]:
        """Returns the dimensions that came to be near their limit (True) or left it (False) since it was asked last."""
        found: list[tuple[DimensionView, bool]] = []
        for view in self.view(now_ms):
            if view.used_percent >= WARN_PERCENT and view.name not in self._warned:
                self._warned.add(view.name)
                found.append((view, True))
            elif view.used_percent < CALM_PERCENT and view.name in self._warned:
                self._warned.discard(view.name)
                found.append((view, False))
        return found
