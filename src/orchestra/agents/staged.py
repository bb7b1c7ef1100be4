"""How a kind runs a program of the stage, with the node's own Python, and what all of those say."""

from __future__ import annotations

from typing import Any, Final

from orchestra.agents.adapter import PYTHON, STAGE_DIR, Signal
from orchestra.agents.rehearsal import count_of, text_of

QUESTION_CHARACTERS_MAX: Final = 2000
WAITING_SIGNALS: Final = ("waiting", "answered")
"""What a program of the stage that drives an agent prints beyond the agent's own lines."""

SCRIPT: Final = (
    "import sys; place, _, name = sys.argv[1].rpartition('/'); folder, _, package = place.rpartition('/'); sys.path.insert(0, folder); "
    "from importlib import import_module; sys.exit(import_module(package + '.' + name).main(sys.argv[2:]))"
)


def stage_program(module: str, *arguments: str) -> tuple[str, ...]:
    """Returns what starts the module's `main` with these arguments."""
    return (PYTHON, "-I", "-S", "-c", SCRIPT, f"{STAGE_DIR}{module}", *arguments)


def waiting_signal(line: dict[str, Any], session: str = "") -> Signal:
    """Returns what a line of those two types tells."""
    if line.get("type") == "answered":
        return Signal("answered", session=session)
    question = text_of(line.get("text"), QUESTION_CHARACTERS_MAX) or "an answer"
    return Signal("waiting for an answer", session=session, waiting_for=question, number=count_of(line.get("ask")))
