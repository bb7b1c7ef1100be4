"""Which event moves what from where to where: every state machine of the orchestra, as data.

Rules of this file: a machine is a mapping (status, event class) -> status. A pair that is absent cannot happen: `decide` must not produce it, and
`evolve` treats it as a bug. The diagrams in `docs/state-machines.md` are drawn from these tables, and every pair is tested.

Theory. A task follows its attempts: the first attempt to start makes the task RUNNING, the first to be checked makes it VERIFYING, and an attempt
that ends does not move the task at all; what follows from the end (done, retry, given up) is an event of the task's own. An attempt whose agent asks
something makes it WAITING until that is answered; while another one is verified, or none is in sight, that shows only in the attempt. With several
attempts in parallel the later ones therefore find the task already there, which is what the self-loops are for.
"""

from __future__ import annotations

from enum import Enum
from typing import Final, TypeVar

from orchestra.core import events as e
from orchestra.core.model import AgentStatus, AttemptStatus, Lifecycle, NodeStatus, PlanStatus, TaskStatus
from orchestra.errors import InvariantBroken

S = TypeVar("S", bound=Enum)
Table = dict[tuple[S, type[e.Event]], S]

L, T, A, G, N, P = Lifecycle, TaskStatus, AttemptStatus, AgentStatus, NodeStatus, PlanStatus

LIFECYCLE: Final[Table[Lifecycle]] = {
    (L.UNINITIALIZED, e.InitStarted): L.INITIALIZING,
    (L.FAILED, e.InitStarted): L.INITIALIZING,
    (L.TERMINATED, e.InitStarted): L.INITIALIZING,
    (L.INITIALIZING, e.InitCompleted): L.READY,
    (L.INITIALIZING, e.InitFailed): L.FAILED,
    (L.READY, e.WorkBegan): L.RUNNING,
    (L.READY, e.ScaleStarted): L.SCALING,
    (L.RUNNING, e.ScaleStarted): L.SCALING,
    (L.SCALING, e.ScaleStarted): L.SCALING,
    (L.SCALING, e.ScaleCompleted): L.RUNNING,
    (L.INITIALIZING, e.ShutdownStarted): L.DRAINING,
    (L.READY, e.ShutdownStarted): L.DRAINING,
    (L.RUNNING, e.ShutdownStarted): L.DRAINING,
    (L.SCALING, e.ShutdownStarted): L.DRAINING,
    (L.FAILED, e.ShutdownStarted): L.DRAINING,
    (L.DRAINING, e.ShutdownStarted): L.DRAINING,
    (L.DRAINING, e.Terminated): L.TERMINATED,
}

TASK: Final[Table[TaskStatus]] = {
    (T.PENDING, e.TaskQueued): T.QUEUED,
    (T.PENDING, e.TaskCancelled): T.CANCELLED,
    (T.QUEUED, e.AttemptAssigned): T.ASSIGNED,
    (T.QUEUED, e.TaskCancelled): T.CANCELLED,
    (T.ASSIGNED, e.AttemptAssigned): T.ASSIGNED,
    (T.ASSIGNED, e.AttemptStarted): T.RUNNING,
    (T.ASSIGNED, e.AttemptVerifying): T.VERIFYING,
    (T.RUNNING, e.AttemptStarted): T.RUNNING,
    (T.RUNNING, e.AttemptVerifying): T.VERIFYING,
    (T.VERIFYING, e.AttemptStarted): T.VERIFYING,
    (T.VERIFYING, e.AttemptVerifying): T.VERIFYING,
    (T.UNKNOWN, e.AttemptStarted): T.RUNNING,
    (T.UNKNOWN, e.AttemptVerifying): T.VERIFYING,
    (T.UNKNOWN, e.AttemptSighted): T.RUNNING,
    **{(status, e.AttemptWaiting): T.WAITING for status in (T.ASSIGNED, T.RUNNING, T.WAITING)},
    **{(status, e.AttemptWaiting): status for status in (T.VERIFYING, T.UNKNOWN)},
    (T.WAITING, e.AttemptAnswered): T.RUNNING,
    **{(status, e.AttemptAnswered): status for status in (T.ASSIGNED, T.RUNNING, T.VERIFYING, T.UNKNOWN)},
    (T.WAITING, e.AttemptStarted): T.WAITING,
    (T.WAITING, e.AttemptVerifying): T.VERIFYING,
    **{(status, e.AttemptSighted): status for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING)},
    **{(status, e.AttemptLostSight): T.UNKNOWN for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.AttemptEnded): status for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.TaskRetryScheduled): T.RETRY_WAIT for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.TaskCompleted): T.COMPLETED for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.TaskFailed): T.FAILED for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.TaskCancelled): T.CANCELLED for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    **{(status, e.TaskMerging): T.MERGING for status in (T.ASSIGNED, T.RUNNING, T.WAITING, T.VERIFYING, T.UNKNOWN)},
    (T.MERGING, e.TaskCompleted): T.COMPLETED,
    (T.MERGING, e.TaskRetryScheduled): T.RETRY_WAIT,
    (T.MERGING, e.TaskFailed): T.FAILED,
    (T.MERGING, e.TaskCancelled): T.CANCELLED,
    (T.RETRY_WAIT, e.TaskQueued): T.QUEUED,
    (T.RETRY_WAIT, e.TaskCancelled): T.CANCELLED,
    **{(status, e.ReviewRefused): T.PENDING for status in (T.ASSIGNED, T.RUNNING, T.VERIFYING, T.UNKNOWN)},
    (T.COMPLETED, e.TaskSentBack): T.PENDING,
    (T.FAILED, e.TaskRevived): T.PENDING,
    (T.CANCELLED, e.TaskRevived): T.PENDING,
}

