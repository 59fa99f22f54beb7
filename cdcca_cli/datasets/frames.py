"""The one Frame type, and how an image becomes pixels.

A frame is an image and what is asked of it. Labels (choices' correct index, ten answers, captions)
travel with the asks as read from an annotation file: they are for scoring and never leave this
package's readers for the uplink.

This module does not know any file format but the images themselves: `sources.read_frames` does.
"""

import os
import stat
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from cdcca_cli.errors import BadData, MissingInput

if TYPE_CHECKING:
    from PIL.Image import Image

Task = Literal["vqa", "caption"]
TASKS: tuple[Task, ...] = ("vqa", "caption")
IMAGE_SUFFIXES = frozenset(
    (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
)


@dataclass(frozen=True, slots=True)
class LabelledAsk:
    """One thing asked of a frame, with its labels where the source has them.

    id: the question's id, unique in its source; a caption's ask has the id of its image.
    prompt: the question; None asks for a caption in the family's own words.
    answers: the human answers, usually ten. captions: the human captions, usually five.
    kind: the question's kind as its source names it (VQAv2's answer type, a manifest's `kind`).
    """

    id: str
    prompt: str | None = None
    task: Task = "caption"
    choices: list[str] | None = None
    correct_choice_idx: int | None = None
    answers: list[str] | None = None
    captions: list[str] | None = None
    kind: str | None = None
    difficult_direct_answer: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """One image and everything asked of it.

    id: unique in its source: the path in its folder or manifest, the image id of an annotation
        file, `clip.mp4#12` for a frame of a video.
    image: the file that holds it; for a video the video file, with the frame's `position` in it.
    """

    id: str
    image: Path
    asks: list[LabelledAsk] = field(default_factory=list)
    domain: str | None = None
    position: int | None = None


class Frames(Protocol):
    """A source of frames: its length is known, and it can be gone through again and again."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Frame]: ...


def load_image(frame: Frame) -> "Image":
    """The frame's pixels as a PIL image in RGB, upright (EXIF orientation applied).

    16-bit grey is scaled to 8 bits, transparency dropped; of an animation the first image counts.

    Raises: MissingInput (66) if there is no such file; BadData (65), naming the file, if it is not
        an image, is cut short, or holds more pixels than PIL's limit against decompression bombs.
    """
    if frame.position is not None:
        from cdcca_cli.datasets import video

        return video.load(frame.image, frame.position)
    return _open_image(frame.image)


def _open_image(path: Path) -> "Image":
    from PIL import Image, ImageFile, ImageOps

    require_file(path)
    limit = Image.MAX_IMAGE_PIXELS
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            # Another library may have switched this on for the whole process; a grey lower half
            # must never pass for a frame.
            ImageFile.LOAD_TRUNCATED_IMAGES = False
            with Image.open(path) as opened:
                width, height = opened.size
                if limit is not None and width * height > limit:
                    raise Image.DecompressionBombError
                opened.load()
                try:
                    upright = ImageOps.exif_transpose(opened)
                except Exception:  # an unreadable EXIF block beside sound pixels: as stored
                    upright = opened
                return _rgb(upright)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise BadData(
            f"{path}: refused, more than {limit:,} pixels: make the image smaller"
        ) from None
    except Image.UnidentifiedImageError:
        raise BadData(f"{path}: not an image ({_looks_like(path)})") from None
    except MemoryError:
        raise
    except Exception as error:  # PIL's decoders raise nearly anything on damaged files
        raise BadData(f"{path}: damaged or truncated image ({_one_line(error)})") from None


def _rgb(image: "Image") -> "Image":
    """RGB, 8 bits. PIL clips 16-bit grey at 255, which turns such a picture white: scale it."""
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda level: level * (1 / 257)).convert("L")
    return image.convert("RGB")


def require_file(path: Path) -> None:
    """Refuses what is not there (MissingInput) and what is not a plain file (BadData)."""
    try:
        mode = os.stat(path).st_mode
    except OSError as error:
        raise MissingInput(f"{path}: {error.strerror or error}") from None
    except ValueError:
        raise BadData(f"{path!r}: not a file name") from None
    if not stat.S_ISREG(mode):
        raise BadData(f"{path}: a file was expected, found a {_sort_of(mode)}")
    if not os.access(path, os.R_OK):
        raise MissingInput(f"{path}: no permission to read it")


def _sort_of(mode: int) -> str:
    return "folder" if stat.S_ISDIR(mode) else "device, pipe or socket"


def _looks_like(path: Path) -> str:
    with open(path, "rb") as file:
        head = file.read(64)
    if not head:
        return "the file is empty"
    shown = head[:16].decode("latin-1").encode("unicode_escape").decode()
    return f"it begins with '{shown}'"


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
