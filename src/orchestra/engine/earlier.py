"""What the attempts before came to, as far as the next one has to know: it repairs what is there instead of beginning anew without knowing why.

Told are what a review found, both sides of a conflict, the checks that failed last and that no later attempt passed, and why the last attempt ended where the
agent had a part in that. A lost worker or a busy API takes nothing of it away.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

from orchestra.core.model import Outcome, OutcomeKind, TaskSpec
from orchestra.core.sessions import has_session, session_for
from orchestra.core.state import AgentState, AttemptState, State, TaskState
from orchestra.engine.returns import ReturnOptions, brief_of
from orchestra.ids import AttemptId, TaskId
from orchestra.workspace import Repair

FEEDBACK_CHARACTERS_MAX: Final = 70_000
CUT: Final = "\n[the rest is left out]"
TOLD: Final = (OutcomeKind.FAILED, OutcomeKind.TIMEOUT, OutcomeKind.MEMORY)
"""Ends without checks that the next attempt may do something about."""


class Earlier(msgspec.Struct, frozen=True):
    """What the attempts before came to, as far as the next one has to know."""

    cost_usd_micros: int = 0
    feedback: str = ""
    session: str = ""
    """The CLI's session to go on with: of work that only did not pass its checks, or of a task with the same affinity."""
    agent: int = 0
    """Who has that session; it is of no use to another."""
    brief: str = ""
    """What it has to return, and of what."""
    repairs: Repair | None = None
    """The work that did not pass its checks, which an isolated attempt goes on with."""


def known_of(state: State, task: TaskId, options: ReturnOptions, agent: AgentState | None = None, *, affinity: bool = True) -> Earlier:
    """Returns all that the next attempt has to know."""
    found = earlier_of(state.tasks[task], agent, affinity=affinity)
    return msgspec.structs.replace(found, brief=brief_of(state, state.tasks[task], options))


def earlier_of(task: TaskState, agent: AgentState | None = None, *, affinity: bool = True) -> Earlier:
    """Returns it from the state, in which the next attempt may stand already; those beside it are none of its business.

    Args:
        task: What is to be done.
        agent: Who does it, and may have a session to go on with: of the attempt that is to be repaired, or of an earlier task with the same affinity.
        affinity: Sessions of other tasks count.
    """
    cost = sum(attempt.outcome.usage.cost_usd_micros for attempt in task.attempts if attempt.outcome is not None)
    before = [(attempt, outcome) for attempt in task.attempts[: task.round_start - 1] if (outcome := attempt.outcome) is not None]
    judged = [each for each in before if each[1].kind is not OutcomeKind.DEFERRED]
    if not judged and not task.feedback and not task.conflict and agent is not None and affinity:
        return Earlier(cost, "", session_for(agent, task.spec), agent.id)
    broken = _unrepaired(judged)
    last = judged[-1] if judged else None
    parts = [task.feedback, task.conflict]
    if broken is not None:
        parts.append(_failed_checks(broken[1]))
    if last is not None and last[1].kind in TOLD:
        how = (
            "An earlier attempt at this did not succeed"
            if broken is None
            else "A later one, which was to repair that, did not succeed either"
        )
        parts.append(f"{how}: {last[1].reason}")
    feedback = together(parts, FEEDBACK_CHARACTERS_MAX)
    if broken is None:
        return Earlier(cost, feedback)
    attempt, outcome = broken
    repairs = Repair(AttemptId(task.id, attempt.number), attempt.base, attempt.kept) if _repairs(task.spec) else None
    again = broken is last and agent is not None and has_session(agent, task.spec, outcome.session)
    return Earlier(cost, feedback, outcome.session if again else "", attempt.agent, repairs=repairs)


def _repairs(spec: TaskSpec) -> bool:
    """Tells whether a further attempt has the work of the one before in its folder. What a review did beside reviewing is wanted by nobody, and a command that
    is run again is the same command: it does all of it anew."""
    return spec.isolated and spec.reviews is None and spec.payload.type == "analysis"


def _unrepaired(judged: Sequence[tuple[AttemptState, Outcome]]) -> tuple[AttemptState, Outcome] | None:
    """Returns the last attempt that failed its checks, if none passed them since or beside it."""
    passed = [attempt for attempt, outcome in judged if outcome.kind is OutcomeKind.DONE]
    number, ended_ms = (passed[-1].number, passed[-1].ended_ms) if passed else (0, 0)
    failed = [each for each in judged if each[1].kind is OutcomeKind.UNVERIFIED]
    found = [each for each in failed if each[0].number > number and each[0].assigned_ms >= ended_ms]
    return found[-1] if found else None


def _failed_checks(outcome: Outcome) -> str:
    lines = [f"An earlier attempt at this did not succeed: {outcome.reason}"]
    for check in outcome.checks:
        if not check.passed:
            lines += [f"The check {check.name!r} ended with:", *(f"    {line}" for line in check.tail)]
    return "\n".join(lines)


def together(parts: Sequence[str], characters_max: int) -> str:
    """Returns the parts one after another. Where they are too long, the longest are cut, and none is left out."""
    found = {number: part for number, part in enumerate(parts) if part}
    room = characters_max - 2 * max(0, len(found) - 1)
    shortest_first = sorted(found, key=lambda number: len(found[number]))
    for index, number in enumerate(shortest_first):
        share = room // (len(found) - index)
        if len(found[number]) > share:
            found[number] = found[number][: share - len(CUT)] + CUT
        room -= len(found[number])
    return "\n\n".join(found[number] for number in sorted(found))
