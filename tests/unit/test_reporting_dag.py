"""The plan's geometry: needs are to the left, boxes lie beside each other, edges join what they should."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestra.reporting.dag import BANDS_MAX, DRAWN_MAX, LABELLED_MAX, Box, Dag, Node, lay_out


@st.composite
def plans(draw: st.DrawFn) -> list[Node]:
    count = draw(st.integers(0, 24))
    needs = [draw(st.lists(st.integers(0, index - 1), unique=True, max_size=4)) if index else [] for index in range(count)]
    return [Node(f"t{index}", tuple(f"t{need}" for need in own), "pending") for index, own in enumerate(needs)]


def make_chain(count: int) -> list[Node]:
    return [Node(f"t{index}", (f"t{index - 1}",) if index else (), "completed") for index in range(count)]


def by_task(picture: Dag) -> dict[str, Box]:
    return {box.task: box for box in picture.boxes}


@given(plans())
def test_needs_are_to_the_left_and_every_edge_is_there(nodes: list[Node]) -> None:
    picture = lay_out(nodes)
    boxes = by_task(picture)
    assert [box.task for box in picture.boxes] == [node.task for node in nodes]
    assert {(edge.need, edge.task) for edge in picture.edges} == {(need, node.task) for node in nodes for need in node.needs}
    for edge in picture.edges:
        assert boxes[edge.need].x + boxes[edge.need].width < boxes[edge.task].x


@given(plans())
def test_boxes_are_inside_and_do_not_overlap(nodes: list[Node]) -> None:
    picture = lay_out(nodes)
    columns: dict[int, list[Box]] = {}
    for box in picture.boxes:
        assert 0 <= box.x <= box.x + box.width <= picture.width + 0.01
        assert -0.01 <= box.y <= box.y + box.height <= picture.height + 0.01
        columns.setdefault(box.layer, []).append(box)
    for column in columns.values():
        assert len({box.x for box in column}) == 1
        for upper, lower in pairwise(sorted(column, key=lambda box: box.y)):
            assert upper.y + upper.height < lower.y
    assert len({box.x for box in picture.boxes}) == len(columns)


@given(plans())
def test_edges_begin_and_end_at_their_boxes(nodes: list[Node]) -> None:
    picture = lay_out(nodes)
    boxes = by_task(picture)
    for edge in picture.edges:
        figures = [float(figure) for figure in re.findall(r"-?\d+\.\d", edge.path)]
        need, task = boxes[edge.need], boxes[edge.task]
        assert figures[:2] == pytest.approx([need.x + need.width, need.y + need.height / 2], abs=0.1)
        assert figures[-2:] == pytest.approx([task.x, task.y + task.height / 2], abs=0.1)


@given(plans())
def test_the_same_plan_gives_the_same_picture(nodes: list[Node]) -> None:
    assert lay_out(nodes) == lay_out(nodes)


def test_crossings_that_can_be_avoided_are() -> None:
    nodes = [
        *(Node(name, (), "pending") for name in "abc"),
        Node("x", ("c",), "pending"),
        Node("y", ("b",), "pending"),
        Node("z", ("a",), "pending"),
    ]
    boxes = by_task(lay_out(nodes))
    middle = {task: box.y for task, box in boxes.items()}
    assert all((middle[a] < middle[b]) == (middle[p] < middle[q]) for a, b, p, q in (("a", "b", "z", "y"), ("b", "c", "y", "x")))


def test_the_critical_path_is_marked() -> None:
    picture = lay_out(make_chain(3), ["t0", "t1", "t2"])
    assert all(box.critical for box in picture.boxes)
    assert all(edge.critical for edge in picture.edges)


def test_names_are_shown_as_long_as_they_can_be_read() -> None:
    assert lay_out(make_chain(LABELLED_MAX)).labelled
    assert not lay_out(make_chain(LABELLED_MAX + 1)).labelled


@pytest.mark.parametrize("count", [DRAWN_MAX + 1, 5000])
def test_a_large_plan_is_counted_in_bands(count: int) -> None:
    picture = lay_out(make_chain(count))
    assert picture.boxes == ()
    assert len(picture.bands) <= BANDS_MAX
    assert sum(band.tasks for band in picture.bands) == count
    assert picture.bands[0].first_layer == 0
    assert all(left.last_layer + 1 == right.first_layer for left, right in pairwise(picture.bands))
    assert picture.bands[-1].last_layer == count - 1


def test_a_tangle_of_edges_is_counted_as_well() -> None:
    nodes = [
        *(Node(f"a{index}", (), "pending") for index in range(50)),
        *(Node(f"b{index}", tuple(f"a{other}" for other in range(50)), "failed") for index in range(50)),
    ]
    assert [band.by_status for band in lay_out(nodes).bands] == [(("pending", 50),), (("failed", 50),)]


def test_needs_outside_of_the_plan_are_left_out() -> None:
    assert lay_out([Node("a", ("elsewhere",), "pending")]).edges == ()


def test_nothing_gives_an_empty_picture() -> None:
    picture = lay_out([])
    assert (picture.boxes, picture.edges, picture.bands) == ((), (), ())
