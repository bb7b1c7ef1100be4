"""A worker of the simulated world: one a slot, as `docs/node.md` says, with agents as its children.

What a worker does is a chain of small steps. Each passes `do`, so that a worker that is dead does nothing and one that is stopped (SIGSTOP) does it later; what
touches the disk passes the node's `write`, so that a full disk holds it up.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from orchestra.core.model import Worker
from orchestra.ids import AgentId, AttemptId
from orchestra.testing.world.work import Script, check_results, exit_of, succeeded

if TYPE_CHECKING:
    from orchestra.testing.world.node import SimNode

SPAWN_MS = 400
"""A worker is at work so long after its window was made, at most."""
ENDING_MS = 1_000
"""How long the end of a process tree takes, at most."""


class Folder:
    """The folder of one attempt."""

    __slots__ = ("agent", "attempt", "claim", "exit", "lost", "program", "spec")

    def __init__(self, attempt: AttemptId, agent: AgentId, spec: dict[str, Any] | None) -> None:
        self.attempt = attempt
        self.agent = agent
        self.spec = spec
        self.claim: tuple[AgentId, Worker] | None = None
        self.exit: dict[str, Any] | None = None
        self.lost = False
        self.program: Program | None = None


class Program:
    """An agent's process. It goes on without its worker until somebody ends it or it ends by itself."""

    __slots__ = ("alive", "attempt", "began_ms", "ending", "owner", "pid", "script")

    def __init__(self, attempt: AttemptId, owner: SimWorker, script: Script, pid: int, began_ms: int) -> None:
        self.attempt = attempt
        self.owner = owner
        self.script = script
        self.pid = pid
        self.began_ms = began_ms
        self.alive = True
        self.ending = ""


