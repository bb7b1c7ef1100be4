"""Starting and reaching a coordinator: in this process, in a tmux window of its own, or over its socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, cast

from orchestra.agents.registry import define
from orchestra.bootstrap.coordinator import Coordinator
from orchestra.bootstrap.gateways import hold_keys
from orchestra.bootstrap.provisioning import provisioner
from orchestra.bootstrap.shelf import open_shelf
from orchestra.bootstrap.wiring import kind_settings, policy, started_in
from orchestra.client import Client
from orchestra.clocks.system import SystemClock
from orchestra.core.model import Lifecycle
from orchestra.errors import (
    BadInput,
    CoordinatorUnreachable,
    IllegalMove,
    LedgerLocked,
    NodeFailed,
    OrchestraError,
    SettingsInvalid,
)
from orchestra.intake.request import InitParams, ShutdownParams, StatusParams
from orchestra.root import Root
from orchestra.secrets import handed
from orchestra.settings import Settings, load, rows
from orchestra.usecases import UseCases

START_TIMEOUT_S: Final = 90.0
"""A coordinator that folds a long ledger on a loaded machine may take its time; a broken one says so much earlier."""
RESTART_PAUSE_S: Final = (0.2, 1.0, 5.0, 15.0, 30.0)
STEADY_S: Final = 300.0
"""A coordinator that ran for so long is no longer the one that fails at once: it is started again as after the first failure."""
FINAL_CODES: Final = (0, 2, 65, 75, 130, 143)
"""Exit codes after which a coordinator is not started again: it ended as asked, or would fail the same way."""
STOP_TIMEOUT_S: Final = 300
CONTROL_SOCKET: Final = "control.sock"
LEFTOVERS_S: Final = 10.0
WINDOW_GONE_S: Final = 10.0
WINDOW_SESSION: Final = "coordinator"
KEYS_PIPE: Final = "keys"
"""By it the keys get from whoever starts a coordinator in its window to the one that supervises it there."""


def load_settings(root: Path, flags: Mapping[str, str]) -> Settings:
    """Returns the settings of a root: defaults, then its file, then `ORCHESTRA_*`, then flags. From then on the agent kinds they define are known.

    Raises:
        SettingsInvalid: Something in them is wrong; the message says where.
    """
    file = Root(root).config
    try:
        text = file.read_text(encoding="utf-8")
    except FileNotFoundError:
        text = None
    except (OSError, UnicodeDecodeError) as exc:
        raise SettingsInvalid(f"{file} cannot be read: {exc}") from exc
    settings = load(text, str(file), os.environ, flags)
    try:
        define(kind_settings(settings))
    except BadInput as error:
        raise SettingsInvalid(error.message, field=error.field, hint=error.hint) from error
    return settings


@asynccontextmanager
async def reach(root: Path) -> AsyncIterator[UseCases]:
    """Opens the running coordinator of a root. Raises CoordinatorUnreachable."""
    async with await Client.connect(Root(root).socket) as client:
        yield cast("UseCases", client)


@asynccontextmanager
async def connect(root: Path) -> AsyncIterator[UseCases]:
    """Opens the running coordinator of a root; if none runs, its ledger for reading. What needs a coordinator then raises
    CoordinatorUnreachable.
    """
    try:
        client = await Client.connect(Root(root).socket)
    except CoordinatorUnreachable:
        shelf = open_shelf(Root(root), load_settings(root, {}))
        if shelf is None:
            raise
        try:
            yield shelf.use_cases
        finally:
            await shelf.close()
        return
    async with client:
        yield cast("UseCases", client)


def coordinator_running(root: Path) -> bool:
    """Tells whether a coordinator answers for this root."""

    async def probe() -> bool:
        try:
            async with reach(root):
                return True
        except CoordinatorUnreachable:
            return False

    return Root(root).exists and asyncio.run(probe())


class Hosted:
    """A coordinator in this process."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._coordinator = coordinator
        self.use_cases: UseCases = coordinator.app

    async def wait_ended(self) -> None:
        """Returns when the orchestra has terminated; raises if the coordinator failed."""
        await self._coordinator.wait_ended()

    async def detach(self) -> None:
        """Lets go of the orchestra: its agents and windows stay. Results of what is over are written first."""
        await self._coordinator.wait_written()
        await self._coordinator.stop()


