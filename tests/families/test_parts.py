"""What each row of the table says of a model's parts, and of the packages that it needs."""

import sys
from pathlib import Path

import pytest
import torch

from cdcca_cli import models
from cdcca_cli.downlink.change import selected
from cdcca_cli.errors import Unavailable
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.names import GROUP_NAMES, LORA_A, LORA_B, LORA_PARTS
from cdcca_cli.models import watching
from tests import zoo
from tests.families.conftest import Case

NATIVE = (
    *("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v", "video_llama_3", "mistral3"),
    *("gemma4_e2b", "gemma4_31b", "gemma4_unified", "pixtral"),
)
GRANITE = FAMILIES["granite4_vision"]


def test_a_connector_is_no_part_of_the_tower() -> None:
    """Qwen3-VL's mergers lie in it; of Granite's window Q-Formers the last linear is one."""
    qwen = FAMILIES["qwen3_vl"]
    assert qwen.in_tower("model.visual.blocks.0.mlp.weight") == "blocks.0.mlp.weight"
    assert not qwen.in_tower("model.visual.deepstack_merger_list.2.norm.weight")
    assert qwen.in_connector("model.visual.deepstack_merger_list.2.norm.weight")
    assert not qwen.in_connector("model.visual.mergers.weight")
    inner = "model.spatial_projectors.3.qformer.weight"
    assert GRANITE.in_tower(inner) == inner and not GRANITE.in_connector(inner)
    assert GRANITE.in_connector("model.spatial_projectors.3.out_linear.bias")
    assert not GRANITE.in_tower("model.spatial_projectors.3.out_linear.bias")
    assert not GRANITE.in_tower("model.language_model.norm.weight")


def test_every_path_is_a_part_of_the_model(case: Case) -> None:
    model, row = case.model, case.model.row
    names = [name for name, _ in model.module.named_parameters()]
    tower = [name for name in names if row.in_tower(name)]
    assert tower and not any(row.in_connector(name) for name in tower)
    assert any(row.in_connector(name) for name in names)
    assert not any(name.startswith(f"{row.language_path}.") for name in tower)
    assert len({row.in_tower(name) for name in tower}) == len(tower)


def test_compress_selects_what_distill_trains(case: Case) -> None:
    """The same names a group, though `compress` has no model."""
    overlay = case.model.initial_overlay(GROUP_NAMES, 2, 0)
    for group, trained in case.model.trainable_groups().items():
        if not trained:
            continue
        names = set(trained)
        if group in LORA_PARTS:
            names = {name + end for name in trained for end in (LORA_A, LORA_B)}
        assert selected(overlay, [group], case.model.family) == names


def test_a_picture_of_its_own_size_is_one_lattice(case: Case) -> None:
    """Wide, tall and square, where nothing is cut into tiles."""
    if case.name not in NATIVE:
        pytest.skip("it has tiles, or one size")
    wide, tall, square = (one.layout.grid for one in case.seen)
    assert wide[0] < wide[1] and tall[0] > tall[1] and square[0] == square[1]
    for one in case.seen:
        rows, columns = one.layout.grid
        assert rows * columns == one.num_tokens


def test_keys_and_values_of_earlier_layers(tmp_path: Path) -> None:
    """Gemma 4's last layers see a picture by them, so their outputs at its places reach nothing."""
    model = models.load(zoo.checkpoint("gemma4_e2b", tmp_path / "gemma4_e2b"), compute="cpu")
    shared = model.module.config.text_config.num_kv_shared_layers
    layers = model.module.model.language_model.layers
    assert shared == 2
    assert model.language.last_attention is layers[len(layers) - shared - 1].self_attn


@pytest.mark.parametrize("family", ["lfm2_vl", "gemma3n"])
def test_a_package_that_is_not_here(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Said by config.json alone, before anything is read."""
    needed = FAMILIES[family].needs[0]
    monkeypatch.setitem(sys.modules, needed, None)
    (tmp_path / "config.json").write_text(f'{{"model_type": "{family}"}}')
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(Unavailable, match=rf"{family} needs {needed}, .*'cdcca\[families\]'"):
        models.load(tmp_path, compute="cpu")


class Stage(torch.nn.Module):
    """Half the size, twice the channels."""

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        return maps[..., ::2, ::2].repeat(1, 2, 1, 1) * 0.5 + 1


def test_a_tower_that_looks_back_goes_on_where_it_was() -> None:
    """As MobileNetV5, whose end reads the outputs of its last two stages."""
    stages, maps = [Stage() for _ in range(3)], torch.randn(1, 2, 8, 8)

    def tower(maps: torch.Tensor) -> list[torch.Tensor]:
        seen = []
        for stage in stages:
            maps = stage(maps)
            seen.append(maps)
        return seen[-2:]

    expected, found = tower(maps), []
    with watching.stopping(stages[2], found):
        tower(maps)
    with watching.resuming(stages, 2, found[0], 3):
        again = tower(torch.zeros(3, 2, 8, 8))
    for before, after in zip(expected, again, strict=True):
        assert torch.equal(after, before.expand(3, -1, -1, -1))
