"""What `aider` and `mini-swe-agent` share: both reach their API through the library LiteLLM, and end with its errors as plain lines."""

from __future__ import annotations

import re
from typing import Final

from orchestra.agents.adapter import Exit
from orchestra.agents.causes import Cause, of_message

KEYS: Final = ("OPENAI_API_KEY", "ANTHROPIC_API_KEY", "GEMINI_API_KEY", "OPENROUTER_API_KEY", "DEEPSEEK_API_KEY")
ENV: Final = {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
"""Prices from the installed package, not from the network."""
_ERROR: Final = re.compile(r"(?:\w+: )?litellm\.(\w+): (.*)")
_BY_ERROR: Final = {
    "APIConnectionError": Cause.NETWORK,
    "APIError": Cause.OVERLOADED,
    "AuthenticationError": Cause.AUTH,
    "BadRequestError": Cause.REQUEST,
    "ContextWindowExceededError": Cause.REQUEST,
    "InternalServerError": Cause.OVERLOADED,
    "NotFoundError": Cause.REQUEST,
    "PermissionDeniedError": Cause.AUTH,
    "RateLimitError": Cause.RATE_LIMITED,
    "ServiceUnavailableError": Cause.OVERLOADED,
    "Timeout": Cause.NETWORK,
}


def error_in(end: Exit) -> tuple[Cause, str] | None:
    """Returns the last error of the library in the last lines, and its words. Lines begin with it: in the midst of one it may be quoted."""
    for index in range(len(end.tail) - 1, -1, -1):
        found = _ERROR.match(end.tail[index].strip())
        if found is not None and found.group(1) in _BY_ERROR:
            said = " ".join([found.group(2), *end.tail[index + 1 : index + 3]])
            cause = _BY_ERROR[found.group(1)]
            return (Cause.QUOTA if cause is Cause.RATE_LIMITED and of_message(said) is Cause.QUOTA else cause), said
    return None
