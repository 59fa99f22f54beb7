"""Pictures and layouts that no family expects: a line and the rest goes on, never a trace."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cdcca_cli.datasets import Frame, LabelledQuestion
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.formats.shard import Layout, Shard, Unusable
from cdcca_cli.payloads.opening import Opener
from cdcca_cli.skipped import Skipped
from cdcca_cli.uplink.answers import answer_frames
from cdcca_cli.uplink.sampling import sample_frames
from tests.families.conftest import Case

ODD = [(1, 1), (1, 300), (300, 1), (3, 2), (2000, 4), (4, 2000)]
"""Width and height."""


def as_frames(folder: Path, images: list[Image.Image]) -> list[Frame]:
    frames = []
    for number, image in enumerate(images):
        path = folder / f"{number}.png"
        image.save(path)
        question = LabelledQuestion(f"{number}", "what is it?", "vqa")
        frames.append(Frame(path.name, path, [question]))
    return frames


def no_codebook(digest: str) -> None:
    raise MissingInput(digest)


@pytest.mark.parametrize("size", ODD)
@torch.no_grad()
def test_an_odd_picture_is_taken_or_refused(case: Case, size: tuple[int, int]) -> None:
    try:
        (seen,) = case.model.see(case.model.prepare([Image.new("RGB", size, (200, 30, 60))]))
    except BadData as error:
        assert "\n" not in str(error)
    else:
        assert seen.num_tokens >= 1 and bool(torch.isfinite(seen.tokens).all())


def test_the_other_frames_are_answered_and_sent(case: Case, tmp_path: Path) -> None:
    """One good picture between odd ones; what is left out is counted."""
    images = [Image.new("RGB", size, (200, 30, 60)) for size in ODD]
    frames = as_frames(tmp_path, [*images[:3], case.images[0], *images[3:]])
    skipped = Skipped(strict=False, quiet=True)
    answered = {one.image for one in answer_frames(case.model, frames, skipped=skipped)}
    assert "3.png" in answered and len(answered) + skipped.count == len(frames)
    skipped = Skipped(strict=False, quiet=True)
    sent = {one.shard.frame for one in sample_frames(case.model, frames, skipped=skipped)}
    assert sent <= answered


def as_shard(case: Case) -> Shard:
    seen = case.seen[0]
    return Shard(
        frame="frame",
        image="a.png",
        domain=None,
        tokens=seen.tokens.numpy(),
        positions=np.arange(seen.num_tokens, dtype=np.int32),
        num_tokens=seen.num_tokens,
        tower=case.model.tower_digest,
        layout=seen.layout,
    )


def test_a_layout_of_its_own_is_taken(case: Case) -> None:
    shard = as_shard(case)
    assert Opener(case.model, no_codebook).open(shard) is shard


def test_a_layout_that_does_not_fit_is_unusable(case: Case) -> None:
    """Texts with other numbers of places, marks of the family's own among them; no grid."""
    if case.model.row.kind == "qformer":
        pytest.skip("its features have places of their own")
    shard, opener = as_shard(case), Opener(case.model, no_codebook)
    layout, token = shard.layout, case.model.preparer.image_token
    text = layout.marks or f"{{{shard.num_tokens}}}"
    wrong = [
        replace(layout, marks="{1}{999999}"),
        replace(layout, marks=f"{text}{token}"),
        replace(layout, marks="no place"),
    ]
    if not case.model.row.newline:
        wrong.append(replace(layout, fixed=(0,)))
    if case.model.row.is_mrope:
        wrong += [replace(layout, grid=grid) for grid in ((), (1, 1), (1, 2, 3), (2**40, 2**40))]
    for one in wrong:
        with pytest.raises(Unusable, match=r"^frame frame: "):
            opener.open(replace(shard, layout=one))
    with pytest.raises(Unusable):
        opener.open(replace(shard, layout=Layout(marks="{7}", grid=(7, 1)), num_tokens=7_000))
