"""Where tokens lie: the numbers give back the boxes, and no numbers do harm."""

import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from cdcca_cli.formats import places
from cdcca_cli.formats.shard import Layout

Grid = tuple[int, int, tuple[float, float, float, float]]
WHOLE = (0.0, 0.0, 1.0, 1.0)


def boxes_of(grids: list[Grid]) -> NDArray[np.float64]:
    """Cell by cell, in a loop."""
    found = []
    for rows, columns, (left, top, right, bottom) in grids:
        width, height = (right - left) / columns, (bottom - top) / rows
        for row in range(rows):
            for column in range(columns):
                x, y = left + column * width, top + row * height
                found.append([x, y, x + width, y + height])
    return np.array(found)


def given_back(boxes_N4: NDArray[np.float64], layout: Layout) -> NDArray[np.float64]:
    """What a reader of a file finds."""
    grid, boxes = places.split([*layout.grid, *places.packed(boxes_N4, layout)])
    assert grid == layout.grid
    found = places.of_tokens(Layout(grid, layout.marks, layout.fixed, boxes), len(boxes_N4))
    assert found is not None
    return found


@st.composite
def several_grids(draw: st.DrawFn) -> list[Grid]:
    """Of cells that can be told apart in thousandths; some begin outside the picture."""
    side = st.integers(1, 5)
    found = []
    for _ in range(draw(st.integers(1, 5))):
        left, top = (draw(st.integers(-800, 900)) / 1000 for _ in range(2))
        width, height = (draw(st.integers(100, 2500)) / 1000 for _ in range(2))
        found.append((draw(side), draw(side), (left, top, left + width, top + height)))
    return found


@given(several_grids(), st.integers(0, 2), st.booleans(), st.data())
def test_round_trip(grids: list[Grid], num_class: int, has_grid: bool, data: st.DataObject) -> None:
    """With class tokens before, and newlines anywhere among the others."""
    placed = boxes_of(grids)
    rows = [[np.nan] * 4] * num_class + placed.tolist()
    fixed = []
    for place in sorted(data.draw(st.sets(st.integers(num_class, len(rows)), max_size=3))):
        fixed.append(place + len(fixed))
        rows.insert(fixed[-1], [np.nan] * 4)
    layout = Layout((7, 9) if has_grid else (), "", tuple(fixed))
    found = given_back(np.array(rows), layout)
    np.testing.assert_allclose(found, rows, atol=0.0035)


def test_tiles_side_by_side_are_one_grid() -> None:
    """Two tiles of 2 x 2 whose rows follow each other, as in LLaVA-NeXT: 2 x 4 in 8 numbers."""
    boxes = boxes_of([(2, 4, (0.1, 0.0, 0.9, 1.0))])
    assert places.packed(boxes, Layout()) == (0, 0, 2, 4, 100, 0, 800, 1000)


def test_tiles_one_after_the_other_are_two() -> None:
    """As in SmolVLM, whose tiles come whole; and two tiles one above the other are one grid."""
    halves: list[Grid] = [(2, 2, (0.0, 0.0, 0.5, 1.0)), (2, 2, (0.5, 0.0, 1.0, 1.0))]
    assert places.packed(boxes_of(halves), Layout())[2:] == (
        *(2, 2, 0, 0, 500, 1000),
        *(2, 2, 500, 0, 500, 1000),
    )
    above: list[Grid] = [(2, 2, (0.0, 0.0, 1.0, 0.5)), (2, 2, (0.0, 0.5, 1.0, 1.0))]
    assert places.packed(boxes_of(above), Layout()) == (0, 0, 4, 2, 0, 0, 1000, 1000)


def test_a_padded_picture_begins_inside_its_grid() -> None:
    """96 x 40 padded to a square: 28 of 40 rows above it, so 0.7 of its height."""
    boxes = boxes_of([(6, 6, (0.0, -0.7, 1.0, 1.7))])
    assert places.packed(boxes, Layout((6, 6))) == (0, 700, 6, 6, 0, 0, 1000, 2400)


def test_a_grid_over_the_whole_picture_needs_no_numbers() -> None:
    layout = Layout((3, 5))
    boxes = boxes_of([(3, 5, (0.001, -0.002, 0.998, 1.0))])
    assert places.packed(boxes, layout) == ()
    found = places.of_tokens(layout, 16)  # and a class token
    assert found is not None and np.isnan(found[0]).all()
    np.testing.assert_allclose(found[1:], boxes_of([(3, 5, WHOLE)]))


def test_what_cannot_be_written_is_left_out() -> None:
    nowhere = np.full((4, 4), np.nan)
    between = boxes_of([(2, 2, WHOLE)])
    between[2] = np.nan
    scattered = boxes_of(
        [(1, 1, (n % 10 / 10, n / 1000, n % 10 / 10 + 0.05, 1)) for n in range(70)]
    )
    for boxes in (nowhere, between, scattered):
        assert places.packed(boxes, Layout()) == ()


@pytest.mark.parametrize(
    ("numbers", "grid", "num_boxes"),
    [
        ([], (), 0),
        ([3, 4], (3, 4), 0),
        ([3, 4, 5], (3, 4, 5), 0),
        ([0, 0, 3, 4, 0, 0, 1000, 1000], (), 8),
        ([3, 4, 0, 0, 3, 4, 0, 0, 900, 900], (3, 4), 8),
        ([1] * 9, (1,) * 9, 0),
        ([1] * 14, (), 14),
        ([1] * 16, (1, 1), 14),
    ],
)
def test_a_list_in_a_file(numbers: list[int], grid: tuple[int, ...], num_boxes: int) -> None:
    found, boxes = places.split(numbers)
    assert found == grid and len(boxes) == num_boxes
    assert [*found, *boxes] == numbers


@pytest.mark.parametrize(
    "layout",
    [
        Layout(),
        Layout((3,)),
        Layout((3, 3, 1)),
        Layout((2**31, 2**31)),
        Layout((0, 2**31)),
        Layout((4, 4)),  # of 9 tokens
        Layout(boxes=(0, 0, 0, 2**31, 0, 0, 1, 1)),
        Layout(boxes=(0, 0, 2**31, 2**31, 0, 0, 1, 1)),
        Layout(boxes=(0, 0)),
        Layout((), "", tuple(range(9)), (0, 0, 1, 1, 0, 0, 1, 1)),
    ],
    ids=str,
)
def test_nobody_knows(layout: Layout) -> None:
    """None, at once, and without an array as large as the numbers say."""
    begun = time.monotonic()
    assert places.of_tokens(layout, 9) is None
    assert places.layers(layout, 9) == []
    assert time.monotonic() - begun < 1


def test_layers_do_not_overlap() -> None:
    """Two tiles, behind them the whole picture, after a class token."""
    boxes = (0, 0, 1, 2, 0, 0, 500, 1000, 1, 2, 500, 0, 500, 1000, 2, 2, 0, 0, 1000, 1000)
    found = places.layers(Layout(boxes=boxes), 9)
    assert [layer.tolist() for layer in found] == [[1, 2, 3, 4], [5, 6, 7, 8]]
