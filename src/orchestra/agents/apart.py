"""Whether an attempt works apart from everybody's files, by which the kinds decide what their agents may do unasked."""

from __future__ import annotations

from orchestra.core.model import TaskSpec


def works_apart(spec: TaskSpec) -> bool:
    """Tells whether only the attempt's own files are in the folder it works in: a worktree, a copy, or a private folder. Any other is shared: a checkout of
    somebody's, or a folder of several tasks."""
    return spec.isolated or not spec.workspace


def more_rights(setting: str, spec: TaskSpec) -> str:
    """Returns what to do where an agent was not allowed to do something.

    Args:
        setting: The kind's settings that allow more, in words.
        spec: A task that shares a folder can have one of its own instead.
    """
    return f"to allow more, set {setting}" + ("" if works_apart(spec) else ", or have the task work in a worktree (isolation: worktree)")
