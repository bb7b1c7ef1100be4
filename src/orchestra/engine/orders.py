"""From an assigned attempt to the order its worker gets."""

from __future__ import annotations

import hashlib
import uuid
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import SPACE_DIR, Context, Launch
from orchestra.core.model import AgentSpec, Check, Limits, TaskSpec
from orchestra.engine.translate import KIND_ERRORS, Finder
from orchestra.errors import BadInput
from orchestra.ids import AttemptId
from orchestra.node import AttemptOrder

SPEC_VERSION: Final = 1
TITLE_CHARACTERS_MAX: Final = 100


class OrderOptions(msgspec.Struct, frozen=True):
    """Settings of attempts; reasons and defaults in `orchestra.settings`."""

    grace_ms: int = 5000
    umask: int = 0o022
    """Of the files agents make: the coordinator's own user's, not the tight one of its own files."""
    output_file_bytes: int = 16 << 20
    line_bytes: int = 65_536
    marker_prefix: str = "---END-OF-OUTPUT-"
    marker_suffix: str = "---"
    limits: Limits = Limits()
    """Used where neither a task nor its agent names any."""
    fence: bool = False
    """The node stops an attempt when it has not heard of the coordinator for too long."""


class OrderMaker:
    """Makes orders; the only place that knows both an agent kind's launch and the worker's format."""

    def __init__(self, find_adapter: Finder, options: OrderOptions) -> None:
        self._find = find_adapter
        self.options = options

    def make(self, spec: TaskSpec, attempt: AttemptId, slot: AgentSpec, *, remote: bool = False) -> AttemptOrder:
        """Returns the order. `remote`: the node is another machine than the one whose folders the task names.

        Raises:
            BadInput: The task's kind cannot run its payload.
        """
        try:
            launch = self._find(spec.kind).launch(spec, Context(attempt.number, slot.id))
        except BadInput:
            raise
        except KIND_ERRORS as exc:  # one task of a kind that is broken must not end the coordinator
            raise BadInput(f"agent kind {spec.kind!r} failed: {exc!r}", hint="tell whoever made it") from exc
        values = self._values(spec, attempt, slot, launch)
        if remote and spec.workspace and spec.workspace_here:
            values["cwd"] = SPACE_DIR + space_name(spec.workspace)
        return AttemptOrder(attempt, slot.id, values, launch.files)

    def _values(self, spec: TaskSpec, attempt: AttemptId, slot: AgentSpec, launch: Launch) -> dict[str, Any]:
        options = self.options
        success: dict[str, Any] = {"codes": list(launch.success.codes), "signal": None}
        if launch.success.signal_type:
            success["signal"] = {"type": launch.success.signal_type, "fields": launch.success.signal_fields}
        return {
            "v": SPEC_VERSION,
            "task": attempt.task,
            "attempt": attempt.number,
            "agent": slot.id,
            "argv": list(launch.argv),
            "env": {**launch.env, **spec.env},
            "env_pass": list(launch.env_pass),
            "cwd": spec.workspace or None,
            "stdin": launch.stdin,
            "timeout_ms": spec.timeout_ms,
            "grace_ms": options.grace_ms,
            "umask": options.umask,
            "limits": _limits(spec.limits, slot.limits, options.limits),
            "output": {"file_bytes_max": options.output_file_bytes, "line_bytes_max": options.line_bytes, "view": launch.view},
            "signals": list(launch.signals),
            "success": success,
            "checks": [_check(check) for check in spec.checks],
            "marker": f"{options.marker_prefix}{uuid.uuid4()}{options.marker_suffix}",
            "title": title(spec),
            **({"fence": True} if options.fence else {}),
        }


def title(spec: TaskSpec) -> str:
    """Returns what the window shows of the task: its name and the first words of its description, printable characters only."""
    words = " ".join(spec.description.split())
    text = f"{spec.id}: {words}" if words else str(spec.id)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:TITLE_CHARACTERS_MAX]


def space_name(workspace: str) -> str:
    """Returns the name of a node's own folder that stands for a workspace of the machine the plan was read on."""
    return f"{hashlib.sha256(workspace.encode()).hexdigest()[:12]}"


def _limits(*levels: Limits) -> dict[str, int]:
    """Takes each limit from the first that names it: the task, its agent, the settings."""
    chosen = {name: next(filter(None, (getattr(limits, name) for limits in levels)), 0) for name in Limits.__struct_fields__}
    return {name: value for name, value in chosen.items() if value}


def _check(check: Check) -> dict[str, Any]:
    return {"name": check.name, "argv": list(check.argv), "timeout_ms": check.timeout_ms}
