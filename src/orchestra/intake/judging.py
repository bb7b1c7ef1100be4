"""Criteria that no program can check, given to an agent: a review that judges them one by one.

What an agent thinks is not what was executed. It is kept apart from checks, and marked as judged wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchestra.core.model import ESTIMATE_DEFAULT_MS, RETURNS_PLAN, RETURNS_REVIEW, Payload, TaskDefaults, TaskSpec
from orchestra.ids import NAME, TaskId
from orchestra.intake.shape import Problem

JUDGE_SUFFIX: Final = ".judge"
PROMPT: Final = "Judge whether the work meets its criteria. Believe what you see and run, not what was said about it."
SCRIPTS: Final = ("shell",)
"""Kinds that judge nothing."""


def with_judges(
    drafts: Sequence[TaskSpec], judged: Mapping[TaskId, tuple[str, ...]], defaults: TaskDefaults
) -> tuple[list[TaskSpec], list[Problem]]:
    """Returns the tasks with a review for each whose criteria have to be judged, or with those criteria given to the review it has.

    Args:
        drafts: The tasks of a plan, under their bare names.
        judged: The criteria that no program can check, by task.
        defaults: What the added reviews get, and the kind of agent that judges.
    """
    found, problems = (
        list(drafts),
        [p for index, draft in enumerate(drafts) if draft.id in judged for p in _objections(drafts, index, defaults)],
    )
    if problems:
        return found, problems
    for draft in drafts:
        if draft.id not in judged:
            continue
        at = next((index for index, each in enumerate(found) if each.reviews == draft.id), None)
        if at is None:
            found.append(_judge(draft, judged[draft.id], defaults))
        else:
            found[at] = msgspec.structs.replace(found[at], judges=judged[draft.id])
    return found, []


def _objections(drafts: Sequence[TaskSpec], index: int, defaults: TaskDefaults) -> list[Problem]:
    draft = drafts[index]
    path = ("tasks", index, "success_criteria")
    if draft.returns == RETURNS_PLAN:
        return [Problem(path, f"{draft.id!r} plans, and cannot be judged after its tasks have joined", "use criteria that can be run")]
    if not draft.workspace:
        return [Problem(path, f"{draft.id!r} works in a private folder, where nobody can judge its work", "give it a workspace")]
    if any(each.reviews == draft.id for each in drafts):
        return []
    name = draft.id + JUDGE_SUFFIX
    if NAME.fullmatch(name) is None or any(each.id.lower() == name.lower() for each in drafts):
        return [Problem(path, f"the task that judges it would be called {name!r}, which is too long or taken", "choose another id")]
    if not judge_kind(draft, defaults):
        return [Problem(path, "it is not said which kind of agent judges", "set routing.review in the settings")]
    return []


def judge_kind(draft: TaskSpec, defaults: TaskDefaults) -> str:
    """Returns the kind of agent that judges: the one for reviews, else the one that does the work."""
    return defaults.kinds.get("review", "") or ("" if draft.kind in SCRIPTS else draft.kind)


def _judge(draft: TaskSpec, criteria: tuple[str, ...], defaults: TaskDefaults) -> TaskSpec:
    return TaskSpec(
        id=TaskId(draft.id + JUDGE_SUFFIX),
        description=f"Judge what no program can check of {draft.id}",
        payload=Payload("analysis", PROMPT),
        kind=judge_kind(draft, defaults),
        category=draft.category,
        priority=draft.priority,
        needs=(draft.id,),
        retries=defaults.retries,
        backoff_ms=defaults.backoff_ms,
        backoff_max_ms=defaults.backoff_max_ms,
        estimate_ms=ESTIMATE_DEFAULT_MS,
        timeout_ms=defaults.timeout_ms,
        cost_usd_micros_max=draft.cost_usd_micros_max,
        workspace=draft.workspace,
        workspace_here=draft.workspace_here,
        isolated=draft.isolated,
        node=draft.node,
        tags=draft.tags,
        env=draft.env,
        limits=draft.limits,
        returns=RETURNS_REVIEW,
        reviews=draft.id,
        judges=criteria,
    )
