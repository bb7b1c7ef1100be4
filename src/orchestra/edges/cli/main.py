"""The `orchestra` command. A command's module is imported when it is called, so that `orchestra --help` starts at once."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

import click

from orchestra import __version__
from orchestra.edges.cli.grammar import Group, guarded
from orchestra.edges.cli.session import Session


class Entry(NamedTuple):
    """Where a command is, and its line in the help."""

    module: str
    summary: str
    hidden: bool = False


COMMANDS: Final = {
    "run": Entry("run", "Run a plan and show its progress."),
    "rehearse": Entry("rehearse", "Run a plan with recorded agents: no model, no key, no cost."),
    "up": Entry("start", "Start an orchestra and leave it running."),
    "init": Entry("start", "Set up the agents of an orchestra."),
    "down": Entry("fleet", "End the orchestra."),
    "status": Entry("fleet", "Show how the orchestra is doing."),
    "health": Entry("fleet", "Check every part of the running orchestra."),
    "doctor": Entry("fleet", "Check every machine for what an orchestra needs."),
    "scale": Entry("fleet", "Change the number of agents."),
    "node": Entry("node", "Add, check, drain and trust the machines of a fleet."),
    "kinds": Entry("kinds", "Show the agent kinds, and on which machines each can run."),
    "workspace": Entry("workspace", "Look at the places where attempts worked, and let go of old ones."),
    "roster": Entry("roster", "Show which agents a fleet consists of."),
    "task": Entry("task", "Submit, watch, stop and retry tasks."),
    "agent": Entry("agent", "Look at agents, and type to them."),
    "report": Entry("report", "Write the report of a plan."),
    "ledger": Entry("ledger", "Read, check and repair the ledger."),
    "backup": Entry("backup", "Copy the ledger into one file."),
    "restore": Entry("backup", "Put a backup in the place of the ledger."),
    "config": Entry("config", "Show the settings and what may be set."),
    "cost": Entry("cost", "Show what was spent, set budgets, and estimate plans."),
    "limits": Entry("cost", "Show the model APIs' limits as the orchestra's gateway keeps them."),
    "gateway": Entry("gateway", "Run the proxy to the model APIs: keys, limits, cost and budgets."),
    "test": Entry("drill", "Try out an orchestra on this machine under a scenario."),
    "sim": Entry("sim", "Play seeds in a simulated world."),
    "coordinator": Entry("coordinator", "Run the coordinator in this terminal.", hidden=True),
}
"""In the order of the help. A module holds its commands under their own names."""

EXAMPLE: Final = "orchestra run plan.yaml --agents 10\norchestra status --json"
HELP: Final = {"help_option_names": ["-h", "--help"], "max_content_width": 110}


class Orchestra(Group):
    """The root of all commands."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        found: click.Command = getattr(importlib.import_module(f"orchestra.edges.cli.{entry.module}"), cmd_name)
        return found

    def resolve_command(self, ctx: click.Context, args: list[str]) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS:
            from difflib import get_close_matches

            near = get_close_matches(args[0], [name for name, entry in COMMANDS.items() if not entry.hidden], n=1)
            raise click.UsageError(f"there is no command {args[0][:40]!r}" + (f"; did you mean {near[0]!r}?" if near else ""), ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in COMMANDS.items() if not entry.hidden])

    def main(self, args: Sequence[str] | None = None, prog_name: str | None = None, **extra: Any) -> Any:  # type: ignore[override]
        """Runs a command and ends the process with its exit code."""
        given = list(sys.argv[1:] if args is None else args)
        session = extra.pop("obj", None) or Session()
        extra["standalone_mode"] = False
        call = super().main
        sys.exit(guarded(session, given, lambda: call(given, "orchestra", obj=session, **extra)))


@click.group("orchestra", cls=Orchestra, example=EXAMPLE, context_settings=HELP)
@click.version_option(__version__, message="orchestra %(version)s")
def cli() -> None:
    """Drive many coding agents, each in a tmux window, as one."""


def main() -> None:
    """Entry point of the `orchestra` command."""
    cli.main()
