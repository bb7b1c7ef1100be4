"""How programs are started on a node. `LocalTransport` starts them here; `orchestra.nodes.ssh` has one that does it over SSH.

Nothing that uses a transport may assume it is local: no file is opened by path, no pid is signalled, no environment is inherited
on purpose. A program that cannot be started gives code 127, as a shell would, from either kind.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections import deque
from collections.abc import Sequence
from typing import Final, Protocol

import msgspec

from orchestra.errors import BadInput, NodeFailed

MS: Final = 1000
NOT_STARTED: Final = 127
REAP_MS: Final = 2_000
"""How long a killed process may take to go; only one that hangs in the kernel takes longer than a millisecond, and it is left."""


class Completed(msgspec.Struct, frozen=True):
    """What a program left. `code` is negative when a signal ended it; `err` is its last part."""

    code: int
    out: bytes
    err: bytes


class Channel(Protocol):
    """A running program: its input, its output, its end. One reader, any number of writers."""

    async def read(self) -> bytes:
        """Returns what was printed, as soon as there is something; `b""` at the end, again and again."""
        ...

    def write(self, data: bytes) -> None:
        """Queues bytes for the program's input. After its end they are dropped: reading tells of the end."""
        ...

    async def drain(self) -> None:
        """Waits until the queue of unwritten bytes is short."""
        ...

    async def close(self) -> None:
        """Ends the input, and soon the program if that does not. Safe to call again."""
        ...

    async def wait_closed(self) -> int | None:
        """Waits for the program's end and returns its code, None if it was not learned."""
        ...

    def errors(self) -> bytes:
        """Returns the last part of what the program wrote to its error output."""
        ...


class Transport(Protocol):
    """Starts programs on one node."""

    async def open(self, argv: Sequence[str]) -> Channel:
        """Starts a program and returns the channel to it.

        Raises:
            NodeFailed: It could not be started, as far as can be told at once.
            NodeUnreachable: The node cannot be reached.
        """
        ...

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_ms: int) -> Completed:
        """Runs a program to its end.

        Raises:
            TimeoutError: It did not end in time; it was killed.
            NodeFailed: It printed more than the transport keeps.
            NodeUnreachable: The node cannot be reached.
        """
        ...

    def interactive(self, argv: Sequence[str]) -> tuple[str, ...]:
        """Returns what a person's terminal runs here to have `argv` run there, with that terminal as its own."""
        ...

    async def expose(self, port: int) -> int:
        """Makes a port of this machine's loopback reachable on the node's; returns the port there. Ends with the connection.

        Raises:
            NodeFailed: The node does not let us.
        """
        ...

    async def close(self) -> None:
        """Lets go of what reaching the node takes. Opening or running something afterwards reaches it anew."""
        ...


class LocalOptions(msgspec.Struct, frozen=True, kw_only=True):
    """Limits of local programs."""

    unread_bytes_max: int = 1 << 20
    """Output of a channel that nobody has read yet; beyond it the program waits."""
    output_bytes_max: int = 64 << 20
    """Output of a `run`; beyond it the program is killed."""
    error_bytes_max: int = 64 << 10
    close_grace_ms: int = 500
    """How long a program may go on after its input ended; control clients of tmux need a few milliseconds."""


PASS_ENVIRONMENT: Final = ("PATH", "HOME", "USER", "LOGNAME", "LANG", "LC_ALL", "TMPDIR", "TZ")
_ENVIRONMENT_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def clean_argv(argv: Sequence[str], pass_environment: Sequence[str] = PASS_ENVIRONMENT) -> tuple[str, ...]:
    """Returns what runs `argv` in `/` with these variables of its surroundings and no other.

    Keys, agents' tokens and `SSH_*` of whoever starts a long-lived program must not live on in it and in all its children.

    Raises:
        BadInput: A name that is not a variable's.
    """
    for name in pass_environment:
        if _ENVIRONMENT_NAME.fullmatch(name) is None:
            raise BadInput(f"{name[:40]!r} is not the name of a variable", field="pass_environment")
    kept = " ".join(f'${{{name}+"{name}=${name}"}}' for name in pass_environment)
    return ("/bin/sh", "-c", f'cd / && exec env -i {kept} "$@"', "sh", *argv)


