"""What a request will use, guessed from its size and from what came before it in the same conversation and class of models."""

from __future__ import annotations

import re
from collections import OrderedDict, deque
from typing import Final

import msgspec

from orchestra.metering.usage import BYTES_PER_TOKEN, Estimate, Usage

CONVERSATIONS_MAX: Final = 10_000
ANSWERS_KEPT: Final = 64
OUTPUT_FIRST: Final = 256
"""Until answers were seen; most turns of an agent are a tool call of this size."""
SHARE_PERCENT: Final = 90
"""Nine of ten answers are not longer than the guess."""

IMAGE_TOKENS_MAX: Final = {"anthropic": 4_784, "openai": 14_400, "gemini": 2_240}
"""Of one picture, however many bytes it has: providers make larger ones smaller first. Anthropic's guide on vision (4,784 at the high resolution, 1,568 at the standard
one), Google's on media resolution (2,240 at the highest); of OpenAI's models what the one that takes most was measured to take of a photo of 12 megapixels (14,364,
with `detail` left to it). Read in November 2026."""
DOCUMENT_TOKENS_MAX: Final = {"anthropic": 460_000, "openai": 460_000, "gemini": 560_000}
"""Of one PDF of a hundred pages with 3,000 tokens of text and a picture of 1,568 each, by Anthropic's guide on PDFs (up to 3,000 tokens a page and the picture; measured are 2,350), or of
a thousand pages of 560 by Google's. More pages than that are estimated too low, and settled at what they were."""
_KIND: Final = rb"(?:(?P<image>image\\?/)|(?P<document>application\\?/pdf))"
_DATA_URL: Final = re.compile(rb"data:" + _KIND)
_MEDIA_TYPE: Final = re.compile(rb'"(?:media_type|mimeType|mime_type)"\s*:\s*"' + _KIND)
_KEY: Final = re.compile(rb'"(?:data|url|image_url|file_data)"\s*:\s*$')
_NEAR_BYTES: Final = 160
"""How far before or behind the data its key and its type stand, which are in the same small object."""
_SAMPLE: Final = re.compile(rb"[A-Za-z0-9+/=_\\-]{48}")


def prompt_bytes(text: bytes, kind: str) -> int:
    """Returns how many bytes a request would have if its pictures and documents were text of what they cost at most.

    The body is not taken apart for it: what counts is a long string of base64, so a look every few thousand bytes meets it. Half a megabyte of text takes a few
    hundredths of a millisecond.

    Args:
        text: The body, inflated.
        kind: Of the provider.
    """
    total = len(text)
    step = IMAGE_TOKENS_MAX[kind] * BYTES_PER_TOKEN // 2
    at = step
    while at < len(text):
        if _SAMPLE.match(text, at) is not None:
            start, end = text.rfind(b'"', 0, at), text.find(b'"', at)
            if start >= 0 and end >= 0:
                total -= _spared_bytes(text, start, end, kind)
                at = end
        at += step
    return total


def _spared_bytes(text: bytes, start: int, end: int, kind: str) -> int:
    """Returns by how much a string is larger than it counts; it stands between two quotes."""
    before = text[max(0, start - _NEAR_BYTES) : start]
    if _KEY.search(before) is None or text.find(b" ", start, end) >= 0:
        return 0
    found = _DATA_URL.match(text, start + 1, end) or _MEDIA_TYPE.search(before) or _MEDIA_TYPE.search(text, end, end + _NEAR_BYTES)
    if found is None:
        return 0
    most = IMAGE_TOKENS_MAX if found["image"] else DOCUMENT_TOKENS_MAX
    return max(0, end - start - 1 - most[kind] * BYTES_PER_TOKEN)


class Estimator:
    """Remembers how conversations went."""

    def __init__(self) -> None:
        self._conversations: OrderedDict[tuple[str, str], tuple[int, Usage]] = OrderedDict()
        self._answers: dict[str, _Answers] = {}

    def estimate(self, conversation: str, model: str, body_bytes: int, output_tokens_max: int) -> Estimate:
        """Returns a guess for a request of this size (`prompt_bytes`). A conversation's next request repeats it whole, so what was read from a cache or written to
        one is read from there again."""
        known = self._conversations.get((conversation, model))
        if known is None or known[0] <= 0:
            prompt, cached = -(-body_bytes // BYTES_PER_TOKEN), 0
        else:
            seen_bytes, usage = known
            prompt = -(-body_bytes * max(1, usage.prompt_tokens) // seen_bytes)
            cached = min(prompt, usage.cache_read_tokens + usage.cache_write_tokens)
        return self.renewed(Estimate(max(1, prompt - cached), cached, 0, output_tokens_max), model)

    def renewed(self, estimate: Estimate, model: str) -> Estimate:
        """Returns an estimate with what is known by now of the model's answers."""
        answers = self._answers.get(model)
        guess, mean, seen = (OUTPUT_FIRST, -1, 0) if answers is None else (answers.guess, answers.mean, len(answers.lately))
        most = estimate.output_tokens_max if estimate.output_tokens_max > 0 else guess
        return msgspec.structs.replace(estimate, output_tokens=min(guess, most), output_mean=min(mean, most), answers=seen)

    def learn(self, conversation: str, model: str, body_bytes: int, usage: Usage) -> None:
        """Takes note of what a request really used."""
        key = (conversation, model)
        self._conversations[key] = (body_bytes, usage)
        self._conversations.move_to_end(key)
        if len(self._conversations) > CONVERSATIONS_MAX:
            self._conversations.popitem(last=False)
        self._learn_answer(model, usage.output_tokens)

    def learn_assumed(self, model: str, output_tokens: int) -> None:
        """Takes note of an answer of which only a part may be known: it has been seen, and makes no guess smaller."""
        answers = self._answers.get(model)
        self._learn_answer(model, max(output_tokens, OUTPUT_FIRST if answers is None else answers.guess))

    def _learn_answer(self, model: str, output_tokens: int) -> None:
        if len(self._answers) > CONVERSATIONS_MAX:
            self._answers.clear()
        self._answers.setdefault(model, _Answers()).add(output_tokens)


class _Answers:
    """How long the last answers of a model were."""

    def __init__(self) -> None:
        self.lately: deque[int] = deque(maxlen=ANSWERS_KEPT)
        self.guess = OUTPUT_FIRST
        self.mean = OUTPUT_FIRST

    def add(self, tokens: int) -> None:
        self.lately.append(tokens)
        self.mean = -(-sum(self.lately) // len(self.lately))
        self.guess = sorted(self.lately)[-(-len(self.lately) * SHARE_PERCENT // 100) - 1]
