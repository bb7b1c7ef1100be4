"""Where the progress of a run is shown: nowhere, as JSON, or as lines. The live view is in `live.py`, as it needs rich."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self

import msgspec

from orchestra.edges.cli.render import Renderer, Styled, one_line
from orchestra.edges.cli.task_text import listed
from orchestra.quantity import show_ms
from orchestra.usecases import PlanReply
from orchestra.views import REHEARSAL_NOTICE, PlanView, StatusView


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
        self._tasks = reply.tasks

    def __enter__(self) -> Self:
        verb = "going on with" if self._reply.resumed else "running"
        if self._reply.rehearsal:
            self._render.line(Styled(REHEARSAL_NOTICE, "yellow"))
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
                count = "" if self._reply.resumed else f" ({self._done} of {self._tasks})"  # what was done before is not known here
                return (Styled("done", "green"), f"    {name}{count}")
            case "PlanExtended":
                self._tasks += event["tasks"]
                return (Styled("plan", "cyan"), f"    {name} planned {event['tasks']} tasks")
            case "TaskSentBack":
                self._done -= 1
                return (Styled("back", "yellow"), f"    {name}: refused by {str(event['by']).removeprefix(self._prefix)}")
            case "TaskFailed":
                return (Styled("failed", "red"), f"  {name}: {reason}")
            case "TaskRetryScheduled":
                return (Styled("retry", "yellow"), f"   {name} in {show_ms(max(0, event['ready_ms'] - news.at_ms))}: {reason}")
            case "TaskCancelled":
                return (Styled("skip", "yellow"), f"    {name}: {reason}")
            case "ConflictPredicted":
                other = str(event["other"]).removeprefix(self._prefix)
                return (Styled("clash", "yellow"), f"   {name} and {other} have both changed {listed(tuple(event['paths']))}")
            case "TaskMoved":
                return (Styled("moved", "yellow"), f"   {name}: {one_line(event['warning'])}")
            case "KindLost":
                return (Styled("agents", "red"), f"  {reason}; {event['other']} takes the tasks of {event['kind']}")
            case "KindRecovered" if event.get("was_lost"):
                return (Styled("agents", "green"), f"  {event['kind']} gets new tasks: {reason}")
            case "AttemptLostSight":
                return (Styled("unsure", "yellow"), f"  {name}: {reason}")
            case "AgentLost" | "AgentSuspended":
                return (Styled("agent", "yellow"), f"   #{event['agent']} is lost: {reason}")
            case "NodeLost":
                return (Styled("node", "red"), f"    {event['node']} is lost: {reason}")
            case _:
                return None
