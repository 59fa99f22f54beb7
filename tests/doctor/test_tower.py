"""A tower's digest from headers and the tower's bytes is that of the loaded model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import Tensor

from cdcca_cli import models
from cdcca_cli.doctor import headers
from cdcca_cli.errors import BadData
from cdcca_cli.families import FAMILIES
from cdcca_cli.models import digests, loading, skeleton
from cdcca_cli.models.skeleton import TowerTensors
from tests import tiny
from tests.doctor.conftest import MADE, Checkpoints

LLAVA = "llava with CLIP"


def digest(folder: Path, read: list[str] | None = None) -> str:
    """By headers alone; `read` gets the names of the tensors whose bytes were read."""
    model = loading.outline(folder)
    tensors = headers.tensors(str(folder), headers.in_folder(folder))
    assert tensors is not None

    def noted(name: str) -> Tensor:
        if read is not None:
            read.append(name)
        return tensors.read(name)

    return digests.of_tensors(TowerTensors(model, tensors.shapes(), noted))


def changed(folder: Path, to: Path, tensors: dict[str, Tensor]) -> Path:
    """The checkpoint with other weights."""
    shutil.copytree(folder, to)
    save_file(tensors, to / "model.safetensors", {"format": "pt"})
    return to


@pytest.mark.parametrize("name", MADE)
def test_the_digest_is_that_of_the_loaded_model(name: str, checkpoints: Checkpoints) -> None:
    """And the vocabulary's, and what the tower makes of a wide picture, but for its values."""
    folder = checkpoints[name]
    if json.loads((folder / "config.json").read_text())["model_type"] not in FAMILIES:
        pytest.skip(f"{name} is not in the table of families")
    loaded, outline = models.load(folder, compute="cpu"), loading.outline(folder)
    assert digest(folder) == loaded.tower_digest
    assert outline.vocabulary_digest == loaded.vocabulary_digest
    assert outline.places == loaded.places
    image = Image.new("RGB", (192, 108), (200, 30, 100))
    (expected,) = loaded.see(loaded.prepare([image]))
    found = skeleton.seen(outline, image)
    assert (found.tokens.shape, found.layout) == (expected.tokens.shape, expected.layout)


def test_only_the_tower_is_read(checkpoints: Checkpoints) -> None:
    read: list[str] = []
    digest(checkpoints[LLAVA], read)
    assert read and all("vision" in name for name in read)
    assert len(read) == len(set(read))


def test_a_teacher_with_the_same_tower_agrees_and_another_does_not(tmp_path: Path) -> None:
    student = tiny.q_checkpoint(tmp_path / "student")
    tower = tiny.tower_of(student)
    teacher = tiny.q_checkpoint(
        tmp_path / "teacher", width=128, seed=1, tower=tower, dtype=torch.bfloat16
    )
    # A student in 32 bits and a teacher in 16 agree, as loaded models do.
    assert digest(teacher) == digest(student)
    assert digest(tiny.q_checkpoint(tmp_path / "other", seed=1)) != digest(student)


