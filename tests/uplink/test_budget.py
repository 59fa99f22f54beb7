"""A byte budget with a share of questions: the finest step that fits."""

import io

import numpy as np
import pytest
import torch

from cdcca_cli.datasets import Frame, load_image
from cdcca_cli.distillation import transform
from cdcca_cli.formats import shard_stream
from cdcca_cli.formats.codebook import Codebook
from cdcca_cli.models import LoadedModel
from cdcca_cli.payloads import pictures
from cdcca_cli.text import parse_amount
from cdcca_cli.uplink.coding import Coder
from cdcca_cli.uplink.sampling import sample_frames
from cdcca_cli.uplink.settings import PayloadSettings, SampleSettings


@pytest.fixture(scope="module")
def codebook(model: LoadedModel, frames: list[Frame]) -> Codebook:
    with torch.no_grad():
        pixels = [model.preprocess([load_image(frame)]) for frame in frames]
        tokens_FNC = torch.cat([model.vision_tokens(one) for one in pixels]).float().numpy()
    fitted = transform.fit(tokens_FNC, np.eye(tokens_FNC.shape[-1]), None)
    return Codebook(model.tower_digest, model.digest, len(frames), **fitted.arrays())


def test_each_picture_is_made_once_however_many_steps_are_tried(
    model: LoadedModel, frames: list[Frame], codebook: Codebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found by timing: a budget made the picture of each frame for each step it tried."""
    made: list[bytes] = []
    encode = pictures.encode

    def counted(image: object, *rest: object) -> pictures.Picture:
        picture = encode(image, *rest)  # type: ignore[arg-type]
        made.append(picture.data)
        return picture

    monkeypatch.setattr(pictures, "encode", counted)
    settings = SampleSettings(top=parse_amount("50%"), budget_bytes=3_000, max_new_tokens=2)
    coder = Coder(model, PayloadSettings(codec="klt", step=1.0, media="jpeg"), codebook)
    out = io.BytesIO()
    with shard_stream.writer(out) as write:
        for coded in sample_frames(model, frames, settings, coder=coder):
            write(coded.shard, coded.picture)
    picked = list(shard_stream.read_shards(io.BytesIO(out.getvalue())))
    assert write.num_bytes <= 3_000
    assert len(made) == len(picked) > 2
    assert all(shard.coding.step != 1.0 for shard in picked)
