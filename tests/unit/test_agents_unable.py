"""Which ends say that a kind cannot work at all."""

from __future__ import annotations

import pytest

from orchestra.agents.adapter import Exit, Verdict
from orchestra.agents.causes import blames_kind
from orchestra.core.model import OutcomeKind

PROGRAMS = ("codex",)
REFUSED = OutcomeKind.REFUSED


@pytest.mark.parametrize(
    "verdict, end, blamed",
    [
        (Verdict(REFUSED, "auth: the key is refused"), Exit("exited", code=1), True),
        (Verdict(OutcomeKind.FAILED, "quota: no credit"), Exit("exited", code=1), True),
        (Verdict(OutcomeKind.FAILED, "rate-limited: wait"), Exit("exited", code=1), False),
        (Verdict(REFUSED, "config: no such option"), Exit("exited", code=2), False),
        (Verdict(OutcomeKind.DONE, "auth: fine"), Exit("exited", code=0), False),
        (Verdict(OutcomeKind.FAILED, "authentication is not done"), Exit("exited", code=1), False),
        (Verdict(REFUSED, "-"), Exit("spawn", tail=("cannot start: [Errno 2] not found in PATH: 'codex'",)), True),
        (Verdict(REFUSED, "-"), Exit("spawn", tail=("cannot start: [Errno 13] Permission denied: 'codex'",)), True),
        (Verdict(REFUSED, "-"), Exit("spawn", tail=("cannot start: [Errno 2] No such file or directory: '/w'",)), False),
        (Verdict(REFUSED, "-"), Exit("spawn", tail=("cannot start: no sandbox, and sandbox.mode is 'on'",)), False),
        (Verdict(OutcomeKind.FAILED, "crashed"), Exit("exited", code=1, tail=("bwrap: execvp codex: No such file or directory",)), True),
        (Verdict(OutcomeKind.FAILED, "crashed"), Exit("exited", code=1, tail=("bwrap: execvp other: No such file or directory",)), False),
    ],
)
def test_which_ends_blame_the_kind(verdict: Verdict, end: Exit, blamed: bool) -> None:
    assert blames_kind(verdict, end, PROGRAMS) is blamed
