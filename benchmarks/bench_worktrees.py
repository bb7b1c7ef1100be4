"""A hundred worktrees of a repository with 20,000 files at once, against plain `git worktree add`, one after another."""

from __future__ import annotations

import asyncio
import os
import random
import resource
import subprocess
import time
from pathlib import Path

from support import arguments, median, scratch, show, wait_quiet

from orchestra.ids import AttemptId, TaskId
from orchestra.nodes.transport import LocalTransport
from orchestra.workspace import WorkRequest, Workspace
from orchestra.workspaces.calling import MachineOptions
from orchestra.workspaces.machine import MachineWorkspaces, WorkspaceOptions

BAR = 1.0
"""All the time goes to the kernel making files; what can be won is the other cores."""


def git(folder: Path, *parts: str) -> None:
    """Runs git, quietly."""
    subprocess.run(["git", "-C", str(folder), "-c", "user.name=b", "-c", "user.email=b@h", "-c", "gc.auto=0", *parts], check=True)


def repository(folder: Path, files: int) -> Path:
    """A repository of source files of about a kilobyte, packed as a clone is."""
    draw = random.Random(7)
    folder.mkdir(parents=True)
    for number in range(files):
        path = folder / f"d{number // 400}" / f"e{number // 20 % 20}" / f"f{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"line {draw.random()} of {number}\n" for _ in range(draw.randint(10, 50))))
    git(folder, "init", "-q")
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "all")
    git(folder, "repack", "-qad")
    return folder


def cpu() -> float:
    """CPU that ended child processes have used so far, theirs included; it tells more than seconds do on a machine that is busy."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


async def ours(repo: Path, folder: Path, count: int) -> tuple[float, float]:
    """Seconds until all are there, by one request, and CPU."""
    machine = MachineOptions(folder=str(folder))
    work = MachineWorkspaces(LocalTransport(), WorkspaceOptions(machine=machine, owner="bench", parallel=os.cpu_count() or 1))
    started, before = time.perf_counter(), cpu()
    made = await work.prepare([WorkRequest(repo=str(repo), attempt=AttemptId(TaskId(f"{folder.name}/t{n}"), 1)) for n in range(count)])
    took = time.perf_counter() - started, cpu() - before
    failed = [each for each in made if not isinstance(each, Workspace)]
    if failed:
        raise RuntimeError(f"{len(failed)} were not made: {failed[0]}")
    return took


def plain(repo: Path, folder: Path, count: int) -> tuple[float, float]:
    """Seconds for the same number, one after another, and CPU."""
    started, before = time.perf_counter(), cpu()
    for number in range(count):
        git(repo, "worktree", "add", "-q", "-b", f"{folder.name}/t{number}", str(folder / f"t{number}"))
    return time.perf_counter() - started, cpu() - before


def main() -> None:
    options = arguments(__doc__)
    files, count, rounds = (2_000, 20, 1) if options.quick else (20_000, 100, 1)
    busy = wait_quiet()
    own, peer = [], []
    for number in range(rounds):
        with scratch() as base:
            peer.append(plain(repository(base / "peer" / "repo", files), base / "peer" / f"p{number}", count))
        with scratch() as base:
            own.append(asyncio.run(ours(repository(base / "own" / "repo", files), base / "own" / f"o{number}", count)))
    ratio = median([each[0] for each in own]) / median([each[0] for each in peer])
    show(
        "worktrees",
        "s",
        f"<= {BAR} x",
        ratio <= BAR,
        {"ours": f"prepare of {count} attempts in one request", "peer": f"git worktree add, {count} times"},
        ours=median([each[0] for each in own]),
        peer=median([each[0] for each in peer]),
        ratio=ratio,
        cpu={"ours": median([each[1] for each in own]), "peer": median([each[1] for each in peer])},
        worktrees=count,
        files=files,
        busy_before=busy,
    )


if __name__ == "__main__":
    main()
