"""What is read from a node has no secret of the node's in it, wherever a reading begins or ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from orchestra.protocol.masking import is_secret_name
from orchestra.stage.hiding import NAME, read_hidden, secrets_of

SECRETS = secrets_of({"A_API_KEY": "0123456789", "B_PASSWORD": 'with "quotes"', "C_TOKEN": "short", "HOME": "/home/somebody"})
TEXT = b'before 0123456789 between with "quotes" and with \\"quotes\\" short /home/somebody'


@pytest.mark.parametrize("length", [1, 3, 1000])
def test_secrets_are_hidden_in_every_part(tmp_path: Path, length: int) -> None:
    path = tmp_path / "file"
    path.write_bytes(TEXT)
    fd = os.open(path, os.O_RDONLY)
    try:
        parts = [read_hidden(fd, offset, length, SECRETS) for offset in range(0, len(TEXT), length)]
        assert read_hidden(fd, 7, 10, []) == b"0123456789"
    finally:
        os.close(fd)
    whole = b"".join(parts)
    assert len(whole) == len(TEXT)
    assert not any(secret in whole for secret in SECRETS)
    assert whole.startswith(b"before ********** between *")
    assert whole.endswith(b" short /home/somebody")


def test_a_node_and_the_coordinator_agree_on_names() -> None:
    for name in ("A_KEY", "GH_TOKEN", "PGPASSWORD", "PATH", "KEYBOARD", "APIKEY"):
        assert is_secret_name(name) == (NAME.search(name) is not None)
