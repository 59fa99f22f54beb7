"""What the tower sees, as a picture: the processor makes the same pixels of it, and again."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import SiglipImageProcessor
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.idefics3.image_processing_pil_idefics3 import Idefics3ImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.models import preprocessing
from cdcca_cli.models.pictures import Preparer
from tests.models.conftest import Case

SIZES = [(60, 60), (68, 60), (31, 200), (300, 7), (48, 48), (1, 1), (500, 333), (49, 48)]


def noise(size: tuple[int, int]) -> Image.Image:
    width, height = size
    levels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(levels)


def preparer(processor: Any) -> Preparer:
    return Preparer(processor, None, "", ("pixel_values",))


def clip(edge: int, crop: int) -> Preparer:
    return preparer(
        CLIPImageProcessorPil(
            size={"shortest_edge": edge}, crop_size={"height": crop, "width": crop}
        )
    )


def pixels(preparer: Preparer, image: Image.Image) -> torch.Tensor:
    return preparer(image, torch.device("cpu")).inputs["pixel_values"]


@pytest.mark.parametrize("size", SIZES)
def test_the_model_makes_the_same_pixels_of_it(case: Case, size: tuple[int, int]) -> None:
    image = noise(size)
    model = case.model
    seen = model.seen_as_picture(image)
    again = model.seen_as_picture(seen)
    once, whole, twice = (
        picture.inputs["pixel_values"] for picture in model.prepare([seen, image, again])
    )
    assert (seen.mode, seen.size) == ("RGB", (once.shape[3], once.shape[2]))
    assert torch.equal(once, whole)
    assert torch.equal(once, twice)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("edges", [(48, 48), (55, 48), (56, 47)])
def test_a_processor_that_scales_more_than_it_crops(
    edges: tuple[int, int], size: tuple[int, int]
) -> None:
    """Its own output, scaled again, would lose an edge: the margin keeps the crop where it was."""
    processor, image = clip(*edges), noise(size)
    seen = preprocessing.seen(processor, image)
    assert seen.size == (edges[0], edges[0])
    assert torch.equal(pixels(processor, seen), pixels(processor, image))
    assert preprocessing.seen(processor, seen).tobytes() == seen.tobytes()


def test_processors_of_other_libraries() -> None:
    """SigLIP's, by torchvision where that is installed: at most half a level of rounding."""
    processor = preparer(SiglipImageProcessor(size={"height": 48, "width": 48}))
    seen = preprocessing.seen(processor, noise((90, 70)))
    assert seen.size == (48, 48)
    once, whole = pixels(processor, seen), pixels(processor, noise((90, 70)))
    assert float((once - whole).abs().max()) <= 0.5 / 127.5


def test_a_processor_that_changes_its_own_output_is_refused() -> None:
    with pytest.raises(BadData, match="another picture of its own output"):
        preprocessing.seen(clip(30, 48), noise((60, 60)))


@pytest.mark.parametrize(
    "processor", [clip(48, 48), preparer(BlipImageProcessorPil(size={"height": 48, "width": 48}))]
)
def test_a_larger_picture_shows_the_same_part(processor: Preparer) -> None:
    """A smooth picture: twice as large and scaled back it differs by two levels at most."""
    y, x = np.mgrid[:150, :260]
    image = Image.fromarray(np.stack([x * 0.9, y * 1.6, 255 - x * 0.5], 2).astype(np.uint8))
    larger = preprocessing.seen(processor, image, (96, 96))
    assert larger.size == (96, 96)
    there, here = (
        np.asarray(preprocessing.seen(processor, each), np.int16) for each in (larger, image)
    )
    assert np.abs(there - here).max() <= 2


def test_a_larger_picture_is_a_square_where_one_is_cropped() -> None:
    with pytest.raises(SettingError, match="a square"):
        preprocessing.seen(clip(48, 48), noise((60, 60)), (96, 80))


@pytest.mark.parametrize(
    "processor",
    [
        preparer(Idefics3ImageProcessorPil()),  # makes tiles
        Preparer(Qwen2VLImageProcessorPil(), None, "", ("pixel_values", "image_grid_thw")),
        preparer(CLIPImageProcessorPil(size={"shortest_edge": 48}, do_center_crop=False)),
    ],
)
def test_a_processor_of_many_sizes_sees_the_frame(processor: Preparer) -> None:
    frame = noise((90, 70)).convert("L")
    seen = preprocessing.seen(processor, frame)
    assert (seen.mode, seen.size) == ("RGB", (90, 70))
    assert seen.tobytes() == frame.convert("RGB").tobytes()
