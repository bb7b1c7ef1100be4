"""A small web framework that needs nothing but the standard library."""

from webapp_framework.core import Application, Request, Response
from webapp_framework.database import Database, Model
from webapp_framework.routing import Router
from webapp_framework.templating import page, render
from webapp_framework.validation import clean, validate

__version__ = "1.0.0"
__all__ = ["Application", "Database", "Model", "Request", "Response", "Router", "clean", "page", "render", "validate"]