ATTEMPT: Final[Table[AttemptStatus]] = {
    (A.ASSIGNED, e.AttemptStarted): A.RUNNING,
    (A.ASSIGNED, e.AttemptVerifying): A.VERIFYING,
    (A.RUNNING, e.AttemptStarted): A.RUNNING,
    (A.RUNNING, e.AttemptVerifying): A.VERIFYING,
    (A.UNKNOWN, e.AttemptStarted): A.RUNNING,
    (A.UNKNOWN, e.AttemptVerifying): A.VERIFYING,
    (A.UNKNOWN, e.AttemptSighted): A.RUNNING,
    **{(status, e.AttemptWaiting): A.WAITING for status in (A.ASSIGNED, A.RUNNING, A.WAITING)},
    (A.UNKNOWN, e.AttemptWaiting): A.UNKNOWN,
    (A.WAITING, e.AttemptAnswered): A.RUNNING,
    (A.UNKNOWN, e.AttemptAnswered): A.UNKNOWN,
    (A.WAITING, e.AttemptStarted): A.WAITING,
    (A.WAITING, e.AttemptVerifying): A.VERIFYING,
    **{(status, e.AttemptLostSight): A.UNKNOWN for status in (A.ASSIGNED, A.RUNNING, A.WAITING, A.VERIFYING)},
    **{(status, e.AttemptEnded): A.ENDED for status in (A.ASSIGNED, A.RUNNING, A.WAITING, A.VERIFYING, A.UNKNOWN)},
}

AGENT: Final[Table[AgentStatus]] = {
    **{(status, e.AgentReady): G.IDLE for status in (G.STARTING, G.OFFLINE, G.ERROR, G.IDLE, G.SUSPECT)},
    (G.BUSY, e.AgentReady): G.BUSY,
    (G.DRAINING, e.AgentReady): G.DRAINING,
    (G.IDLE, e.AttemptAssigned): G.BUSY,
    (G.BUSY, e.AttemptEnded): G.IDLE,
    **{(status, e.AttemptEnded): status for status in (G.STARTING, G.OFFLINE, G.ERROR, G.DRAINING, G.IDLE, G.SUSPECT)},
    **{(status, e.AgentLost): G.STARTING for status in (G.STARTING, G.IDLE, G.BUSY, G.OFFLINE, G.SUSPECT)},
    (G.DRAINING, e.AgentLost): G.DRAINING,
    **{(status, e.AgentSuspected): G.SUSPECT for status in (G.IDLE, G.BUSY)},
    **{(status, e.AgentSuspected): status for status in (G.DRAINING, G.STARTING)},
    (G.SUSPECT, e.AgentCleared): G.IDLE,
    **{(status, e.AgentCleared): status for status in (G.DRAINING, G.STARTING)},
    **{(status, e.AgentSuspended): G.ERROR for status in (G.STARTING, G.IDLE, G.BUSY, G.OFFLINE, G.ERROR, G.SUSPECT)},
    **{(status, e.AgentRestarted): G.STARTING for status in (G.STARTING, G.IDLE, G.BUSY, G.OFFLINE, G.ERROR, G.SUSPECT)},
    **{(status, e.NodeLost): G.OFFLINE for status in (G.STARTING, G.IDLE, G.BUSY, G.OFFLINE, G.SUSPECT)},
    (G.ERROR, e.NodeLost): G.ERROR,
    (G.DRAINING, e.NodeLost): G.DRAINING,
    **{(status, e.AgentDraining): G.DRAINING for status in (G.STARTING, G.IDLE, G.BUSY, G.OFFLINE, G.ERROR, G.DRAINING, G.SUSPECT)},
}

NODE: Final[Table[NodeStatus]] = {
    (N.ADDED, e.NodeConnected): N.READY,
    (N.READY, e.NodeConnected): N.READY,
    (N.LOST, e.NodeConnected): N.READY,
    (N.ADDED, e.NodeLost): N.LOST,
    (N.READY, e.NodeLost): N.LOST,
    (N.LOST, e.NodeLost): N.LOST,
}

PLAN: Final[Table[PlanStatus]] = {
    (P.RUNNING, e.PlanClosed): P.COMPLETED,
    **{(status, e.PlanReopened): P.RUNNING for status in (P.FAILED, P.CANCELLED, P.RUNNING)},
}
"""`PlanClosed` carries the closing status itself: COMPLETED, or FAILED or CANCELLED if a task ended so."""

MACHINES: Final[dict[str, Table[Lifecycle] | Table[TaskStatus] | Table[AttemptStatus] | Table[AgentStatus] | Table[NodeStatus]]] = {
    "orchestra": LIFECYCLE,
    "task": TASK,
    "attempt": ATTEMPT,
    "agent": AGENT,
    "node": NODE,
}


def move(table: Table[S], status: S, event: e.Event) -> S:
    """Returns the status after the event.

    Raises:
        InvariantBroken: The table has no such step; whoever produced the event has a bug.
    """
    target = table.get((status, type(event)))
    if target is None:
        raise InvariantBroken(f"{type(event).__name__} cannot happen to one that is {status.value}: {event!r}"[:600])
    return target


def may(table: Table[S], status: S, event: type[e.Event]) -> bool:
    """Tells whether the event can happen in that status."""
    return (status, event) in table


def diagram(table: Table[S]) -> str:
    """Returns the machine as Mermaid text, one arrow per (from, to) with the events that take it; self-loops left out."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for (source, event), target in table.items():
        if source is not target:
            arrows.setdefault((source.name, target.name), []).append(event.__name__)
    lines = [f"    {a} --> {b}: {', '.join(names)}" for (a, b), names in arrows.items()]
    return "\n".join(["stateDiagram-v2", *lines])
