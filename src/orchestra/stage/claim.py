"""The claim on an attempt: who ran it, or took it so that nobody ever will.

It is a symbolic link that leads nowhere and has the claimant in its text. One call of the system makes it, for the first who asks and with its content
in it, and it needs no block of the disk.
"""

from __future__ import annotations

import os

from .journal import agent_value
from .processes import boot_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

NOBODY = "-"  # no agent: whoever claimed it did so in order that it never runs


def claim_attempt(folder: str, w: str, agent: str = NOBODY) -> bool:
    """True for the first who asks, ever."""
    try:
        os.symlink("%s %s %s" % (w, boot_id(), agent), folder + "/claim")
    except FileExistsError:
        return False
    return True


def is_claimed(folder: str) -> bool:
    """Whether anybody was first."""
    return os.path.lexists(folder + "/claim")


def read_claim(folder: str) -> dict[str, Any] | None:
    """`agent` (None for nobody), `w` and `boot` of the claimant; None where there is no claim."""
    try:
        w, boot, agent = os.readlink(folder + "/claim").split(" ")
    except (OSError, ValueError):
        return None
    return {"agent": None if agent == NOBODY else agent_value(agent), "w": w, "boot": boot}
