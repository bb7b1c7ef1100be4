"""SQL built from names that are checked and values that are bound."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Statement = tuple[str, tuple[Any, ...]]


def name(text: str) -> str:
    """Returns a table's or column's name as SQL takes it.

    Raises:
        ValueError: It is no plain name.
    """
    if not text.isidentifier() or not text.isascii():
        raise ValueError(f"{text!r} is not a name")
    return f'"{text}"'


def select(table: str, where: Mapping[str, Any], order: str = "", limit: int = 0) -> Statement:
    """Returns a statement that finds the rows with these values, and its values."""
    sql = f"SELECT * FROM {name(table)}{_where(where)}"
    if order:
        sql += f" ORDER BY {name(order.lstrip('-'))}{' DESC' if order.startswith('-') else ''}"
    return (f"{sql} LIMIT {int(limit)}" if limit else sql), tuple(where.values())


def insert(table: str, row: Mapping[str, Any]) -> Statement:
    """Returns a statement that adds a row, and its values."""
    columns, marks = ", ".join(map(name, row)), ", ".join("?" for _ in row)
    return f"INSERT INTO {name(table)} ({columns}) VALUES ({marks}) RETURNING *", tuple(row.values())


def update(table: str, row: Mapping[str, Any], where: Mapping[str, Any]) -> Statement:
    """Returns a statement that changes the rows with these values, and its values."""
    sets = ", ".join(f"{name(column)} = ?" for column in row)
    return f"UPDATE {name(table)} SET {sets}{_where(where)} RETURNING *", (*row.values(), *where.values())


def _where(where: Mapping[str, Any]) -> str:
    tests = " AND ".join(f"{name(column)} IS ?" for column in where)
    return f" WHERE {tests}" if tests else ""
