"""Which session of its CLI an agent goes on with: that of the last task with the same affinity, in the same folder."""

from __future__ import annotations

from typing import Final

from orchestra.core.model import Outcome, OutcomeKind, TaskSpec
from orchestra.core.state import AgentState, AttemptState, SessionState

SESSIONS_MAX: Final = 20
"""Sessions remembered for each agent; the one that was used least lately goes first."""
GOOD: Final = (OutcomeKind.DONE, OutcomeKind.UNVERIFIED)
"""Ends after which a session is as its agent left it. What was broken off, or could not be gone on with, is begun anew."""


def note_session(agent: AgentState, spec: TaskSpec, attempt: AttemptState, outcome: Outcome) -> None:
    """Remembers the session an attempt was in. Part of the fold."""
    if not outcome.session:
        return
    known = agent.sessions.pop(outcome.session, None)
    usage = outcome.usage if known is None else known.usage.plus(outcome.usage)
    workspace = "" if spec.isolated else spec.workspace
    affinity = spec.affinity if workspace and outcome.kind in GOOD else ""
    agent.sessions[outcome.session] = SessionState(spec.kind, attempt.node, workspace, affinity, usage)
    while len(agent.sessions) > SESSIONS_MAX:
        del agent.sessions[next(iter(agent.sessions))]


def session_for(agent: AgentState, spec: TaskSpec) -> str:
    """Returns the session that the task goes on with on this agent, or nothing."""
    if not spec.affinity or not spec.workspace or spec.isolated:
        return ""
    wanted = (spec.kind, agent.spec.node, spec.workspace, spec.affinity)
    found = (name for name, each in reversed(agent.sessions.items()) if (each.kind, each.node, each.workspace, each.affinity) == wanted)
    return next(found, "")
