"""Prints the JSON Schema of plan files: `python -m orchestra.intake.schema > docs/schema/plan.schema.json`."""

from __future__ import annotations

import json
import sys

from orchestra.intake.planfile import plan_schema


def schema_text() -> str:
    """Returns the schema as the file in `docs/schema` holds it."""
    return json.dumps(plan_schema(), indent=2, ensure_ascii=False) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_text())
