"""Kinds of agents that are not to be had, and who takes their tasks meanwhile.

Theory. A kind is lost when it is known that nobody can do its tasks: its programs are on none of the nodes that have agents for it (PROGRAMS), or
attempts of it end one after the other because the program cannot be started or its login is refused (FAILURES). What may only be out of sight (lost or
drained nodes, agents that were given up) makes a kind missed, and a missed kind is lost when the grace for that is over. Only kinds that have an
alternative are looked at, and only when a task of theirs could start.

Tasks move when they are ready, not before: a task whose needs run for another hour keeps its kind, which may be back by then. What has moved stays moved.
A kind comes back when its programs are seen again, when an attempt of it succeeds, or, where its login failed, after a while: then it is tried again.

An attempt that ended because its kind cannot work (`Outcome.kind_unable`) costs its task no retry where another kind could take the task: it is tried
once more, and moves when its kind is lost, or when it has ended so too often itself.

The functions here are `decide`'s, `follow`'s and `evolve`'s for these events, and keep their rules.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec

from orchestra.core import commands as c
from orchestra.core import events as e
from orchestra.core.fleet import node_suits
from orchestra.core.merging import requeue_now
from orchestra.core.model import ANY_KIND, AgentStatus, Lifecycle, NodeStatus, Outcome, OutcomeKind, TaskSpec
from orchestra.core.state import AttemptState, KindState, State, TaskState

Events = list[e.Event]
ProgramsOf = Callable[[str], tuple[str, ...]]

PROGRAMS: Final = "programs"
FAILURES: Final = "failures"
OUT: Final = (AgentStatus.DRAINING, AgentStatus.ERROR)
WORKING: Final = (Lifecycle.READY, Lifecycle.RUNNING, Lifecycle.SCALING)
SUCCEEDED: Final = (OutcomeKind.DONE, OutcomeKind.UNVERIFIED)
"""Ends that show that a kind works: its program ran, and its login was taken."""
STRUCK_TASKS_MAX: Final = 10
"""Tasks remembered a node; a setting that asks for more failures than these would never be met."""
MOVES_MAX: Final = 3
"""Where kinds stand in for each other, a task does not wander for ever."""

# --- what is to be had -----------------------------------------------------------------------------------------------


def lacking(s: State, spec: TaskSpec, kind: str, programs_of: ProgramsOf) -> str:
    """Returns why no agent of that kind can do the task now, or nothing. Of nodes that were never seen nothing is known, which is no reason."""
    if not any(node.status is not NodeStatus.ADDED for node in s.nodes.values()):
        return ""
    able = [a for a in s.agents.values() if a.spec.kind in (ANY_KIND, kind) and a.status not in OUT and node_suits(s, a.spec.node, spec)]
    if not able:
        return f"no agent of the fleet takes tasks of kind {kind}"
    needed = looked_for(programs_of(kind))
    nodes = [s.nodes[agent.spec.node] for agent in able]
    if not any(node.status is NodeStatus.ADDED or needed <= set(node.programs) for node in nodes):
        return f"{kind} is not installed on any node that may have the task"
    return ""


def looked_for(programs: tuple[str, ...]) -> frozenset[str]:
    """Returns those of a kind's programs that nodes are asked for: one that is named by its path is not looked for."""
    return frozenset(program for program in programs if "/" not in program)


def is_lost(s: State, kind: str) -> bool:
    """Tells whether it is known that nobody can do tasks of the kind."""
    known = s.kinds.get(kind)
    return known is not None and known.lost_ms > 0


def moved(spec: TaskSpec, other: str, why: str, slower_percent: int) -> TaskSpec:
    """Returns the task as one of another kind: with a longer estimate, without a wish for a model that the other does not know, and with a warning."""
    return msgspec.structs.replace(
        spec,
        kind=other,
        estimate_ms=spec.estimate_ms * (100 + slower_percent) // 100,
        slower_percent=spec.slower_percent + slower_percent,
        requirements=without_model(spec.requirements),
        warnings=(*spec.warnings, f"moved from {spec.kind} to {other}: {why}; expected to take {slower_percent} % longer"),
    )


