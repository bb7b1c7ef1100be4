"""The run of one plan: reach or host an orchestra, submit, follow, obey Ctrl-C, report, and leave things as they were found.

An orchestra that this run started ends with it (or stays, with --keep). One that somebody else started is only used: neither the end of the
run nor Ctrl-C ends it.
"""

from __future__ import annotations

import asyncio
import os
import shlex
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

from orchestra.edges.cli.brought import bring, show_brought
from orchestra.edges.cli.fleet import DOWN, wait_gone
from orchestra.edges.cli.follow import Follower, make_screen
from orchestra.edges.cli.session import ROOT_DEFAULT, Session
from orchestra.edges.cli.stops import Stops, unless
from orchestra.edges.cli.summary import RunEnd, collect, show_end
from orchestra.errors import BadInput, CoordinatorUnreachable, OrchestraError, Refused
from orchestra.intake.request import InitParams, ScaleParams, ShutdownParams, StatusParams
from orchestra.usecases import AttachParams, MergePlanReply, PlanParams, PlanReply, UseCases, WatchParams

if TYPE_CHECKING:
    from orchestra.edges.cli.connect import Hosted
    from orchestra.intake.planfile import PlanDocument
    from orchestra.settings import Settings

EXIT_FAILED: Final = 1
EXIT_UNFINISHED: Final = 3
CLOSE_SECONDS: Final = 300.0
"""How long the end waits for tasks of other plans."""
POLL_MS: Final = 1000


class Request(NamedTuple):
    """What was asked for; the plan has been read and found sound."""

    path: str
    """As it was written, for messages."""
    text: str
    document: PlanDocument
    directory: str
    agents: int | None
    keep: bool
    attach: bool
    resume: bool
    running: bool
    """A coordinator runs for the root already."""
    merge_into: str | None = None
    """A branch of the user's for the work of the completed plan."""
    strict: bool = False
    """Criteria that no program can check are refused."""


class Reached(NamedTuple):
    """An orchestra this run works with."""

    use_cases: UseCases
    owned: bool
    """This run started it."""
    hosted: Hosted | None
    """It lives in this process."""


async def conduct(session: Session, settings: Settings, request: Request) -> int:
    """Runs the plan; returns the exit code."""
    async with Stops() as stops:
        while True:
            async with reach(session, settings, request) as reached:
                if reached.hosted is not None and await _was_ending(reached.use_cases, reached.hosted):
                    continue  # it was interrupted while it ended; now that it has, a new one takes over
                return await _run(session, request, reached, stops)


@asynccontextmanager
async def reach(session: Session, settings: Settings, request: Request) -> AsyncIterator[Reached]:
    """Gives the running orchestra of the root, or starts one."""
    if not request.running and not request.attach:
        async with session.wiring.host(session.root, settings) as hosted:
            yield Reached(hosted.use_cases, True, hosted)
        return
    if not request.running:
        await session.wiring.start_in_window(session.root, settings)
    async with session.wiring.connect(session.root) as use_cases:
        yield Reached(use_cases, not request.running, None)


async def _was_ending(use_cases: UseCases, hosted: Hosted) -> bool:
    if (await use_cases.status(StatusParams())).status != "draining":
        return False
    await hosted.wait_ended()
    return True


async def _run(session: Session, request: Request, reached: Reached, stops: Stops) -> int:
    try:
        seq = (await reached.use_cases.watch(WatchParams(wait_ms=0))).seq
        reply = await unless(stops.first, _start(session, request, reached.use_cases))
    except OrchestraError:
        await _undo(session, reached)
        raise
    if reply is None:
        await _undo(session, reached)
        say_unfinished(session, request, "it was interrupted before the plan was started")
        return EXIT_UNFINISHED
    return await _follow(session, request, reached, stops, reply, seq)


async def _start(session: Session, request: Request, use_cases: UseCases) -> PlanReply:
    await _prepare(session, request, use_cases)
    reply = await use_cases.submit_plan(PlanParams(request.text, request.path, request.directory, request.resume, request.strict))
    for warning in reply.warnings:
        session.render.note(warning)
    return reply


async def _prepare(session: Session, request: Request, use_cases: UseCases) -> None:
    """Sees to it that there are agents: as many as were asked for, else as the plan says."""
    status = await use_cases.status(StatusParams())
    seq = -1
    while status.status == "initializing":
        seq = (await use_cases.watch(WatchParams(seq, POLL_MS))).seq
        status = await use_cases.status(StatusParams())
    wanted = request.agents
    if status.status in DOWN:
        groups = () if wanted is not None else request.document.agents
        count = wanted if wanted is not None else sum(group.count for group in groups) or None
        session.render.note(f"starting {count} agents" if count else "starting agents")
        await use_cases.init(InitParams(agent_count=wanted, agents=groups))
    elif wanted is not None and wanted > status.agents.total:
        await use_cases.scale(ScaleParams(target_count=wanted))


async def _undo(session: Session, reached: Reached) -> None:
    """Ends what this run started before there was anything to do for it."""
    if not reached.owned:
        return
    if reached.hosted is None:
        await session.wiring.abandon(session.root)
        return
    try:
        await reached.use_cases.shutdown(ShutdownParams(graceful=False, drain_tasks=False, timeout_seconds=CLOSE_SECONDS))
    except (Refused, CoordinatorUnreachable):
        return  # it was never set up, or is gone already
    await reached.hosted.wait_ended()


