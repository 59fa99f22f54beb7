"""The groups of language models of many kinds, alone: what is found, and that it can be trained.

Each is made from its config, with the layers that set its kind apart. Sizes are multiples of 64
and 32 where 4 bits need them, but for DeltaNet's gates and Gemma 4's per-layer inputs.
"""

import inspect
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdcca_cli.errors import BadData, SettingError, Unavailable
from cdcca_cli.families import FAMILIES, Family
from cdcca_cli.formats.names import GROUP_NAMES, LORA_PARTS, split_groups, whole_groups
from cdcca_cli.models import digests, loading, overlay, quantization

SIZES = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DELTA_NET = {
    "num_hidden_layers": 2,
    "layer_types": ["linear_attention", "full_attention"],
    "head_dim": 16,
    "linear_key_head_dim": 16,
    "linear_value_head_dim": 16,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
}
PER_LAYER_INPUTS = {
    "head_dim": 16,
    "global_head_dim": 32,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": 96,
    "num_kv_shared_layers": 0,
}
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
    "qwen3_5": ("Qwen3_5", DELTA_NET),
    "gemma3": ("Gemma3", {"head_dim": 16, "query_pre_attn_scalar": 16}),
    "gemma4": ("Gemma4", PER_LAYER_INPUTS),
    "lfm2": ("Lfm2", {"layer_types": ["conv", "full_attention"]}),
    "opt": ("OPT", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "mamba2": ("Mamba2", {"num_heads": 8, "head_dim": 16, "state_size": 16, "n_groups": 2}),
    "qwen3_moe": (
        "Qwen3Moe",
        {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64},
    ),
}
WITH_A_TOP = {"qwen3_5": "Qwen3_5TextConfig", "gemma3": "Gemma3TextConfig"}
WITH_A_TOP["gemma4"] = "Gemma4TextConfig"
IDS_BS = torch.tensor([[1, 10, 20, 30, 40, 50], [1, 60, 70, 80, 90, 11]])


