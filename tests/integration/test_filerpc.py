"""Commands by files: real folders, a real loop over a ledger in memory, the real use cases, and no node."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, cast

import pytest

from orchestra.agents.registry import adapter_for
from orchestra.app import App
from orchestra.core import commands as c
from orchestra.core.model import STANDARD, NodeSpec, Outcome, OutcomeKind, TaskDefaults, Worker
from orchestra.core.state import State
from orchestra.edges.filerpc import intake, service
from orchestra.edges.filerpc.events import BATCH_MS, FILES_MAX, EventFiles
from orchestra.edges.filerpc.service import FileRpc, FileRpcOptions
from orchestra.engine.board import Board
from orchestra.engine.driver import NodeDriver
from orchestra.engine.kernel import Kernel
from orchestra.engine.loop import Loop
from orchestra.ids import AgentId, TaskId
from orchestra.intake.request import InitParams
from orchestra.ledgers.memory import MemoryLedger
from orchestra.root import Root
from orchestra.testing.builders import NODE, make_task
from orchestra.usecases import UseCases
from orchestra.viewing import Lens
from orchestra.workbench import AppOptions, Workbench

AGENTS = 3
TASK = {"task_id": "TASK-1", "description": "Add a login form to the page", "payload": {"type": "command", "content": "true"}}


class ManualClock:
    """Time that moves when told. Wall time starts where the file system's does, so that the age of a file means something."""

    def __init__(self, wall_ms: int) -> None:
        self.now_ms = wall_ms
        self.waiting: list[tuple[int, asyncio.Future[None]]] = []
        self.slept: list[int] = []

    def wall_ms(self) -> int:
        return self.now_ms

    def steady_ms(self) -> int:
        return self.now_ms

    async def sleep_ms(self, duration_ms: int) -> None:
        self.slept.append(duration_ms)
        if duration_ms <= 0:
            return await asyncio.sleep(0)
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.waiting.append((self.now_ms + duration_ms, future))
        return await future

    def advance(self, ms: int) -> None:
        self.now_ms += ms
        for due_ms, future in self.waiting:
            if due_ms <= self.now_ms and not future.done():
                future.set_result(None)
        self.waiting = [each for each in self.waiting if not each[1].done()]


async def until(condition: Callable[[], bool]) -> None:
    """Waits, by turns of the loop that let the other threads work too, until it is so."""
    for _ in range(20_000):
        if condition():
            return
        await asyncio.to_thread(os.getpid)
    raise AssertionError("it never came to be so")


