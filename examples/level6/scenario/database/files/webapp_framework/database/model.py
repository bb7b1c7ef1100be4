"""A table as a class, and a class as routes."""

from __future__ import annotations

from typing import Any

from webapp_framework.database.connection import Database
from webapp_framework.database.query import insert, name, select, update
from webapp_framework.routing import NoRoute, Router
from webapp_framework.utils import slug


class Model:
    """Base of tables. Subclasses name `table` and `columns`; the key is `id` and given by the database."""

    table = ""
    columns: tuple[str, ...] = ()

    @classmethod
    def create_table(cls, database: Database) -> None:
        """Makes the table, if it is not there."""
        columns = ", ".join(["id INTEGER PRIMARY KEY", *map(name, cls.columns)])
        database.run(f"CREATE TABLE IF NOT EXISTS {name(cls.table)} ({columns})")

    @classmethod
    def add(cls, database: Database, **row: Any) -> dict[str, Any]:
        """Adds a row and returns it with its id."""
        return database.run(*insert(cls.table, row))[0]

    @classmethod
    def find(cls, database: Database, order: str = "id", limit: int = 0, **where: Any) -> list[dict[str, Any]]:
        """Returns the rows with these values."""
        return database.run(*select(cls.table, where, order, limit))

    @classmethod
    def change(cls, database: Database, id: int, **row: Any) -> dict[str, Any]:
        """Changes a row and returns it.

        Raises:
            NoRoute: There is none with this id.
        """
        found = database.run(*update(cls.table, row, {"id": id}))
        if not found:
            raise NoRoute(f"{cls.table} has no {id}")
        return found[0]


def register(router: Router, model: type[Model], database: Database) -> None:
    """Adds routes that show a model's rows as JSON: all of them, and one by its id."""
    base = f"/{slug(model.table)}"

    def many(request: Any) -> list[dict[str, Any]]:
        return model.find(database)

    def one(request: Any) -> dict[str, Any]:
        found = model.find(database, id=int(request.params["id"]))
        if not found:
            raise NoRoute(f"{model.table} has no {request.params['id']}")
        return found[0]

    router.add("GET", base, many, name=f"{model.table}_list")
    router.add("GET", f"{base}/{{id:int}}", one, name=f"{model.table}_one")
