"""How the API treats a real coding agent in each scene, and what has to become of its task: the same on this machine and on one reached by SSH.

A scene is chosen by its word in the prompt, so one plan holds many of them. Who plays the API makes its answers from `FAULTS`: the fake model server
(`tests/agents/replies.py`) and the scripted model (`tests/gateway/model.py`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestra.agents.causes import Cause
from tests.unit.recorded import cause_in


class Fault(NamedTuple):
    """What the API answers in the place of the model."""

    status: int = 200
    kind: str = ""
    message: str = ""
    retry_after: int | None = None
    cut: bool = False
    """The answer begins and breaks off."""
    times: int = 0
    """So often, and then it is well; 0: always."""


FAULTS: Final[Mapping[str, Fault]] = {
    "SCENE-BAD-REQUEST": Fault(400, "invalid_request_error", "messages: made up to be malformed"),
    "SCENE-BAD-KEY": Fault(401, "authentication_error", "invalid x-api-key"),
    "SCENE-NO-CREDIT": Fault(400, "invalid_request_error", "Your credit balance is too low to access the Anthropic API."),
    "SCENE-NO-QUOTA": Fault(429, "insufficient_quota", "You exceeded your current quota, please check your plan and billing details."),
    "SCENE-LIMITED-LONG": Fault(429, "rate_limit_error", "too many for a while", retry_after=300),
    "SCENE-LIMITED": Fault(429, "rate_limit_error", "This request would exceed your account's rate limit."),
    "SCENE-TOO-LONG": Fault(400, "invalid_request_error", "prompt is too long: 1208310 tokens > 1000000 maximum"),
    "SCENE-TOO-LARGE": Fault(413, "request_too_large", "Request exceeds the maximum size"),
    "SCENE-BROKEN": Fault(500, "api_error", "Internal server error"),
    "SCENE-OVERLOADED": Fault(529, "overloaded_error", "Overloaded"),
    "SCENE-UNAVAILABLE": Fault(503, "server_error", "unavailable"),
    "SCENE-CUT": Fault(cut=True),
    "SCENE-PASSING-LIMIT": Fault(429, "rate_limit_error", "slow down", retry_after=1, times=1),
    "SCENE-UNTOLD-LIMIT": Fault(429, "rate_limit_error", "slow down", times=1),
    "SCENE-PASSING-BREAK": Fault(500, "api_error", "Internal server error", times=1),
    "SCENE-PASSING-CUT": Fault(cut=True, times=1),
}
"""By word; of two of which one begins with the other, the longer goes first."""

MODES: Final = ("claude-headless", "codex-headless", "claude-interactive", "codex-interactive")


class End(NamedTuple):
    """What becomes of a task."""

    cause: Cause | None = None
    """None: it is completed."""
    more: Mapping[str, Any] = {}
    """What else the plan says of the task."""


CLASH: Final = 'test -e who.txt && echo "$(cat who.txt), then $ORCHESTRA_TASK" > who.txt || echo $ORCHESTRA_TASK > who.txt'
"""Two that begin at the same time say what cannot be true of both; who comes after another one says that."""


def passing(*words: str, mode: str) -> dict[str, End]:
    """Scenes that begin badly and end well, by the words that this mode has of its own: what happened once is over for all others."""
    return {own_word(word, mode): End() for word in words}


def own_word(word: str, mode: str) -> str:
    return f"{word}-{mode.upper()}"


POOR: Final = {"constraints": {"max_cost_dollars": 0.01}}
"""Less than one reply costs."""
PENNILESS: Final = {"constraints": {"max_cost_dollars": 0.0001}}
"""Less than a request costs."""
ISOLATED: Final = {"isolation": "worktree"}
"""So that its files are found by its name."""
SHORT: Final = {"constraints": {"max_execution_time_seconds": 5}}
_BOTH: Final = {
    "SCENE-BAD-REQUEST": End(Cause.REQUEST),
    "SCENE-BAD-KEY": End(Cause.AUTH),
    "SCENE-LIMITED": End(Cause.RATE_LIMITED),
    "SCENE-BROKEN": End(Cause.OVERLOADED),
    "SCENE-OVERLOADED": End(Cause.OVERLOADED),
    "SCENE-CUT": End(Cause.NETWORK),
}
_CLAUDE: Final = {
    **_BOTH,
    "SCENE-NO-CREDIT": End(Cause.QUOTA),
    "SCENE-LIMITED-LONG": End(Cause.RATE_LIMITED),
    "SCENE-REFUSAL": End(Cause.REFUSED),
}
_CODEX: Final = {
    **_BOTH,
    "SCENE-UNAVAILABLE": End(Cause.OVERLOADED),
    "SCENE-NO-QUOTA": End(Cause.QUOTA),
    "SCENE-LIMITED-LONG": End(Cause.RATE_LIMITED, SHORT),  # it waits for as long as it is told to
}
ALONE: Final[Mapping[str, Mapping[str, End]]] = {
    "claude-headless": {
        **_CLAUDE,
        "SCENE-CLAUDE-TURNS": End(Cause.TURNS),
        "SCENE-CLAUDE-DENIED": End(Cause.DENIED),
        "SCENE-SAY": End(Cause.BUDGET, POOR),
        **passing("SCENE-PASSING-LIMIT", "SCENE-UNTOLD-LIMIT", mode="claude-headless"),
    },
    "codex-headless": {**_CODEX, **passing("SCENE-PASSING-LIMIT", mode="codex-headless")},
    "claude-interactive": {**_CLAUDE, **passing("SCENE-PASSING-LIMIT", "SCENE-UNTOLD-LIMIT", mode="claude-interactive")},
    "codex-interactive": {**_CODEX, **passing("SCENE-PASSING-LIMIT", mode="codex-interactive")},
}
"""By mode: what becomes of each scene where the program asks the API itself."""


BEHIND: Final[Mapping[str, Mapping[str, End]]] = {
    "claude": {
        "SCENE-BAD-REQUEST": End(Cause.REQUEST),
        "SCENE-TURNS": End(Cause.TURNS),
        "SCENE-SAY": End(Cause.BUDGET, PENNILESS),
        "SCENE-LOOP": End(Cause.KILLED, ISOLATED),
        "SCENE-PASSING-BREAK": End(),
        "SCENE-PASSING-LIMIT": End(),
        "SCENE-UNTOLD-LIMIT": End(),
        "SCENE-PASSING-CUT": End(),
    },
    "codex": {
        "SCENE-BAD-REQUEST": End(Cause.REQUEST),
        "SCENE-SAY": End(Cause.BUDGET, PENNILESS),
        "SCENE-LOOP": End(Cause.KILLED, ISOLATED),
        "SCENE-PASSING-BREAK": End(),
        "SCENE-PASSING-LIMIT": End(),
        "SCENE-UNTOLD-LIMIT": End(),
        "SCENE-PASSING-CUT": End(),
    },
}
"""By kind, the same where the orchestra's gateway stands before the API: it waits for what passes, and keeps the budget."""


def tasks_of(ends: Mapping[str, End], kind: str, **more: Any) -> list[dict[str, Any]]:
    """Returns a task for each scene, called like kind and scene: what Claude Code in its window is told first is a path with that name."""
    fixed = {"agent": kind, "agent_fixed": True, "retries": 0, **more}
    return [{"id": f"{kind}-{word}", "prompt": f"{word}: do as you are told.", **fixed, **end.more} for word, end in ends.items()]


def otherwise(ends: Mapping[str, End], kind: str, results: Path) -> dict[str, object]:
    """Returns what came out otherwise than it should, by scene: status and reason of the task's result, or that there is none."""
    found: dict[str, object] = {}
    for word, end in ends.items():
        file = results / f"{kind}-{word}" / "result.json"
        result = json.loads(file.read_text()) if file.exists() else {}
        reason = next(iter(result.get("errors", ())), "")
        wanted = ("failed", end.cause) if end.cause else ("completed", None)
        if (result.get("status"), cause_in(reason)) != wanted:
            found[word] = (result.get("status"), reason)
    return found
