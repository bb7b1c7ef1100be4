"""One coordinator, assembled: ledger, kernel, loop, nodes, files, socket.

Start: take the ledger's lock, fold it, claim a term, begin to serve, connect the nodes that the state knows. Nothing here is remembered between runs but
the ledger. Stop without `Finish` leaves every agent as it is; the next coordinator finds them.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from orchestra import __version__
from orchestra.agents.registry import adapter_for
from orchestra.app import App
from orchestra.bootstrap.gateways import Plan as GatewayPlan
from orchestra.bootstrap.gateways import make_gatekeeper, plan_gateway
from orchestra.bootstrap.logs import start_logging, stop_logging
from orchestra.bootstrap.provisioning import provisioner
from orchestra.bootstrap.settings_file import SettingsFile
from orchestra.bootstrap.wiring import (
    admission_options,
    app_options,
    attempt_place,
    driver_options,
    fallback_options,
    keeper_options,
    ledger_options,
    make_node,
    make_transport,
    make_workspaces,
    milliseconds,
    order_options,
    policy,
    return_options,
    rpc_options,
)
from orchestra.clock import Clock
from orchestra.codec.state import decode_state
from orchestra.core import commands as c
from orchestra.core.effects import Effect, Finish, KeepResult, NodeEffect
from orchestra.core.model import Lifecycle, NodeSpec
from orchestra.core.state import State
from orchestra.edges.filerpc.events import EventFiles
from orchestra.edges.filerpc.service import FileRpc
from orchestra.edges.socket.server import SocketServer
from orchestra.engine.board import Board
from orchestra.engine.driver import NodeDriver, Tools
from orchestra.engine.kernel import Kernel, collection_paused
from orchestra.engine.lookout import Lookout
from orchestra.engine.loop import Loop
from orchestra.engine.merger import Merger
from orchestra.engine.orders import OrderMaker
from orchestra.engine.prover import Prover
from orchestra.engine.services import Service, ServiceGroup
from orchestra.engine.translate import Translator
from orchestra.errors import OrchestraError
from orchestra.fallback import LocalFallback
from orchestra.files import write_atomically
from orchestra.ids import AttemptId, NodeId
from orchestra.keeper import Keeper
from orchestra.ledger import Ledger
from orchestra.ledgers.care import backup
from orchestra.ledgers.sqlite import SqliteLedger
from orchestra.node import Node, NodeFacts
from orchestra.projector import Projector
from orchestra.reporting.html import render_html
from orchestra.reporting.markdown import render_markdown
from orchestra.root import Root
from orchestra.scheduling.admission import Load
from orchestra.settings import Settings
from orchestra.viewing import Lens
from orchestra.views import ReportData
from orchestra.workbench import Workbench
from orchestra.workspace import Workspaces

log = logging.getLogger(__name__)

TICK_MS = 100
"""How late a retry or a deadline may be noticed."""
TIDY_S = 30
"""Longest that the end waits until worktrees are gone that nobody needs any more."""
FACTS_MS = 5_000
"""How often a node's load and the gateway's figures are asked for."""


class Coordinator:
    """One process's worth of orchestra.

    Args:
        root: Its folder.
        settings: What holds for it.
        clock: Both readings of time.
        keys: Variables that were taken out of the environment for the gateway.
    """

    def __init__(self, root: Root, settings: Settings, clock: Clock, keys: Mapping[str, str] | None = None) -> None:
        self.root = root
        self._settings = settings
        self._settings_file = SettingsFile(root.config, settings)
        self._clock = clock
        self._keys = keys or {}
        self._drivers: dict[NodeId, NodeDriver] = {}
        self._ended = asyncio.Event()
        self._finishing: asyncio.Task[None] | None = None
        self._stopped = False

    async def start(self) -> None:
        """Begins to serve.

        Raises:
            LedgerLocked: Another coordinator has this root.
            LedgerDamaged: The ledger needs care first.
        """
        limits = policy(self._settings)
        plan = plan_gateway(self._settings, self.root, {**os.environ, **self._keys})
        self.root.prepare()
        self._log_handler = start_logging(self.root.logs)
        try:
            self._ledger: Ledger = SqliteLedger.open(self.root.ledger, ledger_options(self.root), self._clock)
        except OrchestraError:
            stop_logging(self._log_handler)
            raise
        term = self._ledger.claim_term()  # before the fold: from here on nobody else appends what this one would not have seen
        started = time.monotonic()
        kernel = restore_kernel(self._ledger, limits)
        kernel.admission = admission_options(self._settings)
        kernel.scheduler.serialise_overlaps = self._settings.workspaces.serialise_overlaps
        log.info("ledger-folded", extra={"events": kernel.state.seq, "ms": int((time.monotonic() - started) * 1000)})
        self.loop = Loop(
            kernel,
            self._ledger,
            self._clock,
            term=term,
            snapshot_interval_ms=milliseconds(self._settings.monitoring.state_snapshot_interval),
        )
        self._assemble(plan)
        self.loop.send_effects_to(self._dispatch)
        self._services.start()
        lead = c.TakeLead(term, os.getpid(), socket.gethostname(), __version__)
        await self.loop.request(lead)
        await self.loop.ask(self._reconnect_known_nodes)
        await self._keeper.catch_up()
        await self._server.start()
        log.info("coordinator-started", extra={"pid": os.getpid(), "term": term, "seq": kernel.state.seq})

    def _assemble(self, plan: GatewayPlan | None) -> None:
        self._board = Board()
        self.loop.listen(self._board.on_events)
        self._gatekeeper = None if plan is None else make_gatekeeper(plan, self.root, self.loop, self._clock, self._keys)
        self._gateway_apis = () if plan is None else plan.held
        self._translator = Translator(
            lambda: self.loop.state,
            adapter_for,
            None if self._gatekeeper is None else self._gatekeeper.ruling,
            return_options(self._settings),
        )
        through = () if plan is None else (plan.options.kinds, plan.logins)
        self._orders = OrderMaker(adapter_for, order_options(self._settings, self.root, *through))
        self.app = App(self._bench(), app_options(self._settings, self.root))
        self._keeper = Keeper(
            self.loop, self.root, self._drivers.get, self.app.costs.settled_of, keeper_options(self._settings, self._keys)
        )
        prover = Prover(self._node_of, self._orders) if self._settings.workspaces.verify_merges else None
        self._merger = Merger(self.loop, self._clock, self._workspaces_of, self._keeper.keep_work, prover)
        self._projector = Projector(self.loop, self.root, self._clock, self._lens, self._facts_now)
        self._parent_events = EventFiles(self.loop, self.root, self._clock)
        file_rpc = FileRpc(self.app, self.loop, self.root, self._clock, rpc_options(self._settings))
        self._server = SocketServer(self.app, self.root.socket)
        heartbeat_ms = milliseconds(self._settings.heartbeat_seconds)
        self._loop_service = Service("loop", self.loop.run)
        self._services = ServiceGroup(
            [
                self._loop_service,
                Service("ticker", self._tick),
                Service("keeper", self._keeper.run),
                Service("merger", self._merger.run),
                Service("projector", self._projector.run),
                Service("heartbeat", lambda: self._projector.beat(heartbeat_ms)),
                Service("parent-events", self._parent_events.run),
                Service("file-rpc", file_rpc.run),
                Service("facts", self._ask_facts),
                Service("cost-figures", self._look_at_cost),
            ]
        )
        if self._gatekeeper is not None:
            self._services.add(Service("gateway", self._gatekeeper.run))
        if every_ms := milliseconds(self._settings.workspaces.look_seconds):
            lookout = Lookout(self.loop, self._clock, self._workspaces_of, every_ms)
            self._services.add(Service("lookout", lookout.run))
        if self._settings.workspaces.tidy_minutes:
            self._services.add(Service("tidier", lambda: self.app.spaces.run(self._clock)))
        fallback = fallback_options(self._settings)
        if fallback.agents:
            keeper = LocalFallback(self.loop, self._clock, self._add_driver, self._remove_driver, fallback)
            self._services.add(Service("local-fallback", keeper.run))

    def _bench(self) -> Workbench:
        return Workbench(
            loop=self.loop,
            lens=self._lens,
            find_adapter=adapter_for,
            drivers=self._drivers,
            add_driver=self._add_driver,
            remove_driver=self._remove_driver,
            provision=provisioner(self._settings),
            write_report=lambda data: write_report(self.root, data),
            backup=self._backup,
            ask_gateway=None if self._gatekeeper is None else self._gatekeeper.ask,
            spaces=lambda: {node: self._workspaces_of(node) for node in self._drivers},
        )

    def _lens(self) -> Lens:
        limits, keeper = self._settings.api.rate_limits, self._gatekeeper
        use = None if keeper is None or not keeper.port else keeper.use_of(self._settings.api.provider)
        return Lens(
            now_ms=self.loop.now_ms(),
            board=self._board,
            attempt_folder=self._attempt_place,
            result_folder=lambda task: str(self.root.results_of(task)),
            rpm_limit=limits.rpm if use is None else use.rpm_limit or limits.rpm,
            tpm_limit=limits.tpm if use is None else use.tpm_limit or limits.tpm,
            rpm_used=None if use is None else use.rpm,
            tpm_used=None if use is None else use.tpm,
            ledger_trouble=self.loop.ledger_trouble,
            gate=self.loop.kernel.gate(self.loop.now_ms()),
            rehearsal=self._settings.rehearsal,
            loads=self.app.costs.loads,
            settled=self.app.costs.whole,
            serialised=self._settings.workspaces.serialise_overlaps,
            notice=self._settings_file.notice(),
        )

    def _attempt_place(self, node: NodeId, attempt: AttemptId) -> str:
        known = self.loop.state.nodes.get(node)
        return attempt_place(None if known is None else known.spec, self.root, attempt)

    def _workspaces_of(self, node: NodeId) -> Workspaces | None:
        driver = self._drivers.get(node)
        return driver.workspaces if driver is not None and driver.connected else None

    def _node_of(self, node: NodeId) -> Node | None:
        driver = self._drivers.get(node)
        return driver.node if driver is not None and driver.connected else None

    # --- nodes -------------------------------------------------------------------------------------------------------

    def _add_driver(self, spec: NodeSpec) -> NodeDriver:
        """Begins to run a node. One that is run already goes on: a driver keeps its connection for life."""
        if spec.id in self._drivers:
            return self._drivers[spec.id]
        tools = Tools(self.loop, self._clock, self._translator, self._board, self._orders, self._gatekeeper)
        transport = make_transport(spec, self._settings, self.root)
        node = make_node(spec, self.root, self._settings, transport, self._gateway_apis)
        spaces = make_workspaces(spec, self.root, transport)
        driver = self._drivers[spec.id] = NodeDriver(node, tools, driver_options(self._settings), spaces)
        self._services.add(Service(f"node-{spec.id}", driver.run))
        return driver

    async def _remove_driver(self, node: NodeId) -> None:
        """Stops running a node. What of ours still runs on it is ended, if it can be reached."""
        driver = self._drivers.pop(node, None)
        if driver is None:
            return
        if driver.connected:
            try:
                await driver.node.close_all()
            except OrchestraError as error:
                log.warning("windows-not-closed", extra={"node": node, "reason": str(error)})
        await self._services.remove(f"node-{node}")
        try:
            await driver.node.stop()
        except OrchestraError as error:
            log.info("node-not-released", extra={"node": node, "reason": str(error)})
        self.loop.kernel.loads.pop(node, None)
        self._forget_runtime(node)

    def _reconnect_known_nodes(self, state: State) -> None:
        if state.lifecycle not in (Lifecycle.UNINITIALIZED, Lifecycle.TERMINATED, Lifecycle.FAILED):
            for node in state.nodes.values():
                if state.agents_on(node.spec.id) or (node.spec.remote and not node.draining):
                    self._add_driver(node.spec)

    def _dispatch(self, effects: Sequence[Effect]) -> None:
        by_node: dict[NodeId, list[Effect]] = {}
        results: list[KeepResult] = []
        for effect in effects:
            match effect:
                case KeepResult():
                    results.append(effect)
                case Finish():
                    self._finishing = self._finishing or asyncio.create_task(self._finish(), name="finish")
                case NodeEffect():
                    by_node.setdefault(effect.node, []).append(effect)
        self._keeper.keep(results)
        self._merger.take(effects)
        for node, orders in by_node.items():
            if node in self._drivers:
                self._drivers[node].act(orders)

    async def _finish(self) -> None:
        """The orchestra has ended: results written, windows closed, files current."""
        try:
            await self._keeper.wait_written()
            await self.app.costs.look()
            with contextlib.suppress(TimeoutError):  # a merge that is left over is asked for again at the next start
                async with asyncio.timeout(TIDY_S):
                    await self._merger.wait_done()
            await asyncio.gather(*(self._close_windows(driver) for driver in self._drivers.values()))
            if self._gatekeeper is not None:
                await self._gatekeeper.end()
            await self._projector.write()
            self._parent_events.flush()
        finally:
            self._ended.set()

    async def _close_windows(self, driver: NodeDriver) -> None:
        try:
            await driver.node.close_all()
        except OrchestraError as error:
            log.warning("windows-not-closed", extra={"node": driver.node.id, "reason": str(error)})
        self._forget_runtime(driver.node.id)

    def _forget_runtime(self, node: NodeId) -> None:
        try:
            self.root.forget_runtime(node)
        except (OrchestraError, OSError) as error:
            log.info("runtime-not-removed", extra={"node": node, "reason": str(error)})

    # --- in the background -------------------------------------------------------------------------------------------

    async def _tick(self) -> None:
        while True:
            await self._clock.sleep_ms(TICK_MS)
            await self.loop.report([c.Tick()])

    async def _look_at_cost(self) -> None:
        while True:
            await self.app.costs.look()
            await self._clock.sleep_ms(FACTS_MS)

    async def _ask_facts(self) -> None:
        """Asks each node on its own: one that does not answer must not make the figures of the others old."""
        asked: dict[NodeId, asyncio.Task[None]] = {}
        try:
            while True:
                for driver in list(self._drivers.values()):
                    before = asked.get(driver.node.id)
                    if driver.connected and (before is None or before.done()):
                        asked[driver.node.id] = asyncio.create_task(self._ask_node(driver), name=f"facts-{driver.node.id}")
                await self._clock.sleep_ms(FACTS_MS)
        finally:
            for task in asked.values():
                task.cancel()
            await asyncio.gather(*asked.values(), return_exceptions=True)

    async def _ask_node(self, driver: NodeDriver) -> None:
        try:
            facts = driver.facts = await driver.node.facts()
        except OrchestraError as error:
            log.info("no-facts", extra={"node": driver.node.id, "reason": str(error)})
            return
        await self.loop.report([c.ProgramsSeen(driver.node.id, tuple(sorted(facts.programs)))])
        self.loop.kernel.loads[driver.node.id] = Load(
            self.loop.now_ms(), facts.cpus, facts.load_1m, facts.memory_bytes, facts.memory_available_bytes, facts.disk_free_bytes
        )

    def _facts_now(self) -> dict[str, NodeFacts | None]:
        return {node: driver.facts for node, driver in self._drivers.items()}

    async def _backup(self, target: Path) -> int:
        seq = await self.loop.ask(lambda state: state.seq)
        await asyncio.get_running_loop().run_in_executor(None, backup, self.root.ledger, target)
        return seq

    # --- ending ------------------------------------------------------------------------------------------------------

    async def wait_ended(self) -> None:
        """Returns when the orchestra has terminated; raises if a part of the coordinator failed."""
        ended = asyncio.create_task(self._ended.wait())
        failed = asyncio.create_task(self._services.wait_failed())
        try:
            await asyncio.wait([ended, failed], return_when=asyncio.FIRST_COMPLETED)
            if not ended.done():
                failed.result()
        finally:
            ended.cancel()
            failed.cancel()
            await asyncio.gather(ended, failed, return_exceptions=True)

    async def wait_written(self) -> None:
        """Returns when what is over has its results in its folder. A machine that does not hand them over holds this up for `TIDY_S` seconds at most."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(TIDY_S):
                await self._keeper.wait_written()

    async def stop(self) -> None:
        """Stops serving and lets go of everything; agents go on. Idempotent."""
        if self._stopped:
            return
        self._stopped = True
        if self._finishing is not None:
            await asyncio.wait([self._finishing])
        await self._server.stop()
        await self._services.stop()
        for driver in list(self._drivers.values()):
            try:
                await driver.node.stop()
            except OrchestraError as error:
                log.info("node-not-released", extra={"node": driver.node.id, "reason": str(error)})
        await self.loop.close()
        log.info("coordinator-stopped", extra={"pid": os.getpid()})
        stop_logging(self._log_handler)


def restore_kernel(ledger: Ledger, limits: c.Policy) -> Kernel:
    """Folds the ledger: from its newest usable snapshot, or from the start."""
    snapshot = ledger.load_snapshot()
    with collection_paused():
        state = None if snapshot is None else decode_state(snapshot.body, snapshot.format)
    return Kernel.fold(limits, state, ledger.read(0 if state is None else state.seq))


def write_report(root: Root, data: ReportData) -> tuple[Path, Path]:
    """Writes a run's report as a page and as Markdown; returns where they are."""
    html, markdown = (root.reports / f"{data.plan.plan}.{kind}" for kind in ("html", "md"))
    write_atomically(html, render_html(data).encode(errors="replace"))
    write_atomically(markdown, render_markdown(data).encode(errors="replace"))
    return html, markdown
