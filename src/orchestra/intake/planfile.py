"""Plan files: a DAG of tasks as people write it, checked whole before any of it counts.

A problem is told with its line, its field and what to write instead, and up to twenty are told at once. Prompts and scripts are data: they
are never looked into. Reading is linear in the text; a chain of a hundred thousand needs meets no recursion.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Annotated, Final, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestra.core.commands import PlanHead
from orchestra.core.graph import topological_order
from orchestra.core.model import (
    ANY_KIND,
    ESTIMATE_DEFAULT_MS,
    RETURNS_PLAN,
    RETURNS_REVIEW,
    STANDARD,
    Payload,
    TaskDefaults,
    TaskSpec,
    speciality_of,
)
from orchestra.errors import BadInput, PlanInvalid
from orchestra.ids import NodeId, PlanId, TaskId, plan_task_id
from orchestra.intake import fields as f
from orchestra.intake.criteria import Criterion, checks_for, for_judgement, written
from orchestra.intake.document import Document, Path, parse, show_path
from orchestra.intake.folders import SHELL_KIND, place_of
from orchestra.intake.judging import otherwise, with_judges
from orchestra.intake.shape import PROBLEMS_MAX, Problem, convert, nearest
from orchestra.quantity import ms_from_seconds

ROUTES: Final = {RETURNS_PLAN: "planning", RETURNS_REVIEW: "review"}
"""Categories of tasks by what they return, whatever their own category is; they decide which kind of agent gets a prompt that names none."""
SCHEMA_ID: Final = "https://json-schema.org/draft/2020-12/schema"
TASKS: Final = "tasks"
CRITERIA: Final = "success_criteria"


class AgentGroup(f.Record, frozen=True, kw_only=True):
    """Agents of one kind."""

    count: Annotated[int, Meta(ge=1, le=10_000, description="How many.")]
    kind: Annotated[f.Name, Meta(description="Agent kind; `any` takes tasks of every kind.")] = ANY_KIND
    category: Annotated[f.Category, Meta(description="Category they are meant for; absent means all.")] | UnsetType = UNSET
    weight: Annotated[int, Meta(ge=1, le=10_000, description="Capability in percent of an ordinary agent.")] = 100
    name: Annotated[f.Name, Meta(description="Label people know them by; numbered if there are several.")] | UnsetType = UNSET


class TaskFields(f.Record, frozen=True, kw_only=True):
    """What `defaults` and each task may say. A task's own word goes first; mappings are merged field by field."""

    description: f.Description | UnsetType = UNSET
    category: Annotated[f.Category, Meta(description="Default coding.")] | UnsetType = UNSET
    priority: Annotated[f.PriorityName, Meta(description="Default normal, which is the same as medium.")] | UnsetType = UNSET
    target_agents: f.TargetAgents | UnsetType = UNSET
    payload: f.PayloadFields | UnsetType = UNSET
    run: Annotated[f.Content, Meta(description="Short for a payload of type command: a shell script.")] | UnsetType = UNSET
    prompt: Annotated[f.Content, Meta(description="Short for a payload of type analysis: words for a model.")] | UnsetType = UNSET
    requirements: Annotated[f.JsonObject, Meta(description="Any JSON object; handed to the agent.")] | UnsetType = UNSET
    constraints: f.Constraints | UnsetType = UNSET
    success_criteria: (
        Annotated[tuple[Criterion, ...], Meta(max_length=100, description="What is run to see whether the task is done.")] | UnsetType
    ) = UNSET
    agent: Annotated[f.Name, Meta(description="Agent kind that has to run it.")] | UnsetType = UNSET
    agent_fixed: (
        Annotated[bool, Meta(description="No other kind takes it, also where the settings have one that stands in for its own.")]
        | UnsetType
    ) = UNSET
    speciality: Annotated[f.Name, Meta(description="What agents should be best at that do it: codegen, review, ...")] | UnsetType = UNSET
    retries: f.Retries | UnsetType = UNSET
    retry_backoff_seconds: (
        Annotated[f.Wait, Meta(description="Wait before the first retry; doubles with each. Default 60.")] | UnsetType
    ) = UNSET
    retry_backoff_max_seconds: Annotated[f.Wait, Meta(description="Longest wait before a retry. Default 3600.")] | UnsetType = UNSET
    estimated_seconds: Annotated[f.Seconds, Meta(description="How long it is expected to take. Default 60.")] | UnsetType = UNSET
    files: Annotated[tuple[f.RelativePath, ...], Meta(max_length=10_000, description="Paths it may touch.")] | UnsetType = UNSET
    env: Annotated[dict[f.EnvName, f.EnvValue], Meta(max_length=1000, description="Environment of the agent.")] | UnsetType = UNSET
    stdin: Annotated[Literal["pane", "none"], Meta(description="Whether a person can type into it.")] | UnsetType = UNSET
    affinity: (
        Annotated[f.Name, Meta(description="Tasks with the same key prefer the same agent, and go on with its session.")] | UnsetType
    ) = UNSET
    node: Annotated[f.Name, Meta(description="Node it has to run on.")] | UnsetType = UNSET
    tags: f.Tags | UnsetType = UNSET
    programs: f.Programs | UnsetType = UNSET
    limits: f.LimitFields | UnsetType = UNSET
    workspace: f.Folder | UnsetType = UNSET
    isolation: (
        Annotated[
            f.Isolation,
            Meta(
                description="worktree: each attempt works in a worktree (or copy) of the workspace, and verified work is merged into the plan's branch. "
                "shared: in the workspace itself. Default: shared for shell and rehearsal, worktree for others."
            ),
        ]
        | UnsetType
    ) = UNSET
    sandbox: (
        Annotated[
            Literal["auto", "on", "off"],
            Meta(
                description="on: its attempts run in a sandbox, and nowhere else. off: they do not, unless the settings want all in one. auto: as the "
                "settings say. Default auto."
            ),
        ]
        | UnsetType
    ) = UNSET


