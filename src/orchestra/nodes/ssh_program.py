"""One program on a node, over one SSH channel.

The user's login shell gets one line, whatever shell it is: sh, zsh, csh and fish agree on `exec /bin/sh -c '...' '...'` as long as nothing between the
quotes is a quote, a backslash before one, a newline or `!`. So the script for /bin/sh is written for `printf`, with octal numbers for all of these.
Start-up files may print before our script runs. It prints a mark and its pid first; everything before that line is dropped.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shlex
import signal
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import asyncssh

from orchestra.errors import NodeFailed, NodeUnreachable
from orchestra.nodes.ssh_config import SshOptions
from orchestra.nodes.transport import REAP_MS, within

NOISE_BYTES_MAX: Final = 256 << 10
NOISE_SHOWN: Final = 300
OPEN_TRIES: Final = 5
FORGET: Final = "unset TERM SSH_CLIENT SSH_CONNECTION SSH_TTY SSH_AUTH_SOCK SSH_ORIGINAL_COMMAND 2>/dev/null"
"""What says how we came is no business of what runs there, nor of its children that outlive the connection."""
_PLAIN: Final = re.compile(rb"[^A-Za-z0-9 _./:=@,+\"$&|;<>(){}\[\]*?#~^-]")


def shell_line(script: str) -> str:
    """Returns a line for any login shell that has /bin/sh run a script."""
    data = script.encode("utf-8", "surrogateescape")
    plain = _PLAIN.sub(lambda match: b"\\%03o" % match[0][0], data).decode("ascii")
    return f"exec /bin/sh -c 'eval \"$(printf \"$0\")\"' '{plain}'"


STARTED: Final = "read -r stat < /proc/{pid}/stat; set -- ${{stat##*) }}"
"""Puts the kernel's start time of a process into $20, or leaves it unset where there is no /proc."""


def kill_script(pid: int, start: int) -> str:
    """Returns what kills a process and its group, if the pid still is that process.

    A pid alone is not enough: a forced command may run programs in a container, whose pids are other processes' outside. 0 and 1 are never a program of
    ours, and for `kill` their groups are everything.
    """
    if pid <= 1:
        return "exit 0"
    same = f'{{ {STARTED.format(pid=pid)}; }} 2>/dev/null\n[ "${{20:-0}}" = {start} ] || exit 0'
    leads = f'[ "$(ps -o pgid= -p {pid} | tr -d " ")" = {pid} ] || exit 0'
    return f"{same if start else leads}\nkill -9 -{pid} 2>/dev/null || kill -9 {pid}"


class Mark:
    """The line that ends the noise. In the script it is in two parts, so that a shell that shows what it runs does not print it."""

    def __init__(self) -> None:
        self._halves = secrets.token_hex(8), secrets.token_hex(8)
        self.line: Final = re.compile(rf"{self._halves[0]}{self._halves[1]} (\d{{1,10}}) (\d{{1,20}})\r?\n".encode())

    def script(self, argv: Sequence[str]) -> str:
        """Returns the script that prints the mark and becomes the program; pid 0 says that there is none of that name."""
        say = f'echo "{self._halves[0]}""{self._halves[1]}'
        program = shlex.quote(argv[0])
        missing = shlex.quote(f"cannot start {argv[0]}: No such file or directory")
        return (
            f'{FORGET}\ncommand -v {program} >/dev/null 2>&1 || {{ {say} 0 0"; echo {missing} >&2; exit 127; }}\n'
            f'{{ {STARTED.format(pid="$$")}; }} 2>/dev/null\n{say} $$ ${{20:-0}}"\nexec {shlex.join(argv)}'
        )


