"""What the benchmarks share: peers in environments of their own, a coordinator of ours, figures of the machine, and the one line each prints.

Rules: ours and the peer run in the same run on the same machine, in turns, and the medians are compared. A benchmark prints one JSON line and exits
with 0, met or not: what is done about a figure is decided by whoever reads it (`tests/e2e/test_benchmark_guard.py` for one).
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Final

from orchestra.testing.hosted import Stage, hosted

HERE: Final = Path(__file__).resolve().parent
CACHE: Final = HERE.parent / ".cache"
PEERS: Final = HERE / "peers"

LIBTMUX: Final = "libtmux==0.62.0"
HYPERQUEUE: Final = "hyperqueue==0.27.0"
CAO: Final = "cli-agent-orchestrator==2.5.4"
WFCOMMONS: Final = "wfcommons==1.6"
SAGA: Final = "anrg-saga==2.0.2"

INSTALL_TIMEOUT_S: Final = 900
QUIET_SHARE: Final = 0.15
"""Of the machine that others may use before a measurement begins; above it figures of two cores mean little."""
QUIET_WAIT_S: Final = 20.0


class Unavailable(Exception):
    """A peer cannot be run on this machine; the text says why."""


# ---- peers ------------------------------------------------------------------------------------------------------------------


def peer_python(requirement: str) -> Path:
    """Returns the interpreter of a virtual environment that holds this one requirement, made on first use.

    Raises:
        Unavailable: It cannot be installed here.
    """
    folder = CACHE / f"bench-{requirement.partition('=')[0]}"
    python, mark = folder / "bin" / "python", folder / "installed"
    if python.exists() and mark.exists() and mark.read_text() == requirement:
        return python
    shutil.rmtree(folder, ignore_errors=True)
    base = getattr(sys, "_base_executable", sys.executable)
    for argv in ([base, "-m", "venv", str(folder)], [str(python), "-m", "pip", "install", "--quiet", requirement]):
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=INSTALL_TIMEOUT_S, check=False)
        if done.returncode:
            raise Unavailable(f"{requirement} could not be installed: {done.stdout.decode(errors='replace').strip()[-300:]}")
    mark.write_text(requirement)
    return python


def debian_program(program: str, package: str) -> str:
    """Returns the path of a program, installed as a Debian package if it is missing and this is root.

    Raises:
        Unavailable: It is missing and cannot be installed here.
    """
    found = shutil.which(program)
    if found is None and shutil.which("apt-get") and os.geteuid() == 0:
        environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        for argv in (["apt-get", "update", "-q"], ["apt-get", "install", "-q", "-y", "--no-install-recommends", package]):
            subprocess.run(
                argv, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=INSTALL_TIMEOUT_S, check=False
            )
        found = shutil.which(program)
    if found is None:
        raise Unavailable(f"{program} is not here; install the package {package}")
    return found


def run_peer(
    requirement: str, script: str, *arguments: object, timeout_s: float = 600, environment: Mapping[str, str] | None = None
) -> Any:
    """Runs a script of `benchmarks/peers` with the peer's interpreter; returns the JSON value in the last line it prints."""
    argv = [str(peer_python(requirement)), "-I", str(PEERS / script), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, timeout=timeout_s, env={**os.environ, **(environment or {})}, check=False)
    lines = done.stdout.decode(errors="replace").strip().splitlines()
    if done.returncode or not lines:
        raise Unavailable(f"{script} ended with {done.returncode}: {done.stderr.decode(errors='replace').strip()[-400:]}")
    return json.loads(lines[-1])


# ---- ours -------------------------------------------------------------------------------------------------------------------


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder of our own, on a real disk, that is gone afterwards. Give the peers one as well: `environment={"TMPDIR": ...}`.

    On an ext4 without a journal the kernel does not use the number of a deleted file again for minutes, and to make a file it steps over each such
    number in its block group: what was deleted by whatever ran before slows everything that makes files, by a factor of two here. `chattr +T` has
    ext4 put each folder below into another block group, so that every round begins with a clean one.
    """
    base = CACHE / "bench-scratch"
    base.mkdir(parents=True, exist_ok=True)
    if shutil.which("chattr"):
        subprocess.run(["chattr", "+T", str(base)], stderr=subprocess.DEVNULL, check=False)
    with tempfile.TemporaryDirectory(prefix="run-", dir=base, ignore_cleanup_errors=True) as name:
        yield Path(name)


@asynccontextmanager
async def orchestra(agents: int | None = None, flags: Mapping[str, str] | None = None) -> AsyncIterator[Stage]:
    """A coordinator of ours in this process, with real windows and workers; its books are checked at the end."""
    with scratch() as folder:
        async with hosted(folder / ".orchestra", agents=agents, flags=flags) as stage:
            yield stage


def run(main: Callable[[], Any]) -> Any:
    """Runs a coroutine function to its end."""
    return asyncio.run(main())


# ---- figures ----------------------------------------------------------------------------------------------------------------


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least this share of the values does not exceed."""
    ordered = sorted(values)
    return float(ordered[min(len(ordered) - 1, max(0, -(-int(share * 1000 * len(ordered)) // 1000) - 1))])


def cpu_seconds(pid: int | None = None) -> float:
    """CPU that a process has used so far, its ended children not counted."""
    fields = Path(f"/proc/{pid or os.getpid()}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def resident_bytes(pid: int | None = None) -> int:
    """Memory of a process that is in RAM now."""
    return int(Path(f"/proc/{pid or os.getpid()}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def busy_share(seconds: float = 0.5) -> float:
    """Part of all cores that is in use while this waits."""

    def ticks() -> tuple[int, int]:
        values = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
        return sum(values) - values[3] - values[4], sum(values)

    busy, whole = ticks()
    time.sleep(seconds)
    busy_then, whole_then = ticks()
    return (busy_then - busy) / max(1, whole_then - whole)


def wait_quiet() -> float:
    """Waits a while for others to leave the machine alone; returns the share they use in the end."""
    deadline = time.monotonic() + QUIET_WAIT_S
    while (share := busy_share()) > QUIET_SHARE and time.monotonic() < deadline:
        pass
    return round(share, 2)


def machine() -> dict[str, Any]:
    """What this ran on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), platform.processor()
    )
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "cores": os.cpu_count(),
        "cpu": model,
        "memory_gib": round(memory / 2**30, 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "tmux": _version(["tmux", "-V"]),
        "load_1m": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def _version(argv: list[str]) -> str:
    try:
        return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()
    except OSError:
        return "missing"


# ---- the line ---------------------------------------------------------------------------------------------------------------


def arguments(description: str, *extra: tuple[str, dict[str, Any]]) -> argparse.Namespace:
    """Returns the command line: `--quick` for a small run, and what the benchmark adds."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a small run, for a look and for the regression guard")
    for name, options in extra:
        parser.add_argument(name, **options)
    return parser.parse_args()


def show(name: str, unit: str, bar: str, met: bool | None, commands: Mapping[str, str], **figures: Any) -> None:
    """Prints the line. `met` is None where the bar could not be looked at: `why` then says why."""
    values = {"name": name, "unit": unit, **figures, "bar": bar, "met": met, "commands": dict(commands)}
    values.update(date=time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), machine=machine())
    print(json.dumps(_rounded(values), ensure_ascii=False), flush=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list | tuple) else value
