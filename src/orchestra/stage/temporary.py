"""A folder for temporary files of an attempt's own, where there is no sandbox to give it one.

Its name is short: the path of a Unix socket has room for about a hundred characters, and programs make theirs some folders below TMPDIR. So it lies where the machine keeps
such files, and a link in the attempt's folder says where, by which whoever comes after a dead worker finds and removes it.
"""

from __future__ import annotations

import os

from .spawning import spawn

LINK = "/tmp"  # below the attempt's folder
NAME = "orchestra-"
RANDOM_BYTES = 4
ENTRIES_AT_ONCE = 200  # are removed by the caller itself in less time than a program takes to start
REMOVE = 'rm -rf -- "$1" 2>/dev/null || { chmod -R u+rwx -- "$1"; rm -rf -- "$1"; }'


def make_temporary(folder: str) -> str:
    """Makes it and returns its path. The link comes first, so that none is ever left that nobody knows of."""
    top = os.path.realpath(os.environ.get("TMPDIR") or "/tmp").rstrip("/")
    while True:
        path = "%s/%s%s" % (top, NAME, os.urandom(RANDOM_BYTES).hex())
        if os.path.lexists(path):
            continue
        os.symlink(path, folder + LINK)
        try:
            os.mkdir(path, 0o700)
        except OSError as problem:
            os.unlink(folder + LINK)
            if not isinstance(problem, FileExistsError):
                raise
        else:
            return path


def temporary_of(folder: str) -> str:
    """Where it is, or nothing. An agent may have put another link in the place of ours: only what looks like one of ours, and is the user's own, counts."""
    try:
        path = os.readlink(folder + LINK)
        facts = os.lstat(path)
    except OSError:
        return ""
    number = os.path.basename(path)[len(NAME) :]
    ours = os.path.basename(path).startswith(NAME) and len(number) == 2 * RANDOM_BYTES and set(number) <= set("0123456789abcdef")
    return path if ours and facts.st_uid == os.getuid() and os.path.isdir(path) and not os.path.islink(path) else ""


def forget_temporary(folder: str, known: str = "") -> None:
    """Removes it with all in it; what is large goes in the background, as nobody should wait for it. `known`: where it is, for whoever made it."""
    path = known or temporary_of(folder)
    if path and not removed(path, [ENTRIES_AT_ONCE]):
        nothing = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.waitpid(
                spawn(["/bin/sh", "-c", "{ %s; } &" % REMOVE, "sh", path], {"PATH": os.defpath}, "/", (nothing, nothing, nothing)), 0
            )
        except OSError:
            pass  # it is where the machine keeps such files, and goes with them
        finally:
            os.close(nothing)
    if os.path.islink(folder + LINK):
        os.unlink(folder + LINK)


def removed(folder: str, left: list[int]) -> bool:
    """Removes a folder in which nobody works any more, as far as it is small; whether it is gone. Links are removed, not followed."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                left[0] -= 1
                if left[0] < 0:
                    return False
                if not entry.is_dir(follow_symlinks=False):
                    os.unlink(entry.path)
                elif not removed(entry.path, left):
                    return False
        os.rmdir(folder)
    except OSError:
        return False
    return True
