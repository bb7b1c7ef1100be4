"""Client and server over a real Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import msgspec
import pytest

from orchestra import errors
from orchestra.client import BY_CODE, Client, error_from_wire, error_to_wire
from orchestra.edges.socket.server import SocketServer
from orchestra.errors import BadInput, CoordinatorUnreachable, NotFound, OrchestraError, PlanInvalid, PortFailed
from orchestra.intake.request import CancelParams, StatusParams, parse_params
from orchestra.usecases import METHODS, CancelReply, TaskParams, UseCases

EXAMPLES: dict[str, dict[str, Any]] = {
    "answer": {"task_id": "T1", "text": "yes", "question": 3},
    "init": {"phase": 2, "nodes": ["a"], "agent_count": 60},
    "submit_task": {
        "description": "Write the page",
        "task_id": "T1",
        "success_criteria": ["All tests pass"],
        "workspace": "src",
        "isolation": "worktree",
        "affinity": "page",
        "directory": "/x",
        "strict": True,
        "requirements": {"a": [1, None]},
    },
    "submit_batch": {
        "tasks": [{"description": "Write the page", "dependencies": ["T1"]}, {"description": "Say \u3053\u3093\u306b\u3061\u306f"}]
    },
    "submit_plan": {"text": "name: p\n", "source": "p.yaml", "directory": "/x", "resume": True},
    "status": {"scope": "agent", "target": 7},
    "scale": {"target_count": 50, "strategy": "immediate"},
    "shutdown": {"graceful": False, "drain_tasks": False, "timeout_seconds": 2.5},
    "cancel": {"task_id": "p/t", "reason": "why not"},
    "retry": {"task_id": "p/t"},
    "explain": {"task_id": "p/t"},
    "tasks": {"plan": "p", "status": "failed", "limit": 3},
    "task": {"task_id": "p/t"},
    "logs": {"task_id": "p/t", "attempt": 2, "offset": -100, "length": 50},
    "plans": {},
    "plan": {"plan": "p"},
    "agents": {"agents": [1, 2]},
    "screens": {"agents": [3], "lines": 20},
    "type_text": {"agents": [4], "text": "\x1b[201~; rm -rf\n", "enter": False},
    "restart_agent": {"agent": 5},
    "attach": {"agent": 6},
    "nodes": {},
    "node_add": {"name": "gamma", "host": "10.0.0.7", "tags": ["gpu"], "max_agents": 50},
    "node_drain": {"node": "gamma", "move": True},
    "node_resume": {"node": "gamma"},
    "node_remove": {"node": "gamma", "force": True},
    "workspaces": {"node": "gamma", "older_than_ms": 5, "quota_bytes": 7, "refs": True, "remove": True},
    "merge_plan": {"plan": "p", "branch": "main"},
    "health": {},
    "watch": {"after_seq": 9, "wait_ms": 1, "limit": 2},
    "report": {"plan": "p"},
    "report_data": {},
    "backup": {"target": "/x/y"},
    "cost": {"by": "agent", "plan": "p", "name": "7", "limit": 3, "compare": False},
    "limits": {},
    "budgets": {},
    "set_budget": {"scope": "day", "name": "2026-01-31", "usd_micros": -1},
    "estimate": {"text": "name: p\n", "source": "p.yaml", "directory": "/x", "agents": 4},
    "estimate_cost": {"task": "Implement feature X", "agents": 10, "estimated_tokens": 50_000},
}


class Scripted:
    """Use cases that note what they are asked, wait if told so, and answer or fail as told."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, object]] = []
        self.error: Exception | None = None
        self.gates: dict[str, asyncio.Event] = {}
        self.reached = asyncio.Event()
        self.padding = ""

    def __getattr__(self, name: str) -> Any:
        if name not in METHODS:
            raise AttributeError(name)

        async def call(params: Any) -> object:
            self.asked.append((name, params))
            self.reached.set()
            key = getattr(params, "task_id", "")
            if key in self.gates:
                await self.gates[key].wait()
            if self.error is not None:
                raise self.error
            return CancelReply(key + self.padding, "cancelled") if name == "cancel" else {"method": name}

        return call


@pytest.fixture
def fake() -> Scripted:
    return Scripted()


@pytest.fixture
async def server(fake: Scripted, tmp_path: Path) -> AsyncIterator[SocketServer]:
    made = SocketServer(cast("UseCases", fake), tmp_path / "s", line_bytes_max=100_000)
    await made.start()
    yield made
    await made.stop()


