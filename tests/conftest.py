"""Puts on every test the marker of the folder it lies in, so that `-m integration` and `-m "not chaos"` need no decorators.

What hypothesis makes up is the same in every run.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

# The same inputs each time, and no verdict by the clock: a machine that is busy is no defect.
settings.register_profile("steady", deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("steady")

TESTS = Path(__file__).parent
MARKED = frozenset({"agents", "chaos", "conformance", "e2e", "fleet", "gateway", "integration", "simulation"})


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the collected tests; `unit` has no marker, as it is what is left."""
    for item in items:
        if not item.path.is_relative_to(TESTS):
            continue
        folder = item.path.relative_to(TESTS).parts[0]
        if folder in MARKED:
            item.add_marker(folder)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Refuses to run if groups have no effect: a version of pytest that pytest-xdist does not know yet makes it ignore them without a word."""
    if getattr(session.config.option, "loadgroup", False):
        for item in session.items:
            if item.get_closest_marker("xdist_group") is not None and "@" not in item.nodeid:
                raise pytest.UsageError(
                    f"{item.nodeid} is in a group, and this pytest-xdist does not see it with pytest {pytest.__version__}"
                )
