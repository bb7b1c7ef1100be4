"""From state to the JSON of other programs: the formats a parent, `jq` and dashboards read. Pure; one function a document.

Values are plain dicts, lists, strings, numbers and None, in the field order of their format. What is not known is null, never an invented zero.
Stamps are whole seconds in UTC ending in `Z`, because `jq`'s date functions read nothing finer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from datetime import UTC, datetime
from typing import Final, Protocol

from orchestra.core.model import AgentStatus, OutcomeKind, Review, TaskStatus, Usage
from orchestra.core.state import AgentState, AttemptState, PlanState, State, TaskState
from orchestra.costviews import ProviderLoad, Settled
from orchestra.ids import TaskId
from orchestra.quantity import MS_PER_SECOND, USD_MICROS
from orchestra.views import JudgementView, NodeView, StatusView

Json = dict[str, object]

DAY_MS: Final = 86_400_000
STAMP_MAX_MS: Final = 253_402_300_799_000
"""The last second of the year 9999, the last that RFC 3339 can write."""
ERRORS_MAX: Final = 50
"""Errors and warnings listed in one document; the attempts hold all of them."""

DIFF_FILE: Final = "diff.patch"
TEST_REPORT_FILE: Final = "test_report.html"
LOG_FILE: Final = "execution.log"
RESULT_FILE: Final = "result.json"
JUNIT_FILE: Final = "junit.xml"
TRANSCRIPT_FILE: Final = "transcript.jsonl"

QUEUE_STATUS: Final = {
    TaskStatus.PENDING: "PENDING",
    TaskStatus.QUEUED: "PENDING",
    TaskStatus.RETRY_WAIT: "PENDING",
    TaskStatus.ASSIGNED: "IN_PROGRESS",
    TaskStatus.RUNNING: "IN_PROGRESS",
    TaskStatus.WAITING: "IN_PROGRESS",
    TaskStatus.VERIFYING: "IN_PROGRESS",
    TaskStatus.MERGING: "IN_PROGRESS",
    TaskStatus.UNKNOWN: "IN_PROGRESS",
    TaskStatus.COMPLETED: "COMPLETED",
    TaskStatus.FAILED: "FAILED",
    TaskStatus.CANCELLED: "CANCELLED",
}
"""UNKNOWN counts as in progress: its attempt may still be running, and nobody else may take the task."""

IDLE_STATUS: Final = {
    AgentStatus.STARTING: "OFFLINE",
    AgentStatus.IDLE: "IDLE",
    AgentStatus.BUSY: "BUSY",
    AgentStatus.SUSPECT: "OFFLINE",
    AgentStatus.ERROR: "ERROR",
    AgentStatus.OFFLINE: "OFFLINE",
    AgentStatus.DRAINING: "IDLE",
}
"""What an agent without a task is shown as; STARTING cannot take work yet."""


class Progress(Protocol):
    """What is known of a running attempt; the engine's signals are of this shape."""

    @property
    def progress(self) -> float | None: ...


class Activity(Protocol):
    """Tells what running attempts are at; the engine's board is one."""

    def of(self, task: TaskId, number: int, /) -> Progress | None: ...


def rfc3339(ms: int) -> str:
    """Returns a UTC stamp as text, to the second: `2025-11-12T12:00:05Z`."""
    seconds = min(max(ms, 0), STAMP_MAX_MS) // MS_PER_SECOND
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def heartbeat(now_ms: int, uptime_s: int) -> Json:
    """Returns the sign of life."""
    return {"timestamp": rfc3339(now_ms), "status": "alive", "uptime_seconds": uptime_s}


def task_queue(state: State) -> Json:
    """Returns all tasks in the order they were accepted."""
    return {"tasks": [_queue_entry(state, task) for task in state.tasks.values()]}


def _queue_entry(state: State, task: TaskState) -> Json:
    spec, shown = task.spec, _shown_attempt(task)
    return {
        "task_id": task.id,
        "agent": None if shown is None else _agent_name(state, shown),
        "description": spec.description,
        "dependencies": list(spec.needs),
        "status": QUEUE_STATUS[task.status],
        "priority": int(spec.priority),
        "estimated_time": _seconds(spec.estimate_ms),
    }


