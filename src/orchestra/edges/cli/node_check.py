"""`orchestra node check`: is every machine there, lets it us in, has it what agents need. Works without a coordinator."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from orchestra.edges.cli.grammar import EXIT_UNHEALTHY, Command, session_of
from orchestra.edges.cli.render import Renderer, Styled, mark
from orchestra.views import HealthCheck

if TYPE_CHECKING:
    from orchestra.bootstrap.nodes import NodeCheck


@click.command("check", cls=Command, example="orchestra node check\norchestra node check mugen majin --json")
@click.argument("names", nargs=-1, metavar="[NAME]...")
@click.pass_context
def check(context: click.Context, names: tuple[str, ...]) -> int:
    """Look at machines: SSH, host key, login, and everything agents need.

    Without a NAME, at all configured nodes and those that the orchestra has taken in. Needs no running orchestra and changes nothing.

    Ends with 1 if one of them cannot be used.
    """
    import asyncio

    from orchestra.bootstrap.nodes import choose_nodes

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)
    specs = choose_nodes(session.wiring.known_nodes(session.root, settings), names)
    session.render.progress(f"looking at {', '.join(spec.id for spec in specs)}", coarse="")
    found = asyncio.run(session.wiring.check_nodes(session.root, settings, specs))

    def human() -> None:
        for node in found:
            show_node_check(session.render, node)

    session.render.show({"nodes": found}, human)
    return 0 if all(node.usable for node in found) else EXIT_UNHEALTHY


def show_node_check(render: Renderer, node: NodeCheck) -> None:
    """Writes a ticked or crossed line for each finding, and what to do about the crossed ones. What is wished for only gets a dash."""
    word = Styled("usable", "green") if node.usable else Styled("not usable", "red")
    render.line(Styled(f"node {node.node}", "bold"), f" ({node.host or 'this machine'}): ", word)
    for finding in node.findings:
        render.line("  ", mark(finding.ok, optional=not finding.fatal), f" {finding.name}: {finding.detail}")
        if finding.remedy and not finding.ok:
            render.line(f"      {finding.remedy}")


def as_checks(node: NodeCheck) -> tuple[HealthCheck, ...]:
    """Returns the findings in the form of other checks, for programs."""
    return tuple(HealthCheck(f"node {node.node}: {each.name}", each.ok, each.detail, each.remedy) for each in node.findings)