@asynccontextmanager
async def host(root: Path, settings: Settings) -> AsyncIterator[Hosted]:
    """Runs the coordinator in this process. Leaving lets go of the orchestra; ending it is a use case.

    Keys that its gateway is to have are taken out of this process's environment.

    Raises:
        LedgerLocked: Another coordinator has the root.
    """
    coordinator = Coordinator(Root(root), settings, SystemClock(), hold_keys(settings, Root(root)))
    await coordinator.start()
    try:
        yield Hosted(coordinator)
    finally:
        await coordinator.stop()


async def serve(root: Path, settings: Settings, init: InitParams | None) -> int:
    """Serves until the orchestra has terminated. `init` None: waits for one from outside. Returns the exit code.

    Raises:
        OrchestraError: It could not be set up as asked.
    """
    async with host(root, settings) as hosted:
        signals = asyncio.create_task(_obey_signals(hosted.use_cases))
        ended = asyncio.create_task(_init_and_wait(hosted, init))
        try:
            await asyncio.wait((signals, ended), return_when=asyncio.FIRST_COMPLETED)
            if ended.done():
                ended.result()
        finally:
            signals.cancel()
            ended.cancel()
            await asyncio.gather(signals, ended, return_exceptions=True)
    return 0


async def _init_and_wait(hosted: Hosted, init: InitParams | None) -> None:
    if init is not None:
        with contextlib.suppress(IllegalMove):  # it was up when its coordinator ended, and goes on
            await hosted.use_cases.init(init)
    await hosted.wait_ended()


async def _obey_signals(use_cases: UseCases) -> None:
    """SIGTERM and the first SIGINT let running tasks finish; the second SIGINT stops them. Returns at one when there is nothing to end."""
    loop = asyncio.get_running_loop()
    wanted: asyncio.Queue[int] = asyncio.Queue()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, wanted.put_nowait, number)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)  # its window may go; the orchestra stays
    seen = 0
    try:
        while True:
            await wanted.get()
            seen += 1
            try:
                await use_cases.shutdown(ShutdownParams(graceful=seen == 1, drain_tasks=False, timeout_seconds=STOP_TIMEOUT_S))
            except IllegalMove:
                return
            except OrchestraError:
                continue
    finally:
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            loop.remove_signal_handler(number)


def serve_forever(root: Path, settings: Settings, init: InitParams | None) -> int:
    """Serves in this process; see `serve`."""
    return asyncio.run(serve(root, settings, init))


def supervise(root: Path, settings: Settings, argv: Sequence[str], offered: Path | None) -> int:
    """Runs a coordinator and starts it again when it dies, with growing pauses. Signals are passed on. Returns its last exit code.

    Args:
        root: The orchestra's folder.
        settings: Those of the coordinator, by which its keys are known: they are held here for all that are started.
        argv: What is run.
        offered: A named pipe at which keys are offered.
    """
    keys = hold_keys(settings, Root(root), offered)
    child: subprocess.Popen[bytes] | None = None
    received: list[int] = []

    def pass_on(number: int, frame: object) -> None:
        received.append(number)
        if child is not None and child.poll() is None:
            child.send_signal(number)

    signal.signal(signal.SIGTERM, pass_on)
    signal.signal(signal.SIGINT, pass_on)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    failures = 0
    while True:
        began = time.monotonic()
        with handed.pipe_with(keys) as pipe:
            variables = {**os.environ, handed.FD_VARIABLE: str(pipe)}
            child = subprocess.Popen(list(argv), start_new_session=True, pass_fds=(pipe,), env=variables)
        code = child.wait()
        failures = 0 if time.monotonic() - began >= STEADY_S else failures
        if received or code in FINAL_CODES or failures >= len(RESTART_PAUSE_S) * 4:
            if code == 0:
                _close_own_window()
            return code
        pause = RESTART_PAUSE_S[min(failures, len(RESTART_PAUSE_S) - 1)]
        failures += 1
        with contextlib.suppress(OSError):  # its window may be gone
            sys.stderr.write(f"the coordinator ended with {code}; starting it again in {pause} s\n")
            sys.stderr.flush()
        time.sleep(pause)
        if received:
            return code


