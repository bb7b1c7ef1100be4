"""Why is this task not running? One sentence, from the state alone."""

from __future__ import annotations

from collections import Counter

from orchestra.core.fleet import node_suits, suits, wants
from orchestra.core.model import AgentStatus, Lifecycle, NodeStatus, Strategy, TaskSpec, TaskStatus
from orchestra.core.state import AgentState, State, TaskState
from orchestra.ids import TaskId
from orchestra.quantity import show_ms
from orchestra.scheduling.admission import Gate
from orchestra.scheduling.overlaps import Overlap, overlap_of
from orchestra.scheduling.scheduler import is_free, may_assign


def explain(state: State, task_id: TaskId, now_ms: int, gate: Gate | None = None, *, serialised: bool = True) -> str:
    """Returns one sentence that says where the task stands and what it waits for; `gate` knows how much the nodes can carry, `serialised` says whether
    tasks that change the same files wait for each other.

    Raises:
        NotFound: There is no such task.
    """
    task = state.task(task_id)
    said = _stands(state, task, now_ms, gate, serialised=serialised)
    return " ".join((said, *(f"It was {warning}." for warning in task.spec.warnings[-task.moves :] if task.moves)))


def _stands(state: State, task: TaskState, now_ms: int, gate: Gate | None, *, serialised: bool) -> str:
    task_id = task.id
    match task.status:
        case TaskStatus.PENDING:
            return _pending(state, task)
        case TaskStatus.QUEUED:
            overlap = overlap_of(state, task) if serialised else None
            return (_queued(state, task, now_ms, gate) if overlap is None else _behind(task, overlap)) + _kind_trouble(state, task)
        case TaskStatus.RETRY_WAIT:
            wait = show_ms(max(0, task.ready_ms - now_ms))
            tries = f"{task.failures} of {task.spec.retries} retries used"
            return f"{task_id} is tried again in {wait} ({tries}); the last attempt: {task.reason}."
        case TaskStatus.UNKNOWN:
            return f"{task_id} runs as far as we know, but we lost sight of it: {task.reason}."
        case TaskStatus.WAITING:
            asking = next((attempt for attempt in task.live_attempts() if attempt.question), None)
            who = "" if asking is None else f" of agent #{asking.agent}, {show_ms(max(0, now_ms - asking.waiting_ms))} old"
            return f'{task_id} waits for an answer to a question{who}: `orchestra task answer {task_id} "..."`.'
        case TaskStatus.ASSIGNED | TaskStatus.RUNNING | TaskStatus.VERIFYING:
            agents = ", ".join(f"#{attempt.agent}" for attempt in task.live_attempts())
            word = {"assigned": "is being started", "running": "is running", "verifying": "is being verified"}[task.status.value]
            return f"{task_id} {word} on agent {agents}" + (
                f"; it is being cancelled: {task.cancel_reason}." if task.cancel_reason else "."
            )
        case TaskStatus.MERGING:
            return f"{task_id} is verified; what attempt {task.merging} did is being merged into the plan's branch."
        case TaskStatus.COMPLETED:
            return f"{task_id} is completed: attempt {task.primary} passed its verification."
        case TaskStatus.FAILED | TaskStatus.CANCELLED:
            return f"{task_id} {task.status.value}: {task.reason}."


def _pending(state: State, task: TaskState) -> str:
    open_needs = [state.tasks[need] for need in task.spec.needs if state.tasks[need].status is not TaskStatus.COMPLETED]
    shown = ", ".join(f"{need.id} ({need.status.value})" for need in open_needs[:5])
    more = f" and {len(open_needs) - 5} more" if len(open_needs) > 5 else ""
    return f"{task.id} waits for {shown}{more} to complete.{_kind_trouble(state, task)}"


def _kind_trouble(state: State, task: TaskState) -> str:
    """Says what is known of a kind that is not to be had, and who takes the task; nothing where there is no such trouble."""
    known = state.kinds.get(task.spec.kind)
    if known is None or not (known.lost_ms or known.missed_ms):
        return ""
    if task.spec.agent_fixed:
        return f" Its kind is not to be had: {known.reason}; it may have no other (`agent_fixed`)."
    if known.missed_ms:
        return f" Its kind is out of sight: {known.reason}; another one takes it if that lasts."
    if task.status is TaskStatus.PENDING:
        return f" Its kind is not to be had: {known.reason}; {known.other} takes it if that is still so when it is ready."
    return f" Its kind is not to be had: {known.reason}; nor is {known.other}, which would take it."


