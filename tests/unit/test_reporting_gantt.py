"""The timeline's geometry: every attempt is on its agent's lane, inside the picture, and no two lie on each other."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from orchestra.reporting.gantt import AXIS_HEIGHT, LABEL_WIDTH, STEPS, TICKS_MAX, WIDTH, Bar, Gantt, Piece, lay_out, show_offset, tick_step

NEAR = 1e-6
BEGIN, END = 1_000_000, 1_060_000

spans = st.tuples(st.integers(BEGIN - 5000, END + 5000), st.integers(0, 30_000), st.integers(1, 6), st.integers(0, 40_000))


def make_pieces(found: list[tuple[int, int, int, int]]) -> list[Piece]:
    return [Piece(key, agent, begin, begin + length, verify) for key, (begin, length, agent, verify) in enumerate(found)]


def rows_of(picture: Gantt) -> dict[float, list[Bar]]:
    rows: dict[float, list[Bar]] = {}
    for bar in picture.bars:
        rows.setdefault(bar.y, []).append(bar)
    return rows


@given(st.lists(spans, max_size=40))
def test_bars_are_inside_and_do_not_overlap(found: list[tuple[int, int, int, int]]) -> None:
    picture = lay_out(make_pieces(found), BEGIN, END)
    assert sorted(bar.key for bar in picture.bars) == list(range(len(found)))
    for bar in picture.bars:
        assert bar.x >= LABEL_WIDTH - NEAR
        assert bar.x + bar.width <= WIDTH + NEAR
        assert AXIS_HEIGHT < bar.y < bar.y + bar.height < picture.height
        assert bar.x - NEAR <= bar.verify_x <= bar.verify_x + bar.verify_width <= bar.x + bar.width + NEAR
    for row in rows_of(picture).values():
        for left, right in pairwise(sorted(row, key=lambda bar: (bar.x, bar.width))):
            assert left.x + left.width <= right.x + NEAR


@given(st.lists(spans, max_size=40))
def test_each_bar_is_on_the_lane_of_its_agent(found: list[tuple[int, int, int, int]]) -> None:
    pieces = make_pieces(found)
    picture = lay_out(pieces, BEGIN, END)
    lanes = {lane.agent: lane for lane in picture.lanes}
    assert list(lanes) == sorted({piece.agent for piece in pieces})
    for bar in picture.bars:
        lane = lanes[pieces[bar.key].agent]
        assert lane.y <= bar.y
        assert bar.y + bar.height <= lane.y + lane.height


@given(st.permutations([Piece(key, key % 3, BEGIN + key * 700, BEGIN + key * 700 + 500) for key in range(12)]))
def test_order_of_attempts_does_not_matter(pieces: list[Piece]) -> None:
    assert lay_out(pieces, BEGIN, END) == lay_out(sorted(pieces, key=lambda piece: piece.key), BEGIN, END)


@given(st.integers(0, 10**12))
def test_ticks_are_few_and_evenly_spaced(span: int) -> None:
    picture = lay_out([Piece(0, 1, 0, span)], 0, span)
    assert 1 <= len(picture.ticks) <= TICKS_MAX + 1
    gaps = [right.x - left.x for left, right in pairwise(picture.ticks)]
    assert all(abs(gap - gaps[0]) < NEAR * 1000 and gap > 0 for gap in gaps)
    assert len({tick.label for tick in picture.ticks}) == len(picture.ticks)


def test_steps_are_ascending_and_the_smallest_that_fits_is_taken() -> None:
    assert list(STEPS) == sorted(set(STEPS))
    assert tick_step(0) == 1
    assert tick_step(9_000) == 1000
    assert tick_step(76 * 60_000) == 10 * 60_000
    assert tick_step(10**18) == STEPS[-1]


def test_offsets_read_well() -> None:
    assert [show_offset(ms) for ms in (0, 250, 90_000, 7_200_000, 108_000_000)] == ["0", "250ms", "1m 30s", "2h", "1d 6h"]


def test_a_short_attempt_can_be_seen() -> None:
    assert lay_out([Piece(0, 1, BEGIN, BEGIN + 1)], BEGIN, END).bars[0].width >= 1.5


def test_nothing_gives_an_empty_picture() -> None:
    picture = lay_out([], BEGIN, BEGIN)
    assert (picture.bars, picture.lanes) == ((), ())


def test_two_hundred_agents_get_thinner_rows() -> None:
    picture = lay_out([Piece(agent, agent, BEGIN, END) for agent in range(200)], BEGIN, END)
    assert picture.dense
    assert picture.height < 2600