def agent_status(state: State, agent: AgentState, activity: Activity) -> Json:
    """Returns what one agent does; without a task, what became of its last one is not repeated here."""
    task = None if agent.task is None else state.tasks.get(agent.task)
    attempt = None if task is None else task.attempt(agent.attempt)
    if task is None or attempt is None:
        return _agent_document(agent, IDLE_STATUS[agent.status], None, [agent.reason] if agent.reason else [])
    outcome = attempt.outcome
    known = activity.of(task.id, attempt.number)
    errors = [text for text in (agent.reason, outcome.reason if outcome else "", attempt.stop_reason) if text]
    return {
        **_agent_document(agent, _working_status(agent, attempt), task.id, errors),
        "progress": _progress(attempt, known),
        "started_at": _stamp(attempt.started_ms or attempt.assigned_ms),
        "updated_at": _stamp(max(attempt.ended_ms, attempt.started_ms, attempt.assigned_ms)),
        "output_files": list(outcome.output_files) if outcome else [],
        "next_task": _next_task(state, task),
    }


def _agent_document(agent: AgentState, status: str, task: TaskId | None, errors: list[str]) -> Json:
    return {
        "agent_id": agent.spec.name or f"agent-{agent.id:03}",
        "task_id": task,
        "status": status,
        "progress": None,
        "started_at": None,
        "updated_at": _stamp(agent.since_ms),
        "output_files": [],
        "errors": errors,
        "next_task": None,
    }


def _working_status(agent: AgentState, attempt: AttemptState) -> str:
    if agent.status in (AgentStatus.ERROR, AgentStatus.OFFLINE):
        return IDLE_STATUS[agent.status]
    if attempt.outcome is not None:
        return "COMPLETED" if attempt.outcome.kind is OutcomeKind.DONE else "FAILED"
    return "IN_PROGRESS" if attempt.started_ms else "BUSY"


def _progress(attempt: AttemptState, known: Progress | None) -> float | None:
    if attempt.outcome is not None:
        return 1.0 if attempt.outcome.kind is OutcomeKind.DONE else None
    told = None if known is None else known.progress
    return None if told is None else min(max(told, 0.0), 1.0)


def _next_task(state: State, task: TaskState) -> TaskId | None:
    """Returns the first task that only waits for this one. Agents own no queue, so this is what it leads to, not who will do it."""
    for dependent in task.dependents:
        found = state.tasks.get(dependent)
        if found is not None and not found.over and found.unmet <= 1:
            return dependent
    return None


def state_summary(state: State, settled: Settled | None = None) -> Json:
    """Returns the whole at a glance: counts, plans, nodes and totals, but no task by name. Cost is what the gateway settled, if one counted."""
    totals = state.totals
    return {
        "seq": state.seq,
        "updated_at": _stamp(state.at_ms),
        "term": state.term,
        "name": state.name,
        "status": state.lifecycle.value,
        "reason": state.reason,
        "phase": state.phase,
        "started_at": _stamp(state.started_ms),
        "nodes": {
            node.spec.id: {"status": node.status.value, "session": node.session, "reason": node.reason} for node in state.nodes.values()
        },
        "agents": {"total": len(state.agents), **_counted(agent.status.value for agent in state.agents.values())},
        "tasks": {"total": len(state.tasks), **_counted(task.status.value for task in state.tasks.values())},
        "plans": [_plan_line(plan) for plan in state.plans.values()],
        "totals": {
            "attempts": totals.attempts,
            "stale": totals.stale,
            "execution_seconds": _seconds(totals.execution_ms),
            **_cost(totals.usage, settled),
        },
    }


def _plan_line(plan: PlanState) -> Json:
    return {
        "plan": plan.id,
        "name": plan.name,
        "status": plan.status.value,
        "tasks": len(plan.tasks),
        "open": plan.open,
        "failed": plan.failed,
        "cancelled": plan.cancelled,
        "submitted_at": _stamp(plan.submitted_ms),
        "closed_at": _stamp(plan.closed_ms),
    }


