"""`orchestra config`: which settings hold, where each came from, and what may be set."""

from __future__ import annotations

from typing import Any

import click

from orchestra.edges.cli.grammar import Command, Group, session_of
from orchestra.edges.cli.render import Part, Styled


@click.group("config", cls=Group, example="orchestra config show")
def config() -> None:
    """Show the settings and what may be set."""


@config.command("show", cls=Command, example="orchestra config show --verbose")
@click.pass_context
def show(context: click.Context) -> None:
    """Show every setting, its value and where it came from.

    With --verbose also what each is for. Secrets are masked.
    """
    from orchestra.settings import rows

    session = session_of(context)
    found = rows(session.wiring.load_settings(session.root, session.flags))

    def human() -> None:
        header = ["setting", "value", "from", *(["what it is"] if session.verbose else [])]
        lines: list[list[Part]] = [
            [row.path, row.value, Styled(row.origin, "dim"), *([row.description] if session.verbose else [])] for row in found
        ]
        session.render.table(header, lines)

    session.render.show([row._asdict() for row in found], human)


@config.command(
    "schema", cls=Command, example="orchestra config schema plan > plan.schema.json\norchestra config schema roster > roster.schema.json"
)
@click.argument("what", type=click.Choice(["settings", "plan", "roster"]), default="settings")
@click.pass_context
def schema(context: click.Context, what: str) -> None:
    """Print the JSON Schema of the settings file, of plan files or of rosters, for editors."""
    from orchestra.intake.schema import SCHEMAS, as_text

    session = session_of(context)
    found = settings_schema() if what == "settings" else SCHEMAS[what]()
    session.render.show(found, lambda: session.render.data(as_text(found).rstrip("\n")))


def settings_schema() -> dict[str, Any]:
    """Returns the JSON Schema of the settings file."""
    import msgspec

    from orchestra.settings import TOP, Settings

    made = msgspec.json.schema(Settings)
    made["$defs"]["Settings"]["properties"].pop("origins", None)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "Settings of Miyabi Orchestra",
        "type": "object",
        "properties": {TOP: {"$ref": made["$ref"]}},
        "additionalProperties": False,
        "$defs": made["$defs"],
    }
