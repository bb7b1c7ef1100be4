"""Which agent kinds there are: everything registered under the entry-point group `orchestra.agents`."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Final

from orchestra.agents.adapter import Adapter, Context
from orchestra.core.model import TaskSpec
from orchestra.errors import BadInput, PlanInvalid

GROUP: Final = "orchestra.agents"


@cache
def adapters() -> Mapping[str, Adapter]:
    """Returns the installed kinds by name, in alphabetical order. A broken plugin raises its own error here, at start."""
    found = {point.name: point.load() for point in entry_points(group=GROUP)}
    return dict(sorted(found.items()))


def check_runnable(spec: TaskSpec, *, where: str = "") -> None:
    """Refuses at the door what would be refused on the node: a kind that is missing, or that cannot run such a payload.

    Raises:
        PlanInvalid: It is so; the message names the task.
    """
    try:
        adapter_for(spec.kind).launch(spec, Context(1, 0))
    except BadInput as error:
        raise PlanInvalid(f"task {spec.id!r}: {error.message}", field=f"{where}{error.field}", hint=error.hint) from error


def adapter_for(kind: str, *, field: str = "agent") -> Adapter:
    """Returns the kind.

    Raises:
        PlanInvalid: No such kind is installed.
    """
    known = adapters()
    if kind not in known:
        near = difflib.get_close_matches(kind, known, 1)
        raise PlanInvalid(
            f"there is no agent kind {kind!r}",
            field=field,
            hint=f"did you mean {near[0]!r}?" if near else f"installed kinds: {', '.join(known)}",
        )
    return known[kind]