class PlanTask(TaskFields, frozen=True, kw_only=True):
    """One task of a plan."""

    id: Annotated[f.Name, Meta(description="Name of the task, unique in the plan whatever its case.")]
    needs: Annotated[tuple[f.Name, ...], Meta(max_length=100_000, description="Tasks of this plan that must be completed before.")] = ()
    returns: Annotated[Literal["plan"], Meta(description="It returns a plan, whose tasks join this one.")] | UnsetType = UNSET
    reviews: (
        Annotated[f.Name, Meta(description="Task of this plan whose work it judges, and may send back once. It needs that task.")]
        | UnsetType
    ) = UNSET


class PlanFile(f.Record, frozen=True, kw_only=True):
    """A plan: tasks, what they need, and who is to do them."""

    name: Annotated[f.Name, Meta(description="Name of the plan.")]
    tasks: Annotated[tuple[PlanTask, ...], Meta(min_length=1, max_length=f.TASKS_MAX)]
    workspace: f.Folder | UnsetType = UNSET
    agents: Annotated[AgentGroup | tuple[AgentGroup, ...], Meta(description="The fleet it wants.")] | UnsetType = UNSET
    defaults: Annotated[TaskFields, Meta(description="What every task says that says nothing else.")] = TaskFields()
    judge: (
        Annotated[
            bool, Meta(description="Criteria that no program can check are judged by an agent. Default: the setting tasks.judge_criteria.")
        ]
        | UnsetType
    ) = UNSET


class PlanDocument(msgspec.Struct, frozen=True):
    """A plan that was read and found sound. It becomes one in the orchestra when it is given an id."""

    name: str
    digest: str
    """SHA-256 of what the plan says, in hex; layout, comments and YAML or JSON make no difference."""
    source: str
    agents: tuple[AgentGroup, ...]
    drafts: tuple[TaskSpec, ...]
    """The tasks in the order written, under their bare names."""

    def specs(self, plan: PlanId) -> tuple[TaskSpec, ...]:
        """Returns the tasks as the plan's, with ids `<plan>/<task>`."""
        ids = {draft.id: plan_task_id(plan, draft.id) for draft in self.drafts}
        replace = msgspec.structs.replace
        return tuple(
            replace(
                draft,
                id=ids[draft.id],
                plan=plan,
                needs=tuple(ids[need] for need in draft.needs),
                reviews=None if draft.reviews is None else ids[draft.reviews],
            )
            for draft in self.drafts
        )

    def head(self, plan: PlanId) -> PlanHead:
        """Returns what the orchestra keeps of the plan besides its tasks."""
        return PlanHead(plan, self.name, self.digest, self.source)


def parse_plan(text: str, *, source: str, directory: str, defaults: TaskDefaults = STANDARD) -> PlanDocument:
    """Returns the plan that the text describes.

    Args:
        text: YAML or JSON.
        source: Name of the file, for messages.
        directory: Absolute folder of the plan file; relative workspaces start here.
        defaults: What tasks get where the plan says nothing.

    Raises:
        PlanInvalid: It cannot be run. `problems` names up to twenty reasons, each with line and column; `field` is the first one's.
    """
    return read_document(parse(text, source=source), directory, defaults)


