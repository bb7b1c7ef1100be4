"""Shows the routes of an application, serves it, or checks that every module can be loaded."""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from wsgiref.simple_server import make_server

import webapp_framework
from webapp_framework.core import Application
from webapp_framework.routing import Router
from webapp_framework.utils import plural


def load(place: str) -> Application:
    """Returns the application that lies at `module:name`.

    Raises:
        ValueError: There is none.
    """
    module, _, name = place.partition(":")
    found = getattr(importlib.import_module(module), name or "application", None)
    if not isinstance(found, Application):
        raise ValueError(f"{place!r} is not the place of an application; write module:name")
    return found


def show_routes(application: Application) -> int:
    """Prints every route of an application."""
    router = application.router
    for route in router._routes if isinstance(router, Router) else []:
        print(f"{route.method:<7} {route.path:<30} {route.name}")
    return 0


def serve(application: Application, port: int) -> int:
    """Answers requests on this machine until it is stopped."""
    with make_server("127.0.0.1", port, application) as server:
        print(f"http://127.0.0.1:{server.server_port}/ (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            return 0
    return 0


def check() -> int:
    """Loads every module of the framework and says how many there are."""
    names = [found.name for found in pkgutil.walk_packages(webapp_framework.__path__, "webapp_framework.")]
    for name in names:
        if not name.endswith("__main__"):
            importlib.import_module(name)
    print(plural(len(names) + 1, "module"), "can be loaded")
    return 0


def main(words: list[str]) -> int:
    """Runs the command line and returns its exit code."""
    parser = argparse.ArgumentParser(prog="webapp_framework.cli", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("check", help="load every module")
    for command in ("routes", "serve"):
        commands.add_parser(command).add_argument("place", metavar="MODULE:APPLICATION")
    commands.choices["serve"].add_argument("--port", type=int, default=8000)
    given = parser.parse_args(words)
    if given.command == "check":
        return check()
    application = load(given.place)
    return show_routes(application) if given.command == "routes" else serve(application, given.port)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