class _Child(asyncio.SubprocessProtocol):
    """One child process. It is the channel too."""

    def __init__(self, options: LocalOptions, *, pauses: bool) -> None:
        self._options = options
        self._pauses = pauses
        self._transport: asyncio.SubprocessTransport | None = None
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._out_ended = False
        self._err = bytearray()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.exited = asyncio.Event()
        self.emptied = asyncio.Event()
        self.overflowed = False

    # What asyncio calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.SubprocessTransport)
        self._transport = transport

    def pipe_data_received(self, fd: int, data: bytes) -> None:
        if fd == 2:
            self._err += data
            del self._err[: -self._options.error_bytes_max]
            return
        self._out.append(data)
        self._out_bytes += len(data)
        self._readable.set()
        if self._pauses and self._out_bytes > self._options.unread_bytes_max:
            self._output().pause_reading()
        elif not self._pauses and self._out_bytes > self._options.output_bytes_max:
            self.overflowed = True
            self.kill()

    def pipe_connection_lost(self, fd: int, exc: Exception | None) -> None:
        if fd == 0:
            self._writable.set()
        if fd == 1:
            self._out_ended = True
            self._readable.set()

    def process_exited(self) -> None:
        self._writable.set()
        self.exited.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self._out_ended = True
        self._readable.set()
        self.emptied.set()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    # What the transport's callers use.

    async def read(self) -> bytes:
        while not self._out and not self._out_ended:
            self._readable.clear()
            await self._readable.wait()
        data = self.taken()
        if not self._out_ended:
            self._output().resume_reading()
        return data

    def taken(self) -> bytes:
        """Returns the output that is here now, and forgets it."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    def write(self, data: bytes) -> None:
        pipe = self._input()
        if pipe is not None and not pipe.is_closing():
            pipe.write(data)

    def write_eof(self) -> None:
        pipe = self._input()
        if pipe is not None and not pipe.is_closing():
            pipe.write_eof()

    async def drain(self) -> None:
        await self._writable.wait()

    async def close(self) -> None:
        """Ends the program: its input ends first, after the grace the whole of its session is killed."""
        try:
            self.write_eof()
            await within(self.exited, self._options.close_grace_ms)
        finally:
            await self.end()

    async def wait_closed(self) -> int | None:
        await self.exited.wait()
        return self.code()

    def errors(self) -> bytes:
        return bytes(self._err)

    def code(self) -> int | None:
        return None if self._transport is None else self._transport.get_returncode()

    def kill(self) -> None:
        """Kills the child and its process group, unless it has been reaped and its number may be somebody else's."""
        if self._transport is not None and self._transport.get_returncode() is None:
            try:
                os.killpg(self._transport.get_pid(), signal.SIGKILL)
            except ProcessLookupError:
                return

    async def end(self) -> None:
        """Kills what still runs, waits until it has been reaped, and closes the pipes with what is left in them."""
        self.kill()
        try:
            await within(self.exited, REAP_MS)
        finally:
            if self._transport is not None:
                self._transport.close()

    def _input(self) -> asyncio.WriteTransport | None:
        pipe = None if self._transport is None else self._transport.get_pipe_transport(0)
        return pipe if isinstance(pipe, asyncio.WriteTransport) and not self.exited.is_set() else None

    def _output(self) -> asyncio.ReadTransport:
        assert self._transport is not None
        pipe = self._transport.get_pipe_transport(1)
        assert isinstance(pipe, asyncio.ReadTransport)
        return pipe


async def within(event: asyncio.Event, timeout_ms: int) -> bool:
    """Waits for an event; returns whether it came in time."""
    try:
        async with asyncio.timeout(timeout_ms / MS):
            await event.wait()
    except TimeoutError:
        return False
    return True


class LocalTransport:
    """Programs on this machine, each in a session of its own so that Ctrl-C in the terminal does not reach it."""

    def __init__(self, options: LocalOptions | None = None) -> None:
        self._options = options or LocalOptions()

    async def open(self, argv: Sequence[str]) -> Channel:
        try:
            return await self._spawn(argv, pauses=True)
        except OSError as error:
            raise NodeFailed(f"cannot start {argv[0]}: {error.strerror}") from error

    async def run(self, argv: Sequence[str], *, stdin: bytes = b"", timeout_ms: int) -> Completed:
        try:
            child = await self._spawn(argv, pauses=False)
        except OSError as error:
            return Completed(NOT_STARTED, b"", f"cannot start {argv[0]}: {error.strerror}".encode())
        try:
            async with asyncio.timeout(timeout_ms / MS):
                child.write(stdin)
                child.write_eof()
                code = await child.wait_closed()
            # A daemon may have inherited the pipes: what the program itself wrote is in them already, so their end is not waited for.
            await within(child.emptied, self._options.close_grace_ms)
            if child.overflowed:
                raise NodeFailed(f"{argv[0]} printed more than {self._options.output_bytes_max} bytes")
            return Completed(NOT_STARTED if code is None else code, child.taken(), child.errors())
        finally:
            await child.end()

    def interactive(self, argv: Sequence[str]) -> tuple[str, ...]:
        return tuple(argv)

    async def expose(self, port: int) -> int:
        """It is the same loopback."""
        return port

    async def close(self) -> None:
        """There is nothing to let go of: each program's pipes are its channel's."""

    async def _spawn(self, argv: Sequence[str], *, pauses: bool) -> _Child:
        loop = asyncio.get_running_loop()
        _, child = await loop.subprocess_exec(
            lambda: _Child(self._options, pauses=pauses),
            *argv,
            start_new_session=True,
        )
        return child
