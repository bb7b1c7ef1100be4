"""How a command reaches the orchestra: the functions it takes from bootstrap, as a Protocol so that a test can stand in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from orchestra.usecases import UseCases
from orchestra.views import EventView, HealthCheck

if TYPE_CHECKING:
    from orchestra.bootstrap.nodes import NodeCheck, NodeKinds
    from orchestra.bootstrap.trust import KeyOffer
    from orchestra.core.model import NodeSpec, TaskDefaults
    from orchestra.intake.request import InitParams
    from orchestra.ledgers.care import RepairPlan, VerifyReport
    from orchestra.settings import Settings


class Hosted(Protocol):
    """A coordinator in this process."""

    @property
    def use_cases(self) -> UseCases: ...

    async def wait_ended(self) -> None:
        """Returns when the orchestra has terminated; raises if its coordinator failed."""
        ...

    async def detach(self) -> None:
        """Lets go of the orchestra; agents and windows stay."""
        ...


class LedgerCare(Protocol):
    """What a person does to a ledger."""

    def verify(self) -> VerifyReport: ...

    def plan_repair(self) -> RepairPlan: ...

    def repair(self, plan: RepairPlan, *, accept_data_loss: bool) -> Path | None: ...

    def export(self, out: Path) -> int: ...

    def show(self, after: int, limit: int) -> Iterator[EventView]: ...


class Wiring(Protocol):
    """The part of bootstrap that the command line uses."""

    def load_settings(self, root: Path, flags: Mapping[str, str], /) -> Settings: ...

    def task_defaults(self, settings: Settings, /) -> TaskDefaults: ...

    def connect(self, root: Path, /) -> AbstractAsyncContextManager[UseCases]: ...

    def open_blank(self, root: Path, settings: Settings, /) -> UseCases: ...

    def coordinator_running(self, root: Path, /) -> bool: ...

    def host(self, root: Path, settings: Settings, /) -> AbstractAsyncContextManager[Hosted]: ...

    async def start_in_window(self, root: Path, settings: Settings, /) -> None: ...

    async def abandon(self, root: Path, /) -> None: ...

    async def wait_window_gone(self, root: Path, /) -> None: ...

    async def end_leftovers(self, root: Path, settings: Settings, /) -> bool: ...

    def serve_forever(self, root: Path, settings: Settings, init: InitParams | None, /) -> int: ...

    def supervise(self, root: Path, settings: Settings, argv: Sequence[str], offered: Path | None, /) -> int: ...

    def doctor(self, root: Path, settings: Settings, /) -> tuple[HealthCheck, ...]: ...

    def known_nodes(self, root: Path, settings: Settings, /) -> tuple[NodeSpec, ...]: ...

    async def check_nodes(self, root: Path, settings: Settings, specs: Sequence[NodeSpec], /) -> tuple[NodeCheck, ...]: ...

    async def kinds_on(self, root: Path, settings: Settings, specs: Sequence[NodeSpec], /, *, versions: bool) -> tuple[NodeKinds, ...]: ...

    async def offered_key(self, root: Path, settings: Settings, name: str, /) -> KeyOffer: ...

    def trust_key(self, offer: KeyOffer, /, *, replace: bool) -> bool: ...

    def ledger_care(self, root: Path, /) -> LedgerCare: ...

    def backup(self, root: Path, target: Path, /) -> int: ...

    def restore(self, archive: Path, root: Path, /, *, force: bool) -> Path | None: ...


def real_wiring() -> Wiring:
    """Returns bootstrap itself; imported only when a command needs it."""
    from orchestra import bootstrap

    return bootstrap
