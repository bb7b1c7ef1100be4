"""What `orchestra cost budget` and `orchestra gateway budget` have in common: their arguments, and what these ask for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import click

SCOPES: Final = ("day", "plan", "task", "agent")


def budget_arguments(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `scope`, `name`, `usd` and `lift` to a command."""
    for add in (
        click.option("--none", "lift", is_flag=True, help="Lift the budget."),
        click.option("--usd", type=click.FloatRange(0), metavar="DOLLARS", help="What it may cost."),
        click.argument("name", required=False, default=""),
        click.argument("scope", type=click.Choice(SCOPES), required=False),
    ):
        command = add(command)
    return command


def amount_asked(context: click.Context, scope: str | None, usd: float | None, lift: bool) -> int | None:
    """Returns the budget to set in micro-dollars, -1 to lift it, None if budgets are only to be shown.

    Raises:
        BadInput: Both were asked for, or nothing says whose budget it is.
    """
    from orchestra.errors import BadInput
    from orchestra.quantity import usd_micros

    if usd is None and not lift:
        return None
    if usd is not None and lift:
        raise BadInput("--usd and --none contradict each other", hint="give one of them")
    if scope is None:
        raise BadInput("nothing says whose budget", field="scope", hint=f"for example: {context.command_path} day --usd 20")
    return -1 if usd is None else usd_micros(usd, field="usd")