def _behind(task: TaskState, overlap: Overlap) -> str:
    paths = repr(overlap.theirs) if overlap.theirs == overlap.ours else f"{overlap.theirs!r}, which meets its own {overlap.ours!r}"
    if overlap.changed:
        return f"{task.id} is ready and waits for {overlap.task} to be over, as that one has changed {paths} already (`files`)."
    return f"{task.id} is ready and waits for {overlap.task} to be over, as that one may change {paths} too (`files`)."


def _queued(state: State, task: TaskState, now_ms: int, gate: Gate | None) -> str:
    spec = task.spec
    able = [agent for agent in state.agents.values() if suits(state, agent.spec, spec)]
    up = [agent for agent in able if agent.status in (AgentStatus.IDLE, AgentStatus.BUSY)]
    free = [agent for agent in able if is_free(state, agent)]
    if not may_assign(state):
        if state.lifecycle is Lifecycle.DRAINING:
            return f"{task.id} is ready, but the orchestra is draining and starts nothing new; it goes on after the next start."
        return f"{task.id} is ready, but the orchestra is {state.lifecycle.value}."
    what = wants(spec)
    if not able:
        return f"{task.id} is ready, but {_nobody(state, spec)}."
    if not up:
        why = "; ".join(_trouble(state, spec)) or "their workers are down"
        return f"{task.id} is ready, but none of the {len(able)} agents of {what} is up: {why}."
    if len(free) >= spec.replicas and (held := _held(free, spec, gate)):
        return f"{task.id} is ready and waits although {len(free)} agents are free: {held}."
    if len(free) < spec.replicas:
        ahead = sum(state.tasks[each].spec.priority <= spec.priority for each in state.queued if each != task.id)
        many = f"{spec.replicas} free agents" if spec.replicas > 1 else "a free agent"
        return (
            f"{task.id} is ready and waits for {many} of {what}: {len(up) - len(free)} of {len(up)} are busy, {ahead} other tasks wait too"
            + "".join(f"; {trouble}" for trouble in _trouble(state, spec))
            + "."
        )
    if not any(agent.spec.category in ("", spec.category) for agent in free):
        return f"{task.id} is ready, but {_kept(free, spec)}."
    if spec.strategy is Strategy.AFFINITY:
        return f"{task.id} is ready and waits for the agent it has affinity to, which is busy."
    return f"{task.id} is ready and is assigned next."


def _nobody(state: State, spec: TaskSpec) -> str:
    """Says why there is no agent for the task, and what would help."""
    places = [node for name, node in state.nodes.items() if node_suits(state, name, spec)]
    trouble = _trouble(state, spec)
    if trouble and not any(node.usable for node in places):
        return f"there is no agent of {wants(spec)}, and none can be added now: {'; '.join(trouble)}"
    return f"the fleet has no agent of {wants(spec)}; add one with `orchestra scale`"


def _kept(free: list[AgentState], spec: TaskSpec) -> str:
    """Says for which categories the free agents are kept, and what would help."""
    kept = Counter(agent.spec.category for agent in free)
    whose = ", ".join(f"{category} ({count})" for category, count in sorted(kept.items()))
    return (
        f"the free agents are kept for tasks of their own categories: {whose}; "
        f"give it one of these, or use a roster with more agents for {spec.category or 'all categories'}"
    )


def _trouble(state: State, spec: TaskSpec) -> list[str]:
    """Says what keeps the nodes that suit the task from taking work."""
    found: list[str] = []
    for name, node in state.nodes.items():
        if not node_suits(state, name, spec):
            continue
        if node.status is not NodeStatus.READY:
            found.append(f"node {name} is out of sight, and takes work again when it is back (`orchestra node list` says more)")
        elif node.breaker is not None:
            found.append(f"nothing is started on node {name}: {node.breaker.cause}")
        elif node.draining:
            found.append(f"node {name} is being drained (`orchestra node resume {name}` uses it again)")
    return found


def _held(free: list[AgentState], spec: TaskSpec, gate: Gate | None) -> str:
    """Says why none of the nodes with a free agent can carry the task, or nothing if enough can."""
    if gate is None:
        return ""
    reasons = [gate.refusal(agent.spec, spec) for agent in free]
    return "; ".join(dict.fromkeys(filter(None, reasons))) if reasons.count("") < spec.replicas else ""
