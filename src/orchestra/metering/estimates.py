"""What a request will use, guessed from its size and from what came before it in the same conversation and class of models."""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import Final

from orchestra.metering.usage import BYTES_PER_TOKEN, Estimate, Usage

CONVERSATIONS_MAX: Final = 10_000
ANSWERS_KEPT: Final = 64
OUTPUT_FIRST: Final = 256
"""Until answers were seen; most turns of an agent are a tool call of this size."""
SHARE_PERCENT: Final = 90
"""Nine of ten answers are not longer than the guess."""


class Estimator:
    """Remembers how conversations went."""

    def __init__(self) -> None:
        self._conversations: OrderedDict[tuple[str, str], tuple[int, Usage]] = OrderedDict()
        self._answers: dict[str, deque[int]] = {}

    def estimate(self, conversation: str, model: str, body_bytes: int, output_tokens_max: int) -> Estimate:
        """Returns a guess for a request of this size. A conversation's next request repeats it whole, so what was read from a cache or written to
        one is read from there again."""
        known = self._conversations.get((conversation, model))
        if known is None or known[0] <= 0:
            prompt, cached = -(-body_bytes // BYTES_PER_TOKEN), 0
        else:
            seen_bytes, usage = known
            prompt = -(-body_bytes * max(1, usage.prompt_tokens) // seen_bytes)
            cached = min(prompt, usage.cache_read_tokens + usage.cache_write_tokens)
        return Estimate(max(1, prompt - cached), cached, self._output(model, output_tokens_max), output_tokens_max)

    def _output(self, model: str, most: int) -> int:
        answers = self._answers.get(model)
        guess = OUTPUT_FIRST if not answers else sorted(answers)[(len(answers) - 1) * SHARE_PERCENT // 100]
        return min(guess, most) if most > 0 else guess

    def learn(self, conversation: str, model: str, body_bytes: int, usage: Usage) -> None:
        """Takes note of what a request really used."""
        key = (conversation, model)
        self._conversations[key] = (body_bytes, usage)
        self._conversations.move_to_end(key)
        if len(self._conversations) > CONVERSATIONS_MAX:
            self._conversations.popitem(last=False)
        if len(self._answers) > CONVERSATIONS_MAX:
            self._answers.clear()
        self._answers.setdefault(model, deque(maxlen=ANSWERS_KEPT)).append(usage.output_tokens)
