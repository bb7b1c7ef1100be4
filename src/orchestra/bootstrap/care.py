"""Looking after a root: is everything there that is needed, and what to do about a ledger."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

import msgspec

from orchestra.agents.registry import adapters
from orchestra.bootstrap.wiring import ledger_options, node_specs
from orchestra.clocks.system import SystemClock
from orchestra.codec.events import decode
from orchestra.errors import NotFound, OrchestraError
from orchestra.ledger import StoredEvent
from orchestra.ledgers import care
from orchestra.ledgers.folder import refuse_network_folder
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.nodes.probe import sandbox_remedy
from orchestra.root import Root
from orchestra.settings import Settings
from orchestra.stage.sandbox_probe import problem_with
from orchestra.views import EventView, HealthCheck

TMUX_MIN: Final = (3, 2)
PYTHON_MIN: Final = (3, 11)
DISK_FREE_BYTES_MIN: Final = 1 << 30
"""Below this a fleet of agents fills the disk within minutes."""


def doctor(root: Path, settings: Settings) -> tuple[HealthCheck, ...]:
    """Looks at everything an orchestra needs on this machine; changes nothing."""
    place = Root(root)
    checks = [_python(), _program("tmux", ["tmux", "-V"], TMUX_MIN), _program("git", ["git", "--version"], (2, 0))]
    checks += [
        _attempt("settings", lambda: f"{place.config}" if place.config.exists() else "defaults"),
        _attempt("root", lambda: _writable(place.path)),
    ]
    checks += [_attempt("file system", lambda: _file_system(place.path)), _disk(place.path), _files()]
    checks += [_attempt("private folder for sockets", lambda: str(place.runtime_folder()))]
    if any(spec.remote for spec in node_specs(settings)):
        checks.append(_ssh_program())
    checks.append(_sandbox())
    checks += [_kind(name, adapter.programs) for name, adapter in adapters().items()]
    if (place.ledger / "ledger.db").exists():
        checks.append(_attempt("ledger", lambda: _ledger(place)))
    return tuple(checks)


def _python() -> HealthCheck:
    version = ".".join(map(str, sys.version_info[:3]))
    return HealthCheck(
        "python", sys.version_info >= PYTHON_MIN, version, "" if sys.version_info >= PYTHON_MIN else "install Python 3.11 or newer"
    )


def _program(name: str, argv: list[str], least: tuple[int, int]) -> HealthCheck:
    remedy = f"install {name} {least[0]}.{least[1]} or newer (Debian: apt-get install {name})"
    if shutil.which(name) is None:
        return HealthCheck(name, False, "not found on PATH", remedy)
    said = subprocess.run(argv, capture_output=True, text=True, timeout=10, check=False).stdout.strip()
    digits = "".join(char if char.isdigit() or char == "." else " " for char in said).split()
    parts = tuple(int(part) for part in (digits[0] if digits else "0").split(".")[:2] if part)
    return HealthCheck(name, parts >= least, said, "" if parts >= least else remedy)


def _attempt(name: str, look: Callable[[], str]) -> HealthCheck:
    try:
        return HealthCheck(name, True, look())
    except OrchestraError as error:
        return HealthCheck(name, False, error.message, error.hint)
    except OSError as error:
        return HealthCheck(name, False, str(error), "check its permissions")


def _writable(path: Path) -> str:
    folder = path
    while not folder.exists():
        folder = folder.parent
    if not os.access(folder, os.W_OK | os.X_OK):
        raise PermissionError(f"{folder} is not writable")
    return str(path)


def _file_system(path: Path) -> str:
    folder = path
    while not folder.exists():
        folder = folder.parent
    refuse_network_folder(folder)
    return "local"


def _disk(path: Path) -> HealthCheck:
    while not path.exists():
        path = path.parent
    free = shutil.disk_usage(path).free
    enough = free >= DISK_FREE_BYTES_MIN
    return HealthCheck("disk", enough, f"{free / 2**30:.1f} GB free", "" if enough else "make room, or choose another --root")


def _files() -> HealthCheck:
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return HealthCheck("open files", soft >= 512, f"limit {soft}", "" if soft >= 512 else "ulimit -n 4096")


def _ssh_program() -> HealthCheck:
    path = shutil.which("ssh")
    remedy = "install openssh-client: windows on other machines are shown with it (`orchestra agent attach`); all else works without"
    return HealthCheck("ssh program", path is not None, path or "not found on PATH", "" if path else remedy)


def _sandbox() -> HealthCheck:
    path = shutil.which("bwrap")
    problem = "bwrap is not installed" if path is None else problem_with(path)
    return HealthCheck("sandbox", not problem, problem or str(path), sandbox_remedy(problem) if problem else "")


def _kind(name: str, programs: tuple[str, ...]) -> HealthCheck:
    missing = [program for program in programs if shutil.which(program) is None]
    return HealthCheck(
        f"agent kind {name}",
        not missing,
        f"missing: {', '.join(missing)}" if missing else "installed",
        f"install {missing[0]}" if missing else "",
    )


def _ledger(place: Root) -> str:
    ledger = SqliteLedger.open_readonly(place.ledger, ledger_options(place))
    try:
        return f"{ledger.tail().seq} events"
    finally:
        ledger.close()


class LedgerCare:
    """What a person does to a root's ledger while no coordinator runs (verify, show and export also while one does)."""

    def __init__(self, place: Root) -> None:
        if not (place.ledger / "ledger.db").exists():
            raise NotFound(f"there is no ledger in {place.path}", field="root", hint="name the root with --root")
        self._place = place
        self._options = ledger_options(place)

    def verify(self) -> care.VerifyReport:
        """Reads everything and checks it."""
        return care.verify(self._place.ledger, self._options)

    def plan_repair(self) -> care.RepairPlan:
        """Says exactly what a repair would do."""
        return care.plan_repair(self._place.ledger, self._options)

    def repair(self, plan: care.RepairPlan, *, accept_data_loss: bool) -> Path | None:
        """Does it; returns where the damaged files are kept."""
        return care.repair(self._place.ledger, plan, accept_data_loss, clock=SystemClock(), options=self._options)

    def export(self, out: Path) -> int:
        """Writes every event as a JSON line; returns how many."""
        return care.export(self._place.ledger, out, self._options)

    def show(self, after: int, limit: int) -> Iterator[EventView]:
        """Yields events after a sequence number."""
        ledger = SqliteLedger.open_readonly(self._place.ledger, self._options)
        try:
            for stored in ledger.read(after, limit):
                yield _view(stored)
        finally:
            ledger.close()

    @property
    def last_seq(self) -> int:
        """The last event's sequence number."""
        ledger = SqliteLedger.open_readonly(self._place.ledger, self._options)
        try:
            return ledger.tail().seq
        finally:
            ledger.close()


def _view(stored: StoredEvent) -> EventView:
    return EventView(stored.seq, stored.at_ms, msgspec.Raw(msgspec.json.encode(decode(stored.body))))


def ledger_care(root: Path) -> LedgerCare:
    """Returns the care of a root's ledger. Raises NotFound if it has none."""
    return LedgerCare(Root(root))


def backup(root: Path, target: Path) -> int:
    """Copies the ledger into one file, also while a coordinator runs; returns how many events are in it."""
    place = Root(root)
    LedgerCare(place)
    return care.backup(place.ledger, target, ledger_options(place)).seq


def restore(archive: Path, root: Path, *, force: bool) -> Path | None:
    """Puts a backup in the place of a root's ledger; returns where the replaced one is kept, if there was one."""
    place = Root(root)
    place.prepare()
    return care.restore(archive, place.ledger, force=force, clock=SystemClock(), options=ledger_options(place))
