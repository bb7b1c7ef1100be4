"""Which session of its CLI an agent goes on with: that of the last task with the same affinity on the same folder, or, of isolated tasks, on checkouts of it.

A session lives where its agent's own folder is, on the node where the attempt was. Each isolated attempt has another folder; the CLIs take that, and the agent is told.
"""

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
    affinity = spec.affinity if spec.workspace and outcome.kind in GOOD else ""
    agent.sessions[outcome.session] = SessionState(spec.kind, attempt.node, spec.workspace, affinity, usage, spec.isolated)
    while len(agent.sessions) > SESSIONS_MAX:
        del agent.sessions[next(iter(agent.sessions))]


def session_for(agent: AgentState, spec: TaskSpec) -> str:
    """Returns the session that the task goes on with on this agent, or nothing."""
    if not spec.affinity or not spec.workspace:
        return ""
    wanted = (spec.kind, agent.spec.node, spec.workspace, spec.affinity, spec.isolated)
    found = (
        name
        for name, each in reversed(agent.sessions.items())
        if (each.kind, each.node, each.workspace, each.affinity, each.isolated) == wanted
    )
    return next(found, "")


def has_session(agent: AgentState, spec: TaskSpec, session: str) -> bool:
    """Tells whether the agent still is who had that session: it may have moved to another node, and the task to another kind, since."""
    found = agent.sessions.get(session)
    return found is not None and (found.kind, found.node) == (spec.kind, agent.spec.node)
