"""What the tests of this folder share: an orchestra as real processes, its parts by pid, a plan that writes down what it does, and the checks at the end."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from random import Random
from typing import Any, Final, TypeVar, cast

from orchestra.client import Client
from orchestra.core.state import State
from orchestra.errors import CoordinatorUnreachable, ProtocolBroken
from orchestra.intake.request import StatusParams
from orchestra.ledger import Tail
from orchestra.ledgers import care
from orchestra.ledgers.sqlite import SqliteLedger, SqliteOptions
from orchestra.root import Root
from orchestra.testing.hosted import check_books, end_processes, is_gone, processes_of
from orchestra.usecases import Empty, PlanParams, UseCases
from tests.e2e.command import COMMAND, Shell

T = TypeVar("T")

WAIT_S: Final = 90.0
"""Longest a test waits for anything; a deadline, never a measure."""
LONG: Final = os.environ.get("ORCHESTRA_CHAOS_LONG", "") not in ("", "0")
"""Whether the long mode was asked for: many rounds of everything."""
AGENTS: Final = 8

CONFIG: Final = """
orchestra:
  tasks: {retries: 50, retry_backoff_seconds: 0.01, retry_backoff_max_seconds: 0.05, grace_seconds: 1}
  limits: {losses_max: 100}
  recovery: {max_recovery_attempts: 100}
  monitoring: {health_check_interval: 1, state_snapshot_interval: 1}
  tmux: {command_timeout_seconds: 1}
"""
"""Patience without end, so that a task fails only if something is wrong; and everything that is done now and then, done often."""

_never: Final = threading.Event()


def rounds(usual: int, long: int, variable: str = "ORCHESTRA_CHAOS_ROUNDS") -> int:
    """Returns how often a test repeats itself: what the variable says, else by mode."""
    return int(os.environ.get(variable) or (long if LONG else usual))


def wait_for(condition: Callable[[], T], what: str, *, seconds: float = WAIT_S) -> T:
    """Returns the condition's first true answer; fails with `what` after the deadline."""
    found = wait_a_while(condition, seconds)
    assert found, f"waited {seconds:g} s in vain: {what}"
    return found


def wait_a_while(condition: Callable[[], T], seconds: float) -> T:
    """Returns the condition's first true answer, or its last when the time is over."""
    deadline = time.monotonic() + seconds
    while not (found := condition()) and time.monotonic() < deadline:
        _never.wait(0.01)
    return found


def require(present: object, what: str) -> None:
    """Fails, and does not skip, where the machine lacks what a test is about."""
    assert present, f"this test needs {what}; it fails instead of passing unseen"


def require_root() -> None:
    """Fails where the test may not mount, limit or trace."""
    require(os.geteuid() == 0, "root")


def command(*argv: str | Path, timeout: float = 60) -> str:
    """Runs a program that has to succeed; returns what it printed."""
    done = subprocess.run(list(map(str, argv)), capture_output=True, text=True, timeout=timeout, check=False)
    assert done.returncode == 0, f"{argv}: {done.stderr}"
    return done.stdout


# --- an orchestra ------------------------------------------------------------------------------------------------------


