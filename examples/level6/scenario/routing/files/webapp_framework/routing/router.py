"""Routes in the order they were added; the first that fits wins."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

from webapp_framework.routing.pattern import compile_pattern, fill


class NoRoute(LookupError):
    """No route has this path."""

    status = 404


class WrongMethod(LookupError):
    """There is such a path, but not for this method."""

    status = 405


class Route(NamedTuple):
    """One path, for one method."""

    method: str
    path: str
    pattern: re.Pattern[str]
    handler: Callable[..., Any]
    name: str


class Router:
    """Finds handlers by method and path."""

    def __init__(self) -> None:
        """Begins without routes."""
        self._routes: list[Route] = []

    def add(self, method: str, path: str, handler: Callable[..., Any], name: str = "") -> None:
        """Adds a route; its name is the handler's unless one is given."""
        if not path.startswith("/"):
            raise ValueError(f"the path {path!r} does not begin with a slash")
        label = name or getattr(handler, "__name__", "")
        self._routes.append(Route(method.upper(), path, compile_pattern(path), handler, label))

    def mount(self, prefix: str, other: Router) -> None:
        """Adds another router's routes below a prefix."""
        for route in other._routes:
            self.add(route.method, prefix.rstrip("/") + route.path, route.handler, route.name)

    def find(self, method: str, path: str) -> tuple[Callable[..., Any], dict[str, str]]:
        """Returns the handler and the fields of the path. A `HEAD` is answered by what answers `GET`.

        Raises:
            NoRoute: There is no such path.
            WrongMethod: It is there for other methods only.
        """
        wanted = "GET" if method.upper() == "HEAD" else method.upper()
        fits = [(route, found) for route in self._routes if (found := route.pattern.fullmatch(path))]
        for route, found in fits:
            if route.method == wanted:
                return route.handler, found.groupdict()
        if fits:
            raise WrongMethod(f"{path} takes {', '.join(sorted({route.method for route, _ in fits}))}")
        raise NoRoute(f"there is no {path}")

    def path_for(self, name: str, **values: Any) -> str:
        """Returns the path of a named route with values in its fields.

        Raises:
            NoRoute: No route has this name.
        """
        for route in self._routes:
            if route.name == name:
                return fill(route.path, **values)
        raise NoRoute(f"no route is called {name!r}")
