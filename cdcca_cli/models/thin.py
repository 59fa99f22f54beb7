"""Crops pictures that are much longer than wide, before an image processor scales them up.

A processor that scales the shortest edge to S pixels and then crops the centre scales a picture of
1 x n to S x (S n) pixels and keeps S x S: 84 bytes of PNG can take gigabytes. Cropping the long
side around its centre first gives the same pixels.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from PIL.Image import Image

LARGEST_RATIO = 16
"""Pictures are cropped to about this ratio of their sides."""


def crops_centre(image_processor: Any) -> bool:
    """Whether a processor scales by the shortest edge, then keeps a centre of about that size."""
    size = getattr(image_processor, "size", None) or {}
    crop = getattr(image_processor, "crop_size", None) or {}
    edge = size.get("shortest_edge") if hasattr(size, "get") else None
    if not edge or not getattr(image_processor, "do_center_crop", False):
        return False
    return max(crop.get("height") or 0, crop.get("width") or 0) <= 4 * edge


def centre(image: "Image") -> "Image":
    """The middle of a picture whose sides differ by more than LARGEST_RATIO; others unchanged.

    The scale and the centre stay the same.
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
