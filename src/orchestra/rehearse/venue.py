"""Where a rehearsal happens: a folder with a root, a home and copies of the workspaces, and an environment without a key in it.

<folder>/root      the orchestra's root, with settings that say that it rehearses
<folder>/work/...  copies of the workspaces: a clone of a repository's HEAD, a copy of a folder, or a new repository
<folder>/home      HOME of everything that is started
<folder>/<plan>    the plan as it is rehearsed
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, NamedTuple

from orchestra.core.model import TaskSpec
from orchestra.errors import BadInput, PortFailed
from orchestra.rehearse.script import CLAUDE, CODEX

KEY: Final = "rehearsal-no-key"
KEYS: Final = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY")
KEPT: Final = ("TERM", "COLORTERM", "COLUMNS", "LINES", "NO_COLOR", "TZ", "TMPDIR", "LOGNAME", "USER")
"""What of the caller's environment everything here gets; the rest may hold keys."""
SYSTEM_PATH: Final = "/usr/local/bin:/usr/bin:/bin:/usr/local/sbin:/usr/sbin:/sbin"
CHECKOUT_PROGRAMS: Final = Path(".cache") / "agents" / "bin"
MOCK: Final = "aimock"
NODE: Final = "node"
GIT_TIMEOUT_SECONDS: Final = 300
QUIET_GIT: Final = ("-c", "core.hooksPath=/dev/null", "-c", "init.templateDir=", "-c", "advice.detachedHead=false")

Json = dict[str, Any]


class Programs(NamedTuple):
    """The programs that a rehearsal with real CLIs needs."""

    folders: tuple[str, ...]
    """For PATH."""
    mock: tuple[str, ...]
    """Command line of the mock model server."""
    missing: tuple[str, ...]


class Place(NamedTuple):
    """A workspace's stand-in."""

    original: str
    here: Path
    repository: bool


def find_programs(kinds: Iterable[str], starts: Sequence[Path]) -> Programs:
    """Returns where the programs are: on PATH, or in a checkout that one of the folders lies in."""
    checkouts = [str(each) for start in starts for parent in (start, *start.parents) if (each := parent / CHECKOUT_PROGRAMS).is_dir()]
    path = os.pathsep.join([*checkouts, os.environ.get("PATH", SYSTEM_PATH)])
    found = {name: shutil.which(name, path=path) for name in (*kinds, MOCK, NODE)}
    missing = tuple(name for name, place in found.items() if place is None)
    folders = tuple(dict.fromkeys(str(Path(place).parent) for place in found.values() if place is not None))
    mock = (str(found[NODE]), os.path.realpath(str(found[MOCK])))
    return Programs(folders, mock, missing)


def environment(folder: Path, folders: Sequence[str], python: Path) -> dict[str, str]:
    """Returns the environment of everything that is started: no key of anybody's, and a home of its own.

    Args:
        folder: The rehearsal's.
        folders: Where programs are looked for first.
        python: The interpreter that `python3` means in checks.
    """
    path = os.pathsep.join([*folders, str(python.parent), os.environ.get("PATH", SYSTEM_PATH), SYSTEM_PATH])
    kept = {name: os.environ[name] for name in KEPT if name in os.environ}
    return {**kept, "PATH": path, "HOME": str(folder / "home"), "LANG": "C.UTF-8", "SHELL": "/bin/sh", **dict.fromkeys(KEYS, KEY)}


def settings_text(address: str, kinds: Iterable[str]) -> str:
    """Returns the settings of the rehearsal's root; an address makes the real CLIs ask it. They may do everything, also where tasks share a folder: it is a
    copy made for the rehearsal, and the recorded model does what the scenario says."""
    known = {
        CLAUDE: {"base_url": address, "allow_root": True, "max_retries": 1, "permission_mode": "bypassPermissions"},
        CODEX: {"base_url": f"{address}/v1", "request_max_retries": 1, "stream_max_retries": 1, "sandbox": "bypass"},
    }
    kinds_used = {kind: known[kind] for kind in kinds}
    return json.dumps({"orchestra": {"rehearsal": True, "kinds": kinds_used}}, indent=2) + "\n"


