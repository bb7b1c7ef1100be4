"""What an agent is told of a conflict it is to solve. Pure; the git part is `Workspaces.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from orchestra.workspace import Conflict, Side


def conflict_prompt(conflicts: Sequence[Conflict], total: int, bytes_max: int = 64 << 10) -> str:
    """Returns conflicts as text for an agent that is to solve them. Every line of a file is indented, so that none can pass for one of ours."""
    lines = [
        f"Your work and other work that is already in the plan's branch change the same lines in {total} file(s).",
        "Bring both together. Each file is shown as it was before both, as it is in the plan's branch, and as you left it.",
    ]
    for conflict in conflicts:
        lines += ["", f"File {conflict.path!r}"]
        for title, side in (("before", conflict.base), ("plan's branch", conflict.ours), ("yours", conflict.theirs)):
            lines += _side_lines(title, side)
    if len(conflicts) < total:
        lines += ["", f"{total - len(conflicts)} more file(s) are not shown."]
    text = "\n".join(lines) + "\n"
    raw = text.encode()
    return text if len(raw) <= bytes_max else raw[:bytes_max].decode(errors="ignore") + "\n[cut]\n"


def _side_lines(title: str, side: Side | None) -> list[str]:
    if side is None:
        return [f"  {title}: there is no such file"]
    if side.binary:
        return [f"  {title}: not text"]
    ending = ["  [the rest is not shown]"] if side.cut else []
    return [f"  {title}:", *(f"    | {line}" for line in side.text.splitlines()), *ending]
