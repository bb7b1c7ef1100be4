"""Which agent kinds there are: everything registered under the entry-point group `orchestra.agents`, and what the settings define."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from types import MappingProxyType
from typing import Final

from orchestra.agents.adapter import Adapter, Context
from orchestra.agents.command import made
from orchestra.core.model import TaskSpec
from orchestra.errors import BadInput, PlanInvalid

GROUP: Final = "orchestra.agents"


_from_settings: dict[str, Adapter] = {}


@cache
def _installed() -> Mapping[str, Adapter]:
    return {point.name: point.load() for point in entry_points(group=GROUP)}


def adapters() -> Mapping[str, Adapter]:
    """Returns the known kinds by name, in alphabetical order. A broken plugin raises its own error here, at start."""
    return _known()


@cache
def _known() -> Mapping[str, Adapter]:
    """Made once: it is asked for with every attempt."""
    return MappingProxyType(dict(sorted({**_installed(), **_from_settings}.items())))


def define(sections: Mapping[str, Mapping[str, str]]) -> None:
    """Makes the kinds that the settings define known, in place of those of an earlier call.

    Args:
        sections: The settings of each kind. One with a `command` is a kind of its own.

    Raises:
        BadInput: A section cannot be, has the name of an installed kind, or belongs to no kind.
    """
    own = made(sections)
    for kind in sections:
        if kind in own and kind in _installed():
            raise BadInput("is an installed kind, which has its own command", field=f"kinds.{kind}.command", hint="give yours another name")
        if kind not in own and kind not in _installed():
            near = difflib.get_close_matches(kind, _installed(), 1)
            hint = f"did you mean {near[0]!r}?" if near else "a kind of your own needs a command"
            raise BadInput("there is no such agent kind", field=f"kinds.{kind}", hint=hint)
    _from_settings.clear()
    _from_settings.update(own)
    _known.cache_clear()


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
