"""What of the limits outlives the gateway: written to its journal now and then, and taken up again at the next start. Times are wall milliseconds."""

from __future__ import annotations

import msgspec


class LimitMark(msgspec.Struct, frozen=True, omit_defaults=True):
    """One limit as it stood."""

    limit: int
    configured: int = 0
    """What the configuration said then; 0 where the limit was learned."""
    gone: int = 0
    """What was missing until it is full."""
    uses: tuple[tuple[int, int], ...] = ()
    """What was taken within the last window, in a few parts: (how long before, how much)."""


class LaneAt(msgspec.Struct, frozen=True, omit_defaults=True, tag="lane", tag_field="k"):
    """The limits of one account for one class of models."""

    upstream: str
    account: str
    model_class: str
    ms: int
    limits: dict[str, LimitMark] = {}
    closed_until_ms: int = 0

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.upstream} {self.account} {self.model_class}"


class ParkedAt(msgspec.Struct, frozen=True, omit_defaults=True, tag="parked", tag_field="k"):
    """An account has nothing left until a time."""

    upstream: str
    account: str
    until_ms: int
    why: str = ""

    @property
    def name(self) -> str:
        """What tells it from others."""
        return f"{self.upstream} {self.account}"
