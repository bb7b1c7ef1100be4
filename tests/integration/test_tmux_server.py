"""A real tmux on a private socket: hostile text, two hundred windows, deaths of every kind, other clients.

Nothing here waits for time to pass: conditions are asked of tmux again and again, with a limit only so that a failure ends.
"""

from __future__ import annotations

import asyncio
import os
import pty
import shutil
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import libtmux
import pytest

from orchestra.errors import BadInput, NodeFailed, PaneUnknown, TmuxFailed, TmuxGone, TmuxTimeout
from orchestra.nodes.tmux import PaneFacts, TmuxOptions, TmuxServer, WindowOrder
from orchestra.nodes.transport import Completed, LocalOptions, LocalTransport

SESSION: Final = "miyabi-orchestra-test-1"
CAT: Final = ("/bin/sh", "-c", "echo ready; exec cat")
RAW: Final = ("/bin/sh", "-c", 'stty raw -echo; printf "$2ready"; exec cat >"$1"', "sh")
"""Writes every byte it is sent into a file; the second argument is printed first, as a format."""
PATIENCE_S: Final = 60
CANARY: Final = f"/tmp/mt-canary-{os.getpid()}"
"""Exists when something executed what it should only have shown."""
HOSTILE_TEXT: Final = (
    f"'\"quotes\"' $(touch {CANARY}) `touch {CANARY}` ; touch {CANARY};\n#(touch {CANARY}) #{{pid}} ~ {{}} \\n %end 1 2 1\n"
    f"\ttab;\x1b[201~touch {CANARY}\x03\n\r\nüñí 漢字 🎼 trailing \\ and ;"
)
TYPED: Final = HOSTILE_TEXT.replace("\x1b", "").replace("\x03", "").replace("\r\n", "\n")
"""What of it reaches a program."""


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="mt", dir="/tmp"))
    home = path / "home"
    home.mkdir()
    (home / ".tmux.conf").write_text(f"run-shell 'touch {path}/canary'\nset -g history-limit 7\nset -g @theirs yes\n")
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("ORCHESTRA_TEST_SECRET", "canary")
    monkeypatch.setenv("SSH_CONNECTION", "1.2.3.4 5 6.7.8.9 22")
    monkeypatch.delenv("TMUX", raising=False)
    yield path
    shutil.rmtree(path)


@asynccontextmanager
async def tmux(folder: Path, options: TmuxOptions | None = None, *, session: bool = True) -> AsyncIterator[TmuxServer]:
    async with TmuxServer(LocalTransport(), f"{folder}/s", f"{folder}/c", options) as server:
        try:
            await server.connect_server()
            if session:
                await server.create_session(SESSION)
            yield server
        finally:
            await server.kill_server()
    assert not was_executed()


async def client(folder: Path, *words: str) -> str:
    """Runs a tmux command as another person's client would."""
    done = await LocalTransport().run(("tmux", "-u", "-S", f"{folder}/s", *words), timeout_ms=PATIENCE_S * 1000)
    assert done.code == 0, done.err
    return done.out.decode().rstrip("\n")


def content_of(path: Path | str) -> bytes:
    """What is in a file now; nothing if there is none."""
    try:
        return Path(path).read_bytes()
    except FileNotFoundError:
        return b""


def was_executed() -> bool:
    return Path(CANARY).exists()


def is_alive(pid: int) -> bool:
    """A zombie is not."""
    return content_of(f"/proc/{pid}/stat").rpartition(b") ")[2][:1] not in (b"", b"Z")


async def never() -> bool:
    return False


