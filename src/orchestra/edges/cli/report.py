"""`orchestra report`: the run report of a plan."""

from __future__ import annotations

import click

from orchestra.edges.cli.grammar import Command, session_of


@click.command("report", cls=Command, example="orchestra report level6")
@click.argument("plan", required=False)
@click.pass_context
def report(context: click.Context, plan: str | None) -> None:
    """Write the report of a plan.

    PLAN is its id or name; without it, the latest is taken.
    """
    from orchestra.usecases import PlanNameParams

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.report(PlanNameParams(plan)))

    def human() -> None:
        session.render.fields([("plan", reply.plan), ("html", reply.html), ("markdown", reply.markdown)])

    session.render.show(reply, human)
