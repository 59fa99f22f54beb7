"""Tiny checkpoints of every family, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests import tiny, zoo

MADE: dict[str, Callable[[Path], Path]] = {
    "blip_2": lambda folder: tiny.q_checkpoint(folder),
    "blip_2 with T5 in bfloat16": lambda folder: tiny.q_checkpoint(
        folder, text="t5", dtype=torch.bfloat16
    ),
    "instructblip in float16": lambda folder: tiny.q_checkpoint(
        folder, instruct=True, text="opt", dtype=torch.float16
    ),
    "llava with CLIP": lambda folder: tiny.llava_checkpoint(folder),
    "llava with SigLIP": lambda folder: tiny.llava_checkpoint(folder, tower="siglip"),
    **{
        f"zoo: {name}": lambda folder, name=name: zoo.checkpoint(name, folder)
        for name in zoo.FAMILIES
        if not zoo.missing(name)
    },
}


class Checkpoints:
    """Folders by the names in MADE, each written when it is first asked for."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._made: dict[str, Path] = {}

    def __getitem__(self, name: str) -> Path:
        if name not in self._made:
            folder = self._root / str(len(self._made))
            self._made[name] = MADE[name](folder)
        return self._made[name]


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Checkpoints:
    return Checkpoints(tmp_path_factory.mktemp("checkpoints"))
