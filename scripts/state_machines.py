"""Writes docs/state-machines.md from the transition tables; a test compares the two."""

from __future__ import annotations

import sys
from pathlib import Path

from orchestra.core.transitions import MACHINES, diagram

TITLES = {
    "orchestra": "The orchestra as a whole",
    "task": "A task",
    "attempt": "One attempt at a task",
    "agent": "An agent slot",
    "node": "A node",
}
HEAD = """# State machines

Drawn from the tables in `src/orchestra/core/transitions.py` by `python scripts/state_machines.py`. Every arrow names the events that take it;
an event that leaves the state as it is, is not drawn. What is not here cannot happen.
"""


def page() -> str:
    """Returns the whole page."""
    parts = [f"## {TITLES[name]}\n\n```mermaid\n{diagram(table)}\n```\n" for name, table in MACHINES.items()]  # type: ignore[misc]  # each table has its own status type
    return HEAD + "\n" + "\n".join(parts)


if __name__ == "__main__":
    target = Path(__file__).parent.parent / "docs" / "state-machines.md"
    target.write_text(page(), encoding="utf-8")
    sys.stdout.write(f"{target.name}: {len(MACHINES)} machines\n")
