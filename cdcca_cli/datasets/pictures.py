"""Picture files to pixels: 8-bit RGB, upright, and either whole or refused.

EXIF orientation is applied, transparency lies on white, 16-bit grey is scaled to 8 bits, and the
first image of an animation counts. Pixels whose range is unknown (floating point, 32-bit grey above
65,535) are refused. A 16-bit file that uses only 12 bits is nearly black: a message names the cure.

A file that was cut short is refused, and so is one whose end is zeros (a camera lost power), if the
format shows it: PNG by its checksums, JPEG by its end marker, WebP, GIF and AVIF because their
coded data never ends in zeros.
"""

import io
import os
import re
import stat
import warnings
import zlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from cdcca_cli import streams
from cdcca_cli.errors import BadData, MissingInput
from cdcca_cli.files import reason

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
_HEIC = re.compile(rb"....ftyp(hei[cxms]|hev[cxms]|mif1|msf1)", re.S)
_MARKER = re.compile(rb"\xff+([^\x00\xd0-\xd7\xff])")  # no stuffed byte, no restart
_END_OF_IMAGE, _START_OF_SCAN = 0xD9, 0xDA
_ZEROS = bytes(16)


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
    from PIL import Image, ImageFile, ImageOps

    data = _read(path)
    Image.init()
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            ImageFile.LOAD_TRUNCATED_IMAGES = False  # another library may have switched it on
            known = [name for name in FORMATS if name in Image.OPEN]
            with Image.open(io.BytesIO(data), formats=known) as opened:
                width, height = opened.size
                if limit is not None and width * height > limit:
                    raise Image.DecompressionBombError
                opened.load()
                if (check := _CHECKS.get(opened.format or "")) is not None:
                    check(data)
                try:
                    upright = ImageOps.exif_transpose(opened)
                except Exception:  # an unreadable EXIF block beside sound pixels: as stored
                    upright = opened
                return _rgb(upright, path)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadData(
            f"{path}: refused, more than {limit:,} pixels: make the image smaller"
        ) from None
    except Image.UnidentifiedImageError:
        raise BadData(f"{path}: not an image ({looks_like(data[:64])})") from None
    except (BadData, MemoryError):
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        words = " ".join(str(error).split())[:200] or type(error).__name__
        raise BadData(f"{path}: damaged or truncated image ({words})") from None


def looks_like(head: bytes) -> str:
    """What a file with these first bytes is, in words, if it is not a picture."""
    if not head:
        return "the file is empty"
    if is_heic(head):
        return "it is HEIC, which cannot be read here: convert it to JPEG or PNG"
    shown = head[:16].decode("latin-1").encode("unicode_escape").decode()
    return f"it begins with '{shown}'"


def is_heic(head: bytes) -> bool:
    """Whether a file with these first bytes is a HEIC picture."""
    return _HEIC.match(head) is not None


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


def _png(data: bytes) -> None:
    """Raises: ValueError for a wrong checksum, or without the last chunk."""
    at = 8
    while True:
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        end = at + 8 + size
        if end + 4 > len(data):
            raise ValueError("cut short")
        checksum = int.from_bytes(data[end : end + 4], "big")
        if kind[:1].isupper() and zlib.crc32(memoryview(data)[at + 4 : end]) != checksum:
            raise ValueError("wrong checksum")
        if kind == b"IEND":
            return
        at = end + 4


def _jpeg(data: bytes) -> None:
    """Raises: ValueError without an end marker."""
    at = 2
    while (found := _MARKER.search(data, at)) is not None:
        marker, at = found[1][0], found.end()
        if marker == _END_OF_IMAGE:
            return
        at += int.from_bytes(data[at : at + 2], "big")
    raise ValueError("no end marker")


def _coded(data: bytes) -> None:
    if data.endswith(_ZEROS):
        raise ValueError("it ends in zeros")


_CHECKS: dict[str, Callable[[bytes], None]] = {
    "PNG": _png,
    "JPEG": _jpeg,
    "MPO": _jpeg,
    "WEBP": _coded,
    "GIF": _coded,
    "AVIF": _coded,
}


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
