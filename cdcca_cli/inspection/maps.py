"""Which tokens of a frame were kept, as a picture and as text.

Kept tokens are outlined, what was dropped is dark, and what the tower never saw is grey, as is the
padding around a picture. Where the shard has scores, the colour of a kept token goes from violet
(the frame's lowest) to bright yellow (its highest). A tower that sees a picture in tiles and as a
whole gets a picture of each. Tokens without a place in the picture (a class token, or all of an
older shard without boxes) are squares below it; places without content are left out.

Legend: N tokens, H and W of a picture in pixels or of a text in characters.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.formats import places
from cdcca_cli.formats.shard import Shard

if TYPE_CHECKING:
    from PIL.Image import Image

_MOST, _LEAST = 1024, 512  # pixels on the longer side
BLANK_SIDE = _LEAST
"""Of a picture to draw on where there is none."""
_GAP = 8  # between two pictures
_CAPTION, _LEAST_CAPTION = 20, 240  # height and least width of a line below a picture
_PADDING = 150.0
_SQUARE = 16  # of a token without a place
_COLOURS = np.array(
    [[66, 10, 104], [147, 38, 103], [221, 81, 58], [252, 165, 10], [252, 255, 164]], np.float64
)
"""The upper part of matplotlib's inferno: as bright as the score is high, so that it can be read
in print and by the colour-blind, too."""
_NEAR, _FARTHEST = 0.02, 10  # how far outside the picture padding is shown, in its own sides
_FINEST = 1e-3  # of a picture's side, in a text
_SHADES = "░▒▓█"
_DROPPED, _UNSEEN = "·", " "


@dataclass(frozen=True)
class _Tokens:
    """A shard's tokens by their places in the layout."""

    shard: Shard

    @cached_property
    def kept_N(self) -> NDArray[np.bool_]:
        kept_N = np.zeros(self.shard.num_tokens, bool)
        kept_N[self.shard.positions] = True
        return kept_N

    @cached_property
    def _placed_N4(self) -> NDArray[np.float64] | None:
        return places.of_tokens(self.shard.layout, self.shard.num_tokens)

    @cached_property
    def view(self) -> NDArray[np.float64]:
        """(4,): the box of all that is shown: the picture, and the padding that tokens are of."""
        whole = np.array([0.0, 0.0, 1.0, 1.0])
        if self._placed_N4 is None:
            return whole
        placed = self._placed_N4[~np.isnan(self._placed_N4[:, 0])].clip(-_FARTHEST, _FARTHEST)
        ends = np.concatenate([placed[:, :2].min(0), placed[:, 2:].max(0)])
        is_out = np.append(ends[:2] < -_NEAR, ends[2:] > 1 + _NEAR)
        return np.where(is_out, ends, whole)

    @cached_property
    def boxes_N4(self) -> NDArray[np.float64]:
        """The box of each token in the view, NaN for one without a place."""
        if self._placed_N4 is None:
            return np.full((self.shard.num_tokens, 4), np.nan)
        origin, size = self.view[:2], self.view[2:] - self.view[:2]
        boxes_N22 = (self._placed_N4.reshape(-1, 2, 2) - origin) / size
        return boxes_N22.reshape(-1, 4)

    @cached_property
    def layers(self) -> list[NDArray[np.int64]]:
        return places.layers(self.shard.layout, self.shard.num_tokens)

    @cached_property
    def unplaced(self) -> NDArray[np.int64]:
        """The tokens with content, but without a place."""
        others = [np.asarray(self.shard.layout.fixed, np.int64), *self.layers]
        return np.setdiff1d(np.arange(self.shard.num_tokens), np.concatenate(others))

    @cached_property
    def heat_N(self) -> NDArray[np.float64] | None:
        """Scores from 0, the lowest of those in the picture, to 1; None without scores."""
        if self.shard.scores is None:
            return None
        low, high = score_range(self.shard)
        heat_N = np.zeros(self.shard.num_tokens)
        scores = self.shard.scores.astype(np.float64)
        heat_N[self.shard.positions] = (scores - low) / (high - low or 1)
        return heat_N.clip(0, 1)


def has_map(shard: Shard) -> bool:
    """Whether the shard says where its tokens lie in the picture."""
    return shard.picture is None and bool(_Tokens(shard).layers)


def score_range(shard: Shard) -> tuple[float, float]:
    """The lowest and the highest score of the kept tokens; those in the picture, if it has any."""
    assert shard.scores is not None
    placed = [*_Tokens(shard).layers, np.zeros(0, np.int64)]
    scores = shard.scores[np.isin(shard.positions, np.concatenate(placed))].astype(np.float64)
    scores = scores if len(scores) else shard.scores.astype(np.float64)
    return float(scores.min()), float(scores.max())