async def _attach(use_cases: UseCases) -> None:
    argv = (await use_cases.attach(AttachParams())).argv
    try:
        child = await asyncio.create_subprocess_exec(*argv, env=_without_tmux())
    except OSError as exc:
        raise BadInput(f"{argv[0]} cannot be run: {exc.strerror}", hint="`orchestra doctor` looks for what is missing") from exc
    await child.wait()


def _without_tmux() -> dict[str, str]:
    """tmux refuses to show one server's windows inside another's unless it does not know."""
    return {name: value for name, value in os.environ.items() if name != "TMUX"}


async def _follow(session: Session, request: Request, reached: Reached, stops: Stops, reply: PlanReply, seq: int) -> int:
    screen = make_screen(session, reply, seq)
    follower, ending = Follower(reached.use_cases, reply.plan, screen, seq), Ending()
    outcome: RunEnd | OrchestraError | BrokenPipeError
    merged: MergePlanReply | OrchestraError | None = None
    async with asyncio.TaskGroup() as group:
        sides = [group.create_task(_obey(reached, stops, follower)), group.create_task(ending.watch(reached.hosted))]
        try:
            if request.attach:
                await _attach(reached.use_cases)
            with screen:
                finished = await follower.follow(ending.over)
            outcome = await collect(reached.use_cases, reply.plan, follower.last, finished=finished, rehearsal=reply.rehearsal)
            if request.merge_into and outcome.result.exit_code == 0:
                merged = await bring(reached.use_cases, reply.plan, request.merge_into)
            if reached.owned:
                await _close(session, reached, ending, keep=request.keep and finished)
        except OrchestraError as error:
            outcome = error
        except BrokenPipeError as error:
            outcome = error  # nobody reads any more, as after `| head`: end as on a second Ctrl-C
            await _undo(session, reached)
        finally:
            for side in sides:
                side.cancel()
    if isinstance(outcome, Exception):
        raise outcome
    code = _tell(session, request, outcome, follower, stops, ending)
    return code if merged is None or show_brought(session.render, merged) else EXIT_FAILED


def _tell(session: Session, request: Request, end: RunEnd, follower: Follower, stops: Stops, ending: Ending) -> int:
    result = end.result
    show_end(session, end)
    if ending.error is not None:
        session.render.error(ending.error)
    if result.exit_code == EXIT_UNFINISHED and follower.left:
        hint = f"`orchestra status` shows it, `orchestra task cancel {follower.plan}` stops it"
        session.render.error(Refused(f"{request.path} goes on without you", hint=hint))
    elif result.exit_code == EXIT_UNFINISHED:
        say_unfinished(session, request, "it was interrupted" if stops.first.is_set() else "the orchestra ended before it")
    return result.exit_code


class Ending:
    """Notices the end of an orchestra in this process, and why if its coordinator failed."""

    def __init__(self) -> None:
        self.over = asyncio.Event()
        self.error: OrchestraError | None = None

    async def watch(self, hosted: Hosted | None) -> None:
        """Returns when it has ended; at once if it is not in this process."""
        if hosted is None:
            return
        try:
            await hosted.wait_ended()
        except OrchestraError as error:
            self.error = error
        self.over.set()


async def _obey(reached: Reached, stops: Stops, follower: Follower) -> None:
    """The first request to stop lets running tasks finish, the second stops them. A borrowed orchestra is only left."""
    await stops.first.wait()
    if not reached.owned:
        follower.leave()
        return
    follower.say("stopping: running tasks finish; press Ctrl-C again to stop them")
    await _shut_down(reached.use_cases, graceful=True)
    await stops.second.wait()
    follower.say("stopping the running tasks")
    await _shut_down(reached.use_cases, graceful=False)


async def _shut_down(use_cases: UseCases, *, graceful: bool) -> None:
    try:
        await use_cases.shutdown(ShutdownParams(graceful=graceful, drain_tasks=False, timeout_seconds=CLOSE_SECONDS))
    except (Refused, CoordinatorUnreachable):
        return  # it has ended already


async def _close(session: Session, reached: Reached, ending: Ending, *, keep: bool) -> None:
    """Ends the orchestra of this run, or leaves its windows up."""
    if keep and not ending.over.is_set():
        session.render.note("the windows stay up; `orchestra up` takes them over, and `orchestra down` ends them")
        if reached.hosted is not None:
            await reached.hosted.detach()
        return
    if not ending.over.is_set():
        await _shut_down(reached.use_cases, graceful=True)
    if reached.hosted is not None:
        await ending.over.wait()
    else:
        await wait_gone(reached.use_cases, -1)


def say_unfinished(session: Session, request: Request, why: str) -> None:
    """Tells on stderr that the plan is not finished, and how to go on."""
    session.render.error(Refused(f"{request.path} is not finished: {why}", hint=f"go on with `{command_to_resume(session, request.path)}`"))


def command_to_resume(session: Session, path: str) -> str:
    """Returns what to type to go on with a plan."""
    root = [] if str(session.root) == ROOT_DEFAULT else ["--root", str(session.root)]
    return shlex.join(["orchestra", "run", path, "--resume", *root])
