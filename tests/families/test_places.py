"""Where each family's tokens lie in the frame, by changing one block of it after the other."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.formats import places
from cdcca_cli.formats.shard import Layout
from cdcca_cli.inspection import maps
from cdcca_cli.models import LoadedModel, Seen
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.kept_tokens import make_shard, trunk_of
from cdcca_cli.uplink.settings import SampleSettings
from cdcca_cli.uplink.spool import Spool
from tests.families.conftest import Case

BLOCKS = 4
CROPPED = ("llava", "vipllava")  # to the square in the middle
PADDED = ("deepseek_vl", "janus")  # to a square
FAR = ("fast_vlm", "gemma3n")
"""Towers of convolutions that see farther than these pictures are large."""
SHIFTED = ("got_ocr2",)
"""Two convolutions of stride 2 see three tokens around the corner of a place, not its middle."""


@torch.no_grad()
def seen(model: LoadedModel, image: Image.Image) -> Seen:
    return model.see(model.prepare([image]))[0]


@torch.no_grad()
def placed(case: Case, row: int) -> Layout:
    """The layout of a picture with its boxes, from halfway through the tower as in `sample`."""
    model = case.model
    trunk = model.trunk(case.pictures[row], max(0, model.num_blocks - 1))
    return replace(case.seen[row].layout, boxes=model.boxes(trunk, case.seen[row]))


def test_the_token_that_changes_most_lies_at_the_change(case: Case) -> None:
    """The levels of each of 4 x 4 blocks are turned around; the whole tower sees the picture.

    The box of that token must hold a part of the block's inner half.
    """
    if case.name in FAR:
        pytest.skip("each of its tokens sees the whole picture")
    for row, image in enumerate(case.images):
        boxes_N4 = places.of_tokens(placed(case, row), case.seen[row].num_tokens)
        assert boxes_N4 is not None
        has_place = ~np.isnan(boxes_N4).any(1)
        num_seen = 0
        for place in range(BLOCKS * BLOCKS):
            y, x = divmod(place, BLOCKS)
            left, right = x * image.width // BLOCKS, (x + 1) * image.width // BLOCKS
            top, bottom = y * image.height // BLOCKS, (y + 1) * image.height // BLOCKS
            changed = np.array(image)
            changed[top:bottom, left:right] ^= 255
            other = seen(case.model, Image.fromarray(changed)).tokens
            change_N = (other - case.seen[row].tokens).norm(dim=1).numpy()
            most = boxes_N4[np.where(has_place, change_N, -1).argmax()]
            if not change_N[has_place].any():
                continue  # cropped away
            num_seen += 1
            inner = np.array([x + 0.25, y + 0.25, x + 0.75, y + 0.75]) / BLOCKS
            near = (most[2:] - most[:2]) / 2 if case.name in SHIFTED else 0
            assert (most[:2] - near < inner[2:]).all(), (place, most)
            assert (most[2:] + near > inner[:2]).all(), (place, most)
        is_cropped = case.name in CROPPED and image.width != image.height
        assert num_seen == BLOCKS * BLOCKS / (2 if is_cropped else 1)


def test_the_places_of_known_processors(case: Case) -> None:
    """By hand. The middle 40 of 96 pixels: 28/96 = 0.292 to 0.708. A square of 96 around 40:
    28/40 = 0.7 on both sides."""
    for row, (long, short) in enumerate([(0, 1), (1, 0)]):
        if case.name in CROPPED:
            expected, axis = (28 / 96, 68 / 96), long
        elif case.name in PADDED:
            expected, axis = (-0.7, 1.7), short
        else:
            pytest.skip("its places are not derived by hand here")
        boxes_N4 = places.of_tokens(placed(case, row), case.seen[row].num_tokens)
        assert boxes_N4 is not None
        found = boxes_N4[:, axis].min(), boxes_N4[:, axis + 2].max()
        assert found == pytest.approx(expected, abs=0.006)
        others = boxes_N4[:, 1 - axis].min(), boxes_N4[:, 3 - axis].max()
        assert others == pytest.approx((0, 1), abs=0.006)


def test_sample_sends_them_where_there_is_something_to_see(case: Case, tmp_path: Path) -> None:
    """With fewer than all tokens, or scores; also if the frame lay on disk in the meantime."""
    image = tmp_path / "wide.png"
    case.images[0].save(image)
    frame = Frame("wide.png", image, [LabelledQuestion("q")])
    some = SampleSettings(keep=parse_amount("50%"), by="norm")
    trunk = trunk_of(case.model, case.pictures[0], some)
    with closing(Spool()) as spool:
        slot = spool.put(trunk)
        for again in (None, trunk, spool.get(slot)):
            made = make_shard(case.model, frame, [1.0], [0], some, again)
            assert made.layout == placed(case, 0)
    every = SampleSettings(by="norm")
    scored = make_shard(case.model, frame, [1.0], [0], every, with_scores=True)
    assert scored.layout == placed(case, 0) and maps.has_map(scored)
    assert make_shard(case.model, frame, [1.0], [0], every).layout == case.seen[0].layout


def test_places_take_few_numbers(case: Case) -> None:
    """None for a grid over the whole picture; six for each other grid, and the corner."""
    for row in range(len(case.images)):
        layout = placed(case, row)
        assert len(layout.boxes) <= 2 + 6 * 8
        assert bool(layout.boxes) or layout.grid
        assert len(layout.grid) in (0, 2)
        if case.model.row.is_mrope:  # whose positions an earlier reader makes of `grid` alone
            assert layout.boxes == ()
