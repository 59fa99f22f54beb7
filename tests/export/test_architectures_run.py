"""Every architecture of the table in llama.cpp's own server, against transformers.

A tiny language model of random weights, with LoRA on every linear and each bias that the table says
is read, is named and ordered by the table. The server gives transformers' log-probabilities, and
does not load the file with one bias more.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cdcca_cli.export.architectures import ARCHITECTURES
from cdcca_cli.formats.gguf import write_gguf
from tests import tiny as checkpoints

pytestmark = pytest.mark.slow

WIDTH, INNER, BLOCKS, HEADS, KV_HEADS, HEAD_WIDTH, POSITIONS = 64, 128, 4, 4, 2, 16, 256
THETA, EPSILON, RANK, ALPHA = 10_000.0, 1e-5, 4, 8.0
PROMPT = (5, 9, 12, 30, 41, 7, 22, 16)
NEAR = 0.01
"""Nats. llama.cpp takes GELU from a table of float16, and is off by 0.003 with it."""
SIZES = {
    "hidden_size": WIDTH,
    "intermediate_size": INNER,
    "num_hidden_layers": BLOCKS,
    "num_attention_heads": HEADS,
    "num_key_value_heads": KV_HEADS,
    "max_position_embeddings": POSITIONS,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "tie_word_embeddings": True,
}
RMS = {"rms_norm_eps": EPSILON}
ROPE = {"rope_type": "default", "rope_theta": THETA}
HEAD = {"head_dim": HEAD_WIDTH}
KEYS: dict[str, Any] = {"attention.key_length": HEAD_WIDTH, "attention.value_length": HEAD_WIDTH}
WINDOW = {"attention.sliding_window": 64}
GEMMA = RMS | HEAD | {"sliding_window": 64, "query_pre_attn_scalar": HEAD_WIDTH}
GRANITE = {"logits_scaling": 2.0, "residual_multiplier": 0.5, "embedding_multiplier": 3.0}
SEES = {"depth": 1, "num_heads": 2}
Case = tuple[str, dict[str, Any], dict[str, Any]]
CASES: dict[str, Case] = {
    "llama": ("Llama", RMS, {}),
    "mistral3": ("Mistral", RMS | HEAD | {"sliding_window": None}, {}),
    "granite": (
        "Granite",
        RMS | GRANITE | {"attention_multiplier": 0.3},
        {"logit_scale": 2.0, "residual_scale": 0.5, "embedding_scale": 3.0, "attention.scale": 0.3},
    ),
    "smollm3": ("SmolLM3", RMS | {"no_rope_layer_interval": 4, "rope_parameters": ROPE}, {}),
    "qwen2": ("Qwen2", RMS, {}),
    "qwen3": ("Qwen3", RMS | HEAD, KEYS),
    "gemma": ("Gemma", RMS | HEAD, KEYS),
    "gemma2": (
        "Gemma2",
        GEMMA,
        KEYS | WINDOW | {"attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0},
    ),
    "gemma3": (
        "Gemma3Text",
        GEMMA | {"rope_parameters": {"full_attention": ROPE, "sliding_attention": ROPE}},
        KEYS | WINDOW,
    ),
    "phi3": (
        "Phi3",
        RMS | {"original_max_position_embeddings": POSITIONS},
        {"rope.scaling.original_context_length": POSITIONS},
    ),
    "cohere2": (
        "Cohere2",
        {"layer_norm_eps": EPSILON, "logit_scale": 0.25, "sliding_window": 64},
        WINDOW | {"logit_scale": 0.25, "attention.layer_norm_epsilon": EPSILON},
    ),
    "qwen2vl": (
        "Qwen2VL",
        RMS | {"rope_parameters": ROPE | {"mrope_section": [2, 3, 3]}},
        {"rope.dimension_sections": [2, 3, 3, 0]},
    ),
    "qwen3vl": (
        "Qwen3VL",
        RMS | HEAD | {"rope_parameters": ROPE | {"mrope_section": [4, 2, 2]}},
        KEYS | {"rope.dimension_sections": [4, 2, 2, 0], "n_deepstack_layers": 0},
    ),
}
"""The start of transformers' names, what its config needs, and what llama.cpp's keys need."""
TOWERS = {
    "Qwen2VL": SEES | {"embed_dim": 32, "hidden_size": WIDTH},
    "Qwen3VL": SEES
    | {"hidden_size": 32, "out_hidden_size": WIDTH, "intermediate_size": 64}
    | {"deepstack_visual_indexes": []},
}


def made(name: str, num_words: int) -> tuple[Any, Any]:
    """A model, and the part of it whose modules the table names."""
    import transformers as tf

    kind, more, _ = CASES[name]
    sizes = SIZES | more | {"vocab_size": num_words}
    config: Any = getattr(tf, f"{kind}Config")
    if kind in TOWERS:
        config = config(text_config=sizes, vision_config=TOWERS[kind], tie_word_embeddings=True)
        model = getattr(tf, f"{kind}ForConditionalGeneration")(config)
        return model.eval(), model.model.language_model
    kind = kind.removesuffix("Text")
    model = getattr(tf, f"{kind}ForCausalLM")._from_config(config(**sizes), **_exactly(kind))
    return model.eval(), model.model


def _exactly(kind: str) -> dict[str, str]:
    return {"attn_implementation": "eager"} if kind == "Gemma2" else {}  # it caps these logits


def write_base(folder: Path, name: str, tensors: dict[str, np.ndarray]) -> Path:
    """A GGUF file of these tensors, with the tokenizer in a folder."""
    import gguf

    words = json.loads((folder / "tokenizer.json").read_text())
    names = sorted(words["model"]["vocab"], key=words["model"]["vocab"].__getitem__)
    special = {each["content"] for each in words["added_tokens"]}
    writer = gguf.GGUFWriter(folder / "base.gguf", name)
    sizes = {"context_length": POSITIONS, "embedding_length": WIDTH, "block_count": BLOCKS}
    sizes |= {"feed_forward_length": INNER, "rope.dimension_count": HEAD_WIDTH}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    real = {"attention.layer_norm_rms_epsilon": EPSILON, "rope.freq_base": THETA}
    add: dict[type, Callable[[str, Any], None]] = {int: writer.add_uint32}
    add |= {float: writer.add_float32, list: writer.add_array}
    for key, value in {**sizes, **real, "vocab_size": len(names), **CASES[name][2]}.items():
        add[type(value)](f"{name}.{key}", value)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", names)
    writer.add_array("tokenizer.ggml.token_type", [3 if one in special else 1 for one in names])
    merges = [one if isinstance(one, str) else " ".join(one) for one in words["model"]["merges"]]
    writer.add_array("tokenizer.ggml.merges", merges)
    writer.add_uint32("tokenizer.ggml.eos_token_id", 2)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_string("tokenizer.chat_template", "{{ messages[0]['content'] }}")
    for each, array in tensors.items():
        writer.add_tensor(each, np.ascontiguousarray(array, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "base.gguf"


def test_all_of_the_table_is_here() -> None:
    assert CASES.keys() == ARCHITECTURES.keys()


@pytest.mark.parametrize("name", CASES)
def test_llama_cpp_computes_what_transformers_does(name: str, tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason="the package gguf is not installed")
    pytest.importorskip("xllamacpp", reason="llama.cpp's server is not here: pip install xllamacpp")
    from cdcca_cli.serving.address import Address
    from cdcca_cli.serving.llama import EVERY, LlamaServer, Prompt
    from tests.teachers import llama

    row = ARCHITECTURES[name]
    model, text = made(name, len(checkpoints.tokenizer(tmp_path, image=True)))
    draw = torch.Generator().manual_seed(1)

    def noise(*shape: int, by: float = 0.2) -> torch.Tensor:
        return by * torch.randn(shape, generator=draw)

    linears = {path: one for path, one in text.named_modules() if isinstance(one, nn.Linear)}
    tensors, adapter = {}, {}
    with torch.no_grad():
        for path, one in model.named_parameters():
            is_norm = one.ndim == 1 and "norm" in path
            one.copy_(noise(*one.shape) + (1 - row.norm_offset if is_norm else 0))
        for path, linear in linears.items():
            if row.reads_bias(str(row.named(path))):
                linear.bias = nn.Parameter(noise(linear.out_features))
    for path, one in text.named_parameters():
        module, _, own = path.rpartition(".")
        array = one.detach().numpy()
        if module == "embed_tokens":
            tensors["token_embd.weight"] = array
            continue
        named = str(row.named(module))
        array = row.reordered(named, array, HEADS, KV_HEADS)
        tensors[f"{named}.{own}"] = array + (0 if module in linears else row.norm_offset)
    base = write_base(tmp_path, name, tensors)
    for path, linear in linears.items():
        named, a_RI = str(row.named(path)), noise(RANK, linear.in_features)
        b_OR = noise(linear.out_features, RANK)
        linear.weight.data += ALPHA / RANK * b_OR @ a_RI
        adapter[f"{named}.weight.lora_a"] = a_RI.numpy()
        adapter[f"{named}.weight.lora_b"] = row.reordered(named, b_OR.numpy(), HEADS, KV_HEADS)
    keys = {"general.architecture": name, "general.type": "adapter", "adapter.type": "lora"}
    with open(tmp_path / "adapter.gguf", "wb") as out:
        write_gguf(out, {**keys, "adapter.lora.alpha": ALPHA}, adapter)
    with torch.no_grad():
        logits_V = model(input_ids=torch.tensor([PROMPT])).logits[0, -1]
    wanted = logits_V.double().log_softmax(-1).numpy()
    with llama.serving(base, None, tmp_path / "adapter.gguf") as address:
        server = LlamaServer.open(
            Address.parse(address.partition("#")[0], "check", needs_model=False)
        )
        assert server is not None
        found, unscaled = (
            server.logprobs(Prompt(ids=PROMPT), EVERY, end=2, scale=scale) for scale in (1.0, 0.0)
        )
        server.close()
    assert len(found) == len(wanted)
    assert max(abs(found[one] - wanted[one]) for one in found) < NEAR
    assert max(abs(found[one] - unscaled[one]) for one in found) > 0.5
    unread = "blk.0.attn_norm" if row.reads_bias("blk.0.ffn_down") else "blk.0.ffn_down"
    more = tensors | {f"{unread}.bias": np.zeros(WIDTH, np.float32)}
    with (
        pytest.raises(AssertionError, match="wrong number of tensors"),
        llama.serving(write_base(tmp_path, name, more)),
    ):
        pass
