"""What an agent is told of a conflict it is to solve. Pure; the git part is `Workspaces.merge`."""

from __future__ import annotations

from collections.abc import Sequence

from orchestra.core.model import CheckResult
from orchestra.workspace import Collected, Conflict, Side


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


def together_prompt(failed: Sequence[CheckResult], collected: Collected, bytes_max: int = 64 << 10) -> str:
    """Returns as text for an agent that its work and the others' change no common line, and fail their checks together."""
    lines = [
        "Your work passed its checks by itself. Merged with other work that is in the plan's branch by now, it does not, although no line conflicts.",
        "Your folder has the other work and not yours. Do yours again so that it goes with the other.",
    ]
    for check in failed:
        lines += ["", f"The check {check.name!r} ended on both together with {check.how}:", *(f"    | {line}" for line in check.tail)]
    lines += ["", f"What you had done is commit {collected.head}. It changed:"]
    lines += [f"    | {line}" for line in collected.patch.decode("utf-8", "backslashreplace").splitlines()]
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
