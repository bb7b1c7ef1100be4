"""Following a plan: its events one after the other, to a screen that suits the reader, until the plan is closed or the orchestra gone."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import msgspec

from orchestra.edges.cli.render import Face, Renderer, Styled, one_line
from orchestra.edges.cli.session import Session
from orchestra.edges.cli.stops import unless
from orchestra.errors import CoordinatorUnreachable
from orchestra.intake.request import StatusParams
from orchestra.quantity import show_ms
from orchestra.usecases import Empty, PlanNameParams, PlanReply, UseCases, WatchParams, WatchReply
from orchestra.views import PlanView, StatusView

FRAME_MS: Final = 500
"""How often a live view is drawn anew: a clock that counts seconds looks steady."""
IDLE_MS: Final = 10_000
"""How long one question for events waits where nothing is drawn."""
DRAW_SHARE: Final = 5
"""Asking for a large plan takes long; it is done for at most a fifth of the time."""


class News(NamedTuple):
    """One event, read."""

    seq: int
    at_ms: int
    raw: msgspec.Raw
    event: dict[str, Any]

    @property
    def kind(self) -> str:
        """Class name of the event."""
        return str(self.event.get("type", ""))


class Screen(Protocol):
    """Where progress is shown; entered while there is any."""

    wants_plan: bool
    """It shows the whole plan, not only events."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...

    def on_news(self, news: Sequence[News]) -> None: ...

    def draw(self, plan: PlanView, status: StatusView) -> None: ...

    def say(self, text: str) -> None: ...


class Follower:
    """Reads events after `seq` and hands them on."""

    def __init__(self, use_cases: UseCases, plan: str, screen: Screen, seq: int) -> None:
        self.plan = plan
        self.last: PlanView | None = None
        """The plan as it was last seen."""
        self.left = False
        """The reader went away; the plan goes on."""
        self._use_cases = use_cases
        self._screen = screen
        self._seq = seq
        self._leaving = asyncio.Event()
        self._draw_at = 0.0

    def say(self, text: str) -> None:
        """Tells the reader something besides the events."""
        self._screen.say(text)

    def leave(self) -> None:
        """Ends the following; the plan goes on."""
        self.left = True
        self._leaving.set()

    async def follow(self, ended: asyncio.Event) -> bool:
        """Returns whether the plan was closed; if not, the orchestra has ended or the reader left."""
        try:
            while True:
                await self._draw()
                reply = await unless(self._leaving, self._watch(ended))
                if reply is None:
                    return await self._closed()
                news = [News(each.seq, each.at_ms, each.event, msgspec.json.decode(each.event)) for each in reply.events]
                self._seq = reply.seq
                self._screen.on_news(news)
                if any(each.kind == "PlanClosed" and each.event["plan"] == self.plan for each in news):
                    return True
                if not news and await self._closed():
                    return True
                if any(each.kind == "Terminated" for each in news):
                    return await self._closed()
        except CoordinatorUnreachable:
            return False

    async def _watch(self, ended: asyncio.Event) -> WatchReply | None:
        wait_ms = FRAME_MS if self._screen.wants_plan else IDLE_MS
        return await unless(ended, self._use_cases.watch(WatchParams(self._seq, wait_ms)))

    async def _closed(self) -> bool:
        plans = (await self._use_cases.plans(Empty())).plans
        return any(line.plan == self.plan and line.status != "running" for line in plans)

    async def _draw(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        if not self._screen.wants_plan or began < self._draw_at:
            return
        self.last = await self._use_cases.plan(PlanNameParams(self.plan))
        self._screen.draw(self.last, await self._use_cases.status(StatusParams()))
        now = loop.time()
        self._draw_at = now + max(FRAME_MS / 1000 / 2, (now - began) * DRAW_SHARE)


def make_screen(session: Session, reply: PlanReply, seq: int) -> Screen:
    """Returns the screen that suits who reads."""
    render = session.render
    if render.face is Face.JSON:
        return JsonScreen(render, reply)
    if render.face is Face.QUIET:
        return QuietScreen(render)
    if render.on_terminal:
        from orchestra.edges.cli.live import LiveScreen

        return LiveScreen()
    return LineScreen(render, reply)


class QuietScreen:
    """Shows nothing."""

    wants_plan = False

    def __init__(self, render: Renderer) -> None:
        self._render = render

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def on_news(self, news: Sequence[News]) -> None:
        return None

    def draw(self, plan: PlanView, status: StatusView) -> None:
        return None

    def say(self, text: str) -> None:
        self._render.note(text)


class JsonScreen(QuietScreen):
    """Every event of the ledger as a line of JSON, between a line about the plan and one about the result."""

    def __init__(self, render: Renderer, reply: PlanReply) -> None:
        super().__init__(render)
        self._reply = reply

    def __enter__(self) -> Self:
        self._render.json({"type": "plan", **msgspec.structs.asdict(self._reply)})
        return self

    def on_news(self, news: Sequence[News]) -> None:
        for each in news:
            self._render.json({"type": "event", "seq": each.seq, "at_ms": each.at_ms, "event": each.raw})


class LineScreen(QuietScreen):
    """A line for each event that a reader of a log wants to see."""

    def __init__(self, render: Renderer, reply: PlanReply) -> None:
        super().__init__(render)
        self._reply = reply
        self._prefix = f"{reply.plan}/"
        self._began_ms = 0
        self._done = 0

    def __enter__(self) -> Self:
        verb = "going on with" if self._reply.resumed else "running"
        self._render.line(f"{verb} {self._reply.plan}: {self._reply.tasks} tasks")
        return self

    def on_news(self, news: Sequence[News]) -> None:
        for each in news:
            self._began_ms = self._began_ms or each.at_ms
            told = self._tell(each)
            if told is not None:
                at = show_ms(max(0, each.at_ms - self._began_ms))
                self._render.line(Styled(f"{at:>8}  ", "dim"), *told)

    def _tell(self, news: News) -> tuple[str | Styled, ...] | None:
        """Returns what to say about an event; None where nothing."""
        event = news.event
        task = str(event.get("task", ""))
        if task and not task.startswith(self._prefix):
            return None
        name = task.removeprefix(self._prefix)
        reason = one_line(str(event.get("reason", "")))
        match news.kind:
            case "AttemptAssigned":
                again = f", attempt {event['attempt']}" if event["attempt"] > 1 else ""
                return (Styled("start", "cyan"), f"   {name} on agent #{event['agent']}{again}")
            case "TaskCompleted":
                self._done += 1
                return (Styled("done", "green"), f"    {name} ({self._done} of {self._reply.tasks})")
            case "TaskFailed":
                return (Styled("failed", "red"), f"  {name}: {reason}")
            case "TaskRetryScheduled":
                return (Styled("retry", "yellow"), f"   {name} in {show_ms(max(0, event['ready_ms'] - news.at_ms))}: {reason}")
            case "TaskCancelled":
                return (Styled("skip", "yellow"), f"    {name}: {reason}")
            case "AttemptLostSight":
                return (Styled("unsure", "yellow"), f"  {name}: {reason}")
            case "AgentLost" | "AgentSuspended":
                return (Styled("agent", "yellow"), f"   #{event['agent']} is lost: {reason}")
            case "NodeLost":
                return (Styled("node", "red"), f"    {event['node']} is lost: {reason}")
            case _:
                return None
