"""A completed plan's work in a branch of the user's: asking for it, and telling what became of it."""

from __future__ import annotations

from typing import Final

from orchestra.edges.cli.render import Renderer, Styled
from orchestra.errors import OrchestraError, Refused
from orchestra.usecases import MergePlanParams, MergePlanReply, UseCases
from orchestra.workspace import Brought

FILES_SHOWN: Final = 10


async def bring(use_cases: UseCases, plan: str, branch: str) -> MergePlanReply | OrchestraError:
    """Asks for it; an error is kept for the end, as the plan itself is completed."""
    try:
        return await use_cases.merge_plan(MergePlanParams(plan, branch))
    except OrchestraError as error:
        return error


def show_brought(render: Renderer, told: MergePlanReply | OrchestraError, *, as_result: bool = False) -> bool:
    """Tells it; returns whether all of the work is in the branch."""
    if isinstance(told, OrchestraError):
        render.error(told)
        return False

    def human() -> None:
        for each in told.repos:
            if each.result != "conflict":
                render.line(*_line(each, told.plan))

    if as_result:
        render.show(told, human)
    else:
        human()
    against = [each for each in told.repos if each.result == "conflict"]
    for each in against:
        render.error(_conflict(each, told.plan))
    return not against


def _line(each: Brought, plan: str) -> tuple[str | Styled, ...]:
    branch = each.branch.removeprefix("refs/heads/")
    if each.result == "nothing":
        return (f"{branch} in {each.repo} has all the work of {plan} already",)
    how = "went forward to" if each.forward else "was merged with"
    return (Styled("merged", "green"), f": {branch} in {each.repo} {how} the work of {plan}, and is at {each.head[:12]}")


def _conflict(each: Brought, plan: str) -> Refused:
    branch = each.branch.removeprefix("refs/heads/")
    files = ", ".join(each.files[:FILES_SHOWN]) + (f" and {len(each.files) - FILES_SHOWN} more" if len(each.files) > FILES_SHOWN else "")
    said = f"{branch} in {each.repo} and plan {plan} changed the same lines in {files}; nothing was changed"
    return Refused(said, hint="`git merge` the plan's branch there yourself; docs/guides/workspaces.md says what it is called")
