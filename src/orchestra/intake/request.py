"""What a parent orchestrator may ask, as records of the wire, and a submitted task as the core's record.

The fields are the published ones. Anything else is refused with the nearest name, and a refusal changes nothing.
"""

from __future__ import annotations

import re
import unicodedata
from typing import Annotated, Final, Literal, TypeVar

import msgspec
from msgspec import Meta

from orchestra.core.model import (
    ESTIMATE_DEFAULT_MS,
    STANDARD,
    Payload,
    TaskDefaults,
    TaskSpec,
    speciality_of,
)
from orchestra.errors import BadInput
from orchestra.ids import NodeId, TaskId, parse_task_id
from orchestra.intake import fields as f
from orchestra.intake.criteria import Criterion, checks_for, for_judgement, written
from orchestra.intake.document import Path, check_plain, parse, show_path
from orchestra.intake.folders import SHELL_KIND, Place, place_of
from orchestra.intake.judging import otherwise
from orchestra.intake.planfile import AgentGroup
from orchestra.intake.shape import Problem, convert
from orchestra.quantity import ms_from_seconds

T = TypeVar("T")

BATCH_MAX: Final = 10_000
ANSWER_CHARACTERS_MAX: Final = 3000
ANSWER_BYTES_MAX: Final = 3500
"""As JSON: it goes to its worker in one line of at most 4096 bytes."""
DESCRIPTION_WIDTH_MIN: Final = 10
DESCRIPTION_WORDS_MIN: Final = 3
_EMPTY_WORDS: Final = frozenset(
    {
        *("a", "an", "and", "as", "at", "be", "do", "for", "from", "in", "is", "it", "its", "me", "my", "of", "on", "or", "our", "please"),
        *("so", "some", "something", "stuff", "that", "the", "them", "these", "thing", "things", "this", "to", "with", "you"),
    }
)
"""Words that say nothing about what to do; they are not counted."""
_WORD: Final = re.compile(r"[^\W_]+(?:[-'./][^\W_]+)*")


class InitParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.init`: a phase or roster says of what sorts the agents are; `nodes` and `agent_count` say where and how many."""

    phase: Annotated[int, Meta(ge=1, le=3, description="1: 18 agents, 2: 50 to 100, 3: 200.")] | None = None
    nodes: Annotated[tuple[f.Name, ...], Meta(max_length=1000, description="Names of configured nodes; absent means all.")] | None = None
    agent_count: Annotated[int, Meta(ge=1, le=10_000, description="Agents in all.")] | None = None
    agents: Annotated[tuple[AgentGroup, ...], Meta(max_length=1000, description="Agents by kind, instead of a bare count.")] = ()
    roster: Annotated[f.Name, Meta(description="Name of a preset, instead of a phase.")] | None = None
    roster_text: Annotated[f.Content, Meta(description="Text of a roster file, instead of a phase.")] | None = None


class SubmitTaskParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.submit_task`."""

    description: f.Description
    task_id: Annotated[f.Name, Meta(description="TASK-<uuid> or any plain name; made up if absent.")] | None = None
    category: f.Category = "coding"
    priority: f.PriorityName = "medium"
    target_agents: f.TargetAgents = f.TargetAgents()
    payload: f.PayloadFields | None = None
    requirements: Annotated[f.JsonObject, Meta(description="Any JSON object; handed to the agent.")] = msgspec.field(default_factory=dict)
    constraints: f.Constraints = f.Constraints()
    success_criteria: Annotated[tuple[Criterion, ...], Meta(max_length=100)] = ()
    strict: Annotated[bool, Meta(description="Criteria that no program can check are refused, instead of being judged by an agent.")] = (
        False
    )
    submitted_at: Annotated[str, Meta(min_length=1, max_length=64, description="When, by the parent's clock; a note only.")] | None = None
    submitted_by: Annotated[str, Meta(max_length=200, description="Who; a note only.")] = ""
    dependencies: Annotated[tuple[f.TaskRef, ...], Meta(max_length=100_000, description="Tasks that must be completed before.")] = ()
    agent: Annotated[f.Name, Meta(description="Agent kind that has to run it.")] | None = None
    agent_fixed: Annotated[bool, Meta(description="No other kind takes it.")] = False
    speciality: Annotated[f.Name, Meta(description="What agents should be best at that do it.")] | None = None
    estimated_time: Annotated[f.Seconds, Meta(description="Seconds it is expected to take.")] = ESTIMATE_DEFAULT_MS / 1000
    files: Annotated[tuple[f.RelativePath, ...], Meta(max_length=10_000)] = ()
    node: Annotated[f.Name, Meta(description="Node it has to run on.")] | None = None
    tags: f.Tags = ()
    programs: f.Programs = ()
    workspace: Annotated[f.Folder, Meta(description="Folder it works in, seen from `directory`; default is that one.")] | None = None
    isolation: (
        Annotated[
            f.Isolation, Meta(description="As in plans: a worktree (or copy) of the workspace for each attempt, or the workspace itself.")
        ]
        | None
    ) = None
    affinity: Annotated[f.Name, Meta(description="Tasks with the same key prefer the same agent, and go on with its session.")] | None = (
        None
    )
    directory: (
        Annotated[
            f.AbsoluteFolder, Meta(description="Where its workspace is seen from; default is the folder that the orchestra was started in.")
        ]
        | None
    ) = None
    retries: f.Retries | None = None
    retry_backoff_seconds: Annotated[f.Wait, Meta(description="Wait before the first retry; doubles with each.")] | None = None


class SubmitBatchParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.submit_batch`: all of these or none."""

    tasks: Annotated[tuple[SubmitTaskParams, ...], Meta(min_length=1, max_length=BATCH_MAX)]


class StatusParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.status`: of all, or of one node, agent or task."""

    scope: Literal["global", "node", "agent", "task"] = "global"
    target: Annotated[str, Meta(min_length=1, max_length=200)] | Annotated[int, Meta(ge=1, le=10_000)] = "all"


class ScaleParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.scale`."""

    target_count: Annotated[int, Meta(ge=0, le=10_000, description="Agents in all.")]
    strategy: Literal["gradual", "immediate"] = "gradual"


class ShutdownParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.shutdown`."""

    graceful: bool = True
    drain_tasks: bool = True
    timeout_seconds: Annotated[f.Wait, Meta(description="Longest wait for running tasks.")] = 300.0


class AnswerParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.answer`: the reply to what the task's agent waits for."""

    task_id: f.TaskRef
    text: Annotated[str, Meta(min_length=1, max_length=ANSWER_CHARACTERS_MAX, description="`yes`, `no`, or words.")]
    question: Annotated[int, Meta(ge=0, description="Number of the question it is for; absent means the present one.")] | None = None


class CancelParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.cancel`."""

    task_id: f.TaskRef
    reason: Annotated[str, Meta(max_length=1000)] = ""


class EstimateCostParams(f.Record, frozen=True, kw_only=True):
    """`orchestra.estimate_cost`."""

    task: f.Description
    agents: Annotated[int, Meta(ge=1, le=10_000)] = 1
    estimated_tokens: Annotated[int, Meta(ge=0, le=10**15)] | None = None


def parse_params(record: type[T], raw: object) -> T:
    """Returns a request's parameters as a record.

    Args:
        record: One of this module's `...Params`.
        raw: JSON as bytes, or plain values that were read already. Nothing at all counts as no parameters.

    Raises:
        BadInput: They do not fit; `field` is the path of the first that does not.
    """
    if isinstance(raw, bytes | bytearray | memoryview):
        value = _decoded(bytes(raw))
    else:
        check_plain(raw)
        value = raw
    made = convert({} if value is None else value, record)
    if isinstance(made, list):
        raise _refusal(made)
    return made


def judged_phrases(params: SubmitTaskParams, defaults: TaskDefaults) -> tuple[str, ...]:
    """Returns the criteria of a submitted task that an agent has to judge."""
    return for_judgement(params.success_criteria) if defaults.judge and not (defaults.strict or params.strict) else ()


def to_spec(params: SubmitTaskParams, *, task_id: TaskId, default_kind: str, directory: str, defaults: TaskDefaults = STANDARD) -> TaskSpec:
    """Returns a submitted task as the core's record. What an agent has to judge of it (`judged_phrases`) is not among its checks.

    Args:
        params: What was submitted.
        task_id: Its id, made up by the caller if the parent gave none.
        default_kind: Agent kind for prompts that name none, or empty if there is none; scripts go to `shell`.
        directory: Absolute folder that its workspace is seen from where it names none, or empty: it then has a private one.
        defaults: What it gets where it says nothing.

    Raises:
        BadInput: It is too vague to be done, its folder cannot be told, or a criterion cannot be checked.
    """
    judged = judged_phrases(params, defaults)
    if params.payload is None and len(judged) == len(params.success_criteria):  # nothing is run that would say what is meant
        check_clear(params.description)
    payload = Payload("analysis", params.description) if params.payload is None else f.payload_of(params.payload)
    strategy, replicas = f.strategy_of(params.target_agents)
    timeout_ms, cost = f.stops_of(params.constraints, defaults.timeout_ms)
    needs = tuple(parse_task_id(need, field=f"dependencies[{index}]") for index, need in enumerate(params.dependencies))
    if len(set(needs)) < len(needs):
        raise BadInput("a dependency is named twice", field="dependencies", hint="once is enough")
    if task_id in needs:
        raise BadInput("the task depends on itself", field="dependencies", hint="remove it")
    best_at = defaults.specialists.get(speciality_of(params.speciality or "", params.category, ""), "")
    routed = default_kind or defaults.kinds.get(params.category, best_at)
    kind = params.agent or (SHELL_KIND if payload.type in ("command", "code") else routed)
    if not kind:
        raise BadInput(
            "a prompt needs an agent that understands it", field="agent", hint="name an agent kind, or set agents.kind in the settings"
        )
    backoff = params.retry_backoff_seconds
    instead = otherwise(msgspec.structs.replace(defaults, strict=defaults.strict or params.strict), plan=False)
    place = _place(params, kind, params.directory or directory)
    return TaskSpec(
        id=task_id,
        description=params.description,
        payload=payload,
        kind=kind,
        category=params.category,
        priority=f.WIRE_PRIORITIES[params.priority],
        strategy=strategy,
        replicas=replicas,
        needs=needs,
        retries=defaults.retries if params.retries is None else params.retries,
        backoff_ms=defaults.backoff_ms if backoff is None else ms_from_seconds(backoff, field="retry_backoff_seconds"),
        backoff_max_ms=defaults.backoff_max_ms,
        estimate_ms=ms_from_seconds(params.estimated_time, field="estimated_time"),
        timeout_ms=timeout_ms,
        cost_usd_micros_max=cost,
        criteria=tuple(written(one) for one in params.success_criteria),
        checks=checks_for(params.success_criteria, field="success_criteria", judged=judged, otherwise=instead),
        requirements=msgspec.json.encode(params.requirements).decode(),
        files=params.files,
        workspace=place.workspace,
        workspace_here=place.here,
        isolated=place.isolated,
        affinity=params.affinity or "",
        node=None if params.node is None else NodeId(params.node),
        tags=params.tags,
        programs=params.programs,
        submitted_by=params.submitted_by,
        agent_fixed=params.agent_fixed,
        speciality=params.speciality or "",
    )


def _place(params: SubmitTaskParams, kind: str, directory: str) -> Place:
    if params.workspace is not None and not directory and not params.workspace.startswith("/"):
        raise BadInput(
            f"it is not said where {params.workspace!r} is seen from",
            field="workspace",
            hint="name an absolute folder, or give `directory`",
        )
    return place_of(params.workspace, params.isolation, kind=kind, directory=directory)


def check_clear(description: str) -> None:
    """Checks that a description standing alone says what is to be done. Wide characters count double, two of them as a word.

    Raises:
        BadInput: It is too short, or has fewer than three words that mean something.
    """
    wide = sum(_is_wide(one) for one in description)
    words = [word for word in _WORD.findall(description.lower()) if word not in _EMPTY_WORDS and not _is_wide(word)]
    if len(description.strip()) + wide < DESCRIPTION_WIDTH_MIN or len(words) + wide // 2 < DESCRIPTION_WORDS_MIN:
        raise BadInput(
            f"{description[:80]!r} is too vague to be done and checked",
            field="description",
            hint="say what is to change and where, and add success_criteria such as 'All tests pass'",
        )


def _is_wide(text: str) -> bool:
    return any(unicodedata.east_asian_width(one) in "WF" for one in text)


def _decoded(raw: bytes) -> object:
    try:
        text = raw.decode()
    except UnicodeDecodeError as broken:
        raise BadInput(f"the request is not UTF-8: byte {broken.start} cannot be read", hint="send JSON in UTF-8") from None
    return parse(text, source="request.json", error=BadInput).value if text.strip() else None


def _refusal(problems: list[Problem]) -> BadInput:
    path: Path = problems[0].path
    more = f" [and {len(problems) - 1} more]" if len(problems) > 1 else ""
    return BadInput(f"{problems[0].message}{more}", hint=problems[0].hint, field=show_path(path))