def _close_own_window() -> None:
    """Closes the window that `start_in_window` made. It stays open after a failure, so that its last words can be read."""
    server = os.environ.get("TMUX", "").partition(",")[0]
    if Path(server).name == CONTROL_SOCKET and Path(server).parent.name.startswith("orchestra-"):
        subprocess.run(["tmux", "-S", server, "kill-session", "-t", f"={WINDOW_SESSION}"], timeout=10, check=False, capture_output=True)


async def start_in_window(root: Path, settings: Settings) -> None:
    """Starts a supervised coordinator in its own tmux window and waits until it answers. Agents come with an `init` from outside.

    Raises:
        NodeFailed: tmux could not start it, or it ended at once; the message has its last words.
        LedgerLocked: There is one already.
        SettingsInvalid: It could not work with these settings.
    """
    policy(settings)
    provisioner(settings)
    place = Root(root)
    place.prepare()
    with contextlib.suppress(CoordinatorUnreachable):
        async with reach(root):
            raise LedgerLocked(
                f"an orchestra is running for {place.path} already", hint="`orchestra status` shows it, `orchestra down` ends it"
            )
    keys = hold_keys(settings, place)
    tmux = ["tmux", "-S", str(place.runtime_folder() / CONTROL_SOCKET), "-f", "/dev/null"]
    argv = [sys.executable, "-m", "orchestra", "--root", str(place.path), "coordinator", "--supervise"]
    argv += ["--keys", str(place.runtime_folder() / KEYS_PIPE)] if keys else []
    for row in rows(settings):
        if row.origin.startswith("flag"):
            argv += ["--set", f"{row.path}={row.value}"]
    if not settings.tasks.workspace and (here := started_in(settings)):  # its window stands nowhere in particular
        argv += ["--set", f"tasks.workspace={here}"]
    await end_window(root)
    with handed.offered(place.runtime_folder() / KEYS_PIPE, keys) if keys else contextlib.nullcontext():
        window = ("new-session", "-d", "-s", WINDOW_SESSION, "-x", "160", "-y", "48", "-c", "/")
        await _tmux(tmux, *window, *argv, ";", "set-option", "-w", "remain-on-exit", "on")
        try:
            async with asyncio.timeout(START_TIMEOUT_S):
                await _wait_answers(root, tmux)
        except TimeoutError as exc:
            await end_window(root)
            raise NodeFailed(f"the coordinator did not answer within {START_TIMEOUT_S:.0f} s", hint=f"look into {place.logs}") from exc
        except BaseException:
            await asyncio.shield(end_window(root))  # whoever gives up here must not leave one behind that goes on trying
            raise


async def _wait_answers(root: Path, tmux: Sequence[str]) -> None:
    while True:
        with contextlib.suppress(CoordinatorUnreachable):
            async with reach(root) as use_cases:
                await use_cases.status(StatusParams())
                return
        dead = await _tmux(tmux, "display-message", "-p", "-t", f"={WINDOW_SESSION}:", "#{pane_dead}", may_fail=True)
        if dead.strip() != "0":
            said = await _tmux(tmux, "capture-pane", "-p", "-t", f"={WINDOW_SESSION}:", may_fail=True)
            raise NodeFailed(
                f"the coordinator did not start: {' '.join(said.split())[-400:] or 'it said nothing'}", hint="`orchestra doctor`"
            )
        await asyncio.sleep(0.05)


