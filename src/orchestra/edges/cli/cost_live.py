"""Spending as it grows: one look after another, drawn in place on a terminal, elsewhere a line each. `lines_of` is pure."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

import msgspec

from orchestra.costviews import BudgetView, CostRow
from orchestra.edges.cli.cost_text import NAMELESS, show_money, used_percent
from orchestra.edges.cli.render import Face, Renderer, one_line
from orchestra.edges.cli.session import Session
from orchestra.errors import CoordinatorUnreachable
from orchestra.projections import rfc3339
from orchestra.quantity import show_usd
from orchestra.spending import cost_of, day_of
from orchestra.usecases import CostParams, Empty, UseCases

if TYPE_CHECKING:
    from rich.console import Console

HOUR_MS: Final = 3_600_000
PACE_MS: Final = 600_000
"""The rate is that of the last ten minutes that were watched: long enough to even out single requests, short enough to show a change."""
BAR_COLUMNS: Final = 30
NAME_COLUMNS: Final = 40


class Look(msgspec.Struct, frozen=True):
    """What is seen at one moment; a line of `--json`."""

    now_ms: int
    source: str
    note: str
    today_usd_micros: int
    all_usd_micros: int
    rate_usd_micros_per_hour: int | None
    """None until there was a second look."""
    requests: int
    """Today."""
    budgets: tuple[BudgetView, ...]
    tasks: tuple[CostRow, ...]
    """The dearest first."""


class Pace:
    """How fast spending grows."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def per_hour(self, now_ms: int, spent: int) -> int | None:
        """Takes note of a look and returns micro-dollars an hour, over the time that is remembered."""
        self._seen.append((now_ms, spent))
        while len(self._seen) > 2 and now_ms - self._seen[0][0] > PACE_MS:
            self._seen.popleft()
        since_ms, before = self._seen[0]
        return None if now_ms <= since_ms else max(0, spent - before) * HOUR_MS // (now_ms - since_ms)


class CostScreen(Protocol):
    """Where looks are shown; entered while there are any."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None, /) -> None: ...

    def draw(self, look: Look) -> None: ...


class LineScreen:
    """A line for each look, or JSON."""

    def __init__(self, render: Renderer) -> None:
        self._render = render

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None

    def draw(self, look: Look) -> None:
        """Shows it."""
        self._render.show(look, lambda: self._render.line(in_one_line(look)))


class LiveScreen:
    """Draws on the terminal, in place; the last look stays."""

    def __init__(self, console: Console | None = None) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = console or Console(highlight=False, markup=False)
        self._live = Live(console=self._console, auto_refresh=False, vertical_overflow="crop")

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._live.stop()

    def draw(self, look: Look) -> None:
        """Shows it."""
        from rich.text import Text

        width, height = self._console.size
        self._live.update(Text("\n".join(lines_of(look, width, height - 1))), refresh=True)


def make_screen(session: Session) -> CostScreen:
    """Returns the screen that suits who reads."""
    render = session.render
    return LiveScreen() if render.face is Face.HUMAN and render.on_terminal else LineScreen(render)


async def follow(session: Session, use_cases: UseCases, screen: CostScreen, interval: float, top: int) -> None:
    """Looks again and again until the orchestra has ended; once, if it has ended already."""
    pace, looked = Pace(), False
    with screen:
        while True:
            try:
                look, live = await take(use_cases, pace, top)
            except CoordinatorUnreachable:
                if not looked:
                    raise
                break
            looked = True
            screen.draw(look)
            if not live:
                break
            await session.pause(interval)
    session.render.note("the orchestra has ended: nothing more is spent")


async def take(use_cases: UseCases, pace: Pace, top: int) -> tuple[Look, bool]:
    """Returns what is seen now, and whether a coordinator runs."""
    days = await use_cases.cost(CostParams("day", compare=False))
    tasks = await use_cases.cost(CostParams("task", limit=top, compare=False))
    budgets = await use_cases.budgets(Empty())
    today = next((row for row in days.rows if row.name == day_of(days.now_ms)), None)
    spent = cost_of(days.total)
    look = Look(
        now_ms=days.now_ms,
        source=days.source,
        note=days.note,
        today_usd_micros=0 if today is None else cost_of(today),
        all_usd_micros=spent,
        rate_usd_micros_per_hour=pace.per_hour(days.now_ms, spent),
        requests=0 if today is None else today.requests,
        budgets=budgets.budgets,
        tasks=tasks.rows,
    )
    return look, days.live


def rate_text(look: Look) -> str:
    """Returns the rate for people."""
    return "-" if look.rate_usd_micros_per_hour is None else show_usd(look.rate_usd_micros_per_hour)


def in_one_line(look: Look) -> str:
    """Returns the look as a line of a log."""
    budgets = [
        f"{each.scope} {each.name} at {used_percent(each.settled_usd_micros, each.budget_usd_micros).text}"
        for each in _fullest(look.budgets)[:3]
    ]
    dearest = [f"{row.name or NAMELESS} {show_usd(cost_of(row))}" for row in look.tasks[:1]]
    parts = [f"today {show_usd(look.today_usd_micros)}", f"{rate_text(look)} an hour", *budgets, *dearest]
    return f"{rfc3339(look.now_ms)}  " + one_line(", ".join(parts))


def _fullest(budgets: Sequence[BudgetView]) -> list[BudgetView]:
    return sorted(budgets, key=lambda each: -(each.settled_usd_micros / (each.budget_usd_micros or 1)))


def bar(used: int, whole: int, columns: int = BAR_COLUMNS) -> str:
    """Returns a bar that is as full as the budget."""
    filled = columns if used >= whole else used * columns // whole
    return "━" * filled + "─" * (columns - filled)


def lines_of(look: Look, width: int, height: int) -> list[str]:
    """Returns the view, fitted into `width` by `height`."""
    head = [
        f"today {show_usd(look.today_usd_micros)}   {rate_text(look)} an hour   {look.requests} requests   in all {show_usd(look.all_usd_micros)}",
        one_line(look.note),
    ]
    budgets = []
    for each in _fullest(look.budgets):
        label = f"{each.scope} {one_line(each.name)}"[:NAME_COLUMNS]
        share = used_percent(each.settled_usd_micros, each.budget_usd_micros).text
        held = f", {show_usd(each.reserved_usd_micros)} reserved" if each.reserved_usd_micros else ""
        spent = f"{show_usd(each.settled_usd_micros)} of {show_usd(each.budget_usd_micros)}{held}"
        budgets.append(f"{label:<{NAME_COLUMNS}} {bar(each.settled_usd_micros, each.budget_usd_micros)} {share:>5}  {spent}")
    tasks = []
    for row in look.tasks:
        name = one_line(row.name or NAMELESS)[:NAME_COLUMNS]
        tasks.append(f"{name:<{NAME_COLUMNS}} {show_money(cost_of(row)):>10}  {row.requests:>6} requests")
    room = max(0, height - len(head))
    shown = budgets[: max(1, room // 2)] if tasks else budgets
    lines = [*head, *shown, *tasks]
    return [line[:width] for line in lines[: max(0, height)]]
