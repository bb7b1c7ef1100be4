"""The kinds of value that plans and requests have in common, each with its limits and the words that explain it.

The descriptions end up in the JSON Schema that editors show; `says` is how a message names what was expected.
"""

from __future__ import annotations

from typing import Annotated, Any, Final, Literal, TypeVar

import msgspec
from msgspec import UNSET, Meta, UnsetType

from orchestra.core.model import Limits, Payload, Priority, Strategy
from orchestra.ids import NAME
from orchestra.quantity import ms_from_seconds, usd_micros

NAME_PATTERN: Final = f"^{NAME.pattern}(?!\\n)$"
"""As in `ids`, and in a form that JSON Schema's regular expressions know; a bare `$` would let a line break pass."""
NAME_SAYS: Final = "a plain name (1 to 64 letters, digits, '.', '_' or '-', a letter or digit first)"
TASK_ID_PATTERN: Final = f"^{NAME.pattern}(?:/{NAME.pattern})?(?!\\n)$"
RELATIVE_PATTERN: Final = r"^(?!/)(?!(?:[^\u0000]*/)?\.\.(?:/|$))[^\u0000]+(?!\n)$"
NO_NUL: Final = r"^[^\u0000]*$"
YEAR_SECONDS: Final = 31_536_000
TASKS_MAX: Final = 200_000
CONTENT_MAX: Final = 1_048_576
"""Characters of one prompt or script. A model's context holds less, and a mebibyte still passes through every pipe on the way."""

_NAME: Final[dict[str, Any]] = {"says": NAME_SAYS}
_TEXT: Final[dict[str, Any]] = {"says": f"text of 1 to {CONTENT_MAX} characters without NUL"}

Name = Annotated[str, Meta(pattern=NAME_PATTERN, description="Letters, digits, '.', '_' and '-'; at most 64.", extra=_NAME)]
Category = Literal["coding", "business", "research", "support"]
PriorityName = Literal["critical", "high", "normal", "medium", "low"]
StrategyName = Literal["priority", "round-robin", "load-based", "weighted", "affinity"]
Content = Annotated[str, Meta(min_length=1, max_length=CONTENT_MAX, pattern=NO_NUL, extra=_TEXT)]
Description = Annotated[str, Meta(min_length=1, max_length=10_000, description="What is to be done, in a sentence or more.")]
Seconds = Annotated[float, Meta(ge=0.001, le=YEAR_SECONDS)]
Wait = Annotated[float, Meta(ge=0, le=YEAR_SECONDS)]
Retries = Annotated[int, Meta(ge=0, le=100, description="How often a failed task is tried again.")]
TaskRef = Annotated[str, Meta(pattern=TASK_ID_PATTERN, extra={"says": "a task id (TASK or PLAN/TASK)"})]
RelativePath = Annotated[
    str,
    Meta(
        max_length=4096,
        pattern=RELATIVE_PATTERN,
        description="Path inside the workspace.",
        extra={"says": "a relative path without '..'"},
    ),
]
EnvName = Annotated[
    str, Meta(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,254}(?!\n)$", extra={"says": "letters, digits and '_', not starting with a digit"})
]
EnvValue = Annotated[str, Meta(max_length=131_072, pattern=NO_NUL, extra={"says": "text without NUL"})]
Folder = Annotated[
    str, Meta(min_length=1, max_length=4096, pattern=NO_NUL, description="Folder, seen from the plan file.", extra={"says": "a folder"})
]
AbsoluteFolder = Annotated[str, Meta(max_length=4096, pattern=r"^/[^\u0000]*$", extra={"says": "an absolute folder"})]
Isolation = Literal["worktree", "shared"]
JsonObject = dict[str, Any]

Tags = Annotated[tuple[Name, ...], Meta(max_length=100, description="Tags its node must have.")]
ProgramName = Annotated[
    str, Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]{0,63}(?!\n)$", extra={"says": "the name of a program, without a path"})
]
Programs = Annotated[tuple[ProgramName, ...], Meta(max_length=100, description="Programs that must be installed on its node.")]

WIRE_PRIORITIES: Final[dict[str, Priority]] = {
    "critical": Priority.CRITICAL,
    "high": Priority.HIGH,
    "normal": Priority.NORMAL,
    "medium": Priority.NORMAL,
    "low": Priority.LOW,
}