def without_model(requirements: str) -> str:
    """Returns the requirements without a wish for a model."""
    try:
        values = msgspec.json.decode(requirements)
    except msgspec.DecodeError:
        return requirements
    if not isinstance(values, dict) or "model" not in values:
        return requirements
    return msgspec.json.encode({name: value for name, value in values.items() if name != "model"}).decode()


def _absence(s: State, kind: str, policy: c.Policy) -> tuple[str, bool]:
    """Returns why no agent in sight does tasks of the kind, or nothing; and whether that is certain rather than a matter of our sight."""
    needed = looked_for(policy.kind_programs.get(kind, ()))
    in_sight = hoped = False
    for agent in s.agents.values():
        if agent.spec.kind not in (ANY_KIND, kind):
            continue
        node = s.nodes[agent.spec.node]
        there = node.status is NodeStatus.ADDED or needed <= set(node.programs)
        if node.status is NodeStatus.READY and not node.draining and agent.status not in OUT:
            if there:
                return "", False
            in_sight = True
        else:
            hoped = hoped or there
    if in_sight and not hoped:
        return f"{kind} is not installed any more on any node that has agents for it", True
    if in_sight or hoped:
        return f"no node that has {kind} and agents for it is in use", False
    return f"no agent of the fleet takes tasks of kind {kind}", False


def _notice(s: State, kind: str, policy: c.Policy) -> Events:
    """Returns what is to be said of a kind of which a task could start."""
    known = s.kinds.get(kind)
    if s.lifecycle not in WORKING or (known is not None and (known.lost_ms or known.missed_ms)):
        return []
    why, certain = _absence(s, kind, policy)
    if not why:
        return []
    return [_lost(kind, why, PROGRAMS, policy) if certain else e.KindMissed(kind, why)]


def _lost(kind: str, why: str, cause: str, policy: c.Policy) -> e.Event:
    return e.KindLost(kind, why, cause, policy.alternatives[kind])


def _back(kind: str, known: KindState, why: str) -> e.Event:
    return e.KindRecovered(kind, why, known.lost_ms > 0)


# --- reports and time ------------------------------------------------------------------------------------------------


def programs_seen(s: State, cmd: c.ProgramsSeen, now: int, policy: c.Policy) -> Events:
    node = s.nodes.get(cmd.node)
    known = node is None or node.status is not NodeStatus.READY or node.programs == cmd.programs
    return [] if known else [e.ProgramsChanged(cmd.node, cmd.programs)]


def kinds_due(s: State, now: int, policy: c.Policy) -> Iterator[e.Event]:
    """Yields what a tick makes due: grace that is over, and kinds that are back or are to be tried again."""
    for kind, known in list(s.kinds.items()):
        if not (known.lost_ms or known.missed_ms) or s.lifecycle not in WORKING:
            continue
        if kind not in policy.alternatives:
            yield _back(kind, known, "no other kind takes its tasks any more")  # the settings are others than they were
        elif known.cause == FAILURES:
            if now - known.lost_ms >= policy.kind_retry_ms:
                yield _back(kind, known, "it is tried again")
        else:
            yield from _absence_due(s, kind, known, now, policy)


def _absence_due(s: State, kind: str, known: KindState, now: int, policy: c.Policy) -> Events:
    why, certain = _absence(s, kind, policy)
    if not why:
        return [_back(kind, known, "it is there again")]
    if known.lost_ms:
        return []
    # A node's loss begins its own grace: at a restart of ours all are lost for a moment.
    since_ms = max(known.missed_ms, *(node.since_ms for node in s.nodes.values() if node.status is NodeStatus.LOST), 0)
    return [_lost(kind, why, PROGRAMS, policy)] if certain or now - since_ms > policy.unknown_grace_ms else []


# --- consequences ----------------------------------------------------------------------------------------------------