class Program(asyncssh.SSHClientSession[bytes]):
    """Implements `orchestra.nodes.transport.Channel`.

    Args:
        name: What messages call it.
        on_end: Called once, when the channel no longer takes a place.
        kill: Runs the script that kills the program, over a channel of its own.
        pauses: The program waits when its output is not read; otherwise it is kept whole and too much of it ends the program.
    """

    def __init__(
        self,
        name: str,
        mark: Mark,
        options: SshOptions,
        *,
        on_end: Callable[[], None],
        kill: Callable[[str], Awaitable[None]],
        pauses: bool,
    ) -> None:
        self._name = name
        self._mark = mark
        self._options = options
        self._on_end: Callable[[], None] | None = on_end
        self._kill = kill
        self._pauses = pauses
        self._chan: asyncssh.SSHClientChannel[bytes] | None = None
        self._noise: bytearray | None = bytearray()
        self._out: deque[bytes] = deque()
        self._out_bytes = 0
        self._out_ended = asyncio.Event()
        self._arrived = 0
        self._err = bytearray()
        self._readable = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self._code: int | None = None
        self._pid = 0
        self._start = 0
        self._settled = asyncio.Event()
        self._exited = asyncio.Event()
        self._closed = asyncio.Event()
        self.overflowed = asyncio.Event()
        self.lost = ""
        """Why the connection ended before the program did, if so."""

    # What asyncssh calls.

    def connection_made(self, chan: asyncssh.SSHClientChannel[bytes]) -> None:
        self._chan = chan

    def data_received(self, data: bytes, datatype: asyncssh.DataType) -> None:
        if self.overflowed.is_set():
            return
        self._arrived += len(data)
        if datatype == asyncssh.EXTENDED_DATA_STDERR:
            self._err += data
            del self._err[: -self._options.error_bytes_max]
            return
        if self._noise is not None:
            data = self._past_noise(data)
        if not data:
            return
        self._out.append(data)
        self._out_bytes += len(data)
        self._readable.set()
        if self._pauses and self._out_bytes > self._options.unread_bytes_max and self._chan is not None:
            self._chan.pause_reading()
        elif not self._pauses and self._out_bytes > self._options.output_bytes_max:
            self._out.clear()
            self._out_bytes = 0
            self.overflowed.set()
            self._exited.set()

    def eof_received(self) -> bool:
        self._end_output()
        return True  # the program may still read

    def exit_status_received(self, status: int) -> None:
        self._on_exit(status)

    def exit_signal_received(self, signal: str, core_dumped: bool, msg: str, lang: str) -> None:
        self._on_exit(-_signal_number(signal))

    def connection_lost(self, exc: Exception | None) -> None:
        if not self._exited.is_set():
            self.lost = str(exc) if exc is not None else "the channel was closed"
        self._end_output()
        self._writable.set()
        self._exited.set()
        self._closed.set()
        self.release()

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def _past_noise(self, data: bytes) -> bytes:
        assert self._noise is not None
        self._noise += data
        match = self._mark.line.search(self._noise)
        if match is None:
            if len(self._noise) > NOISE_BYTES_MAX:
                self._settled.set()
                del self._noise[NOISE_BYTES_MAX:]  # it is given up; what still comes is not kept
            return b""
        rest = bytes(self._noise[match.end() :])
        self._noise = None
        self._pid, self._start = int(match[1]), int(match[2])
        self._settled.set()
        return rest

    def _on_exit(self, code: int) -> None:
        self._code = code
        self._writable.set()
        self._exited.set()

    def _end_output(self) -> None:
        self._out_ended.set()
        self._readable.set()
        self._settled.set()

    # What the transport uses.

    def release(self) -> None:
        """Gives the place back; safe to call again."""
        on_end, self._on_end = self._on_end, None
        if on_end is not None:
            on_end()

    async def wait_started(self) -> None:
        """Waits until the noise is over.

        Raises:
            NodeFailed: The program never began.
            NodeUnreachable: The connection ended first.
        """
        await self._settled.wait()
        if self._noise is None:
            return
        if self.lost:
            raise NodeUnreachable(f"the connection ended before {self._name} began: {self.lost}")
        printed = bytes(self._noise[-NOISE_SHOWN:]) or self.errors()[-NOISE_SHOWN:]
        raise NodeFailed(
            f"the login shell did not start {self._name}; it printed {printed.decode('utf-8', 'replace')!r} instead",
            hint="log in there by hand: a start-up file, a forced command or the account's shell stands in the way",
        )

    @property
    def opened(self) -> bool:
        """Whether there is a channel, or was one."""
        return self._chan is not None

    @property
    def missing(self) -> bool:
        """Whether there is no program of that name. Known once it has started."""
        return self._noise is None and self._pid == 0

    def write_eof(self) -> None:
        if self._chan is not None and not self._exited.is_set():
            try:
                self._chan.write_eof()
            except OSError:
                return  # it ended meanwhile

    async def wait_emptied(self) -> None:
        """Waits for the end of the output, or until no more of it comes: a daemon may have inherited the pipes."""
        arrived = -1
        while arrived != self._arrived and not self.overflowed.is_set():
            arrived = self._arrived
            if await within(self._out_ended, self._options.close_grace_ms):
                return

    def taken(self) -> bytes:
        """Returns the output that is here now, and forgets it."""
        data = b"".join(self._out)
        self._out.clear()
        self._out_bytes = 0
        return data

    def drop(self) -> None:
        """Closes the channel of a program that nobody waits for any more; its input and output end with it."""
        if self._chan is not None:
            self._chan.abort()

    async def end(self) -> None:
        """Kills what still runs and closes the channel."""
        chan = self._chan
        if chan is None:
            return
        try:
            if self._pid and self._code is None and not self._closed.is_set():
                await self._kill(kill_script(self._pid, self._start))
                await within(self._closed, self._options.close_grace_ms)
        finally:
            chan.abort()  # unlike its close, this does not wait for a program that takes no input
            await within(self._closed, REAP_MS)

    # What `Channel` asks for.

    async def read(self) -> bytes:
        while not self._out and not self._out_ended.is_set():
            self._readable.clear()
            await self._readable.wait()
        data = self.taken()
        if self._chan is not None and not self._closed.is_set():
            self._chan.resume_reading()
        return data

    def write(self, data: bytes) -> None:
        if self._chan is not None and data and not self._exited.is_set():
            try:
                self._chan.write(data)
            except OSError:
                return  # it ended meanwhile: reading tells of that

    async def drain(self) -> None:
        await self._writable.wait()

    async def close(self) -> None:
        """Ends the program: its input ends first, after the grace its process group is killed."""
        try:
            if self._pauses and self._chan is not None and not self._closed.is_set():
                self._pauses = False
                self._chan.resume_reading()  # the end of the program comes after its output
            self.write_eof()
            await within(self._exited, self._options.close_grace_ms)
        finally:
            await self.end()

    async def wait_closed(self) -> int | None:
        await self._exited.wait()
        return self._code

    def errors(self) -> bytes:
        return bytes(self._err)