def read_document(document: Document, directory: str, defaults: TaskDefaults) -> PlanDocument:
    """Returns the plan that a parsed document describes; see `parse_plan`."""
    if not isinstance(document.value, dict):
        raise refusal(document, [Problem((), "a plan is a mapping with the fields name and tasks")])
    plan = convert(document.value, PlanFile)
    if isinstance(plan, list):
        raise refusal(document, plan)
    problems = list(islice(_id_problems(plan), PROBLEMS_MAX))
    drafts: list[TaskSpec] = []
    judge = f.given(plan.judge, defaults.judge) and not defaults.strict
    judged: dict[TaskId, tuple[str, ...]] = {}
    for index, task in enumerate(plan.tasks):
        if len(problems) >= PROBLEMS_MAX:
            break
        try:
            phrases = for_judgement(f.given(_merged(plan.defaults, task).success_criteria, ())) if judge else ()
            drafts.append(_draft(plan, task, (TASKS, index), directory, defaults, phrases))
            judged |= {TaskId(task.id): phrases} if phrases else {}
        except _Told as told:
            problems.extend(told.problems)
    if judged and not problems:
        drafts, found = with_judges(drafts, judged, defaults)
        problems = [problem._replace(path=_as_written(plan, problem.path)) for problem in found]
    if not problems:
        problems = _cycle_problems(drafts)
    if problems:
        raise refusal(document, problems)
    agents = given_agents(plan)
    digest = hashlib.sha256(msgspec.json.encode(document.value, order="deterministic")).hexdigest()
    return PlanDocument(plan.name, digest, document.source, agents, tuple(drafts))


def plan_schema() -> dict[str, object]:
    """Returns the JSON Schema (draft 2020-12) of plan files, for editors. It says less than `parse_plan` checks, never more."""
    schema = msgspec.json.schema(PlanFile)
    for definition in schema["$defs"].values():
        if not definition.get("required", True):
            del definition["required"]
    one_of = [{"required": [name]} for name in ("payload", "run", "prompt")]
    for name in ("PlanTask", "TaskFields"):
        schema["$defs"][name]["not"] = {
            "anyOf": [{"required": [*a["required"], *b["required"]]} for a in one_of for b in one_of if a is not b]
        }
    return {"$schema": SCHEMA_ID, "title": "Plan of Miyabi Orchestra", **schema}


def given_agents(plan: PlanFile) -> tuple[AgentGroup, ...]:
    """Returns the fleet a plan wants; nothing if it does not say."""
    if isinstance(plan.agents, UnsetType):
        return ()
    return (plan.agents,) if isinstance(plan.agents, AgentGroup) else plan.agents


class _Told(Exception):
    """One task's problems on their way to the list; never leaves this module."""

    def __init__(self, *problems: Problem) -> None:
        super().__init__()
        self.problems = problems


def refusal(document: Document, problems: list[Problem]) -> PlanInvalid:
    """Returns the error that names the problems with a plan, each with its place in the text."""
    shown = problems[:PROBLEMS_MAX]
    lines = tuple(
        f"{document.where(p.path)}: {show_path(p.path) + ': ' if p.path else ''}{p.message}" + (f" ({p.hint})" if p.hint else "")
        for p in shown
    )
    first = shown[0]
    more = f" [and {len(shown) - 1} more]" if len(shown) > 1 else ""
    return PlanInvalid(f"{document.where(first.path)}: {first.message}{more}", hint=first.hint, field=show_path(first.path), problems=lines)


