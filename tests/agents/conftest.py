"""The namespace and the fake model server, once for all tests here; a desk for each. All of them run one after another: a CLI needs a core of its own."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.agents.support import Desk, Missing, Net, desk


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads them
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Keeps them on one worker, where they share a server."""
    for item in items:
        if item.path.is_relative_to(Path(__file__).parent):
            item.add_marker(pytest.mark.xdist_group("agents"))


@pytest.fixture(scope="session")
def net(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Net]:
    """What is missing is no reason to skip: the failure names the remedy."""
    try:
        found = Net(tmp_path_factory.mktemp("net"))
    except Missing as error:
        pytest.fail(str(error), pytrace=False)
    yield found
    found.close()


@pytest.fixture
def stage(net: Net) -> Iterator[Desk]:
    """In a folder with a short name, as the path of a socket has room for about a hundred characters."""
    with tempfile.TemporaryDirectory(prefix="agents-") as folder, desk(Path(folder) / "node", net) as found:
        yield found
