"""From a run to the shapes and words of its pictures: what `dag` and `gantt` laid out, with names, colours and hover texts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import msgspec

from orchestra.quantity import show_ms
from orchestra.reporting import dag, gantt
from orchestra.reporting.figures import STATUS_ORDER, WELL, Figures, attempt_span, ran_ms
from orchestra.reporting.words import clip, one_line, short, sign, tone
from orchestra.views import AttemptView, PlanView, ReportData, TaskView

BARS_MAX: Final = 4000
NAME_CHARS: Final = 16
LANE_CHARS: Final = 15
CHAR_WIDTH: Final = 6.6
"""Width of a letter in a bar, on average, in SVG units."""
LABEL_CHARS_MIN: Final = 6
"""A name cut shorter than this tells nothing."""
BAND_LEFT: Final = 120.0
BAND_WIDTH: Final = 900.0

Values = dict[str, object]


class DagPicture(msgspec.Struct, frozen=True):
    width: float
    height: float
    labelled: bool
    boxes: tuple[Values, ...]
    edges: tuple[dag.Edge, ...]


class GanttPicture(msgspec.Struct, frozen=True):
    width: float
    height: float
    dense: bool
    lanes: tuple[Values, ...]
    bars: tuple[Values, ...]
    ticks: tuple[gantt.Tick, ...]
    going: bool
    stopped: bool
    left_out: int


def number(value: float) -> str:
    """Returns a coordinate as short as SVG needs it: one decimal, and none if that is zero."""
    return f"{value:.1f}".removesuffix(".0")


def shares(sums: Figures) -> list[Values]:
    """Returns the parts of the bar that shows tasks by status."""
    found: list[Values] = []
    x = 0.0
    for status, count in sums.by_status:
        width = 1000 * count / max(1, sums.tasks)
        word = one_line(status.replace("_", " "), 20)
        found.append({"status": one_line(status, 20), "word": word, "count": count, "tone": tone(status), "x": x, "width": width})
        x += width
    return found


def _laid_out(plan: PlanView) -> dag.Dag:
    return dag.lay_out([dag.Node(task.task, task.needs, task.status) for task in plan.tasks], plan.critical_path)


def dag_picture(data: ReportData) -> DagPicture:
    """Returns the drawing of the plan; without boxes if it has too many tasks."""
    drawn = _laid_out(data.plan)
    ran = {detail.task.task: ran_ms(detail, data.plan.now_ms) for detail in data.details}
    boxes = tuple(
        _box(box, task, key, ran.get(task.task, 0)) for key, (box, task) in enumerate(zip(drawn.boxes, data.plan.tasks, strict=False))
    )
    return DagPicture(drawn.width, drawn.height, drawn.labelled, boxes, drawn.edges)


def _box(box: dag.Box, task: TaskView, key: int, ran: int) -> Values:
    took = show_ms(ran) if ran else ""
    tries = f"{task.attempts} tries" if task.attempts > 1 else ""
    word = one_line(task.status.replace("_", " "), 20)
    expected = f"~{show_ms(task.estimate_ms)}" if not took and task.estimate_ms else ""
    return {
        "key": key,
        "x": box.x,
        "y": box.y,
        "width": box.width,
        "height": box.height,
        "radius": 7 if box.height > dag.COMPACT.height else 3,
        "critical": box.critical,
        "tone": tone(task.status),
        "sign": sign(task.status),
        "name": clip(one_line(short(task.task)), NAME_CHARS),
        "more": " · ".join(part for part in (took, tries, expected) if part) or word,
        "title": f"{one_line(task.task, 140)}: {word}\n{one_line(task.description, 160)}",
    }


def band_picture(data: ReportData) -> list[Values]:
    """Returns the summary by depth that stands for the drawing of a large plan; nothing for others."""
    bands = _laid_out(data.plan).bands
    most = max((band.tasks for band in bands), default=1)
    return [_band(band, most, place) for place, band in enumerate(bands)]


def _band(band: dag.Band, most: int, place: int) -> Values:
    order = {status: rank for rank, status in enumerate(STATUS_ORDER)}
    parts: list[Values] = []
    x = BAND_LEFT
    by_status = sorted(band.by_status, key=lambda item: (order.get(item[0], len(order)), item[0]))
    for status, count in by_status:
        width = BAND_WIDTH * count / most
        parts.append({"tone": tone(status), "x": x, "width": width})
        x += width
    steps = (
        f"Step {band.first_layer + 1}" if band.first_layer == band.last_layer else f"Steps {band.first_layer + 1} to {band.last_layer + 1}"
    )
    count_words = ", ".join(f"{count} {one_line(status.replace('_', ' '), 20)}" for status, count in by_status)
    return {"label": steps, "y": place * 24 + 4, "parts": parts, "end": x, "count": f"{band.tasks}", "title": f"{steps}: {count_words}"}


def gantt_picture(data: ReportData, sums: Figures, keys: Mapping[str, int]) -> GanttPicture:
    """Returns the timeline."""
    known = [(detail.task, attempt) for detail in data.details for attempt in detail.attempts]
    drawn = known
    if len(known) > BARS_MAX:
        drawn = sorted(known, key=lambda each: (each[1].outcome in WELL, -_length(each[1], data.plan.now_ms)))[:BARS_MAX]
    pieces = [_piece(place, attempt, data.plan.now_ms) for place, (_, attempt) in enumerate(drawn)]
    laid_out = gantt.lay_out(pieces, sums.begin_ms, sums.end_ms)
    bars = tuple(_bar(bar, *drawn[bar.key], keys, data, laid_out.dense) for bar in laid_out.bars)
    return GanttPicture(
        width=laid_out.width,
        height=laid_out.height,
        dense=laid_out.dense,
        lanes=tuple(_lane(lane, data, laid_out.dense) for lane in laid_out.lanes),
        bars=bars,
        ticks=laid_out.ticks,
        going=any(bar["tone"] == "live" for bar in bars),
        stopped=any(bar["tone"] == "off" for bar in bars),
        left_out=len(known) - len(drawn),
    )


def _length(attempt: AttemptView, now_ms: int) -> int:
    begin, end = attempt_span(attempt, now_ms)
    return end - begin


def _piece(place: int, attempt: AttemptView, now_ms: int) -> gantt.Piece:
    begin, end = attempt_span(attempt, now_ms)
    return gantt.Piece(place, attempt.agent, begin, end, sum(check.duration_ms for check in attempt.checks))


def _lane(lane: gantt.Lane, data: ReportData, dense: bool) -> Values:
    found = next((agent for agent in data.agents if agent.agent == lane.agent), None)
    name = found.name if found is not None and found.name else f"#{lane.agent}"
    title = f"agent #{lane.agent}" if found is None else f"agent #{lane.agent}, {found.kind} on {found.node}"
    row = lane.height / lane.rows
    return {
        "y": lane.y,
        "height": lane.height,
        "text_y": lane.y + row / 2 + (3 if dense else 4),
        "label": clip(one_line(name), LANE_CHARS),
        "title": one_line(title, 160),
    }


def _bar(bar: gantt.Bar, task: TaskView, attempt: AttemptView, keys: Mapping[str, int], data: ReportData, dense: bool) -> Values:
    name = one_line(short(task.task), 60)
    room = int((bar.verify_x - bar.x - 8) / CHAR_WIDTH)
    begin, end = attempt_span(attempt, data.plan.now_ms)
    outcome = one_line(attempt.outcome or attempt.status, 20)
    reason = f": {one_line(attempt.reason, 60)}" if attempt.reason else ""
    return {
        "task": keys.get(task.task, 0),
        "x": bar.x,
        "y": bar.y,
        "width": bar.width,
        "height": bar.height,
        "radius": 1 if dense or bar.width < 6 else 3,
        "verify_x": bar.verify_x,
        "verify_width": bar.verify_width,
        "text_y": bar.y + bar.height / 2 + 4,
        "tone": _bar_tone(attempt),
        "hatched": attempt.outcome not in WELL,
        "label": clip(name, room) if room >= min(len(name), LABEL_CHARS_MIN) and not dense else "",
        "title": f"{name}, attempt {attempt.number}: {outcome}, {show_ms(end - begin)}{reason}",
    }


def _bar_tone(attempt: AttemptView) -> str:
    if attempt.outcome == "":
        return "live" if attempt.status != "ended" else "off"
    return {"done": "good", "stopped": "off"}.get(attempt.outcome, "bad")
