"""`orchestra workspace`: list, gc."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import click

from orchestra.edges.cli.grammar import Command, Group, session_of
from orchestra.edges.cli.render import Part, Styled
from orchestra.quantity import show_bytes, show_ms

if TYPE_CHECKING:
    from orchestra.edges.cli.render import Renderer
    from orchestra.edges.cli.session import Session
    from orchestra.usecases import NodeSpaces, WorkspacesParams, WorkspacesReply

DAY_MS: Final = 86_400_000
MIB: Final = 1 << 20
SHA_SHOWN: Final = 12
UNMERGED: Final = "refs of unmerged work"


@click.group(
    "workspace", cls=Group, example="orchestra workspace list\norchestra workspace gc\norchestra workspace gc --older-than 2 --yes"
)
def workspace() -> None:
    """Look at the places where attempts worked, and let go of old ones.

    Works with and without a running orchestra.
    """


@workspace.command("list", cls=Command, example="orchestra workspace list\norchestra workspace list --refs --node majin")
@click.option("--node", metavar="NAME", help="Only this machine.")
@click.option("--refs", is_flag=True, help=f"The {UNMERGED} instead.")
@click.pass_context
def list_spaces(context: click.Context, node: str | None, refs: bool) -> None:
    """List workspaces with their size and age, and what keeps them or makes them go."""
    from orchestra.usecases import WorkspacesParams

    _do(session_of(context), WorkspacesParams(node=node, refs=refs), only_gone=False)


@workspace.command("gc", cls=Command, example="orchestra workspace gc --older-than 2\norchestra workspace gc --refs --older-than 90 --yes")
@click.option("--yes", is_flag=True, help="Do it; otherwise it is only said what would go.")
@click.option("--dry-run", is_flag=True, help="Only say what would go, as without --yes.")
@click.option(
    "--older-than", type=click.FloatRange(0, 3650), metavar="DAYS", help="Age from which it goes.  [default: as the settings say]"
)
@click.option(
    "--quota", type=click.IntRange(0), metavar="MIB", help="Room all of a machine may take; 0 is no limit.  [default: as the settings say]"
)
@click.option("--node", metavar="NAME", help="Only this machine.")
@click.option("--refs", is_flag=True, help=f"Forget {UNMERGED} instead; this alone can lose work.")
@click.pass_context
def gc(context: click.Context, yes: bool, dry_run: bool, older_than: float | None, quota: int | None, node: str | None, refs: bool) -> None:
    """Let go of workspaces that are old, and of the oldest while all together take too much.

    What runs, is asked for or is in use stays. Work that is not merged is put under a ref first, and those refs stay: `--refs` forgets the old ones, of plans
    that are over.
    """
    from orchestra.usecases import WorkspacesParams

    age_ms = None if older_than is None else round(older_than * DAY_MS)
    quota_bytes = None if quota is None else quota * MIB
    _do(session_of(context), WorkspacesParams(node, age_ms, quota_bytes, refs, remove=yes and not dry_run), only_gone=True)


@workspace.command("merge", cls=Command, example="orchestra workspace merge main\norchestra workspace merge main --plan shop.2")
@click.argument("branch")
@click.option("--plan", metavar="ID", help="The plan; default is the latest. `_` is what was submitted without one.")
@click.pass_context
def merge(context: click.Context, branch: str, plan: str | None) -> int:
    """Merge a completed plan's work into BRANCH, one of yours.

    If there is a conflict, or the branch is checked out with changes that are not committed, nothing changes and it ends with 1.
    """
    from orchestra.edges.cli.brought import show_brought
    from orchestra.usecases import MergePlanParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.merge_plan(MergePlanParams(plan, branch)))
    return 0 if show_brought(session.render, reply, as_result=True) else 1


def _do(session: Session, params: WorkspacesParams, *, only_gone: bool) -> None:
    reply: WorkspacesReply = session.ask(lambda use_cases: use_cases.workspaces(params))

    def human() -> None:
        _show(session.render, reply, params, only_gone=only_gone)

    session.render.show(reply, human)


def _show(render: Renderer, reply: WorkspacesReply, params: WorkspacesParams, *, only_gone: bool) -> None:
    rows: list[tuple[Part, ...]] = []
    for node in reply.nodes:
        if node.trouble:
            render.note(Styled(f"node {node.node} was not looked at: ", "yellow"), node.trouble)
        rows += _ref_rows(node, only_gone) if params.refs else _space_rows(node, only_gone)
    if rows and params.refs:
        render.table(("NODE", "REF", "COMMIT", "AGE", "", "WHY"), rows, right=("AGE",))
    elif rows:
        render.table(("NODE", "WORKSPACE", "SIZE", "AGE", "", "WHY"), rows, right=("SIZE", "AGE"))
    gone = sum(each.action == "remove" for node in reply.nodes for each in node.workspaces)
    gone += sum(each.action == "remove" for node in reply.nodes for each in node.refs)
    freed, total = sum(node.freed_bytes for node in reply.nodes), sum(node.total_bytes for node in reply.nodes)
    size = "" if params.refs else f" ({show_bytes(freed)} of {show_bytes(total)})"
    what = "refs" if params.refs else "workspaces"
    if not only_gone:
        render.line(f"{len(rows)} {what}" + ("" if params.refs else f", {show_bytes(total)}"))
    elif reply.removed:
        render.line(f"{gone} {what} removed{size}")
    else:
        render.line(f"{gone} {what} would go{size}" + ("; `--yes` does it" if gone else ""))


def _space_rows(node: NodeSpaces, only_gone: bool) -> list[tuple[Part, ...]]:
    return [
        (node.node, f"{each.plan}/{each.task}", show_bytes(each.bytes), show_ms(each.age_ms), _word(each.action), _why(each.why, each.kept))
        for each in node.workspaces
        if each.action == "remove" or not only_gone
    ]


def _ref_rows(node: NodeSpaces, only_gone: bool) -> list[tuple[Part, ...]]:
    return [
        (
            "here" if each.here else node.node,
            each.ref.removeprefix("refs/orchestra/"),
            each.commit[:SHA_SHOWN],
            show_ms(each.age_ms),
            _word(each.action),
            f"{each.why}; in {each.repo}",
        )
        for each in node.refs
        if each.action == "remove" or not only_gone
    ]


def _why(why: str, kept: str) -> str:
    return f"{why}: {kept}" if kept else why


def _word(action: str) -> Part:
    return Styled("goes", "yellow") if action == "remove" else "stays"
