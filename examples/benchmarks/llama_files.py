"""The vision part of a LLaVA with a SigLIP tower as a file of llama.cpp (mmproj), in float32."""

import json
from pathlib import Path

import numpy as np

TOWER = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.out_proj": "attn_out",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
    "layer_norm1": "ln1",
    "layer_norm2": "ln2",
}


def write_mmproj(out: Path, folder: Path, weights: dict[str, np.ndarray]) -> None:
    """The SigLIP tower and its two linears. llama.cpp runs one block fewer than it has."""
    from gguf import GGUFWriter

    config = json.loads((folder / "config.json").read_text())
    vision = config["vision_config"]
    pictures = json.loads((folder / "preprocessor_config.json").read_text())
    layer = config["vision_feature_layer"]
    depth = layer if layer >= 0 else vision["num_hidden_layers"] + 1 + layer
    writer = GGUFWriter(out, "clip")
    writer.add_string("general.type", "mmproj")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "mlp")
    writer.add_bool("clip.use_gelu", True)
    sizes = {"image_size": vision["image_size"], "patch_size": vision["patch_size"]}
    sizes |= {"embedding_length": vision["hidden_size"], "block_count": depth + 1}
    sizes |= {"feed_forward_length": vision["intermediate_size"]}
    sizes |= {"attention.head_count": vision["num_attention_heads"]}
    sizes |= {"projection_dim": config["text_config"]["hidden_size"]}
    for name, value in sizes.items():
        writer.add_uint32(f"clip.vision.{name}", value)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", vision["layer_norm_eps"])
    writer.add_array("clip.vision.image_mean", [float(x) for x in pictures["image_mean"]])
    writer.add_array("clip.vision.image_std", [float(x) for x in pictures["image_std"]])
    for name, array in weights.items():
        part, _, rest = name.partition(".")
        rest = rest.removeprefix("vision_model.")
        module, _, own = rest.rpartition(".")
        if part == "multi_modal_projector":
            writer.add_tensor(f"mm.{0 if module == 'linear_1' else 2}.{own}", array)
        elif part == "vision_tower" and rest.startswith("embeddings."):
            place = "patch" if "patch" in rest else "position"
            writer.add_tensor(f"v.{place}_embd.{own}", array)
        elif part == "vision_tower" and rest.startswith("encoder.layers."):
            number, _, inner = module.removeprefix("encoder.layers.").partition(".")
            if int(number) < depth:
                writer.add_tensor(f"v.blk.{number}.{TOWER[inner]}.{own}", array)
            if int(number) == depth - 1:  # the one that is not run
                writer.add_tensor(f"v.blk.{depth}.{TOWER[inner]}.{own}", array)
    for step in ("header", "kv_data", "tensors"):
        getattr(writer, f"write_{step}_to_file")()
    writer.close()
