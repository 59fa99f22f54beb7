"""Language models of many kinds in every precision on a CPU, and what 4 bits leave as it is."""

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from cdcca_cli.errors import Unavailable
from cdcca_cli.models import loading, overlay, quantization
from tests.models.language_models import (
    IDS_BS,
    SIZES,
    groups_of,
    made,
    row_of,
    trained_of,
    with_lora,
)


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
    row = row_of(module)
    how = quantization.config("nf4", row, module.config, torch.float32)
    names = set(how.llm_int8_skip_modules) - set(row.full_precision)
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