class Record(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """Base of everything that is read from outside: nothing unknown passes."""


class TargetAgents(Record, frozen=True):
    """How the agent is chosen, and how many attempts run in parallel."""

    strategy: Annotated[StrategyName | UnsetType, Meta(description="How an agent is chosen among the free ones; default priority.")] = UNSET
    count: Annotated[int, Meta(ge=1, le=200, description="Parallel attempts; the best verified one wins. Default 1.")] | UnsetType = UNSET


class PayloadFields(Record, frozen=True):
    """What the agent is given: a shell script, a program with its language, or a prompt."""

    type: Literal["command", "code", "analysis"]
    content: Annotated[Content, Meta(description="The script, program or prompt, handed on as it is.")]
    language: (
        Annotated[
            str,
            Meta(
                pattern=r"^[A-Za-z0-9][A-Za-z0-9+#._-]{0,31}(?!\n)$",
                description="Language of `code`.",
                extra={"says": "the name of a language"},
            ),
        ]
        | UnsetType
    ) = UNSET


class Constraints(Record, frozen=True):
    """Where a task is stopped."""

    max_execution_time_seconds: (
        Annotated[Seconds, Meta(description="An attempt that runs longer is stopped. Default 3600.")] | UnsetType
    ) = UNSET
    max_cost_dollars: (
        Annotated[float, Meta(ge=0, le=1_000_000, description="Hard stop of the task's model cost; 0 or absent means none.")] | UnsetType
    ) = UNSET


class LimitFields(Record, frozen=True):
    """Limits the agent's processes run under; 0 or absent means none."""

    memory_mb: Annotated[int, Meta(ge=0, le=16_777_216, description="Memory of a process in MiB.")] | UnsetType = UNSET
    cpu_seconds: Annotated[int, Meta(ge=0, le=YEAR_SECONDS, description="Processor time of a process in seconds.")] | UnsetType = UNSET
    open_files: Annotated[int, Meta(ge=0, le=1_048_576, description="Files a process may hold open.")] | UnsetType = UNSET
    processes: Annotated[int, Meta(ge=0, le=4_194_304, description="Processes of the user.")] | UnsetType = UNSET
    cpus: (
        Annotated[int, Meta(ge=0, le=1024, description="Processors it may use at the same time, where the node can limit that.")]
        | UnsetType
    ) = UNSET
    nice: Annotated[int, Meta(ge=0, le=19, description="How far it steps back for others, 0 to 19.")] | UnsetType = UNSET


V = TypeVar("V")


def given(value: V | UnsetType, default: V) -> V:
    """Returns the value, or the default if none was written."""
    return default if isinstance(value, UnsetType) else value


def payload_of(fields: PayloadFields) -> Payload:
    """Returns the core's record of a payload."""
    return Payload(fields.type, fields.content, given(fields.language, ""))


def limits_of(fields: LimitFields | UnsetType) -> Limits:
    """Returns the core's record of resource limits, in bytes and seconds."""
    if isinstance(fields, UnsetType):
        return Limits()
    return Limits(
        memory_bytes=given(fields.memory_mb, 0) * 1024 * 1024,
        cpu_seconds=given(fields.cpu_seconds, 0),
        open_files=given(fields.open_files, 0),
        processes=given(fields.processes, 0),
        nice=given(fields.nice, 0),
        cpus=given(fields.cpus, 0),
    )


def strategy_of(fields: TargetAgents | UnsetType) -> tuple[Strategy, int]:
    """Returns how the agent is chosen and how many attempts run in parallel."""
    target = given(fields, TargetAgents())
    return Strategy(given(target.strategy, "priority")), given(target.count, 1)


def stops_of(fields: Constraints | UnsetType, default_timeout_ms: int) -> tuple[int, int]:
    """Returns the time limit in milliseconds and the cost limit in micro-dollars."""
    limits = given(fields, Constraints())
    seconds = limits.max_execution_time_seconds
    timeout = (
        default_timeout_ms if isinstance(seconds, UnsetType) else ms_from_seconds(seconds, field="constraints.max_execution_time_seconds")
    )
    return timeout, usd_micros(given(limits.max_cost_dollars, 0.0), field="constraints.max_cost_dollars")


def first_line(text: str, length: int = 120) -> str:
    """Returns the first line of a text that says something, for use as a title."""
    line = next((line.strip() for line in text.splitlines() if line.strip()), text.strip() or "task")
    return line if len(line) <= length else line[: length - 3] + "..."
