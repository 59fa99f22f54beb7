"""From a picture to the vision tower's input, by the checkpoint's own image processor.

Shapes: B batch, H and W of the tower's input.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.models import thin

if TYPE_CHECKING:
    from PIL.Image import Image


def pixels(processor: Any, images: Sequence["Image"], **switched_off: bool) -> Tensor:
    """What the processor makes: (B, 3, H, W)."""
    if thin.crops_centre(processor):
        images = [thin.centre(image) for image in images]
    made = processor(
        images=[image.convert("RGB") for image in images], return_tensors="pt", **switched_off
    )
    found: Tensor = made["pixel_values"]
    return found


def seen(processor: Any, image: "Image", size: tuple[int, int] | None = None) -> "Image":
    """The 8-bit RGB picture that the processor makes before it rescales and normalises.

    The processor makes the same of it again. Where it scales to a larger picture than it crops, the
    edges of the crop are repeated up to that size.

    Args: size: width and height of another picture of the same part, scaled by the processor's
        filter: all of the image or, if the processor crops, the square at its centre.
    Raises: BadData if the processor changes its own output; SettingError if `size` cannot be.
    """
    if size is not None:
        return _scaled(processor, image, size)
    picture = inner = _levels(processor, image)
    if thin.crops_centre(processor):
        spare = [max(0, processor.size["shortest_edge"] - side) for side in inner.shape[:2]]
        margins = [(each // 2, each - each // 2) for each in spare]
        picture = np.pad(inner, (*margins, (0, 0)), mode="edge")
    found = _image(picture)
    if not np.array_equal(_levels(processor, found), inner):
        raise BadData(
            "the image processor makes another picture of its own output: send tokens instead"
        )
    return found


def _levels(processor: Any, image: "Image") -> NDArray[np.uint8]:
    """(H, W, 3)"""
    made = pixels(processor, [image], do_rescale=False, do_normalize=False)[0]
    levels: NDArray[np.uint8] = made.float().round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    return levels


def _image(levels: NDArray[np.uint8]) -> "Image":
    from PIL import Image

    return Image.fromarray(levels)


def _scaled(processor: Any, image: "Image", size: tuple[int, int]) -> "Image":
    box = (0.0, 0.0, float(image.width), float(image.height))
    if thin.crops_centre(processor):
        if size[0] != size[1]:
            raise SettingError("size", "expected a square, as the image processor crops one", size)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    bicubic = 3  # PIL.Image.Resampling.BICUBIC
    resample = getattr(processor, "resample", None)
    return image.convert("RGB").resize(size, bicubic if resample is None else int(resample), box)
