"""Where a task works: one rule for the tasks of plans and for those that are submitted.

A task that names no folder works in the one it is seen from: where the plan lies, where the person stands, or where the orchestra was started. What a kind does
there follows from the kind: scripts and rehearsals share the folder, as whoever wrote the script knows what it does; every other agent works beside it, in a
worktree or a copy, unless the task says otherwise.
"""

from __future__ import annotations

import posixpath
from typing import Final, NamedTuple

SHELL_KIND: Final = "shell"
REHEARSAL_KIND: Final = "rehearsal"
SHARED_KINDS: Final = (SHELL_KIND, REHEARSAL_KIND)
"""Kinds that work in the folder itself where nobody says otherwise."""


class Place(NamedTuple):
    """What a task's record keeps of it."""

    workspace: str
    """Absolute folder; empty for a private one of each attempt."""
    here: bool
    """It was named as seen from `directory`, on this machine."""
    isolated: bool
    """Each attempt has a worktree or a copy of it."""


def place_of(folder: str | None, isolation: str | None, *, kind: str, directory: str) -> Place:
    """Returns where a task works.

    Args:
        folder: As written; None if nothing was. Rehearsals that name none touch no files.
        isolation: `worktree`, `shared`, or None for what the kind does.
        kind: The agent kind that the task was written for.
        directory: Absolute folder that others are seen from; empty if there is none, and then a task that names no folder has a private one.
    """
    chosen = ("" if kind == REHEARSAL_KIND or not directory else ".") if folder is None else folder
    workspace = posixpath.normpath(posixpath.join(directory, chosen)) if chosen else ""
    worktree = (isolation or ("shared" if kind in SHARED_KINDS else "worktree")) == "worktree"
    return Place(workspace, not chosen.startswith("/"), bool(workspace) and worktree)
