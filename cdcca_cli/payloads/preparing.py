"""What the vision tower sees of a frame, by the rule of a profile: without torch and transformers.

The pixels are those of transformers' image processors for Pillow: scaled, or scaled by the shortest
side and cut at the centre. `models.profile` tries a rule before it writes it.
"""

from typing import TYPE_CHECKING

from cdcca_cli.formats.profile import PictureRule
from cdcca_cli.models import thin

if TYPE_CHECKING:
    from PIL.Image import Image


def prepared(image: "Image", rule: PictureRule) -> "Image":
    """The picture of `rule.size`, 8-bit RGB."""
    from PIL.Image import Resampling

    height, width = rule.size
    picture = image.convert("RGB")
    how = Resampling(rule.resample)
    if not rule.crops:
        return picture.resize((width, height), how)
    assert rule.edge is not None
    picture = thin.centre(picture)
    short, long = sorted(picture.size)
    scaled = int(rule.edge * long / short)
    tall = picture.height == long
    picture = picture.resize((rule.edge, scaled) if tall else (scaled, rule.edge), how)
    top, left = (picture.height - height) // 2, (picture.width - width) // 2
    return picture.crop((left, top, left + width, top + height))
