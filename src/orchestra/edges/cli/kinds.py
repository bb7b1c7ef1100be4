"""`orchestra kinds`: which agent kinds there are, and on which machines their programs are. Works without a coordinator."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import click

from orchestra.edges.cli.grammar import Command, session_of
from orchestra.edges.cli.render import Part, Styled

if TYPE_CHECKING:
    from orchestra.agents.adapter import Adapter
    from orchestra.bootstrap.nodes import NodeKinds

EXAMPLE = "orchestra kinds\norchestra kinds mugen --versions --json"


@click.command("kinds", cls=Command, example=EXAMPLE)
@click.argument("names", nargs=-1, metavar="[NODE]...")
@click.option("--versions", is_flag=True, help="Ask each program for its version; some take seconds.")
@click.pass_context
def kinds(context: click.Context, names: tuple[str, ...], versions: bool) -> None:
    """Show the agent kinds, and on which machines each can run.

    Without a NODE, looks at all configured nodes and those that the orchestra has taken in. Kinds of your own come from the settings (`kinds`). Needs no
    running orchestra and changes nothing.
    """
    import asyncio

    from orchestra.agents.registry import adapters
    from orchestra.bootstrap.nodes import choose_nodes

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    specs = choose_nodes(session.wiring.known_nodes(session.root, settings), names)
    session.render.progress(f"looking at {', '.join(spec.id for spec in specs)}", coarse="")
    found = asyncio.run(session.wiring.kinds_on(session.root, settings, specs, versions=versions))
    known = adapters()

    def human() -> None:
        header = ("kind", "programs", *(node.node for node in found))
        rows = [(name, ", ".join(kind.programs) or "-", *(_cell(kind, node) for node in found)) for name, kind in known.items()]
        session.render.table(header, rows)
        for node in found:
            if node.problem:
                session.render.note(f"{node.node}: {node.problem}")

    session.render.show({"kinds": _as_data(known, found)}, human)


def missing(kind: Adapter, node: NodeKinds) -> list[str]:
    """Returns the programs that the kind lacks there."""
    return [program for program in kind.programs if program not in node.programs]


def _cell(kind: Adapter, node: NodeKinds) -> Part:
    if node.problem:
        return Styled("out of reach", "red")
    if lacking := missing(kind, node):
        return Styled(f"without {', '.join(lacking)}", "yellow")
    versions = [node.versions[program] for program in kind.programs if node.versions.get(program)]
    return Styled(", ".join(versions) or "ready", "green")


def _as_data(known: Mapping[str, Adapter], found: tuple[NodeKinds, ...]) -> list[dict[str, Any]]:
    return [
        {
            "kind": name,
            "programs": list(kind.programs),
            "nodes": [
                {
                    "node": node.node,
                    "ready": not node.problem and not missing(kind, node),
                    "problem": node.problem,
                    "missing": [] if node.problem else missing(kind, node),
                    "paths": {program: node.programs[program] for program in kind.programs if program in node.programs},
                    "versions": {program: node.versions[program] for program in kind.programs if node.versions.get(program)},
                }
                for node in found
            ],
        }
        for name, kind in known.items()
    ]
