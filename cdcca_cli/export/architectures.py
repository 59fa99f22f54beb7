"""llama.cpp's language models and connectors: their names, row orders and what they read.

As of llama.cpp build 11549: src/models/*.cpp (which tensors are created), conversion/*.py (which
rows are reordered and which norms shifted), gguf-py/gguf/tensor_mapping.py, tools/mtmd/clip.cpp.
A tensor in a file that a model does not create stops the loading, so a bias is written only where
it is read. Each architecture is run by tests/export/test_architectures_run.py; connectors but mlp
are not.

The row order: transformers rotates the two halves of a head, llama.cpp's LLaMA pairs of
neighbours. So row (h, p, i) of q and k, part p of head h, is stored as row (h, i, p).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

_ATTENTION = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
}
_LINEARS = _ATTENTION | {
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_FUSED = {
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm"}
_GEMMA_NORMS = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
_QK_NORMS = {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_BLOCK = re.compile(r"layers\.(\d+)\.(.+)")


@dataclass(frozen=True)
class Architecture:
    """How llama.cpp names and keeps a kind of language model.

    name: `general.architecture`. types: transformers' model types that become it.
    linears, norms: names in a block, from transformers' to GGUF's.
    biases: the linears whose bias it reads. is_permuted: whether it has rows of q and k in pairs.
    norm_offset: what is added to a norm's weight.
    """

    name: str
    types: tuple[str, ...]
    linears: Mapping[str, str]
    norms: Mapping[str, str]
    biases: tuple[str, ...] = ("attn_q", "attn_k", "attn_v", "attn_qkv")
    is_permuted: bool = False
    norm_offset: float = 0.0

    def named(self, module: str) -> str | None:
        """GGUF's name of a module, by its path in the language model; None if it has none."""
        if module == "norm":
            return "output_norm"
        found = _BLOCK.fullmatch(module)
        if found is None:
            return None
        name = self.linears.get(found[2]) or self.norms.get(found[2])
        return None if name is None else f"blk.{found[1]}.{name}"

    def reads_bias(self, name: str) -> bool:
        """Whether it reads the bias of a linear, by GGUF's name."""
        return name.rpartition(".")[2] in self.biases

    def reordered(self, name: str, rows: NDArray[Any], heads: int, kv_heads: int) -> NDArray[Any]:
        """The rows of a linear, by GGUF's name, in llama.cpp's order."""
        count = self.num_reordered(name, heads, kv_heads)
        return in_pairs(rows, count) if count else rows

    def restored(self, name: str, rows: NDArray[Any], heads: int, kv_heads: int) -> NDArray[Any]:
        """The rows of a linear in transformers' order."""
        count = self.num_reordered(name, heads, kv_heads)
        return in_halves(rows, count) if count else rows

    def num_reordered(self, name: str, heads: int, kv_heads: int) -> int:
        """How many heads' rows are reordered; 0 for none."""
        counts = {"attn_q": heads, "attn_k": kv_heads} if self.is_permuted else {}
        return counts.get(name.rpartition(".")[2], 0)


def in_pairs(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k in llama.cpp's order, from transformers'."""
    parts = rows.reshape(heads, 2, -1, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(rows.shape))


def in_halves(rows: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows of q or k in transformers' order, from llama.cpp's."""
    parts = rows.reshape(heads, -1, 2, *rows.shape[1:])
    return np.ascontiguousarray(parts.swapaxes(1, 2).reshape(rows.shape))


_LLAMA = Architecture(
    name="llama",
    types=("llama", "mistral"),
    linears=_LINEARS,
    norms=_NORMS,
    biases=tuple(_LINEARS.values()),
    is_permuted=True,
)
_QWEN = Architecture("qwen2", ("qwen2",), _LINEARS, _NORMS)
_GEMMA = Architecture("gemma", ("gemma",), _LINEARS, _NORMS, norm_offset=1.0)
_ROWS = (
    _LLAMA,
    replace(_LLAMA, name="mistral3", types=("mistral", "ministral3")),
    replace(_LLAMA, name="granite", types=("granite", "granite4_vision_text")),
    replace(_LLAMA, name="smollm3", types=("smollm3",), biases=_QWEN.biases),
    _QWEN,
    replace(_QWEN, name="qwen2vl", types=("qwen2_vl_text", "qwen2_5_vl_text")),
    replace(_QWEN, name="qwen3", types=("qwen3",), norms=_NORMS | _QK_NORMS),
    replace(_QWEN, name="qwen3vl", types=("qwen3_vl_text",), norms=_NORMS | _QK_NORMS),
    _GEMMA,
    replace(_GEMMA, name="gemma2", types=("gemma2",), norms=_GEMMA_NORMS),
    replace(_GEMMA, name="gemma3", types=("gemma3_text",), norms=_GEMMA_NORMS | _QK_NORMS),
    replace(_QWEN, name="phi3", types=("phi3",), linears=_FUSED),
    replace(_QWEN, name="cohere2", types=("cohere2",), norms={"input_layernorm": "attn_norm"}),
)
ARCHITECTURES = {row.name: row for row in _ROWS}

CONNECTORS: dict[str, dict[str, str]] = {
    "mlp": {"linear_1": "mm.0", "linear_2": "mm.2"},
    "pixtral": {
        "linear_1": "mm.1",
        "linear_2": "mm.2",
        "patch_merger.merging_layer": "mm.patch_merger",
    },
    "internvl": {"linear_1": "mm.model.mlp.1", "linear_2": "mm.model.mlp.3"},
    "idefics3": {"modality_projection.proj": "mm.model.fc"},
    "qwen2vl_merger": {"merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"},
    "qwen2.5vl_merger": {"merger.mlp.0": "mm.0", "merger.mlp.2": "mm.2"},
    "qwen3vl_merger": {
        "merger.linear_fc1": "mm.0",
        "merger.linear_fc2": "mm.2",
        "deepstack_merger_list.*.linear_fc1": "v.deepstack.*.fc1",
        "deepstack_merger_list.*.linear_fc2": "v.deepstack.*.fc2",
    },
}
"""By clip.projector_type: how the names of a connector's linears end, and the tensors' names.

`*` is a number: of a list in transformers, and of a block, in the same order, in the file.
"""

NO_EXPORT = {
    "blip_2": "llama.cpp has neither OPT nor a Q-Former",
    "instructblip": "llama.cpp has no Q-Former",
}
"""Families that cannot be exported, by name, and why."""


def connector_names(projector: str, linears: list[str], tensors: list[str]) -> dict[str, str]:
    """The mmproj's tensor (without .weight) of each of a connector's linears that has one."""
    found: dict[str, str] = {}
    for ending, tensor in CONNECTORS.get(projector, {}).items():
        pattern = re.compile(r"(?:.*\.)?" + re.escape(ending).replace(r"\*", r"(\d+)"))
        mine = [name for name in linears if pattern.fullmatch(name)]
        if "*" not in ending:
            found |= dict.fromkeys(mine, tensor)
            continue
        inside = re.compile(re.escape(tensor).replace(r"\*", r"(\d+)"))
        numbers = sorted(int(match[1]) for name in tensors if (match := inside.fullmatch(name)))
        for name in mine:
            place = int(pattern.fullmatch(name)[1])  # type: ignore[index]
            if place < len(numbers):
                found[name] = tensor.replace("*", str(numbers[place]))
    return found
