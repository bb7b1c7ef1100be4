"""Private copies of folders that are no repository: made within bounds, compared by a list of what was there."""

from __future__ import annotations

import difflib
import errno
import fcntl
import hashlib
import itertools
import json
import os
import shutil
import stat
import time
from contextlib import contextmanager
from typing import Any, Iterator

from orchestra.workspaces.onsite.ground import CACHES, Problem, private_folder
from orchestra.workspaces.onsite.records import Place

CACHES_SET = frozenset(CACHES)
FICLONE = 0x40049409
"""Linux: share the blocks until one of the two is written."""
DIFF_BYTES_MAX = 256 << 10
"""Above this a changed file is named in the patch without its lines; comparing grows with the square of its length."""

Entry = Any
"""[kind, size, mode, own mtime_ns, own ctime_ns, digest or link text, source mtime_ns]"""


ORCHESTRAS_MARK = b"# What an orchestra writes while it runs"
"""How the ignore file begins that an orchestra puts into each folder of its root: that it is in the user's folder is usual, and it is no part of the work."""


def is_an_orchestras(folder: str) -> bool:
    """Whether the folder is one in which an orchestra keeps what it writes."""
    try:
        handle = os.open(
            os.path.join(folder, ".gitignore"), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        )  # it may be a pipe that nobody fills
        with open(handle, "rb") as file:
            return file.read(len(ORCHESTRAS_MARK)) == ORCHESTRAS_MARK
    except OSError:
        return False


def walk(top: str) -> Iterator[tuple[str, os.stat_result]]:
    """Yields everything below a folder, folders before what is in them, in the order of names; links are not followed. What an orchestra keeps is left out."""
    pending = [""]
    while pending:
        folder = pending.pop()
        with os.scandir(os.path.join(top, folder)) as entries:
            names = sorted(entry.name for entry in entries)
        below = []
        for name in names:
            path = os.path.join(folder, name)
            found = os.lstat(os.path.join(top, path))
            if stat.S_ISDIR(found.st_mode):
                if is_an_orchestras(os.path.join(top, path)):
                    continue
                below.append(path)
            yield path, found
        pending.extend(reversed(below))


def prepare(place: Place, source: str, request: dict[str, Any], repairs: dict[str, Any] | None = None) -> dict[str, Any]:
    """Copies a folder. What a killed request left is made anew. `repairs`: the earlier attempt whose changes are to be in it too."""
    record = place.read()
    if record is not None and record["state"] == "ready":
        place.check_there()
        return dict(record, fresh=False)
    if record is None and os.path.lexists(place.work):
        raise Problem("refused", "%s is there already, and nobody knows why" % place.work, "move it away")
    found = _measure(source, request["copy_files_max"], request["copy_bytes_max"])
    place.make()
    place.throw_away()
    record = {
        "kind": "copy",
        "state": "preparing",
        "repo": source,
        "plan": place.plan,
        "task": place.task,
        "path": place.work,
        "made": int(time.time()),
    }
    place.write(record)
    os.mkdir(place.work, 0o700)
    entries = {path: _copy(source, place.work, path, seen) for path, seen in found}
    for path, seen in reversed(found):
        if stat.S_ISDIR(seen.st_mode):
            os.chmod(os.path.join(place.work, path), stat.S_IMODE(seen.st_mode) | 0o700)
    with open(place.manifest, "w", encoding="ascii") as file:
        json.dump(entries, file)
    record = dict(record, state="ready", base="", branch="", space="", prefix="")
    try:
        record["repairs"] = repairs is not None and _take_over(place, Place(place.folder, place.plan, repairs["task"]), repairs["kept"])
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        return prepare(place, source, request)  # the folder has changed so much that the two do not go together
    place.write(record)
    return dict(record, fresh=True)


