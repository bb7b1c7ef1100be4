"""`orchestra run`: a plan from its file to its report."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.errors import BadInput

if TYPE_CHECKING:
    from orchestra.core.model import TaskDefaults
    from orchestra.intake.planfile import PlanDocument


@click.command("run", cls=Command, example="orchestra run plan.yaml --agents 10\norchestra run plan.yaml --resume")
@click.argument("plan", type=click.Path(path_type=Path))
@click.option("--agents", type=click.IntRange(1), metavar="N", help="Agents in all; default is what the plan says.")
@click.option("--keep", is_flag=True, help="Leave the windows and agents as they are at the end.")
@click.option("--attach", is_flag=True, help="Show the windows in this terminal; detach with the tmux prefix and d to see the progress.")
@click.option("--resume", is_flag=True, help="Go on with the latest run of this plan.")
@click.option("--merge-into", metavar="BRANCH", help="Merge the plan's work into this branch of yours when all of it is completed.")
@click.option("--strict", is_flag=True, help="Refuse success criteria that no program can check, instead of having an agent judge them.")
@click.pass_context
def run(
    context: click.Context, plan: Path, agents: int | None, keep: bool, attach: bool, resume: bool, merge_into: str | None, strict: bool
) -> int:
    """Run a plan and show its progress.

    Ctrl-C once lets running tasks finish, twice stops them; --resume goes on later.

    --merge-into changes nothing if there is a conflict, or the branch is checked out with changes that are not committed; it then ends with 1.

    Ends with 0 if all tasks were completed, 1 if some failed, 2 if the plan is not usable (nothing was started), 3 if it is not finished.
    """
    import asyncio

    import msgspec

    from orchestra.edges.cli.conduct import EXIT_UNFINISHED, Request, conduct, say_unfinished

    session = session_of(context)
    if attach and not session.render.on_terminal:
        raise BadInput("--attach needs a terminal", field="attach", hint="leave it out, and use `orchestra agent attach` from one")
    settings = session.wiring.load_settings(session.root, session.flags)  # they may define agent kinds that the plan names
    text, document = read_plan(plan, msgspec.structs.replace(session.wiring.task_defaults(settings), strict=strict))
    if merge_into:
        check_branch(document, merge_into)
    running = session.wiring.coordinator_running(session.root)
    request = Request(str(plan), text, document, str(plan.parent.absolute()), agents, keep, attach, resume, running, merge_into, strict)
    try:
        return asyncio.run(conduct(session, settings, request))
    except KeyboardInterrupt:
        say_unfinished(session, request, "it was interrupted")
        return EXIT_UNFINISHED


def check_branch(document: PlanDocument, branch: str) -> None:
    """Checks before anything runs that the plan's work can come into this branch.

    Raises:
        BadInput: It has no work of its own, or there is no such branch.
    """
    import subprocess

    folders = {draft.workspace for draft in document.drafts if draft.isolated}
    if not folders:
        raise BadInput(
            "no task of this plan works in a worktree, so there is nothing to merge",
            field="merge-into",
            hint="give tasks `isolation: worktree`, or leave it out",
        )
    for folder in sorted(folders):
        if Path(folder).is_dir():
            words = ["git", "-C", folder, "rev-parse", "--quiet", "--verify", f"refs/heads/{branch}^{{commit}}"]
            if subprocess.run(words, capture_output=True, check=False).returncode:
                raise BadInput(
                    f"{folder} has no branch {branch!r}",
                    field="merge-into",
                    hint="name a branch that is there; a folder without git has none",
                )


def read_plan(path: Path, defaults: TaskDefaults) -> tuple[str, PlanDocument]:
    """Returns the text of a plan file and what it says.

    Raises:
        BadInput: It cannot be read.
        PlanInvalid: It cannot be run.
    """
    from orchestra.agents.registry import check_runnable
    from orchestra.intake.planfile import parse_plan

    try:
        text = path.read_text(encoding="utf-8")
    except OSError as exc:
        raise BadInput(
            f"the plan {path} cannot be read: {exc.strerror}", field="PLAN", hint="check its name; plans are YAML or JSON files"
        ) from exc
    except UnicodeDecodeError as exc:
        raise BadInput(f"the plan {path} is not UTF-8: byte {exc.start} cannot be read", field="PLAN", hint="save it as UTF-8") from exc
    document = parse_plan(text, source=str(path), directory=str(path.parent.absolute()), defaults=defaults)
    for draft in document.drafts:
        check_runnable(draft)
    return text, document
