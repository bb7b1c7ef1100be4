"""What a courier does on its node when asked: the operations of `docs/node.md`, on pretended files and processes.

Each takes the node, whom to answer (once, maybe later), whether the courier still lives, and the arguments of the port's method.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Final

from orchestra.core.model import Worker
from orchestra.errors import CourierFailed
from orchestra.ids import AgentId, AttemptId
from orchestra.node import AgentWindow, AttemptFacts, AttemptOrder, Inventory, OrderFailure, WorkerFacts
from orchestra.testing.world.node import SimNode
from orchestra.testing.world.worker import Folder

Answer = Callable[[Any], None]
Alive = Callable[[], bool]

COURIER: Final = Worker(1, 1)
NOBODY: Final = AgentId(0)
LOOK_MS: Final = 100
LEAVE_TIMEOUT_MS: Final = 10_000


def poke(node: SimNode, agent: AgentId, line: dict[str, Any]) -> bool:
    """Writes a line into an inbox; False if nobody reads it."""
    slot = node.slots.get(agent)
    if slot is None or slot.holder is None:
        return False
    slot.holder.do(slot.holder.hear, line)
    return True


def order(node: SimNode, answer: Answer, alive: Alive, orders: Sequence[AttemptOrder]) -> None:
    """Writes orders down and hands them out."""
    failures: list[OrderFailure] = []
    for each in orders:
        there = each.attempt in node.folders
        if not there and node.disk_full:
            failures.append(OrderFailure(each.attempt, each.agent, "io", "no space left on device"))
            continue
        if not there:
            node.folders[each.attempt] = Folder(each.attempt, each.agent, each.spec)
        if not poke(node, each.agent, {"op": "run", "attempt": each.attempt}):
            if not there:
                del node.folders[each.attempt]
            failures.append(OrderFailure(each.attempt, each.agent, "no-worker", "nobody reads the inbox"))
    answer(failures)


def stop_attempt(node: SimNode, answer: Answer, alive: Alive, attempt: AttemptId, agent: AgentId, grace_ms: int) -> None:
    """Asks the worker to end an attempt."""
    heard = poke(node, agent, {"op": "stop", "attempt": attempt, "grace_ms": grace_ms})
    answer(None if heard else CourierFailed("no-worker"))


def close_agents(node: SimNode, answer: Answer, alive: Alive, agents: Sequence[AgentId], *, now: bool) -> None:
    """Asks workers to leave."""
    for agent in agents:
        slot = node.slots.get(agent)
        if slot is not None and slot.holder is not None:
            slot.holder.asked_to_leave = True
        poke(node, agent, {"op": "leave", "now": now})
    answer(None)


def kill_worker(node: SimNode, answer: Answer, alive: Alive, agent: AgentId, worker: Worker) -> None:
    """Kills the worker that holds the slot, if it still is this one; it may be stopped."""
    slot = node.slots.get(agent)
    holder = None if slot is None else slot.holder
    if holder is None or holder.identity != worker:
        answer(False)
        return
    node.kill_worker(holder)
    answer(True)


def renew_lease(node: SimNode, answer: Answer, alive: Alive, ttl_ms: int) -> None:
    """Notes how long nobody has to wonder whether the attempts are still wanted."""
    node.lease_until_ms = node.line.now_ms + ttl_ms
    answer(None)


def open_windows(node: SimNode, answer: Answer, alive: Alive, windows: Sequence[AgentWindow]) -> None:
    """Makes windows where there are none."""
    for window in windows:
        node.open_window(window.agent)
    answer(None)


def remove_windows(node: SimNode, answer: Answer, alive: Alive, agents: Sequence[AgentId]) -> None:
    """Removes windows."""
    for agent in agents:
        node.close_window(agent)
    answer(None)


def has_in_hand(node: SimNode, folder: Folder) -> bool:
    """Tells whether a live worker has the attempt, or is about to settle what a dead one left of it."""
    if folder.claim is None:
        return False
    agent, identity = folder.claim
    slot = node.slots.get(agent)
    if slot is None or slot.holder is None:
        return False
    return slot.holder.identity == identity or slot.current == folder.attempt


def reap(node: SimNode, answer: Answer, alive: Alive, attempt: AttemptId) -> None:
    """Ends what a dead worker left, once the claim is taken."""
    folder = node.folders.setdefault(attempt, Folder(attempt, NOBODY, None))
    if folder.exit is not None:
        answer("done")
        return
    if folder.claim is None:
        folder.claim = NOBODY, COURIER
    if folder.claim[0] != NOBODY and has_in_hand(node, folder):
        answer("alive")
        return
    node.end_program(folder.program, lambda: _say_lost(node, answer, alive, folder))


def _say_lost(node: SimNode, answer: Answer, alive: Alive, folder: Folder) -> None:
    if not alive():
        return
    if node.disk_full:
        node.line.after(LOOK_MS, _say_lost, node, answer, alive, folder)
        return
    folder.lost = True
    node.append("lost", folder.agent, COURIER, folder.attempt, {"reason": "worker died", "killed": []})
    answer("reaped")


def inventory(node: SimNode, answer: Answer, alive: Alive, attempts: Sequence[AttemptId]) -> None:
    """Looks at everything."""
    for each in node.live_workers():
        each.looks += 1
    workers = [
        WorkerFacts(
            agent,
            slot.last if slot.holder is None else slot.holder.identity,
            slot.holder is not None,
            0 if slot.holder is None or not slot.holder.stopped else node.line.now_ms - slot.holder.stopped_ms,
            slot.current,
        )
        for agent, slot in node.slots.items()
        if slot.last is not None
    ]
    answer(Inventory(tuple(workers), tuple(_attempt_facts(node, each) for each in attempts), tuple(node.windows)))


def _attempt_facts(node: SimNode, attempt: AttemptId) -> AttemptFacts:
    folder = node.folders.get(attempt)
    if folder is None:
        return AttemptFacts(attempt, "absent", alive=False, done=None)
    if folder.exit is not None:
        return AttemptFacts(attempt, "done", alive=False, done=folder.exit)
    if folder.claim is not None:
        return AttemptFacts(attempt, "claimed", alive=has_in_hand(node, folder), done=None)
    return AttemptFacts(attempt, "ordered" if folder.spec is not None else "absent", alive=False, done=None)


def close_all(node: SimNode, answer: Answer, alive: Alive) -> None:
    """Everybody leaves, then tmux ends."""
    for worker in node.live_workers():
        worker.do(worker.hear, {"op": "leave", "now": True})
    _when_left(node, answer, node.line.now_ms + LEAVE_TIMEOUT_MS)


def _when_left(node: SimNode, answer: Answer, deadline_ms: int) -> None:
    if node.live_workers() and node.line.now_ms < deadline_ms:
        node.line.after(LOOK_MS, _when_left, node, answer, deadline_ms)
        return
    node.lose_tmux()
    answer(None)


OPERATIONS: Final[dict[str, Callable[..., None]]] = {
    "order": order,
    "stop_attempt": stop_attempt,
    "close_agents": close_agents,
    "open_windows": open_windows,
    "remove_windows": remove_windows,
    "reap": reap,
    "inventory": inventory,
    "kill_worker": kill_worker,
    "renew_lease": renew_lease,
    "close_all": close_all,
}
