"""From an assigned attempt to the order its worker gets."""

from __future__ import annotations

import uuid
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import Context, Launch
from orchestra.core.model import Check, Limits, TaskSpec
from orchestra.engine.translate import KIND_ERRORS, Finder
from orchestra.errors import BadInput
from orchestra.ids import AgentId, AttemptId
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
    """Used where a task names none of its own."""


class OrderMaker:
    """Makes orders; the only place that knows both an agent kind's launch and the worker's format."""

    def __init__(self, find_adapter: Finder, options: OrderOptions) -> None:
        self._find = find_adapter
        self.options = options

    def make(self, spec: TaskSpec, attempt: AttemptId, agent: AgentId) -> AttemptOrder:
        """Returns the order.

        Raises:
            BadInput: The task's kind cannot run its payload.
        """
        try:
            launch = self._find(spec.kind).launch(spec, Context(attempt.number, agent))
        except BadInput:
            raise
        except KIND_ERRORS as exc:  # one task of a kind that is broken must not end the coordinator
            raise BadInput(f"agent kind {spec.kind!r} failed: {exc!r}", hint="tell whoever made it") from exc
        return AttemptOrder(attempt, agent, self._values(spec, attempt, agent, launch), launch.files)

    def _values(self, spec: TaskSpec, attempt: AttemptId, agent: AgentId, launch: Launch) -> dict[str, Any]:
        options = self.options
        success: dict[str, Any] = {"codes": list(launch.success.codes), "signal": None}
        if launch.success.signal_type:
            success["signal"] = {"type": launch.success.signal_type, "fields": launch.success.signal_fields}
        return {
            "v": SPEC_VERSION,
            "task": attempt.task,
            "attempt": attempt.number,
            "agent": agent,
            "argv": list(launch.argv),
            "env": {**launch.env, **spec.env},
            "env_pass": list(launch.env_pass),
            "cwd": spec.workspace or None,
            "stdin": launch.stdin,
            "timeout_ms": spec.timeout_ms,
            "grace_ms": options.grace_ms,
            "umask": options.umask,
            "limits": _limits(spec.limits, options.limits),
            "output": {"file_bytes_max": options.output_file_bytes, "line_bytes_max": options.line_bytes, "view": launch.view},
            "signals": list(launch.signals),
            "success": success,
            "checks": [_check(check) for check in spec.checks],
            "marker": f"{options.marker_prefix}{uuid.uuid4()}{options.marker_suffix}",
            "title": title(spec),
        }


def title(spec: TaskSpec) -> str:
    """Returns what the window shows of the task: its name and the first words of its description, printable characters only."""
    words = " ".join(spec.description.split())
    text = f"{spec.id}: {words}" if words else str(spec.id)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[:TITLE_CHARACTERS_MAX]


def _limits(own: Limits, default: Limits) -> dict[str, int]:
    chosen = {name: getattr(own, name) or getattr(default, name) for name in Limits.__struct_fields__}
    return {name: value for name, value in chosen.items() if value}


def _check(check: Check) -> dict[str, Any]:
    return {"name": check.name, "argv": list(check.argv), "timeout_ms": check.timeout_ms}