def unplaced(shard: Shard) -> tuple[int, int]:
    """How many tokens with content have no place in the picture, and how many were kept."""
    tokens = _Tokens(shard)
    return len(tokens.unplaced), int(tokens.kept_N[tokens.unplaced].sum())


# ---------------------------------------------------------------- a picture


def heat_map(shard: Shard, picture: "Image") -> "Image":
    """The frame's picture with its kept tokens, RGB, 512 to 1024 pixels on the longer side."""
    tokens = _Tokens(shard)
    count = max(1, len(tokens.layers))
    left, top, right, bottom = tokens.view.tolist()
    width, height = picture.width * (right - left), picture.height * (bottom - top)
    is_wide = width > height  # several pictures one below the other, else side by side
    shape = (width, height * count) if is_wide else (width * count, height)
    longest = max(shape)
    scale = min(max(longest, _LEAST), _MOST) / longest
    small = [max(1, round(side * scale)) for side in picture.size]
    seen = np.asarray(picture.convert("RGB").resize((small[0], small[1])), np.float64)
    whole = np.full((max(1, int(height * scale)), max(1, int(width * scale)), 3), _PADDING)
    place = whole[round(-top * picture.height * scale) :, round(-left * picture.width * scale) :]
    place = place[: len(seen), : seen.shape[1]]
    place[:] = seen[: len(place), : place.shape[1]]
    panels = [_panel(whole, tokens, layer) for layer in tokens.layers] or [whole]
    return _joined(panels, _squares(tokens, whole.shape[1]), is_wide=is_wide)


def _panel(
    picture_HW3: NDArray[np.float64], tokens: _Tokens, layer: NDArray[np.int64]
) -> NDArray[np.float64]:
    height, width, _ = picture_HW3.shape
    number_HW = _painted(tokens.boxes_N4, layer, height, width)
    is_seen = number_HW >= 0
    is_kept = is_seen & tokens.kept_N[number_HW]
    grey_HW1 = picture_HW3.mean(-1, keepdims=True)
    dark_HW3 = 0.25 * picture_HW3 + 0.2 * grey_HW1
    made = np.where(is_seen[..., None], dark_HW3, 0.25 * grey_HW1 + 110)
    kept_HW3 = picture_HW3
    if tokens.heat_N is not None:
        kept_HW3 = 0.45 * picture_HW3 + 0.55 * _colours(tokens.heat_N[number_HW])
    made = np.where(is_kept[..., None], kept_HW3, made)
    inner = is_kept & ~_eroded(is_kept, 2)
    outer = ~is_kept & ~_eroded(~is_kept, 1)
    made[outer], made[inner] = 0, 255
    return made


def _painted(
    boxes_N4: NDArray[np.float64], layer: NDArray[np.int64], height: int, width: int
) -> NDArray[np.int64]:
    """(H, W): the number of the token that lies there; -1: none."""
    number_HW = np.full((height, width), -1)
    edges = boxes_N4[layer] * [width, height, width, height]
    edges = np.rint(edges.clip(0, [width, height, width, height])).astype(int)
    for number, (left, top, right, bottom) in zip(layer.tolist(), edges.tolist(), strict=True):
        number_HW[top:bottom, left:right] = number
    return number_HW


def _eroded(mask_HW: NDArray[np.bool_], by: int) -> NDArray[np.bool_]:
    """Without what is less than `by` pixels from its outside; the picture's edges count as such."""
    padded = np.pad(mask_HW, by)
    height, width = mask_HW.shape
    found = mask_HW.copy()
    for y in range(2 * by + 1):
        for x in range(2 * by + 1):
            found &= padded[y : y + height, x : x + width]
    return found


def _colours(heat: NDArray[np.float64]) -> NDArray[np.float64]:
    """(..., 3)"""
    points = np.linspace(0, 1, len(_COLOURS))
    return np.stack([np.interp(heat, points, channel) for channel in _COLOURS.T], axis=-1)


