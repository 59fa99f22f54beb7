"""The picture that the vision tower sees of a frame, to be sent in place of its tokens.

Shapes: H and W of the tower's input.
"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.models import thin
from cdcca_cli.models.pictures import Preparer

if TYPE_CHECKING:
    from PIL.Image import Image


def seen(preparer: Preparer, image: "Image", size: tuple[int, int] | None = None) -> "Image":
    """The 8-bit RGB picture that the processor makes before it rescales and normalises.

    The processor makes the same of it again. Where it scales to a larger picture than it crops, the
    edges of the crop are repeated up to that size. Where it makes tiles or patches, or depends on
    the frame's size, the picture is the frame.

    Args: size: width and height of another picture of the same part, scaled by the processor's
        filter: all of the image or, if the processor crops, the square at its centre.
    Raises: BadData if a processor of one size changes its own output; SettingError if `size` cannot
        be.
    """
    processor = preparer.image_processor
    if size is not None:
        return _scaled(processor, image, size)
    inner = levels(preparer, image)
    if inner is None:
        return image.convert("RGB")
    picture = inner
    if thin.crops_centre(processor):
        spare = [max(0, processor.size["shortest_edge"] - side) for side in inner.shape[:2]]
        margins = [(each // 2, each - each // 2) for each in spare]
        picture = np.pad(inner, (*margins, (0, 0)), mode="edge")
    found = _image(picture)
    again = levels(preparer, found)
    if again is None or not np.array_equal(again, inner):
        raise BadData(
            "the image processor makes another picture of its own output: send tokens instead"
        )
    return found


def levels(preparer: Preparer, image: "Image") -> NDArray[np.uint8] | None:
    """(H, W, 3); None if the processor does not make one picture of one size."""
    if not preparer.has_one_size:
        return None
    processor = preparer.image_processor
    if thin.crops_centre(processor):
        image = thin.centre(image)
    made = processor(
        images=[image.convert("RGB")], return_tensors="pt", do_rescale=False, do_normalize=False
    )
    found: Tensor = made["pixel_values"][0]
    made_levels: NDArray[np.uint8] = (
        found.float().round().clamp(0, 255).byte().permute(1, 2, 0).numpy()
    )
    return made_levels


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
