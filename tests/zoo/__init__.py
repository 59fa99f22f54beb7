"""Tiny random checkpoints of every family, with the real processor and tokenizer classes.

`checkpoint(name, folder)` writes one folder as the hub has it: config.json, generation_config.json,
model.safetensors, tokenizer.json, tokenizer_config.json, chat_template.jinja,
preprocessor_config.json and processor_config.json. Weights are random but loud: another picture or
word changes the logits visibly. The table of families is in `single.py`, `tiles.py` and
`native.py`, its columns in `row.py`.

Does not make a model that knows anything: answers are noise.
"""

import importlib
import json
import zlib
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from tests import tiny
from tests.zoo import native, single, tiles
from tests.zoo.row import Row
from tests.zoo.texts import POSITIONS, Text
from tests.zoo.words import tokenizer

__all__ = [
    "FAMILIES",
    "QFORMERS",
    "SHAPES",
    "checkpoint",
    "images",
    "in_tower",
    "missing",
]

FAMILIES: dict[str, Row] = {row.name: row for row in (*single.ROWS, *tiles.ROWS, *native.ROWS)}
"""The families, by name."""
QFORMERS = ("blip_2", "instructblip")
"""Families whose checkpoints `tests/tiny.py` makes."""
SHAPES = {"wide": (96, 40), "tall": (40, 96), "square": (60, 60)}
"""Width and height of three pictures that a family of tiles or of native resolution tells apart."""


def missing(name: str) -> str:
    """Why the family cannot be built or read here; empty if it can."""
    for package in FAMILIES[name].needs:
        try:
            importlib.import_module(package)
        except (ImportError, RuntimeError) as error:  # torchvision raises both
            return f"{name} needs {package}: {error}"
    return ""


def checkpoint(
    name: str,
    folder: Path,
    *,
    seed: int = 0,
    width: int = 64,
    text_layers: int | None = None,
    tower_seed: int | None = None,
    dtype: torch.dtype = torch.float32,
) -> Path:
    """Write the checkpoint of a family into `folder`, which is made.

    Args:
        width: channels of the language model, a multiple of 64.
        text_layers: its blocks; None: as many as the family needs.
        tower_seed: two checkpoints with the same one have the same vision tower, whatever their
            language models; None: `seed`. The towers of GLM-4V and GOT-OCR 2 have the language
            model's width inside: there only at the same `width`.
        dtype: what the weights are stored in.
    """
    import transformers

    folder.mkdir(parents=True, exist_ok=True)
    tower_seed = seed if tower_seed is None else tower_seed
    if name in QFORMERS:
        return _qformer(name, folder, seed, width, text_layers or 2, tower_seed, dtype)
    row = FAMILIES[name]
    words = tokenizer(folder, row.chat, row.mark, row.words, row.special)
    model_class = getattr(transformers, row.model)
    text = Text(words, width, text_layers or row.layers)
    model = model_class(model_class.config_class(**row.config(text)))
    _fill(model, row, seed, tower_seed)
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=words.bos_token_id,
        pad_token_id=words.pad_token_id,
        eos_token_id=words.convert_tokens_to_ids(list(row.chat.eos)),
    )
    model.to(dtype).save_pretrained(folder)
    pictures = {"image_processor_type": row.pictures, "processor_class": row.processor}
    _write(folder / "preprocessor_config.json", pictures | dict(row.sizes))
    _write(folder / "processor_config.json", {"processor_class": row.processor, **row.settings})
    return folder


def _qformer(
    name: str, folder: Path, seed: int, width: int, layers: int, tower_seed: int, dtype: torch.dtype
) -> Path:
    """BLIP-2 or InstructBLIP, which have no chat template and no tiles."""
    made = {"instruct": name == "instructblip", "dtype": dtype}
    tiny.q_checkpoint(folder, **made, seed=tower_seed)
    tower = tiny.tower_of(folder)
    return tiny.q_checkpoint(
        folder, **made, seed=seed, tower=tower, width=width, text_layers=layers, positions=POSITIONS
    )


def in_tower(row: Row, name: str) -> bool:
    """Whether the parameter of this name belongs to the vision tower, its connector left out."""
    return row.tower != "" and name.startswith(row.tower) and not name.startswith(row.connector)


def images(*, seed: int = 0) -> dict[str, Image.Image]:
    """A wide, a tall and a square picture of coarse coloured squares."""
    generator = torch.Generator().manual_seed(seed)
    made = {}
    for shape, size in SHAPES.items():
        coarse = torch.randint(0, 256, (4, 4, 3), generator=generator, dtype=torch.uint8)
        picture = Image.fromarray(coarse.numpy(), "RGB")
        made[shape] = picture.resize(size, Image.Resampling.NEAREST)
    return made


def _fill(model: Any, row: Row, seed: int, tower_seed: int) -> None:
    """Fill every parameter with noise of its own name; what begins at one stays around one."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            own = tower_seed if in_tower(row, name) else seed
            generator = torch.Generator().manual_seed(zlib.crc32(f"{own} {name}".encode()))
            noise = torch.randn(parameter.shape, generator=generator)
            flat = parameter.ndim < 2
            scale = 0.12 if flat else max(0.12, parameter[0].numel() ** -0.5)
            parameter.copy_(noise * scale + float(flat and parameter.float().mean() > 0.5))


def _write(path: Path, value: dict[str, Any]) -> None:
    path.write_text(json.dumps(value, indent=2))
