"""One tmux server of ours on a node, driven over one control-mode client.

Theory of operation. The server lives on a private socket with a configuration of ours and outlives every client. `connect_server` finds or
starts it and attaches one control client to the `keeper` session, which exists only to be attached to. Commands are written as lines,
many in flight, and answered in order; a task that is cancelled leaves its answer to be dropped. When the server stays silent for
`command_timeout_ms` while an answer is due, the channel is closed, that command fails with `TmuxTimeout`, all others with `TmuxGone`.

Identity. Which agent a pane belongs to is a user option of the pane: it survives renaming, moving and splitting the window. Windows
take the agent's number as their index where it is free, for people; nothing relies on it.

News. A subscription names the dead panes, compared by tmux once a second: news of a death may be a second late. A `pane-died` hook is
prompt, but in 3.3a it can reach a control client only by printing lines that no guard encloses, and one client only.
"""

from __future__ import annotations

import asyncio
import re
import secrets
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from types import TracebackType
from typing import Final, Literal, Self
from weakref import WeakValueDictionary

import msgspec

from orchestra.errors import BadInput, NodeFailed, PaneUnknown, PortFailed, ProtocolBroken, TmuxFailed, TmuxGone, TmuxTimeout
from orchestra.ids import check_name
from orchestra.nodes.transport import MS, NOT_STARTED, PASS_ENVIRONMENT, Channel, Completed, Transport, clean_argv
from orchestra.protocol.tmux_control import (
    HOLDER_SCRIPT,
    KILL_SCRIPT,
    START_SCRIPT,
    ControlParser,
    Exit,
    Notification,
    PaneFacts,
    Reply,
    WindowOrder,
    check_pane_id,
    check_path,
    check_window_id,
    command_line,
    configuration,
    pane_format,
    parse_panes,
    pasteable,
    window_command,
)

__all__ = ["Connection", "PaneFacts", "ServerId", "TmuxEvent", "TmuxOptions", "TmuxServer", "WindowFacts", "WindowOrder"]

IDENTITY: Final = "@orchestra_agent"
_ABSENT: Final = re.compile("no server running|No such file or directory|Connection refused|server exited|lost server")
DEAD_PANES: Final = "#{S:#{W:#{P:#{?pane_dead,#{pane_id} ,}}}}"
ABOUT: Final = "Each window is one agent. Ctrl-b w: choose a window. Ctrl-b d: leave, everything goes on. The mouse works."


class TmuxOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits and looks of one server."""

    tmux: str = "tmux"
    keeper: str = "orchestra-keeper"
    """Session that our own client is attached to."""
    command_timeout_ms: int = 10_000
    """Silence of the server while an answer is due. A round trip takes under 1 ms; starting 256 programs on a busy node, seconds."""
    connect_timeout_ms: int = 15_000
    probe_timeout_ms: int = 3_000
    in_flight_max: int = 256
    """Commands one caller has under way; even, so that pairs stay together. A chunk of answers then fits the buffers on the way."""
    text_bytes_max: int = 1 << 20
    """Longest pasted text; more belongs into a file."""
    events_max: int = 4_096
    """Hints kept for a listener that is slow: several a window of the largest fleet."""
    history_lines: int = 2_000
    """Scrollback a pane. At 200 columns and 200 panes this is up to 0.5 GB when all of it is full; typically a tenth."""
    columns: int = 200
    rows: int = 50
    pass_environment: tuple[str, ...] = PASS_ENVIRONMENT
    """Variables of the node's login that the server, and so every window, gets."""


class ServerId(msgspec.Struct, frozen=True):
    """Which server process: pid, and its start in seconds since 1970 as the server tells it."""

    pid: int
    started: int


class Connection(msgspec.Struct, frozen=True):
    """What `connect_server` found. `is_new`: not the server known before, so every earlier window is gone."""

    server: ServerId
    version: str
    is_new: bool


class WindowFacts(msgspec.Struct, frozen=True):
    """A window that was made."""

    agent: int
    window_id: str
    pane_id: str
    pid: int


