"""Why a model CLI did not succeed, in one stable word at the beginning of the reason: `rate-limited: the API refused ...`.

People read the sentence, policy reads the word. A cause is taken only from what the CLI's own records say (a status, a type, a message of the API or
the CLI), never from what the model wrote: an agent that quotes "rate limit" is not limited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from enum import Enum
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import Exit, Verdict
from orchestra.agents.ending import SIGNALS, exit_in_words
from orchestra.core.model import OutcomeKind, Usage

DETAIL_CHARACTERS_MAX: Final = 300
SHELL_SIGNAL_BASE: Final = 128
"""What a shell, and a CLI that handles a signal, adds to its number for an exit code."""


class Cause(Enum):
    """What went wrong; the value is the word."""

    RATE_LIMITED = "rate-limited"
    """Too many requests for now: it passes in seconds or minutes."""
    QUOTA = "quota"
    """The window, plan or credit is spent: nothing runs on this account until it is renewed or paid."""
    AUTH = "auth"
    """The key is missing, wrong, or may not do this."""
    OVERLOADED = "overloaded"
    """The API failed on its side."""
    NETWORK = "network"
    """The API was not reached, or the connection broke."""
    TURNS = "turns"
    """The limit of turns is reached."""
    BUDGET = "budget"
    """The limit of cost is reached."""
    REFUSED = "refused"
    """The model or its provider declined the task."""
    DENIED = "denied"
    """The agent was not allowed to use its tools."""
    REQUEST = "request"
    """The API takes no such request: malformed, too long, or an unknown model."""
    SESSION = "session"
    """The session to go on with is not there, or in use."""
    CONFIG = "config"
    """The CLI does not run with these options."""
    KILLED = "killed"
    """Ended from outside, and not by us: by a signal, or by a person in its window."""
    CRASHED = "crashed"
    """Ended by itself, before it was done."""


FINAL: Final = frozenset({Cause.AUTH, Cause.BUDGET, Cause.CONFIG})
"""Causes that no retry mends: somebody has to change something first."""

UNABLE: Final = frozenset({Cause.AUTH, Cause.QUOTA})
"""Causes that hold for every task of the kind: its login does not work."""
_NOT_THERE: Final = re.compile(r"\[Errno (?:2|13)\] [^:]*: (?P<quoted>['\"].*['\"])$")
_NOT_IN_SANDBOX: Final = re.compile(r"bwrap: execvp (?P<program>\S+): (?:No such file|Permission denied)")

_BY_STATUS: Final = {
    400: Cause.REQUEST,
    401: Cause.AUTH,
    402: Cause.QUOTA,
    403: Cause.AUTH,
    404: Cause.REQUEST,
    408: Cause.NETWORK,
    413: Cause.REQUEST,
    422: Cause.REQUEST,
    429: Cause.RATE_LIMITED,
}
_BY_TYPE: Final = {
    "authentication_error": Cause.AUTH,
    "billing_error": Cause.QUOTA,
    "insufficient_quota": Cause.QUOTA,
    "invalid_request_error": Cause.REQUEST,
    "not_found_error": Cause.REQUEST,
    "overloaded_error": Cause.OVERLOADED,
    "permission_error": Cause.AUTH,
    "rate_limit_error": Cause.RATE_LIMITED,
    "rate_limit_exceeded": Cause.RATE_LIMITED,
    "server_error": Cause.OVERLOADED,
    "usage_limit_reached": Cause.QUOTA,
}
"""Values of `type` or `code` in the error bodies of the Anthropic and OpenAI APIs."""

OUR_BUDGET: Final = "orchestra: the budget of "
"""How the gateway refuses what a budget does not bear; a CLI passes on the provider's kind of error with it."""
_BY_WORDS: Final = (
    (
        Cause.QUOTA,
        re.compile(r"quota exceeded|(?:usage|session|weekly|monthly|spend) limit|credit balance is too low|insufficient.quota", re.I),
    ),
    (Cause.AUTH, re.compile(r"missing environment variable|api key|not logged in|unauthori[sz]ed|authentication", re.I)),
    (Cause.RATE_LIMITED, re.compile(r"too many requests|rate.?limit", re.I)),
    (Cause.OVERLOADED, re.compile(r"overloaded|service unavailable|internal server error|high demand|at capacity", re.I)),
    (
        Cause.NETWORK,
        re.compile(r"stream disconnected|error sending request|connection|waiting for network|timed? ?out|econn|enotfound|network", re.I),
    ),
    (Cause.REQUEST, re.compile(r"context window|too long|not supported|does not exist|model.not.found", re.I)),
)
_STATUS: Final = re.compile(r"(?:status|\berror|\bcode)\W{1,6}([45]\d\d)\b", re.I)


