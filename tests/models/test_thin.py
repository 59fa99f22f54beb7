"""A thin picture costs no more than another, and the crop changes no pixel of the result."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, Qwen2VLImageProcessorPil

from cdcca_cli.errors import BadData
from cdcca_cli.models import thin
from cdcca_cli.models.pictures import Preparer


def processor(edge: int) -> CLIPImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": edge}, crop_size={"height": edge, "width": edge}
    )


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(
        np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    )


@pytest.mark.parametrize(
    "size", [(1, 100), (100, 1), (1, 101), (2, 64), (2, 65), (3, 80), (7, 160)]
)
def test_the_same_pixels_as_without_the_crop(size: tuple[int, int]) -> None:
    """The scale is a whole number here (84 = 1, 2, 3, 7 times another), so nothing is rounded."""
    make, image = processor(84), noise(*size)
    cropped = thin.centre(image)
    assert max(cropped.size) < max(image.size)
    assert min(cropped.size) == min(image.size)
    whole, part = (
        make(images=[one], return_tensors="np")["pixel_values"] for one in (image, cropped)
    )
    assert whole.shape == part.shape == (1, 3, 84, 84)
    assert np.abs(whole - part).max() <= 0.02  # a step of 1/255 is 0.015 after normalisation


def test_pictures_of_usual_shapes_are_left_alone() -> None:
    for size in ((16, 16), (640, 480), (17, 1), (3000, 200)):
        image = Image.new("RGB", size)
        assert thin.centre(image) is image


def test_only_where_the_centre_is_kept() -> None:
    """BLIP squeezes the whole picture into a square: nothing may be cut off there."""
    from transformers import BlipImageProcessor

    assert thin.crops_centre(processor(336))
    assert not thin.crops_centre(BlipImageProcessor())
    assert not thin.crops_centre(CLIPImageProcessor(do_center_crop=False))


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_picture_that_a_processor_refuses_is_bad_data(size: tuple[int, int]) -> None:
    """Qwen2-VL's takes none whose sides differ by more than 200 to 1."""
    known = Qwen2VLImageProcessorPil()
    preparer = Preparer(known, None, "<image>", ["pixel_values", "image_grid_thw"])
    assert preparer(noise(100, 1), torch.device("cpu")).inputs
    with pytest.raises(BadData, match=f"no picture of {size[0]} x {size[1]}: .* 200"):
        preparer(noise(*size), torch.device("cpu"))
