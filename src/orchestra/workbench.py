"""What the use cases work with: parts of the coordinator, and what of the settings concerns them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from orchestra.core.model import NodeSpec, TaskDefaults
from orchestra.engine.driver import NodeDriver
from orchestra.engine.loop import Loop
from orchestra.engine.translate import Finder
from orchestra.fleetdesk import Wanted
from orchestra.ids import NodeId
from orchestra.scheduling.routing import RouteOptions
from orchestra.spacedesk import SpaceOptions
from orchestra.viewing import Lens
from orchestra.views import ReportData
from orchestra.workspace import Workspaces


class AppOptions(msgspec.Struct, frozen=True):
    """What the use cases take from the settings."""

    name: str
    nodes: tuple[NodeSpec, ...]
    agents_default: int
    kind_default: str
    version: str
    root: str
    task_defaults: TaskDefaults
    rehearsal: bool = False
    models: Mapping[str, str] = {}
    """Agent kind -> the model that the settings name for it."""
    day_budget_usd_micros: int = -1
    """What a day may cost by the settings; negative is no budget."""
    gateway_file: str = ""
    """The gateway's own file, if the settings name one."""
    spaces: SpaceOptions = SpaceOptions()
    routes: RouteOptions = RouteOptions()
    directory: str = ""
    """The folder of submitted tasks that name none; empty: they have private ones."""


class Workbench(msgspec.Struct, frozen=True):
    """What the use cases work with."""

    loop: Loop
    lens: Callable[[], Lens]
    find_adapter: Finder
    drivers: dict[NodeId, NodeDriver]
    add_driver: Callable[[NodeSpec], NodeDriver]
    remove_driver: Callable[[NodeId], Awaitable[None]]
    provision: Callable[[Wanted], Awaitable[tuple[NodeSpec, ...]]] | None
    write_report: Callable[[ReportData], tuple[Path, Path]]
    backup: Callable[[Path], Awaitable[int]]
    ask_gateway: Callable[[str, dict[str, Any]], Awaitable[Any]] | None = None
    """Asks the orchestra's own gateway; None where there is none."""
    spaces: Callable[[], Mapping[NodeId, Workspaces | None]] = dict
    """The places where attempts work, by node; None for one that is not connected."""
