"""Tiny language models of many kinds, alone, each with the layers that set its kind apart.

Sizes are multiples of 64 and 32, as 4 bits need, but for DeltaNet's gates and Gemma 4's per-layer
inputs.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from cdcca_cli.families import FAMILIES, Family
from cdcca_cli.models import overlay

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


@dataclass(frozen=True)
class _TextAlone(Family):
    """A row of a language model without pictures, which no row of the table has."""

    architecture: str = ""


def row_of(module: Any) -> Family:
    """As a family whose language model is this, without a picture."""
    path = "backbone" if hasattr(module, "backbone") else "model"
    row = vars(FAMILIES["llava"]) | {"language_path": path, "connector_paths": ()}
    return _TextAlone(**row, architecture=type(module).__name__)


def groups_of(module: Any) -> dict[str, list[str]]:
    return overlay.trainable_groups(module, row_of(module))


def with_lora(
    module: Any, groups: tuple[str, ...] = ("norm", "bias", "lora")
) -> dict[str, np.ndarray]:
    """An overlay of these groups whose LoRA is not zero."""
    values = overlay.initial_overlay(module, groups_of(module), groups, 2, 0)
    return {
        name: np.full_like(value, 0.02) if name.endswith("lora_B") else value
        for name, value in values.items()
    }


def trained_of(module: nn.Module) -> dict[str, nn.Parameter]:
    names = set(with_lora(module))
    return {n: p.requires_grad_(True) for n, p in module.named_parameters() if n in names}