class TmuxEvent(msgspec.Struct, frozen=True):
    """A hint to look again. `gone`: channel or server ended. `missed`: hints were dropped because nobody took them."""

    kind: Literal["pane-died", "window-closed", "gone", "missed"]
    id: str = ""


class _Control:
    """One attached control client: lines out, answers in the same order."""

    def __init__(
        self, channel: Channel, options: TmuxOptions, on_notification: Callable[[Notification], None], on_end: Callable[[], None]
    ) -> None:
        self._channel = channel
        self._options = options
        self._on_notification = on_notification
        self._on_end = on_end
        self._due: deque[asyncio.Future[Reply | None]] = deque()
        self._answered = 0
        self._end = ""
        self._attached = asyncio.Event()
        self._reader = asyncio.create_task(self._read(), name="tmux-control")

    @property
    def open(self) -> bool:
        return not self._end

    async def wait_attached(self) -> None:
        """Waits until commands have a session to stand in; a line that comes sooner finds no current client."""
        try:
            async with asyncio.timeout(self._options.command_timeout_ms / MS):
                await self._attached.wait()
        except TimeoutError as late:
            raise self._silence() from late

    async def send(self, commands: Sequence[Sequence[str]]) -> list[Reply]:
        """Sends commands and returns their answers. Nothing of another caller comes between two commands of one chunk."""
        lines = [command_line(command) for command in commands]
        replies: list[Reply] = []
        for start in range(0, len(lines), self._options.in_flight_max):
            chunk = lines[start : start + self._options.in_flight_max]
            if self._end:
                raise self._gone()
            loop = asyncio.get_running_loop()
            futures: list[asyncio.Future[Reply | None]] = [loop.create_future() for _ in chunk]
            self._due.extend(futures)
            self._channel.write(b"".join(chunk))
            replies.extend([await self._answer(future) for future in futures])
        return replies

    async def _answer(self, future: asyncio.Future[Reply | None]) -> Reply:
        while not future.done():
            answered = self._answered
            await asyncio.wait([future], timeout=self._options.command_timeout_ms / MS)
            if not future.done() and self._answered == answered:
                self._finish("the channel was closed after a timeout")
                await self.close()
                raise self._silence()
        reply = future.result()
        if reply is None:
            raise self._gone()
        return reply

    def _silence(self) -> TmuxTimeout:
        waited = self._options.command_timeout_ms
        return TmuxTimeout(f"tmux gave no answer for {waited} ms", hint="probe it; a wedged server needs a rebuild")

    def _gone(self) -> TmuxGone:
        return TmuxGone(f"tmux is gone: {self._end}", hint="connect again; what ran in windows may be gone with them")

    async def _read(self) -> None:
        parser = ControlParser()
        end = "the control client ended"
        try:
            while data := await self._channel.read():
                for message in parser.feed(data):
                    match message:
                        case Reply(ours=True) if self._due:
                            self._answered += 1
                            future = self._due.popleft()
                            if not future.done():
                                future.set_result(message)
                        case Reply():
                            pass
                        case Notification():
                            if message.name == "session-changed":
                                self._attached.set()
                            self._on_notification(message)
                        case Exit():
                            end = message.reason or "the server let us go"
        except (ProtocolBroken, PortFailed) as error:
            end = error.message
        finally:
            self._finish(f"{end} {_text(self._channel.errors())[-200:]}".rstrip())

    def _finish(self, reason: str, *, tell: bool = True) -> None:
        if not self._end:
            self._end = reason
            for future in self._due:
                if not future.done():
                    future.set_result(None)
            self._due.clear()
            self._attached.set()
            if tell:
                self._on_end()

    async def close(self) -> None:
        """Ends the client, which is no news to whoever asked for it; the server stays."""
        self._finish("the channel was closed", tell=False)
        await self._channel.close()
        await asyncio.wait([self._reader])


