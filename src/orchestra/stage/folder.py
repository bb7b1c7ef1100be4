"""Paths of requests, opened folder by folder without following links, so that nobody can be led out of the node's folder."""

from __future__ import annotations

import errno
import os
import stat
from typing import Any

from .files import write_all

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Refused(Exception):
    """A request that is answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def asked(request: dict[str, Any], name: str, kind: type, default: Any = None) -> Any:
    """A field of a request."""
    value = request.get(name, default)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise Refused("bad-request", "%s is missing or of the wrong kind" % name)
    return value


def parts_of(path: Any) -> list[str]:
    """The names in a relative path, which leads down only."""
    parts = path.split("/") if isinstance(path, str) else []
    if not parts or "" in parts or {".", ".."} & set(parts) or "\0" in str(path):
        raise Refused("bad-path", "not a path below the node's folder: %.200r" % (path,))
    return parts


def attempt_parts(path: Any) -> list[str]:
    """The names in the path of an attempt's folder."""
    parts = parts_of(path)
    if parts[0] != "attempts" or len(parts) < 3:
        raise Refused("bad-path", "not the folder of an attempt: %.200r" % (path,))
    return parts


def make_folder(name: str, parent_fd: int) -> None:
    """It is there then."""
    try:
        os.mkdir(name, 0o700, dir_fd=parent_fd)
    except FileExistsError:
        pass


class Folder:
    """A folder held open. Each step down refuses symbolic links."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def __enter__(self) -> Folder:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    @classmethod
    def walk(cls, base: str, parts: list[str], make: bool = False) -> Folder:
        """Opens base/parts; `make` makes what is missing."""
        fd = os.open(base, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)  # the node's own folder may be a link
        try:
            for name in parts:
                try:
                    below = os.open(name, FOLDER_FLAGS, dir_fd=fd)
                except FileNotFoundError:
                    if not make:
                        raise
                    make_folder(name, fd)
                    below = os.open(name, FOLDER_FLAGS, dir_fd=fd)
                os.close(fd)
                fd = below
        except OSError as problem:
            os.close(fd)
            if problem.errno in (errno.ELOOP, errno.ENOTDIR):
                raise Refused("bad-path", "%s is not a folder of ours" % "/".join(parts)) from None
            raise
        return cls(fd)

    def below(self, name: str) -> Folder:
        """A folder in this one."""
        return Folder(os.open(name, FOLDER_FLAGS, dir_fd=self.fd))

    def write(self, name: str, data: bytes, mode: int = 0o600) -> None:
        """Writes a file atomically."""
        draft = ".%s.%d.tmp" % (name[:200], os.getpid())
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            write_all(fd, data)
            if mode != 0o600:
                os.fchmod(fd, mode)
            os.rename(draft, name, src_dir_fd=self.fd, dst_dir_fd=self.fd)
        except OSError:
            os.unlink(draft, dir_fd=self.fd)
            raise
        finally:
            os.close(fd)

    def write_new(self, name: str, data: bytes) -> None:
        """Writes a file that nobody reads yet."""
        fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=self.fd)
        try:
            write_all(fd, data)
        finally:
            os.close(fd)

    def has(self, name: str) -> bool:
        """Whether there is such an entry."""
        try:
            os.stat(name, dir_fd=self.fd, follow_symlinks=False)
        except OSError:
            return False
        return True


def remove_tree(name: str, parent_fd: int) -> None:
    """Removes a folder and all in it. Links are removed, not followed."""
    fd = os.open(name, FOLDER_FLAGS, dir_fd=parent_fd)
    try:
        for entry in os.listdir(fd):
            if stat.S_ISDIR(os.stat(entry, dir_fd=fd, follow_symlinks=False).st_mode):
                remove_tree(entry, fd)
            else:
                os.unlink(entry, dir_fd=fd)
    finally:
        os.close(fd)
    os.rmdir(name, dir_fd=parent_fd)
