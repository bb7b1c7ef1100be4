"""From a path to its handler, and back from a name to a path."""

from webapp_framework.routing.pattern import compile_pattern, fill
from webapp_framework.routing.router import NoRoute, Router, WrongMethod

__all__ = ["NoRoute", "Router", "WrongMethod", "compile_pattern", "fill"]
