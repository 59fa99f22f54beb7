"""Where the tokens of a frame lie in its picture, as the numbers `Layout.boxes`.

A picture is scaled, cropped, padded or cut into tiles on its way into a tower, each in its own way.
In the end its tokens lie in grids, one for each tile, or one over several tiles. `boxes` is empty
where `grid` lies over the whole picture, and where nobody knows; else

    x, y, then for each grid: rows, columns, left, top, width, height

in thousandths of the picture's width and height. The picture's upper left corner is at (x, y),
because no number may be below 0 and a padded grid begins outside the picture. The tokens with
content fill the grids in order, row by row; if there are more of them than the grids have places,
the first ones have no place in the picture (a class token).

Legend: N tokens, 4: left, top, right and bottom, 1 being the width or height of the picture.
"""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from cdcca_cli.formats.shard import Layout

UNIT = 1000
_MOST_GRIDS = 64
_NUMBERS = 6  # of a grid
_CLOSE = 0.05
_NEARLY = 0.005  # a grid that ends so near to the picture's edges lies over all of it


def split(numbers: Sequence[int]) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The grid and the boxes of a layout in a file, which has them in one list, in this order."""
    kinds = {2: 0, 4: 2}  # how long the grid before the boxes is, by the remainder
    start = kinds.get(len(numbers) % _NUMBERS) if len(numbers) > _NUMBERS else None
    if start is None:
        return tuple(numbers), ()
    return tuple(numbers[:start]), tuple(numbers[start:])


def grid_of(box: Sequence[float], rows: int, columns: int) -> NDArray[np.float64]:
    """(rows * columns, 4): the boxes of a grid's places, row by row. Args: box: of all of it."""
    left, top, right, bottom = box
    xs, ys = np.linspace(left, right, columns + 1), np.linspace(top, bottom, rows + 1)
    made = np.empty((rows, columns, 4))
    made[..., 0], made[..., 2] = xs[:-1], xs[1:]
    made[..., 1], made[..., 3] = ys[:-1, None], ys[1:, None]
    return made.reshape(-1, 4)


def of_tokens(layout: "Layout", num_tokens: int) -> NDArray[np.float64] | None:
    """(N, 4): the box of each token, NaN for one without a place; None if nobody knows."""
    grids = _grids(layout)
    count = sum(rows * columns for rows, columns, _ in grids)
    content = np.setdiff1d(np.arange(num_tokens), layout.fixed)
    if not 0 < count <= len(content) or not all(min(one[:2]) for one in grids):
        return None
    found = np.full((num_tokens, 4), np.nan)
    made = [grid_of(box, rows, columns) for rows, columns, box in grids]
    found[content[len(content) - count :]] = np.concatenate(made)
    return found


def layers(layout: "Layout", num_tokens: int) -> list[NDArray[np.int64]]:
    """The tokens with a place, in layers without overlap: tiles, and a picture of the whole."""
    boxes_N4 = of_tokens(layout, num_tokens)
    if boxes_N4 is None:
        return []
    numbers = np.flatnonzero(~np.isnan(boxes_N4).any(1))
    found: list[tuple[list[tuple[float, ...]], list[NDArray[np.int64]]]] = []
    for rows, columns, box in _grids(layout):
        own, numbers = np.split(numbers, [rows * columns])
        free = (layer for layer in found if not any(_overlap(box, other) for other in layer[0]))
        layer = next(free, None)
        if layer is None:
            layer = [], []
            found.append(layer)
        layer[0].append(box)
        layer[1].append(own)
    return [np.concatenate(parts) for _, parts in found]


def _overlap(one: Sequence[float], other: Sequence[float]) -> bool:
    """Whether two boxes share more than their edges."""
    sides = [min(one[a + 2], other[a + 2]) - max(one[a], other[a]) for a in (0, 1)]
    sizes = [min(one[a + 2] - one[a], other[a + 2] - other[a]) for a in (0, 1)]
    return all(side > size * _CLOSE for side, size in zip(sides, sizes, strict=True))


