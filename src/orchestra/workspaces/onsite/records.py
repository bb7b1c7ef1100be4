"""Where the things of one attempt lie in the orchestra's folder, and what is written down about them.

`<folder>/worktrees/<plan>/<task>.<n>` is what the agent sees; `<folder>/records/<plan>/<task>.<n>/` has `record.json` and the index as it was at the start.
The record is written before anything else is made, so that the remains of a killed request are recognised: nobody worked in what was never `ready`.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from typing import Any, Iterator

from orchestra.workspaces.onsite.ground import (
    Git,
    Problem,
    Repository,
    check_part,
    expand,
    is_plain_file,
    private_folder,
    read_json,
    write_json,
)


class Place:
    """One attempt's folders. Names were made by `orchestra.workspaces.names`; they are checked again here."""

    def __init__(self, folder: str, plan: str, task: str) -> None:
        self.folder, self.plan, self.task = folder, check_part(plan), check_part(task)
        self.work = os.path.join(folder, "worktrees", plan, task)
        self.notes = os.path.join(folder, "records", plan, task)
        self.index = os.path.join(self.notes, "index")
        self.manifest = os.path.join(self.notes, "manifest.json")

    def make(self) -> None:
        private_folder(self.folder)
        for kind in ("worktrees", "records"):
            private_folder(self.folder, kind)
            private_folder(self.folder, kind, self.plan)
        private_folder(self.notes)

    def read(self) -> dict[str, Any] | None:
        """Returns the record, None if there is none."""
        found = read_json(os.path.join(self.notes, "record.json"))
        return None if found is None or "kind" not in found else found

    def known(self) -> dict[str, Any]:
        """Returns the record of a workspace that was handed out."""
        found = self.read()
        if found is None or found.get("state") != "ready":
            raise Problem("not-found", "there is no workspace %s/%s in %s" % (self.plan, self.task, self.folder))
        return found

    def write(self, record: dict[str, Any]) -> None:
        write_json(os.path.join(self.notes, "record.json"), record)

    def forget(self) -> None:
        shutil.rmtree(self.notes, ignore_errors=True)

    def set_aside(self) -> str:
        """Takes the working folder out of the way in one step; returns where it is now, nothing if there was none."""
        if not os.path.lexists(self.work):
            return ""
        away = tempfile.mkdtemp(prefix="gone-", dir=private_folder(self.folder, "trash"))
        os.rename(self.work, os.path.join(away, "work"))
        return away

    def throw_away(self) -> None:
        """Removes the working folder: out of the way in one step, then file by file."""
        away = self.set_aside()
        if away:
            remove_tree(away)

    def check_there(self) -> None:
        """Raises if the working folder is gone or no folder any more."""
        if not os.path.lexists(self.work):
            raise Problem(
                "not-found", "the folder %s was removed by somebody else" % self.work, "what was committed is still on its branch"
            )
        if os.path.islink(self.work) or not os.path.isdir(self.work) or os.path.realpath(self.work) != self.work:
            raise Problem("tampered", "%s is not the folder that was made there" % self.work, "look at it; nothing of it was used")


def place_of(request: dict[str, Any]) -> Place:
    """Returns the place that a request is about."""
    return Place(expand(request["folder"]), request["plan"], request["task"])


def places_in(folder: str) -> Iterator[Place]:
    """Yields everything that has a record, in the order of names."""
    top = os.path.join(folder, "records")
    for plan in sorted(os.listdir(top)) if os.path.isdir(top) else []:
        for task in sorted(os.listdir(os.path.join(top, plan))):
            yield Place(folder, plan, task)


def remove_tree(path: str) -> None:
    """Removes a folder of ours, also where an agent took the right to write from its own folders."""
    for parent, folders, _ in os.walk(path):
        for name in folders:
            below = os.path.join(parent, name)
            if not os.path.islink(below):
                os.chmod(below, 0o700)
    shutil.rmtree(path, ignore_errors=True)


def repository_of(git: Git, record: dict[str, Any]) -> Repository:
    """Returns the repository that a record names."""
    if not os.path.isdir(os.path.join(record["common"], "objects")):
        raise Problem("not-found", "the repository %s is gone" % record["common"])
    return Repository(git, record["common"], record["common"], record["repo"], record["prefix"])


def check_git_file(place: Place, record: dict[str, Any]) -> None:
    """Raises if the worktree's `.git` is not the file that was put there, or its other half in the repository is gone."""
    place.check_there()
    git_file = os.path.join(place.work, ".git")
    if not is_plain_file(git_file):
        raise Problem("tampered", "%s was replaced or removed" % git_file, "look at the folder; nothing of it was used")
    with open(git_file, "rb") as file:
        if os.fsdecode(file.read(5000)) != "gitdir: %s\n" % record["admin"]:
            raise Problem("tampered", "%s names another repository now" % git_file, "look at the folder; nothing of it was used")
    back = os.path.join(record["admin"], "gitdir")
    if not is_plain_file(back) or os.path.islink(record["admin"]):
        raise Problem(
            "tampered", "%s is gone from the repository" % record["admin"], "`git worktree repair` in the repository brings it back"
        )
    with open(back, "rb") as file:
        if os.fsdecode(file.read(5000)).rstrip("\n") != git_file:
            raise Problem("tampered", "%s belongs to another worktree" % record["admin"], "look at the folder; nothing of it was used")


def busy(path: str) -> list[int]:
    """Returns processes that stand in a folder, as far as the machine tells (it has /proc)."""
    found = []
    for name in os.listdir("/proc") if os.path.isdir("/proc/self") else []:
        if name.isdigit() and int(name) != os.getpid():
            try:
                where = os.readlink("/proc/%s/cwd" % name)
            except OSError:
                continue
            if where == path or where.startswith(path + "/"):
                found.append(int(name))
    return sorted(found)


def check_idle(place: Place) -> None:
    """Raises if a process is at work in the folder."""
    pids = busy(place.work)
    if pids:
        raise Problem("busy", "process %d works in %s" % (pids[0], place.work), "end it first")


def namespace(repo: Repository, prefix: str, plan: str, owner: str, *, make: bool) -> str:
    """Returns under which name this orchestra keeps the plan's branches here: the plan's, or with a part of its own if another has that.

    To be called with the repository locked when `make` is set.
    """
    check_part(plan)
    for candidate in (plan, "%s.%s" % (plan, check_part(owner)[:8])):
        path = os.path.join(repo.area, "plans", "%s@%s" % (prefix, candidate))
        record = read_json(path)
        if record is not None and record.get("owner") == owner:
            return candidate
        if record is not None:
            continue
        taken = repo.git("for-each-ref", "--count=1", "--format=x", "refs/heads/%s/%s/" % (prefix, candidate)).strip()
        if taken and candidate == plan:
            continue
        if make:
            private_folder(repo.area, "plans")
            write_json(path, {"owner": owner, "plan": plan})
        return candidate
    raise Problem("refused", "two other orchestras use the plan %s in this repository" % plan, "give this one another prefix of branches")
