"""What attempts have changed so far, while they run.

A look only: it takes no lock, and neither the worktree, nor its index, nor the repository is written to. What the worktree says of itself is not asked, as whoever
works there may have changed it; its files are compared with the commit it was made from, in a git directory of our own. Each look has its time.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import threading
from contextlib import contextmanager
from typing import Any, Iterator

from orchestra.workspaces.onsite import copies
from orchestra.workspaces.onsite.ground import Clock, Git, Private, Problem, expand, shown
from orchestra.workspaces.onsite.records import Place, repository_of

BYTES_MAX = 32 << 10
"""Of all paths of one attempt together: they are kept for as long as it runs."""
LISTED_BYTES_MAX = 1 << 20
"""Of what git lists; more is not read."""
NICENESS = 10
"""Those who work there go first."""


class TooLate(Exception):
    """The time for a look is over. No error of the machine: nobody on the way takes it for one."""


def touched(git: Git, request: dict[str, Any]) -> dict[str, Any]:
    """Looks at one attempt after another; each has its own outcome."""
    os.nice(NICENESS)
    return {"results": [_outcome(git, request, attempt) for attempt in request["attempts"]]}


def _outcome(git: Git, request: dict[str, Any], attempt: dict[str, Any]) -> dict[str, Any]:
    try:
        if 1000 * git.clock.left() < request["look_ms"]:
            raise TooLate
        place = Place(expand(request["folder"]), attempt["plan"], attempt["task"])
        return _look(Git(git.program, Clock(request["look_ms"], 0)), place, request["paths_max"])
    except Problem as problem:
        return {"failed": problem.code, "message": problem.message, "hint": problem.hint}
    except TooLate:
        return {"failed": "failed", "message": "there was no time to look at all of it", "hint": ""}
    except OSError as error:
        return {"failed": "failed", "message": "%s: %s" % (error.filename, error.strerror), "hint": ""}


@contextmanager
def _within(limit_s: float) -> Iterator[None]:
    """Breaks off what takes longer. Not for what starts other programs: those have limits of their own."""

    def late(signum: int, frame: object) -> None:
        raise TooLate

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _look(git: Git, place: Place, paths_max: int) -> dict[str, Any]:
    record = place.known()
    place.check_there()
    if record["kind"] == "copy":
        with _within(git.clock.left()):
            changes = copies.compare(place, paths_max)[0]
        names, more = [os.fsencode(path) for path in changes], False
    else:
        names, more = _changed(git, place, record, paths_max)
    paths: list[str] = []
    room = BYTES_MAX
    for name in names[:paths_max]:
        paths.append(shown(name))
        room -= len(paths[-1].encode("utf-8", "replace"))
        if room < 0:
            paths.pop()
            more = True
            break
    return {"paths": sorted(paths), "more": more or len(names) > paths_max, "prefix": record["prefix"]}


def _changed(git: Git, place: Place, record: dict[str, Any], paths_max: int) -> tuple[list[bytes], bool]:
    """Returns the files that differ from the base, those first that were there before, and whether there are others."""
    repo = repository_of(git, record)
    with repo.private(place.folder, work_tree=place.work) as private:
        shutil.copy2(place.index, private.index)
        private.git("read-tree", "--reset", record["base"])
        private.git("update-index", "-q", "--refresh", ok=(0, 1))
        names, cut = _listed(private, "diff-files", "-z", "--name-only", "--ignore-submodules=all")
        if not cut and len(names) <= paths_max:
            created, cut = _listed(private, "ls-files", "-z", "--others", "--exclude-standard")
            names += [name for name in created if not name.endswith(b"/")]
    return names, cut


def _listed(private: Private, *arguments: str) -> tuple[list[bytes], bool]:
    """Returns the names that git lists, and whether there were too many to read."""
    runner = private.repo.runner
    child = runner.start(arguments, private.more, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert child.stdout is not None
    timer = threading.Timer(runner.clock.left(), child.kill)
    timer.start()
    try:
        with child.stdout:
            data = child.stdout.read(LISTED_BYTES_MAX + 1)
        cut = len(data) > LISTED_BYTES_MAX
        if cut:
            child.kill()
        if child.wait() and not cut:
            raise Problem("failed", "git %s did not end well, or not in time" % arguments[0])
    finally:
        timer.cancel()
        child.kill()
        child.wait()
    names = data.split(b"\0")
    return [name for name in names[:-1] if name], cut
