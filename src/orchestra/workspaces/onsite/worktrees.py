"""Worktrees of attempts: making them, and taking out what was done in them."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Iterator

from orchestra.workspaces.onsite import copies
from orchestra.workspaces.onsite.ground import Clock, Git, Private, Problem, Repository, check_part, check_sha, expand, find, shown
from orchestra.workspaces.onsite.records import Place, busy, check_git_file, namespace, place_of

NO_PLAN = "_"
"""What stands for a plan where a task belongs to none, as in `orchestra.workspaces.names`."""
IN_PROGRESS = {
    "MERGE_HEAD": "merge",
    "CHERRY_PICK_HEAD": "cherry-pick",
    "REVERT_HEAD": "revert",
    "rebase-merge": "rebase",
    "rebase-apply": "rebase",
}


def branch_of(prefix: str, space: str, task: str) -> str:
    """Returns the full name of an attempt's branch."""
    return "refs/heads/%s/%s/%s" % (check_part(prefix), check_part(space), check_part(task))


def merged_branch(prefix: str, space: str) -> str:
    """Returns the full name of a plan's branch. No attempt's can be it: theirs end in a number."""
    return branch_of(prefix, space, "merged")


# --- making -------------------------------------------------------------------------------------------------------------


def prepare(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Makes the workspaces of several attempts on one folder. Each has its own outcome."""
    folder, source = expand(request["folder"]), expand(request["repo"])
    repo = find(git, source)
    top = source if repo is None else repo.top or repo.common
    if folder == top or folder.startswith(top + "/"):
        raise Problem(
            "refused",
            "workspaces in %s would lie inside %s" % (folder, top),
            "work in a folder of its own, or let the tasks share this one (`isolation: shared`)",
        )
    check_disk(folder, request["disk_free_bytes_min"])
    results: list[Any] = [None] * len(request["attempts"])
    if repo is None:
        for number, attempt in enumerate(request["attempts"]):
            results[number] = _outcome(
                lambda attempt=attempt: copies.prepare(Place(folder, attempt["plan"], attempt["task"]), source, request, attempt["repairs"])
            )
        return {"results": results}
    jobs = {}
    with ThreadPoolExecutor(max(1, min(len(results), request["parallel"]))) as pool:
        with repo.locked("prepare"):
            start = Start(repo, request)
            for number, attempt in enumerate(request["attempts"]):
                place = Place(folder, attempt["plan"], attempt["task"])
                results[number] = _outcome(lambda attempt=attempt, place=place: begin(start, place, attempt))
                if results[number].get("state") == "preparing":  # its files are written while the next ones begin
                    jobs[number] = pool.submit(_outcome, lambda place=place, record=results[number]: fill(repo, place, record))
        for number, job in jobs.items():
            results[number] = job.result()
    return {"results": results}


class Start:
    """What all attempts of one request begin from, asked for once. To be made with the repository locked."""

    def __init__(self, repo: Repository, request: dict[str, Any]) -> None:
        self.repo, self.request, self.prefix = repo, request, request["prefix"]
        listed = repo.git("for-each-ref", "--format=%(objectname) %(refname)", "refs/heads/%s/" % check_part(self.prefix))
        self.tips = {name: sha for sha, _, name in (line.partition(" ") for line in listed.decode("utf-8", "replace").splitlines())}
        self.admins = (
            set(os.listdir(os.path.join(repo.common, "worktrees"))) if os.path.isdir(os.path.join(repo.common, "worktrees")) else set()
        )
        self._spaces: dict[str, str] = {}
        self._bases: dict[tuple[str, str], str] = {}
        repo.content_settings()  # read before threads share it

    def space(self, plan: str) -> str:
        if plan not in self._spaces:
            self._spaces[plan] = namespace(self.repo, self.prefix, plan, self.request["owner"], make=True)
        return self._spaces[plan]

    def base(self, wanted: str, plan: str) -> str:
        merged = merged_branch(self.prefix, self.space(plan))
        key = (wanted, "" if wanted else merged)
        if key not in self._bases:
            self._bases[key] = _base(self.repo, wanted, starting_tip(self.repo, plan, self.tips.get(merged, "")))
        return self._bases[key]


def _outcome(make: Any) -> dict[str, Any]:
    try:
        found: dict[str, Any] = make()
    except Problem as problem:
        return {"failed": problem.code, "message": problem.message, "hint": problem.hint}
    except OSError as error:
        code = "disk" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "failed"
        return {"failed": code, "message": "%s: %s" % (error.filename, error.strerror), "hint": ""}
    return found


def check_disk(folder: str, free_min: int) -> None:
    """Raises if fewer bytes are free where the folder is, or will be."""
    there = folder
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    disk = os.statvfs(there)
    free = disk.f_bavail * disk.f_frsize
    if free < free_min:
        raise Problem(
            "disk", "%d bytes are free at %s, fewer than %d" % (free, there, free_min), "free some space, or let old workspaces go"
        )


def begin(start: Start, place: Place, attempt: dict[str, Any]) -> dict[str, Any]:
    """Makes branch and worktree without files, with the repository locked. Returns the record; one that is `ready` was there before."""
    repo, prefix, space = start.repo, start.prefix, start.space(place.plan)
    branch = branch_of(prefix, space, place.task)
    base = start.base(attempt["base"], place.plan)
    found = place.read()
    if found is not None and found["state"] == "ready":
        if (found["base"] != base and attempt["base"]) or found["common"] != repo.common:
            raise Problem(
                "refused", "%s/%s has a workspace with another base already" % (place.plan, place.task), "use a new attempt number"
            )
        check_git_file(place, found)
        return dict(found, fresh=False)
    place.make()
    if start.admins or os.path.lexists(place.work):
        _clear_remains(repo, place, found)
    tree = ""
    wanted = attempt.get("repairs")
    if wanted is not None:
        tree = _earlier_tree(start, Place(place.folder, place.plan, wanted["task"]), space, wanted)
        base = wanted["base"] if tree else base
    _free_branch(repo, branch, start.tips.get(branch, ""), base, space, place.task)
    record: dict[str, Any] = {
        "kind": "git",
        "state": "preparing",
        "repo": expand(start.request["repo"]),
        "common": repo.common,
        "prefix": repo.prefix,
        "plan": place.plan,
    }
    record.update(task=place.task, space=space, branch=branch, base=base, path=place.work, made=int(time.time()), branches=prefix)
    record.update(repairs=bool(tree), tree=tree)
    place.write(record)
    short = branch[len("refs/heads/") :]
    how = [place.work, short] if branch in start.tips else ["--no-track", "-b", short, place.work, base]
    repo.git("worktree", "add", "--quiet", "--no-checkout", *how)
    with open(os.path.join(place.work, ".git"), "rb") as file:
        record["admin"] = os.fsdecode(file.read()).rstrip("\n")[len("gitdir: ") :]
    place.write(record)
    return record


def starting_tip(repo: Repository, plan: str, tip: str) -> str:
    """Returns the tip of a plan's branch if attempts start from there, and nothing if they start from HEAD.

    The branch of the tasks of no plan has no end: once all of it is in HEAD, the next ones begin with what was committed since.
    """
    if plan != NO_PLAN or not tip:
        return tip
    head = repo.ref("HEAD", here=True)
    return "" if head and repo.ask("merge-base", "--is-ancestor", tip, head)[0] == 0 else tip


def _base(repo: Repository, wanted: str, merged: str) -> str:
    """Returns the commit to start from: the named one, the plan's branch, HEAD, or a first commit of ours where there is none at all."""
    if wanted:
        found = repo.ref(check_sha(wanted))
        if not found:
            raise Problem("not-found", "the repository has no commit %s" % wanted, "send it there first")
        return found
    base = merged or repo.ref("HEAD", here=True)
    if base:
        return base
    tree = repo.git("mktree").decode().strip()
    when = {"GIT_AUTHOR_DATE": "@0 +0000", "GIT_COMMITTER_DATE": "@0 +0000", "GIT_DIR": repo.common}
    code, out, err = repo.runner.run(("commit-tree", tree, "-m", "Start of an empty repository"), when)
    if code:
        raise Problem("failed", "the first commit could not be made: %s" % err.strip()[-300:])
    return out.decode().strip()


def _earlier_tree(start: Start, earlier: Place, space: str, wanted: dict[str, Any]) -> str:
    """Returns the tree of files that an earlier attempt left: out of its place, else from what was kept of it. Nothing where neither is to be had."""
    repo, base = start.repo, wanted["base"] and start.repo.ref(check_sha(wanted["base"]))
    if not base:
        return ""
    record = earlier.read()
    if record is not None and record["state"] == "ready" and record["kind"] == "git" and record["common"] == repo.common:
        try:
            check_git_file(earlier, record)
        except Problem:
            record = None  # what was done to it is told when it is let go
        if record is not None and record["base"] == base:
            with repo.private(earlier.folder, work_tree=earlier.work) as private:
                return look(private, earlier, record, repo.ref(record["branch"]), start.request["file_bytes_max"]).tree
    if wanted["kept"] == "":
        return _tree_of(repo, base)
    for ref in (wanted["kept"] or "", _last_kept(repo, space, earlier.task), "refs/orchestra/results/%s/%s" % (earlier.plan, earlier.task)):
        found = repo.ref(ref) if ref.startswith("refs/orchestra/") else ""
        if found and repo.ask("merge-base", "--is-ancestor", base, found)[0] == 0:
            return _tree_of(repo, found)
    return ""


def _tree_of(repo: Repository, commit: str) -> str:
    return repo.git("rev-parse", "--verify", "--end-of-options", commit + "^{tree}").decode().strip()


def _clear_remains(repo: Repository, place: Place, found: dict[str, Any] | None) -> None:
    """Removes what a killed request left. Where there is a folder without a record of ours, nothing is touched."""
    if not os.path.lexists(place.work):
        drop_admin(repo, place, found)
        return
    if found is None or found["state"] != "preparing":
        raise Problem("refused", "%s is there already, and nobody knows why" % place.work, "move it away")
    place.throw_away()
    drop_admin(repo, place, found)


def drop_admin(repo: Repository, place: Place, record: dict[str, Any] | None) -> None:
    """Removes the repository's note of a worktree of ours whose folder is gone."""
    top = os.path.join(repo.common, "worktrees")
    names = [os.path.basename(record["admin"])] if record and record.get("admin") else os.listdir(top) if os.path.isdir(top) else []
    for name in names:
        try:
            with open(os.path.join(top, name, "gitdir"), "rb") as file:
                mine = os.fsdecode(file.read()).rstrip("\n") == os.path.join(place.work, ".git")
        except OSError:
            continue
        if mine:
            shutil.rmtree(os.path.join(top, name), ignore_errors=True)


def _free_branch(repo: Repository, branch: str, tip: str, base: str, space: str, task: str) -> None:
    """Sees to it that the branch is not there or is at the base; what it had is kept under a salvage ref."""
    if not tip or tip == base:
        return
    if branch in checked_out(repo):
        raise Problem("refused", "%s is checked out in %s" % (branch, checked_out(repo)[branch]), "let go of it there")
    keep(repo, space, task, tip)
    repo.update_ref(branch, base, tip, "orchestra: a new start; the earlier work is under refs/orchestra/salvage")


def _kept_refs(space: str, task: str) -> Iterator[str]:
    """Yields the salvage refs of an attempt, of which the first are used first."""
    name = "refs/orchestra/salvage/%s/%s" % (space, task)
    yield name
    for count in itertools.count(2):
        yield "%s-%d" % (name, count)


def _last_kept(repo: Repository, space: str, task: str) -> str:
    last = ""
    for ref in _kept_refs(space, task):
        if not repo.ref(ref):
            break
        last = ref
    return last


def keep(repo: Repository, space: str, task: str, commit: str) -> str:
    """Puts a commit under a salvage ref of the attempt, unless it is under one, and returns the ref."""
    for ref in _kept_refs(space, task):
        there = repo.ref(ref)
        if not there:
            repo.update_ref(ref, commit, "", "orchestra: kept")
        if not there or there == commit:
            return ref
    raise AssertionError("there are always more")


def checked_out(repo: Repository) -> dict[str, str]:
    """Returns the branches that are checked out somewhere, with their folders."""
    found, where = {}, ""
    for line in repo.git("worktree", "list", "--porcelain", "-z").decode("utf-8", "replace").split("\0"):
        word, _, rest = line.partition(" ")
        if word == "worktree":
            where = rest
        elif word == "branch":
            found[rest] = where
    return found


def fill(repo: Repository, place: Place, record: dict[str, Any]) -> dict[str, Any]:
    """Writes the files, without the repository's filters; many of these run at once."""
    index = os.path.join(record["admin"], "index")
    with repo.private(place.folder, work_tree=place.work, index=index) as private:
        private.git("read-tree", "--reset", "-u", record["base"])
    if os.path.lexists(place.index):
        os.unlink(place.index)
    if record["tree"]:
        # In an index of our own: that of the worktree stays at the base, so that what the earlier attempt did are changes as if they had been made here.
        with repo.private(place.folder, work_tree=place.work) as private:
            shutil.copy2(index, private.index)
            private.git("read-tree", "-m", "-u", record["base"], record["tree"])
    # Git replaces its index, never writes into it: a second name keeps the first one, from which later changes are told without reading every file.
    try:
        os.link(index, place.index)
    except OSError:
        shutil.copy2(index, place.index)
    os.makedirs(os.path.join(place.work, record["prefix"]), exist_ok=True)
    record = dict(record, state="ready")
    place.write(record)
    return dict(record, fresh=True)


# --- taking out ---------------------------------------------------------------------------------------------------------


class Snapshot:
    """What a workspace holds: a tree, the commit it stands on, and what was seen on the way."""

    def __init__(self) -> None:
        self.tree = self.parent = self.head = ""
        self.notes: list[str] = []
        self.skipped: list[str] = []
        self.loose = ""
        """A commit that the agent's HEAD named and that does not descend from the base."""


def look(private: Private, place: Place, record: dict[str, Any], branch_tip: str, file_bytes_max: int, *, trust: bool = True) -> Snapshot:
    """Reads the files of a worktree into a tree. `trust`: the worktree's own HEAD may be believed."""
    seen = Snapshot()
    repo = private.repo
    if trust:
        _read_head(repo, private, record, seen)
        if branch_tip and branch_tip != seen.parent and not private.is_ancestor(branch_tip, seen.parent) and not seen.loose:
            seen.loose = branch_tip
            seen.notes.append("the attempt's branch has commits that its folder has not; they are kept")
    else:
        seen.parent = seen.head = branch_tip or record["base"]
    if os.path.exists(place.index):
        shutil.copy2(place.index, private.index)  # with its time, by which git tells files that changed in the same instant
    private.git("read-tree", "--reset", seen.parent)
    listed = private.git("diff-files", "-z", "--name-status", "--ignore-submodules=all").split(b"\0")
    changed = list(zip(listed[0::2], listed[1::2]))
    extra = private.git("ls-files", "-z", "--others", "--exclude-standard").split(b"\0")
    names = [name for status, name in changed if status != b"D"]
    for name in extra:
        if name.endswith(b"/"):
            seen.skipped.append(shown(name))
            seen.notes.append("%s is a repository of its own and was left out" % shown(name))
        elif name:
            names.append(name)
    taken = []
    for name in dict.fromkeys(names):
        size = _size(os.path.join(os.fsencode(place.work), name))
        if size > file_bytes_max:
            seen.skipped.append(shown(name))
            seen.notes.append("%s has %d bytes, more than %d, and was left out" % (shown(name), size, file_bytes_max))
        else:
            taken.append(name)
    gone = [b"0 %s\t%s\0" % (repo.zero.encode(), name) for status, name in changed if status == b"D"]
    if gone:
        private.git("update-index", "-z", "--index-info", stdin=b"".join(gone))
    if taken:
        private.git("update-index", "-z", "--add", "--remove", "--replace", "--stdin", stdin=b"\0".join(taken) + b"\0")
    seen.tree = private.git("write-tree").decode().strip()
    return seen


def _size(path: bytes) -> int:
    try:
        return os.lstat(path).st_size
    except OSError:
        return 0


def _read_head(repo: Repository, private: Private, record: dict[str, Any], seen: Snapshot) -> None:
    inside = {"GIT_CONFIG_GLOBAL": "/dev/null", "GIT_DIR": record["admin"]}
    code, out, _ = repo.runner.run(("rev-parse", "--verify", "--quiet", "HEAD^{commit}"), inside)
    seen.head = out.decode().strip() if code == 0 else ""
    name = repo.runner.run(("symbolic-ref", "--quiet", "HEAD"), inside)[1].decode("utf-8", "replace").strip()
    if name != record["branch"]:
        seen.notes.append("the agent left its branch: HEAD is %s" % (name or "detached"))
    if seen.head and private.is_ancestor(record["base"], seen.head):
        seen.parent = seen.head
    else:
        seen.parent, seen.loose = record["base"], seen.head
        seen.notes.append("the agent's history does not descend from its base; its files were taken, its history is kept beside them")
    for name, what in sorted(IN_PROGRESS.items()):
        if os.path.lexists(os.path.join(record["admin"], name)):
            seen.notes.append("a %s was not finished" % what)
    if os.path.lexists(os.path.join(record["admin"], "index.lock")):
        seen.notes.append("a git was killed there: it left %s" % os.path.join(record["admin"], "index.lock"))


def collect(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Commits what the agent left and tells what changed since the base."""
    place = place_of(request)
    record = place.known()
    if record["kind"] == "copy":
        return copies.collect(place, record, request)
    check_git_file(place, record)
    repo = Repository(git, record["common"], record["common"], record["repo"], record["prefix"])
    tip = repo.ref(record["branch"])
    with repo.private(place.folder, work_tree=place.work) as private:
        seen = look(private, place, record, tip, request["file_bytes_max"])
        head = seen.parent
        if private.tree(seen.parent) != seen.tree:
            head = private.commit(seen.tree, [seen.parent], request["message"])
        kept = keep(repo, record["space"], record["task"], seen.loose) if seen.loose else ""
        if head != tip:
            repo.update_ref(record["branch"], head, tip, "orchestra: collected")
        _hand_back_index(private, record, seen)
        found = changes(private, record["base"], head, request)
    found.update(head=head, base=record["base"], tree=seen.tree, notes=seen.notes, skipped=seen.skipped, salvaged=kept)
    found["commits"] = _count(repo, record["base"], head)
    return found


def _hand_back_index(private: Private, record: dict[str, Any], seen: Snapshot) -> None:
    """Lets the worktree's own index follow its branch, so that work there can go on. Not while a git has it, or where the agent went elsewhere."""
    target = os.path.join(record["admin"], "index")
    if os.path.lexists(target + ".lock") or any("HEAD is" in note or "not finished" in note for note in seen.notes):
        return
    shutil.copy2(private.index, target + ".orchestra")
    os.replace(target + ".orchestra", target)


def _count(repo: Repository, base: str, head: str) -> int:
    return int(repo.git("rev-list", "--count", "%s..%s" % (base, head)))


def changes(private: Private, base: str, head: str, request: dict[str, Any]) -> dict[str, Any]:
    """Returns what lies between two commits: files by kind, lines, and the patch up to a limit."""
    raw = private.git("diff-tree", "-r", "-z", "--no-renames", "--name-status", base, head).split(b"\0")
    kinds: dict[str, list[str]] = {"A": [], "D": [], "M": []}
    for status, name in zip(raw[0::2], raw[1::2]):
        kinds["M" if status not in (b"A", b"D") else status.decode()].append(shown(name))
    added = removed = 0
    for line in private.git("diff-tree", "-r", "-z", "--no-renames", "--numstat", base, head).split(b"\0"):
        plus, _, rest = line.partition(b"\t")
        minus = rest.partition(b"\t")[0]
        added += int(plus) if plus.isdigit() else 0
        removed += int(minus) if minus.isdigit() else 0
    wanted = ("diff-tree", "-p", "--binary", "--full-index", "--no-renames", "--no-ext-diff", "--no-textconv", base, head)
    patch, cut = private.head_of(*wanted, limit=request["patch_bytes_max"])
    return {
        "created": kinds["A"],
        "changed": kinds["M"],
        "deleted": kinds["D"],
        "lines_added": added,
        "lines_removed": removed,
        "patch": patch,
        "patch_cut": cut,
    }


# --- looking ------------------------------------------------------------------------------------------------------------


def inspect(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Tells what a folder is, without changing anything in it."""
    folder = expand(request["folder"])
    version = git.run(("version",), {})[1].decode().strip()
    repo = find(git, folder)
    facts: dict[str, Any] = {"folder": folder, "git_version": version.replace("git version ", ""), "is_git": repo is not None}
    if repo is None:
        return facts
    head = repo.ref("HEAD", here=True)
    name = repo.ask("symbolic-ref", "--quiet", "HEAD", here=True)[1].decode("utf-8", "replace").strip()
    counts = dict(line.split(": ") for line in repo.git("count-objects", "-v").decode().splitlines() if ": " in line)
    hooks = os.path.join(repo.common, "hooks")
    facts.update(
        toplevel=repo.top, common=repo.common, prefix=repo.prefix, bare=repo.bare, head=head, branch=name, object_format=repo.object_format
    )
    facts["size_bytes"] = 1024 * (int(counts.get("size", 0)) + int(counts.get("size-pack", 0)))
    facts["shallow"] = os.path.exists(os.path.join(repo.common, "shallow"))
    facts["partial"] = any(key.endswith(".promisor") or key == "extensions.partialclone" for key in repo.settings())
    facts["hooks"] = sorted(name for name in os.listdir(hooks) if not name.endswith(".sample")) if os.path.isdir(hooks) else []
    facts["programs"] = sorted(key for key in repo.settings() if _names_a_program(key))
    facts["locks"] = sorted(name for name in os.listdir(repo.common) if name.endswith(".lock"))
    facts["worktrees"] = repo.git("worktree", "list", "--porcelain").count(b"worktree ")
    if not repo.bare:
        facts.update(_look_at_checkout(repo, expand(request["private"])))
    return facts


def _names_a_program(key: str) -> bool:
    last = key.rpartition(".")[2]
    kinds = ("filter.", "diff.", "merge.", "alias.", "credential.", "gpg.")
    names = ("clean", "smudge", "process", "textconv", "command", "driver", "helper", "program")
    whole = ("core.hookspath", "core.fsmonitor", "core.sshcommand", "core.editor", "core.pager", "core.askpass", "sequence.editor")
    return key in whole or key.startswith("alias.") or (key.startswith(kinds) and last in names)


def _look_at_checkout(repo: Repository, folder: str) -> dict[str, Any]:
    index = os.path.join(repo.git_dir, "index")
    with repo.private(folder, work_tree=repo.top, index=index) as private:
        code, out, _ = private.ask("ls-files", "-z", "--stage")
        if code:  # a split index, or a damaged one
            return {"files": -1, "dirty_files": -1, "submodules": []}
        entries = [entry for entry in out.split(b"\0") if entry]
        changed = set(private.git("diff-files", "-z", "--name-only", "--ignore-submodules=all").split(b"\0"))
        changed.update(private.git("ls-files", "-z", "--others", "--exclude-standard", "--directory", "--no-empty-directory").split(b"\0"))
        head = repo.ref("HEAD", here=True)
        if head:
            changed.update(private.git("diff-index", "-z", "--cached", "--name-only", "--ignore-submodules=all", head).split(b"\0"))
    modules = [shown(entry.partition(b"\t")[2]) for entry in entries if entry.startswith(b"160000 ")]
    return {"files": len(entries), "dirty_files": len(changed - {b""}), "submodules": modules}


def make_git(request: dict[str, Any]) -> Git:
    """Returns git with the limits that a request names."""
    return Git(request["git"], Clock(request["timeout_ms"], request["lock_ms"]))


__all__ = ["busy", "changes", "checked_out", "collect", "inspect", "keep", "look", "make_git", "prepare"]
