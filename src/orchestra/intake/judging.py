"""Criteria that no program can check, given to an agent: a review that judges them one by one.

What an agent thinks is not what was executed. It is kept apart from checks, and marked as judged wherever it is shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

import msgspec

from orchestra.core.model import ESTIMATE_DEFAULT_MS, RETURNS_PLAN, RETURNS_REVIEW, Payload, TaskDefaults, TaskSpec
from orchestra.ids import NAME, TaskId
from orchestra.intake.criteria import HINT
from orchestra.intake.folders import SHARED_KINDS, SHELL_KIND
from orchestra.intake.shape import Problem

JUDGE_SUFFIX: Final = ".judge"
PROMPT: Final = "Judge whether the work meets its criteria. Believe what you see and run, not what was said about it."


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
        [p for index, draft in enumerate(drafts) if draft.id in judged for p in _objections(drafts, index, judged[draft.id], defaults)],
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


def _objections(drafts: Sequence[TaskSpec], index: int, phrases: Sequence[str], defaults: TaskDefaults) -> list[Problem]:
    draft = drafts[index]
    at = next((number for number, text in enumerate(draft.criteria) if text.strip() == phrases[0]), 0)
    path = ("tasks", index, "success_criteria", at)
    if draft.returns == RETURNS_PLAN:
        return [Problem(path, f"{draft.id!r} plans, and cannot be judged after its tasks have joined", "use criteria that can be run")]
    if not draft.workspace:
        said = f"{phrases[0][:120]!r} cannot be checked by a machine, and {draft.id!r} works in a private folder, where nobody can judge its work"
        return [Problem(path, said, f"{HINT}; or give it a workspace")]
    if any(each.reviews == draft.id for each in drafts):
        return []
    name = draft.id + JUDGE_SUFFIX
    if NAME.fullmatch(name) is None or any(each.id.lower() == name.lower() for each in drafts):
        return [Problem(path, f"the task that judges it would be called {name!r}, which is too long or taken", "choose another id")]
    if not judge_kind(draft, defaults):
        wanted = _judges(draft, defaults)
        why = "; ".join(defaults.lacking[kind] for kind in wanted) or "it is not said which kind of agent judges"
        remedy = f"have such an agent ({', '.join(wanted)}), or name" if wanted else "name"
        return [
            Problem(
                path,
                f"{phrases[0][:120]!r} cannot be checked by a machine, and nobody can judge it: {why}",
                f"{HINT}; or {remedy} one that is there in routing.review of the settings",
            )
        ]
    return []


def judge_kind(draft: TaskSpec, defaults: TaskDefaults) -> str:
    """Returns the kind of agent that judges, the first that is to be had: the one for reviews, the one that does the work, or one that others get prompts for."""
    return next((kind for kind in _judges(draft, defaults) if kind not in defaults.lacking), "")


def _judges(draft: TaskSpec, defaults: TaskDefaults) -> list[str]:
    own = "" if draft.kind in SHARED_KINDS else draft.kind
    named = (defaults.kinds.get("review", ""), defaults.specialists.get("review", ""), own, *defaults.kinds.values())
    return list(dict.fromkeys(kind for kind in named if kind not in ("", SHELL_KIND)))


def otherwise(defaults: TaskDefaults, *, plan: bool) -> str:
    """Returns what to do to have an agent judge a phrase where that is switched off."""
    if defaults.strict:
        return "without `strict` an agent judges such a phrase"
    return (
        "`judge: true` in the plan has an agent judge such a phrase"
        if plan
        else "tasks.judge_criteria in the settings has an agent judge such a phrase"
    )


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
