"""Named places where a test may stop the program: between a decision, its append and its effects.

`hit` does nothing unless something is armed, which costs one comparison. In a real process the environment arms one place at start:
`ORCHESTRA_FAILPOINT=before-append:exit` (or `:raise`, or `:pause`, which stops the process with SIGSTOP until somebody sends SIGCONT). In the
simulated world a callback is told of every place and may raise.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Final

VARIABLE: Final = "ORCHESTRA_FAILPOINT"
EXIT_CODE: Final = 86
"""What a process ends with at an armed `exit`, so that a test tells it from any other end."""
PLACES: Final = (
    "before-append",
    "after-append",
    "after-effects",
    "before-open",
    "after-open",
    "before-order",
    "after-order",
    "before-reap",
    "after-reap",
    "before-journal",
    "after-sweep",
)
ACTIONS: Final = ("exit", "raise", "pause")

Callback = Callable[[str], None]


class FailpointHit(Exception):
    """Raised at a place that is armed with `raise`."""


_armed: Callback | None = None


def hit(place: str) -> None:
    """Marks a place; does what is armed there."""
    if _armed is not None:
        _armed(place)


def arm(callback: Callback | None) -> Callback | None:
    """Has `callback` told of every place, or nobody if it is None. Returns who was told before."""
    global _armed
    before, _armed = _armed, callback
    return before


def arm_from(text: str) -> None:
    """Arms `place:action`; empty text arms nothing.

    Raises:
        ValueError: It does not name a place and an action.
    """
    if not text:
        return
    place, _, action = text.partition(":")
    if place not in PLACES or action not in ACTIONS:
        raise ValueError(f"{VARIABLE} is PLACE:ACTION with a place of {', '.join(PLACES)} and an action of {', '.join(ACTIONS)}")

    def callback(at: str) -> None:
        if at == place:
            _act(place, action)

    arm(callback)


def _act(place: str, action: str) -> None:
    if action == "exit":
        os._exit(EXIT_CODE)
    elif action == "raise":
        raise FailpointHit(place)
    else:
        os.kill(os.getpid(), signal.SIGSTOP)


arm_from(os.environ.get(VARIABLE, ""))
