"""What agents return: plans, which are read as plan files are and kept within what the planning task itself may do, and reviews.

An agent's words are no more to be trusted than anybody else's. What a plan may not say is refused, never silently changed: the complaint goes back to the agent.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Final, Literal

import msgspec
from msgspec import Meta

from orchestra.core.model import STANDARD, Finding, Judgement, Limits, Priority, Review, TaskDefaults, TaskSpec
from orchestra.core.planning import bare_name, planned_id
from orchestra.ids import NAME
from orchestra.intake import fields as f
from orchestra.intake.document import Document, Path, parse, show_path
from orchestra.intake.planfile import TASKS, read_document, refusal
from orchestra.intake.shape import Problem, convert
from orchestra.quantity import show_usd

PLAN_SOURCE: Final = "answer.json"
FIXED: Final = {
    "workspace": "what is planned works where the planning task does",
    "env": "what is planned has the environment of the planning task",
}
"""Fields that a returned plan may not have, and why."""
FINDINGS_MAX: Final = 100
PRIORITY_WORDS: Final = {Priority.CRITICAL: "critical", Priority.HIGH: "high", Priority.NORMAL: "normal", Priority.LOW: "low"}


class FindingFields(f.Record, frozen=True, kw_only=True):
    """One thing that a review found."""

    severity: Annotated[Literal["critical", "major", "minor", "info"], Meta(description="How bad it is.")]
    text: Annotated[str, Meta(min_length=1, max_length=4000, description="What is wrong, and what would be right.")]
    file: Annotated[str, Meta(max_length=4096, description="Path inside the workspace.")] = ""
    line: Annotated[int, Meta(ge=0, le=100_000_000)] = 0


class JudgementFields(f.Record, frozen=True, kw_only=True):
    """What it thinks of one criterion it was given to judge."""

    number: Annotated[int, Meta(ge=1, le=100, description="Which one, as numbered in the prompt.")]
    met: bool
    evidence: Annotated[str, Meta(min_length=1, max_length=4000, description="What was looked at, and what it showed.")]


class ReviewFile(f.Record, frozen=True, kw_only=True):
    """A review."""

    verdict: Literal["approve", "refuse"]
    summary: Annotated[str, Meta(min_length=1, max_length=2000)]
    findings: Annotated[tuple[FindingFields, ...], Meta(max_length=FINDINGS_MAX)] = ()
    criteria: Annotated[tuple[JudgementFields, ...], Meta(max_length=100)] = ()


def read_plan(
    text: str, parent: TaskSpec, *, spent_usd_micros: int = 0, kinds: Sequence[str] = (), defaults: TaskDefaults = STANDARD
) -> tuple[TaskSpec, ...]:
    """Returns the tasks of a returned plan as they join the plan of the task that planned them.

    Args:
        text: What was returned, JSON or YAML.
        parent: The planning task.
        spent_usd_micros: What it has cost so far; the rest of its limit is for what it planned.
        kinds: Agent kinds that planned tasks may have; empty for all.
        defaults: What tasks get where the plan says nothing.

    Raises:
        PlanInvalid: It cannot be used; `problems` names up to twenty reasons.
    """
    document = parse(text, source=PLAN_SOURCE)
    if isinstance(document.value, dict):
        problems = list(_forbidden(document.value))
        if problems:
            raise refusal(document, problems)
        _inherit(document.value, parent)
    if parent.strict or not parent.workspace:  # in a private folder nobody could see what is to be judged
        defaults = msgspec.structs.replace(defaults, strict=True)
    drafts = read_document(document, parent.workspace or "/", defaults).drafts
    problems = [problem for index, draft in enumerate(drafts) for problem in _excesses(draft, parent, (TASKS, index), kinds)]
    if problems:
        raise refusal(document, problems)
    costs = _costs(document, drafts, parent, spent_usd_micros)
    names = {draft.id: planned_id(parent.id, draft.id) for draft in drafts}
    return tuple(
        msgspec.structs.replace(
            draft,
            id=names[draft.id],
            plan=parent.plan,
            needs=tuple(names[need] for need in draft.needs) or (parent.id,),
            reviews=None if draft.reviews is None else names[draft.reviews],
            workspace=parent.workspace and draft.workspace,
            workspace_here=parent.workspace_here,
            isolated=bool(parent.workspace) and draft.isolated,
            cost_usd_micros_max=cost,
            tags=tuple(dict.fromkeys((*parent.tags, *draft.tags))),
            limits=_within(draft.limits, parent.limits),
            env=parent.env,
            submitted_by=parent.submitted_by,
            origin=parent.id,
            depth=parent.depth + 1,
        )
        for draft, cost in zip(drafts, costs, strict=True)
    )


def _forbidden(value: dict[str, Any]) -> Iterator[Problem]:
    if "agents" in value:
        yield Problem(("agents",), "a returned plan brings no agents of its own", "remove it: the fleet is there")
    tasks, defaults = value.get(TASKS), value.get("defaults")
    places: list[tuple[Path, object]] = [((), value), (("defaults",), defaults)]
    places += [((TASKS, index), task) for index, task in enumerate(tasks)] if isinstance(tasks, list) else []
    for path, holder in places:
        for name, why in FIXED.items():
            if isinstance(holder, dict) and name in holder:
                yield Problem((*path, name), why, "remove it")


def _inherit(value: dict[str, Any], parent: TaskSpec) -> None:
    """Puts in what holds where the plan says nothing. Done in place, as the text's positions belong to these very values."""
    value.setdefault("name", bare_name(parent.id, parent.plan))
    if parent.workspace:
        value["workspace"] = parent.workspace
    defaults = value.setdefault("defaults", {})
    if isinstance(defaults, dict):
        defaults.setdefault("priority", PRIORITY_WORDS[parent.priority])
        if parent.node is not None:
            defaults.setdefault("node", parent.node)
        if parent.isolated:
            defaults.setdefault("isolation", "worktree")