class Raw:
    """A peer that sends what it likes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def tell(self, line: bytes) -> dict[str, Any]:
        self.writer.write(line + b"\n")
        return await self.hear()

    async def hear(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(await self.reader.readline())
        return found


@pytest.fixture
async def raw(server: SocketServer, tmp_path: Path) -> AsyncIterator[Raw]:
    peer = Raw(*await asyncio.open_unix_connection(str(tmp_path / "s")))
    yield peer
    peer.writer.close()


def test_there_is_an_example_of_every_method() -> None:
    assert set(EXAMPLES) == set(METHODS)
    assert {name for name in vars(UseCases) if not name.startswith("_")} == set(METHODS)


@pytest.mark.parametrize("method", METHODS)
async def test_every_method_reaches_its_use_case(method: str, server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.error = NotFound("that is all we wanted to know")
    params = parse_params(METHODS[method].params, EXAMPLES[method])
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(NotFound):
            await getattr(client, method)(params)
    assert fake.asked == [(method, params)]


async def test_an_answer_comes_back_as_its_record(server: SocketServer, tmp_path: Path) -> None:
    async with await Client.connect(tmp_path / "s") as client:
        assert await client.cancel(CancelParams(task_id="a")) == CancelReply("a", "cancelled")


@pytest.mark.parametrize("kind", [BY_CODE[code] for code in sorted(BY_CODE)])
async def test_an_error_comes_back_as_itself(kind: type[OrchestraError], server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.error = kind("what", hint="do this", field="tasks[3]")
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(OrchestraError) as caught:
            await client.cancel(CancelParams(task_id="a"))
    assert type(caught.value) is kind
    assert (caught.value.code, caught.value.message, caught.value.hint, caught.value.field) == (kind.code, "what", "do this", "tasks[3]")


def test_the_table_of_errors_is_whole() -> None:
    assert set(BY_CODE) == set(errors.FACES)
    plan = PlanInvalid("first", problems=("first", "second"))
    wire = msgspec.json.decode(msgspec.json.encode(error_to_wire(plan)), type=type(error_to_wire(plan)))
    again = error_from_wire(wire)
    assert isinstance(again, PlanInvalid)
    assert again.problems == ("first", "second")


async def test_answers_come_in_any_order(server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.gates["slow"] = asyncio.Event()
    async with await Client.connect(tmp_path / "s") as client:
        slow = asyncio.create_task(client.cancel(CancelParams(task_id="slow")))
        await fake.reached.wait()
        assert (await client.cancel(CancelParams(task_id="quick"))).task_id == "quick"
        assert not slow.done()
        fake.gates["slow"].set()
        assert (await slow).task_id == "slow"


@pytest.mark.parametrize(
    "line,code,field",
    [
        (b"no json", -32600, ""),
        (b"[]", -32600, ""),
        (b'{"jsonrpc": "2.0", "id": 1, "met', -32700, ""),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "nodes"} {}', -32700, ""),
        (b'{"jsonrpc": "2.0", "id": 1, "id": 2, "method": "nodes"}', -32700, ""),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "cancel", "params": {"task_id": "a", "task_id": "b"}}', -32700, ""),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "\xff"}', -32700, ""),
        (b'{"a":' * 20_000, -32700, ""),
        (b'{"jsonrpc": "2.0", "method": "nodes"}', -32600, "id"),
        (b'{"jsonrpc": "2.0", "id": 1.5, "method": "nodes"}', -32600, "id"),
        (b'{"jsonrpc": "2.0", "id": true, "method": "nodes"}', -32600, "id"),
        (b'{"jsonrpc": "1.0", "id": 1, "method": "nodes"}', -32600, "jsonrpc"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "nodes", "parms": {}}', -32600, "parms"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "__init__"}', -32601, "method"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": 7}', -32601, "method"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "scale", "params": {"target_count": "x"}}', -32602, "target_count"),
        (b'{"jsonrpc": "2.0", "id": 1, "method": "scale", "params": [1]}', -32602, ""),
    ],
)
async def test_a_broken_line_is_answered_and_the_next_one_served(line: bytes, code: int, field: str, raw: Raw, fake: Scripted) -> None:
    told = await raw.tell(line)
    assert (told["error"]["code"], told["error"]["data"]["code"], told["error"]["data"]["field"]) == (code, "bad_input", field)
    assert fake.asked == []
    assert (await raw.tell(b'{"jsonrpc": "2.0", "id": "x", "method": "nodes"}'))["id"] == "x"


async def test_an_error_has_the_id_of_its_request(raw: Raw) -> None:
    assert (await raw.tell(b'{"jsonrpc": "2.0", "id": 5, "method": "nods"}'))["id"] == 5
    assert (await raw.tell(b'{"jsonrpc": "2.0", "id": "s", "method": "scale"}'))["id"] == "s"
    assert (await raw.tell(b"{"))["id"] is None


async def test_an_oversized_line_is_answered_and_ends_the_connection(raw: Raw, fake: Scripted) -> None:
    raw.writer.write(b'{"x":"' + b"y" * 100_001)
    told = await raw.hear()
    assert "100000 bytes" in told["error"]["message"]
    assert await raw.reader.read() == b""
    assert fake.asked == []


async def test_an_answer_that_is_too_large_is_refused(server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.padding = "a" * 100_000
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(OrchestraError, match="answer is larger"):
            await client.cancel(CancelParams(task_id="a"))


async def test_an_unfinished_line_of_a_peer_that_went_away_is_not_carried_out(server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    reader, writer = await asyncio.open_unix_connection(str(tmp_path / "s"))
    writer.write(b'{"jsonrpc": "2.0", "id": 1, "method": "nodes"}')
    writer.write_eof()
    assert await reader.read() == b""
    writer.close()
    assert fake.asked == []


async def test_a_peer_that_closed_its_sending_side_still_gets_its_answers(raw: Raw, fake: Scripted) -> None:
    raw.writer.write(b'{"jsonrpc": "2.0", "id": 1, "method": "nodes"}\n\n')
    raw.writer.write_eof()
    assert (await raw.hear())["id"] == 1


async def test_a_peer_that_goes_away_while_it_is_served_disturbs_nobody(server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.gates["slow"] = asyncio.Event()
    leaver = await Client.connect(tmp_path / "s")
    call = asyncio.create_task(leaver.retry(TaskParams("slow")))
    await fake.reached.wait()
    await leaver.close()
    with pytest.raises(CoordinatorUnreachable, match="went away"):
        await call
    fake.gates["slow"].set()
    async with await Client.connect(tmp_path / "s") as client:
        assert (await client.cancel(CancelParams(task_id="b"))).task_id == "b"


async def test_a_bug_of_ours_ends_the_connection_and_not_the_server(
    server: SocketServer, fake: Scripted, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fake.error = KeyError("oops")
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(CoordinatorUnreachable, match="before it answered"):
            await client.cancel(CancelParams(task_id="a"))
    assert "socket-connection-failed" in caplog.text
    fake.error = OSError(28, "No space left on device")
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(PortFailed, match="No space left"):
            await client.cancel(CancelParams(task_id="a"))


async def test_a_stop_ends_every_call(server: SocketServer, fake: Scripted, tmp_path: Path) -> None:
    fake.gates["slow"] = asyncio.Event()
    async with await Client.connect(tmp_path / "s") as client:
        call = asyncio.create_task(client.retry(TaskParams("slow")))
        await fake.reached.wait()
        await server.stop()
        await server.stop()
        with pytest.raises(CoordinatorUnreachable, match="before it answered"):
            await call
        with pytest.raises(CoordinatorUnreachable, match="gone"):
            await client.status(StatusParams())
    assert not (tmp_path / "s").exists()
    with pytest.raises(CoordinatorUnreachable, match="no orchestra is running"):
        await Client.connect(tmp_path / "s")


async def test_the_socket_is_the_users_alone_whatever_the_umask(fake: Scripted, tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        server = SocketServer(cast("UseCases", fake), tmp_path / "s")
        await server.start()
        assert stat.S_IMODE((tmp_path / "s").lstat().st_mode) == 0o600
        assert os.umask(0) == 0, "the umask of the process is left alone"
        await server.stop()
    finally:
        os.umask(before)


async def test_a_stale_socket_is_replaced(fake: Scripted, tmp_path: Path) -> None:
    (tmp_path / "s").write_text("left by the last one")
    server = SocketServer(cast("UseCases", fake), tmp_path / "s")
    await server.start()
    await server.start()
    async with await Client.connect(tmp_path / "s") as client:
        assert (await client.cancel(CancelParams(task_id="a"))).status == "cancelled"
    await server.stop()


@pytest.mark.parametrize("name", ["folder", "missing/s", "x" * 200])
async def test_a_socket_that_cannot_be_made_says_so(name: str, fake: Scripted, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    with pytest.raises(PortFailed, match="cannot be made"):
        await SocketServer(cast("UseCases", fake), tmp_path / name).start()


@pytest.mark.parametrize("line", [b"not json\n", b'{"id": 1, "result": {"a": 1}}\n', b'{"id": 99, "result": 1}\n'])
async def test_a_server_that_talks_nonsense_does_not_leave_us_waiting(line: bytes, tmp_path: Path) -> None:
    async def nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readline()
        writer.write(line)
        await writer.drain()
        writer.close()

    server = await asyncio.start_unix_server(nonsense, str(tmp_path / "s"))
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(OrchestraError) as caught:
            await client.cancel(CancelParams(task_id="a"))
    assert caught.value.code in ("protocol_broken", "coordinator_unreachable")
    server.close()


async def test_a_request_beyond_every_limit_is_not_sent(server: SocketServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orchestra.client.LINE_BYTES_MAX", 100)
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(BadInput, match="larger than 100 bytes"):
            await client.cancel(CancelParams(task_id="a", reason="b" * 100))


async def test_the_client_knows_no_other_method(server: SocketServer, tmp_path: Path) -> None:
    async with await Client.connect(tmp_path / "s") as client:
        with pytest.raises(AttributeError):
            _ = client.reboot
