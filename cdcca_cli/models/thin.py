"""Pictures much longer than wide, before an image processor scales them up.

A processor that scales the shortest edge to S pixels and then crops the centre makes S x S n pixels
of a picture of 1 x n, to keep S x S of them: a picture of 84 bytes takes gigabytes. Cropping the
long side around its centre first leaves the same pixels.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_RATIO = 16
"""Longer pictures are cropped: to about this ratio, which keeps all that the crop can show."""


def crops_centre(image_processor: Any) -> bool:
    """Whether a processor scales by the shortest edge, then keeps a centre of about that size."""
    size = getattr(image_processor, "size", None) or {}
    crop = getattr(image_processor, "crop_size", None) or {}
    edge = size.get("shortest_edge") if hasattr(size, "get") else None
    if not edge or not getattr(image_processor, "do_center_crop", False):
        return False
    return max(crop.get("height") or 0, crop.get("width") or 0) <= 4 * edge


def centre(image: "Image") -> "Image":
    """The middle of a picture whose sides differ by more than LARGEST_RATIO; others as they are.

    The part's length is a multiple of the short side, so that it is scaled by the same factor, and
    its centre is that of the whole picture.
    """
    short, long = sorted(image.size)
    if long <= (LARGEST_RATIO + 1) * short:
        return image
    kept = LARGEST_RATIO * short
    if (long - kept) % 2:
        kept += short if short % 2 else 1
    start = (long - kept) // 2
    upright = image.height == long
    box = (0, start, short, start + kept) if upright else (start, 0, start + kept, short)
    return image.crop(box)
