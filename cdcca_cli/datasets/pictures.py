"""Picture files to pixels: 8-bit RGB, upright, and either whole or refused.

EXIF orientation is applied, transparency lies on white, 16-bit grey is scaled to 8 bits, and the
first image of an animation counts. Pixels whose range is unknown (floating point, 32-bit grey above
65,535) are refused. A 16-bit file that uses only 12 bits is nearly black: a message names the cure.

`formats.pictures` opens the file and refuses one that was cut short.
"""

import os
import re
import stat
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.files import reason
from cdcca_cli.formats import pictures as picture_files

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("AVIF", "BMP", "DIB", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")
"""By Pillow's names. Others are not opened: Pillow passes EPS to Ghostscript."""
MAGIC = re.compile(
    rb"\xff\xd8\xff|\x89PNG|GIF8|BM|II\*\0|MM\0\*|P[1-6]\s|RIFF....WEBP|....ftypavi[fs]"
    rb"|\0\0\0\x0cjP  |\xff\x4f\xff\x51",
    re.S,
)
"""How these files begin."""
MAX_FILE_BYTES = 1 << 30


@cache
def suffixes() -> frozenset[str]:
    """The suffixes of picture files, in lower case."""
    from PIL import Image

    known = (*FORMATS, "MPO")  # what Pillow calls a JPEG file of several pictures
    return frozenset(
        suffix for suffix, name in Image.registered_extensions().items() if name in known
    )


def require_file(path: Path) -> None:
    """Raises: MissingInput if there is no such file, BadData if it is not a plain file."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise MissingInput(reason(path, error)) from None
    except ValueError:
        raise BadData(f"{path!r}: not a file name") from None
    if not stat.S_ISREG(mode):
        found = "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"
        raise BadData(f"{path}: expected a file, found a {found}")
    if not os.access(path, os.R_OK):
        raise MissingInput(f"{path}: no permission to read it")


def load(path: Path) -> "Image":
    """The pixels of a picture file, in RGB.

    Raises: MissingInput (66); BadData (65) if it is damaged, or exceeds Pillow's pixel limit.
    """
    from PIL import ImageOps

    with picture_files.opened(_read(path), FORMATS, str(path)) as opened:
        try:
            upright = ImageOps.exif_transpose(opened)
        except Exception:  # an unreadable EXIF block beside sound pixels: as stored
            upright = opened
        return _rgb(upright, path)


def _read(path: Path) -> bytes:
    require_file(path)
    try:
        with open(path, "rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise MissingInput(reason(path, error)) from None
    if len(data) > MAX_FILE_BYTES:
        raise BadData(f"{path}: an image file of more than {MAX_FILE_BYTES:,} bytes")
    return data


def _rgb(image: "Image", path: Path) -> "Image":
    """8-bit RGB. Pillow's `convert` alone would clip 16-bit grey at 255."""
    from PIL import Image

    if image.mode == "F":
        raise BadData(
            f"{path}: floating-point pixels, whose range is unknown: save it with 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        image = image.convert("I")
        low, high = (int(level) for level in image.getextrema())  # type: ignore[arg-type]
        if low < 0 or high > 0xFFFF:
            raise BadData(
                f"{path}: 32-bit grey of {low:,} to {high:,}, whose range is unknown: "
                "save it with 8 or 16 bits"
            )
        if 0 < high < 1 << 12:
            _mention_dim_levels()
        return image.point(lambda level: level * (1 / 257)).convert("L").convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")


@cache
def _mention_dim_levels() -> None:
    streams.message(
        "a 16-bit picture has no level above 4,095 of 65,535 and is nearly black: if its camera "
        "gives 12 bits, multiply the levels by 16"
    )
