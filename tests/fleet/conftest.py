"""A fleet for each test that asks for one: two machines with real SSH servers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from orchestra.testing.lab import Lab, LabFailed


@pytest.fixture
def lab_folder(tmp_path: Path) -> Path:
    """Where a lab keeps its files."""
    return tmp_path / "lab"


@pytest.fixture
def lab(lab_folder: Path) -> Iterator[Lab]:
    """Builds a lab with the machines mugen and majin, and checks that nothing of it stays. What it needs is no reason to skip: the failure names the remedy."""
    fleet = Lab(lab_folder)
    try:
        fleet.__enter__()
    except LabFailed as error:
        pytest.fail(str(error), pytrace=False)
    try:
        yield fleet
    finally:
        fleet.close()
    assert fleet.leftovers() == []
