"""What the same frames would cost without tokens: raw pixels, the files as they are, JPEG, WebP.

All at the frames' own size. Video coding and the model's own input size are not looked at here.
"""

import io
import os
from collections import Counter
from collections.abc import Container, Iterable

from cdcca_cli.datasets import Frame, load_image

QUALITY = 75
FORMS = ("raw_rgb", "original", f"jpeg_q{QUALITY}", f"webp_q{QUALITY}")


def measure_frames(
    frames: Iterable[Frame], sent: Container[str]
) -> tuple[Counter[str], Counter[str]]:
    """Bytes by form of all frames, and of those whose id is in `sent`; "frames" is their number.

    Raw is 3 bytes a pixel of the image as shown; a file that holds several frames (a video) counts
    once; JPEG and WebP are PIL's, quality 75, its defaults otherwise (4:2:0).
    Raises: as `datasets.load_image`.
    """
    every: Counter[str] = Counter()
    chosen: Counter[str] = Counter()
    files: set[str] = set()
    chosen_files: set[str] = set()
    for frame in frames:
        sizes = _sizes(frame)
        name = os.fspath(frame.image)
        original = os.stat(name).st_size
        every.update(sizes, original=0 if name in files else original)
        files.add(name)
        if frame.id in sent:
            chosen.update(sizes, original=0 if name in chosen_files else original)
            chosen_files.add(name)
    return every, chosen


def _sizes(frame: Frame) -> dict[str, int]:
    image = load_image(frame)
    sizes = {"frames": 1, "raw_rgb": 3 * image.width * image.height}
    for form in ("jpeg", "webp"):
        coded = io.BytesIO()
        image.save(coded, form, quality=QUALITY)
        sizes[f"{form}_q{QUALITY}"] = coded.getbuffer().nbytes
    return sizes
