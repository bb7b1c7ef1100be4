"""What a node reports, in the core's words. The agent kinds have their say here: their verdict turns an end into an outcome."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import Adapter, Exit, Signal, Verdict
from orchestra.agents.causes import blames_kind
from orchestra.agents.ending import outcome
from orchestra.core import commands as c
from orchestra.core.model import AgentStatus, CheckResult, Outcome, OutcomeKind, TaskSpec
from orchestra.core.state import State, TaskState
from orchestra.engine.returns import KIND_ERRORS, ReturnOptions, ReturnReader
from orchestra.ids import AttemptId, TaskId
from orchestra.node import Record
from orchestra.protocol.text import printable

QUESTION_CHARACTERS_MAX: Final = 2000
Finder = Callable[[str], Adapter]
Ruler = Callable[[TaskSpec, AttemptId, str], tuple[OutcomeKind, str] | None]
"""Says what a failure with such a reason is in truth, by what others saw: deferred, or refused. None where the agent's word stands."""


class Translator:
    """Records to commands, and to signals for the activity board."""

    def __init__(
        self, state: Callable[[], State], find_adapter: Finder, ruler: Ruler | None = None, returns: ReturnOptions | None = None
    ) -> None:
        self._state = state
        self._find = find_adapter
        self._ruler = ruler
        self._returns = ReturnReader(find_adapter, returns or ReturnOptions())

    def commands(self, record: Record) -> list[c.Command]:
        """Returns what the core has to know of the record."""
        rule = _RULES.get(record.kind)
        return [] if rule is None else rule(self, record)

    def signal(self, record: Record) -> tuple[AttemptId, Signal] | None:
        """Returns what a printed line tells about a running attempt."""
        line = record.body.get("line")
        task = self._state().tasks.get(TaskId(record.task))
        if record.kind != "signal" or task is None or not isinstance(line, dict):
            return None
        attempt = task.attempt(record.attempt)
        if attempt is None or not attempt.live:
            return None  # of something that is over: nobody would ever take it off the board
        try:
            found = self._find(task.spec.kind).signal(line)
        except KIND_ERRORS:
            return None
        return None if found is None else (AttemptId(task.id, record.attempt), found)

    def waiting(self, attempt: AttemptId, signal: Signal) -> list[c.Command]:
        """Returns what the core has to know of a signal: that its agent waits for an answer, or does so no more."""
        if signal.waiting_for:
            return [c.AttemptAsks(attempt.task, attempt.number, printable(signal.waiting_for)[:QUESTION_CHARACTERS_MAX], signal.number)]
        return [c.AttemptGoesOn(attempt.task, attempt.number)]

    def finished(self, attempt: AttemptId, done: dict[str, Any]) -> c.Command | None:
        """Returns the end of an attempt from the content of its exit.json (or `done` record), or None for a task we do not know."""
        task = self._state().tasks.get(attempt.task)
        if task is None:
            return None
        end = _exit_of(done.get("exit"))
        checks = _checks_of(done.get("checks"))
        if end is None:
            broken = Outcome(OutcomeKind.FAILED, "the worker's account of the end cannot be read")
            return c.AttemptFinished(attempt.task, attempt.number, broken)
        verdict = self._own_usage(self._verdict(task.spec, end), task, attempt.number)
        missing = verdict.kind is OutcomeKind.DONE and len(checks) < len(task.spec.checks)
        result = outcome(verdict, end, checks)
        if blames_kind(verdict, end, self._programs(task.spec)):
            result = msgspec.structs.replace(result, kind_unable=True)
        if self._ruler is not None and verdict.kind in (OutcomeKind.FAILED, OutcomeKind.REFUSED, OutcomeKind.TIMEOUT):
            ruling = self._ruler(task.spec, attempt, verdict.reason)
            if ruling is not None:
                result = msgspec.structs.replace(result, kind=ruling[0], reason=ruling[1], kind_unable=False)
        if missing:
            # A need is met only by verified work: an end without its checks is not done, whatever the agent said.
            result = msgspec.structs.replace(result, kind=OutcomeKind.UNVERIFIED, reason="said done, but its checks were not run")
        planned: tuple[TaskSpec, ...] = ()
        if task.spec.returns and result.kind is OutcomeKind.DONE:
            result, planned = self._returns.read(self._state(), task, result, done.get("returned"))
        return c.AttemptFinished(attempt.task, attempt.number, result, planned)

    def _verdict(self, spec: TaskSpec, end: Exit) -> Verdict:
        """Asks the kind. It may have been uninstalled since, or be broken: the end is told all the same, or no restart would get past it."""
        try:
            return self._find(spec.kind).verdict(spec, end)
        except KIND_ERRORS as error:
            return Verdict(OutcomeKind.FAILED, f"agent kind {spec.kind!r} could not judge the end: {error}")

    def _programs(self, spec: TaskSpec) -> tuple[str, ...]:
        try:
            return self._find(spec.kind).programs
        except KIND_ERRORS:
            return ()

    def _own_usage(self, verdict: Verdict, task: TaskState, number: int) -> Verdict:
        """Takes off what was used before, where the agent counts from the beginning of a session that earlier attempts were in too."""
        attempt = task.attempt(number)
        agent = None if attempt is None else self._state().agents.get(attempt.agent)
        if not (verdict.usage_of_session and verdict.session):
            return verdict
        known = None if agent is None else agent.sessions.get(verdict.session)
        if known is not None:
            return msgspec.structs.replace(verdict, usage=verdict.usage.minus(known.usage))
        usage = verdict.usage  # its agent is gone, or has forgotten it
        for each in task.attempts[: number - 1]:
            if each.outcome is not None and each.outcome.session == verdict.session:
                usage = usage.minus(each.outcome.usage)
        return msgspec.structs.replace(verdict, usage=usage)

    def _ready(self, record: Record) -> list[c.Command]:
        """Old news must not bring back a worker that is known to be gone, or push out the present one: if it is new, a sweep finds it."""
        agent = self._state().agents.get(record.agent)
        if agent is not None and (
            record.worker == agent.fallen
            or agent.worker not in (None, record.worker)
            or (agent.worker is None and agent.status in (AgentStatus.OFFLINE, AgentStatus.ERROR))
        ):
            return []
        return [c.WorkerSeen(record.agent, record.worker)]

    def _started(self, record: Record) -> list[c.Command]:
        pid, start = int(record.body.get("pid", 0)), int(record.body.get("start", 0))
        return [c.AttemptBegan(TaskId(record.task), record.attempt, pid, start, str(record.body.get("base") or ""))]

    def _exited(self, record: Record) -> list[c.Command]:
        return [c.AttemptChecking(TaskId(record.task), record.attempt)]

    def _done(self, record: Record) -> list[c.Command]:
        finished = self.finished(AttemptId(TaskId(record.task), record.attempt), record.body)
        return [] if finished is None else [finished]

    def _lost(self, record: Record) -> list[c.Command]:
        reason = str(record.body.get("reason") or "its worker died")
        return [c.AttemptFinished(TaskId(record.task), record.attempt, Outcome(OutcomeKind.LOST, reason))]

    def _refused(self, record: Record) -> list[c.Command]:
        reason = str(record.body.get("reason") or "")
        if reason.startswith("claimed"):
            return []  # a second delivery of an order that is being carried out
        if reason.startswith("fenced"):  # its node had not heard of us for too long: it never ran
            return [
                c.AttemptFinished(TaskId(record.task), record.attempt, Outcome(OutcomeKind.LOST, "its node was cut off before it began"))
            ]
        return [c.AttemptFinished(TaskId(record.task), record.attempt, Outcome(OutcomeKind.REFUSED, f"the worker refused it: {reason}"))]

    def _left(self, record: Record) -> list[c.Command]:
        agent = self._state().agents.get(record.agent)
        if agent is None or record.worker == agent.fallen or agent.worker not in (None, record.worker):
            return []  # of an earlier worker, or told already by another way
        return [c.AgentClosed(record.agent)]


def _exit_of(values: object) -> Exit | None:
    try:
        return msgspec.convert(values, Exit, strict=False)
    except msgspec.ValidationError:
        return None


def _checks_of(values: object) -> tuple[CheckResult, ...]:
    try:
        return msgspec.convert(values or [], tuple[CheckResult, ...], strict=False)
    except msgspec.ValidationError:
        return ()


_RULES: Final[dict[str, Callable[[Translator, Record], list[c.Command]]]] = {
    "ready": Translator._ready,
    "started": Translator._started,
    "exited": Translator._exited,
    "done": Translator._done,
    "lost": Translator._lost,
    "refused": Translator._refused,
    "left": Translator._left,
}