class House:
    """A coordinator's parts that matter here, and the parent's view of its folders."""

    def __init__(self, path: Path, **options: int) -> None:
        self.root = Root(path)
        self.root.prepare()
        probe = path / "probe"
        probe.touch()
        self.clock = ManualClock(probe.stat().st_ctime_ns // 1_000_000)
        self.ledger = MemoryLedger()
        self.options = FileRpcOptions(**{"requests_per_second": 1_000_000, **options})
        self.worker = 0
        self.directory = str(path)
        self.kind = "shell"
        self.defaults = STANDARD

    async def start(self) -> None:
        kernel = Kernel.restore(c.Policy(), None, self.ledger.read())
        self.term = self.ledger.claim_term()
        self.loop = Loop(kernel, self.ledger, self.clock, term=self.term)
        self.running = asyncio.create_task(self.loop.run())
        await self.loop.request(c.TakeLead(self.term, 1, "host", "0"))
        bench = Workbench(
            loop=self.loop,
            lens=lambda: Lens(self.clock.now_ms, Board(), lambda node, attempt: "", str),
            find_adapter=adapter_for,
            drivers={},
            add_driver=self._add_driver,
            remove_driver=cast("Any", None),
            provision=None,
            write_report=lambda data: (Path(), Path()),
            backup=cast("Any", None),
        )
        options = AppOptions(
            "test", (NodeSpec(NODE),), AGENTS, self.kind, "0", str(self.root.path), self.defaults, directory=self.directory
        )
        self.app = App(bench, options)
        self.rpc = FileRpc(self.app, self.loop, self.root, self.clock, self.options)

    def _add_driver(self, spec: NodeSpec) -> NodeDriver:
        self.coming_up = asyncio.create_task(self.come_up())
        return cast("NodeDriver", None)

    async def come_up(self) -> None:
        self.worker += 1
        agents = await self.loop.ask(lambda state: list(state.agents))
        workers = [c.WorkerSeen(AgentId(number), Worker(100 * self.worker + number, 1)) for number in agents]
        await self.loop.report([c.NodeUp(NODE, "boot", "session-1", ("python3",)), *workers])

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.gather(self.running, return_exceptions=True)
        self.loop._thread.shutdown()

    async def restart(self) -> None:
        await self.stop()
        self.ledger = self.ledger.reopened()
        await self.start()

    def put(self, name: str, content: object) -> Path:
        path = self.root.incoming / f"{name}.json"
        temporary = path.with_name(f".{path.name}.tmp")
        temporary.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
        os.replace(temporary, path)
        return path

    def told(self, name: str) -> Any:
        return json.loads((self.root.responses / f"{name}.json").read_bytes())

    async def ask(self, name: str, method: str, params: Any = None) -> Any:
        """Asks in the plain form and returns the answer."""
        self.put(name, {"command": f"orchestra.{method}", "parameters": params or {}})
        await self.rpc.look()
        return self.told(name)

    def names(self, folder: Path) -> list[str]:
        return sorted(os.listdir(folder))

    @property
    def incoming(self) -> list[str]:
        return self.names(self.root.incoming)

    @property
    def quarantine(self) -> list[str]:
        return self.names(self.root.quarantine)


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    made = House(tmp_path)
    await made.start()
    yield made
    await made.stop()


@pytest.fixture
async def fleet(house: House) -> House:
    await house.ask("setup", "init")
    return house


class Fails:
    """Stands before the use cases and acts at one of them: before it is called, or after."""

    def __init__(self, real: object, method: str, before: Exception | None = None, after: BaseException | None = None) -> None:
        self._real = real
        self._method = method
        self._before = before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        real = getattr(self._real, name)
        if name != self._method:
            return real

        async def call(params: Any) -> object:
            if self._before:
                raise self._before
            await real(params)
            assert self._after is not None
            raise self._after

        return call


async def dies_after(house: House, name: str, method: str, params: Any = None) -> None:
    """Has the coordinator carry a command out and die before it remembers the answer; then a new one comes up."""
    house.put(name, {"command": method, "parameters": params or {}})
    use_cases = cast("UseCases", Fails(house.app, method, after=asyncio.CancelledError()))
    with pytest.raises(asyncio.CancelledError):
        await FileRpc(use_cases, house.loop, house.root, house.clock, house.options).look()
    assert f"{name}.json" in house.incoming
    await house.restart()
    house.clock.advance(1000)


# --- the commands, field for field -----------------------------------------------------------------------------------


@pytest.mark.parametrize("jsonrpc", [True, False])
async def test_a_life_by_files(jsonrpc: bool, house: House) -> None:
    async def ask(name: str, method: str, params: dict[str, Any]) -> Any:
        plain = {"command": f"orchestra.{method}", "parameters": params}
        house.put(name, {"jsonrpc": "2.0", "id": name, "method": f"orchestra.{method}", "params": params} if jsonrpc else plain)
        await house.rpc.look()
        told = house.told(name)
        if jsonrpc:
            assert (told["jsonrpc"], told["id"]) == ("2.0", name)
        return told["result"] if jsonrpc else told

    assert await ask("1", "init", {"agent_count": 3, "nodes": ["local"]}) == {
        "status": "initialized",
        "session_ids": {"local": "session-1"},
        "agent_manifest": {"total": 3, "local": 3},
        "agents_ready": 3,
        "health": "healthy",
    }
    told = await ask("2", "submit_task", TASK)
    assert set(told) == {"task_id", "status", "assigned_agents", "estimated_completion"}
    assert (told["task_id"], told["status"]) == ("TASK-1", "queued")
    batch = await ask("3", "submit_batch", {"tasks": [{**TASK, "task_id": "b1"}, {**TASK, "task_id": "b2", "dependencies": ["b1"]}]})
    assert [(each["task_id"], each["status"]) for each in batch["tasks"]] == [("b1", "queued"), ("b2", "queued")]
    status = await ask("4", "status", {"scope": "global", "target": "all"})
    assert set(status) >= {"status", "health", "agents", "api_limits", "tasks", "uptime_seconds"}
    assert status["agents"] == {"total": 3, "running": 3, "idle": 1, "busy": 2, "error": 0}
    assert (await ask("5", "cancel", {"task_id": "b2"})) == {"task_id": "b2", "status": "cancelled"}
    scaled = await ask("6", "scale", {"target_count": 5, "strategy": "gradual"})
    assert (scaled["status"], scaled["current_count"], scaled["target_count"]) == ("scaling", 3, 5)
    assert isinstance(scaled["eta_seconds"], int)
    ended = await ask("7", "shutdown", {"graceful": True, "drain_tasks": True, "timeout_seconds": 5})
    assert (set(ended), ended["status"]) == ({"status", "pending_tasks", "estimated_completion"}, "shutdown_initiated")
    assert house.incoming == []
    assert house.quarantine == []
    assert house.names(house.root.responses) == [f"{number}.json" for number in range(1, 8)]


async def test_refused_parameters_name_their_field_and_change_nothing(fleet: House) -> None:
    before = await fleet.loop.ask(lambda state: len(state.tasks))
    for name, params, field in (
        ("a", {**TASK, "descripton": "x"}, "descripton"),
        ("b", {"description": "Make it better"}, "description"),
        ("c", {**TASK, "target_agents": {"count": 999}}, "target_agents.count"),
        ("f", {**TASK, "tags": ["nobody"]}, "tags"),
        ("g", {**TASK, "programs": ["nobody"]}, "programs"),
        ("h", {**TASK, "node": "nowhere"}, "node"),
    ):
        assert (await fleet.ask(name, "submit_task", params))["error"]["field"] == field
    assert (await fleet.ask("d", "submit_task", {**TASK, "prioritty": "high"}))["error"]["hint"] == "did you mean 'priority'?"
    assert (await fleet.ask("e", "scale", {"target_count": 251}))["error"]["code"] in ("refused", "bad_input")
    assert await fleet.loop.ask(lambda state: len(state.tasks)) == before


# --- once, and the same for ever -------------------------------------------------------------------------------------


async def test_a_repeated_command_gets_its_first_answer_also_after_a_restart(fleet: House) -> None:
    first = await fleet.ask(
        "c1", "submit_task", {"description": "Add a login form to the page", "payload": {"type": "command", "content": "true"}}
    )
    assert first["task_id"].startswith("TASK-")
    assert (
        await fleet.ask(
            "c1", "submit_task", {"payload": {"content": "true", "type": "command"}, "description": "Add a login form to the page"}
        )
        == first
    )
    await fleet.restart()
    (fleet.root.responses / "c1.json").unlink()
    again = await fleet.ask(
        "c1", "submit_task", {"description": "Add a login form to the page", "payload": {"type": "command", "content": "true"}}
    )
    assert again == first
    assert await fleet.loop.ask(lambda state: len(state.tasks)) == 1


async def test_an_id_that_is_used_for_something_else_keeps_its_first_answer(fleet: House) -> None:
    first = await fleet.ask("c1", "status")
    (fleet.root.responses / "c1.json").unlink()
    assert await fleet.ask("c1", "scale", {"target_count": 9}) == first
    assert (fleet.quarantine, fleet.incoming) == (["c1.json"], [])
    assert await fleet.loop.ask(lambda state: len(state.agents)) == AGENTS
    fleet.put("c1", b"[]")
    await fleet.rpc.look()
    assert fleet.told("c1") == first
    assert fleet.quarantine == ["c1.json", "c1.json.2"]


async def test_a_file_that_was_wrong_may_be_put_right_under_the_same_id(fleet: House) -> None:
    fleet.put("c1", {"command": "statsu"})
    await fleet.rpc.look()
    assert fleet.told("c1")["error"]["field"] == "command"
    assert (await fleet.ask("c1", "status"))["health"] == "healthy"


@pytest.mark.parametrize(
    "method,params",
    [
        ("submit_task", {"description": "Add a login form to the page", "payload": {"type": "command", "content": "true"}}),
        ("submit_task", {**TASK, "priority": "high", "constraints": {"max_cost_dollars": 1}}),
        ("submit_task", {**TASK, "workspace": "sub", "isolation": "worktree", "affinity": "form"}),
        ("submit_task", {**TASK, "directory": "/tmp"}),
        ("submit_task", {**TASK, "workspace": "/tmp", "isolation": "worktree"}),
        ("submit_batch", {"tasks": [TASK, {**TASK, "task_id": "TASK-2", "dependencies": ["TASK-1"]}]}),
    ],
)
async def test_a_death_between_a_submission_and_its_answer(method: str, params: dict[str, Any], fleet: House) -> None:
    fleet.directory = "/var"  # where the next one is started
    await dies_after(fleet, "c1", method, params)
    count = await fleet.loop.ask(lambda state: len(state.tasks))
    await fleet.rpc.look()
    told = fleet.told("c1")
    assert "error" not in told
    assert (told if method == "submit_task" else told["tasks"][0])["status"] == "queued"
    assert await fleet.loop.ask(lambda state: len(state.tasks)) == count > 0


JUDGED = {**TASK, "success_criteria": ["It looks friendly", "$ true"]}


async def test_a_death_between_a_submission_that_is_judged_and_its_answer(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.kind, house.defaults = "any", TaskDefaults(kinds={"review": "rehearsal"})
    await house.start()
    await house.ask("setup", "init")
    batch = {"tasks": [JUDGED, {**TASK, "task_id": "TASK-2"}]}
    await dies_after(house, "c1", "submit_batch", batch)
    house.defaults = TaskDefaults(judge=False)  # and the settings are others since
    await house.restart()
    await house.rpc.look()
    told = house.told("c1")["tasks"]
    assert [each.get("judged_by") for each in told] == ["TASK-1.judge", None]
    assert await house.loop.ask(lambda state: list(state.tasks)) == ["TASK-1", "TASK-2", "TASK-1.judge"]
    judge = await house.loop.ask(lambda state: state.tasks[TaskId("TASK-1.judge")].spec)
    assert (judge.reviews, judge.judges, judge.workspace) == ("TASK-1", ("It looks friendly",), str(tmp_path))
    again = await house.ask("c2", "submit_task", {**JUDGED, "success_criteria": ["It looks good", "$ true"]})
    assert again["error"]["field"] == "success_criteria[0]"
    await house.stop()


async def test_what_is_not_judged_is_refused_with_the_field_and_what_to_do(fleet: House) -> None:
    lonely = (await fleet.ask("a", "submit_batch", {"tasks": [TASK, {**JUDGED, "task_id": "b"}]}))["error"]
    assert lonely["field"] == "tasks[1].success_criteria[0]"
    assert "nobody can judge it" in lonely["message"]
    assert "routing.review" in lonely["hint"]
    strict = (await fleet.ask("b", "submit_task", {**JUDGED, "strict": True}))["error"]
    assert (strict["field"], "without `strict`" in strict["hint"]) == ("success_criteria[0]", True)
    assert await fleet.loop.ask(lambda state: not state.tasks)


async def test_another_task_under_the_same_id_is_a_duplicate(fleet: House) -> None:
    await fleet.ask("c1", "submit_task", TASK)
    assert (await fleet.ask("c2", "submit_task", {**TASK, "description": "Remove the login form again"}))["error"]["code"] == "duplicate_id"
    assert "error" not in await fleet.ask("c3", "submit_task", TASK)
    for name, other in (
        ("c5", {"workspace": "/tmp"}),
        ("c6", {"isolation": "worktree"}),
        ("c7", {"directory": "/tmp"}),
        ("c8", {"affinity": "x"}),
    ):
        assert (await fleet.ask(name, "submit_task", {**TASK, **other}))["error"]["code"] == "duplicate_id"
    batch = {"tasks": [TASK, {**TASK, "task_id": "TASK-2"}]}
    assert (await fleet.ask("c4", "submit_batch", batch))["error"]["code"] == "duplicate_id"


async def test_a_death_between_the_start_and_its_answer(house: House) -> None:
    await dies_after(house, "c1", "init")
    await house.come_up()
    await house.rpc.look()
    told = house.told("c1")
    assert (told["status"], told["agent_manifest"]["total"]) == ("initialized", AGENTS)
    assert (await house.ask("c2", "init"))["error"]["code"] == "illegal_move"
    assert house.names(house.root.responses) == ["c1.json", "c2.json"], "the marks are gone"


async def test_a_death_between_a_cancellation_and_its_answer(fleet: House) -> None:
    await fleet.ask("c0", "submit_batch", {"tasks": [TASK, {**TASK, "task_id": "TASK-2", "dependencies": ["TASK-1"]}]})
    await dies_after(fleet, "c1", "cancel", {"task_id": "TASK-2"})
    await fleet.rpc.look()
    assert fleet.told("c1") == {"task_id": "TASK-2", "status": "cancelled"}
    assert (await fleet.ask("c2", "cancel", {"task_id": "TASK-2"}))["error"]["code"] == "illegal_move"


@pytest.mark.parametrize("again", [False, True])
async def test_a_death_between_a_shutdown_and_its_answer_ends_no_later_run(again: bool, fleet: House) -> None:
    await dies_after(fleet, "c1", "shutdown")
    assert fleet.loop.state.lifecycle.value == "terminated"
    if again:
        await fleet.app.init(InitParams())
    await fleet.rpc.look()
    assert fleet.told("c1")["status"] == "shutdown_initiated"
    assert fleet.loop.state.lifecycle.value == ("ready" if again else "terminated")


async def test_a_command_that_was_begun_and_not_done_is_done_at_the_next_start(fleet: House) -> None:
    fleet.put("c1", {"command": "shutdown"})
    dying = cast("UseCases", Fails(fleet.app, "shutdown", before=cast("Exception", asyncio.CancelledError())))
    with pytest.raises(asyncio.CancelledError):
        await FileRpc(dying, fleet.loop, fleet.root, fleet.clock, fleet.options).look()
    await fleet.restart()
    await fleet.rpc.look()
    assert fleet.told("c1")["status"] == "shutdown_initiated"
    assert fleet.loop.state.lifecycle.value == "terminated"


async def test_a_stop_waits_for_the_answer_that_is_being_recorded(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go = asyncio.Event(), asyncio.Event()
    real = fleet.loop.request

    async def slow(command: c.Command) -> Any:
        if isinstance(command, c.AnswerCommand):
            begun.set()
            await go.wait()
        return await real(command)

    monkeypatch.setattr(fleet.loop, "request", slow)
    fleet.put("c1", {"command": "shutdown"})
    looking = asyncio.create_task(fleet.rpc.look())
    await begun.wait()
    looking.cancel()
    await asyncio.sleep(0)
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await looking
    assert fleet.told("c1")["status"] == "shutdown_initiated"
    assert fleet.incoming == []


async def test_a_coordinator_that_stops_leaves_the_command_for_the_next(fleet: House) -> None:
    fleet.put("c1", {"command": "status"})
    await fleet.stop()
    await fleet.rpc.look()
    assert (fleet.incoming, fleet.told("setup")["status"]) == (["c1.json"], "initialized")
    fleet.ledger = fleet.ledger.reopened()
    await fleet.start()
    await fleet.rpc.look()
    assert fleet.told("c1")["status"]


async def test_a_bug_of_ours_is_met_once(fleet: House) -> None:
    fleet.put("c1", {"command": "status"})
    broken = FileRpc(cast("UseCases", Fails(fleet.app, "status", before=KeyError("x"))), fleet.loop, fleet.root, fleet.clock, fleet.options)
    with pytest.raises(KeyError):
        await broken.look()
    assert (fleet.incoming, fleet.quarantine) == ([], ["c1.json"])


async def test_a_use_case_that_meets_a_full_disk_is_answered(fleet: House) -> None:
    fleet.put("c1", {"command": "status"})
    full = cast("UseCases", Fails(fleet.app, "status", before=OSError(28, "No space left on device")))
    await FileRpc(full, fleet.loop, fleet.root, fleet.clock, fleet.options).look()
    assert fleet.told("c1")["error"]["code"] == "port_failed"


# --- hostile files ---------------------------------------------------------------------------------------------------


def short(path: Path) -> str:
    return min(str(path), os.path.relpath(path), key=len)


def write(path: bytes, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)


async def refused(house: House, name: str) -> str:
    """Looks; returns what was answered about the file, which has to be in quarantine now."""
    await house.rpc.look()
    assert house.incoming == []
    assert f"{name}.json" in house.quarantine
    error = house.told(name)["error"]
    assert error["data"]["field"] == "(file)"
    return str(error["message"])


async def test_a_symbolic_link_is_not_followed(fleet: House, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text('{"command": "shutdown"}')
    (fleet.root.incoming / "l.json").symlink_to(secret)
    assert "symbolic link" in await refused(fleet, "l")
    assert secret.exists()


async def test_a_hard_link_is_refused_when_it_stays_one(fleet: House, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    ours.write_text('{"command": "shutdown"}')
    os.link(ours, fleet.root.incoming / "h.json")
    await fleet.rpc.look()
    assert fleet.incoming == ["h.json"], "it may be on its way"
    fleet.clock.advance(60_000)
    assert "hard links" in await refused(fleet, "h")
    assert ours.read_text() == '{"command": "shutdown"}'


async def test_moving_by_a_second_link_is_fine(fleet: House, tmp_path: Path) -> None:
    (tmp_path / "x").write_text('{"command": "status"}')
    os.link(tmp_path / "x", fleet.root.incoming / "h.json")
    await fleet.rpc.look()
    (tmp_path / "x").unlink()
    await fleet.rpc.look()
    assert fleet.told("h")["health"] == "healthy"


async def test_what_is_no_file_is_refused(fleet: House) -> None:
    os.mkfifo(fleet.root.incoming / "p.json")
    assert "regular file" in await refused(fleet, "p")
    (fleet.root.incoming / "d.json").mkdir()
    (fleet.root.incoming / "d.json" / "x").touch()
    assert "regular file" in await refused(fleet, "d")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(short(fleet.root.incoming / "s.json"))
        assert "regular file" in await refused(fleet, "s")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
async def test_a_file_of_another_user_is_refused(fleet: House) -> None:
    os.chown(fleet.put("o", {"command": "shutdown"}), 12345, 12345)
    assert "another user" in await refused(fleet, "o")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives folders away")
async def test_a_folder_of_another_user_or_a_link_to_one_is_not_served(
    fleet: House, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.put("c1", {"command": "status"})
    os.chown(fleet.root.incoming, 12345, 12345)
    await fleet.rpc.look()
    os.chown(fleet.root.incoming, 0, 0)
    fleet.root.incoming.rename(tmp_path / "elsewhere")
    fleet.root.incoming.symlink_to(tmp_path / "elsewhere")
    await fleet.rpc.look()
    assert not (fleet.root.responses / "c1.json").exists()
    assert caplog.text.count("rpc-folder-unusable") == 2


async def test_a_file_that_is_too_large_is_refused(tmp_path: Path) -> None:
    house = House(tmp_path, request_bytes=100)
    await house.start()
    house.put("fits", b'{"command": "status"}'.ljust(100))
    house.put("big", b'{"command": "status"}'.ljust(101))
    assert "larger than 100 bytes" in await refused(house, "big")
    assert "error" not in house.told("fits")
    await house.stop()


@pytest.mark.parametrize("content", [b"", b'{"command": "sta', b"{" * 50_000, b'{"command": "\xff"}'])
async def test_broken_content_gets_a_moment_and_is_then_refused(content: bytes, fleet: House) -> None:
    fleet.put("c1", content)
    await fleet.rpc.look()
    assert (fleet.incoming, fleet.quarantine) == (["c1.json"], [])
    assert not (fleet.root.responses / "c1.json").exists()
    fleet.clock.advance(intake.SETTLE_MS + 60_000)
    assert await refused(fleet, "c1")


async def test_a_file_that_is_completed_in_place_is_carried_out(fleet: House) -> None:
    descriptor = os.open(fleet.root.incoming / "c1.json", os.O_WRONLY | os.O_CREAT)
    for part in (b'{"comm', b'and": "sta', b'tus"'):
        os.write(descriptor, part)
        await fleet.rpc.look()
        assert fleet.incoming == ["c1.json"]
    os.write(descriptor, b"}")
    os.close(descriptor)
    await fleet.rpc.look()
    assert fleet.told("c1")["health"] == "healthy"


async def test_a_file_from_the_future_does_not_wait_for_it(fleet: House) -> None:
    fleet.put("c1", b"{")
    fleet.clock.now_ms -= 3_600_000
    assert await refused(fleet, "c1")


async def test_hidden_and_temporary_files_are_left_alone(fleet: House) -> None:
    for name in (".c1.json", "c1.json.tmp", "c1.tmp", "c1", ".json", "..%2f..%2fx.json", "..\\..\\x.json"):
        (fleet.root.incoming / name).write_text('{"command": "shutdown"}')
    before = fleet.incoming
    await fleet.rpc.look()
    assert (fleet.incoming, fleet.quarantine) == (before, [])


@pytest.mark.parametrize(
    "name", [b"-rf.json", b"a%2f..%2fx.json", b"a\\..\\x.json", b"a\nb.json", b"\xff\xfe.json", b"x" * 240 + b".json", b"$(reboot).json"]
)
async def test_an_unusable_name_is_put_aside_and_writes_nowhere(name: bytes, fleet: House, caplog: pytest.LogCaptureFixture) -> None:
    before = fleet.names(fleet.root.responses)
    path = os.path.join(os.fsencode(fleet.root.incoming), name)
    for _ in range(2):
        write(path, b'{"command": "shutdown"}')
        await fleet.rpc.look()
    assert (fleet.incoming, len(fleet.quarantine)) == ([], 2)
    assert fleet.names(fleet.root.responses) == before
    assert [str(vars(record)["file"]).encode() for record in caplog.records], "what is logged can be written"
    assert fleet.loop.state.lifecycle.value == "ready"


async def test_a_thousand_bad_files_end_in_a_bounded_quarantine_behind_a_good_one(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(service, "QUARANTINE_MAX", 100)
    (fleet.root.incoming / "aaa.json").write_text('{"command": "status"}')
    for number in range(1000):
        (fleet.root.incoming / f"bad-{number}.json").write_text("[]")
    await fleet.rpc.look()
    await fleet.rpc.look()
    assert fleet.told("aaa")["health"] == "healthy"
    assert (fleet.incoming, len(fleet.quarantine)) == ([], 100)
    assert fleet.told("bad-999")["error"]["data"]["field"] == "(file)"


async def test_ten_thousand_files_are_taken_in_rounds_oldest_first(house: House) -> None:
    for number in range(10_000):
        path = house.root.incoming / f"c{number}.json"
        path.write_bytes(b"{")
        os.utime(path, ns=(0, (10_000 - number) * 1_000_000))
    first = intake.Incoming(house.root.incoming, 100).scan()
    assert first == [f"c{number}.json" for number in range(9999, 9999 - intake.SCAN_MAX, -1)]


async def test_a_file_that_cannot_be_moved_is_passed_over_until_it_changes(
    fleet: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fleet.put("bad", b"[]")

    def no_rename(*args: object, **more: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr("os.rename", no_rename)
    for _ in range(3):
        await fleet.rpc.look()
    assert caplog.text.count("rpc-file-refused") == caplog.text.count("rpc-quarantine-failed") == 1
    assert "error" in fleet.told("bad")
    assert (await fleet.ask("good", "status"))["health"] == "healthy"
    assert (await fleet.ask("bad", "status"))["health"] == "healthy"


async def test_a_newer_file_of_the_same_name_is_not_removed_unread(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    real = fleet.rpc._respond

    def respond(command_id: str, response: bytes) -> None:
        real(command_id, response)
        fleet.put("c1", {"command": "scale", "parameters": {"target_count": 1}})

    monkeypatch.setattr(fleet.rpc, "_respond", respond)
    first = await fleet.ask("c1", "status")
    assert fleet.incoming == ["c1.json"]
    monkeypatch.undo()
    await fleet.rpc.look()
    assert (fleet.told("c1"), fleet.quarantine) == (first, ["c1.json"])


async def test_folders_that_are_removed_come_back(fleet: House) -> None:
    for folder in (fleet.root.incoming, fleet.root.responses, fleet.root.quarantine):
        for each in folder.iterdir():
            each.unlink()
        folder.rmdir()
    await fleet.rpc.look()
    assert fleet.root.incoming.is_dir()
    fleet.root.responses.rmdir()
    fleet.root.quarantine.rmdir()
    assert (await fleet.ask("c1", "status"))["health"] == "healthy"
    fleet.root.quarantine.rmdir()
    fleet.put("bad", b"[]")
    await fleet.rpc.look()
    await fleet.rpc.look()
    assert fleet.quarantine == ["bad.json"]


async def test_a_response_that_cannot_be_written_is_written_later(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: object, **more: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service, "write_atomically", full)
    fleet.put("c1", {"command": "submit_task", "parameters": TASK})
    await fleet.rpc.look()
    assert fleet.incoming == ["c1.json"]
    monkeypatch.undo()
    await fleet.rpc.look()
    assert (fleet.told("c1")["task_id"], fleet.incoming) == ("TASK-1", [])


async def test_the_rate_is_kept(tmp_path: Path) -> None:
    house = House(tmp_path, requests_per_second=10)
    await house.start()
    for number in range(3):
        house.put(f"c{number}", {"command": "status"})
    house.put("bad", b"[]")
    looking = asyncio.create_task(house.rpc.look())
    for done in (1, 2):
        await until(lambda: bool(house.clock.waiting))
        assert sum(name.startswith("c") for name in house.names(house.root.responses)) == done
        house.clock.advance(100)
    await looking
    assert house.clock.slept == [100, 100]
    await house.stop()


# --- noticing --------------------------------------------------------------------------------------------------------


async def stop_task(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert task.cancelled()


async def test_a_file_event_makes_it_quick(fleet: House) -> None:
    """With a clock that stands still only a real file event can be what wakes it."""
    running = asyncio.create_task(fleet.rpc.run())
    await until(lambda: service.POLL_MS in fleet.clock.slept)
    for number in range(200):  # the watch may begin after the first of these
        fleet.put(f"c{number}", {"command": "status"})
        await asyncio.to_thread(os.getpid)
    await until((fleet.root.responses / "c199.json").exists)
    await stop_task(running)


async def test_without_file_events_the_folder_is_polled_and_the_trouble_logged_once(
    fleet: House, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_watch(*args: object, **more: object) -> Any:
        raise OSError(28, "inotify watch limit reached")

    monkeypatch.setattr(service, "awatch", no_watch)
    running = asyncio.create_task(fleet.rpc.run())
    for number in range(3):
        await until(lambda: len(fleet.clock.waiting) == 2)
        fleet.put(f"c{number}", {"command": "status"})
        fleet.clock.advance(service.POLL_MS)
        await until((fleet.root.responses / f"c{number}.json").exists)
    await until(lambda: len(fleet.clock.waiting) == 2)
    fleet.clock.advance(service.WATCH_AGAIN_MS)
    await until(lambda: fleet.clock.slept.count(service.WATCH_AGAIN_MS) == 2)
    await stop_task(running)
    assert caplog.text.count("rpc-watch-failed") == 1


async def test_a_settling_file_is_looked_at_soon(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silence(*args: object, **more: object) -> AsyncIterator[set[Any]]:
        await asyncio.Event().wait()
        yield set()

    monkeypatch.setattr(service, "awatch", silence)
    fleet.put("c1", b"{")
    running = asyncio.create_task(fleet.rpc.run())
    await until(lambda: service.SETTLING_POLL_MS in fleet.clock.slept)
    fleet.clock.advance(60_000)
    await until((fleet.root.responses / "c1.json").exists)
    await stop_task(running)
    assert fleet.quarantine == ["c1.json"]


async def test_a_folder_that_is_replaced_is_watched_anew(fleet: House, monkeypatch: pytest.MonkeyPatch) -> None:
    watches = 0
    turn: asyncio.Queue[set[Any]] = asyncio.Queue()

    async def scripted(*args: object, **more: object) -> AsyncIterator[set[Any]]:
        nonlocal watches
        watches += 1
        while True:
            yield await turn.get()

    monkeypatch.setattr(service, "awatch", scripted)
    running = asyncio.create_task(fleet.rpc.run())
    await until(lambda: watches == 1)
    (fleet.root.incoming).rename(fleet.root.path / "old")
    fleet.root.incoming.mkdir(mode=0o700)
    turn.put_nowait(set())
    await until(lambda: fleet.clock.slept.count(service.POLL_MS) >= 2)
    fleet.clock.advance(service.POLL_MS)
    await until(lambda: watches == 2)
    await stop_task(running)


# --- events for the parent -------------------------------------------------------------------------------------------


async def test_events_are_written_in_order_and_completions_together(house: House) -> None:
    files = EventFiles(house.loop, house.root, house.clock)
    await house.ask("setup", "init")
    running = asyncio.create_task(files.run())
    await house.loop.request(c.Submit(tuple(make_task(name, plan=None, retries=0) for name in "abc")))
    for name in "ab":
        await house.loop.report([attempt(name, done=True)])
    await house.loop.ask(lambda state: state.seq)
    assert house.names(house.root.events) == []
    await house.loop.report([attempt("c", done=False)])
    await until(lambda: len(house.names(house.root.events)) == 2)
    completed, failed = (json.loads((house.root.events / name).read_bytes()) for name in house.names(house.root.events))
    assert (completed["event"], completed["task_ids"]) == ("task_completed", ["a", "b"])
    assert (failed["event"], failed["severity"], failed["task_id"]) == ("task_failed", "high", "c")
    assert completed["seq"] < failed["seq"]
    await stop_task(running)


def attempt(task: str, *, done: bool) -> c.Command:
    return c.AttemptFinished(TaskId(task), 1, Outcome(OutcomeKind.DONE if done else OutcomeKind.FAILED))


async def test_completions_are_told_after_a_moment_and_at_the_end(house: House) -> None:
    files = EventFiles(house.loop, house.root, house.clock)
    await house.ask("setup", "init")
    running = asyncio.create_task(files.run())
    await house.loop.request(c.Submit(tuple(make_task(name, plan=None) for name in "ab")))
    await house.loop.report([attempt("a", done=True)])
    await house.loop.ask(lambda state: state.seq)
    await until(lambda: bool(house.clock.waiting))
    house.clock.advance(BATCH_MS)
    await until(lambda: len(house.names(house.root.events)) == 1)
    await house.loop.report([attempt("b", done=True)])
    await house.loop.ask(lambda state: state.seq)
    await stop_task(running)
    assert len(house.names(house.root.events)) == 2


async def test_only_the_newest_events_are_kept_and_a_removed_folder_comes_back(house: House) -> None:
    for number in range(FILES_MAX + 50):
        (house.root.events / f"{number:012}-task_failed.json").touch()
    (house.root.events / "readme").touch()
    files = EventFiles(house.loop, house.root, house.clock)
    await house.ask("setup", "init")
    await fail_agents(house, 1)
    files.flush()
    assert len(house.names(house.root.events)) == FILES_MAX + 1
    for each in house.root.events.iterdir():
        each.unlink()
    house.root.events.rmdir()
    await fail_agents(house, 2)
    files.flush()
    assert [json.loads(path.read_bytes())["agent_id"] for path in house.root.events.iterdir()] == [2]


async def fail_agents(house: House, agent: int) -> None:
    worker = await house.loop.ask(lambda state: state.agents[AgentId(agent)].worker)
    await house.loop.report([c.WorkerFell(AgentId(agent), worker, "gone")])

    def nothing(state: State) -> None:
        return None

    await house.loop.ask(nothing)
