"""The merge queue: results of many attempts that end at once, each collected, committed and merged into the plan's branch, one after another.

Each task changes a file of its own in a worktree of a repository. Ours: from the moment all may end to the last merge, everything in the ledger. The peer is
what a person types for the same: `git add`, `git commit` and `git worktree remove` in each worktree, `git merge` in a checkout of the plan's branch.
"""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

from bench_worktrees import git, repository
from support import arguments, median, scratch, show, wait_quiet

from orchestra.core.model import TaskStatus
from orchestra.testing.hosted import hosted

WAIT = "until [ -e {gate} ]; do sleep 0.05; done; echo {name} > new-{name}.txt"


async def ours(base: Path, files: int, count: int) -> float:
    """Merges a second."""
    repo, gate = repository(base / "repo", files), base / "gate"
    tasks = [{"id": f"t{number}", "run": WAIT.format(gate=gate, name=f"t{number}"), "isolation": "worktree"} for number in range(count)]
    async with hosted(base / ".orchestra", agents=count) as stage:
        plan = await stage.submit(json.dumps({"name": "p", "tasks": tasks}), repo)
        await stage.wait(lambda state: all(task.status is TaskStatus.RUNNING for task in state.tasks.values()) or None)
        began = time.perf_counter()
        gate.touch()
        status = await stage.wait_plan(plan)
        took = time.perf_counter() - began
        if status != "completed":
            raise RuntimeError(f"the plan is {status}")
    return count / took


def by_hand(base: Path, files: int, count: int) -> float:
    """Merges a second."""
    repo = repository(base / "repo", files)
    git(repo, "worktree", "add", "-q", "-b", "merged", str(base / "merged"))
    for number in range(count):
        git(repo, "worktree", "add", "-q", "-b", f"t{number}", str(base / f"t{number}"))
        (base / f"t{number}" / f"new-t{number}.txt").write_text("new\n")
    began = time.perf_counter()
    for number in range(count):
        git(base / f"t{number}", "add", "-A")
        git(base / f"t{number}", "commit", "-qm", f"t{number}")
        git(base / "merged", "merge", "-q", "--no-ff", "--no-edit", f"t{number}")
        git(repo, "worktree", "remove", str(base / f"t{number}"))
    return count / (time.perf_counter() - began)


def main() -> None:
    options = arguments(__doc__ or "")
    files, count, rounds = (500, 10, 1) if options.quick else (2_000, 50, 3)
    busy = wait_quiet()
    own, peer = [], []
    for _ in range(rounds):
        with scratch() as base:
            peer.append(by_hand(base, files, count))
        with scratch() as base:
            own.append(asyncio.run(ours(base, files, count)))
    show(
        "merging",
        "merges/s",
        "none",
        None,
        {"ours": f"a plan of {count} tasks in worktrees", "peer": f"git add, commit, merge, worktree remove, {count} times"},
        ours=median(own),
        peer=median(peer),
        ratio=median(own) / median(peer),
        merges=count,
        files=files,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
