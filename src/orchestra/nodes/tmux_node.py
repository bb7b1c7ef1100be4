"""The node adapter: tmux for the windows, a courier for everything else, both over one transport.

Nothing here knows whether the machine is this one; the transport does. The folder of the node holds all that lasts, so connecting is always the same
work, whether for the first time or after an outage: push the stage files, start a courier, find or start the tmux server and its session.
"""

from __future__ import annotations

import asyncio
import hashlib
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from importlib import resources
from typing import Any, Final

import msgspec

from orchestra.agents.adapter import AGENT_DIR, ATTEMPT_DIR, PYTHON, SPACE_DIR, STAGE_DIR
from orchestra.core.model import CheckResult, Worker
from orchestra.errors import CourierFailed, NodeFailed, NodeUnreachable, NotFound, PaneUnknown, TmuxFailed
from orchestra.ids import AgentId, AttemptId, NodeId, parse_attempt_id
from orchestra.node import (
    AgentWindow,
    AttemptFacts,
    AttemptOrder,
    Inventory,
    NodeFacts,
    Notice,
    OrderFailure,
    Report,
    WorkerFacts,
)
from orchestra.nodes.checking import FOLDER, run_checks
from orchestra.nodes.courier import Courier, CourierRefused, worker_of
from orchestra.nodes.probe import UNKNOWN, NodeNeeds, NodeProbe, findings, probe, system_wall_ms
from orchestra.nodes.tmux import PaneFacts, TmuxOptions, TmuxServer, WindowOrder
from orchestra.nodes.transport import Transport, clean_argv

STAGE_PACKAGE: Final = "orchestra_stage"
"""What `orchestra.stage` is called on a node, where there is no house round it."""
ORDERS_A_REQUEST: Final = 64
"""Orders sent together; more would hold up the courier's other work for longer than a blink."""
LEAVE_TIMEOUT_MS: Final = 10_000
UID: Final = "{uid}"


class NodeOptions(msgspec.Struct, frozen=True):
    """Where a node's things are, and its deadlines."""

    folder: str
    """Folder on the node, absolute or below `~/`; everything of ours is below it."""
    runtime: str
    """Absolute short folder on the node, private, for the tmux socket and its configuration. `{uid}` stands for the user's number there."""
    session: str
    """Name for the tmux session if one has to be made."""
    session_prefix: str
    """Sessions of ours begin so; one that is there already is used again."""
    python: str = "python3"
    request_timeout_ms: int = 20_000
    tmux: TmuxOptions = TmuxOptions()
    programs: tuple[str, ...] = ()
    """Programs to look for; `NodeFacts.programs` has those that are there."""
    needs: NodeNeeds = NodeNeeds()


