"""What a provider said about its limits in the headers of a response, in one form for all providers."""

from __future__ import annotations

import msgspec


class Reading(msgspec.Struct, frozen=True):
    """One dimension as the provider counts it."""

    limit: int | None = None
    remaining: int | None = None
    reset_ms: int | None = None
    """From now until it is full again."""


class Window(msgspec.Struct, frozen=True):
    """A long window of a subscription: five hours, seven days."""

    used_percent: int
    rejected: bool
    reset_ms: int | None


class Report(msgspec.Struct, frozen=True):
    """All of it; what was malformed or contradicted itself is missing."""

    readings: dict[str, Reading] = {}
    windows: dict[str, Window] = {}
    retry_after_ms: int | None = None
    should_retry: bool | None = None
    odd: tuple[str, ...] = ()
    """Names of headers that were not believed."""
