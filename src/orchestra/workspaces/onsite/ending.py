"""Letting go of workspaces. Whatever is not in the plan's branch yet is under a ref before its folder goes."""

from __future__ import annotations

import json
import os
import time
from typing import Any

from orchestra.workspaces.onsite import copies, proofs
from orchestra.workspaces.onsite.ground import Git, Problem, Repository, expand, private_folder
from orchestra.workspaces.onsite.records import Place, busy, check_git_file, check_idle, place_of, places_in, remove_tree, repository_of
from orchestra.workspaces.onsite.worktrees import checked_out, drop_admin, keep, look, merged_branch

NO_LIMIT = 1 << 62
LEFT_BEHIND_S = 86_400
"""No request takes a day."""


class State:
    """What would be lost with a workspace."""

    def __init__(self) -> None:
        self.there = True
        self.dirty = False
        self.merged = True
        """Its branch is in the plan's branch, or has nothing of its own."""
        self.commit = ""
        """Holds everything, the uncommitted too."""
        self.tip = ""
        self.loose = ""
        self.skipped: list[str] = []


def weigh(repo: Repository, place: Place, record: dict[str, Any]) -> State:
    """Finds out what a worktree holds, however it was left."""
    state = State()
    state.tip = state.commit = repo.ref(record["branch"])
    trust = True
    try:
        check_git_file(place, record)
    except Problem as problem:
        if problem.code == "not-found":
            state.there = False
        elif os.path.islink(place.work) or not os.path.isdir(place.work):
            raise
        trust = False
    with repo.private(place.folder, work_tree=place.work if state.there else "") as private:
        if state.there:
            seen = look(private, place, record, state.tip, NO_LIMIT, trust=trust)
            state.loose, state.skipped, state.commit = seen.loose, seen.skipped, seen.parent
            if private.tree(seen.parent) != seen.tree:
                state.dirty = True
                state.commit = private.commit(seen.tree, [seen.parent], "What %s/%s left uncommitted" % (place.plan, place.task))
        merged = repo.ref(merged_branch(record["branches"], record["space"])) or record["base"]
        state.merged = not state.tip or private.is_ancestor(state.tip, merged) or state.tip == record["base"]
        in_plan = bool(state.commit) and (state.commit == record["base"] or private.is_ancestor(state.commit, merged))
    if in_plan and not state.loose:
        state.commit = ""
    return state


def _secure(repo: Repository, record: dict[str, Any], state: State) -> str:
    """Puts what is nowhere else under a salvage ref; returns it, or nothing."""
    if state.loose:
        keep(repo, record["space"], record["task"], state.loose)
    return keep(repo, record["space"], record["task"], state.commit) if state.commit else ""


