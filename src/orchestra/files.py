"""Files that other programs read while we write them: each is replaced whole, so that nobody ever sees half of one. And sockets for one user."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

SOCKET_NAME_BYTES: Final = 100
_OPEN_FILES: Final = Path("/proc/self/fd")


async def private_server(
    path: Path, accept: Callable[[asyncio.StreamReader, asyncio.StreamWriter], None], line_bytes_max: int
) -> asyncio.Server:
    """Listens on a Unix socket at `path`, in place of what was there, for its user alone.

    Args:
        path: Where; its folder has to exist.
        accept: Called for each connection.
        line_bytes_max: Longest line that a connection's reader takes.

    Raises:
        OSError: It cannot be made there.
    """
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        with socket_address(path) as address:
            listener.bind(address)
        # Nobody can connect before `listen`, so the mode is right from the first moment on; a umask would be every thread's.
        os.chmod(path, 0o600)
        return await asyncio.start_unix_server(accept, sock=listener, limit=line_bytes_max)
    except OSError:
        listener.close()
        raise


@contextlib.contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """Gives a name of the socket that fits the 108 bytes the kernel has for it; good for as long as the context is.

    Raises:
        OSError: Its folder cannot be opened.
    """
    near = os.path.relpath(path)
    if len(os.fsencode(path)) <= SOCKET_NAME_BYTES:
        yield str(path)
    elif len(os.fsencode(near)) <= SOCKET_NAME_BYTES or not _OPEN_FILES.is_dir():
        yield near
    else:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield str(_OPEN_FILES / str(folder) / path.name)
        finally:
            os.close(folder)


def write_atomically(path: Path, data: bytes, mode: int = 0o600, *, durable: bool = False) -> None:
    """Replaces the content of `path` in one step; a reader sees the old content or the new.

    Args:
        path: The file; its folder has to exist. A symbolic link there is replaced, not followed.
        data: All of the new content.
        mode: Permissions of the new file, whatever the umask says.
        durable: Also wait until it would survive a power cut. Off by default: what is shown here can be made again from the ledger.

    Raises:
        OSError: The folder is missing or not writable, or the disk is full. The old file is then untouched.
    """
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    if durable:
        _sync_folder(path.parent)


def ensure_private_dir(path: Path) -> None:
    """Makes the folder, and those above it, so that nobody else can look into it; an existing folder of ours is closed to others.

    Raises:
        OSError: It cannot be made, or there is something else: a file, a symbolic link, or a folder of another user.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.suppress(FileExistsError):
        path.mkdir(mode=0o700)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode):
        raise NotADirectoryError(f"{path} is not a folder")
    if found.st_uid != os.geteuid():
        raise PermissionError(f"{path} belongs to another user")
    if found.st_mode & 0o077:
        path.chmod(0o700)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
