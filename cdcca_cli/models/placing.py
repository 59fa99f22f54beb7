"""Where in a frame a tower's input was cut from, found by the checkpoint's own processor.

The processor is given four pictures of the frame's size: black, white, and two whose levels are
their own coordinates, from left to right and from top to bottom. What it makes of levels is linear,

    out = black + level * (white - black),

so each value of its output says where in the frame it comes from, however the processor scales,
crops, tiles, pads and normalises; padding is where black and white are the same. So nothing here
knows a family. `formats.places` has the numbers that go into a shard.

Legend: T crops (tiles, or the picture), H and W of a crop in pixels or patches, R cells, 4: left,
top, right and bottom, 1 being the width or height of the frame.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.formats import places
from cdcca_cli.models.pictures import Preparer

if TYPE_CHECKING:
    from PIL.Image import Image

_SHAPES = ("image_grid_thw", "spatial_shapes", "target_sizes")
_PADDING = 1e-3  # of the largest difference between black and white
Array = NDArray[np.float64]


@dataclass(frozen=True)
class Crops:
    """The parts of a frame that a tower sees. boxes: (T, 4), NaN for one of padding alone.

    shapes: (T, 2), rows and columns of each, in pixels or patches.
    """

    boxes: Array
    shapes: list[tuple[int, int]]

    def cells(self, num_cells: int) -> Array | None:
        """(R, 4): the box of each cell, if they are equal squares of the crops, row by row."""
        area = sum(rows * columns for rows, columns in self.shapes)
        side = (area / num_cells) ** 0.5
        found = [
            places.grid_of(box.tolist(), round(rows / side), round(columns / side))
            for box, (rows, columns) in zip(self.boxes, self.shapes, strict=True)
        ]
        made = np.concatenate(found)
        return made if len(made) == num_cells else None


def patch_shapes(inputs: Mapping[str, Tensor]) -> list[tuple[int, int]]:
    """Rows and columns of the patches of each crop, where pixels come as patches; else none."""
    for name in _SHAPES:
        if name in inputs:
            return [(rows, columns) for rows, columns in inputs[name][:, -2:].tolist()]
    if "image_position_ids" in inputs:
        columns, rows = (inputs["image_position_ids"][0].amax(0) + 1).tolist()
        return [(rows, columns)]
    return []


def crops(preparer: Preparer, size: tuple[int, int]) -> Crops:
    """What the processor cuts from a frame of this width and height. Raises: BadData."""
    made = [preparer(picture, torch.device("cpu")).inputs for picture in _pictures(size)]
    black, white, across, down = (one["pixel_values"].double().numpy() for one in made)
    reach = white - black
    is_padding = np.abs(reach) <= _PADDING * np.abs(reach).max()
    reach[is_padding] = np.nan
    xy = np.stack([across - black, down - black]) / reach
    shapes = patch_shapes(made[0])
    with np.errstate(all="ignore"):
        return _of_patches(xy, shapes) if shapes else _of_pixels(xy)


def _pictures(size: tuple[int, int]) -> "list[Image]":
    """Black, white, and levels that grow from left to right and from top to bottom."""
    from PIL import Image as pil

    width, height = size
    xs, ys = ((np.arange(side) + 0.5) / side * 255 for side in size)
    levels = np.zeros((4, height, width), np.uint8)
    levels[1] = 255
    levels[2], levels[3] = xs.round(), ys.round()[:, None]
    return [pil.fromarray(one).convert("RGB") for one in levels]


def _of_pixels(xy: Array) -> Crops:
    """Crops that come as pixels. Args: xy: (2, ..., 3, H, W), where each value comes from."""
    height, width = xy.shape[-2:]
    found = []
    for x_3HW, y_3HW in zip(*xy.reshape(2, -1, 3, height, width), strict=True):
        left, right = _ends(_mean(x_3HW, (0, 1)))
        top, bottom = _ends(_mean(y_3HW, (0, 2)))
        found.append([left, top, right, bottom])
    return Crops(np.array(found), [(height, width)] * len(found))


def _ends(along: Array) -> tuple[float, float]:
    """Where a line begins and ends whose pixels come from these places, NaN for padding."""
    known = np.flatnonzero(~np.isnan(along))
    if len(known) < 2:
        return np.nan, np.nan
    slope, start = np.polyfit(known + 0.5, along[known], 1)
    return float(start), float(start + slope * len(along))


def _of_patches(xy: Array, shapes: list[tuple[int, int]]) -> Crops:
    """Crops that come as patches, those of one behind those of the other, in any order.

    Args: xy: (2, patches, values), with a row of patches for each crop, or, of MiniCPM-V, (2, 1, 3,
        rows, columns of all patches).
    """
    counts = [rows * columns for rows, columns in shapes]
    if xy.ndim == 5:
        side = xy.shape[-2]
        xy = xy.reshape(2, 3, side, -1, side).transpose(0, 3, 1, 2, 4)
        xy = xy.reshape(2, sum(counts), -1)
    if xy.ndim == 4:  # a row for each crop, with padding behind
        xy = np.concatenate([xy[:, row, :count] for row, count in enumerate(counts)], axis=1)
    found = []
    for own, (rows, columns) in zip(
        np.split(xy, np.cumsum(counts)[:-1], axis=1), shapes, strict=True
    ):
        left, right = _extent(own[0], columns)
        top, bottom = _extent(own[1], rows)
        found.append([left, top, right, bottom])
    return Crops(np.array(found), shapes)


def _extent(values: Array, count: int) -> tuple[float, float]:
    """Where patches begin and end, `count` of them in a row. Args: values: (patches, values)."""
    if count == 1:
        return float(np.nanmin(values)), float(np.nanmax(values))
    centres = _mean(values, 1)
    low, high = float(np.nanmin(centres)), float(np.nanmax(centres))
    half = (high - low) / (count - 1) / 2
    return low - half, high + half


def _mean(values: Array, axes: int | tuple[int, ...]) -> Array:
    """The mean of what is known; NaN where nothing is."""
    count = (~np.isnan(values)).sum(axes)
    made: Array = np.nansum(values, axis=axes) / count
    return made