class TmuxNode:
    """Implements `orchestra.node.Node`."""

    def __init__(self, node: NodeId, transport: Transport, options: NodeOptions, *, wall_ms: Callable[[], int] = system_wall_ms) -> None:
        self.id = node
        self._transport = transport
        self._options = options
        self._wall_ms = wall_ms
        self._folder = options.folder
        self._server = None if UID in options.runtime else self._make_server(options.runtime)
        self._runtime = options.runtime
        self._courier: Courier | None = None
        self._session = ""
        self._stage = ""
        self._python = options.python
        self._probed: NodeProbe | None = None
        self._windows = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    # --- connecting --------------------------------------------------------------------------------------------------

    async def start(self, journal_offset: int) -> NodeFacts:
        await self._look()
        self._stage = await self._push_stage()
        courier_argv = stage_argv(self._python, self._stage, "courier", self._folder)
        self._courier, hello = await Courier.open(self._transport, courier_argv, request_timeout_ms=self._options.request_timeout_ms)
        await self._connect_tmux()
        await self._tail(journal_offset)
        self._watch = asyncio.create_task(self._watch_tmux(), name=f"tmux-watch-{self.id}")
        return self._facts(hello)

    async def _tail(self, offset: int) -> None:
        """Has the journal sent from there; all of it if it is shorter, as after a power cut or when somebody removed it. What was read twice
        changes nothing, and what is missing the comparison with the inventory finds."""
        try:
            await self._ask("tail", offset=offset if offset >= 0 else await self._journal_size())
        except CourierRefused as refused:
            if refused.reason != "bad-offset":
                raise
            await self._ask("tail", offset=0)

    async def _journal_size(self) -> int:
        try:
            return int((await self._ask("read", path="journal", offset=0, length=0))["size"])
        except CourierRefused as refused:
            if refused.reason != "absent":
                raise
            return 0

    async def _look(self) -> None:
        """Finds out what the machine is and where our things go there.

        Raises:
            NodeFailed: Something is missing that we cannot do without.
        """
        options = self._options
        self._probed = await probe(
            self._transport,
            self.id,
            options.folder,
            options.programs,
            python=options.python,
            tmux=options.tmux.tmux,
            timeout_ms=options.request_timeout_ms,
            wall_ms=self._wall_ms,
        )
        fatal = [each for each in findings(self._probed, options.needs) if each.fatal]
        if fatal:
            raise NodeFailed("; ".join(each.detail for each in fatal), hint="; ".join(each.remedy for each in fatal))
        self._python = self._probed.python
        self._folder = self._probed.folder
        self._runtime = options.runtime.replace(UID, str(self._probed.uid))

    @property
    def _tmux(self) -> TmuxServer:
        """The tmux server's client, the same one for life: it remembers which server it knew. Where its socket is, is known after a look."""
        if self._server is None:
            if UID in self._runtime:
                raise NodeUnreachable(f"node {self.id} is not connected")
            self._server = self._make_server(self._runtime)
        return self._server

    def _make_server(self, runtime: str) -> TmuxServer:
        return TmuxServer(self._transport, f"{runtime}/tmux.sock", f"{runtime}/tmux.conf", self._options.tmux)

    async def _push_stage(self) -> str:
        """Puts the stage files into a folder named by their content; one that is there already is complete (it is renamed into place)."""
        files = stage_files()
        digest = hashlib.sha256(b"".join(name.encode() + body for name, body in files.items())).hexdigest()[:16]
        target = f"{self._folder}/stage/{digest}"
        packed = msgspec.json.encode({name: body.decode() for name, body in files.items()})
        try:
            done = await self._transport.run(
                [self._python, "-I", "-S", "-c", PUSH_SCRIPT, target, STAGE_PACKAGE, self._runtime],
                stdin=packed,
                timeout_ms=self._options.request_timeout_ms,
            )
        except TimeoutError as late:
            waited = self._options.request_timeout_ms
            raise NodeFailed(f"node {self.id} did not take the stage files within {waited} ms", hint="is it overloaded?") from late
        if done.code != 0:
            raise NodeFailed(f"the stage files could not be put on node {self.id}: {done.err.decode(errors='replace').strip()[-300:]}")
        return target

    async def _connect_tmux(self) -> None:
        await self._tmux.connect_server()
        for name in await self._tmux.session_names():
            if name.startswith(self._options.session_prefix):
                self._session = name
                return
        self._session = self._options.session
        await self._tmux.create_session(self._session)

    async def _watch_tmux(self) -> None:
        """Says so when tmux or a pane goes; what to do about it is not decided here."""
        async for event in self._tmux.events():
            if self._courier is not None:
                kind = "windows-gone" if event.kind in ("gone", "window-closed", "pane-died") else event.kind
                await self._courier.reports.put(Notice(kind, detail=f"tmux: {event.kind}"))

    async def stop(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            await asyncio.wait([self._watch])
            self._watch = None
        courier, self._courier = self._courier, None
        if courier is not None:
            await courier.close()
        if self._server is not None:
            await self._server.disconnect()
        await self._transport.close()

    async def reports(self) -> AsyncIterator[Report]:
        courier = self._require()
        while True:
            report = await courier.reports.get()
            yield report
            if isinstance(report, Notice) and report.kind == "channel-lost":
                return

    def _require(self) -> Courier:
        if self._courier is None:
            raise NodeUnreachable(f"node {self.id} is not connected")
        return self._courier

    async def _ask(self, op: str, **fields: Any) -> dict[str, Any]:
        return await self._require().ask(op, **fields)

    # --- windows -----------------------------------------------------------------------------------------------------

    async def open_windows(self, windows: Sequence[AgentWindow]) -> None:
        async with self._windows:
            await self._ensure_tmux()
            there: dict[int, PaneFacts] = {}
            for pane in await self._tmux.list_panes():
                if pane.agent:
                    there[pane.agent] = pane
            dead = [there[window.agent].window_id for window in windows if window.agent in there and there[window.agent].dead]
            await self._kill_windows(dead)
            wanted = [window for window in windows if window.agent not in there or there[window.agent].dead]
            if wanted:
                await self._ask("slots", agents=[window.agent for window in wanted])
                await self._tmux.create_windows(self._session, [self._window_order(window) for window in wanted])

    def _window_order(self, window: AgentWindow) -> WindowOrder:
        argv = stage_argv(self._python, self._stage, "worker", self._folder, str(window.agent))
        return WindowOrder(window.agent, window.name, argv)

    async def _ensure_tmux(self) -> None:
        """A server that is gone is started again; one that hangs is replaced. Workers do not depend on either."""
        match await self._tmux.probe():
            case "ok":
                if not self._tmux.connected:
                    await self._connect_tmux()  # only our own client was gone
                    return
                names = await self._tmux.session_names()
                if self._session not in names:
                    await self._tmux.create_session(self._session)
            case "wedged":
                await self._tmux.rebuild()
                await self._connect_tmux()
            case _:
                await self._connect_tmux()

    async def _kill_windows(self, window_ids: Sequence[str]) -> None:
        for window_id in window_ids:
            try:
                await self._tmux.kill_window(window_id)
            except PaneUnknown:
                continue

    async def close_agents(self, agents: Sequence[AgentId], *, now: bool) -> None:
        for agent in agents:
            try:
                await self._ask("poke", agent=agent, line=msgspec.json.encode({"op": "leave", "now": now}).decode())
            except CourierRefused as refused:
                if refused.reason != "no-worker":
                    raise

    async def remove_windows(self, agents: Sequence[AgentId]) -> None:
        async with self._windows:
            panes = await self._tmux.list_panes()
            await self._kill_windows([pane.window_id for pane in panes if pane.agent in agents])

    async def screens(self, agents: Sequence[AgentId], lines: int | None = None) -> Mapping[AgentId, str]:
        panes = await self._panes_of(agents)
        texts = await self._tmux.capture(list(panes.values()), lines=lines)
        return {agent: texts[pane] for agent, pane in panes.items() if pane in texts}

    async def _panes_of(self, agents: Sequence[AgentId]) -> dict[AgentId, str]:
        wanted = frozenset(agents)
        return {AgentId(pane.agent): pane.pane_id for pane in await self._tmux.list_panes() if pane.agent in wanted and pane.agent}

    async def type_text(self, agents: Sequence[AgentId], text: str, *, enter: bool) -> None:
        panes = await self._panes_of(agents)
        missing = [agent for agent in agents if agent not in panes]
        if missing:
            raise PaneUnknown(f"agent #{missing[0]} has no window now", field="agents", hint="`orchestra agent list` shows their state")
        await self._tmux.broadcast([panes[agent] for agent in agents], text, enter=enter)

    async def attach_argv(self, agent: AgentId | None) -> Sequence[str]:
        if agent is None:
            return self._transport.interactive(self._tmux.attach_argv(self._session, None))
        for pane in await self._tmux.list_panes():
            if pane.agent == agent:
                return self._transport.interactive(self._tmux.attach_argv(self._session, pane.window_id))
        raise PaneUnknown(f"agent #{agent} has no window now", field="agent", hint="`orchestra agent list` shows its state")

    # --- attempts ----------------------------------------------------------------------------------------------------

    async def order(self, orders: Sequence[AttemptOrder]) -> Sequence[OrderFailure]:
        failures: list[OrderFailure] = []
        for start in range(0, len(orders), ORDERS_A_REQUEST):
            part = {attempt_dir(order.attempt): order for order in orders[start : start + ORDERS_A_REQUEST]}
            for each in part.values():
                await self._furnish(each)
            values = [{"dir": path, "agent": o.agent, "spec": self._place(o.spec, path), "files": o.files} for path, o in part.items()]
            reply = await self._ask("start", orders=values)
            for failed in reply.get("failed", []):
                order = part[str(failed["dir"])]
                if failed["code"] == "exists":
                    failures += await self._deliver_again(order)
                else:
                    failures.append(OrderFailure(order.attempt, order.agent, str(failed["code"]), str(failed["message"])))
        return failures

    async def _furnish(self, order: AttemptOrder) -> None:
        """Writes what the kind wants to have in the agent's own folder; nothing of the agent runs at this time."""
        for name, text in order.agent_files.items():
            await self._ask("write", path=f"homes/{order.agent}/{name}", text=text, mode=0o600)

    async def _deliver_again(self, order: AttemptOrder) -> list[OrderFailure]:
        """The order is on the node already: whether it was heard is not known, so it is said again; `claim` sees to it that it runs once."""
        line = msgspec.json.encode({"op": "run", "dir": attempt_dir(order.attempt)}).decode()
        try:
            await self._ask("poke", agent=order.agent, line=line)
        except CourierRefused as refused:
            return [OrderFailure(order.attempt, order.agent, refused.reason, refused.message)]
        return []

    def _place(self, spec: dict[str, Any], path: str) -> dict[str, Any]:
        """Puts real paths where the agent kind named files of the attempt or of the stage."""
        places = {
            ATTEMPT_DIR: f"{self._folder}/{path}/",
            STAGE_DIR: f"{self._stage}/{STAGE_PACKAGE}/",
            SPACE_DIR: f"{self._folder}/spaces/",
            AGENT_DIR: f"{self._folder}/homes/{spec['agent']}/",
        }

        def real(text: str) -> str:
            for mark, folder in places.items():
                if text.startswith(mark):
                    return folder + text.removeprefix(mark)
            return self._python if text == PYTHON else text

        placed = {"argv": [real(each) for each in spec["argv"]], "env": {name: real(value) for name, value in spec["env"].items()}}
        if argv := spec.get("sandbox", {}).get("argv"):
            placed["sandbox"] = {**spec["sandbox"], "argv": [real(each) for each in argv]}
        return {**spec, **placed, "cwd": spec["cwd"] and real(spec["cwd"])}

    async def stop_attempt(self, attempt: AttemptId, agent: AgentId, grace_ms: int) -> None:
        values = {"op": "stop", "task": attempt.task, "attempt": attempt.number, "grace_ms": grace_ms}
        await self._ask("poke", agent=agent, line=msgspec.json.encode(values).decode())

    async def answer(self, attempt: AttemptId, agent: AgentId, number: int, text: str) -> None:
        values = {"op": "answer", "task": attempt.task, "attempt": attempt.number, "number": number, "text": text}
        await self._ask("poke", agent=agent, line=msgspec.json.encode(values).decode())

    async def check(self, order: AttemptOrder) -> Sequence[CheckResult]:
        self._require()
        place = attempt_dir(order.attempt)
        argv = stage_argv(self._python, self._stage, "checks", self._folder, f"{place}/{FOLDER}")
        clean = clean_argv(argv, self._options.tmux.pass_environment)
        return await run_checks(self._transport, clean, self._place(order.spec, place))

    async def reap(self, attempt: AttemptId) -> str:
        try:
            await self._ask("reap", dir=attempt_dir(attempt))
        except CourierRefused as refused:
            if refused.reason in ("worker-alive", "done"):
                return "alive" if refused.reason == "worker-alive" else "done"
            raise
        return "reaped"

    async def inventory(self, attempts: Sequence[AttemptId]) -> Inventory:
        names = {attempt_dir(attempt): attempt for attempt in attempts}
        reply = await self._ask("inventory", dirs=list(names))
        try:
            panes = await self._tmux.list_panes()
        except TmuxFailed:
            panes = ()
        return Inventory(
            workers=tuple(_worker_facts(each) for each in reply.get("workers", [])),
            attempts=tuple(
                AttemptFacts(names[str(each["dir"])], str(each["state"]), bool(each.get("alive")), each.get("exit"))
                for each in reply.get("attempts", [])
                if each["dir"] in names
            ),
            windows=tuple(AgentId(pane.agent) for pane in panes if pane.agent and not pane.dead),
        )

    # --- the rest ----------------------------------------------------------------------------------------------------

    async def read(self, path: str, offset: int, length: int) -> tuple[str, int]:
        try:
            reply = await self._ask("read", path=path, offset=offset, length=length)
        except CourierRefused as refused:
            if refused.reason == "absent":
                raise NotFound(f"there is no file {path}") from refused
            raise
        return str(reply["text"]), int(reply["size"])

    async def remove(self, attempts: Sequence[AttemptId]) -> None:
        await self._ask("remove", dirs=[attempt_dir(attempt) for attempt in attempts])

    async def kill_worker(self, agent: AgentId, worker: Worker) -> bool:
        reply = await self._ask("kill", agent=agent, w=f"{worker.pid}:{worker.start}")
        return bool(reply.get("killed"))

    async def renew_lease(self, ttl_ms: int) -> None:
        await self._ask("lease", ttl_ms=ttl_ms)

    async def expose(self, port: int) -> int:
        return await self._transport.expose(port)

    async def facts(self) -> NodeFacts:
        loop = asyncio.get_running_loop()
        asked, began = self._wall_ms(), loop.time()
        values = await self._ask("facts", programs=list(self._options.programs))
        if "ms" in values:
            half_trip_ms = (loop.time() - began) * 1000 / 2
            values["clock_offset_ms"] = int(values["ms"]) - asked - round(half_trip_ms)
            values["clock_error_ms"] = math.ceil(half_trip_ms)
        return self._facts(values)

    def _facts(self, values: dict[str, Any]) -> NodeFacts:
        """Makes facts of what the courier said and, where it said nothing, of what was seen at the start."""
        seen = {} if self._probed is None else msgspec.structs.asdict(self._probed)
        names = NodeFacts.__struct_fields__
        known = {
            name: each[name] for each in (seen, values) for name in names if name in each and (each[name] != UNKNOWN or name in SIGNED)
        }
        try:
            return msgspec.convert({**known, "session": self._session}, NodeFacts, strict=False)
        except msgspec.ValidationError as problem:
            raise CourierFailed(f"node {self.id} told something else than facts: {problem}") from problem

    async def close_all(self) -> None:
        """Asks every worker to leave, then ends the server; a worker outlives neither for longer than it takes to end its attempt."""
        if self._courier is not None:
            try:
                found = await self._ask("inventory", dirs=[])
                workers = [_worker_facts(each) for each in found.get("workers", [])]
                await self.close_agents([worker.agent for worker in workers if worker.alive], now=True)
                await self._wait_left()
            except CourierFailed:
                pass  # whoever did not hear it loses its window below, and leaves because of that
        await self._tmux.kill_server()

    async def _wait_left(self) -> None:
        deadline = asyncio.get_running_loop().time() + LEAVE_TIMEOUT_MS / 1000
        while asyncio.get_running_loop().time() < deadline:
            found = await self._ask("inventory", dirs=[])
            if not any(_worker_facts(each).alive for each in found.get("workers", [])):
                return
            await asyncio.sleep(0.02)


SIGNED: Final = ("clock_offset_ms",)
"""Figures that may be -1 and be known all the same."""
PUSH_SCRIPT: Final = """
import json, os, stat, sys
target, package, runtime = sys.argv[1:4]
os.umask(0o077)
for folder in (os.path.dirname(runtime), runtime):
    os.makedirs(folder, mode=0o700, exist_ok=True)
    found = os.lstat(folder)
    shared = 0o077 if folder == runtime else 0o022
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & shared:
        sys.exit("%s is not a private folder of ours: remove it" % folder)
if not os.path.isdir(target):
    files = json.load(sys.stdin)
    partial = "%s.%d" % (target, os.getpid())
    os.makedirs(os.path.join(partial, package), mode=0o700)
    for name, text in files.items():
        with open(os.path.join(partial, package, name), "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())  # a folder that is there is taken for complete, also after a power cut
    try:
        os.rename(partial, target)
    except OSError:
        if not os.path.isdir(target):
            raise
try:
    import py_compile
    from importlib.util import cache_from_source
    folder = os.path.join(target, package)
    for name in os.listdir(folder):
        path = os.path.join(folder, name)
        if name.endswith(".py") and not os.path.exists(cache_from_source(path)):
            py_compile.compile(path, doraise=True)
except Exception:
    pass  # two hundred workers start more slowly without bytecode, and no worse
"""
"""Runs on the node before anything of ours is there; arguments and standard input only, nothing interpolated. Bytecode is made on every push
that finds none, as the node's Python may be another than the last time."""

START_SCRIPT: Final = "import sys; sys.path.insert(0, sys.argv[1]); from {package}.{module} import main; sys.exit(main(sys.argv[2:]))"
"""Starts a program of the stage from its bytecode."""


def stage_argv(python: str, stage: str, module: str, *arguments: str) -> tuple[str, ...]:
    """Returns what starts a program of the stage that lies in the folder `stage`."""
    return (python, "-I", "-S", "-c", START_SCRIPT.format(package=STAGE_PACKAGE, module=module), stage, *arguments)


def stage_files() -> dict[str, bytes]:
    """Returns name -> content of the files that are pushed to nodes: every module of `orchestra.stage`, in the order of their names."""
    files = {each.name: each.read_bytes() for each in resources.files("orchestra.stage").iterdir() if each.name.endswith(".py")}
    return dict(sorted(files.items()))


def attempt_dir(attempt: AttemptId) -> str:
    """Returns the attempt's folder, relative to the node's."""
    return f"attempts/{attempt.task}/{attempt.number}"


def _worker_facts(values: dict[str, Any]) -> WorkerFacts:
    current = values.get("current")
    attempt = parse_attempt_id(f"{current['task']}#{current['attempt']}") if current else None
    age = values.get("beat_age_ms")
    return WorkerFacts(AgentId(int(values["agent"])), worker_of(values.get("w")), bool(values["alive"]), int(age or 0), attempt)
