"""Files that are replaced whole, and folders nobody else can look into."""

from __future__ import annotations

import asyncio
import stat
import threading
from pathlib import Path

import pytest

from orchestra.files import ensure_private_dir, private_server, socket_address, write_atomically


@pytest.mark.parametrize("durable", [False, True])
def test_content_and_mode(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "state.json"
    write_atomically(path, b"one", durable=durable)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    write_atomically(path, b"two", 0o644, durable=durable)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"two", 0o644)
    assert list(tmp_path.iterdir()) == [path]


def test_a_reader_never_sees_half(tmp_path: Path) -> None:
    path = tmp_path / "state.json"
    bodies = [bytes([letter]) * 300_000 for letter in b"ab"]
    write_atomically(path, bodies[0])
    over = threading.Event()

    def write() -> None:
        for turn in range(100):
            write_atomically(path, bodies[turn % 2])
        over.set()

    writer = threading.Thread(target=write)
    writer.start()
    while not over.is_set():
        assert path.read_bytes() in bodies
    writer.join()


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "taken"
    path.mkdir()
    with pytest.raises(OSError, match="taken"):
        write_atomically(path, b"new")
    assert list(tmp_path.iterdir()) == [path]
    with pytest.raises(FileNotFoundError):
        write_atomically(tmp_path / "missing" / "file", b"new")


def test_a_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_bytes(b"old")
    link = tmp_path / "link"
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert (target.read_bytes(), link.read_bytes(), link.is_symlink()) == (b"old", b"new", False)


def test_a_long_name_is_no_obstacle(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 255)
    write_atomically(path, b"x")
    assert path.read_bytes() == b"x"


def test_a_private_folder(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    ensure_private_dir(folder)
    folder.chmod(0o755)
    ensure_private_dir(folder)
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_link_or_file_is_no_private_folder(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "file").touch()
    for name in ("link", "file"):
        with pytest.raises(NotADirectoryError):
            ensure_private_dir(tmp_path / name)


@pytest.mark.parametrize("length", [90, 180, 240])
async def test_a_socket_in_a_deep_folder_is_reached(tmp_path: Path, length: int, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path
    while len(str(folder)) < length:
        folder /= "deeper"
    folder.mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir("/")
    path = folder / "s.sock"
    met = asyncio.Event()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        met.set()
        writer.close()

    async with await private_server(path, accept, 1000):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        with socket_address(path) as address:
            reader, writer = await asyncio.open_unix_connection(address)
        assert await reader.read() == b""
        assert met.is_set()
        writer.close()


def test_a_socket_whose_folder_is_missing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), socket_address(tmp_path / ("long" * 40) / "s.sock"):
        pass