class Orchestra(Shell):
    """The command for one root, with an environment of its own, and ways to ask and to look."""

    def __init__(self, folder: Path, root: Path | None = None) -> None:
        super().__init__(folder)
        self.root = folder / "root" if root is None else root
        self.environment: dict[str, str] = {}
        self.place = Root(self.root)

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("TMUX", "ORCHESTRA"))}
        return subprocess.Popen(
            [str(COMMAND), "--root", str(self.root), *arguments],
            cwd=self.folder,
            env={**kept, **self.environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def configure(self, text: str = CONFIG) -> None:
        """Writes the settings file."""
        self.place.config.parent.mkdir(parents=True, exist_ok=True)
        self.place.config.write_text(text)

    def up(self, agents: int = AGENTS) -> None:
        """Starts a supervised coordinator with agents."""
        done = self.run("up", "--agents", str(agents))
        assert done.returncode == 0, done.stdout + done.stderr

    def down(self) -> None:
        """Ends it in order."""
        done = self.run("down")
        assert done.returncode == 0, done.stdout + done.stderr

    def ask(self, question: Callable[[UseCases], Awaitable[T]], *, seconds: float = WAIT_S) -> T:
        """Asks the coordinator; while there is none, asks again."""

        async def put() -> T:
            async with asyncio.timeout(seconds):
                while True:
                    try:
                        async with await Client.connect(self.place.socket) as client:
                            return await question(cast("UseCases", client))
                    except (CoordinatorUnreachable, ProtocolBroken):
                        await asyncio.sleep(0.02)

        return asyncio.run(put())

    def wait_ready(self) -> None:
        """Waits until tasks are taken."""

        def is_ready() -> bool:
            return self.ask(lambda use_cases: use_cases.status(StatusParams())).status not in ("uninitialized", "initializing")

        wait_for(is_ready, "an orchestra that takes tasks")

    def submit(self, text: str) -> str:
        """Submits a plan; returns its id."""
        reply = self.ask(lambda use_cases: use_cases.submit_plan(PlanParams(text, "plan.yaml", str(self.folder))))
        return reply.plan

    def plan_status(self, name: str) -> str:
        """Returns the plan's status."""
        reply = self.ask(lambda use_cases: use_cases.plans(Empty()))
        return next(each.status for each in reply.plans if each.plan == name)

    def wait_plan(self, name: str, *, seconds: float = WAIT_S) -> None:
        """Waits until the plan is over, and completed."""
        found = wait_for(lambda: (status := self.plan_status(name)) != "running" and status, f"the end of {name}", seconds=seconds)
        assert found == "completed", json.dumps(self.failures(), indent=1)

    def failures(self) -> list[Any]:
        """Returns what became of the tasks that were not completed, for messages."""
        found = [json.loads(path.read_text()) for path in self.place.results.rglob("result.json")]
        return [each for each in found if each["status"] != "completed"]

    def log(self) -> list[str]:
        """Returns what the tasks wrote."""
        with suppress(FileNotFoundError):
            return (self.folder / "log").read_text().splitlines()
        return []

    def tail(self) -> Tail:
        """Returns where the ledger ends, by reading it as another process."""
        with closing(SqliteLedger.open_readonly(self.place.ledger)) as ledger:
            return ledger.tail()

    # --- its processes ---------------------------------------------------------------------------------------------

    def processes(self) -> dict[int, str]:
        """Returns every process that belongs to the root."""
        return {**processes_of(self.root), **processes_of(self.place.runtime_folder())}

    def coordinator(self) -> int:
        """Returns the pid of the coordinator, 0 while there is none."""
        with suppress(OSError, ValueError, KeyError):
            pid = int(json.loads((self.place.ledger / "coordinator.lock").read_text())["pid"])
            return pid if not is_gone(pid) and "coordinator" in self.processes().get(pid, "") else 0
        return 0

    def parts(self, kind: str) -> list[int]:
        """Returns the pids of one kind of part: coordinator, worker, courier, agent, tmux, control."""
        match kind:
            case "coordinator":
                return [pid] if (pid := self.coordinator()) else []
            case "tmux" | "control":
                socket = "local/tmux.sock" if kind == "tmux" else "control.sock"
                return tmux_server(self.place.runtime_folder() / socket)
            case "agent":
                return [pid for pid in pids() if f"{self.root}/nodes".encode() in environment_of(pid).get(b"ORCHESTRA_ATTEMPT_DIR", b"")]
            case _:
                sign = re.compile(rf"python\S* .*\b{kind}\b.*main\(")
                found = [pid for pid, said in self.processes().items() if sign.search(said)]
                return [pid for pid in found if b"ORCHESTRA_ATTEMPT" not in environment_of(pid)]

    def remove_runtime(self) -> None:
        """Removes the folder of sockets, which lies outside the test's own."""
        shutil.rmtree(self.place.runtime_folder(), ignore_errors=True)


def pids() -> list[int]:
    """Returns every process there is."""
    return [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]


def environment_of(pid: int) -> dict[bytes, bytes]:
    """Returns a process's environment, nothing once it is gone."""
    with suppress(OSError):
        parts = (part.partition(b"=") for part in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"))
        return {name: value for name, _, value in parts}
    return {}


def started(pid: int) -> str:
    """Returns when a process began, which with its pid names it for ever; empty if it is gone."""
    with suppress(OSError, IndexError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return ""


def tmux_server(socket: Path) -> list[int]:
    """Returns the pid of the tmux server on that socket."""
    try:
        done = subprocess.run(
            ["tmux", "-S", str(socket), "display-message", "-p", "#{pid}"], capture_output=True, text=True, timeout=2, check=False
        )
    except subprocess.TimeoutExpired:  # it is stopped
        return []
    return [int(done.stdout)] if done.returncode == 0 and done.stdout.strip().isdigit() else []


def strike(pid: int, number: int) -> bool:
    """Sends a signal; tells whether there was somebody to get it."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def rss_kib(pid: int) -> int:
    """Returns the resident memory of a process, 0 once it is gone."""
    with suppress(OSError):
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
        return int(found[1]) if found else 0
    return 0


@contextmanager
def orchestra(folder: Path, root: Path | None = None, *, config: str = CONFIG) -> Iterator[Orchestra]:
    """Gives an orchestra; ends what still runs of it, and fails if something could only be killed."""
    made = Orchestra(folder, root)
    made.configure(config)
    try:
        yield made
        if made.coordinator():
            made.run("down", "--now")
        wait_a_while(lambda: not made.processes(), 10)
        assert not made.processes(), f"left behind: {made.processes()}"
    finally:
        end_processes(made.processes())
        wait_a_while(lambda: not made.processes(), 10)
        made.remove_runtime()


# --- a plan that writes down what it does, and what is checked of it ---------------------------------------------------


def task_lines(
    name: str, *, needs: Sequence[str] = (), fails_once: bool = False, work: str = "sleep 0.05", check: bool = True
) -> list[str]:
    """Returns a task of a plan file: it says when it begins and ends, and leaves a file that its check looks for."""
    stumble = f"[ -e once.{name} ] || {{ : > once.{name}; exit 3; }}; " if fails_once else ""
    say = '; printf "{word} %s %s\\n" "$ORCHESTRA_TASK" "$ORCHESTRA_ATTEMPT" >> log'
    run = f"cd $HERE{say.replace('{word}', 'begin')}; {stumble}{work}; echo made > made.{name}{say.replace('{word}', 'end')}"
    lines = [f"  - id: {name}", f"    run: {json.dumps(run)}"]
    if needs:
        lines.append(f"    needs: [{', '.join(needs)}]")
    if check:
        lines.append(f"    success_criteria: [{{run: {json.dumps(f'test -s $HERE/made.{name}')}, name: made}}]")
    return lines


def plan_text(tasks: int, folder: Path, *, seed: int = 0, name: str = "p", work: str = "sleep 0.05") -> str:
    """Returns a plan: a graph in which each task needs up to two earlier ones, and every seventh fails at its first try."""
    chance = Random(seed)
    lines = [f"name: {name}", "tasks:"]
    for number in range(tasks):
        earlier = range(max(0, number - 20), max(0, number - 4))
        needs = sorted(chance.sample(earlier, min(len(earlier), chance.randrange(3))))
        lines += task_lines(f"t{number}", needs=[f"t{each}" for each in needs], fails_once=number % 7 == 3, work=work)
    return "\n".join(lines).replace("$HERE", str(folder))


def check_exactly_once(stage: Orchestra, tasks: int) -> State:
    """After the end: the books are in order, every task was completed, each attempt ran at most once and never two of a task at a time."""
    state = check_books(stage.root)
    report = care.verify(stage.place.ledger, SqliteOptions(mark_copy=stage.place.state / "ledger.mark"))
    assert report.ok, report.problems
    assert len(state.tasks) == tasks
    assert [task.id for task in state.tasks.values() if task.status.value != "completed"] == []
    log = stage.log()
    twice = {line: count for line, count in Counter(log).items() if count > 1}
    assert not twice, f"an attempt ran twice: {twice}"
    check_order(log, {str(task.id): [str(need) for need in task.spec.needs] for task in state.tasks.values()})
    for task in state.tasks.values():
        assert f"end {task.id} {task.primary}" in log, f"{task.id} counts as done by attempt {task.primary}, which did not end its work"
    return state


def check_order(log: Sequence[str], needs: Mapping[str, Sequence[str]]) -> None:
    """No attempt begins before what its task needs has ended, and none goes on once a later one has begun."""
    newest: dict[str, int] = {}
    ended: set[str] = set()
    for line in log:
        word, task, number = line.split()
        assert int(number) >= newest.get(task, 0), f"attempt {number} of {task} still worked when {newest[task]} had begun"
        newest[task] = int(number)
        if word == "begin":
            assert ended.issuperset(needs.get(task, ())), f"{task} began before what it needs"
        else:
            ended.add(task)


def check_prefix(stage: Orchestra, seen: Sequence[Tail]) -> None:
    """Everything that was in the ledger at some moment is in it still, unchanged."""
    wanted = {tail.seq: tail.hash for tail in seen if tail.seq}
    with closing(SqliteLedger.open_readonly(stage.place.ledger)) as ledger:
        found = {event.seq: event.hash for event in ledger.read() if event.seq in wanted}
    assert found == wanted