def salvage(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Puts all that a workspace holds under a salvage ref, and leaves it as it is."""
    place = place_of(request)
    record = place.known()
    if record["kind"] == "copy":
        raise Problem("refused", "%s is a private copy; it has no refs" % place.work, "collect it, or let it go: changed files are kept")
    repo = repository_of(git, record)
    with repo.locked("salvage"):
        return {"kept": _secure(repo, record, weigh(repo, place, record))}


def release(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Removes a workspace whose work is collected; its branch stays while it is not merged."""
    return _let_go(git, request, discard=False)


def discard(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Removes a workspace and its branch; what is not merged is kept under a salvage ref."""
    return _let_go(git, request, discard=True)


def _let_go(git: Git, request: dict[str, Any], *, discard: bool) -> dict[str, Any]:
    place = place_of(request)
    record = place.read()
    if record is None:
        return {"kept": "", "removed": False}
    check_idle(place)
    if record["kind"] == "copy":
        return _let_copy_go(place, record, discard=discard)
    repo = repository_of(git, record)
    away = kept = ""
    with repo.locked("remove"):
        if record["state"] == "ready":
            state = weigh(repo, place, record)
            _check_nothing_skipped(place, state)
            if not discard and (state.dirty or state.loose):
                raise Problem("refused", "%s has work that is not collected" % place.work, "collect or discard it")
            kept = _secure(repo, record, state) if discard else ""
            away = place.set_aside()
            drop_admin(repo, place, record)
            if state.tip and (discard or state.merged) and record["branch"] not in checked_out(repo):
                repo.update_ref(record["branch"], "", state.tip, "orchestra: let go")
        else:
            away = place.set_aside()
            drop_admin(repo, place, record)
        place.forget()
    if away:  # many files take seconds; nobody has to wait for the repository meanwhile
        remove_tree(away)
    return {"kept": kept, "removed": True}


def _check_nothing_skipped(place: Place, state: State) -> None:
    if state.skipped:
        raise Problem("refused", "%s holds repositories of its own: %s" % (place.work, ", ".join(state.skipped)[:300]), "move them away")


def _let_copy_go(place: Place, record: dict[str, Any], *, discard: bool) -> dict[str, Any]:
    kept = ""
    with copies.settled(place.folder):
        if record["state"] == "ready" and os.path.isdir(place.work) and not os.path.islink(place.work):
            changes, skipped, _ = copies.compare(place)
            if (changes or skipped) and not discard:
                raise Problem("refused", "%s has changes" % place.work, "collect them, then discard it: changed files are kept")
            if changes:
                kept = _keep_files(place, changes)
        away = place.set_aside()
        place.forget()
    if away:
        remove_tree(away)
    return {"kept": kept, "removed": True}


def _keep_files(place: Place, changes: dict[str, str]) -> str:
    """Moves the changed files of a copy to the salvage folder, with the list of all changes."""
    top = private_folder(next(folder for folder in copies.salvage_folders(place) if not os.path.lexists(folder)))
    for path in sorted(changes):
        if changes[path] != "deleted":
            target = os.path.join(top, "files", path)
            os.makedirs(os.path.dirname(target), exist_ok=True)
            os.rename(os.path.join(place.work, path), target)
    with open(os.path.join(top, "changes.json"), "w", encoding="ascii") as file:
        json.dump(changes, file)
    return top


# --- tidying ------------------------------------------------------------------------------------------------------------


def disk_bytes(path: str) -> int:
    """Returns the room that a folder takes on the disk."""
    total = 0
    for parent, folders, files in os.walk(path):
        for name in folders + files:
            try:
                total += os.lstat(os.path.join(parent, name)).st_blocks * 512
            except OSError:
                continue
    return total


def gc(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Lets workspaces go that are old, and the oldest ones while all take more than the quota; says which and why. `dry_run` changes nothing."""
    folder = expand(request["folder"])
    live = {tuple(each) for each in request["live"]}
    found = []
    for place in places_in(folder):
        record = place.read() or {}
        found.append((int(record.get("made", 0)), place, record, disk_bytes(place.work)))
    found.sort(key=lambda each: (each[0], each[1].plan, each[1].task))
    total = sum(each[3] for each in found)
    entries, now, freed = [], time.time(), 0
    for made, place, record, size in found:
        old = (now - made) * 1000 >= request["age_ms"]
        entry: dict[str, Any] = {
            "plan": place.plan,
            "task": place.task,
            "bytes": size,
            "age_ms": max(0, int((now - made) * 1000)),
            "kept": "",
        }
        if (place.plan, proofs.attempt_of(place.task)) in live:
            entry.update(action="keep", why="its attempt is not over")
        elif (now - made) * 1000 < request["fresh_ms"]:
            entry.update(action="keep", why="it was made just now")
        elif busy(place.work):
            entry.update(action="keep", why="process %d works in it" % busy(place.work)[0])
        elif not old and total - freed <= request["quota_bytes"]:
            entry.update(action="keep", why="young, and there is room")
        else:
            entry.update(_tidy(git, place, record, "old" if old else "over the quota", dry_run=request["dry_run"]))
            freed += size if entry["action"] == "remove" else 0
        entries.append(entry)
    if not request["dry_run"]:
        _sweep(folder, now)
    return {"entries": entries, "total_bytes": total, "freed_bytes": freed}


def _sweep(folder: str, now: float) -> None:
    """Removes what killed requests left: halves of removed folders, and git directories of ours that nobody can be using any more."""
    for kind, age_s in (("trash", 0), ("private", LEFT_BEHIND_S)):
        top = os.path.join(folder, kind)
        for name in os.listdir(top) if os.path.isdir(top) else []:
            path = os.path.join(top, name)
            if now - os.lstat(path).st_mtime >= age_s:
                remove_tree(path)


def _tidy(git: Git, place: Place, record: dict[str, Any], why: str, *, dry_run: bool) -> dict[str, Any]:
    request = {"folder": place.folder, "plan": place.plan, "task": place.task}
    try:
        if proofs.attempt_of(place.task) != place.task:
            if not dry_run:
                proofs.remove(git, place)
            return {"action": "remove", "why": "a checkout for checks that are over"}
        what = _what_is_in_it(git, place, record)
        if what is None:
            return {"action": "keep", "why": "it holds repositories of its own"}
        if dry_run:
            return {"action": "remove", "why": why + what}
        # An unmerged branch stays where it is: only uncommitted work needs a ref of its own before the folder goes.
        done = discard(git, request) if what else release(git, request)
    except Problem as problem:
        return {"action": "keep", "why": problem.message}
    return {"action": "remove", "why": why + what, "kept": done["kept"]}


def _what_is_in_it(git: Git, place: Place, record: dict[str, Any]) -> str | None:
    if record.get("state") != "ready":
        return ""
    if record["kind"] == "copy":
        changed = os.path.isdir(place.work) and copies.compare(place)[0]
        return "; its changed files are kept in the salvage folder" if changed else ""
    state = weigh(repository_of(git, record), place, record)
    if state.skipped:
        return None
    return "; its uncommitted work is kept under a salvage ref" if state.dirty or state.loose else ""