def test_one_changed_bit_of_the_tower_changes_it_and_the_language_model_does_not(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    folder = checkpoints["blip_2"]
    tensors = load_file(folder / "model.safetensors")
    language = next(name for name in tensors if name.startswith("language_model"))
    tensors[language] = tensors[language] + 1
    assert digest(changed(folder, tmp_path / "language", tensors)) == digest(folder)
    tower = next(name for name in tensors if name.startswith("vision_model"))
    tensors[tower] = tensors[tower] * 1.01
    assert digest(changed(folder, tmp_path / "tower", tensors)) != digest(folder)


def test_names_of_any_version_of_transformers(tmp_path: Path, checkpoints: Checkpoints) -> None:
    """LLaVA's modules were called otherwise before 4.52, and saved with the class's prefix since;
    a buffer that was saved in old times is no parameter."""
    folder = checkpoints[LLAVA]
    old = load_file(folder / "model.safetensors")
    assert any(name.startswith("language_model.model.") for name in old)
    new = {
        name.replace("language_model.model.", "model.language_model.")
        .replace("language_model.lm_head", "lm_head")
        .replace("vision_tower.", "model.vision_tower.")
        .replace("multi_modal_projector.", "model.multi_modal_projector."): tensor
        for name, tensor in old.items()
    }
    name = "model.vision_tower.vision_model.embeddings.position_ids"
    new[name] = torch.arange(10)[None]
    folder_of_new = changed(folder, tmp_path / "new", new)
    assert digest(folder_of_new) == digest(folder)
    assert models.load(folder_of_new, compute="cpu").tower_digest == digest(folder)


def test_a_checkpoint_is_cast_to_the_dtype_of_its_config_first(
    tmp_path: Path, checkpoints: Checkpoints
) -> None:
    """As loading does: float32 by way of float16 is rounded twice on its way to bfloat16.

    1 + 2^-8 + 2^-12 lies above the middle of two numbers of bfloat16, and in float16, whose step
    is 2^-10, it becomes that middle, which is rounded to the even one, 1.
    """
    folder = checkpoints["blip_2"]
    tensors = load_file(folder / "model.safetensors")
    tower = next(name for name in tensors if name.startswith("vision_model"))
    tensors[tower] = torch.full_like(tensors[tower], 1 + 2**-8 + 2**-12)
    twice = changed(folder, tmp_path / "twice", tensors)
    config = json.loads((twice / "config.json").read_text())
    once = digest(twice)
    for part in (config, *(part for part in config.values() if isinstance(part, dict))):
        part["dtype"] = "float16"
    (twice / "config.json").write_text(json.dumps(config))
    assert digest(twice) != once
    assert digest(twice) == models.load(twice, compute="cpu").tower_digest


def test_tensors_that_transformers_splits(
    tmp_path: Path, checkpoints: Checkpoints, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some checkpoints keep queries, keys and values of an attention as one tensor."""
    from transformers import conversion_mapping, modeling_utils
    from transformers.core_model_loading import Chunk, WeightConverter

    folder = checkpoints[LLAVA]
    plain = digest(folder)
    tensors = load_file(folder / "model.safetensors")
    for name in [name for name in tensors if "vision" in name and ".q_proj." in name]:
        parts = [tensors.pop(name.replace(".q_", f".{letter}_")) for letter in "qkv"]
        tensors[name.replace(".q_proj.", ".qkv.")] = torch.cat(parts)
    fused = changed(folder, tmp_path / "fused", tensors)
    with pytest.raises(BadData, match="the weights lack"):
        digest(fused)
    found = conversion_mapping.get_model_conversion_mapping

    def mapping(*args: object, **kwargs: object) -> list[object]:
        split = [
            WeightConverter(
                f"self_attn.qkv.{end}",
                [f"self_attn.{letter}_proj.{end}" for letter in "qkv"],
                [Chunk(dim=0)],
            )
            for end in ("weight", "bias")
        ]
        return [*found(*args, **kwargs), *split]

    for module in (conversion_mapping, modeling_utils):
        monkeypatch.setattr(module, "get_model_conversion_mapping", mapping)
    assert models.load(fused, compute="cpu").tower_digest == plain
    read: list[str] = []
    assert digest(fused, read) == plain
    assert len(read) == len(set(read)), "a tensor was read for each of its parts"


@pytest.mark.parametrize(
    "name", ["vision.²", f"vision.{'9' * 5000}"], ids=["a digit that is no number", "5000 digits"]
)
def test_names_that_transformers_cannot_sort(
    name: str, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    folder = checkpoints["blip_2"]
    tensors = load_file(folder / "model.safetensors") | {name: torch.zeros(1)}
    with pytest.raises(BadData, match="the weights cannot be laid out"):
        digest(changed(folder, tmp_path / "faulty", tensors))


@pytest.mark.parametrize("fault", ["lack", "shape"])
def test_weights_that_do_not_fit_are_refused(
    fault: str, tmp_path: Path, checkpoints: Checkpoints
) -> None:
    folder = checkpoints["blip_2"]
    tensors = load_file(folder / "model.safetensors")
    name = "vision_model.post_layernorm.weight"
    tensor = tensors.pop(name)
    if fault == "shape":
        tensors[name] = tensor[:7].clone()
    with pytest.raises(BadData, match=rf"{fault}.*{name}|{name} has the {fault} \[7\]"):
        digest(changed(folder, tmp_path / "faulty", tensors))
