"""A transport over SSH: one connection a node, many programs over it.

The connection is opened by the first caller, for all who wait, and again when it broke; a caller that finds it broken learns so once and may ask again.
A dead link is noticed after `keepalive_missed_max` + 1 keepalives without an answer, and ends every channel. What runs on the node does not end with the
connection unless it lives by its input or output; a program whose time is over is killed by its process group, over a channel of its own.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Sequence
from typing import Final

import asyncssh

from orchestra.errors import NodeFailed, NodeUnreachable
from orchestra.nodes.ssh_config import SshOptions, SshTarget, interactive_argv, trust_file
from orchestra.nodes.ssh_connect import close_route, offered_host_key, open_route
from orchestra.nodes.ssh_program import Mark, Program, shell_line, start
from orchestra.nodes.ssh_trust import HostKey, add_known_host
from orchestra.nodes.transport import MS, NOT_STARTED, Channel, Completed

__all__ = ["HostKey", "SshOptions", "SshTarget", "SshTransport", "add_known_host", "offered_host_key", "trust_file"]

KILL_MS: Final = 2_000
"""How long the killing of a program may take; a node that does not answer in that time has the keepalive to reckon with."""
KILLS_MAX: Final = 2
LOOPBACK: Final = "127.0.0.1"


class SshTransport:
    """Implements `orchestra.nodes.transport.Transport` for one node. Made without I/O."""

    def __init__(self, target: SshTarget, options: SshOptions | None = None) -> None:
        self._target = target
        self._options = options or SshOptions()
        self._route: list[asyncssh.SSHClientConnection] = []
        self._connecting: asyncio.Task[asyncssh.SSHClientConnection] | None = None
        self._places = asyncio.Semaphore(self._options.channels_max)
        self._killing = asyncio.Semaphore(KILLS_MAX)
        self._exposed: dict[int, tuple[asyncssh.SSHClientConnection, dict[int, asyncssh.SSHListener]]] = {}
        """Port here -> the connection over which it is reachable, and who listens there, by the port asked for."""
        self._exposing = asyncio.Lock()

    async def open(self, argv: Sequence[str]) -> Channel:
        connection = await self._connected()
        program = None
        try:
            async with asyncio.timeout(self._options.start_timeout_ms / MS):
                program = await self._start(connection, argv, pauses=True)
                await program.wait_started()
            if program.missing:
                raise NodeFailed(f"cannot start {argv[0]} on {self._target.label}: there is no such program", hint="install it there")
        except TimeoutError as late:
            await self._end(program)
            waited = self._options.start_timeout_ms // MS
            raise NodeFailed(
                f"{argv[0]} did not begin on {self._target.label} within {waited} s", hint="is that node overloaded?"
            ) from late
        except BaseException:
            await self._end(program)
            raise
        return program

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_ms: int) -> Completed:
        connection = await self._connected()
        program = None
        try:
            async with asyncio.timeout(timeout_ms / MS):
                program = await self._start(connection, argv, pauses=False)
                program.write(stdin)
                program.write_eof()
                await program.wait_started()
                code = await program.wait_closed()
                await program.wait_emptied()
            if program.overflowed.is_set():
                raise NodeFailed(f"{argv[0]} printed more than {self._options.output_bytes_max} bytes on {self._target.label}")
            if code is None:
                raise NodeUnreachable(f"the connection to {self._target.label} ended while {argv[0]} ran: {program.lost}", hint="try again")
            return Completed(NOT_STARTED if program.missing else code, program.taken(), program.errors())
        finally:
            await self._end(program)

    def interactive(self, argv: Sequence[str]) -> tuple[str, ...]:
        return interactive_argv(self._target, self._options, shell_line(f"exec {shlex.join(argv)}"))

    async def expose(self, port: int) -> int:
        """Makes a local port reachable at each of `exposed_ports` that can be had, and returns the first of them.

        They are the same after every connect, as programs that run there go on asking at the port they were told. A connection that broke unseen may hold
        one for a while: whoever wants them all asks again from time to time.
        """
        async with self._exposing:
            connection = await self._connected()
            over, found = self._exposed.get(port, (connection, {}))
            if over is not connection:
                found = {}
            for old in [each for each in self._exposed if each != port]:  # another has taken its place, and takes its ports
                for listener in self._exposed.pop(old)[1].values():
                    listener.close()
            self._exposed[port] = connection, found
            refused = ""
            for wanted in self._options.exposed_ports:
                if wanted in found:
                    continue
                try:
                    async with asyncio.timeout(self._options.start_timeout_ms / MS):
                        found[wanted] = await connection.forward_remote_port(LOOPBACK, wanted, LOOPBACK, port)
                except (TimeoutError, asyncssh.ChannelListenError, asyncssh.Error, OSError) as error:
                    refused = str(error) or type(error).__name__
            there = next((found[wanted].get_port() for wanted in self._options.exposed_ports if wanted in found), None)
            if there is None:
                hint = "its sshd must allow remote forwards (AllowTcpForwarding yes or remote, PermitListen)"
                raise NodeFailed(f"{self._target.label} forwards no port to this machine: {refused}", hint=hint)
            return there

    async def close(self) -> None:
        """Ends the connection and with it every channel."""
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
            await asyncio.wait([connecting])
        route, self._route = self._route, []
        await close_route(route)

    # --- the connection ----------------------------------------------------------------------------------------------

    async def _connected(self) -> asyncssh.SSHClientConnection:
        """Returns the connection, after making it if there is none: once for all who wait, each of whom may give up alone."""
        if self._route and not self._route[-1].is_closed():
            return self._route[-1]
        if self._connecting is None or self._connecting.done():
            self._connecting = asyncio.create_task(self._connect(), name=f"ssh-{self._target.label}")
            self._connecting.add_done_callback(_look_at)
        connecting = self._connecting
        try:
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            current = asyncio.current_task()
            if connecting.cancelled() and current is not None and not current.cancelling():
                raise NodeUnreachable(f"the connection to {self._target.label} was closed while it was made") from None
            raise

    async def _connect(self) -> asyncssh.SSHClientConnection:
        broken, self._route = self._route, []
        await close_route(broken)
        self._route = await open_route(self._target, self._options)
        return self._route[-1]

    # --- programs ----------------------------------------------------------------------------------------------------

    async def _start(self, connection: asyncssh.SSHClientConnection, argv: Sequence[str], *, pauses: bool) -> Program:
        async def kill(script: str) -> None:
            await self._kill(connection, script)

        mark = Mark()
        line = shell_line(mark.script(argv))
        await self._places.acquire()
        program = Program(argv[0], mark, self._options, on_end=self._places.release, kill=kill, pauses=pauses)
        try:
            await start(connection, program, line, self._options)
        except asyncssh.ChannelOpenError as refused:
            if connection.is_closed():
                raise NodeUnreachable(f"the connection to {self._target.label} ended: {refused.reason}", hint="try again") from refused
            raise NodeFailed(
                f"{self._target.label} opened no channel for {argv[0]}: {refused.reason}",
                hint=f"its sshd must allow MaxSessions {self._options.channels_max + 2} or more, and commands (PermitOpen, ForceCommand)",
            ) from refused
        except (asyncssh.Error, OSError) as error:
            raise NodeUnreachable(f"the connection to {self._target.label} ended: {error}", hint="try again") from error
        return program

    async def _end(self, program: Program | None) -> None:
        if program is not None:
            await program.end()

    async def _kill(self, connection: asyncssh.SSHClientConnection, script: str) -> None:
        line = shell_line(script)
        async with self._killing:
            try:
                async with asyncio.timeout(KILL_MS / MS):
                    await connection.run(line, encoding=None, check=False, stdin=asyncssh.DEVNULL)
            except (TimeoutError, asyncssh.Error, OSError):
                return  # closing the channel is what is left to do


def _look_at(connecting: asyncio.Task[asyncssh.SSHClientConnection]) -> None:
    """Takes note of a failure, as everybody who waited for it may have given up."""
    if not connecting.cancelled():
        connecting.exception()