def orchestra_status(
    status: StatusView,
    nodes: Sequence[NodeView],
    state: State,
    now_ms: int,
    *,
    provider: str = "anthropic",
    loads: Sequence[ProviderLoad] = (),
) -> Json:
    """Returns the health document. `today` is the UTC day of `now_ms`; `warnings` appear with a node only where there are any.

    The limits are those of each model API as the gateway keeps them; without a gateway the configured ones of one `provider`, of which no use is known.
    """
    completed, failed = ended_today(state.tasks.values(), now_ms)
    return {
        "timestamp": rfc3339(now_ms),
        "overall_status": status.health,
        "nodes": {node.name: _node_document(node) for node in nodes},
        "api_limits": {load.name: _load(load) for load in loads}
        or {provider: {**_usage("rpm", status.api_limits.rpm_usage), **_usage("tpm", status.api_limits.tpm_usage)}},
        "tasks": {
            "queued": status.tasks.queued,
            "in_progress": status.tasks.in_progress,
            "completed_today": completed,
            "failed_today": failed,
        },
        "uptime_seconds": status.uptime_seconds,
    }


def ended_today(tasks: Iterable[TaskState], now_ms: int) -> tuple[int, int]:
    """Returns how many tasks completed and how many failed since midnight UTC."""
    midnight = now_ms - now_ms % DAY_MS
    today = Counter(task.status for task in tasks if task.ended_ms >= midnight and task.over)
    return today[TaskStatus.COMPLETED], today[TaskStatus.FAILED]


def _node_document(node: NodeView) -> Json:
    values: Json = {
        "status": node.status,
        "agents_running": node.agents_running,
        "agents_total": node.agents_total,
        "cpu_percent": node.cpu_percent,
        "memory_percent": node.memory_percent,
        "ssh_connected": node.connected,
    }
    return values | ({"warnings": [node.reason]} if node.reason else {})


def _usage(name: str, text: str) -> Json:
    """Returns the three figures behind `used/limit`; a part that is no number was not measured, and a limit of 0 is none."""
    used, _, limit = (part.strip() for part in text.partition("/"))
    current = int(used) if used.isascii() and used.isdigit() else None
    most = int(limit) if limit.isascii() and limit.isdigit() and int(limit) else None
    return _share(name, current, most)


def _load(load: ProviderLoad) -> Json:
    return {**_share("rpm", load.rpm_used, load.rpm_limit), **_share("tpm", load.tpm_used, load.tpm_limit)}


def _share(name: str, current: int | None, most: int | None) -> Json:
    percent = None if current is None or not most else round(100 * current / most, 1)
    return {f"{name}_current": current, f"{name}_limit": most, f"{name}_usage_percent": percent}


def result(
    task: TaskState,
    folder: str,
    present: Collection[str] | None = None,
    settled: Settled | None = None,
    *,
    created: Sequence[str] = (),
    rehearsal: bool = False,
    judged: Sequence[JudgementView] = (),
) -> Json:
    """Returns the result document of one task.

    Args:
        task: The task, over or not.
        folder: Where its artifacts are, as the reader is to see it: `.codex/results/<task>`.
        present: Names of the files that exist there. None if nobody looked: then the log is named for every task that was tried, as it is
            written together with this document, and the others are null.
        created: Files that its patch makes; the agent may have named further ones.
        rehearsal: No model was asked; said in a field of its own, which is there only then.
        settled: What the gateway settled for the task; None if none counted, and then what its agents' programs said is taken.
        judged: What agents think of those of its criteria that no program can check.
    """
    outcome = task.result()
    metrics = {} if outcome is None else outcome.metrics
    counted = _shown_attempt(task)
    return {
        "task_id": task.id,
        "status": task.status.value,
        "started_at": _stamp(task.started_ms),
        "completed_at": _stamp(task.ended_ms),
        "duration_seconds": _seconds(task.ended_ms - task.started_ms) if task.started_ms and task.ended_ms else None,
        "assigned_agents": list(dict.fromkeys(attempt.agent for attempt in task.attempts)),
        "primary_agent": counted.agent if counted is not None and task.primary else None,
        "result": {
            "success": task.status is TaskStatus.COMPLETED,
            "output": {
                "files_created": list(dict.fromkeys((*(outcome.output_files if outcome else ()), *created))),
                "tests_passed": _count(metrics.get("tests_passed")),
                "tests_failed": _count(metrics.get("tests_failed")),
                "coverage_percent": metrics.get("coverage_percent"),
                "linter_errors": _count(metrics.get("linter_errors")),
            },
            "artifacts": _artifacts(task, folder, present),
        },
        "cost": _cost(_usage_of(task), settled),
        "errors": _errors(task),
        "warnings": [*task.spec.warnings, *_warnings(task)],
        **({"base_commit": counted.base} if counted is not None and counted.base else {}),
        **({"rehearsal": True} if rehearsal else {}),
        **(
            {"judged": [{"criterion": j.criterion, "met": j.met, "evidence": j.evidence, "by": j.by, "agent": j.kind} for j in judged]}
            if judged
            else {}
        ),
        **({"merged": {"branch": task.branch, "commit": task.commit}} if task.commit else {}),
        **({} if task.spec.origin is None else {"planned_by": task.spec.origin}),
        **({} if outcome is None or outcome.review is None else {"review": _review(task, outcome.review)}),
    }