def prepare(folder: Path) -> None:
    """Makes the folders.

    Raises:
        BadInput: The folder is there and not empty.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if any(folder.iterdir()):
            raise BadInput(f"{folder} is not empty", field="folder", hint="name a new folder")
        for name in ("home", "work", "root/config"):
            (folder / name).mkdir(parents=True)
    except OSError as exc:
        raise BadInput(f"{folder} cannot be made: {exc.strerror}", field="folder", hint="name another") from exc


def copy_workspaces(drafts: Sequence[TaskSpec], folder: Path) -> tuple[Place, ...]:
    """Makes a stand-in for each workspace of the tasks.

    Raises:
        PortFailed: git or the file system refused.
    """
    wanted: dict[str, bool] = {}
    for draft in drafts:
        if draft.workspace:
            wanted[draft.workspace] = wanted.get(draft.workspace, False) or draft.isolated
    places = []
    for number, (original, isolated) in enumerate(wanted.items(), 1):
        name = Path(original).name or "workspace"
        target = folder / "work" / (name if number == 1 else f"{name}-{number}")
        places.append(_copy(Path(original), target, isolated=isolated))
    return tuple(places)


def _copy(original: Path, target: Path, *, isolated: bool) -> Place:
    top = _top_of(original) if original.is_dir() else None
    try:
        if top is not None:
            below = original.resolve().relative_to(top.resolve())
            _git("clone", "--quiet", "--no-hardlinks", "--template=", str(top), str(target))
            _git("-C", str(target), "remote", "remove", "origin")
            return Place(str(original), target / below, True)
        if original.exists():
            shutil.copytree(original, target, symlinks=True, ignore=shutil.ignore_patterns(".codex", ".git"))
            return Place(str(original), target, False)
        target.mkdir()
        if isolated:
            _git("init", "--quiet", "--template=", str(target))
        return Place(str(original), target, isolated)
    except (OSError, shutil.Error) as exc:
        raise PortFailed(f"{original} cannot be copied: {exc}", hint="rehearse a plan with a smaller workspace") from exc


def _top_of(folder: Path) -> Path | None:
    """Returns the repository that a folder is tracked in, if it has a commit; a folder that is ignored there is none of its parts."""
    found = _git("-C", str(folder), "rev-parse", "--show-toplevel", may_fail=True).strip()
    if not found or not _git("-C", str(folder), "rev-parse", "--verify", "--quiet", "HEAD", may_fail=True).strip():
        return None
    top = Path(found)
    if folder.resolve() == top.resolve():
        return top
    tracked = _git("-C", str(folder), "ls-files", "--", ".", may_fail=True).strip()
    return top if tracked else None


def files_there(place: Place) -> list[str]:
    """Returns the files that are in a repository's HEAD."""
    if not place.repository:
        return []
    return _git("-C", str(place.here), "ls-tree", "-r", "--name-only", "-z", "HEAD", may_fail=True).split("\0")[:-1]


def merged(place: Place, plan: str) -> tuple[str, int] | None:
    """Returns the branch with all verified work, and how many files the plan's tasks made or changed in it; nothing if there is none."""
    branch = f"orchestra/{plan}/merged"
    if not place.repository or not _git("-C", str(place.here), "rev-parse", "--verify", "--quiet", branch, may_fail=True):
        return None
    before = set(_git("-C", str(place.here), "ls-tree", "-r", "-z", "HEAD", may_fail=True).split("\0"))
    after = _git("-C", str(place.here), "ls-tree", "-r", "-z", branch).split("\0")
    return branch, sum(bool(entry) and entry not in before for entry in after)


def _git(*arguments: str, may_fail: bool = False) -> str:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    try:
        done = subprocess.run(
            ["git", *QUIET_GIT, *arguments],
            env={**clean, "GIT_TERMINAL_PROMPT": "0"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=GIT_TIMEOUT_SECONDS,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as exc:
        raise PortFailed(f"git cannot be run: {exc}", hint="`orchestra doctor` looks for what is missing") from exc
    if done.returncode:
        if may_fail:
            return ""
        raise PortFailed(f"git {arguments[0]}: {done.stderr.strip()[-500:]}", hint="`orchestra doctor` looks for what is missing")
    return done.stdout


def write_plan(folder: Path, name: str, value: Mapping[str, Any]) -> Path:
    """Writes the plan as it is rehearsed; returns where."""
    path = folder / f"{name}.json"
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False), encoding="utf-8")
    return path
