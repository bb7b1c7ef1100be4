"""A machine of the simulated world: its disk, its processes, tmux, and whoever looks at it through a courier.

What is on the disk (journal, folders of attempts, slots) outlives everything; all else dies with what it belongs to.
"""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, Protocol

from orchestra.core.model import Worker
from orchestra.ids import AgentId, AttemptId, NodeId
from orchestra.node import Notice, Record
from orchestra.testing.world.timeline import Timeline
from orchestra.testing.world.work import Script
from orchestra.testing.world.worker import ENDING_MS, SPAWN_MS, Folder, Program, SimWorker

BEAT_MISSED_MS = 7_000
"""When a courier says that a heart has stopped: five seconds and its next look."""
BEAT_CHECK_MS = 2_000
"""How often a courier looks at the hearts."""
ZOMBIE_MS = 60_000
"""How long the death of a process may stay unseen."""


class Viewer(Protocol):
    """A courier, as the node sees it."""

    def ring(self) -> None:
        """There is something new in the journal."""

    def notice(self, notice: Notice, *, aside: bool = False) -> None:
        """Something was seen; `aside`: through the other channel, tmux's."""

    def heart(self, worker: SimWorker, *, beats: bool) -> None:
        """A worker's heart has stopped, or beats again."""

    def die(self) -> None:
        """The courier's process is gone."""


class Observer(Protocol):
    """Who keeps the world's own books."""

    def program_started(self, node: SimNode, folder: Folder, program: Program) -> None:
        """An agent process begins to work on an attempt."""

    def worker_ended(self, node: SimNode, worker: SimWorker) -> None:
        """A worker process is gone."""

    def worker_killed(self, node: SimNode, worker: SimWorker) -> None:
        """Somebody asked for a worker to be killed, and it is about to be."""

    def trace(self, actor: str, what: str, *facts: object) -> None:
        """Something happened that a reader of the trace wants to know."""


class Slot:
    """The folder of one slot."""

    __slots__ = ("current", "holder", "last", "waiting")

    def __init__(self) -> None:
        self.holder: SimWorker | None = None
        self.last: Worker | None = None
        self.waiting: list[SimWorker] = []
        self.current: AttemptId | None = None


