"""Bytes of frames as pictures at the size that a vision tower sees, by media type and quality.

    python examples/benchmarks/pictures.py [--photographs FOLDER] [--five FOLDER]
        [--checkpoint CHECKPOINT] [--count 60] [--quality 30,40,50,60,75]

Prints one Markdown table. A row is a media type at a quality, as `cdcca_cli.payloads` codes it.
Columns: mean bytes of the shipped frames at the shipped tower's size, and the relative squared
error of that tower's tokens (of their variance over frames; the held-out frames);
mean bytes of COUNT photographs at 224, 336 and 448 pixels (whole, scaled, bicubic), the PSNR at 224
in dB and the milliseconds to code one there; the sum of five frames at 224, and of the same five
behind one another under zstd 19, as a record of a shard would hold them. A folder that is not there
is left out with a line on the standard error.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import zstandard
from PIL import Image

import cdcca_cli
from cdcca_cli.datasets import load_image, read_frames
from cdcca_cli.payloads import pictures

ASSETS = Path(cdcca_cli.__file__).parent / "assets"
SIZES = (224, 336, 448)
Images = list[Image.Image]


def read(folder: Path | None, count: int) -> Images:
    """The first pictures of a folder and the folders in it, in the order of their names."""
    if folder is None or not folder.is_dir():
        sys.stderr.write(f"left out: {folder or 'a folder that was not given'} is not there\n")
        return []
    return [load_image(frame) for frame in islice(read_frames(folder), count)]


def squeezed(images: Images, size: int) -> Images:
    return [image.resize((size, size), Image.Resampling.BICUBIC) for image in images]


def psnr(images: Images, coded: Sequence[pictures.Picture]) -> float:
    """Peak signal-to-noise ratio over all values of all pictures, in dB."""
    errors = [
        np.square(np.asarray(image, np.float32) - np.asarray(pictures.decode(each))).mean()
        for image, each in zip(images, coded, strict=True)
    ]
    return float(10 * np.log10(255**2 / np.mean(errors)))


class Tower:
    """The shipped student's tower, and the frames as it sees them."""

    def __init__(self, checkpoint: Path, count: int) -> None:
        import torch

        from cdcca_cli import models

        self._torch, self._model = torch, models.load(checkpoint, compute="cpu")
        frames = read(ASSETS / "frames" / "heldout", count)
        self.images = [self._model.seen_as_picture(image) for image in frames]
        self._tokens = self._of(self.images)

    def _of(self, images: Images):  # type: ignore[no-untyped-def] # a tensor (F, N, C)
        with self._torch.no_grad():
            seen = self._model.see(self._model.prepare(images))
        return self._torch.stack([one.tokens for one in seen])

    def error(self, coded: Sequence[pictures.Picture]) -> float:
        change = self._of([pictures.decode(each) for each in coded]) - self._tokens
        return float(change.square().mean() / self._tokens.var(0).mean())


def row(media: str, quality: int, tower: Tower, photographs: Images, five: Images) -> list[str]:
    def coded(images: Images) -> list[pictures.Picture]:
        return [pictures.encode(image, media, quality) for image in images]

    def mean(of: Sequence[pictures.Picture]) -> str:
        return f"{np.mean([len(each.data) for each in of]):,.0f}" if of else ""

    seen = coded(tower.images)
    cells = [media[6:], str(quality), mean(seen), f"{tower.error(seen):.3f}"]
    for size in SIZES:
        images = squeezed(photographs, size)
        began = time.process_time()
        made = coded(images)
        milliseconds = 1000 * (time.process_time() - began) / max(len(made), 1)
        cells.append(mean(made))
        if size == SIZES[0]:
            cells += [f"{psnr(images, made):.1f}", f"{milliseconds:.0f}"] if made else ["", ""]
    together = b"".join(each.data for each in coded(squeezed(five, SIZES[0])))
    packed = zstandard.ZstdCompressor(level=19).compress(together)
    return [*cells, *([f"{len(together):,}", f"{len(packed):,}"] if five else ["", ""])]


def main() -> None:
    parser = argparse.ArgumentParser(description="Bytes of frames as pictures.")
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--five", type=Path)
    parser.add_argument("--checkpoint", type=Path, default=ASSETS / "student")
    parser.add_argument("--count", type=int, default=60)
    parser.add_argument("--quality", default="30,40,50,60,75")
    chosen = parser.parse_args()
    tower = Tower(chosen.checkpoint, chosen.count)
    photographs, five = read(chosen.photographs, chosen.count), read(chosen.five, 5)
    head = ["media", "quality", "shipped", "token error", "224", "PSNR", "ms", "336", "448"]
    lines = [[*head, "five", "five, zstd"], ["---"] * 2 + ["---:"] * 9]
    for media in filter(pictures.can_encode, pictures.CODED):
        for quality in map(int, chosen.quality.split(",")):
            lines.append(row(media, quality, tower, photographs, five))
            sys.stderr.write(f"{media} {quality}\n")
    sys.stdout.write("".join(f"| {' | '.join(cells)} |\n" for cells in lines))


if __name__ == "__main__":
    main()
