"""Rules: each takes a value and returns what is wrong with it, or nothing. Only `required` minds a value that is missing."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from webapp_framework.database import Database, select

Rule = Callable[[Any], str]


def required(value: Any) -> str:
    """Refuses what is missing or empty."""
    return "is missing" if value is None or str(value).strip() == "" else ""


def integer(value: Any) -> str:
    """Refuses what is no whole number."""
    return "" if value is None or re.fullmatch(r"-?[0-9]{1,18}", str(value)) else "is not a whole number"


def at_most(most: int) -> Rule:
    """Returns a rule that refuses longer texts."""
    return lambda value: f"is longer than {most}" if len(str(value or "")) > most else ""


def at_least(least: int) -> Rule:
    """Returns a rule that refuses shorter texts."""
    return lambda value: f"is shorter than {least}" if value is not None and len(str(value)) < least else ""


def matches(pattern: str, words: str = "has the wrong form") -> Rule:
    """Returns a rule that refuses what the expression does not fit."""
    return lambda value: "" if value is None or re.fullmatch(pattern, str(value)) else words


def one_of(*choices: str) -> Rule:
    """Returns a rule that refuses everything else."""
    return lambda value: "" if value is None or value in choices else f"is none of {', '.join(choices)}"


def unique(database: Database, table: str, column: str) -> Rule:
    """Returns a rule that refuses what a column of a table has already."""
    return lambda value: "is taken" if value is not None and database.run(*select(table, {column: value}, limit=1)) else ""


email = matches(r"[^@\s]+@[^@\s]+\.[a-z]{2,}", "is not an address")