def made(kind: str, seed: int = 0) -> Any:
    """A language model with its head, whose weights are noise loud enough to be seen."""
    import transformers as tf

    name, special = KINDS[kind]
    config = getattr(tf, WITH_A_TOP.get(kind, f"{name}Config"))(**{**SIZES, **special})
    module = getattr(tf, f"{name}ForCausalLM")(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * 0.1
            parameter.copy_(1 + noise if parameter.ndim == 1 else noise)
    return module.requires_grad_(False)


def row_of(module: Any) -> Family:
    """As a family whose language model is this, without a picture."""
    path = "backbone" if hasattr(module, "backbone") else "model"
    return replace(
        FAMILIES["llava"],
        architecture=type(module).__name__,
        language_path=path,
        connector_paths=(),
        full_precision=("lm_head",),
    )


def groups_of(module: Any) -> dict[str, list[str]]:
    return overlay.trainable_groups(module, row_of(module))


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


def with_lora(
    module: Any, groups: tuple[str, ...] = ("norm", "bias", "lora")
) -> dict[str, np.ndarray]:
    """An overlay of these groups whose LoRA is not zero."""
    values = overlay.initial_overlay(module, groups_of(module), groups, 2, 0)
    return {
        name: np.full_like(value, 0.02) if name.endswith("lora_B") else value
        for name, value in values.items()
    }


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


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    names = set(with_lora(module))
    return {n: p.requires_grad_(True) for n, p in module.named_parameters() if n in names}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The folder of a kind's weights, saved once."""
    folder = tmp_path_factory.mktemp("stored")

    def path(kind: str) -> Path:
        if not (folder / kind).exists():
            made(kind).save_pretrained(folder / kind)
        return folder / kind

    yield path


def loaded(folder: Path, kind: str, quantize: str, dtype: torch.dtype) -> Any:
    """As `load` does, for a language model alone."""
    import transformers as tf

    module = made(kind)
    row = row_of(module)
    how = quantization.config(quantize, row, module.config, dtype)
    placed = {} if how is None else {"device_map": {"": "cpu"}, "quantization_config": how}
    module = getattr(tf, row.architecture).from_pretrained(folder, dtype="auto", **placed)
    quantization.check_shapes(module, "cpu")
    loading._cast(module, dtype)
    return module.eval().requires_grad_(False)


PRECISIONS = [
    ("none", torch.float32),
    ("none", torch.bfloat16),
    ("none", torch.float16),
    ("int8", torch.float32),
    ("int8", torch.bfloat16),
    ("nf4", torch.float32),
    ("nf4", torch.bfloat16),
    ("nf4", torch.float16),
]


@pytest.mark.parametrize(("quantize", "dtype"), PRECISIONS)
@pytest.mark.parametrize("kind", ["llama", "qwen3_5", "gemma3", "gemma4", "lfm2"])
def test_every_precision_answers_and_trains(
    kind: str, quantize: str, dtype: torch.dtype, stored: Any
) -> None:
    """Near float32, gradients in every group, and a step that lowers the loss."""
    if quantize != "none":
        pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    exact = made(kind)
    module = loaded(stored(kind), kind, quantize, dtype)
    start = with_lora(exact)
    for one in (exact, module):
        overlay.install(one, start, 4.0)
    quantization.guard_biases(module)
    mixed = nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    with torch.no_grad(), mixed:
        expected = exact(IDS_BS, use_cache=False).logits.float()
        found = module(IDS_BS, use_cache=False).logits.float()
    assert found.isfinite().all()
    distance = (found - expected).norm() / expected.norm()
    assert distance < {"none": 0.05, "int8": 0.15, "nf4": 0.6}[quantize]
    trained = trained_of(module)
    assert sorted(trained) == sorted(start)
    assert all(parameter.dtype == torch.float32 for parameter in trained.values())
    back = overlay.read_back(module, start)
    assert all(np.array_equal(back[name], value) for name, value in start.items())

    def loss() -> Tensor:
        with quantization.training_mode(module), mixed:
            logits = module(IDS_BS, use_cache=False).logits[:, :-1].flatten(0, 1).float()
        return nn.functional.cross_entropy(logits, IDS_BS[:, 1:].flatten())

    before = loss()
    before.backward()
    groups = groups_of(module)
    for group in ("norm", "bias", "lora.language"):
        own = [n for n in trained if n in groups[group] or n.rpartition(".")[0] in groups[group]]
        grads = [trained[name].grad for name in own]
        assert all(grad is not None and grad.isfinite().all() for grad in grads), group
        assert any(bool(grad.any()) for grad in grads if grad is not None), group
    total = sum(p.grad.square().sum() for p in trained.values() if p.grad is not None)
    with torch.no_grad():
        for parameter in trained.values():
            assert parameter.grad is not None
            parameter -= 0.05 * parameter.grad / total**0.5  # type: ignore[operator]
        assert loss() < before


def left_out(kind: str) -> set[str]:
    """The endings of the names that 4 bits leave as they are."""
    module = made(kind)
    how = quantization.config("nf4", row_of(module), module.config, torch.float32)
    names = set(how.llm_int8_skip_modules) - {"lm_head"}
    assert all(name in dict(module.named_modules()) for name in names)
    return {name.rpartition(".")[2] for name in names}


def test_linears_too_small_for_4_bits_are_left_out(stored: Any) -> None:
    """The rest is quantised; so the weights are the same whatever computes with them."""
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    assert left_out("llama") == left_out("lfm2") == set()
    assert left_out("qwen3_5") == {"in_proj_a", "in_proj_b"}
    per_layer = {"per_layer_input_gate", "per_layer_projection", "per_layer_model_projection"}
    assert left_out("gemma4") == per_layer
    module = loaded(stored("qwen3_5"), "qwen3_5", "nf4", torch.float32)
    plain = {
        name.rpartition(".")[2]
        for name, part in module.named_modules()
        if isinstance(part, nn.Linear) and not isinstance(part, bnb.nn.Linear4bit)
    }
    assert plain == {"in_proj_a", "in_proj_b", "lm_head"}
    assert len(quantization.quantized_linears(module)) == len(groups_of(module)["bias"]) - 2


def test_a_stored_4_bit_linear_that_a_cpu_cannot_run() -> None:
    bnb = pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    module = nn.ModuleDict({"gate": bnb.nn.Linear4bit(64, 8, quant_type="nf4")})
    with pytest.raises(Unavailable, match="gate is stored in 4 bits with 64 inputs and 8 outputs"):
        quantization.check_shapes(module, "cpu")
    quantization.check_shapes(module, "cuda")


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


def test_routers_stay_in_float32_where_transformers_keeps_them_so() -> None:
    """In both 16-bit types, unlike T5's `wo` (float16 alone)."""
    import transformers as tf

    config = tf.DeepseekV3Config(
        **{**SIZES, "num_key_value_heads": 4},
        n_routed_experts=4,
        n_group=2,
        topk_group=1,
        num_experts_per_tok=2,
        first_k_dense_replace=0,
        moe_intermediate_size=64,
        q_lora_rank=32,
        kv_lora_rank=32,
        qk_rope_head_dim=8,
        qk_nope_head_dim=8,
        v_head_dim=16,
    )
    for dtype in (torch.bfloat16, torch.float16):
        module = tf.DeepseekV3ForCausalLM(config)
        loading._cast(module, dtype)
        kept = {n for n, p in module.named_parameters() if p.dtype == torch.float32}
        assert kept == {f"model.layers.{number}.mlp.gate.weight" for number in range(2)}


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
