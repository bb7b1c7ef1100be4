"""Bringing a verified attempt onto its plan's branch: computed from objects, without any checkout, and made true by one update of one ref."""

from __future__ import annotations

from typing import Any

from orchestra.workspaces.onsite.ground import Git, Private, Problem, Repository, check_sha, expand, find, shown
from orchestra.workspaces.onsite.records import namespace
from orchestra.workspaces.onsite.worktrees import checked_out, merged_branch, starting_tip


def merge(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Merges one commit. Nothing has changed unless `result` is `merged`.

    `hold`: where the result is not what was verified, its commit is made and the branch stays. `proven`: that commit, for the branch to move to.
    """
    source = expand(request["repo"])
    repo = find(git, source)
    if repo is None:
        raise Problem("refused", "%s is no repository; there is nothing to merge into" % source, "take the patch that was collected")
    with repo.locked("merge"):
        space = namespace(repo, request["prefix"], request["plan"], request["owner"], make=True)
        target = merged_branch(request["prefix"], space)
        old, new = repo.ref(target), repo.ref(check_sha(request["head"]))
        facts: dict[str, Any] = {"branch": target, "old": old, "head": old, "trivial": True, "conflicts": [], "messages": []}
        if request["expected"] is not None and request["expected"] != old:
            return dict(facts, result="stale")
        if not new:
            raise Problem("not-found", "the repository has no commit %s" % request["head"], "fetch it back first")
        there = checked_out(repo).get(target)
        if there:
            raise Problem("refused", "%s is checked out in %s" % (target, there), "`git switch --detach` there, so that it can move")
        with repo.private(expand(request["folder"]), attributes=old) as private:
            facts.update(_join(private, old, new, request))
        if facts["result"] == "merged" and not facts["trivial"] and request["hold"]:
            return dict(facts, result="held")
        if facts["result"] == "merged":
            try:
                repo.update_ref(target, facts["head"], old, "orchestra: merge %s" % request["task"])
            except Problem as problem:
                if problem.code != "stale":
                    raise
                facts.update(result="stale", head=old, trivial=True)
        elif facts["result"] == "stale":
            facts.update(head=old)
        return facts


def _join(private: Private, old: str, new: str, request: dict[str, Any]) -> dict[str, Any]:
    if old and private.is_ancestor(new, old):
        return {"result": "nothing"}
    if not old or private.is_ancestor(old, new):
        return {"result": "merged", "head": new}
    if request["proven"]:
        proven = check_sha(request["proven"])
        parents = private.git("rev-list", "--parents", "--max-count=1", proven).decode().split()
        return {"result": "merged" if parents == [proven, old, new] else "stale", "head": proven, "trivial": False}
    tree, entries, messages, clean = merged_tree(private, old, new)
    if clean:
        trivial = tree == private.tree(new)  # the others' changes are all in it too
        return {"result": "merged", "head": private.commit(tree, [old, new], request["message"]), "trivial": trivial, "messages": messages}
    conflicts = [_conflict(private, tree, path, entries[path], request) for path in list(entries)[: request["conflict_files_max"]]]
    return {"result": "conflict", "conflicts": conflicts, "conflict_files": len(entries), "trivial": False, "messages": messages}


def merged_tree(private: Private, old: str, new: str) -> tuple[str, dict[bytes, dict[str, tuple[str, str]]], list[str], bool]:
    """Returns what `parse_merge_tree` does for a merge of two commits, and whether it is clean."""
    code, out, err = private.ask("merge-tree", "--write-tree", "-z", "--messages", old, new)
    if code not in (0, 1) or not out:
        if "unknown option" in err or "usage:" in err:
            raise Problem(
                "refused", "git there is older than 2.38 and cannot merge without a checkout", "install a newer git on that machine"
            )
        raise Problem("failed", "git merge-tree failed: %s" % err.strip()[-500:])
    return (*parse_merge_tree(out), code == 0)


def parse_merge_tree(out: bytes) -> tuple[str, dict[bytes, dict[str, tuple[str, str]]], list[str]]:
    """Returns the tree, the sides of each conflicted path (stage -> mode and blob) and what git says of conflicts."""
    tokens = out.split(b"\0")
    entries: dict[bytes, dict[str, tuple[str, str]]] = {}
    at = 1
    while at < len(tokens) and tokens[at]:
        facts, _, path = tokens[at].partition(b"\t")
        mode, blob, stage = facts.decode().split(" ")
        entries.setdefault(path, {})[stage] = (mode, blob)
        at += 1
    messages = []
    at += 1
    while at < len(tokens) and tokens[at].isdigit():
        paths = int(tokens[at])
        kind, text = tokens[at + 1 + paths : at + 3 + paths]
        if kind.startswith(b"CONFLICT"):
            messages.append(shown(text).strip())
        at += 3 + paths
    return tokens[0].decode(), entries, messages


def _conflict(private: Private, tree: str, path: bytes, sides: dict[str, tuple[str, str]], request: dict[str, Any]) -> dict[str, Any]:
    limit = request["conflict_bytes_max"]
    found = {name: _side(private, sides.get(stage), limit) for name, stage in (("base", "1"), ("ours", "2"), ("theirs", "3"))}
    listed = private.git("ls-tree", "-z", tree, "--", path.decode("utf-8", "surrogateescape"))
    blob = listed.split(b"\0")[0].partition(b"\t")[0].decode().split(" ")
    merged = _side(private, (blob[0], blob[2]), limit) if len(blob) == 3 else None
    return dict(found, path=shown(path), merged=merged)


def _side(private: Private, entry: tuple[str, str] | None, limit: int) -> dict[str, Any] | None:
    """Returns one version of a file, None if that side has none."""
    if entry is None:
        return None
    mode, blob = entry
    if mode == "160000":
        return {"mode": mode, "text": blob, "cut": False, "binary": False}
    data, cut = private.head_of("cat-file", "blob", blob, limit=limit)
    binary = b"\0" in data
    return {"mode": mode, "text": "" if binary else data.decode("utf-8", "backslashreplace"), "cut": cut, "binary": binary}


def branch_tip(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Tells where a plan's branch is, and in `start` the same if its attempts start there; they start from HEAD where that is empty."""
    repo = find(git, expand(request["repo"]))
    if repo is None:
        return {"branch": "", "head": "", "start": ""}
    space = namespace(repo, request["prefix"], request["plan"], request["owner"], make=False)
    target = merged_branch(request["prefix"], space)
    tip = repo.ref(target)
    return {"branch": target, "head": tip, "start": starting_tip(repo, request["plan"], tip)}


__all__ = ["Repository", "branch_tip", "merge", "merged_tree", "parse_merge_tree"]