def of_status(status: object) -> Cause | None:
    """Returns what an HTTP status says."""
    if type(status) is not int or status < 400:
        return None
    return _BY_STATUS.get(status, Cause.OVERLOADED if status >= 500 else Cause.REQUEST)


def of_message(message: str) -> Cause | None:
    """Returns what an error message says that the CLI or the API wrote: its body's type, its status, or the words known for it."""
    if OUR_BUDGET in message:
        return Cause.BUDGET
    kinds = error_kinds(message)
    if Cause.QUOTA in kinds:
        return Cause.QUOTA  # also where the status says 429: waiting a minute does not help
    status = _STATUS.search(message)
    if status is not None and (found := of_status(int(status.group(1)))) is not None:
        return found
    return kinds[0] if kinds else next((cause for cause, words in _BY_WORDS if words.search(message)), None)


def error_kinds(message: str) -> list[Cause]:
    """Returns the causes that the types in an error body stand for, if the message is one."""
    body = error_body(message)
    return [_BY_TYPE[body[name]] for name in ("code", "type") if isinstance(body.get(name), str) and body[name] in _BY_TYPE]


def error_body(message: str) -> dict[str, Any]:
    """Returns the object under `error` of an error body, or an empty one."""
    if not message.startswith("{"):
        return {}
    try:
        body = msgspec.json.decode(message)
    except msgspec.DecodeError:
        return {}
    error = body.get("error") if isinstance(body, dict) else None
    return error if isinstance(error, dict) else {}


def reason(cause: Cause, detail: str) -> str:
    """Returns the sentence that begins with the cause's word."""
    plain = " ".join(detail.split())[:DETAIL_CHARACTERS_MAX]
    return f"{cause.value}: {plain}" if plain else cause.value


def failed(cause: Cause, detail: str, usage: Usage, session: str, summary: str = "") -> Verdict:
    """Returns the verdict for a cause: refused where no retry mends it, else failed."""
    kind = OutcomeKind.REFUSED if cause in FINAL else OutcomeKind.FAILED
    return Verdict(kind, reason(cause, detail), usage, session, summary)


def blames_kind(verdict: Verdict, end: Exit, programs: Sequence[str]) -> bool:
    """Tells whether an end says that its kind cannot work there at all, whatever the task: a program of it cannot be started, or its login is refused."""
    if verdict.kind not in (OutcomeKind.FAILED, OutcomeKind.REFUSED):
        return False
    said = end.tail[-1].strip() if end.tail else ""
    if end.reason == "spawn":
        named = _NOT_THERE.search(said)
        return named is not None and named["quoted"] in map(repr, programs)
    inside = _NOT_IN_SANDBOX.match(said)
    if inside is not None and end.code == 1 and inside["program"] in programs:
        return True
    return verdict.reason.partition(":")[0] in {cause.value for cause in UNABLE}


def last_line(end: Exit) -> dict[str, Any]:
    """Returns the very last line that was printed, if it is a JSON object: what came last is not told by `Exit.last`, which has one of each type."""
    try:
        line = msgspec.json.decode(end.tail[-1]) if end.tail else None
    except msgspec.DecodeError:
        return {}
    return line if isinstance(line, dict) else {}


def killed_by(code: int | None, number: int | None) -> str:
    """Returns the name of the signal that ended a program, or nothing. A CLI that handles a signal tells it by its exit code."""
    if number:
        return SIGNALS.get(number, f"signal {number}")
    return SIGNALS.get((code or 0) - SHELL_SIGNAL_BASE, "")


def ended_outside(line: dict[str, Any]) -> bool:
    """Tells whether what a program of the stage drove was ended from outside before it was done: by a signal, or by its being told to go (exit code 0)."""
    code, number = (value if type(value) is int else None for value in (line.get("exit_code"), line.get("exit_signal")))
    return code == 0 or bool(killed_by(code, number))


def unexplained(end: Exit, usage: Usage, session: str) -> Verdict:
    """Returns the verdict for an end without any word about it: killed, or crashed."""
    if name := killed_by(end.code, end.signal):
        return failed(Cause.KILLED, f"ended by {name}, which the orchestra did not send", usage, session)
    return failed(Cause.CRASHED, f"ended without a result: {exit_in_words(end)}", usage, session)


def belied(end: Exit, usage: Usage, session: str, summary: str = "") -> Verdict:
    """Returns the verdict where the CLI said that it was done and then did not end well. The last printed line is that result, and would say nothing more."""
    cause = Cause.KILLED if killed_by(end.code, end.signal) else Cause.CRASHED
    return failed(cause, f"said done, but {exit_in_words(msgspec.structs.replace(end, tail=()))}", usage, session, summary)