def _grids(layout: "Layout") -> list[tuple[int, int, tuple[float, ...]]]:
    if not layout.boxes:
        whole = (0.0, 0.0, 1.0, 1.0)
        return [(*layout.grid, whole)] if len(layout.grid) == 2 else []
    x, y, *rest = layout.boxes
    found = []
    for start in range(0, len(rest) - _NUMBERS + 1, _NUMBERS):
        rows, columns, left, top, width, height = rest[start : start + _NUMBERS]
        box = (left - x, top - y, left - x + width, top - y + height)
        found.append((rows, columns, tuple(number / UNIT for number in box)))
    return found


def packed(boxes_N4: NDArray[np.float64], layout: "Layout") -> tuple[int, ...]:
    """`Layout.boxes` for tokens with these boxes, NaN for one without a place.

    Empty if they are `layout.grid` over the whole picture, and if they cannot be written: another
    token than the first ones has no place, or they lie in too many grids.
    """
    content = np.setdiff1d(np.arange(len(boxes_N4)), layout.fixed)
    has_place = ~np.isnan(boxes_N4[content].sum(1))
    first = len(content) - int(has_place.sum())
    if first == len(content) or has_place[:first].any():
        return ()
    grids = _stacked(_rows(boxes_N4[content[first:]]))
    if len(grids) > _MOST_GRIDS:
        return ()
    shapes = [tuple(shape) for shape, _ in grids]
    edges = np.array([box for _, box in grids])
    is_whole = len(grids) == 1 and np.abs(edges[0] - [0, 0, 1, 1]).max() <= _NEARLY
    if is_whole and shapes[0] == layout.grid:
        return ()
    steps = np.rint(edges * UNIT).astype(int)
    x, y = (max(0, -int(steps[:, side].min())) for side in (0, 1))
    found = [x, y]
    for (rows, columns), (left, top, right, bottom) in zip(shapes, steps.tolist(), strict=True):
        found += [rows, columns, left + x, top + y, right - left, bottom - top]
    return tuple(found)


Grid = tuple[list[int], NDArray[np.float64]]
"""Rows and columns; the box of all."""


def _rows(boxes_N4: Iterable[NDArray[np.float64]]) -> list[Grid]:
    """Runs of tokens of one size side by side."""
    found: list[Grid] = []
    for box in boxes_N4:
        if found:
            (_, count), row = found[-1]
            size = np.array([(row[2] - row[0]) / count, row[3] - row[1]])
            if _follows(row, box, size, 0):
                found[-1] = [1, count + 1], np.array([*row[:2], box[2], row[3]])
                continue
        found.append(([1, 1], box))
    return found


def _stacked(rows: Sequence[Grid]) -> list[Grid]:
    """Rows of one size below each other as grids."""
    found: list[Grid] = []
    for shape, box in rows:
        if found:
            (count, columns), grid = found[-1]
            size = np.array([grid[2] - grid[0], (grid[3] - grid[1]) / count])
            if columns == shape[1] and _follows(grid, box, size / [columns, 1], 1):
                found[-1] = [count + 1, columns], np.array([*grid[:3], box[3]])
                continue
        found.append((list(shape), box))
    return found


def _follows(
    grid: NDArray[np.float64],
    box: NDArray[np.float64],
    cell: NDArray[np.float64],
    axis: int,
) -> bool:
    """Whether a box continues a grid to the right (axis 0) or below (1), with cells of its size.

    What was measured is off by a part of a pixel: less than a twentieth of a cell counts as equal.
    """
    near = np.tile(cell, 2) * _CLOSE
    expected = grid.copy()
    expected[axis] = grid[axis + 2]
    expected[axis + 2] = grid[axis + 2] + cell[axis]
    return bool((np.abs(expected - box) <= near).all())