@contextmanager
def settled(folder: str) -> Iterator[None]:
    """Holds off whoever lets copies go, or takes their changes over: one of them at a time."""
    handle = os.open(os.path.join(private_folder(folder), "copies.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _take_over(place: Place, earlier: Place, kept: str | None) -> bool:
    """Brings what an earlier attempt changed into the copy, out of its own copy or of what was kept of that; whether it is to be had."""
    with settled(place.folder):
        record = earlier.read()
        if record is not None and record["kind"] == "copy" and record["state"] == "ready":
            try:
                earlier.check_there()
            except Problem:
                return False
            changes, files = compare(earlier)[0], earlier.work
        elif kept == "":
            return True
        else:
            top = _last_salvaged(earlier)
            if not top:
                return False
            with open(os.path.join(top, "changes.json"), encoding="ascii") as file:
                changes, files = json.load(file), os.path.join(top, "files")
        for path in sorted(changes, key=lambda path: changes[path] != "deleted"):  # a file may have become a folder
            target = os.path.join(place.work, path)
            if os.path.lexists(target):
                os.unlink(target)
            if changes[path] != "deleted":
                os.makedirs(os.path.dirname(target), exist_ok=True)
                shutil.copy2(os.path.join(files, path), target, follow_symlinks=False)
    return True


def salvage_folders(place: Place) -> Iterator[str]:
    """Yields where the changed files of a copy are kept, of which the first are used first."""
    name = os.path.join(place.folder, "salvage", place.plan, place.task)
    yield name
    for count in itertools.count(2):
        yield "%s-%d" % (name, count)


def _last_salvaged(place: Place) -> str:
    last = ""
    for folder in salvage_folders(place):
        if not os.path.isdir(folder):
            break
        last = folder
    return last


def _measure(source: str, files_max: int, bytes_max: int) -> list[tuple[str, os.stat_result]]:
    found, total = [], 0
    for path, seen in walk(source):
        if not (stat.S_ISDIR(seen.st_mode) or stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)):
            raise Problem(
                "refused", "%s is a device, pipe or socket; that cannot be copied" % os.path.join(source, path), "take it out of the folder"
            )
        total += seen.st_size if stat.S_ISREG(seen.st_mode) else 0
        found.append((path, seen))
        if len(found) > files_max or total > bytes_max:
            limit = "%d files" % files_max if len(found) > files_max else "%d bytes" % bytes_max
            raise Problem(
                "refused",
                "%s has more than %s, the most that is copied" % (source, limit),
                "make it a git repository, or raise that setting",
            )
    return found


def _copy(source: str, target: str, path: str, seen: os.stat_result) -> Entry:
    old, new = os.path.join(source, path), os.path.join(target, path)
    if stat.S_ISDIR(seen.st_mode):
        os.mkdir(new, 0o700)
        return ["dir", 0, 0, 0, 0, "", 0]
    if stat.S_ISLNK(seen.st_mode):
        text = os.readlink(old)
        os.symlink(text, new)
        return ["link", 0, 0, 0, 0, text, 0]
    reading = os.open(old, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    with open(reading, "rb") as before, open(new, "xb") as after:
        if not stat.S_ISREG(os.fstat(reading).st_mode):
            raise Problem("refused", "%s changed while it was copied" % old, "try again")
        try:
            fcntl.ioctl(after.fileno(), FICLONE, before.fileno())
        except OSError:
            shutil.copyfileobj(before, after, 1 << 20)
    os.chmod(new, stat.S_IMODE(seen.st_mode) & 0o777)
    os.utime(new, ns=(seen.st_atime_ns, seen.st_mtime_ns))
    own = os.lstat(new)
    return ["file", own.st_size, own.st_mode & 0o111, own.st_mtime_ns, own.st_ctime_ns, _digest(new), seen.st_mtime_ns]


def _digest(path: str) -> str:
    found = hashlib.sha256()
    with open(path, "rb") as file:
        for block in iter(lambda: file.read(1 << 20), b""):
            found.update(block)
    return found.hexdigest()


def compare(place: Place, most: int = 0) -> tuple[dict[str, str], list[str], dict[str, Entry]]:
    """Returns what became of the copy: path -> created, changed or deleted; things that are neither file, folder nor link; the old list.

    With `most`, it ends when more than so many are known.
    """
    with open(place.manifest, encoding="ascii") as file:
        before: dict[str, Entry] = json.load(file)
    result: dict[str, str] = {}
    skipped: list[str] = []
    there = set()
    for path, seen in walk(place.work):
        if stat.S_ISDIR(seen.st_mode):
            if before.get(path, ["dir"])[0] == "dir":
                there.add(path)
            continue
        if path not in before and not CACHES_SET.isdisjoint(path.split("/")[:-1]):
            continue
        if not (stat.S_ISREG(seen.st_mode) or stat.S_ISLNK(seen.st_mode)):
            skipped.append(path)
            continue
        there.add(path)
        old = before.get(path)
        if old is None or old[0] == "dir":
            result[path] = "created"
        elif not _same(os.path.join(place.work, path), seen, old):
            result[path] = "changed"
        if most and len(result) > most:
            return result, skipped, before
    result.update({path: "deleted" for path, old in before.items() if path not in there and old[0] != "dir"})
    return result, skipped, before


def _same(path: str, seen: os.stat_result, old: Entry) -> bool:
    if stat.S_ISLNK(seen.st_mode):
        return bool(old[0] == "link" and os.readlink(path) == old[5])
    if old[0] != "file" or seen.st_size != old[1] or seen.st_mode & 0o111 != old[2]:
        return False
    return (seen.st_mtime_ns, seen.st_ctime_ns) == (old[3], old[4]) or _digest(path) == old[5]


def collect(place: Place, record: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
    """Tells what changed in a copy since it was made."""
    place.check_there()
    changes, skipped, before = compare(place)
    notes = ["%s is a pipe, socket or device and was left out" % _shown(path) for path in skipped]
    patch, added, removed, cut = bytearray(), 0, 0, False
    for path in sorted(changes):
        lines = _file_patch(place, record["repo"], path, changes[path], before.get(path), notes)
        added += sum(1 for line in lines[2:] if line.startswith(b"+") and not line.startswith(b"+++ "))
        removed += sum(1 for line in lines[2:] if line.startswith(b"-") and not line.startswith(b"--- "))
        patch += b"".join(lines)
        if len(patch) > request["patch_bytes_max"]:
            cut = True
            break
    kinds = {kind: [_shown(path) for path in sorted(changes) if changes[path] == kind] for kind in ("created", "changed", "deleted")}
    return dict(
        kinds,
        head="",
        base="",
        tree="",
        commits=0,
        notes=notes,
        skipped=[_shown(path) for path in skipped],
        salvaged="",
        lines_added=added,
        lines_removed=removed,
        patch=bytes(patch[: request["patch_bytes_max"]]),
        patch_cut=cut,
    )


def _shown(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def _file_patch(place: Place, source: str, path: str, kind: str, old: Entry | None, notes: list[str]) -> list[bytes]:
    """Returns one file's part of the patch. The old lines come from the folder that was copied, as long as it is unchanged there."""
    name = os.fsencode(path)
    head = [b"diff --git a/%s b/%s\n" % (name, name)]
    if kind != "changed":
        mode = (b"120000" if os.path.islink(os.path.join(place.work, path)) else b"100644") if kind == "created" else b"100644"
        head.append(b"%s file mode %s\n" % (b"new" if kind == "created" else b"deleted", mode))
    before = b"" if kind == "created" or old is None else _content(os.path.join(source, path), old)
    after = b"" if kind == "deleted" else _content(os.path.join(place.work, path), None)
    if before is None:
        notes.append("%s changed in the folder that was copied: its old lines are not in the patch" % _shown(path))
    if before is None or after is None or b"\0" in before or b"\0" in after:
        return [b"# %s %s: not text, and not in this patch\n" % (name, kind.encode())]  # git takes such a line for a comment
    names = (b"/dev/null" if kind == "created" else b"a/" + name, b"/dev/null" if kind == "deleted" else b"b/" + name)
    text = difflib.diff_bytes(difflib.unified_diff, before.splitlines(True), after.splitlines(True), *names)
    return head + [line if line.endswith(b"\n") else line + b"\n\\ No newline at end of file\n" for line in text]


def _content(path: str, old: Entry | None) -> bytes | None:
    """Returns what a file holds; None if it is too long, or (with `old`) no longer what was copied."""
    try:
        seen = os.lstat(path)
    except OSError:
        return None
    if stat.S_ISLNK(seen.st_mode):
        text = os.readlink(path)
        return os.fsencode(text) if old is None or old[5] == text else None
    if not stat.S_ISREG(seen.st_mode) or seen.st_size > DIFF_BYTES_MAX:
        return None
    if old is not None and (seen.st_size != old[1] or seen.st_mtime_ns != old[6]):
        return None
    with open(path, "rb") as file:
        return file.read()
