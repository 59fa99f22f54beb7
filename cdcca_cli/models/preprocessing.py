"""The picture that the vision tower sees of a frame, to be sent in place of its tokens.

Shapes: H and W of the tower's input.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from cdcca_cli.errors import BadData
from cdcca_cli.models import thin
from cdcca_cli.models.pictures import Preparer
from cdcca_cli.payloads import preparing

if TYPE_CHECKING:
    from PIL.Image import Image

_BICUBIC = 3  # PIL.Image.Resampling.BICUBIC


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
    crops = thin.crops_centre(processor)
    if size is not None:
        resample = getattr(processor, "resample", None)
        how = _BICUBIC if resample is None else int(resample)
        return preparing.scaled(image, size, crops=crops, resample=how)
    inner = levels(preparer, image)
    if inner is None:
        return image.convert("RGB")
    picture = inner
    if crops:
        picture = preparing.with_margins(inner, processor.size["shortest_edge"])
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