def _id_problems(plan: PlanFile) -> Iterator[Problem]:
    """Yields ids that are given twice or differ in case only, and needs that name nothing, the task itself, or one thing twice."""
    seen: dict[str, int] = {}
    for index, task in enumerate(plan.tasks):
        first = seen.setdefault(task.id.lower(), index)
        if first != index:
            twin = plan.tasks[first].id
            words = f"there is a task {twin!r} already" if twin == task.id else f"{task.id!r} and {twin!r} differ only in case"
            yield Problem((TASKS, index, "id"), words, "some file systems would take them for one; choose another id")
    known = {task.id for task in plan.tasks}
    for index, task in enumerate(plan.tasks):
        for at, need in enumerate(task.needs):
            path: Path = (TASKS, index, "needs", at)
            if need == task.id:
                yield Problem(path, f"task {task.id!r} needs itself", "remove this need")
            elif need not in known:
                close = nearest(need, (other.id for other in plan.tasks))
                hint = f"did you mean {close!r}?" if close else "name a task of this plan"
                yield Problem(path, f"task {task.id!r} needs {need!r}, which is not in the plan", hint)
        if not isinstance(task.reviews, UnsetType):
            yield from _review_problems(plan, index, task, task.reviews, known)
        if len(task.needs) > 1 and len(set(task.needs)) < len(task.needs):
            places: dict[str, int] = {}
            twice = next(at for at, need in enumerate(task.needs) if places.setdefault(need, at) != at)
            yield Problem((TASKS, index, "needs", twice), f"task {task.id!r} names the need {task.needs[twice]!r} twice", "once is enough")


def _review_problems(plan: PlanFile, index: int, task: PlanTask, reviewed: str, known: set[str]) -> Iterator[Problem]:
    path: Path = (TASKS, index, "reviews")
    if reviewed == task.id:
        yield Problem(path, f"task {task.id!r} reviews itself", "name another task")
    elif reviewed not in known:
        close = nearest(reviewed, (other.id for other in plan.tasks))
        hint = f"did you mean {close!r}?" if close else "name a task of this plan"
        yield Problem(path, f"task {task.id!r} reviews {reviewed!r}, which is not in the plan", hint)
    if not isinstance(task.returns, UnsetType):
        yield Problem((TASKS, index, "returns"), f"task {task.id!r} reviews, and so returns a review", "remove `returns`, or `reviews`")


def _cycle_problems(drafts: list[TaskSpec]) -> list[Problem]:
    index_of = {draft.id: index for index, draft in enumerate(drafts)}
    try:
        topological_order({draft.id: draft for draft in drafts})
    except PlanInvalid as refusal:
        index = index_of.get(TaskId(refusal.field.removesuffix(".needs")))
        return [Problem((TASKS, index, "needs") if index is not None else (TASKS,), refusal.message, refusal.hint)]
    return []


def _draft(plan: PlanFile, task: PlanTask, path: Path, directory: str, fallback: TaskDefaults, judged: Sequence[str] = ()) -> TaskSpec:
    """Returns the core's record of one task under its bare name."""
    merged = _merged(plan.defaults, task)
    payload = _payload(plan.defaults, task, path)
    returns = RETURNS_REVIEW if not isinstance(task.reviews, UnsetType) else f.given(task.returns, "")
    category = f.given(merged.category, "coding")
    best_at = fallback.specialists.get(speciality_of(f.given(merged.speciality, ""), category, returns), "")
    kind = _kind(plan, merged, payload, path, fallback.kinds.get(ROUTES.get(returns, category), best_at))
    criteria = f.given(merged.success_criteria, ())
    try:
        where = show_path((*path, CRITERIA)) if criteria else ""
        checks = checks_for(criteria, field=where, judged=judged, otherwise=otherwise(fallback, plan=True)) if criteria else ()
    except BadInput as refusal:
        at = refusal.field.rpartition("[")[2].removesuffix("]")
        raise _Told(Problem(_as_written(plan, (*path, CRITERIA, int(at))), refusal.message, refusal.hint)) from None
    strategy, replicas = f.strategy_of(merged.target_agents)
    timeout_ms, cost = f.stops_of(merged.constraints, fallback.timeout_ms)
    requirements = merged.requirements
    isolation = None if isinstance(merged.isolation, UnsetType) else merged.isolation
    place = place_of(_folder(plan, merged), isolation, kind=kind, directory=directory)
    return TaskSpec(
        id=TaskId(task.id),
        description=f.first_line(payload.content) if isinstance(merged.description, UnsetType) else merged.description,
        payload=payload,
        kind=kind,
        category=category,
        priority=f.WIRE_PRIORITIES[f.given(merged.priority, "normal")],
        strategy=strategy,
        replicas=replicas,
        needs=tuple(TaskId(need) for need in _needs(task)),
        retries=f.given(merged.retries, fallback.retries),
        backoff_ms=_ms(merged.retry_backoff_seconds, fallback.backoff_ms),
        backoff_max_ms=_ms(merged.retry_backoff_max_seconds, fallback.backoff_max_ms),
        estimate_ms=_ms(merged.estimated_seconds, ESTIMATE_DEFAULT_MS),
        timeout_ms=timeout_ms,
        cost_usd_micros_max=cost,
        criteria=tuple(written(one) for one in criteria),
        checks=checks,
        requirements="{}" if isinstance(requirements, UnsetType) else msgspec.json.encode(requirements).decode(),
        files=f.given(merged.files, ()),
        workspace=place.workspace,
        workspace_here=place.here,
        isolated=place.isolated,
        sandbox=f.given(merged.sandbox, "auto").replace("auto", ""),
        stdin=f.given(merged.stdin, ""),
        affinity=f.given(merged.affinity, ""),
        node=None if isinstance(merged.node, UnsetType) else NodeId(merged.node),
        tags=f.given(merged.tags, ()),
        programs=f.given(merged.programs, ()),
        env=dict(f.given(merged.env, {})),
        limits=f.limits_of(merged.limits),
        returns=returns,
        strict=fallback.strict and returns == RETURNS_PLAN,
        reviews=None if isinstance(task.reviews, UnsetType) else TaskId(task.reviews),
        agent_fixed=f.given(merged.agent_fixed, False),
        speciality=f.given(merged.speciality, ""),
    )


