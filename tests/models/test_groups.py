"""The groups of language models of many kinds: what is found, and that it can be trained."""

import inspect
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cdcca_cli.errors import BadData, SettingError
from cdcca_cli.families import FAMILIES
from cdcca_cli.formats.names import GROUP_NAMES, LORA_PARTS, split_groups, whole_groups
from cdcca_cli.models import digests, overlay
from tests.models.language_models import (
    IDS_BS,
    KINDS,
    SIZES,
    groups_of,
    made,
    trained_of,
    with_lora,
)


def own_parts(module: nn.Module, names: list[str]) -> set[str]:
    """The classes that the parameters belong to."""
    return {type(module.get_submodule(name.rpartition(".")[0])).__name__ for name in names}


NORMS = {
    "llama": {"LlamaRMSNorm"},
    "qwen2": {"Qwen2RMSNorm"},
    "qwen3": {"Qwen3RMSNorm"},
    "qwen3_5": {"Qwen3_5RMSNorm", "Qwen3_5RMSNormGated"},
    "gemma3": {"Gemma3RMSNorm"},
    "gemma4": {"Gemma4RMSNorm"},
    "lfm2": {"Lfm2RMSNorm"},
    "opt": {"LayerNorm"},
    "mamba2": {"Mamba2RMSNorm", "MambaRMSNormGated"},
    "qwen3_moe": {"Qwen3MoeRMSNorm"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_norms_are_found_and_nothing_else(kind: str) -> None:
    """What is left of one dimension are biases and the constants of a recurrence."""
    module = made(kind)
    groups = groups_of(module)
    assert own_parts(module, groups["norm"]) == NORMS[kind]
    left = {
        name.rpartition(".")[2]
        for name, parameter in module.named_parameters()
        if parameter.ndim == 1 and name not in groups["norm"] + groups["bias"]
    }
    expected = {"qwen3_5": {"dt_bias", "A_log"}, "mamba2": {"dt_bias", "A_log", "D", "bias"}}
    assert left == expected.get(kind, set())


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_called_a_norm_normalises(kind: str) -> None:
    """An input eight times as large gives the same output, whatever the module is called."""
    module = made(kind)
    for name in {name.rpartition(".")[0] for name in groups_of(module)["norm"]}:
        part: Any = module.get_submodule(name)
        x_NC = 20 * torch.randn(3, len(part.weight), generator=torch.Generator().manual_seed(1))
        gated = "gate" in inspect.signature(part.forward).parameters
        more = [torch.ones_like(x_NC)] if gated else []
        torch.testing.assert_close(part(8 * x_NC, *more), part(x_NC, *more), rtol=1e-3, atol=1e-3)


class Scaled(nn.Module):
    """Has a number a channel, and is no norm: it has a linear inside."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4))
        self.inner = nn.Linear(4, 4)


@pytest.mark.parametrize(
    "part", [nn.PReLU(4), nn.Linear(4, 4), nn.Conv1d(4, 4, 3), nn.Embedding(4, 4), Scaled()]
)
def test_what_is_no_norm(part: nn.Module) -> None:
    assert not overlay.is_norm(part)


def test_norms_of_torch() -> None:
    for part in (nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4)):
        assert overlay.is_norm(part)


@pytest.mark.parametrize("kind", KINDS)
def test_zero_biases_change_no_output(kind: str) -> None:
    """Every linear in the language model has one afterwards, the head has none."""
    module = made(kind)
    groups = groups_of(module)
    present = dict(module.named_parameters())
    values = overlay.initial_overlay(module, groups, ("bias",), 2, 0)
    assert sorted(values) == groups["bias"]
    assert kind in ("opt", "qwen2") or not present.keys() & values.keys()
    with torch.no_grad():
        before = module(IDS_BS, use_cache=False).logits
        overlay.install(module, values, 4.0)
        after = module(IDS_BS, use_cache=False).logits
    assert torch.equal(before, after)
    linears = [part for part in module.modules() if isinstance(part, nn.Linear)]
    assert [part.bias is None for part in linears].count(True) == 1
    assert module.get_output_embeddings().bias is None
    assert groups_of(module) == groups
    back = overlay.read_back(module, values)
    assert all(np.array_equal(back[name], value) for name, value in values.items())


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_every_parameter_of_every_group(kind: str) -> None:
    module = made(kind)
    overlay.install(module, with_lora(module), 4.0)
    trained = trained_of(module)
    module(IDS_BS, use_cache=False).logits.square().mean().backward()
    without = [name for name, part in trained.items() if part.grad is None or not part.grad.any()]
    # A softmax does not see what all its keys share, and OPT's are not rotated.
    expected = [name for name in trained if kind == "opt" and name.endswith("k_proj.bias")]
    assert [name for name in without if name not in expected] == []


def test_fused_experts_are_named_and_the_rest_gets_lora() -> None:
    module = made("qwen3_moe")
    words = "the fused experts of 2 layers (Qwen3MoeExperts)"
    assert overlay.fused_experts(module) == words
    assert overlay.fused_experts(made("llama")) == ""
    groups = groups_of(module)
    assert {name.rpartition(".")[2] for name in groups["lora.language"]} == {
        *("q_proj", "k_proj", "v_proj", "o_proj")
    }
    nothing = {group: [] for group in groups}
    with pytest.raises(SettingError, match=r"\(the fused experts of 2 layers .* get no LoRA\)"):
        overlay.initial_overlay(module, nothing, ("lora",), 2, 0)


def test_a_connector_inside_the_tower_is_no_part_of_its_digest() -> None:
    """Two Qwen3-VL with one tower and language models of other widths."""
    import transformers as tf

    row = replace(
        FAMILIES["llava"],
        tower_path="model.visual",
        language_path="model.language_model",
        connector_paths=("model.visual.merger", "model.visual.deepstack_merger_list"),
    )
    towers = []
    for width in (64, 128):
        vision = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 4}
        vision |= {"out_hidden_size": width, "deepstack_visual_indexes": [1]}
        text = {**SIZES, "hidden_size": width, "head_dim": 16, "num_hidden_layers": 1}
        module = tf.Qwen3VLForConditionalGeneration(
            tf.Qwen3VLConfig(vision_config=vision, text_config=text)
        )
        generator = torch.Generator().manual_seed(0)
        with torch.no_grad():
            for name, parameter in module.model.visual.named_parameters():
                if "merger" not in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        towers.append(module)
        groups = overlay.trainable_groups(module, row)
        assert all("merger" in name for name in groups["lora.connector"])
        assert len(groups["lora.connector"]) == 4
    one, other = (digests.of_tower(module, row) for module in towers)
    assert one == other
    assert len({digests.of_parameters(module.model.visual) for module in towers}) == 2
    with torch.no_grad():
        towers[1].model.visual.merger.linear_fc1.weight.add_(1)
        assert digests.of_tower(towers[1], row) == one
        towers[1].model.visual.blocks[0].mlp.linear_fc1.weight.add_(1)
    assert digests.of_tower(towers[1], row) != one
    apart = replace(row, connector_paths=("model.language_model",))
    assert digests.of_tower(module, apart) == digests.of_parameters(module.model.visual)


def test_an_overlay_gives_no_bias_to_what_is_no_linear() -> None:
    module = made("qwen2")
    names = {
        "model.norm.bias": 64,
        "model.layers.0.mlp.act_fn.bias": 1,
        "bias": 1,
        "model.layers.7.mlp.up_proj.bias": 128,
        "model.layers.0.mlp.up_proj.gain": 128,
    }
    for name, size in names.items():
        with pytest.raises(BadData, match=f"parameter {name} is not in this model"):
            overlay.install(module, {name: np.zeros(size, np.float32)}, 1.0)
    name = "model.layers.0.mlp.up_proj.bias"
    with pytest.raises(BadData, match=r"has shape \[64\], the model's has \[128\]"):
        overlay.install(module, {name: np.zeros(64, np.float32)}, 1.0)
    assert module.model.layers[0].mlp.up_proj.bias is None


@pytest.mark.parametrize(
    ("named", "whole", "split"),
    [
        (("lora",), ("lora",), LORA_PARTS),
        (("query", "norm"), ("norm", "query"), ("norm", "query")),
        (LORA_PARTS, ("lora",), LORA_PARTS),
        (("lora.connector", "bias"), ("bias", "lora.connector"), ("bias", "lora.connector")),
        (("lora", "lora.language"), ("lora",), LORA_PARTS),
        (GROUP_NAMES, GROUP_NAMES[:4], (*GROUP_NAMES[:3], *LORA_PARTS)),
    ],
)
def test_lora_is_a_name_for_both_its_parts(
    named: tuple[str, ...], whole: tuple[str, ...], split: tuple[str, ...]
) -> None:
    assert whole_groups(named) == whole == whole_groups(split)
    assert split_groups(named) == split == split_groups(whole)
