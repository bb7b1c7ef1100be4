"""Lays out attempts in time: one lane an agent, one bar an attempt. Pure geometry in SVG units; colours and words are the template's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import msgspec

WIDTH: Final = 1120.0
LABEL_WIDTH: Final = 112.0
AXIS_HEIGHT: Final = 24.0
ROW_HEIGHT: Final = 22.0
ROW_HEIGHT_DENSE: Final = 12.0
DENSE_ROWS: Final = 48
"""With more rows than this they get thinner, so that 200 agents still fit on three screens."""
BAR_MIN: Final = 1.5
"""A bar is at least this wide where there is room, else a short attempt could not be seen at all."""
TICKS_MAX: Final = 10

_SECOND, _MINUTE, _HOUR, _DAY = 1000, 60_000, 3_600_000, 86_400_000
STEPS: Final = (
    *(1, 2, 5, 10, 20, 50, 100, 200, 500),
    *(_SECOND * n for n in (1, 2, 5, 10, 15, 30)),
    *(_MINUTE * n for n in (1, 2, 5, 10, 15, 30)),
    *(_HOUR * n for n in (1, 2, 3, 6, 12)),
    *(_DAY * n for n in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000, 20_000, 50_000, 100_000)),
)
"""Distances between ticks that people read easily, in milliseconds."""


class Piece(msgspec.Struct, frozen=True):
    """One attempt to be laid out; times in UTC milliseconds."""

    key: int
    """What the caller knows it by."""
    agent: int
    begin_ms: int
    end_ms: int
    verify_ms: int = 0
    """How much of its end was verification."""


class Bar(msgspec.Struct, frozen=True):
    """Where one attempt is drawn."""

    key: int
    x: float
    y: float
    width: float
    height: float
    verify_x: float
    verify_width: float


class Lane(msgspec.Struct, frozen=True):
    """Where one agent is drawn. It has more than one row only if attempts overlap, which an agent's own do not."""

    agent: int
    y: float
    height: float
    rows: int


class Tick(msgspec.Struct, frozen=True):
    x: float
    label: str


class Gantt(msgspec.Struct, frozen=True):
    """The whole picture."""

    width: float
    height: float
    left: float
    lanes: tuple[Lane, ...]
    bars: tuple[Bar, ...]
    ticks: tuple[Tick, ...]
    dense: bool


def tick_step(span_ms: int) -> int:
    """Returns the smallest nice step with which at most `TICKS_MAX` steps lie in the span."""
    return next((step for step in STEPS if step * TICKS_MAX >= span_ms), STEPS[-1])


def show_offset(ms: int) -> str:
    """Returns a time since the start, as exact as it is: `0`, `250ms`, `1m 30s`, `2h`, `1d 6h`."""
    parts = [
        (ms // _DAY, "d"),
        (ms % _DAY // _HOUR, "h"),
        (ms % _HOUR // _MINUTE, "m"),
        (ms % _MINUTE // _SECOND, "s"),
        (ms % _SECOND, "ms"),
    ]
    return " ".join(f"{number}{unit}" for number, unit in parts if number) or "0"


def lay_out(pieces: Sequence[Piece], begin_ms: int, end_ms: int) -> Gantt:
    """Returns the picture: agents from top to bottom by number, time from left to right.

    Args:
        pieces: The attempts, in any order; what lies outside of the time shown is cut off.
        begin_ms: Left end of the time shown.
        end_ms: Right end; at least a millisecond later is taken.
    """
    end_ms = max(end_ms, begin_ms + 1)
    rows = {agent: _rows([piece for piece in pieces if piece.agent == agent]) for agent in _agents(pieces)}
    count = sum(len(lane) for lane in rows.values())
    height = ROW_HEIGHT_DENSE if count > DENSE_ROWS else ROW_HEIGHT
    scale = (WIDTH - LABEL_WIDTH) / (end_ms - begin_ms)
    lanes: list[Lane] = []
    bars: list[Bar] = []
    y = AXIS_HEIGHT
    for agent, lane in rows.items():
        lanes.append(Lane(agent, y, height * len(lane), len(lane)))
        for row in lane:
            bars += _bars(row, y, height, begin_ms, end_ms, scale)
            y += height
    return Gantt(WIDTH, y, LABEL_WIDTH, tuple(lanes), tuple(bars), _ticks(begin_ms, end_ms, scale), height < ROW_HEIGHT)


def _agents(pieces: Sequence[Piece]) -> list[int]:
    return sorted({piece.agent for piece in pieces})


def _rows(pieces: Sequence[Piece]) -> list[list[Piece]]:
    """Returns the pieces on as few rows as needed for no two of a row to overlap."""
    rows: list[list[Piece]] = []
    for piece in sorted(pieces, key=lambda each: (each.begin_ms, each.end_ms, each.key)):
        fitting = next((row for row in rows if row[-1].end_ms <= piece.begin_ms), None)
        if fitting is None:
            rows.append([piece])
        else:
            fitting.append(piece)
    return rows


def _bars(row: Sequence[Piece], y: float, height: float, begin_ms: int, end_ms: int, scale: float) -> list[Bar]:
    bars: list[Bar] = []
    gap = height * 0.14
    for place, piece in enumerate(row):
        begin, end = (min(max(at, begin_ms), end_ms) for at in (piece.begin_ms, max(piece.begin_ms, piece.end_ms)))
        following = min(max(row[place + 1].begin_ms, begin_ms), end_ms) if place + 1 < len(row) else end_ms
        x = LABEL_WIDTH + (begin - begin_ms) * scale
        width = max((end - begin) * scale, min(BAR_MIN, (following - begin) * scale))
        verify = min(max(0, piece.verify_ms), end - begin) * scale
        bars.append(Bar(piece.key, x, y + gap, width, height - 2 * gap, x + width - verify, verify))
    return bars


def _ticks(begin_ms: int, end_ms: int, scale: float) -> tuple[Tick, ...]:
    step = tick_step(end_ms - begin_ms)
    return tuple(
        Tick(LABEL_WIDTH + offset * scale, show_offset(offset)) for offset in range(0, end_ms - begin_ms + 1, step)[: TICKS_MAX + 1]
    )
