"""What the vision tower sees of a frame, by the rule of a profile: without torch and transformers.

The pixels are those of transformers' image processors for Pillow: scaled, or scaled by the shortest
side and cut at the centre. `models.profile` tries a rule before it writes it.
"""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from cdcca_cli.errors import SettingError
from cdcca_cli.formats.profile import PictureRule
from cdcca_cli.models import thin

if TYPE_CHECKING:
    from PIL.Image import Image


def prepared(image: "Image", rule: PictureRule) -> "Image":
    """The picture of `rule.size`, 8-bit RGB."""
    from PIL.Image import Resampling

    height, width = rule.size
    how = Resampling(rule.resample)
    if not rule.crops:
        return image.convert("RGB").resize((width, height), how)
    picture = thin.centre(image).convert("RGB")
    assert rule.edge is not None
    picture = thin.centre(picture)
    short, long = sorted(picture.size)
    scaled = int(rule.edge * long / short)
    tall = picture.height == long
    picture = picture.resize((rule.edge, scaled) if tall else (scaled, rule.edge), how)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return picture.crop((left, top, left + width, top + height))


def seen_as_picture(
    image: "Image", rule: PictureRule, size: tuple[int, int] | None = None
) -> "Image":
    """The picture to send, of which the tower's processor makes `prepared`.

    Args: size: width and height of another picture of the same part (`scaled`).
    """
    from PIL import Image

    if size is not None:
        return scaled(image, size, crops=rule.crops, resample=rule.resample)
    found = prepared(image, rule)
    if rule.edge is None:
        return found
    return Image.fromarray(with_margins(np.asarray(found), rule.edge))


def with_margins(levels: NDArray[np.uint8], edge: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) with its edges repeated up to `edge` pixels a side, so that a processor
    that scales to `edge` before it crops leaves it as it is."""
    spare = [max(0, edge - side) for side in levels.shape[:2]]
    margins = [(each // 2, each - each // 2) for each in spare]
    return np.pad(levels, (*margins, (0, 0)), mode="edge")


def scaled(image: "Image", size: tuple[int, int], *, crops: bool, resample: int) -> "Image":
    """All of the image or, if the processor `crops`, the square at its centre, in another size.

    Raises: SettingError if `size` cannot be.
    """
    box = (0.0, 0.0, float(image.width), float(image.height))
    if crops:
        if size[0] != size[1]:
            raise SettingError("size", "expected a square, as the image processor crops one", size)
        side = min(image.size)
        left, top = (image.width - side) / 2, (image.height - side) / 2
        box = (left, top, left + side, top + side)
    return image.convert("RGB").resize(size, resample, box)
