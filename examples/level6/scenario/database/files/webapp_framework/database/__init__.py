"""Rows in SQLite, as models and as routes."""

from webapp_framework.database.connection import Database
from webapp_framework.database.model import Model, register
from webapp_framework.database.query import insert, name, select, update

__all__ = ["Database", "Model", "insert", "name", "register", "select", "update"]