def _as_written(plan: PlanFile, path: Path) -> Path:
    """Returns where a task's criterion stands: with the task, or with the defaults."""
    index, *rest = path[1:]
    return path if plan.tasks[int(index)].success_criteria is not UNSET else ("defaults", *rest)


def _needs(task: PlanTask) -> tuple[str, ...]:
    reviewed = () if isinstance(task.reviews, UnsetType) or task.reviews in task.needs else (task.reviews,)
    return (*task.needs, *reviewed)


def _ms(seconds: float | UnsetType, default_ms: int) -> int:
    return default_ms if isinstance(seconds, UnsetType) else ms_from_seconds(seconds, field="")


_WHOLE: Final = frozenset({"payload", "requirements"})
"""Fields whose parts belong together: a task's own takes the place of the default's."""


def _merged(defaults: TaskFields, task: PlanTask) -> TaskFields:
    """Returns what the task says, and for the rest what the defaults say."""
    if defaults == _NO_DEFAULTS:
        return task
    merged = {}
    for name in TaskFields.__struct_fields__:
        mine, general = getattr(task, name), getattr(defaults, name)
        if mine is UNSET or general is UNSET or name in _WHOLE:
            merged[name] = general if mine is UNSET else mine
        elif isinstance(mine, msgspec.Struct):
            parts = ((part, getattr(mine, part), getattr(general, part)) for part in mine.__struct_fields__)
            merged[name] = type(mine)(**{part: one if one is not UNSET else other for part, one, other in parts})
        else:
            merged[name] = {**general, **mine} if isinstance(mine, dict) else mine
    return TaskFields(**merged)


_NO_DEFAULTS: Final = TaskFields()


def _payload(defaults: TaskFields, task: PlanTask, path: Path) -> Payload:
    """Returns what the agent is given: of the task if it says, else of the defaults."""
    for holder, place in ((task, path), (defaults, ("defaults",))):
        given = [name for name in ("payload", "run", "prompt") if getattr(holder, name) is not UNSET]
        if len(given) > 1:
            raise _Told(Problem((*place, given[1]), f"{' and '.join(given)} are given", "give exactly one of payload, run and prompt"))
        if not isinstance(holder.run, UnsetType):
            return Payload("command", holder.run)
        if not isinstance(holder.prompt, UnsetType):
            return Payload("analysis", holder.prompt)
        if not isinstance(holder.payload, UnsetType):
            return f.payload_of(holder.payload)
    raise _Told(Problem(path, f"task {task.id!r} has nothing to do", "give exactly one of payload, run and prompt"))


def _kind(plan: PlanFile, merged: TaskFields, payload: Payload, path: Path, routed: str) -> str:
    if not isinstance(merged.agent, UnsetType):
        return merged.agent
    if payload.type in ("command", "code"):
        return SHELL_KIND
    kinds = {group.kind for group in given_agents(plan)} - {ANY_KIND}
    if len(kinds) == 1:
        return kinds.pop()
    if routed and (not kinds or routed in kinds or any(group.kind == ANY_KIND for group in given_agents(plan))):
        return routed
    raise _Told(
        Problem(path, "it is not said which kind of agent answers the prompt", "write agent: claude (or codex, ...) here or in defaults")
    )


def _folder(plan: PlanFile, merged: TaskFields) -> str | None:
    folder = f.given(merged.workspace, plan.workspace)
    return None if isinstance(folder, UnsetType) else folder
