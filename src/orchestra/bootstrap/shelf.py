"""Reading an orchestra that is not running: the same use cases over its ledger and files, as far as they only look.

What would change something, or needs a window, raises CoordinatorUnreachable with the way to start one. Only workspaces can be tidied: whatever
is left of a run is there when it is over.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Never, TypeVar, cast

from orchestra.agents.registry import adapter_for
from orchestra.app import App
from orchestra.bootstrap.coordinator import restore_kernel, write_report
from orchestra.bootstrap.wiring import app_options, ledger_options, make_transport, make_workspaces, policy
from orchestra.clocks.system import SystemClock
from orchestra.core import commands as c
from orchestra.core.state import State
from orchestra.engine.board import Board
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.errors import CoordinatorUnreachable, NotFound, PortFailed
from orchestra.gateway.admin import ask_admin
from orchestra.ids import NodeId
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.nodes.transport import Transport
from orchestra.root import Root
from orchestra.settings import Settings
from orchestra.usecases import UseCases
from orchestra.viewing import Lens
from orchestra.workbench import Workbench

R = TypeVar("R")
NOTICE = "no coordinator is running; this is what its ledger says"


class Shelf(NamedTuple):
    """The use cases over a ledger, and what they may have opened."""

    use_cases: UseCases
    transports: Sequence[Transport]

    async def close(self) -> None:
        """Lets go of connections to machines."""
        for transport in self.transports:
            await transport.close()


def open_shelf(root: Root, settings: Settings) -> Shelf | None:
    """Returns the use cases over a root's ledger, or None if it has none."""
    if not (root.ledger / "ledger.db").exists():
        return None
    ledger = SqliteLedger.open_readonly(root.ledger, ledger_options(root))
    try:
        kernel = restore_kernel(ledger, policy(settings))
    finally:
        ledger.close()
    return _shelf(root, settings, kernel)


def open_blank(root: Path, settings: Settings) -> UseCases:
    """Returns the use cases of an orchestra that has never done anything, for what can be asked all the same."""
    return _shelf(Root(root), settings, Kernel(policy(settings))).use_cases


def _shelf(root: Root, settings: Settings, kernel: Kernel) -> Shelf:
    loop = _StillLoop(kernel)
    drivers = {node: _StillDriver(root.nodes / node) for node in kernel.state.nodes}

    def lens() -> Lens:
        return Lens(
            now_ms=loop.now_ms(),
            board=Board(),
            attempt_folder=root.attempt_folder,
            result_folder=lambda task: str(root.results_of(task)),
            rpm_limit=settings.api.rate_limits.rpm,
            tpm_limit=settings.api.rate_limits.tpm,
            serialised=settings.workspaces.serialise_overlaps,
            absent=NOTICE,
            rehearsal=settings.rehearsal,
        )

    specs = [node.spec for node in kernel.state.nodes.values()]
    transports = {spec.id: make_transport(spec, settings) for spec in specs}
    spaces = {spec.id: make_workspaces(spec, root, transports[spec.id]) for spec in specs}
    bench = Workbench(
        loop=cast("Loop", loop),
        lens=lens,
        find_adapter=adapter_for,
        drivers=cast("dict[NodeId, NodeDriver]", drivers),
        add_driver=_refuse,
        remove_driver=_refuse,
        provision=None,
        write_report=lambda data: write_report(root, data),
        backup=_refuse,
        ask_gateway=ask_left_gateway(root),
        spaces=lambda: spaces,
    )
    return Shelf(App(bench, app_options(settings, root)), tuple(transports.values()))


def ask_left_gateway(root: Root) -> Callable[[str, dict[str, Any]], Awaitable[Any]]:
    """Returns what asks a gateway that goes on without a coordinator, as its agents do; it raises PortFailed where none does."""

    async def ask(method: str, params: dict[str, Any]) -> Any:
        return await ask_admin(root.gateway / "books" / "admin.sock", method, params)

    return ask


def _refuse(*ignored: object) -> Never:
    raise CoordinatorUnreachable("no orchestra is running for this root", hint="start one: `orchestra up`, or name its --root")


class _StillLoop:
    """Answers questions from a state that stands still."""

    ledger_trouble = ""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self._clock = SystemClock()

    @property
    def state(self) -> State:
        return self.kernel.state

    def now_ms(self) -> int:
        """Returns the time, never before the ledger's last."""
        return max(self._clock.wall_ms(), self.kernel.state.at_ms)

    def listen(self, listener: object) -> None:
        """Nothing will happen."""

    def when_ended(self, listener: object) -> None:
        """It never began."""

    async def ask(self, question: Callable[[State], R]) -> R:
        """Returns what the question makes of the state."""
        return question(self.kernel.state)

    async def request(self, command: c.Command) -> list[Any]:
        """Refuses."""
        _refuse()


class _StillDriver:
    """A node of which only the files are there."""

    connected = True
    facts = None

    def __init__(self, folder: Path) -> None:
        self.node = _StillNode(folder)


class _StillNode:
    """Reads files; everything else needs a coordinator."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    async def read(self, path: str, offset: int, length: int) -> tuple[str, int]:
        """Returns text of a file below the folder, and its size."""
        try:
            with (self._folder / path).open("rb") as file:
                size = file.seek(0, 2)
                file.seek(max(0, size + offset) if offset < 0 else offset)
                return file.read(length).decode(errors="backslashreplace"), size
        except FileNotFoundError as exc:
            raise NotFound(f"there is no file {path}") from exc
        except OSError as exc:
            raise PortFailed(f"{path} cannot be read: {exc.strerror}") from exc

    async def screens(self, agents: Sequence[int], lines: int | None = None) -> Never:
        """Refuses: there may be windows, but nobody to ask for them."""
        _refuse()

    async def type_text(self, agents: Sequence[int], text: str, *, enter: bool) -> Never:
        """Refuses."""
        _refuse()

    async def attach_argv(self, agent: int | None) -> Never:
        """Refuses."""
        _refuse()
