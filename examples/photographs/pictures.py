"""Labelled pictures: which there are, which part each belongs to, and how a shift changes one.

Pictures are read where they lie. Every function that changes a picture takes and gives a square
RGB picture of 96 pixels a side, as the models see it. This module knows no questions.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from kinds import Kind, kind_of
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

SIDE = 96
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp"}
NOT_KINDS = {"BACKGROUND_Google"}
PARTS = ("train", "stream", "heldout")
SMALLEST_CROP = 0.7
FEWEST_KNOWN = 5  # four for a tile, and one that is not in it
NIGHT_TINT = np.array([0.75, 0.85, 1.25])


@dataclass(frozen=True)
class Album:
    """The pictures of every kind of the world, by part: files[part][name of kind].

    known: kinds of the source, each seen by student and teacher; unseen: kinds of the target alone.
    """

    known: list[Kind]
    unseen: list[Kind]
    files: dict[str, dict[str, list[Path]]]

    @property
    def kinds(self) -> dict[str, Kind]:
        """Every kind of the world by name, known ones first."""
        return {kind.name: kind for kind in [*self.known, *self.unseen]}


def _share(name: str) -> float:
    """A number in [0, 1) that only the name decides, so that a picture never changes its part."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big") / 2**32


def _listed(folder: Path, file: str) -> set[str]:
    path = folder / file
    return set(path.read_text().split()) if path.exists() else set()


def read_album(folder: Path, num_kinds: int, num_unseen: int) -> Album:
    """The kinds with the most pictures, and their files in three parts.

    With train.txt and test.txt in the folder (lines such as kind/picture.jpg) the first is the part
    "train", the second is halved into "stream" and "heldout"; without them a third of each kind is
    halved so. Every fourth kind or so, from the second on, is unseen.

    Raises: SystemExit where there is not enough to make a world of.
    """
    if not folder.is_dir():
        raise SystemExit(f"{folder}: no such folder")
    train, test = _listed(folder, "train.txt"), _listed(folder, "test.txt")
    kinds: dict[str, Kind] = {}
    files: dict[str, dict[str, list[Path]]] = {part: defaultdict(list) for part in PARTS}
    for inner in sorted(path for path in folder.iterdir() if path.is_dir()):
        if inner.name in NOT_KINDS:
            continue
        kind = kind_of(inner.name)
        for path in sorted(p for p in inner.iterdir() if p.suffix.lower() in SUFFIXES):
            name = f"{inner.name}/{path.name}"
            if train and name not in train | test:
                continue
            kinds[kind.name] = kind
            kept_back = name in test if train else _share(f"part {name}") < 1 / 3
            half = "stream" if _share(name) < 0.5 else "heldout"
            files[half if kept_back else "train"][kind.name].append(path)
    enough = [name for name in kinds if all(files[part][name] for part in PARTS)]
    counts = {name: sum(len(files[part][name]) for part in PARTS) for name in enough}
    chosen = sorted(enough, key=lambda name: (-counts[name], name))[:num_kinds]
    if len(chosen) < num_unseen + FEWEST_KNOWN:
        raise SystemExit(
            f"{folder}: {len(chosen)} kinds with pictures in every part, "
            f"{num_unseen + FEWEST_KNOWN} needed: "
            "a folder of pictures for each kind is expected"
        )
    step = len(chosen) / max(1, num_unseen)
    unseen = [chosen[int(step * (index + 0.5))] for index in range(num_unseen)]
    return Album(
        known=[kinds[name] for name in chosen if name not in unseen],
        unseen=[kinds[name] for name in unseen],
        files={part: {name: files[part][name] for name in chosen} for part in PARTS},
    )


def read_picture(path: Path) -> Image.Image:
    """A picture as it lies there, in RGB."""
    with Image.open(path) as image:
        return image.convert("RGB")


def square(image: Image.Image, side: int) -> Image.Image:
    """The whole picture, squeezed into a square, as the image processor would."""
    return image.resize((side, side), Image.Resampling.BICUBIC)


