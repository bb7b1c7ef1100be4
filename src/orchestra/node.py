"""PORT: a machine with tmux, where agents live.

A node is told what is wanted and reports what it sees. Reports come as batches of records in the order of the node's journal; the batch names
the journal offset after it, so that a reader that commits both together never loses or repeats one. Everything here may fail with `NodeFailed` and be
asked again: orders are idempotent by attempt number and slot.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from orchestra.core.model import CheckResult, Worker
from orchestra.ids import AgentId, AttemptId, NodeId

Spec = dict[str, Any]
"""The order for a worker, as `docs/node.md` describes `spec.json`: plain JSON values."""


class NodeFacts(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a node says of itself when connected, and again when asked."""

    boot: str
    host: str
    python: str
    tmux: str
    session: str
    cpus: int = 0
    memory_bytes: int = 0
    disk_free_bytes: int = 0
    cpu_percent: float = 0.0
    memory_percent: float = 0.0
    memory_available_bytes: int = 0
    """Memory that programs can still get, as the kernel estimates it."""
    load_1m: float = 0.0
    clock_offset_ms: int = 0
    """How far its clock is ahead of ours. Told, never relied on."""
    clock_error_ms: int = 0
    """Half the round trip of asking: the offset is known no better than that."""
    programs: dict[str, str] = {}
    """Path of each program that was asked for and is installed."""


class Record(msgspec.Struct, frozen=True):
    """One line of the journal."""

    kind: str
    agent: AgentId
    worker: Worker
    ms: int
    task: str = ""
    attempt: int = 0
    body: dict[str, Any] = {}


class JournalBatch(msgspec.Struct, frozen=True):
    """Journal records in order, and the offset after the last one."""

    records: tuple[Record, ...]
    offset: int


class Notice(msgspec.Struct, frozen=True):
    """Something seen that is not in the journal: `worker-gone`, `beat-missed`, `beat-back`, `windows-gone`, `channel-lost`."""

    kind: str
    agent: AgentId = AgentId(0)
    worker: Worker | None = None
    detail: str = ""


Report = JournalBatch | Notice


class WorkerFacts(msgspec.Struct, frozen=True):
    """A slot as found on the node."""

    agent: AgentId
    worker: Worker | None
    alive: bool
    beat_age_ms: int
    attempt: AttemptId | None


class AttemptFacts(msgspec.Struct, frozen=True):
    """An attempt as found on the node: `absent`, `ordered`, `claimed` or `done`."""

    attempt: AttemptId
    state: str
    alive: bool
    done: dict[str, Any] | None
    """The content of exit.json when it is over."""


class Inventory(msgspec.Struct, frozen=True):
    """Everything found on a node at one moment."""

    workers: tuple[WorkerFacts, ...]
    attempts: tuple[AttemptFacts, ...]
    windows: tuple[AgentId, ...]
    """Slots that have a window."""


class AttemptOrder(msgspec.Struct, frozen=True):
    """One attempt to start."""

    attempt: AttemptId
    agent: AgentId
    spec: Spec
    files: dict[str, str] = {}
    agent_files: dict[str, str] = {}
    """For the folder of the agent's own, by relative path."""


class OrderFailure(msgspec.Struct, frozen=True):
    """An order that could not be delivered: `no-worker`, `exists` or `io`."""

    attempt: AttemptId
    agent: AgentId
    code: str
    message: str


class AgentWindow(msgspec.Struct, frozen=True):
    """A slot and the name its window shows."""

    agent: AgentId
    name: str


class Node(Protocol):
    """One connected machine."""

    id: NodeId

    async def start(self, journal_offset: int) -> NodeFacts:
        """Connects, prepares what is missing, and begins to report the journal from that offset; -1: from its end."""
        ...

    async def stop(self) -> None:
        """Lets go of the node; everything on it goes on. Idempotent."""
        ...

    def reports(self) -> AsyncIterator[Report]:
        """Yields what is seen, until the connection ends; then a last `channel-lost` notice."""
        ...

    async def open_windows(self, windows: Sequence[AgentWindow]) -> None:
        """Makes a window with a worker for each slot that has none."""
        ...

    async def close_agents(self, agents: Sequence[AgentId], *, now: bool) -> None:
        """Asks the workers to leave, when idle or `now`. A `left` record follows."""
        ...

    async def remove_windows(self, agents: Sequence[AgentId]) -> None:
        """Removes the windows of slots that are gone."""
        ...

    async def order(self, orders: Sequence[AttemptOrder]) -> Sequence[OrderFailure]:
        """Delivers orders. An order that is delivered twice runs once."""
        ...

    async def stop_attempt(self, attempt: AttemptId, agent: AgentId, grace_ms: int) -> None:
        """Asks the worker to end the attempt: TERM, `grace_ms`, KILL."""
        ...

    async def check(self, order: AttemptOrder) -> Sequence[CheckResult]:
        """Runs an order's checks, without its agent, in the order's folder and under its limits. Cancelled, it ends what runs of them.

        Raises:
            NodeFailed: They did not come to their end, through no fault of theirs.
        """
        ...

    async def reap(self, attempt: AttemptId) -> str:
        """Ends what a dead worker left. Returns `reaped` (a `lost` record follows), `alive` (a live worker has it) or `done`."""
        ...

    async def inventory(self, attempts: Sequence[AttemptId]) -> Inventory:
        """Looks at everything there is."""
        ...

    async def screens(self, agents: Sequence[AgentId], lines: int | None = None) -> Mapping[AgentId, str]:
        """Returns the text each window shows now (with `lines` of history before it)."""
        ...

    async def type_text(self, agents: Sequence[AgentId], text: str, *, enter: bool) -> None:
        """Types into windows, as a person would."""
        ...

    async def answer(self, attempt: AttemptId, agent: AgentId, number: int, text: str) -> None:
        """Gives the attempt the answer to its question of that number. One that waits for another question, or is over, does not take it.

        Raises:
            NodeFailed: Nobody is there who could take it.
        """
        ...

    async def attach_argv(self, agent: AgentId | None) -> Sequence[str]:
        """Returns the command that shows the windows (or one of them) in a person's terminal."""
        ...

    async def read(self, path: str, offset: int, length: int) -> tuple[str, int]:
        """Returns text of a file below the node's folder from `offset` (negative: from the end), and the file's size.

        Raises:
            NotFound: There is no such file.
        """
        ...

    async def remove(self, attempts: Sequence[AttemptId]) -> None:
        """Removes the folders of attempts that are over."""
        ...

    async def kill_worker(self, agent: AgentId, worker: Worker) -> bool:
        """Kills a worker that no longer moves, if it is still that process. Returns whether it was; a `worker-gone` notice follows then."""
        ...

    async def renew_lease(self, ttl_ms: int) -> None:
        """Tells the node that we are there: for `ttl_ms` from now it need not wonder whether anybody still wants its attempts."""
        ...

    async def expose(self, port: int) -> int:
        """Makes a port of this machine's loopback reachable on the node's; returns the port there. Asked again it gives the same.

        Raises:
            NodeFailed: The node does not let us.
        """
        ...

    async def facts(self) -> NodeFacts:
        """Returns fresh facts."""
        ...

    async def close_all(self) -> None:
        """Ends our tmux server and everything of ours on the node except its files."""
        ...
