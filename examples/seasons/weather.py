"""The frames of a world whose weather changes: the shipped pair's, by day, at night and in fog."""

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import beside_photographs  # noqa: F401
import numpy as np
from pictures import fog, night
from PIL import Image
from world import write_frames

SEASONS = ("day", "night", "fog", "day")
SOURCE = "source"
WEATHER: dict[str, Callable[[Image.Image, np.random.Generator], Image.Image]] = {
    "night": partial(night, light=(0.35, 0.50)),
    "fog": partial(fog, hidden=(0.25, 0.35)),
}
"""As `../photographs` has them, but weaker, so that the teacher still knows far more than the
student: DA of the two 72 and 50 at night, 63 and 47 in fog, 91 and 63 by day."""


def season_of(number: int, rounds: int) -> str:
    """The season of a round, from 1: each of `SEASONS` takes a quarter of the rounds."""
    return SEASONS[(number - 1) * len(SEASONS) // rounds]


def draw_frames(folder: Path, season: str, number: int, seed: int) -> Path:
    """New frames in a season, or of the source domain, unless they are there; their folder."""
    if (folder / "frames.jsonl").exists():
        return folder
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    domain = SOURCE if season == SOURCE else "target"
    write_frames(new, f"{folder.name}-", domain, number, seed)
    rng = np.random.default_rng([seed, 1])
    for path in sorted(new.glob("*.jpg")) if season in WEATHER else ():
        with Image.open(path) as image:
            changed = WEATHER[season](image.convert("RGB"), rng)
        changed.save(path, quality=90)
    new.rename(folder)
    return folder


def without_captions(folder: Path) -> Path:
    """The manifest of a folder's questions alone, which is quicker to answer."""
    path = folder / "questions.jsonl"
    lines = (folder / "frames.jsonl").read_text().splitlines(keepends=True)
    path.write_text("".join(line for line in lines if json.loads(line).get("task") != "caption"))
    return path