class SimNode:
    """One machine."""

    def __init__(self, name: NodeId, line: Timeline, dice: Random, draw: Callable[[], Script], observer: Observer) -> None:
        self.id = name
        self.line = line
        self.dice = dice
        self.journal: list[Record] = []
        self.folders: dict[AttemptId, Folder] = {}
        self.slots: dict[AgentId, Slot] = {}
        self.windows: dict[AgentId, SimWorker] = {}
        self.viewers: list[Viewer] = []
        self.programs: dict[int, Program] = {}
        """Agent processes that are alive, by pid."""
        self.boots = 1
        self.disk_full = False
        self.sick_until_ms = 0
        """Until then workers die as they start."""
        self.replay_from = 0
        """What was said before the fleet was last set up is not asked for again."""
        self.abandoned = False
        """It was removed from the fleet while nobody could see it. Whoever takes it up again starts it anew first."""
        self.lease_until_ms = 0
        """Until then it has been told that somebody is there."""
        self.installed: dict[str, str] = {"git": "/usr/bin/git", "python3": "/usr/bin/python3"}
        self._draw = draw
        self._observer = observer
        self._pid = 1000
        self._held_up: list[tuple[SimWorker, Callable[..., None], tuple[Any, ...]]] = []

    @property
    def boot(self) -> str:
        """Changes with every boot."""
        return f"{self.id}-boot-{self.boots}"

    def _new_pid(self) -> int:
        self._pid += 1
        return self._pid

    def live_workers(self) -> list[SimWorker]:
        """Returns the workers that hold a slot."""
        return [slot.holder for slot in self.slots.values() if slot.holder is not None]

    def attach(self, viewer: Viewer) -> None:
        """A courier begins to look. Hearts that have stopped before it came are news to it."""
        self.viewers.append(viewer)
        for worker in self.live_workers():
            if worker.stopped:
                self.line.after(BEAT_MISSED_MS, self._miss_beat, worker)

    # --- the disk ----------------------------------------------------------------------------------------------------

    def write(self, worker: SimWorker, action: Callable[..., None], *arguments: Any) -> None:
        """Does something that needs the disk: now, or in order when there is room again."""
        if self.disk_full:
            self._held_up.append((worker, action, arguments))
        else:
            worker.do(action, *arguments)

    def make_room(self) -> None:
        """The disk is no longer full."""
        self.disk_full = False
        held_up, self._held_up = self._held_up, []
        for worker, action, arguments in held_up:
            self.write(worker, action, *arguments)

    def append(self, kind: str, agent: AgentId, worker: Worker, attempt: AttemptId | None, body: dict[str, Any]) -> None:
        """Adds a record to the journal and rings."""
        task, number = ("", 0) if attempt is None else (str(attempt.task), attempt.number)
        self.journal.append(Record(kind, agent, worker, self.line.now_ms, task, number, body))
        self._observer.trace(self.id, kind, agent, f"{task}#{number}")
        for viewer in self.viewers:
            viewer.ring()

    # --- agents ------------------------------------------------------------------------------------------------------

    def start_program(self, worker: SimWorker, folder: Folder) -> Program:
        """The worker starts the agent of an attempt."""
        program = Program(folder.attempt, worker, self._draw(), self._new_pid(), self.line.now_ms)
        self.programs[program.pid] = program
        self._observer.program_started(self, folder, program)
        timeout_ms = int((folder.spec or {})["timeout_ms"])
        if not program.script.hangs:
            self.line.after(program.script.duration_ms, self.exit_program, program)
        if program.script.hangs or program.script.duration_ms > timeout_ms:
            self.line.after(timeout_ms, worker.do, worker.on_timeout, program)
        return program

    def exit_program(self, program: Program) -> None:
        """The agent's process is gone; its worker, if there is one, finds out."""
        if program.alive:
            program.alive = False
            del self.programs[program.pid]
            program.owner.do(program.owner.on_exit, program)

    def end_program(self, program: Program | None, then: Callable[[], None]) -> None:
        """Ends what is left of an attempt, which may take a while; then goes on."""

        def ended() -> None:
            if program is not None:
                self.exit_program(program)
            then()

        busy = program is not None and program.alive
        self.line.after(self.dice.randint(1, ENDING_MS) if busy else 1, ended)

    # --- workers and windows -----------------------------------------------------------------------------------------

    def open_window(self, agent: AgentId) -> None:
        """Makes a window with a worker, unless the slot has one."""
        if agent in self.windows:
            return
        self.slots.setdefault(agent, Slot())
        worker = self.windows[agent] = SimWorker(self, agent, Worker(self._new_pid(), self.line.now_ms))
        self.line.after(self.dice.randint(1, SPAWN_MS), worker.do, worker.begin)

    def close_window(self, agent: AgentId) -> None:
        """The window goes; its worker notices."""
        worker = self.windows.pop(agent, None)
        if worker is None:
            return
        slot = self.slots[agent]
        if worker in slot.waiting:
            slot.waiting.remove(worker)
        if slot.holder is worker:
            worker.do(worker.lose_pane)
        else:
            worker.alive = False
        self._tell_windows_gone()

    def end_worker(self, worker: SimWorker, *, unseen_ms: int = 0) -> None:
        """A worker's process is gone, for whatever reason. The next one in line takes the slot."""
        if not worker.alive:
            return
        worker.alive = False
        self._observer.worker_ended(self, worker)
        slot = self.slots[worker.agent]
        if self.windows.get(worker.agent) is worker:
            del self.windows[worker.agent]
            self._tell_windows_gone()
        if slot.holder is not worker:
            return
        slot.holder = None
        self.line.after(unseen_ms + self.dice.randint(0, 5), self._tell_gone, worker)
        if slot.waiting:
            heir = slot.waiting.pop(0)
            heir.do(heir.begin)

    def _tell_gone(self, worker: SimWorker) -> None:
        for viewer in self.viewers:
            viewer.notice(Notice("worker-gone", worker.agent, worker.identity))

    def _tell_windows_gone(self) -> None:
        for viewer in self.viewers:
            viewer.notice(Notice("windows-gone", detail="tmux: window-closed"), aside=True)

    # --- what happens to it ------------------------------------------------------------------------------------------

    def hang_worker(self, worker: SimWorker, *, for_ever: bool = False) -> None:
        """SIGSTOP; `for_ever`: nobody will ever send SIGCONT."""
        worker.for_ever = worker.for_ever or for_ever
        if not worker.stopped:
            worker.stopped, worker.stopped_ms = True, self.line.now_ms
            worker.looks, worker.asked_to_leave = 0, False
            self.line.after(BEAT_MISSED_MS, self._miss_beat, worker)

    def _miss_beat(self, worker: SimWorker) -> None:
        if worker.alive and worker.stopped and self.line.now_ms - worker.stopped_ms >= BEAT_MISSED_MS:
            for viewer in self.viewers:
                viewer.heart(worker, beats=False)

    def wake_worker(self, worker: SimWorker) -> None:
        """SIGCONT."""
        if worker.stopped and not worker.for_ever:
            worker.resume()
            self.line.after(self.dice.randint(1, BEAT_CHECK_MS), self._beat_again, worker)

    def _beat_again(self, worker: SimWorker) -> None:
        if worker.alive and not worker.stopped:
            for viewer in self.viewers:
                viewer.heart(worker, beats=True)

    def kill_worker(self, worker: SimWorker) -> None:
        """SIGKILL, on request."""
        self._observer.worker_killed(self, worker)
        self.end_worker(worker)

    def sicken(self, duration_ms: int) -> None:
        """Workers die as they start, for a while: their interpreter or their memory is not there."""
        self.sick_until_ms = self.line.now_ms + duration_ms

    def lose_tmux(self) -> None:
        """The tmux server is killed: all windows go, no worker does."""
        for agent in list(self.windows):
            self.close_window(agent)

    def reboot(self) -> None:
        """Everything that runs dies; the disk stays."""
        for viewer in list(self.viewers):
            viewer.die()
        self.boots += 1
        self._held_up.clear()
        self.disk_full = False
        self.sick_until_ms = 0
        for worker in [*self.windows.values(), *self.live_workers()]:
            worker.alive = False
            self._observer.worker_ended(self, worker)
        self.windows.clear()
        for slot in self.slots.values():
            slot.holder = None
            slot.waiting.clear()
        for program in list(self.programs.values()):
            self.exit_program(program)
