"""The payload `frame`: a picture as the vision tower sees it, coded, or the frame's own file.

`formats.pictures` says what such a file may hold; the model makes the picture that is coded
(`LoadedModel.seen`) and the tokens of the decoded one. The same picture, quality and libraries
give the same bytes.
"""

import io
from typing import TYPE_CHECKING, Any

from cdcca_cli.errors import BadData, Unavailable
from cdcca_cli.formats.pictures import MEDIA, MOST_BYTES, Picture, bare, opened, require_size

if TYPE_CHECKING:
    from PIL.Image import Image

AVIF, WEBP, JPEG, PNG = MEDIA
CODED = (AVIF, WEBP, JPEG)
"""The media types that `encode` makes; the others are of files as a camera wrote them."""
QUALITY = {AVIF: 50, WEBP: 75, JPEG: 50}
"""The default by media type: at each the shipped tower's tokens change by 6 to 7 % of their
variance (`examples/benchmarks/pictures.py`)."""
# 4:4:4: up to 14 % fewer bytes than 4:2:0 at the same change of those tokens, at these qualities
# and below; on photographs as many at the same PSNR.
# One thread and no tiles: the same bytes on any number of cores.
_OPTIONS: dict[str, dict[str, Any]] = {
    AVIF: {"speed": 6, "subsampling": "4:4:4", "max_threads": 1, "autotiling": False},
    WEBP: {"method": 6},
    JPEG: {"optimize": True, "progressive": False, "subsampling": "4:4:4"},
}
CURE = "pip install 'pillow>=11.3'"


def can_encode(media: str) -> bool:
    """Whether this Pillow writes a media type; AVIF is new, and not in every build."""
    from PIL import Image

    Image.init()
    return _name(media) in Image.SAVE


def encode(image: "Image", media: str = AVIF, quality: int | None = None) -> Picture:
    """The picture as a file of this media type, without metadata.

    Args: quality: 1 to 100; None: QUALITY of the media type.

    Raises: Unavailable without an encoder; BadData if the picture is too large.
    """
    if not can_encode(media):
        raise Unavailable(f"this Pillow cannot write {media}: {CURE}")
    try:
        require_size(image.size)  # encoders have limits of their own, each with its error
    except ValueError as error:
        raise BadData(f"a picture that cannot be sent: {error}") from None
    plain, out = image.convert("RGB"), io.BytesIO()
    plain.info = {}  # where Pillow keeps comments and colour profiles
    chosen = QUALITY[media] if quality is None else quality
    plain.save(out, _name(media), quality=chosen, **_OPTIONS[media])
    return bare(out.getvalue())


def decode(picture: Picture) -> "Image":
    """The pixels, in RGB.

    Raises: BadData unless the file is whole, bare (`formats.pictures`), and of the media type and
        size that the picture declares; Unavailable without a decoder.
    """
    found = bare(picture.data)
    if found.media != picture.media:
        raise BadData(f"a picture declared as {picture.media[:40]} is {found.media}")
    if found.size != picture.size:
        declared, real = (f"{width} x {height}" for width, height in (picture.size, found.size))
        raise BadData(f"a picture declared as {declared} is {real} pixels")
    if found.data != picture.data:
        raise BadData(f"{found.media} that holds more than its picture")
    from PIL import Image

    Image.init()
    if _name(found.media) not in Image.OPEN:
        raise Unavailable(f"this Pillow cannot read {found.media}: {CURE}")
    with opened(found.data, [_name(found.media)], found.media) as image:
        if image.size != found.size or image.has_transparency_data:
            raise BadData(f"{found.media} of another size than its header, or transparent")
        return image.convert("RGB")


def original(file: bytes, image: "Image", smaller_than: int) -> Picture | None:
    """The frame's own file without its metadata, where that takes fewer bytes.

    Args: image: the frame's pixels as the device loaded them. smaller_than: the bytes of the coded
        picture.
    Returns: None if the file is not smaller, or its pixels without its metadata are not `image`
        (EXIF turned it, say), or it is of another kind.
    """
    if len(file) > MOST_BYTES:
        return None
    try:
        found = bare(file)
        if len(found.data) >= smaller_than or found.size != image.size:
            return None
        is_same = decode(found).tobytes() == image.tobytes()
    except (BadData, Unavailable):
        return None
    return found if is_same else None


def _name(media: str) -> str:
    """Pillow's name of a format."""
    return media.removeprefix("image/").upper()