class TmuxServer:
    """Windows on one node. Made without I/O; `connect_server` first, `disconnect` at the end (or `async with`).

    Raises:
        BadInput: `socket` or `config` is not a plain absolute path, or the socket's is too long for the kernel.
    """

    def __init__(self, transport: Transport, socket: str, config: str, options: TmuxOptions | None = None) -> None:
        self._transport = transport
        self._socket = check_path(socket, field="socket")
        self._config = check_path(config, field="config")
        self._options = options or TmuxOptions()
        self._control: _Control | None = None
        self._connecting = asyncio.Lock()
        self._known: ServerId | None = None
        self._dead: frozenset[str] = frozenset()
        self._events: deque[TmuxEvent] = deque()
        self._news = asyncio.Event()
        self._pane_locks: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    @property
    def connected(self) -> bool:
        """Whether a control channel is open; after `TmuxTimeout` or `TmuxGone` it is not, though the server may be well."""
        return self._control is not None and self._control.open

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self.disconnect()

    # --- the server --------------------------------------------------------------------------------------------------

    async def connect_server(self, known: ServerId | None = None) -> Connection:
        """Attaches to the server, starting it if there is none; again after it was lost.

        Args:
            known: The server an earlier process of ours was connected to, if that was written down.

        Raises:
            TmuxTimeout: The server is there and does not answer: `rebuild` is for that.
            TmuxGone: It ended in the meantime.
            TmuxFailed: tmux is missing, too old, or refused.
        """
        async with self._connecting:
            await self._close_control()
            started = await self._start()
            self._dead = frozenset()
            argv = self._tmux_argv("-C", "attach-session", "-f", "no-output,ignore-size", "-t", f"={self._options.keeper}")
            try:
                program = await self._transport.open(argv)
            except NodeFailed as failed:
                raise TmuxFailed(f"no control client could be started: {failed.message}") from failed
            self._control = _Control(program, self._options, self._on_notification, self._on_end)
            try:
                await self._control.wait_attached()
                return await self._introduce(known or self._known, started=started)
            except BaseException:
                await self._close_control()
                raise

    async def _start(self) -> bool:
        options = self._options
        words = (self._socket, self._config, options.keeper, str(options.columns), str(options.rows), options.tmux)
        config = configuration(history_lines=options.history_lines, columns=options.columns, rows=options.rows)
        done = await self._run(clean_argv(("/bin/sh", "-c", START_SCRIPT, "sh", *words), options.pass_environment), config.encode())
        if done.code != 0:
            hint = "install tmux 3.2 or newer there" if done.code == NOT_STARTED else ""
            raise TmuxFailed(f"the tmux server could not be started: {_text(done.err)[-300:] or f'code {done.code}'}", hint=hint)
        return b"started" in done.out

    async def _introduce(self, known: ServerId | None, *, started: bool) -> Connection:
        subscribe = ("refresh-client", "-B", f"dead::{DEAD_PANES}")
        answers = await self._ask([subscribe, ("display-message", "-p", "#{pid} #{start_time} #{version}")])
        pid, start_time, version = "".join(answers[-1].lines).split(" ")
        server = ServerId(int(pid), int(start_time))
        self._known = server
        return Connection(server, version, is_new=started if known is None else server != known)

    async def disconnect(self) -> None:
        """Lets the server go; it and its windows stay. Safe to call again."""
        async with self._connecting:
            await self._close_control()

    async def _close_control(self) -> None:
        control, self._control = self._control, None
        if control is not None:
            await control.close()

    async def probe(self) -> Literal["ok", "wedged", "gone"]:
        """Asks the server for a sign of life over a connection of its own.

        Raises:
            TmuxFailed: tmux is missing, of another version than the server, or not allowed to connect.
            NodeUnreachable: The node itself cannot be asked.
        """
        try:
            done = await self._run(self._tmux_argv("show-options", "-s", "exit-empty"), timeout_ms=self._options.probe_timeout_ms)
        except TmuxTimeout:
            return "wedged"
        if done.code == 0:
            return "ok"
        if done.code != NOT_STARTED and _ABSENT.search(_text(done.err)) is not None:
            return "gone"
        raise TmuxFailed(f"tmux cannot be asked: {_text(done.err)[-300:] or f'code {done.code}'}")

    async def rebuild(self) -> Connection:
        """Replaces a wedged server by a new one; one that is well is only connected to.

        What is killed is the process that listens on our socket, checked again by pid and start time in the moment before.

        Raises:
            TmuxFailed: That process could not be told, or is not tmux. Linux only.
        """
        state = await self.probe()
        await self.disconnect()
        if state == "wedged":
            pid, start = await self._holder()
            done = await self._run(("/bin/sh", "-c", KILL_SCRIPT, "sh", self._socket, pid, start))
            if done.code != 0:
                raise TmuxFailed(f"the wedged tmux server {pid} could not be ended: {_text(done.err)[-300:]}")
        return await self.connect_server()

    async def _holder(self) -> tuple[str, str]:
        done = await self._run(("/bin/sh", "-c", HOLDER_SCRIPT, "sh", self._socket))
        found = [line.split(" ") for line in _text(done.out).splitlines()]
        servers = [(words[0], words[1]) for words in found if len(words) >= 3 and words[2].startswith("tmux")]
        mine = [each for each in servers if self._known is not None and each[0] == str(self._known.pid)]
        if len(mine or servers) != 1:
            raise TmuxFailed(f"cannot tell which process listens on {self._socket}", hint="end the tmux server there by hand")
        return (mine or servers)[0]

    async def kill_server(self) -> None:
        """Ends the server on our socket and every window; no server is fine too.

        Raises:
            TmuxTimeout: It does not answer.
        """
        await self.disconnect()
        done = await self._run(self._tmux_argv("kill-server"))
        if done.code != 0 and await self.probe() != "gone":
            raise TmuxFailed(f"the tmux server did not end: {_text(done.err)[-300:]}")

    # --- sessions and windows ----------------------------------------------------------------------------------------

    async def session_names(self) -> tuple[str, ...]:
        """Returns all sessions of the server but the one we are attached to."""
        (reply,) = await self._ask([("list-sessions", "-F", "#{session_name}")])
        return tuple(name for name in reply.lines if name != self._options.keeper)

    async def create_session(self, name: str) -> None:
        """Makes a session with one window at index 0 that tells a person what this is.

        Raises:
            TmuxFailed: There is one of that name.
        """
        check_name(name, field="session")
        if "." in name:
            raise BadInput("tmux turns '.' in a session name into '_'", field="session")
        size = ("-x", str(self._options.columns), "-y", str(self._options.rows))
        text = ("/bin/sh", "-c", 'printf "%s\\n" "$1"; exec cat', "sh", ABOUT)
        await self._ask([("new-session", "-d", "-s", name, "-n", "about", "-c", "/", *size, "--", *text)])

    async def create_windows(self, session: str, orders: Sequence[WindowOrder]) -> tuple[WindowFacts, ...]:
        """Makes windows, all commands in flight together, and marks each with its agent. In the order of `orders`.

        Raises:
            TmuxFailed: Some could not be made; the others were, marked.
        """
        check_name(session, field="session")
        replies = await self._send([window_command(f"={session}:{order.agent}", order) for order in orders])
        taken = [at for at, reply in enumerate(replies) if not reply.ok and "in use" in "".join(reply.lines)]
        again = await self._send([window_command(f"={session}:", orders[at]) for at in taken])
        for at, reply in zip(taken, again, strict=True):
            replies[at] = reply
        made: list[WindowFacts] = []
        failed: list[str] = []
        for order, reply in zip(orders, replies, strict=True):
            if reply.ok:
                window_id, pane_id, pid = "".join(reply.lines).split(" ")
                made.append(WindowFacts(order.agent, window_id, pane_id, int(pid)))
            else:
                failed.append(f"#{order.agent}: {' '.join(reply.lines)[:200]}")
        marks = await self._send([("set-option", "-p", "-t", window.pane_id, IDENTITY, str(window.agent)) for window in made])
        failed += [f"#{window.agent}: {' '.join(mark.lines)[:200]}" for window, mark in zip(made, marks, strict=True) if not mark.ok]
        if failed:
            raise TmuxFailed(f"{len(failed)} of {len(orders)} windows could not be made, the first {failed[0]}")
        return tuple(made)

    async def list_panes(self) -> tuple[PaneFacts, ...]:
        """Returns every pane of every session, also those that are nobody's agent, each once."""
        mark = secrets.token_hex(8)
        (reply,) = await self._ask([("list-panes", "-a", "-F", pane_format(mark, IDENTITY))])
        panes = parse_panes(reply.lines, mark)
        if any(pane.dead and pane.dead_status is None and pane.dead_signal is None for pane in panes):
            # A 3.3a server now and then misses that a child ended, for good, until the next one does (seen in 4 of 300): give it one.
            await self._send([("run-shell", "-b", "true")])
        return panes

    async def kill_window(self, window_id: str) -> None:
        """Raises: PaneUnknown: It names nothing (any more)."""
        await self._ask([("kill-window", "-t", check_window_id(window_id))])

    def attach_argv(self, session: str, window_id: str | None = None) -> tuple[str, ...]:
        """Returns what a person runs on the node to see a session, or one window of it, and to type there."""
        target = f"={check_name(session, field='session')}"
        show = () if window_id is None else (";", "select-window", "-t", check_window_id(window_id))
        return (self._options.tmux, "-u", "-S", self._socket, "attach-session", "-t", target, *show)

    # --- screens and typing ------------------------------------------------------------------------------------------

    async def capture(self, pane_ids: Sequence[str], lines: int | None = None, escapes: bool = False) -> dict[str, str]:
        """Returns what panes show, without blank lines at the end. Panes that are gone are left out.

        Args:
            lines: That many lines of history as well.
            escapes: Keep colours and attributes as escape sequences.

        Raises:
            PaneUnknown: An id is malformed, or none of the panes exists.
        """
        how = (("-e",) if escapes else ()) + (() if lines is None else ("-S", str(-max(0, lines))))
        proof = secrets.token_hex(16)
        commands: list[tuple[str, ...]] = []
        for pane_id in pane_ids:
            commands += [("capture-pane", "-p", *how, "-t", check_pane_id(pane_id)), ("display-message", "-p", proof)]
        replies = await self._send(commands)
        if any(reply.lines != (proof,) for reply in replies[1::2]):
            await self._close_control()
            self._on_end()
            raise TmuxGone("a pane printed what looks like an answer of tmux; the channel was closed", hint="connect again")
        texts = {pane_id: "\n".join(reply.lines).rstrip("\n") for pane_id, reply in zip(pane_ids, replies[::2], strict=True) if reply.ok}
        if pane_ids and not texts:
            raise _refusal("capture-pane", replies[0])
        return texts

    async def type_text(self, pane_id: str, text: str, enter: bool) -> None:
        """Pastes text into a pane as a person would; see `broadcast`.

        Raises:
            PaneUnknown: It names nothing (any more).
        """
        if await self.broadcast([pane_id], text, enter):
            raise PaneUnknown(f"there is no pane {pane_id}")

    async def broadcast(self, pane_ids: Sequence[str], text: str, enter: bool) -> tuple[str, ...]:
        """Pastes one text into many panes and returns the ids of those that are gone.

        Control characters are dropped, so that nothing ends the paste early; the program gets it bracketed if it asked for that. With
        `enter`, newlines at the end are dropped and Enter follows once the paste has arrived, as a write of its own. Nothing else is
        written to these panes in between. A program that reads whole lines gets at most 4096 bytes of each: the terminal's own limit.

        Raises:
            BadInput: The text is longer than `text_bytes_max`, or not text.
            PaneUnknown: An id is malformed.
        """
        clean = pasteable(text).rstrip("\n") if enter else pasteable(text)
        if len(clean.encode("utf-8", "replace")) > self._options.text_bytes_max:
            raise BadInput(f"text is longer than {self._options.text_bytes_max} bytes", field="text", hint="hand it over as a file")
        targets = sorted({check_pane_id(pane_id) for pane_id in pane_ids})
        async with AsyncExitStack() as held:
            for pane_id in targets:  # sorted, so that two broadcasts cannot wait for each other
                await held.enter_async_context(self._pane_lock(pane_id))
            gone = await self._paste(targets, clean) if clean else frozenset[str]()
            if enter:
                there = [pane_id for pane_id in targets if pane_id not in gone]
                replies = await self._send([("send-keys", "-t", pane_id, "--", "Enter") for pane_id in there])
                gone |= _gone(there, replies)
        return tuple(sorted(gone))

    async def _paste(self, pane_ids: Sequence[str], text: str) -> frozenset[str]:
        buffer = f"orchestra-{secrets.token_hex(8)}"
        quits = [("copy-mode", "-q", "-t", pane_id) for pane_id in pane_ids]
        pastes = [("paste-buffer", "-p", "-r", "-b", buffer, "-t", pane_id) for pane_id in pane_ids]
        replies = await self._send([("set-buffer", "-b", buffer, "--", text), *quits, *pastes, ("delete-buffer", "-b", buffer)])
        if not replies[0].ok:
            raise _refusal("set-buffer", replies[0])
        return _gone(pane_ids, replies[1 + len(quits) : -1])

    def _pane_lock(self, pane_id: str) -> asyncio.Lock:
        return self._pane_locks.setdefault(pane_id, asyncio.Lock())

    # --- news --------------------------------------------------------------------------------------------------------

    async def events(self) -> AsyncIterator[TmuxEvent]:
        """Yields hints as they come, across reconnections, for one listener. After connecting, every dead pane is named again."""
        while True:
            while self._events:
                yield self._events.popleft()
            self._news.clear()
            await self._news.wait()

    def _tell(self, event: TmuxEvent) -> None:
        if len(self._events) >= self._options.events_max:
            self._events.clear()
            self._events.append(TmuxEvent("missed"))
        self._events.append(event)
        self._news.set()

    def _on_notification(self, notification: Notification) -> None:
        if notification.name in ("window-close", "unlinked-window-close"):
            self._tell(TmuxEvent("window-closed", notification.args.split(" ")[0]))
        elif notification.name == "subscription-changed" and notification.args.startswith("dead "):
            dead = frozenset(notification.args.partition(" : ")[2].split())
            for pane_id in sorted(dead - self._dead):
                self._tell(TmuxEvent("pane-died", pane_id))
            self._dead = dead

    def _on_end(self) -> None:
        self._tell(TmuxEvent("gone"))

    # --- commands ----------------------------------------------------------------------------------------------------

    async def _send(self, commands: Sequence[Sequence[str]]) -> list[Reply]:
        if self._control is None:
            raise TmuxGone("not connected to tmux", hint="connect_server first")
        return await self._control.send(commands)

    async def _ask(self, commands: Sequence[Sequence[str]]) -> list[Reply]:
        """Sends commands none of which may be refused."""
        replies = await self._send(commands)
        for command, reply in zip(commands, replies, strict=True):
            if not reply.ok:
                raise _refusal(command[0], reply)
        return replies

    async def _run(self, argv: Sequence[str], stdin: bytes = b"", *, timeout_ms: int | None = None) -> Completed:
        limit = timeout_ms or self._options.connect_timeout_ms
        try:
            return await self._transport.run(argv, stdin=stdin, timeout_ms=limit)
        except TimeoutError as late:
            raise TmuxTimeout(
                f"tmux on {self._socket} gave no answer for {limit} ms", hint="probe it; a wedged server needs a rebuild"
            ) from late

    def _tmux_argv(self, *words: str) -> tuple[str, ...]:
        tmux = (self._options.tmux, "-u", "-S", self._socket, "-f", self._config)
        return clean_argv((*tmux, *words), self._options.pass_environment)


def _refusal(command: str, reply: Reply) -> TmuxFailed:
    said = " ".join(reply.lines)[:200]
    if "can't find pane" in said or "can't find window" in said:
        return PaneUnknown(f"tmux {command}: {said}", hint="it was closed, or the server is a new one")
    return TmuxFailed(f"tmux refused {command}: {said}")


def _gone(pane_ids: Iterable[str], replies: Iterable[Reply]) -> frozenset[str]:
    """The panes whose command failed. Typing has no other way to fail than that the pane is not there."""
    return frozenset(pane_id for pane_id, reply in zip(pane_ids, replies, strict=True) if not reply.ok)


def _text(output: bytes) -> str:
    return output.decode("utf-8", "replace").strip()
