"""Committing in a sandbox: the worktree's own half of the repository can be written, the rest only seems so.

New objects, and the one branch that the worktree has, go to private folders that lie over the repository's. When all is over, git itself takes over what is
in them: objects are named anew by their content, and of the branches only the worktree's own moves. So an agent can commit, but can neither delete the
repository's objects nor move another branch, and its hooks and settings are as they were.
"""

from __future__ import annotations

import os

from .files import read_bytes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .sandbox import Ground

TAKE_OVER = """
set -e
export GIT_DIR="$1"
if [ "$2" ]; then
    GIT_OBJECT_DIRECTORY="$2" git cat-file --batch-all-objects --unordered --batch-check='%(objectname)' |
    GIT_OBJECT_DIRECTORY="$2" GIT_ALTERNATE_OBJECT_DIRECTORIES="$1/objects" git pack-objects -q --stdout |
    git index-pack --stdin >/dev/null
fi
if [ "$3" ]; then git -c core.hooksPath=/dev/null update-ref --no-deref -m 'orchestra: out of the sandbox' "$3" "$4" ${5:+"$5"}; fi
"""
HOLD = ".sandbox.lock"  # git takes it for a lock of its own, and for no branch
PUT_TRIES = 5
HEX = frozenset(b"0123456789abcdef")


class Repository:
    """The repository of one worktree, as it was before the agent could touch the worktree."""

    def __init__(self, worktree: str, scratch: str) -> None:
        self.worktree = os.path.realpath(worktree)
        self.private = scratch + "/git"
        self.branch = self.tip = ""
        named = (read_bytes(self.worktree + "/.git") or b"").rstrip(b"\n")
        self.admin = os.path.realpath(os.fsdecode(named[8:])) if named.startswith(b"gitdir: /") else ""
        above, name = os.path.split(os.path.dirname(self.admin))
        self.common = above if name == "worktrees" and os.path.isdir(above + "/objects") else ""

    def show(self, ground: Ground) -> None:
        """Gives the repository its parts. Where refs are not files it can only be read."""
        if not self.common:
            return
        ground.add("rw", self.worktree)
        ground.add("ro", self.worktree + "/.git")
        ground.add("ro", self.common)
        if os.path.isdir(self.common + "/reftable"):
            return
        ground.add("rw", self.admin)
        for name in ("gitdir", "commondir"):
            ground.add("ro", "%s/%s" % (self.admin, name))
        self._objects(ground)
        head = (read_bytes(self.admin + "/HEAD") or b"").decode("ascii", "replace").strip()
        if head.startswith("ref: refs/heads/") and ".." not in head:
            self._branch(ground, head[5:])

    def _objects(self, ground: Ground) -> None:
        """New ones on top, those of the repository below: git calls that an alternate."""
        for name in ("", "/objects", "/objects/info", "/objects/pack", "/base"):
            os.mkdir(self.private + name, 0o700)
        base = self.private + "/base"
        with open(self.private + "/objects/info/alternates", "wb") as file:
            file.write(os.fsencode(base) + b"\n")
        ground.add("private", self.common + "/objects", self.private + "/objects")
        ground.add("show", base, self.common + "/objects")

    def _branch(self, ground: Ground, branch: str) -> None:
        self.branch = branch
        folder, name = os.path.split(branch)
        for kind in ("", "logs/"):
            place, private = "%s/%s%s" % (self.common, kind, folder), self.private + "/" + ("log" if kind else "ref")
            if kind and not os.path.isdir(self.common + "/logs"):
                continue  # it keeps none
            _put_empty(place, name if kind else name + HOLD)
            os.mkdir(private, 0o700)
            content = read_bytes("%s/%s" % (place, name))
            if content is not None:
                with open("%s/%s" % (private, name), "wb") as file:
                    file.write(content)
            ground.add("private", place, private)
        self.tip = self._private_tip()

    def _private_tip(self) -> str:
        """Where the branch is in the sandbox. An agent may have put anything there."""
        path = "%s/ref/%s" % (self.private, os.path.basename(self.branch))
        if os.path.islink(path) or not os.path.isfile(path):
            return ""
        content = (read_bytes(path) or b"").strip()
        return content.decode() if len(content) in (40, 64) and HEX.issuperset(content) else ""

    def taking_over(self) -> list[str]:
        """The command line that brings objects and branch into the repository, or nothing if there is nothing new."""
        objects = self.private + "/objects"
        if self.branch:
            _remove("%s/%s%s" % (self.common, self.branch, HOLD))
        if not self.common or not os.path.isdir(objects):
            return []
        if os.path.lexists(objects + "/info"):
            os.rename(objects + "/info", self.private + "/info")  # whoever can name an alternate can read any repository
        fresh = _plain(objects)
        tip = self._private_tip() if self.branch else ""
        moved = bool(tip) and tip != self.tip
        if not fresh and not moved:
            return []
        return ["/bin/sh", "-c", TAKE_OVER, "sh", self.common, objects if fresh else "", self.branch if moved else "", tip, self.tip]


def _put_empty(folder: str, name: str) -> None:
    """A file, so that git does not remove the folder: with it would go what is laid over it in sandboxes. Of refs it does so when it packs them, of logs
    when the last other branch of the plan goes."""
    for _ in range(PUT_TRIES):
        try:
            os.makedirs(folder, exist_ok=True)
            with open("%s/%s" % (folder, name), "ab"):
                return
        except FileNotFoundError:  # it was removed in between
            continue


def _remove(path: str) -> None:
    """Removes a file that may be gone."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _plain(folder: str) -> int:
    """How many files are in a folder and below it, after all links there were removed: they would lead git to other repositories."""
    count = 0
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.is_symlink():
                os.unlink(entry.path)
            elif entry.is_dir():
                count += _plain(entry.path)
            else:
                count += 1
    return count
