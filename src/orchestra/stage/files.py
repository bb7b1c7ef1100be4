"""Small files: read whole, written whole or not at all."""

from __future__ import annotations

import os

FILE_READ_BYTES = 32768  # most files are read whole by one call, without a large buffer being made for it


def read_bytes(path: str) -> bytes | None:
    """The content, or None where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        parts: list[bytes] = []
        while True:
            part = os.read(fd, 1 << 20)
            if not part:
                return b"".join(parts)
            parts.append(part)
    except OSError:
        return None
    finally:
        os.close(fd)


def read_file(path: str) -> bytes | None:
    """The content of a file on a disk, where a read that brings less than was asked for is the last. None where there is no such file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        data = os.read(fd, FILE_READ_BYTES)
        while len(data) % FILE_READ_BYTES == 0:
            part = os.read(fd, FILE_READ_BYTES)
            if not part:
                break
            data += part
        return data
    except OSError:
        return None
    finally:
        os.close(fd)


def write_all(fd: int, data: bytes) -> None:
    """Writes everything or raises."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]


def write_new(path: str, data: bytes, mode: int = 0o600) -> None:
    """A file with this content; what was there is gone, and so is the file if it cannot be written whole."""
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    try:
        write_all(fd, data)
    except OSError:
        os.unlink(path)
        raise
    finally:
        os.close(fd)


def write_atomic(path: str, data: bytes) -> None:
    """A reader sees the old content or the new, never a part."""
    draft = "%s.%d.tmp" % (path, os.getpid())
    write_new(draft, data)
    os.rename(draft, path)


def remove_folders(paths: list[str]) -> None:
    """Removes empty folders; what is not empty stays."""
    for path in paths:
        try:
            os.rmdir(path)
        except OSError:
            pass
