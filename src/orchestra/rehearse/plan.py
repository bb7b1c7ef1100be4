"""A plan as it is rehearsed: the same tasks, needs and checks, in other folders, played by whoever can play them. Pure.

What names machines (`node`, `tags`, `programs`) is left out: a rehearsal happens on this one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Final

import msgspec

from orchestra.core.model import ANY_KIND, TaskSpec
from orchestra.intake.folders import REHEARSAL_KIND, SHARED_KINDS
from orchestra.intake.planfile import PlanDocument
from orchestra.rehearse.scenario import Scene
from orchestra.rehearse.script import SPOKEN, mark_of, requirements_of
from orchestra.views import REHEARSAL

OF_MACHINES: Final = ("node", "tags", "programs")
AS_THEY_ARE: Final = SHARED_KINDS

Json = dict[str, Any]


class Cast(msgspec.Struct, frozen=True):
    """Who plays which task."""

    spoken: Mapping[str, tuple[str, Scene]]
    """Played by a real program with a mocked model: its kind and its scene, by task."""
    played: Mapping[str, Scene | None]
    """Played by the stand-in program; without a scene it writes the files that the task declares."""

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds whose real programs are needed."""
        return tuple(kind for kind in SPOKEN if any(kind == each for each, _ in self.spoken.values()))


def cast_of(plan: PlanDocument, scenes: Mapping[str, Scene], *, real: bool) -> Cast:
    """Returns who plays what.

    Args:
        plan: What is to be rehearsed.
        scenes: What was recorded, by task.
        real: Real programs may play, with a mocked model.
    """
    spoken: dict[str, tuple[str, Scene]] = {}
    played: dict[str, Scene | None] = {}
    for draft in plan.drafts:
        scene = scenes.get(draft.id)
        if draft.kind in AS_THEY_ARE:
            continue
        if real and scene is not None and draft.kind in SPOKEN and draft.payload.type == "analysis":
            spoken[draft.id] = draft.kind, scene
        else:
            played[draft.id] = scene
    return Cast(spoken, played)


def rehearsed(value: Json, plan: PlanDocument, cast: Cast, places: Mapping[str, str], agents: int | None) -> Json:
    """Returns the plan to run.

    Args:
        value: The plan as it was written, as plain values.
        plan: The same, read.
        cast: Who plays what.
        places: The folder that stands for each workspace.
        agents: How many there are to be in all; None leaves it to the plan.
    """
    made = copy.deepcopy(value)
    for name in ("workspace", *OF_MACHINES):
        made.pop(name, None)
        made.get("defaults", {}).pop(name, None)
    written = len(made["tasks"])
    made["tasks"] = [_task(task, draft, cast, places) for task, draft in zip(made["tasks"], plan.drafts[:written], strict=True)]
    made["tasks"] += [_task(_review(draft), draft, cast, places) for draft in plan.drafts[written:]]
    made["agents"] = [{"count": agents, "kind": ANY_KIND, "name": REHEARSAL}] if agents is not None else _groups(plan, cast)
    return made


def _review(draft: TaskSpec) -> Json:
    """A review that was added to judge what no program can check, as a task that somebody can play."""
    return {"id": draft.id, "reviews": draft.reviews, "prompt": draft.payload.content}


def _task(task: Json, draft: TaskSpec, cast: Cast, places: Mapping[str, str]) -> Json:
    made = {name: value for name, value in task.items() if name not in OF_MACHINES}
    if draft.workspace:
        made["workspace"] = places[draft.workspace]
        made["isolation"] = "worktree" if draft.isolated else "shared"
    if draft.id in cast.spoken:
        scene: Scene | None = cast.spoken[draft.id][1]
        made = {name: value for name, value in made.items() if name not in ("payload", "run", "prompt")}
        made |= {"agent": draft.kind, "prompt": f"{draft.payload.content.rstrip()}\n\n{mark_of(draft.id)}\n"}
    elif draft.id in cast.played:
        scene = cast.played[draft.id]
        made |= {"agent": REHEARSAL_KIND, "requirements": {} if scene is None else requirements_of(scene)}
    else:
        scene = None
    if scene is not None:
        made["estimated_seconds"] = max(scene.direction.seconds, 0.1)
    return made


def _groups(plan: PlanDocument, cast: Cast) -> list[Json]:
    """The plan's own groups, under names that say what this is. A kind that nobody plays for real becomes the stand-in's."""
    groups = []
    for group in plan.agents:
        kind = group.kind if group.kind in (*AS_THEY_ARE, ANY_KIND, *cast.kinds) else REHEARSAL_KIND
        name = REHEARSAL if isinstance(group.name, msgspec.UnsetType) else f"{REHEARSAL}-{group.name}"[:64]
        made: Json = {"count": group.count, "kind": kind, "name": name, "weight": group.weight}
        groups.append(made if isinstance(group.category, msgspec.UnsetType) else {**made, "category": group.category})
    if groups and cast.played and not _can_play(groups):
        groups.append({"count": 1, "kind": ANY_KIND, "name": REHEARSAL})
    return groups


def _can_play(groups: list[Json]) -> bool:
    return any(group["kind"] in (REHEARSAL_KIND, ANY_KIND) for group in groups)
