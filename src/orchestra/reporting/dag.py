"""Lays out a plan for a picture: needs to the left of what needs them, few crossings, edges that go round the boxes. Pure geometry.

The classic way in three steps (Sugiyama, Tagawa, Toda 1981): layers by longest path, order within a layer by the mean place of the neighbours,
heights as near to the neighbours' as the order allows. An edge over several layers gets a thin stand-in in each, so that it finds a gap.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Final

import msgspec

LABELLED_MAX: Final = 60
"""Up to so many tasks the boxes carry names."""
DRAWN_MAX: Final = 300
"""Above this a drawing is a tangle; groups say more."""
EDGES_MAX: Final = 1500
STAND_INS_MAX: Final = 800
SWEEPS: Final = 6
BANDS_MAX: Final = 24
MARGIN: Final = 8.0


class Size(msgspec.Struct, frozen=True):
    """Measures of one kind of picture, in SVG units."""

    width: float
    height: float
    gap_x: float
    gap_y: float


LABELLED: Final = Size(140, 38, 44, 12)
COMPACT: Final = Size(22, 14, 34, 6)


class Node(msgspec.Struct, frozen=True):
    """A task to be drawn."""

    task: str
    needs: tuple[str, ...]
    status: str


class Box(msgspec.Struct, frozen=True):
    task: str
    status: str
    layer: int
    x: float
    y: float
    width: float
    height: float
    critical: bool


class Edge(msgspec.Struct, frozen=True):
    need: str
    task: str
    path: str
    """The `d` of an SVG path."""
    critical: bool


class Band(msgspec.Struct, frozen=True):
    """Tasks of one or more neighbouring layers, counted."""

    first_layer: int
    last_layer: int
    tasks: int
    by_status: tuple[tuple[str, int], ...]


class Dag(msgspec.Struct, frozen=True):
    """The picture: boxes and edges, or bands when there are too many tasks to draw."""

    width: float
    height: float
    labelled: bool
    boxes: tuple[Box, ...]
    edges: tuple[Edge, ...]
    bands: tuple[Band, ...]
    layers: int


class _Slot(msgspec.Struct):
    """A task or a stand-in while it is being placed."""

    layer: int
    thick: float
    task: int = -1
    before: list[int] = []
    after: list[int] = []
    y: float = 0.0


def lay_out(nodes: Sequence[Node], critical: Sequence[str] = ()) -> Dag:
    """Returns the picture.

    Args:
        nodes: The tasks, every need before those that need it. Needs that are not among them are left out.
        critical: The critical path, first task first.
    """
    place = {node.task: index for index, node in enumerate(nodes)}
    needs = [[place[need] for need in dict.fromkeys(node.needs) if place.get(need, index) < index] for index, node in enumerate(nodes)]
    layers = _layers(needs)
    if len(nodes) > DRAWN_MAX or sum(map(len, needs)) > EDGES_MAX:
        return Dag(0.0, 0.0, False, (), (), _bands(nodes, layers), max(layers, default=-1) + 1)
    size = LABELLED if len(nodes) <= LABELLED_MAX else COMPACT
    slots, routes = _slots(needs, layers, size)
    columns = _columns(slots)
    _order(slots, columns)
    _straighten(slots, columns, size.gap_y)
    return _drawn(nodes, slots, routes, size, critical)


def _layers(needs: Sequence[Sequence[int]]) -> list[int]:
    depth: list[int] = []
    for own in needs:
        depth.append(1 + max((depth[need] for need in own), default=-1))
    return depth


def _slots(needs: Sequence[Sequence[int]], layers: Sequence[int], size: Size) -> tuple[list[_Slot], dict[tuple[int, int], list[int]]]:
    """Returns a slot for each task, then stand-ins; and the slots each edge goes through, ends included."""
    slots = [_Slot(layer, size.height, index) for index, layer in enumerate(layers)]
    spans = sum(layers[task] - layers[need] - 1 for task, own in enumerate(needs) for need in own)
    routes: dict[tuple[int, int], list[int]] = {}
    for task, own in enumerate(needs):
        for need in own:
            between = range(layers[need] + 1, layers[task]) if spans <= STAND_INS_MAX else ()
            route = [need, *range(len(slots), len(slots) + len(between)), task]
            slots += [_Slot(layer, 2.0) for layer in between]
            for left, right in pairwise(route):
                slots[left].after.append(right)
                slots[right].before.append(left)
            routes[need, task] = route
    return slots, routes


def _columns(slots: Sequence[_Slot]) -> list[list[int]]:
    columns: list[list[int]] = [[] for _ in range(max((slot.layer for slot in slots), default=-1) + 1)]
    for index, slot in enumerate(slots):
        columns[slot.layer].append(index)
    return columns


def _order(slots: Sequence[_Slot], columns: list[list[int]]) -> None:
    """Sorts each column by the mean place of its neighbours, to and fro, and keeps the order with the fewest crossings."""
    best, fewest = [list(column) for column in columns], _crossings(slots, columns)
    for sweep in range(SWEEPS):
        if not fewest:
            break
        forth = sweep % 2 == 0
        for column in columns if forth else reversed(columns):
            rank = {index: place for each in columns for place, index in enumerate(each)}
            column.sort(key=lambda index: _mean(slots[index].before if forth else slots[index].after, rank.__getitem__, rank[index]))
        found = _crossings(slots, columns)
        if found < fewest:
            best, fewest = [list(column) for column in columns], found
    columns[:] = best


def _mean(neighbours: Sequence[int], value: Callable[[int], float], otherwise: float) -> float:
    return sum(map(value, neighbours)) / len(neighbours) if neighbours else otherwise


def _crossings(slots: Sequence[_Slot], columns: Sequence[Sequence[int]]) -> int:
    total = 0
    for left, right in pairwise(columns):
        rank = {index: place for place, index in enumerate(right)}
        ends = [place for index in left for place in sorted(rank[after] for after in slots[index].after if after in rank)]
        total += _inversions(ends, len(right))
    return total


def _inversions(values: Sequence[int], size: int) -> int:
    """Returns how many pairs stand in the wrong order, with a tree of counts (Fenwick): n log n."""
    tree = [0] * (size + 1)
    found = 0
    for seen, value in enumerate(values):
        at, smaller_or_equal = value + 1, 0
        while at:
            smaller_or_equal += tree[at]
            at &= at - 1
        found += seen - smaller_or_equal
        at = value + 1
        while at <= size:
            tree[at] += 1
            at += at & -at
    return found


def _straighten(slots: Sequence[_Slot], columns: Sequence[Sequence[int]], gap: float) -> None:
    """Sets each slot's middle as near to its neighbours' as order and distances allow."""
    for column in columns:
        _settle(slots, column, [0.0] * len(column), gap)
    for sweep in range(SWEEPS + 1):
        forth = sweep % 2 == 0
        for column in columns if forth else reversed(columns):
            wished = [_mean(s.before if forth else s.after, lambda index: slots[index].y, s.y) for s in (slots[index] for index in column)]
            _settle(slots, column, wished, gap)


def _settle(slots: Sequence[_Slot], column: Sequence[int], wished: Sequence[float], gap: float) -> None:
    """Sets the middles of a column: least squares from the wishes, at least the needed distance apart (pool adjacent violators)."""
    offsets: list[float] = []
    for place, index in enumerate(column):
        above = 0.0 if not place else offsets[-1] + (slots[column[place - 1]].thick + slots[index].thick) / 2 + gap
        offsets.append(above)
    pools: list[tuple[float, int]] = []
    for wish, offset in zip(wished, offsets, strict=True):
        total, count = wish - offset, 1
        while pools and pools[-1][0] / pools[-1][1] > total / count:
            before, members = pools.pop()
            total, count = total + before, count + members
        pools.append((total, count))
    middles = [total / count for total, count in pools for _ in range(count)]
    for index, middle, offset in zip(column, middles, offsets, strict=True):
        slots[index].y = middle + offset


def _drawn(
    nodes: Sequence[Node], slots: Sequence[_Slot], routes: Mapping[tuple[int, int], Sequence[int]], size: Size, path: Sequence[str]
) -> Dag:
    top = min((slot.y - slot.thick / 2 for slot in slots), default=0.0) - MARGIN
    bottom = max((slot.y + slot.thick / 2 for slot in slots), default=0.0) + MARGIN
    pairs = set(pairwise(path))
    on_path = set(path)
    layers = max((slot.layer for slot in slots), default=-1) + 1
    step = size.width + size.gap_x
    boxes = tuple(
        Box(
            node.task,
            node.status,
            slot.layer,
            MARGIN + slot.layer * step,
            slot.y - slot.thick / 2 - top,
            size.width,
            size.height,
            node.task in on_path,
        )
        for node, slot in zip(nodes, slots, strict=False)
    )
    edges = tuple(
        Edge(
            nodes[need].task,
            nodes[task].task,
            _curve([(MARGIN + slots[each].layer * step, slots[each].y - top) for each in route], size.width),
            (nodes[need].task, nodes[task].task) in pairs,
        )
        for (need, task), route in routes.items()
    )
    width = MARGIN * 2 + max(0, layers * step - size.gap_x)
    return Dag(width, max(bottom - top, 0.0), size is LABELLED, boxes, edges, (), layers)


def _curve(points: Sequence[tuple[float, float]], width: float) -> str:
    """Returns a smooth way from the right side of the first box to the left of the last, straight through the columns between."""
    x, y = points[0][0] + width, points[0][1]
    text = f"M{x:.1f} {y:.1f}"
    for place, (left, middle) in enumerate(points[1:], 1):
        bend = (left - x) / 2
        text += f"C{x + bend:.1f} {y:.1f} {left - bend:.1f} {middle:.1f} {left:.1f} {middle:.1f}"
        x, y = left, middle
        if place < len(points) - 1:
            x = left + width
            text += f"H{x:.1f}"
    return text


def _bands(nodes: Sequence[Node], layers: Sequence[int]) -> tuple[Band, ...]:
    depth = max(layers, default=-1) + 1
    per_band = -(-depth // BANDS_MAX) or 1
    bands: list[dict[str, int]] = [{} for _ in range(-(-depth // per_band))]
    for node, layer in zip(nodes, layers, strict=True):
        counts = bands[layer // per_band]
        counts[node.status] = counts.get(node.status, 0) + 1
    return tuple(
        Band(place * per_band, min((place + 1) * per_band, depth) - 1, sum(counts.values()), tuple(sorted(counts.items())))
        for place, counts in enumerate(bands)
    )
