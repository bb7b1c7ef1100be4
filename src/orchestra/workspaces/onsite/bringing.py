"""A plan's branch into a branch of the user's: only where somebody asked for it, only without a conflict, and with a checkout that has nothing to lose."""

from __future__ import annotations

import os
from typing import Any

from orchestra.workspaces.onsite.ground import Git, Private, Problem, Repository, expand, find, shown
from orchestra.workspaces.onsite.merging import merged_tree
from orchestra.workspaces.onsite.records import namespace
from orchestra.workspaces.onsite.worktrees import IN_PROGRESS, checked_out, merged_branch


def bring(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Merges. Nothing has changed unless `result` is `merged`."""
    source = expand(request["repo"])
    repo = find(git, source)
    if repo is None:
        raise Problem("refused", "%s is no repository" % source, "its tasks left patches, under results")
    target = _branch(repo, request)
    with repo.locked("bring"):
        space = namespace(repo, request["prefix"], request["plan"], request["owner"], make=False)
        old, new = repo.ref(target), repo.ref(merged_branch(request["prefix"], space))
        facts: dict[str, Any] = {"repo": repo.top or repo.common, "branch": target, "old": old, "head": old}
        if not old:
            raise Problem("not-found", "there is no branch %s" % request["branch"], "make it first: `git branch %s`" % request["branch"])
        with repo.private(expand(request["folder"]), attributes=old) as private:
            facts.update(_joined(private, old, new, "Merge plan %s\n" % request["plan"]))
        if facts["result"] == "merged":
            facts["checkout"] = checked_out(repo).get(target, "")
            _move(git, repo, target, facts, expand(request["folder"]))
        return facts


def _branch(repo: Repository, request: dict[str, Any]) -> str:
    name = "refs/heads/" + str(request["branch"])
    if repo.ask("check-ref-format", name)[0]:
        raise Problem("bad-input", "%r cannot be a branch" % request["branch"][:80], "give its short name, such as main")
    if name.startswith("refs/heads/%s/" % request["prefix"]):
        raise Problem("refused", "%s is one of the orchestra's own branches" % request["branch"], "name one of yours")
    return name


def _joined(private: Private, old: str, new: str, message: str) -> dict[str, Any]:
    if not new or private.is_ancestor(new, old):
        return {"result": "nothing"}
    if private.is_ancestor(old, new):
        return {"result": "merged", "head": new, "forward": True}
    tree, entries, _, clean = merged_tree(private, old, new)
    if not clean:
        return {"result": "conflict", "files": [shown(path) for path in entries]}
    return {"result": "merged", "head": private.commit(tree, [old, new], message)}


def _move(git: Git, repo: Repository, target: str, facts: dict[str, Any], folder: str) -> None:
    """Moves the branch; where it is checked out, its files first, as git itself does, and back again if the branch has gone elsewhere."""
    old, new, why = facts["old"], facts["head"], "orchestra: merge into %s" % facts["branch"]
    if not facts["checkout"]:
        repo.update_ref(target, new, old, why)
        return
    there = find(git, facts["checkout"])
    if there is None:
        raise Problem("refused", "%s is checked out in %s, which is not to be found" % (target, facts["checkout"]), "`git worktree prune`")
    _check_plain(there, facts["checkout"])
    index = os.path.join(there.git_dir, "index")
    with there.private(folder, work_tree=facts["checkout"], index=index) as private:
        private.ask("update-index", "-q", "--refresh")
        changed = private.git("diff-files", "-z", "--name-only", "--ignore-submodules=all")
        changed += private.git("diff-index", "-z", "--cached", "--name-only", "--ignore-submodules=all", old)
        if changed:
            name = shown(changed.split(b"\0")[0])
            raise Problem("refused", "%s has changes that are not committed: %s" % (facts["checkout"], name), "commit or stash them first")
        code, _, err = private.ask("read-tree", "-m", "-u", old, new)
        if code:
            raise Problem("refused", "the files in %s cannot follow: %s" % (facts["checkout"], err.strip()[-300:]), "move them away")
        try:
            repo.update_ref(target, new, old, why)
        except Problem:
            private.git("read-tree", "-m", "-u", new, old)
            raise


def _check_plain(there: Repository, where: str) -> None:
    """Raises where files of a checkout could not simply be written."""
    for name, what in sorted(IN_PROGRESS.items()):
        if os.path.lexists(os.path.join(there.git_dir, name)):
            raise Problem("refused", "a %s is not finished in %s" % (what, where), "finish or abort it first")
    if there.settings().get("core.sparsecheckout", "").lower() == "true":
        raise Problem("refused", "%s is a sparse checkout" % where, "`git merge` the plan's branch there yourself")
