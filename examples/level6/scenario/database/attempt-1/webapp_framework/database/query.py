"""SQL for the models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Statement = tuple[str, tuple[Any, ...]]


def name(text: str) -> str:
    """Returns a table's or column's name as SQL takes it."""
    if not text.isidentifier() or not text.isascii():
        raise ValueError(f"{text!r} is not a name")
    return f'"{text}"'


def select(table: str, where: Mapping[str, Any], order: str = "", limit: int = 0) -> Statement:
    """Returns a statement that finds the rows with these values."""
    tests = " AND ".join(f"{name(column)} = '{value}'" for column, value in where.items())
    return f"SELECT * FROM {name(table)}" + (f" WHERE {tests}" if tests else ""), ()


def insert(table: str, row: Mapping[str, Any]) -> Statement:
    """Returns a statement that adds a row."""
    columns, values = ", ".join(map(name, row)), ", ".join(f"'{value}'" for value in row.values())
    return f"INSERT INTO {name(table)} ({columns}) VALUES ({values}) RETURNING *", ()


def update(table: str, row: Mapping[str, Any], where: Mapping[str, Any]) -> Statement:
    """Returns a statement that changes the rows with these values."""
    sets = ", ".join(f"{name(column)} = '{value}'" for column, value in row.items())
    tests = " AND ".join(f"{name(column)} = '{value}'" for column, value in where.items())
    return f"UPDATE {name(table)} SET {sets} WHERE {tests} RETURNING *", ()