def _squares(tokens: _Tokens, width: int) -> NDArray[np.float64] | None:
    """The tokens without a place, a square each."""
    if not len(tokens.unplaced):
        return None
    across = max(1, min(len(tokens.unplaced), width // _SQUARE))
    number = np.full(math.ceil(len(tokens.unplaced) / across) * across, -1)
    number[: len(tokens.unplaced)] = tokens.unplaced
    is_kept = (number >= 0) & tokens.kept_N[number]
    heat_N = np.ones(len(tokens.kept_N)) if tokens.heat_N is None else tokens.heat_N
    colours = np.where(is_kept[:, None], _colours(heat_N[number]), 60)
    colours[number < 0] = 255
    squares = colours.reshape(-1, across, 3).repeat(_SQUARE, 0).repeat(_SQUARE, 1)
    squares[_SQUARE - 1 :: _SQUARE], squares[:, _SQUARE - 1 :: _SQUARE] = 255, 255
    return squares


def _joined(
    panels: list[NDArray[np.float64]], below: NDArray[np.float64] | None, *, is_wide: bool
) -> "Image":
    from PIL import Image

    axis = 0 if is_wide else 1
    made = panels[0]
    for other in panels[1:]:
        gap = np.full_like(np.take(made, np.zeros(_GAP, int), axis), 255)
        made = np.concatenate([made, gap, other], axis)
    if below is not None:
        whole = np.full((len(made) + _GAP + len(below), max(made.shape[1], below.shape[1]), 3), 255)
        whole = whole.astype(np.float64)
        whole[: len(made), : made.shape[1]] = made
        whole[len(made) + _GAP :, : below.shape[1]] = below
        made = whole
    image = Image.fromarray(made.clip(0, 255).round().astype(np.uint8))
    image.thumbnail((_MOST, _MOST))
    return image


def side_by_side(pictures: "Sequence[Image]", captions: Sequence[str]) -> "Image":
    """Pictures of one height with a line below each, RGB, at most 1024 pixels wide."""
    from PIL import Image, ImageDraw, ImageFont

    height = min(max(_LEAST, max(one.height for one in pictures)), _MOST)
    widths = [max(1, one.width * height // one.height) for one in pictures]
    shrink = min(1.0, (_MOST - _GAP * (len(pictures) - 1)) / sum(widths))
    height, widths = max(1, int(height * shrink)), [max(1, int(w * shrink)) for w in widths]
    places_of = [max(width, _LEAST_CAPTION) for width in widths]
    whole = sum(places_of) + _GAP * (len(pictures) - 1), height + _CAPTION
    made = Image.new("RGB", whole, "white")
    draw, font, left = ImageDraw.Draw(made), ImageFont.load_default(13), 0
    for one, width, place, text in zip(pictures, widths, places_of, captions, strict=True):
        made.paste(one.convert("RGB").resize((width, height)), (left, 0))
        draw.text((left + 2, height + 4), text, "black", font)
        left += place + _GAP
    return made


# ---------------------------------------------------------------- a text


def text_map(shard: Shard, width: int = 40) -> str:
    """The same in characters, in a frame: kept tokens are blocks, dropped ones dots.

    The fuller a block, the higher the score; full blocks where there are no scores. One line for
    each row of tokens. Args: width: at most so many characters inside the frame, at least 8.
    """
    tokens, width = _Tokens(shard), max(8, width)
    blocks = []
    for layer in tokens.layers:
        own = tokens.boxes_N4[layer]
        heights, widths = own[:, 3] - own[:, 1], own[:, 2] - own[:, 0]
        rows, columns = (1 / max(float(sizes.min()), _FINEST) for sizes in (heights, widths))
        shrink = max(1, columns / width)
        rows, columns = max(1, round(rows / shrink)), max(1, round(columns / shrink))
        wide = max(1, min(2, width // columns))
        number_HW = _painted_finely(tokens.boxes_N4, layer, rows, columns)
        lines = ["".join(_character(tokens, n) * wide for n in row) for row in number_HW]
        edge = "─" * columns * wide
        blocks.append("\n".join([f"┌{edge}┐", *(f"│{line}│" for line in lines), f"└{edge}┘"]))
    if len(tokens.unplaced):
        line = "".join(_character(tokens, n) for n in tokens.unplaced)
        lines = [line[start : start + width] for start in range(0, len(line), width)]
        title = "not in the picture:" if tokens.layers else "place unknown, in order:"
        blocks.append("\n".join([title, *lines]))
    return "\n".join(blocks)


def _painted_finely(
    boxes_N4: NDArray[np.float64], layer: NDArray[np.int64], rows: int, columns: int
) -> NDArray[np.int64]:
    """As `_painted`, by what lies at the centre of each place."""
    fine = 9
    number = _painted(boxes_N4, layer, rows * fine, columns * fine)
    return number[fine // 2 :: fine, fine // 2 :: fine]


def _character(tokens: _Tokens, number: int) -> str:
    if number < 0:
        return _UNSEEN
    if not tokens.kept_N[number]:
        return _DROPPED
    if tokens.heat_N is None:
        return _SHADES[-1]
    return _SHADES[min(int(tokens.heat_N[number] * len(_SHADES)), len(_SHADES) - 1)]
