"""Following a plan: its events one after the other, to a screen that suits the reader, until the plan is closed or the orchestra gone."""

from __future__ import annotations

import asyncio
from typing import Final

import msgspec

from orchestra.edges.cli.render import Face
from orchestra.edges.cli.screens import JsonScreen, LineScreen, News, QuietScreen, Screen
from orchestra.edges.cli.session import Session
from orchestra.edges.cli.stops import unless
from orchestra.errors import CoordinatorUnreachable
from orchestra.intake.request import StatusParams
from orchestra.usecases import Empty, PlanNameParams, PlanReply, UseCases, WatchParams, WatchReply
from orchestra.views import PlanView

FRAME_MS: Final = 500
"""How often a live view is drawn anew: a clock that counts seconds looks steady."""
IDLE_MS: Final = 10_000
"""How long one question for events waits where nothing is drawn."""
DRAW_SHARE: Final = 5
"""Asking for a large plan takes long; it is done for at most a fifth of the time."""


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
