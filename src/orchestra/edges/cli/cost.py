"""`orchestra cost` and `orchestra limits`: what was spent, what may be, and what a plan will take."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click

from orchestra.edges.cli.budget_asked import amount_asked, budget_arguments
from orchestra.edges.cli.cost_text import csv_of, show_budgets, show_costs, show_estimate, show_limits
from orchestra.edges.cli.grammar import Command, Group, session_of

BY: Final = ("task", "agent", "model", "day", "plan", "attempt")
WATCH_SECONDS: Final = 2.0


@click.group("cost", cls=Group, example="orchestra cost report --by agent\norchestra cost watch")
def cost() -> None:
    """Show what was spent, set budgets, and estimate plans.

    Figures are the gateway's where agents went through it, also after its end; else what the agents' programs said. Every answer says which.
    """


@cost.command("report", cls=Command, example="orchestra cost report --by agent --plan level6\norchestra cost report --by day --csv")
@click.option("--by", type=click.Choice(BY), default="task", show_default=True, help="What to count by.")
@click.option("--plan", metavar="PLAN", help="Only this plan, by its id or name.")
@click.option("--name", metavar="NAME", help="One task, agent, model, day, plan or attempt only.")
@click.option("--top", type=click.IntRange(1), metavar="COUNT", help="Only the first rows.")
@click.option("--csv", "as_csv", is_flag=True, help="Write CSV for spreadsheets.")
@click.pass_context
def report(context: click.Context, by: str, plan: str | None, name: str | None, top: int | None, as_csv: bool) -> None:
    """Show what was spent, and what programs say it was.

    `settled` is what the gateway counted by the provider's own figures, `said` what the programs reported, `difference` settled less said over
    the attempts of which both are known.
    """
    from orchestra.errors import BadInput
    from orchestra.usecases import CostParams

    session = session_of(context)
    if as_csv and session.json:
        raise BadInput("--csv and --json contradict each other", hint="give one of them")
    reply = session.ask(lambda use_cases: use_cases.cost(CostParams(by, plan, name, top or 0)))
    if as_csv:
        session.render.data(csv_of(reply).rstrip("\n"))
        return
    session.render.show(reply, lambda: show_costs(session.render, reply))


@cost.command("watch", cls=Command, example="orchestra cost watch\norchestra cost watch --interval 10 --json")
@click.option(
    "--interval", type=click.FloatRange(0.1), default=WATCH_SECONDS, metavar="SECONDS", help="Pause between two looks.  [default: 2]"
)
@click.option("--top", type=click.IntRange(1, 1000), default=10, show_default=True, metavar="COUNT", help="How many tasks are shown.")
@click.pass_context
def watch(context: click.Context, interval: float, top: int) -> None:
    """Show spending as it grows.

    Today's, the rate, the budgets and the dearest tasks. Ends with the orchestra; Ctrl-C ends it before. With --json a line for each look.
    """
    from orchestra.edges.cli.cost_live import follow, make_screen

    session = session_of(context)
    session.ask(lambda use_cases: follow(session, use_cases, make_screen(session), interval, top))


@cost.command(
    "budget",
    cls=Command,
    example="orchestra cost budget\norchestra cost budget task level6/docs --usd 2.50\norchestra cost budget day --none",
)
@budget_arguments
@click.pass_context
def budget(context: click.Context, scope: str | None, name: str, usd: float | None, lift: bool) -> None:
    """Show budgets, or set or lift one.

    NAME of a day is 2026-01-31; without one it is today (in UTC). The gateway keeps budgets: what passes one is refused or cut off.
    """
    import msgspec

    from orchestra.usecases import Empty, SetBudgetParams

    amount = amount_asked(context, scope, usd, lift)
    session = session_of(context)
    if amount is None:
        reply = session.ask(lambda use_cases: use_cases.budgets(Empty()))
        chosen = [each for each in reply.budgets if scope in (None, each.scope) and name in ("", each.name)]
        reply = msgspec.structs.replace(reply, budgets=tuple(chosen))
    else:
        assert scope is not None
        params = SetBudgetParams(scope, name, amount)
        reply = session.ask(lambda use_cases: use_cases.set_budget(params))
    session.render.show(reply, lambda: show_budgets(session.render, reply))


@cost.command("estimate", cls=Command, example="orchestra cost estimate plan.yaml\norchestra cost estimate plan.yaml --agents 5 --json")
@click.argument("plan", type=click.Path(dir_okay=False, path_type=Path))
@click.option("--agents", type=click.IntRange(1, 10_000), metavar="COUNT", help="With how many agents.  [default: those there are]")
@click.pass_context
def estimate(context: click.Context, plan: Path, agents: int | None) -> None:
    """Say what a plan will cost, and how long it takes.

    Nothing is started. From what such tasks cost here before, repetition included; where nothing is known from the price table and a stated assumption. Works also
    when no orchestra is there yet.
    """
    import asyncio

    from orchestra.edges.cli.run import read_plan
    from orchestra.errors import CoordinatorUnreachable
    from orchestra.usecases import EstimateParams

    session = session_of(context)
    settings = session.wiring.load_settings(session.root, session.flags)  # they may define agent kinds that the plan names
    text, _ = read_plan(plan, session.wiring.task_defaults(settings))
    params = EstimateParams(text, str(plan), str(plan.parent.absolute()), agents or 0)
    try:
        reply = session.ask(lambda use_cases: use_cases.estimate(params))
    except CoordinatorUnreachable:  # nothing was ever done here: there is no past, and prices there are
        reply = asyncio.run(session.wiring.open_blank(session.root, settings).estimate(params))
    session.render.show(reply, lambda: show_estimate(session.render, reply))


@click.command("limits", cls=Command, example="orchestra limits\norchestra limits --json")
@click.pass_context
def limits(context: click.Context) -> None:
    """Show the model APIs' limits as the orchestra's gateway keeps them."""
    from orchestra.usecases import Empty

    session = session_of(context)
    reply = session.ask(lambda use_cases: use_cases.limits(Empty()))
    session.render.show(reply, lambda: show_limits(session.render, reply))
