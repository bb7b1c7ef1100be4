"""A patch in git's form, read as people want it told: which files, how many lines. Pure, and never fails: what is no patch has no files."""

from __future__ import annotations

import re
from typing import Final

import msgspec

_START: Final = re.compile(
    r'diff --git (?:"a/(?P<quoted>(?:[^"\\]|\\.)*)" |a/(?P<plain>.*) )(?:"b/(?P<new_quoted>(?:[^"\\]|\\.)*)"|b/(?P<new>.*))'
)
_HUNK: Final = re.compile(r"@@ -\d+(?:,(\d+))? \+\d+(?:,(\d+))? @@")
_ESCAPE: Final = re.compile(r"\\([0-7]{3}|.)", re.DOTALL)
_LETTERS: Final = {"n": 10, "t": 9, "r": 13, "a": 7, "b": 8, "f": 12, "v": 11}


class FilePatch(msgspec.Struct, frozen=True):
    """One file of a patch."""

    path: str
    change: str
    """`created`, `deleted`, `renamed` or `changed`."""
    added: int
    removed: int
    binary: bool = False


def files_of(patch: str) -> tuple[FilePatch, ...]:
    """Returns the files of a patch, in its order. What a file's own lines say is never taken for a header."""
    files: list[FilePatch] = []
    head: re.Match[str] | None = None
    change, added, removed, binary = "changed", 0, 0, False
    old_left = new_left = 0
    for line in patch.split("\n"):
        if old_left > 0 or new_left > 0:
            sign = line[:1]
            if sign == "\\":
                continue
            added, removed = added + (sign == "+"), removed + (sign == "-")
            old_left, new_left = old_left - (sign != "+"), new_left - (sign != "-")
        elif hunk := _HUNK.match(line):
            old_left, new_left = int(hunk[1] or 1), int(hunk[2] or 1)
        elif start := _START.fullmatch(line):
            if head is not None:
                files.append(FilePatch(_path(head), change, added, removed, binary))
            head, change, added, removed, binary = start, "changed", 0, 0, False
        elif line.startswith("new file mode"):
            change = "created"
        elif line.startswith("deleted file mode"):
            change = "deleted"
        elif line.startswith("rename to "):
            change = "renamed"
        elif line.startswith(("GIT binary patch", "Binary files ")):
            binary = True
    if head is not None:
        files.append(FilePatch(_path(head), change, added, removed, binary))
    return tuple(files)


def _path(head: re.Match[str]) -> str:
    if head["new_quoted"] is not None:
        return _unquoted(head["new_quoted"])
    new = head["new"]
    # `a/x b/x` can be read in several ways where a name has " b/" in it; with both names the same there is one.
    both = f"{head['plain']} b/{new}" if head["plain"] is not None else new
    same = both[: (len(both) - len(" b/")) // 2]
    return same if both == f"{same} b/{same}" else new


def _unquoted(text: str) -> str:
    out = bytearray()
    done = 0
    for found in _ESCAPE.finditer(text):
        out += text[done : found.start()].encode("utf-8", "surrogatepass")
        code = found[1]
        out += bytes([int(code, 8) & 0xFF]) if len(code) == 3 else bytes([_LETTERS[code]]) if code in _LETTERS else code.encode()
        done = found.end()
    return (out + text[done:].encode("utf-8", "surrogatepass")).decode("utf-8", "backslashreplace")