def _review(task: TaskState, review: Review) -> Json:
    """Returns what a review came to. What an agent thinks of a criterion is marked as judged: nothing was executed."""
    return {
        "reviews": task.spec.reviews,
        "verdict": "approve" if review.approved else "refuse",
        "summary": review.summary,
        "findings": [{"severity": f.severity, "file": f.file or None, "line": f.line or None, "text": f.text} for f in review.findings],
        "judged": [{"criterion": j.criterion, "met": j.met, "evidence": j.evidence} for j in review.judgements],
    }


def _artifacts(task: TaskState, folder: str, present: Collection[str] | None) -> Json:
    there = ((LOG_FILE,) if task.attempts else ()) if present is None else present
    names = {"code_diff": DIFF_FILE, "test_report": TEST_REPORT_FILE, "logs": LOG_FILE}
    return {field: f"{folder.rstrip('/')}/{name}" if name in there else None for field, name in names.items()}


def _errors(task: TaskState) -> list[str]:
    """Returns why the task did not succeed; empty for one that did, whatever went wrong on the way."""
    if task.status is TaskStatus.COMPLETED:
        return []
    outcome = task.result()
    failed = [] if outcome is None else [f"check {check.name}: {check.how}" for check in outcome.checks if not check.passed]
    reasons = [task.reason, "" if outcome is None else outcome.reason, task.cancel_reason, *failed]
    return list(dict.fromkeys(reason for reason in reasons if reason))[:ERRORS_MAX]


def _warnings(task: TaskState) -> list[str]:
    """Returns what went wrong on the way: attempts that do not count and did not end well."""
    counted = _shown_attempt(task)
    bad = [
        attempt for attempt in task.attempts if attempt is not counted and attempt.outcome and attempt.outcome.kind is not OutcomeKind.DONE
    ]
    return [_warning(attempt) for attempt in bad][-ERRORS_MAX:]


def _warning(attempt: AttemptState) -> str:
    outcome = attempt.outcome
    kind, reason = ("", "") if outcome is None else (outcome.kind.value, outcome.reason)
    return f"attempt {attempt.number} on agent #{attempt.agent} ended as {kind}" + (f": {reason}" if reason else "")


def _usage_of(task: TaskState) -> Usage:
    """Returns what all attempts consumed: a failed one is paid for as well."""
    total = Usage()
    for attempt in task.attempts:
        if attempt.outcome is not None:
            total = total.plus(attempt.outcome.usage)
    return total


def _cost(usage: Usage, settled: Settled | None = None) -> Json:
    if settled is not None:
        return {
            "api_requests": settled.requests,
            "tokens_consumed": settled.tokens,
            "estimated_cost_dollars": settled.cost_usd_micros / USD_MICROS,
        }
    return {
        "api_requests": usage.requests,
        "tokens_consumed": usage.tokens_input + usage.tokens_output + usage.tokens_cache_read + usage.tokens_cache_write,
        "estimated_cost_dollars": usage.cost_usd_micros / USD_MICROS,
    }


def _shown_attempt(task: TaskState) -> AttemptState | None:
    """Returns the attempt that stands for the task: the one that counts, else a live one, else the last."""
    if task.primary:
        return task.attempt(task.primary)
    live = task.live_attempts()
    return live[0] if live else (task.attempts[-1] if task.attempts else None)


def _agent_name(state: State, attempt: AttemptState) -> str:
    agent = state.agents.get(attempt.agent)
    return (agent.spec.name if agent is not None else "") or f"agent-{attempt.agent:03}"


def _counted(words: Iterable[str]) -> dict[str, int]:
    return dict(sorted(Counter(words).items()))


def _stamp(ms: int) -> str | None:
    return rfc3339(ms) if ms else None


def _seconds(ms: int) -> int:
    return max(0, round(ms / MS_PER_SECOND))


def _count(value: float | None) -> int | None:
    return None if value is None else int(value)