async def until(server: TmuxServer, condition: Callable[[], Awaitable[bool]]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not await condition():
            await server.list_panes()


async def shows(server: TmuxServer, pane_id: str, text: str) -> None:
    async def found() -> bool:
        return text in (await server.capture([pane_id]))[pane_id]

    await until(server, found)


async def holds(server: TmuxServer, file: Path, content: bytes) -> None:
    async def complete() -> bool:
        return len(content_of(file)) >= len(content)

    await until(server, complete)
    assert content_of(file) == content


async def one_window(server: TmuxServer, *argv: str, agent: int = 1) -> str:
    (window,) = await server.create_windows(SESSION, [WindowOrder(agent, f"agent-{agent}", argv or CAT)])
    return window.pane_id


async def pane_of(server: TmuxServer, agent: int) -> PaneFacts:
    (pane,) = [pane for pane in await server.list_panes() if pane.agent == agent]
    return pane


async def event(server: TmuxServer, kind: str, name: str = "") -> None:
    async with asyncio.timeout(PATIENCE_S):
        async for each in server.events():
            if each.kind == kind and name in ("", each.id):
                return


# --- the server ------------------------------------------------------------------------------------------------------


async def test_their_configuration_is_not_ours(folder: Path) -> None:
    async with tmux(folder):
        assert await client(folder, "show-options", "-gv", "history-limit") == "2000"
        assert await client(folder, "show-options", "-gqv", "@theirs") == ""
        assert await client(folder, "show-options", "-sv", "exit-empty") == "off"
        assert await client(folder, "show-options", "-gv", "remain-on-exit") == "on"


async def test_nothing_of_our_environment_lives_on_in_a_window(folder: Path) -> None:
    async with tmux(folder) as server:
        await shows(server, await one_window(server, "/bin/sh", "-c", "env; echo cwd=$(pwd)=; exec cat"), "cwd=/=")
        pane = await pane_of(server, 1)
        environment = content_of(f"/proc/{pane.pid}/environ") + (await client(folder, "show-environment", "-g")).encode()
        assert b"PATH=" in environment
        assert b"ORCHESTRA_TEST_SECRET" not in environment
        assert b"SSH_" not in environment


async def test_the_old_server_is_known_again_and_serves_another_coordinator(folder: Path) -> None:
    async with tmux(folder) as server:
        first = await server.connect_server()
        assert not first.is_new
        await one_window(server)
        async with TmuxServer(LocalTransport(), f"{folder}/s", f"{folder}/c") as second:
            found = await second.connect_server(known=first.server)
            assert (found.server, found.is_new) == (first.server, False)
            assert not (await second.connect_server()).is_new
            assert await second.session_names() == (SESSION,)
            assert await pane_of(second, 1) == await pane_of(server, 1)


async def test_the_server_survives_the_death_of_its_coordinator(folder: Path) -> None:
    program = (
        "import asyncio, os, signal\n"
        "from orchestra.nodes.tmux import TmuxServer, WindowOrder\n"
        "from orchestra.nodes.transport import LocalTransport\n"
        "async def main():\n"
        f"    server = TmuxServer(LocalTransport(), '{folder}/s', '{folder}/c')\n"
        "    await server.connect_server()\n"
        f"    await server.create_session('{SESSION}')\n"
        f"    await server.create_windows('{SESSION}', [WindowOrder(5, 'five', {CAT!r})])\n"
        "    os.killpg(0, signal.SIGKILL)\n"
        "asyncio.run(main())\n"
    )
    argv = ("env", f"PYTHONPATH={os.pathsep.join(sys.path)}", sys.executable, "-c", program)
    done = await LocalTransport().run(argv, timeout_ms=PATIENCE_S * 1000)
    assert done.code == -signal.SIGKILL, done.err
    async with tmux(folder, session=False) as server:
        assert not (await pane_of(server, 5)).dead


async def test_a_lost_client_is_noticed_and_the_windows_stay(folder: Path) -> None:
    async with tmux(folder) as server:
        pane_id = await one_window(server)
        os.kill(int(await client(folder, "list-clients", "-F", "#{client_pid}")), signal.SIGKILL)
        await event(server, "gone")
        with pytest.raises(TmuxGone):
            await server.list_panes()
        assert not (await server.connect_server()).is_new
        assert (await pane_of(server, 1)).pane_id == pane_id


async def test_a_killed_server_is_gone_and_a_new_one_starts_on_its_socket(folder: Path) -> None:
    async with tmux(folder) as server:
        old = await server.connect_server()
        pane_id = await one_window(server)
        os.kill(old.server.pid, signal.SIGKILL)
        with pytest.raises(TmuxGone):
            await until(server, never)
        assert (folder / "s").exists()
        assert await server.probe() == "gone"
        new = await server.connect_server()
        assert new.is_new
        assert new.server != old.server
        with pytest.raises(PaneUnknown):
            await server.capture([pane_id + "99"])
        await server.create_session(SESSION)
        await one_window(server)


@pytest.mark.parametrize("stranger", [False, True])
async def test_a_wedged_server_is_told_from_a_dead_one_and_replaced(folder: Path, stranger: bool) -> None:
    options = TmuxOptions(command_timeout_ms=1500, connect_timeout_ms=20_000, probe_timeout_ms=2000)
    async with tmux(folder, options) as server, TmuxServer(LocalTransport(), f"{folder}/s", f"{folder}/c", options) as other:
        old = await server.connect_server()
        os.kill(old.server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(TmuxTimeout):
                await server.list_panes()
            with pytest.raises(TmuxGone):
                await server.list_panes()
            assert await server.probe() == "wedged"
            rebuilder = other if stranger else server
            new = await rebuilder.rebuild()
            assert new.server != old.server
            assert new.is_new
            assert await rebuilder.probe() == "ok"
            assert not is_alive(old.server.pid)
            assert (await rebuilder.rebuild()).server == new.server
        finally:
            if is_alive(old.server.pid):
                os.kill(old.server.pid, signal.SIGCONT)


async def test_without_tmux_the_reason_is_told(folder: Path) -> None:
    async with TmuxServer(LocalTransport(), f"{folder}/s", f"{folder}/c", TmuxOptions(tmux="/nowhere/tmux")) as server:
        with pytest.raises(TmuxFailed, match="no /nowhere/tmux"):
            await server.connect_server()
        with pytest.raises(TmuxFailed, match="cannot be asked"):
            await server.probe()
        with pytest.raises(TmuxGone):
            await server.list_panes()


# --- windows ---------------------------------------------------------------------------------------------------------


async def test_two_hundred_windows(folder: Path) -> None:
    async with tmux(folder) as server:
        orders = [WindowOrder(agent, f"agent-{agent}", (*CAT, "sh", str(agent))) for agent in range(1, 201)]
        windows = await server.create_windows(SESSION, orders)
        assert [window.agent for window in windows] == list(range(1, 201))
        panes = {pane.pane_id: pane for pane in await server.list_panes() if pane.agent is not None}
        assert {window.pane_id: (window.agent, window.window_id, window.pid) for window in windows} == {
            pane.pane_id: (pane.agent, pane.window_id, pane.pid) for pane in panes.values()
        }
        assert {(pane.session, pane.dead, pane.width, pane.height) for pane in panes.values()} == {(SESSION, False, 200, 50)}

        async def all_ready() -> bool:
            screens = await server.capture(list(panes))
            return list(screens) == list(panes) and set(screens.values()) == {"ready"}

        await until(server, all_ready)
        assert await server.broadcast(list(panes), "hello $(x);", enter=True) == ()

        async def all_heard() -> bool:
            return all("hello $(x);" in screen for screen in (await server.capture(list(panes), lines=10)).values())

        await until(server, all_heard)


async def test_arguments_and_variables_arrive_as_they_are(folder: Path) -> None:
    file = folder / "arguments"
    words = [HOSTILE_TEXT, "", "-t", "--", ";", "a;", "~", "#{pid}", "%if", "{ x }", "".join(map(chr, range(1, 0x180)))]
    script = 'printf "%s\\0" "$@" "$HOSTILE" >"$0.part"; mv "$0.part" "$0"; exec cat'
    async with tmux(folder) as server:
        argv = ("/bin/sh", "-c", script, str(file), *words)
        await server.create_windows(SESSION, [WindowOrder(1, "a", argv, (("HOSTILE", HOSTILE_TEXT),), cwd="/proc")])
        await holds(server, file, b"".join(word.encode() + b"\0" for word in [*words, HOSTILE_TEXT]))
        assert os.readlink(f"/proc/{(await pane_of(server, 1)).pid}/cwd") == "/proc"


async def test_names_are_only_names_and_identity_stays(folder: Path) -> None:
    async with tmux(folder) as server:
        name = f"#(touch {CANARY})\n:x.y;$(touch {CANARY})"
        (window,) = await server.create_windows(SESSION, [WindowOrder(7, name, CAT)])
        await client(folder, "rename-window", "-t", window.window_id, f":::%end 1 2 1\nm:%9 ##{{pid}} ##(touch {CANARY})")
        await client(folder, "split-window", "-d", "-t", window.window_id, "exec cat")
        await client(folder, "move-window", "-s", window.window_id, "-t", "orchestra-keeper:77")
        pane = await pane_of(server, 7)
        assert (pane.pane_id, pane.session) == (window.pane_id, "orchestra-keeper")
        assert len(await server.list_panes()) == 4


async def test_a_taken_index_is_no_obstacle(folder: Path) -> None:
    async with tmux(folder) as server:
        await client(folder, "new-window", "-d", "-t", f"={SESSION}:3", "exec cat")
        windows = await server.create_windows(SESSION, [WindowOrder(agent, "a", CAT) for agent in (2, 3, 4)])
        assert [window.agent for window in windows] == [2, 3, 4]
        with pytest.raises(TmuxFailed, match="1 of 1"):
            await server.create_windows("no-such-session", [WindowOrder(9, "a", CAT)])
        with pytest.raises(TmuxFailed, match="duplicate"):
            await server.create_session(SESSION)


@pytest.mark.parametrize("script,status,number", [("exit 7", 7, None), ("kill -9 $$", None, 9), ("exit 0", 0, None)])
async def test_a_death_is_seen_with_its_reason(folder: Path, script: str, status: int | None, number: int | None) -> None:
    async with tmux(folder) as server:
        pane_id = await one_window(server, "/bin/sh", "-c", script)
        await event(server, "pane-died", pane_id)

        async def explained() -> bool:
            pane = await pane_of(server, 1)
            return pane.dead_status is not None or pane.dead_signal is not None

        await until(server, explained)
        pane = await pane_of(server, 1)
        assert (pane.dead, pane.dead_status, pane.dead_signal) == (True, status, number)


async def test_windows_are_closed_by_id_and_unknown_ids_are_refused(folder: Path) -> None:
    async with tmux(folder) as server:
        first, second = await server.create_windows(SESSION, [WindowOrder(agent, "a", CAT) for agent in (1, 2)])
        await server.kill_window(first.window_id)
        await event(server, "window-closed", first.window_id)
        assert set(await server.capture([first.pane_id, second.pane_id])) == {second.pane_id}
        assert await server.broadcast([first.pane_id, second.pane_id], "x", enter=True) == (first.pane_id,)
        await server.kill_window(second.window_id)
        for pane_id in (first.pane_id, second.pane_id, "%99999", "0", "%1;kill-server", ""):
            with pytest.raises(PaneUnknown):
                await server.capture([pane_id])
            with pytest.raises(PaneUnknown):
                await server.type_text(pane_id, "x", enter=True)
        for window_id in (first.window_id, "@99999", SESSION, "%0"):
            with pytest.raises(PaneUnknown):
                await server.kill_window(window_id)


async def test_other_clients_see_ordinary_sessions_and_a_grouped_view_changes_nothing(folder: Path) -> None:
    async with tmux(folder) as server:
        await server.create_windows(SESSION, [WindowOrder(agent, f"agent-{agent}", CAT) for agent in (1, 2)])
        theirs = libtmux.Server(socket_path=str(folder / "s"))
        (session,) = await asyncio.to_thread(lambda: list(theirs.sessions.filter(session_name=SESSION)))
        assert [window.window_name for window in await asyncio.to_thread(lambda: session.windows)] == ["about", "agent-1", "agent-2"]
        await client(folder, "new-session", "-d", "-s", "a-view", "-t", f"={SESSION}")
        assert [pane.session for pane in await server.list_panes() if pane.agent] == [SESSION, SESSION]


async def test_a_person_attaches_to_one_window_and_types(folder: Path) -> None:
    async with tmux(folder) as server:
        first, second = await server.create_windows(SESSION, [WindowOrder(agent, f"agent-{agent}", CAT) for agent in (1, 2)])
        await shows(server, first.pane_id, "ready")
        for window_id in (first.window_id, second.window_id):
            await client(folder, "rename-window", "-t", window_id, f"##(touch {CANARY})")
        assert await client(folder, "display-message", "-p", "-t", first.window_id, "#{window_name}") == f"#(touch {CANARY})"
        control, terminal = pty.openpty()
        argv = server.attach_argv(SESSION, first.window_id)
        environment = {**os.environ, "TERM": "xterm"}
        person = await asyncio.create_subprocess_exec(*argv, stdin=terminal, stdout=terminal, stderr=terminal, env=environment)
        os.close(terminal)
        try:

            async def attached() -> bool:
                clients = await client(folder, "list-clients", "-F", "#{client_control_mode} #{session_name} #{window_id}")
                return f"0 {SESSION} {first.window_id}" in clients.splitlines()

            await until(server, attached)
            os.write(control, b"typed by hand\r")
            await shows(server, first.pane_id, "typed by hand\ntyped by hand")
            assert "typed" not in (await server.capture([second.pane_id]))[second.pane_id]
        finally:
            person.terminate()
            await person.wait()
            os.close(control)


# --- typing ----------------------------------------------------------------------------------------------------------


async def test_hostile_text_arrives_exactly(folder: Path) -> None:
    file = folder / "typed"
    async with tmux(folder) as server:
        pane_id = await one_window(server, *RAW, str(file))
        await shows(server, pane_id, "ready")
        await server.type_text(pane_id, HOSTILE_TEXT + "\n\n", enter=True)
        await holds(server, file, TYPED.encode() + b"\r")
        await server.type_text(pane_id, "-n", enter=False)
        await server.type_text(pane_id, "", enter=True)
        await holds(server, file, TYPED.encode() + b"\r-n\r")
        assert await client(folder, "list-buffers") == ""


async def test_a_paste_is_bracketed_for_who_asked_and_cannot_be_left(folder: Path) -> None:
    file = folder / "typed"
    async with tmux(folder) as server:
        pane_id = await one_window(server, *RAW, str(file), "\\033[?2004h")
        await shows(server, pane_id, "ready")
        await server.type_text(pane_id, HOSTILE_TEXT, enter=True)
        await holds(server, file, b"\x1b[200~" + TYPED.encode() + b"\x1b[201~\r")


async def test_long_text_arrives_whole_and_longer_is_refused(folder: Path) -> None:
    file = folder / "typed"
    text = "ü" * (1 << 19)
    async with tmux(folder) as server:
        pane_id = await one_window(server, *RAW, str(file))
        await shows(server, pane_id, "ready")
        await server.type_text(pane_id, text, enter=False)
        await holds(server, file, text.encode())
        with pytest.raises(BadInput):
            await server.type_text(pane_id, text + "x", enter=False)


async def test_writers_do_not_interleave(folder: Path) -> None:
    file = folder / "typed"
    async with tmux(folder) as server:
        panes = [await one_window(server, *RAW, f"{file}{agent}", agent=agent) for agent in (1, 2)]
        for pane_id in panes:
            await shows(server, pane_id, "ready")
        async with asyncio.TaskGroup() as group:
            for turn in range(20):
                group.create_task(server.broadcast(panes[:: 1 if turn % 2 else -1], f"text {turn:02}", enter=True))
        for agent in (1, 2):

            async def complete(path: str = f"{file}{agent}") -> bool:
                return len(content_of(path)) >= 20 * 8

            await until(server, complete)
            assert sorted(content_of(f"{file}{agent}").decode().split("\r")) == ["", *(f"text {turn:02}" for turn in range(20))]


async def test_copy_mode_does_not_eat_what_is_typed(folder: Path) -> None:
    async with tmux(folder) as server:
        pane_id = await one_window(server)
        await shows(server, pane_id, "ready")
        await client(folder, "copy-mode", "-t", pane_id)
        assert (await pane_of(server, 1)).in_mode
        await server.type_text(pane_id, "through", enter=True)
        await shows(server, pane_id, "through\nthrough")
        assert not (await pane_of(server, 1)).in_mode


async def test_screens_with_history_and_colours(folder: Path) -> None:
    async with tmux(folder) as server:
        pane_id = await one_window(
            server, "/bin/sh", "-c", 'i=0; while [ $i -lt 200 ]; do i=$((i+1)); printf "\\033[31mline %s\\033[0m\\n" $i; done; exec cat'
        )
        await shows(server, pane_id, "line 200")
        (plain,) = (await server.capture([pane_id], lines=500)).values()
        assert plain.splitlines() == [f"line {number}" for number in range(1, 201)]
        (short,) = (await server.capture([pane_id], lines=5)).values()
        assert len(short.splitlines()) == 54
        (coloured,) = (await server.capture([pane_id], escapes=True)).values()
        assert coloured.startswith("\x1b[31m")


async def test_a_cancelled_caller_leaves_the_order_of_answers(folder: Path) -> None:
    async with tmux(folder) as server:
        pane_id = await one_window(server)
        for _ in range(20):
            tasks = [asyncio.create_task(server.list_panes()) for _ in range(5)]
            await asyncio.sleep(0)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert [task.cancelled() for task in tasks] == [True, False, True, False, True]
            assert list(await server.capture([pane_id])) == [pane_id]


# --- local programs --------------------------------------------------------------------------------------------------


async def test_a_run_gives_output_errors_and_code() -> None:
    done = await LocalTransport().run(("/bin/sh", "-c", "cat; echo oops >&2; exit 3"), stdin=b"in", timeout_ms=PATIENCE_S * 1000)
    assert done == Completed(3, b"in", b"oops\n")
    assert (await LocalTransport().run(("/nowhere/x",), timeout_ms=1000)).code == 127
    assert (await LocalTransport().run(("/bin/sh", "-c", "kill -9 $$"), timeout_ms=PATIENCE_S * 1000)).code == -9


async def test_a_run_ends_in_time_or_is_killed_with_its_children() -> None:
    with pytest.raises(TimeoutError):
        await LocalTransport().run(("/bin/sh", "-c", "sleep 1000 & wait"), timeout_ms=300)


async def test_a_daemon_that_keeps_the_pipes_does_not_hold_up_a_run(folder: Path) -> None:
    script = f"echo out; setsid sh -c 'echo $$ >{folder}/pid; exec sleep 1000' & while [ ! -s {folder}/pid ]; do :; done"
    done = await LocalTransport().run(("/bin/sh", "-c", script), timeout_ms=PATIENCE_S * 1000)
    os.kill(int((folder / "pid").read_text()), signal.SIGKILL)
    assert (done.code, done.out) == (0, b"out\n")


async def test_output_is_bounded() -> None:
    transport = LocalTransport(LocalOptions(output_bytes_max=100_000, error_bytes_max=10, unread_bytes_max=1000))
    with pytest.raises(NodeFailed):
        await transport.run(("yes",), timeout_ms=PATIENCE_S * 1000)
    done = await transport.run(("/bin/sh", "-c", "echo 0123456789abcdef >&2"), timeout_ms=PATIENCE_S * 1000)
    assert done.err == b"789abcdef\n"


async def test_a_channel_has_a_session_of_its_own_and_ends_once() -> None:
    transport = LocalTransport(LocalOptions(unread_bytes_max=1000, close_grace_ms=200))
    channel = await transport.open(("/bin/sh", "-c", "ps -o sid= -p $$; head -c 500000 /dev/zero; exec cat"))
    received = b""
    while len(received) < 500_001:
        received += await channel.read()
    assert int(received.partition(b"\n")[0]) != os.getsid(0)
    channel.write(b"x" * 500_000)
    tail = b""
    while len(tail) < 500_000 - (len(received) - received.index(b"\n") - 1 - 500_000):
        tail += await channel.read()
    await channel.drain()
    await channel.close()
    await channel.close()
    assert await channel.read() == b""
    assert await channel.wait_closed() == 0
    channel.write(b"dropped")
    with pytest.raises(NodeFailed):
        await transport.open(("/nowhere/x",))


async def test_a_channel_that_ignores_its_end_is_killed() -> None:
    channel = await LocalTransport(LocalOptions(close_grace_ms=100)).open(("/bin/sh", "-c", "echo up; exec sleep 1000"))
    assert await channel.read() == b"up\n"
    await channel.close()
    assert await channel.wait_closed() == -signal.SIGKILL