def _signal_number(name: str) -> int:
    try:
        return int(signal.Signals[f"SIG{name}"])
    except KeyError:
        return int(signal.SIGKILL)


async def start(connection: asyncssh.SSHClientConnection, program: Program, line: str, options: SshOptions) -> None:
    """Opens the channel of a program.

    A channel that is half open when the caller gives up would take one of the server's places until the connection ends. So the opening goes on
    (it ends with the connection at the latest), and the channel is closed when it is there.
    """
    opening = asyncio.create_task(_open(connection, program, line, options), name="ssh-channel")
    try:
        await asyncio.shield(opening)
    except asyncio.CancelledError:
        opening.add_done_callback(lambda task: _abandon(task, program))
        raise


async def _open(connection: asyncssh.SSHClientConnection, program: Program, line: str, options: SshOptions) -> None:
    """sshd gives a place free a moment after it said that the channel is closed; each try is a round trip later."""
    try:
        for tries_left in reversed(range(OPEN_TRIES)):
            try:
                await connection.create_session(lambda: program, line, encoding=None, window=options.window_bytes)
                return
            except asyncssh.ChannelOpenError:
                if program.opened or not tries_left or connection.is_closed():
                    raise
    except BaseException:
        program.release()
        raise


def _abandon(opening: asyncio.Task[None], program: Program) -> None:
    if not opening.cancelled() and opening.exception() is None:
        program.drop()