def _excesses(draft: TaskSpec, parent: TaskSpec, path: Path, kinds: Sequence[str]) -> Iterator[Problem]:
    """Yields what the planning task itself may not do."""
    name = bare_name(planned_id(parent.id, draft.id), parent.plan)
    if NAME.fullmatch(name) is None:
        yield Problem((*path, "id"), f"the task would be called {name!r}, which is longer than 64 characters", "choose a shorter id")
    if kinds and draft.kind not in kinds:
        yield Problem((*path, "agent"), f"a planned task may not be of kind {draft.kind!r}", f"allowed are {', '.join(kinds)}")
    if draft.priority < parent.priority:
        most = PRIORITY_WORDS[parent.priority]
        yield Problem((*path, "priority"), "a planned task may not be more urgent than the planning one", f"at most {most}")
    if parent.node is not None and draft.node != parent.node:
        yield Problem((*path, "node"), f"the planning task is bound to node {parent.node!r}", "remove it")
    if parent.isolated and draft.workspace and not draft.isolated:
        yield Problem((*path, "isolation"), "the planning task has a worktree of its own, and so must what it plans", "use worktree")
    for field in Limits.__struct_fields__:
        most, wanted = getattr(parent.limits, field), getattr(draft.limits, field)
        if field != "nice" and most and wanted > most:
            yield Problem((*path, "limits"), f"{field} of {wanted} passes the planning task's own limit of {most}", "ask for less")


def _within(limits: Limits, most: Limits) -> Limits:
    """Returns the limits, and where there is none the planning task's."""
    return Limits(**{name: getattr(limits, name) or getattr(most, name) for name in Limits.__struct_fields__})


def _costs(document: Document, drafts: Sequence[TaskSpec], parent: TaskSpec, spent: int) -> list[int]:
    """Returns the limit of cost of each task: as it says, and for the others an equal share of what is left of the planning task's."""
    if not parent.cost_usd_micros_max:
        return [draft.cost_usd_micros_max for draft in drafts]
    left = parent.cost_usd_micros_max - spent
    said = sum(draft.cost_usd_micros_max for draft in drafts)
    open_ = sum(not draft.cost_usd_micros_max for draft in drafts)
    share = (left - said) // max(1, open_)
    if left < said or (open_ and share <= 0):
        words = f"its tasks may cost {show_usd(said)} together, and {show_usd(max(0, left))} are left of the planning task's limit"
        raise refusal(document, [Problem((TASKS,), words, "lower constraints.max_cost_dollars, or plan less")])
    return [draft.cost_usd_micros_max or share for draft in drafts]


def read_review(text: str, judges: Sequence[str] = ()) -> Review:
    """Returns a returned review.

    Args:
        text: What was returned, JSON or YAML.
        judges: The criteria it was given to judge, in order.

    Raises:
        PlanInvalid: It cannot be used; `problems` names up to twenty reasons.
    """
    document = parse(text, source=PLAN_SOURCE)
    made = convert(document.value, ReviewFile)
    if isinstance(made, list):
        raise refusal(document, made)
    problems = list(_contradictions(made, judges))
    if problems:
        raise refusal(document, problems)
    return Review(
        approved=made.verdict == "approve",
        summary=made.summary,
        findings=tuple(Finding(each.severity, each.text, each.file, each.line) for each in made.findings),
        judgements=tuple(Judgement(judges[each.number - 1], each.met, each.evidence) for each in sorted(made.criteria, key=_number)),
    )


def _number(judged: JudgementFields) -> int:
    return judged.number


def _contradictions(review: ReviewFile, judges: Sequence[str]) -> Iterator[Problem]:
    numbers = [each.number for each in review.criteria]
    if sorted(numbers) != list(range(1, len(judges) + 1)):
        wanted = f"each number from 1 to {len(judges)} once" if judges else "none, as there is no criterion to judge"
        yield Problem(("criteria",), f"expected {wanted}, found {numbers}")
    unmet = [each.number for each in review.criteria if not each.met]
    grave = [index for index, each in enumerate(review.findings) if each.severity == "critical"]
    if review.verdict == "approve" and (unmet or grave):
        what = f"criterion {unmet[0]} is not met" if unmet else f"{show_path(('findings', grave[0]))} is critical"
        yield Problem(("verdict",), f"it approves, and {what}", "refuse, or correct the other")
    if review.verdict == "refuse" and not review.findings and not unmet:
        yield Problem(("findings",), "it refuses and does not say why", "name at least one finding")