async def end_window(root: Path) -> None:
    """Ends the supervisor in the coordinator's window, if there is one, and its tmux session."""
    tmux = ["tmux", "-S", str(Root(root).runtime_folder() / CONTROL_SOCKET), "-f", "/dev/null"]
    facts = await _tmux(tmux, "display-message", "-p", "-t", f"={WINDOW_SESSION}:", "#{pane_dead} #{pane_pid}", may_fail=True)
    dead, _, pid = facts.strip().partition(" ")
    if dead == "0" and pid.isdigit():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGTERM)
    await _tmux(tmux, "kill-session", "-t", f"={WINDOW_SESSION}", may_fail=True)


async def abandon(root: Path) -> None:
    """Ends a coordinator in its window that was started for something that came to nothing, and what it has started. Waits for its end."""
    tmux = ["tmux", "-S", str(Root(root).runtime_folder() / CONTROL_SOCKET), "-f", "/dev/null"]
    supervisor = await _tmux(tmux, "display-message", "-p", "-t", f"={WINDOW_SESSION}:", "#{pane_pid}", may_fail=True)
    with contextlib.suppress(CoordinatorUnreachable, IllegalMove):
        async with reach(root) as use_cases:
            await use_cases.shutdown(ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=LEFTOVERS_S))
            await _wait_gone(supervisor.strip(), LEFTOVERS_S * 2)
    await end_window(root)
    await _wait_gone(supervisor.strip(), WINDOW_GONE_S)


async def _wait_gone(pid: str, seconds: float) -> None:
    """Waits until a process has ended, for so long at most."""
    deadline = asyncio.get_running_loop().time() + seconds
    with contextlib.suppress(ProcessLookupError):
        while pid.isdigit() and asyncio.get_running_loop().time() < deadline:
            os.kill(int(pid), 0)
            await asyncio.sleep(0.02)


async def end_leftovers(root: Path, settings: Settings) -> bool:
    """Ends what is left of an orchestra whose coordinator is gone: its supervisor, agents and windows. Tells whether there was anything.

    Running attempts are stopped; their tasks go on at the next start.
    """
    place = Root(root)
    if not place.exists:
        return False
    await end_window(root)
    async with host(root, settings) as hosted:
        status = await hosted.use_cases.status(StatusParams())
        if status.status in (Lifecycle.UNINITIALIZED.value, Lifecycle.TERMINATED.value):
            return False
        with contextlib.suppress(IllegalMove):
            await hosted.use_cases.shutdown(ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=LEFTOVERS_S))
        await hosted.wait_ended()
    return True


async def wait_window_gone(root: Path) -> None:
    """Waits, for a moment at most, until the coordinator's own window has closed behind it. One that failed stays, to be read."""
    tmux = ["tmux", "-S", str(Root(root).runtime_folder() / CONTROL_SOCKET), "-f", "/dev/null"]
    deadline = asyncio.get_running_loop().time() + WINDOW_GONE_S
    while asyncio.get_running_loop().time() < deadline:
        if (await _tmux(tmux, "display-message", "-p", "-t", f"={WINDOW_SESSION}:", "#{pane_dead}", may_fail=True)).strip() != "0":
            return
        await asyncio.sleep(0.02)


async def _tmux(command: Sequence[str], *arguments: str, may_fail: bool = False) -> str:
    kept = "SSH_AUTH_SOCK"  # nodes are logged in to with the keys of the user's agent
    environment = {name: value for name, value in os.environ.items() if name == kept or not name.startswith(("TMUX", "SSH_"))}
    process = await asyncio.create_subprocess_exec(
        *command, *arguments, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment
    )
    async with asyncio.timeout(10):
        out, err = await process.communicate()
    if process.returncode and not may_fail:
        raise NodeFailed(
            f"tmux could not start the coordinator: {err.decode(errors='replace').strip()}", hint="is tmux installed? `orchestra doctor`"
        )
    return out.decode(errors="replace") if not process.returncode else ""
