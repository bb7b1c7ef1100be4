"""Forgetting refs that keep work nobody merged, when they are old: only when a person asks for it, and only what this orchestra put there."""

from __future__ import annotations

import os
import time
from typing import Any

from orchestra.workspaces.onsite.ground import Git, Problem, Repository, find, read_json

KINDS = ("refs/orchestra/salvage/", "refs/orchestra/results/")


def prune(git: Git, request: dict[str, Any]) -> list[dict[str, Any]]:
    """Says of each ref in these repositories what becomes of it and why; `dry_run` changes nothing."""
    found: list[dict[str, Any]] = []
    seen = set()
    for folder in request["repos"]:
        path = os.path.realpath(os.path.expanduser(folder))
        repo = find(git, path) if os.path.isdir(path) else None
        if repo is not None and repo.common not in seen:
            seen.add(repo.common)
            with repo.locked("prune"):
                found += [_judge(repo, request, line) for line in _refs(repo)]
    return found


def _refs(repo: Repository) -> list[list[str]]:
    listed = repo.git("for-each-ref", "--format=%(refname) %(objectname) %(committerdate:unix)", *(kind.rstrip("/") for kind in KINDS))
    return [line.split(" ") for line in listed.decode("utf-8", "replace").splitlines()]


def _judge(repo: Repository, request: dict[str, Any], line: list[str]) -> dict[str, Any]:
    ref, commit, committed = line
    age_ms = max(0, int((time.time() - _made(repo, ref, committed)) * 1000))
    entry: dict[str, Any] = {"repo": repo.common, "ref": ref, "commit": commit, "age_ms": age_ms, "action": "keep"}
    space = next(ref[len(kind) :] for kind in KINDS if ref.startswith(kind)).partition("/")[0]
    record = read_json(os.path.join(repo.area, "plans", "%s@%s" % (request["prefix"], space))) or {}
    if record.get("owner") != request["owner"]:
        return dict(entry, why="another orchestra may have put it there")
    if record.get("plan") in request["live"]:
        return dict(entry, why="its plan is not over")
    if age_ms < request["age_ms"]:
        return dict(entry, why="young")
    if not request["dry_run"]:
        try:
            repo.update_ref(ref, "", commit, "orchestra: forgotten")
        except Problem as problem:
            return dict(entry, why=problem.message)
    return dict(entry, action="remove", why="old")


def _made(repo: Repository, ref: str, committed: str) -> float:
    """Returns when a ref was put there: its log says so, where git keeps logs as files; else when its commit was made."""
    try:
        return os.stat(os.path.join(repo.common, "logs", ref)).st_mtime
    except OSError:
        return float(committed or 0)