def look_at_kinds(s: State, policy: c.Policy) -> Iterator[e.Event]:
    """The fleet has changed: kinds of which tasks are ready may have gone, and others that could stand in may have come."""
    for kind in policy.alternatives:
        known, absent = s.kinds.get(kind), _absence(s, kind, policy)[0]
        if known is not None and (known.lost_ms or known.missed_ms) and known.cause != FAILURES and not absent:
            yield _back(kind, known, "it is there again")
        elif known is not None and known.lost_ms:
            yield from _moves(s, kind, policy)
        elif absent and any(s.tasks[task].spec.kind == kind for task in s.queued):
            yield from _notice(s, kind, policy)


def look_again(s: State, policy: c.Policy) -> Iterator[e.Event]:
    """Somebody has come: that may end a trouble, and never begins one."""
    if s.kinds:
        yield from look_at_kinds(s, policy)


def _after_fleet_change(s: State, ev: e.Event, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from look_at_kinds(s, policy)


def after_queued(s: State, task: TaskState, policy: c.Policy) -> Iterator[e.Event]:
    """A task could start: if its kind is not to be had, another one takes it."""
    kind = task.spec.kind
    if kind not in policy.alternatives:
        return
    yield from _notice(s, kind, policy)  # and with a loss, everything that waits moves
    known = s.kinds.get(kind)
    if known is not None and known.lost_ms and task.spec.kind == kind and (move := _move(s, task, known.reason, policy)) is not None:
        yield move


def _after_kind_lost(s: State, ev: e.KindLost, now: int, policy: c.Policy) -> Iterator[e.Event]:
    yield from _moves(s, ev.kind, policy)


def _moves(s: State, kind: str, policy: c.Policy) -> Iterator[e.Event]:
    """Yields the move of each ready task of a kind that is lost."""
    for name in [task for task in s.queued if s.tasks[task].spec.kind == kind]:
        known = s.kinds.get(kind)
        move = None if known is None or name not in s.queued else _move(s, s.tasks[name], known.reason, policy)
        if move is not None:
            yield move


def after_attempt_of_kind(s: State, task: TaskState, outcome: Outcome, policy: c.Policy) -> Iterator[e.Event]:
    """An attempt says something about its kind: that it works, or once too often that it does not."""
    kind = task.spec.kind
    known = s.kinds.get(kind)
    if known is None:
        return
    if outcome.kind in SUCCEEDED and known.lost_ms and known.cause == FAILURES:
        yield _back(kind, known, f"an attempt of {task.id} succeeded")
    elif outcome.kind_unable and not known.lost_ms and kind in policy.alternatives and _is_enough(s, kind, known, policy):
        yield _lost(kind, f"{kind} does not work: {outcome.reason}", FAILURES, policy)


def _is_enough(s: State, kind: str, known: KindState, policy: c.Policy) -> bool:
    """Different tasks failed in a row, and not by the fault of one node among several: on two of them, or on all that do such tasks."""
    tasks = {task for struck in known.struck.values() for task in struck}
    if not policy.kind_failures_max or len(tasks) < policy.kind_failures_max:
        return False
    doing = {agent.spec.node for agent in s.agents.values() if agent.spec.kind in (ANY_KIND, kind) and agent.status not in OUT}
    return len(known.struck) > 1 or {node for node in doing if s.nodes[node].usable} <= set(known.struck)


def unable(s: State, task: TaskState, outcome: Outcome, now: int, policy: c.Policy) -> Events | None:
    """Returns what becomes of a task whose attempt ended because its kind cannot work, or None if that counts like any other failure."""
    if not outcome.kind_unable or not policy.kind_failures_max:
        return None
    known = s.kinds.get(task.spec.kind)
    lost = known is not None and known.lost_ms > 0
    why = known.reason if known is not None and lost else f"{task.spec.kind} does not work for it: {outcome.reason}"
    move = _move(s, task, why, policy)
    if move is None:
        return None
    forgiven = sum(_is_unable(attempt) for attempt in task.attempts[task.round_start - 1 :])
    if lost or task.unable >= policy.kind_failures_max:
        return [move, e.TaskRetryScheduled(task.id, now, outcome.reason, forgiven), *requeue_now(s, task)]
    return [e.TaskRetryScheduled(task.id, now + policy.deferred_retry_ms, outcome.reason, forgiven)]


def _is_unable(attempt: AttemptState) -> bool:
    return attempt.outcome is not None and attempt.outcome.kind_unable


def _move(s: State, task: TaskState, why: str, policy: c.Policy) -> e.TaskMoved | None:
    """Returns what gives the task to the kind that stands in for its own; None if none does, or that one is not to be had either."""
    spec = task.spec
    other = policy.alternatives.get(spec.kind)
    if other is None or spec.agent_fixed or task.moves >= MOVES_MAX or is_lost(s, other):
        return None
    able = sum(a.spec.kind in (ANY_KIND, other) and a.status not in OUT and node_suits(s, a.spec.node, spec) for a in s.agents.values())
    if able < spec.replicas or lacking(s, spec, other, lambda kind: policy.kind_programs.get(kind, ())):
        return None
    to = moved(spec, other, why, policy.slower_percent)
    return e.TaskMoved(task.id, spec.kind, other, to.estimate_ms, to.warnings[-1], to.requirements != spec.requirements, to.slower_percent)


CONSEQUENCES_OF_KINDS: Final[dict[type[e.Event], Callable[[State, Any, int, c.Policy], Iterator[e.Event]]]] = {
    e.NodeConnected: _after_fleet_change,
    e.ProgramsChanged: _after_fleet_change,
    e.NodeDraining: _after_fleet_change,
    e.ScaleCompleted: _after_fleet_change,
    e.KindLost: _after_kind_lost,
}

# --- folds -----------------------------------------------------------------------------------------------------------


def note_end(s: State, task: TaskState, attempt: AttemptState, outcome: Outcome) -> None:
    """Remembers what an attempt's end says about its kind."""
    kind = task.spec.kind
    task.unable = task.unable + 1 if outcome.kind_unable else 0
    known = s.kinds.get(kind)
    if outcome.kind_unable:
        known = s.kinds.setdefault(kind, KindState())
        struck = (*(name for name in known.struck.get(attempt.node, ()) if name != task.id), task.id)
        known.struck[attempt.node] = struck[-STRUCK_TASKS_MAX:]
    elif known is not None and outcome.kind in SUCCEEDED:
        known.struck.clear()
        if not known.lost_ms and not known.missed_ms:
            del s.kinds[kind]


def _fold_missed(s: State, ev: e.KindMissed, at: int) -> None:
    known = s.kinds.setdefault(ev.kind, KindState())
    known.missed_ms, known.reason = at, ev.reason


def _fold_lost(s: State, ev: e.KindLost, at: int) -> None:
    known = s.kinds.setdefault(ev.kind, KindState())
    known.missed_ms, known.lost_ms = 0, at
    known.reason, known.cause, known.other = ev.reason, ev.cause, ev.other


def _fold_recovered(s: State, ev: e.KindRecovered, at: int) -> None:
    s.kinds.pop(ev.kind, None)


def _fold_moved(s: State, ev: e.TaskMoved, at: int) -> None:
    task = s.tasks[ev.task]
    task.moves, task.unable = task.moves + 1, 0
    task.spec = msgspec.structs.replace(
        task.spec,
        kind=sys.intern(ev.kind),  # a snapshot leaves out what is the default itself, and that is told by identity
        estimate_ms=ev.estimate_ms,
        slower_percent=ev.slower_percent,
        requirements=without_model(task.spec.requirements) if ev.without_model else task.spec.requirements,
        warnings=(*task.spec.warnings, ev.warning),
    )


def _fold_programs(s: State, ev: e.ProgramsChanged, at: int) -> None:
    s.nodes[ev.node].programs = ev.programs


KIND_FOLDS: Final[dict[type[e.Event], Callable[[State, Any, int], None]]] = {
    e.KindMissed: _fold_missed,
    e.KindLost: _fold_lost,
    e.KindRecovered: _fold_recovered,
    e.TaskMoved: _fold_moved,
    e.ProgramsChanged: _fold_programs,
}
