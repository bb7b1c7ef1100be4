"""Checkouts of merges that are not in yet, for their checks: made anew each time, and removed with all that the checks left in them.

They lie beside the worktrees of attempts. No attempt's can have such a name: theirs end in a number.
"""

from __future__ import annotations

from typing import Any

from orchestra.workspaces.onsite.ground import Git, Problem, Repository, check_sha, expand, find
from orchestra.workspaces.onsite.records import Place, remove_tree, repository_of
from orchestra.workspaces.onsite.worktrees import Start, begin, check_disk, checked_out, drop_admin, fill

MARK = ".proof"


def attempt_of(task: str) -> str:
    """Returns the attempt whose merge a checkout is of, from the names of either."""
    return task[: -len(MARK)] if task.endswith(MARK) else task


def _place(request: dict[str, Any]) -> Place:
    return Place(expand(request["folder"]), request["plan"], request["task"] + MARK)


def checkout(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Makes the checkout of a commit; one that is there is removed before."""
    place, source = _place(request), expand(request["repo"])
    repo = find(git, source)
    if repo is None:
        raise Problem("not-found", "%s is no repository" % source)
    check_disk(place.folder, request["disk_free_bytes_min"])
    remove(git, place)
    with repo.locked("checkout"):
        record = begin(Start(repo, request), place, {"base": check_sha(request["commit"])})
    return fill(repo, place, record)


def drop(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Removes a checkout, if it is there."""
    return {"removed": remove(git, _place(request)), "kept": ""}


def remove(git: Git, place: Place) -> bool:
    """Removes a checkout and what was left in it: nobody worked there, and its commit is made again at need."""
    record = place.read()
    if record is None:
        return False
    repo: Repository = repository_of(git, record)
    with repo.locked("remove"):
        away = place.set_aside()
        drop_admin(repo, place, record)
        tip = repo.ref(record["branch"])
        if tip and record["branch"] not in checked_out(repo):
            repo.update_ref(record["branch"], "", tip, "orchestra: let go")
        place.forget()
    if away:
        remove_tree(away)
    return True
