"""Prints the JSON Schema of plan files or rosters: `python -m orchestra.intake.schema roster > docs/schema/roster.schema.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Final

from orchestra.intake.planfile import plan_schema
from orchestra.intake.roster import roster_schema

SCHEMAS: Final[Mapping[str, Callable[[], dict[str, object]]]] = {"plan": plan_schema, "roster": roster_schema}


def schema_text(what: str = "plan") -> str:
    """Returns the schema as the file in `docs/schema` holds it."""
    return as_text(SCHEMAS[what]())


def as_text(schema: object) -> str:
    """Returns a schema as files hold it."""
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text(*sys.argv[1:2]))
