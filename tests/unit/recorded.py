"""What real CLIs printed and how they ended, as a worker saw it; written by tests/agents with ORCHESTRA_RECORD_AGENTS=1."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import msgspec

from orchestra.agents.adapter import Adapter, Exit, Signal, Verdict
from orchestra.agents.causes import Cause
from orchestra.core.model import Payload, TaskSpec
from orchestra.ids import TaskId

RECORDINGS = Path(__file__).parent / "recordings"


class Recording(NamedTuple):
    """One attempt."""

    end: Exit
    lines: list[dict[str, Any]]


def recording(kind: str, name: str) -> Recording:
    seen = json.loads((RECORDINGS / f"{kind}-{name}.json").read_text(encoding="utf-8"))
    return Recording(msgspec.convert(seen["exit"], Exit, strict=False), seen["lines"])


def cause_in(text: str) -> Cause | None:
    """The cause whose word a reason begins with."""
    word = text.partition(":")[0]
    return next((cause for cause in Cause if cause.value == word), None)


def make_spec(kind: str, content: str = "Do it.", type_: str = "analysis", **more: Any) -> TaskSpec:
    return TaskSpec(id=TaskId("demo/one"), description="A task", payload=Payload(type_, content), kind=kind, **more)


def judged(adapter: Adapter, name: str, **changes: Any) -> Verdict:
    """Returns the verdict on a recorded end; `changes` are to that."""
    end = msgspec.structs.replace(recording(adapter.kind, name).end, **changes)
    return adapter.verdict(make_spec(adapter.kind), end)


def signals(adapter: Adapter, name: str) -> list[Signal]:
    return [found for line in recording(adapter.kind, name).lines if (found := adapter.signal(line)) is not None]
