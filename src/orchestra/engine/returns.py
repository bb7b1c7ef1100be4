"""What attempts return: how they are asked for it, and what is made of it when they end.

What cannot be used makes the attempt one whose check failed, with the complaints as the check's last lines. The next attempt is told them as it is told of any
other check, so that an agent repairs its plan as it repairs its code.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from orchestra.agents.adapter import Adapter, Context
from orchestra.agents.returning import plan_wanted, review_wanted
from orchestra.core.model import ANY_KIND, RETURNS_PLAN, RETURNS_REVIEW, STANDARD, Outcome, TaskDefaults, TaskSpec
from orchestra.core.planning import PLAN_CHECK, REVIEW_CHECK, found_wanting
from orchestra.core.review import told
from orchestra.core.state import State, TaskState
from orchestra.errors import BadInput, OrchestraError
from orchestra.intake.returned import read_plan, read_review
from orchestra.scheduling.routing import RouteOptions, rerouted, specialists, unavailable

KIND_ERRORS: Final = (OrchestraError, LookupError, TypeError, ValueError)
"""What a kind may raise that is missing, or that reads what an agent said and did not expect it."""


class ReturnOptions(msgspec.Struct, frozen=True):
    """What returned plans are held to; the settings under `planning`."""

    tasks_max: int = 50
    kinds: tuple[str, ...] = ()
    """Agent kinds that planned tasks may have; empty for all."""
    defaults: TaskDefaults = STANDARD
    routes: RouteOptions = RouteOptions()


class ReturnReader:
    """Makes tasks and reviews of what was returned."""

    def __init__(self, find_adapter: Callable[[str], Adapter], options: ReturnOptions) -> None:
        self._find = find_adapter
        self._options = options

    def read(self, state: State, task: TaskState, result: Outcome, returned: object) -> tuple[Outcome, tuple[TaskSpec, ...]]:
        """Returns the outcome with the review in it, or one that says why what was returned cannot be used; and the tasks of a plan.

        Args:
            state: The fleet that is to do what was planned.
            task: Whose attempt has ended well.
            result: How it ended.
            returned: What the worker found: an object with `text` or `error`.
        """
        spec = task.spec
        check = PLAN_CHECK if spec.returns == RETURNS_PLAN else REVIEW_CHECK
        text, error = _parts(returned)
        if error:
            return found_wanting(result, check, [error]), ()
        try:
            if spec.returns == RETURNS_REVIEW:
                return msgspec.structs.replace(result, review=read_review(text, spec.judges)), ()
            return result, self._plan(state, task, result, text)
        except BadInput as refusal:
            problems = getattr(refusal, "problems", ()) or (refusal.message,)
            return found_wanting(result, check, problems), ()

    def _plan(self, state: State, task: TaskState, result: Outcome, text: str) -> tuple[TaskSpec, ...]:
        spent = result.usage.cost_usd_micros + sum(a.outcome.usage.cost_usd_micros for a in task.attempts if a.outcome is not None)
        options = self._options
        fleet = (agent.spec.kind for agent in state.agents.values() if agent.spec.kind != ANY_KIND)
        lacking = unavailable(state, (*options.defaults.kinds.values(), *fleet, task.spec.kind), options.routes, self._programs)
        defaults = msgspec.structs.replace(options.defaults, specialists=specialists(state), lacking=lacking)
        planned = read_plan(text, task.spec, spent_usd_micros=spent, kinds=options.kinds, defaults=defaults)
        for spec in planned:
            try:
                self._find(spec.kind).launch(spec, Context(1, 0))
            except KIND_ERRORS as problem:
                words = problem.message if isinstance(problem, OrchestraError) else f"there is no agent kind {spec.kind!r}"
                raise BadInput(f"task {spec.id!r}: {words}") from problem
        return rerouted(state, planned, options.routes, lambda kind: self._find(kind).programs)

    def _programs(self, kind: str) -> tuple[str, ...]:
        try:
            return self._find(kind).programs
        except KIND_ERRORS:  # whoever makes it the kind of a task is told
            return ()


def _parts(returned: object) -> tuple[str, str]:
    if not isinstance(returned, dict):
        return "", "nothing was returned"
    text, error = returned.get("text"), returned.get("error")
    return (text, "") if isinstance(text, str) else ("", str(error or "nothing was returned"))


def brief_of(state: State, task: TaskState, options: ReturnOptions) -> str:
    """Returns what an attempt is told about what it has to return; nothing if it has to return nothing."""
    spec = task.spec
    if spec.returns == RETURNS_PLAN:
        fleet = dict.fromkeys(agent.spec.kind for agent in state.agents.values())
        there = fleet if ANY_KIND not in fleet else {**fleet, spec.kind: None, "shell": None}
        kinds = options.kinds or tuple(kind for kind in there if kind != ANY_KIND)
        return plan_wanted(kinds, options.tasks_max)
    if spec.reviews is None:
        return ""
    reviewed = state.tasks[spec.reviews]
    refused = [a.outcome.review for a in task.attempts if a.outcome is not None and a.outcome.review is not None] if task.refusals else []
    earlier = told(task.id, refused[-1]) if refused else ""
    return review_wanted(reviewed.spec, reviewed.result(), reviewed.commit, spec.judges, earlier)