def random_square(image: Image.Image, side: int, rng: np.random.Generator) -> Image.Image:
    """A part of the picture, half of the time mirrored, for training."""
    width, height = (s * rng.uniform(SMALLEST_CROP, 1.0) for s in image.size)
    x, y = rng.uniform(0, image.width - width), rng.uniform(0, image.height - height)
    box = (x, y, x + width, y + height)
    small = image.resize((side, side), Image.Resampling.BICUBIC, box=box)
    return ImageOps.mirror(small) if rng.random() < 0.5 else small


def _to_image(picture: np.ndarray) -> Image.Image:
    return Image.fromarray(picture.clip(0, 255).astype(np.uint8))


def _plane(rng: np.random.Generator) -> np.ndarray:
    """A ramp over the picture from 0 to 1 in a random direction, (96, 96, 1)."""
    rows, columns = np.mgrid[0:SIDE, 0:SIDE] / (SIDE - 1)
    angle = rng.uniform(0, 2 * np.pi)
    ramp = np.cos(angle) * columns + np.sin(angle) * rows
    return ((ramp - ramp.min()) / (ramp.max() - ramp.min()))[:, :, None]


def night(
    image: Image.Image, rng: np.random.Generator, light: tuple[float, float] = (0.14, 0.26)
) -> Image.Image:
    """Little light, most of it blue, from one side, and a camera that adds noise.

    Args: light: the share of it that is left on the darker side, drawn between these.
    """
    left = rng.uniform(*light) + rng.uniform(0.0, 0.2) * _plane(rng)
    noise = rng.normal(0, rng.uniform(3, 8), (SIDE, SIDE, 3))
    return _to_image(np.asarray(image) * left * NIGHT_TINT + noise)


def fog(
    image: Image.Image, rng: np.random.Generator, hidden: tuple[float, float] = (0.60, 0.75)
) -> Image.Image:
    """Grey that hides 60 to 90 percent of the picture, more of it on one side.

    Args: hidden: the share of the picture that it hides on the thinner side, drawn between these.
    """
    thickness = rng.uniform(*hidden) + rng.uniform(0.0, 0.15) * _plane(rng)
    soft = np.asarray(image.filter(ImageFilter.GaussianBlur(float(rng.uniform(0.3, 1.0)))))
    return _to_image(soft * (1 - thickness) + rng.uniform(185, 230) * thickness)


def blur(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Out of focus, or moved along a line while the shutter was open."""
    if rng.random() < 0.5:
        return image.filter(ImageFilter.GaussianBlur(float(rng.uniform(2.0, 3.2))))
    picture, length = np.asarray(image).astype(float), int(rng.integers(9, 15))
    dx, dy = [(1, 0), (0, 1), (1, 1), (1, -1)][rng.integers(4)]
    padded = np.pad(picture, ((length, length), (length, length), (0, 0)), mode="edge")
    moved = [
        padded[length + dy * s : length + dy * s + SIDE, length + dx * s : length + dx * s + SIDE]
        for s in range(-(length // 2), length - length // 2)
    ]
    return _to_image(np.mean(moved, axis=0))


def line_drawing(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Dark lines on white paper where brightness changes: a difference of two Gaussians."""
    grey = ImageOps.autocontrast(image.convert("L"))
    radius = float(rng.uniform(0.6, 1.0))
    fine, coarse = (
        np.asarray(grey.filter(ImageFilter.GaussianBlur(r))).astype(float)
        for r in (radius, 1.8 * radius)
    )
    ink = np.clip((coarse - fine - 2) / rng.uniform(6, 12), 0, 1)[:, :, None]
    paper, pen = rng.uniform(225, 255, 3), rng.uniform(0, 70, 3)
    return _to_image(paper * (1 - ink) + pen * ink)


def poster(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Flat and loud: two or three steps of each colour, and the three colours exchanged."""
    flat = ImageOps.autocontrast(image.filter(ImageFilter.ModeFilter(3)))
    loud = np.asarray(ImageEnhance.Color(flat).enhance(float(rng.uniform(1.5, 3.0)))) / 255
    steps = int(rng.integers(1, 3))
    return _to_image(((loud * steps).round() / steps * 255)[:, :, rng.permutation(3)])


SHIFTS: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "night": night,
    "fog": fog,
    "blur": blur,
    "line drawing": line_drawing,
    "poster": poster,
}
UNSEEN = "unseen kinds"
SOURCE = "source"
TARGETS = [*SHIFTS, UNSEEN]
