"""A tiny LLaVA with a SigLIP tower: its checkpoint, and its files for llama.cpp.

The files are written by llama.cpp's own Python package, with its names, from the checkpoint's
weights; the row order of q and k is spelled out here.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests import tiny

WIDTH, INNER, LAYERS, HEADS, KV_HEADS, POSITIONS = 64, 128, 2, 4, 2, 256
SEEN, TOWER_LAYERS, TOWER_HEADS = 32, 3, 2
THETA, EPSILON = 10_000.0, 1e-5
ATTENTION = ("attn_q", "attn_k", "attn_v", "attn_output")


def checkpoint(folder: Path, *, seed: int = 0) -> Path:
    """Save the checkpoint: LLaMA without biases, SigLIP, a projector of two linears."""
    import torch
    import transformers as tf

    words = tiny.tokenizer(folder, image=True)
    tiny.image_processor(folder, clip=True)
    config = tf.LlavaConfig(
        vision_config=tf.SiglipVisionConfig(
            hidden_size=SEEN,
            intermediate_size=2 * SEEN,
            num_hidden_layers=TOWER_LAYERS,
            num_attention_heads=TOWER_HEADS,
            image_size=tiny.IMAGE_SIZE,
            patch_size=tiny.PATCH_SIZE,
        ),
        text_config=tf.LlamaConfig(
            vocab_size=len(words),
            hidden_size=WIDTH,
            intermediate_size=INNER,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            num_key_value_heads=KV_HEADS,
            max_position_embeddings=POSITIONS,
            rms_norm_eps=EPSILON,
            pad_token_id=0,
            bos_token_id=1,
            eos_token_id=2,
        ),
        image_token_index=words.convert_tokens_to_ids("<image>"),
        image_seq_length=tiny.NUM_PATCHES,
        vision_feature_layer=-2,
        vision_feature_select_strategy="full",
    )
    model = tf.LlavaForConditionalGeneration(config)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            is_norm = parameter.ndim == 1 and name.endswith("weight")
            parameter.copy_(1 + 0.1 * noise if is_norm else 0.2 * noise)
    model.save_pretrained(folder)
    return folder


def in_pairs(rows: np.ndarray, heads: int) -> np.ndarray:
    """Rows in llama.cpp's order: of each head 0, d/2, 1, d/2 + 1, ..."""
    size = len(rows) // heads
    order = [
        head * size + half * size // 2 + place
        for head in range(heads)
        for place in range(size // 2)
        for half in (0, 1)
    ]
    return np.ascontiguousarray(rows[order])


def weights(folder: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return {
        name.removeprefix("model."): x
        for name, x in load_file(next(folder.glob("*.safetensors"))).items()
    }


def write_base(
    folder: Path,
    out: Path,
    *,
    architecture: str = "llama",
    is_permuted: bool = True,
    kind: str = "F32",
    keys: dict[str, Any] | None = None,
    change: dict[str, np.ndarray] | None = None,
) -> Path:
    """Write the language model of a checkpoint.

    Args: kind: of the weights of blocks. keys, change: other values of keys and tensors.
    """
    import gguf

    words = json.loads((folder / "tokenizer.json").read_text())
    names = sorted(words["model"]["vocab"], key=words["model"]["vocab"].__getitem__)
    special = {each["content"] for each in words["added_tokens"]}
    writer = gguf.GGUFWriter(out, architecture)
    sizes = {"context_length": POSITIONS, "embedding_length": WIDTH, "block_count": LAYERS}
    sizes |= {"feed_forward_length": INNER, "rope.dimension_count": WIDTH // HEADS}
    sizes |= {"attention.head_count": HEADS, "attention.head_count_kv": KV_HEADS}
    sizes |= {"vocab_size": len(names)}
    real = {"attention.layer_norm_rms_epsilon": EPSILON, "rope.freq_base": THETA}
    for name, value in {**sizes, **real, **(keys or {})}.items():
        add = writer.add_float32 if name in real else writer.add_uint32
        add(f"{architecture}.{name}", value)
    writer.add_string("tokenizer.ggml.model", "gpt2")
    writer.add_string("tokenizer.ggml.pre", "default")
    writer.add_array("tokenizer.ggml.tokens", names)
    writer.add_array("tokenizer.ggml.token_type", [3 if one in special else 1 for one in names])
    merges = [one if isinstance(one, str) else " ".join(one) for one in words["model"]["merges"]]
    writer.add_array("tokenizer.ggml.merges", merges)
    for place, name in enumerate(("padding", "bos", "eos")):
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", place)
    writer.add_bool("tokenizer.ggml.add_bos_token", False)
    writer.add_string(
        "tokenizer.chat_template", "{% for m in messages %}{{ m['content'] }}\n{% endfor %}"
    )
    table = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, LAYERS)
    for name, array in weights(folder).items():
        if not name.startswith(("language_model.", "lm_head")):
            continue
        inner = name.removeprefix("language_model.").removeprefix("model.").removesuffix(".weight")
        full = inner if inner == "lm_head" else f"model.{inner}"
        named = f"{table.get_name(full)}.weight"
        if is_permuted and named.endswith(("attn_q.weight", "attn_k.weight")):
            array = in_pairs(array, HEADS if "attn_q" in named else KV_HEADS)
        array = (change or {}).get(named, array)
        if kind != "F32" and array.ndim == 2 and named.startswith("blk."):
            number = gguf.GGMLQuantizationType[kind]
            writer.add_tensor(named, gguf.quants.quantize(array, number), raw_dtype=number)
        else:
            writer.add_tensor(named, array)
    _finish(writer)
    return out


_TOWER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}


def write_mmproj(folder: Path, out: Path, *, kind: str = "F32", class_token: bool = False) -> Path:
    """Write tower and projector. Args: kind: of the projector's weights."""
    import gguf

    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    writer = gguf.GGUFWriter(out, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    sizes = {"image_size": tiny.IMAGE_SIZE, "patch_size": tiny.PATCH_SIZE}
    sizes |= {"embedding_length": SEEN, "feed_forward_length": 2 * SEEN, "projection_dim": WIDTH}
    sizes |= {"block_count": TOWER_LAYERS, "attention.head_count": TOWER_HEADS}
    for name, value in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    writer.add_array("clip.vision.image_mean", pictures["image_mean"])
    writer.add_array("clip.vision.image_std", pictures["image_std"])
    if class_token:
        writer.add_tensor("v.class_embd", np.zeros(SEEN, np.float32))
    for name, array in weights(folder).items():
        part, _, rest = name.partition(".")
        rest = rest.removeprefix("vision_model.")
        if part == "multi_modal_projector":
            linear, own = rest.split(".")
            named = f"mm.{0 if linear == 'linear_1' else 2}.{own}"
            if own == "weight" and kind != "F32":
                number = gguf.GGMLQuantizationType[kind]
                writer.add_tensor(named, gguf.quants.quantize(array, number), raw_dtype=number)
                continue
            writer.add_tensor(named, array)
        elif part == "vision_tower" and rest.startswith("embeddings."):
            own = rest.rpartition(".")[2]
            place = "patch" if "patch" in rest else "position"
            writer.add_tensor(f"v.{place}_embd.{own}", array)
        elif part == "vision_tower" and rest.startswith("encoder.layers."):
            _, _, number, rest = rest.split(".", 3)
            inner, _, own = rest.rpartition(".")
            writer.add_tensor(f"v.blk.{number}.{_TOWER[inner]}.{own}", array)
    _finish(writer)
    return out


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def loud(overlay: dict[str, np.ndarray], *, seed: int = 1) -> dict[str, np.ndarray]:
    """An overlay of the same names and shapes with large random changes."""
    draw = np.random.default_rng(seed)
    scale = {"lora_A": 0.2, "lora_B": 0.2, "weight": 0.1, "bias": 0.1}
    found = {}
    for name, array in overlay.items():
        noise = draw.standard_normal(array.shape) * scale[name.rpartition(".")[2]]
        found[name] = (noise if "lora" in name else array + noise).astype(np.float32)
    return found
