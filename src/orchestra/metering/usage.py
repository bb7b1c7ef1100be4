"""What one request used, in tokens, told apart by how it is charged."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

import msgspec

TOKENS_MAX: Final = 100_000_000
"""More than any model's context; a larger count in a response is a fault of the sender and not believed."""
BYTES_PER_TOKEN: Final = 4
"""The rule of thumb of both big providers for English text and code."""

ANSWERS_ENOUGH: Final = 8
"""Answers of a model after which what they used is a fair guess of the next."""

_STANDARD: Final = frozenset({"", "auto", "default", "standard", "standard_only", "unspecified", "global", "not_available"})
"""What providers call the mode that is charged as the table says, and requests the leave to choose."""
_MODE: Final = re.compile(r"[a-z0-9_.-]{0,40}")


class Usage(msgspec.Struct, frozen=True, omit_defaults=True):
    """Token counts of one request. The kinds do not overlap: what was read from a cache is not in `input_tokens`."""

    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_5m_tokens: int = 0
    cache_write_1h_tokens: int = 0
    output_tokens: int = 0
    web_searches: int = 0
    """Made by the provider itself, which charges each."""
    mode: str = ""
    """In which it was worked on, where that has a price of its own: `fast`, `flex`, `priority`, several joined by `+`; empty is the standard."""

    @property
    def cache_write_tokens(self) -> int:
        """Written to a cache of any lifetime."""
        return self.cache_write_5m_tokens + self.cache_write_1h_tokens

    @property
    def prompt_tokens(self) -> int:
        """The whole prompt, from a cache or not."""
        return self.input_tokens + self.cache_read_tokens + self.cache_write_tokens


class Estimate(msgspec.Struct, frozen=True):
    """What a request is thought to use before it is sent."""

    input_tokens: int
    """Of the prompt that is thought not to come from a cache."""
    cache_read_tokens: int
    output_tokens: int
    """What such requests usually answer."""
    output_tokens_max: int
    """What the request allows the model to answer; 0 if it does not say."""
    output_mean: int = -1
    """What they answer on average; -1 is not known."""
    answers: int = ANSWERS_ENOUGH
    """Of this model that were seen, which is what the guess of the output rests on."""

    @property
    def weight(self) -> int:
        """How much of the limits it takes in the eyes of the queue; never 0."""
        return max(1, self.input_tokens + self.output_tokens)


def mode_of(said: Mapping[str, object]) -> str:
    """Returns the mode of a request from what was said of its service tier, speed and the like."""
    words = (value.lower().removeprefix("service_tier_") for value in said.values() if isinstance(value, str))
    return "+".join(sorted({word if _MODE.fullmatch(word) else "other" for word in words} - _STANDARD))


def believable(value: object) -> int | None:
    """Returns a token count as sent by a provider, or None if it cannot be one."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= TOKENS_MAX:
        return None
    return value