class SimWorker:
    """One worker process."""

    def __init__(self, node: SimNode, agent: AgentId, identity: Worker) -> None:
        self.node = node
        self.agent = agent
        self.identity = identity
        self.alive = True
        self.stopped = False
        self.stopped_ms = 0
        self.for_ever = False
        self.looks = 0
        """How often somebody looked at it since it was stopped."""
        self.asked_to_leave = False
        """Since it was stopped."""
        self.pane = True
        self.settled = False
        self.hand: Folder | None = None
        self._backlog: list[tuple[Callable[..., None], tuple[Any, ...]]] = []
        self._orders: list[AttemptId] = []
        self._stops: list[AttemptId] = []
        self._leaving = self._stopping_all = False

    # --- being a process ---------------------------------------------------------------------------------------------

    def do(self, action: Callable[..., None], *arguments: Any) -> None:
        """Takes a step, unless it is dead; later, if it is stopped."""
        if not self.alive:
            return
        if self.stopped:
            self._backlog.append((action, arguments))
        else:
            action(*arguments)

    def resume(self) -> None:
        """SIGCONT."""
        self.stopped = False
        backlog, self._backlog = self._backlog, []
        for action, arguments in backlog:
            self.do(action, *arguments)

    def _write(self, action: Callable[..., None], *arguments: Any) -> None:
        self.node.write(self, action, *arguments)

    def _record(self, kind: str, attempt: AttemptId | None = None, **body: Any) -> None:
        self._write(self.node.append, kind, self.agent, self.identity, attempt, body)

    # --- the slot ----------------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """Takes the slot or waits for it."""
        sick = self.node.line.now_ms < self.node.sick_until_ms
        if sick and self.node.dice.random() < 0.5:
            self.node.end_worker(self)
            return
        slot = self.node.slots[self.agent]
        if slot.holder is not None:
            slot.waiting.append(self)
            return
        slot.holder = self
        slot.last = self.identity
        if sick:
            self.node.end_worker(self)
        elif slot.current is not None:
            self._write(self._recover, self.node.folders[slot.current])
        else:
            self._write(self._ready)

    def _recover(self, folder: Folder) -> None:
        """Rule 3: what a dead predecessor left is ended, then said."""
        if folder.exit is not None:
            self._record("done", folder.attempt, **folder.exit)
            self._write(self._recovered)
            return
        if folder.claim is None:
            folder.claim = self.agent, self.identity
        if folder.claim[0] != self.agent:
            self._recovered()
            return
        self.node.end_program(folder.program, lambda: self.do(self._write, self._lose, folder))

    def _lose(self, folder: Folder) -> None:
        folder.lost = True
        self._record("lost", folder.attempt, reason="worker died", killed=[])
        self._write(self._recovered)

    def _recovered(self) -> None:
        self.node.slots[self.agent].current = None
        self._write(self._ready)

    def _ready(self) -> None:
        self._record("ready", boot=self.node.boot)
        self.settled = True
        self._go_on()

    # --- orders ------------------------------------------------------------------------------------------------------

    def hear(self, line: dict[str, Any]) -> None:
        """One line of the inbox."""
        op = line["op"]
        if op == "run":
            self._orders.append(line["attempt"])
        elif op == "leave":
            self._leaving = True
            self._stopping_all = self._stopping_all or line["now"]
            if line["now"]:
                self.end_program("stopped", line.get("grace_ms", ENDING_MS))
        elif self.hand is not None and self.hand.attempt == line["attempt"]:
            self._stops.append(line["attempt"])
            self.end_program("stopped", line["grace_ms"])
        else:
            self._stops.append(line["attempt"])
        self._go_on()

    def lose_pane(self) -> None:
        """Its window is gone: it finishes what it has, then leaves."""
        self.pane = False
        self._go_on()

    def _go_on(self) -> None:
        if self.hand is not None or not self.settled:
            return
        if self._orders and not self._stopping_all:
            self._carry_out(self._orders.pop(0))
        elif self._leaving or not self.pane:
            self.settled = False
            self._record("left")
            self._write(self.node.end_worker, self)

    def _carry_out(self, attempt: AttemptId) -> None:
        folder = self.node.folders.get(attempt)
        if folder is None or folder.spec is None or folder.agent != self.agent:
            self._record("refused", attempt, reason="claimed" if folder is not None and folder.claim else "bad-spec")
            self._go_on()
            return
        self.hand = folder
        self._write(self._claim, folder)

    def _claim(self, folder: Folder) -> None:
        if not self.take_claim(folder):
            self.hand = None
            self._record("refused", folder.attempt, reason="claimed")
            self._go_on()
            return
        self.node.slots[self.agent].current = folder.attempt
        if self._stopping_all or folder.attempt in self._stops:
            self._over(folder, exit_of(folder.spec or {}, Script(0), "stopped", 0), [])
            return
        program = folder.program = self.node.start_program(self, folder)
        self._record("started", folder.attempt, pid=program.pid, start=self.node.line.now_ms)
        for number in range(program.script.signals):
            line = {"type": "system", "subtype": "progress", "progress": number / program.script.signals, "activity": "works"}
            self._record("signal", folder.attempt, line=line)

    def take_claim(self, folder: Folder) -> bool:
        """Rule 1: O_EXCL."""
        if folder.claim is not None:
            return False
        folder.claim = self.agent, self.identity
        return True

    # --- the agent ---------------------------------------------------------------------------------------------------

    def end_program(self, reason: str, grace_ms: int) -> None:
        """TERM, a while, KILL."""
        program = None if self.hand is None else self.hand.program
        if program is not None and program.alive and not program.ending:
            program.ending = reason
            self.node.line.after(self.node.dice.randint(0, grace_ms), self.node.exit_program, program)

    def on_timeout(self, program: Program) -> None:
        """The time of the attempt is up."""
        if self.hand is not None and self.hand.program is program:
            self.end_program("timeout", ENDING_MS)

    def on_exit(self, program: Program) -> None:
        """Its child is gone."""
        folder = self.hand
        if folder is None or folder.program is not program or folder.spec is None:
            return
        end = exit_of(folder.spec, program.script, program.ending or "exit", self.node.line.now_ms - program.began_ms)
        if folder.spec["checks"] and succeeded(folder.spec, end):
            self._record("exited", folder.attempt, exit=end)
            self.node.line.after(program.script.check_ms, self.do, self._checked, folder, program, end)
        else:
            self._over(folder, end, [])

    def _checked(self, folder: Folder, program: Program, end: dict[str, Any]) -> None:
        stopped = self._stopping_all or folder.attempt in self._stops
        self._over(folder, end, [] if stopped else check_results(folder.spec or {}, program.script))

    def _over(self, folder: Folder, end: dict[str, Any], checks: list[dict[str, Any]]) -> None:
        """`exit.json` first, then the record: the journal never says more than the folders."""
        self._write(self._keep_exit, folder, {"exit": end, "checks": checks})

    def _keep_exit(self, folder: Folder, result: dict[str, Any]) -> None:
        folder.exit = result
        self.node.line.after(1, self.do, self._write, self._say_done, folder, result)

    def _say_done(self, folder: Folder, result: dict[str, Any]) -> None:
        self._record("done", folder.attempt, **result)
        self._write(self._free, folder)

    def _free(self, folder: Folder) -> None:
        self.node.slots[self.agent].current = None
        self.hand = None
        self._stops = []
        self._go_on()
