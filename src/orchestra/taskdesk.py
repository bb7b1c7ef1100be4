"""What is asked for, as the tasks that are submitted: with the settings' defaults, where they work, who judges them, and who does them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

import msgspec

from orchestra.agents.registry import adapters, check_runnable
from orchestra.answers import check_judged, make_workspace
from orchestra.core.model import ANY_KIND, TaskDefaults, TaskSpec
from orchestra.core.state import State
from orchestra.engine.loop import Loop
from orchestra.engine.translate import Finder
from orchestra.errors import BadInput
from orchestra.ids import TaskId
from orchestra.intake.document import show_path
from orchestra.intake.folders import SHELL_KIND
from orchestra.intake.judging import with_judges
from orchestra.intake.planfile import PlanDocument, parse_plan
from orchestra.intake.request import SubmitTaskParams, judged_phrases, to_spec
from orchestra.scheduling.routing import RouteOptions, rerouted, specialists, unavailable
from orchestra.usecases import PlanParams


class TaskOptions(msgspec.Struct, frozen=True):
    """What the desk takes from the settings."""

    kind_default: str
    defaults: TaskDefaults
    routes: RouteOptions
    directory: str
    """The folder of tasks that name none; empty: they have private ones."""


class TaskDesk:
    """One per coordinator."""

    def __init__(self, loop: Loop, find_adapter: Finder, options: TaskOptions) -> None:
        self._loop = loop
        self._find = find_adapter
        self._options = options

    async def read(self, params: PlanParams) -> PlanDocument:
        """Returns a plan as it is understood here and now.

        Raises:
            PlanInvalid: It cannot be run.
        """
        defaults = msgspec.structs.replace(await self._defaults(judging=True), strict=params.strict)
        return parse_plan(params.text, source=params.source, directory=params.directory, defaults=defaults)

    async def of_plan(self, specs: Sequence[TaskSpec], directory: str) -> tuple[TaskSpec, ...]:
        """Returns the tasks of a plan as they are submitted; their folders are there then.

        Raises:
            PlanInvalid: One cannot be done in this fleet.
        """
        found = await self._routed(specs)
        for spec in found:
            check_runnable(spec)
            make_workspace(spec.workspace, directory)
        check_judged(found)
        return found

    async def alone(self, tasks: Sequence[SubmitTaskParams], where: Sequence[str]) -> tuple[TaskSpec, ...]:
        """Returns tasks of no plan as they are submitted, in order, and after them the reviews that judge what no program can check of them.

        Args:
            tasks: What was asked for.
            where: How the fields of each begin, for messages.

        Raises:
            BadInput: One cannot be done.
        """
        judging = any(judged_phrases(params, self._options.defaults) for params in tasks)
        defaults = await self._defaults(judging=judging)
        specs = [self._spec(params, prefix, defaults) for params, prefix in zip(tasks, where, strict=True)]
        if not judging:
            return await self._routed(specs)
        judged = {spec.id: judged_phrases(params, defaults) for spec, params in zip(specs, tasks, strict=True)}
        found, problems = with_judges(specs, {task: phrases for task, phrases in judged.items() if phrases}, defaults)
        if problems:
            index, *rest = problems[0].path[1:]
            raise BadInput(problems[0].message, field=f"{where[int(index)]}{show_path(tuple(rest))}", hint=problems[0].hint)
        for judge in found[len(specs) :]:
            check_runnable(judge)
        check_judged(found)
        return await self._routed(found)

    def _spec(self, params: SubmitTaskParams, prefix: str, defaults: TaskDefaults) -> TaskSpec:
        options = self._options
        task_id = TaskId(params.task_id) if params.task_id else TaskId(f"TASK-{uuid.uuid4()}")
        kind = "" if options.kind_default in (ANY_KIND, SHELL_KIND) else options.kind_default
        try:
            spec = to_spec(params, task_id=task_id, default_kind=kind, directory=options.directory, defaults=defaults)
        except BadInput as error:
            error.field = f"{prefix}{error.field}"
            raise
        check_runnable(spec, where=prefix)
        if spec.workspace:
            make_workspace(spec.workspace, params.directory or options.directory or spec.workspace, field=f"{prefix}workspace")
        return spec

    async def _defaults(self, *, judging: bool) -> TaskDefaults:
        """Returns what tasks get where nobody says otherwise, with what the fleet's agents are best at; for `judging`, also with what they cannot be."""
        routes, kinds = self._options.routes, adapters() if judging else ()

        def found(state: State) -> TaskDefaults:
            lacking = unavailable(state, kinds, routes, self._programs)
            return msgspec.structs.replace(self._options.defaults, specialists=specialists(state), lacking=lacking)

        return await self._loop.ask(found)

    async def _routed(self, specs: Sequence[TaskSpec]) -> tuple[TaskSpec, ...]:
        """Gives what a kind cannot do that no node has to the kind that stands in for it."""
        return await self._loop.ask(lambda state: rerouted(state, specs, self._options.routes, self._programs))

    def _programs(self, kind: str) -> tuple[str, ...]:
        return self._find(kind).programs
